"""Files of weights from anywhere: safetensors and npz, read without running or believing anything in them.

Both are the same idea: a list of names, types and shapes, then raw numbers. (A .pth or .bin file is a pickle, a program
that makes the weights when it runs, or does anything else. None is opened here.) The list says how much memory to take,
and a file from elsewhere may lie. So first the list is compared with the size of the file, and only then are numbers
read; what does not fit is a CheckpointError.

    safetensors   8 bytes: the length of the list; the list as JSON; the numbers, one array after the other
    npz           a zip file with one .npy file an array: a line of text that says type and shape, then the numbers

bfloat16, which NumPy has not, is the upper half of a float32: it is kept as two bytes a number ("V2") until
`as_float32` puts the lower half, zeros, behind it.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import json
import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tinyvit.train.checkpoint import CheckpointError

MOST_TEXT = 4 * 2**20  # bytes of a list or of settings; that of a ViT-H is 60 kB long
MOST_PACKED = 20  # times what a packed file holds may be larger than the file; weights hardly pack at all
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take as much memory to unpack as the file says
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "V2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")


def as_float32(array):
    """Numbers of any floating type as float32; bfloat16 exactly."""
    if array.dtype == "V2":
        return (np.ascontiguousarray(array).view("<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 too large becomes an infinity, which `load` finds
        return array.astype(np.float32, copy=False)


def is_floating(array):
    return array.dtype == "V2" or array.dtype.kind == "f"


def read_tensors(path):
    """{name: array} of a safetensors or an npz file, which one it is by what it begins with.

    Arrays of a safetensors file are views of the file, read when used. Raises CheckpointError that says what is wrong.
    """
    path = Path(path)
    refuse_pickles(path)
    with _reading(path):
        return _read_npz(path) if _is_zip(path) else _read_safetensors(path)[0]


def read_remarks(path):
    """The table of texts that a safetensors file may hold besides its arrays; of an npz an empty one. Raises
    CheckpointError as `read_tensors` does."""
    with _reading(path):
        return {} if _is_zip(path) else _read_safetensors(path)[1]


def _is_zip(path):
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_json(path):
    """A JSON file that holds a table, as a dict. Raises CheckpointError."""
    with _reading(path):
        if os.path.getsize(path) > MOST_TEXT:
            raise CheckpointError(f"{path} must be settings, and is larger than {MOST_TEXT:,} bytes")
        return _table(Path(path).read_bytes())


def refuse_pickles(path):
    if Path(path).suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, a program that runs when it is loaded, and tinyvit runs none. Convert it, if you "
            "trust it, where PyTorch is: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            "'model.safetensors')"
        )


@contextmanager
def _reading(path):
    """Whatever damaged bytes make of the readers is a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except Exception as error:  # json, zipfile and NumPy raise a dozen kinds
        reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as weights: {reason.splitlines()[0][:200]}") from None


def _table(text):
    """JSON text as a dict. A name that stands there twice is an error: which one counts, readers do not agree."""

    def unique(pairs):
        table = {}
        for name, value in pairs:
            if name in table:
                raise ValueError(f"{name[:60]!r} stands there twice")
            table[name] = value
        return table

    table = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(table, dict):
        raise ValueError("it must hold a table of names")
    return table


def _check_names(names):
    """ValueError for more names, or longer ones, than a model has: what is done with each takes time."""
    if len(names) > 100_000:
        raise ValueError("it has more arrays than any model")
    if longest := max((len(name) for name in names if len(name) > 300), default=0):
        raise ValueError(f"it has a name of {longest:,} characters, which no array has")


def _whole(value):
    return type(value) is int and value >= 0  # True is an int, too


# ---------------------------------------------------------------------------------------------- safetensors


def _read_safetensors(path):
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_TEXT):
            raise ValueError(
                f"it is no whole safetensors file, nor npz: a list of {length:,} bytes in a file of {size:,}"
            )
        table = _table(file.read(length))
    remarks = table.pop("__metadata__", {})
    _check_names(table)
    if not isinstance(remarks, dict):
        raise ValueError("its remarks must be a table")
    _check_places(table, size - 8 - length)
    # One map of the file for all arrays; a file of 0 numbers cannot be mapped.
    numbers = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.empty(0, np.uint8)
    tensors = {}
    for name, entry in table.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.asarray(numbers[begin:end]).view(TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, remarks


def _check_places(table, room):
    """ValueError unless the arrays lie one after the other, each as long as its shape says, and fill the room."""
    for name, entry in table.items():
        shape, place = (entry.get(key) if isinstance(entry, dict) else None for key in ("shape", "data_offsets"))
        if not isinstance(shape, list) or not all(map(_whole, shape)) or len(shape) > 8:
            raise ValueError(f"the shape of {name[:60]!r} must be whole numbers")
        if not isinstance(place, list) or len(place) != 2 or not all(map(_whole, place)):
            raise ValueError(f"the place of {name[:60]!r} must be two whole numbers")
        if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in TYPES:
            raise ValueError(f"{name[:60]!r} must hold numbers of a type among {', '.join(TYPES)}")
        if place[1] - place[0] != math.prod(shape) * np.dtype(TYPES[entry["dtype"]]).itemsize:
            raise ValueError(f"{name[:60]!r} does not take the room that its shape and type say")
    end = 0
    for begin, next_end in sorted(entry["data_offsets"] for entry in table.values()):
        if begin != end:
            raise ValueError("its arrays must lie one after the other, without gaps and without overlaps")
        end = next_end
    if end != room:
        raise ValueError(f"its arrays take {end:,} bytes, and {room:,} are there")


# ---------------------------------------------------------------------------------------------- npz


def _read_npz(path):
    tensors, size = {}, os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_names([member.filename for member in members])
        if sum(member.file_size for member in members) > MOST_PACKED * size:
            raise ValueError(f"it says that it unpacks to more than {MOST_PACKED} times its size, which weights do not")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in tensors:
                raise ValueError(f"{name[:60]!r} is in it twice")
            if member.flag_bits & 1 or member.compress_type not in PACKED:
                raise ValueError(f"{name[:60]!r} is encrypted, or packed in a way that NumPy never does")
            with archive.open(member) as file:
                tensors[name] = _read_npy(file, name, member.file_size)
    return tensors


def _read_npy(file, name, size):
    """One array of a file of so many bytes. Types that hold objects would be a pickle: refused."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name[:60]!r} is of version {version} of npy")
    shape, by_columns, dtype = readers[version](file)
    if dtype.hasobject or dtype.kind not in "fiubV" or dtype.fields or dtype.kind == "V" and dtype.itemsize != 2:
        raise ValueError(f"{name[:60]!r} must hold numbers, got {str(dtype)[:60]}")
    count = math.prod(shape)
    if any(side < 0 for side in shape) or count * dtype.itemsize != size - file.tell() or len(shape) > 8:
        raise ValueError(f"{name[:60]!r} must have the size that its shape {str(shape)[:60]} says")
    content = file.read()
    if len(content) != count * dtype.itemsize:
        raise ValueError(f"{name[:60]!r} is shorter than it says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")
