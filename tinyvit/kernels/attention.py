"""Multi-head scaled dot-product attention, from the packed q, k, v to the heads' outputs (Vaswani et al. 2017, eq. 1).

    p = softmax(q kᵀ / √K),   out = p v,   for each image and each head
"""

import numpy as np

from tinyvit.kernels.backend import contiguous, jit, kernel
from tinyvit.kernels.elementary import exp, row_max


def _split(qkv, heads):
    """(B, N, 3 D) -> q, k, v, each (B, H, N, K): views, nothing is copied."""
    B, N, D3 = qkv.shape
    return qkv.reshape(B, N, 3, heads, D3 // (3 * heads)).transpose(2, 0, 3, 1, 4)


def _merge(x):
    """(B, H, N, K) -> (B, N, D): the heads side by side."""
    B, H, N, K = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, N, H * K)


@kernel
def attention(qkv, heads, scale):
    """qkv (B, N, 3 D) = q | k | v, each of D = H K values with the head-major order -> (out (B, N, D), p (B, H, N, N)).

    p[b, h, i, j] is the weight with which token i looks at token j; `scale` is 1/√K in the paper.
    """
    q, k, v = _split(qkv, heads)
    s = (q @ k.mT) * qkv.dtype.type(scale)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return _merge(p @ v), p


@attention.fast
def attention(qkv, heads, scale):
    qkv = contiguous(qkv)
    B, N, D3 = qkv.shape
    out = np.empty((B, N, D3 // 3), qkv.dtype)
    p = np.empty((B, heads, N, N), qkv.dtype)
    _attention(qkv.reshape(B, N, 3, heads, D3 // (3 * heads)), qkv.dtype.type(scale), out.reshape(B, N, heads, -1), p)
    return out, p


@jit
def _attention(qkv, scale, out, p):
    B, N, _, H, K = qkv.shape
    kt = np.empty((K, N), qkv.dtype)
    for b in range(B):
        for h in range(H):
            for j in range(N):
                k = qkv[b, j, 1, h]
                for c in range(K):
                    kt[c, j] = k[c]
            for i in range(N):
                q, row, o = qkv[b, i, 0, h], p[b, h, i], out[b, i, h]
                for j in range(N):
                    row[j] = 0
                for c in range(K):
                    qc, kc = q[c] * scale, kt[c]
                    for j in range(N):
                        row[j] += qc * kc[j]
                m = row_max(row)
                for j in range(N):
                    row[j] = exp(row[j] - m)
                total = row.dtype.type(0)
                for j in range(N):
                    total += row[j]
                inverse = row.dtype.type(1) / total
                for j in range(N):
                    row[j] *= inverse
                for c in range(K):
                    o[c] = 0
                for j in range(N):
                    pj, v = row[j], qkv[b, j, 2, h]
                    for c in range(K):
                        o[c] += pj * v[c]


@kernel
def attention_backward(qkv, p, g, heads, scale):
    """The gradient with respect to qkv, from p of the forward pass and g = dL/dout (B, N, D).

    out = p v gives dv = pᵀ g and dp = g vᵀ; softmax gives ds = p (dp - Σ p dp); s = scale q kᵀ gives
    dq = scale ds k and dk = scale dsᵀ q.
    """
    q, k, v = _split(qkv, heads)
    B, H, N, K = q.shape
    g = g.reshape(B, N, H, K).transpose(0, 2, 1, 3)
    dp = g @ v.mT
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * qkv.dtype.type(scale)
    return np.concatenate([_merge(ds @ k), _merge(ds.mT @ q), _merge(p.mT @ g)], axis=-1)


@attention_backward.fast
def attention_backward(qkv, p, g, heads, scale):
    qkv, p, g = contiguous(qkv, p, g)
    B, N, D3 = qkv.shape
    dqkv = np.zeros_like(qkv)
    packed = (B, N, 3, heads, D3 // (3 * heads))
    _attention_backward(
        qkv.reshape(packed), p, g.reshape(B, N, heads, -1), qkv.dtype.type(scale), dqkv.reshape(packed)
    )
    return dqkv


@jit
def _attention_backward(qkv, p, g, scale, dqkv):
    B, N, _, H, K = qkv.shape
    vt = np.empty((K, N), qkv.dtype)
    ds = np.empty(N, qkv.dtype)
    for b in range(B):
        for h in range(H):
            for j in range(N):
                v = qkv[b, j, 2, h]
                for c in range(K):
                    vt[c, j] = v[c]
            for i in range(N):
                gi, row, q, dq = g[b, i, h], p[b, h, i], qkv[b, i, 0, h], dqkv[b, i, 0, h]
                ds[:] = 0
                for c in range(K):
                    gc, vc = gi[c], vt[c]
                    for j in range(N):
                        ds[j] += gc * vc[j]
                dot = ds.dtype.type(0)
                for j in range(N):
                    dot += row[j] * ds[j]
                for j in range(N):
                    ds[j] = row[j] * (ds[j] - dot) * scale
                for j in range(N):
                    pj, dsj = row[j], ds[j]
                    k, dk, dv = qkv[b, j, 1, h], dqkv[b, j, 1, h], dqkv[b, j, 2, h]
                    for c in range(K):
                        dq[c] += dsj * k[c]
                    for c in range(K):
                        dk[c] += dsj * q[c]
                    for c in range(K):
                        dv[c] += pj * gi[c]
