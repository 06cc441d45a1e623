#!/usr/bin/env python3
"""How PEFT's prompt tuning starts from a text and from the vocabulary.

    make_prompt_init.py [--out FILE]

Writes FILE (default: tests/golden/prompt_init.json). TEXT: for a text of fewer tokens than there are virtual
ones, and for one of more, its token ids, the rows that PEFT starts with, and the loss of all rows of
methods/prompt_tuning-random under them. SAMPLE_VOCAB: the tokens that PEFT took in many draws, as their
mean and variance; that its rows are those of the embedding is checked here.
"""

import argparse
import json
import os
import tempfile

import reference  # before torch: it sets the number of threads
from libraries import load_base
from reference import loss_of

import peft
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = {"short": ("w3 w17 w8", 7), "long": ("w5 w1 w9 w30 w2 w11 w6 w4 w20", 4), "same": ("w7 w7", 2)}
DRAWS = 2000


def save_tokenizer(folder, vocab_size):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


def prompt_of(base, **options):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(base, config)
    return model, model.prompt_encoder["default"].embedding.weight.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.path.join(HERE, "prompt_init.json"))
    args = parser.parse_args()
    with open(os.path.join(HERE, "methods/prompt_tuning-random/golden.json")) as f:
        golden = json.load(f)
    folder = os.path.join(HERE, golden["model"])
    base = load_base(folder)
    table = base.get_input_embeddings().weight.detach().clone()
    result = {"text": {}}
    with tempfile.TemporaryDirectory() as tokenizer:
        save_tokenizer(tokenizer, base.config.vocab_size)
        for name, (text, n) in TEXTS.items():
            model, rows = prompt_of(load_base(folder), num_virtual_tokens=n, prompt_tuning_init="TEXT",
                                    prompt_tuning_init_text=text, tokenizer_name_or_path=tokenizer)
            with torch.no_grad():
                loss = loss_of(model.eval(), golden["rows"])[0].item()
            ids = [int(w[1:]) for w in text.split()]
            result["text"][name] = dict(ids=ids, num_virtual_tokens=n, rows=rows.tolist(), loss=loss)
    torch.manual_seed(5)
    taken = []
    for _ in range(DRAWS // 8):
        rows = peft.tuners.prompt_tuning.PromptEmbedding(
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8, token_dim=table.shape[1],
                                    num_transformer_submodules=1, prompt_tuning_init="SAMPLE_VOCAB"),
            base.get_input_embeddings()).embedding.weight
        for row in rows:
            equal = (table == row).all(dim=1).nonzero()
            assert len(equal) == 1, "not a row of the embedding"
            taken.append(equal.item())
    taken = torch.tensor(taken, dtype=torch.float64)
    result["sample_vocab"] = dict(draws=len(taken), vocab_size=base.config.vocab_size,
                                  mean=taken.mean().item(), variance=taken.var().item())
    result["versions"] = {"peft": peft.__version__, "torch": torch.__version__}
    with open(args.out, "w") as f:
        json.dump(result, f)
        f.write("\n")


if __name__ == "__main__":
    main()
