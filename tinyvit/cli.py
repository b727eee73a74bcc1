"""The `tinyvit` command: train, eval, predict, info, data, bench.

A user's mistake gets one line and exit code 2 (the words of the command) or 1 (the world: data, disk, checkpoint); a
traceback here would be our mistake.
"""

import argparse
import importlib.metadata
import io
import itertools
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
from tinyvit.data.fetch import cache_folder, found_in
from tinyvit.train.checkpoint import write_atomically


class Mistake(Exception):
    """Something in the words of the command; exit code 2."""


def main(arguments=None):
    """Run the command line `arguments` (sys.argv by default) and return the exit code: 0 done, 1 failed, 2 misused,
    130 interrupted."""
    options = _parser().parse_args(arguments)
    command = f"tinyvit {options.command}"
    try:
        return options.run(options) or 0
    except Mistake as error:
        return complain(f"{command}: {error}", 2)
    except (data.DataError, train.CheckpointError, train.TrainingError) as error:
        return complain(f"{command}: {error}", 1)
    except MemoryError as error:
        remedy = "a smaller --batch-size or --image-size, or a larger --patch, needs less"
        return complain(f"{command}: memory is too small{f' ({error})' if str(error) else ''}; {remedy}", 1)
    except OSError as error:
        return complain(f"{command}: {error.filename or 'input/output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return complain("interrupted", 130)


def complain(text, code=None):
    """Say it on stderr; returns `code`."""
    print(text, file=sys.stderr)
    return code


# ---------------------------------------------------------------------------------------------- train


def run_train(options):
    is_folder = options.data not in train.RECIPES
    name = str(Path(options.data).resolve()) if is_folder else options.data  # `eval` may be called from elsewhere
    if is_folder and Path(options.out or "runs").resolve().is_relative_to(name):
        raise Mistake("the run's folder would be one more class inside the data folder; go up one folder or use --out")
    known = replace(train.FOLDER_RECIPE, data=name) if is_folder else train.RECIPES[name]
    changes = {f.name: getattr(options, f.name, None) for f in fields(train.Recipe) if f.name != "data"}
    try:
        recipe = replace(known, **{field: value for field, value in changes.items() if value is not None})
    except ValueError as error:
        raise Mistake(error) from None
    dataset = load_data(options.data, recipe.image_size)
    try:
        train.loop.configure(recipe, dataset)
    except ValueError as error:
        raise Mistake(f"{error}{_other_size(recipe, dataset) if is_folder else ''}") from None
    run = train.fit(recipe, dataset, options.out or train.new_folder(name), threads=options.threads)
    try:
        draw(run, dataset)
    except (Exception, KeyboardInterrupt) as error:  # of whatever drawing dies, the result is told
        complain(f"tinyvit train: not all pictures are drawn: {str(error) or type(error).__name__}")
    pictures = ", ".join(sorted(path.name for path in run.folder.glob("*.png"))) or "none"
    if run.interrupted:
        print(f"run folder: {run.folder}  ({pictures})")
        return 130
    print(f"trained in {run.seconds:.0f} s; pictures: {pictures}")
    print(f"test accuracy {100 * run.test_accuracy:.2f} %")
    print(f"run folder: {run.folder}")


def draw(run, dataset):
    """Write the run's pictures into its folder."""
    from tinyvit import interpret, viz

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


def _title(classes, label, p):
    return f"true {classes[label]} · predicted {classes[p.argmax()]} ({100 * p.max():.0f} %)"


def _other_size(recipe, dataset):
    """The other way out when a patch does not divide a folder's images: other images."""
    patch = recipe.patch or tinyvit.PRESETS[recipe.preset].patch
    h, w = dataset.train.images.shape[1:3]
    if h % patch == 0 and w % patch == 0:
        return ""
    return f"; or resize the images, for instance with --image-size {patch * max(1, round(max(h, w) / patch))}"


def load_data(name, image_size=0):
    """The data set of that name, or folder of images, these resized if `image_size` is not 0."""
    misused = image_size if name in data.NAMES else not Path(name).is_dir()
    try:
        return data.load(name, image_size=image_size or None)
    except data.DataError as error:
        raise (Mistake(error) if misused else error) from None


# ---------------------------------------------------------------------------------------------- eval, predict


def run_eval(options):
    classifier = load(options.checkpoint)
    dataset = _data_for(classifier, options.data)
    split = getattr(dataset, options.split)
    want = (*classifier.model.config.image_size, classifier.model.config.channels)
    if split.images.shape[1:] != want:
        raise data.DataError(f"the model reads images {want}, those of {dataset.name} are {split.images.shape[1:]}")
    classes = itertools.zip_longest(classifier.classes, dataset.classes, fillvalue="missing")
    for k, (ours, theirs) in enumerate(classes):
        if ours != theirs:
            raise data.DataError(f"class {k} must be the model's, {ours}; in {dataset.name} it is {theirs}")
    accuracy, loss, _ = train.evaluate(classifier.model, split, classifier.mean, classifier.std)
    print(f"{dataset.name}, {len(split):,} {options.split} images: loss {loss:.4f}")
    print(f"{options.split} accuracy {100 * accuracy:.2f} %")


def _data_for(classifier, asked):
    """The data set to test a classifier on: the one asked for, else the one that it was trained on."""
    name = asked or classifier.recipe.data
    if not asked and name not in data.NAMES and not Path(name).is_dir():
        raise data.DataError(f"it was trained on {name}, which is not here; name the data with --data")
    return load_data(name, 0 if name in data.NAMES else classifier.recipe.image_size)


def run_predict(options):
    classifier = load(options.checkpoint)
    from PIL import Image

    from tinyvit import interpret, viz

    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    taken = {_key(path) for path in options.images}  # never drawn over
    failed = 0
    for path in options.images:
        try:
            image, note = classifier.read(path)
        except data.DataError as error:  # the other images still get their answer
            failed = complain(f"tinyvit predict: {error}", 1)
            continue
        p = classifier.predict(image[None])[0]
        overlay = viz.overlay(image, interpret.class_attention(classifier.model, classifier.normalise(image[None]))[0])
        picture = _free(folder / f"{Path(path).name}-attention.png", taken)
        taken.add(_key(picture))
        png = io.BytesIO()
        Image.fromarray(overlay).save(png, "PNG")
        write_atomically(picture, png.getvalue())
        print(f"{path}" + (f"  ({note})" if note else ""))
        for k in np.argsort(-p)[: options.top]:
            print(f"  {100 * p[k]:6.2f} %  {classifier.classes[k]}")
        print(f"  attention: {picture}")
    return failed


def _free(path, taken):
    """The path, or where that is taken, the path with the first free number."""
    numbered = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if _key(p) not in taken)


def _key(path):
    """Equal for two paths of one file, also where letter case does not count."""
    return str(Path(path).resolve()).casefold()


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
        "data": f"TINYVIT_DATA={_contents(os.environ.get('TINYVIT_DATA'))}",
        "": f"downloads: {_contents(cache_folder())}",
    }
    for name, value in rows.items():
        print(f"{name:<10} {value}")


def _contents(folder):
    """A folder and the data sets in it, in words."""
    if not folder:
        return "(not set)"
    if not Path(folder).is_dir():
        return f"{folder} (no such folder)"
    return f"{folder} ({', '.join(found_in(folder)) or 'no data sets'})"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def run_data(options):
    dataset = load_data(options.name)
    print(dataset)
    print("classes: " + ", ".join(dataset.classes))


# ---------------------------------------------------------------------------------------------- bench


def run_bench(options):
    from tinyvit import bench, viz

    rivals = [name for name in bench.RIVALS if name != "compile" or options.compile]
    threads = options.threads or min(2, train.available_cores())
    try:
        results = bench.train_step(threads=[threads], rivals=rivals, rounds=3, seconds=0.25, say=complain)
    except bench.BenchError as error:
        return complain(f"tinyvit bench: {error}", 1)
    print(bench.training_report(results))  # first, so that no full disk can take it away
    if options.json:
        results.save(options.json)
    if options.picture:
        viz.save(bench.training_picture(results), options.picture)


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
    add("--seed", type=int, help="of everything random (0)")
    add("--shards", type=int, help="parts of a batch for the threads; changes rounding")
    add(
        "--threads",
        type=_positive,
        help="workers, at most one a shard; changes no result (all cores, or one if that is faster)",
    )
    add("--out", metavar="FOLDER", type=_folder, help="the run's folder, new or empty (runs/DATA-1, -2, …)")

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
    sub.add_argument("--out", metavar="FOLDER", type=_folder, default=".", help="where IMAGE-attention.png goes (here)")

    command("info", run_info, "show versions, cores, BLAS, kernels and caches", "  tinyvit info")

    sub = command("data", run_data, "fetch a data set, verify it, show its sizes", "  tinyvit data mnist")
    sub.add_argument("name", metavar="NAME", help=f"{', '.join(data.NAMES)}, or a folder of images")

    sub = command(
        "bench", run_bench, "measure the training step, beside PyTorch where that is installed",
        "  tinyvit bench                          a minute or two; no other work on the machine, please\n"
        "  tinyvit bench --compile --json bench.json --picture bench.png",
    )  # fmt: skip
    sub.add_argument("--threads", type=_positive, help="for each contender (2, or 1 where there is one core)")
    sub.add_argument("--compile", action="store_true", help="beside torch.compile too, which takes minutes more")
    sub.add_argument("--json", metavar="FILE", help="write the times of all rounds there")
    sub.add_argument("--picture", metavar="FILE", help="draw a PNG")
    return parser


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def _folder(text):
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, but {text} is a file")
    return text
