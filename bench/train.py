#!/usr/bin/env python3
"""Training speed of the whole daemon on real input, beside the machine's product speed.

    bench/train.py --build BUILD --model PATH --data GSM8K [--steps 12] [--rounds 3] [--out FILE.json]

BUILD is a release build that has bench_kernels, PATH SmolLM2-135M (GGUF or folder), GSM8K a folder with
train.jsonl. Each round runs, for f32 and for bf16: the speed of a large product, then a job through the
daemon (LoRA r 16, alpha 32, all seven projections, 4 sequences a step, sequential). The share of the peak
is that job's FLOPs (as `peftctl plan` counts them: attention at the longest row, so some percent too many
where rows are shorter) a second over the large product's just before. Medians of the rounds; a job's own figure is the median over its steps without the first two.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "hf"))
from common import Daemon  # noqa: E402


def find(build, name):
    found = [p for p in pathlib.Path(build).rglob(name) if p.is_file()]
    if not found:
        sys.exit(f"{build}: there is no {name} in it; ninja -C {build} {name}")
    return str(found[0])


def peak(bench):
    """{"f32": GFLOP/s, "bf16": GFLOP/s} of a large product, now."""
    out = subprocess.run([bench, "0", "peak"], capture_output=True, text=True, check=True).stdout
    return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) +large product: ([\d.]+)", out, re.M)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()

    bench, rows = find(args.build, "bench_kernels"), []
    daemon = Daemon(args.build)
    try:
        daemon.add_data(args.model, args.data, {"train": 4 * args.steps})
        spec = {"lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
                "train": {"batch_size": 4, "max_length": 512, "data_order": "sequential",
                          "max_steps": args.steps, "save_steps": 0, "learning_rate": 2e-4}}
        for _ in range(args.rounds):
            for dtype in ("f32", "bf16"):
                spec["train"]["dtype"] = dtype
                gflops = peak(bench)[dtype]
                job, steps = daemon.train(spec)
                plan = json.loads(daemon.ctl("--json", "show", job))["plan"]
                speed = statistics.median(m["tokens"] / m["seconds"] for m in steps[2:])
                rows.append({"dtype": dtype, "tokens_per_s": speed, "peak_gflops": gflops,
                             "flops_per_token": plan["flops_per_token"],
                             "share": speed * plan["flops_per_token"] / (gflops * 1e9)})
                print(json.dumps(rows[-1]), flush=True)
    finally:
        status = daemon.close()
    if status != 0:
        sys.exit("the daemon did not end well")

    result = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
              "command": re.sub(r"(?<=\s)/\S*/", "", " ".join(sys.argv)), "cores": os.cpu_count(),
              "rows": rows, "median": {}}
    for dtype in ("f32", "bf16"):
        mine = [r for r in rows if r["dtype"] == dtype]
        result["median"][dtype] = {k: statistics.median(r[k] for r in mine)
                                   for k in ("tokens_per_s", "peak_gflops", "share")}
        m = result["median"][dtype]
        print(f"{dtype:<5} {m['tokens_per_s']:8.1f} tokens/s   large product "
              f"{m['peak_gflops']:7.1f} GFLOP/s   share {m['share']:.1%}")
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
