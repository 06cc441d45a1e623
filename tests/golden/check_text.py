#!/usr/bin/env python3
"""Holds encode_texts against Hugging Face tokenizers on a lot of text.

usage: check_text.py ENCODE_TEXTS (small | MODEL TOKENIZER.json) [--random N] [--seed S] [--gsm8k FOLDER]
                     [--points] [--only NAME …]

`small`: the tokenizers of text_tokenizers.py. Otherwise MODEL is a GGUF, a folder or a tokenizer.json for
encode_texts, and TOKENIZER.json what Hugging Face reads. The texts: the hard ones, N random
ones, every code point where asked, and GSM8K's questions and answers, apart and joined.
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


def our_texts(program, path, ids, special, work):
    source, target = os.path.join(work, "in"), os.path.join(work, "out")
    with open(source, "wb") as f:
        for one in ids:
            f.write(struct.pack("<I%dI" % len(one), 4 * len(one), *one))
    subprocess.run([program, path, source, target, "decode"] + ["special"] * special, check=True,
                   capture_output=True)
    data, at, texts = open(target, "rb").read(), 0, []
    while at < len(data):
        n, = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4:at + 4 + n].decode())
        at += 4 + n
    return texts


def compare_decoded(program, path, reference, texts, random_ids, what):
    """The ids of the texts, and ids at random, as text."""
    bad, size = 0, reference.get_vocab_size(with_added_tokens=True)
    ids = [e.ids for e in reference.encode_batch(texts)]
    ids += [[random_ids.randrange(size + 2) for _ in range(random_ids.randrange(1, 12))] for _ in texts]
    with tempfile.TemporaryDirectory() as work:
        for special in (False, True):
            a = our_texts(program, path, ids, special, work)
            b = reference.decode_batch(ids, skip_special_tokens=not special)
            for one, x, y in zip(ids, a, b):
                if x != y:
                    bad += 1
                    if bad <= 5:
                        print("decodes otherwise:", one[:20], ascii(x)[:200], ascii(y)[:200])
    print(f"{what}: {2 * len(ids)} lists of ids, {bad} decode otherwise")
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
    a.add_argument("--points", action="store_true", help="every code point, among others")
    a.add_argument("--only", nargs="*", help="of the small ones")
    a = a.parse_args()
    r = random.Random(a.seed)
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = hard_texts() + [random_text(r) for _ in range(a.random)]
    if a.points:
        texts += ["".join(f" a{c}1{c}" for c in points[i:i + 64]) for i in range(0, len(points), 64)]
    texts += gsm8k(a.gsm8k) if a.gsm8k else []
    bad = 0
    if a.model == "small":
        with tempfile.TemporaryDirectory() as work:
            for name, make in TOKENIZERS.items():
                path = os.path.join(work, name + ".json")
                if not a.only or name in a.only:
                    make().save(path)
                    t = Tokenizer.from_file(path)
                    bad += compare(a.program, path, t, texts, name)
                    bad += compare_decoded(a.program, path, t, texts, r, name)
    else:
        t = Tokenizer.from_file(a.tokenizer)
        bad = compare(a.program, a.model, t, texts, a.model)
        bad += compare_decoded(a.program, a.model, t, texts, r, a.model)
    sys.exit(bad > 0)


main()
