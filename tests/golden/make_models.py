#!/usr/bin/env python3
"""Tiny random models of every family, and what transformers and PEFT make of them.

    make_models.py [--out OUTDIR] [CASE…]

Writes OUTDIR/FAMILY-VARIANT/ (default: tests/golden/models) for each case: the model as a Hugging Face folder,
and beside it what make_methods.py writes for a run of 20 steps, here of LoRA (init/, final/, golden.json,
golden.safetensors). In addition golden.safetensors has

    logits      [tokens, vocabulary] of row `logits_row` with the bare base, at every position

and the greedy continuation is 40 tokens long. The test takes whatever folders there are, so that a new family
needs its cases here and nothing else. All weights are stored in bfloat16, which float32 holds exactly.
"""

import argparse
import copy
import os
import sys
import warnings
import zlib

import reference  # before torch: it sets the number of threads
import make_methods
from reference import logits_of

import json

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

HERE = os.path.dirname(os.path.abspath(__file__))
GREEDY = 40
LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

SMALL = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=80, max_position_embeddings=128, bos_token_id=1,
             eos_token_id=2, pad_token_id=None)


def rope(kind, **more):
    return dict(rope_parameters=dict(rope_type=kind, **({"rope_theta": 1000.0} | more)))


# model_type, configuration, target modules of LoRA.
CASES = {
    "llama-yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=32), ["q_proj", "v_proj"]),
    "llama-yarn-mscale": ("llama", dict(
        head_dim=12, num_key_value_heads=1, tie_word_embeddings=True) | rope(
        "yarn", factor=3.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5, mscale=0.7,
        mscale_all_dim=0.4, truncate=False), ["q_proj", "k_proj"]),
    "llama-dynamic": ("llama", dict(max_position_embeddings=96, hidden_act="gelu") | rope(
        "dynamic", factor=2.5), ["o_proj", "gate_proj"]),

    "mistral-full": ("mistral", dict(sliding_window=None, head_dim=10, num_hidden_layers=3) | rope("default"),
                     ["q_proj", "v_proj"]),
    "mistral-window": ("mistral", dict(sliding_window=5, num_key_value_heads=1), LLAMA_LINEAR),

    "qwen2-tied": ("qwen2", dict(tie_word_embeddings=True, num_key_value_heads=1), LLAMA_LINEAR),
    "qwen2-mha": ("qwen2", dict(num_key_value_heads=4, head_dim=6, hidden_act="gelu_pytorch_tanh") | rope(
        "linear", factor=2.0), ["q_proj", "v_proj"]),
    "qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=1,
                                   num_hidden_layers=3), ["k_proj", "down_proj"]),

    "qwen3-gqa": ("qwen3", dict(head_dim=12, tie_word_embeddings=True), LLAMA_LINEAR),
    "qwen3-bias": ("qwen3", dict(head_dim=8, num_key_value_heads=1, attention_bias=True,
                                 use_sliding_window=True, sliding_window=6, max_window_layers=1),
                   ["q_proj", "v_proj"]),

    "phi3-plain": ("phi3", dict(), FUSED),
    "phi3-longrope": ("phi3", dict(
        num_key_value_heads=1, sliding_window=9, tie_word_embeddings=True, max_position_embeddings=512,
        original_max_position_embeddings=128, rope_parameters=dict(
            rope_type="longrope", rope_theta=1000.0, partial_rotary_factor=0.5, short_factor=[1.0, 1.5],
            long_factor=[2.0, 4.0])), ["qkv_proj", "o_proj"]),

    "smollm3-nope": ("smollm3", dict(no_rope_layer_interval=2, tie_word_embeddings=True,
                                     num_hidden_layers=3), ["q_proj", "v_proj"]),
    "smollm3-bias": ("smollm3", dict(no_rope_layers=[0, 1], attention_bias=True, mlp_bias=True,
                                     tie_word_embeddings=False, use_sliding_window=True,
                                     sliding_window=6), LLAMA_LINEAR),

    "gpt2-usual": ("gpt2", dict(), ["c_attn"]),
    "gpt2-odd": ("gpt2", dict(n_inner=52, tie_word_embeddings=False, n_head=2, n_layer=3,
                              activation_function="gelu", scale_attn_by_inverse_layer_idx=True),
                 ["c_attn", "c_proj", "c_fc"]),

    "gemma2-usual": ("gemma2", dict(
        head_dim=12, query_pre_attn_scalar=20, sliding_window=6, attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0), LLAMA_LINEAR),
    "gemma2-uncapped": ("gemma2", dict(
        head_dim=6, query_pre_attn_scalar=8, sliding_window=3, attn_logit_softcapping=None,
        final_logit_softcapping=None, num_key_value_heads=1, attention_bias=True, num_hidden_layers=3),
        ["q_proj", "v_proj"]),

    "gemma3-usual": ("gemma3_text", dict(
        head_dim=12, query_pre_attn_scalar=10, sliding_window=5, num_hidden_layers=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=4.0),
            sliding_attention=dict(rope_type="default", rope_theta=500.0))), LLAMA_LINEAR),
    "gemma3-mqa": ("gemma3_text", dict(
        head_dim=8, query_pre_attn_scalar=8, sliding_window=64, num_key_value_heads=1,
        tie_word_embeddings=False), ["q_proj", "down_proj"]),

    "gpt_neox-parallel": ("gpt_neox", dict(), ["query_key_value"]),
    "gpt_neox-serial": ("gpt_neox", dict(
        use_parallel_residual=False, hidden_act="gelu_fast", attention_bias=False, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1000.0, partial_rotary_factor=0.5)),
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
}


def configuration(family, more):
    common = dict(SMALL)
    if family == "gpt2":
        common = dict(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=80, bos_token_id=1,
                      eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    elif family == "gpt_neox":
        common.pop("num_key_value_heads")
    return AutoConfig.for_model(family, **(common | more))


def randomize(model, generator):
    """Away from values at which a missing norm, bias or scale would not show."""
    transposed = {name + ".weight" for name, m in model.named_modules() if isinstance(m, Conv1D)}
    ones = {name + ".weight" for name, m in model.named_modules()
            if "norm" in type(m).__name__.lower() and not type(m).__name__.startswith("Gemma")}
    tables = {name + ".weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name in ones:
                p.copy_(1 + 0.2 * noise)
            elif p.dim() == 1:
                p.copy_(0.15 * noise)
            elif name in tables or "lm_head" in name or "embed_out" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * 1.3 / p.shape[0 if name in transposed else 1] ** 0.5)


def make_model(folder, family, more, generator):
    model = AutoModelForCausalLM.from_config(configuration(family, more), attn_implementation="eager")
    randomize(model, generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    extra = os.path.join(folder, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)


def add_logits(folder, rows):
    """At every position of the longest row, and that greedy choices do not hang by a thread."""
    base = make_methods.load_base(folder)
    row = max(range(len(rows)), key=lambda i: len(rows[i]["ids"]))
    with torch.no_grad():
        logits = logits_of(base, rows[row]["ids"])
        exact = logits_of(make_methods.load_base(folder).double(), rows[row]["ids"])
    assert (logits - exact).abs().max() < 2e-5, f"{folder}: ill-conditioned"
    return row, logits


def make_case(out, name, seed):
    family, more, targets = CASES[name]
    folder = os.path.join(out, name)
    generator = torch.Generator().manual_seed(seed)
    config = dict(r=2, lora_alpha=4, target_modules=targets)
    if family == "gpt2":
        config["fan_in_fan_out"] = True
    case = dict(model=folder, method="lora", config=config, greedy=GREEDY,
                make=lambda: make_model(folder, family, more, generator), extra=("logits_row", "logits", add_logits))
    make_methods.make_case(out, name, case, seed)
    path = os.path.join(folder, "golden.json")
    with open(path) as f:
        golden = json.load(f)
    golden["model"] = os.path.join("models", name)
    with open(path, "w") as f:
        json.dump(golden, f)
        f.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.path.join(HERE, "models"))
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
    import peft
    if unknown := set(args.cases) - set(CASES):
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    os.makedirs(args.out, exist_ok=True)
    for name in CASES:
        if not args.cases or name in args.cases:
            print(name)
            make_case(args.out, name, zlib.crc32(name.encode()))
    with open(os.path.join(args.out, "versions.json"), "w") as f:
        json.dump({m.__name__: m.__version__ for m in (torch, transformers, peft)}, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
