"""What the checks on a real model share on peftd's side: a daemon of its own, rows, a table of bounds."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

WARMUP, MAX_GRAD_NORM = 3, 1.0  # of both sides' runs


def read_rows(path, n):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line, _ in zip(f, range(n))]


class Daemon:
    def __init__(self, build, threads=0):
        self.bin = {}
        for name in ("peftd", "peftctl"):
            found = [p for p in pathlib.Path(build).rglob(name) if p.is_file()]
            if not found:
                sys.exit(f"{build}: there is no {name} in it; give the folder of a complete build")
            self.bin[name] = str(found[0])
        self.dir = tempfile.mkdtemp(prefix="peftd-hf-")
        self.endpoint = f"ipc://{self.dir}/s"
        self.log = open(os.path.join(self.dir, "log"), "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [self.bin["peftd"], "--state-dir", self.dir + "/state", "--endpoint", self.endpoint,
             "--device", "cpu", "--threads", str(threads)], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            self.log.write(line)
            if line.rstrip().endswith("ready"):
                break
        else:
            sys.exit("peftd ended before it was ready; see " + self.log.name)
        # What it says from now on must not fill the pipe.
        subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=self.log)

    def ctl(self, *args):
        r = subprocess.run([self.bin["peftctl"], "--endpoint", self.endpoint, *args],
                           capture_output=True, text=True)
        if r.returncode != 0:
            sys.exit(f"peftctl {' '.join(args)}: status {r.returncode}\n{r.stderr}")
        return r.stdout

    def add_data(self, model, data, counts):
        """Model `m` and datasets named as the keys of counts, with so many rows; {name: rows}."""
        self.ctl("model", "add", "m", os.path.abspath(model))
        sets = {}
        for name, n in counts.items():
            sets[name] = read_rows(os.path.join(data, name + ".jsonl"), n)
            path = os.path.join(self.dir, name + ".jsonl")
            with open(path, "w", encoding="utf-8") as f:
                f.writelines(json.dumps(row) + "\n" for row in sets[name])
            self.ctl("dataset", "put", name, path, "--prompt-field", "question",
                     "--completion-field", "answer")
        return sets

    def train(self, spec):
        """Trains a job file's content to the end; (job, metrics of its steps)."""
        path = os.path.join(self.dir, "job.yaml")
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"model": "m", "dataset": "train"} | spec, f)
        job = self.ctl("submit", path).strip()
        start = time.time()
        self.ctl("watch", job)
        rows = [json.loads(line) for line in self.ctl("--json", "metrics", job).splitlines()]
        steps = [row for row in rows if "loss" in row]
        tokens = sum(row["tokens"] for row in steps)
        print(f"  peftd job {job}: {len(steps)} steps, {time.time() - start:.1f} s, "
              f"{tokens / sum(row['seconds'] for row in steps):.0f} tokens/s", file=sys.stderr)
        return job, steps

    def fetch(self, job, name):
        out = os.path.join(self.dir, name)
        self.ctl("fetch", job, "-o", out)
        return out

    def eval(self, adapter, dataset):
        args = ["--adapter", adapter] if adapter else []
        out = self.ctl("--json", "eval", "--model", "m", *args, "--dataset", dataset)
        return json.loads(out)["loss"]

    def close(self):
        self.process.terminate()
        status = self.process.wait(60)
        shutil.rmtree(self.dir)
        return status


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, got, bound, detail=""):
        ok = bound is None or (math.isfinite(got) and got <= bound)
        self.rows.append({"what": what, "value": got, "bound": bound, "ok": ok, "detail": detail})

    def show(self):
        for row in self.rows:
            bound = "" if row["bound"] is None else f"<= {row['bound']:.1e}"
            mark = "ok  " if row["ok"] else "FAIL"
            print(f"{mark} {row['what']:<52} {row['value']:.3e} {bound:<11} {row['detail']}")
        return all(row["ok"] for row in self.rows)


def relative(got, want):
    return abs(got - want) / abs(want)


def pair(got, want, i):
    return f"{got[i]['loss']:.6f} against {want[i]['loss']:.6f}"
