#!/usr/bin/env python3
"""Golden files for the readers of models and adapters.

    make_formats.py            writes below the folder of this script

formats/blocks.safetensors     for each GGUF type: random bytes of blocks and what the gguf package's
                               dequantize makes of them
formats/tiny.gguf              a tiny Llama whose tensors have the various types of 32-value blocks
formats/tiny/                  the same model as a Hugging Face folder in float32
formats/rope_freqs.safetensors what llama.cpp's converter makes of the rope scaling of Llama 3.1, 3.2
formats/target_modules.json    which modules PEFT selects by which target_modules
adapters/NAME/                 adapters of a tiny Llama as PEFT's save_pretrained() leaves them

Needs numpy, gguf, safetensors, torch, transformers, peft. The same versions give the same bytes, but for
the order of target_modules, which PEFT takes from a set.
"""

import json
import math
import pathlib
import shutil
import tempfile

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
FORMATS = HERE / "formats"
ADAPTERS = HERE / "adapters"
TYPES = [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K]
# Where the f16 scales of a block lie.
SCALES = {
    T.F16: [0], T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}


def random_blocks(rng, qtype, n):
    """n blocks of any bits whatever, except that scales are finite."""
    _, size = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if qtype == T.BF16:
        blocks[:, 1] &= 0xBF  # no exponent of all ones
    for at in SCALES.get(qtype, []):
        blocks[:, at + 1] &= 0xBF
    return blocks


def dequantize(blocks, qtype):
    return gguf.quants.dequantize(blocks.reshape(1, -1), qtype).reshape(-1).astype(np.float32)


def make_blocks():
    rng = np.random.default_rng(1)
    tensors = {}
    for qtype in TYPES:
        values, _ = gguf.GGML_QUANT_SIZES[qtype]
        blocks = random_blocks(rng, qtype, max(8, 256 // values))
        # The smallest and the largest scales, and minus nothing.
        for i, bits in enumerate([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF]):
            for at in SCALES.get(qtype, []):
                blocks[i, at:at + 2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
        tensors[f"{qtype.name.lower()}.blocks"] = blocks
        tensors[f"{qtype.name.lower()}.values"] = dequantize(blocks, qtype)
    save_file(tensors, FORMATS / "blocks.safetensors")


HIDDEN, MLP, LAYERS, HEADS, KV, VOCAB = 32, 64, 2, 4, 2, 40


def unpermute(w, heads):
    """Back from the order in which llama.cpp's converter puts the rows of q and k."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tiny_layout():
    """(GGUF name, Hugging Face name, shape, type)."""
    d = HIDDEN // HEADS
    yield "token_embd.weight", "model.embed_tokens.weight", (VOCAB, HIDDEN), T.Q8_0
    for i in range(LAYERS):
        b, m = f"blk.{i}.", f"model.layers.{i}."
        yield b + "attn_norm.weight", m + "input_layernorm.weight", (HIDDEN,), T.F32
        yield b + "attn_q.weight", m + "self_attn.q_proj.weight", (HEADS * d, HIDDEN), (T.Q4_1, T.F16)[i]
        yield b + "attn_k.weight", m + "self_attn.k_proj.weight", (KV * d, HIDDEN), (T.Q5_0, T.BF16)[i]
        yield b + "attn_v.weight", m + "self_attn.v_proj.weight", (KV * d, HIDDEN), (T.Q5_1, T.Q4_0)[i]
        yield b + "attn_output.weight", m + "self_attn.o_proj.weight", (HIDDEN, HEADS * d), T.Q4_0
        yield b + "ffn_norm.weight", m + "post_attention_layernorm.weight", (HIDDEN,), T.F32
        yield b + "ffn_gate.weight", m + "mlp.gate_proj.weight", (MLP, HIDDEN), T.Q4_1
        yield b + "ffn_up.weight", m + "mlp.up_proj.weight", (MLP, HIDDEN), T.Q8_0
        yield b + "ffn_down.weight", m + "mlp.down_proj.weight", (HIDDEN, MLP), T.Q5_1
    yield "output_norm.weight", "model.norm.weight", (HIDDEN,), T.F32
    yield "output.weight", "lm_head.weight", (VOCAB, HIDDEN), T.F16


def make_tiny():
    rng = np.random.default_rng(2)
    path = FORMATS / "tiny.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_type("model")
    w.add_context_length(128)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(MLP)
    w.add_block_count(LAYERS)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_rope_freq_base(50000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(["<eos>", "<bos>"] + [f"t{i}é" for i in range(VOCAB - 2)])
    w.add_token_types([3, 3] + [1] * (VOCAB - 2))
    w.add_token_merges(["t 0", "t 1"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(0)
    w.add_add_bos_token(True)
    w.add_chat_template("{{ messages }}")

    values = {}
    for name, hf, shape, qtype in tiny_layout():
        x = rng.standard_normal(shape).astype(np.float32)
        data = gguf.quants.quantize(x, qtype)
        x = gguf.quants.dequantize(data, qtype)
        if "attn_q" in name:
            x = unpermute(x, HEADS)
        elif "attn_k" in name:
            x = unpermute(x, KV)
        values[hf] = np.ascontiguousarray(x)
        w.add_tensor(name, data, raw_shape=data.shape, raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

    # The second opinion on names and on the order of rows.
    read = AutoModelForCausalLM.from_pretrained(FORMATS, gguf_file=path.name, dtype=torch.float32)
    for name, x in read.state_dict().items():
        assert np.array_equal(x.numpy(), values[name]), name
    assert len(read.state_dict()) == len(values)

    out = FORMATS / "tiny"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    save_file(values, out / "model.safetensors", metadata={"format": "pt"})
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV, max_position_embeddings=128,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    )
    config.save_pretrained(out)
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}) + "\n")


def rope_freqs(theta, dim, factor, low, high, context):
    """The list of divisors for llama3 scaling, in float32 as the converter works."""
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    factors = []
    for freq in freqs:
        wavelength = 2 * math.pi / freq
        if wavelength < context / high:
            factors.append(1)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32).numpy()


def make_rope_freqs():
    save_file({
        "llama-3.1-8b": rope_freqs(500000.0, 128, 8.0, 1.0, 4.0, 8192),
        "llama-3.2-1b": rope_freqs(500000.0, 64, 32.0, 1.0, 4.0, 8192),
        "other": rope_freqs(500000.0, 64, 32.0, 1.0, 4.0, 4096),
    }, FORMATS / "rope_freqs.safetensors")


def make_adapters():
    variants = {
        "all-linear": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "names": {"r": 2, "lora_alpha": 3, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "regex": {"r": 2, "lora_alpha": 4, "target_modules": r"model\.layers\.\d+\.mlp\.(up|down)_proj"},
        "gaussian-bf16": {"r": 2, "target_modules": ["o_proj"], "init_lora_weights": "gaussian"},
        "rslora": {"r": 2, "target_modules": ["q_proj"], "use_rslora": True},
        "dora": {"r": 2, "target_modules": ["q_proj"], "use_dora": True},
        "bias": {"r": 2, "target_modules": ["q_proj"], "bias": "lora_only"},
        "rank-pattern": {"r": 2, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 4}},
        "layers": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1]},
        "exclude": {"r": 2, "target_modules": ["q_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
        "save-head": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "embedding": {"r": 2, "target_modules": ["embed_tokens"]},
    }
    shutil.rmtree(ADAPTERS, ignore_errors=True)
    for name, options in variants.items():
        torch.manual_seed(3)
        base = LlamaForCausalLM(LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64))
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_" in key:
                    p.copy_(torch.randn_like(p) * 0.1)
        if name == "gaussian-bf16":
            model = model.to(torch.bfloat16)
        with tempfile.TemporaryDirectory() as tmp:
            model.save_pretrained(tmp)
            (ADAPTERS / name).mkdir(parents=True)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(pathlib.Path(tmp) / file, ADAPTERS / name / file)


def make_targets():
    """Which modules PEFT's own rule selects: a list of [target_modules, module, selected]."""
    modules = [f"model.layers.{i}.{m}" for i in (0, 1, 10) for m in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn", "mlp.up_proj", "mlp.down_proj",
        "mlp.up_proj.lora", "input_layernorm")]
    modules += ["lm_head", "q_proj", "model.embed_tokens", "xq_proj", "model.xq_proj", ""]
    targets = [
        ["q_proj"], ["q_proj", "up_proj"], ["proj"], ["self_attn.q_proj"], ["layers.1.mlp.up_proj"],
        ["model.layers.10.self_attn.q_proj"], ["lm_head"], ["1.mlp.up_proj"], [".q_proj"], ["mlp."],
        "q_proj", ".*q_proj", r".*\.q_proj", r"model\.layers\.\d\.mlp\.(up|down)_proj", ".*",
        r"(?:.*\.)?(q|k)_proj$", r"(?!.*self_attn).*_proj", r"model\.layers\.(?P<n>[01])\..*up_proj",
    ]
    cases = [[t, m, bool(check_target_module_exists(LoraConfig(target_modules=t), m))]
             for t in targets for m in modules]
    lines = ",\n".join(json.dumps(c) for c in cases)
    (FORMATS / "target_modules.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    FORMATS.mkdir(exist_ok=True)
    make_blocks()
    make_tiny()
    make_rope_freqs()
    make_adapters()
    make_targets()
