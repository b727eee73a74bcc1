"""The ResNet, the convolutional network that the paper compares with: blocks that add a correction to what they read.

    stem: a 3×3 convolution;  stages of blocks, each but the first halving the image;  the mean over all pixels;  linear

A block computes x + f(x), f two 3×3 convolutions with norms and ReLUs. A pixel sees its neighbours only, the same way
everywhere: what a ViT must learn from data is built in here. Two forms:

    norm="batch"   ReLU(f(x) + x), f = conv, norm, ReLU, conv, norm; where a block changes the shape, x is thinned out
                   and gets channels of zeros (option A). With blocks (3, 3, 3) it is ResNet-20: 0.27 M parameters.
    norm="group"   f(a) + x, f = conv, norm, ReLU, conv of a = ReLU(norm(x)), so that x itself goes through unchanged
                   ("pre-activation"); a 1×1 convolution of a where the shape changes. Weights are standardised. So are
                   the paper's ResNets (BiT), which have bottlenecks of three convolutions besides.

Sources: He et al. 2016, "Deep Residual Learning", arXiv 1512.03385, section 4.2; He et al. 2016, "Identity Mappings",
arXiv 1603.05027; Kolesnikov et al. 2020, "Big Transfer (BiT)", arXiv 1912.11370; the ViT paper, section 4.1.

Chapter of the course: notebooks/09-inductive-bias.ipynb.
"""

from dataclasses import dataclass
from math import gcd
from typing import ClassVar

import numpy as np

from tinyvit import functional as F
from tinyvit import ops
from tinyvit.models.model import ImageModel, check_sizes
from tinyvit.nn import BatchNorm, Conv2d, GroupNorm, Linear, Module, StandardisedConv2d

NORMS = ("batch", "group")
GROUPS = 8  # of channels; BiT has 32, for four times as many channels and more


@dataclass(frozen=True)
class ResNetConfig:
    """What defines a ResNet. Raises ValueError where the numbers do not fit together.

    image_size: (height, width) in pixels, or one number for a square.
    channels: C of the images, 1 for greyscale, 3 for colour.
    classes: the number of outputs.
    blocks: how many, stage by stage.
    widths: channels, stage by stage.
    norm: "batch" or "group", see above.
    """

    kind: ClassVar[str] = "resnet"

    image_size: tuple[int, int] = (32, 32)
    channels: int = 3
    classes: int = 10
    blocks: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    norm: str = "batch"

    def __post_init__(self):
        check_sizes(self, "channels", "classes")
        check_stages(self)

    def shapes(self):
        """{path: shape} of a few parameters that fix all sizes: enough to see whether stored weights are these."""
        return trunk_shapes(self, "trunk") | {"head.weight": (self.widths[-1], self.classes)}


def check_stages(config):
    """For a config's `__post_init__`: the fields blocks, widths and norm. Raises ValueError."""
    for name in ("blocks", "widths"):
        values = getattr(config, name)
        whole = np.iterable(values) and all(isinstance(n, int | np.integer) and n >= 1 for n in values)
        if not whole or len(values) == 0:
            raise ValueError(f"{name} must be whole numbers from 1 up, one for each stage, got {values!r}")
        object.__setattr__(config, name, tuple(map(int, values)))
    if len(config.blocks) != len(config.widths):
        raise ValueError(
            f"blocks and widths must have a number for each stage, got {config.blocks} and {config.widths}"
        )
    if config.norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {config.norm!r}")
    if config.norm == "batch" and sorted(config.widths) != list(config.widths):
        raise ValueError(f"with batch norm widths must not shrink: a shortcut adds channels, got {config.widths}")


def trunk_shapes(config, path):
    """The same of the Trunk that stands at `path`: its first convolution, and one of each stage's last block."""
    shapes, last = {f"{path}.stem.weight": (3, 3, config.channels, config.widths[0])}, -1
    for count, width in zip(config.blocks, config.widths, strict=True):
        last += count
        shapes[f"{path}.blocks.{last}.conv2.weight"] = (3, 3, width, width)
    return shapes


# resnet-gn is for MNIST and the patience of a laptop, resnet-digits for 8×8 digits.
#                               image     C  outs  blocks     widths        norm
PRESETS = {
    "resnet20":      ResNetConfig((32, 32), 3, 10, (3, 3, 3), (16, 32, 64), "batch"),
    "resnet-gn":     ResNetConfig((28, 28), 1, 10, (1, 1, 1), (16, 32, 64), "group"),
    "resnet-digits": ResNetConfig(( 8,  8), 1, 10, (1, 1),    (16, 32),     "group"),
}  # fmt: skip


class BatchNormBlock(Module):
    """ReLU(f(x) + x): (B, h, w, C) -> (B, ⌈h / stride⌉, ⌈w / stride⌉, D), D ≥ C."""

    def __init__(self, c_in, c_out, stride, rng):
        self.conv1 = Conv2d(c_in, c_out, 3, rng, stride, bias=False)
        self.norm1 = BatchNorm(c_out)
        self.conv2 = Conv2d(c_out, c_out, 3, rng, bias=False)
        self.norm2 = BatchNorm(c_out)
        self.stride, self.added = stride, c_out - c_in

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x), relu=True)))
        return F.add_relu(y, self.shortcut(x))

    def shortcut(self, x):
        """x in the shape of f(x), without parameters."""
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        if self.added:
            x = ops.concatenate([x, np.zeros((*x.shape[:3], self.added))], axis=3)
        return x


class GroupNormBlock(Module):
    """f(a) + x with a = ReLU(norm(x)): (B, h, w, C) -> (B, ⌈h / stride⌉, ⌈w / stride⌉, D)."""

    def __init__(self, c_in, c_out, stride, rng):
        self.norm1 = GroupNorm(c_in, gcd(GROUPS, c_in))
        self.conv1 = StandardisedConv2d(c_in, c_out, 3, rng, stride, bias=False)
        self.norm2 = GroupNorm(c_out, gcd(GROUPS, c_out))
        self.conv2 = StandardisedConv2d(c_out, c_out, 3, rng, bias=False)
        changes = stride > 1 or c_in != c_out
        self.projection = StandardisedConv2d(c_in, c_out, 1, rng, stride, bias=False) if changes else None

    def forward(self, x):
        a = self.norm1(x, relu=True)
        shortcut = x if self.projection is None else self.projection(a)
        return self.conv2(self.norm2(self.conv1(a), relu=True)) + shortcut


class Trunk(Module):
    """A ResNet without its head: images (B, h, w, C) -> feature map (B, h', w', C'), C' the last of `config.widths` and
    h' = ⌈h / 2^(stages - 1)⌉. `config` needs channels, blocks, widths and norm."""

    def __init__(self, config, rng):
        c, width = config, config.widths[0]
        if c.norm == "batch":
            self.stem = Conv2d(c.channels, width, 3, rng, bias=False)
            self.norm = BatchNorm(width)
        else:
            self.stem = StandardisedConv2d(c.channels, width, 3, rng, bias=False)
            self.norm = GroupNorm(c.widths[-1], gcd(GROUPS, c.widths[-1]))
        self.pre_activation = c.norm == "group"
        block = GroupNormBlock if self.pre_activation else BatchNormBlock
        self.blocks = []
        for stage, (count, c_out) in enumerate(zip(c.blocks, c.widths, strict=True)):
            for i in range(count):
                self.blocks.append(block(width, c_out, 2 if stage > 0 and i == 0 else 1, rng))
                width = c_out

    def forward(self, images):
        x = self.stem(images)
        if not self.pre_activation:
            x = self.norm(x, relu=True)
        for block in self.blocks:
            x = block(x)
        return self.norm(x, relu=True) if self.pre_activation else x


class ResNet(ImageModel):
    """A residual network for small images.

    Args:
        config: a ResNetConfig.
        seed: of the initial values: convolutions He-normal; the head zero, so that the first loss is ln(classes).
    """

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        self.config = config
        self.trunk = Trunk(config, rng)
        self.head = Linear(config.widths[-1], config.classes, rng)
        self.head.weight.data = 0.0
        self.name_parameters()

    def features(self, images):
        """The last feature map, (B, h', w', C')."""
        return self.trunk(self.checked(images))

    def forward(self, images):
        """Images (B, height, width, C), a Tensor or an array, normalised as in training -> logits (B, classes).

        Raises ValueError for images of another shape.
        """
        return self.head(self.features(images).mean(axis=(1, 2)))
