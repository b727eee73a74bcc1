"""A palette: few colours instead of 16 million, so that a pixel is a word and an image a sentence.

A language model predicts the next word out of a vocabulary. To do the same with pixels, each must be one of a few
hundred colours. Image GPT takes 512, the centres of k-means over the training pixels (Chen et al. 2020, section 3.2),
and the eye hardly notices. Since attention grows with the square of the pixels, it reduces the resolution first, as
`data.load(name, image_size=…)` does. For grey images evenly spaced levels do.

Chapter of the course: notebooks/12-learning-without-labels.ipynb.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE = 20_000  # pixels are enough to find the centres
CHUNK = 2**16  # pixels at a time, so that the distances to all colours stay in the cache


@dataclass(frozen=True, eq=False)
class Palette:
    """`colours` (V, C) float32 in 0..255, no two equal. `len(palette)` is V.

    Raises ValueError for another shape, for fewer than two colours and for equal ones.
    """

    colours: np.ndarray

    def __post_init__(self):
        colours = np.asarray(self.colours, np.float32)
        if colours.ndim != 2 or len(colours) < 2 or len(np.unique(colours, axis=0)) < len(colours):
            raise ValueError(f"a palette must be two or more different colours (V, C), got {colours.shape}")
        object.__setattr__(self, "colours", colours)

    @classmethod
    def grey(cls, levels):
        """Evenly spaced levels from black to white. 17 of them are exactly those of the digits."""
        if not isinstance(levels, int | np.integer) or not 2 <= levels <= 256:
            raise ValueError(f"levels must be a whole number in 2..256, got {levels!r}")
        return cls(np.rint(np.linspace(0, 255, levels))[:, None])

    @classmethod
    def fit(cls, images, size, seed=0):
        """The centres of k-means over the pixels of images (M, h, w, C), sorted by brightness.

        From 20,000 of the pixels, or all where there are fewer, drawn by `seed`; starts from `size` different colours
        among them. Raises ValueError where there are not so many, and SciPy's ClusterError where a centre loses its
        last pixel on the way (another seed, or fewer colours, may mend that).
        """
        from scipy.cluster.vq import kmeans2  # here, because importing it takes long

        rng = np.random.default_rng(seed)
        pixels = images.reshape(-1, images.shape[-1])
        pixels = pixels[rng.choice(len(pixels), min(SAMPLE, len(pixels)), replace=False)].astype(np.float32)
        different = np.unique(pixels, axis=0)
        if not 2 <= size <= len(different):
            raise ValueError(
                f"size must be in 2..{len(different)}, the different colours in the sample of {len(pixels)} pixels, "
                f"got {size}"
            )
        start = different[rng.choice(len(different), size, replace=False)]
        colours, _ = kmeans2(pixels, start, iter=30, minit="matrix", missing="raise")
        return cls(colours[np.argsort(colours.sum(axis=1), kind="stable")])

    def __len__(self):
        return len(self.colours)

    def encode(self, images):
        """Images (B, h, w, C) in 0..255, uint8 or float -> for each pixel the number of the nearest colour, (B, h, w)
        int64. Raises ValueError for another number of channels."""
        if images.ndim != 4 or images.shape[-1] != self.colours.shape[1]:
            raise ValueError(f"this palette reads images (B, h, w, {self.colours.shape[1]}), got {images.shape}")
        pixels = images.reshape(-1, images.shape[-1])
        half = (self.colours**2).sum(axis=1) / 2
        parts = [
            # |x - c|² = |x|² - 2 (x·c - |c|²/2), and |x|² is the same for all colours c
            (pixels[i : i + CHUNK].astype(np.float32) @ self.colours.T - half).argmax(axis=1)
            for i in range(0, len(pixels), CHUNK)
        ]
        return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64).reshape(images.shape[:3])

    def decode(self, pixels):
        """Numbers of colours (B, h, w) -> images (B, h, w, C) uint8."""
        return np.rint(self.colours).astype(np.uint8)[pixels]
