#!/usr/bin/env python3
"""One side of check_methods.py: the library's. Runs in the environment of that library.

    reference_job.py train TASK.json OUT     from a fresh adapter; writes OUT/init and prints the run
    reference_job.py load TASK.json FOLDER   what the library makes of a folder that peftd exported

TASK.json: hf (folder of the model), method, config, learning_rate, steps, batch_size, and the rows train
and test. Prints one JSON object on standard output.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))

import training  # before transformers
import libraries

import safetensors.torch
import torch
import transformers


def encoded(task, name):
    # Versions 4 of transformers do not know the class of tokenizer that version 5 writes down.
    config = json.loads(pathlib.Path(task["hf"], "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(task["hf"], "tokenizer.json"), eos_token=config["eos_token"])
    return [training.encode(tokenizer, row) for row in task[name]]


def train(task, out):
    torch.manual_seed(7)
    base = libraries.load_base(task["hf"])
    rows, test = encoded(task, "train"), encoded(task, "test")
    base_loss = training.mean_loss(base, test)
    case = {"method": task["method"], "config": task["config"], "lr": task["learning_rate"], "decay": 0.0}
    method = libraries.kind_of(case)(base, case, torch.Generator().manual_seed(7), scale=0.1)
    starts = method.FILE is not None and not method.encoded
    if starts:
        method.save(os.path.join(out, "init"))
    initial_loss = training.mean_loss(method.model, test)
    if method.FILE is None or starts:
        steps = training.reference_run(method.model, rows, task["steps"], task["batch_size"],
                                       task["learning_rate"], method.optimizer(case))
    else:
        steps = None  # no folder holds the encoder, so peftd cannot start where the library does
    return {"base_loss": base_loss, "initial_loss": initial_loss, "steps": steps, "starts": starts}


def load(task, folder):
    case = {"method": task["method"], "config": task["config"]}
    kind = libraries.kind_of(case)
    base = libraries.load_base(task["hf"])
    with training.Warnings() as w:
        model = kind.load(base, folder)
    file = safetensors.torch.load_file(os.path.join(folder, kind.FILE or libraries.DELTA_FILE))
    loaded = kind.tensors(model)
    wrong = [k for k in file if k not in loaded or not torch.equal(file[k], loaded[k])]
    return {"warnings": w.seen, "wrong": wrong,
            "loss": training.mean_loss(model.eval(), encoded(task, "test"))}


def main():
    task = json.loads(pathlib.Path(sys.argv[2]).read_text())
    # The libraries print; the answer goes where they do not.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    transformers.utils.logging.disable_progress_bar()
    json.dump({"train": train, "load": load}[sys.argv[1]](task, sys.argv[3]), answer)


if __name__ == "__main__":
    main()
