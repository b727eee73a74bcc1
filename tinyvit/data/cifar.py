"""CIFAR's binary files: records of one or two label bytes and 3,072 pixels, inside a tar archive or unpacked.

    CIFAR-10      label                    1024 red  1024 green  1024 blue
    CIFAR-100     coarse label  label      1024 red  1024 green  1024 blue

CIFAR is also offered as Python pickles. A pickle is a program that the loading computer runs, so nobody
should load one that came from elsewhere; the binary version holds the same pixels. An archive has its own
tricks (members that are links, that point out of the folder, that unpack to terabytes), so nothing is ever
extracted: the few members that we know by name are streamed into arrays of known size, and all the rest may
be small change only.
"""

import gzip
import os
import tarfile

import numpy as np

from tinyvit.data.dataset import FRESH, DataError, reading
from tinyvit.data.idx import read_exactly

PIXELS = 3 * 32 * 32
SPARE = 1 << 20  # bytes that an archive may hold beside the members we want: a readme, names


def read_cifar(path, folder, members, label_bytes, classes):
    """Read the record files `members`, {name: count}; returns {name: uint8 (count, label_bytes + 3072)}.

    `path` is either the .tar.gz archive, in which the members lie in `folder`, or the first of the unpacked
    files; the others then lie beside it. Raises DataError, naming the file, for a member that is missing, no
    regular file, of another size than its records take, or that holds a label >= `classes`.
    """
    sizes = {name: count * (label_bytes + PIXELS) for name, count in members.items()}
    if path.name in members:
        contents = {name: _read_file(path.with_name(name), size) for name, size in sizes.items()}
        places = {name: path.with_name(name) for name in members}
    else:
        contents = _read_tar(path, {f"{folder}/{name}": size for name, size in sizes.items()})
        contents = {name.split("/")[1]: content for name, content in contents.items()}
        places = {name: f"{path}, member {folder}/{name}" for name in members}
    records = {name: contents[name].reshape(-1, label_bytes + PIXELS) for name in members}
    for name, record in records.items():
        labels = record[:, label_bytes - 1]
        if labels.max() >= classes:
            where = int(np.argmax(labels >= classes))
            raise DataError(
                f"{places[name]}: labels must lie in 0..{classes - 1}, got {labels[where]} in record {where}; {FRESH}"
            )
    return records


def split_records(parts, label_bytes):
    """Records, a list of (M, label_bytes + 3072) arrays -> images (ΣM, 32, 32, 3) uint8, labels (ΣM,) int64.

    Of two labels the finer is taken. Planes of colour become pixels of three colours.
    """
    images = np.empty((sum(map(len, parts)), 32, 32, 3), np.uint8)
    start = 0
    for records in parts:
        planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
        images[start : start + len(records)] = planes.transpose(0, 2, 3, 1)
        start += len(records)
    return images, np.concatenate([records[:, label_bytes - 1] for records in parts]).astype(np.int64)


def _read_file(path, size):
    with reading(path, "a CIFAR binary file"), open(path, "rb") as stream:
        actual = os.fstat(stream.fileno()).st_size
        if actual != size:
            raise DataError(f"{path} must be exactly {size:,} bytes long, got {actual:,}; {FRESH}")
        return read_exactly(stream, size, path)


def _read_tar(path, sizes):
    contents = {}
    with reading(path, "a .tar.gz archive of CIFAR's binary version"), gzip.open(path, "rb") as unpacked:
        stream = _Capped(unpacked, sum(sizes.values()) + SPARE, path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # "|": forward only, one member at a time
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in sizes:
                    continue
                if not member.isreg() or name in contents:
                    raise DataError(
                        f"{path}: {name} must be one regular file, not a link, folder or second copy; {FRESH}"
                    )
                if member.size != sizes[name]:
                    raise DataError(f"{path}: {name} must have {sizes[name]:,} bytes, got {member.size:,}; {FRESH}")
                contents[name] = read_exactly(archive.extractfile(member), member.size, path)
        while stream.read(SPARE):  # to the end, where gzip's checksum is
            pass
    missing = [name for name in sizes if name not in contents]
    if missing:
        raise DataError(f"{path}: must contain {', '.join(sizes)}; missing: {', '.join(missing)}; {FRESH}")
    return contents


class _Capped:
    """A stream that refuses to give more than `limit` bytes in all: a bomb's fuse."""

    def __init__(self, stream, limit, path):
        self.stream, self.left, self.path = stream, limit, path

    def read(self, size):
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"{self.path} unpacks to more than CIFAR's files need; {FRESH}")
        return data
