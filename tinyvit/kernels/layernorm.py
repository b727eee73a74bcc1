"""Layer normalisation (Ba et al. 2016): each row gets mean 0, variance 1, then a learnt scale γ and shift β.

    x̂ = (x - μ) / √(σ² + ε),   y = γ x̂ + β

The variance takes a second pass over the row, Σ (x - μ)²: the one-pass form Σ x² - D μ² cancels where μ is large beside
σ, and can even come out negative. The row is in cache by then, so that the second pass is nearly free.

Chapter of the course: notebooks/06-the-whole-vit.ipynb.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.memory import empty_like


def _check(x, gamma, beta):
    holds = x.ndim == 2 and x.shape[1] >= 1 and gamma.shape == beta.shape == x.shape[1:]
    require(holds, "layernorm: x must be (M, D) with D ≥ 1, gamma and beta (D,)", x, gamma, beta)


@Kernel
def layernorm(x, gamma, beta, eps):
    """x (M, D), gamma, beta (D,) -> (y (M, D), mean (M,), rstd (M,)), rstd = 1 / √(variance + eps)."""
    _check(x, gamma, beta)
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    rstd = 1 / np.sqrt((centred * centred).mean(axis=1) + x.dtype.type(eps))
    return centred * rstd[:, None] * gamma + beta, mean, rstd


@layernorm.fast
def layernorm(x, gamma, beta, eps):
    _check(x, gamma, beta)
    x, gamma, beta = contiguous(x, gamma, beta)
    y, mean, rstd = empty_like(x), np.empty(len(x), x.dtype), np.empty(len(x), x.dtype)
    layernorm_loop(x, gamma, beta, x.dtype.type(eps), y, mean, rstd)
    return y, mean, rstd


@jit
def layernorm_loop(x, gamma, beta, eps, y, mean, rstd):
    one, D = x.dtype.type(1), x.dtype.type(x.shape[1])
    for i in range(x.shape[0]):
        row, out = x[i], y[i]
        mu = x.dtype.type(0)
        for j in range(row.size):
            mu += row[j]
        mu /= D
        var = x.dtype.type(0)
        for j in range(row.size):
            var += (row[j] - mu) * (row[j] - mu)
        r = one / np.sqrt(var / D + eps)
        for j in range(row.size):
            out[j] = (row[j] - mu) * r * gamma[j] + beta[j]
        mean[i], rstd[i] = mu, r


def _check_backward(x, gamma, mean, rstd, g):
    holds = x.ndim == 2 and x.shape[1] >= 1 and g.shape == x.shape and gamma.shape == x.shape[1:]
    holds = holds and mean.shape == rstd.shape == x.shape[:1]
    must = "layernorm_backward: x and g must be (M, D) with D ≥ 1, gamma (D,), mean and rstd (M,)"
    require(holds, must, x, gamma, mean, rstd, g)


@Kernel
def layernorm_backward(x, gamma, mean, rstd, g):
    """(dx (M, D), dgamma (D,), dbeta (D,)) from g = dL/dy (M, D) and the forward pass's mean and rstd.

    With ĝ = g γ:  dx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)).  The two means are what flows back through μ and
    through σ: dx is ĝ without its parts along the constant vector and along x̂, the two directions that the
    norm removes.
    """
    _check_backward(x, gamma, mean, rstd, g)
    xhat = (x - mean[:, None]) * rstd[:, None]
    gh = g * gamma
    along_x = (gh * xhat).mean(axis=1, keepdims=True)
    dx = rstd[:, None] * (gh - gh.mean(axis=1, keepdims=True) - xhat * along_x)
    return dx, (g * xhat).sum(axis=0), g.sum(axis=0)


@layernorm_backward.fast
def layernorm_backward(x, gamma, mean, rstd, g):
    _check_backward(x, gamma, mean, rstd, g)
    x, gamma, mean, rstd, g = contiguous(x, gamma, mean, rstd, g)
    dx, dgamma, dbeta = empty_like(x), np.zeros_like(gamma), np.zeros_like(gamma)
    layernorm_backward_loop(x, gamma, mean, rstd, g, dx, dgamma, dbeta)
    return dx, dgamma, dbeta


@jit
def layernorm_backward_loop(x, gamma, mean, rstd, g, dx, dgamma, dbeta):
    D = x.dtype.type(x.shape[1])
    for i in range(x.shape[0]):
        row, gi, out = x[i], g[i], dx[i]
        mu, r = mean[i], rstd[i]
        along_one = along_x = x.dtype.type(0)
        for j in range(row.size):
            gh = gi[j] * gamma[j]
            along_one += gh
            along_x += gh * (row[j] - mu)
        along_one /= D
        along_x *= r * r / D
        for j in range(row.size):
            centred = row[j] - mu
            out[j] = r * (gi[j] * gamma[j] - along_one - centred * along_x)
            dgamma[j] += gi[j] * centred * r
            dbeta[j] += gi[j]
