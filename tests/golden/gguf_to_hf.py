#!/usr/bin/env python3
"""Turns a GGUF Llama into a Hugging Face folder in float32.

    gguf_to_hf.py MODEL.gguf OUTDIR

Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja and
generation_config.json, so that reference runs in transformers and PEFT start from exactly the weights
that peftd reads from the GGUF. Weights come through transformers' own GGUF reader and are then compared,
bit by bit, with a second reading here (the gguf package's dequantize, q and k permuted back).

Needs torch, transformers, gguf, tokenizers, safetensors.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# What a GGUF names only by a word: how text is cut before byte-level BPE. transformers' converter
# ignores that word, so numbers would be cut wrongly for these.
PRE_TOKENIZERS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}


def hf_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    if name == "output.weight":
        return "lm_head.weight"
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[kind]}.{suffix}"


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tensors(reader):
    """Every tensor in float32 by its Hugging Face name."""
    heads = reader.get_field("llama.attention.head_count").contents()
    kv = reader.get_field("llama.attention.head_count_kv")
    kv_heads = kv.contents() if kv else heads
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = gguf.quants.dequantize(t.data, t.tensor_type)
        if ".attn_q." in t.name:
            w = unpermute(w, heads)
        elif ".attn_k." in t.name:
            w = unpermute(w, kv_heads)
        yield hf_name(t.name), w


def write_tokenizer(src, reader, out):
    tok = AutoTokenizer.from_pretrained(src.parent, gguf_file=src.name)
    tok.save_pretrained(out)
    pre = reader.get_field("tokenizer.ggml.pre")
    pre = pre.contents() if pre else "default"
    path = out / "tokenizer.json"
    spec = json.loads(path.read_text())
    if pre in PRE_TOKENIZERS:
        spec["pre_tokenizer"] = PRE_TOKENIZERS[pre]
        spec["post_processor"] = None
        path.write_text(json.dumps(spec, ensure_ascii=False, indent=2) + "\n")
    else:
        print(f"note: pre-tokenizer '{pre}' is left as transformers converts it; check it")

    config_path = out / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    context = reader.get_field("llama.context_length")
    if context:
        config["model_max_length"] = context.contents()
    config_path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def main():
    src, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    reader = gguf.GGUFReader(src)

    read = AutoModelForCausalLM.from_pretrained(src.parent, gguf_file=src.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # or transformers refuses to save
    # 1e-5 went through float32 in the GGUF; the shortest decimal gives it back.
    config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    model = type(read)(config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    write_tokenizer(src, reader, out)

    saved = load_file(out / "model.safetensors")
    n = 0
    for name, w in tensors(reader):
        if not np.array_equal(saved.pop(name).view(np.uint32), w.view(np.uint32)):
            sys.exit(f"{name}: transformers and gguf disagree")
        n += 1
    if saved:
        sys.exit(f"left over: {sorted(saved)}")
    print(f"{out}: {n} tensors, equal bit by bit to gguf's dequantize")


if __name__ == "__main__":
    main()
