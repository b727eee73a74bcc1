"""RandAugment: some operations drawn from a list, all of one strength (Cubuk et al. 2019, arXiv 1909.13719, section 3).

Which changes help, and how strong they should be, was once searched for with thousands of training runs (AutoAugment,
Cubuk et al. 2018, arXiv 1805.09501). RandAugment draws blindly, and leaves two numbers to choose: how many operations
an image gets, and their strength. Each makes another image that shows the same: more examples for a network that has
nothing built in and must learn all from them.

What an operation does is in `kernels/retouch.py`; here stands how much of it a strength of 10 is. torchvision and
timm differ in details from the paper and from each other, and this from them. Rotated and sheared images are
interpolated (Pillow's default is the nearest pixel), and sheared about their centre (not a corner). Strength 0 changes
nothing, but for autocontrast and equalize. What comes from outside is 0, as in `augment.py`, where the paper has grey:
black is the background of digits and the padding of CIFAR-10's crops, and one colour for "nothing there" is enough.

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass

import numpy as np

from tinyvit.kernels.retouch import OPERATIONS, POSTERIZE, retouch

# Operation: the amount that changes nothing, how far from it strength 10 goes, whether a coin decides the direction.
# Ranges as in AutoAugment (its table 6), which has 150 of 331 pixels for the translations.
RANGES = {
    "identity": (0, 0, False),
    "autocontrast": (0, 0, False),
    "equalize": (0, 0, False),
    "posterize": (8, -4, False),  # bits
    "solarize": (256, -256, False),  # the level from which on levels are turned around
    "brightness": (1, 0.9, True),  # f of the blend, so here from 0.1 to 1.9
    "contrast": (1, 0.9, True),
    "colour": (1, 0.9, True),
    "sharpness": (1, 0.9, True),
    "rotate": (0, 30, True),  # degrees
    "shear_x": (0, 0.3, True),  # pixels for each pixel
    "shear_y": (0, 0.3, True),
    "translate_x": (0, 150 / 331, True),  # of the image's side
    "translate_y": (0, 150 / 331, True),
}
_rows = [RANGES[operation.__name__] for operation in OPERATIONS]
NEUTRAL, CHANGE = (np.array([row[k] for row in _rows], float) for k in (0, 1))
SIGNED = np.array([row[2] for row in _rows])


@dataclass(frozen=True)
class RandAugment:
    """Apply `operations` operations to each image, one after the other, each drawn from all 14 with equal chances.

    `strength` in 0..10 is that of all of them. Call it with a batch and a NumPy Generator. Raises ValueError for a
    number of operations below 1 and for a strength out of range.
    """

    operations: int = 2
    strength: float = 9.0

    def __post_init__(self):
        if not isinstance(self.operations, int | np.integer) or self.operations < 1:
            raise ValueError(f"RandAugment: operations must be a whole number from 1 up, got {self.operations!r}")
        if not 0 <= self.strength <= 10:
            raise ValueError(f"RandAugment: strength must be in 0..10, got {self.strength!r}")

    def __call__(self, images, rng):
        """images (B, h, w, C), uint8 or float32 in 0..255 -> changed copies, uint8: 8-bit levels, as operations need.

        `rng` is a `numpy.random.Generator`: the same images and generator state give the same result.
        """
        if images.dtype != np.uint8:
            images = np.rint(images).astype(np.uint8)
        drawn = rng.integers(len(OPERATIONS), size=(self.operations, len(images)))
        for numbers, coins in zip(drawn, rng.random(drawn.shape), strict=True):
            images = retouch(images, numbers, amounts(numbers, coins < 0.5, self.strength))
        return images


def amounts(numbers, other_way, strength):
    """How much of each operation, (B,) float64, of their `numbers` (B,) and bools (B,) that turn signed ones around."""
    change = CHANGE[numbers] * strength / 10
    amount = NEUTRAL[numbers] + np.where(SIGNED[numbers] & other_way, -change, change)
    return np.where(numbers == POSTERIZE, np.rint(amount), amount)
