"""Softmax over the last axis: scores become weights that are positive and sum to one.

    p_j = e^(x_j - m) / Σ_k e^(x_k - m),   m = max_k x_k

Any m gives the same p; the row's maximum keeps every exponent at or below 0, so nothing overflows. A row with a NaN is all
NaN, so that a diverged run shows.
"""

import numpy as np

from tinyvit.kernels.backend import contiguous, jit, kernel
from tinyvit.kernels.elementary import exp, row_max


@kernel
def softmax(x):
    """(…, N) -> (…, N), softmax over the last axis; float32 or float64, kept."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@softmax.fast
def softmax(x):
    x = contiguous(x)
    p = np.empty_like(x)
    n = x.shape[-1]
    _softmax(x.reshape(x.size // n, n), p.reshape(x.size // n, n))
    return p


@jit
def _softmax(x, p):
    for i in range(x.shape[0]):
        row, out = x[i], p[i]
        m = row_max(row)
        total = row.dtype.type(0)
        for j in range(row.size):
            out[j] = exp(row[j] - m)
        for j in range(row.size):  # a loop of its own: see the note on sums in kernels/backend.py
            total += out[j]
        scale = row.dtype.type(1) / total
        for j in range(row.size):
            out[j] *= scale


@kernel
def softmax_backward(p, g):
    """The gradient with respect to x, from p = softmax(x) and g = dL/dp; all (…, N).

    dp_j/dx_k = p_j (δ_jk - p_k), so dL/dx = p (g - Σ_k p_k g_k): no N × N Jacobian is ever built.
    """
    return p * (g - (p * g).sum(axis=-1, keepdims=True))


@softmax_backward.fast
def softmax_backward(p, g):
    p, g = contiguous(p, g)
    dx = np.empty_like(p)
    n = p.shape[-1]
    rows = (p.size // n, n)
    _softmax_backward(p.reshape(rows), g.reshape(rows), dx.reshape(rows))
    return dx


@jit
def _softmax_backward(p, g, dx):
    for i in range(p.shape[0]):
        pi, gi, out = p[i], g[i], dx[i]
        dot = pi.dtype.type(0)
        for j in range(pi.size):
            dot += pi[j] * gi[j]
        for j in range(pi.size):
            out[j] = pi[j] * (gi[j] - dot)
