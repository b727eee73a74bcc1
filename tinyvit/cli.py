"""The `tinyvit` command: train, eval, predict, info, data.

A user's mistake gets one line and exit code 2 (the words of the command) or 1 (the world: data, disk, checkpoint); a
traceback here would be our mistake.
"""

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

import tinyvit
from tinyvit import data, kernels, train
from tinyvit.classifier import load
from tinyvit.data.dataset import normalise
from tinyvit.train.checkpoint import write_atomically


class Mistake(Exception):
    """Something in the words of the command; exit code 2."""


def main(arguments=None):
    """Run the command line `arguments` (sys.argv by default) and return the exit code: 0 done, 1 failed, 2 misused,
    130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a Windows console that lacks a character shows "?" instead of failing
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except Mistake as error:
        print(f"tinyvit {options.command}: {error}", file=sys.stderr)
        return 2
    except (data.DataError, train.CheckpointError, train.TrainingError) as error:
        print(f"tinyvit {options.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `tinyvit info | head -1`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(
            f"tinyvit {options.command}: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


# ---------------------------------------------------------------------------------------------- train


def run_train(options):
    known = train.RECIPES.get(options.data) or replace(train.FOLDER_RECIPE, data=options.data)
    changes = {f.name: getattr(options, f.name, None) for f in fields(train.Recipe) if f.name != "data"}
    try:
        recipe = replace(known, **{name: value for name, value in changes.items() if value is not None})
        dataset = _load_data(recipe.data, recipe.image_size)
        train.loop.configure(recipe, dataset)
    except ValueError as error:
        raise Mistake(error) from None
    folder = Path(options.out) if options.out else train.new_folder(options.data)
    run = train.fit(recipe, dataset, folder, threads=options.threads)
    pictures = draw(run, dataset)
    if run.interrupted:
        print(f"run folder: {run.folder}  ({', '.join(pictures)})")
        return 130
    print(f"trained in {run.seconds:.0f} s; the pictures are {', '.join(pictures)}")
    print(f"test accuracy {100 * run.test_accuracy:.2f} %")
    print(f"run folder: {run.folder}")


def draw(run, dataset):
    """Write the run's pictures into its folder; returns their names."""
    from tinyvit import interpret, viz

    names = ["curves.png"]
    viz.save(viz.curves(run.history), run.folder / "curves.png")
    if run.probabilities is not None:
        test, p = dataset.test, run.probabilities
        _, chosen = np.unique(test.labels, return_index=True)
        chosen = chosen[:10]  # the first of each class
        images = test.images[chosen]
        maps = interpret.class_attention(run.model, normalise(images, dataset.mean, dataset.std))
        titles = [_title(dataset.classes, test.labels[i], p[i]) for i in chosen]
        viz.save(viz.attention(images, maps, titles), run.folder / "attention.png")
        viz.save(viz.mistakes(test.images, test.labels, p, dataset.classes), run.folder / "mistakes.png")
        names += ["attention.png", "mistakes.png"]
    return names


def _title(classes, label, p):
    return f"true {classes[label]} · predicted {classes[p.argmax()]} ({100 * p.max():.0f} %)"


def _load_data(name, image_size=0):
    if name not in data.NAMES and not Path(name).is_dir():
        try:
            data.load(name)
        except data.DataError as error:  # lists the known names
            raise Mistake(error) from None
    return data.load(name, image_size=image_size) if image_size else data.load(name)


# ---------------------------------------------------------------------------------------------- eval, predict


def run_eval(options):
    classifier = load(options.checkpoint)
    dataset = _load_data(options.data or classifier.recipe["data"], classifier.recipe["image_size"])
    split = getattr(dataset, options.split)
    want = (*classifier.model.config.image_size, classifier.model.config.channels)
    if split.images.shape[1:] != want or dataset.classes != classifier.classes:
        raise Mistake(
            f"the model reads images {want} of {len(classifier.classes)} classes; {dataset.name} has "
            f"{split.images.shape[1:]} of {len(dataset.classes)}"
        )
    accuracy, loss, _ = train.evaluate(classifier.model, split, classifier.mean, classifier.std)
    print(f"{dataset.name}, {len(split):,} {options.split} images: loss {loss:.4f}")
    print(f"{options.split} accuracy {100 * accuracy:.2f} %")


def run_predict(options):
    classifier = load(options.checkpoint)
    from PIL import Image

    from tinyvit import interpret, viz

    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in options.images:
        try:
            image, note = classifier.read(path)
        except data.DataError as error:  # the other images still get their answer
            print(f"tinyvit predict: {error}", file=sys.stderr)
            failed = 1
            continue
        p = classifier.predict(image[None])[0]
        overlay = viz.overlay(image, interpret.class_attention(classifier.model, classifier.normalise(image[None]))[0])
        picture = folder / f"{Path(path).stem}-attention.png"
        png = io.BytesIO()
        Image.fromarray(overlay).save(png, "PNG")
        write_atomically(picture, png.getvalue())
        print(f"{path}" + (f"  ({note})" if note else ""))
        for k in np.argsort(-p)[: options.top]:
            print(f"  {100 * p[k]:6.2f} %  {classifier.classes[k]}")
        print(f"  attention: {picture}")
    return failed


# ---------------------------------------------------------------------------------------------- info, data


def run_info(options):
    from threadpoolctl import threadpool_info

    blas = [p for p in threadpool_info() if p["user_api"] == "blas"]
    rows = {
        "tinyvit": f"{tinyvit.__version__} in {Path(tinyvit.__file__).parent}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in ("numpy", "numba", "scipy", "matplotlib")),
        "cores": f"{train.available_cores()} for this process",
        "BLAS": ", ".join(
            f"{p['internal_api']} {p['version']} ({p.get('architecture', '?')}, {p['num_threads']} threads)"
            for p in blas
        )
        or "not visible (one thread each is asked for while training)",
        "kernels": kernels.backend(),
        "compiled": f"{kernels.CACHE_FOLDER or 'anew in each process: no writable folder'}"
        + ("" if kernels.compiled_before() else " (nothing yet)"),
        "data": f"TINYVIT_DATA={os.environ.get('TINYVIT_DATA', '')}",
    }
    for name, value in rows.items():
        print(f"{name:<10} {value}")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def run_data(options):
    dataset = _load_data(options.name)
    print(dataset)
    print("classes: " + ", ".join(dataset.classes))


# ---------------------------------------------------------------------------------------------- the words


def _parser():
    parser = argparse.ArgumentParser(
        "tinyvit", description="A Vision Transformer from scratch on NumPy, to read, train and look into.",
        epilog="`tinyvit COMMAND --help` explains each command.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tinyvit {tinyvit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, help, example):
        sub = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", epilog="examples:\n" + example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "train", run_train, "train a ViT and test it",
        "  tinyvit train                          handwritten digits, embedded, under a minute\n"
        "  tinyvit train mnist --epochs 5         downloads MNIST once\n"
        "  tinyvit train path/to/folder --image-size 32 --patch 4\n"
        "                                         a sub-folder of images for each class",
    )  # fmt: skip
    sub.add_argument(
        "data", nargs="?", default="digits", help=f"{', '.join(data.NAMES)}, or a folder of images (digits)"
    )
    add = sub.add_argument
    recipe = train.RECIPES["digits"]
    add("--preset", choices=tinyvit.PRESETS, metavar="NAME", help="model: " + ", ".join(tinyvit.PRESETS))
    add("--patch", type=int, help="patch size in pixels")
    add("--image-size", type=int, help="resize a folder's images to this side")
    add("--epochs", type=int, help="passes over the training images")
    add("--batch-size", type=int, help="images per step")
    add("--lr", type=float, help="peak learning rate")
    add("--warmup", type=float, help="epochs of rising learning rate")
    add("--weight-decay", type=float, help="decay of matrices")
    add("--smoothing", type=float, help="label smoothing")
    add("--clip", type=float, help="longest gradient norm; 0 for no clipping")
    add("--dropout", type=float, help="dropout probability")
    add("--optimizer", choices=("adamw", "sgd"), help="adamw or sgd with momentum")
    add("--augment", choices=data.AUGMENTS, metavar="KIND", help="random changes: " + ", ".join(data.AUGMENTS))
    add("--seed", type=int, help=f"of everything random ({recipe.seed})")
    add("--shards", type=int, help=f"parts of a batch for the threads; changes rounding ({recipe.shards})")
    add("--threads", type=_positive, help="workers; changes no result (as many as cores)")
    add("--out", metavar="FOLDER", help="the run's folder, new or empty (runs/DATA-1, -2, …)")

    sub = command(
        "eval", run_eval, "test a trained model again",
        "  tinyvit eval runs/digits-1\n  tinyvit eval runs/digits-1 --split validation",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help="a run's folder or checkpoint")
    sub.add_argument("--data", help="other data of the same kind than it was trained on")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="test")

    sub = command(
        "predict", run_predict, "say what is on pictures, and draw where the model looked",
        "  tinyvit predict runs/mnist-1 seven.png --top 3",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help="a run's folder or checkpoint")
    sub.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    sub.add_argument("--top", type=_positive, default=5, help="how many classes to name (5)")
    sub.add_argument("--out", metavar="FOLDER", default=".", help="where IMAGE-attention.png goes (here)")

    command("info", run_info, "show versions, cores, BLAS, kernels and caches", "  tinyvit info")

    sub = command("data", run_data, "fetch a data set, verify it, show its sizes", "  tinyvit data mnist")
    sub.add_argument("name", metavar="NAME", help=f"{', '.join(data.NAMES)}, or a folder of images")
    return parser


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)
