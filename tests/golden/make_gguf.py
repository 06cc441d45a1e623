#!/usr/bin/env python3
"""Tiny models of every family that is read from GGUF, each beside its twin as a Hugging Face folder.

    make_gguf.py [NAME…]       writes below tests/golden/formats/twins

NAME.gguf                      as llama.cpp's converter writes the family: its names, keys and what it does to
                               tensors (rows of q and k in pairs, 1 added to norms, Conv1D transposed, a copy of a
                               tied head); tensors in F32, F16, BF16 and types of blocks of 32 values
NAME/                          the same model for transformers, in float32: the values that those types hold

What is read from the two must be the same, configuration and tensors (tests/model/test_gguf.c). Needs numpy,
gguf, torch, transformers.
"""

import pathlib
import shutil
import sys
import zlib

import reference  # before torch: it sets the number of threads

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "formats" / "twins"
TYPES = [T.BF16, T.Q8_0, T.F16, T.Q5_1, T.F32, T.Q4_0]

USUAL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=40, max_position_embeddings=96, rms_norm_eps=1e-5)
GEMMA = dict(USUAL, num_hidden_layers=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=6)
MODELS = {
    "mistral": ("mistral", "llama", dict(USUAL, sliding_window=None, num_key_value_heads=1)),
    "qwen2": ("qwen2", "qwen2", dict(USUAL, rope_parameters=dict(rope_type="default", rope_theta=5000.0))),
    "qwen2-yarn": ("qwen2", "qwen2", dict(
        USUAL, tie_word_embeddings=True, rope_parameters=dict(
            rope_type="yarn", rope_theta=5000.0, factor=4.0, original_max_position_embeddings=24))),
    "qwen3": ("qwen3", "qwen3", dict(USUAL, head_dim=16, tie_word_embeddings=True)),
    "gemma2": ("gemma2", "gemma2", dict(GEMMA, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)),
    "gemma3": ("gemma3_text", "gemma3", dict(GEMMA, num_hidden_layers=7, intermediate_size=32, rope_parameters=dict(
        full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
        sliding_attention=dict(rope_type="default", rope_theta=1e4)))),
    "gpt2": ("gpt2", "gpt2", dict(n_embd=32, n_layer=1, n_head=4, n_positions=48, vocab_size=40, bos_token_id=1,
                             eos_token_id=2)),
}


def permute(w, heads):
    """Rows of each head from halves to pairs of neighbours."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


class Layout:
    """What the converter does to a tensor, and the way back."""

    def __init__(self, name, module, arch, config):
        self.plus = arch.startswith("gemma") and name.endswith("norm.weight")
        self.transpose = isinstance(module, Conv1D) and name.endswith(".weight")
        self.heads = 0
        if arch == "llama" and ".q_proj" in name:
            self.heads = config.num_attention_heads
        elif arch == "llama" and ".k_proj" in name:
            self.heads = config.num_key_value_heads

    def there(self, w):
        w = np.ascontiguousarray(w.T) if self.transpose else w
        return permute(w, self.heads) if self.heads else w + np.float32(1) if self.plus else w

    def back(self, w):
        w = np.ascontiguousarray(w.T) if self.transpose else w
        return unpermute(w, self.heads) if self.heads else w - np.float32(1) if self.plus else w


def write_keys(writer, config, arch):
    text = config.to_dict()
    head_dim = text.get("head_dim")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(text.get("intermediate_size") or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if arch == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if arch != "gemma2":
        writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if arch == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim or config.hidden_size // config.num_attention_heads)
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def make(name, number):
    family, arch, more = MODELS[name]
    rng = np.random.default_rng(number)
    config = AutoConfig.for_model(family, **more)
    model = AutoModelForCausalLM.from_config(config)
    modules = dict(model.named_modules())
    kind = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    writer.add_type("model")
    write_keys(writer, config, arch)
    for i, (key, p) in enumerate(sorted(model.named_parameters())):
        layout = Layout(key, modules[key.rsplit(".", 1)[0]], arch, config)
        w = layout.there(rng.normal(0, 0.5, tuple(p.shape)).astype(np.float32))
        qtype = TYPES[i % len(TYPES)] if w.ndim == 2 and w.shape[1] % 32 == 0 else T.F32
        stored = gguf.quants.quantize(w, qtype)
        held = gguf.quants.dequantize(stored, qtype).astype(np.float32).reshape(w.shape)
        with torch.no_grad():
            p.copy_(torch.from_numpy(layout.back(held)))
        there = names.get_name(key, (".weight", ".bias"))
        assert there, key
        writer.add_tensor(there, stored, raw_dtype=qtype)
        if arch == "gpt2" and there == "token_embd.weight":
            writer.add_tensor("output.weight", stored, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shutil.rmtree(OUT / name, ignore_errors=True)
    model.float().save_pretrained(OUT / name)
    (OUT / name / "generation_config.json").unlink(missing_ok=True)
    reference.readable(OUT / name)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        print(name)
        make(name, zlib.crc32(name.encode()))


if __name__ == "__main__":
    main()
