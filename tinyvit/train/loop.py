"""The loop: a run in progress.

    for each epoch: for each batch: gradient, clip, step;  then look at the validation images and write a checkpoint.
    At the end, once: the test images.

The rest of the file is what a long run owes its user. It can be stopped at any moment, and what it then leaves is the
checkpoint of one moment, from which `fitting.py` goes on to the same bits. A loss that is not a number stops it at
once, before the step that would spread it, and says which op made it.

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinyvit import kernels, optim
from tinyvit.data import Dataset, Mix, augmentation, batches
from tinyvit.data.batches import steps_per_epoch
from tinyvit.data.dataset import normalise
from tinyvit.models import ImageModel
from tinyvit.train.average import Average
from tinyvit.train.folder import BEST, CHECKPOINT, TrainingError, command_to_resume, save_model
from tinyvit.train.metrics import log
from tinyvit.train.ranks import job
from tinyvit.train.shards import cut

LINE = "loss {loss:.3f}  validation {validation_accuracy:.2%}  {images_per_second:,.0f} images/s"


@dataclass
class Run:
    """What a training run left: its folder, the model, the data set, the history (a dict an epoch), the test result.

    `test_accuracy` is in [0, 1]; None where a signal stopped the run, whose number then is `interrupted`.
    `probabilities` (M, classes) are those of the test images. `seconds` counts training alone, without loading data and
    testing, and includes what was before a `resume`.
    """

    folder: Path
    model: ImageModel
    dataset: Dataset = field(repr=False)
    history: list = field(default_factory=list)
    seconds: float = 0.0
    test_accuracy: float | None = None
    probabilities: np.ndarray | None = None
    interrupted: int = 0


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


class Loop:
    """A run in progress: the model, its optimiser, how far it is; and what one step, one epoch, one checkpoint are."""

    def __init__(self, recipe, dataset, model, folder, about, progress):
        self.recipe, self.dataset, self.folder, self.model = recipe, dataset, folder, model
        kind = optim.OPTIMIZERS[recipe.optimizer]
        self.optimizer = kind(model, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.average = Average(model, self.optimizer.flat, recipe.ema) if recipe.ema else None
        self.about, self.progress = about, progress
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), recipe.batch_size)
        self.start = time.perf_counter() - progress.seconds

    def run(self, history, threads, say, bar, save_every):
        """All epochs that are left, and the test; returns the Run. `history` holds those before."""
        recipe, data, now = self.recipe, self.dataset, self.progress
        run, say = Run(self.folder, self.model, data, history), job().voice(say)
        say(
            f"{data.name}: {len(data.train):,} training images, {len(data.validation):,} validation, "
            f"{len(data.test):,} test; {describe(self.model)}"
        )
        if job().size > 1:
            say(f"{job().size} ranks; where one dies, all do. Then: {command_to_resume(self.folder)}")
        job().voice(kernels.announce_compilation)()
        bar = progress_bar(recipe.epochs * len(data.train), bar, now.epochs_done * len(data.train) + now.seen)
        with job().interrupt() as interrupt, self.workers(threads, interrupt) as shards, bar:
            while now.epochs_done < recipe.epochs and not interrupt.asked:
                row = self.epoch(shards, interrupt, bar, save_every)
                if row is None:
                    break
                now.end_epoch()
                run.history.append(row | {"seconds": self.seconds()})
                if now.improved(row["validation_accuracy"], row["validation_loss"]):
                    self.save(BEST)
                self.log(run.history[-1])  # first: one line too many is cut back, a missing one would stay so
                self.save(CHECKPOINT)
                if now.epochs_done % max(1, recipe.epochs // 10) == 0:
                    with bar.external_write_mode():
                        say(f"epoch {now.epochs_done:3d}/{recipe.epochs}  " + LINE.format(**row))
            run.seconds = self.seconds()
            if self.average:
                self.average.swap()  # for good
            if now.epochs_done == recipe.epochs:
                run.test_accuracy, loss, run.probabilities = evaluate(
                    self.model, data.test, data.mean, data.std, shards.map
                )
                self.log(dict(test_accuracy=run.test_accuracy, test_loss=loss, seconds=run.seconds))
            else:
                run.interrupted = interrupt.asked
                bar.close()
                where = f"step {now.steps_done}, epoch {-(-now.steps_done // self.steps_per_epoch)} of {recipe.epochs}"
                say(f"stopped after {where}; the checkpoint holds it. Go on: {command_to_resume(self.folder)}")
        return run

    def workers(self, threads, interrupt):
        """The Shards of this run."""
        return job().shards(self.model, self.optimizer.flat, self.recipe.shards, threads, interrupt)

    def epoch(self, shards, interrupt, bar, save_every):
        """Pass over the training images, or what is left of them, then look at the validation images. Returns the
        epoch's metrics; or None if a signal came: then it ends with the step, and a checkpoint."""
        recipe, data, now = self.recipe, self.dataset, self.progress
        mix = Mix(recipe.mixup, recipe.cutmix, len(data.classes)) if recipe.mixup or recipe.cutmix else None
        start, saved = time.perf_counter() - now.epoch_seconds, time.perf_counter()
        for images, labels in batches(
            data.train, recipe.batch_size, mean=data.mean, std=data.std, seed=recipe.seed, epoch=now.epochs_done,
            augment=augmentation(recipe), mix=mix, start=now.steps_done - now.epochs_done * self.steps_per_epoch,
        ):  # fmt: skip
            loss, right, norm = self.train_step(shards, images, labels)
            now.add(loss, right, norm, len(labels))
            if self.average:
                self.average.update(now.steps_done - 1)
            bar.set_postfix_str(f"loss {now.loss_sum / now.seen:.3f}, {now.right / now.seen:.1%} right", refresh=False)
            bar.update(len(labels))
            if interrupt.asked or time.perf_counter() - saved > save_every:
                now.epoch_seconds = time.perf_counter() - start
                self.save(CHECKPOINT)
                saved = time.perf_counter()
            if interrupt.asked:
                return None
        seconds = time.perf_counter() - start
        for values in self.weights():
            job().level(values)
        with self.average or contextlib.nullcontext():
            accuracy, loss, _ = evaluate(self.model, data.validation, data.mean, data.std, shards.map)
        if not math.isfinite(loss):
            raise TrainingError(self.diverged(f"validation loss {loss} after epoch {now.epochs_done + 1}"))
        self.check_finite()
        return dict(
            epoch=now.epochs_done + 1, loss=now.loss_sum / now.seen, accuracy=now.right / now.seen,
            validation_loss=loss, validation_accuracy=accuracy, lr=self.rate(now.steps_done - 1),
            gradient_norm=now.norm_sum / self.steps_per_epoch, images_per_second=now.seen / seconds,
        )  # fmt: skip

    def train_step(self, shards, images, labels):
        """Gradient, clip, step. Returns (loss, images classified right, gradient norm before clipping)."""
        recipe, step = self.recipe, self.progress.steps_done
        batch = images, labels, recipe.smoothing, (recipe.seed, step)
        where = f"at step {step} (epoch {step // self.steps_per_epoch + 1})"
        return take_step(shards, self.optimizer, batch, self.rate(step), recipe.clip, where, self.diverged)

    def rate(self, step):
        """The learning rate of step 0, 1, …"""
        total = self.recipe.epochs * self.steps_per_epoch
        warmup = min(int(self.recipe.warmup * self.steps_per_epoch), total // 5)
        return optim.warmup_cosine(step, total, self.recipe.lr, warmup)

    def diverged(self, what):
        """The words for a run that cannot go on."""
        advice = "a smaller --lr" if self.recipe.clip else "a smaller --lr, or --clip 1"
        kept = self.folder / CHECKPOINT
        return f"training stopped: {what}. The last good checkpoint is kept: {kept}. Begin anew with {advice}."

    def weights(self):
        """Arrays: those that are trained, and where there is an average its own."""
        return [self.optimizer.flat.values, *(self.average.averages if self.average else ())]

    def check_finite(self):
        """Raises TrainingError before weights that are lost get into a checkpoint."""
        if not all(np.isfinite(values).all() for values in self.weights()):
            raise TrainingError(self.diverged(f"weights that are not finite after step {self.progress.steps_done}"))

    def seconds(self):
        """Of training so far, what was before a `resume` included."""
        return time.perf_counter() - self.start

    def log(self, row):
        """Add a line to metrics.jsonl (rank 0 does)."""
        job().voice(log)(self.folder, row)

    def save(self, name):
        """Write a checkpoint of that name (rank 0 does). What it calls the model is what is to be used: the average, if
        there is one; the weights that training goes on with are kept beside it."""
        self.check_finite()
        if job().rank > 0:
            return
        self.progress.seconds = self.seconds()
        state = {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        if self.average:
            state |= {f"training.{name}": array for name, array in self.model.state_dict().items()}
        with self.average or contextlib.nullcontext():
            save_model(self.folder / name, self.model, self.about, asdict(self.progress), state)


def take_step(shards, optimizer, batch, lr, clip, where, diverged):
    """Gradient of a batch (images, labels, smoothing, seed), clip, step. Returns (loss, images that were right,
    gradient norm before clipping). Where one is not finite it raises TrainingError with the words `diverged(what)`, and
    the parameters stay as they were. (Batch norm's running statistics do not: they have seen the batch. What is whole
    is the last good checkpoint.)"""
    loss, right = shards.gradient(*batch)
    with np.errstate(over="ignore", invalid="ignore"):  # the next lines look for it
        norm = optimizer.clip_gradients(clip)
    if not math.isfinite(loss) or not math.isfinite(norm):
        numbers = f"loss {loss}, learning rate {lr:.3g}, gradient norm {norm}"
        raise TrainingError(diverged(f"{numbers} {where}. Where it began: {shards.culprit(*batch)}"))
    with np.errstate(over="ignore", invalid="ignore"):  # shows in the next loss
        optimizer.step(lr, shards.on_threads)
    return loss, right, norm


def progress_bar(images, bar, seen=0):
    """A bar on stderr that counts so many images, from those `seen` on: `bar` True or False, or None for only if that
    is a terminal."""
    off = sys.stderr is None or (bar is not None and not bar) or job().rank > 0
    return tqdm(total=images, initial=seen, unit=" images", unit_scale=True, dynamic_ncols=True, disable=off or None)


def describe(model):
    """A model in a few words."""
    tokens = getattr(model.config, "tokens", 0)
    words = f"{type(model).__name__} with {model.parameter_count():,} parameters"
    return f"{words}, {tokens} tokens" if tokens else words
