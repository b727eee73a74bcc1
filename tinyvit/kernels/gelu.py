"""GELU (Hendrycks & Gimpel 2016): x times the probability that a standard normal draw lies below x.

    exact:  x Φ(x)        tanh:  x / 2 · (1 + tanh u) = x / (1 + e^(-2u)),   u = √(2/π) (x + 0.044715 x³)

The ViT paper does not say which it means; its code has the tanh form, timm and Hugging Face the exact one.
Written with e^(-2u), tanh takes one exp, just as many as Φ here. Two loops, not a branch in one: a branch in
a loop that should vectorise costs more than the code.

Chapter of the course: notebooks/06-the-whole-vit.ipynb.
"""

import math

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.elementary import exp, normal
from tinyvit.memory import empty_like

SQRT_2_PI, CUBIC = math.sqrt(2 / math.pi), 0.044715


@Kernel
def gelu(x, tanh):
    """GELU of each element of x, any shape; `tanh` False: exact, True: the tanh approximation."""
    require(True, "gelu: x must be an array, of any shape", x)
    if tanh:
        return 0.5 * x * (1 + np.tanh(SQRT_2_PI * (x + CUBIC * x * x * x)))
    return x * normal(x)[0]


@gelu.fast
def gelu(x, tanh):
    require(True, "gelu: x must be an array, of any shape", x)
    x = contiguous(x)
    y = empty_like(x)
    (_gelu_tanh if tanh else _gelu_exact)(x.reshape(-1), y.reshape(-1))
    return y


@jit
def _gelu_exact(x, y):
    for i in range(x.size):
        cdf, _ = normal(x[i])
        y[i] = x[i] * cdf


@jit
def _gelu_tanh(x, y):
    one, a, b = x.dtype.type(1), x.dtype.type(-2 * SQRT_2_PI), x.dtype.type(-2 * SQRT_2_PI * CUBIC)
    for i in range(x.size):
        y[i] = x[i] / (one + exp(x[i] * (a + b * x[i] * x[i])))


@Kernel
def gelu_backward(x, g, tanh):
    """dL/dx from g = dL/dy, both of x's shape.

    exact:  Φ(x) + x φ(x), since Φ' = φ        tanh:  σ + x σ (1 - σ) 2 u',   where σ = 1 / (1 + e^(-2u))
    """
    require(x.shape == g.shape, "gelu_backward: x and g must have one shape", x, g)
    if tanh:
        t = np.tanh(SQRT_2_PI * (x + CUBIC * x * x * x))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SQRT_2_PI * (1 + 3 * CUBIC * x * x))
    cdf, density = normal(x)
    return g * (cdf + x * density)


@gelu_backward.fast
def gelu_backward(x, g, tanh):
    require(x.shape == g.shape, "gelu_backward: x and g must have one shape", x, g)
    x, g = contiguous(x, g)
    dx = empty_like(x)
    (_gelu_backward_tanh if tanh else _gelu_backward_exact)(x.reshape(-1), g.reshape(-1), dx.reshape(-1))
    return dx


@jit
def _gelu_backward_exact(x, g, dx):
    for i in range(x.size):
        cdf, density = normal(x[i])
        dx[i] = g[i] * (cdf + x[i] * density)


@jit
def _gelu_backward_tanh(x, g, dx):
    one, three = x.dtype.type(1), x.dtype.type(3)
    a, b = x.dtype.type(2 * SQRT_2_PI), x.dtype.type(2 * SQRT_2_PI * CUBIC)
    for i in range(x.size):
        square = x[i] * x[i]
        s = one / (one + exp(-x[i] * (a + b * square)))
        dx[i] = g[i] * (s + x[i] * s * (one - s) * (a + three * b * square))


@jit
def split_exact(x, y):
    """y = GELU(x), and x becomes GELU'(x), for 1-D arrays: one exponential for both."""
    for i in range(x.size):
        cdf, density = normal(x[i])
        y[i] = x[i] * cdf
        x[i] = cdf + x[i] * density


@jit
def split_tanh(x, y):
    """As `split_exact`, in the tanh form."""
    one, three = x.dtype.type(1), x.dtype.type(3)
    a, b = x.dtype.type(2 * SQRT_2_PI), x.dtype.type(2 * SQRT_2_PI * CUBIC)
    for i in range(x.size):
        square = x[i] * x[i]
        s = one / (one + exp(-x[i] * (a + b * square)))
        y[i] = x[i] * s
        x[i] = s + x[i] * s * (one - s) * (a + three * b * square)
