"""The models, a file each: what all have in common (`model.py`); the Vision Transformer (`vit.py`), equations 1 to 4 of
the paper with the choices that it compares."""

from dataclasses import asdict

from tinyvit.models.model import ImageModel
from tinyvit.models.resolution import at_resolution
from tinyvit.models.vit import PRESETS, ViT, ViTConfig, vit

MODELS = {config.kind: (config, model) for config, model in ((ViTConfig, ViT),)}


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


__all__ = ["MODELS", "PRESETS", "ImageModel", "ViT", "ViTConfig", "at_resolution", "build", "from_dict", "to_dict", "vit"]
