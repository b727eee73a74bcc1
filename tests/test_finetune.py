"""Fine-tuning: what a trained model knows goes along, and what comes out is a run like any other."""

import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tinyvit import data, nn, train
from tinyvit.classifier import load
from tinyvit.cli import main
from tinyvit.data.dataset import Dataset, Split
from tinyvit.models import at_resolution
from tinyvit.train import checkpoint

quiet = dict(say=lambda line: None, bar=False, threads=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a run on digits, 8×8, that has learned something."""
    folder = tmp_path_factory.mktemp("start") / "run"
    train.fit(train.Recipe(epochs=12, warmup=2.0, smoothing=0.0), data.load("digits"), folder, **quiet)
    return folder


def few(size, classes=10, channels=1, count=300):
    """The first digits at that size, with a number of classes and channels."""
    whole = data.load("digits", image_size=size)
    parts = []
    for split in (whole.train, whole.validation, whole.test):
        chosen = split[split.labels < classes][:count]
        parts.append(Split(np.repeat(chosen.images, channels, axis=3), chosen.labels))
    return Dataset.of("digits", whole.classes[:classes], *parts)


def recipe_for(classifier, **changes):
    return replace(train.finetuning_recipe(train.RECIPES["digits"], classifier), **changes)


def test_what_it_begins_with(start):
    """Protects: the trained weights, the statistics that they were trained with, the paper's recipe; a head that says
    nothing yet."""
    classifier, large = load(start), few(16, classes=7)
    recipe = recipe_for(classifier)
    assert (recipe.optimizer, recipe.weight_decay, recipe.clip, recipe.dropout) == ("sgd", 0, 1, 0)
    model, dataset = train.begin(classifier, large, recipe, "bicubic")
    assert (dataset.mean, dataset.std) == (classifier.mean, classifier.std) != (large.mean, large.std)
    same = at_resolution(classifier.model, 16, "bicubic").state_dict()
    for name, values in model.state_dict().items():
        assert name.startswith("head.") or np.array_equal(values, same[name])
    assert not model.head.weight.data.any() and model.config.classes == 7 and model.training
    _, loss, _ = train.evaluate(model, dataset.test, dataset.mean, dataset.std)
    assert loss == pytest.approx(np.log(7))


def test_a_finetuned_run_is_a_run(start, tmp_path):
    classifier, large = load(start), few(16)
    before = classifier.model.state_dict()
    recipe = recipe_for(classifier, epochs=2, image_size=16)
    run = train.finetune(classifier, large, tmp_path / "run", recipe, mode="bilinear", source=start, **quiet)
    assert all(np.array_equal(values, before[name]) for name, values in classifier.model.state_dict().items())
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text(encoding="utf-8"))
    origin = dict(run=str(start), data="digits", image_size=[8, 8], epochs_done=12, mode="bilinear")
    assert config["origin"] == origin and config["recipe"]["image_size"] == 16
    assert checkpoint.load(tmp_path / "run" / train.CHECKPOINT)[1]["origin"] == origin
    again = load(tmp_path / "run")
    assert (again.mean, again.std, again.model.config.image_size) == (classifier.mean, classifier.std, (16, 16))
    np.testing.assert_allclose(again.predict(large.test.images), run.probabilities, atol=1e-5)
    third = train.finetune(again, few(8), tmp_path / "third", recipe_for(again, epochs=1), **quiet)
    assert third.model.config.image_size == (8, 8), "a fine-tuned run can be fine-tuned, smaller too"


def test_it_knows_more_than_a_new_model(start, tmp_path):
    """Protects: the weights really go along; three epochs of 300 images teach a new model next to nothing."""
    classifier, large = load(start), few(16)
    recipe = recipe_for(classifier, epochs=3, batch_size=32)
    tuned = train.finetune(classifier, large, tmp_path / "tuned", recipe, **quiet)
    new = train.fit(recipe, large, tmp_path / "new", **quiet)
    assert tuned.test_accuracy > 0.8 > 0.5 > new.test_accuracy


def test_the_seed_decides(start, tmp_path):
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = recipe_for(load(start), epochs=1, seed=seed)
        run = train.finetune(load(start), few(16, count=64), tmp_path / name, recipe, **quiet)
        losses.append(run.history[-1]["validation_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_what_cannot_be_finetuned(start, tmp_path, monkeypatch):
    classifier = load(start)
    recipe = recipe_for(classifier)

    def refused(message, begun=classifier, dataset=None, **options):
        with pytest.raises(ValueError, match=message):
            train.finetune(begun, dataset or few(16), tmp_path / "run", recipe, **options)
        assert not (tmp_path / "run").exists(), "a mistake leaves nothing behind"

    refused("images of 1 channel, grey, those of digits have 3 channels, colour", dataset=few(16, channels=3))
    refused("multiples of 2 pixels, got 17×17; 16×16 is the nearest", dataset=few(17))
    refused("mode must be one of", mode="nearest")
    refused("the test split must hold at least one image", dataset=replace(few(8), test=few(8).test[:0]))
    monkeypatch.setattr(train.fitting, "MOST_BYTES", 2**20)
    refused("GiB")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("mine")
    with pytest.raises(train.TrainingError, match="must be new or empty"):
        monkeypatch.undo()
        train.finetune(classifier, few(8), tmp_path / "taken", recipe)


def test_a_resnet_has_no_positions(tmp_path, capsys):
    recipe = train.Recipe(preset="resnet20", epochs=0)
    train.fit(recipe, few(8, count=20), tmp_path / "resnet", **quiet)
    resnet = load(tmp_path / "resnet")
    with pytest.raises(ValueError, match="fine-tuning needs a ViT or a hybrid.*got resnet"):
        train.begin(resnet, few(16), recipe)
    assert main(["finetune", str(tmp_path / "resnet"), "digits", "--out", str(tmp_path / "run")]) == 1, "as figures"
    assert "must be a ViT or a hybrid; " in (err := capsys.readouterr().err) and err.endswith("resnet is a resnet\n")
    assert not (tmp_path / "run").exists()


def test_dropout_is_the_recipes(tmp_path):
    """Pre-trained with dropout, fine-tuned without, as the recipe says."""
    train.fit(train.Recipe(dropout=0.3, epochs=0), few(8, count=20), tmp_path / "run", **quiet)
    model, _ = train.begin(load(tmp_path / "run"), few(8), recipe_for(load(tmp_path / "run")))
    assert model.config.dropout == 0
    assert all(layer.p == 0 for _, layer in model.modules() if isinstance(layer, nn.Dropout))


# ------------------------------------------------------------------------------------- the command


def test_the_command(start, tmp_path, monkeypatch, capsys):
    """Fine-tuned at 16×16; eval and predict know the size by themselves; a second run gets a folder of its own."""
    monkeypatch.chdir(tmp_path)
    accuracies = []
    for n, epochs in ((1, 1), (2, 0)):
        words = ["finetune", str(start), "digits", "--image-size", "16", "--epochs", str(epochs), "--threads", "1"]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "images 8×8 → 16×16, patches 4×4 → 8×8, positions (1d) interpolated (corners); a new head for 10" in out
        assert f"digits-{n}  (attention.png" in out.splitlines()[-1]
        accuracies.append(re.search(r"test accuracy (\d+\.\d\d) %", out)[1])
    names = {p.name for p in (tmp_path / "runs" / "digits-1").iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoint.safetensors", "curves.png", "attention.png"} <= names
    assert main(["eval", "runs/digits-1"]) == 0
    assert f"test accuracy {accuracies[0]} %" in capsys.readouterr().out
    Image.fromarray(data.load("digits").test.images[0, :, :, 0]).save(tmp_path / "digit.png")
    assert main(["predict", "runs/digits-1", "digit.png", "--top", "1"]) == 0
    assert "attention: " in capsys.readouterr().out
    monkeypatch.setattr("tinyvit.cli.training.draw", lambda run: None)
    assert main(["finetune", "runs/digits-1", "digits", "--epochs", "0", "--out", "back"]) == 0
    assert "16×16 → 8×8, patches 8×8 → 4×4, fewer than before" in capsys.readouterr().out
    assert tomllib.loads((tmp_path / "back" / "config.toml").read_text())["origin"]["run"].endswith("digits-1")


def test_the_command_begins_once(start, tmp_path, monkeypatch, capsys):
    """Protects: one enlarged model in memory, not two; and no words about a run that is refused."""
    monkeypatch.setattr("tinyvit.cli.training.draw", lambda run: None)
    made = []

    def once(*arguments, **options):
        made.append(at_resolution(*arguments, **options))
        return made[-1]

    monkeypatch.setitem(train.begin.__globals__, "at_resolution", once)
    words = ["finetune", str(start), "digits", "--epochs", "0", "--out", str(tmp_path / "run")]
    assert main(words) == 0 and len(made) == 1
    assert "a new head for 10 classes" in capsys.readouterr().out
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "must be new or empty" in captured.err


def test_the_command_on_a_folder(start, tmp_path, monkeypatch, capsys):
    """Two new classes in a folder of larger pictures; the size is the pictures' own."""
    monkeypatch.setattr("tinyvit.cli.training.draw", lambda run: None)
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits", image_size=12)
    for label, name in ((0, "round"), (1, "straight")):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for i, image in enumerate(digits.train.images[digits.train.labels == label][:40]):
            Image.fromarray(image[:, :, 0]).save(tmp_path / "shapes" / name / f"{i}.png")
    assert main(["finetune", str(start), "shapes", "--epochs", "4"]) == 0
    out = capsys.readouterr().out
    assert "8×8 → 12×12" in out and "a new head for 2 classes" in out and "test accuracy 100.00 %" in out
    assert main(["eval", "runs/shapes-1"]) == 0
    assert "test accuracy 100.00 %" in capsys.readouterr().out
    assert main(["finetune", str(start), "shapes", "--out", "shapes/run"]) == 2
    assert "one more class inside the data folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere digits", 1, "there is no checkpoint at nowhere"),
        (". digits", 1, "must be a run's folder"),
        ("START", 2, "required: DATA"),
        ("START digitz", 2, "Did you mean 'digits'"),
        ("START digits --image-size 17", 2, "multiples of 2 pixels, got 17×17; 16×16 is the nearest"),
        ("START digits --image-size -8", 2, "image_size must be a whole number from 0 up"),
        ("START digits --image-size 5000", 2, "tokens, whose attention maps alone take"),
        ("START digits --mode nearest", 2, "invalid choice: 'nearest'"),
        ("START digits --lr nan", 2, "lr must be a finite number"),
        ("START colour", 2, "images of 1 channel, grey, those of colour have 3 channels, colour"),
    ],
)
def test_mistakes(words, code, message, start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("colour/red", "colour/blue") if "colour" in words else ():
        (tmp_path / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), name.split("/")[1]).save(tmp_path / name / f"{i}.png")
    try:
        got = main(["finetune", *words.replace("START", str(start)).split()])
    except SystemExit as stop:  # argparse's own way
        got = stop.code
    captured = capsys.readouterr()
    assert got == code and re.search(message, captured.err), captured.err
    assert "Traceback" not in captured.err and not (tmp_path / "runs").exists()
