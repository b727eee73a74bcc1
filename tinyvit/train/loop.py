"""The loop: a recipe goes in, a folder with a trained model comes out.

    for each epoch: for each batch: gradient, clip, step;  then look at the validation images and write a checkpoint.
    At the end, once: the test images.

The rest of the file is what a long run owes its user. Ctrl-C is taken between two steps, so the checkpoint
written then is of one moment. A loss that is not a number stops the run at once, before the step that would
spread it, and says which op made it. `metrics.jsonl` gets a line for each epoch, and the last one for the test.

A run's folder:  config.toml · metrics.jsonl · checkpoint.safetensors  (and pictures, see viz/)

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import json
import math
import platform
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import tomli_w
from tqdm import tqdm

from tinyvit import kernels, optim
from tinyvit.data import AUGMENTS, batches
from tinyvit.data.batches import steps_per_epoch
from tinyvit.data.dataset import normalise
from tinyvit.models import PRESETS, ImageModel, build, to_dict
from tinyvit.train import checkpoint
from tinyvit.train.shards import Shards, cut

CHECKPOINT = "checkpoint.safetensors"
LINE = "loss {loss:.3f}  validation {validation_accuracy:.2%}  {images_per_second:,.0f} images/s"
MOST_BYTES = 16 * 2**30  # of attention maps, or of a feature map, in a step; more is a mistake, not a laptop's job


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, or the run's folder is taken."""


@dataclass
class Run:
    """What a training run left: its folder, the model, the history (a dict an epoch), and the test result.

    `test_accuracy` is in [0, 1]; None where the run was interrupted. `probabilities` (M, classes) are those of the
    test images. `seconds` counts training alone, without loading data and testing.
    """

    folder: Path
    model: ImageModel
    history: list = field(default_factory=list)
    seconds: float = 0.0
    test_accuracy: float | None = None
    probabilities: np.ndarray | None = None
    interrupted: bool = False


def new_folder(data, parent="runs"):
    """Make and return the next free `runs/<data>-<n>`."""
    Path(parent).mkdir(parents=True, exist_ok=True)
    name, n = Path(str(data)).name or "run", 1
    while True:
        folder = Path(parent) / f"{name}-{n}"
        try:
            folder.mkdir()  # fails if another process was faster
            return folder
        except FileExistsError:
            n += 1


def empty_folder(folder):
    """The folder, made where it is missing. Raises TrainingError where there is something in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise TrainingError(
            f"the run's folder {folder} must be new or empty, so that nothing is lost; name another with --out"
        )
    return folder


def configure(recipe, dataset):
    """The model's configuration: the recipe's preset, fitted to the data set's images and classes.

    Raises ValueError for an empty split, a patch size that does not divide, and more tokens than a laptop can hold.
    """
    check_splits(dataset)
    _, h, w, C = dataset.train.images.shape
    return fitted(recipe, (h, w), channels=C, classes=len(dataset.classes))


def fitted(recipe, image_size, **changes):
    """The recipe's preset for images of that size, with changes: as `configure`, also before there are such images."""
    preset = PRESETS[recipe.preset]
    changes["image_size"] = image_size
    for name in ("patch", "dropout"):
        if hasattr(preset, name):
            changes[name] = getattr(recipe, name) or getattr(preset, name)
        elif getattr(recipe, name):
            raise ValueError(f"{recipe.preset} has no {name}: it is a {preset.kind}")
    return check_memory(replace(preset, **changes), recipe.batch_size)


def check_splits(dataset):
    """Raises ValueError for an empty split."""
    for name in ("train", "validation", "test"):
        if not len(getattr(dataset, name)):
            raise ValueError(f"{dataset.name}: the {name} split must hold at least one image, got an empty one")


def check_memory(config, batch_size):
    """The configuration as it is. Raises ValueError for larger images, or more tokens, than a laptop can hold."""
    h, w = config.image_size
    tokens = getattr(config, "tokens", 0)
    if tokens:
        maps = batch_size * config.depth * config.heads * tokens**2 * 4
        if maps > MOST_BYTES:
            patches = " or larger patches (--patch)" if hasattr(config, "patch") else ""
            raise ValueError(
                f"images of {h}×{w} are {tokens:,} tokens, whose attention maps alone take {maps / 2**30:,.0f} GiB a "
                f"batch; use smaller images (--image-size){patches}"
            )
    first = getattr(config, "widths", (config.channels,))[0]  # numbers for each pixel: a ResNet's, or the image's own
    pixels = batch_size * h * w * first * 4
    if pixels > MOST_BYTES:
        raise ValueError(
            f"images of {h}×{w} with {first} numbers for each pixel take {pixels / 2**30:,.0f} GiB a batch; "
            "use smaller images (--image-size)"
        )
    return config


def evaluate(model, split, mean, std, run_all=map, batch_size=256):
    """(accuracy, mean cross-entropy, probabilities (M, classes)) of `model` on the images of `split`, in eval mode.

    `run_all(function, parts)` may spread the batches over threads.
    """
    if not len(split):
        raise ValueError("evaluate needs at least one image, got an empty split")

    def classify(part):
        with np.errstate(over="ignore", invalid="ignore"):  # shows in the loss
            return model.predict(normalise(split.images[part], mean, std))

    p = np.concatenate(list(run_all(classify, cut(len(split), -(-len(split) // batch_size)))))
    right = p.argmax(1) == split.labels
    loss = -np.log(np.maximum(p[np.arange(len(p)), split.labels], 1e-30)).mean()
    return float(right.mean()), float(loss), p


def fit(recipe, dataset, folder, *, model=None, origin=None, threads=None, say=print, bar=None):
    """Train by the recipe on the data set; write checkpoint and metrics into `folder` (made, or empty); test once.

    Args:
        model: to go on with, changed in place; by default a new one, the recipe's preset with the recipe's seed.
        origin: where `model` comes from, a dict for the run's config.toml and checkpoint.
        threads: workers, at most one for each shard; changes the speed, not one bit of the result. By default as many
            as cores, or one if the first steps show that to be faster.
        say: receives each line of text.
        bar: a progress bar on stderr; by default only if that is a terminal.

    Returns a Run. Raises ValueError where the recipe does not fit the data, TrainingError for a non-finite loss or a
    folder in use, OSError where it cannot be written.
    """
    model, folder = model or build(configure(recipe, dataset), recipe.seed), empty_folder(folder)
    loop = Loop(recipe, dataset, model, folder, origin)
    run = Run(folder, loop.model)
    say(
        f"{dataset.name}: {len(dataset.train):,} training images, {len(dataset.validation):,} validation, "
        f"{len(dataset.test):,} test; {describe(model)}"
    )
    kernels.announce_compilation()
    progress = progress_bar(recipe.epochs * len(dataset.train), bar)
    start = time.perf_counter()
    with loop.workers(threads) as shards, Interrupt() as interrupt, progress:
        loop.save(epochs_done=0)
        for epoch in range(recipe.epochs):
            row = loop.epoch(epoch, shards, interrupt, progress)
            if row is not None:
                run.history.append(row | {"seconds": time.perf_counter() - start})
                loop.save(epochs_done=epoch + 1)
                loop.log(run.history[-1])
                if (epoch + 1) % max(1, recipe.epochs // 10) == 0:
                    with progress.external_write_mode():
                        say(f"epoch {epoch + 1:3d}/{recipe.epochs}  " + LINE.format(**row))
            if interrupt.asked and (row is None or epoch + 1 < recipe.epochs):
                run.interrupted = True
                if row is None:
                    loop.save(epochs_done=epoch)
                progress.close()
                say(f"stopped after step {loop.step}, epoch {epoch + 1} of {recipe.epochs}; the checkpoint holds it")
                break
        run.seconds = time.perf_counter() - start
        if not run.interrupted:
            run.test_accuracy, loss, run.probabilities = evaluate(
                loop.model, dataset.test, dataset.mean, dataset.std, shards.map
            )
            loop.log(dict(test_accuracy=run.test_accuracy, test_loss=loss, seconds=run.seconds))
    return run


class Loop:
    """A run in progress: the model, its optimiser, how far it is; and what one step, one epoch, one checkpoint are."""

    def __init__(self, recipe, dataset, model, folder, origin=None):
        self.recipe, self.dataset, self.folder, self.model = recipe, dataset, folder, model
        kind = {"adamw": optim.AdamW, "sgd": optim.SGD}[recipe.optimizer]
        self.optimizer = kind(self.model, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.step = 0
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), recipe.batch_size)
        self.about = write_config(folder, recipe, model.config, dataset, origin)

    def workers(self, threads):
        """The Shards of this run."""
        return Shards(self.model, self.optimizer.flat, self.recipe.shards, threads)

    def epoch(self, epoch, shards, interrupt, progress):
        """Pass over the training images once, then look at the validation images; returns the epoch's metrics, or
        None if Ctrl-C came: then it ends with the step."""
        recipe, data = self.recipe, self.dataset
        augment = AUGMENTS[recipe.augment] if recipe.augment != "none" else None
        loss_sum = right_sum = seen = norm_sum = 0
        start = time.perf_counter()
        for images, labels in batches(
            data.train, recipe.batch_size, mean=data.mean, std=data.std, seed=recipe.seed, epoch=epoch, augment=augment
        ):
            loss, right, norm, lr = self.train_step(shards, images, labels)
            loss_sum, right_sum, seen = loss_sum + loss * len(labels), right_sum + right, seen + len(labels)
            norm_sum += norm
            progress.set_postfix_str(f"loss {loss_sum / seen:.3f}, {100 * right_sum / seen:.1f} % right", refresh=False)
            progress.update(len(labels))
            if interrupt.asked:
                return None
        seconds = time.perf_counter() - start
        accuracy, validation_loss, _ = evaluate(self.model, data.validation, data.mean, data.std, shards.map)
        if not math.isfinite(validation_loss) or not np.isfinite(self.optimizer.flat.values).all():
            raise TrainingError(self.diverged(f"validation loss {validation_loss} after epoch {epoch + 1}"))
        return dict(
            epoch=epoch + 1, loss=loss_sum / seen, accuracy=right_sum / seen, validation_loss=validation_loss,
            validation_accuracy=accuracy, lr=lr, gradient_norm=norm_sum / self.steps_per_epoch,
            images_per_second=seen / seconds,
        )  # fmt: skip

    def train_step(self, shards, images, labels):
        """Gradient, clip, step. Returns (loss, images classified right, gradient norm before clipping, rate)."""
        recipe, step = self.recipe, self.step
        total = recipe.epochs * self.steps_per_epoch
        warmup = min(int(recipe.warmup * self.steps_per_epoch), total // 5)
        lr = optim.warmup_cosine(step, total, recipe.lr, warmup)
        batch = images, labels, recipe.smoothing, (recipe.seed, step)
        where = f"at step {step} (epoch {step // self.steps_per_epoch + 1})"
        loss, right, norm = take_step(shards, self.optimizer, batch, lr, recipe.clip, where, self.diverged)
        self.step += 1
        return loss, right, norm, lr

    def diverged(self, what):
        """The words for a run that cannot go on."""
        advice = "a smaller --lr" if self.recipe.clip else "a smaller --lr, or --clip 1"
        kept = self.folder / CHECKPOINT
        return f"training stopped: {what}. The checkpoint of the last good epoch is kept: {kept}. Try {advice}."

    def log(self, row):
        """Add a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def save(self, epochs_done):
        """Write the checkpoint: weights, the optimiser's state, how far the run is."""
        state = {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        save_model(self.folder, self.model, self.about, epochs_done, self.step, state)


def write_config(folder, recipe, config, dataset, origin=None):
    """Write config.toml: all that a run is a function of. Returns it as a dict, which the checkpoint holds too."""
    about = dict(
        recipe=asdict(recipe), model=to_dict(config), data=dataset.name, classes=list(dataset.classes),
        mean=list(dataset.mean), std=list(dataset.std), **({"origin": origin} if origin else {}),
    )  # fmt: skip
    (folder / "config.toml").write_text(tomli_w.dumps(about | {"machine": machine()}), encoding="utf-8")
    return about


def save_model(folder, model, about, epochs_done, steps_done, state=()):
    """Write the checkpoint that `tinyvit.load` reads; `state` is an optimiser's, as {name: array}."""
    tensors = {f"model.{name}": p.data for name, p in model.named_parameters()} | dict(state)
    progress = dict(epochs_done=epochs_done, steps_done=steps_done)
    checkpoint.save(folder / CHECKPOINT, tensors, about | progress)


def take_step(shards, optimizer, batch, lr, clip, where, diverged):
    """Gradient of a batch (images, labels, smoothing, seed), clip, step. Returns (loss, images that were right,
    gradient norm before clipping). Where one is not finite it raises TrainingError with the words `diverged(what)`, and
    the parameters stay as they were. (Batch norm's running statistics do not: they have seen the batch. What is whole
    is the checkpoint of the last good epoch.)"""
    loss, right = shards.gradient(*batch)
    with np.errstate(over="ignore", invalid="ignore"):  # the next lines look for it
        norm = optimizer.clip_gradients(clip)
    if not math.isfinite(loss) or not math.isfinite(norm):
        numbers = f"loss {loss}, learning rate {lr:.3g}, gradient norm {norm}"
        raise TrainingError(diverged(f"{numbers} {where}. Where it began: {shards.culprit(*batch)}"))
    with np.errstate(over="ignore", invalid="ignore"):  # shows in the next loss
        optimizer.step(lr)
    return loss, right, norm


def progress_bar(images, bar):
    """A bar on stderr that counts so many images: `bar` True or False, or None for only if that is a terminal."""
    off = sys.stderr is None or (bar is not None and not bar)
    return tqdm(total=images, unit=" images", unit_scale=True, dynamic_ncols=True, disable=off or None)


def describe(model):
    """A model in a few words."""
    tokens = getattr(model.config, "tokens", 0)
    words = f"{type(model).__name__} with {model.parameter_count():,} parameters"
    return f"{words}, {tokens} tokens" if tokens else words


def machine():
    """What a result depends on besides its recipe."""
    return dict(
        python=platform.python_version(), numpy=np.__version__, system=platform.platform(), kernels=kernels.backend()
    )


class Interrupt(contextlib.AbstractContextManager):
    """Turns the first Ctrl-C into the flag `asked`; the second one interrupts as usual."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self.installed = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
        if self.installed:
            self.before = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *_):
        self.asked = True
        with contextlib.suppress(RuntimeError):  # the signal may come in the middle of another print
            print("\nfinishing this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, self.before)

    def __exit__(self, *exception):
        if self.installed:
            signal.signal(signal.SIGINT, self.before)
