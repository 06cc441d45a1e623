#!/usr/bin/env python3
"""Reference values for tests/engine/test_judge.c and test_sample.c.

Writes tests/golden/generate/:
    rouge.json     F-measures of ROUGE-1, -2 and -L of 1,000 pairs of texts, from the package rouge-score;
                   the texts are drawn from a list of pieces by a generator that the test has, too
    sampling.json  probabilities after transformers' logits processors, in its order

Usage: python make_generate.py [OUTDIR]   (needs rouge-score, torch, transformers)
"""

import json
import os
import sys

import torch
import transformers
from rouge_score import rouge_scorer
from transformers import (LogitsProcessorList, RepetitionPenaltyLogitsProcessor,
                          TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

PAIRS = 1000
PIECES = ["the", "The", "cat", "CAT", "sat", "on", "a", "mat", "dog", "barked", "7", "42", "1,000",
          "3.14", "don't", "well-known", "e-mail", "x", "naïve", "Straße", "東京", "\u212aelvin", "\u0130stanbul",
          "K", "\n", "\t", "--", "...", "!?", "🙂", "under_score", "a1b2", "#### 12", "\u00a0", "é"]


class Generator:
    """Knuth's MMIX generator; its upper 31 bits."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        return (self.state >> 33) % n


def text(g, longest):
    """Pieces with a space, or nothing, after each; a third of them from a few words only."""
    out = []
    few = g.below(3) == 0
    for _ in range(g.below(longest + 1)):
        out.append(PIECES[g.below(8 if few else len(PIECES))])
        out.append("" if g.below(6) == 0 else " ")
    return "".join(out)


def make_rouge(out):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    g = Generator(20240501)
    scores = []
    for _ in range(PAIRS):
        reference, answer = text(g, 40), text(g, 40)
        s = scorer.score(reference, answer)
        scores.append([round(s[k].fmeasure, 9) for k in ("rouge1", "rouge2", "rougeL")])
    assert sum(s[1] > 0 for s in scores) > PAIRS // 3
    with open(os.path.join(out, "rouge.json"), "w", encoding="utf-8") as f:
        json.dump({"pieces": PIECES, "seed": 20240501, "longest": 40, "scores": scores}, f)
        f.write("\n")


SETTINGS = [
    dict(temperature=1.0), dict(temperature=0.5), dict(temperature=1.7, top_k=5),
    dict(temperature=0.9, top_p=0.9), dict(temperature=1.0, top_p=0.2), dict(temperature=2.0, top_p=0.999),
    dict(temperature=0.7, top_k=20, top_p=0.8), dict(temperature=1.0, top_k=1),
    dict(temperature=1.0, repetition_penalty=1.3), dict(temperature=0.8, repetition_penalty=0.7),
    dict(temperature=0.8, top_k=10, top_p=0.95, repetition_penalty=1.15),
    dict(temperature=1.0, top_p=1e-6), dict(temperature=1.0, top_k=1000),
]


def processors(s):
    """In the order of GenerationMixin._get_logits_processor()."""
    p = LogitsProcessorList()
    if "repetition_penalty" in s:
        p.append(RepetitionPenaltyLogitsProcessor(s["repetition_penalty"]))
    p.append(TemperatureLogitsWarper(s["temperature"]))
    if "top_k" in s:
        p.append(TopKLogitsWarper(s["top_k"]))
    if "top_p" in s:
        p.append(TopPLogitsWarper(s["top_p"]))
    return p


def make_sampling(out):
    torch.manual_seed(3)
    cases = []
    for i, s in enumerate(SETTINGS * 2):
        vocab = 23 if i % 2 else 64
        logits = (torch.randn(vocab) * 3).round(decimals=3)
        if i >= len(SETTINGS) and "top_k" in s and s["top_k"] == 5:
            logits[3] = logits[7] = logits.topk(5).values[-1]  # a tie with the last that stays
        ids = torch.randint(0, vocab, (1, 12))
        p = processors(s)(ids, logits[None].clone()).softmax(-1)[0]
        cases.append(dict(s, logits=[round(x, 3) for x in logits.tolist()], ids=ids[0].tolist(),
                          probabilities=[float(f"{x:.7g}") for x in p.tolist()]))
    with open(os.path.join(out, "sampling.json"), "w", encoding="utf-8") as f:
        json.dump({"transformers": transformers.__version__, "cases": cases}, f)
        f.write("\n")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "generate")
    os.makedirs(out, exist_ok=True)
    make_rouge(out)
    make_sampling(out)


if __name__ == "__main__":
    main()
