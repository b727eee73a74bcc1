"""What is measured: small Vision Transformers, from matrices that fit into a cache to matrices that do not.

They span what one trains on a laptop. In the smallest a step is hundreds of calls of a few microseconds each, and the
bookkeeping between them decides; in the largest nearly all time goes into matrix products, and little is left to win.
Two published models are there for prediction alone, as nobody trains them on a laptop.
"""

import numpy as np

from tinyvit.models import ViTConfig

SHAPES = {
    #                   image patch C classes width depth heads MLP
    "digits": ViTConfig(    8,  2,  1,   10,   32,    4,    4,   64),
    "mnist7": ViTConfig(   28,  7,  1,   10,   64,    6,    4,  128),
    "mnist4": ViTConfig(   28,  4,  1,   10,   64,    6,    4,  256),
    "cifar":  ViTConfig(   32,  4,  3,   10,  192,    6,    3,  768),
}  # fmt: skip
PUBLISHED = {
    "ti16": ViTConfig(   224, 16,  3, 1000,  192,   12,    3,  768),
    "b16":  ViTConfig(   224, 16,  3, 1000,  768,   12,   12, 3072),
}  # fmt: skip
MODELS = SHAPES | PUBLISHED
BATCH = 128  # images in a training step
SHARDS = 2  # the parts in which tinyvit computes them, on one thread as on two


def many(config):
    """How many images are predicted at once, besides one alone."""
    return 256 if config.image_size[0] < 224 else 8


def describe(config):
    """The shape in words, for a report."""
    h, w = config.image_size
    return (
        f"{h}×{w}×{config.channels}, patch {config.patch}: {config.tokens} tokens, width {config.width}, "
        f"depth {config.depth}, heads {config.heads}, MLP {config.mlp}"
    )


def batch(config, count):
    """The one fixed batch on which all contenders step: images (count, h, w, C) float32, labels (count,) int64."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, *config.image_size, config.channels), dtype=np.float32)
    return images, rng.integers(0, config.classes, count)
