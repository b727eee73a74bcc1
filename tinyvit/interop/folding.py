"""What another library has and our ViT says in other words: folded into ours, with the same logits.

A model can be the same function under another form, and then nothing new is needed to run it:

    layers that lie in one array ("scan")       one array each
    linear layers without a bias                a bias of zeros
    layer scale, x + γ · f(x)                   γ multiplied into the last matrix of f
    positions added before the class token      a position of zeros for it
    a class token beside average pooling        a register: a token that the head does not read
    registers with positions of their own       their sum
    sines and cosines, which no file stores     their table

`fold` does it in the dict of arrays, so that the tables of `layouts.py` know one form only.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import math
import re

import numpy as np

from tinyvit.interop.files import as_float32, is_floating
from tinyvit.interop.layouts import LAYOUTS
from tinyvit.train.checkpoint import CheckpointError


def fold(layout, tensors, settings):
    """Change {name: array} of a layout in place into what its table knows, and say in `settings.pool` what the head
    reads. What does not look as it should is left for the table to complain about."""
    settings.pool = {"google": _google, "timm": _timm, "hf": _hugging_face}[layout](tensors, settings)


def layers(tensors, layout):
    """The numbers of the layers, as texts."""
    block = re.escape(LAYOUTS[layout].block).replace(r"\{i\}", r"(\d+)")
    found = (re.match(block, name) for name in tensors)
    return {match[1] for match in found if match}


def is_square(n):
    return n > 0 and math.isqrt(n) ** 2 == n


def _google(tensors, settings):
    _unstack(tensors, [name for name in tensors if "/encoderblock/" in name])
    positions, kernel = LAYOUTS["google"].positions, tensors["embedding/kernel"]
    if settings.sines and positions not in tensors and kernel.ndim == 4 and kernel.size:
        side, width = 224 // len(kernel), kernel.shape[3]
        if 0 < side**2 * width <= 2**22:
            tensors[positions] = _sines(side, width)
            settings.notes.append(
                f"it has no positions: big_vision's sines for 224 pixels, {side}×{side} patches, are assumed"
            )
    if "cls" not in tensors:
        return "average"
    _places_for_all(tensors, "cls", positions, settings)
    return "class"


def _unstack(tensors, names):
    """One array a layer for these, each of which holds those of all layers. A file of a few bytes can say that it has
    any number of both, so that is checked first."""
    stacked = {name: tensors.pop(name) for name in names}
    depths = {len(array) if array.ndim else 0 for array in stacked.values()}
    if len(stacked) > 100 or len(depths) > 1 or max(depths, default=1) not in range(1, 1001):
        raise CheckpointError(
            "at most 100 arrays may hold those of all layers, 1 to 1,000, in one; "
            f"got {len(stacked)}, of {', '.join(map(str, sorted(depths)[:5]))} layers"
        )
    for name, array in stacked.items():
        for i, layer in enumerate(array):
            one = name.replace("/encoderblock/", f"/encoderblock_{i}/")
            if one in tensors:
                raise CheckpointError(f"{name} must not stand there for all layers and for layer {i} once more")
            tensors[one] = layer


def _sines(side, width):
    """Positions of side × side patches, (1, N, D), as big_vision computes them (`posemb="sincos2d"`): like ours
    (`nn/positions.py`), but the slowest wave is 10000 times as long as the quickest, exactly."""
    waves = 10000.0 ** -np.linspace(0, 1, width // 4)
    y, x = (axis.reshape(-1, 1) * waves for axis in np.mgrid[:side, :side])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1, dtype=np.float32)[None]


def _hugging_face(tensors, settings):
    attention = [f"vit.encoder.layer.{i}.attention.attention" for i in layers(tensors, "hf")]
    _zeros_for(tensors, [f"{name}.{part}" for name in attention for part in ("query", "key", "value")])
    if tensors.pop("vit.pooler.dense.weight", None) is not None:
        settings.notes.append("its pooler, which classifiers do not read, is left out")
    tensors.pop("vit.pooler.dense.bias", None)
    return "class"


def _timm(tensors, settings):
    _zeros_for(tensors, [f"blocks.{i}.attn.qkv" for i in layers(tensors, "timm")])
    for i in layers(tensors, "timm"):
        _scale(tensors, f"blocks.{i}.ls1.gamma", f"blocks.{i}.attn.proj")
        _scale(tensors, f"blocks.{i}.ls2.gamma", f"blocks.{i}.mlp.fc2")
    pool = settings.pool or ("class" if "cls_token" in tensors else "average")
    if "fc_norm.weight" in tensors and settings.pool != "class":
        pool = "average-norm"
    firsts = [name for name in ("cls_token", "reg_token") if name in tensors]
    table = _places_for_all(tensors, "cls_token", "pos_embed", settings)
    read = 1 if pool == "class" else 0  # tokens that stand first and that the head reads; the others are registers
    if table is not None and firsts != ["cls_token"][:read]:
        tokens = np.concatenate([as_float32(tensors.pop(name)) for name in firsts], axis=1)
        places, count = as_float32(table), tokens.shape[1]
        tensors["reg_token"] = tokens[:, read:] + places[:, read:count]
        tensors["pos_embed"] = np.concatenate([places[:, :read], places[:, count:]], axis=1)
        if read:
            tensors["cls_token"] = tokens[:, :1]
    return pool


def _zeros_for(tensors, names):
    """A bias of zeros for each of these linear layers of PyTorch's, if none of them has a bias."""
    if any(f"{name}.bias" in tensors for name in names):
        return
    for name in names:
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.ndim == 2 and weight.size:
            tensors[f"{name}.bias"] = np.zeros(len(weight), np.float32)


def _scale(tensors, factor, linear):
    """Multiply a factor for each output into a linear layer of PyTorch's."""
    parts = [tensors.get(name) for name in (factor, f"{linear}.weight", f"{linear}.bias")]
    if any(part is None or not is_floating(part) for part in parts) or parts[0].shape != parts[2].shape:
        return
    gamma, weight, bias = map(as_float32, parts)
    if gamma.ndim == 1 and weight.ndim == 2 and len(weight) == len(gamma):
        del tensors[factor]
        tensors[f"{linear}.weight"], tensors[f"{linear}.bias"] = weight * gamma[:, None], bias * gamma


def _places_for_all(tensors, cls, name, settings):
    """The table of positions with a row for each token that stands first; rows of zeros are put there if it has none.
    None if it is no such table. Which one it is, its length says: patches are a grid, and mostly a square."""
    tokens = [tensors[key] for key in (cls, "reg_token") if key in tensors]
    table = tensors.get(name)
    if table is None or not all(x.ndim == 3 and len(x) == 1 and is_floating(x) for x in [table, *tokens]):
        return None
    first, D = sum(token.shape[1] for token in tokens), table.shape[2]
    if any(token.shape[2] != D for token in tokens) or table.size == 0:
        return None
    apart = settings.place_first is False
    if settings.place_first is None:
        apart = not is_square(table.shape[1] - first) and is_square(table.shape[1])
    if apart:
        tensors[name] = np.concatenate([np.zeros((1, first, D), np.float32), as_float32(table)], axis=1)
    return tensors[name]
