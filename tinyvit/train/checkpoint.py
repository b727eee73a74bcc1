"""Checkpoints: files that are always whole.

A process can die at any instruction: a kill, a full disk, a flat battery. Writing over the old checkpoint would
leave neither. So the new one is written beside it under a temporary name, forced to the disk, and renamed into
place; a rename is one step to the file system, so a reader finds the old file or the new one, never half of
one.

The format is safetensors: a JSON header, then raw arrays. Loading it runs no code (a pickle can run anything),
and PyTorch, JAX and Hugging Face read it. It does not notice a flipped bit; the hash in its metadata does.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

FORMAT = "tinyvit 1"


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or not one of ours."""


def write_atomically(path, content):
    """Write bytes to `path` so that at every moment the file there is the old one or the new one, whole.

    Raises OSError (disk full, read-only folder) with the old file untouched and nothing left beside it.
    """
    path = Path(path)
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed just here
        with contextlib.suppress(OSError):
            left_over.unlink()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # without it, a power cut can leave the new name with no content
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the rename itself is data of the folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path, tensors, metadata):
    """Write {name: array} and a JSON-able dict as one safetensors file, atomically."""
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    if header.get("format") != FORMAT:
        found = header.get("format", "none")
        raise CheckpointError(
            f"{path} must carry the format mark {FORMAT!r}, found {found!r}: not written by this version"
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
