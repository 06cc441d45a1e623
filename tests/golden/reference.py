"""What the scripts that make golden values share: rows, the loss of a step, a training run in torch."""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

BETAS, EPS, BATCH, ROWS = (0.9, 0.99), 1e-8, 4, 10


def make_rows(vocab_size, generator):
    rows = []
    for i in range(ROWS):
        n = int(torch.randint(3, 40, (1,), generator=generator))
        ids = torch.randint(0, vocab_size, (n,), generator=generator).tolist()
        prompt = int(torch.randint(0, n - 1, (1,), generator=generator)) if i % 4 else 0
        labels = [-100] * prompt + ids[prompt:]
        rows.append(dict(ids=ids, labels=labels))
    return rows


def make_pairs(vocab_size, generator, start, longest=40):
    """Rows of an encoder-decoder: the ids of both sides, the encoder's `source_len` first."""
    rows = []
    for _ in range(ROWS):
        sides = [torch.randint(0, vocab_size, (int(torch.randint(1, longest, (1,), generator=generator)),),
                               generator=generator).tolist() for _ in range(2)]
        rows.append(dict(ids=sides[0] + sides[1], labels=[-100] * len(sides[0]) + sides[1],
                         source_len=len(sides[0])))
    return rows


def prompt_of(row):
    """What a continuation of the row begins with: all of it, or what the encoder reads."""
    return row["ids"][:row.get("source_len", len(row["ids"]))]


def decode(model, source, decoder):
    """[len(decoder) + 1, vocab] of an encoder-decoder that was fed its start and `decoder`."""
    start = model.config.decoder_start_token_id
    return model(input_ids=torch.tensor([source]),
                 decoder_input_ids=torch.tensor([[start] + decoder])).logits[0]


def logits_of(model, ids):
    """[len(ids), vocab] of one row; virtual tokens before it, where there are any, are left out. Of an
    encoder-decoder that has read the ids, [1, vocab] of its first token."""
    if model.config.is_encoder_decoder:
        return decode(model, ids, [])
    return model(input_ids=torch.tensor([ids])).logits[0, -len(ids):]


def row_loss(model, row):
    """Sum of -log p over the row's targets, and their number. Where virtual tokens stand before a row, the
    last of them predicts its first token, as PEFT has it: it puts labels of -100 before the row's own."""
    if "source_len" in row:
        target = row["ids"][row["source_len"]:]
        logits = decode(model, prompt_of(row), target[:-1]).float()
        return torch.nn.functional.cross_entropy(
            logits, torch.tensor(target), reduction="sum"), len(target)
    logits = model(input_ids=torch.tensor([row["ids"]])).logits[0].float()
    labels = torch.tensor([-100] * (len(logits) - len(row["ids"])) + row["labels"])[1:]
    loss = torch.nn.functional.cross_entropy(logits[:-1], labels, ignore_index=-100, reduction="sum")
    return loss, int((labels != -100).sum())


def loss_of(model, batch):
    """Sum over the step's target tokens over their number; each row by itself, nothing padded."""
    total = count = 0
    for row in batch:
        loss, n = row_loss(model, row)
        total, count = total + loss, count + n
    return total / count, count


def check_loss(model, row):
    """Is it the loss that the library itself computes from labels?"""
    with torch.no_grad():
        n = row.get("source_len", 0)
        own = model(input_ids=torch.tensor([prompt_of(row)]),
                    labels=torch.tensor([row["labels"][n:]])).loss
        loss, n = row_loss(model, row)
    assert abs(own.item() - loss.item() / n) <= 1e-6 * own.item(), (own, loss / n)


def greedy_of(model, prompt, n):
    if model.config.is_encoder_decoder:
        text = []
        for _ in range(n):
            text.append(int(decode(model, prompt, text)[-1].argmax()))
        return text
    text = list(prompt)
    for _ in range(n):
        text.append(int(logits_of(model, text)[-1].argmax()))
    return text[len(prompt):]


def batches(rows):
    while True:
        for i in range(0, len(rows), BATCH):
            yield rows[i:i + BATCH]


def train(model, case, rows, steps, total_steps, final_step, tensors, optimizer=None):
    """AdamW with clipping and a schedule. Returns {loss, lr, grad_norm, targets} of each step, the
    gradients of the first and tensors(model) after step final_step. tensors(model, get) names what is
    trained and holds get(parameter)."""
    params = [p for p in model.parameters() if p.requires_grad]
    if optimizer is None:
        optimizer = torch.optim.AdamW(params, lr=case["lr"], betas=BETAS, eps=EPS,
                                      weight_decay=case["decay"])
    scheduler = transformers.get_scheduler(
        "constant_with_warmup" if case["schedule"] == "constant" else case["schedule"], optimizer,
        num_warmup_steps=case["warmup"], num_training_steps=total_steps)
    out = dict(loss=[], lr=[], grad_norm=[], targets=[])
    grads = final = None
    for step, batch in zip(range(steps), batches(rows)):
        optimizer.zero_grad()
        loss, count = loss_of(model, batch)
        loss.backward()
        if step == 0:
            grads = tensors(model, lambda p: p.grad)
        clip = case["clip"] if case["clip"] > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(params, clip)
        out["loss"].append(loss.item())
        out["lr"].append(optimizer.param_groups[0]["lr"])
        out["grad_norm"].append(norm.item())
        out["targets"].append(count)
        optimizer.step()
        scheduler.step()
        if step + 1 == final_step:
            final = tensors(model, lambda p: p.data)
    return out, grads, final


def settings(case, steps, final_step):
    """What a golden.json says of the run."""
    return dict(
        schedule=case["schedule"], warmup=case["warmup"], weight_decay=case["decay"],
        clip=case["clip"], learning_rate=case["lr"], adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=EPS, batch_size=BATCH, max_steps=steps, final_step=final_step)


def tidy_folder(folder):
    """The same bytes for the same run: sorted module lists, no path of this machine, no README."""
    for extra in ("README.md", "head_config.json", "model_head.safetensors"):
        path = os.path.join(folder, extra)
        if os.path.exists(path):
            os.remove(path)
    path = os.path.join(folder, "adapter_config.json")
    with open(path) as f:
        config = json.load(f)
    for key in ("base_model_name_or_path", "model_name"):
        if key in config:
            config[key] = None
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)


def readable(folder):
    for parent, _, files in os.walk(folder):
        for file in files:
            os.chmod(os.path.join(parent, file), 0o644)
