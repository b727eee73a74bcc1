"""The pipeline: what a recipe does to its training images, one step after the other.

    geometry          `augment.py`: shift, turn, zoom, mirror: what a camera could have done
    RandAugment       `randaugment.py`: the same, and colours and contrast, drawn from a list
    random erasing    here: something stands in front

in the order in which torchvision's and timm's training scripts have them. (Those erase after normalising, with normal
noise; before it, uniform noise does the same.) All of it works on a whole batch at once and on the training images
alone; validation and test images are shown as they are. Blending two images, `mixing.py`, comes last, because it needs
the labels too.

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass

import numpy as np

from tinyvit.data.augment import AUGMENTS
from tinyvit.data.randaugment import RandAugment


@dataclass(frozen=True)
class Erase:
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896, algorithm 1): with this probability, fill a rectangle of an
    image with noise, each number uniform in 0..255. The network learns not to rely on any one part.

    The rectangle's area is uniform in 2 to 40 % of the image, the ratio of its sides in 0.3 to 1 / 0.3, each as likely
    as its inverse; one that is longer than the image is cut to its side (the paper draws again). Raises ValueError for
    a probability out of [0, 1].
    """

    probability: float

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Erase: the probability must be in [0, 1], got {self.probability!r}")

    def __call__(self, images, rng):
        """images (B, h, w, C), uint8 or float32 in 0..255 -> copies, float32. `rng` is a `numpy.random.Generator`."""
        B, h, w, C = images.shape
        images = images.astype(np.float32)
        chosen = np.flatnonzero(rng.random(B) < self.probability)
        area, ratio, y, x = rng.random((4, len(chosen)))
        area, ratio = h * w * (0.02 + 0.38 * area), 0.3 ** (2 * ratio - 1)
        heights = np.clip(np.rint(np.sqrt(area * ratio)), 1, h).astype(int)
        widths = np.clip(np.rint(np.sqrt(area / ratio)), 1, w).astype(int)
        tops, lefts = (y * (h - heights + 1)).astype(int), (x * (w - widths + 1)).astype(int)
        noise = rng.random((int((heights * widths).sum()), C), dtype=np.float32) * np.float32(255)
        rectangles = zip(chosen.tolist(), tops.tolist(), lefts.tolist(), heights.tolist(), widths.tolist(), strict=True)
        used = 0
        for b, top, left, height, width in rectangles:
            part = noise[used : used + height * width]
            images[b, top : top + height, left : left + width] = part.reshape(height, width, C)
            used += height * width
        return images


def augmentation(recipe):
    """What `batches(..., augment=…)` takes: the recipe's changes one after the other, or None where it has none.

    It reads the recipe's fields augment, rand_ops, rand_magnitude and erase. The result is called with images
    (B, h, w, C), uint8 or float32 in 0..255, and a Generator, and returns float32 images in the same units.
    """
    steps = []
    if recipe.augment != "none":
        steps.append(AUGMENTS[recipe.augment])
    if recipe.rand_ops:
        steps.append(RandAugment(recipe.rand_ops, recipe.rand_magnitude))
    if recipe.erase:
        steps.append(Erase(recipe.erase))
    return _Chain(tuple(steps)) if steps else None


@dataclass(frozen=True)
class _Chain:
    """Changes, one after the other."""

    steps: tuple

    def __call__(self, images, rng):
        for step in self.steps:
            images = step(images, rng)
        return images.astype(np.float32, copy=False)
