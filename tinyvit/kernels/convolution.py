"""A convolution is a sum of matrix products, and the matrices of its windows need not be made: they are there.

In a row of pixels, each of C numbers, a window of kw pixels is a run of kw·C numbers, and the next window begins C
numbers further on. So a row of the padded image *is* a matrix X of windows, (ow, kw·C), whose rows overlap in memory.
Row i of the output sums over the kh rows of the kernel, and the gradient of one of these over all rows of all images:

    Y_i = Σ_r X_(i·stride + r) W_r,      dW_r = Σ_i X_(i·stride + r)ᵀ G_i

That is im2col (`im2col.py`, the spec below) without copies. The tile of sums stays in registers for the whole of Σ. The
gradient of the image is for stride 1 a convolution again, of G with the kernel turned round; else it goes by col2im.

Libraries do without copies too: cuDNN computes addresses inside the product, oneDNN compiles such loops for each shape.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.im2col import col2im, im2col
from tinyvit.kernels.linear import column_sums
from tinyvit.kernels.matmul import product, turned, whole
from tinyvit.kernels.simd import LANES, WIDE_REGISTERS, load, madd, store, window
from tinyvit.memory import empty

TALL = 8  # rows of a tile; it is one register wide, or with AVX-512 two


def _check(name, x, w, stride, padding, bias=None, g=None):
    holds = x.ndim == w.ndim == 4 and x.shape[3] == w.shape[2] and min(x.shape[1:]) >= 1 and min(w.shape) >= 1
    holds = holds and stride >= 1 and padding >= 0
    holds = holds and w.shape[0] <= x.shape[1] + 2 * padding and w.shape[1] <= x.shape[2] + 2 * padding
    holds = holds and (bias is None or bias.shape == w.shape[3:])
    holds = holds and (g is None or g.shape == _out_shape(x, w, stride, padding))
    must = f"{name}: x must be (B, h, w, C), the weight (kh, kw, C, D) with a window that fits into the image, "
    must += "the bias (D,), g (B, oh, ow, D), stride ≥ 1, padding ≥ 0"
    require(holds, must, *(a for a in (x, w, bias, g) if a is not None), stride=stride, padding=padding)


def _out_shape(x, w, stride, padding):
    (B, h, width, _), (kh, kw, _, D) = x.shape, w.shape
    return B, (h + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1, D


@Kernel
def conv2d(x, w, bias, stride, padding):
    """x (B, h, w, C), w (kh, kw, C, D), bias (D,) or None -> (B, oh, ow, D).

    `padding` pixels of zeros surround the image; oh = (h + 2 padding - kh) // stride + 1, ow likewise.
    """
    _check("conv2d", x, w, stride, padding, bias)
    kh, kw, C, D = w.shape
    y = im2col.numpy(x, (kh, kw), stride, padding) @ w.reshape(kh * kw * C, D)
    return y if bias is None else y + bias


@Kernel
def conv2d_backward(x, w, g, stride, padding, wanted=(True, True, True)):
    """(dx, dw, dbias (D,)) of the shapes of x and w from g = dL/dy (B, oh, ow, D); None for what is not wanted."""
    _check("conv2d_backward", x, w, stride, padding, g=g)
    kh, kw, C, D = w.shape
    dx = dw = None
    if wanted[0]:
        dx = col2im.numpy(g @ w.reshape(kh * kw * C, D).T, x.shape, (kh, kw), stride, padding)
    if wanted[1]:
        rows = im2col.numpy(x, (kh, kw), stride, padding).reshape(-1, kh * kw * C)
        dw = (rows.T @ g.reshape(len(rows), D)).reshape(w.shape)
    return dx, dw, g.sum(axis=(0, 1, 2)) if wanted[2] else None


def _strip(lanes):
    """The kernel for a strip of so many columns: a constant, so that the compiler can assign registers."""

    @jit
    def strip(A, down, right, B, count, start, C):
        """C = start + Σ_s A_s B_s, s < count, in tiles of eight rows. A_s is A moved on by s·down rows and s·right
        columns, B_s the s-th K rows of B (count·K, lanes); `start` has a row for each of C's, or one for all."""
        (M, K), step = A.shape, min(start.shape[0] - 1, 1)
        full = M // TALL * TALL
        for m in range(0, full, TALL):
            c0, c1 = load(start[m * step], 0, lanes), load(start[(m + 1) * step], 0, lanes)
            c2, c3 = load(start[(m + 2) * step], 0, lanes), load(start[(m + 3) * step], 0, lanes)
            c4, c5 = load(start[(m + 4) * step], 0, lanes), load(start[(m + 5) * step], 0, lanes)
            c6, c7 = load(start[(m + 6) * step], 0, lanes), load(start[(m + 7) * step], 0, lanes)
            for s in range(count):
                a, b = window(A, m + s * down, TALL, s * right, K), window(B, s * K, K, 0, lanes)
                for k in range(K):
                    bk = load(b[k], 0, lanes)
                    c0 = madd(a[0, k], bk, c0)
                    c1 = madd(a[1, k], bk, c1)
                    c2 = madd(a[2, k], bk, c2)
                    c3 = madd(a[3, k], bk, c3)
                    c4 = madd(a[4, k], bk, c4)
                    c5 = madd(a[5, k], bk, c5)
                    c6 = madd(a[6, k], bk, c6)
                    c7 = madd(a[7, k], bk, c7)
            store(C[m], 0, c0)
            store(C[m + 1], 0, c1)
            store(C[m + 2], 0, c2)
            store(C[m + 3], 0, c3)
            store(C[m + 4], 0, c4)
            store(C[m + 5], 0, c5)
            store(C[m + 6], 0, c6)
            store(C[m + 7], 0, c7)
        for m in range(full, M):
            c0 = load(start[m * step], 0, lanes)
            for s in range(count):
                a, b = window(A, m + s * down, 1, s * right, K), window(B, s * K, K, 0, lanes)
                for k in range(K):
                    c0 = madd(a[0, k], load(b[k], 0, lanes), c0)
            store(C[m], 0, c0)

    return strip


TWO = 2 * LANES
_one_register, _two_registers = _strip(LANES), _strip(TWO)


@jit
def _sum_of_products(A, down, right, B, count, start, C):
    """C = start + Σ_s A_s B_s as above, for C with a multiple of LANES columns; all of them windows."""
    (M, N), L, S, n = C.shape, B.shape[0], start.shape[0], 0
    while n < N:
        if WIDE_REGISTERS and n + TWO <= N:  # of which there are twice as many too
            b, first, out = window(B, 0, L, n, TWO), window(start, 0, S, n, TWO), window(C, 0, M, n, TWO)
            _two_registers(A, down, right, b, count, first, out)
            n += TWO
        else:
            b, first, out = window(B, 0, L, n, LANES), window(start, 0, S, n, LANES), window(C, 0, M, n, LANES)
            _one_register(A, down, right, b, count, first, out)
            n += LANES


class _Padded:
    """Room for an image with zeros around it, rows of `pitch` numbers, and its windows: `windows` (n, kw·C), all in the
    same memory, begin with those of the first row. Those of row i lie i·pitch numbers, or columns, further on."""

    def __init__(self, x, kw, stride, padding):
        (_, h, w, C), (above, left) = x.shape, padding
        height, self.pitch = h + 2 * above, (w + 2 * left) * C
        slack = (TALL * stride + kw) * C  # a tile may reach beyond the last window, for sums that are thrown away
        numbers = np.zeros(height * self.pitch + slack, x.dtype)
        self.windows = sliding_window_view(numbers, kw * C, writeable=True)[:: stride * C]
        rows = numbers[: height * self.pitch].reshape(height, self.pitch)
        self.inside = rows[above : above + h, left * C : (left + w) * C]  # where the image goes


def _wide(w):
    """The last axis made up to whole registers with zeros; no copy if it is that already."""
    D = w.shape[-1]
    if D % LANES == 0:
        return contiguous(w)
    wide = np.zeros((*w.shape[:-1], -(-D // LANES) * LANES), w.dtype)
    wide[..., :D] = w
    return wide


@conv2d.fast
def conv2d(x, w, bias, stride, padding):
    _check("conv2d", x, w, stride, padding, bias)
    return _convolve(contiguous(x), w, bias, stride, (padding, padding))


def _convolve(x, w, bias, stride, padding):
    """`conv2d` with padding above and below, and padding left and right."""
    (B, h, width, C), (kh, kw, _, D) = x.shape, w.shape
    oh, ow = (h + 2 * padding[0] - kh) // stride + 1, (width + 2 * padding[1] - kw) // stride + 1
    image = _Padded(x, kw, stride, padding)
    start = np.zeros((1, D), x.dtype) if bias is None else bias.reshape(1, D)
    w, start, y = _wide(w.reshape(kh * kw * C, D)), _wide(start), empty((B, oh, ow, D), x.dtype)
    room = np.empty((-(-ow // TALL) * TALL, w.shape[1]), x.dtype)
    _conv2d(x.reshape(B, h, width * C), image.inside, image.windows, image.pitch, w, kh, stride, start, room, y)
    return y


@jit
def _conv2d(x, inside, windows, pitch, w, kh, stride, start, room, y):
    K = w.shape[0] // kh
    for b in range(x.shape[0]):
        _copy(x[b], inside)
        for i in range(y.shape[1]):
            rows = window(windows, 0, room.shape[0], i * stride * pitch, K)
            _sum_of_products(rows, 0, pitch, whole(w), kh, whole(start), whole(room))
            _copy(room, y[b, i])


@jit
def _copy(source, to):
    """The first rows and columns of `source`, as many as `to` has."""
    for i in range(to.shape[0]):
        row, out = source[i], to[i]
        for j in range(out.size):
            out[j] = row[j]


@conv2d_backward.fast
def conv2d_backward(x, w, g, stride, padding, wanted=(True, True, True)):
    _check("conv2d_backward", x, w, stride, padding, g=g)
    x, g = contiguous(x, g)
    B, h, width, C = x.shape
    kh, kw, _, D = w.shape
    dx = dw = db = None
    if wanted[0]:
        dx = _image_gradient(x.shape, w, g, stride, padding)
    if wanted[1]:
        image, gw = _Padded(x, kw, stride, (padding, padding)), _wide(g)
        dw = np.zeros((kh, kw * C, gw.shape[3]), x.dtype)
        _weight_gradient(x.reshape(B, h, width * C), image.inside, image.windows, image.pitch, stride, gw, dw)
        dw = np.ascontiguousarray(dw[..., :D]).reshape(w.shape)
    if wanted[2]:
        db = np.zeros(D, x.dtype)
        column_sums(g.reshape(-1, D), db)
    return dx, dw, db


@jit
def _weight_gradient(x, inside, windows, pitch, stride, g, dw):
    B, oh, ow, D = g.shape
    for b in range(B):
        _copy(x[b], inside)
        for r in range(dw.shape[0]):
            columns = turned(window(windows, 0, ow, r * pitch, dw.shape[1]))
            rows = g[b].reshape(oh * ow, D)
            _sum_of_products(columns, stride * pitch, 0, whole(rows), oh, whole(dw[r]), whole(dw[r]))


def _image_gradient(shape, w, g, stride, padding):
    kh, kw, C, D = w.shape
    around = kh - 1 - padding, kw - 1 - padding
    if stride == 1 and min(around) >= 0:
        return _convolve(g, w[::-1, ::-1].transpose(0, 1, 3, 2), None, 1, around)
    cols = product(g.reshape(-1, D), np.array(w.reshape(kh * kw * C, D).T, order="C"))
    return col2im.numba(cols.reshape(*g.shape[:3], kh * kw * C), shape, (kh, kw), stride, padding)
