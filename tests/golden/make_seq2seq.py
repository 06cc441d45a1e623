#!/usr/bin/env python3
"""Tiny random encoder-decoders, and what transformers and PEFT make of them.

    make_seq2seq.py [--library peft|adapters] [--out OUTDIR] [CASE…]

Writes OUTDIR/CASE/ (default: tests/golden/seq2seq) as make_methods.py does. A case of MODELS has the model
beside its run of LoRA, and in golden.safetensors besides

    steps.logits  [GREEDY, vocabulary]: the bare base's logits at each step of its greedy continuation of row 1,
                which golden.json has as `base_greedy`

A case of METHODS or ADAPTERS is a run of another method on one of those models.
"""

import argparse
import copy
import json
import os
import sys
import warnings
import zlib

import reference  # before torch: it sets the number of threads
import make_methods

import torch
import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM

HERE = os.path.dirname(os.path.abspath(__file__))
GREEDY = 40
GATED = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]

SMALL = dict(d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, vocab_size=80, dropout_rate=0.0,
             decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)

# model_type, configuration, target modules of LoRA.
MODELS = {
    "t5-relu": ("t5", dict(), ["q", "v"]),
    "t5-v1_1": ("t5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_heads=3, d_kv=6,
                           num_layers=3, num_decoder_layers=3, relative_attention_num_buckets=8,
                           relative_attention_max_distance=20), GATED),
    "t5-uneven": ("t5", dict(feed_forward_proj="gated-silu", num_layers=1, num_decoder_layers=3, d_kv=5,
                             num_heads=2, d_model=24, relative_attention_num_buckets=13,
                             relative_attention_max_distance=11, decoder_start_token_id=7),
                  ["o", "wo", "k"]),
    "t5-exact-gelu": ("t5", dict(feed_forward_proj="gelu", tie_word_embeddings=False, num_layers=1),
                      r".*EncDecAttention\.(q|k|v)"),
    "mt5-gated": ("mt5", dict(feed_forward_proj="gated-gelu", num_heads=6, d_kv=7, d_model=20), ["q", "v"]),
}

RELU, GELU = "seq2seq/t5-relu", "seq2seq/t5-v1_1"
METHODS = {
    "full-tied": dict(model=RELU, method="full", config={}, lr=1e-3),
    "full-untied": dict(model="seq2seq/t5-exact-gelu", method="full", config={}, lr=5e-4),
    "select-bias": dict(model=RELU, method="select", lr=1e-2, config=dict(parameters=[
        r".*relative_attention_bias\.weight", r"encoder\.block\.1\..*\.wi\.weight"])),
    "lora-dora": dict(model=GELU, method="lora", config=dict(
        r=3, lora_alpha=6, target_modules=["q", "v", "wo"], use_dora=True)),
    "lora-saved": dict(model=GELU, method="lora", lr=1e-3, config=dict(
        r=2, lora_alpha=4, target_modules=["q", "v"], modules_to_save=["lm_head"])),
    "ia3-default": dict(model=RELU, method="ia3", config={}),
    "ia3-mt5": dict(model="seq2seq/mt5-gated", method="ia3", config={}),
    "ln_tuning": dict(model=GELU, method="ln_tuning", config={}),
    "bitfit-beft": dict(model=RELU, method="bitfit", lr=5e-3, config=dict(target_modules=["v", "wo"])),
    "prompt_tuning": dict(model=RELU, method="prompt_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=5)),
    "p_tuning-mlp": dict(model=GELU, method="p_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=4, encoder_reparameterization_type="MLP", encoder_hidden_size=18)),
    "p_tuning-lstm": dict(model=RELU, method="p_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=3, encoder_reparameterization_type="LSTM", encoder_hidden_size=9,
        encoder_num_layers=1)),
    "prefix_tuning-2": dict(model=RELU, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=5)),
    "prefix_tuning-3": dict(model=GELU, method="prefix_tuning", lr=2e-2, config=dict(
        num_virtual_tokens=3, token_dim=18)),
    "prefix_tuning-projection": dict(model=RELU, method="prefix_tuning", lr=5e-3, config=dict(
        num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=14)),
}

# Of the library `adapters`, which wants a transformers of its own: --library adapters.
ADAPTERS = {
    "bottleneck-houlsby": dict(model=RELU, method="bottleneck", config=dict(
        config="houlsby", reduction_factor=8)),
    "bottleneck-pfeiffer": dict(model=RELU, method="bottleneck", config=dict(
        config="pfeiffer", reduction_factor=5)),
    "bottleneck-parallel": dict(model=RELU, method="bottleneck", config=dict(
        config="parallel", mh_adapter=True, reduction_factor=4, non_linearity="tanh")),
}


def make_model(folder, model_type, more, generator):
    config = AutoConfig.for_model(model_type, **(SMALL | more))
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "layer_norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif "relative_attention_bias" in name:
                p.copy_(noise)
            elif name in ("shared.weight", "lm_head.weight"):
                p.copy_((1.0 if config.scale_decoder_outputs else 0.3) * noise
                        if model_type == "t5" else 0.3 * noise)
            elif name.endswith((".q.weight", ".k.weight")):
                p.copy_(noise * 0.8 / p.shape[1] ** 0.5)  # scores are not scaled
            else:
                p.copy_(noise * 1.1 / p.shape[1] ** 0.5)
    if model_type == "t5" and not config.scale_decoder_outputs:
        with torch.no_grad():
            model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(
                model.lm_head.weight.shape, generator=generator))
    model.to(torch.bfloat16).save_pretrained(folder)
    extra = os.path.join(folder, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)


def rows_of(base, generator):
    return reference.make_pairs(base.config.vocab_size, generator, base.config.decoder_start_token_id)


def make_case(out, name, case, seed):
    make_methods.make_case(out, name, case, seed)
    path = os.path.join(out, name, "golden.json")
    with open(path) as f:
        golden = json.load(f)
    if name in MODELS:
        golden["model"] = "seq2seq/" + name
    with open(path, "w") as f:
        json.dump(golden, f)
        f.write("\n")


def add_steps(folder, rows):
    base = make_methods.load_base(folder)
    prompt = reference.prompt_of(rows[1])
    with torch.no_grad():
        greedy = reference.greedy_of(base, prompt, GREEDY)
        logits = reference.decode(base, prompt, greedy[:-1])
        exact = reference.decode(base.double(), prompt, greedy[:-1])
    assert (logits - exact).abs().max() < 2e-5, f"{folder}: ill-conditioned"
    return greedy, logits


def cases(library):
    if library == "adapters":
        yield from ADAPTERS.items()
        return
    for name, (model_type, more, targets) in MODELS.items():
        yield name, dict(method="lora", config=dict(r=2, lora_alpha=4, target_modules=targets),
                         greedy=GREEDY, own=(model_type, more), extra=("base_greedy", "steps.logits", add_steps))
    for name, case in METHODS.items():
        yield name, case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=["peft", "adapters"], default="peft")
    parser.add_argument("--out", default=os.path.join(HERE, "seq2seq"))
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
    library = __import__(args.library)
    known = dict(cases(args.library))
    if unknown := set(args.cases) - set(known):
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    os.makedirs(args.out, exist_ok=True)
    for name, case in known.items():
        if args.cases and name not in args.cases:
            continue
        print(name)
        seed = zlib.crc32(name.encode())
        case = copy.deepcopy(case) | dict(rows=rows_of)
        if "own" in case:
            folder, generator = os.path.join(args.out, name), torch.Generator().manual_seed(seed)
            model_type, more = case["own"]
            case["model"] = folder
            case["make"] = lambda: make_model(folder, model_type, more, generator)
        make_case(args.out, name, case, seed)
    with open(os.path.join(args.out, f"versions-{args.library}.json"), "w") as f:
        json.dump({m.__name__: m.__version__ for m in (torch, transformers, library)}, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
