"""A run's folder, whose files are good at every moment, whatever happens to the process that writes them.

    config.toml              what the run is a function of: recipe, model, data; and the machine
    metrics.jsonl            a line for each epoch, the last one for the test
    checkpoint.safetensors   the run as it is now: all that it takes to use the model, and to go on
    best.safetensors         the same, after the epoch that did best on the validation images
    lock                     empty; locked by the process that trains here, as long as it does

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import hashlib
import os
import platform
import re
import time
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tomli_w

from tinyvit import kernels
from tinyvit.kernels.backend import numba
from tinyvit.models import to_dict
from tinyvit.train import checkpoint

CONFIG = "config.toml"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
LOCK = "lock"

if os.name == "nt":
    import msvcrt

    def _lock(file, shared=False):
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file, shared=False):
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


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


@contextlib.contextmanager
def only_one(folder, patience=0.5):
    """One process at a time trains in a folder; two would write their metrics among each other's. The lock is the
    system's, which lets go of it when the process ends, however it does; so nothing stale can stay.

    Raises TrainingError where another process holds it for longer than so many seconds: `being_trained` does for less
    than one. Where there are no locks (some network file systems), or no file can be made, it is done without.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            file, end = held.enter_context(open(Path(folder) / LOCK, "a")), time.monotonic() + patience
            while True:
                try:
                    _lock(file)
                    break
                except (BlockingIOError, PermissionError):  # Windows' word for it is the second
                    if time.monotonic() > end:
                        raise TrainingError(
                            f"another process is training in {folder}; wait for its end, or stop it"
                        ) from None
                    time.sleep(0.02)
        yield


def being_trained(folder):
    """Whether a process holds the folder's lock; where the file system has none, nobody knows, and it is assumed."""
    try:
        with open(Path(folder) / LOCK, "rb") as file:
            _lock(file, shared=True)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def quoted(path):
    """A path as a word of a command: in quotation marks where it has blanks, or else what a shell takes for its own."""
    return str(path) if re.fullmatch(r"[\w./\\:~+-]+", str(path)) else f'"{path}"'


def command_to_resume(folder):
    """What to type to go on with a run."""
    return f"tinyvit train --resume {quoted(folder)}"


@contextlib.contextmanager
def way_on(folder):
    """What cannot be written while this run trains stops it; the OSError then says that nothing before is lost."""
    try:
        yield
    except OSError as error:
        kept = f"the last checkpoint is kept; when there is a remedy, go on: {command_to_resume(folder)}"
        raise OSError(error.errno, f"{error.strerror or error}; {kept}", error.filename) from None


def write_config(folder, recipe, config, dataset, data_sha256, origin=None):
    """Write config.toml: all that a run is a function of. Returns it as a dict, which the checkpoint holds too.
    `data_sha256` is the data set's `fingerprint`."""
    about = dict(
        recipe=asdict(recipe), model=to_dict(config), data=dataset.name, data_sha256=data_sha256,
        classes=list(dataset.classes), mean=list(dataset.mean), std=list(dataset.std),
        **({"origin": origin} if origin else {}), machine=machine(),
    )  # fmt: skip
    checkpoint.write_atomically(folder / CONFIG, tomli_w.dumps(about).encode())
    return about


def edited(folder, about):
    """A line for whoever has changed the recipe in config.toml, which is there to be read; else "". Where the file is
    missing it is written anew, from what the checkpoint says the run is a function of."""
    try:
        recipe = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))["recipe"]
        names = [name for name, value in about["recipe"].items() if recipe.get(name) != value]
    except FileNotFoundError:
        checkpoint.write_atomically(folder / CONFIG, tomli_w.dumps(about).encode())
        return f"{CONFIG} was missing; written anew, as the checkpoint has it"
    except (OSError, ValueError, KeyError, AttributeError):  # no longer what it was
        names = ["all of it"]
    what = f"{CONFIG} is not what it was ({', '.join(names)}), which changes nothing"
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
