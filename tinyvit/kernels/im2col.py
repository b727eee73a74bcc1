"""A convolution is a matrix product, once each window of the image is a row: im2col lays the windows out as rows.

ViT's patch embedding is the special case stride = kernel, where every pixel lands in one row; with overlapping windows a
pixel is copied several times, and the transpose, col2im, adds its gradients up again. Libraries avoid the copies by
gathering windows inside the matrix product (cuDNN's implicit GEMM).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinyvit.kernels.backend import contiguous, jit, kernel


def _out_size(shape, kernel, stride, padding):
    (_, h, w, _), (kh, kw) = shape, kernel
    return (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1


@kernel
def im2col(x, kernel, stride, padding):
    """x (B, h, w, C), kernel (kh, kw) -> (B, oh, ow, kh kw C), each row a window in (kh, kw, C) order.

    `padding` pixels of zeros surround the image; oh = (h + 2 padding - kh) // stride + 1, ow likewise.
    """
    oh, ow = _out_size(x.shape, kernel, stride, padding)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, kernel, axis=(1, 2))[:, ::stride, ::stride]  # (B, oh, ow, C, kh, kw)
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(len(x), oh, ow, kernel[0] * kernel[1] * x.shape[3])


@im2col.fast
def im2col(x, kernel, stride, padding):
    x = contiguous(x)
    (B, h, w, C), (kh, kw) = x.shape, kernel
    oh, ow = _out_size(x.shape, kernel, stride, padding)
    cols = np.zeros((B, oh, ow, kh, kw * C), x.dtype)
    _im2col(x.reshape(B, h, w * C), cols, C, stride, padding)
    return cols.reshape(B, oh, ow, kh * kw * C)


@jit
def _im2col(x, cols, C, stride, padding):
    B, oh, ow, kh, kwC = cols.shape
    h, wC = x.shape[1:]
    for b in range(B):
        for i in range(oh):
            for j in range(ow):
                # A window's row is one run of pixels in memory. Of it, [start, stop) lies inside the image.
                left = (j * stride - padding) * C
                start, stop = max(0, -left), min(kwC, wC - left)
                for r in range(kh):
                    y = i * stride - padding + r
                    if 0 <= y < h and start < stop:
                        cols[b, i, j, r, start:stop] = x[b, y, left + start : left + stop]


@kernel
def col2im(cols, shape, kernel, stride, padding):
    """The transpose of im2col: cols (B, oh, ow, kh kw C) -> (B, h, w, C) = shape, where overlapping windows add."""
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
    cols = contiguous(cols)
    (B, h, w, C), (kh, kw) = shape, kernel
    oh, ow = _out_size(shape, kernel, stride, padding)
    x = np.zeros(shape, cols.dtype)
    _col2im(cols.reshape(B, oh, ow, kh, kw * C), x.reshape(B, h, w * C), C, stride, padding)
    return x


@jit
def _col2im(cols, x, C, stride, padding):
    B, oh, ow, kh, kwC = cols.shape
    h, wC = x.shape[1:]
    for b in range(B):
        for i in range(oh):
            for j in range(ow):
                left = (j * stride - padding) * C
                start, stop = max(0, -left), min(kwC, wC - left)
                for r in range(kh):
                    y = i * stride - padding + r
                    if 0 <= y < h and start < stop:
                        x[b, y, left + start : left + stop] += cols[b, i, j, r, start:stop]
