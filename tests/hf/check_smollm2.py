#!/usr/bin/env python3
"""Holds peftd against Hugging Face transformers + PEFT on a real model and real rows.

    check_smollm2.py --build BUILD --hf FOLDER --data GSM8K [--model PATH] [--out FILE.json]

BUILD is a build folder with peftd and peftctl, FOLDER a Hugging Face folder of the model in float32,
GSM8K a folder with train.jsonl and test.jsonl. PATH is what peftd is given (default: FOLDER); a GGUF
must hold the same weights. Needs torch, transformers and peft.

From one initial adapter made by PEFT (B not zero, or the gradient of A would be), both train on the
same rows in the same order. Bounds, relative unless said otherwise:

    f32   loss of step 1: 1e-5; of step 20: 1e-4; gradient norms: 1e-3; gradient: reported
    bf16  loss of step 1: 2e-3; mean over 50 steps: 3e-3; gradient: at most twice the error of
          PEFT's own bf16, both against PEFT's f32
    both  the fetched adapter loads in PEFT without a warning and bit by bit; peftctl eval of it
          gives PEFT's loss within 1e-5

Prints a table, writes the rows as JSON, and ends with status 1 when a bound is broken.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys
import time

from common import MAX_GRAD_NORM, WARMUP, Daemon, Table, pair, relative
from training import Warnings, encode, mean_loss, reference_run, step_gradient  # before transformers

import torch
import transformers
import peft
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
R, ALPHA = 16, 32
LEARNING_RATE = 2e-4

# With an epsilon far above any gradient, AdamW's first update is lr / epsilon times the gradient: so
# one step with both at this value leaves the adapter changed by the gradient itself.
HUGE = 1e4


# ---- the reference ---------------------------------------------------------------------------


def load_base(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype,
                                                attn_implementation="eager")


def make_adapter(folder, out):
    """An adapter as PEFT writes it, whose B is not zero."""
    torch.manual_seed(7)
    config = LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS,
                        task_type="CAUSAL_LM")
    model = get_peft_model(load_base(folder, torch.float32), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.01)
    model.save_pretrained(out)


def load_adapter(folder, adapter, dtype=torch.float32, trainable=True):
    return PeftModel.from_pretrained(load_base(folder, dtype), adapter, is_trainable=trainable)


def gradients(model):
    """{key in adapter_model.safetensors: gradient}"""
    return {name.replace(".default", ""): p.grad.detach().float().clone()
            for name, p in model.named_parameters() if p.requires_grad}


# ---- comparisons -----------------------------------------------------------------------------


def relative_error(got, want):
    """|got - want| / |want| over all tensors together."""
    diff = sum((got[k].double() - want[k].double()).square().sum().item() for k in want)
    norm = sum(want[k].double().square().sum().item() for k in want)
    return math.sqrt(diff / norm)


def load_listening(hf, folder):
    base = load_base(hf, torch.float32)
    with Warnings() as w:
        model = PeftModel.from_pretrained(base, folder)
    return model, w.seen


def check_fetched(args, table, label, folder):
    """Loads the fetched adapter in PEFT; every tensor must arrive as it is in the file. What PEFT also says
    of an adapter that it has written itself is no fault of ours."""
    _, usual = load_listening(args.hf, args.adapter)
    model, seen = load_listening(args.hf, folder)
    seen = [text for text in seen if text not in usual]
    for text in seen:
        print(f"  PEFT says: {text}", file=sys.stderr)
    table.add(f"{label}: warnings while PEFT loads the fetched adapter", len(seen), 0)
    file = load_file(os.path.join(folder, "adapter_model.safetensors"))
    loaded = get_peft_model_state_dict(model)
    wrong = [k for k in set(file) | set(loaded)
             if k not in file or k not in loaded or not torch.equal(file[k], loaded[k].cpu())]
    table.add(f"{label}: tensors that differ after loading", len(wrong), 0, " ".join(wrong[:3]))
    return model


def job_settings(args, dtype, steps):
    return {
        "method": "lora", "init_adapter": args.adapter,
        "lora": {"r": R, "lora_alpha": ALPHA, "target_modules": TARGETS},
        "train": {
            "max_steps": steps, "batch_size": args.batch_size, "max_length": 2048,
            "learning_rate": LEARNING_RATE, "lr_scheduler_type": "cosine", "warmup_steps": WARMUP,
            "max_grad_norm": MAX_GRAD_NORM, "dtype": dtype, "data_order": "sequential",
            "save_steps": 0,
        },
    }


def peftd_gradient(args, daemon, dtype):
    """The gradient of the first step, as the change that a step with a huge epsilon makes."""
    settings = job_settings(args, dtype, 1)
    settings["train"] |= {"learning_rate": HUGE, "adam_epsilon": HUGE, "warmup_steps": 0,
                          "lr_scheduler_type": "constant", "max_grad_norm": 0}
    job, _ = daemon.train(settings)
    after = load_file(os.path.join(daemon.fetch(job, f"grad-{dtype}"), "adapter_model.safetensors"))
    before = load_file(os.path.join(args.adapter, "adapter_model.safetensors"))
    return {k: before[k].double() - after[k].double() for k in before}


def peft_gradient(args, rows, dtype):
    model = load_adapter(args.hf, args.adapter, dtype)
    step_gradient(model, rows[:args.batch_size])
    return gradients(model)


def compare_runs(args, table, daemon, rows):
    most = max(args.steps, args.bf16_steps)
    reference = reference_run(load_adapter(args.hf, args.adapter), rows, most, args.batch_size,
                              LEARNING_RATE)
    # The schedule depends on the number of steps, so each length has a reference of its own.
    ref_f32 = reference if args.steps == most else reference_run(
        load_adapter(args.hf, args.adapter), rows, args.steps, args.batch_size,
        LEARNING_RATE)
    ref_bf16 = reference if args.bf16_steps == most else reference_run(
        load_adapter(args.hf, args.adapter), rows, args.bf16_steps, args.batch_size,
        LEARNING_RATE)

    job, got = daemon.train(job_settings(args, "f32", args.steps))
    last = args.steps - 1
    table.add("f32: loss of step 1", relative(got[0]["loss"], ref_f32[0]["loss"]), 1e-5,
              pair(got, ref_f32, 0))
    table.add(f"f32: loss of step {args.steps}",
              relative(got[last]["loss"], ref_f32[last]["loss"]), 1e-4, pair(got, ref_f32, last))
    table.add("f32: gradient norm, worst step",
              max(relative(g["grad_norm"], w["grad_norm"]) for g, w in zip(got, ref_f32)), 1e-3)
    table.add("f32: learning rate, worst step",
              max(abs(g["lr"] - w["lr"]) for g, w in zip(got, ref_f32)) / LEARNING_RATE, 1e-6)

    bf16_job, bf16 = daemon.train(job_settings(args, "bf16", args.bf16_steps))
    table.add("bf16: loss of step 1", relative(bf16[0]["loss"], ref_bf16[0]["loss"]), 2e-3,
              pair(bf16, ref_bf16, 0))
    mean = [sum(row["loss"] for row in run) / len(run) for run in (bf16, ref_bf16)]
    table.add(f"bf16: mean loss of {args.bf16_steps} steps", relative(*mean), 3e-3,
              f"{mean[0]:.6f} against {mean[1]:.6f}")
    return {"f32": job, "bf16": bf16_job}, {"f32": got, "bf16": bf16, "reference": reference}


def compare_gradients(args, table, daemon, rows):
    exact = peft_gradient(args, rows, torch.float32)
    theirs = relative_error(peft_gradient(args, rows, torch.bfloat16), exact)
    table.add("f32: gradient of the first step",
              relative_error(peftd_gradient(args, daemon, "f32"), exact), None)
    table.add("bf16: gradient of the first step",
              relative_error(peftd_gradient(args, daemon, "bf16"), exact), 2 * theirs,
              f"PEFT's own bf16: {theirs:.3e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--hf", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--out")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bf16-steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--eval-rows", type=int, default=32)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    daemon = Daemon(args.build)
    table = Table()
    try:
        args.adapter = os.path.join(daemon.dir, "init")
        make_adapter(args.hf, args.adapter)
        n_rows = max(args.steps, args.bf16_steps) * args.batch_size
        sets = daemon.add_data(args.model or args.hf, args.data,
                               {"train": n_rows, "test": args.eval_rows})
        encoded = {name: [encode(tokenizer, row) for row in rows] for name, rows in sets.items()}

        compare_gradients(args, table, daemon, encoded["train"])
        jobs, runs = compare_runs(args, table, daemon, encoded["train"])
        for dtype, job in jobs.items():
            folder = daemon.fetch(job, f"adapter-{dtype}")
            model = check_fetched(args, table, dtype, folder)
            want = mean_loss(model, encoded["test"])
            got = daemon.eval(job, "test")
            table.add(f"{dtype}: peftctl eval of the adapter", relative(got, want), 1e-5,
                      f"{got:.7f} against {want:.7f}")
    finally:
        status = daemon.close()
    table.add("peftd: exit status", status, 0)

    ok = table.show()
    if args.out:
        result = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": re.sub(r"\S*/", "", " ".join(sys.argv)),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                         "peft": peft.__version__},
            "checks": table.rows,
            "runs": runs,
        }
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
