"""Multi-head attention, from the packed q, k, v to the heads' outputs (Vaswani et al. 2017, equation 1).

    p = softmax(scale q kᵀ),   out = p v,   for each image and each head

One image's head at a time, all of it in the first-level cache: the kernel reads q, k and v where they lie in the packed
array, and writes the heads side by side. It keeps the scores transposed, a column for each query: so a register holds
the scores of 8 or 16 queries, and the maximum and the sum over the keys are taken for all of them at once, with no
step from one lane to another.

FlashAttention (Dao et al. 2022) also works in blocks that stay near the core, and never stores p: it computes it again
in the backward pass. That pays for thousands of tokens; a small ViT has at most a few hundred, and p is what we want to
look at.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.elementary import exp
from tinyvit.kernels.matmul import NARROWEST, multiply_small
from tinyvit.kernels.simd import LANES, borrow, larger, load, minus, over, plus, spread, store, times
from tinyvit.kernels.softmax import softmax, softmax_backward
from tinyvit.memory import empty

QUERIES = 128  # at a time: 65 keys × 128 queries are 33 kB


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
    qkv, D = _with_whole_heads(contiguous(qkv), 3, heads), qkv.shape[2] // 3
    B, N, width = qkv.shape
    columns = empty((B, heads, N, -(-N // LANES) * LANES), qkv.dtype)
    out = empty((B, N, width // 3), qkv.dtype)
    attention_loop(qkv, heads, qkv.dtype.type(scale), columns, out, *scratch(columns, width // 3 // heads))
    return _without_padding(out, heads, D), _rows_of(columns)


def _with_whole_heads(x, parts, heads):
    """x, or if the head width K is not a multiple of what the product takes, a copy with zeros behind each head."""
    B, N, width = x.shape
    K = width // (parts * heads)
    missing = -K % NARROWEST
    if not missing:
        return x
    return np.pad(x.reshape(B, N, parts * heads, K), ((0, 0), (0, 0), (0, 0), (0, missing))).reshape(B, N, -1)


def _without_padding(x, heads, width):
    """x (B, N, …) with as many entries of each head as make up `width` together."""
    B, N, _ = x.shape
    if x.shape[2] == width:
        return x
    return np.ascontiguousarray(x.reshape(B, N, heads, -1)[..., : width // heads].reshape(B, N, width))


def _rows_of(columns):
    """The kernel's p, (B, H, keys, queries and padding), as everyone else reads it: a view (B, H, N, N)."""
    return columns[..., : columns.shape[2]].swapaxes(2, 3)


def _columns_of(p):
    """`p` as the kernel keeps it: the array that it is a view of, or a copy if it comes from elsewhere."""
    B, H, N, _ = p.shape
    if isinstance(p.base, np.ndarray) and p.base.shape == (B, H, N, -(-N // LANES) * LANES):
        view = _rows_of(p.base)
        if view.strides == p.strides and view.ctypes.data == p.ctypes.data:
            return p.base
    columns = np.zeros((B, H, N, -(-N // LANES) * LANES), p.dtype)
    columns[..., :N] = p.swapaxes(2, 3)
    return columns


def scratch(columns, K):
    """What the kernels need besides: room for a block of queries, transposed; for its scores; and zeros."""
    N, most = columns.shape[2], min(columns.shape[3], QUERIES)
    dtype = columns.dtype
    return np.zeros((K, most), dtype), np.empty(N * most, dtype), np.zeros((1, max(K, most)), dtype)


@jit
def attention_loop(qkv, H, scale, p, out, q_columns, block, zero):
    """p (B, H, N, a multiple of LANES), out (B, N, D)."""
    B, N, width = qkv.shape
    D, K = width // 3, width // 3 // H
    columns = p.shape[3]
    qkv, p, out = borrow(qkv), borrow(p), borrow(out)
    q_columns, block, zero = borrow(q_columns), borrow(block), borrow(zero)
    for b in range(B):
        x, y = qkv[b], out[b]
        for h in range(H):
            q, k, v = (
                x[:, h * K : (h + 1) * K],
                x[:, D + h * K : D + (h + 1) * K],
                x[:, 2 * D + h * K : 2 * D + (h + 1) * K],
            )
            for i in range(0, columns, QUERIES):
                some = min(QUERIES, columns - i)
                whole = some == columns
                s = p[b, h] if whole else block[: N * some].reshape(N, some)
                transpose(q[i : i + some], q_columns)
                multiply_small(k, q_columns[:, :some], zero[:, :some], s[:, :some])  # sᵀ = k qᵀ
                _softmax_columns(s, scale)
                count = min(some, N - i)
                multiply_small(s[:, :count].T, v, zero[:, :K], y[i : i + count, h * K : (h + 1) * K])  # p v
                if not whole:
                    _copy(s, p[b, h][:, i : i + some])


@jit
def transpose(x, columns):
    for i in range(x.shape[0]):
        row = x[i]
        for j in range(row.size):
            columns[j, i] = row[j]


@jit
def _copy(x, out):
    for j in range(x.shape[0]):
        for n in range(0, x.shape[1], LANES):
            store(out[j], n, load(x[j], n, LANES))


@jit
def _softmax_columns(s, scale):
    """s (N, a multiple of LANES) becomes the softmax of scale s over its first axis; scale > 0."""
    N, columns = s.shape
    factor, one = spread(scale, LANES), spread(s.dtype.type(1), LANES)
    for n in range(0, columns, LANES):
        top = load(s[0], n, LANES)
        for j in range(1, N):
            top = larger(load(s[j], n, LANES), top)
        for j in range(N):
            store(s[j], n, times(minus(load(s[j], n, LANES), top), factor))
    flat = s.reshape(-1)
    for i in range(flat.size):
        flat[i] = exp(flat[i])
    for n in range(0, columns, LANES):
        total = load(s[0], n, LANES)
        for j in range(1, N):
            total = plus(load(s[j], n, LANES), total)
        share = over(one, total)
        for j in range(N):
            store(s[j], n, times(load(s[j], n, LANES), share))


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
    qkv, g = contiguous(qkv, g)
    D = g.shape[2]
    qkv, g = _with_whole_heads(qkv, 3, heads), _with_whole_heads(g, 1, heads)
    dqkv = empty(qkv.shape, qkv.dtype)
    p, K = _columns_of(p), g.shape[2] // heads
    attention_backward_loop(qkv, p, g, heads, qkv.dtype.type(scale), dqkv, *scratch(p, K))
    return _without_padding(dqkv, 3 * heads, 3 * D)


@jit
def attention_backward_loop(qkv, p, g, H, scale, dqkv, g_columns, block, zero):
    B, N, width = qkv.shape
    D, K = width // 3, width // 3 // H
    columns = p.shape[3]
    qkv, p, g, dqkv = borrow(qkv), borrow(p), borrow(g), borrow(dqkv)
    g_columns, block, zero = borrow(g_columns), borrow(block), borrow(zero)
    for b in range(B):
        x, dx = qkv[b], dqkv[b]
        for h in range(H):
            q, k, v = (
                x[:, h * K : (h + 1) * K],
                x[:, D + h * K : D + (h + 1) * K],
                x[:, 2 * D + h * K : 2 * D + (h + 1) * K],
            )
            dq, dk = dx[:, h * K : (h + 1) * K], dx[:, D + h * K : D + (h + 1) * K]
            dv, gh = dx[:, 2 * D + h * K : 2 * D + (h + 1) * K], g[b][:, h * K : (h + 1) * K]
            for i in range(0, columns, QUERIES):
                some = min(QUERIES, columns - i)
                count = min(some, N - i)
                ds = block[: N * some].reshape(N, some)
                transpose(gh[i : i + some], g_columns)
                multiply_small(v, g_columns[:, :some], zero[:, :some], ds[:, :some])  # dpᵀ = v gᵀ
                pi = p[b, h][:, i : i + some]
                _softmax_backward_columns(pi, ds, scale)
                multiply_small(ds[:, :count].T, k, zero[:, :K], dq[i : i + count])
                # Over the blocks of queries dk and dv add up: the sums begin at what they hold.
                dk_before, dv_before = (zero[:, :K], zero[:, :K]) if i == 0 else (dk, dv)
                multiply_small(ds[:, :count], q[i : i + count], dk_before, dk)
                multiply_small(pi[:, :count], gh[i : i + count], dv_before, dv)


@jit
def _softmax_backward_columns(p, ds, scale):
    """ds, holding dp, becomes scale p (dp - Σ p dp) with the sum over the first axis."""
    N, columns = ds.shape
    factor = spread(scale, LANES)
    for n in range(0, columns, LANES):
        total = times(load(p[0], n, LANES), load(ds[0], n, LANES))
        for j in range(1, N):
            total = plus(times(load(p[j], n, LANES), load(ds[j], n, LANES)), total)
        for j in range(N):
            slope = times(load(p[j], n, LANES), factor)
            store(ds[j], n, times(slope, minus(load(ds[j], n, LANES), total)))
