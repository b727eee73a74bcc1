"""Softmax over the last axis: scores become weights that are positive and sum to one.

    p_j = e^(x_j - m) / Σ_k e^(x_k - m),   m = max_k x_k

Any m gives the same p; the row's maximum keeps every exponent at or below 0, so nothing overflows. A row with
a NaN is all NaN, so that a diverged run shows.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.elementary import exp
from tinyvit.kernels.simd import highest

BLOCK = 4096  # elements that stay in the first-level cache (16 kB in float32) from one pass to the next


def _check(x):
    require(x.ndim >= 1 and x.shape[-1] >= 1, "softmax: x must be (…, N) with N ≥ 1", x)


@Kernel
def softmax(x):
    """(…, N) -> (…, N), softmax over the last axis, N ≥ 1; float32 or float64, kept."""
    _check(x)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@softmax.fast
def softmax(x):
    _check(x)
    p = np.array(x, order="C")
    n = p.shape[-1]
    softmax_rows(p.reshape(p.size // n, n), p.dtype.type(1))
    return p


@jit
def softmax_rows(p, scale):
    """p (M, N) becomes softmax(scale p), row by row and in place; scale > 0."""
    step = max(1, BLOCK // p.shape[1])
    for start in range(0, p.shape[0], step):
        block = p[start : start + step]
        for i in range(block.shape[0]):
            row = block[i]
            m = highest(row)
            for j in range(row.size):
                row[j] = (row[j] - m) * scale
        # Over the whole block at once: a row of 17 would be one vector of 16 numbers and a lonely last one.
        flat = block.reshape(-1)
        for i in range(flat.size):
            flat[i] = exp(flat[i])
        for i in range(block.shape[0]):
            row = block[i]
            total = row.dtype.type(0)
            for j in range(row.size):
                total += row[j]
            inverse = row.dtype.type(1) / total
            for j in range(row.size):
                row[j] *= inverse


def _check_backward(p, g):
    holds = p.ndim >= 1 and p.shape[-1] >= 1 and p.shape == g.shape
    require(holds, "softmax_backward: p and g must have one shape (…, N) with N ≥ 1", p, g)


@Kernel
def softmax_backward(p, g):
    """The gradient with respect to x, from p = softmax(x) and g = dL/dp; all (…, N).

    dp_j/dx_k = p_j (δ_jk - p_k), so dL/dx = p (g - Σ_k p_k g_k): no N × N Jacobian is ever built.
    """
    _check_backward(p, g)
    return p * (g - (p * g).sum(axis=-1, keepdims=True))


@softmax_backward.fast
def softmax_backward(p, g):
    _check_backward(p, g)
    p, dx = contiguous(p), np.array(g, order="C")
    n = p.shape[-1]
    rows = (p.size // n, n)
    softmax_backward_rows(p.reshape(rows), dx.reshape(rows), p.dtype.type(1))
    return dx


@jit
def softmax_backward_rows(p, g, scale):
    """g (M, N) becomes scale p (g - Σ p g), row by row and in place."""
    for i in range(p.shape[0]):
        row, out = p[i], g[i]
        dot = row.dtype.type(0)
        for j in range(row.size):
            dot += row[j] * out[j]
        for j in range(row.size):
            out[j] = row[j] * (out[j] - dot) * scale
