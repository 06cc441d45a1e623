#!/usr/bin/env python3
"""Makes tests/golden/text/: small tokenizers, hard texts and their ids from Hugging Face tokenizers, chat
templates rendered by transformers, and rows tokenized as TRL's SFTTrainer does.

usage: make_text.py OUTPUT-FOLDER SMOLLM2.gguf [QWEN2_5.jinja LLAMA3.jinja]

Written with tokenizers 0.23.3 and transformers 5.23. The two .jinja files are the chat templates of
Qwen2.5-Instruct and Meta-Llama-3-Instruct; without them chat.json is left as it is. Needs `sentencepiece` and
`protobuf` besides.
"""

import json
import os
import random
import sys

from gguf import GGUFReader
from text_tokenizers import CHAT, TOKENIZERS, from_scores, hard_texts, scored_bpe
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges


def dump(path, value):
    with open(path, "w") as f:
        json.dump(value, f, separators=(",", ":"), ensure_ascii=True)
        f.write("\n")


def smollm2(reader):
    """The published tokenizer, from a GGUF's vocabulary and merges."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)},
                             merges=[tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False)
                          for s, kind in zip(tokens, kinds) if kind == 3])
    return t


CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
          "{% endif %}")
DEFINED = ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
           "{% endif %}")
SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def training(system, lead=""):
    """ChatML with {% generation %} where TRL's training templates have it."""
    first = ("{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + system +
             "<|im_end|>\n' }}{% endif %}") if system else ""
    return ("{% for message in messages %}" + first + "{% if message['role'] == 'assistant' %}"
            "{{ '<|im_start|>assistant" + ("" if lead else "\n") + "' }}{% generation %}{{ '" + lead +
            "' + message['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
            "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


LLAMA3_TRAINING = (
    "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

CONVERSATIONS = [
    [("user", "Hi"), ("assistant", "Hello!")],
    [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6")],
    [("user", "no answer yet")],
    [("system", ""), ("user", "x"), ("assistant", "y")],
    [("user", "multi\nline\n\n"), ("assistant", "\n\n  indented\n\tcode  \n"), ("user", "  ")],
    [("user", "naïve e\u0301"), ("assistant", "\u0301e\u0301 \u1100\u1161 日本語 😀"), ("user", "ok")],
    [("assistant", "first"), ("user", "then"), ("assistant", "a'LL <|im_end|> inside"), ("assistant", "2")],
    [("user", "\u00a0\x1c trimmed \u3000"), ("assistant", "\x1f kept?\u2003\n")],
]


def templates(reader, qwen, llama):
    smol = reader.fields["tokenizer.chat_template"].contents()
    out = [
        ("chatml", CHATML, training(None)),
        ("chatml", DEFINED + CHATML.replace("\n", "\\n") + "\n", training(None)),
        ("smollm2", smol, training(SMOLLM_SYSTEM)),
        ("qwen2", smol.replace(SMOLLM_SYSTEM, "You are a helpful assistant."),
         training("You are a helpful assistant.")),
    ]
    if qwen:
        system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        out.append(("qwen2.5", open(qwen).read(), training(system, "\n")))
    if llama:
        out.append(("llama3", open(llama).read(), LLAMA3_TRAINING))
    return out


def chat_tokenizer(name, t):
    special = {"eos_token": "<|im_end|>"}
    if name == "llama3":
        special = {"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>"}
    return PreTrainedTokenizerFast(tokenizer_object=t, **special)


def chats(built, reader, qwen, llama):
    out = []
    for name, source, trained in templates(reader, qwen, llama):
        # A normalizer, an added prefix space, and a pattern of PCRE2's, for the way back to characters.
        tokenizers = ["llama3"] if name == "llama3" else ["smollm", "qwen2", "deepseek", "gpt4o"]
        plain = chat_tokenizer(name, built[tokenizers[0]])
        case = {"name": name, "source": source, "conversations": []}
        for conversation in CONVERSATIONS:
            messages = [{"role": r, "content": c} for r, c in conversation]
            both = [plain.apply_chat_template(messages, chat_template=source, tokenize=False,
                                              add_generation_prompt=g) for g in (False, True)]
            assert both[0] == plain.apply_chat_template(messages, chat_template=trained, tokenize=False)
            item = {"messages": messages, "text": both[0], "prompt": both[1], "tokens": {}}
            for which in tokenizers:
                t = chat_tokenizer(name, built[which])
                e = t.apply_chat_template(messages, chat_template=trained, return_dict=True,
                                          return_assistant_tokens_mask=True)
                item["tokens"][which] = [e["input_ids"], e["assistant_masks"]]
            case["conversations"].append(item)
        out.append(case)
    return out


ROWS = [
    {"prompt": "What is 2+2?", "completion": " 4"},
    {"prompt": "What is 2+2?\n", "completion": "The answer is 4."},
    {"prompt": "ends in a lett", "completion": "er that merges with the next"},
    {"prompt": "", "completion": "all of it"},
    {"prompt": "already ended", "completion": " yes<|im_end|>"},
    {"prompt": "ended inside", "completion": " yes<|im_end|> no"},
    {"prompt": "spaces  ", "completion": "  more\n\n"},
    {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "completion": "hey"},
    {"prompt": "long " * 30, "completion": "row " * 10},
    {"prompt": "é" * 5, "completion": "ñ日本😀", "ignored": [1, {"x": None}]},
]


def trl_row(t, row, eos):
    """sft_trainer.py: add_eos, tokenize_fn, build_labels with completion_only_loss."""
    completion = row["completion"] if row["completion"].endswith(eos) else row["completion"] + eos
    prompt = t.encode(row["prompt"], add_special_tokens=True).ids
    ids = t.encode(row["prompt"] + completion, add_special_tokens=True).ids
    mask = [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    labels = [i if m else -100 for i, m in zip(ids, mask)]
    return {"ids": ids, "labels": labels, "misaligned": ids[:len(prompt)] != prompt}


def samples(built):
    out = {}
    for name, eos in (("smollm", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gpt2", "<both>")):
        out[name] = {"eos": eos, "rows": [trl_row(built[name], row, eos) for row in ROWS]}
    return {"rows": ROWS, "expected": out}


def decoded(t, texts):
    """What the ids of each text are as text, and what all ids are, special ones left out or not."""
    every = list(range(t.get_vocab_size(with_added_tokens=True)))
    mixed = random.Random(5).choices(every, k=400)
    return {
        "texts": [t.decode(e.ids) for e in t.encode_batch(texts, add_special_tokens=True)],
        "every": t.decode(every, skip_special_tokens=False),
        "mixed": mixed, "some": t.decode(mixed), "all": t.decode(mixed, skip_special_tokens=False),
        "runs": [t.decode(mixed[i:i + 3], skip_special_tokens=False) for i in range(0, 400, 3)]}


def main():
    folder, gguf = sys.argv[1:3]
    qwen, llama = (sys.argv[3:5] + [None, None])[:2]
    os.makedirs(folder, exist_ok=True)
    reader = GGUFReader(gguf)
    built = {}
    for name, make in TOKENIZERS.items():
        path = os.path.join(folder, name + ".tokenizer.json")
        t = make()
        dump(path, json.loads(t.to_str()))
        built[name] = Tokenizer.from_file(path)

    texts = hard_texts()
    cases = {"texts": texts, "tokenizers": {}}
    for name, t in built.items():
        cases["tokenizers"][name] = {
            "ids": [e.ids for e in t.encode_batch(texts, add_special_tokens=False)],
            "decoded": decoded(t, texts),
            "special": t.encode("x", add_special_tokens=True).ids,
            "size": t.get_vocab_size(with_added_tokens=True),
        }
    dump(os.path.join(folder, "cases.json"), cases)

    pieces = scored_bpe()
    scored = {"pieces": pieces, "cases": []}
    for prefix in (True, False):
        t = from_scores(pieces, prefix, generate_merges)
        scored["cases"].append({"prefix": prefix, "ids": [e.ids for e in t.encode_batch(texts)],
                                "decoded": decoded(t, texts)})
    dump(os.path.join(folder, "scored.json"), scored)

    real = smollm2(reader)
    dump(os.path.join(folder, "smollm2.json"), {
        "ids": [e.ids for e in real.encode_batch(texts, add_special_tokens=False)]})
    for name in ("smollm", "qwen2", "deepseek", "gpt4o"):
        missing = [s for s in CHAT if built[name].token_to_id(s) is None]
        built[name].add_special_tokens(missing)
    if qwen and llama:
        dump(os.path.join(folder, "chat.json"), chats(built, reader, qwen, llama))
    for name in ("deepseek", "gpt4o"):
        dump(os.path.join(folder, name + "-chat.tokenizer.json"), json.loads(built[name].to_str()))
    dump(os.path.join(folder, "samples.json"), samples(built))


main()
