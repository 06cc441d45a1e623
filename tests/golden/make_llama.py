#!/usr/bin/env python3
"""Reference values for tests/engine/test_golden.c, from transformers and PEFT.

Writes tests/golden/llama/CASE/ for tiny random Llama models: the model as a Hugging Face folder, a LoRA
adapter with non-zero B as a PEFT folder (adapter/), the rows, and what torch computes from them:
losses, gradients of step 0, learning rates and gradient norms of 50 steps of AdamW with clipping and a
schedule in float32, the adapter after step 20, the last logits and a greedy continuation, and how far
PEFT's own bfloat16 is from that.

Usage: python make_llama.py [OUTDIR]   (needs torch, transformers, peft, safetensors)
Deterministic for one version of these packages; versions.json says which.
"""

import copy
import json
import os
import shutil
import sys

import reference  # before torch: it sets the number of threads
from reference import BATCH, greedy_of, logits_of, loss_of, make_rows

import peft
import safetensors.torch
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 50
FINAL = 20
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = {
    "mha": dict(
        config=dict(hidden_size=40, intermediate_size=56, num_attention_heads=4,
                    num_key_value_heads=4, vocab_size=131, num_hidden_layers=2,
                    tie_word_embeddings=False),
        store=torch.bfloat16, r=4, alpha=8, targets=ALL_LINEAR,
        schedule="constant", warmup=0, decay=0.0, clip=1.0, lr=2e-3),
    "gqa2-llama3": dict(
        config=dict(hidden_size=40, intermediate_size=56, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, vocab_size=131, num_hidden_layers=2,
                    tie_word_embeddings=True, max_position_embeddings=256,
                    rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0,
                                         low_freq_factor=1.0, high_freq_factor=4.0,
                                         original_max_position_embeddings=32)),
        store=torch.float32, r=8, alpha=4, targets=["q_proj", "v_proj"],
        schedule="cosine", warmup=3, decay=0.1, clip=1.0, lr=5e-3),
    "gqa3-linear-bias": dict(
        config=dict(hidden_size=36, intermediate_size=44, num_attention_heads=6,
                    num_key_value_heads=2, head_dim=10, vocab_size=97, num_hidden_layers=2,
                    tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                    rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=4.0)),
        store=torch.bfloat16, r=3, alpha=9, targets=ALL_LINEAR,
        schedule="linear", warmup=5, decay=0.01, clip=0.05, lr=2e-3),
    "gqa3-odd": dict(
        config=dict(hidden_size=24, intermediate_size=33, num_attention_heads=3,
                    num_key_value_heads=1, head_dim=8, vocab_size=75, num_hidden_layers=3,
                    tie_word_embeddings=False),
        store=torch.bfloat16, r=12, alpha=16, targets=["k_proj", "o_proj", "up_proj", "down_proj"],
        schedule="cosine", warmup=0, decay=0.0, clip=0.0, lr=1e-3),
}


def make_model(case, generator):
    config = LlamaConfig(attn_implementation="eager", rms_norm_eps=1e-5, use_cache=True,
                         bos_token_id=1, eos_token_id=2, pad_token_id=None, **case["config"])
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif "embed" in name or "lm_head" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * 1.3 / p.shape[1] ** 0.5)
    return model.to(case["store"])


def load(folder, dtype):
    base = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(base, os.path.join(folder, "adapter"), is_trainable=True)


def adapter_tensors(model, get):
    return {name.replace(".default.", "."): get(p).detach().float().clone().contiguous()
            for name, p in model.named_parameters() if p.requires_grad}


def make_case(out, name, case, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(case, generator)
    model.save_pretrained(folder)
    for extra in ("generation_config.json",):
        path = os.path.join(folder, extra)
        if os.path.exists(path):
            os.remove(path)
    if name == "mha":
        # As older versions of transformers wrote it.
        path = os.path.join(folder, "config.json")
        with open(path) as f:
            config = json.load(f)
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["torch_dtype"] = config.pop("dtype", None)
        config["rope_scaling"] = None
        config.pop("head_dim", None)
        with open(path, "w") as f:
            json.dump(config, f, indent=2, sort_keys=True)

    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = peft.LoraConfig(r=case["r"], lora_alpha=case["alpha"], lora_dropout=0.0,
                           target_modules=case["targets"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora)
    with torch.no_grad():
        for pname, p in model.named_parameters():
            if "lora_B" in pname:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(os.path.join(folder, "adapter"))
    reference.tidy_folder(os.path.join(folder, "adapter"))

    rows = make_rows(case["config"]["vocab_size"], generator)
    model = load(folder, torch.float32)
    base_loss = None
    with torch.no_grad(), model.disable_adapter():
        base_loss = loss_of(model, rows)[0].item()
    with torch.no_grad():
        eval_loss = loss_of(model, rows)[0].item()
        logits = logits_of(model, rows[0]["ids"])[-1].tolist()
        prompt = rows[1]["ids"]
        greedy = greedy_of(model, prompt, 12)
    values, grads, final = reference.train(model, case, rows, STEPS, STEPS, FINAL, adapter_tensors)

    half = load(folder, torch.bfloat16)
    half_loss, _ = loss_of(half, rows[:BATCH])
    half_loss.backward()
    half_grads = adapter_tensors(half, lambda p: p.grad)
    error = {k: ((half_grads[k] - grads[k]).norm() / grads[k].norm()).item() for k in grads}

    tensors = {"grad." + k: v for k, v in grads.items()}
    tensors |= {"final." + k: v for k, v in final.items()}
    safetensors.torch.save_file(tensors, os.path.join(folder, "golden.safetensors"))
    reference.readable(folder)
    golden = dict(
        r=case["r"], lora_alpha=case["alpha"], target_modules=case["targets"], rows=rows,
        base_loss=base_loss, eval_loss=eval_loss, logits=logits, prompt=prompt, greedy=greedy,
        bf16_loss=half_loss.item(), bf16_grad_error=error,
        **reference.settings(case, STEPS, FINAL), **values)
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump(golden, f)
        f.write("\n")


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "llama")
    torch.set_num_threads(1)
    for i, (name, case) in enumerate(CASES.items()):
        make_case(out, name, copy.deepcopy(case), 1234 + i)
        print(name)
    with open(os.path.join(out, "versions.json"), "w") as f:
        json.dump({m.__name__: m.__version__ for m in (torch, transformers, peft)}, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
