#!/usr/bin/env python3
"""Writes the corpora of the targets that take protobuf messages: corpus/request, corpus/reply.

The wire format is written here by hand (field numbers are those of proto/rpc.proto), so that it needs
no protobuf compiler. Run it in this folder."""

import struct
from pathlib import Path


def varint(n):
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields):
    return b"".join(field(n, v) for n, v in fields)


ID = (1, "0123456789abcdef")
OK = (2, message((1, 0)))

spec = message((2, "m"), (3, "d"), (7, message((1, 8), (2, 32.0), (4, "q_proj"), (4, "v_proj"))),
               (8, message((1, 3), (8, 0.1), (5, "drop"))))
requests = {
    # name: (which length of the raw frame, message)
    "hello": (0, message(ID, (2, message((1, 1), (2, "x"))))),
    "status": (0, message(ID, (3, b""))),
    "submit": (0, message(ID, (15, message((1, spec), (3, 1))))),
    "unknown": (0, message(ID, (15, message((1, spec + message((99, 1))))))),
    "chunk": (2, message(ID, (9, message((1, bytes(32)), (2, 5))))),
    "watch": (0, message(ID, (19, message((1, 7), (2, 3), (3, 64), (4, 1))))),
    "short-id": (0, message((1, "short"), (3, b""))),
    "eval": (0, message(ID, (25, message((1, "m"), (2, "d"), (3, message((1, 7))))))),
}
blob = message((1, bytes(range(32))), (2, 5), (3, message((1, "a.json"), (2, 5))))
events = (
    (1, message((1, 1), (2, 5), (4, message((1, 1), (2, 0.5), (3, 1e-4), (5, 10), (7, 0.1))))),
    (1, message((1, 2), (6, message((1, "info"), (2, "a\x1b[31m\n"))))),
    (1, message((1, 3), (3, message((1, 3), (2, "why"), (3, 2))))),
    (1, message((1, 4), (5, message((1, 1), (2, 1.5))))),
    (1, message((1, 5), (7, message((1, 1), (2, 100), (3, 1))))),
)
job = message((1, 7), (2, "n"), (4, 3), (6, spec), (14, 0.5), (16, message((1, 5), (2, blob))))
replies = {
    "status": message(ID, OK, (5, message((2, "cpu"), (13, 7), (6, message((1, "m"), (3, 9)))))),
    "watch": message(ID, OK, (3, 1), (17, message(*events, (2, 5), (3, job)))),
    "job": message(ID, OK, (16, job)),
    "inspect": message(ID, OK, (12, message((1, 0), (2, b"\x01\x02"), (3, b"\x01\x02"), (4, "a")))),
    "failed": message(ID, (2, message((1, 5), (2, "no")))),
}

for folder, files in (("request", {n: bytes([k]) + m for n, (k, m) in requests.items()}),
                      ("reply", replies)):
    path = Path("corpus") / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
