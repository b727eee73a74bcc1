"""The models, a paper or an idea each. In reading order:

    model           what all classifiers of images have in common
    vit             the Vision Transformer: equations 1 to 4 of the paper, with the choices that it compares
    resnet          the convolutional network that it is compared with
    hybrid          a ViT on the ResNet's feature map
    resolution      a trained ViT for larger images: positions, interpolated
    conv_attention  attention that can be a convolution, by position alone
    augmented       convolution and attention side by side
    igpt            learning images by guessing the next pixel
    masked          learning images by guessing the colours of hidden patches

A checkpoint holds a configuration's fields and its `kind`; of these `build` makes the model again.
"""

from dataclasses import asdict

from tinyvit.models.augmented import AugmentedConfig, AugmentedNet
from tinyvit.models.conv_attention import QuadraticConfig, QuadraticNet, attention_from_convolution
from tinyvit.models.hybrid import PRESETS as HYBRIDS
from tinyvit.models.hybrid import Hybrid, HybridConfig
from tinyvit.models.igpt import ImageGPT, ImageGPTClassifier, ImageGPTConfig, marginal_bits_per_pixel, next_pixel
from tinyvit.models.masked import MaskedPatches, masked_colours, mean_colours
from tinyvit.models.model import ImageModel
from tinyvit.models.resnet import PRESETS as RESNETS
from tinyvit.models.resnet import ResNet, ResNetConfig
from tinyvit.models.resolution import at_resolution
from tinyvit.models.vit import PRESETS as VITS
from tinyvit.models.vit import ViT, ViTConfig, vit

PAIRS = (
    (ViTConfig, ViT), (ResNetConfig, ResNet), (HybridConfig, Hybrid), (QuadraticConfig, QuadraticNet),
    (AugmentedConfig, AugmentedNet),
)  # fmt: skip
MODELS = {config.kind: (config, model) for config, model in PAIRS}
PRESETS = VITS | RESNETS | HYBRIDS


def to_dict(config):
    """A configuration as a dict of plain values, its kind among them, for a file."""
    return {"kind": config.kind} | asdict(config)


def from_dict(fields):
    """The configuration that `to_dict` wrote. Raises ValueError for an unknown kind, TypeError for unknown fields."""
    kind = fields["kind"]
    if kind not in MODELS:
        raise ValueError(f"the model's kind must be one of {', '.join(MODELS)}; got {kind!r}")
    return MODELS[kind][0](**{name: value for name, value in fields.items() if name != "kind"})


def build(config, seed=0):
    """The model that a configuration describes, with new weights drawn from `seed`."""
    return MODELS[config.kind][1](config, seed)


__all__ = [
    "AugmentedConfig", "AugmentedNet", "Hybrid", "HybridConfig", "ImageGPT", "ImageGPTClassifier", "ImageGPTConfig",
    "ImageModel", "MODELS", "MaskedPatches", "PRESETS", "QuadraticConfig", "QuadraticNet", "ResNet", "ResNetConfig",
    "ViT", "ViTConfig", "at_resolution", "attention_from_convolution", "build", "from_dict",
    "marginal_bits_per_pixel", "masked_colours", "mean_colours", "next_pixel", "to_dict", "vit",
]  # fmt: skip
