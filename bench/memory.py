#!/usr/bin/env python3
"""Planned memory against what the run took, over a grid of jobs on a real model.

    bench/memory.py --build BUILD --model PATH --data GSM8K [--methods] [--out FILE.json]

With --methods one job of each method, in its own defaults, and the time of its steps beside its planned FLOPs;
else a grid of LoRA jobs. For each job a fresh daemon (a process's peak never goes down): `peftctl plan` before,
`peftctl show` after the steps and an evaluation. The arena must be the planned one to the byte; the trainer's
peak resident memory is compared with plan + overhead, both as `plan` states them. Ends with status 1 where a
bound is broken.
"""

import argparse
import itertools
import json
import pathlib
import re
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "hf"))
from common import Daemon  # noqa: E402

MIB = 1 << 20
METHODS = ("full", "last_k", "bitfit", "ln_tuning", "select", "lora", "bottleneck", "prompt_tuning",
           "p_tuning", "prefix_tuning", "ia3")
PARTS = ("base_weights", "trainable_weights", "optimizer_states", "gradients", "activations", "temporary")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()

    grid = [{"train.dtype": dtype, "train.batch_size": batch, "train.max_length": length, "lora.r": r,
             "train.microbatch_tokens": tokens}
            for dtype, (batch, length), r, tokens in itertools.product(
                ("f32", "bf16"), ((1, 256), (4, 512)), (4, 64), (0, 512))]
    if args.methods:
        grid = [{"method": method, "train.dtype": "bf16", "train.batch_size": 4, "train.max_length": 512}
                for method in METHODS]
        by_name = [s for s in grid if s["method"] == "select"]
        by_name[0]["select.parameters"] = r"[model\.layers\.[0-9]+\.mlp\.down_proj\.weight]"
    rows = []
    steps = 6 if args.methods else 2
    for settings in grid:
        daemon = Daemon(args.build)
        try:
            daemon.add_data(args.model, args.data, {"train": 64, "test": 64})
            job = ["--model", "m", "--dataset", "train", "--eval-dataset", "test",
                   "--set", f"train.max_steps={steps}", "--set", "train.eval_steps=0"]
            for key, value in settings.items():
                job += ["--set", f"{key}={value}"]
            plan = json.loads(daemon.ctl("--json", "plan", *job))
            plan = plan.get("plan", plan)
            number = daemon.ctl("submit", *job).strip()
            daemon.ctl("watch", number)
            show = json.loads(daemon.ctl("--json", "show", number))
            metrics = [json.loads(line) for line in daemon.ctl("--json", "metrics", number).splitlines()]
        finally:
            daemon.close()
        arena = plan["total"] - plan["base_weights"]
        stated = plan["total"] + plan["overhead"]
        rows.append(settings | {
            "trainable_parameters": plan["trainable_parameters"], "parts": {p: plan[p] for p in PARTS},
            "planned_total": plan["total"], "planned_arena": arena, "overhead": plan["overhead"],
            "used_arena": show["measured_arena"], "peak_rss": show["measured_peak_rss"],
            "peak_over_stated": show["measured_peak_rss"] / stated,
            "flops_per_token": plan["flops_per_token"],
            "tokens_per_second": statistics.median(
                m["tokens"] / m["seconds"] for m in metrics if "loss" in m)})
        r = rows[-1]
        print(f"{settings}: arena {arena / MIB:.1f} MiB planned, {r['used_arena'] / MIB:.1f} used; peak "
              f"{r['peak_rss'] / MIB:.1f} of {stated / MIB:.1f} MiB: {r['peak_over_stated']:.3f}; "
              f"{r['flops_per_token'] / 1e6:.0f} MFLOP a token, {r['tokens_per_second']:.0f} tokens/s", flush=True)

    ok = all(r["planned_arena"] == r["used_arena"] and abs(r["peak_over_stated"] - 1) <= 0.05 for r in rows)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps({
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": re.sub(r"(?<=\s)/\S*/", "", " ".join(sys.argv)), "rows": rows}, indent=1) + "\n",
            encoding="utf-8")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
