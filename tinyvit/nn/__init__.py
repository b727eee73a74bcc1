"""Layers: what one is (`module.py`), what it starts from (`initial.py`), and those of a ViT (`layers.py`)."""

from tinyvit.nn.initial import lecun_normal, xavier_uniform
from tinyvit.nn.layers import (
    MLP,
    Dropout,
    EncoderBlock,
    LayerNorm,
    Linear,
    MultiHeadSelfAttention,
    PatchEmbedding,
    nearest_patch,
    patchify,
)
from tinyvit.nn.module import Module, Parameter, composed, evaluating, generator, random_state

__all__ = [
    "MLP", "Dropout", "EncoderBlock", "LayerNorm", "Linear", "Module", "MultiHeadSelfAttention", "Parameter",
    "PatchEmbedding", "composed", "evaluating", "generator", "lecun_normal", "nearest_patch", "patchify",
    "random_state", "xavier_uniform",
]  # fmt: skip
