"""Layers: what one is (`module.py`), what it starts from (`initial.py`), those of a ViT (`layers.py`), and how it is
told where a patch came from (`positions.py`), also at another resolution (`resolution.py`)."""

from tinyvit.nn.convolution import BatchNorm, Conv2d, GroupNorm, StandardisedConv2d
from tinyvit.nn.initial import he_normal, lecun_normal, xavier_uniform
from tinyvit.nn.layers import (
    MLP,
    Dropout,
    DropPath,
    EncoderBlock,
    LayerNorm,
    Linear,
    MLPHead,
    MultiHeadSelfAttention,
    PatchEmbedding,
    nearest_patch,
    patchify,
)
from tinyvit.nn.module import (
    Module,
    Parameter,
    Statistic,
    composed,
    evaluating,
    generator,
    random_state,
    recording_statistics,
)
from tinyvit.nn.positions import LearnedPositions, LearnedPositions2D, RelativeSelfAttention, SinCosPositions
from tinyvit.nn.resolution import interpolate

__all__ = [
    "MLP", "BatchNorm", "Conv2d", "DropPath", "Dropout", "EncoderBlock", "GroupNorm", "LayerNorm", "LearnedPositions",
    "LearnedPositions2D", "Linear", "MLPHead", "Module", "MultiHeadSelfAttention", "Parameter", "PatchEmbedding",
    "RelativeSelfAttention", "SinCosPositions", "StandardisedConv2d", "Statistic", "composed", "evaluating",
    "generator", "he_normal", "interpolate", "lecun_normal", "nearest_patch", "patchify", "random_state",
    "recording_statistics", "xavier_uniform",
]  # fmt: skip
