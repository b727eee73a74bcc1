"""A trained model with all it needs to read a picture: the size, the normalisation, the names of the classes.

Weights alone are half of a model. Fed with pixels scaled differently than in training they give confident
nonsense, and no error. So a checkpoint carries both, and `load` gives back a thing that takes an image file and
answers in words.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyvit.data.dataset import DataError, normalise
from tinyvit.models import ViT, ViTConfig
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.checkpoint import load as load_checkpoint
from tinyvit.train.loop import CHECKPOINT


@dataclass
class Classifier:
    """What `load` returns.

    model: in eval mode. classes: their names. mean, std: per channel, of training images scaled to [0, 1].
    data: the name or folder of the data set. recipe: how it was trained. epochs_done: how far.
    """

    model: ViT
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    recipe: dict
    epochs_done: int

    def normalise(self, images):
        """uint8 images (B, h, w, C) as the model wants them: float32, normalised."""
        return normalise(images, self.mean, self.std)

    def predict(self, images):
        """Class probabilities (B, K) of uint8 images (B, h, w, C)."""
        return self.model.predict(self.normalise(images))

    def read(self, path):
        """An image file as the model wants it: cut to its aspect ratio about the centre, resized, grey or colour.

        Returns (uint8 array (h, w, C), note): the note is None, or says that the image was inverted. That happens where
        a model trained on light strokes over dark ground gets ink on paper. Raises DataError for what is not an image.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        h, w = self.model.config.image_size
        grey = self.model.config.channels == 1
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)  # the camera's "this side up"
                if image.has_transparency_data:
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
                image = ImageOps.fit(image.convert("L" if grey else "RGB"), (w, h), Image.Resampling.BOX)
        except FileNotFoundError:
            raise DataError(f"there is no image at {path}") from None
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from None
        pixels = np.array(image).reshape(h, w, -1)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        if grey and self.mean[0] < 0.5 and np.median(border) > 127:
            return 255 - pixels, "inverted: the model was trained on light strokes over a dark ground"
        return pixels, None


def load(path):
    """Read a run's folder, or a checkpoint file in it, into a Classifier.

    Raises CheckpointError that says what is missing, damaged or does not fit.
    """
    path = Path(path)
    file = path / CHECKPOINT if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise CheckpointError(f"{path} is not a run's folder: it holds no {CHECKPOINT}. `tinyvit train` makes one.")
    tensors, about = load_checkpoint(file)
    weights = {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}
    try:
        model = ViT(ViTConfig(**about["model"]))
        model.load_state_dict(weights)
        return Classifier(
            model.eval(), tuple(about["classes"]), tuple(about["mean"]), tuple(about["std"]), about["data"],
            about["recipe"], about["epochs_done"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: weights and configuration do not fit: {error}") from None
