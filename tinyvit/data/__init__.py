"""Data: read it without trusting it, cut it fairly, change it without changing its meaning, serve batches.

dataset      three piles of labelled images, and the cut that makes them
idx          MNIST's file format, from bytes that may lie
cifar        CIFAR's, from archives that may be traps
image        an image file as pixels, the same for training and prediction
folder       your own images, a folder a class
digits       the set that is part of the package
sources      where the others come from, and their checksums
fetch        `load`: search, download, verify
augment      random changes that keep the label
randaugment  more of them, drawn from a list
pipeline     a recipe's changes in a row
mixing       two images in one, and targets that say so
palette      pixels as words: the number of the nearest of few colours
batches      an epoch, as a pure function of seed, epoch and step
"""

from tinyvit.data.augment import AUGMENTS, Augment
from tinyvit.data.batches import batches
from tinyvit.data.dataset import DataError, Dataset, Split, normalise
from tinyvit.data.fetch import NAMES, load
from tinyvit.data.mixing import Mix
from tinyvit.data.palette import Palette
from tinyvit.data.pipeline import Erase, augmentation
from tinyvit.data.randaugment import RandAugment

__all__ = [
    "AUGMENTS", "NAMES", "Augment", "DataError", "Dataset", "Erase", "Mix", "Palette", "RandAugment", "Split",
    "augmentation", "batches", "load", "normalise",
]  # fmt: skip
