"""An encoder block as one kernel: what `nn.EncoderBlock` composes of nine ops, forward and backward.

    z' = z + MSA(LN(z)),   z'' = z' + MLP(LN(z'))

Nothing is computed here that the other kernels do not compute; this file calls their loops one after another. What it
saves is what lies between two calls: Python takes microseconds to record an op, as long as the op itself in a small
model, and only one thread at a time can be in Python. Compilers that capture graphs (torch.compile, CUDA graphs) are
after the same.

Chapter of the course: notebooks/06-the-whole-vit.ipynb.
"""

import numpy as np

from tinyvit.kernels.attention import attention_backward_loop, attention_loop, scratch
from tinyvit.kernels.backend import jit, require
from tinyvit.kernels.gelu import split_exact, split_tanh
from tinyvit.kernels.layernorm import layernorm_backward_loop, layernorm_loop
from tinyvit.kernels.linear import column_sums
from tinyvit.kernels.matmul import NARROWEST, multiply, turned, whole
from tinyvit.kernels.simd import LANES
from tinyvit.kernels.update import add_loop
from tinyvit.memory import empty


def encoder_block_fits(width, heads, hidden):
    """Whether the block's matrices fill registers as they are, which the kernel needs."""
    return not (width // heads % NARROWEST or hidden % NARROWEST)


def _check(z, weights, heads):
    D, M = z.shape[-1], weights[8].shape[-1]
    shapes = [(D,), (D,), (D, 3 * D), (3 * D,), (D, D), (D,), (D,), (D,), (D, M), (M,), (M, D), (D,)]
    holds = z.ndim == 3 and z.shape[1] >= 1 and heads >= 1 and D % heads == 0 and [w.shape for w in weights] == shapes
    holds = holds and encoder_block_fits(D, heads, M) and all(a.flags.carray for a in (z, *weights))
    must = "encoder_block: z must be (B, N, D) with N ≥ 1, the weights (D,), (D,), (D, 3D), … (M, D), (D,), in order, "
    must += f"contiguous, D / heads and M multiples of {NARROWEST}"
    require(holds, must, z, *weights, heads=heads)


def encoder_block(z, weights, heads, eps, tanh):
    """z (B, N, D) -> (z'' (B, N, D), what `encoder_block_backward` needs).

    weights: γ₁ (D,), β₁ (D,), W_qkv (D, 3 D), b_qkv, W_out (D, D), b_out, γ₂, β₂, W₁ (D, M), b₁, W₂ (M, D), b₂, all
    C-contiguous and of z's dtype. Raises ValueError or TypeError where they are not so. Source: paper eq. 2 and 3.
    """
    _check(z, weights, heads)
    B, N, D = z.shape
    M, T = weights[8].shape[1], z.dtype
    normed1, mixed, middle, normed2, out = (empty((B * N, D), T) for _ in range(5))
    qkv, slope, hidden = empty((B * N, 3 * D), T), empty((B * N, M), T), empty((B * N, M), T)
    p = empty((B * heads * N, -(-N // LANES) * LANES), T)
    statistics = np.empty((4, B * N), T)  # of both norms, mean and 1 / deviation
    kept = z.reshape(-1, D), normed1, statistics, qkv, p, mixed, middle, normed2, slope, hidden
    scale = T.type((D // heads) ** -0.5)
    _forward(weights, kept, out, N, heads, scale, T.type(eps), tanh, scratch(N, D // heads, T))
    return out.reshape(z.shape), kept


@jit
def _forward(weights, kept, out, N, H, scale, eps, tanh, room):
    gamma1, beta1, w_qkv, b_qkv, w_out, b_out, gamma2, beta2, w1, b1, w2, b2 = weights
    z, normed1, statistics, qkv, p, mixed, middle, normed2, slope, hidden = kept
    mean1, rstd1, mean2, rstd2 = statistics[0], statistics[1], statistics[2], statistics[3]
    layernorm_loop(z, gamma1, beta1, eps, normed1, mean1, rstd1)
    multiply(whole(normed1), whole(w_qkv), whole(b_qkv.reshape(1, b_qkv.size)), whole(qkv))
    attention_loop(qkv, N, H, scale, p, mixed, *room)
    _add_row(z, b_out, middle)
    multiply(whole(mixed), whole(w_out), whole(middle), whole(middle))  # the sums begin at z + b
    layernorm_loop(middle, gamma2, beta2, eps, normed2, mean2, rstd2)
    multiply(whole(normed2), whole(w1), whole(b1.reshape(1, b1.size)), whole(slope))
    if tanh:
        split_tanh(slope.reshape(slope.size), hidden.reshape(slope.size))
    else:
        split_exact(slope.reshape(slope.size), hidden.reshape(slope.size))
    _add_row(middle, b2, out)
    multiply(whole(hidden), whole(w2), whole(out), whole(out))


@jit
def _add_row(x, b, out):
    """out = x + b for each row of x."""
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        for j in range(row.size):
            to[j] = row[j] + b[j]


def encoder_block_backward(g, weights, kept, heads):
    """(dL/dz (B, N, D), dL/dweights, a tuple as long as `weights`) from g = dL/dz'' (B, N, D) and what forward kept.

    Uses up what was kept. Raises ValueError for a g that is not of z's size.
    """
    B, N, D = g.shape
    T = g.dtype
    require(g.size == kept[0].size, "encoder_block_backward: g must have z's shape", g, kept[0])
    gradients = tuple(np.zeros(w.shape, T) for w in weights)
    transposed = tuple(np.array(weights[k].T, order="C") for k in (2, 4, 8, 10))
    dz, dnormed, dmiddle, dmixed = (empty((B * N, D), T) for _ in range(4))
    nothing, nothing_wide = np.zeros((1, D), T), np.zeros((1, weights[8].shape[1]), T)
    room = dnormed, dmiddle, dmixed, empty((B * N, 3 * D), T), nothing, nothing_wide
    scale = T.type((D // heads) ** -0.5)
    of_attention = scratch(N, D // heads, T)
    _backward(weights, transposed, kept, g.reshape(-1, D), dz, gradients, N, heads, scale, room, of_attention)
    return dz.reshape(g.shape), gradients


@jit
def _backward(weights, transposed, kept, dy, dz, gradients, N, H, scale, room, of_attention):
    gamma1, _, w_qkv, _, w_out, _, gamma2, _, w1, _, w2, _ = weights
    z, normed1, statistics, qkv, p, mixed, middle, normed2, slope, hidden = kept
    dgamma1, dbeta1, dw_qkv, db_qkv, dw_out, db_out, dgamma2, dbeta2, dw1, db1, dw2, db2 = gradients
    t_qkv, t_out, t1, t2 = transposed
    dnormed, dmiddle, dmixed, dqkv, nothing, nothing_wide = room
    mean1, rstd1, mean2, rstd2 = statistics[0], statistics[1], statistics[2], statistics[3]
    # z'' = z' + GELU(LN(z') W₁ + b₁) W₂ + b₂
    column_sums(dy, db2)
    multiply(turned(hidden), whole(dy), whole(dw2), whole(dw2))
    dh = hidden  # in the place of what is not needed any more
    multiply(whole(dy), whole(t2), whole(nothing_wide), whole(dh))
    _multiply_into(slope.reshape(slope.size), dh.reshape(slope.size))
    column_sums(dh, db1)
    multiply(turned(normed2), whole(dh), whole(dw1), whole(dw1))
    multiply(whole(dh), whole(t1), whole(nothing), whole(dnormed))
    layernorm_backward_loop(middle, gamma2, mean2, rstd2, dnormed, dmiddle, dgamma2, dbeta2)
    add_loop(dmiddle.reshape(dmiddle.size), dy.reshape(dy.size))
    # z' = z + MSA(LN(z))
    column_sums(dmiddle, db_out)
    multiply(turned(mixed), whole(dmiddle), whole(dw_out), whole(dw_out))
    multiply(whole(dmiddle), whole(t_out), whole(nothing), whole(dmixed))
    attention_backward_loop(qkv, N, H, scale, p, dmixed, dqkv, *of_attention)
    column_sums(dqkv, db_qkv)
    multiply(turned(normed1), whole(dqkv), whole(dw_qkv), whole(dw_qkv))
    multiply(whole(dqkv), whole(t_qkv), whole(nothing), whole(dnormed))
    layernorm_backward_loop(z, gamma1, mean1, rstd1, dnormed, dz, dgamma1, dbeta1)
    add_loop(dz.reshape(dz.size), dmiddle.reshape(dmiddle.size))


@jit
def _multiply_into(x, y):
    """y *= x."""
    for i in range(x.size):
        y[i] *= x[i]
