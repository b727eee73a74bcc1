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
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
    return contiguous(images, matrices.astype(np.float64, copy=False))


@Kernel
def warp(images, matrices):
    """Sample each image at affinely mapped coordinates.

    `images` (B, h, w, C) float32 or uint8, `matrices` (B, 2, 3); returns (B, h, w, C) float32. Output pixel
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
    out = np.empty(images.shape, np.float32)
    _warp(images, matrices, out)
    return out


@jit
def _warp(images, matrices, out):
    B, h, w, C = images.shape
    room = warp_room(h, w, C)
    for b in range(B):
        warp_image(images[b], matrices[b], room, out[b])


@jit
def warp_room(h, w, C):
    """What `warp_image` works in, for images of one shape: the image with zeros around it; of a row, where each pixel
    comes from and how much its four neighbours there count."""
    f4 = np.float32
    return np.zeros((C, h + 3, w + 3), f4), np.empty(w, np.int32), np.empty((4, w), f4)


@jit
def warp_image(image, m, room, out):
    """One image (h, w, C) into `out`, float32.

    No pixel is asked whether it lies inside: coordinates are cut to the zeros around the image, so that all may be
    read. Then a row takes two loops without a branch, which become vector instructions: where from, and what.
    """
    h, w, C = image.shape
    surrounded, place, weights = room
    for c in range(C):
        for y in range(h):
            row, to = image[y, :, c], surrounded[c, y + 1, 1:]
            for x in range(w):
                to[x] = row[x]
    planes = surrounded.reshape(C, (h + 3) * (w + 3))
    right, down, diagonal = np.uint32(1), np.uint32(w + 3), np.uint32(w + 4)
    w00, w01, w10, w11 = weights[0], weights[1], weights[2], weights[3]
    m00, m01, m02, m10, m11, m12 = m[0, 0], m[0, 1], m[0, 2], m[1, 0], m[1, 1], m[1, 2]
    for y in range(h):
        for x in range(w):
            xs, ys = m00 * x + m01 * y + m02, m10 * x + m11 * y + m12
            xs = xs if xs > -1.0 else -1.0  # and NaN becomes -1
            ys = ys if ys > -1.0 else -1.0
            xs = xs if xs < w else float(w)
            ys = ys if ys < h else float(h)
            i, j = np.int32(xs + 1.0), np.int32(ys + 1.0)
            u, v = xs - (i - 1), ys - (j - 1)
            w00[x], w01[x] = np.float32((1 - v) * (1 - u)), np.float32((1 - v) * u)
            w10[x], w11[x] = np.float32(v * (1 - u)), np.float32(v * u)
            place[x] = j * np.int32(w + 3) + i
        for c in range(C):
            plane = planes[c]
            for x in range(w):
                k = np.uint32(place[x])
                above = w00[x] * plane[k] + w01[x] * plane[k + right]
                out[y, x, c] = above + w10[x] * plane[k + down] + w11[x] * plane[k + diagonal]
