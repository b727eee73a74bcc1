"""Initial values: random, and of a size that neither explodes nor dies out on the way through many layers.

If a layer's inputs have variance 1, a sum of `fan_in` of them times weights of variance 1 / fan_in has variance 1
again. The rules below are those of the paper's code.

Chapter of the course: notebooks/04-patches.ipynb.
"""

import numpy as np


def xavier_uniform(rng, fan_in, fan_out, copies=1):
    """(fan_in, copies · fan_out) uniform in ±√(6 / (fan_in + fan_out)): keeps the size of signals both ways
    (Glorot and Bengio 2010).

    `copies` > 1 is for matrices that are several in one, such as q, k and v: each gets the limit of its own
    shape. Taking 3 D as the fan-out instead would make the weights √2 too small.
    """
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return rng.uniform(-limit, limit, (fan_in, copies * fan_out)).astype(np.float32)


def lecun_normal(rng, fan_in, fan_out):
    """(fan_in, fan_out) normal with variance 1 / fan_in, cut off at two deviations and widened to make up for it."""
    cut_deviation = 0.87962566  # of a standard normal cut off at ±2
    return (_truncated_normal(rng, (fan_in, fan_out)) * (fan_in**-0.5 / cut_deviation)).astype(np.float32)


def he_normal(rng, shape):
    """A convolution's weight (kh, kw, C, D) normal with variance 2 / fan_in, fan_in = kh·kw·C: twice LeCun's, because a
    ReLU lets half of the variance pass (He et al. 2015)."""
    return (rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5).astype(np.float32)


def _truncated_normal(rng, shape):
    draws = rng.standard_normal(shape)
    while (outside := np.abs(draws) > 2).any():
        draws[outside] = rng.standard_normal(int(outside.sum()))
    return draws
