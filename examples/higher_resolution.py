"""Higher resolution: what a ViT keeps when its images grow and its patches do not (paper section 3.2).

    python examples/higher_resolution.py [digits|mnist] [--seeds N] [--picture FILE]

A model is trained on small images. Then the images double their sides, the sequence becomes four times as long, and the
positions are interpolated, in three ways. Asked at once, with its old head, it is tested; fine-tuned with a new head of
zeros, by the paper's SGD recipe; and a model from scratch gets the same number of steps and images.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import tinyvit as tv
from tinyvit import data, train
from tinyvit.data.dataset import Dataset
from tinyvit.models import at_resolution
from tinyvit.nn.resolution import MODES


@dataclass(frozen=True)
class Setting:
    """low, high: sides of the images. small: the recipe of the low resolution. images, epochs: the budget at the high
    one. sgd, adamw: peak learning rates there, the best on validation of the grid that stands beside them."""

    low: int
    high: int
    small: train.Recipe
    images: int
    epochs: int
    finetune: float
    sgd: float
    adamw: float


SETTINGS = {
    "digits": Setting(8, 16, train.RECIPES["digits"], 1197, 20, 0.03, 0.1, 4e-3),
    "mnist": Setting(14, 28, replace(train.RECIPES["mnist"], preset="mnist", patch=2, epochs=4), 10_000, 2, 0.03, 0.1, 2e-3),
}


def fit(recipe, dataset, model=None):
    with tempfile.TemporaryDirectory() as folder:
        return train.fit(recipe, dataset, folder, model=model, say=lambda line: None)


def pretrain(name, setting, seed):
    """The Classifier that is trained on the small images."""
    recipe = replace(setting.small, image_size=setting.low, seed=seed)
    small = data.load(name, image_size=setting.low)
    with tempfile.TemporaryDirectory() as folder:
        train.fit(recipe, small, folder, say=lambda line: None)
        return tv.load(folder)


def enlarged(name, setting):
    """The data at the high resolution, with the budget's number of training images."""
    large = data.load(name, image_size=setting.high)
    return Dataset.of(name, large.classes, large.train[: setting.images], large.validation, large.test)


def after_interpolation(start, large, mode):
    """Test accuracy with the old head, nothing trained."""
    model = at_resolution(start.model, large.train.images.shape[1:3], mode)
    return train.evaluate(model, large.test, start.mean, start.std)[0]


def fine_tuned(start, large, setting, seed, lr, mode="corners"):
    recipe = train.finetuning_recipe(setting.small, start)
    recipe = replace(recipe, image_size=setting.high, epochs=setting.epochs, lr=lr, seed=seed)
    model, large = train.begin(start, large, recipe, mode)
    return fit(recipe, large, model)


def from_scratch(large, setting, seed, lr, optimizer):
    """The same steps and images. With SGD by the recipe of fine-tuning; with AdamW by that of the small images."""
    recipe = replace(setting.small, image_size=setting.high, epochs=setting.epochs, lr=lr, seed=seed)
    if optimizer == "sgd":
        recipe = replace(recipe, **train.FINETUNING | dict(epochs=setting.epochs, lr=lr))
    return fit(recipe, large)
