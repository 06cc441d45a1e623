#!/usr/bin/env python3
"""Reference values for every method that is not plain LoRA, from transformers, PEFT and AdapterHub.

    make_methods.py [--library peft|adapters] [--out OUTDIR] [CASE…]

Writes OUTDIR/CASE/ (default: tests/golden/methods) for each case, METHOD-VARIANT, on one of the tiny models
of tests/golden/llama (make_llama.py):

    golden.json         model, method, config (peftd's section of a job file), rows, run settings; losses
                        of all rows under the base (base_loss), the initial adapter (eval_loss) and the
                        trained one (final_loss); loss, lr, grad_norm, targets of 20 steps; last logits of
                        the first row before and after (logits, final_logits), a greedy continuation
    init/, final/       the adapter before and after the run, as the library saves it; absent where no
                        library has the method
    final-lora/         PiSSA and OLoRA: PEFT's conversion to plain LoRA
    golden.safetensors  grad.KEY of step 0 and final.KEY after the run. KEY is the key in the library's
                        file, or the Hugging Face name where there is none. Where what is trained is not
                        what is saved (encoders of prompts), KEY is the parameter's name and there is
                        init.KEY too

Everything is float32. Each run is done a second time with products in float64; a case whose values depend
on rounding would say nothing and is refused.

PEFT and AdapterHub's `adapters` want different versions of transformers, so each has its own environment:
--library says which of the two makes its cases now. versions-LIBRARY.json says which versions did.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import warnings
import zlib

import reference  # before torch: it sets the number of threads
from libraries import kind_of, load_base
from reference import greedy_of, logits_of, loss_of, make_rows, prompt_of

import safetensors.torch
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 20
MHA, GQA2, BIAS, ODD = ("llama/mha", "llama/gqa2-llama3", "llama/gqa3-linear-bias", "llama/gqa3-odd")
GPT2, GEMMA3 = "models/gpt2-usual", "models/gemma3-usual"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# The config of a case is what a job file of peftd says, so it names everything that counts.
PEFT_CASES = {
    "ia3-default": dict(model=BIAS, method="ia3", config=dict(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3-inputs": dict(model=MHA, method="ia3", config=dict(
        target_modules=["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        feedforward_modules=["o_proj", "gate_proj", "up_proj", "down_proj"])),
    "ia3-outputs": dict(model=GQA2, method="ia3", config=dict(
        target_modules=["q_proj", "k_proj", "o_proj", "up_proj"], feedforward_modules=[])),

    "ln_tuning-default": dict(model=GQA2, method="ln_tuning", config={}),
    "ln_tuning-target": dict(model=ODD, method="ln_tuning", config=dict(
        target_modules=["post_attention_layernorm"])),

    "full-untied": dict(model=ODD, method="full", config={}, lr=1e-3),
    "full-tied": dict(model=BIAS, method="full", config={}, lr=1e-3),
    "last_k-1": dict(model=ODD, method="last_k", config=dict(k=1), lr=1e-3),
    "last_k-2-head-norm": dict(model=ODD, method="last_k", lr=1e-3,
                               config=dict(k=2, head=True, final_norm=True)),
    "last_k-0-head": dict(model=MHA, method="last_k", config=dict(k=0, head=True), lr=1e-3),
    "last_k-0-tied-head": dict(model=GQA2, method="last_k", config=dict(k=0, head=True), lr=1e-3),
    "last_k-all": dict(model=ODD, method="last_k", config=dict(k=3), lr=1e-3),
    "bitfit-own": dict(model=BIAS, method="bitfit", config={}, lr=5e-3),
    "bitfit-beft": dict(model=MHA, method="bitfit", config=dict(target_modules=["v_proj"]), lr=5e-3),
    "bitfit-beft-targets": dict(model=GQA2, method="bitfit", lr=5e-3, config=dict(
        target_modules=["q_proj", "o_proj", "gate_proj", "down_proj"])),
    "select-some": dict(model=ODD, method="select", lr=1e-3, config=dict(parameters=[
        r"model\.layers\.0\.self_attn\.[qv]_proj\.weight",
        r"model\.layers\.[12]\.mlp\.down_proj\.weight",
        r"model\.layers\.2\.input_layernorm\.weight", r"model\.norm\.weight"])),
    "select-embeddings": dict(model=GQA2, method="select", lr=1e-3, config=dict(parameters=[
        r"model\.embed_tokens\.weight", r"model\.layers\.1\.self_attn\.k_proj\.weight"])),

    "lora-rslora": dict(model=MHA, method="lora", config=dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True)),
    "lora-rank1": dict(model=ODD, method="lora", config=dict(
        r=1, lora_alpha=1, target_modules=ALL_LINEAR)),
    "lora-bias-all": dict(model=BIAS, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "up_proj"], bias="all")),
    "lora-bias-lora_only": dict(model=BIAS, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["k_proj", "o_proj", "down_proj"], bias="lora_only")),
    "lora-patterns": dict(model=ODD, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 5, "down_proj": 3, r".*\.2\.mlp\.up_proj": 1},
        alpha_pattern={"down_proj": 9, r"model\.layers\.[01]\.self_attn\.v_proj": 1})),
    "lora-layers": dict(model=ODD, method="lora", config=dict(
        r=3, lora_alpha=6, target_modules=["k_proj", "gate_proj"], layers_to_transform=[0, 2])),
    "lora-modules_to_save": dict(model=ODD, method="lora", lr=1e-3, config=dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head", "norm"])),
    "lora-dora": dict(model=GQA2, method="lora", config=dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], use_dora=True)),
    "lora-dora-bias": dict(model=BIAS, method="lora", config=dict(
        r=2, lora_alpha=6, target_modules=ALL_LINEAR, use_dora=True, use_rslora=True)),
    "lora-plus": dict(model=MHA, method="lora", lr=5e-4, config=dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "o_proj", "up_proj"], loraplus_lr_ratio=8.0)),
    "lora-plus-dora-bias": dict(model=BIAS, method="lora", lr=5e-4, decay=0.1, config=dict(
        r=2, lora_alpha=4, target_modules=["v_proj", "gate_proj"], bias="lora_only", use_dora=True,
        loraplus_lr_ratio=4.0)),
    "lora-plus-embeddings": dict(model=ODD, method="lora", lr=2e-3, config=dict(
        r=2, lora_alpha=4, target_modules=["embed_tokens", "k_proj"], loraplus_lr_ratio=3.0)),
    "lora-embeddings": dict(model=ODD, method="lora", config=dict(
        r=3, lora_alpha=6, target_modules=["embed_tokens", "v_proj"])),
    "lora-embeddings-tied": dict(model=GQA2, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj"])),
    "lora-head": dict(model=ODD, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["lm_head", "v_proj"])),
    "lora-pissa": dict(model=ODD, method="lora", config=dict(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights="pissa")),
    "lora-olora": dict(model=ODD, method="lora", config=dict(
        r=3, lora_alpha=3, target_modules=["k_proj", "o_proj", "up_proj"],
        init_lora_weights="olora")),

    # Families that differ in what a method meets: linear layers stored transposed, norms with biases or
    # with 1 + w, scaled embeddings, learned positions, fused modules.
    "select-gpt2": dict(model=GPT2, method="select", lr=1e-3, config=dict(parameters=[
        r"transformer\.h\.0\.attn\.c_attn\.weight", r"transformer\.h\.0\.mlp\.c_fc\.bias",
        r"transformer\.h\.1\.mlp\.c_proj\.weight",
        r"transformer\.wpe\.weight", r"transformer\.h\.1\.ln_2\.(weight|bias)"])),
    "lora-dora-gpt2": dict(model=GPT2, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], use_dora=True, fan_in_fan_out=True,
        modules_to_save=["ln_f"])),
    "ia3-gpt2": dict(model=GPT2, method="ia3", config=dict(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True)),
    "ln_tuning-gpt2": dict(model=GPT2, method="ln_tuning", config={}),
    "prefix_tuning-gpt2": dict(model=GPT2, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=4)),
    "prompt_tuning-gpt2": dict(model=GPT2, method="prompt_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=3)),
    "prompt_tuning-gemma3": dict(model=GEMMA3, method="prompt_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=6)),
    "prefix_tuning-gemma3": dict(model=GEMMA3, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=3)),
    "lora-embeddings-gemma3": dict(model=GEMMA3, method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["embed_tokens", "v_proj"])),
    "ln_tuning-gemma3": dict(model=GEMMA3, method="ln_tuning", config=dict(
        target_modules=["input_layernorm", "post_feedforward_layernorm", "q_norm", "norm"])),
    "ia3-phi3": dict(model="models/phi3-plain", method="ia3", config=dict(
        target_modules=["qkv_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "lora-bias-gpt_neox": dict(model="models/gpt_neox-parallel", method="lora", config=dict(
        r=2, lora_alpha=4, target_modules=["dense", "dense_h_to_4h"], bias="lora_only")),

    "prompt_tuning-random": dict(model=MHA, method="prompt_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=7)),
    "prompt_tuning-one": dict(model=GQA2, method="prompt_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=1)),
    "prefix_tuning-default": dict(model=GQA2, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=5)),
    "prefix_tuning-one": dict(model=BIAS, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=1)),
    "prefix_tuning-mha": dict(model=MHA, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=4)),
    "prefix_tuning-projection": dict(model=ODD, method="prefix_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=14)),
    "p_tuning-mlp": dict(model=MHA, method="p_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=6, encoder_reparameterization_type="MLP", encoder_hidden_size=18)),
    "p_tuning-lstm": dict(model=ODD, method="p_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=5, encoder_reparameterization_type="LSTM", encoder_hidden_size=9,
        encoder_num_layers=1)),
    "p_tuning-lstm2": dict(model=GQA2, method="p_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=4, encoder_reparameterization_type="LSTM", encoder_hidden_size=6,
        encoder_num_layers=2)),
}

ADAPTERS_CASES = {
    "bottleneck-houlsby": dict(model=GQA2, method="bottleneck", config=dict(
        config="houlsby", reduction_factor=10)),
    "bottleneck-pfeiffer": dict(model=ODD, method="bottleneck", config=dict(
        config="pfeiffer", reduction_factor=5)),
    "bottleneck-parallel": dict(model=MHA, method="bottleneck", config=dict(
        config="parallel", reduction_factor=8)),
    "bottleneck-attention": dict(model=BIAS, method="bottleneck", config=dict(
        config="houlsby", mh_adapter=True, output_adapter=False, reduction_factor=8.5,
        non_linearity="gelu", scaling=0.5)),
    "bottleneck-parallel-both": dict(model=ODD, method="bottleneck", config=dict(
        config="parallel", mh_adapter=True, output_adapter=True, reduction_factor=6,
        non_linearity="tanh", scaling=2.0)),
    "bottleneck-one": dict(model=MHA, method="bottleneck", config=dict(
        config="pfeiffer", mh_adapter=True, reduction_factor=100, non_linearity="gelu_new")),
}

DEFAULTS = dict(schedule="constant", warmup=0, decay=0.0, clip=1.0, lr=5e-3)


def tensors_by(key):
    def tensors(model, get):
        return {key(name): get(p).detach().clone().contiguous()
                for name, p in model.named_parameters() if p.requires_grad}
    return tensors


def distance(got, want):
    got, want = got.double(), want.double()
    return ((got - want).norm() / want.norm()).item()


def check_conditioning(name, method, case, rows, values, grads, final):
    """The run again, its products in float64: what differs by more than the tests allow is rounding."""
    method.model.double()
    exact, exact_grads, exact_final = reference.train(
        method.model, case, rows, STEPS, STEPS, STEPS, tensors_by(method.key),
        method.optimizer(case))
    worst = max(abs(a - b) / b for a, b in zip(values["loss"], exact["loss"]))
    norms = max(abs(a - b) / b for a, b in zip(values["grad_norm"], exact["grad_norm"]))
    grad = max(distance(grads[k], exact_grads[k]) for k in grads if exact_grads[k].norm() > 0)
    end = max(distance(final[k], exact_final[k]) for k in final)
    moved = values["loss"][0] - values["loss"][-1]
    print(f"  float32 is off by: loss {worst:.1e}, norm {norms:.1e}, gradient {grad:.1e}, end {end:.1e};"
          f" loss {values['loss'][0]:.4f} -> {values['loss'][-1]:.4f}")
    assert worst < 2e-5 and norms < 2e-4 and grad < 2e-5 and end < 5e-4, f"{name}: ill-conditioned"
    assert abs(moved) > 1e-2, f"{name}: nothing is learnt"


def check_saved(name, method, case, folder, rows, final_logits):
    """What was saved is the trained adapter: read back it gives the same logits."""
    again = method.load(load_base(os.path.join(HERE, case["model"])), folder)
    with torch.no_grad():
        got = logits_of(again.eval(), prompt_of(rows[0]))[-1]
    assert (got - final_logits).abs().max() <= 1e-5 * final_logits.abs().max(), f"{name}: {folder}"


def check_keys(method, folder, tensors):
    saved = safetensors.torch.load_file(os.path.join(folder, method.FILE))
    for key, value in tensors.items():
        assert torch.equal(saved[key], value), key


def make_case(out, name, case, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    case = DEFAULTS | case
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    if "make" in case:
        case["make"]()
    base = load_base(os.path.join(HERE, case["model"]))
    rows = case["rows"](base, generator) if "rows" in case else \
        make_rows(base.config.vocab_size, generator)
    with torch.no_grad():
        base_loss = loss_of(base, rows)[0].item()

    method = kind_of(case)(base, case, generator)
    init, end, plain, converted = (
        os.path.join(folder, x) for x in ("init", "final", "init-lora", "final-lora"))
    model, tensors = method.model, tensors_by(method.key)
    saves, converts = method.FILE is not None, getattr(method, "initial", None) is not None
    if saves:
        method.save(init)
    if converts:
        method.save_for_conversion(plain)
    assert rows[0]["labels"][0] != -100 or "source_len" in rows[0]
    for row in rows[:3]:
        reference.check_loss(model, row)
    with torch.no_grad():
        eval_loss = loss_of(model, rows)[0].item()
        logits = logits_of(model, prompt_of(rows[0]))[-1]
        prompt = prompt_of(rows[1])
        greedy = greedy_of(model, prompt, case.get("greedy", 8))
    initial = tensors(model, lambda p: p.data)
    start = copy.deepcopy(model.state_dict())
    values, grads, final = reference.train(model, case, rows, STEPS, STEPS, STEPS, tensors,
                                           method.optimizer(case))
    with torch.no_grad():
        final_loss = loss_of(model, rows)[0].item()
        final_logits = logits_of(model, prompt_of(rows[0]))[-1]

    more = {}
    stored = {"grad." + k: v for k, v in grads.items()}
    stored |= {"final." + k: v for k, v in final.items()}
    if saves:
        method.save(end)
        check_saved(name, method, case, end, rows, final_logits)
        if method.encoded:
            stored |= {"init." + k: v for k, v in initial.items()}
        else:
            check_keys(method, init, initial)
            check_keys(method, end, final)
    if converts:
        method.save_converted(converted, plain)
        check_saved(name, method, case, converted, rows, final_logits)
    if "extra" in case:
        key, tensor, extra = case["extra"]
        more[key], stored[tensor] = extra(folder, rows)
    safetensors.torch.save_file(stored, os.path.join(folder, "golden.safetensors"))
    reference.readable(folder)
    golden = dict(
        model=case["model"], method=case["method"], config=case["config"], rows=rows,
        base_loss=base_loss, eval_loss=eval_loss, final_loss=final_loss, logits=logits.tolist(),
        final_logits=final_logits.tolist(), prompt=prompt, greedy=greedy,
        **reference.settings(case, STEPS, STEPS), **values, **more)
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump(golden, f)
        f.write("\n")
    model.load_state_dict(start)
    check_conditioning(name, method, case, rows, values, grads, final)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=["peft", "adapters"], default="peft")
    parser.add_argument("--out", default=os.path.join(HERE, "methods"))
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
    library = __import__(args.library)
    cases = PEFT_CASES if args.library == "peft" else ADAPTERS_CASES
    if unknown := set(args.cases) - set(cases):
        sys.exit(f"{args.library} makes no {', '.join(sorted(unknown))}; there are: {', '.join(cases)}")
    for name, case in cases.items():
        if not args.cases or name in args.cases:
            print(name)
            # By name, so that a new case leaves the others as they are.
            make_case(args.out, name, copy.deepcopy(case), zlib.crc32(name.encode()))
    with open(os.path.join(args.out, f"versions-{args.library}.json"), "w") as f:
        json.dump({m.__name__: m.__version__ for m in (torch, transformers, library)}, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
