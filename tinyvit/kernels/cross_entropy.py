"""Softmax cross-entropy with label smoothing (Szegedy et al. 2016, section 7), fused.

    loss = -Σ_c t_c log p_c,   p = softmax(z),   t = (1 - s) one-hot + s / C

With log p_c = z_c - log Σ e^z this is log Σ e^z - (1 - s) z_label - s mean(z): no logarithm of a probability
that may have rounded to 0, and with the maximum taken out nothing overflows.

A target can also be a distribution of its own, where an image is a mixture of two (`data/mixing.py`). Then t is
(1 - s) target + s / C, of which the label's is a special case; labels keep a kernel of their own, because an index is
less to read than a row.

Chapter of the course: notebooks/06-the-whole-vit.ipynb.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.elementary import exp
from tinyvit.kernels.simd import highest


def _check_labels(labels, C):
    """The loops use labels as indices, so that one outside of the row would reach into other memory."""
    if labels.dtype != np.int64:
        raise TypeError(f"cross_entropy: labels must be int64, got {labels.dtype}")
    if labels.size and not (0 <= labels.min() and labels.max() < C):
        raise ValueError(
            f"cross_entropy: labels must be in [0, {C}), the classes; got {labels.min()} to {labels.max()}"
        )


def _check(logits, labels):
    holds = logits.ndim == 2 and logits.shape[1] >= 1 and labels.shape == logits.shape[:1]
    require(holds, "cross_entropy: logits must be (B, C) with C ≥ 1, labels (B,)", logits, labels=labels.shape)
    _check_labels(labels, logits.shape[1])


@Kernel
def cross_entropy(logits, labels, smoothing):
    """logits (B, C), labels (B,) int64, 0 ≤ smoothing < 1 -> (loss (B,) in nats, p (B, C) = softmax(logits)).

    Raises ValueError when a label is not one of the C classes, TypeError for other labels than int64.
    """
    _check(logits, labels)
    z = logits - logits.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1)
    loss = np.log(total) - z[np.arange(len(z)), labels]
    if smoothing:
        s = z.dtype.type(smoothing)
        loss += s * (z[np.arange(len(z)), labels] - z.mean(axis=1))
    return loss, e / total[:, None]


@cross_entropy.fast
def cross_entropy(logits, labels, smoothing):
    _check(logits, labels)
    logits, labels = contiguous(logits, labels)
    loss, p = np.empty(len(logits), logits.dtype), np.empty_like(logits)
    _cross_entropy(logits, labels, logits.dtype.type(smoothing), loss, p)
    return loss, p


@jit
def _cross_entropy(logits, labels, smoothing, loss, p):
    zero, one, C = logits.dtype.type(0), logits.dtype.type(1), logits.dtype.type(logits.shape[1])
    for i in range(logits.shape[0]):
        row, out = logits[i], p[i]
        m = highest(row)
        for j in range(row.size):
            out[j] = exp(row[j] - m)
        total = zero
        for j in range(row.size):
            total += out[j]
        at_label = row[labels[i]] - m
        loss[i] = np.log(total) - at_label
        if smoothing != zero:
            mean = zero
            for j in range(row.size):
                mean += row[j] - m
            loss[i] += smoothing * (at_label - mean / C)
        scale = one / total
        for j in range(row.size):
            out[j] *= scale


def _check_backward(p, labels, g):
    holds = p.ndim == 2 and labels.shape == g.shape == p.shape[:1]
    require(holds, "cross_entropy_backward: p must be (B, C), labels and g (B,)", p, g, labels=labels.shape)
    _check_labels(labels, p.shape[1])


@Kernel
def cross_entropy_backward(p, labels, g, smoothing):
    """dL/dlogits (B, C) from g = dL/dloss (B,): g (p - t), the prediction minus the target."""
    _check_backward(p, labels, g)
    s, C = p.dtype.type(smoothing), p.shape[1]
    dz = p - s / p.dtype.type(C)
    dz[np.arange(len(p)), labels] -= 1 - s
    return dz * g[:, None]


@cross_entropy_backward.fast
def cross_entropy_backward(p, labels, g, smoothing):
    _check_backward(p, labels, g)
    p, labels, g = contiguous(p, labels, g)
    dz = np.empty_like(p)
    _cross_entropy_backward(p, labels, g, p.dtype.type(smoothing), dz)
    return dz


@jit
def _cross_entropy_backward(p, labels, g, smoothing, dz):
    one = p.dtype.type(1)
    off = smoothing / p.dtype.type(p.shape[1])
    for i in range(p.shape[0]):
        row, out, gi = p[i], dz[i], g[i]
        for j in range(row.size):
            out[j] = gi * (row[j] - off)
        out[labels[i]] -= gi * (one - smoothing)


def _check_targets(logits, targets, what):
    holds = logits.ndim == 2 and logits.shape[1] >= 1 and targets.shape == logits.shape
    require(holds, f"soft_cross_entropy: {what} must be (B, C) with C ≥ 1, and so must targets", logits, targets)


@Kernel
def soft_cross_entropy(logits, targets, smoothing):
    """logits, targets (B, C), each row of targets with sum 1 -> (loss (B,) in nats, p (B, C) = softmax(logits))."""
    _check_targets(logits, targets, "logits")
    z = logits - logits.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1)
    s = z.dtype.type(smoothing)
    loss = np.log(total) - (1 - s) * (targets * z).sum(axis=1) - s * z.mean(axis=1)
    return loss, e / total[:, None]


@soft_cross_entropy.fast
def soft_cross_entropy(logits, targets, smoothing):
    _check_targets(logits, targets, "logits")
    logits, targets = contiguous(logits, targets)
    loss, p = np.empty(len(logits), logits.dtype), np.empty_like(logits)
    _soft_cross_entropy(logits, targets, logits.dtype.type(smoothing), loss, p)
    return loss, p


@jit
def _soft_cross_entropy(logits, targets, smoothing, loss, p):
    zero, one, C = logits.dtype.type(0), logits.dtype.type(1), logits.dtype.type(logits.shape[1])
    for i in range(logits.shape[0]):
        row, target, out = logits[i], targets[i], p[i]
        m = highest(row)
        for j in range(row.size):
            out[j] = exp(row[j] - m)
        total, at_target, mean = zero, zero, zero
        for j in range(row.size):
            total += out[j]
            at_target += target[j] * (row[j] - m)
            mean += row[j] - m
        loss[i] = np.log(total) - (one - smoothing) * at_target - smoothing * (mean / C)
        scale = one / total
        for j in range(row.size):
            out[j] *= scale


@Kernel
def soft_cross_entropy_backward(p, targets, g, smoothing):
    """dL/dlogits (B, C) from g = dL/dloss (B,): g (p - t), as for labels."""
    _check_targets(p, targets, "p")
    require(g.shape == p.shape[:1], "soft_cross_entropy_backward: p must be (B, C), g (B,)", p, g)
    s = p.dtype.type(smoothing)
    return (p - (1 - s) * targets - s / p.dtype.type(p.shape[1])) * g[:, None]


@soft_cross_entropy_backward.fast
def soft_cross_entropy_backward(p, targets, g, smoothing):
    _check_targets(p, targets, "p")
    require(g.shape == p.shape[:1], "soft_cross_entropy_backward: p must be (B, C), g (B,)", p, g)
    p, targets, g = contiguous(p, targets, g)
    dz = np.empty_like(p)
    _soft_cross_entropy_backward(p, targets, g, p.dtype.type(smoothing), dz)
    return dz


@jit
def _soft_cross_entropy_backward(p, targets, g, smoothing, dz):
    off, share = smoothing / p.dtype.type(p.shape[1]), p.dtype.type(1) - smoothing
    for i in range(p.shape[0]):
        row, target, out, gi = p[i], targets[i], dz[i], g[i]
        for j in range(row.size):
            out[j] = gi * (row[j] - share * target[j] - off)
