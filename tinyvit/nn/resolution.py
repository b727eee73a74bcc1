"""Interpolation: a grid of vectors read at another resolution.

A ViT that saw 8×8 patches and is to see 16×16 of the same size needs 256 position vectors where it has 64. They were
learned as a list, but each belongs to a place in the image; so lay the list out as a grid, and read the grid between
its points ("we perform 2D interpolation of the pre-trained position embeddings, according to their location in the
original image", paper section 3.2).

Every linear way to do so is two small matrices, one that mixes rows and one that mixes columns:

    new = W_r · old · W_cᵀ,   W_r (rows', rows),  W_c (columns', columns),  each row of a W sums to 1

Three ways, which differ in where the new points lie on the old axis and in how many old points one reads:

    corners    first and last point stay where they are, x = i (n-1)/(n'-1); linear between two neighbours. The paper's
               code: `scipy.ndimage.zoom(grid, ..., order=1)`. PyTorch calls it bilinear with align_corners=True.
    bilinear   the *areas* of the patches agree, x = (i + ½) n/n' - ½; linear, beyond the border its value goes on.
    bicubic    the same x; a cubic through four neighbours (Keys 1981, a = -0.75 as in PyTorch), which overshoots
               a little and so loses less length than an average of two does.

timm interpolates "bicubic, antialiased": a = -0.5, weights that fall off the border dropped instead of given to its
last point, and, where the grid shrinks, a kernel n/n' times as wide, so that no old point goes unread.

Chapter of the course: notebooks/10-higher-resolution.ipynb.
"""

import numpy as np

MODES = ("corners", "bilinear", "bicubic")


def interpolate(grid, size, mode="corners"):
    """Read a grid of vectors at another resolution: (rows, columns, D) -> (rows', columns', D), of the same dtype.

    Args:
        grid: an array of real numbers.
        size: (rows', columns'). The same as before gives a copy, bit for bit.
        mode: "corners", "bilinear" or "bicubic", see the top of the file.

    scipy's `zoom` takes factors and not sizes: it makes round(rows · factor) rows, halves to the even side, so 2.5 rows
    become 2. It equals "corners" at the size that it comes to.

    Raises ValueError for another shape, size or mode. Source: paper section 3.2.
    """
    grid = np.asarray(grid)
    if grid.ndim != 3 or 0 in grid.shape or grid.dtype.kind != "f":
        raise ValueError(f"grid must be floats (rows, columns, D), none of them 0, got {grid.dtype} {grid.shape}")
    if np.shape(size) != (2,) or not all(isinstance(side, int | np.integer) and side >= 1 for side in size):
        raise ValueError(f"size must be (rows, columns), whole numbers from 1 up, got {size}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if tuple(size) == grid.shape[:2]:
        return grid.copy()
    W_r, W_c = (interpolation_matrix(old, new, mode) for old, new in zip(grid.shape, size, strict=False))
    mixed_rows = np.tensordot(W_r, grid, axes=1)  # (rows', columns, D)
    return (W_c @ mixed_rows).astype(grid.dtype)


def interpolation_matrix(old, new, mode):
    """W (new, old): row i says with what weights the `old` points of an axis make point i of `new`."""
    i = np.arange(new)
    if mode == "corners":
        x = i * (old - 1) / max(new - 1, 1)
    else:
        x = (i + 0.5) * old / new - 0.5
    kernel = _cubic if mode == "bicubic" else _triangle
    left = np.floor(x).astype(int)
    W = np.zeros((new, old))
    for point in (left - 1, left, left + 1, left + 2):
        W[i, np.clip(point, 0, old - 1)] += kernel(np.abs(x - point))
    return W


def _triangle(distance):
    return np.maximum(0, 1 - distance)


def _cubic(distance, a=-0.75):
    """Keys' cubic convolution kernel: 1 at 0, and 0 at 1 and from 2 on, smooth between."""
    t = distance
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
