#!/usr/bin/env python3
"""What transformers renders with published chat templates, and what they mark as the assistant's.

usage: make_templates.py SOURCES > tests/golden/templates/published.json

The templates lie in tests/golden/templates/*.jinja as they were published: those of TRL (trl/chat_templates,
Apache-2.0, copies of the models' own and their training variants with generation marks), those of axolotl
(utils/chat_templates, Apache-2.0) by the names axolotl_*, and SmolLM2's own."""
import datetime
import glob
import json
import os
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils as utils


class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


utils.datetime = Day

TOKENS = {  # by the beginning of a template's name, without axolotl_
    "llama": ("<|begin_of_text|>", "<|eot_id|>"), "gemma": ("<bos>", "<eos>"), "mistral": ("<s>", "</s>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "phi3": ("<s>", "<|endoftext|>"), "phi_3": ("<s>", "<|endoftext|>"),
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"), "command": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"), "qwen": (None, "<|im_end|>"), "jamba": ("<|startoftext|>", "<|endoftext|>"),
}
S, U, A = (lambda r: lambda c, **k: {"role": r, "content": c, **k})("system"), None, None
U = lambda c, **k: {"role": "user", "content": c, **k}
A = lambda c, **k: {"role": "assistant", "content": c, **k}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln \"x\"", "days": 3, "f": 1.5, "on": True, "no": None}}}
CONVERSATIONS = [
    [U("Hi"), A("Hello!")],
    [S("Be brief."), U("2+2?"), A("4"), U("3+3?"), A("6")],
    [U("no answer yet")],
    [S("only the system speaks")],
    [S(""), U("x"), A("y")],
    [U("multi\nline\n\n"), A("\n\n  indented\n\tcode  \n"), U("  "), A(" z ")],
    [U("naïve e\u0301 <&>\"'"), A("\u0301e\u0301 \u1100\u1161 日本語 😀"), U("ok {{ x }} {% if %}"), A("[INST] </s> <|im_end|> inside")],
    [S("  spaced  "), U("\u00a0\x1c trimmed \u3000"), A("\x1f kept?\u2003\n")],
    [A("first"), U("then"), A("second")],
    [U("one"), U("two"), A("three")],
    [U("one"), A("two"), A("three"), U("four")],
    [U("a"), A("b"), S("late"), U("c"), A("d")],
    [U("think"), A("<think>\nhmm, 1+1\n</think>\n\nIt is 2."), U("again"), A("<think>\nso\n</think>\n\n3")],
    [U("think"), A("It is 2.", reasoning_content="hmm"), U("again"), A("3", reasoning_content="so\n")],
    [U("think"), A("a</think>b"), U("again"), A("</think>")],
    [U("w?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "name": "weather", "content": "{\"t\": 20}"}, A("Warm.")],
    [U("w?"), {"role": "assistant", "content": None, "tool_calls": [CALL["function"], CALL]}, {"role": "tool", "content": "20"},
     {"role": "tool", "content": "21"}, A("Warm."), U("thanks"), A("ok")],
    [U("x"), {"role": "gpt", "content": "y"}],
    [{"role": "developer", "content": "dev"}, U("x"), A("y")],
    [U("same"), A("same"), U("same"), A("same")],
    [S("s" * 50), U("long " * 30), A("row " * 30), U("q"), A("\n")],
    [U("x"), A("y", name="n", extra={"k": [1, 2.0, None, True]})],
]


def tokens_of(name):
    name = name.removeprefix("axolotl_")
    pair = next((v for k, v in TOKENS.items() if name.startswith(k)), ("<s>", "</s>"))
    return {k: v for k, v in zip(("bos_token", "eos_token"), pair) if v}


def byte_spans(text, spans):
    return [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans]


def render(source, tokens, messages, prompt, spans):
    # As apply_chat_template does before.
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    try:
        texts, marks = utils.render_jinja_template(conversations=[messages], chat_template=source, add_generation_prompt=prompt,
                                                   return_assistant_tokens_mask=spans, **tokens)
        result = {"text": texts[0]}
        if spans:
            result["spans"] = byte_spans(texts[0], marks[0])
        return result
    except jinja2.exceptions.TemplateError as e:
        return {"raised": str(e)} if type(e) is jinja2.exceptions.TemplateError else {"error": type(e).__name__}
    except Exception as e:
        return {"error": type(e).__name__}


def main():
    folder = sys.argv[1]
    sources = {os.path.basename(p)[:-6]: open(p, newline="").read() for p in sorted(glob.glob(os.path.join(folder, "*.jinja")))}
    templates = []
    for name, source in sources.items():
        tokens = tokens_of(name)
        marked = "endgeneration" in source
        trained = sources.get(name + "_training")
        cases = []
        for i, messages in enumerate(CONVERSATIONS):
            case = render(source, tokens, messages, False, marked)
            with_prompt = render(source, tokens, messages, True, False)
            case["prompt"] = with_prompt.get("text", {k: v for k, v in with_prompt.items()})
            if isinstance(case["prompt"], str) and "text" in case and case["prompt"].startswith(case["text"]):
                case["prompt"] = [case["prompt"][len(case["text"]):]]
            if trained and "text" in case:  # the same text with marks: what must be found without them
                other = render(trained, tokens, messages, False, True)
                if other.get("text") == case["text"]:
                    case["found"] = other["spans"]
            cases.append(case)
        templates.append({"name": name, "tokens": tokens, "cases": cases})
    json.dump({"versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
               "conversations": CONVERSATIONS, "templates": templates}, sys.stdout, ensure_ascii=False, indent=0)
    print()


if __name__ == "__main__":
    main()
