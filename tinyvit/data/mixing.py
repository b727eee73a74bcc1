"""Mixing: train on images that are two images, with targets that say how much of each.

Mixup (Zhang et al. 2017, arXiv 1710.09412, eq. 1) lays one image over another, CutMix (Yun et al. 2019,
arXiv 1905.04899, eq. 1 and 2) pastes a rectangle of one into the other:

    mixup    x = λ x₁ + (1 - λ) x₂           CutMix    x = M x₁ + (1 - M) x₂,  λ = the share of M that is 1
             t = λ t₁ + (1 - λ) t₂                     t = λ t₁ + (1 - λ) t₂

with λ ~ Beta(α, α): for α = 1 uniform, for small α near 0 or 1, so that most images stay nearly whole. A network that
has learned it does not jump from one class to the other between two examples, and no number of epochs lets it know the
training set by heart. The price: its training accuracy is no longer that of the images one will show it.

λ is drawn once a batch, as in both papers' code, and so is the choice between the two; timm does so too by default,
and can draw for each image, or each pair, instead. Mixing and normalising (a linear change) may come in either order.

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mix:
    """Blend each image of a batch with the next one; call it with a batch and a NumPy Generator.

    mixup, cutmix: α of the two methods' Beta distributions, 0 for none. With both, a coin decides for each batch.
    classes: of the targets.

    Raises ValueError for an α that is negative or infinite, and for fewer classes than 1.
    """

    mixup: float
    cutmix: float
    classes: int

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"Mix: {name} must be at least 0, and finite, got {getattr(self, name)!r}")
        if not isinstance(self.classes, int | np.integer) or self.classes < 1:
            raise ValueError(f"Mix: classes must be a whole number from 1 up, got {self.classes!r}")

    def __call__(self, images, labels, rng):
        """images (B, h, w, C) float32, labels (B,) int64 -> (mixed images, targets (B, classes) float32).

        The second image is the next one in the batch, the first one for the last: in a shuffled epoch that is any.
        `rng` is a `numpy.random.Generator`; the images that came in stay as they are.
        """
        targets = np.zeros((len(labels), self.classes), np.float32)
        targets[np.arange(len(labels)), labels] = 1
        if not (self.mixup or self.cutmix):
            return images, targets
        method, alpha = mixup, self.mixup
        if self.cutmix and not (self.mixup and rng.random() < 0.5):
            method, alpha = cutmix, self.cutmix
        images, share = method(images, rng.beta(alpha, alpha), rng)
        return images, np.float32(share) * targets + np.float32(1 - share) * following(targets)


def following(batch):
    """The next one for each, and the first for the last."""
    return np.roll(batch, -1, axis=0)


def mixup(images, share, rng=None):
    """λ x₁ + (1 - λ) x₂ for images (B, h, w, C), with λ = `share`. Returns (images, λ)."""
    mixed = np.float32(1 - share) * following(images)
    mixed += np.float32(share) * images
    return mixed, share


def cutmix(images, share, rng):
    """Images (B, h, w, C) with one rectangle of the next image, the same for all. Returns (images, the share kept).

    Its sides are those of the image times √(1 - λ), its centre is any pixel, and what stands out over the border is cut
    off (paper, eq. 2 and its code); so the share that is kept may be more than the `share` asked for.
    """
    _, h, w, _ = images.shape
    side = (1 - share) ** 0.5
    rows, columns = (_stretch(size, side * size, rng) for size in (h, w))
    mixed = images.copy()
    mixed[:, rows, columns] = following(images[:, rows, columns])
    return mixed, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (h * w)


def _stretch(size, length, rng):
    """A slice of `length` pixels, rounded down to an even number, about a random one of `size`; cut at both ends."""
    centre, half = int(rng.integers(size)), int(length) // 2
    return slice(max(centre - half, 0), min(centre + half, size))
