#!/usr/bin/env python3
"""Holds exported adapters against PEFT itself.

    check_adapter.py BUILD/tests/model/adapter_rewrite

For each of several targets: a random adapter is made in PEFT and saved, read and exported again by
adapter_rewrite, and loaded in PEFT with every warning an error. The logits must be those of the first
adapter, bit by bit, and not those of the base. Needs torch, transformers, peft.
"""

import contextlib
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

VARIANTS = {
    "all-linear": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "names": {"r": 2, "lora_alpha": 3, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
    "regex": {"r": 3, "lora_alpha": 7, "target_modules": r"model\.layers\.\d+\.mlp\.(up|down)_proj"},
    "one module": {"r": 8, "target_modules": ["model.layers.1.self_attn.k_proj"]},
}


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT asks transformers by an old name whenever it wraps a model, whatever the adapter.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        yield


class Fail(logging.Handler):
    def emit(self, record):
        raise RuntimeError(f"logged: {record.getMessage()}")


def base_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)).eval()


def check(name, options, tool, work):
    ids = torch.arange(40).reshape(2, 20)
    plain, exported = work / "plain", work / "exported"
    exported.mkdir()
    with torch.no_grad():
        before = base_model()(ids).logits
        model = get_peft_model(base_model(), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn_like(p) * 0.3)
        wanted = model(ids).logits
        model.save_pretrained(plain)
        subprocess.run([tool, plain, exported], check=True)

        base = base_model()
        with no_warnings():
            loaded = PeftModel.from_pretrained(base, exported).eval()
        got = loaded(ids).logits
        assert torch.equal(got, wanted), "other logits"
        assert not torch.allclose(got, before), "the adapter does nothing"
        with loaded.disable_adapter():
            assert torch.equal(loaded(ids).logits, before), "the base was changed"

        # What PEFT itself would save of it, and what can be trained on.
        config = json.loads((exported / "adapter_config.json").read_text())
        assert config["inference_mode"] is True and config["r"] == options["r"]
        with no_warnings():
            again = PeftModel.from_pretrained(base_model(), exported, is_trainable=True)
        assert any(p.requires_grad for p in again.parameters())
        merged = loaded.merge_and_unload()
        assert torch.allclose(merged(ids).logits, wanted, atol=1e-5)
    size = sum(p.stat().st_size for p in exported.iterdir())
    print(f"{name}: same logits as before, no warning ({size} bytes)")


def main():
    tool = pathlib.Path(sys.argv[1]).resolve()
    handler = Fail(level=logging.WARNING)
    for name in ("peft", "transformers"):
        logging.getLogger(name).addHandler(handler)
    for name, options in VARIANTS.items():
        with tempfile.TemporaryDirectory() as work:
            check(name, options, tool, pathlib.Path(work))


if __name__ == "__main__":
    main()
