"""What can happen to a run, and what then is kept and said: one sentence, and nothing good is lost."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import faults
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tinyvit import data, train
from tinyvit.classifier import load
from tinyvit.cli import main, training
from tinyvit.train import checkpoint, folder
from tinyvit.train.folder import being_trained, only_one
from tinyvit.train.interrupt import Interrupt
from tinyvit.train.runs import read_run

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals to another process are POSIX's")
WORDS = ["train", "--epochs", "3", "--threads", "1", "--ema", "0.9"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take longer to draw than these runs to train; what drawing may die of, test_cli.py tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "draw", lambda run: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run by WORDS that nothing has happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*WORDS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The same, as it was after the second of its three epochs."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop.Loop, "epoch", stopping(train.loop.Loop.epoch))
        with pytest.raises(StopIteration):
            main([*WORDS, "--out", str(folder)])
    return folder


@pytest.fixture
def run(half, tmp_path):
    """A copy of that."""
    return shutil.copytree(half, tmp_path / "run")


def stopping(epoch):
    def stopped(loop, *arguments):
        if loop.progress.epochs_done == 2:
            raise StopIteration
        return epoch(loop, *arguments)

    return stopped


def goes_on(run, whole):
    """Whether what is left in the folder leads to the same end."""
    return main(["train", "--resume", str(run), "--threads", "1"]) == 0 and faults.same(run, whole)


def failure(words, capsys):
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"tinyvit {words[0]}: "), err
    return err


# ------------------------------------------------------------------------------------- signals


@POSIX
def test_kills(tmp_path):
    """Three; `python tests/faults.py` makes it 40."""
    counts = faults.kills(3, tmp_path, epochs=2, longest=0.5)
    assert counts["kills"] == counts["whole"] == 3 and counts["tracebacks"] == 0
    assert counts["equal"] == counts["finished"] > 0


@POSIX
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal(number, code, tmp_path):
    """The step is finished, the checkpoint holds it, and the last line says how to go on."""
    process = faults.start("--epochs", 1000, "--out", tmp_path / "run")
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(getattr(signal, number))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == code and "Traceback" not in said, said
    [(step, folder)] = re.findall(r"stopped after step (\d+), .*; .* Go on: tinyvit train --resume (\S+)\n", said)
    assert train.read_saved(folder).progress.steps_done == int(step)


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    """Whoever has forgotten the first is told; and when that is killed, the folder is free."""
    run = tmp_path / "run"
    process = faults.start("--epochs", 1000, "--out", run)
    try:
        end = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert being_trained(run) and read_run(run).state == "running"
        assert f"another process is training in {run}" in failure(["train", "--resume", run], capsys)
    finally:
        process.kill()
        process.communicate()
    assert not being_trained(run) and read_run(run).state == "stopped"
    with only_one(run):
        pass


@pytest.mark.parametrize("trouble", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(trouble, run, whole, monkeypatch):
    """Some network file systems have none: it goes on without."""

    def lock(file, shared=False):
        raise OSError(trouble, os.strerror(trouble))

    monkeypatch.setattr(folder, "_lock", lock)
    assert read_run(run).state == "running"
    assert goes_on(run, whole) and read_run(run).state == "finished"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on Windows")
def test_nohup():
    """Protects: who starts a run with nohup wants it to go on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt(aloud=False) as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert not interrupt.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_without_a_terminal(monkeypatch):
    """Protects: when the terminal is gone nothing can be said, and the run is to be saved all the same."""

    def gone(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.print", gone)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.asked == signal.SIGTERM


def test_the_second_signal_stops_at_once(run, whole, monkeypatch, capsys):
    """Also in the middle of a step that never ends."""

    def train_step(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train.loop.Loop, "train_step", train_step)
        assert main(["train", "--resume", str(run)]) == 130
    assert capsys.readouterr().err == "\nfinishing this step; Ctrl-C again stops at once\ninterrupted\n"
    assert goes_on(run, whole)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGTERM) != before[1] and not interrupt.asked
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ------------------------------------------------------------------------------------- the disk


@pytest.mark.parametrize("trouble", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_the_disk_fails_while_training(trouble, run, whole, monkeypatch, capsys):
    """Full, read-only or broken when the next checkpoint is written: the last one is kept, and is what it was."""
    before = (run / train.CHECKPOINT).read_bytes()

    def fails(old, new):
        if "safetensors" in str(new):
            raise OSError(trouble, os.strerror(trouble))
        move(old, new)

    move = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        err = failure(["train", "--resume", run], capsys)
    assert re.search(r"safetensors: .*; the last checkpoint is kept; when there is a remedy, go on: tinyvit train", err)
    assert os.strerror(trouble) in err and (run / train.CHECKPOINT).read_bytes() == before
    assert not list(run.glob(".*.tmp"))
    assert goes_on(run, whole)


@POSIX
def test_a_full_disk_for_real(tmp_path, whole):
    """After the first epoch the process may write files of 4 kB only: a real failing write, not a faked one."""
    code = (
        "import resource, sys; from tinyvit import cli, train\n"
        "end_epoch = train.progress.Progress.end_epoch\n"
        "def small(self):\n"
        "    end_epoch(self)\n"
        "    if self.epochs_done == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "train.progress.Progress.end_epoch = small\n"
        "sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", code, *WORDS, "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.fullmatch(r"tinyvit train: \S+: File too large; the last .*\n", done.stderr)
    assert train.read_saved(tmp_path / "run").progress.epochs_done == 1
    assert goes_on(tmp_path / "run", whole)


def test_a_folder_that_cannot_be_written(run, monkeypatch, capsys):
    """When the run begins, and when it is to go on."""
    names = {path.name: path.read_bytes() for path in run.iterdir()}

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    assert "Read-only file system" in failure(["train", "--resume", run], capsys)
    assert names == {path.name: path.read_bytes() for path in run.iterdir()}
    assert "config.toml: Read-only file system\n" in failure([*WORDS, "--out", run.parent / "new"], capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(run, capsys):
    run.chmod(0o500)
    try:
        assert "Permission denied" in failure(["train", "--resume", run], capsys)
    finally:
        run.chmod(0o700)


# ------------------------------------------------------------------------------------- the checkpoint


def test_corruptions(tmp_path):
    """Twenty; `python tests/faults.py` makes it 200."""
    counts = faults.corruptions(20, tmp_path)
    assert faults.report_corruptions(counts) == 0, counts


def rewritten(run, header=(), **about):
    """The last checkpoint of a run once more, with another header or other metadata, and a hash that is right."""
    path = run / train.CHECKPOINT
    tensors, before = checkpoint.load(path)
    checkpoint.save(path, tensors, {name: value for name, value in (before | about).items() if value is not None})
    if header:
        with safetensors.safe_open(path, "numpy") as file:
            path.write_bytes(safetensors.numpy.save(tensors, file.metadata() | header))
    (run / train.BEST).unlink()


def test_an_older_format(run, capsys):
    """What it holds can be used; what going on takes was not in it."""
    weights = load(run).model.state_dict()
    rewritten(run, {"format": "tinyvit 1"}, seen=None, best_loss=None)
    assert all(np.array_equal(values, weights[name]) for name, values in load(run).model.state_dict().items())
    assert main(["eval", str(run)]) == 0
    err = failure(["train", "--resume", run], capsys)
    assert "holds a model, but not a run to go on with: an older tinyvit wrote it" in err and "finetune" in err


def test_a_newer_format(run, capsys):
    rewritten(run, {"format": "tinyvit 3"})
    for words in (["eval", run], ["train", "--resume", run]):
        assert "format mark 'tinyvit 2', found 'tinyvit 3': written by a newer" in failure(words, capsys)


@pytest.mark.parametrize("change", [{"width": 52}, {"depth": 7}, {"kind": "resnet"}, {"classes": 3}, {"colour": 1}])
def test_a_configuration_that_does_not_fit_the_weights(change, run, capsys):
    _, about = checkpoint.load(run / train.CHECKPOINT)
    rewritten(run, model=about["model"] | change)
    before = (run / train.CHECKPOINT).read_bytes()
    for words in (["eval", run], ["train", "--resume", run]):
        assert "weights and configuration do not fit: " in failure(words, capsys)
    assert (run / train.CHECKPOINT).read_bytes() == before


def test_a_recipe_that_cannot_be(run, capsys):
    _, about = checkpoint.load(run / train.CHECKPOINT)
    rewritten(run, recipe=about["recipe"] | {"batch_size": 0})
    assert "holds a recipe that cannot be: batch_size must be" in failure(["train", "--resume", run], capsys)


def test_a_state_of_another_optimiser(run, capsys):
    _, about = checkpoint.load(run / train.CHECKPOINT)
    rewritten(run, recipe=about["recipe"] | {"optimizer": "sgd"})
    assert "this optimiser state does not fit: see velocity" in failure(["train", "--resume", run], capsys)


def test_a_pretrained_model_is_no_run(tmp_path, capsys):
    digits = data.load("digits")
    recipe = train.Recipe()
    model = train.fitting.build(train.fitting.configure(recipe, digits))
    train.save_pretrained(model, tmp_path / "run", recipe, digits)
    assert "or pre-training did. `tinyvit finetune` goes on" in failure(["train", "--resume", tmp_path / "run"], capsys)


def test_data_that_are_gone(run, tmp_path, capsys):
    _, about = checkpoint.load(run / train.CHECKPOINT)
    rewritten(run, recipe=about["recipe"] | {"data": str(tmp_path / "gone")})
    assert "was begun on " in (err := failure(["train", "--resume", run], capsys)) and "not here; put it back" in err


# ------------------------------------------------------------------------------------- the numbers


def test_a_loss_that_is_not_a_number(tmp_path, capsys):
    """The last good checkpoint is kept and finite, also where one is written after each step."""
    diverging = ["--lr", "1e15", "--warmup", "0", "--clip", "0", "--weight-decay", "0"]
    err = failure([*WORDS, *diverging, "--out", tmp_path / "run"], capsys)
    assert re.search(
        r"training stopped: .* The last good checkpoint is kept: .*Begin anew with a smaller --lr, or", err
    )
    assert load(tmp_path / "run").epochs_done == 0
    recipe = replace(train.Recipe(), lr=1e15, warmup=0.0, clip=0.0, weight_decay=0.0, ema=0.9)
    with pytest.raises(train.TrainingError):
        train.fit(recipe, data.load("digits"), tmp_path / "each", say=lambda _: None, bar=False, save_every=0)
    tensors, _ = checkpoint.load(tmp_path / "each" / train.CHECKPOINT)
    assert all(np.isfinite(values).all() for values in tensors.values())


def test_metrics_are_numbers(whole):
    """Protects: a NaN in metrics.jsonl is no JSON, and no other program would read on."""
    for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} in metrics.jsonl"))


def test_a_copy_goes_on_elsewhere(run, whole, tmp_path):
    """A run's folder is all there is of it: moved, it goes on."""
    shutil.move(run, tmp_path / "moved")
    assert goes_on(tmp_path / "moved", whole)
