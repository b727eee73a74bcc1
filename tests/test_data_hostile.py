"""200 damaged or malicious data files: each must give one DataError that names the file, and cost little
memory.

A generator a kind of damage; all are seeded, so that a failure can be replayed by its number.
"""

import gzip
import io
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import DataError, fetch, load
from tinyvit.data.cifar import PIXELS
from tinyvit.data.idx import header
from tinyvit.data.sources import IDX_NAMES, cifar_source, idx_source

TOTAL = 200
MEMORY = 12 << 20  # bytes; the healthy files below hold 0.2 MB
IMAGES, LABELS = IDX_NAMES[:2]
RECORD = 1 + PIXELS
STORED = 15  # where the data of an uncompressed .gz begin; every bit from here on counts
NO_CHECKSUMS = ["sha256:00"] * 4  # only the format can give a hostile file away
IDX = idx_source(("a", "b", "c"), NO_CHECKSUMS, (), ("set",), train=30, test=10, side=8, validation=6)
CIFAR = cifar_source(
    ("a", "b", "c"),
    "set.tar.gz",
    "bin",
    {"a.bin": 20, "b.bin": 20},
    {"t.bin": 20},
    1,
    NO_CHECKSUMS[:3],
    (),
    ("set",),
    5,
)


def idx_files():
    rng = np.random.default_rng(0)
    return {
        IMAGES: header((30, 8, 8)) + rng.bytes(30 * 64),
        LABELS: header((30,)) + bytes([0, 1, 2] * 10),
        IDX_NAMES[2]: header((10, 8, 8)) + rng.bytes(10 * 64),
        IDX_NAMES[3]: header((10,)) + bytes([0, 1, 2, 0, 1] * 2),
    }


def cifar_files():
    rng = np.random.default_rng(0)
    return {
        name: b"".join(bytes([i % 3]) + rng.bytes(PIXELS) for i in range(20)) for name in ("a.bin", "b.bin", "t.bin")
    }


def tarred(members, level=0):
    """A .tar.gz of [(TarInfo or name, content)]."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=level) as archive:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def good_members():
    return [(f"bin/{name}", content) for name, content in cifar_files().items()]


def flip(data, position, rng):
    return data[:position] + bytes([data[position] ^ int(rng.integers(1, 256))]) + data[position + 1 :]


def cut(data, rng):
    return data[: int(rng.integers(0, len(data)))]


# Each generator yields (name of the hostile file, its content): the other files of the set stay healthy.


def raw_idx(rng):
    for name in (IMAGES, LABELS):
        good = idx_files()[name]
        size = 16 if name == IMAGES else 8
        for _ in range(8):
            yield name, cut(good, rng)
        for _ in range(8):
            yield name, flip(good, int(rng.integers(size)), rng)
        for extra in (b"\0", rng.bytes(1000), good):
            yield name, good + extra
        for start in (b"\x80\4", b"PK\3\4", b"<html>", b"\0\0\x0d\3", b"\0\0\x08\xff"):
            yield name, start + good[len(start) :]
        yield name, b""
        yield name, good[:1]
    for dims in ((2**32 - 1,) * 3, (2**31, 2**31, 2), (30, 2**32 - 1, 1), (0, 0, 0), (30, 8, 7), (31, 8, 8)):
        yield IMAGES, header(dims) + rng.bytes(30 * 64)
    yield LABELS, header((30,)) + bytes([3]) * 30
    yield LABELS, header((30,)) + bytes(29) + b"\xff"


def packed_idx(rng):
    for name in (IMAGES, LABELS):
        raw = idx_files()[name]
        good = gzip.compress(raw, compresslevel=0, mtime=0)
        for _ in range(10):
            yield f"{name}.gz", cut(good, rng)
        for _ in range(9):
            yield f"{name}.gz", flip(good, int(rng.integers(STORED, len(good))), rng)
        for position in (0, 1, 2):
            yield f"{name}.gz", flip(good, position, rng)
        yield f"{name}.gz", good + b"rubbish"
        yield f"{name}.gz", good + good
        yield f"{name}.gz", gzip.compress(cut(raw, rng))
    bomb = gzip.compress(bytes(32 << 20), compresslevel=1)
    yield f"{IMAGES}.gz", bomb
    yield f"{IMAGES}.gz", gzip.compress(idx_files()[IMAGES] + bytes(32 << 20), compresslevel=1)
    yield f"{IMAGES}.gz", gzip.compress(header((2**32 - 1,) * 3)) + bomb
    yield f"{LABELS}.gz", gzip.compress(header((30,)) + b"\7" * 30)


def raw_cifar(rng):
    good = cifar_files()["a.bin"]
    for _ in range(8):
        yield "a.bin", cut(good, rng)
    for extra in (b"\0", rng.bytes(RECORD), rng.bytes(100)):
        yield "b.bin", cifar_files()["b.bin"] + extra
    for label in (3, 10, 255):
        yield "t.bin", flip_label(cifar_files()["t.bin"], int(rng.integers(20)), label)
    yield "a.bin", b""


def flip_label(data, record, label):
    return data[: record * RECORD] + bytes([label]) + data[record * RECORD + 1 :]


def archives(rng):
    good, members = tarred(good_members()), good_members()
    for _ in range(14):
        yield "set.tar.gz", cut(good, rng)
    for _ in range(10):
        yield "set.tar.gz", flip(good, int(rng.integers(STORED, len(good))), rng)
    for i in range(3):
        yield "set.tar.gz", tarred(members[:i] + members[i + 1 :])  # one is missing
        yield "set.tar.gz", tarred(members[:i] + [(members[i][0], b"short")] + members[i + 1 :])
        yield "set.tar.gz", tarred([*members, members[i]])  # one comes twice
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        link = tarfile.TarInfo("bin/a.bin")
        link.type, link.linkname = kind, "/etc/hostname"
        yield "set.tar.gz", tarred([(link, b""), *members[1:]])
    for place in ("../bin/a.bin", "/bin/a.bin", "a.bin", "other/a.bin"):  # right name, wrong place
        yield "set.tar.gz", tarred([(place, members[0][1]), *members[1:]])
    for label in (3, 200):
        yield "set.tar.gz", tarred([(members[0][0], flip_label(members[0][1], 5, label)), *members[1:]])
    yield "set.tar.gz", tarred([("bin/huge.bin", bytes(32 << 20)), *members], level=1)  # a bomb before
    yield "set.tar.gz", tarred([*members, ("bin/huge.bin", bytes(32 << 20))], level=1)  # and behind
    yield "set.tar.gz", tarred([(f"bin/{i}", b"") for i in range(5000)] + members)  # small change, much of it
    comment = tarfile.TarInfo("bin/a.bin")
    comment.pax_headers = {"comment": "x" * (24 << 20)}  # tarfile reads it into memory
    comment.size = len(members[0][1])
    yield "set.tar.gz", tarred([(comment, members[0][1]), *members[1:]], level=1)
    yield "set.tar.gz", gzip.compress(rng.bytes(5000))
    yield "set.tar.gz", rng.bytes(5000)
    yield "set.tar.gz", gzip.compress(b"")
    yield "set.tar.gz", b""


def pictures(rng):
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    for kind in ("png", "jpeg", "gif", "bmp"):
        raw = io.BytesIO()
        image.save(raw, kind)
        good = raw.getvalue()
        for part in rng.uniform(0, 0.7, 3):
            yield f"0.{kind}", good[: int(part * len(good))]
    for kind in ("png", "jpg", "webp", "tiff"):
        yield f"0.{kind}", rng.bytes(500)
    raw = io.BytesIO()
    image.save(raw, "png")
    for width, height in ((50_000, 50_000), (10_000, 10_000), (0, 5)):  # a small PNG that claims to be huge
        claimed = bytearray(raw.getvalue())
        claimed[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        claimed[29:33] = zlib.crc32(claimed[12:29]).to_bytes(4, "big")
        yield "0.png", bytes(claimed)


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def hostile_sets(folder):
    """Lay out each set in a sub-folder; yield (number, what to load, root, the hostile file's name)."""
    number = 0
    kinds = [
        ("idx", raw_idx, idx_files), ("idx", packed_idx, idx_files), ("cifar", raw_cifar, cifar_files),
        ("cifar", archives, dict), ("pictures", pictures, dict),
    ]  # fmt: skip
    for name, generator, healthy in kinds:
        for hostile, content in generator(np.random.default_rng(number)):
            place = folder / str(number)
            files = {other: good for other, good in healthy().items() if not hostile.startswith(other)}
            if name == "pictures":
                for label in ("cat", "dog"):
                    write(place / label, {f"{i}.png": SMALL for i in range(1, 4)})
                write(place / "dog", {hostile: content})
                yield number, place, None, hostile
            else:
                write(place, files | {hostile: content})
                yield number, name, place, hostile
            number += 1


def small_png():
    raw = io.BytesIO()
    Image.new("RGB", (16, 16)).save(raw, "png")
    return raw.getvalue()


SMALL = small_png()


@pytest.fixture(autouse=True)
def sources(monkeypatch, tmp_path):
    monkeypatch.setitem(fetch.SOURCES, "idx", IDX)
    monkeypatch.setitem(fetch.SOURCES, "cifar", CIFAR)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("TINYVIT_DATA", raising=False)


@pytest.mark.filterwarnings("ignore:.*another version:UserWarning")
def test_the_healthy_files_load(tmp_path):
    """Protects the test below from passing because nothing loads at all."""
    write(tmp_path / "idx", idx_files())
    assert len(load("idx", root=tmp_path / "idx", download=False).train) == 24
    write(tmp_path / "cifar", cifar_files())
    assert len(load("cifar", root=tmp_path / "cifar", download=False).train) == 35
    write(tmp_path / "archive", {"set.tar.gz": tarred(good_members())})
    assert len(load("cifar", root=tmp_path / "archive", download=False).train) == 35
    for label in ("cat", "dog"):
        write(tmp_path / "pictures" / label, {f"{i}.png": SMALL for i in range(4)})
    assert len(load(tmp_path / "pictures").train) == 6


def test_200_hostile_files_give_200_clear_errors(tmp_path):
    """Protects: exactly DataError, the file's name in it, bounded memory, and nothing left in the cache."""
    load_error = {}
    count = 0
    tracemalloc.start()
    try:
        for number, what, root, hostile in hostile_sets(tmp_path):
            count += 1
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            try:
                load(what, root=root, download=False)
                load_error[number] = f"{hostile}: loaded"
            except DataError as error:
                if hostile not in str(error):
                    load_error[number] = f"{hostile} is not named in: {error}"
            except BaseException as error:
                load_error[number] = f"{hostile}: {error!r}"
            grown = tracemalloc.get_traced_memory()[1] - before
            if grown > MEMORY:
                load_error[number] = f"{hostile}: {grown:,} bytes of memory"
    finally:
        tracemalloc.stop()
    assert not load_error, "\n".join(f"{number}: {what}" for number, what in load_error.items())
    assert count == TOTAL
    assert not (tmp_path / "cache").exists()


def test_a_bomb_is_called_one(tmp_path):
    """Protects: the cap on unpacked bytes is what stops it, not a later accident."""
    write(
        tmp_path / "bomb",
        {"set.tar.gz": tarred([("bin/huge.bin", bytes(4 << 20)), *good_members()], level=1)},
    )
    with pytest.raises(DataError, match="set.tar.gz unpacks to more"):
        load("cifar", root=tmp_path / "bomb", download=False)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """Protects: the operating system's refusal, too, becomes a DataError with the file's name."""
    write(tmp_path / "idx", idx_files())

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=f"{Path(IMAGES).name}.*Permission denied"):
        load("idx", root=tmp_path / "idx", download=False)
