"""Folders of runs that nobody trained, for the tests of what reads them: made in milliseconds, of any kind."""

import contextlib
import json
from dataclasses import asdict, replace

import numpy as np
import tomli_w

from tinyvit import PRESETS, models, train
from tinyvit.data.dataset import Dataset, Split
from tinyvit.train import checkpoint
from tinyvit.train.folder import only_one

TEST = dict(test_accuracy=0.9, test_loss=0.3, seconds=20.0)
CONFIG = replace(PRESETS["digits"], width=8, depth=2, heads=2, mlp=8)
RECIPE = train.Recipe(epochs=10)
IN_PROGRESS = contextlib.ExitStack()  # the locks of runs that seem to go on; close it to end them


def epochs(count, top=0.9):
    """So many lines of metrics.jsonl."""
    return [
        dict(epoch=i + 1, loss=2 / (i + 1), accuracy=top - 0.5 / (i + 1), validation_loss=1.5 / (i + 1),
             validation_accuracy=top - 0.4 / (i + 1), lr=1e-3, gradient_norm=1.0, images_per_second=500.0,
             seconds=2.0 * (i + 1))
        for i in range(count)
    ]  # fmt: skip


def images(classes=tuple("0123456789"), shape=(8, 8, 1), count=40, name="digits"):
    """A data set of noise, each class in turn; the splits differ."""
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % len(classes)) for _ in range(3)
    ]
    return Dataset.of(name, classes, *splits)


def make_run(folder, rows, test=None, *, recipe=RECIPE, config=CONFIG, dataset=None, stopped=False, weights=True):
    """Write a run's folder as `train` does; returns it. One that is not finished or `stopped` is in progress, until
    IN_PROGRESS is closed."""
    dataset = dataset or images()
    folder.mkdir(parents=True)
    about = dict(
        recipe=asdict(recipe), model=models.to_dict(config), data=dataset.name, classes=list(dataset.classes),
        mean=list(dataset.mean), std=list(dataset.std),
    )  # fmt: skip
    (folder / "config.toml").write_text(tomli_w.dumps(about | {"machine": {"python": "3.12"}}), encoding="utf-8")
    if weights:
        tensors = {f"model.{name}": p.data for name, p in models.build(config).named_parameters()}
        progress = dict(epochs_done=len(rows), steps_done=0)
        checkpoint.save(folder / "checkpoint.safetensors", tensors, about | progress)
    write_metrics(folder, [*rows, *filter(None, [test])])
    if not (test or stopped):
        IN_PROGRESS.enter_context(only_one(folder))
    return folder


def write_metrics(folder, rows, torn=""):
    """metrics.jsonl with these rows, and what a killed process may have left of one more."""
    text = "".join(json.dumps(row) + "\n" for row in rows) + torn
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
