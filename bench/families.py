#!/usr/bin/env python3
"""Every family of methods, and LoRA's ranks, on one real task; with seeds.

    bench/families.py --build BUILD --model PATH [--data FOLDER] [--seeds N] [--epochs N] [--threads N]
                      --out PREFIX

The task is examples/orders: an order in plain English becomes a line of JSON. First each method that has two
learning rates in METHODS looks for the better one, by evaluation loss, with seed 0. Then each runs with the seeds 1 … N,
and LoRA with ranks 4, 8, 16, 32 at the rate that rank 16 found. All jobs go through the daemon's own sweeps;
`peftctl compare` writes PREFIX-methods.json, PREFIX-methods.html, PREFIX-ranks.json and PREFIX-ranks.html,
and PREFIX-rates.json holds what the search for rates saw.
"""

import argparse
import json
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "hf"))
from common import Daemon  # noqa: E402

# Settings, and learning rates to choose from.
METHODS = {
    "full": ({}, (5e-5,)),
    "last_k": ({"k": 4}, (4e-4,)),
    "bitfit": ({}, (1e-3, 4e-3)),
    "ln_tuning": ({}, (5e-3,)),
    "select": ({"parameters": [r"model\.layers\.[0-9]+\.mlp\.down_proj\.weight"]}, (2e-4,)),
    "lora": ({"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}, (1e-3,)),
    "bottleneck": ({}, (1e-3,)),
    "prompt_tuning": ({"num_virtual_tokens": 20}, (3e-2, 3e-1)),
    "p_tuning": ({"num_virtual_tokens": 20, "encoder_hidden_size": 128}, (1e-3, 1e-2)),
    "prefix_tuning": ({"num_virtual_tokens": 20}, (1e-2, 5e-2)),
    "ia3": ({}, (5e-3, 3e-2)),
}
RANKS = (4, 8, 16, 32)


def submit(daemon, method, settings, rate, epochs, sweeps):
    job = {"model": "m", "dataset": "orders", "eval_dataset": "orders-test", "method": method, method: settings,
           "name": method, "train": {
               "num_train_epochs": epochs, "batch_size": 8, "max_length": 256, "warmup_steps": 4,
               "lr_scheduler_type": "linear", "dtype": "bf16", "save_steps": 1000, "eval_steps": 0}}
    if rate is not None:
        job["train"]["learning_rate"] = rate
    path = pathlib.Path(daemon.dir) / "job.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    args = ["--json", "submit", str(path)]
    for key, values in sweeps.items():
        args += ["--sweep", f"{key}={','.join(str(v) for v in values)}"]
    answer = json.loads(daemon.ctl(*args).splitlines()[0])
    return f"s{answer['sweep']}"


def compare(daemon, sweeps, prefix=None):
    html = ["--html", prefix + ".html"] if prefix else []
    text = daemon.ctl("--json", "compare", *html, *sweeps)
    rows = [json.loads(line) for line in text.splitlines()]
    if prefix:
        pathlib.Path(prefix + ".json").write_text(json.dumps({
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": re.sub(r"(?<=\s)/\S*/", "", " ".join(sys.argv)),
            "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default=str(ROOT / "examples"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=0, help="of the daemon; 0: one a core")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    seeds = range(1, args.seeds + 1)

    daemon = Daemon(args.build, args.threads)
    try:
        daemon.ctl("model", "add", "m", str(pathlib.Path(args.model).resolve()))
        for name in ("orders", "orders-test"):
            daemon.ctl("dataset", "put", name, str(pathlib.Path(args.data) / (name + ".jsonl")))
        found, tried = {}, {}
        for method, (settings, rates) in METHODS.items():
            if len(rates) == 1:
                found[method] = rates[0]
                continue
            sweep = submit(daemon, method, settings, None, args.epochs,
                              {"train.learning_rate": rates, "train.seed": (0,)})
            daemon.ctl("watch", sweep)
            jobs = [row for row in compare(daemon, [sweep]) if "job" in row]
            tried[method] = [{"learning_rate": rate, "eval_loss": job["eval_loss"]}
                             for rate, job in zip(rates, jobs, strict=True)]
            found[method] = min(tried[method], key=lambda t: (t["eval_loss"] is None, t["eval_loss"]))[
                "learning_rate"]
            print(f"{method}: {tried[method]}", flush=True)
        pathlib.Path(args.out + "-rates.json").write_text(json.dumps(tried, indent=1) + "\n", encoding="utf-8")

        sweeps = [submit(daemon, method, settings, found[method], args.epochs, {"train.seed": seeds})
                  for method, (settings, _) in METHODS.items()]
        settings = METHODS["lora"][0]
        ranks = submit(daemon, "lora", settings, found["lora"], args.epochs,
                          {"lora.r": RANKS, "train.seed": seeds})
        for sweep in (*sweeps, ranks):
            daemon.ctl("watch", sweep)
            print(f"{sweep}: done", flush=True)
        compare(daemon, sweeps, args.out + "-methods")
        compare(daemon, [ranks], args.out + "-ranks")
    finally:
        daemon.close()


if __name__ == "__main__":
    main()
