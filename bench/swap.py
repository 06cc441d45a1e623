#!/usr/bin/env python3
"""Many adapters over one resident base, in a random order.

    bench/swap.py --build BUILD --model PATH --data GSM8K [--adapters 50] [--turns 200] [--out FILE.json]

Trains --adapters small adapters through the daemon (LoRA, IA3, prompt tuning and bottleneck in turn, each with a
seed of its own, few steps), asks each of them alone, then all of them in a random order, several prompts
at once where the same comes twice. Every answer must be that of its adapter alone; memory in use must have grown by the
bytes of the adapters' folders and by nothing else. Reports how long an adapter took to be in place, fetched and
from memory, by method. Ends with status 1 where an answer or the memory differs.
"""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "hf"))
from common import Daemon  # noqa: E402

METHODS = ("lora", "ia3", "prompt_tuning", "bottleneck")
PROMPTS = ("The capital of France is", "Natalia has 3 apples and buys 4 more. She has",
           "Once upon a time")


def train(daemon, n, steps):
    """{job: method}"""
    seeds = ",".join(str(i + 1) for i in range((n + len(METHODS) - 1) // len(METHODS)))
    sweep = daemon.ctl("submit", "--quiet", "--model", "m", "--dataset", "train", "--sweep",
                       f"method={','.join(METHODS)}", "--sweep", f"train.seed={seeds}", "--set",
                       f"train.max_steps={steps}", "--set", "train.batch_size=1", "--set",
                       "train.max_length=256", "--set", "train.dtype=f32", "--set", "train.learning_rate=5e-3",
                       "--set", "train.save_steps=0").strip()
    daemon.ctl("watch", sweep)
    jobs = [json.loads(line) for line in daemon.ctl("--json", "list", sweep).splitlines()]
    methods = {}
    for job in sorted(j["id"] for j in jobs)[:n]:
        methods[job] = json.loads(daemon.ctl("--json", "show", str(job)))["spec"]["method"]
    return methods


def folder_bytes(daemon, job):
    out = daemon.fetch(str(job), f"folder-{job}")
    return sum(f.stat().st_size for f in pathlib.Path(out).iterdir())


def memory(daemon, want=None):
    """In use, as the daemon says; its statistics come behind its answers."""
    for _ in range(200):
        used = json.loads(daemon.ctl("--json", "status"))["memory_in_use"]
        if used == want:
            break
        time.sleep(0.02)
    return used


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out")
    args = parser.parse_args()

    rng, daemon = random.Random(5), Daemon(args.build)
    times, differ = {}, 0
    ask = ["--json", "generate", "--model", "m", "--max-new-tokens", str(args.tokens)]
    try:
        daemon.add_data(args.model, args.data, {"train": 16})
        methods = train(daemon, args.adapters, args.steps)
        daemon.ctl(*ask, "Hello")  # the base is resident from here on
        before, bytes_of_all = memory(daemon), sum(folder_bytes(daemon, job) for job in methods)
        alone = {}
        for job, method in methods.items():
            for prompt in PROMPTS:
                answer = json.loads(daemon.ctl(*ask, "--adapter", str(job), prompt))
                alone[job, prompt] = answer["text"]
                kind = "memory" if answer["adapter_was_here"] else "fetched"
                times.setdefault((method, kind), []).append(answer["switch_seconds"])
        grown = memory(daemon, before + bytes_of_all) - before

        turns = [(rng.choice(list(methods)), rng.choice(PROMPTS)) for _ in range(args.turns)]
        path = os.path.join(daemon.dir, "turns.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"prompt": p, "adapter": str(job)}) + "\n" for job, p in turns)
        start = time.time()
        answers = [json.loads(line) for line in daemon.ctl(*ask, "--prompts", path).splitlines()]
        seconds = time.time() - start
        for (job, prompt), answer in zip(turns, answers, strict=True):
            differ += answer["text"] != alone[job, prompt]
            times.setdefault((methods[job], "memory"), []).append(answer["switch_seconds"])
        after = memory(daemon, before + bytes_of_all) - before
    finally:
        status = daemon.close()
    if status != 0:
        sys.exit("the daemon did not end well")

    rows = [{"method": m, "from": kind, "n": len(t), "median_ms": 1e3 * statistics.median(t),
             "p90_ms": 1e3 * sorted(t)[int(0.9 * (len(t) - 1))]} for (m, kind), t in sorted(times.items())]
    for r in rows:
        print(f"{r['method']:<14} {r['from']:<8} in place after {r['median_ms']:7.2f} ms (90 %: "
              f"{r['p90_ms']:7.2f} ms), {r['n']} times")
    print(f"{len(methods)} adapters, {args.turns} turns in {seconds:.1f} s: {differ} answers differ; memory grew by "
          f"{grown} bytes, then {after}; the folders have {bytes_of_all}")
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps({
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": re.sub(r"(?<=\s)/\S*/", "", " ".join(sys.argv)), "cores": os.cpu_count(),
            "adapters": len(methods), "turns": args.turns, "seconds": seconds, "differ": differ,
            "memory_grown": after, "folder_bytes": bytes_of_all, "switch": rows}, indent=1) + "\n",
            encoding="utf-8")
    sys.exit(0 if differ == 0 and grown == after == bytes_of_all else 1)


if __name__ == "__main__":
    main()
