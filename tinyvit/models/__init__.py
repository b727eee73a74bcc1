"""The models, a file each. So far: `vit.py`, the Vision Transformer as in equations 1 to 4 of the paper."""

from tinyvit.models.vit import PRESETS, ViT, ViTConfig, vit

__all__ = ["PRESETS", "ViT", "ViTConfig", "vit"]
