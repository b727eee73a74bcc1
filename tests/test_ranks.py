"""Several processes train as one: the same bits; what stops one of them stops all, and nothing is lost.

The jobs are those of tests/mpi_job.py, and the command itself, under mpiexec with 1 thread each."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mpi_job
import numpy as np
import pytest
from faults import rows

from tinyvit import train
from tinyvit.cli import main
from tinyvit.train import checkpoint, ranks
from tinyvit.train.shards import tree

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None,
    reason="needs mpi4py and mpiexec: pip install 'tinyvit[mpi]'",
)
TIMES = ("seconds", "images_per_second")


def run(size, *command, timeout=120):
    """`mpiexec -n SIZE python …`, which must end by itself: a CompletedProcess."""
    command = [MPIEXEC, "-n", str(size), sys.executable, *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def job(what, folder, size=2):
    """Run a function of mpi_job."""
    folder.mkdir()
    return run(size, mpi_job.__file__, what, folder)


def contents(folder, name=train.CHECKPOINT):
    """(tensors, numbers) of a checkpoint, without times."""
    tensors, about = checkpoint.load(folder / name)
    return tensors, {key: value for key, value in about.items() if "seconds" not in key}


def metrics(folder):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows(folder)]


def assert_same_runs(a, b):
    """Both checkpoints and the metrics of two runs' folders are equal to the last bit."""
    for name in (train.CHECKPOINT, train.BEST):
        (tensors, numbers), (others, other_numbers) = contents(a, name), contents(b, name)
        assert numbers == other_numbers and tensors.keys() == others.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(array, others[key], err_msg=f"{name}: {key}")
    assert metrics(a) == metrics(b) and len(metrics(a)) == 6


# ------------------------------------------------------------------------------------------ without MPI


@pytest.mark.parametrize("count", range(1, 10))
def test_the_tree_sums_all(count):
    x = [2**i for i in range(count)]
    for i, j in tree(count):
        x[i] += x[j]
    assert x[0] == 2**count - 1


@pytest.mark.parametrize("share", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_branches_can_be_summed_apart(share, size):
    """The rule behind equal bits: first each rank's branch, then these, is the whole tree, term by term."""

    def total(terms):
        for i, j in tree(len(terms)):
            terms[i] = f"({terms[i]} + {terms[j]})"
        return terms[0]

    names = [str(i) for i in range(share * size)]
    assert total([total(names[r * share : (r + 1) * share]) for r in range(size)]) == total(list(names))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"}, (1, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # in a batch script, outside of srun
        ({"PMI_RANK": "", "PMI_SIZE": "x"}, (0, 1)),
    ],
)
def test_who_has_started_us(variables, expected, monkeypatch):
    for name in (name for names in ranks.LAUNCHERS for name in names):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.launched() == expected


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_mpiexec_without_mpi4py(rank, lines, monkeypatch, capsys, tmp_path):
    """One of the processes says what is missing, and nothing is begun."""
    monkeypatch.setenv("PMI_RANK", str(rank))
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # importing it fails
    ranks.job.cache_clear()
    try:
        assert main(["train", "--out", str(tmp_path / "run")]) == 1
    finally:
        ranks.job.cache_clear()
    said = capsys.readouterr().err
    assert said.count("\n") == lines and ("tinyvit[mpi]" in said) == (lines == 1)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ the same results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of `mpi_job.equality`, of one process."""
    folder = tmp_path_factory.mktemp("alone")
    mpi_job.equality(folder)
    return folder


@mpi
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_change_not_one_bit(size, alone, tmp_path):
    """20 steps with dropout, augmentation, average; and batch norm, with a last batch smaller than the shards: weights,
    moments, statistics, losses and validation. In another order of the sum, losses within 1e-6."""
    done = job("equality", tmp_path / "job", size)
    assert done.returncode == 0, done.stderr
    for name in ("vit", "muon", "batch-norm"):
        assert_same_runs(tmp_path / "job" / name, alone / name)
    if size < 4:
        other, ours = metrics(tmp_path / "job" / "uneven"), metrics(alone / "uneven")
        for theirs, row in zip(other[:-1], ours[:-1], strict=True):
            assert theirs["loss"] == pytest.approx(row["loss"], rel=1e-6)


@mpi
def test_a_drifting_rank_is_taken_back(tmp_path):
    done = job("drifting", tmp_path / "job")
    assert done.returncode == 0, done.stderr
    a, b = (np.load(tmp_path / "job" / f"bias-{rank}.npy") for rank in (0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a).max() < 0.9


# ------------------------------------------------------------------------------------------ what goes wrong


@mpi
def test_unlike_ranks_are_refused(tmp_path):
    """Protects: training on other data or by another recipe on one of the machines."""
    done = job("unlike", tmp_path / "job")
    said = {(tmp_path / "job" / f"said-{rank}").read_text(encoding="utf-8") for rank in (0, 1)}
    assert done.returncode == 0 and len(said) == 1 and not (tmp_path / "job" / "never").exists()
    (words,) = said
    assert "rank 1" in words and "lr (0.005, not 0.004)" in words and "images" in words and "weights" not in words


@mpi
def test_all_ranks_know_the_culprit(tmp_path):
    """Protects: the ranks whose own shards are finite would wait for ever for the one that has raised."""
    done = job("diverging", tmp_path / "job")
    assert done.returncode == 0, done.stderr
    said = {(tmp_path / "job" / f"said-{rank}").read_text(encoding="utf-8") for rank in (0, 1)}
    assert len(said) == 1 and "no single op" not in said.pop()


@mpi
def test_an_error_on_one_rank_ends_the_job(tmp_path):
    """It is said, with the rank, and the other one does not wait for ever."""
    done = job("failing", tmp_path / "job", 2)
    assert done.returncode != 0
    assert "rank 1 of 2: " in done.stderr and "missing" in done.stderr
    assert "the last checkpoint is kept" in done.stderr and "Traceback" not in done.stderr
    assert train.read_saved(tmp_path / "job" / "run").progress.steps_done == 4


@mpi
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on Windows")
@pytest.mark.parametrize(("how", "steps"), [("dying", 7), ("terminated", 8)])
def test_a_rank_is_stopped_and_one_process_goes_on(how, steps, alone, tmp_path):
    """Killed, the last checkpoint is whole; by SIGTERM, all stop after the same step. What then goes on alone ends with
    the bits of a run that nobody has stopped."""
    done, folder = job(how, tmp_path / "job"), tmp_path / "job" / "run"
    if how == "dying":
        assert done.returncode != 0
    else:
        assert done.returncode == 0, done.stderr
        said = {(tmp_path / "job" / f"said-{rank}").read_text(encoding="utf-8") for rank in (0, 1)}
        assert said == {str(int(signal.SIGTERM))}
    assert abs(contents(folder)[1]["steps_done"] - steps) <= (how == "dying")  # rank 0 may have been writing
    train.resume(folder, mpi_job.few_digits(), say=lambda line: None, bar=False, threads=1)
    assert_same_runs(folder, alone / "vit")


# ------------------------------------------------------------------------------------------ the command


@mpi
def test_the_command_under_mpiexec(tmp_path):
    """Rank 0 alone speaks and writes; the shards must be a multiple of the ranks."""
    words = ["-m", "tinyvit", "train", "digits", "--epochs", "1", "--shards", "4", "--out", tmp_path / "run"]
    done = run(2, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1 and done.stdout.count("training images") == 1
    assert "2 ranks" in done.stdout and "--resume" in done.stdout
    assert (tmp_path / "run" / "curves.png").exists() and len(rows(tmp_path / "run")) == 2
    again = run(2, *words)
    assert again.returncode == 1 and again.stderr.count("must be new or empty") == 1
    assert run(2, "-m", "tinyvit", "eval", tmp_path / "run").stdout.count("test accuracy") == 1
    three = run(3, *words[:-1], tmp_path / "three")
    assert three.returncode == 1 and three.stderr.count("start 1, 2, 4 of them") == 1
    assert "--shards 6" in three.stderr and not (tmp_path / "three").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_other_commands_are_rank_0s_alone(rank, monkeypatch, capsys):
    """Protects: the same files written by several at once; rank 0 needs no mpi4py for it, and waits for nobody."""
    for name in (name for names in ranks.LAUNCHERS for name in names):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    ranks.job.cache_clear()
    assert main(["data", "digits"]) == 0
    assert capsys.readouterr().out.count("10 classes") == (rank == 0)
