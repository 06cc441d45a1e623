#!/usr/bin/env python3
"""Holds encode_texts against Hugging Face tokenizers on a lot of text.

usage: check_text.py ENCODE_TEXTS (small | MODEL TOKENIZER.json) [--random N] [--seed S] [--gsm8k FOLDER]

`small`: the tokenizers of text_tokenizers.py. Otherwise MODEL is a GGUF, a folder or a tokenizer.json for
encode_texts, and TOKENIZER.json what Hugging Face reads. The texts: the hard ones, every code point, N
random ones, and GSM8K's questions and answers, apart and joined.
"""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

from text_tokenizers import TOKENIZERS, hard_texts, random_text
from tokenizers import Tokenizer


def ours(program, path, texts, special, work):
    source, target = os.path.join(work, "in"), os.path.join(work, "out")
    with open(source, "wb") as f:
        for text in texts:
            data = text.encode()
            f.write(struct.pack("<I", len(data)) + data)
    p = subprocess.run([program, path, source, target] + ["special"] * special, check=True,
                       capture_output=True, text=True)
    data, at, ids = open(target, "rb").read(), 0, []
    while at < len(data):
        n, = struct.unpack_from("<I", data, at)
        ids.append(list(struct.unpack_from("<%dI" % n, data, at + 4)))
        at += 4 + 4 * n
    return ids, p.stdout.strip()


def compare(program, path, reference, texts, what):
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        for special in (False, True):
            ids, speed = ours(program, path, texts, special, work)
            theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=special)]
            for text, a, b in zip(texts, ids, theirs):
                if a != b:
                    bad += 1
                    if bad <= 5:
                        print("differs:", ascii(text)[:300], a[:20], b[:20])
            print(f"{what}: {len(texts)} texts, {sum(map(len, theirs))} ids, {bad} differ ({speed})")
    return bad


def gsm8k(folder):
    out = []
    for name in ("train", "test"):
        for line in open(os.path.join(folder, name + ".jsonl")):
            row = json.loads(line)
            out += [row["question"], row["answer"], row["question"] + "\n" + row["answer"]]
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("program")
    a.add_argument("model")
    a.add_argument("tokenizer", nargs="?")
    a.add_argument("--random", type=int, default=2000)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--gsm8k")
    a = a.parse_args()
    r = random.Random(a.seed)
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = hard_texts() + [random_text(r) for _ in range(a.random)]
    texts += ["".join(f" a{c}1{c}" for c in points[i:i + 64]) for i in range(0, len(points), 64)]
    texts += gsm8k(a.gsm8k) if a.gsm8k else []
    bad = 0
    if a.model == "small":
        with tempfile.TemporaryDirectory() as work:
            for name, make in TOKENIZERS.items():
                path = os.path.join(work, name + ".json")
                make().save(path)
                bad += compare(a.program, path, Tokenizer.from_file(path), texts, name)
    else:
        bad = compare(a.program, a.model, Tokenizer.from_file(a.tokenizer), texts, a.model)
    sys.exit(bad > 0)


main()
