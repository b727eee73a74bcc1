"""An encoder block as one kernel: what `nn.EncoderBlock` composes of nine ops, forward and backward.

    z' = z + MSA(LN(z)),   z'' = z' + MLP(LN(z'))

Nothing is computed here that the other kernels do not compute; this file calls their loops one after another. What it
saves is what lies between two calls. Python takes microseconds to record an op, as long as the op itself in a small
model, and only one thread at a time can be in Python. And images pass through the whole block a few at a time, so that
what one loop wrote the next one finds in cache. Compilers that fuse graphs (XLA, torch.compile) want just these two.
"""

import numpy as np

from tinyvit.kernels.attention import attention_backward_loop, attention_loop, scratch, transpose
from tinyvit.kernels.backend import jit
from tinyvit.kernels.gelu import split_exact, split_tanh
from tinyvit.kernels.layernorm import layernorm_backward_loop, layernorm_loop
from tinyvit.kernels.linear import column_sums
from tinyvit.kernels.matmul import NARROWEST, multiply
from tinyvit.kernels.simd import LANES
from tinyvit.memory import empty

ROWS = 256  # tokens at a time, at least


def encoder_block_fits(width, heads, hidden):
    """Whether the block's matrices fill registers as they are, which the kernel needs."""
    return not (width // heads % NARROWEST or hidden % NARROWEST)


def encoder_block(z, weights, heads, eps, tanh):
    """z (B, N, D) -> (z'' (B, N, D), what `encoder_block_backward` needs).

    weights: γ₁ (D,), β₁ (D,), W_qkv (D, 3 D), b_qkv, W_out (D, D), b_out, γ₂, β₂, W₁ (D, M), b₁, W₂ (M, D), b₂, all
    C-contiguous and of z's dtype.
    """
    B, N, D = z.shape
    M, T = weights[8].shape[1], z.dtype
    normed, mixed, middle, normed2, out = (empty((B, N, D), T) for _ in range(5))
    qkv, slope, hidden = empty((B, N, 3 * D), T), empty((B, N, M), T), empty((B, N, M), T)
    p = empty((B, heads, N, -(-N // LANES) * LANES), T)
    statistics = np.empty((4, B * N), T)  # of both norms, mean and 1 / deviation
    kept = z, normed, statistics, qkv, p, mixed, middle, normed2, slope, hidden
    scale = T.type((D // heads) ** -0.5)
    _forward(weights, kept, out, heads, scale, T.type(eps), tanh, scratch(p, D // heads))
    return out, kept


@jit
def _forward(weights, kept, out, H, scale, eps, tanh, room):
    gamma1, beta1, w_qkv, b_qkv, w_out, b_out, gamma2, beta2, w1, b1, w2, b2 = weights
    z, normed, statistics, qkv, p, mixed, middle, normed2, slope, hidden = kept
    columns, block, zero = room
    B, N, D = z.shape
    images = max(1, ROWS // N)
    for i in range(0, B, images):
        j = min(i + images, B)
        first, last = i * N, j * N
        x, x2, y = _rows(z, i, j), _rows(middle, i, j), _rows(out, i, j)
        layernorm_loop(x, gamma1, beta1, eps, _rows(normed, i, j), statistics[0, first:last], statistics[1, first:last])
        multiply(_rows(normed, i, j), w_qkv, b_qkv.reshape(1, -1), _rows(qkv, i, j))
        attention_loop(qkv[i:j], H, scale, p[i:j], mixed[i:j], columns, block, zero)
        _add_row(x, b_out, x2)
        multiply(_rows(mixed, i, j), w_out, x2, x2)  # the sums begin at z + b
        mean, rstd = statistics[2, first:last], statistics[3, first:last]
        layernorm_loop(x2, gamma2, beta2, eps, _rows(normed2, i, j), mean, rstd)
        multiply(_rows(normed2, i, j), w1, b1.reshape(1, -1), _rows(slope, i, j))
        if tanh:
            split_tanh(slope[i:j].reshape(-1), hidden[i:j].reshape(-1))
        else:
            split_exact(slope[i:j].reshape(-1), hidden[i:j].reshape(-1))
        _add_row(x2, b2, y)
        multiply(_rows(hidden, i, j), w2, y, y)


@jit
def _rows(x, i, j):
    """The tokens of images i to j as the rows of a matrix: (B, N, D) -> ((j - i) N, D)."""
    return x[i:j].reshape((j - i) * x.shape[1], x.shape[2])


@jit
def _add_row(x, b, out):
    """out = x + b for each row of x."""
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        for j in range(row.size):
            to[j] = row[j] + b[j]


@jit
def _add(x, out):
    """out += x."""
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        for j in range(row.size):
            to[j] += row[j]


def encoder_block_backward(g, weights, kept, heads):
    """(dL/dz (B, N, D), dL/dweights, a tuple as long as `weights`) from g = dL/dz'' (B, N, D) and what forward kept.

    Uses up what was kept.
    """
    z = kept[0]
    B, N, D = z.shape
    T = z.dtype
    dz = empty(z.shape, T)
    gradients = tuple(np.zeros(w.shape, T) for w in weights)
    transposed = tuple(empty(weights[k].shape[::-1], T) for k in (2, 4, 8, 10))
    images = min(B, max(1, ROWS // N))
    room = tuple(empty((images, N, D), T) for _ in range(3)) + (empty((images, N, 3 * D), T),)
    scale = T.type((D // heads) ** -0.5)
    _backward(weights, transposed, kept, g, dz, gradients, heads, scale, room, scratch(kept[4], D // heads))
    return dz, gradients


@jit
def _backward(weights, transposed, kept, g, dz, gradients, H, scale, room, attention_room):
    gamma1, _, w_qkv, _, w_out, _, gamma2, _, w1, _, w2, _ = weights
    z, normed, statistics, qkv, p, mixed, middle, normed2, slope, hidden = kept
    dgamma1, dbeta1, dw_qkv, db_qkv, dw_out, db_out, dgamma2, dbeta2, dw1, db1, dw2, db2 = gradients
    t_qkv, t_out, t1, t2 = transposed
    transpose(w_qkv, t_qkv)
    transpose(w_out, t_out)
    transpose(w1, t1)
    transpose(w2, t2)
    columns, block, zero = attention_room
    B, N, D = z.shape
    nothing, nothing_wide = np.zeros((1, D), z.dtype), np.zeros((1, slope.shape[2]), z.dtype)
    images = room[0].shape[0]
    for i in range(0, B, images):
        j = min(i + images, B)
        first, last = i * N, j * N
        dnormed, dmiddle, dmixed, dqkv = (
            _rows(room[0], 0, j - i), _rows(room[1], 0, j - i), _rows(room[2], 0, j - i), _rows(room[3], 0, j - i)
        )  # fmt: skip
        dy, dx, h = _rows(g, i, j), _rows(dz, i, j), _rows(hidden, i, j)
        # z'' = z' + GELU(LN(z') W₁ + b₁) W₂ + b₂
        column_sums(dy, db2)
        multiply(h.T, dy, dw2, dw2)
        multiply(dy, t2, nothing_wide, h)  # dL/dGELU, in the place of what is not needed any more
        _multiply_into(slope[i:j].reshape(-1), hidden[i:j].reshape(-1))
        column_sums(h, db1)
        multiply(_rows(normed2, i, j).T, h, dw1, dw1)
        multiply(h, t1, nothing, dnormed)
        mean, rstd = statistics[2, first:last], statistics[3, first:last]
        layernorm_backward_loop(_rows(middle, i, j), gamma2, mean, rstd, dnormed, dmiddle, dgamma2, dbeta2)
        _add(dy, dmiddle)
        # z' = z + MSA(LN(z))
        column_sums(dmiddle, db_out)
        multiply(_rows(mixed, i, j).T, dmiddle, dw_out, dw_out)
        multiply(dmiddle, t_out, nothing, dmixed)
        some = j - i
        attention_backward_loop(qkv[i:j], p[i:j], room[2][:some], H, scale, room[3][:some], columns, block, zero)
        column_sums(dqkv, db_qkv)
        multiply(_rows(normed, i, j).T, dqkv, dw_qkv, dw_qkv)
        multiply(dqkv, t_qkv, nothing, dnormed)
        mean, rstd = statistics[0, first:last], statistics[1, first:last]
        layernorm_backward_loop(_rows(z, i, j), gamma1, mean, rstd, dnormed, dx, dgamma1, dbeta1)
        _add(dmiddle, dx)


@jit
def _multiply_into(x, y):
    """y *= x."""
    for i in range(x.size):
        y[i] *= x[i]
