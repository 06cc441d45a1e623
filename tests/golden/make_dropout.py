#!/usr/bin/env python3
"""Distribution of the loss under PEFT's dropout, draw after draw, for the engine's to be held against.

    make_dropout.py [--out FILE] [--draws N]

Writes FILE (default: tests/golden/dropout.json): for each case of make_methods.py named below, with dropout
switched on in its initial adapter, the loss of the first row in N forward passes: mean, variance, and the
fourth central moment, which says how sure the variance is. The row is alone in its batch, so that it does
not matter whether rows share a mask.
"""

import argparse
import json
import os

import reference  # before torch: it sets the number of threads
from libraries import load_base

import peft
import safetensors.torch
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {"lora-rslora": dict(lora_dropout=0.3), "p_tuning-lstm2": dict(encoder_dropout=0.4)}


def open_case(name, settings):
    folder = os.path.join(HERE, "methods", name)
    with open(os.path.join(folder, "golden.json")) as f:
        golden = json.load(f)
    base = load_base(os.path.join(HERE, golden["model"]))
    config = peft.PeftConfig.from_pretrained(os.path.join(folder, "init"))
    for key, value in settings.items():
        setattr(config, key, value)
    config.inference_mode = False
    if golden["method"] == "p_tuning":  # what it starts from is in no folder
        model = peft.get_peft_model(base, config)
        start = {k.removeprefix("init."): v for k, v in safetensors.torch.load_file(
            os.path.join(folder, "golden.safetensors")).items() if k.startswith("init.")}
        own = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
        assert set(own) == set(start), (set(own), set(start))
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(start[key])
    else:
        model = peft.PeftModel.from_pretrained(base, os.path.join(folder, "init"), config=config,
                                               is_trainable=True)
    return model, golden["rows"][0]


def measure(name, settings, draws):
    torch.manual_seed(len(name))
    model, row = open_case(name, settings)
    model.eval()
    with torch.no_grad():
        plain = reference.loss_of(model, [row])[0].item()
        model.train()
        losses = torch.tensor([reference.loss_of(model, [row])[0].item() for _ in range(draws)],
                              dtype=torch.float64)
    mean = losses.mean()
    moments = [((losses - mean) ** k).mean().item() for k in (2, 4)]
    assert moments[0] > 0
    return dict(**settings, draws=draws, plain=plain, mean=mean.item(), variance=moments[0],
                fourth=moments[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.path.join(HERE, "dropout.json"))
    parser.add_argument("--draws", type=int, default=4000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {name: measure(name, settings, args.draws) for name, settings in CASES.items()}
    result["versions"] = {"peft": peft.__version__, "torch": torch.__version__}
    with open(args.out, "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
