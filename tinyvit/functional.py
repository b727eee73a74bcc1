"""The ops a Vision Transformer is made of: linear, layer norm, GELU, attention, softmax cross-entropy.

Each could be composed from `ops.py`, and `tests/test_functional.py` does so to check it. Fused into one node each,
they remember less and run on one kernel. The mathematics of each pullback is in the kernel's file; here one sees
what is remembered for it.

Chapter of the course: notebooks/05-attention.ipynb.
"""

import numpy as np

from tinyvit import kernels, ops
from tinyvit.convolution import (  # noqa: F401, so that `functional` has all ops of a network under one name
    add_relu,
    average_pool,
    batch_norm,
    conv2d,
    group_norm,
    max_pool,
    standardise,
)
from tinyvit.tensor import Tensor, differentiable


@differentiable
def linear(x, weight, bias):
    """x W + b, for x (…, D_in), W (D_in, D_out), b (D_out,) or None -> (…, D_out).

    All leading axes become rows of one matrix, so that it is one large product instead of many small ones.
    """
    rows = _rows(x, weight)
    shape = x.shape

    def pullback(g, wanted):
        dx, dw, db = kernels.linear_backward(rows, weight, g.reshape(len(rows), weight.shape[1]), wanted)
        return dx if dx is None else dx.reshape(shape), dw, db

    return kernels.linear(rows, weight, bias).reshape(*shape[:-1], weight.shape[1]), pullback


@differentiable
def linear_gelu(x, weight, bias, *, tanh=False):
    """GELU(x W + b), shapes as for `linear`, `tanh` as for `gelu`: the first half of an MLP in one node."""
    rows = _rows(x, weight)
    shape = x.shape
    y, slope = kernels.linear_gelu(rows, weight, bias, tanh)

    def pullback(g, wanted):
        dh = np.multiply(g.reshape(slope.shape), slope, out=slope)  # in place: this is the slope's only use
        dx, dw, db = kernels.linear_backward(rows, weight, dh, wanted)
        return dx if dx is None else dx.reshape(shape), dw, db

    return y.reshape(*shape[:-1], weight.shape[1]), pullback


def _rows(x, weight):
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError("x's last axis must equal the first of a weight (D_in, D_out)")
    return x.reshape(-1, weight.shape[0])


@differentiable
def layer_norm(x, gamma, beta, *, eps=1e-6):
    """γ (x - mean) / √(variance + ε) + β over the last axis; x (…, D), gamma and beta (D,).

    ε = 1e-6 as in the paper's code (Flax) and timm; PyTorch's own default is 1e-5. Source: Ba et al. 2016.
    """
    if not x.shape[-1:] == gamma.shape == beta.shape:
        raise ValueError("x's last axis, gamma and beta must have one size")
    shape, rows = x.shape, x.reshape(-1, x.shape[-1])
    y, mean, rstd = kernels.layernorm(rows, gamma, beta, eps)

    def pullback(g):
        dx, dgamma, dbeta = kernels.layernorm_backward(rows, gamma, mean, rstd, g.reshape(rows.shape))
        return dx.reshape(shape), dgamma, dbeta

    return y.reshape(shape), pullback


@differentiable
def gelu(x, *, tanh=False):
    """x Φ(x), Φ the normal distribution function; `tanh=True` for the approximation in the paper's code.

    Source: Hendrycks and Gimpel 2016. The paper does not say which one it means; its code has the tanh form.
    """
    return kernels.gelu(x, tanh), lambda g: kernels.gelu_backward(x, g, tanh)


@differentiable
def softmax(x):
    """exp(x) / Σ exp(x) over the last axis, without overflow."""
    p = kernels.softmax(x)
    return p, lambda g: kernels.softmax_backward(p, g)


@differentiable
def attention(qkv, *, heads, maps=None):
    """Multi-head softmax attention, softmax(q kᵀ / √K) v, all heads side by side (paper eq. 6, 7 and the bracket of 8).

    Args:
        qkv: (B, N, 3 D), the queries, keys and values of all heads side by side: q₁…q_H k₁…k_H v₁…v_H.
        heads: H, which must divide D; the head width is K = D / H.
        maps: a list that receives the attention probabilities, an array (B, H, N, N): row i says what token i reads.

    Returns (B, N, D), the heads' results side by side.
    """
    if heads < 1 or qkv.ndim != 3 or qkv.shape[-1] % (3 * heads):
        raise ValueError(f"qkv must be (B, N, 3 D) with D a multiple of heads = {heads}")
    scale = float((qkv.shape[-1] // 3 // heads) ** -0.5)
    out, p = kernels.attention(qkv, heads, scale)
    if maps is not None:
        maps.append(p.copy())
    return out, lambda g: kernels.attention_backward(qkv, p, g, heads, scale)


@differentiable
def biased_attention(qkv, bias, *, heads, maps=None):
    """softmax(q kᵀ / √K + bias) v: attention that is told where to look, or where not to.

    Args:
        qkv, heads, maps: as for `attention`.
        bias: broadcastable to (B, H, N, N), added to the scores. Relative positions are one, and a causal mask is one:
            -∞ where token i must not read token j. A row of nothing but -∞ is NaN: a softmax over nothing.

    Returns (B, N, D). Here N × N scores stand in memory for all images at once; production kernels (FlashAttention)
    mask tile by tile and never hold them.
    """
    if heads < 1 or qkv.ndim != 3 or qkv.shape[-1] % (3 * heads):
        raise ValueError(f"qkv must be (B, N, 3 D) with D a multiple of heads = {heads}")
    B, N, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    sizes = zip(bias.shape[::-1], (N, N, heads, B), strict=False)
    if bias.ndim > 4 or not all(size in (1, full) for size, full in sizes):
        raise ValueError(f"bias must be broadcastable to (B, H, N, N) = {(B, heads, N, N)}")
    q, k, v = qkv.reshape(B, N, 3, heads, D // heads).transpose(2, 0, 3, 1, 4)  # (B, H, N, K) each, views
    scale = qkv.dtype.type((D // heads) ** -0.5)
    p = kernels.softmax(q @ k.mT * scale + bias)
    if maps is not None:
        maps.append(p.copy())

    def pullback(g, wanted):
        g = g.reshape(B, N, heads, D // heads).transpose(0, 2, 1, 3)
        ds = kernels.softmax_backward(p, g @ v.mT)  # of the scores, and so of the bias
        if not wanted[0]:
            return None, ds
        dqkv = np.empty((B, N, 3, heads, D // heads), qkv.dtype)
        dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
        dq[...], dk[...], dv[...] = ds @ k * scale, ds.mT @ q * scale, p.mT @ g
        return dqkv.reshape(qkv.shape), ds if wanted[1] else None

    return (p @ v).transpose(0, 2, 1, 3).reshape(B, N, D), pullback


@differentiable
def encoder_block(z, *weights, heads, eps=1e-6, tanh=False):
    """z + MSA(LN(z)), then the same with the MLP, z (B, N, D) -> (B, N, D): paper eq. 2 and 3 in one node.

    What `nn.EncoderBlock` composes of the ops above; it says when it takes this one instead. `weights` are its twelve
    parameters in order of definition, contiguous in memory or copied. Raises ValueError for shapes that do not fit, and
    where the head width or the MLP's is no multiple of 4.
    """
    z, *weights = kernels.contiguous(z, *weights)
    weights = tuple(weights)
    out, kept = kernels.encoder_block(z, weights, heads, eps, tanh)

    def pullback(g):
        dz, gradients = kernels.encoder_block_backward(kernels.contiguous(g), weights, kept, heads)
        return dz, *gradients

    return out, pullback


@differentiable
def _embedding(table, *, index):
    rows = len(table)

    def pullback(g):
        return kernels.scatter_add(index.reshape(-1), g.reshape(index.size, g.shape[-1]), rows)

    return table[index], pullback


def embedding(table, index):
    """Rows of a table (V, D), picked by integers (…) -> (…, D). A row picked often gets the sum of its gradients.

    The product of a one-hot matrix with the table, without the matrix. Raises TypeError for an index that is not
    integer, ValueError for one out of [0, V).
    """
    index = np.array(index)  # a copy, which nobody else changes
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding: the index must be integers, got {index.dtype}")
    if len(table.shape) != 2 or (index.size and not 0 <= index.min() <= index.max() < table.shape[0]):
        raise ValueError(
            f"embedding needs a table (V, D) and an index in [0, V), got {table.shape} and "
            + (f"{index.min()} to {index.max()}" if index.size else "no index")
        )
    return _embedding(table, index=index.astype(np.int64))


@differentiable
def _cross_entropy(logits, *, targets, smoothing):
    forward, backward = kernels.cross_entropy, kernels.cross_entropy_backward
    if targets.ndim == 2:
        forward, backward = kernels.soft_cross_entropy, kernels.soft_cross_entropy_backward
        targets = targets.astype(logits.dtype)
    losses, p = forward(logits, targets, smoothing)
    share = 1 / len(logits)

    def pullback(g):
        each = np.full(len(losses), g * share, logits.dtype)
        return backward(p, targets, each, smoothing)

    return losses.mean(dtype=logits.dtype), pullback


def cross_entropy(logits, labels, smoothing=0.0):
    """Mean over the batch of -Σ_c t_c log p_c with p = softmax(logits).

    Args:
        logits: (B, C).
        labels: (B,) integers in [0, C), or (B, C) floats: a distribution over the classes for each image.
        smoothing: s moves that much of the target to all classes alike: t = (1 - s) target + s / C, where a label's
            target is one-hot (Szegedy et al. 2016).

    Returns a scalar Tensor. Raises ValueError for labels or smoothing out of range and for rows that are no
    distribution, TypeError for labels (B,) that are not integers and distributions (B, C) that are.
    """
    labels = np.array(labels)  # a copy, which nobody else changes
    if len(logits.shape) != 2 or labels.shape not in (logits.shape[:1], logits.shape) or labels.size == 0:
        raise ValueError(
            "cross_entropy needs logits (B, C) and labels (B,) or (B, C) with B ≥ 1, "
            f"got {logits.shape} and {labels.shape}"
        )
    if labels.dtype.kind not in ("iu" if labels.ndim == 1 else "f"):
        must = "labels must be integers" if labels.ndim == 1 else "targets (B, C) must be floats"
        raise TypeError(f"cross_entropy: {must}, got {labels.dtype}")
    if labels.ndim == 1:
        labels = labels.astype(np.int64)
    elif not (labels.min() >= 0 and np.abs(labels.sum(axis=1) - 1).max() < 1e-3):
        raise ValueError(
            "cross_entropy: each row of targets (B, C) must be a distribution, no number below 0 and a sum of 1; got a "
            f"least number {labels.min():.3g}, and sums from {labels.sum(1).min():.6g} to {labels.sum(1).max():.6g}"
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"cross_entropy: smoothing must be in [0, 1), got {smoothing}")
    return _cross_entropy(logits, targets=labels, smoothing=float(smoothing))


def dropout(x, p, rng):
    """Zero each entry with probability p and scale the rest by 1 / (1 - p), so that the mean stays
    (Srivastava 2014)."""
    mask = (rng.random(x.shape, dtype=np.float32) >= p).astype(x.dtype) * x.dtype.type(1 / (1 - p))
    return ops.multiply(x, Tensor.wrap(mask))


def drop_path(z, after, p, rng):
    """z + (after - z) m / (1 - p), where m (B, 1, …) is 0 with probability p, else 1: for an image all or nothing.

    z and after, both (B, …), are the tokens before and after a residual block (Huang et al. 2016).
    """
    kept = rng.random(len(z), dtype=np.float32) >= p
    scale = (kept / (1 - p)).astype(z.dtype).reshape(-1, *[1] * (len(z.shape) - 1))
    return z + (after - z) * Tensor.wrap(scale)
