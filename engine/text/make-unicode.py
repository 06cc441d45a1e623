#!/usr/bin/env python3
"""Writes unicode-tables.c: which code points are what in the Unicode versions that Hugging Face
tokenizers carries (Oniguruma's for patterns, Rust's for Digits and Lowercase, an old one for
normalization), found by asking the installed `tokenizers`, and how PCRE2 and utf8proc differ.

usage: make-unicode.py LIBRARIES.json > unicode-tables.c

LIBRARIES.json is what `make-unicode-probe` (built from make-unicode-probe.c beside this script, against
the oldest PCRE2 and utf8proc that the project supports) prints.
"""

import json
import sys

from tokenizers import Regex, __version__, normalizers, pre_tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf".split()


def matching(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return [c for c in POINTS if not split.pre_tokenize_str(chr(c))]


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def table(comment, declaration, rows):
    print(f"\n/* {comment} */")
    print(f"const {declaration}[] = {{")
    line = "\t"
    for row in rows:
        if len(line) + len(row) + 2 > 98:
            print(line.rstrip())
            line = "\t"
        line += row + ", "
    print(line.rstrip())
    print("};")


def range_table(comment, name, points):
    rows = [f"{{0x{a:X}, 0x{b:X}}}" for a, b in ranges(points)]
    table(comment, f"struct code_range {name}", rows)
    print(f"const size_t n_{name} = {len(rows)};")


def main():
    libraries = json.load(open(sys.argv[1]))
    letters, numbers = matching(r"\p{L}"), matching(r"\p{N}")
    digits = pre_tokenizers.Digits(individual_digits=True)
    numeric = [c for c in POINTS if len(digits.pre_tokenize_str("a" + chr(c) + "a")) > 1]

    print("/* Made by make-unicode.py with tokenizers %s; not to be edited by hand. */" % __version__)
    print('#include "engine/text/unicode.h"')
    range_table("\\p{L}", "unicode_letters", letters)
    range_table("\\p{N}", "unicode_numbers", numbers)
    range_table("char::is_numeric beyond \\p{N}", "unicode_numeric_extra",
                set(numeric) - set(numbers))
    assert set(numbers) <= set(numeric)
    assert matching(r"\s") == [9, 10, 11, 12, 13, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
                               0x2028, 0x2029, 0x202F, 0x205F, 0x3000]

    whitespace, punctuation = pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()
    range_table("\\w of Rust's regex", "unicode_words",
                [c for c in POINTS if len(whitespace.pre_tokenize_str("a" + chr(c))) == 1
                 and len(whitespace.pre_tokenize_str("," + chr(c))) == 2])
    range_table("What Punctuation splits at", "unicode_punctuation",
                [c for c in POINTS if len(punctuation.pre_tokenize_str("a" + chr(c))) > 1])
    accents = normalizers.StripAccents()
    range_table("What StripAccents takes away", "unicode_accents",
                [c for c in POINTS if accents.normalize_str("a" + chr(c)) == "a"])

    later = []
    for category in CATEGORIES:
        here, there = set(matching(r"\p{%s}" % category)), set(libraries["category"][category])
        assert there <= here or category in ("Mn", "Mc"), category
        if category not in ("Mn", "Mc"):
            later += [(a, b, category) for a, b in ranges(here - there)]
    marks = set(matching(r"\p{M}"))
    there = set().union(*(libraries["category"][c] for c in ("Mn", "Mc", "Me")))
    assert there <= marks
    later += [(a, b, "M ") for a, b in ranges(marks - there)]
    later.sort()
    rows = [f'{{0x{a:X}, 0x{b:X}, "{c}"}}' for a, b, c in later]
    table("Code points with a category that the oldest supported PCRE2 does not know yet. Mn and Mc are one.",
          "struct category_range unicode_later", rows)
    print(f"const size_t n_unicode_later = {len(rows)};")

    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    # What is assigned after utf8proc 2.8's Unicode 15 but known to a later utf8proc.
    opaque = {c for a, b, _ in later for c in range(a, b + 1)} & set(libraries["unassigned"])
    for point, combining in libraries["combining"].items():
        c = chr(int(point))
        probe = "a\u0345" + c if combining < 240 else "a" + c + "\u0301"
        if int(point) != 0x345 and nfd.normalize_str(probe) == probe:
            opaque.add(int(point))
    for point in libraries["compat"]:
        if nfkd.normalize_str(chr(point)) == chr(point):
            opaque.add(point)
    for first, second, composed in libraries["compositions"]:
        if composed in opaque:
            opaque |= {first, second} if nfd.normalize_str(chr(first)) == chr(first) else {second}
    range_table("Code points that utf8proc normalizes and Hugging Face's older tables leave alone",
                "unicode_opaque", opaque)

    lower = normalizers.Lowercase()
    rows = []
    for c in POINTS:
        text = lower.normalize_str(chr(c))
        known = libraries["lower"].get(str(c), c)
        if len(text) == 1 and ord(text) != known:
            rows.append(f"{{0x{c:X}, 0x{ord(text):X}}}")
        assert len(text) == 1 or c == 0x130
    table("Lower case that the oldest supported utf8proc does not know yet",
          "struct case_pair unicode_lower", rows)
    print(f"const size_t n_unicode_lower = {len(rows)};")


main()
