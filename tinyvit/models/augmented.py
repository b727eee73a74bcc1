"""Convolution and attention side by side: some output channels see a small window, the others the whole image.

    AAConv(x) = [conv(x) ; MSA(x)]

A convolution is told that neighbours matter and that places are alike; what is far away it reaches only through many
layers. Attention reaches every pixel at once, and must find out which ones matter. An *attention-augmented convolution*
computes both from the same feature map and lays the results side by side as channels, so that the next layer takes
what it needs. To keep a convolution's second virtue, that a shifted image gives a shifted result, its attention knows
shifts and not places: to the score of query i and key j come two learned answers to qᵢ, one for how many rows j is
below i, one for how many columns it is to the right,

    score(i, j) = qᵢ · (k_j + r_rows[j - i] + r_columns[j - i]) / √K.

The two tables have 2 h - 1 and 2 w - 1 rows, where one for all shifts of the plane (`nn/positions.py`) has their
product.

Source: Bello et al. 2019, "Attention Augmented Convolutional Networks", arXiv 1904.09925, section 3.

Chapter of the course: notebooks/11-attention-as-convolution.ipynb.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyvit import functional as F
from tinyvit import ops
from tinyvit.models.model import ImageModel, check_sizes
from tinyvit.nn import Conv2d, GroupNorm, Linear, Module, Parameter


class RelativeAttention2D(Module):
    """Multi-head self-attention over all pixels of a feature map, with learned shifts for each axis:
    (B, h, w, C) -> (B, h, w, D).

    Args:
        channels, width: C and D; heads must divide D.
        grid: (h, w), the feature map's size, to which the tables of shifts belong.

    Tables `rows` (2 h - 1, K) and `columns` (2 w - 1, K), K = D / H, are shared by the heads; they start normal with
    variance 1 / K. (Bello et al. allow keys of another width than values; here both have K numbers.)
    """

    def __init__(self, channels, width, heads, rng, grid):
        if width % heads:
            raise ValueError(f"heads must divide the width of attention: {width} = {heads} × {width / heads:g}")
        self.heads, self.grid = heads, grid
        self.qkv = Linear(channels, width, rng, copies=3)
        self.out = Linear(width, width, rng)
        K = width // heads
        self.rows = Parameter(rng.normal(0, K**-0.5, (2 * grid[0] - 1, K)).astype(np.float32))
        self.columns = Parameter(rng.normal(0, K**-0.5, (2 * grid[1] - 1, K)).astype(np.float32))

    def shift_scores(self, q):
        """What the shifts add to the scores: queries (B, h, w, H, K) -> (B, H, N, N).

        For each of two axes, the queries of one line are multiplied by that line's 2 h - 1 or 2 w - 1 shifts, and the
        result is the same for all keys in a row, or a column: N (h + w) products of vectors, not N².
        """
        B, h, w, H, K = q.shape
        rows, columns = _lines(self.rows, h), _lines(self.columns, w)
        q = q * K**-0.5
        down = q.transpose(1, 0, 2, 3, 4).reshape(h, B * w * H, K) @ rows  # (h, B w H, h)
        right = q.transpose(2, 0, 1, 3, 4).reshape(w, B * h * H, K) @ columns
        down = down.reshape(h, B, w, H, h, 1).transpose(1, 3, 0, 2, 4, 5)  # (B, H, h, w, h, 1)
        right = right.reshape(w, B, h, H, 1, w).transpose(1, 3, 2, 0, 4, 5)  # (B, H, h, w, 1, w)
        return (down + right).reshape(B, H, h * w, h * w)

    def forward(self, x, maps=None):
        """`maps` is a list that receives the attention probabilities, an array (B, H, N, N)."""
        if x.ndim != 4 or x.shape[1:3] != tuple(self.grid):
            raise ValueError(
                f"RelativeAttention2D was made for feature maps (B, {self.grid[0]}, {self.grid[1]}, C), got {x.shape}"
            )
        B, h, w, C = x.shape
        D = self.out.weight.shape[0]
        qkv = self.qkv(x.reshape(B, h * w, C))
        q = qkv[:, :, :D].reshape(B, h, w, self.heads, D // self.heads)
        read = F.biased_attention(qkv, self.shift_scores(q), heads=self.heads, maps=maps)
        return self.out(read).reshape(B, h, w, D)


def _lines(table, size):
    """(2 size - 1, K) -> (size, K, size): for a query at i, the vectors of the shifts to each key j, as columns."""
    places = np.arange(size)
    return F.embedding(table, places - places[:, None] + size - 1).mT


class AugmentedConv2d(Module):
    """A 3×3 convolution whose last `attention` output channels are attention instead: (B, h, w, C) -> (B, h, w, D).

    Args:
        channels, width: C and D. attention: 0 for a plain convolution, to D.
        heads: of the attention, which must divide its channels.
        grid: (h, w) of the feature map.
    """

    def __init__(self, channels, width, attention, heads, rng, grid):
        if not 0 <= attention <= width:
            raise ValueError(f"attention gets from 0 to all of the {width} output channels, got {attention}")
        self.convolution = Conv2d(channels, width - attention, 3, rng) if attention < width else None
        self.attention = RelativeAttention2D(channels, attention, heads, rng, grid) if attention else None

    def forward(self, x):
        parts = [part(x) for part in (self.convolution, self.attention) if part is not None]
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=3)


@dataclass(frozen=True)
class AugmentedConfig:
    """What defines an AugmentedNet. Raises ValueError where the numbers do not fit together.

    image_size, channels, classes: as in ViTConfig.
    stride: of the first convolution: 2 halves the image's sides.
    width: channels of every feature map.
    depth: residual blocks.
    attention: how many of a block's output channels are attention; 0 makes it an ordinary CNN.
    heads: must divide `attention`.
    groups: of the normalisation; must divide the width.
    """

    kind: ClassVar[str] = "augmented"

    image_size: tuple[int, int] = (8, 8)
    channels: int = 1
    classes: int = 10
    stride: int = 1
    width: int = 32
    depth: int = 3
    attention: int = 8
    heads: int = 2
    groups: int = 2

    def __post_init__(self):
        check_sizes(self, "channels", "classes", "stride", "width", "depth", "heads", "groups")
        if not isinstance(self.attention, int | np.integer) or not 0 <= self.attention <= self.width:
            raise ValueError(
                f"attention must be a whole number from 0 to the width {self.width}, got {self.attention!r}"
            )
        for name, whole in dict(heads=self.attention, groups=self.width).items():
            if whole % getattr(self, name):
                must = "attention" if name == "heads" else "width"
                raise ValueError(f"{name} must divide {must}, got {getattr(self, name)} and {whole}")

    @property
    def grid(self):
        """(h, w) of the feature maps."""
        return tuple(-(-side // self.stride) for side in self.image_size)

    @property
    def tokens(self):
        """N, the pixels of a feature map, where attention reads them; 0 where there is none."""
        return self.grid[0] * self.grid[1] if self.attention else 0

    def shapes(self):
        """{path: shape} of a few parameters that fix all sizes: enough to see whether stored weights are these."""
        shapes = {"stem.weight": (3, 3, self.channels, self.width), "head.weight": (self.width, self.classes)}
        if self.attention:
            for name, size in zip(("rows", "columns"), self.grid, strict=True):
                shapes[f"blocks.0.mix.attention.{name}"] = (2 * size - 1, self.attention // self.heads)
        return shapes


class AugmentedBlock(Module):
    """x + AAConv(ReLU(norm(x))), (B, h, w, D) -> (B, h, w, D): normalised before, as in an encoder block."""

    def __init__(self, config, rng):
        c = config
        self.norm = GroupNorm(c.width, c.groups)
        self.mix = AugmentedConv2d(c.width, c.width, c.attention, c.heads, rng, c.grid)

    def forward(self, x):
        return x + self.mix(self.norm(x, relu=True))


class AugmentedNet(ImageModel):
    """A small residual CNN of attention-augmented convolutions: 3×3 convolution, blocks, average over all places, head.

    Args:
        config: an AugmentedConfig.
        seed: of the initial values; the head's are zero, so that the first loss is ln(classes).
    """

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        c = self.config = config
        self.stem = Conv2d(c.channels, c.width, 3, rng, stride=c.stride)
        self.blocks = [AugmentedBlock(c, rng) for _ in range(c.depth)]
        self.norm = GroupNorm(c.width, c.groups)
        self.head = Linear(c.width, c.classes, rng)
        self.head.weight.data = 0.0
        self.name_parameters()

    def forward(self, images):
        """Images (B, height, width, C), normalised as in training -> logits (B, classes). Raises ValueError for images
        of another shape."""
        x = self.stem(self.checked(images))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x, relu=True).mean(axis=(1, 2)))
