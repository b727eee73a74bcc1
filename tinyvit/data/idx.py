"""The IDX format of MNIST, read as if every byte might lie.

    offset 0    0 0 8 n            magic: 8 means unsigned bytes, n dimensions
    offset 4    d1 … dn            each a big-endian uint32
    then        d1 · … · dn bytes, last dimension fastest

A reader that believes the header can be made to allocate 2⁶⁴ bytes by a file of twenty. We know which data
set we want, so the header must say exactly that, and then exactly so many bytes must follow: a gzip bomb is
left unread after the first byte too many.
"""

import gzip
import math

import numpy as np

from tinyvit.data.dataset import FRESH, DataError, reading

CHUNK = 1 << 20


def header(shape):
    """The bytes that an IDX file of unsigned bytes with this shape starts with."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(int(d).to_bytes(4, "big") for d in shape)


def read_idx(path, shape):
    """The uint8 array of exactly `shape` that an IDX file holds. Gzipped or raw is told by the first bytes.

    Raises DataError, naming the file, for another magic, type or shape, and for a byte too few or too many.
    """
    with reading(path, "an IDX file, raw or gzipped"), _open(path) as stream:
        _check_header(stream.read(len(header(shape))), shape, path)
        return read_exactly(stream, math.prod(shape), path).reshape(shape)


def read_labels(path, count, classes):
    """The `count` labels of an IDX file, uint8. DataError as in `read_idx`, and for a label >= `classes`."""
    labels = read_idx(path, (count,))
    if labels.max() >= classes:
        where = int(np.argmax(labels >= classes))
        raise DataError(
            f"{path}: labels must lie in 0..{classes - 1}, got {labels[where]} at position {where}; {FRESH}"
        )
    return labels


def read_exactly(stream, size, path):
    """The next `size` bytes of a binary stream as a uint8 array; DataError if that is not where the stream ends."""
    data = np.empty(size, np.uint8)
    view, got = memoryview(data), 0
    while got < size:
        count = stream.readinto(view[got : got + CHUNK])
        if not count:
            raise DataError(f"{path} is cut off: it must go on for {size:,} bytes, got {got:,}; {FRESH}")
        got += count
    if stream.read(1):  # at the end, this is also where gzip compares its checksum
        raise DataError(f"{path} is too long: it must end after {size:,} bytes of data, got more; {FRESH}")
    return data


def _open(path):
    raw = open(path, "rb")
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if not packed:
        return raw
    raw.close()
    return gzip.open(path, "rb")


def _check_header(head, shape, path):
    expected = header(shape)
    if head == expected:
        return
    if head[:4] != expected[:4]:
        got = " ".join(map(str, head[:4])) or "nothing"
        raise DataError(
            f"{path} must start with the bytes 0 0 8 {len(shape)} (IDX, unsigned bytes, dimensions), got {got}; {FRESH}"
        )
    if len(head) < len(expected):
        raise DataError(f"{path} is cut off within its header of {len(expected)} bytes; {FRESH}")
    dims = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
    must, says = (" x ".join(map(str, d)) for d in (shape, dims))
    raise DataError(f"{path} must hold {must} bytes, but its header says {says}; {FRESH}")
