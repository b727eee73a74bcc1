"""Multi-head attention, from the packed q, k, v to the heads' outputs (Vaswani et al. 2017, equation 1).

    p = softmax(scale q kᵀ),   out = p v,   for each image and each head

One image's head at a time, all of it in the first-level cache: the kernel reads q, k and v where they lie in the packed
array, and writes the heads side by side. It keeps the scores transposed, a column for each query: so a register holds
the scores of 8 or 16 queries, and the maximum and the sum over the keys are taken for all of them at once, with no
step from one lane to another.

FlashAttention (Dao et al. 2022) also works in blocks that stay near the core, and never stores p: it computes it again
in the backward pass. That pays for thousands of tokens; a small ViT has at most a few hundred, and p is what we want to
look at.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.elementary import exp
from tinyvit.kernels.matmul import NARROWEST, multiply_small, whole
from tinyvit.kernels.simd import LANES, larger, load, minus, over, plus, spread, store, times, window
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
    rows, room = qkv.reshape(B * N, width), scratch(N, width // 3 // heads, qkv.dtype)
    p, y = columns.reshape(B * heads * N, columns.shape[3]), out.reshape(B * N, width // 3)
    attention_loop(rows, N, heads, qkv.dtype.type(scale), p, y, *room)
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


def scratch(N, K, dtype):
    """What the loops need besides: room for a block of queries or gradients, transposed; for its scores; and zeros."""
    most = min(-(-N // LANES) * LANES, QUERIES)
    return np.zeros((K, most), dtype), np.zeros((N, most), dtype), np.zeros((1, max(K, most)), dtype)


@jit
def attention_loop(qkv, N, H, scale, p, out, q_columns, s, zero):
    """qkv (B N, 3 D), p (B H N, a multiple of LANES), out (B N, D); the last three from `scratch`."""
    D, columns = qkv.shape[1] // 3, p.shape[1]
    K, most = D // H, s.shape[1]
    scores = s.reshape(s.size)
    for b in range(0, qkv.shape[0], N):
        for h in range(H):
            k, v = window(qkv, b, N, D + h * K, K), window(qkv, b, N, 2 * D + h * K, K)
            for i in range(0, columns, most):
                width, queries = min(most, columns - i), min(most, N - i)
                transpose(window(qkv, b + i, queries, h * K, K), whole(q_columns))
                s_columns = window(s, 0, N, 0, width)
                multiply_small(k, window(q_columns, 0, K, 0, width), window(zero, 0, 1, 0, width), s_columns)  # k qᵀ
                _softmax_columns(s_columns, scores, scale)
                _copy(s_columns, window(p, b * H + h * N, N, i, width))
                p_rows = window(s.T, 0, queries, 0, N)
                multiply_small(p_rows, v, window(zero, 0, 1, 0, K), window(out, b + i, queries, h * K, K))  # p v


@jit
def transpose(x, columns):
    """columns = xᵀ."""
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
def _softmax_columns(s, scores, scale):
    """s (N, a multiple of LANES) becomes the softmax of scale s over its first axis; scale > 0. `scores` is the array
    of which s is a window, as one row: exp runs over all of it at a time, since that leaves no short ends of rows."""
    N, columns = s.shape
    factor, one = spread(scale, LANES), spread(s.dtype.type(1), LANES)
    for n in range(0, columns, LANES):
        top = load(s[0], n, LANES)
        for j in range(1, N):
            top = larger(load(s[j], n, LANES), top)
        for j in range(N):
            store(s[j], n, times(minus(load(s[j], n, LANES), top), factor))
    for i in range(scores.size):
        scores[i] = exp(scores[i])
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

    out = p v:  dv = p_columns g and dp = g vᵀ;   softmax:  ds = p (dp - Σ p dp);   s = scale q kᵀ:  dq = scale ds k
    and dk = scale ds_columns q.
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
    (B, N, width), columns, dqkv = qkv.shape, _columns_of(p), empty(qkv.shape, qkv.dtype)
    rows, room = qkv.reshape(B * N, width), scratch(N, width // 3 // heads, qkv.dtype)
    p, g = columns.reshape(B * heads * N, columns.shape[3]), g.reshape(B * N, width // 3)
    attention_backward_loop(rows, N, heads, qkv.dtype.type(scale), p, g, dqkv.reshape(rows.shape), *room)
    return _without_padding(dqkv, 3 * heads, 3 * D)


@jit
def attention_backward_loop(qkv, N, H, scale, p, g, dqkv, g_columns, ds, zero):
    """Shapes as in `attention_loop`, g (B N, D), dqkv (B N, 3 D)."""
    D, columns = qkv.shape[1] // 3, p.shape[1]
    K, most = D // H, ds.shape[1]
    nothing = window(zero, 0, 1, 0, K)
    for b in range(0, qkv.shape[0], N):
        for h in range(H):
            k, v = window(qkv, b, N, D + h * K, K), window(qkv, b, N, 2 * D + h * K, K)
            dk, dv = window(dqkv, b, N, D + h * K, K), window(dqkv, b, N, 2 * D + h * K, K)
            for i in range(0, columns, most):
                width, queries = min(most, columns - i), min(most, N - i)
                q, dq = window(qkv, b + i, queries, h * K, K), window(dqkv, b + i, queries, h * K, K)
                gi, p_columns = window(g, b + i, queries, h * K, K), window(p, b * H + h * N, N, i, width)
                transpose(gi, whole(g_columns))
                ds_columns = window(ds, 0, N, 0, width)
                multiply_small(
                    v, window(g_columns, 0, K, 0, width), window(zero, 0, 1, 0, width), ds_columns
                )  # dpᵀ = v gᵀ
                _softmax_backward_columns(p_columns, ds_columns, scale)
                multiply_small(window(ds.T, 0, queries, 0, N), k, nothing, dq)
                # Over the blocks of queries dk and dv add up: the sums begin at what they hold.
                multiply_small(window(ds, 0, N, 0, queries), q, nothing if i == 0 else dk, dk)
                multiply_small(window(p, b * H + h * N, N, i, queries), gi, nothing if i == 0 else dv, dv)


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
