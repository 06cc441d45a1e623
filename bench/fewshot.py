#!/usr/bin/env python3
"""Few-shot prompting against tuning, on GSM8K, with seeds.

    bench/fewshot.py --build BUILD --model PATH --data GSM8K [--seeds 1,2,3] [--steps 300] [--limit 100]
                     [--shots 0,1,4] [--methods lora,prompt_tuning,full] [--out FILE.json]

Rows become "Question: …\nAnswer:" and " …". The base answers --limit rows of the test set with so many
examples of the training set before each; then one job of each method and seed is trained on --rows rows and
its adapter answers the same rows without examples. `peftctl compare --on` does the evaluating. Prints, by
condition, mean and standard deviation over seeds of loss, last-number match and ROUGE-L.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "hf"))
from common import Daemon, read_rows  # noqa: E402

RATES = {"lora": 2e-4, "prompt_tuning": 1e-2, "full": 2e-5}
KEYS = ("loss", "last_number", "rouge_l")


def put(daemon, name, source, n):
    path = os.path.join(daemon.dir, name + ".jsonl")
    with open(path, "w", encoding="utf-8") as f:
        for row in read_rows(source, n):
            f.write(json.dumps({"prompt": f"Question: {row['question']}\nAnswer:",
                                "completion": " " + row["answer"]}) + "\n")
    daemon.ctl("dataset", "put", name, path)


def submit(daemon, args, method, seed):
    spec = ["--model", "m", "--dataset", "train", "--method", method]
    for key, value in {"max_steps": args.steps, "batch_size": 8, "max_length": 512, "dtype": "bf16",
                       "learning_rate": RATES.get(method, 1e-3), "warmup_steps": args.steps // 20,
                       "lr_scheduler_type": "cosine", "save_steps": 0, "seed": seed}.items():
        spec += ["--set", f"train.{key}={value}"]
    return daemon.ctl("submit", "--quiet", *spec).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", default="0,1,4")
    parser.add_argument("--methods", default="lora,prompt_tuning,full")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out")
    args = parser.parse_args()

    daemon, rows = Daemon(args.build), []
    try:
        daemon.ctl("model", "add", "m", os.path.abspath(args.model))
        put(daemon, "train", os.path.join(args.data, "train.jsonl"), args.rows)
        put(daemon, "test", os.path.join(args.data, "test.jsonl"), 10000)
        for seed in args.seeds.split(","):
            jobs = {submit(daemon, args, method, seed): method for method in args.methods.split(",")}
            for job in jobs:
                daemon.ctl("watch", job)
            out = daemon.ctl("--json", "compare", *jobs, "--on", "test", "--shots", args.shots,
                             "--shots-dataset", "train", "--metric", "last_number", "--metric", "rouge",
                             "--limit", str(args.limit), "--seed", seed, "--max-length", "2048",
                             "--max-new-tokens", str(args.tokens))
            for line in map(json.loads, out.splitlines()):
                if "evaluation" in line:
                    line["condition"] = jobs[str(line["job"])] if "job" in line else f"{line['shots']}-shot"
                    rows.append(line | {"seed": int(seed)})
                    print(json.dumps(rows[-1]), flush=True)
    finally:
        status = daemon.close()
    if status != 0:
        sys.exit("the daemon did not end well")

    summary = {}
    for condition in dict.fromkeys(r["condition"] for r in rows):
        mine = [r for r in rows if r["condition"] == condition]
        summary[condition] = {k: [statistics.mean(r[k] for r in mine),
                                  statistics.stdev(r[k] for r in mine) if len(mine) > 1 else None] for k in KEYS}
        print(f"{condition:<14} " + "   ".join(
            f"{k} {m:.4f} ± {'?' if s is None else format(s, '.4f')}" for k, (m, s) in summary[condition].items()))
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps({
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": re.sub(r"(?<=\s)/\S*/", "", " ".join(sys.argv)), "cores": os.cpu_count(), "rows": rows,
            "summary": summary}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
