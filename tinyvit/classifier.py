"""A trained model with all it needs to read a picture: the size, the normalisation, the names of the classes.

Weights alone are half of a model. Fed with pixels scaled differently than in training they give confident
nonsense, and no error. So a checkpoint carries both, and `load` gives back a thing that takes an image file and
answers in words; also of a published ViT's weights, as far as the files beside them say it (`interop/`).

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyvit.data.dataset import DataError, normalise
from tinyvit.data.image import SQUASH, Preparation, read_image
from tinyvit.interop import LAYOUTS, find_weights, is_ours, read
from tinyvit.models import ImageModel, build, from_dict
from tinyvit.nn import BatchNorm
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.checkpoint import load as load_checkpoint
from tinyvit.train.fitting import check_memory
from tinyvit.train.folder import BEST, CHECKPOINT
from tinyvit.train.recipes import Recipe


@dataclass
class Classifier:
    """What `load` returns.

    model: in eval mode. classes: their names. mean, std: per channel, of training images scaled to [0, 1].
    data: the name of the data set. recipe: how it was trained, None if elsewhere. epochs_done: how far.
    prepare: how a picture gets the model's size. notes: what was assumed of a model from elsewhere, in sentences.

    Raises ValueError where these do not fit the model.
    """

    model: ImageModel
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    recipe: Recipe | None
    epochs_done: int
    prepare: Preparation = SQUASH
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        config = self.model.config
        if len(self.classes) != config.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"there must be {config.classes} names of classes, got {self.classes}")
        if not len(self.mean) == len(self.std) == config.channels:
            raise ValueError(f"mean and std must have {config.channels} values, got {self.mean} and {self.std}")
        if not (np.isfinite([*self.mean, *self.std]).all() and min(self.std) > 0):
            raise ValueError(f"mean must be finite and std positive, got {self.mean} and {self.std}")

    @property
    def knows_classes(self):
        """Whether there is a head."""
        return getattr(self.model.config, "head", "") != "none"

    def normalise(self, images):
        """uint8 images (B, h, w, C) as the model wants them: float32, normalised."""
        return normalise(images, self.mean, self.std)

    def predict(self, images, *, threads=1):
        """Class probabilities (B, classes) of uint8 images (B, h, w, C), on so many threads. Raises ValueError for a
        model without a head, which knows no classes: fine-tuning gives it one."""
        if not self.knows_classes:
            raise ValueError("this model has no head, so it knows no classes; fine-tuning gives it one")
        return self.model.predict(self.normalise(images), threads=threads)

    def read(self, path):
        """An image file as the model wants it, prepared as images were for training (`data/image.py`): upright, grey or
        colour, squashed to the model's size, or what its `prepare` says.

        Returns (uint8 array (h, w, C), note): the note is None, or says that not all of the image is seen, or that it
        was inverted. That happens where a model trained on light strokes over dark ground gets ink on paper. Raises
        DataError for what is not an image.
        """
        h, w = self.model.config.image_size
        if self.model.config.channels not in (1, 3):
            raise DataError(f"pictures have 1 or 3 channels, and the model reads {self.model.config.channels}")
        grey = self.model.config.channels == 1
        try:
            pixels = read_image(path, (w, h), grey, self.prepare)
        except FileNotFoundError:
            raise DataError(f"there is no image at {path}") from None
        except Exception as error:  # decoders raise anything at all on hostile bytes
            raise DataError(f"{path} cannot be read as an image: {str(error) or type(error).__name__}") from None
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        if grey and self.mean[0] < 0.5 and np.median(border) > 127:
            return 255 - pixels, "inverted: the model was trained on light strokes over a dark ground"
        return pixels, None if self.prepare.resize is None else "only its centre is seen: the model was trained so"


def load(path, heads=None):
    """Read a trained model into a Classifier, in eval mode.

    Args:
        path: a run's folder, or a checkpoint file in it; or a ViT's weights as Google (.npz), timm or Hugging Face
            (.safetensors, or a folder with it and its config.json) publish them.
        heads: of attention, where no file says how many.

    Raises CheckpointError that says what is missing, damaged or does not fit.
    """
    path = Path(path)
    if path.exists() and not is_ours(path):
        if find_weights(path) is None:
            raise CheckpointError(
                f"{path} must be a run's folder, with a {CHECKPOINT} that `tinyvit train` makes, or hold published "
                "weights, a .safetensors or a .npz; it holds neither"
            )
        return _from_elsewhere(path, heads)
    if heads and path.exists():
        raise CheckpointError(f"heads is for weights whose files do not say, and {path} is a run's, which says")
    file = path / CHECKPOINT if path.is_dir() else path
    try:
        tensors, about = load_checkpoint(file)
    except CheckpointError as error:
        if path.is_dir() and (path / BEST).exists():
            raise CheckpointError(f"{error}. The best epoch's is beside it: {path / BEST}") from None
        raise
    weights = {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}
    try:
        recipe = Recipe.from_dict(about["recipe"])
        if not isinstance(about["recipe"].get("data"), str):
            raise ValueError("the recipe names no data")
        config = check_memory(from_dict(about["model"]), 1)
        _check_shapes(weights, config)
        model = build(config)
        model.load_state_dict(weights)
        _check_numbers(model)
        return Classifier(
            model.eval(), tuple(about["classes"]), tuple(about["mean"]), tuple(about["std"]), about["data"],
            recipe, about["epochs_done"],
        )  # fmt: skip
    except KeyError as error:
        raise CheckpointError(f"{file}: weights and configuration do not fit: {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: weights and configuration do not fit: {error}") from None


def _from_elsewhere(path, heads):
    """The Classifier of a ViT that was trained elsewhere."""
    found = read(path, heads)
    try:
        _check_numbers(found.model)
        return Classifier(
            found.model.eval(), found.classes, found.mean, found.std, LAYOUTS[found.layout].title, None, 0,
            found.prepare, found.notes,
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_shapes(weights, config):
    """ValueError unless the weights have the configuration's sizes. `load_state_dict` checks each one, but only after
    the model was built; a configuration that lies about its width would fill the memory before."""
    if hasattr(config, "depth"):
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        if len(blocks) != config.depth:
            raise ValueError(f"depth must be {len(blocks)}, the number of blocks stored; got {config.depth}")
    for name, shape in config.shapes().items():
        if weights[name].shape != shape:
            raise ValueError(f"{name} must be {shape}, got {weights[name].shape}")


def _check_numbers(model):
    """ValueError for weights that could only give NaN."""
    for name, p in model.named_parameters():
        if not np.isfinite(p.data).all():
            raise ValueError(f"{name} must be finite, and holds a NaN or an infinity")
    for name, module in model.modules():
        if isinstance(module, BatchNorm) and (module.variance.data < 0).any():
            raise ValueError(f"{name}.variance must not be negative, got {module.variance.data.min():g}")
