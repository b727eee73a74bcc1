"""Multi-head attention, from the packed q, k, v to the heads' outputs (Vaswani et al. 2017, equation 1).

    p = softmax(scale q kᵀ),   out = p v,   for each image and each head

Two matrix products and a softmax between them. Matrix products of NumPy arrays run in BLAS, which reads q, k
and v where they lie in the packed array and writes the heads side by side, so that nothing is copied; the
kernel fuses what NumPy does in six passes over the scores, in place and in blocks that stay in cache.
FlashAttention (Dao et al. 2022) fuses the products as well and never stores p, which pays for thousands of
tokens; a small ViT has at most a few hundred, and p is what we want to look at.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, require
from tinyvit.kernels.softmax import softmax, softmax_backward, softmax_backward_rows, softmax_rows


def _heads(x, parts, heads):
    """(B, N, parts D) -> (parts, B, H, N, K), a view: q, k and v of each image and head."""
    B, N, width = x.shape
    return x.reshape(B, N, parts, heads, width // (parts * heads)).transpose(2, 0, 3, 1, 4)


def _check(qkv, heads, scale):
    holds = qkv.ndim == 3 and qkv.shape[1] >= 1 and heads >= 1 and qkv.shape[2] % (3 * heads) == 0 and scale > 0
    must = "attention: qkv must be (B, N, 3 D) with N ≥ 1, D a multiple of heads ≥ 1, and scale > 0"
    require(holds, must, qkv, heads=heads, scale=scale)


@Kernel
def attention(qkv, heads, scale):
    """qkv (B, N, 3 D) -> (out (B, N, D), p (B, H, N, N)).

    qkv is q | k | v along the last axis, each of D = H K values in head-major order. p[b, h, i, j] is the
    weight with which token i looks at token j; `scale` > 0 is 1/√K in the paper.
    """
    _check(qkv, heads, scale)
    q, k, v = _heads(qkv, 3, heads)
    p = softmax.numpy(q @ k.mT * qkv.dtype.type(scale))
    out = (p @ v).transpose(0, 2, 1, 3)  # (B, N, H, K): a token's heads side by side
    B, N, H, K = out.shape
    return out.reshape(B, N, H * K), p


@attention.fast
def attention(qkv, heads, scale):
    _check(qkv, heads, scale)
    qkv = contiguous(qkv)
    B, N, width = qkv.shape
    q, k, v = _heads(qkv, 3, heads)
    p = np.matmul(q, k.mT, out=np.empty((B, heads, N, N), qkv.dtype))
    softmax_rows(p.reshape(B * heads * N, N), p.dtype.type(scale))
    out = np.empty((B, N, width // 3), qkv.dtype)
    np.matmul(p, v, out=_heads(out, 1, heads)[0])
    return out, p


def _check_backward(qkv, p, g, heads, scale):
    _check(qkv, heads, scale)
    B, N, width = qkv.shape
    holds = p.shape == (B, heads, N, N) and g.shape == (B, N, width // 3)
    require(holds, "attention_backward: qkv must be (B, N, 3 D), p (B, H, N, N), g (B, N, D)", qkv, p, g, heads=heads)


@Kernel
def attention_backward(qkv, p, g, heads, scale):
    """The gradient with respect to qkv, from p of the forward pass and g = dL/dout (B, N, D).

    out = p v:  dv = pᵀ g and dp = g vᵀ;   softmax:  ds = p (dp - Σ p dp);   s = scale q kᵀ:  dq = scale ds k
    and dk = scale dsᵀ q.
    """
    _check_backward(qkv, p, g, heads, scale)
    (q, k, v), (g,) = _heads(qkv, 3, heads), _heads(g, 1, heads)
    ds = softmax_backward.numpy(p, g @ v.mT) * qkv.dtype.type(scale)
    dqkv = np.stack([ds @ k, ds.mT @ q, p.mT @ g])  # (3, B, H, N, K)
    return dqkv.transpose(1, 3, 0, 2, 4).reshape(qkv.shape)


@attention_backward.fast
def attention_backward(qkv, p, g, heads, scale):
    _check_backward(qkv, p, g, heads, scale)
    qkv, p, g = contiguous(qkv, p, g)
    B, N, _ = qkv.shape
    dqkv = np.empty_like(qkv)
    (q, k, v), (g,), (dq, dk, dv) = _heads(qkv, 3, heads), _heads(g, 1, heads), _heads(dqkv, 3, heads)
    ds = np.matmul(g, v.mT, out=np.empty_like(p))
    rows = (B * heads * N, N)
    softmax_backward_rows(p.reshape(rows), ds.reshape(rows), p.dtype.type(scale))
    np.matmul(ds, k, out=dq)
    np.matmul(ds.mT, q, out=dk)
    np.matmul(p.mT, g, out=dv)
    return dqkv
