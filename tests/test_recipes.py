"""Recipes are files: each is read, each promise is a number that somebody can measure again."""

from dataclasses import asdict

import pytest

from tinyvit import data, train
from tinyvit.train.recipes import FILES, PROMISES, RECIPES, RecipeError, read_recipe


def test_every_named_data_set_has_a_recipe_of_its_name():
    assert set(data.NAMES) <= set(RECIPES)
    assert all(RECIPES[name].data == name for name in data.NAMES)
    assert {recipe.data for recipe in RECIPES.values()} == set(data.NAMES)
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
    assert str(promise) == "98.50 ± 0.50 % of a copy of x, 2 seeds, 2.5 minutes"
    assert str(train.recipes.Promise((98.0,), 2, "…")) == "98.00 %, 1 seed, 2 minutes"


def test_a_file_gives_what_it_says(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[recipe]\ndata = "mnist"\nepochs = 3\nmixup = 0.2\n', encoding="utf-8")
    recipe, promise = read_recipe(file)
    assert promise is None
    assert asdict(recipe) == asdict(train.Recipe("mnist", epochs=3, mixup=0.2))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"must hold a table \[recipe\], and may hold a \[promise\]; found nothing"),
        ("[recipes]\nepochs = 3", r"found \[recipes\]"),
        ("[recipe]\ncolour = 3", "a recipe has no colour; it has augment"),
        ("[recipe]\nepochs = -1", "epochs must be a whole number from 0 up, got -1"),
        ('[recipe]\nlr = "fast"', "mine.toml: lr must be a finite number from 0 up, got 'fast'"),
        ("[recipe]\nepochs =", "cannot be read as a recipe"),
        ("[recipe]\n[promise]\nminutes = 3", "a promise has accuracy, minutes, command and may have data; got minutes"),
        ('[recipe]\n[promise]\naccuracy = 99.0\nminutes = 3\ncommand = "x"', "accuracy must be a list, a percentage"),
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
