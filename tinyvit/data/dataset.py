"""A data set is three piles of labelled images: one to learn from, one to choose by, one to report.

*train* fits the weights. *validation* decides everything else: which learning rate, which epoch, which model.
*test* is looked at once, at the end; a model chosen by its test score makes that score a boast. All five data
sets of this package therefore come with a fixed validation pile, cut from the training images with the same
share of every class, so that two people's numbers can be compared.

Pixels stay uint8 until a batch is made: a quarter of float32's memory, and exactly what the file says.

Chapter of the course: notebooks/00-the-map.ipynb.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

FRESH = "get a fresh copy of it"


class DataError(Exception):
    """Data that cannot be had or cannot be trusted: missing, damaged, or not of the format it should be."""


@contextmanager
def reading(path, what):
    """Turn whatever a decoder raises on damaged bytes into a DataError that says what `path` must be.

    gzip, tarfile and Pillow together raise a dozen kinds of exception on hostile input (OSError, EOFError,
    zlib.error, SyntaxError …). For the caller they mean one thing. DataErrors, which already say what is
    wrong, pass unchanged.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} must be {what}, but cannot be read: {reason}; {FRESH}") from error


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: `images` (M, height, width, C) uint8, `labels` (M,) int64. `len(split)` is M.

    Raises DataError for other shapes or dtypes, or where the two lengths differ.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(
                f"images must be uint8 of shape (M, height, width, C), got {images.dtype} of shape {images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != np.int64:
            raise DataError(
                f"labels must be int64, one for each of the {len(images)} images, "
                f"got {labels.dtype} of shape {labels.shape}"
            )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        """The part of the split that a slice, an index array or a mask selects; again a Split."""
        return Split(self.images[index], self.labels[index])

    def __repr__(self):
        return f"Split({len(self)} images of {self.images.shape[1:]})"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits, the names of their classes, and what `normalise` needs.

    `mean` and `std` are one float a channel, of the training images scaled to [0, 1]; never of validation or test
    images, which nothing may learn from. A channel that never varies has std 1. Make one with `Dataset.of`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name, classes, train, validation, test):
        """A Dataset with the mean and std of `train`. Raises DataError for a label that names no class."""
        for part, split in (("train", train), ("validation", validation), ("test", test)):
            if len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(classes):
                raise DataError(
                    f"{name}, {part}: labels must lie in 0..{len(classes) - 1}, one for each class; "
                    f"got {split.labels.min()}..{split.labels.max()}"
                )
        mean, std = channel_statistics(train.images)
        return cls(name, tuple(classes), train, validation, test, mean, std)

    def __repr__(self):
        sizes = ", ".join(f"{part} {len(getattr(self, part))}" for part in ("train", "validation", "test"))
        shape = self.train.images.shape[1:]
        return f"Dataset({self.name!r}, {len(self.classes)} classes, images {shape}, {sizes})"


def channel_statistics(images):
    """Mean and standard deviation by channel of uint8 images (M, h, w, C) scaled to [0, 1]: C floats each.

    Summed in whole numbers, a thousand images at a time: exact, the same on every machine, and never the
    whole set as float64, which for CIFAR-10 would be a gigabyte.
    """
    C = images.shape[-1]
    count = images.size // C
    if not count:
        raise DataError("mean and std need at least one training image, got none")
    total, squares = np.zeros(C, np.int64), np.zeros(C, np.int64)
    for start in range(0, len(images), 1000):
        chunk = images[start : start + 1000]
        x = chunk.reshape(len(chunk), -1).astype(np.uint32)  # 1000 · 255² fits
        total += x.sum(axis=0).reshape(-1, C).sum(axis=0, dtype=np.int64)
        squares += (x * x).sum(axis=0).reshape(-1, C).sum(axis=0, dtype=np.int64)
    mean = total / count  # in grey levels, 0..255
    variance = squares / count - mean**2  # E[x²] - E[x]²
    std = np.sqrt(np.where(variance > 1e-6, variance, 255.0**2))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def normalise(images, mean, std):
    """(x / 255 - mean) / std, channel by channel: (B, h, w, C) uint8 or float32 in 0..255 -> float32.

    The weights of a fresh network are drawn for inputs with mean 0 and variance 1; this makes them so.
    """
    std = np.asarray(std)
    scale, offset = (1 / (255 * std)).astype(np.float32), (np.asarray(mean) / std).astype(np.float32)
    B, h, w, C = images.shape
    rows = images.reshape(B, h, w * C)  # NumPy's inner loop is the last axis: long rows, not C = 3
    x = rows.astype(np.float32, copy=False) * np.tile(scale, w)
    x -= np.tile(offset, w)
    return x.reshape(B, h, w, C)


def stratified(labels, sizes, seed=0):
    """Cut M labelled samples into parts of the given `sizes`, each with about the same share of every class.

    `labels` (M,) integers; `sizes` sum to M. Returns one sorted index array a part; together they hold each
    index once. In every part a class's count is within 2 of its exact share. The same seed gives the same cut
    on every platform: it rests on the raw output of PCG64 (O'Neill 2014), which NumPy promises to keep, and
    not on `permutation`, which it does not.

    How: shuffle, give the k-th of a class's n samples the position (k + ½)/n, and sort by position. Any
    stretch of that order then holds every class in proportion, as a well-shuffled deck dealt in turns.
    """
    labels = np.asarray(labels)
    if sum(sizes) != len(labels) or min(sizes) < 0:
        raise DataError(f"the parts' sizes must sum to the {len(labels)} samples, got {tuple(sizes)}")
    shuffled = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, count)
    order = by_class[np.argsort((rank + 0.5) / np.repeat(count, count), kind="stable")]
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
