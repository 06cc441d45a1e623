#!/usr/bin/env python3
"""Training speed and memory on the CPU beside transformers + PEFT, the same work, alternating.

    bench/cpu_vs_peft.py --build BUILD --hf FOLDER --data GSM8K [--rounds 5] [--steps 4] [--dtype f32 bf16]
                         [--out FILE.json]

BUILD is a release build that has bench_kernels, FOLDER a Hugging Face folder of the model in float32, GSM8K a
folder with train.jsonl. Needs torch, transformers and peft. The work: LoRA r 16, alpha 32, all seven projections,
AdamW, four rows of exactly 512 tokens a step, all of them targets.

PyTorch's side, a process each: "default", as its documentation writes a training loop (SDPA; bf16 by autocast over
float32 weights); "compiled", torch.compile; "tuned", eager with jemalloc, large pages and pinned threads. Before
anything is timed all sides must agree on the first loss (1e-4 in f32, 5e-3 in bf16). Then in each round every side
trains `steps` steps in turn; the round's figure of a side is its median step, ratios are taken within a round and
their median over the rounds counts. "best" is PyTorch's fastest side of the round.
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

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "tests" / "hf"))

LENGTH, BATCH = 512, 4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"


def texts(data, n):
    """n texts that are longer than LENGTH tokens."""
    with open(os.path.join(data, "train.jsonl"), encoding="utf-8") as f:
        rows = [json.loads(line) for line, _ in zip(f, range(8 * n))]
    joined = [row["question"] + "\n" + row["answer"] for row in rows]
    return ["\n\n".join(joined[8 * i:8 * i + 8]) for i in range(n)]


# ---- PyTorch's side, a process of its own: lines of JSON in, lines of JSON out ---------------


def torch_side(hf, rows_file, dtype, kind):
    import resource

    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    rows = json.loads(pathlib.Path(rows_file).read_text(encoding="utf-8"))
    ids = torch.tensor([tokenizer(row).input_ids[:LENGTH] for row in rows])
    assert ids.shape[1] == LENGTH
    model = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS,
                                             task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4,
                                  weight_decay=0.0)
    run = torch.compile(model) if kind == "compiled" else model
    at = 0

    def step():
        nonlocal at
        batch = ids[[(at + i) % len(ids) for i in range(BATCH)]]
        at += BATCH
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = run(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        return loss.item(), time.perf_counter() - start

    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        steps = [step() for _ in range(int(line))]
        print(json.dumps({"losses": [s[0] for s in steps], "seconds": [s[1] for s in steps],
                          "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}),
              file=out, flush=True)


class Torch:
    def __init__(self, args, rows_file, dtype, kind):
        env = dict(os.environ)
        if kind == "tuned":
            env |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores", "MALLOC_CONF": "thp:always,dirty_decay_ms:-1,"
                    "muzzy_decay_ms:-1"}
            if os.path.exists(JEMALLOC):
                env["LD_PRELOAD"] = JEMALLOC
        self.name = kind
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--torch", args.hf, rows_file, dtype, kind], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"PyTorch's side '{self.name}' ended")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---- our side --------------------------------------------------------------------------------


class Peftd:
    name = "peftd"

    def __init__(self, args, daemon, dtype):
        self.daemon, self.dtype = daemon, dtype

    def run(self, steps):
        job, rows = self.daemon.train({
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "train": {"dtype": self.dtype, "batch_size": BATCH, "max_length": LENGTH, "overlong": "truncate",
                      "data_order": "sequential", "max_steps": steps, "save_steps": 0, "eval_steps": 0,
                      "learning_rate": 2e-4, "lr_scheduler_type": "constant"}})
        show = json.loads(self.daemon.ctl("--json", "show", job))
        self.flops = show["plan"]["flops_per_token"]
        return {"losses": [r["loss"] for r in rows], "seconds": [r["seconds"] for r in rows],
                "tokens": [r["tokens"] for r in rows], "peak_rss": show["measured_peak_rss"]}

    def close(self):
        pass


def measure(args, daemon, rows_file, dtype, bench_peak):
    sides = [Peftd(args, daemon, dtype)] + [Torch(args, rows_file, dtype, kind) for kind in args.kinds]
    raw = []
    try:
        first = {side.name: side.run(1)["losses"][0] for side in sides}
        print(f"{dtype}: first losses {first}", flush=True)
        bound = 1e-4 if dtype == "f32" else 5e-3
        for name, loss in first.items():
            if abs(loss / first["peftd"] - 1) > bound:
                sys.exit(f"{dtype}: {name} computes another loss than peftd; the work is not the same")
        for side in sides:
            side.run(2)  # warm-up
        for r in range(args.rounds):
            row = {"dtype": dtype, "round": r, "peak_gflops": bench_peak(dtype)}
            for side in sides:
                got = side.run(args.steps + (1 if side.name == "peftd" else 0))
                seconds = got["seconds"][1:] if side.name == "peftd" else got["seconds"]
                row[side.name] = {"seconds": seconds, "tokens_per_s": BATCH * LENGTH / statistics.median(seconds),
                                  "peak_rss": got["peak_rss"]}
            row["share"] = row["peftd"]["tokens_per_s"] * sides[0].flops / (row["peak_gflops"] * 1e9)
            raw.append(row)
            print(f"{dtype} round {r}: " + ", ".join(
                f"{s.name} {row[s.name]['tokens_per_s']:.0f}" for s in sides), flush=True)
    finally:
        for side in sides:
            side.close()
    return raw


def summary(raw, kinds):
    out = {}
    for dtype in dict.fromkeys(r["dtype"] for r in raw):
        mine = [r for r in raw if r["dtype"] == dtype]
        ratios = {kind: [r["peftd"]["tokens_per_s"] / r[kind]["tokens_per_s"] for r in mine] for kind in kinds}
        ratios["best"] = [min(ratios[k][i] for k in kinds) for i in range(len(mine))]
        out[dtype] = {
            "tokens_per_s": {k: statistics.median(r[k]["tokens_per_s"] for r in mine) for k in ("peftd", *kinds)},
            "ratio": {k: {"median": statistics.median(v), "min": min(v), "max": max(v)} for k, v in ratios.items()},
            "share_of_peak": statistics.median(r["share"] for r in mine),
            "peak_rss": {k: max(r[k]["peak_rss"] for r in mine) for k in ("peftd", *kinds)}}
    return out


def main():
    if sys.argv[1:2] == ["--torch"]:
        return torch_side(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--hf", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--kinds", nargs="+", default=["default", "compiled", "tuned"])
    parser.add_argument("--out")
    args = parser.parse_args()

    from importlib.metadata import version

    from common import Daemon
    from train import find, peak
    bench = find(args.build, "bench_kernels")
    daemon = Daemon(args.build)
    raw = []
    try:
        rows = texts(args.data, BATCH * 4)
        rows_file = os.path.join(daemon.dir, "rows.json")
        pathlib.Path(rows_file).write_text(json.dumps(rows), encoding="utf-8")
        jsonl = os.path.join(daemon.dir, "train.jsonl")
        with open(jsonl, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": row}) + "\n" for row in rows)
        daemon.ctl("model", "add", "m", os.path.abspath(args.hf))
        daemon.ctl("dataset", "put", "train", jsonl)
        for dtype in args.dtype:
            raw += measure(args, daemon, rows_file, dtype, lambda d: peak(bench)[d])
    finally:
        daemon.close()
    result = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
              "command": re.sub(r"(?<=\s)/\S*/", "", " ".join(sys.argv)), "cores": os.cpu_count(),
              "versions": {p: version(p) for p in ("torch", "transformers", "peft")},
              "jemalloc": os.path.exists(JEMALLOC), "median": summary(raw, args.kinds), "rows": raw}
    print(json.dumps(result["median"], indent=1))
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
