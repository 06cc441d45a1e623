"""What the checks on a real model share on torch's side: rows as tokens, a training run, warnings."""

import logging
import os
import sys
import time
import warnings

# An exported folder names the base by its name in peftd; PEFT would ask the hub for that.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import get_scheduler

from common import MAX_GRAD_NORM, WARMUP


def encode(tokenizer, row):
    """Ids and labels as TRL's supervised fine-tuning makes them of prompt and completion."""
    prompt, completion = row["question"], row["answer"]
    if not completion.endswith(tokenizer.eos_token):
        completion += tokenizer.eos_token
    ids = tokenizer(prompt + completion).input_ids
    n = len(tokenizer(prompt).input_ids)
    return ids, [-100] * n + ids[n:]


def row_loss(model, ids, labels):
    """Sum of -log p over the targets of one row. The logits are the model's; the loss is taken of them in
    float64, since torch's own float32 sum over 49,152 classes is 1e-5 too low a token."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, -len(ids):-1].double()
    targets = torch.tensor(labels[1:])
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


def n_targets(rows):
    return sum(sum(label >= 0 for label in labels[1:]) for _, labels in rows)


def step_gradient(model, rows):
    """Gradients of the mean loss over all targets of a step into .grad; returns the loss."""
    n, total = n_targets(rows), 0.0
    for ids, labels in rows:
        loss = row_loss(model, ids, labels)
        (loss / n).backward()
        total += loss.item()
    return total / n


def reference_run(model, rows, steps, batch_size, learning_rate, optimizer=None):
    """[(loss, grad_norm, lr)] of each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimizer is None:
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    scheduler = get_scheduler("cosine", optimizer, WARMUP, steps)
    out = []
    for step in range(steps):
        start = time.time()
        optimizer.zero_grad(set_to_none=True)
        batch = [rows[i % len(rows)] for i in range(step * batch_size, (step + 1) * batch_size)]
        loss = step_gradient(model, batch)
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item()
        lr = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        out.append({"loss": loss, "grad_norm": norm, "lr": lr})
        print(f"  reference step {step + 1}/{steps}: loss {loss:.6f} ({time.time() - start:.1f} s)",
              file=sys.stderr)
    return out


def mean_loss(model, rows):
    with torch.no_grad():
        return sum(row_loss(model, *row).item() for row in rows) / n_targets(rows)


class Warnings(logging.Handler):
    """Everything that transformers, PEFT or Python itself warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.seen = []

    def emit(self, record):
        self.seen.append(record.getMessage())

    def __enter__(self):
        transformers.utils.logging.enable_propagation()
        logging.getLogger().addHandler(self)
        self.catch = warnings.catch_warnings(record=True)
        self.python = self.catch.__enter__()
        warnings.simplefilter("always")
        # PEFT asks transformers by an old name whenever it wraps a model, whatever the adapter.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return self

    def __exit__(self, *args):
        self.seen += [str(w.message) for w in self.python]
        self.catch.__exit__(*args)
        logging.getLogger().removeHandler(self)
