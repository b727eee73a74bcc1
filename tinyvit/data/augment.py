"""Augmentation: show each image a little differently every time, and the network learns what does not matter.

A shifted 7 is a 7; a mirrored cat is a cat. (A mirrored 7 is nothing: which changes keep the label is
knowledge about the data, so the defaults below differ.) A Vision Transformer needs this more than a
convolutional network: that shifting an image changes nothing essential is built into a convolution, and a ViT
must learn it from examples (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1, "Inductive bias"; on how
much augmentation is worth: Steiner et al. 2021, "How to train your ViT?", arXiv 2106.10270).

Random rotation, zoom and shift become one matrix an image and one bilinear warp (`kernels/warp.py`). Flips
and crops move whole pixels, so they are exact. Pixels that come from beyond the border are 0, which before
normalisation is the background of digits and the black frame of photos.

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass

import numpy as np

from tinyvit.kernels.warp import warp


@dataclass(frozen=True)
class Augment:
    """A random change of images that keeps their labels; call it with a batch and a NumPy Generator.

    shift   up to so many pixels in x and in y, each uniform in ±shift, fractions of a pixel included
    rotate  up to so many degrees about the centre, uniform in ±rotate
    scale   zoom factor uniform in 1 ± scale; at least 0, below 1
    flip    mirror left and right with probability ½
    crop    surround with so many pixels of 0, then cut the old size out at a random place (whole pixels)

    Raises ValueError for a value outside its range.
    """

    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    flip: bool = False
    crop: int = 0

    def __post_init__(self):
        ranges = {
            "shift": (0 <= self.shift < np.inf, "at least 0 pixels, and finite"),
            "rotate": (0 <= self.rotate <= 180, "in 0..180 degrees"),
            "scale": (0 <= self.scale < 1, "at least 0 and below 1"),
            "crop": (isinstance(self.crop, int) and self.crop >= 0, "a whole number of pixels, 0 or more"),
        }
        for name, (holds, must) in ranges.items():
            if not holds:
                raise ValueError(f"Augment: {name} must be {must}, got {getattr(self, name)!r}")

    def __call__(self, images, rng):
        """`images` (B, h, w, C), uint8 or float32 -> changed copies, float32, in the same units.

        `rng` is a `numpy.random.Generator`: the same images and generator state give the same result.
        """
        B, h, w, _ = images.shape
        if self.shift or self.rotate or self.scale:
            angle, zoom, x, y = rng.uniform(-1, 1, (4, B))
            images = warp(
                images,
                affine(h, w, self.rotate * angle, 1 + self.scale * zoom, self.shift * x, self.shift * y),
            )
        images = crop(images, self.crop, rng) if self.crop else images.astype(np.float32)
        if self.flip:
            chosen = rng.random(B) < 0.5
            images[chosen] = images[chosen, :, ::-1]
        return images


def affine(height, width, rotate=0.0, zoom=1.0, shift_x=0.0, shift_y=0.0):
    """Matrices (B, 2, 3) float32 for `warp` that turn an image about its centre, zoom it, then move it.

    Each argument is a number or an array (B,): `rotate` in degrees anticlockwise, `zoom` above 1 enlarges,
    `shift_x` moves right and `shift_y` down, in pixels. With c the centre, R the rotation and t the shift, a
    point p goes to q = c + zoom R (p - c) + t. The warp asks the other way round, where q comes from:

        p = c + Rᵀ (q - c - t) / zoom
    """
    rotate, zoom, tx, ty = np.broadcast_arrays(
        *(np.atleast_1d(a).astype(float) for a in (rotate, zoom, shift_x, shift_y))
    )
    cx, cy = (width - 1) / 2, (height - 1) / 2  # pixel centres lie at whole numbers
    cos, sin = np.cos(np.radians(rotate)) / zoom, np.sin(np.radians(rotate)) / zoom
    x_row = [cos, -sin, cx - cos * (cx + tx) + sin * (cy + ty)]
    y_row = [sin, cos, cy - sin * (cx + tx) - cos * (cy + ty)]
    return np.array([x_row, y_row], np.float32).transpose(2, 0, 1).copy()  # (2, 3, B) -> (B, 2, 3)


def crop(images, margin, rng):
    """Surround images (B, h, w, C) by `margin` zeros and cut (h, w) out of each at a random place; float32."""
    B, h, w, C = images.shape
    padded = np.zeros((B, h + 2 * margin, w + 2 * margin, C), images.dtype)
    padded[:, margin : margin + h, margin : margin + w] = images
    out = np.empty(images.shape, np.float32)
    for b, (y, x) in enumerate(rng.integers(0, 2 * margin + 1, (B, 2)).tolist()):
        out[b] = padded[b, y : y + h, x : x + w]
    return out


# What keeps the label, by kind of data. The CIFAR row is that of He et al. 2016 (ResNet), section 4.2.
AUGMENTS = {
    "none": Augment(),
    "digits": Augment(shift=0.5, rotate=8, scale=0.08),
    "mnist": Augment(shift=2, rotate=10, scale=0.1),
    "fashion": Augment(shift=1, flip=True),
    "cifar": Augment(flip=True, crop=4),
}
