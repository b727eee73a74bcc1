"""Training: shards add up, threads change nothing, what goes wrong is named, and what was reached is kept."""

import gc
import json
import re
import signal
import tomllib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tinyvit import data, functional, kernels, nn, optim, train, vit
from tinyvit.classifier import load
from tinyvit.data.dataset import Dataset, Split
from tinyvit.models import AugmentedConfig, QuadraticConfig, ResNet, ResNetConfig
from tinyvit.train import checkpoint

SMALL = train.Recipe(epochs=2, batch_size=50, warmup=1.0, dropout=0.1)


@pytest.fixture(scope="module")
def digits():
    """The first 200 / 50 / 50 digits."""
    whole = data.load("digits")
    return Dataset.of("digits", whole.classes, whole.train[:200], whole.validation[:50], whole.test[:50])


def quiet(*_):
    pass


def batch(count=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 8, 8, 1)).astype(np.float32), rng.integers(0, 10, count)


# ------------------------------------------------------------------------------------------ shards


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 16])
def test_shards_add_up_to_the_batchs_gradient(shards, backend):
    """Also with shards of unequal size, and with more shards than images."""
    x, y = batch()
    model = vit("digits", depth=1)
    model.head.weight.data = np.random.default_rng(0).normal(0, 0.1, model.head.weight.shape)
    flat = optim.FlatParameters(model)
    loss = functional.cross_entropy(model(x), y, 0.1)
    loss.backward()
    whole = flat.gradients.copy()
    with train.Shards(model, flat, shards, threads=2) as workers:
        sharded, right = workers.gradient(x, y, 0.1)
    assert sharded == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(flat.gradients, whole, rtol=1e-3, atol=1e-6)
    assert right == (model.predict(x).argmax(1) == y).sum()


def weights_and_losses(recipe, dataset, folder, **options):
    run = train.fit(recipe, dataset, folder, say=quiet, bar=False, **options)
    return np.concatenate([p.data.ravel() for p in run.model.parameters()]), [row["loss"] for row in run.history]


def test_threads_change_not_one_bit(digits, tmp_path, backend):
    """1, 2 and 4 threads, with dropout and augmentation on: equal weights and equal losses."""
    first = weights_and_losses(SMALL, digits, tmp_path / "1", threads=1)
    for threads in (2, 4):
        other = weights_and_losses(SMALL, digits, tmp_path / str(threads), threads=threads)
        np.testing.assert_array_equal(first[0], other[0])
        assert first[1] == other[1]


@pytest.mark.parametrize(("with_threads", "without", "kept"), [(1.0, 2.0, 2), (2.0, 1.0, 1)])
def test_the_faster_way_is_kept(with_threads, without, kept, monkeypatch):
    """The first steps run with threads and without in turn, by a clock that is set here; the results are the same."""
    ticks = [0.0]
    for seconds in (with_threads, without) * train.shards.TRIALS:
        ticks += [ticks[-1] + seconds, ticks[-1] + seconds]
    monkeypatch.setattr(train.shards, "available_cores", lambda: 2)
    monkeypatch.setattr(train.shards.time, "perf_counter", iter(ticks).__next__)
    model, (x, y) = vit("digits", depth=1), batch(8)
    flat = optim.FlatParameters(model)
    with train.Shards(model, flat, 2) as shards:
        seen = []
        for _ in range(2 * train.shards.TRIALS + 1):
            shards.gradient(x, y)
            seen.append(flat.gradients.copy())
        assert shards.threads == kept and shards.timings is None
    assert all(np.array_equal(gradient, seen[0]) for gradient in seen)


def test_backends_and_shards_give_the_same_losses(digits, tmp_path):
    recipe = replace(SMALL, dropout=0.0)
    with kernels.use("numpy"):
        _, spec = weights_and_losses(recipe, digits, tmp_path / "numpy")
    _, numba = weights_and_losses(recipe, digits, tmp_path / "numba")
    _, two = weights_and_losses(replace(recipe, shards=2), digits, tmp_path / "two")
    np.testing.assert_allclose(numba, spec, rtol=1e-3)
    np.testing.assert_allclose(two, spec, rtol=1e-3)


def test_the_same_seed_gives_the_same_run_and_another_another(digits, tmp_path):
    a, b, c = (
        weights_and_losses(replace(SMALL, epochs=1, seed=seed), digits, tmp_path / name)[0]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_memory_is_flat_over_1000_steps():
    """Forward, backward, sum and step, through shards on threads; counted from step 100 to step 1,000, each time after
    Python has emptied its own free lists, which `gc.collect` does."""
    model = vit("digits", depth=1, width=16)
    optimizer = optim.AdamW(model)
    x, y = batch(8)
    with train.Shards(model, optimizer.flat, 2, threads=2) as shards:
        tracemalloc.start()
        try:
            for step in range(1000):
                shards.gradient(x, y, seed=(step,))
                optimizer.step()
                if step == 100:
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 50_000, f"{grown} bytes more after 900 steps"


# ------------------------------------------------------------------------------------------ the loop


def test_a_runs_folder(digits, tmp_path):
    lines = []
    run = train.fit(SMALL, digits, tmp_path / "run", say=lines.append, bar=False)
    names = {"config.toml", "metrics.jsonl", "checkpoint.safetensors", "best.safetensors", "lock"}
    assert {p.name for p in run.folder.iterdir()} == names
    config = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
    assert train.Recipe.from_dict(config["recipe"]) == SMALL and config["model"]["width"] == 48
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[:-1] == run.history and [row["epoch"] for row in rows[:-1]] == [1, 2]
    assert rows[-1]["test_accuracy"] == run.test_accuracy and rows[-1]["test_loss"] > 0
    assert rows[0]["loss"] == pytest.approx(np.log(10), rel=0.2)
    assert 0 <= run.test_accuracy <= 1 and run.probabilities.shape == (50, 10)
    tensors, about = checkpoint.load(run.folder / train.CHECKPOINT)
    assert about["epochs_done"] == 2 and tensors["optimizer.steps"] == 8
    assert any("200 training images" in line for line in lines)


def test_a_classifier_loads_from_it_and_agrees(digits, tmp_path):
    run = train.fit(SMALL, digits, tmp_path / "run", say=quiet, bar=False)
    for path in (run.folder, run.folder / train.CHECKPOINT, str(run.folder)):
        classifier = load(path)
        np.testing.assert_array_equal(classifier.predict(digits.test.images), run.probabilities)
        assert classifier.classes == digits.classes and not classifier.model.training
    with pytest.raises(checkpoint.CheckpointError, match="must be a run's folder"):
        load(tmp_path)


def test_it_learns(digits, tmp_path):
    run = train.fit(
        train.Recipe(epochs=15, batch_size=20, warmup=2.0, lr=3e-3), digits, tmp_path / "run", say=quiet, bar=False
    )
    assert run.history[-1]["loss"] < 1.8 < 2.1 < run.history[0]["loss"]


def test_zero_epochs_test_the_fresh_model(digits, tmp_path):
    run = train.fit(replace(SMALL, epochs=0), digits, tmp_path / "run", say=quiet, bar=False)
    assert run.history == [] and run.test_accuracy <= 0.3


def test_sgd_trains(digits, tmp_path):
    run = train.fit(replace(SMALL, epochs=4, optimizer="sgd", lr=0.1), digits, tmp_path / "run", say=quiet, bar=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_a_used_folder_is_left_alone(digits, tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(train.TrainingError, match="must be new or empty.*--out"):
        train.fit(SMALL, digits, tmp_path, say=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_new_folders_are_numbered(tmp_path):
    assert [train.new_folder("digits", tmp_path).name for _ in range(3)] == ["digits-1", "digits-2", "digits-3"]
    assert train.new_folder("some/path/cats/", tmp_path).name == "cats-1"


@pytest.mark.parametrize("lr", [1e10, 1e15, 1e30])
def test_a_diverging_run_stops_and_says_where(lr, digits, tmp_path):
    """Learning rates that overflow float32 within a few steps: in an op, in its gradient, or in the update itself."""
    recipe = replace(SMALL, lr=lr, warmup=0.0, clip=0.0, weight_decay=0.0)
    with pytest.raises(train.TrainingError) as caught:
        train.fit(recipe, digits, tmp_path / "run", say=quiet, bar=False)
    message = str(caught.value)
    assert re.search(r"loss \S+, learning rate \d\S+, gradient norm \S+ at step \d+ \(epoch 1\)\. Where", message)
    assert re.search("first op with a non-finite|is the first non-finite|itself is not finite", message), message
    assert load(tmp_path / "run").epochs_done == 0, "the checkpoint before it is kept, and whole"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, x: x.__setitem__((0, 0), np.nan), "images themselves"),
        (lambda model, x: model.head.bias.__setitem__(0, np.inf), "parameter head.bias itself"),
        (lambda model, x: model.norm.gamma.__setitem__(slice(None), 3e38), "layer_norm|linear"),
    ],
)
def test_culprit(spoil, message):
    model, (x, y) = vit("digits", depth=1), batch()
    model.head.weight.data = 1.0
    flat = optim.FlatParameters(model)
    spoil(model, x)
    with train.Shards(model, flat, 2) as shards:
        shards.gradient(x, y)
        found = shards.culprit(x, y, 0.0, (0,))
    assert any(part in found for part in message.split("|")), found


def batch_normed(seed=0):
    return ResNet(ResNetConfig((8, 8), 1, 10, (1,), (4,), "batch"), seed)


def statistics(model):
    return {name: p.numpy() for name, p in model.named_parameters() if isinstance(p, nn.Statistic)}


def test_the_search_for_the_culprit_leaves_statistics_alone():
    """Protects: the second look at a bad batch must not spoil batch norm's running mean once more."""
    model, (x, y) = batch_normed().train(), batch()
    with train.Shards(model, optim.FlatParameters(model), 2) as shards:
        shards.gradient(x, y)
        before = statistics(model)
        shards.culprit(x, y, 0.0, (0,))
        assert all(np.array_equal(values, before[name]) for name, values in statistics(model).items())
        shards.gradient(x, y)
        assert not all(np.array_equal(values, before[name]) for name, values in statistics(model).items())


def test_early_stopping_restores_the_best_epoch_whole(digits):
    """Protects: weights of one epoch with batch norm's statistics of another are no model at all."""
    states, scores = [], iter((2.0, 1.0, 3.0))

    def validate(model):
        states.append(model.state_dict())
        return next(scores)

    def prepare(images, labels):
        return data.normalise(images, digits.mean, digits.std), labels

    model = batch_normed()
    train.pretrain(
        model, digits.train, train.classify, prepare, epochs=3, validate=validate, bar=False, threads=1
    )  # fmt: skip
    best, last = states[1], states[2]
    assert all(np.array_equal(values, best[name]) for name, values in model.state_dict().items())
    assert statistics(model) and all(not np.array_equal(best[name], last[name]) for name in statistics(model))


def test_a_run_that_diverges_in_its_last_step_is_caught(digits, tmp_path):
    """One step an epoch: the loss of that step is still fine, and only the weights after it are not."""
    recipe = replace(SMALL, epochs=3, batch_size=500, lr=1e30, warmup=0.0, clip=0.0)
    with pytest.raises(train.TrainingError, match="The last good checkpoint is kept.*or --clip 1"):
        train.fit(recipe, digits, tmp_path / "run", say=quiet, bar=False)
    tensors, _ = checkpoint.load(tmp_path / "run" / train.CHECKPOINT)
    assert all(np.isfinite(values).all() for values in tensors.values())


CHANGES = dict(
    batch_size=40, lr=2e-3, warmup=0.0, weight_decay=0.3, smoothing=0.3, clip=0.01, dropout=0.3, optimizer="sgd",
    augment="none", seed=7, shards=3, preset="mnist7", patch=4, epochs=3, erase=0.5, drop_path=0.3, ema=0.5,
    rand_ops=2, mixup=0.4, cutmix=1.0,
)  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_of_a_recipe_matters(name, digits, tmp_path):
    """A loop that forgot one of them would still train."""
    few = Dataset.of("digits", digits.classes, digits.train[:60], digits.validation[:10], digits.test[:10])
    patch = {"patch": 2} if name == "preset" else {}
    first = train.Recipe(epochs=5, batch_size=20, dropout=0.1)
    a, _ = weights_and_losses(first, few, tmp_path / "a")
    b, _ = weights_and_losses(replace(first, **{name: CHANGES[name]}, **patch), few, tmp_path / "b")
    assert a.shape != b.shape or not np.array_equal(a, b)


def test_the_recipes_words_are_kept(digits, tmp_path):
    """What the metrics say of the learning rate is what the schedule says; a warm-up is a fifth of the run at most."""
    few = Dataset.of("digits", digits.classes, digits.train[:40], digits.validation[:10], digits.test[:10])
    run = train.fit(replace(SMALL, epochs=10, batch_size=40, warmup=100.0), few, tmp_path / "run", say=quiet, bar=False)
    assert [row["lr"] for row in run.history] == [optim.warmup_cosine(t, 10, SMALL.lr, 2) for t in range(10)]
    assert run.history[1]["lr"] == SMALL.lr
    accuracy, loss, p = train.evaluate(run.model, few.validation, few.mean, few.std)
    assert run.history[-1]["validation_accuracy"] == accuracy
    assert run.history[-1]["validation_loss"] == loss == -np.log(p[np.arange(10), few.validation.labels]).mean()


@pytest.mark.parametrize(("at_step", "epochs", "lines"), [(5, 1, 1), (3, 0, 0), (2, 0, 0)])
def test_ctrl_c_between_two_steps(at_step, epochs, lines, digits, tmp_path, monkeypatch, capsys):
    """The signal comes during a step, of four in an epoch: in the middle, at the end of one, or in the first."""
    said, step = [], train.loop.Loop.train_step

    def train_step(loop, *batch):
        if loop.progress.steps_done == at_step:
            signal.raise_signal(signal.SIGINT)
        return step(loop, *batch)

    monkeypatch.setattr(train.loop.Loop, "train_step", train_step)
    before = signal.getsignal(signal.SIGINT)
    run = train.fit(replace(SMALL, epochs=10), digits, tmp_path / "run", say=said.append, bar=False)
    assert run.interrupted and run.test_accuracy is None and len(run.history) == lines
    assert f"stopped after step {at_step + 1}" in said[-1] and "finishing this step" in capsys.readouterr().err
    tensors, about = checkpoint.load(run.folder / train.CHECKPOINT)
    assert about["epochs_done"] == epochs and about["steps_done"] == tensors["optimizer.steps"] == at_step + 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_the_last_step_does_not_lose_the_test(digits, tmp_path, monkeypatch):
    evaluate = train.loop.evaluate

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(train.loop, "evaluate", evaluate)
        return evaluate(*arguments)

    monkeypatch.setattr(train.loop, "evaluate", interrupted)
    run = train.fit(replace(SMALL, epochs=1), digits, tmp_path / "run", say=quiet, bar=False)
    assert not run.interrupted and len(run.history) == 1 and run.test_accuracy is not None


def test_evaluate(digits):
    model = vit("digits")
    model.head.bias.data = np.eye(10)[3] * 5  # always says 3
    accuracy, loss, p = train.evaluate(model, digits.test, digits.mean, digits.std, batch_size=7)
    assert accuracy == (digits.test.labels == 3).mean() and p.shape == (50, 10) and loss > 0 and model.training
    with pytest.raises(ValueError, match="at least one image"):
        train.evaluate(model, digits.test[:0], digits.mean, digits.std)


def test_the_model_is_fitted_to_the_data():
    images = np.zeros((4, 12, 8, 3), np.uint8)
    part = Split(images, np.array([0, 1, 2, 0]))
    dataset = Dataset.of("x", ("a", "b", "c"), part, part, part)
    config = train.fitting.configure(train.Recipe(preset="digits", patch=4), dataset)
    assert (config.image_size, config.channels, config.classes, config.patch) == ((12, 8), 3, 3, 4)
    with pytest.raises(ValueError, match="7 must divide the image's 12×8"):
        train.fitting.configure(train.Recipe(preset="mnist7"), dataset)
    huge = np.zeros((1, 2000, 300, 1), np.uint8)
    photos = Dataset.of("x", ("a", "b"), *[Split(huge, np.array([0]))] * 3)
    with pytest.raises(ValueError, match="37,501 tokens.*GiB.*--image-size"):
        train.fitting.configure(train.Recipe(preset="cifar"), photos)
    for config in (AugmentedConfig(1024), QuadraticConfig(4096)):
        with pytest.raises(ValueError, match="tokens, whose attention maps alone take .* GiB.*--image-size"):
            train.fitting.check_memory(config, 32)
    train.fitting.check_memory(AugmentedConfig(1024, attention=0), 32)  # no maps
    for name in ("train", "validation", "test"):
        with pytest.raises(ValueError, match=f"the {name} split must hold at least one image"):
            train.fitting.configure(train.Recipe(), replace(dataset, **{name: part[:0]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(epochs=-1), "epochs must be a whole number from 0 up, got -1"),
        (dict(batch_size=0), "batch_size"),
        (dict(lr=float("nan")), "lr must be a finite number"),
        (dict(smoothing=1.0), "smoothing"),
        (dict(preset="digit"), "preset must be one of digits, mnist"),
        (dict(augment="cats"), "augment must be one of"),
        (dict(optimizer="lion"), "optimizer must be one of adamw, muon, sgd"),
    ],
)
def test_recipe_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(train.Recipe(), **changes)


def test_recipe_from_dict_names_unknown_keys():
    with pytest.raises(ValueError, match="a recipe has no colour, size; it has augment, batch_size"):
        train.Recipe.from_dict({"size": 1, "colour": 2})
