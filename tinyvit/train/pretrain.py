"""Learning without labels: the same steps as in `loop.py`, towards any objective.

A self-supervised objective makes its own question of an image: which pixel comes next, which colour was under the mask.
So the data become pairs (what the model sees, what it is to say), by `prepare`, and the rest is training as always:
shards, clipping, warm-up and cosine. With labels for answers the same function fine-tunes.

Chapter of the course: notebooks/12-learning-without-labels.ipynb.
"""

import math
import time

import numpy as np

from tinyvit import kernels, optim
from tinyvit.data import batches
from tinyvit.data.batches import steps_per_epoch
from tinyvit.train.folder import CHECKPOINT, TrainingError, empty_folder, fingerprint, save_model, write_config
from tinyvit.train.interrupt import Interrupt
from tinyvit.train.loop import progress_bar, take_step
from tinyvit.train.shards import Shards


def pretrain(
    model, split, objective, prepare, *, epochs, batch_size=64, lr=1e-3, warmup=2.0, weight_decay=0.05, clip=1.0,
    augment=None, validate=None, seed=0, shards=2, threads=None, bar=None,
):  # fmt: skip
    """Train `model` in place by AdamW.

    Args:
        split: a Split, the training images.
        objective: objective(model, x, y, smoothing) -> (mean loss over these images, a scalar Tensor; how many of them
            are right), see `Shards`; smoothing is 0.
        prepare: prepare(images, labels) -> (x, y), from images (B, h, w, C) float32 in 0..255 after augmentation.
        epochs, batch_size, lr, warmup, weight_decay, clip, seed, shards: as in a `Recipe`.
        augment: an `Augment` or None.
        validate: validate(model) -> a number to keep low, called after each epoch. Where it is given, the model ends
            with the parameters and statistics of its best epoch (early stopping).
        threads, bar: as for `fit`.

    Returns the history, a dict an epoch. Ctrl-C or SIGTERM ends the run with the step. Raises TrainingError for a loss
    that is not finite.
    """
    optimizer = optim.AdamW(model, lr=lr, weight_decay=weight_decay)
    steps, C = steps_per_epoch(len(split), batch_size), split.images.shape[-1]
    total = epochs * steps
    best, best_state = math.inf, None
    history = []

    def diverged(what):
        return f"training stopped: {what}. Try a smaller lr" + (", or clip=1" if not clip else "")

    kernels.announce_compilation()
    progress = progress_bar(epochs * len(split), bar)
    with Shards(model, optimizer.flat, shards, threads, objective) as workers, Interrupt() as interrupt, progress:
        for epoch in range(epochs):
            sums, start = np.zeros(4), time.perf_counter()  # of loss, images right, images, gradient norms
            served = batches(
                split, batch_size, mean=(0.0,) * C, std=(1 / 255,) * C, seed=seed, epoch=epoch, augment=augment
            )
            for images, labels in served:
                lr_now = optim.warmup_cosine(optimizer.steps, total, lr, min(int(warmup * steps), total // 5))
                batch = *prepare(images, labels), 0.0, (seed, optimizer.steps)
                where = f"at step {optimizer.steps} (epoch {epoch + 1})"
                loss, right, norm = take_step(workers, optimizer, batch, lr_now, clip, where, diverged)
                sums += loss * len(images), right, len(images), norm
                progress.set_postfix_str(f"loss {sums[0] / sums[2]:.3f}", refresh=False)
                progress.update(len(images))
                if interrupt.asked:
                    break
            if interrupt.asked:
                break
            loss, right, seen, norms = sums.tolist()
            row = dict(
                epoch=epoch + 1, loss=loss / seen, accuracy=right / seen, lr=lr_now, gradient_norm=norms / steps,
                images_per_second=seen / (time.perf_counter() - start),
            )  # fmt: skip
            if validate is not None:
                row["validation"] = float(validate(model))
                if row["validation"] < best:
                    best, best_state = row["validation"], model.state_dict()
            history.append(row)
            if not (np.isfinite(optimizer.flat.values).all() and math.isfinite(row.get("validation", 0.0))):
                raise TrainingError(diverged(f"not finite after epoch {epoch + 1}: {row}"))
    if best_state is not None:
        model.load_state_dict(best_state)
    return history


def save_pretrained(model, folder, recipe, dataset):
    """Write a pre-trained ImageModel into a folder (made, or empty) as `fit` writes a run, so that `tinyvit.load`,
    `tinyvit figures` and `tinyvit finetune` read it. Its head has learned nothing; fine-tuning puts on a new one.

    Args:
        recipe: how it was trained, as a Recipe.
        dataset: whose mean and std normalised the images, and whose classes the head has.

    Raises TrainingError for a folder in use, OSError where it cannot be written.
    """
    folder = empty_folder(folder)
    about = write_config(folder, recipe, model.config, dataset, fingerprint(dataset))
    steps = recipe.epochs * steps_per_epoch(len(dataset.train), recipe.batch_size)
    save_model(folder / CHECKPOINT, model, about, dict(epochs_done=recipe.epochs, steps_done=steps))
