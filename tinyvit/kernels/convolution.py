"""A convolution is a matrix product, and the matrix of its windows need not be made: it is there, with rows that overlap.

Lay an image's pixels out in one line, row by row, with zeros in between (the padding at one row's end is also that at
the next one's start). A window of kw pixels is then a run of kw·C numbers, and the next pixel's window begins C numbers
further on. So one row of the kernel, W_r (kw·C, D), meets all windows of the image in one product

    Y += X_r W_r,    X_r = the line from its r-th row on, read as a matrix with rows of kw·C numbers, C apart

whose rows at the gaps between two lines are computed and thrown away. That is im2col (`im2col.py`, the spec below)
without copies. Its gradients are products with the same matrices:

    dW_r = X_rᵀ G,    dX = the convolution of G with the kernel turned round (for stride 1; else through col2im)

Libraries do without copies too, by other means: the addresses are computed inside the product (cuDNN's implicit GEMM).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.im2col import col2im, im2col
from tinyvit.kernels.linear import column_sums
from tinyvit.kernels.matmul import NARROWEST, multiply, product, turned, whole
from tinyvit.memory import empty

TALLEST = 8  # rows of a tile of the product: a few windows more than there are, so that none is left over


def _check(name, x, w, stride, padding, *rest):
    """`rest`: the bias or the gradient of the output, with the shape that it must have."""
    holds = x.ndim == w.ndim == 4 and x.shape[3] == w.shape[2] and min(x.shape[1:]) >= 1 and min(w.shape) >= 1
    holds = holds and stride >= 1 and padding >= 0
    holds = holds and w.shape[0] <= x.shape[1] + 2 * padding and w.shape[1] <= x.shape[2] + 2 * padding
    holds = holds and all(array.shape == shape(_out_shape(x, w, stride, padding)) for array, shape in rest)
    must = f"{name}: x must be (B, h, w, C), the weight (kh, kw, C, D) with a window that fits into the image, the bias "
    must += "(D,), g (B, oh, ow, D), stride ≥ 1, padding ≥ 0"
    require(holds, must, x, w, *(array for array, _ in rest), stride=stride, padding=padding)


def _out_shape(x, w, stride, padding):
    (B, h, width, _), (kh, kw, _, D) = x.shape, w.shape
    return B, (h + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1, D


def _check_forward(x, w, bias, stride, padding):
    rest = [] if bias is None else [(bias, lambda shape: shape[3:])]
    _check("conv2d", x, w, stride, padding, *rest)


def _check_backward(x, w, g, stride, padding):
    _check("conv2d_backward", x, w, stride, padding, (g, lambda shape: shape))


@Kernel
def conv2d(x, w, bias, stride, padding):
    """x (B, h, w, C), w (kh, kw, C, D), bias (D,) or None -> (B, oh, ow, D), oh = (h + 2 padding - kh) // stride + 1."""
    _check_forward(x, w, bias, stride, padding)
    kh, kw, C, D = w.shape
    y = im2col.numpy(x, (kh, kw), stride, padding) @ w.reshape(kh * kw * C, D)
    return y if bias is None else y + bias


@Kernel
def conv2d_backward(x, w, g, stride, padding, wanted=(True, True, True)):
    """(dx, dw, dbias (D,)) of the shapes of x and w from g = dL/dy (B, oh, ow, D); None for what is not wanted."""
    _check_backward(x, w, g, stride, padding)
    kh, kw, C, D = w.shape
    dx = dw = None
    if wanted[0]:
        dx = col2im.numpy(g @ w.reshape(kh * kw * C, D).T, x.shape, (kh, kw), stride, padding)
    if wanted[1]:
        rows = im2col.numpy(x, (kh, kw), stride, padding).reshape(-1, kh * kw * C)
        dw = (rows.T @ g.reshape(len(rows), D)).reshape(w.shape)
    return dx, dw, g.sum(axis=(0, 1, 2)) if wanted[2] else None


class _Line:
    """The geometry of an image laid out as a line of pixels, and room for one.

    pitch: from a pixel to the one below it. oh, ow: the output's sizes; its pixels lie in a line of the same pitch.
    runs, length: the output is computed in so many runs of neighbouring pixels: one, or with a stride one for each row.
    """

    def __init__(self, x, kernel, stride, padding):
        (_, h, w, C), (kh, kw) = x.shape, kernel
        self.padding, self.stride, self.pitch = padding, stride, w + padding
        self.oh, self.ow = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
        count = (self.oh - 1) * self.pitch + self.ow if stride == 1 else self.ow
        self.runs, self.length = 1 if stride == 1 else self.oh, -(-count // TALLEST) * TALLEST
        self.pixels = np.zeros(((h + 2 * padding) * self.pitch + padding + TALLEST * stride, C), x.dtype)
        #: (pixels, kw·C): the windows that begin at each pixel, all in the same memory
        self.windows = sliding_window_view(self.pixels.reshape(-1), kw * C, writeable=True)[::C]

    def room(self, channels):
        """For an output line, zeros."""
        return np.zeros((self.oh * self.pitch + TALLEST, channels), self.pixels.dtype)


@conv2d.fast
def conv2d(x, w, bias, stride, padding):
    _check_forward(x, w, bias, stride, padding)
    x = contiguous(x)
    B, oh, ow, D = _out_shape(x, w, stride, padding)
    w, start = _wide(w, bias)
    line = _Line(x, w.shape[:2], stride, padding)
    y, room = empty((B, oh, ow, D), x.dtype), line.room(w.shape[2])
    _conv2d(x, w, start, y, line.pixels, line.windows, room, stride, padding, line.pitch, line.runs, line.length)
    return y


def _wide(w, bias=None):
    """The weight as (kh, kw·C, D), the bias or zeros as (1, D), both with D made up to whole registers."""
    kh, kw, C, D = w.shape
    width = -(-D // NARROWEST) * NARROWEST
    wide, start = np.zeros((kh, kw * C, width), w.dtype), np.zeros((1, width), w.dtype)
    wide[..., :D] = w.reshape(kh, kw * C, D)
    if bias is not None:
        start[0, :D] = bias
    return wide, start


@jit
def _conv2d(x, w, start, y, pixels, windows, room, stride, padding, pitch, runs, length):
    B, oh, ow, D = y.shape
    for b in range(B):
        _lay_out(x[b], pixels, padding * pitch + padding, pitch)
        for r in range(w.shape[0]):
            for i in range(runs):
                first = (i * stride + r) * pitch
                rows = whole(windows[first : first + length * stride : stride])
                out = whole(room[i * pitch : i * pitch + length])
                multiply(rows, whole(w[r]), whole(start) if r == 0 else out, out)
        for i in range(oh):
            for j in range(ow):
                pixel, to = room[i * pitch + j], y[b, i, j]
                for d in range(D):
                    to[d] = pixel[d]


@jit
def _lay_out(image, pixels, first, pitch):
    """Write an image (h, w, C) into the line, its first pixel at place `first`."""
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            pixel, to = image[i, j], pixels[first + i * pitch + j]
            for c in range(pixel.size):
                to[c] = pixel[c]
