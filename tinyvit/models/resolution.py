"""A trained ViT at another resolution: the same weights, a longer sequence.

The patch keeps its size in pixels, so a larger image is more patches, and attention takes any number of them. Every
matrix stays as it is. What does not fit is what is stored place by place, the positions, and that is interpolated:
"this resolution adjustment and patch extraction are the only points at which an inductive bias about the 2D structure
of the images is manually injected" (paper section 3.2). A network of convolutions has the opposite trait: it takes an
image of any size as it is, and every layer sees it in smaller pieces.

Chapter of the course: notebooks/10-higher-resolution.ipynb.
"""

from dataclasses import replace

import numpy as np

from tinyvit.models.vit import ViT
from tinyvit.nn.resolution import interpolate


def enlarged(config, image_size, **changes):
    """The configuration of a ViT or a hybrid for images of another size. Raises ValueError where patches do not fit."""
    sides = image_size if np.iterable(image_size) else (image_size, image_size)
    P = config.patch if config.stride == 1 else 1  # a hybrid's map rounds up: any image has one
    if not all(isinstance(side, int | np.integer) for side in sides):
        raise ValueError(f"image_size must be (height, width) or one number, in whole pixels, got {image_size!r}")
    if any(side % P for side in sides):
        raise ValueError(
            f"patches keep their size, so both sides must be multiples of {P} pixels, got {'×'.join(map(str, sides))}; "
            f"{'×'.join(str(P * max(1, round(side / P))) for side in sides)} is the nearest"
        )
    return replace(config, image_size=image_size, **changes)


def at_resolution(model, image_size, mode="corners", classes=None, dropout=None):
    """A new model with the weights of `model`, in their dtype, for images of another size.

    Args:
        model: a ViT or a hybrid, which is left as it is.
        image_size: (height, width) or the side of a square. Smaller than before is possible too.
        mode: of `nn.interpolate`. The same grid of patches keeps its positions bit for bit.
        classes: None keeps the head; a number puts a new linear one in its place, all zero, as the paper fine-tunes.
        dropout: None keeps that of the model.

    What becomes of the positions. "1d": interpolated along both axes of the image, the class token's as it was.
    "2d": rows along theirs, columns along theirs. "relative": each layer's table of shifts, the shift by nothing stays
    in the middle. "sincos": computed anew, so a vector that meant the fourth column still means the fourth column,
    which now lies elsewhere in the image. "none": there are none.

    Raises ValueError for another kind of model, a size that the patch does not divide, and an unknown mode.
    """
    if not isinstance(model, ViT):
        raise ValueError(f"at_resolution needs a ViT or a hybrid, which have positions; got a {type(model).__name__}")
    old = model.config
    changes = {} if classes is None else dict(classes=classes, head="linear")
    changes |= {} if dropout is None else dict(dropout=dropout)
    new = enlarged(old, image_size, **changes)
    weights = {name: _stretched(name, array, old, new, mode) for name, array in model.state_dict().items()}
    other = type(model)(new).train(model.training).astype(weights["norm.gamma"].dtype)
    if classes is not None:
        weights = {name: array for name, array in weights.items() if not name.startswith("head.")}
        weights |= {f"head.{name}": p.numpy() for name, p in other.head.named_parameters()}
    other.load_state_dict(weights)
    return other


def _stretched(name, array, old, new, mode):
    """A parameter as the new configuration needs it: interpolated if it is a table of positions."""
    D = array.shape[-1]
    if name == "positions.table":  # (1, first + N, D)
        first = old.prefix - old.registers
        patches = interpolate(array[0, first:].reshape(*old.grid, D), new.grid, mode)
        return np.concatenate([array[0, :first], patches.reshape(-1, D)])[None]
    if name == "positions.rows":  # (rows, 1, D / 2)
        return interpolate(array, (new.grid[0], 1), mode)
    if name == "positions.columns":  # (1, columns, D / 2)
        return interpolate(array, (1, new.grid[1]), mode)
    if name.endswith("attention.shifts"):  # those among patches, then those from and to other tokens, nn/positions.py
        before, after = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old.grid, new.grid))
        N = before[0] * before[1]
        table = interpolate(array[:N].reshape(*before, D), after, mode)
        return np.concatenate([table.reshape(-1, D), array[N:]])
    return array
