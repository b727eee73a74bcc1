"""Warp a batch of images by affine maps: one matrix an image, bilinear interpolation, zero outside.

To rotate, zoom or shift an image, walk over the *output* and ask where each pixel comes from:

    (x', y') = M · (x, y, 1),      out[y, x] = in[y', x']

The other direction (push every input pixel to where it goes) leaves holes and overlaps. (x', y') falls
between four pixels; bilinear interpolation weighs them by the areas of the opposite rectangles:

    out = (1-u)(1-v) in[j, i] + u(1-v) in[j, i+1] + (1-u)v in[j+1, i] + uv in[j+1, i+1]

with i = ⌊x'⌋, j = ⌊y'⌋, u = x' - i, v = y' - j. This is the sampler of Spatial Transformer Networks
(Jaderberg et al. 2015, section 3.3, equation 5). Any chain of rotations, zooms and shifts is one matrix, so
the image is blurred once and not once an operation. `data/augment.py` draws the matrices. Libraries for large
photos do this on the GPU, or in the processes that load the data.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit


def _check(images, matrices):
    if images.ndim != 4 or matrices.shape != (len(images), 2, 3):
        raise ValueError(
            "warp needs images (B, h, w, C) and one 2x3 matrix for each, (B, 2, 3); "
            f"got {images.shape} and {matrices.shape}"
        )
    return contiguous(images.astype(np.float32, copy=False), matrices.astype(np.float64, copy=False))


@Kernel
def warp(images, matrices):
    """Sample each image at affinely mapped coordinates.

    `images` (B, h, w, C) float32, `matrices` (B, 2, 3) float32; returns (B, h, w, C) float32. Output pixel
    (y, x) reads the input at `matrix @ (x, y, 1)`, an (x, y) pair in pixels, with bilinear interpolation;
    beyond the border the image is 0, also for a matrix with NaN. An identity matrix returns the image
    exactly. No gradient: this is for data. Raises ValueError for other shapes.
    """
    images, matrices = _check(images, matrices)
    B, h, w, C = images.shape
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    grid = np.stack([x, y, np.ones_like(x)])  # (3, hw)
    with np.errstate(invalid="ignore"):  # 0 · ∞
        xs, ys = np.moveaxis(matrices @ grid, 1, 0)  # (B, hw) each, float64
    near = (xs > -1) & (xs < w) & (ys > -1) & (ys < h)  # False for NaN as well
    xs, ys = np.where(near, xs, -1), np.where(near, ys, -1)
    i, j = np.floor(xs).astype(np.int64), np.floor(ys).astype(np.int64)
    u, v = xs - i, ys - j
    out = np.zeros((B, h * w, C), np.float32)
    image = np.arange(B)[:, None]
    for row, weight_y in ((j, 1 - v), (j + 1, v)):
        for column, weight_x in ((i, 1 - u), (i + 1, u)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            weight = np.where(inside, weight_y * weight_x, 0).astype(np.float32)
            out += weight[..., None] * images[image, row.clip(0, h - 1), column.clip(0, w - 1)]
    return out.reshape(B, h, w, C)


@warp.fast
def warp(images, matrices):
    images, matrices = _check(images, matrices)
    out = np.zeros_like(images)
    _warp(images, matrices, out)
    return out


@jit
def _warp(images, matrices, out):
    B, h, w, C = images.shape
    for b in range(B):
        image, m, target = images[b], matrices[b], out[b]
        for y in range(h):
            for x in range(w):
                xs = m[0, 0] * x + m[0, 1] * y + m[0, 2]
                ys = m[1, 0] * x + m[1, 1] * y + m[1, 2]
                if not (xs > -1 and xs < w and ys > -1 and ys < h):
                    continue  # wholly outside, or NaN: stays 0
                i, j = int(np.floor(xs)), int(np.floor(ys))
                u, v = xs - i, ys - j
                for row, weight_y in ((j, 1 - v), (j + 1, v)):
                    for column, weight_x in ((i, 1 - u), (i + 1, u)):
                        if 0 <= row < h and 0 <= column < w:
                            weight = np.float32(weight_y * weight_x)
                            for c in range(C):
                                target[y, x, c] += weight * image[row, column, c]
