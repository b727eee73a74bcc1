"""A run that was stopped anywhere ends with the bits of one that was not; and the average is what is served."""

import json
import re
import shutil
import signal
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from faults import rows

from tinyvit import data, nn, optim, train, vit
from tinyvit.classifier import load
from tinyvit.cli import main, training
from tinyvit.data.dataset import Dataset, Split
from tinyvit.models import ResNet, ResNetConfig
from tinyvit.train import checkpoint, metrics, progress
from tinyvit.train.metrics import log
from tinyvit.train.progress import Progress

FULL = train.Recipe(epochs=5, batch_size=50, warmup=1.0, dropout=0.1, ema=0.9)  # 5 epochs of 4 steps
RECIPES = {
    "adamw": replace(FULL, erase=0.3, rand_ops=1, drop_path=0.2, mixup=0.4, cutmix=1.0),
    "muon": replace(FULL, optimizer="muon"),
    "sgd": replace(FULL, optimizer="sgd", lr=0.1, ema=0.0),
}
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def digits():
    """The first 200 / 50 / 50 digits."""
    whole = data.load("digits")
    return Dataset.of("digits", whole.classes, whole.train[:200], whole.validation[:50], whole.test[:50])


def stopping_after(monkeypatch, *steps):
    """From now on SIGTERM comes in the step after so many."""
    step = train.loop.Loop.train_step

    def train_step(loop, *batch):
        if loop.progress.steps_done + 1 in steps and loop.progress.steps_done not in seen:
            seen.add(loop.progress.steps_done)
            signal.raise_signal(signal.SIGTERM)
        return step(loop, *batch)

    seen = set()
    monkeypatch.setattr(train.loop.Loop, "train_step", train_step)


def fit(recipe, dataset, folder, **options):
    return train.fit(recipe, dataset, folder, **dict(say=lambda line: None, bar=False, threads=1) | options)


def resume(folder, dataset, **options):
    return train.resume(folder, dataset, **dict(say=lambda line: None, bar=False, threads=1) | options)


def contents(folder, name=train.CHECKPOINT):
    """(tensors, numbers) of a checkpoint, without times and machine."""
    tensors, about = checkpoint.load(folder / name)
    return tensors, {key: value for key, value in about.items() if "seconds" not in key}


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same_runs(a, b):
    """Both checkpoints, the metrics and the answers of two Runs are equal to the last bit."""
    for name in (train.CHECKPOINT, train.BEST):
        (tensors, numbers), (others, other_numbers) = contents(a.folder, name), contents(b.folder, name)
        assert numbers == other_numbers and tensors.keys() == others.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(array, others[key], err_msg=f"{name}: {key}")
    assert without_times(rows(a.folder)) == without_times(rows(b.folder))
    assert without_times(a.history) == without_times(b.history) and len(a.history) == FULL.epochs
    np.testing.assert_array_equal(a.probabilities, b.probabilities)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run by FULL that nobody has stopped."""
    return fit(FULL, digits, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("name", RECIPES)
def test_7_steps_and_13_are_20(name, digits, tmp_path, monkeypatch, backend):
    """In the middle of the second epoch, with all that is random and the average on; resumed on two threads."""
    once = fit(RECIPES[name], digits, tmp_path / "once")
    stopping_after(monkeypatch, 7)
    half = fit(RECIPES[name], digits, tmp_path / "twice")
    assert half.interrupted == signal.SIGTERM and len(half.history) == 1 and half.test_accuracy is None
    assert contents(half.folder)[1]["steps_done"] == 7
    assert_same_runs(once, resume(half.folder, digits, threads=2))


def test_batch_norm_goes_on(digits, tmp_path, monkeypatch):
    """Protects: running statistics, those that are served (averaged) and those that training goes on with."""
    config = ResNetConfig((8, 8), 1, 10, (1,), (4,), "batch")
    once = fit(FULL, digits, tmp_path / "once", model=ResNet(config, 0))
    stopping_after(monkeypatch, 7, 9)
    half = fit(FULL, digits, tmp_path / "twice", model=ResNet(config, 0))
    tensors, _ = contents(half.folder)
    names = [name for name in tensors if name.startswith("model.") and name.endswith(".variance")]
    assert names and all(not np.array_equal(tensors[n], tensors[n.replace("model.", "training.")]) for n in names)
    assert resume(half.folder, digits).interrupted
    assert_same_runs(once, resume(half.folder, digits))


def test_stopped_after_every_step(whole, digits, tmp_path, monkeypatch):
    """Twenty steps, nineteen stops: also where an epoch ends, before its validation."""
    stopping_after(monkeypatch, *range(1, 20))
    run = fit(FULL, digits, tmp_path / "run")
    for _ in range(19):
        assert run.interrupted
        run = resume(run.folder, digits)
    assert not run.interrupted
    assert_same_runs(whole, run)


class Killed(BaseException):
    """The end of the process, as far as the loop can tell."""


@pytest.mark.parametrize(
    "where, nth", [(where, n) for where in ("train_step", "save", "log", "epoch") for n in (2, 4)]
    + [("train_step", 9), ("save", 9)],
)  # fmt: skip
def test_killed_anywhere(where, nth, whole, digits, tmp_path, monkeypatch):
    """The process ends without a word before a step, a checkpoint, a line of the metrics, an epoch; with a checkpoint
    after each step (save_every=0) and with none but those of the epochs."""
    owner, calls = train.loop if where == "log" else train.loop.Loop, 0
    act = getattr(owner, where)

    def killed(*arguments):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return act(*arguments)

    folders = []
    for save_every in (0, 1e9):
        calls = 0
        folders.append(tmp_path / str(save_every))
        monkeypatch.setattr(owner, where, killed)
        try:
            fit(FULL, digits, folders[-1], save_every=save_every)
        except Killed:
            monkeypatch.setattr(owner, where, act)
            assert_same_runs(whole, resume(folders[-1], digits))
        else:
            assert calls < nth, "there was no nth call"


def test_what_the_metrics_have_too_much_is_cut(whole, digits, tmp_path):
    """A kill can come between a line and the checkpoint, and a full disk in the middle of a line."""
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.copy(tmp_path / "run" / train.BEST, tmp_path / "run" / train.CHECKPOINT)  # an epoch before the last
    done = contents(tmp_path / "run")[1]["epochs_done"]
    log(tmp_path / "run", {"epoch": 6})
    with open(tmp_path / "run" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 7, "lo')
    assert done <= 5 and len((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 8
    assert_same_runs(whole, resume(tmp_path / "run", digits))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("epoch") for line in lines] == [1, 2, 3, 4, 5, None]


def test_each_good_line_is_kept_once(whole, digits, tmp_path):
    """Protects: the epochs behind a damaged line; and in a folder that two have written in, no epoch counts twice."""
    shutil.copytree(whole.folder, tmp_path / "run")
    path, said = tmp_path / "run" / "metrics.jsonl", []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([lines[0], "x" + lines[1], lines[3], lines[2], *lines[2:]]), encoding="utf-8")
    run = resume(tmp_path / "run", digits, say=said.append)
    assert [row.get("epoch") for row in rows(run.folder)] == [1, 3, 4, 5, None]
    assert without_times(run.history) == without_times([whole.history[i] for i in (0, 2, 3, 4)])
    assert "metrics.jsonl has no good line for 1 of 5 epochs; the model has lost nothing" in said


def test_a_line_is_on_the_disk_before_the_checkpoint_that_counts_it(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(metrics.os, "fsync", lambda file: forced.append((tmp_path / "metrics.jsonl").read_bytes()))
    log(tmp_path, {"epoch": 1})
    assert forced == [b'{"epoch": 1}\n']


def test_without_metrics_it_goes_on_too(digits, tmp_path, monkeypatch):
    stopping_after(monkeypatch, 7)
    half = fit(FULL, digits, tmp_path / "run")
    (half.folder / "metrics.jsonl").unlink()
    run = resume(half.folder, digits)
    assert [row["epoch"] for row in run.history] == [2, 3, 4, 5] and run.test_accuracy is not None


def test_seconds_go_on(digits, tmp_path, monkeypatch):
    """Protects: a run's time is that of all its parts, and so is an epoch's."""
    stopping_after(monkeypatch, 7)
    half = fit(FULL, digits, tmp_path / "run")
    run = resume(half.folder, digits)
    ends = [row["seconds"] for row in run.history]
    assert ends == sorted(ends) and ends[0] == half.history[0]["seconds"] and run.seconds > ends[-1] > half.seconds


def test_a_finished_run_says_so(whole, digits, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    said = []
    run = resume(tmp_path / "run", digits, say=said.append)
    assert re.search("is finished, all 5 epochs are done; testing again", said[0])
    assert_same_runs(whole, run)


def test_killed_before_the_test(whole, digits, tmp_path):
    """All epochs are done, and the last word is missing: then only the test is."""
    shutil.copytree(whole.folder, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    assert_same_runs(whole, resume(tmp_path / "run", digits))


@pytest.mark.parametrize("name", ["pixel", "label", "class", "order"])
def test_other_data_are_refused(name, digits, tmp_path, monkeypatch):
    stopping_after(monkeypatch, 7)
    half = fit(FULL, digits, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in half.folder.iterdir()}
    images, labels, classes = digits.train.images.copy(), digits.train.labels.copy(), list(digits.classes)
    if name == "pixel":
        images[17, 3, 3, 0] ^= 1
    elif name == "label":
        labels[17] = (labels[17] + 1) % 10
    elif name == "class":
        classes[3], classes[4] = classes[4], classes[3]
    else:
        images[:2], labels[:2] = images[1::-1].copy(), labels[1::-1].copy()
    other = replace(digits, train=Split(images, labels), classes=tuple(classes))
    with pytest.raises(data.DataError, match="goes on with the data that it began with; digits, as it is here, has"):
        resume(half.folder, other)
    assert before == {path.name: path.read_bytes() for path in half.folder.iterdir()}


def test_another_machine_is_mentioned(digits, tmp_path, monkeypatch):
    stopping_after(monkeypatch, 3)
    half, said = fit(FULL, digits, tmp_path / "run"), []
    resume(half.folder, digits, say=said.append)
    assert not any("last bits" in line for line in said)
    stopping_after(monkeypatch, 3)
    half, said = fit(FULL, digits, tmp_path / "other"), []
    monkeypatch.setattr(np, "__version__", "9.9.9")
    resume(half.folder, digits, say=said.append)
    assert re.fullmatch(r"the last bits may differ from here on: numpy 9\.9\.9, was \d\S*", said[0])
    assert contents(half.folder)[1]["machine"]["numpy"] == "9.9.9"


def test_an_edited_config_is_mentioned(whole, digits, tmp_path):
    """Protects: who writes more epochs into config.toml learns that this is not the way."""
    shutil.copytree(whole.folder, tmp_path / "run")
    path, said = tmp_path / "run" / "config.toml", []
    resume(tmp_path / "run", digits, say=said.append)
    assert not any("config.toml" in line for line in said)
    path.write_text(path.read_text(encoding="utf-8").replace("epochs = 5", "epochs = 9"), encoding="utf-8")
    assert_same_runs(whole, resume(tmp_path / "run", digits, say=said.append))
    assert any("config.toml is not what it was (epochs), which changes nothing" in line for line in said)
    path.write_text("recipe = 3", encoding="utf-8")
    resume(tmp_path / "run", digits, say=said.append)
    assert any("(all of it)" in line for line in said)


def test_a_missing_config_is_written_anew(whole, digits, tmp_path):
    """Protects: without it no other command takes the folder for a run."""
    shutil.copytree(whole.folder, tmp_path / "run")
    path, said = tmp_path / "run" / "config.toml", []
    before = tomllib.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    resume(tmp_path / "run", digits, say=said.append)
    assert tomllib.loads(path.read_text(encoding="utf-8")) == before
    assert any("config.toml was missing" in line for line in said)


def test_a_finetuned_run_goes_on(whole, digits, tmp_path, monkeypatch):
    """Protects: its mean and std are those of its start, and its model is no preset."""
    start, large = load(whole.folder), data.load("digits", image_size=16)
    large = Dataset.of("digits", large.classes, large.train[200:400], large.validation[:50], large.test[:50])
    recipe = replace(train.finetuning_recipe(FULL, start), batch_size=50, image_size=16)
    quiet = dict(say=lambda line: None, bar=False, threads=1, source="start")
    once = train.finetune(start, large, tmp_path / "once", recipe, **quiet)
    stopping_after(monkeypatch, 7)
    half = train.finetune(start, large, tmp_path / "twice", recipe, **quiet)
    assert_same_runs(once, resume(half.folder, large))
    assert contents(half.folder)[1]["origin"] == contents(once.folder)[1]["origin"]
    assert load(half.folder).mean == start.mean != large.mean


# ------------------------------------------------------------------------------------- last and best


def test_the_best_epoch_is_kept(whole, digits):
    """Of equal accuracies the one with the lower loss."""
    best = load(whole.folder / train.BEST)
    rank = [(row["validation_accuracy"], -row["validation_loss"]) for row in whole.history]
    assert best.epochs_done == 1 + rank.index(max(rank))
    accuracy, loss, _ = train.evaluate(best.model, digits.validation, digits.mean, digits.std)
    assert (accuracy, -loss) == max(rank)


def test_improved():
    now = Progress()
    steps = [
        (0.0, 9.0, True),
        (0.5, 2.0, True),
        (0.4, 1.0, False),
        (0.5, 2.0, False),
        (0.5, 1.9, True),
        (0.6, 3.0, True),
    ]
    assert [now.improved(accuracy, loss) for accuracy, loss, _ in steps] == [better for *_, better in steps]


def test_a_damaged_last_one_costs_only_time(whole, digits, tmp_path):
    """The way from the best epoch leads to the same place."""
    shutil.copytree(whole.folder, tmp_path / "run")
    content = bytearray((tmp_path / "run" / train.CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "run" / train.CHECKPOINT).write_bytes(content)
    with pytest.raises(train.CheckpointError, match="is damaged.*The best epoch's is beside it: .*best.safetensors"):
        load(tmp_path / "run")
    said = []
    run = resume(tmp_path / "run", digits, say=said.append)
    assert re.search(r"checkpoint.safetensors is damaged.*Going on from the best epoch's, .*best.safetensors", said[0])
    assert_same_runs(whole, run)


def test_a_damaged_last_one_is_mended(whole, digits, tmp_path):
    """Also where the last epoch was the best, and nothing is left to train."""
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.copy(tmp_path / "run" / train.CHECKPOINT, tmp_path / "run" / train.BEST)
    (tmp_path / "run" / train.CHECKPOINT).write_bytes(b"")
    resume(tmp_path / "run", digits)
    tensors, others = contents(tmp_path / "run")[0], contents(whole.folder)[0]
    assert all(np.array_equal(array, others[name]) for name, array in tensors.items())


# ------------------------------------------------------------------------------------- the average


def test_the_average_is_the_formulas():
    """a ← d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), in float64 beside it."""
    model = vit("digits", depth=1)
    flat = optim.FlatParameters(model)
    average, rng = train.Average(model, flat, 0.5), np.random.default_rng(0)
    expected = flat.values.astype(np.float64)
    for step in range(20):
        flat.values += rng.standard_normal(flat.values.size).astype(np.float32)
        d = min(0.5, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * flat.values
        average.update(step)
    own = flat.values.copy()
    with average:
        np.testing.assert_allclose(flat.values, expected, rtol=1e-5, atol=1e-5)
        name, p = next(model.named_parameters())
        np.testing.assert_array_equal(p.data.ravel(), flat.values[flat.slices[name]])
    np.testing.assert_array_equal(flat.values, own)


def test_the_model_is_itself_again_after_an_error():
    model = vit("digits", depth=1)
    flat = optim.FlatParameters(model)
    average = train.Average(model, flat, 0.5)
    flat.values += 1
    own = flat.values.copy()
    with pytest.raises(KeyboardInterrupt), average:
        assert not np.array_equal(flat.values, own)
        raise KeyboardInterrupt
    np.testing.assert_array_equal(flat.values, own)


def test_statistics_are_averaged_too():
    model = ResNet(ResNetConfig((8, 8), 1, 10, (1,), (4,), "batch"), 0)
    average = train.Average(model, optim.FlatParameters(model), 0.5)
    statistics = [p for p in model.parameters() if isinstance(p, nn.Statistic)]
    for p in statistics:
        p.data += 10
    average.update(100)
    before = [p.numpy() for p in statistics]
    with average:
        assert all(np.allclose(p.data, values - 5) for p, values in zip(statistics, before, strict=True))


def test_the_average_is_what_is_validated_tested_and_served(whole, digits):
    classifier = load(whole.folder)
    np.testing.assert_array_equal(classifier.predict(digits.test.images), whole.probabilities)
    np.testing.assert_array_equal(whole.model.predict(classifier.normalise(digits.test.images)), whole.probabilities)
    accuracy, loss, _ = train.evaluate(classifier.model, digits.validation, digits.mean, digits.std)
    last = whole.history[-1]
    assert (accuracy, loss) == (last["validation_accuracy"], last["validation_loss"])
    tensors, _ = contents(whole.folder)
    assert not np.array_equal(tensors["model.head.weight"], tensors["training.head.weight"])


def test_after_an_epoch_all_ranks_have_the_average_of_rank_0(digits, tmp_path, monkeypatch):
    """Protects: on unlike processors the ranks would validate their shares of the images with models of their own."""
    levelled = []
    monkeypatch.setattr(train.ranks.Alone, "level", lambda job, array: levelled.append(array.copy()))
    fit(replace(FULL, epochs=1), digits, tmp_path / "run")
    weights, average = levelled
    average_in_file = [array for name, array in contents(tmp_path / "run")[0].items() if name.startswith("model.")]
    assert average.size == weights.size == sum(array.size for array in average_in_file)
    assert average.sum(dtype=float) == pytest.approx(sum(array.sum(dtype=float) for array in average_in_file))


def test_an_average_changes_no_step(digits, tmp_path):
    """Protects: what is averaged goes its own way; losses and gradients are as without."""
    few = replace(FULL, epochs=2)
    with_it, without = fit(few, digits, tmp_path / "a"), fit(replace(few, ema=0.0), digits, tmp_path / "b")
    for name in ("loss", "accuracy", "gradient_norm"):
        assert [row[name] for row in with_it.history] == [row[name] for row in without.history]
    assert with_it.history[0]["validation_loss"] != without.history[0]["validation_loss"]
    tensors, others = contents(with_it.folder)[0], contents(without.folder)[0]
    assert not any(name.startswith("training.") for name in others)
    np.testing.assert_array_equal(tensors["training.head.weight"], others["model.head.weight"])


# ------------------------------------------------------------------------------------- the command


def counted(monkeypatch, owner, name):
    """A list that from now on gets the arguments of each call of that function."""
    function, calls = getattr(owner, name), []

    def counting(*arguments):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_the_command(tmp_path, monkeypatch, capsys):
    """Stopped by SIGTERM: exit code 143, and the line to type. Then on, to the same end as without; then finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "draw", lambda run: None)
    words = ["--epochs", "3", "--ema", "0.9", "--threads", "1"]
    assert main(["train", *words, "--out", "once"]) == 0
    expected = re.search(r"test accuracy .* %", capsys.readouterr().out)[0]
    with monkeypatch.context() as patch:
        stopping_after(patch, 30)
        assert main(["train", *words, "--out", "twice"]) == 143
    assert "the checkpoint holds it. Go on: tinyvit train --resume twice\n" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        calls = [counted(patch, progress, name) for name in ("load", "fingerprint")]
        assert main(["train", "--resume", "twice", "--threads", "1"]) == 0
    assert [len(of) for of in calls] == [1, 1], "a large data set is hashed once, a large checkpoint read once"
    out = capsys.readouterr().out
    assert "going on after step 30, in epoch 2 of 3" in out and expected in out
    assert {path.name for path in (tmp_path / "once").iterdir()} == {
        path.name for path in (tmp_path / "twice").iterdir()
    }
    tensors, others = contents(tmp_path / "once")[0], contents(tmp_path / "twice")[0]
    assert all(np.array_equal(array, others[name]) for name, array in tensors.items())
    assert main(["train", "--resume", "twice/checkpoint.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "twice is finished" in out and expected in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--resume nowhere", 1, "there is no run's folder at nowhere"),
        ("--resume .", 1, "holds no checkpoint.safetensors: no run, or stopped before its first step; begin anew"),
        ("digits --resume .", 2, "--resume goes on with the run as it began, and takes --threads only; got DATA"),
        ("--resume . --lr 0.1 --out x", 2, "takes --threads only; got --lr, --out"),
        ("--resume", 2, "expected one argument"),
        ("--resume=", 2, "--resume needs the run's folder"),
    ],
)
def test_mistakes(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        got = main(["train", *words.split()])
    except SystemExit as stop:  # argparse's own way
        got = stop.code
    captured = capsys.readouterr()
    assert got == code and re.search(message, captured.err), captured.err
    assert list(tmp_path.iterdir()) == []
