"""A run's folder, whose files are good at every moment, whatever happens to the process that writes them.

    config.toml              what the run is a function of: recipe, model, data; and the machine
    metrics.jsonl            a line for each epoch, the last one for the test
    checkpoint.safetensors   the run as it is now: all that it takes to use the model, and to go on
    best.safetensors         the same, after the epoch that did best on the validation images

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import hashlib
import json
import platform
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tomli_w

from tinyvit import kernels
from tinyvit.kernels.backend import numba
from tinyvit.models import to_dict
from tinyvit.train import checkpoint

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
METRICS = "metrics.jsonl"


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, or the run's folder is taken."""


def new_folder(data, parent="runs"):
    """Make and return the next free `runs/<data>-<n>`."""
    Path(parent).mkdir(parents=True, exist_ok=True)
    name, n = Path(str(data)).name or "run", 1
    while True:
        folder = Path(parent) / f"{name}-{n}"
        try:
            folder.mkdir()  # fails if another process was faster
            return folder
        except FileExistsError:
            n += 1


def empty_folder(folder):
    """The folder, made where it is missing. Raises TrainingError where there is something in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise TrainingError(
            f"the run's folder {folder} must be new or empty, so that nothing is lost; name another with --out"
        )
    return folder


def command_to_resume(folder):
    """What to type to go on with a run."""
    return f'tinyvit train --resume "{folder}"' if " " in str(folder) else f"tinyvit train --resume {folder}"


@contextlib.contextmanager
def way_on(folder):
    """What cannot be written while this run trains stops it; the OSError then says that nothing before is lost."""
    try:
        yield
    except OSError as error:
        kept = f"the last checkpoint is kept; when there is a remedy, go on: {command_to_resume(folder)}"
        raise OSError(error.errno, f"{error.strerror or error}; {kept}", error.filename) from None


def write_config(folder, recipe, config, dataset, origin=None):
    """Write config.toml: all that a run is a function of. Returns it as a dict, which the checkpoint holds too."""
    about = dict(
        recipe=asdict(recipe), model=to_dict(config), data=dataset.name, data_sha256=fingerprint(dataset),
        classes=list(dataset.classes), mean=list(dataset.mean), std=list(dataset.std),
        **({"origin": origin} if origin else {}), machine=machine(),
    )  # fmt: skip
    checkpoint.write_atomically(folder / "config.toml", tomli_w.dumps(about).encode())
    return about


def edited(folder, about):
    """A line for whoever has changed the recipe in config.toml, which is there to be read; else ""."""
    try:
        recipe = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["recipe"]
        names = [name for name, value in about["recipe"].items() if recipe.get(name) != value]
    except (OSError, ValueError, KeyError, AttributeError):  # not there, or no longer what it was
        names = ["all of it"]
    what = f"config.toml is not what it was ({', '.join(names)}), which changes nothing"
    return f"{what}: a run goes on by the recipe in its checkpoint" if names else ""


def fingerprint(dataset):
    """A hash of all images, labels and names of classes: the same for the same data, however they were come by."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images))
        digest.update(np.ascontiguousarray(split.labels))
    return digest.hexdigest()


def machine():
    """What a result depends on besides its recipe, to its last bits."""
    return dict(
        python=platform.python_version(), numpy=np.__version__, numba=getattr(numba, "__version__", "missing"),
        system=platform.platform(), kernels=kernels.backend(),
    )  # fmt: skip


def save_model(path, model, about, progress, state=()):
    """Write a checkpoint that `tinyvit.load` reads.

    Args:
        about: what `write_config` has returned.
        progress: a dict, how far the run is, with epochs_done among it.
        state: {name: array} of what training needs besides the model.
    """
    tensors = {f"model.{name}": p.data for name, p in model.named_parameters()} | dict(state)
    checkpoint.save(path, tensors, about | progress)


def log(folder, row):
    """Add a line to metrics.jsonl."""
    with open(folder / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_metrics(folder):
    """The rows of metrics.jsonl: a dict for each epoch, and one with test_accuracy at the end of a finished run. A line
    that a kill or a full disk has torn ends the list; where there is no file it is empty."""
    rows = []
    try:
        lines = (Path(folder) / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            break
    return rows


def cut_back(folder, epochs):
    """Take out of metrics.jsonl what comes after so many epochs; returns the rows that stay."""
    rows = [row for row in read_metrics(folder) if row.get("epoch", epochs + 1) <= epochs]
    checkpoint.write_atomically(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows
