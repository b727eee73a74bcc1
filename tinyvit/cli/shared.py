"""What the commands share: how they complain, where they find data, what their words may be."""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

from tinyvit import data
from tinyvit.data.image import SQUASH
from tinyvit.train.ranks import job, launched


class Mistake(Exception):
    """Something in the words of the command; exit code 2."""


def complain(text, code=None):
    """Say it on stderr; returns `code`. Under mpiexec rank 0 says it for all."""
    if launched()[0] == 0:
        print(text, file=sys.stderr)
    return code


def load_data(name, image_size=0, prepare=SQUASH):
    """The data set of that name, or folder of images; if `image_size`, a side or both, is not 0, prepared for it."""
    misused = name not in data.NAMES and not Path(name).is_dir()
    try:
        with job().in_turn():
            return data.load(name, image_size=image_size or None, prepare=prepare)
    except data.DataError as error:
        raise (Mistake(error) if misused else error) from None


def data_for(classifier, asked):
    """The data set to test a classifier on: the one asked for, else the one that it was trained on."""
    if classifier.recipe is None:
        if not asked:
            raise data.DataError("it was trained elsewhere, on data that its files do not name; name yours with --data")
        return load_data(asked, classifier.model.config.image_size, classifier.prepare)
    name = asked or classifier.recipe.data
    if not asked and name not in data.NAMES and not Path(name).is_dir():
        raise data.DataError(f"it was trained on {name}, which is not here; name the data with --data")
    return load_data(name, classifier.recipe.image_size)


def check_fits(classifier, dataset):
    """Raises DataError unless the model reads images of the data set's size, and knows its classes."""
    config, shape = classifier.model.config, dataset.test.images.shape[1:]
    want = (*config.image_size, config.channels)
    if shape != want:
        raise data.DataError(f"the model reads images {want}, those of {dataset.name} are {shape}")
    classes = itertools.zip_longest(classifier.classes, dataset.classes, fillvalue="missing")
    for k, (ours, theirs) in enumerate(classes):
        if ours != theirs:
            raise data.DataError(f"class {k} must be the model's, {ours}; in {dataset.name} it is {theirs}")


def in_turn(labels, count):
    """The indices of `count` images, the classes in turn: the first of each class, the second of each, …"""
    nth = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        nth[labels == k] = np.arange((labels == k).sum())
    return np.lexsort((labels, nth))[:count]


def caption(classes, label, p):
    """What an image is and, by its probabilities, was taken for."""
    return f"true {classes[label]} · predicted {classes[p.argmax()]} ({100 * p.max():.0f} %)"


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def folder(text):
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, but {text} is a file")
    return text
