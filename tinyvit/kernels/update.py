"""One step of an optimiser over the flat buffer of all parameters, in place; and what surrounds it.

NumPy needs a dozen passes over memory for AdamW, one for each operation. The loop makes one pass, which is all that
counts here: the arithmetic is free while memory delivers the next element. PyTorch calls this `fused=True`.

Chapter of the course: notebooks/07-training.ipynb.
"""

import math

import numpy as np

from tinyvit.kernels.backend import Kernel, jit, require


def _check_adamw(w, g, m, v, step):
    holds = w.ndim == 1 and w.shape == g.shape == m.shape == v.shape and step >= 1
    holds = holds and w.flags.writeable and m.flags.writeable and v.flags.writeable
    require(holds, "adamw: w, g, m, v must be 1-D, of one size, writeable but for g; step ≥ 1", w, g, m, v, step=step)


@Kernel
def adamw(w, g, m, v, lr, beta1, beta2, eps, decay, step):
    """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2, as in PyTorch), in place; all arrays 1-D.

    w ← w (1 - lr decay);  m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
    w ← w - lr m̂ / (√v̂ + ε),   m̂ = m / (1 - β₁^step),   v̂ = v / (1 - β₂^step)

    `step` counts from 1. m and v start at 0 and so are too small at first; the division by 1 - β^step
    corrects for that.
    """
    _check_adamw(w, g, m, v, step)
    w *= 1 - lr * decay
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    w -= lr / (1 - beta1**step) * m / (np.sqrt(v) / math.sqrt(1 - beta2**step) + eps)


@adamw.fast
def adamw(w, g, m, v, lr, beta1, beta2, eps, decay, step):
    _check_adamw(w, g, m, v, step)
    T = w.dtype.type
    keep, rate, scale = 1 - lr * decay, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    _adamw(w, g, m, v, T(keep), T(rate), T(scale), T(1 - beta1), T(1 - beta2), T(eps))


@jit
def _adamw(w, g, m, v, keep, rate, scale, a, b, eps):
    for i in range(w.size):
        m[i] += a * (g[i] - m[i])
        v[i] += b * (g[i] * g[i] - v[i])
        w[i] = w[i] * keep - rate * m[i] / (math.sqrt(v[i]) * scale + eps)


def _check_sgd(w, g, velocity):
    holds = w.ndim == 1 and w.shape == g.shape == velocity.shape and w.flags.writeable and velocity.flags.writeable
    require(holds, "sgd: w, g, velocity must be 1-D, of one size, writeable but for g", w, g, velocity)


@Kernel
def sgd(w, g, velocity, lr, momentum, decay):
    """One step of SGD with momentum and L2 decay, in place on w and velocity, all 1-D.

    velocity ← momentum velocity + g + decay w;  w ← w - lr velocity
    """
    _check_sgd(w, g, velocity)
    velocity *= momentum
    velocity += g + decay * w
    w -= lr * velocity


@sgd.fast
def sgd(w, g, velocity, lr, momentum, decay):
    _check_sgd(w, g, velocity)
    T = w.dtype.type
    _sgd(w, g, velocity, T(lr), T(momentum), T(decay))


@jit
def _sgd(w, g, velocity, lr, momentum, decay):
    for i in range(w.size):
        velocity[i] = momentum * velocity[i] + g[i] + decay * w[i]
        w[i] -= lr * velocity[i]


@Kernel
def squared_norm(g):
    """Σ g² of a 1-D array as a float, summed in float64: a float32 square overflows from 1.8e19 on."""
    require(g.ndim == 1, "squared_norm: g must be 1-D", g)
    return float(np.square(g, dtype=np.float64).sum())


@squared_norm.fast
def squared_norm(g):
    require(g.ndim == 1, "squared_norm: g must be 1-D", g)
    return _squared_norm(g)


@jit
def _squared_norm(g):
    total = 0.0
    for i in range(g.size):
        total += np.float64(g[i]) * np.float64(g[i])
    return total


def _check_sum(total, part):
    holds = total.ndim == 1 and total.shape == part.shape and total.flags.writeable
    require(holds, "add_into: total and part must be 1-D, of one size, total writeable", total, part)


@Kernel
def add_into(total, part):
    """total += part, in place, both 1-D: the sum of the shards' gradients."""
    _check_sum(total, part)
    total += part


@add_into.fast
def add_into(total, part):
    _check_sum(total, part)
    add_loop(total, part)


@jit
def add_loop(total, part):
    for i in range(total.size):
        total[i] += part[i]
