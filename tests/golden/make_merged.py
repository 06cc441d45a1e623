#!/usr/bin/env python3
"""What PEFT's merge_and_unload() makes of the trained adapters of make_methods.py.

    make_merged.py [--out OUTDIR] [CASE…]

Writes OUTDIR/CASE.safetensors (default: tests/golden/merged): the tensors that differ from the base's, in
float32, by the base's names, and "logits", the merged model's behind the first row. The merged model's own
folder must give them too.
"""

import argparse
import json
import os
import tempfile

import reference  # before torch: it sets the number of threads
from libraries import load_base
from reference import logits_of

import peft
import safetensors.torch
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = ["lora-dora", "lora-dora-bias", "lora-bias-all", "lora-bias-lora_only", "lora-modules_to_save",
         "lora-patterns", "lora-rslora", "lora-embeddings", "lora-head", "lora-pissa", "lora-olora",
         "ia3-default", "ia3-inputs", "ia3-outputs", "ln_tuning-default"]


def merge(name):
    folder = os.path.join(HERE, "methods", name)
    with open(os.path.join(folder, "golden.json")) as f:
        golden = json.load(f)
    base = load_base(os.path.join(HERE, golden["model"]))
    before = {k: v.clone() for k, v in base.state_dict().items()}
    final = os.path.join(folder, "final-lora" if os.path.exists(os.path.join(folder, "final-lora"))
                         else "final")
    merged = peft.PeftModel.from_pretrained(base, final).eval().merge_and_unload()
    ids = golden["rows"][0]["ids"]
    with torch.no_grad():
        logits = logits_of(merged, ids)[-1].clone()
    with tempfile.TemporaryDirectory() as saved:
        merged.save_pretrained(saved)
        again = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
        with torch.no_grad():
            off = (logits_of(again, ids)[-1] - logits).abs().max()
    assert off <= 1e-5 * logits.abs().max(), f"{name}: saved and read, the logits are off by {off}"
    after = merged.state_dict()
    assert set(after) == set(before), name
    changed = {k: v.clone().contiguous() for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed, name
    return changed | {"logits": logits}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.path.join(HERE, "merged"))
    parser.add_argument("cases", nargs="*", default=CASES)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for name in args.cases:
        tensors = merge(name)
        path = os.path.join(args.out, name + ".safetensors")
        safetensors.torch.save_file(tensors, path)
        os.chmod(path, 0o644)
        print(f"{name}: {len(tensors) - 1} tensors changed")
    with open(os.path.join(args.out, "versions.json"), "w") as f:
        json.dump({"peft": peft.__version__, "torch": torch.__version__,
                   "transformers": transformers.__version__}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
