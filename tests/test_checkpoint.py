"""Checkpoints: whole after a kill, a full disk and a flipped bit, or else refused with a reason."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tinyvit.classifier import load as load_classifier
from tinyvit.train import checkpoint
from tinyvit.train.checkpoint import CheckpointError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, TENSORS, {"epoch": 3, "names": ["zero", "é"]})
    return path


def test_round_trip(path):
    tensors, about = checkpoint.load(path)
    assert about == {"epoch": 3, "names": ["zero", "é"]}
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_others_can_read_it(path):
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["a"], TENSORS["a"])


def test_every_flipped_byte_is_noticed(path):
    """One bit at each position of the file: damage is refused, wherever it sits."""
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            tensors, about = checkpoint.load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # a change that JSON ignores: then nothing that is read may differ
            assert about == {"epoch": 3, "names": ["zero", "é"]} and set(tensors) == set(TENSORS)
            for name, array in TENSORS.items():
                np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_truncated(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint.load(path)


def test_not_ours_and_not_there(path, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "none")
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(TENSORS, other)
    with pytest.raises(CheckpointError, match="format mark 'tinyvit 2', found 'none'"):
        checkpoint.load(other)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "text")


def test_others_may_read_what_the_umask_allows(path):
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o666 & ~checkpoint.umask()


def test_odd_names(tmp_path):
    for name in ("a**b.png", "[1].png", "ü 1.png"):
        checkpoint.write_atomically(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


def test_an_error_names_the_file(tmp_path):
    with pytest.raises(OSError) as caught:
        checkpoint.write_atomically(tmp_path / "none" / "file", b"x")
    assert caught.value.filename == str(tmp_path / "none" / "file")


@pytest.mark.skipif(os.name == "nt", reason="POSIX forces folders to the disk")
def test_file_systems_that_cannot_do_all(path, monkeypatch):
    """Protects: a run on a mount without permissions, or that refuses to force a folder to the disk: the file is whole
    all the same."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    fsync = os.fsync
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", lambda file: refuse() if stat.S_ISDIR(os.fstat(file).st_mode) else fsync(file))
    checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_one(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"a": np.ones(1000)}, {})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists() or not hasattr(os, "posix_fallocate"), reason="needs Linux")
def test_a_small_disk_for_real(path):
    """The process may write 4 kB files at most (ulimit -f): a real failing write, not a faked one."""
    code = (
        "import resource, signal, sys, numpy as np; from tinyvit.train import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: checkpoint.save(sys.argv[1], {'a': np.ones(10000)}, {})\n"
        "except OSError as error: print('refused:', error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout == "refused: File too large\n", done.stderr
    checkpoint.load(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


KILLS = 40
KILLER = """
import os, random, signal, sys, time
import numpy as np
from tinyvit.train import checkpoint

path, kills = sys.argv[1], int(sys.argv[2])
random.seed(0)
checkpoint.save(path, {f"t{i}": np.full(5_000, -1) for i in range(10)}, {"step": -1})
folder, caught = os.path.dirname(path), 0
for kill in range(kills):
    child = os.fork()
    if not child:
        step = 0
        while True:
            checkpoint.save(path, {f"t{i}": np.full(5_000, step) for i in range(10)}, {"step": step})
            step += 1
    time.sleep(random.uniform(0.005, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    caught += len(os.listdir(folder)) > 1
    tensors, about = checkpoint.load(path)
    assert len(tensors) == 10 and all((t == about["step"]).all() for t in tensors.values()), "two steps mixed"
for name in os.listdir(folder):
    if name != os.path.basename(path):
        os.utime(os.path.join(folder, name), (0, 0))  # left over for hours
checkpoint.save(path, {"t": np.zeros(1)}, {"step": 0})
print(caught, os.listdir(folder))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")
def test_40_kills_leave_40_whole_checkpoints(tmp_path):
    """A process that does nothing but write checkpoints, killed at 40 random moments: each time the file is
    whole and of
    one step, and what a kill left beside it is cleared by the next save."""
    path = tmp_path / "checkpoint.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLER, path, str(KILLS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    caught, rest = done.stdout.split(maxsplit=1)
    assert int(caught) > 0, "some kill must hit a process in the middle of writing"
    assert rest.strip() == "['checkpoint.safetensors']"


def test_a_checkpoint_that_does_not_fit_its_configuration(tmp_path):
    """A classifier names what is wrong, not where Python stumbled."""
    path = tmp_path / "checkpoint.safetensors"
    for about in ({}, {"model": {"width": 8, "heads": 3}}, {"model": {"unknown": 1}}, {"model": {}, "classes": []}):
        checkpoint.save(path, TENSORS, about)
        with pytest.raises(CheckpointError, match="do not fit"):
            load_classifier(tmp_path)
