"""A convolution is a matrix product, once each window of the image is a row: im2col lays them out so.

ViT's patch embedding is the special case stride = kernel, where every pixel lands in one row; with
overlapping windows a pixel is copied several times, and the transpose, col2im, adds its gradients up again.
Libraries avoid the copies by gathering windows inside the matrix product (cuDNN's implicit GEMM).

Chapter of the course: notebooks/09-inductive-bias.ipynb.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinyvit.kernels.backend import Kernel, contiguous, jit, require


def _out_size(shape, kernel, stride, padding):
    """(oh, ow), how many windows fit below each other and side by side."""
    (_, h, w, _), (kh, kw) = shape, kernel
    return (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1


def _check(name, array, shape, kernel, stride, padding):
    holds = len(shape) == 4 and len(kernel) == 2 and stride >= 1 and padding >= 0
    holds = holds and 1 <= kernel[0] <= shape[1] + 2 * padding and 1 <= kernel[1] <= shape[2] + 2 * padding
    must = f"{name}: the image must be (B, h, w, C), the kernel (kh, kw) fit into it, stride ≥ 1, padding ≥ 0"
    require(holds, must, array, shape=shape, kernel=kernel, stride=stride, padding=padding)


def _surround(x, padding):
    """(B, h, w, C) with `padding` pixels of zeros around each image."""
    B, h, w, C = x.shape
    padded = np.zeros((B, h + 2 * padding, w + 2 * padding, C), x.dtype)
    padded[:, padding : padding + h, padding : padding + w] = x
    return padded


@Kernel
def im2col(x, kernel, stride, padding):
    """x (B, h, w, C), kernel (kh, kw) -> (B, oh, ow, kh kw C), each row a window in (kh, kw, C) order.

    `padding` pixels of zeros surround the image; oh = (h + 2 padding - kh) // stride + 1, ow likewise.
    """
    _check("im2col", x, x.shape, kernel, stride, padding)
    (B, _, _, C), (kh, kw) = x.shape, kernel
    windows = sliding_window_view(_surround(x, padding), kernel, axis=(1, 2))[:, ::stride, ::stride]
    oh, ow = windows.shape[1:3]  # (B, oh, ow, C, kh, kw)
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(B, oh, ow, kh * kw * C)


@im2col.fast
def im2col(x, kernel, stride, padding):
    _check("im2col", x, x.shape, kernel, stride, padding)
    oh, ow = _out_size(x.shape, kernel, stride, padding)
    x = _surround(x, padding) if padding else contiguous(x)
    (B, h, w, C), (kh, kw) = x.shape, kernel
    cols = np.empty((B, oh, ow, kh, kw * C), x.dtype)
    _im2col(x.reshape(B, h, w * C), cols, stride, stride * C)
    return cols.reshape(B, oh, ow, kh * kw * C)


@jit
def _im2col(x, cols, down, right):
    B, oh, ow, kh, _ = cols.shape
    for b in range(B):
        for i in range(oh):
            for r in range(kh):
                line, windows = x[b, i * down + r], cols[b, i]
                for j in range(ow):
                    # One row of a window, kw pixels of C values, is one run of memory.
                    source, run = line[j * right :], windows[j, r]
                    for t in range(run.size):
                        run[t] = source[t]


def _check_cols(cols, shape, kernel, stride, padding):
    _check("col2im", cols, shape, kernel, stride, padding)
    want = (shape[0], *_out_size(shape, kernel, stride, padding), kernel[0] * kernel[1] * shape[3])
    require(cols.shape == want, "col2im: cols must be (B, oh, ow, kh kw C)", cols, want=want)


@Kernel
def col2im(cols, shape, kernel, stride, padding):
    """The transpose of im2col: cols (B, oh, ow, kh kw C) -> (B, h, w, C) = shape; overlapping windows add."""
    _check_cols(cols, shape, kernel, stride, padding)
    (B, h, w, C), (kh, kw) = shape, kernel
    oh, ow = _out_size(shape, kernel, stride, padding)
    cols = cols.reshape(B, oh, ow, kh, kw, C)
    x = np.zeros((B, h + 2 * padding, w + 2 * padding, C), cols.dtype)
    for i in range(kh):
        for j in range(kw):
            x[:, i : i + stride * oh : stride, j : j + stride * ow : stride] += cols[:, :, :, i, j]
    return np.ascontiguousarray(x[:, padding : padding + h, padding : padding + w])


@col2im.fast
def col2im(cols, shape, kernel, stride, padding):
    _check_cols(cols, shape, kernel, stride, padding)
    cols = contiguous(cols)
    (B, h, w, C), (kh, kw) = shape, kernel
    oh, ow = _out_size(shape, kernel, stride, padding)
    x = np.zeros((B, h + 2 * padding, w + 2 * padding, C), cols.dtype)
    lines = x.reshape(B, h + 2 * padding, (w + 2 * padding) * C)
    _col2im(cols.reshape(B, oh, ow, kh, kw * C), lines, stride, stride * C)
    return np.ascontiguousarray(x[:, padding : padding + h, padding : padding + w])


@jit
def _col2im(cols, x, down, right):
    B, oh, ow, kh, _ = cols.shape
    for b in range(B):
        for i in range(oh):
            for r in range(kh):
                line, windows = x[b, i * down + r], cols[b, i]
                for j in range(ow):
                    target, run = line[j * right :], windows[j, r]
                    for t in range(run.size):
                        target[t] += run[t]
