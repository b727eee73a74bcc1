"""Recipes are files: each is read, each promise is a number that somebody can measure again."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tinyvit import bench, data, train
from tinyvit.cli import main
from tinyvit.train.recipes import FILES, KNOWN, NAMED, PROMISES, RECIPES, RecipeError, read_recipe

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import endurance  # noqa: E402
import time_to_accuracy  # noqa: E402

WHOLE = """[recipe]
data = "mnist"
preset = "mnist"
epochs = 3
batch_size = 50
lr = 1e-3
warmup = 0
weight_decay = 0.1
augment = "none"
"""


def test_every_named_data_set_has_a_recipe_of_its_name():
    assert set(data.NAMES) <= set(RECIPES)
    assert all(RECIPES[name].data == name for name in data.NAMES)
    assert {recipe.data for recipe, _ in KNOWN.values()} == {*data.NAMES, ""}
    assert train.FOLDER_RECIPE.data == ""


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_is_complete(name):
    """Protects: accuracy in percent, several seeds, minutes, and a command that names the recipe."""
    promise = PROMISES[name]
    assert all(50 < accuracy <= 100 for accuracy in promise.accuracy)
    assert 0 < promise.minutes <= 60
    assert "tinyvit train" in promise.command and (name in promise.command or name == "digits")
    assert str(promise).count("%") == 1


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is_for(name):
    """Protects: the comment at the top, which is where a reader looks for the reasons."""
    assert FILES[name].read_text(encoding="utf-8").startswith("# ")


def test_a_promise_in_words():
    promise = train.recipes.Promise((98.0, 99.0), 2.5, "tinyvit train x", "a copy of x")
    assert str(promise) == "98.50 ± 0.71 % of a copy of x, 2 seeds, 2.5 minutes"
    assert str(train.recipes.Promise((98.0,), 0.25, "…")) == "98.00 %, 1 seed, 15 s"


def test_the_readme_says_the_same():
    """Protects: mean and spread of each promise, computed once more for README's table."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for promise in PROMISES.values():
        assert str(promise).partition(" %")[0] + " % (" + ", ".join(map(str, promise.accuracy)) in readme


def test_a_file_gives_what_it_says(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(WHOLE + "mixup = 0.2\n", encoding="utf-8-sig")  # as Windows' Notepad does, with a byte-order mark
    recipe, promise = read_recipe(file)
    assert promise is None
    expected = train.Recipe("mnist", "mnist", 3, 50, 1e-3, 0, 0.1, augment="none", mixup=0.2)
    assert asdict(recipe) == asdict(expected)


@pytest.mark.parametrize("name", NAMED)
def test_what_a_file_must_name(name, tmp_path):
    """Protects: training on MNIST with what was chosen for the digits, in silence."""
    file = tmp_path / "mine.toml"
    lines = WHOLE.splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith(f"{name} =")), encoding="utf-8")
    with pytest.raises(RecipeError, match=f"must name data, preset, .*; it lacks {name}$"):
        read_recipe(file)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"must hold a table \[recipe\], and may hold a \[promise\]; found nothing"),
        ("[recipes]\nepochs = 3", r"found \[recipes\]"),
        ("[recipe]\ncolour = 3", "a recipe has no colour; it has augment"),
        ("[recipe]\nepochs = -1", "epochs must be a whole number from 0 up, got -1"),
        ('[recipe]\nlr = "fast"', "mine.toml: lr must be a finite number from 0 up, got 'fast'"),
        ("[recipe]\nepochs =", "cannot be read as a recipe"),
        (f"{WHOLE}[promise]\nminutes = 3", "a promise has accuracy, minutes, command and may have data; got minutes"),
        (f'{WHOLE}[promise]\naccuracy = 99.0\nminutes = 3\ncommand = "x"', "accuracy must be a list, a percentage"),
        (f'{WHOLE}[promise]\naccuracy = [99.0]\nminutes = "3"\ncommand = "x"', "minutes must be a number, got '3'"),
        (f"{WHOLE}[promise]\naccuracy = [99.0]\nminutes = 3\ncommand = 3", "command must be a text, got 3"),
        ("recipe = 3", r"must hold a table \[recipe\].* found recipe$"),
        ("[[recipe]]", "found recipe$"),
        ("promise = 3\n[recipe]", r"found promise, \[recipe\]$"),
        ("[recipe]\npreset = []", r"preset must be one of digits, .*; got \[\]"),
        ("[recipe]\ndata = 5", "data must be a text, got 5"),
        ("[recipe]\nepochs = true", "epochs must be a whole number from 0 up, got True"),
        ("[recipe]\nlr = true", "lr must be a finite number from 0 up, got True"),
    ],
)
def test_errors_name_the_file_and_the_trouble(text, message, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message) as error:
        read_recipe(file)
    assert str(file) in str(error.value)


def test_a_missing_file_and_a_picture(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "picture.toml")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        read_recipe(tmp_path)


def test_the_race_with_pytorch_takes_what_both_do():
    """Protects: the board, on which another recipe would race under this one's name."""
    for name in time_to_accuracy.TARGETS:
        time_to_accuracy.check(RECIPES[name])
    time_to_accuracy.check(replace(RECIPES["mnist"], rand_ops=2, erase=0.2))
    others = dict(mixup=0.2, cutmix=1.0, ema=0.9, drop_path=0.1, dropout=0.1, clip=0.0, optimizer="sgd")
    others |= dict(preset="hybrid")
    for name, value in others.items():
        with pytest.raises(bench.BenchError, match=f"has no {name} = {value}$"):
            time_to_accuracy.check(replace(RECIPES["mnist"], **{name: value}))


def test_endurance_divides_by_the_epochs_between_two_looks():
    """Protects: the table of a long run, whose short epochs come several at a look."""
    looks = [(1, 0.0, 50.0, 90.0), (2, 60.0, 60.0, 100.0), (4, 120.0, 80.0, 100.0), (6, 180.0, 120.0, 110.0)]
    assert endurance.row("x", looks) == ["x", 6, "3.0", "10.0", "20.0", "2.000", "100.0", "110.0", "1.100"]


def test_a_recipe_is_no_data(capsys):
    """Protects: `train cifar10-hybrid`, which would have been answered with another run's name."""
    name = next(name for name in FILES if name not in data.NAMES)
    assert main(["train", name]) == 2 and f"tinyvit train --recipe {name}" in capsys.readouterr().err
    assert main(["train", "--recipe", ""]) == 2 and "cannot be read as a recipe" in capsys.readouterr().err
