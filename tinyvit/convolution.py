"""The ops a convolutional network is made of: convolution, batch and group norm, standardised weights, pooling.

What read images before the Vision Transformer, and still does where data are few: a window slides over the image, so
that an op sees neighbours only and does the same everywhere. Images and feature maps are (B, h, w, C).

`functional.py` has them under its name too, beside the ops of a ViT.

Chapter of the course: notebooks/09-inductive-bias.ipynb.
"""

import functools

import numpy as np

from tinyvit import kernels, memory, ops
from tinyvit.tensor import differentiable


@differentiable
def conv2d(x, weight, bias, *, stride=1, padding=0):
    """Cross-correlation: images x (B, h, w, C), weight (kh, kw, C, D), bias (D,) or None -> (B, oh, ow, D).

    Each output pixel is Σ over a window of kh·kw pixels around it, the same for all. stride: from a window to the next.
    padding: pixels of zeros around the image. oh = (h + 2·padding - kh) // stride + 1. Raises ValueError for shapes
    that do not fit.
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[2]:
        raise ValueError("conv2d needs x (B, h, w, C) and weight (kh, kw, C, D) with one C")
    kh, kw = weight.shape[:2]
    if min(x.shape[1] + 2 * padding - kh, x.shape[2] + 2 * padding - kw) < 0:
        raise ValueError(f"the window {kh}×{kw} does not fit into the image with padding {padding}")

    def pullback(g, wanted):
        return kernels.conv2d_backward(x, weight, g, stride, padding, wanted)

    return kernels.conv2d(x, weight, bias, stride, padding), pullback


@differentiable
def standardise(weight, *, eps=1e-10):
    """(w - mean) / √(variance + ε) of each output filter: weight (kh, kw, C, D), statistics over kh·kw·C.

    What a filter answers then no longer depends on its size, nor on the brightness of what it sees. ε as in BiT's
    PyTorch code; the JAX code of BiT and ViT adds 1e-5 to the deviation instead. Source: Qiao et al. 2019,
    arXiv 1903.10520. Raises ValueError for a weight of another shape.
    """
    if weight.ndim != 4:
        raise ValueError("standardise needs a weight (kh, kw, C, D)")
    centred = weight - weight.mean(axis=(0, 1, 2))
    rstd = 1 / np.sqrt((centred * centred).mean(axis=(0, 1, 2)) + weight.dtype.type(eps))
    y = centred * rstd

    def pullback(g):  # without its parts along the constant and along y, the directions that are taken away
        return rstd * (g - g.mean(axis=(0, 1, 2)) - y * (g * y).mean(axis=(0, 1, 2)))

    return y, pullback


def _feature_map(x, gamma, beta):
    if x.ndim != 4 or not x.shape[3:] == gamma.shape == beta.shape:
        raise ValueError("x must be (B, h, w, C), gamma and beta (C,)")


def _normalise(x, gamma, beta, sets, groups, eps, relu):
    """Output and pullback of group and batch norm, see kernels/groupnorm.py; and the mean and variance."""
    shape, rows = x.shape, x.reshape(sets, -1, x.shape[3])
    y, mean, variance = kernels.group_norm(rows, gamma, beta, groups, eps, relu)

    def pullback(g):
        g = g.reshape(rows.shape)
        dx, dgamma, dbeta = kernels.group_norm_backward(rows, gamma, beta, mean, variance, g, eps, relu)
        return dx.reshape(shape), dgamma, dbeta

    return (y.reshape(shape), pullback), mean, variance


@differentiable
def group_norm(x, gamma, beta, *, groups, eps=1e-6, relu=False):
    """γ (x - mean) / √(variance + ε) + β, statistics of each image over all pixels and a group of channels.

    x (B, h, w, C), gamma and beta (C,), `groups` a divisor of C; `relu` puts max(·, 0) behind it. An image is
    normalised by itself, however many there are in the batch. ε as in the paper's code (Flax); PyTorch's default is
    1e-5. Source: Wu and He 2018. Raises ValueError for shapes that do not fit and groups that do not divide C.
    """
    _feature_map(x, gamma, beta)
    return _normalise(x, gamma, beta, len(x), groups, eps, relu)[0]


@differentiable
def _batch_norm(x, gamma, beta, *, eps, relu, seen):
    _feature_map(x, gamma, beta)
    if x.size == 0:
        raise ValueError("batch_norm needs at least one image for its statistics")
    result, mean, variance = _normalise(x, gamma, beta, 1, x.shape[3], eps, relu)
    if seen is not None:
        seen.extend((mean[0], variance[0]))
    return result


def batch_norm(x, gamma, beta, statistics=None, *, eps=1e-5, relu=False, seen=None):
    """γ (x - mean) / √(variance + ε) + β for each channel; x (B, h, w, C), gamma and beta (C,).

    Args:
        statistics: (mean, variance), arrays (C,), to normalise by; None for those of this batch, through which
            gradients flow too.
        relu: put max(·, 0) behind it.
        seen: a list that receives this batch's mean and variance, arrays (C,); not where `statistics` are given.

    ε as in PyTorch. Source: Ioffe and Szegedy 2015. Raises ValueError for shapes that do not fit, and for the
    statistics of no image.
    """
    if statistics is None:
        return _batch_norm(x, gamma, beta, eps=eps, relu=relu, seen=seen)
    mean, variance = statistics
    scale = gamma * (1 / np.sqrt(variance + eps))
    y = x * scale + (beta - scale * mean)  # libraries fold both into the convolution before
    return ops.relu(y) if relu else y


@differentiable
def add_relu(a, b):
    """max(a + b, 0) for arrays of one shape: the end of a residual block, in one node."""
    if a.shape != b.shape:
        raise ValueError("add_relu needs two arrays of one shape")
    y = memory.add(a, b)
    np.maximum(y, 0, out=y)

    def pullback(g):  # the same for both
        passed = np.multiply(g, y > 0, out=memory.empty_like(g))
        return passed, passed

    return y, pullback


def _check_window(x, size, stride, padding=0):
    if x.ndim != 4 or not (size >= 1 and stride >= 1 and 0 <= padding < size):
        raise ValueError(
            f"pooling needs x (B, h, w, C), size and stride ≥ 1 and padding below the size, got size {size}, "
            f"stride {stride} and padding {padding}"
        )
    if min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(f"the window {size}×{size} does not fit into the image")


def _taps(x, size, stride):
    """The pixels at the same place of each window, for each of size² places: arrays (B, oh, ow, C), views of x."""
    oh, ow = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    places = [(i, j) for i in range(size) for j in range(size)]
    return [x[:, i : i + stride * oh : stride, j : j + stride * ow : stride] for i, j in places]


@differentiable
def max_pool(x, *, size, stride=None, padding=0):
    """The largest number of each window, channel by channel: (B, h, w, C) -> (B, oh, ow, C).

    `stride` is the window's size if not given; outside of the image lies -∞. Of equal numbers the first gets the
    gradient. ResNets for ImageNet have one behind the stem, 3×3 with stride 2. Raises ValueError for a window that does
    not fit.
    """
    stride, shape = size if stride is None else stride, x.shape
    _check_window(x, size, stride, padding)
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, around, constant_values=-np.inf)
    y = functools.reduce(np.maximum, _taps(padded, size, stride))

    def pullback(g):
        dx, left = np.zeros_like(padded), g
        for pixel, target in zip(_taps(padded, size, stride), _taps(dx, size, stride), strict=True):
            won = pixel == y
            target += left * won
            left = left * ~won
        return dx[:, padding : padding + shape[1], padding : padding + shape[2]]

    return y, pullback


@differentiable
def average_pool(x, *, size, stride=None):
    """The mean of each window, channel by channel: (B, h, w, C) -> (B, oh, ow, C). `stride` is the window's size if not
    given. (Over the whole image, as before a ResNet's head, it is `x.mean(axis=(1, 2))`.) Raises ValueError for a
    window that does not fit."""
    stride, shape = size if stride is None else stride, x.shape
    _check_window(x, size, stride)
    y = functools.reduce(np.add, _taps(x, size, stride)) * x.dtype.type(1 / size**2)

    def pullback(g):
        dx, share = np.zeros(shape, g.dtype), g * g.dtype.type(1 / size**2)
        for target in _taps(dx, size, stride):
            target += share
        return dx

    return y, pullback
