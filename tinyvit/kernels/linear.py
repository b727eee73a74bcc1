"""The linear layer, y = x W + b, forward and backward, and with GELU behind it.

    dx = G Wᵀ,   dW = xᵀ G,   db = Σ rows of G,   with G = dL/dy

Three matrix products, of one and the same kernel, whose sums begin at the bias. With GELU behind it, one pass over the
result gives GELU and its derivative, and the derivative stays where the result was.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.gelu import gelu, gelu_backward, split_exact, split_tanh
from tinyvit.kernels.matmul import product
from tinyvit.memory import empty


def _check(x, w, b):
    holds = x.ndim == w.ndim == 2 and x.shape[1] == w.shape[0] and (b is None or b.shape == w.shape[1:])
    require(holds, "linear: x must be (M, K), w (K, N), b (N,) or None", x, w, *(() if b is None else (b,)))


@Kernel
def linear(x, w, b):
    """x (M, K), w (K, N), b (N,) or None -> x w + b (M, N)."""
    _check(x, w, b)
    y = x @ w
    if b is not None:
        y += b
    return y


@linear.fast
def linear(x, w, b):
    _check(x, w, b)
    return product(*contiguous(x, w), b)


def _check_backward(x, w, g):
    holds = x.ndim == w.ndim == g.ndim == 2 and x.shape[1] == w.shape[0] and g.shape == (len(x), w.shape[1])
    require(holds, "linear_backward: x must be (M, K), w (K, N), g (M, N)", x, w, g)


@Kernel
def linear_backward(x, w, g, wanted=(True, True, True)):
    """(dx (M, K), dw (K, N), db (N,)) from g = dL/dy (M, N); None for what is not wanted."""
    _check_backward(x, w, g)
    return g @ w.T if wanted[0] else None, x.T @ g if wanted[1] else None, g.sum(axis=0) if wanted[2] else None


@linear_backward.fast
def linear_backward(x, w, g, wanted=(True, True, True)):
    _check_backward(x, w, g)
    x, w, g = contiguous(x, w, g)
    db = np.zeros(w.shape[1], w.dtype) if wanted[2] else None
    if wanted[2]:
        column_sums(g, db)
    return (
        product(g, np.array(w.T, order="C")) if wanted[0] else None,
        product(x, g, transposed=True) if wanted[1] else None,
        db,
    )


@jit
def column_sums(g, total):
    """total (N,) += Σ rows of g (M, N)."""
    for i in range(g.shape[0]):
        row = g[i]
        for j in range(row.size):
            total[j] += row[j]


@Kernel
def linear_gelu(x, w, b, tanh):
    """x (M, K), w (K, N), b (N,) or None -> (GELU(h) (M, N), GELU'(h) (M, N)), h = x w + b.

    The derivative comes almost for free, since it needs the same exponential, and leaves the backward pass one
    multiplication. It takes the place of h, which nobody needs then.
    """
    h = linear.numpy(x, w, b)
    return gelu.numpy(h, tanh), gelu_backward.numpy(h, np.ones_like(h), tanh)


@linear_gelu.fast
def linear_gelu(x, w, b, tanh):
    _check(x, w, b)
    x, w = contiguous(x, w)
    h = product(x, w, b)
    y = empty(h.shape, h.dtype)
    (split_tanh if tanh else split_exact)(h.reshape(-1), y.reshape(-1))
    return y, h
