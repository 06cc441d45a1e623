#!/usr/bin/env python3
"""Holds what peftd exports against the libraries that are to load it.

    check_methods.py --build BUILD [--library peft|adapters] [CASE…]

For each golden case of the library (make_methods.py, and those of make_models.py and make_seq2seq.py
by their folders, "models/CASE"), and for LoRA with each form of target_modules, BUILD's
method_run trains it and exports it. Without a step, every tensor must be the initial adapter's, bit
by bit (PiSSA and OLoRA excepted, which leave as plain LoRA). After the run the folder is loaded in the
library, where any warning is an error that a folder of the library's own does not give; the library's
logits and loss must be those that peftd gets from the folder, within 1e-5, and they must not be those of the
base. Where PEFT can train on from it or merge it, it must. Methods without a library are held against the
model with their delta put in.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "hf"))

from training import Warnings  # before transformers

import libraries
import make_methods
import reference

import safetensors.torch
import torch
import transformers

STEPS = make_methods.STEPS
FORMS = {
    "lora-all-linear": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "lora-regex": dict(r=3, lora_alpha=7, target_modules=r"model\.layers\.\d+\.mlp\.(up|down)_proj"),
    "lora-one-module": dict(r=8, lora_alpha=8, target_modules=["model.layers.1.self_attn.k_proj"]),
}
MERGED = ("lora", "ia3", "ln_tuning")
# Exported as plain LoRA of twice the rank, on the base as it is.
CONVERTED = ("pissa", "olora")


def close(what, got, want):
    off = (got - want).abs().max().item() / want.abs().max().item()
    assert off <= 1e-5, f"{what}: off by {off:.1e}"
    return off


def path_of(name):
    return name if "/" in name else f"methods/{name}"


def run(tool, root, name, out, steps):
    out.mkdir()
    env = os.environ | {"PEFTD_GOLDEN": str(root)}
    r = subprocess.run([tool, path_of(name), out, str(steps)], env=env, text=True,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = [line for line in r.stdout.splitlines() if line.startswith('{"files"')]
    if r.returncode != 0 or len(lines) != 1:
        raise AssertionError(f"{name}: method_run failed\n{r.stdout}")
    return json.loads(lines[0])


def check_unchanged(name, kind, init, out):
    want = safetensors.torch.load_file(init / kind.FILE)
    got = safetensors.torch.load_file(out / kind.FILE)
    # PEFT saves the base's embedding beside an update of it; that says nothing.
    left = [k for k in set(want) - set(got) if not k.endswith("base_layer.weight")]
    assert not left and set(got) <= set(want), f"{name}: {left or set(got) - set(want)}"
    for key in got:
        assert torch.equal(got[key], want[key]), f"{name}: {key} changed on its way through"


def warnings_of(kind, base, folder):
    with Warnings() as w:
        model = kind.load(base, str(folder))
    return model.eval(), w.seen


def check_peft(name, case, base, out, ids, logits):
    """What else PEFT does with a folder."""
    import peft
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["inference_mode"] is True, f"{name}: inference_mode"
    if not peft.PeftConfig.from_pretrained(str(out)).is_prompt_learning:
        again = peft.PeftModel.from_pretrained(base(), str(out), is_trainable=True)
        assert any(p.requires_grad for p in again.parameters())
    # Merging into a tied embedding changes the head too, as PEFT itself warns.
    tied = base().config.tie_word_embeddings and "embed_tokens" in (case["config"].get(
        "target_modules") or [])
    if case["method"] in MERGED and not tied:
        merged = peft.PeftModel.from_pretrained(base(), str(out)).merge_and_unload()
        close(f"{name} merged", reference.logits_of(merged, ids)[-1], logits)


def check(tool, root, name, work):
    folder = root / path_of(name)
    case = json.loads((folder / "golden.json").read_text())
    rows, ids = case["rows"], reference.prompt_of(case["rows"][0])
    kind = libraries.kind_of(case)
    init = folder / "init"

    def base():
        return libraries.load_base(root / case["model"])

    encoded = any(k.startswith("init.") for k in
                  safetensors.torch.load_file(folder / "golden.safetensors"))
    converted = case["config"].get("init_lora_weights") in CONVERTED
    if kind.FILE and not encoded and not converted:
        run(tool, root, name, work / "same", 0)
        check_unchanged(name, kind, init, work / "same")
    ours = run(tool, root, name, work / "out", STEPS)
    logits = torch.tensor(ours["logits"])
    model, seen = warnings_of(kind, base(), work / "out")
    if converted:
        config = json.loads((work / "out" / "adapter_config.json").read_text())
        assert config["init_lora_weights"] is True and config["r"] == 2 * case["config"]["r"], name
    theirs = set(warnings_of(kind, base(), init)[1]) if kind.FILE and not converted else set()
    new = [w for w in seen if w not in theirs]
    assert not new, f"{name}: {new}"
    with torch.no_grad():
        off = close(f"{name} logits", reference.logits_of(model, ids)[-1], logits)
        bare = reference.logits_of(base(), ids)[-1]
        assert (bare - logits).abs().max() > 1e-3, f"{name}: it does nothing"
        loss = reference.loss_of(model, rows)[0].item()
        assert abs(loss - ours["loss"]) <= 1e-5 * loss, f"{name}: loss {ours['loss']}, not {loss}"
        if kind is libraries.Peft:
            check_peft(name, case, base, work / "out", ids, logits)
    size = sum(p.stat().st_size for p in (work / "out").iterdir())
    print(f"{name}: logits off by {off:.0e}, loss by {abs(loss - ours['loss']) / loss:.0e}, "
          f"{len(seen)} warnings, as the library's own folder ({size} bytes)")


def make_forms(root):
    """Cases made on the spot: adapters whose target_modules are said in another way."""
    os.symlink(HERE / "llama", root / "llama")
    for name, config in FORMS.items():
        case = dict(model=make_methods.GQA2, method="lora", config=config)
        make_methods.make_case(root / "methods", name, case, 7)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--library", choices=["peft", "adapters"], default="peft")
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    tool = next(args.build.rglob("method_run"), None)
    if tool is None:
        sys.exit(f"{args.build}: there is no method_run in it; give the folder of a complete build")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    own = list(make_methods.PEFT_CASES) + list(FORMS) if args.library == "peft" else \
        list(make_methods.ADAPTERS_CASES)
    families = [p.parent for kind in ("models", "seq2seq") for p in sorted((HERE / kind).glob("*/golden.json"))]
    cases = own + [f"{p.parent.name}/{p.name}" for p in families
                   if p.name.startswith("bottleneck") == (args.library == "adapters")]
    if unknown := set(args.cases) - set(cases):
        sys.exit(f"{args.library} has no {', '.join(sorted(unknown))}; there are: {', '.join(cases)}")
    with tempfile.TemporaryDirectory() as forms:
        (pathlib.Path(forms) / "methods").mkdir()
        wanted = args.cases or cases
        if set(wanted) & set(FORMS):
            make_forms(pathlib.Path(forms))
        failed = 0
        for name in wanted:
            root = pathlib.Path(forms) if name in FORMS else HERE
            try:
                with tempfile.TemporaryDirectory() as work:
                    check(tool.resolve(), root, name, pathlib.Path(work))
            except AssertionError as e:
                print(f"FAILED {e}")
                failed += 1
    print(f"{len(wanted) - failed} cases held, {failed} failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
