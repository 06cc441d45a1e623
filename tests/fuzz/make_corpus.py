#!/usr/bin/env python3
"""Seeds for the fuzz targets of model and adapter files, from the golden files and by hand.

Standard library only; run after golden/make_formats.py.
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
CORPUS = HERE / "corpus"


def put(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def safetensors(tensors, metadata=None):
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape, raw in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def string(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def gguf(values, tensors):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, kind, value in values:
        out += string(key)
        if kind == "strings":
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
        elif kind == "i32s":
            out += struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
        elif kind == "string":
            out += struct.pack("<I", 8) + string(value)
        else:
            number, code = {"u32": (4, "I"), "f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q")}[kind]
            out += struct.pack("<I" + code, number, value)
    data = b""
    for name, kind, dims, raw in tensors:
        data += b"\0" * (-len(data) % 32)
        out += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += raw
    return out + b"\0" * (-len(out) % 32) + data


def tiny_gguf(kind, block_values, block_bytes, extra=()):
    """One layer, hidden size one block; weights of one type, norms in f32."""
    h, mlp, vocab = max(block_values, 4), max(block_values, 4), 4
    size = lambda n: b"\x01" * (n // block_values * block_bytes)
    values = [
        ("general.architecture", "string", "llama"), ("llama.context_length", "u32", 32),
        ("llama.embedding_length", "u32", h), ("llama.feed_forward_length", "u64", mlp),
        ("llama.block_count", "u32", 1), ("llama.attention.head_count", "u32", 1),
        ("llama.attention.key_length", "u32", 4), ("llama.attention.value_length", "u32", 4),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5), ("llama.rope.freq_base", "f32", 1e4),
        ("tokenizer.ggml.model", "string", "gpt2"), ("tokenizer.ggml.pre", "string", "llama-bpe"),
        ("tokenizer.ggml.tokens", "strings", ["a", "b", "", "ab"]),
        ("tokenizer.ggml.token_type", "i32s", [1, 1, 3, 1]),
        ("tokenizer.ggml.merges", "strings", ["a b"]), ("tokenizer.ggml.eos_token_id", "u32", 2),
        ("tokenizer.ggml.add_bos_token", "bool", 0), ("tokenizer.chat_template", "string", "{{ x }}"),
    ]
    norm = b"\0\0\x80\x3f" * h
    tensors = [
        ("token_embd.weight", kind, (h, vocab), size(h * vocab)),
        ("blk.0.attn_norm.weight", 0, (h,), norm),
        ("blk.0.attn_q.weight", kind, (h, 4), size(h * 4)),
        ("blk.0.attn_k.weight", kind, (h, 4), size(h * 4)),
        ("blk.0.attn_v.weight", kind, (h, 4), size(h * 4)),
        ("blk.0.attn_output.weight", 0, (4, h), b"\0" * 16 * h),
        ("blk.0.ffn_norm.weight", 0, (h,), norm),
        ("blk.0.ffn_gate.weight", kind, (h, mlp), size(h * mlp)),
        ("blk.0.ffn_up.weight", kind, (h, mlp), size(h * mlp)),
        ("blk.0.ffn_down.weight", kind, (mlp, h), size(h * mlp)),
        ("output_norm.weight", 0, (h,), norm),
    ]
    return gguf(values + list(extra), tensors)


def main():
    put("safetensors", "empty", safetensors([]))
    put("safetensors", "all-dtypes", safetensors(
        [("f32", "F32", [2], b"\1" * 8), ("f16", "F16", [2, 1], b"\1" * 4), ("bf16", "BF16", [], b"\1\2"),
         ("f64", "F64", [1], b"\1" * 8), ("i64", "I64", [0, 3], b""), ("u8", "U8", [1, 1, 3], b"abc"),
         ("é\"", "F8_E4M3", [1], b"x")], {"format": "pt"}))
    put("safetensors", "overlap", safetensors([("a", "U8", [2], b"ab")]).replace(b"[0,2]", b"[1,3]"))
    put("safetensors", "rope-freqs", (GOLDEN / "formats/rope_freqs.safetensors").read_bytes())

    put("gguf", "f32", tiny_gguf(0, 1, 4))
    put("gguf", "f16", tiny_gguf(1, 1, 2, [("llama.rope.scaling.type", "string", "linear"),
                                           ("llama.rope.scaling.factor", "f32", 2.0)]))
    put("gguf", "bf16", tiny_gguf(30, 1, 2))
    put("gguf", "q8_0", tiny_gguf(8, 32, 34))
    put("gguf", "q5_1", tiny_gguf(7, 32, 24))
    put("gguf", "q4_0", tiny_gguf(2, 32, 18, [("general.alignment", "u32", 32)]))

    put("config", "tiny", (GOLDEN / "formats/tiny/config.json").read_bytes())
    base = {"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4}
    put("config", "minimal", json.dumps(base))
    put("config", "llama3", json.dumps(base | {
        "eos_token_id": [3, 4], "tie_word_embeddings": True, "rope_theta": 5e5, "attention_bias": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}))
    put("config", "linear", json.dumps(base | {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    put("config", "t5", json.dumps({
        "model_type": "t5", "vocab_size": 9, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "d_kv": 3,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 5,
        "relative_attention_max_distance": 3, "num_decoder_layers": 2, "tie_word_embeddings": False,
        "decoder_start_token_id": 0}))

    for name in ("names", "regex", "gaussian-bf16", "dora"):
        folder = GOLDEN / "adapters" / name
        config = (folder / "adapter_config.json").read_bytes()
        weights = (folder / "adapter_model.safetensors").read_bytes()
        put("adapter", name, struct.pack("<H", len(config)) + config + weights)


if __name__ == "__main__":
    main()
