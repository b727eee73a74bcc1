"""Batches: the training set in a new order each epoch, a handful of images at a time.

Order and augmentation depend on (seed, epoch, step) and on nothing else, in particular not on how many random numbers
anyone drew before. So step 7 of epoch 3 is the same batch whether or not the steps before it were taken in this
process: `start=7` begins there. A single random stream, advanced from batch to batch, would have to be saved and
restored to the exact draw; large-scale trainers go the same stateless way.

The thread that trains makes the batches, a whole batch at a time; `benchmarks/input_pipeline.py` measures the share of
a step that this takes. Trainers on GPUs keep processes for it.

Chapter of the course: notebooks/07-training.ipynb.
"""

import numpy as np

from tinyvit.data.dataset import DataError, normalise


def batches(split, batch_size, *, mean, std, seed=0, epoch=0, augment=None, mix=None, shuffle=True, start=0):
    """Iterate over one epoch: yields `(images, labels)`, (B, h, w, C) float32 normalised and (B,) int64.

    `mean`, `std` as in `Dataset`. `augment` is called with images and a Generator, such as an `Augment` or what
    `augmentation(recipe)` returns, or None. `mix` is a `Mix` or None; with one, the labels are targets (B, classes)
    float32. The last batch holds what remains. `start` is the first step to yield. For evaluation pass `shuffle=False`
    and no `augment`.

    Raises at once, not at the first batch: DataError for an empty split, ValueError for batch_size < 1 and for a
    negative seed, epoch or start.
    """
    numbers = dict(batch_size=batch_size, seed=seed, epoch=epoch, start=start)
    for name, value in numbers.items():
        least = 1 if name == "batch_size" else 0
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"batches: {name} must be a whole number from {least} up, got {value!r}")
    if not len(split):
        raise DataError("batches needs a split with at least one image, got an empty one")
    return _generate(split, batch_size, mean, std, seed, epoch, augment, mix, shuffle, start)


def steps_per_epoch(count, batch_size):
    """How many batches `count` images make; the last one may be smaller."""
    return -(-count // batch_size)


def order(count, seed, epoch):
    """The order of `count` images in one epoch: a permutation (count,), uniform over all of them.

    Sorting random keys instead of calling `permutation`: NumPy promises to keep PCG64's raw output, so an old
    run replays with a new NumPy.
    """
    return np.argsort(_bits(seed, epoch, 0).random_raw(count), kind="stable")


def _bits(seed, epoch, stream):
    """A random stream for each (seed, epoch, stream): stream 0 shuffles, stream 1 + step augments and mixes."""
    return np.random.PCG64(np.random.SeedSequence([seed, epoch, stream]))


def _generate(split, batch_size, mean, std, seed, epoch, augment, mix, shuffle, start):
    indices = order(len(split), seed, epoch) if shuffle else np.arange(len(split))
    for step in range(start, steps_per_epoch(len(split), batch_size)):
        chosen = indices[step * batch_size : (step + 1) * batch_size]
        images, labels, rng = (
            split.images[chosen],
            split.labels[chosen],
            np.random.Generator(_bits(seed, epoch, 1 + step)),
        )
        if augment is not None:
            images = augment(images, rng)
        images = normalise(images, mean, std)
        yield (images, labels) if mix is None else mix(images, labels, rng)
