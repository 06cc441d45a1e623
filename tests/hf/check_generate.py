#!/usr/bin/env python3
"""Holds peftd's generation against transformers on a real model, token for token.

    check_generate.py --build BUILD --hf FOLDER [--model PATH] [--tokens 200] [--adapter DIR] [--prompts N]

FOLDER is a Hugging Face folder in float32; PATH is what peftd is given (default: FOLDER). Greedy answers of
--tokens tokens to several prompts, one by one and all at once, by the base and with a LoRA adapter that PEFT
makes here (or DIR); and with a repetition penalty. Needs torch, transformers and peft. Status 1 when a
text differs.
"""

import argparse
import os
import sys
import tempfile

import json

from common import Daemon

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["1, 2, 3, 4, 5,", "def fibonacci(n):\n", "Once upon a time, in a village by the sea,",
           "The capital of France is", "Question: If a train travels 60 km in 45 minutes, how fast is it?\nAnswer:"]


def make_adapter(folder, out):
    torch.manual_seed(11)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.02)
    model.save_pretrained(out)


def reference(model, tokenizer, prompt, tokens, **kwargs):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                             min_new_tokens=None, **kwargs)
    new = out[0, ids.shape[1]:].tolist()
    stops = model.generation_config.eos_token_id
    stops = set(stops if isinstance(stops, list) else [stops])
    if new and new[-1] in stops:
        new.pop()
    return new


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", required=True)
    p.add_argument("--hf", required=True)
    p.add_argument("--model")
    p.add_argument("--tokens", type=int, default=200)
    p.add_argument("--adapter")
    p.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    a = p.parse_args()
    prompts = PROMPTS[:a.prompts]
    tokenizer = AutoTokenizer.from_pretrained(a.hf)
    d = Daemon(a.build)
    d.ctl("model", "add", "m", os.path.abspath(a.model or a.hf))
    adapter = a.adapter or tempfile.mkdtemp(prefix="peftd-hf-adapter-")
    if not a.adapter:
        make_adapter(a.hf, adapter)
    base = AutoModelForCausalLM.from_pretrained(a.hf, dtype=torch.float32)
    base.generation_config.temperature = base.generation_config.top_p = base.generation_config.top_k = None
    failed = 0
    for what, args, kwargs in (("base", [], {}), ("repetition penalty", ["--repetition-penalty", "1.2"],
                                                  {"repetition_penalty": 1.2}),
                               ("adapter", ["--adapter", adapter + "/"], {})):
        model = PeftModel.from_pretrained(base, adapter) if what == "adapter" else base
        common = ["generate", "--model", "m", "--max-new-tokens", str(a.tokens), "--json", *args]
        together = d.ctl(*common, *[x for prompt in prompts for x in ("--prompt", prompt)])
        together = [json.loads(line) for line in together.splitlines()]
        for i, prompt in enumerate(prompts):
            want_ids = reference(model, tokenizer, prompt, a.tokens, **kwargs)
            want = tokenizer.decode(want_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            alone = json.loads(d.ctl(*common, prompt))
            ok = alone["text"] == want == together[i]["text"] and alone["new_tokens"] == len(want_ids)
            failed += not ok
            print(f"{what:20} prompt {i}: {len(want_ids):3} tokens  {'equal' if ok else 'DIFFERENT'}", flush=True)
            if not ok:
                print("  transformers:", repr(want), "\n  alone:       ", repr(alone["text"]),
                      "\n  together:    ", repr(together[i]["text"]))
    d.close()
    print("transformers", transformers.__version__, "torch", torch.__version__)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
