"""Every example runs. What it reaches is in its docstring, measured; here it takes one short epoch."""

import os
import runpy
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np

import tinyvit as tv
from tinyvit import data
from tinyvit.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    """Run an example as its reader does; returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_thirty_lines(capsys):
    accuracy = runpy.run_path(str(EXAMPLES / "thirty_lines.py"))["main"](epochs=2)
    out = capsys.readouterr().out
    assert 0.1 < accuracy <= 1 and out.count("validation") == 2 and "test accuracy" in out


def test_design_choices():
    lines = run("design_choices", "heads", "--epochs", "1", "--seeds", "1").splitlines()
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        "| class token, linear", "| class token, one hidden layer", "| average of patches, linear",
        "| class token and 4 registers",
    ]  # fmt: skip


def load(name):
    """The functions of an example."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_design_choices_change_a_line_of_the_recipe_or_the_model():
    """Protects: a row is trained as it says, whether its change is the recipe's or the configuration's."""
    example, recipe = load("design_choices"), replace(tv.train.RECIPES["digits"], epochs=1)
    still, _, parameters, _ = example["run"](recipe, dict(lr=0.0))  # the head stays 0: one class for all images
    assert still < 0.15
    moved, _, fewer, _ = example["run"](recipe, dict(lr=0.01, warmup=0.0, positions="none"))
    assert moved > still and fewer == parameters - 17 * 48
    fields = vars(recipe) | vars(tv.PRESETS["digits"])
    assert all(name in fields for rows in example["TABLES"].values() for row in rows.values() for name in row)


def test_convolution_from_attention(tmp_path):
    example = load("convolution_from_attention")
    errors = example["construct"]((5, 40))
    assert errors[40][0] < 1e-14 and errors[40][1] < 1e-6 and min(errors[5]) > 1e-3
    example["learn"](data.load("digits"), images=64, epochs=1, picture=tmp_path / "centres.png")
    assert (tmp_path / "centres.png").stat().st_size > 10_000
    accuracies = example["compare"](images=64, epochs=1, seeds=2)
    assert [len(row) for row in accuracies.values()] == [2, 2]


def test_augmented_convolution():
    example = load("augmented_convolution")
    accuracies = example["main"](images=64, epochs=1, seeds=2)
    assert [len(row) for row in accuracies.values()] == [2, 2]
    augmented = example["AugmentedConfig"]()
    sizes = [example["AugmentedNet"](c).parameter_count() for c in (augmented, example["plain"](augmented))]
    assert max(sizes) < 1.06 * min(sizes)  # the comparison is one of equals


def test_pixel_attention(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))  # it starts processes
    example = load("pixel_attention")
    rows = example["cost"](points=((8, 1), (4, 1)), picture=tmp_path / "cost.png")
    assert [row["tokens"] for row in rows] == [17, 65] and (tmp_path / "cost.png").stat().st_size > 10_000
    side = example["wall"](8)
    room = 16 * 10**9
    assert example["remembered"](side**2 + 1, 8) <= room < example["remembered"]((side + 1) ** 2 + 1, 8)
    assert set(example["accuracy"](epochs=1, seeds=1, images=64)) == {4, 2, 1}


def test_image_gpt(tmp_path):
    bits, baseline, curves = load("image_gpt")["main"](epochs=1, images=64, picture=tmp_path / "image-gpt.png")
    assert 2 < bits < np.log2(17) and 2 < baseline < 3 and list(curves) == [100, 64]
    assert (tmp_path / "image-gpt.png").stat().st_size > 10_000


def test_masked_patches(tmp_path):
    accuracies = load("masked_patches")["main"](epochs=1, images=64, seeds=1, out=tmp_path / "run")
    assert len(accuracies) == 2 * (2 * 2 + 1) and all(0.1 < accuracy <= 1 for accuracy in accuracies.values())
    run = str(tmp_path / "run")  # which other commands read
    assert main(["figures", run]) == 0 and (tmp_path / "run" / "figures" / "attention.png").exists()
    assert main(["finetune", run, "digits", "--epochs", "0", "--out", str(tmp_path / "tuned")]) == 0
    origin = tomllib.loads((tmp_path / "tuned" / "config.toml").read_text(encoding="utf-8"))["origin"]
    assert origin["epochs_done"] == 1 and origin["data"] == "digits"


def test_higher_resolution(tmp_path, capsys):
    example = load("higher_resolution")
    recipe = example["replace"](example["SETTINGS"]["digits"].small, epochs=1)
    setting = example["Setting"](recipe, 8, 16, images=64, budgets={1: (0.03, 0.2, 4e-3)})
    (results,) = example["main"](seeds=1, picture=tmp_path / "positions.png", setting=setting)
    assert len(results) == 1 + 3 * 3 + 3 and len(capsys.readouterr().out.splitlines()) == 1 + len(results)
    assert results["length of a position, corners"] < results["length of a position, bicubic"] < 1
    assert (tmp_path / "positions.png").stat().st_size > 10_000


def test_no_example_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "augmented_convolution", "convolution_from_attention", "design_choices", "higher_resolution", "image_gpt",
        "inductive_bias", "inductive_bias_report", "masked_patches", "pixel_attention", "thirty_lines",
    }  # fmt: skip
