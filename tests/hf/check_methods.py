#!/usr/bin/env python3
"""Holds every family of methods against its library on a real model and real rows.

    check_methods.py --build BUILD --hf FOLDER --data GSM8K [--adapters-python PYTHON] [--out FILE.json]
                     [--steps N] [--batch-size N] [JOB…]

BUILD is a build folder with peftd and peftctl, FOLDER a Hugging Face folder of the model in float32,
GSM8K a folder with train.jsonl and test.jsonl. Needs torch, transformers and peft; PYTHON is an
interpreter with AdapterHub's `adapters` (left out: the bottleneck is skipped, and said to be). JOB names
jobs of the table below; left out, one of each family runs; `all` runs all.

From the library's own initial adapter both sides train on the same rows in the same order, float32.
Bounds, relative: evaluation of the imported adapter 1e-5; loss of step 1 1e-5, of the last step 1e-4;
gradient norms 1e-3. Then the library loads the fetched folder: no warning that it does not give for a
folder of its own, every tensor as in the file, and peftctl eval gives the library's loss within 1e-5.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from common import MAX_GRAD_NORM, WARMUP, Daemon, Table, pair, relative

# method, learning rate, the method's section
JOBS = {
    "full": ("full", 1e-5, {}),
    "last_k": ("last_k", 5e-5, {"k": 2, "final_norm": True}),
    "ln_tuning": ("ln_tuning", 1e-3, {}),
    "bitfit": ("bitfit", 1e-3, {"target_modules": ["v_proj", "up_proj"]}),
    "select": ("select", 5e-5, {"parameters": [r"model\.layers\.(3|29)\.mlp\.down_proj\.weight",
                                               r"model\.layers\.1[0-4]\.self_attn\.v_proj\.weight"]}),
    "dora": ("lora", 2e-4, {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"],
                            "use_dora": True}),
    "rslora": ("lora", 1e-4, {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "o_proj", "up_proj"],
                              "use_rslora": True}),
    "houlsby": ("bottleneck", 2e-4, {"config": "houlsby"}),
    "pfeiffer": ("bottleneck", 2e-4, {"config": "pfeiffer"}),
    "parallel": ("bottleneck", 1e-4, {"config": "parallel", "reduction_factor": 16}),
    "prompt_tuning": ("prompt_tuning", 1e-2, {"num_virtual_tokens": 20}),
    "prefix_tuning": ("prefix_tuning", 1e-3, {"num_virtual_tokens": 16}),
    "p_tuning": ("p_tuning", 1e-3, {"num_virtual_tokens": 12, "encoder_reparameterization_type": "MLP",
                                    "encoder_hidden_size": 128}),
    "ia3": ("ia3", 5e-3, {"target_modules": ["k_proj", "v_proj", "down_proj"],
                          "feedforward_modules": ["down_proj"]}),
}
FAMILIES = ["full", "ln_tuning", "dora", "houlsby", "prompt_tuning", "prefix_tuning", "p_tuning", "ia3"]


class Library:
    """The other side, in the interpreter that has the library."""

    def __init__(self, args, daemon, sets):
        self.args, self.daemon, self.sets = args, daemon, sets

    def run(self, what, name, folder):
        method, rate, config = JOBS[name]
        python = self.args.adapters_python if method == "bottleneck" else sys.executable
        task = os.path.join(self.daemon.dir, "task.json")
        with open(task, "w", encoding="utf-8") as f:
            json.dump({"hf": os.path.abspath(self.args.hf), "method": method, "config": config,
                       "learning_rate": rate, "steps": self.args.steps,
                       "batch_size": self.args.batch_size} | self.sets, f)
        script = pathlib.Path(__file__).with_name("reference_job.py")
        r = subprocess.run([python, script, what, task, folder], stdout=subprocess.PIPE, text=True)
        if r.returncode != 0:
            sys.exit(f"{script} {what} {name}: status {r.returncode}")
        return json.loads(r.stdout)


def check_job(args, table, daemon, library, name):
    method, rate, config = JOBS[name]
    work = os.path.join(daemon.dir, name)
    os.mkdir(work)
    ref = library.run("train", name, work)
    spec = {"method": method, method: config, "train": {
        "max_steps": args.steps, "batch_size": args.batch_size, "max_length": 2048,
        "learning_rate": rate, "lr_scheduler_type": "cosine", "warmup_steps": WARMUP,
        "max_grad_norm": MAX_GRAD_NORM, "dtype": "f32", "data_order": "sequential", "save_steps": 0}}
    init = os.path.join(work, "init")
    if ref["starts"]:
        spec["init_adapter"] = init
        got = daemon.eval(init, "test")
        table.add(f"{name}: imported adapter", relative(got, ref["initial_loss"]), 1e-5,
                  f"{got:.7f} against {ref['initial_loss']:.7f}; base {ref['base_loss']:.7f}")
    job, steps = daemon.train(spec)
    want = ref["steps"]
    if want:
        last = args.steps - 1
        table.add(f"{name}: loss of step 1", relative(steps[0]["loss"], want[0]["loss"]), 1e-5,
                  pair(steps, want, 0))
        table.add(f"{name}: loss of step {args.steps}",
                  relative(steps[last]["loss"], want[last]["loss"]), 1e-4, pair(steps, want, last))
        table.add(f"{name}: gradient norm, worst step",
                  max(relative(g["grad_norm"], w["grad_norm"]) for g, w in zip(steps, want)), 1e-3)

    folder = daemon.fetch(job, name + "-fetched")
    theirs = set(library.run("load", name, init)["warnings"]) if ref["starts"] else set()
    loaded = library.run("load", name, folder)
    new = [w for w in loaded["warnings"] if w not in theirs]
    for text in new:
        print(f"  {name}: the library says: {text}", file=sys.stderr)
    table.add(f"{name}: warnings while the fetched folder is loaded", len(new), 0,
              f"{len(theirs)} for a folder of the library's own" if theirs else "")
    table.add(f"{name}: tensors that differ after loading", len(loaded["wrong"]), 0,
              " ".join(loaded["wrong"][:3]))
    got = daemon.eval(job, "test")
    table.add(f"{name}: peftctl eval of the trained job", relative(got, loaded["loss"]), 1e-5,
              f"{got:.7f} against {loaded['loss']:.7f}")
    return {"reference": want, "peftd": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--hf", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--adapters-python")
    parser.add_argument("--out")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--eval-rows", type=int, default=8)
    parser.add_argument("jobs", nargs="*", metavar="JOB")
    args = parser.parse_args()
    names = list(JOBS) if args.jobs == ["all"] else args.jobs or FAMILIES
    if unknown := [n for n in names if n not in JOBS]:
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    if not args.adapters_python:
        skipped = [n for n in names if JOBS[n][0] == "bottleneck"]
        names = [n for n in names if n not in skipped]
        if skipped:
            print(f"skipped, for want of --adapters-python: {', '.join(skipped)}")

    daemon = Daemon(args.build)
    table, runs = Table(), {}
    try:
        sets = daemon.add_data(args.hf, args.data, {"train": args.steps * args.batch_size,
                                                    "test": args.eval_rows})
        library = Library(args, daemon, sets)
        for name in names:
            print(f"{name} …", file=sys.stderr)
            runs[name] = check_job(args, table, daemon, library, name)
    finally:
        status = daemon.close()
    table.add("peftd: exit status", status, 0)
    ok = table.show()
    if args.out:
        result = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                  "command": re.sub(r"\S*/", "", " ".join(sys.argv)),
                  "checks": table.rows, "runs": runs}
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
