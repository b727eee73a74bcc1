"""The command line as a user meets it: what it prints, its exit codes, and never a traceback for a mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tinyvit import data, models, train, viz
from tinyvit.classifier import load
from tinyvit.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three epochs, made by the command itself."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "digits", "--epochs", "3", "--warmup", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """For what is not about them: they take longer than these runs."""
    monkeypatch.setattr("tinyvit.cli.training.draw", lambda run: None)


def test_train_says_how_well_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        assert main(["train", "--epochs", "1", "--preset", "digits", "--seed", "5", "--threads", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"test accuracy \d+\.\d\d %", lines[-2])
        assert re.fullmatch(rf"run folder: .*digits-{n}  \(attention.png, .*; all of it: report.html\)", lines[-1])
    names = {p.name for p in (tmp_path / "runs" / "digits-1").iterdir()}
    assert names == {
        "config.toml", "metrics.jsonl", "checkpoint.safetensors", "best.safetensors", "curves.png", "attention.png",
        "mistakes.png", "report.html", "lock",
    }  # fmt: skip


def test_a_recipe_from_a_file_and_by_name(tmp_path, monkeypatch, capsys, no_pictures):
    """Protects: --recipe, with the other words on top of it, and that its data are the data."""
    monkeypatch.chdir(tmp_path)
    digits = train.recipes.FILES["digits"].read_text(encoding="utf-8")
    text = digits.replace("epochs = 120", "epochs = 0").replace("lr = 4e-3", "lr = 0.123")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert main(["train", "--recipe", "mine.toml", "--clip", "0.5", "--out", "run"]) == 0
    recipe = load("run").recipe
    assert (recipe.data, recipe.epochs, recipe.lr, recipe.clip, recipe.shards) == ("digits", 0, 0.123, 0.5, 2)
    assert main(["train", "digits", "--recipe", "mnist", "--preset", "digits", "--epochs", "0", "--out", "other"]) == 0
    recipe = load("other").recipe
    assert (recipe.data, recipe.batch_size) == ("digits", train.RECIPES["mnist"].batch_size)
    capsys.readouterr()
    assert main(["train", "--recipe", "nobody's"]) == 2
    assert "nobody's cannot be read as a recipe" in capsys.readouterr().err


def test_a_recipe_for_any_folder_needs_one(tmp_path, monkeypatch, capsys, no_pictures):
    """Protects: the folder where the user stands is not taken for data."""
    monkeypatch.chdir(tmp_path)
    file = train.recipes.FILES["folder"]
    for name in ("folder", str(file)):
        assert main(["train", "--recipe", name]) == 2
        assert "any folder of images: tinyvit train FOLDER --recipe" in capsys.readouterr().err
    assert main(["train", "digits", "--recipe", "folder", "--preset", "digits", "--epochs", "0", "--out", "run"]) == 0
    assert load("run").recipe.batch_size == train.FOLDER_RECIPE.batch_size


def test_recipes_are_listed_with_their_promises(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(f"^{name} ", out, re.M) for name in train.recipes.FILES)
    for promise in train.PROMISES.values():
        assert f"{promise}\n{'':<16}{promise.command}\n" in out


def test_the_result_is_said_before_pictures_are_drawn(tmp_path, monkeypatch, capsys):
    """Protects: the accuracy, from a SIGTERM in the seconds that drawing takes."""
    said = []
    monkeypatch.setattr("tinyvit.cli.training.draw", lambda *_: said.append(capsys.readouterr().out))
    assert main(["train", "--epochs", "0", "--out", str(tmp_path / "run")]) == 0
    assert re.search(r"\ntest accuracy \d+\.\d\d %\n$", said[0])


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt()])
def test_what_drawing_dies_of_does_not_take_the_result_along(trouble, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise trouble

    monkeypatch.setattr(viz, "attention", fails)
    assert main(["train", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert re.search(r"\ntest accuracy \d+\.\d\d %\nrun folder: .*run  \(curves.png\)\n$", captured.out)
    assert captured.err.count("not all pictures are drawn") == 1 and "Traceback" not in captured.err


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
    blocks = out.split("\n" + "  attention: ")[:-1]  # each ends with its picture's name
    best = [next(line for line in block.splitlines() if " %  " in line) for block in blocks]
    assert [line.split("%")[1].strip() for line in best] == [expected] * 4
    assert out.count("inverted") == 2
    assert len(list((tmp_path / "out").glob("*.png-attention.png"))) == 4


def test_predict_draws_over_nothing(run, tmp_path, monkeypatch, capsys):
    """Protects: one.png of two folders, one.jpg and one.png, and an image that is called like a picture of another."""
    monkeypatch.chdir(tmp_path)
    names = ["a/one.png", "b/one.png", "a/one.jpg", "one.png-attention.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_image(tmp_path / name, np.zeros((8, 8), np.uint8))
    before = (tmp_path / names[-1]).read_bytes()
    assert main(["predict", str(run), *names]) == 0
    assert (tmp_path / names[-1]).read_bytes() == before
    drawn = re.findall("attention: (.*)", capsys.readouterr().out)
    assert drawn == [
        "one.png-attention-2.png", "one.png-attention-3.png", "one.jpg-attention.png",
        "one.png-attention.png-attention.png",
    ]  # fmt: skip
    assert all((tmp_path / name).exists() for name in drawn)


def test_predict_goes_on_after_a_bad_image(run, tmp_path, capsys):
    save_image(tmp_path / "good.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    arguments = [str(tmp_path / name) for name in ("bad.png", "none.png", "good.png")]
    assert main(["predict", str(run), *arguments, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "bad.png cannot be read as an image" in captured.err and "there is no image at" in captured.err
    assert "good.png" in captured.out


FIGURES = {f"{name}.png" for name in ("filters", "positions", "attention", "heads", "distance", "inside")}


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_figures(run, tmp_path, monkeypatch, capsys):
    """All figures, named; once more from elsewhere, which replaces them and leaves other files alone."""
    monkeypatch.chdir(tmp_path)
    folder = run / "figures"
    for checkpoint, others in ((run, set()), (run / "checkpoint.safetensors", {"notes.txt"})):
        assert main(["figures", str(checkpoint)]) == 0
        said = capsys.readouterr().out.split("\n")[:-1]
        assert set(said) == {str(folder / name) for name in FIGURES}
        for name in FIGURES:
            with Image.open(folder / name) as image:
                assert image.width == 900 and np.array(image.convert("L")).std() > 5
        assert names_in(folder) == FIGURES | others
        (folder / "notes.txt").write_text("mine")
        (folder / "filters.png").write_bytes(b"old")
    assert (folder / "notes.txt").read_text() == "mine" and list(tmp_path.iterdir()) == []


def test_figures_of_as_many_images_as_asked_where_asked(run, tmp_path, monkeypatch):
    drawn = []

    def attention(images, maps, captions):
        drawn.append((images, captions))
        return viz.curves([])

    monkeypatch.setattr(viz, "attention", attention)
    assert main(["figures", str(run), "--images", "12", "--out", str(tmp_path / "new" / "figs")]) == 0
    assert names_in(tmp_path / "new" / "figs") == FIGURES
    [(images, captions)] = drawn
    assert images.shape == (12, 8, 8, 1)  # the first image of each class, then the second of the first two classes
    assert [words.split()[1] for words in captions] == list("012345678901")
    test = data.load("digits").test
    np.testing.assert_array_equal(images[3], test.images[test.labels == 3][0])
    np.testing.assert_array_equal(images[11], test.images[test.labels == 1][1])


def test_figures_without_the_data(pictures, tmp_path, capsys, no_pictures):
    """What needs no images is drawn, and a line says why the rest is not."""
    assert main(["train", "pictures", *ON_FOLDER, "--epochs", "1", "--out", "run"]) == 0
    pictures.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["figures", "run"]) == 1
    why = "only what needs no images is drawn: it was trained on .*, which is not here.*--data\n"
    assert re.fullmatch(f"tinyvit figures: {why}", capsys.readouterr().err)
    assert names_in(tmp_path / "run" / "figures") == {"filters.png", "positions.png"}
    for there, message in {"nowhere": "one of digits", "digits": "the model reads images"}.items():
        assert main(["figures", "run", "--data", there, "--out", "other"]) in (1, 2)
        assert re.search(message, capsys.readouterr().err) and not (tmp_path / "other").exists()
    assert main(["figures", "run", "--data", "moved"]) == 0
    assert names_in(tmp_path / "run" / "figures") == FIGURES


def checkpoint_of(model, run, folder):
    """A checkpoint as `run`'s, of another model."""
    _, about = train.checkpoint.load(run / "checkpoint.safetensors")
    folder.mkdir()
    weights = {f"model.{name}": p.data for name, p in model.named_parameters()}
    about = about | {"model": models.to_dict(model.config)}
    train.checkpoint.save(folder / "checkpoint.safetensors", weights, about)
    return str(folder)


def test_figures_and_predictions_of_other_models(run, tmp_path, capsys):
    """Each model gets what it has, and a line for what it has not."""
    config = replace(load(run).model.config, positions="relative", pool="average", registers=2, head="mlp")
    odd = checkpoint_of(models.build(config), run, tmp_path / "odd")
    assert main(["figures", odd]) == 0
    assert names_in(tmp_path / "odd" / "figures") == FIGURES - {"positions.png", "inside.png"}
    assert re.fullmatch("tinyvit figures: no positions.png: .*'relative'\n", capsys.readouterr().err)

    hybrid = checkpoint_of(models.build(models.PRESETS["hybrid-digits"]), run, tmp_path / "hybrid")
    assert main(["figures", hybrid]) == 0
    assert names_in(tmp_path / "hybrid" / "figures") == FIGURES - {"filters.png", "inside.png"}
    assert "no filters.png: only a ViT's embedding has filters of pixels" in capsys.readouterr().err

    config = models.ResNetConfig(image_size=(8, 8), channels=1, blocks=(1,), widths=(4,), norm="group")
    resnet = checkpoint_of(models.build(config), run, tmp_path / "resnet")
    assert main(["figures", resnet]) == 1
    assert "the model must be a ViT or a hybrid" in (err := capsys.readouterr().err) and "is a resnet\n" in err
    assert [path.name for path in (tmp_path / "resnet").iterdir()] == ["checkpoint.safetensors"]
    save_image(tmp_path / "digit.png", data.load("digits").test.images[0, :, :, 0])
    assert main(["predict", resnet, str(tmp_path / "digit.png"), "--out", str(tmp_path / "out")]) == 0
    assert "attention" not in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The user stands beside a folder of two classes, 20 images of 12x16 each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(120 * k, 120 * k + 100, (12, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


ON_FOLDER = "--image-size 8 --patch 4 --preset digits --epochs 8 --lr 0.01 --warmup 1 --batch-size 8".split()


def test_train_on_a_folder_of_images(pictures, tmp_path, monkeypatch, capsys):
    assert main(["train", "pictures", *ON_FOLDER]) == 0
    assert "test accuracy 100.00 %" in capsys.readouterr().out
    picture = next((pictures / "light").iterdir())
    assert main(["predict", "runs/pictures-1", str(picture)]) == 0
    assert "%  light" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["eval", "../runs/pictures-1"]) == 0
    assert "test accuracy 100.00 %" in capsys.readouterr().out

    (pictures / "dark").rename(pictures / "dim")
    assert main(["eval", "../runs/pictures-1"]) == 1
    assert "class 0 must be the model's, dark; in pictures it is dim" in capsys.readouterr().err
    assert main(["eval", "../runs/pictures-1", "--data", "digits"]) == 1
    assert "the model reads images (8, 8, 3), those of digits are (8, 8, 1)" in capsys.readouterr().err
    pictures.rename(tmp_path / "moved")
    assert main(["eval", "../runs/pictures-1"]) == 1
    assert re.search("trained on .*pictures, which is not here.*--data", capsys.readouterr().err)
    (tmp_path / "moved" / "dim").rename(tmp_path / "moved" / "dark")
    assert main(["eval", "../runs/pictures-1", "--data", str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize("where", ["a runs/ here", "--out"])
def test_a_run_inside_the_data_is_refused(where, pictures, monkeypatch, capsys):
    """Protects: checkpoints would be one more class, without images, and the next command would fail."""
    if where == "--out":
        words = ["train", "pictures", *ON_FOLDER, "--out", "pictures/run"]
    else:
        monkeypatch.chdir(pictures)
        words = ["train", ".", *ON_FOLDER]
    assert main(words) == 2
    assert "go up one folder or use --out" in capsys.readouterr().err
    assert sorted(path.name for path in pictures.iterdir()) == ["dark", "light"]


def test_a_folder_may_be_a_dot(pictures, tmp_path, monkeypatch, capsys, no_pictures):
    monkeypatch.chdir(pictures / "dark")
    assert main(["train", "..", *ON_FOLDER, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert load(tmp_path / "run").recipe.data == str(pictures.resolve())


def test_sizes_that_do_not_fit_offer_to_resize(pictures, capsys):
    assert main(["train", "pictures", "--patch", "5"]) == 2
    assert "patch size 5 must divide the image's 12×16" in (err := capsys.readouterr().err) and "--image-size 15" in err
    Image.new("RGB", (9, 9)).save(pictures / "dark" / "odd.png")
    assert main(["train", "pictures"]) == 1
    assert "--image-size" in capsys.readouterr().err


def test_too_little_memory_is_one_line(monkeypatch, tmp_path, capsys):
    def fit(*_, **__):
        return np.empty(2**50)  # NumPy's own MemoryError

    monkeypatch.setattr(train, "fit", fit)
    assert main(["train", "--out", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in ("--batch-size", "--image-size", "--patch", "PiB"))


def test_info_and_data(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("tinyvit", "numpy", "cores", "BLAS", "kernels", "compiled", "downloads: "))
    assert main(["data", "digits"]) == 0
    out = capsys.readouterr().out
    assert "10 classes" in out and "classes: 0, 1, 2" in out


def test_info_marks_a_data_folder_that_is_none(tmp_path, monkeypatch, capsys):
    for folder, words in {tmp_path / "nowhere": "(no such folder)", tmp_path: "(no data sets)"}.items():
        monkeypatch.setenv("TINYVIT_DATA", str(folder))
        assert main(["info"]) == 0
        assert f"TINYVIT_DATA={folder} {words}" in capsys.readouterr().out


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
        ("train digits --image-size 5000", 2, "6,250,001 tokens, whose attention maps alone take"),
        ("train digits --preset resnet-digits --image-size 5000", 2, "images of 5000×5000 with 16 numbers .* GiB"),
        ("train digits --preset resnet-digits --patch 3", 2, "resnet-digits has no patch: it is a resnet$"),
        ("train digits --preset hybrid-digits --patch 3", 2, "the feature map's 4×4; .*--image-size 6"),
        ("train digits --image-size 17", 2, "patch size 2 must divide the image's 17×17; 1 .*--image-size 16"),
        ("train digits/", 2, "one of digits, mnist"),
        ("eval nowhere", 1, "there is no checkpoint at nowhere"),
        ("eval .", 1, "must be a run's folder"),
        ("predict nowhere x.png", 1, "there is no checkpoint"),
        ("figures nowhere", 1, "there is no checkpoint"),
        ("figures", 2, "required: RUN"),
        ("figures run --images 0", 2, "whole number from 1 up"),
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
    for words in (["train", "--epochs", "1"], ["predict", "run", "image.png"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--out", str(tmp_path / "file")])
        assert stop.value.code == 2 and "--out: must be a folder, but" in capsys.readouterr().err


def start(folder, epochs):
    command = [sys.executable, "-m", "tinyvit", "train", "--epochs", str(epochs), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end, metrics = time.monotonic() + 300, folder / "metrics.jsonl"  # a machine may be busy
    while process.poll() is None and time.monotonic() < end:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:  # so the first epoch's checkpoint is written
            break
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


def tinyvit(*words, **options):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "tinyvit", *words]
    return subprocess.run(command, **dict(capture_output=True, text=True, timeout=60) | options)


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently on Windows")
@pytest.mark.parametrize("words", [["info"], ["train", "--epochs", "2"]])
def test_a_reader_that_leaves_early(words, tmp_path):
    """Protects: after `tinyvit train | head -n 1` the training goes on to its end, in silence."""
    reading, writing = os.pipe()
    where = ["--out", str(tmp_path / "run")] if words[0] == "train" else []
    command = [sys.executable, "-m", "tinyvit", *words, *where]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert os.read(reading, 1)
    assert not (tmp_path / "run" / "mistakes.png").exists(), "a line must come when it is said, not at the end"
    os.close(reading)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err and "BrokenPipe" not in err, err
    if words[0] == "train":
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert len([row for row in rows if "epoch" in row]) == 2 and (tmp_path / "run" / "mistakes.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="closes streams in POSIX's way")
def test_a_process_without_streams(tmp_path):
    """Protects: a service without stdout and stderr trains as well; pythonw on Windows is such a one."""
    words = ["train", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert tinyvit(*words, preexec_fn=lambda: os.closerange(1, 3)).returncode == 0
    assert (tmp_path / "run" / "mistakes.png").exists()


def test_a_warning_is_one_line():
    """Protects: a user sees what is the matter, and neither a path of our source nor a line of it."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, warnings, tinyvit.cli.words as words, tinyvit.__main__ as entrance\n"
         "words.run_info = lambda _: warnings.warn('the data\\nis old')\nsys.argv[1:] = ['info']\nentrance.main()"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == "tinyvit: the data is old\n"


def test_a_terminal_without_unicode():
    done = tinyvit("train", "--patch", "3", env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 2 and "8?8" in done.stderr and "Traceback" not in done.stderr
