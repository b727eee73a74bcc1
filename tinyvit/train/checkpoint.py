"""Checkpoints: files that are always whole.

A process can die at any instruction: a kill, a full disk, a flat battery. Writing over the old checkpoint would leave
neither. So the new one is written beside it under a temporary name, forced to the disk, and renamed into place; a
rename is one step to the file system, so a reader finds the old file or the new one, never half of one.

The format is safetensors: a JSON header, then raw arrays. Loading it runs no code (a pickle can run anything),
and PyTorch, JAX and Hugging Face read it. It does not notice a flipped bit; the hash in its metadata does.

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

FORMAT = "tinyvit 2"
OLDER = ("tinyvit 1",)  # the model is where it was; what a run needs to go on was not kept whole


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or not one of ours."""


def write_atomically(path, content):
    """Write bytes to `path` so that at every moment the file there is the old one or the new one, whole.

    Raises OSError (disk full, read-only folder) that names `path`; the old file is untouched, nothing left beside it.
    """
    path = Path(path)
    clear_left_overs(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # without it, a power cut can leave the new name with no content
        with contextlib.suppress(OSError):  # not each file system has permissions
            os.chmod(temporary, 0o666 & ~umask())  # mkstemp makes files that only their owner may read
        patiently(os.replace, temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if os.name == "posix":  # the rename itself is data of the folder
        with contextlib.suppress(OSError):  # which some network file systems do not force to the disk when asked
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def patiently(act, *arguments, patience=2.0):
    """act(*arguments), which renames or reads a file. Windows refuses it while another program has the file open, such
    as a virus scanner, or renames it: then it is tried again for so many seconds."""
    end = time.monotonic() + (patience if os.name == "nt" else 0)
    while True:
        try:
            return act(*arguments)
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def clear_left_overs(path, age=3600):
    """Remove what a process that was killed while it made `path` has left: what nobody can still be writing."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left_over.stat().st_mtime > age:
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()


def umask():
    """The permissions that files of this process must not have."""
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return mask


def save(path, tensors, metadata):
    """Write {name: array} and a JSON-able dict as one safetensors file, atomically."""
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    about = json.dumps(metadata)
    header = {"format": FORMAT, "sha256": _digest(tensors, about), "tinyvit": about}
    write_atomically(path, safetensors.numpy.save(tensors, header))


def load(path):
    """Read what `save` wrote: ({name: array}, metadata). Raises CheckpointError that says what is wrong with
    the file."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    except (TypeError, AttributeError) as error:  # bfloat16 and the like, which NumPy has not
        raise CheckpointError(f"{path} holds a kind of number that NumPy cannot: {error}") from None
    if header.get("format") not in (FORMAT, *OLDER):
        found = header.get("format", "none")
        raise CheckpointError(
            f"{path} must carry the format mark {FORMAT!r}, found {found!r}: written by a newer tinyvit, or not by it"
        )
    about = header.get("tinyvit", "")
    if header.get("sha256") != _digest(tensors, about):
        raise CheckpointError(f"{path} is damaged: its content does not match the hash stored with it")
    return tensors, json.loads(about)


def _digest(tensors, about):
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
