"""Batch, group, instance and layer normalisation are one loop: they differ in which numbers share a mean.

    x̂ = (x - μ) / √(σ² + ε),   y = γ x̂ + β,   with μ, σ² over one group of channels in one set of rows

Rows are pixels. With a set for each image it is group norm (Wu and He 2018); with all images in one set and a group for
each channel, batch norm (Ioffe and Szegedy 2015); with a row a set and one group, layer norm.

The mean and variance of a group come from those of its channels, and these from those of blocks of rows, by the law of
total variance: σ² = mean of the parts' σ² + variance of the parts' μ. So the array is read once from memory, each block
twice from cache, and no Σ x² - n μ² cancels. A ReLU behind the norm costs nothing while the numbers are in registers.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.memory import empty_like

BLOCK = 64  # rows
COLUMNS = 256  # numbers that a loop should run over at least; pixels have as few as 16 channels


def _check(name, x, gamma, beta, groups, *same):
    holds = x.ndim == 3 and min(x.shape[1:]) >= 1 and gamma.shape == beta.shape == x.shape[2:]
    holds = holds and groups >= 1 and x.shape[2] % groups == 0
    holds = holds and all(a.shape == shape for a, shape in same)
    must = f"{name}: x (and g) must be (S, M, C) with M, C ≥ 1, gamma and beta (C,), groups divide C, "
    must += "mean and variance be (S, groups)"
    require(holds, must, x, gamma, beta, *(a for a, _ in same), groups=groups)


@Kernel
def group_norm(x, gamma, beta, groups, eps, relu):
    """x (S, M, C), gamma, beta (C,) -> (y (S, M, C), mean (S, groups), variance (S, groups)); with max(y, 0) for y if
    `relu`. Statistics are over the M rows of a set and the C / groups channels of a group, which are neighbours."""
    _check("group_norm", x, gamma, beta, groups)
    S, M, C = x.shape
    grouped = x.reshape(S, M, groups, C // groups).astype(np.float64)
    mean, variance = grouped.mean(axis=(1, 3)).astype(x.dtype), grouped.var(axis=(1, 3)).astype(x.dtype)
    y = _normed(x, mean, variance, eps) * gamma + beta
    return np.where(y <= 0, 0, y).astype(x.dtype) if relu else y, mean, variance


def _normed(x, mean, variance, eps):
    """x̂, of x's shape."""
    per_channel = x.shape[2] // mean.shape[1]
    mean, variance = (np.repeat(a, per_channel, axis=1)[:, None] for a in (mean, variance))
    return (x - mean) / np.sqrt(variance + x.dtype.type(eps))


@Kernel
def group_norm_backward(x, gamma, beta, mean, variance, g, eps, relu):
    """(dx (S, M, C), dgamma (C,), dbeta (C,)) from g = dL/dy (S, M, C) and the forward pass's mean and variance.

    As for layer norm, with the means over a group: dx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)), ĝ = g γ.
    """
    S, M, C = x.shape
    groups = mean.shape[-1]
    _check("group_norm_backward", x, gamma, beta, groups, (g, x.shape), (mean, (S, groups)), (variance, (S, groups)))
    xhat = _normed(x, mean, variance, eps)
    if relu:
        g = np.where(xhat * gamma + beta <= 0, 0, g).astype(x.dtype)

    def over_group(a):
        return a.reshape(split).mean(axis=(1, 3), keepdims=True)

    gh, split = g * gamma, (S, M, groups, C // groups)
    rstd = (1 / np.sqrt(variance + x.dtype.type(eps)))[:, None, :, None]
    dx = rstd * (gh.reshape(split) - over_group(gh) - xhat.reshape(split) * over_group(gh * xhat))
    return dx.reshape(x.shape), (g * xhat).sum(axis=(0, 1)), g.sum(axis=(0, 1))


class _Layout:
    """x as the loops see it, r pixels in a row so that rows are long, and how numbers of a channel or of a group are
    laid out beside such a row."""

    def __init__(self, shape, groups):
        S, M, C = shape
        r = 1
        while M % (2 * r) == 0 and r * C < COLUMNS:
            r *= 2
        self.rows = (S, M // r, r * C)
        self.columns = (S, r, groups, C // groups)

    def means(self, columns):
        """(S, r C) -> (S, groups)."""
        return columns.reshape(self.columns).mean(axis=(1, 3))

    def spread(self, groups, channels=None):
        """(S, groups), times (C,) if given -> (S, r C)."""
        wide = groups[:, None, :, None]
        if channels is not None:
            wide = wide * channels.reshape(self.columns[2:])
        return np.broadcast_to(wide, self.columns).reshape(self.rows[0], self.rows[2]).copy()


@group_norm.fast
def group_norm(x, gamma, beta, groups, eps, relu):
    _check("group_norm", x, gamma, beta, groups)
    x = contiguous(x)
    layout = _Layout(x.shape, groups)
    rows, y = x.reshape(layout.rows), empty_like(x)
    means, variances = np.empty((2, rows.shape[0], rows.shape[2]), x.dtype)
    _moments(rows, means, variances)
    mean = layout.means(means)
    variance = layout.means(variances + (means - layout.spread(mean)) ** 2)
    rstd = 1 / np.sqrt(variance + x.dtype.type(eps))
    offset = layout.spread(np.ones_like(mean), beta)
    _scale(rows, layout.spread(mean), layout.spread(rstd, gamma), offset, relu, y.reshape(rows.shape))
    return y, mean, variance


@jit
def _moments(x, means, variances):
    """Mean and variance of each column of x (S, M, C), over M."""
    S, M, C = x.shape
    mean, square = np.empty(C, x.dtype), np.empty(C, x.dtype)  # of a block
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for s in range(S):
        mu, var = means[s], variances[s]
        mu[:] = zero
        var[:] = zero
        for start in range(0, M, BLOCK):
            stop = min(start + BLOCK, M)
            mean[:] = zero
            square[:] = zero
            for i in range(start, stop):
                row = x[s, i]
                for j in range(C):
                    mean[j] += row[j]
            shrink = one / x.dtype.type(stop - start)
            for j in range(C):
                mean[j] *= shrink
            for i in range(start, stop):
                row = x[s, i]
                for j in range(C):
                    square[j] += (row[j] - mean[j]) * (row[j] - mean[j])
            share = x.dtype.type(stop - start) / x.dtype.type(stop)  # of this block in all rows so far
            for j in range(C):
                delta = mean[j] - mu[j]
                mu[j] += share * delta
                var[j] += share * (square[j] * shrink - var[j] + (one - share) * delta * delta)


@jit
def _scale(x, mean, scale, shift, relu, y):
    """y = (x - mean) scale + shift with a factor and summand for each column of a set; max(y, 0) if `relu`."""
    zero = x.dtype.type(0)
    for s in range(x.shape[0]):
        mu, a, b = mean[s], scale[s], shift[s]
        for i in range(x.shape[1]):
            row, out = x[s, i], y[s, i]
            if relu:
                for j in range(row.size):
                    v = (row[j] - mu[j]) * a[j] + b[j]
                    out[j] = zero if v <= zero else v  # a NaN stays one
            else:
                for j in range(row.size):
                    out[j] = (row[j] - mu[j]) * a[j] + b[j]


@group_norm_backward.fast
def group_norm_backward(x, gamma, beta, mean, variance, g, eps, relu):
    S, M, C = x.shape
    groups = mean.shape[-1]
    _check("group_norm_backward", x, gamma, beta, groups, (g, x.shape), (mean, (S, groups)), (variance, (S, groups)))
    x, g = contiguous(x, g)
    layout = _Layout(x.shape, groups)
    rows, gr, dx = x.reshape(layout.rows), g.reshape(layout.rows), empty_like(x)
    rstd = 1 / np.sqrt(variance + x.dtype.type(eps))
    mu, scale = layout.spread(mean), layout.spread(rstd, gamma)
    shift = layout.spread(np.ones_like(mean), beta)
    along_one, along_x = np.zeros((2, *mu.shape), x.dtype)
    _sums(rows, gr, mu, scale, shift, relu, along_one, along_x)
    dbeta = along_one.reshape(-1, C).sum(axis=0)
    dgamma = (along_x * layout.spread(rstd)).reshape(-1, C).sum(axis=0)
    n = rows.shape[1]  # `means` has divided by r times the channels of a group already
    by_one = layout.means(along_one * scale) / n
    by_x = rstd * rstd * layout.means(along_x * scale) / n
    _gradient(rows, gr, mu, scale, shift, relu, layout.spread(by_one), layout.spread(by_x), dx.reshape(rows.shape))
    return dx, dgamma, dbeta


@jit
def _sums(x, g, mean, scale, shift, relu, along_one, along_x):
    """Σ g and Σ g (x - mean) of each column, where g counts only what the ReLU let pass."""
    zero = x.dtype.type(0)
    for s in range(x.shape[0]):
        mu, a, b, one, along = mean[s], scale[s], shift[s], along_one[s], along_x[s]
        for i in range(x.shape[1]):
            row, gi = x[s, i], g[s, i]
            for j in range(row.size):
                centred = row[j] - mu[j]
                passed = zero if relu and centred * a[j] + b[j] <= zero else gi[j]
                one[j] += passed
                along[j] += passed * centred


@jit
def _gradient(x, g, mean, scale, shift, relu, by_one, by_x, dx):
    """dx = g scale - by_one - by_x (x - mean), with a number for each column of a set."""
    zero = x.dtype.type(0)
    for s in range(x.shape[0]):
        mu, a, b, constant, slope = mean[s], scale[s], shift[s], by_one[s], by_x[s]
        for i in range(x.shape[1]):
            row, gi, out = x[s, i], g[s, i], dx[s, i]
            for j in range(row.size):
                centred = row[j] - mu[j]
                passed = zero if relu and centred * a[j] + b[j] <= zero else gi[j]
                out[j] = passed * a[j] - constant[j] - slope[j] * centred
