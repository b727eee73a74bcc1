"""Recipes: everything that decides how a run goes, as rows of a table.

A run is reproducible when it is a function of its recipe and the data, and of nothing else: no default hidden
in a loop, no machine's core count. The recipe is written into the run's folder and into its checkpoint.

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass, fields, replace

from tinyvit.data import AUGMENTS
from tinyvit.models import PRESETS


@dataclass(frozen=True)
class Recipe:
    """How to train. Raises ValueError for what cannot be.

    data: a name that `tinyvit.data.load` knows, or a folder of images.
    preset: of the model, a key of PRESETS; its image size, channels and classes are taken from the data.
    epochs, batch_size: passes over the training split; images per step.
    lr: peak learning rate, reached after `warmup` epochs (or a fifth of the run, if that is less), then half a cosine
        down to 0.
    weight_decay: AdamW's decoupled λ on matrices, multiplied by the learning rate; for SGD the L2 term.
    smoothing: label smoothing.
    clip: longest global gradient norm; 0 for none.
    dropout: probability.
    optimizer: "adamw" or "sgd" (momentum 0.9).
    augment: a key of AUGMENTS.
    patch: patch size in place of the preset's; 0 keeps that.
    image_size: side in pixels to which the images are resized; 0 keeps their own.
    seed: of initial values, order, augmentation and dropout.
    shards: into how many parts each batch is cut for the threads. Sums are taken shard by shard, so the result depends
        on this number, and on no number of threads.
    """

    data: str = "digits"
    preset: str = "digits"
    epochs: int = 120
    batch_size: int = 64
    lr: float = 4e-3
    warmup: float = 10.0
    weight_decay: float = 1.0
    smoothing: float = 0.1
    clip: float = 1.0
    dropout: float = 0.0
    optimizer: str = "adamw"
    augment: str = "digits"
    patch: int = 0
    image_size: int = 0
    seed: int = 0
    shards: int = 4

    def __post_init__(self):
        for name, least in dict(epochs=0, batch_size=1, shards=1, seed=0, patch=0, image_size=0).items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")
        for name in ("lr", "warmup", "weight_decay", "clip"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number from 0 up, got {value!r}")
        for name in ("smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        for name, known in dict(preset=PRESETS, augment=AUGMENTS, optimizer=("adamw", "sgd")).items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values):
        """A recipe from a dict, as read from a file. Raises ValueError that names the keys nobody knows."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"a recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**values)


MNIST = Recipe(
    "mnist", preset="mnist7", epochs=12, batch_size=128, lr=2e-3, warmup=1.0, weight_decay=0.05, augment="mnist"
)
CIFAR = Recipe(
    "cifar10", preset="cifar", epochs=30, batch_size=128, lr=1e-3, warmup=2.0, weight_decay=0.05, augment="cifar"
)
RECIPES = {
    # Chosen by five-fold cross-validation on training and validation images. From lr 2e-3 and decay 0.05 (98.1 %),
    # lr 4e-3 (98.8 %) and then decay 1.0 (99.2 %) gained most; stronger augmentation and a wider model gained nothing.
    "digits": Recipe(shards=2),
    "mnist": MNIST,
    "fashion": replace(MNIST, data="fashion", preset="mnist", epochs=20, augment="fashion"),
    "cifar10": CIFAR,
    "cifar100": replace(CIFAR, data="cifar100"),
}
FOLDER_RECIPE = replace(CIFAR, data="", batch_size=32, augment="mnist")  # no flips: they might be letters
