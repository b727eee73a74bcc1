"""WIP"""
from dataclasses import dataclass
import numpy as np
from tinyvit.data.image import SQUASH
from tinyvit.models import ViT

@dataclass
class _C:
    model: object; classes: tuple; mean: tuple; std: tuple; prepare: object = SQUASH

def classifier_of(config, seed=3):
    rng = np.random.default_rng(seed)
    model = ViT(config).eval()
    for name, p in model.named_parameters():
        p.data = (1.0 if name.endswith("gamma") else 0.0) + 0.3 * rng.standard_normal(p.shape)
    C = config.channels
    return _C(model, tuple(f"name {k}" for k in range(config.classes)), (0.4,) * C, (0.3,) * C)
