"""Recipes: everything that decides how a run goes, and what it has been measured to reach.

A run is reproducible when it is a function of its recipe and the data, and of nothing else: no default hidden
in a loop, no machine's core count. The recipe is written into the run's folder and into its checkpoint.

`tinyvit/recipes/` holds those that come with the package, a TOML file each: [recipe] what to do, [promise] what came of
it, where that was measured. Your own is a file of the same form, for `tinyvit train --recipe FILE`. It must name what
has no value good for all data (NAMED); what else it does not name is as in `Recipe`.

Chapter of the course: notebooks/07-training.ipynb.
"""

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev

from tinyvit.data import AUGMENTS
from tinyvit.models import PRESETS
from tinyvit.optim import OPTIMIZERS


@dataclass(frozen=True)
class Recipe:
    """How to train. Raises ValueError for what cannot be.

    data: a name that `tinyvit.data.load` knows, or a folder of images.
    preset: of the model, a key of PRESETS; its image size, channels and classes are taken from the data.
    epochs, batch_size: passes over the training split; images per step.
    lr: peak learning rate, reached after `warmup` epochs (or a fifth of the run, if that is less), then half a cosine
        down to 0.
    weight_decay: λ on matrices. AdamW's and Muon's is decoupled, and multiplied by the learning rate; SGD's is the L2
        term.
    smoothing: label smoothing.
    clip: longest global gradient norm; 0 for none.
    dropout: probability.
    optimizer: "adamw", "muon" (momentum 0.95) or "sgd" (momentum 0.9).
    augment: a key of AUGMENTS.
    rand_ops, rand_magnitude: RandAugment (Cubuk et al. 2019), so many operations an image, of strength 0 to 10.
    erase: probability that a rectangle of an image is erased (Zhong et al. 2017).
    mixup, cutmix: α of the Beta distribution by which two images are blended (Zhang et al. 2017), or a rectangle of one
        is put into the other (Yun et al. 2019); 0 for none. With both, a coin decides for each batch.
    drop_path: stochastic depth (Huang et al. 2016), the probability at the last block; at the first it is 0.
    ema: decay a step of the running average of the weights, which then is what is validated, tested and kept; 0 for
        none.
    patch: patch size in place of the preset's; 0 keeps that.
    image_size: side in pixels to which the images are resized; 0 keeps their own.
    seed: of initial values, order, augmentation and dropout.
    shards: into how many parts each batch is cut for the threads and ranks; a multiple of the ranks. Sums are taken
        shard by shard, so the result depends on this number, and on no number of threads or ranks.
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
    rand_ops: int = 0
    rand_magnitude: float = 9.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    ema: float = 0.0
    patch: int = 0
    image_size: int = 0
    seed: int = 0
    shards: int = 4

    def __post_init__(self):
        for name, least in dict(epochs=0, batch_size=1, shards=1, seed=0, patch=0, image_size=0, rand_ops=0).items():
            value = getattr(self, name)
            if type(value) is not int or value < least:  # True is an int, too
                raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")
        for names, holds, must in (
            (
                ("lr", "warmup", "weight_decay", "clip", "mixup", "cutmix"),
                lambda x: 0 <= x < math.inf,
                "finite number from 0 up",
            ),
            (("smoothing", "dropout", "drop_path", "ema", "erase"), lambda x: 0 <= x < 1, "number in [0, 1)"),
            (("rand_magnitude",), lambda x: 0 <= x <= 10, "number in 0..10"),
        ):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
                    raise ValueError(f"{name} must be a {must}, got {value!r}")
        for name, known in dict(preset=PRESETS, augment=AUGMENTS, optimizer=OPTIMIZERS).items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if not isinstance(self.data, str):
            raise ValueError(f"data must be a text, got {self.data!r}")

    @classmethod
    def from_dict(cls, values):
        """A recipe from a dict, as read from a file. Raises ValueError that names the keys nobody knows."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"a recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**values)


NAMED = ("data", "preset", "epochs", "batch_size", "lr", "warmup", "weight_decay", "augment")  # by each recipe's file


@dataclass(frozen=True)
class Promise:
    """What a recipe reached when it was measured.

    accuracy: of the test images, in percent, a number for each seed. The test images were looked at once for each;
        choices were made on validation images. "±" is the standard deviation of the sample (n - 1).
    minutes: of training, on two cores.
    command: what to type to see the same.
    data: where the data are not the official ones, what they are.
    """

    accuracy: tuple[float, ...]
    minutes: float
    command: str
    data: str = ""

    @classmethod
    def from_dict(cls, values):
        """A promise from a dict, as read from a file. Raises ValueError for a missing, strange or unfit one."""
        known = {field.name for field in fields(cls)}
        if not known - {"data"} <= set(values) <= known:
            raise ValueError(f"a promise has accuracy, minutes, command and may have data; got {', '.join(values)}")
        accuracy = values["accuracy"]
        if not isinstance(accuracy, list) or not accuracy or not all(isinstance(x, float) for x in accuracy):
            raise ValueError(f"accuracy must be a list, a percentage for each seed, got {accuracy!r}")
        if type(values["minutes"]) not in (int, float):
            raise ValueError(f"minutes must be a number, got {values['minutes']!r}")
        for name in sorted(set(values) & {"command", "data"}):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} must be a text, got {values[name]!r}")
        return cls(**(values | {"accuracy": tuple(accuracy)}))

    def __str__(self):
        spread = f" ± {stdev(self.accuracy):.2f}" if len(self.accuracy) > 1 else ""
        seeds = f"{len(self.accuracy)} seeds" if len(self.accuracy) > 1 else "1 seed"
        of = f" of {self.data}" if self.data else ""
        time = f"{self.minutes:g} minutes" if self.minutes >= 1 else f"{60 * self.minutes:.0f} s"
        return f"{mean(self.accuracy):.2f}{spread} %{of}, {seeds}, {time}"


class RecipeError(Exception):
    """A recipe's file that is missing, or not one."""


def read_recipe(path):
    """(Recipe, Promise or None) from a TOML file. Raises RecipeError that says what is wrong with it."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows' editors may begin it with a mark
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {getattr(error, 'strerror', None) or error}") from None
    strange = sorted(set(tables) - {"recipe", "promise"})
    if "recipe" not in tables or strange or not all(isinstance(table, dict) for table in tables.values()):
        found = ", ".join(f"[{name}]" if isinstance(table, dict) else name for name, table in tables.items())
        raise RecipeError(f"{path} must hold a table [recipe], and may hold a [promise]; found {found or 'nothing'}")
    try:
        recipe = Recipe.from_dict(tables["recipe"])
        if missing := [name for name in NAMED if name not in tables["recipe"]]:
            raise ValueError(f"a recipe's file must name {', '.join(NAMED)}; it lacks {', '.join(missing)}")
        return recipe, Promise.from_dict(tables["promise"]) if "promise" in tables else None
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from None


FILES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))}
KNOWN = {name: read_recipe(path) for name, path in FILES.items()}
FOLDER_RECIPE = KNOWN["folder"][0]
RECIPES = {name: recipe for name, (recipe, _) in KNOWN.items() if recipe.data}
PROMISES = {name: promise for name, (_, promise) in KNOWN.items() if promise}
