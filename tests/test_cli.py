"""The command line as a user meets it: what it prints, its exit codes, and never a traceback for a mistake."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tinyvit import data
from tinyvit.classifier import load
from tinyvit.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three epochs, made by the command itself."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "digits", "--epochs", "3", "--warmup", "1", "--out", str(folder)]) == 0
    return folder


def test_train_says_how_well_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        assert main(["train", "--epochs", "1", "--preset", "digits", "--seed", "5", "--threads", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"test accuracy \d+\.\d\d %", lines[-2])
        assert lines[-1].endswith(f"digits-{n}")
    names = {p.name for p in (tmp_path / "runs" / "digits-1").iterdir()}
    assert names == {
        "config.toml", "metrics.jsonl", "checkpoint.safetensors", "curves.png", "attention.png", "mistakes.png"
    }  # fmt: skip


def test_pictures_are_pictures(run):
    for name in ("curves.png", "attention.png", "mistakes.png"):
        with Image.open(run / name) as image:
            assert min(image.size) > 200
            assert np.array(image.convert("L")).std() > 5


def test_eval_repeats_the_test(run, capsys):
    assert main(["eval", str(run)]) == 0
    out = capsys.readouterr().out
    classifier, test = load(run), data.load("digits").test
    accuracy = (classifier.predict(test.images).argmax(1) == test.labels).mean()
    assert f"test accuracy {100 * accuracy:.2f} %" in out
    assert main(["eval", str(run), "--split", "validation"]) == 0
    assert "validation accuracy" in capsys.readouterr().out


def save_image(path, array, scale=10):
    Image.fromarray(np.repeat(np.repeat(array, scale, 0), scale, 1)).save(path)


def test_predict(run, tmp_path, capsys):
    """Grey, colour, transparent and inverted pictures of one digit get one answer, and an overlay each."""
    test, classifier = data.load("digits").test, load(run)
    digit = test.images[0, :, :, 0]
    expected = classifier.classes[classifier.predict(test.images[:1])[0].argmax()]
    save_image(tmp_path / "grey.png", digit)
    save_image(tmp_path / "colour.png", np.stack([digit] * 3, -1))
    save_image(tmp_path / "paper.png", 255 - digit)
    save_image(tmp_path / "clear.png", np.stack([0 * digit] * 3 + [digit], -1))  # black ink, transparent paper
    paths = [str(tmp_path / f"{name}.png") for name in ("grey", "colour", "paper", "clear")]
    assert main(["predict", str(run), *paths, "--out", str(tmp_path / "out"), "--top", "3"]) == 0
    out = capsys.readouterr().out
    answers = [block.splitlines()[1].split("%")[1].strip() for block in re.split(r"(?=^/)", out, flags=re.M) if block]
    assert answers == [expected] * 4
    assert out.count("inverted") == 2 and out.count("attention:") == 4
    assert len(list((tmp_path / "out").glob("*-attention.png"))) == 4


def test_predict_goes_on_after_a_bad_image(run, tmp_path, capsys):
    save_image(tmp_path / "good.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    arguments = [str(tmp_path / name) for name in ("bad.png", "none.png", "good.png")]
    assert main(["predict", str(run), *arguments, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "bad.png cannot be read as an image" in captured.err and "there is no image at" in captured.err
    assert "good.png" in captured.out


def test_train_on_a_folder_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(120 * k, 120 * k + 100, (12, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    words = [
        "train",
        "pictures",
        "--image-size",
        "8",
        "--patch",
        "4",
        "--preset",
        "digits",
        "--epochs",
        "8",
        "--lr",
        "0.01",
    ]
    assert main([*words, "--warmup", "1", "--batch-size", "8"]) == 0
    assert "test accuracy 100.00 %" in capsys.readouterr().out
    assert main(["eval", "runs/pictures-1"]) == 0
    picture = next((tmp_path / "pictures" / "light").iterdir())
    assert main(["predict", "runs/pictures-1", str(picture)]) == 0
    assert "%  light" in capsys.readouterr().out


def test_info_and_data(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("tinyvit", "numpy", "cores", "BLAS", "kernels", "compiled"))
    assert main(["data", "digits"]) == 0
    out = capsys.readouterr().out
    assert "10 classes" in out and "classes: 0, 1, 2" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train digitz", 2, "one of digits, mnist.*Did you mean 'digits'"),
        ("train --epochs -1", 2, "epochs must be a whole number from 0 up, got -1"),
        ("train --epochs many", 2, "invalid int value: 'many'"),
        ("train --patch 3", 2, "patch size 3 must divide the image's 8×8; 2 is the nearest"),
        ("train --preset huge", 2, "invalid choice: 'huge'.*digits"),
        ("train --preset B/16", 2, "patch size 16 must divide"),
        ("train --threads 0", 2, "whole number from 1 up"),
        ("train --lr nan", 2, "lr must be a finite number"),
        ("eval nowhere", 1, "there is no checkpoint at nowhere"),
        ("eval .", 1, "not a run's folder"),
        ("predict nowhere x.png", 1, "there is no checkpoint"),
        ("data cifar", 2, "Did you mean 'cifar10'"),
        ("fly", 2, "invalid choice: 'fly'"),
        ("", 2, "required: COMMAND"),
    ],
)
def test_mistakes(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        got = main(words.split())
    except SystemExit as stop:  # argparse's own way
        got = stop.code
    captured = capsys.readouterr()
    assert got == code and re.search(message, captured.err), captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


def test_help_has_examples(capsys):
    for words in (["--help"], ["train", "--help"], ["predict", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert "tinyvit" in capsys.readouterr().out


def test_a_run_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--epochs", "1", "--out", str(tmp_path / "file" / "run")]) == 1
    assert "file" in capsys.readouterr().err
    assert main(["train", "--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "must be new or empty" in capsys.readouterr().err


def start(folder, epochs):
    command = [sys.executable, "-m", "tinyvit", "train", "--epochs", str(epochs), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals to another process are POSIX's")
@pytest.mark.parametrize("kind", ["SIGINT", "SIGKILL"])
def test_a_run_that_is_stopped_leaves_a_checkpoint(kind, tmp_path):
    """Ctrl-C: exit code 130, a line that says so, a picture of the curve. A kill: no last words, but a whole
    checkpoint."""
    process = start(tmp_path / "run", 1000)
    process.send_signal(getattr(signal, kind))
    out, err = process.communicate(timeout=60)
    assert load(tmp_path / "run").epochs_done >= 1
    assert "Traceback" not in err
    if kind == "SIGINT":
        assert process.returncode == 130, err
        assert "the checkpoint holds it" in out and (tmp_path / "run" / "curves.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently on Windows")
def test_a_reader_that_leaves_early():
    done = subprocess.run(
        f"{sys.executable} -m tinyvit info | head -n 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("tinyvit") and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_terminal_without_unicode():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tinyvit", "train", "--patch", "3"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "8?8" in done.stderr and "Traceback" not in done.stderr
