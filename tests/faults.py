"""What can happen to a run, done to real ones: kills at random moments, and damage to its checkpoints.

    python tests/faults.py                            40 kills, 200 corruptions
    python tests/faults.py --kills 5 --corruptions 20

Kills: `tinyvit train` runs in a process of its own that gets SIGKILL at a random moment; each time its checkpoint must
be whole, and `tinyvit train --resume` must go on. What a run that was killed again and again ends with must equal to
the last bit what one ends with that nobody has touched.

Corruptions: bytes of a run's checkpoint are flipped, cut off, put in, zeroed. Each time the commands must say so in one
line, or nothing that is read may differ; and going on, from the best epoch's checkpoint, must end with the same bits.
Where both are damaged there is nothing left to go on with, which must be said in one line too.

Exit code 0 means: nothing lost, no traceback.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tinyvit import data, train
from tinyvit.classifier import load
from tinyvit.cli import main as tinyvit
from tinyvit.data.dataset import Dataset
from tinyvit.train import checkpoint

# The command itself; but it writes a checkpoint after each step, so that many a kill comes while it does, and draws no
# pictures, which take longer than these runs.
COMMAND = (
    "import sys; from tinyvit import cli, train; cli.training.draw = lambda run: None; "
    "train.fit.__kwdefaults__['save_every'] = train.resume.__kwdefaults__['save_every'] = 0; sys.exit(cli.main())"
)
WORDS = ["--dropout", "0.1", "--ema", "0.99", "--threads", "1"]


def start(*words):
    """`tinyvit train` in a process of its own; what it says on both streams can be read from its stdout."""
    command = [sys.executable, "-c", COMMAND, "train", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(folder):
    """What is in a run's metrics.jsonl, all of it."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def same(a, b):
    """Whether two finished runs have equal checkpoints and metrics, but for times."""
    for name in (train.CHECKPOINT, train.BEST):
        (tensors, about), (others, other) = checkpoint.load(a / name), checkpoint.load(b / name)
        if tensors.keys() != others.keys() or about["steps_done"] != other["steps_done"]:
            return False
        if not all(np.array_equal(array, others[key]) for key, array in tensors.items()):
            return False
    return len(rows(a)) == len(rows(b)) and all(
        row.keys() == other.keys()
        and all(row[key] == other[key] for key in row if key not in ("seconds", "images_per_second"))
        for row, other in zip(rows(a), rows(b), strict=True)
    )


def kills(count, folder, seed=0, epochs=12, longest=3.0):
    """Kill runs of so many epochs `count` times, at most `longest` seconds after the first line that they say; returns
    the counts."""
    rng, words = random.Random(seed), [*WORDS, "--epochs", epochs]
    done = start(*words, "--out", folder / "whole").communicate()[0]
    found = dict(kills=0, whole=0, within_an_epoch=0, left_over=0, finished=0, equal=0, tracebacks="Traceback" in done)
    while found["kills"] < count:
        run, before = folder / f"run-{found['finished']}", set()
        process = start(*words, "--out", run)
        while True:
            said = process.stdout.readline()  # the data's or, when resumed, "going on"; then there is a checkpoint
            time.sleep(rng.uniform(0, longest))
            killed = process.poll() is None and found["kills"] < count
            if killed:
                process.kill()
            said += process.communicate()[0]
            found["tracebacks"] += "Traceback" in said
            if not killed and process.returncode:
                raise RuntimeError(f"a run must end by itself or by a kill, not so: {said}")
            if not killed:
                break
            found["kills"] += 1
            saved = train.read_saved(run)  # raises where nothing is whole
            found["whole"] += not saved.note and load(run) is not None
            found["within_an_epoch"] += saved.progress.seen > 0
            left = {path for path in run.iterdir() if path.suffix == ".tmp"}
            found["left_over"] += left > before
            before = left
            process = start("--resume", run, "--threads", 1)
        found["finished"] += 1
        found["equal"] += same(run, folder / "whole")
    return found


def damaged(content, rng):
    """The bytes of a file, with a fault."""
    content, at = bytearray(content), rng.randrange(len(content))
    kind = rng.choice(["bit", "byte", "header", "cut", "more", "zeros", "empty"])
    if kind == "bit":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[at] ^= rng.randrange(1, 256)
    elif kind == "header":
        content[rng.randrange(min(4000, len(content)))] ^= rng.randrange(1, 256)
    elif kind == "cut":
        del content[at:]
    elif kind == "more":
        content[at:at] = rng.randbytes(rng.randrange(1, 100))
    elif kind == "zeros":
        content[at : at + 4096] = bytes(len(content[at : at + 4096]))
    else:
        content.clear()
    return bytes(content)


def said_by(*words):
    """(exit code, what was said) of a command, in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = tinyvit(list(map(str, words)))
    return code, out.getvalue()


def corruptions(count, folder, seed=0):
    """Damage checkpoints `count` times: the last one, and each fifth time the best epoch's too; returns the counts."""
    rng = random.Random(seed)
    whole = data.load("digits")
    few = Dataset.of("digits", whole.classes, whole.train[:200], whole.validation[:50], whole.test[:50])
    quiet = dict(say=lambda line: None, bar=False, threads=1)
    recipe = train.Recipe(epochs=4, batch_size=50, warmup=1.0, dropout=0.1, ema=0.9)
    origin, run = train.fit(recipe, few, folder / "whole", **quiet).folder, folder / "run"
    content = {name: (origin / name).read_bytes() for name in (train.CHECKPOINT, train.BEST)}
    tensors, about = checkpoint.load(origin / train.CHECKPOINT)
    found = dict(corruptions=0, refused=0, harmless=0, went_on=0, equal=0, both=0, both_refused=0, tracebacks=0)
    for n in range(count):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(origin, run)
        both = n % 5 == 4
        for name in (train.CHECKPOINT, train.BEST) if both else (train.CHECKPOINT,):
            (run / name).write_bytes(damaged(content[name], rng))
        found["corruptions"] += 1
        found["both"] += both
        try:
            code, said = said_by("eval", run)
            if code == 1 and said.startswith("tinyvit eval: ") and said.count("\n") == 1 and str(run) in said:
                found["refused"] += 1
            else:  # JSON ignores a blank
                again, other = checkpoint.load(run / train.CHECKPOINT)
                equal = all(np.array_equal(array, again[name]) for name, array in tensors.items())
                found["harmless"] += code == 0 and other == about and equal
            if both:
                code, said = said_by("train", "--resume", run)
                found["both_refused"] += code == 1 and said.count("\n") == 1
            else:
                train.resume(run, few, **quiet)
                found["went_on"] += 1
                found["equal"] += same(run, origin)
        except Exception as error:
            found["tracebacks"] += 1
            print(f"corruption {n}: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--corruptions", type=int, default=200)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        bad = report_corruptions(corruptions(options.corruptions, Path(folder) / "corruptions"))
    if os.name == "posix":  # SIGKILL is POSIX's
        with tempfile.TemporaryDirectory() as folder:
            bad += report_kills(kills(options.kills, Path(folder)))
    return bad > 0


def report_corruptions(n):
    """Say how it went; returns how many went wrong."""
    lost = n["corruptions"] - n["both"] - n["equal"]
    print(
        f"{n['corruptions']} corruptions: {n['refused']} refused in one line, {n['harmless']} changed nothing that is "
        f"read; {n['went_on']} went on from the best epoch, {n['equal']} of them to the same bits; with both damaged "
        f"{n['both_refused']} of {n['both']} refused in one line; {lost} lost, {n['tracebacks']} tracebacks"
    )
    silent = n["corruptions"] - n["refused"] - n["harmless"]
    return lost + silent + n["tracebacks"] + n["both"] - n["both_refused"]


def report_kills(n):
    """Say how it went; returns how many went wrong."""
    lost = n["kills"] - n["whole"] + n["finished"] - n["equal"]
    print(
        f"{n['kills']} kills of `tinyvit train`: {n['whole']} whole checkpoints ({n['within_an_epoch']} within an "
        f"epoch, {n['left_over']} kills in the middle of writing a file); {n['finished']} runs finished, {n['equal']} "
        f"with the same bits as one that was never killed; {lost} lost, {n['tracebacks']} tracebacks"
    )
    return lost + n["tracebacks"]


if __name__ == "__main__":
    sys.exit(main())
