"""Where a patch came from: attention does not know the order of its tokens, so somebody must say it.

Five ways, as in the paper's table 8 (appendix D.4) and one more: none at all; a learned vector for each place ("1d",
the paper's own choice: it must find out by itself that places lie on a grid); a learned vector for each row and one for
each column ("2d"); sines and cosines of both coordinates ("sincos", nothing learned; Chen, Xie and He 2021,
arXiv 2104.02057, MoCo v3); and relative: no vector for a place, but one for each *shift* between two places, asked by
the queries in every layer.

Chapter of the course: notebooks/04-patches.ipynb.
"""

import numpy as np

from tinyvit import functional as F
from tinyvit import ops
from tinyvit.nn.layers import MultiHeadSelfAttention
from tinyvit.nn.module import Module, Parameter

KINDS = ("1d", "none", "2d", "sincos", "relative")


def absolute_positions(kind, grid, first, width, rng):
    """The module whose call gives what is added to the tokens, (1, first + rows · cols, D); None for kinds that add
    nothing. `first` tokens (a class token) stand before the patches."""
    if kind == "1d":
        return LearnedPositions(first + grid[0] * grid[1], width, rng)
    if kind == "2d":
        return LearnedPositions2D(grid, first, width, rng)
    return SinCosPositions(grid, first, width) if kind == "sincos" else None


class LearnedPositions(Module):
    """A learned vector for each token, (1, T, D), drawn with deviation 0.02 as in the paper's code: E_pos in eq. 1."""

    def __init__(self, tokens, width, rng):
        self.table = Parameter(rng.normal(0, 0.02, (1, tokens, width)).astype(np.float32))

    def forward(self):
        return self.table


class LearnedPositions2D(Module):
    """Half of a position's D numbers are its row's, half its column's, all learned: (1, first + N, D), first rows 0.

    Paper appendix D.4: r + c vectors of D / 2 instead of r · c of D.
    """

    def __init__(self, grid, first, width, rng):
        if width % 2:
            raise ValueError(f'positions "2d" give half of the width to rows and half to columns; {width} is odd')
        rows, cols = grid
        self.first = first
        self.rows = Parameter(rng.normal(0, 0.02, (rows, 1, width // 2)).astype(np.float32))
        self.columns = Parameter(rng.normal(0, 0.02, (1, cols, width // 2)).astype(np.float32))

    def forward(self):
        r, c, half = self.rows.shape[0], *self.columns.shape[1:]
        parts = [ops.broadcast_to(part, shape=(r, c, half)) for part in (self.rows, self.columns)]
        table = ops.concatenate(parts, axis=2).reshape(r * c, 2 * half)
        return ops.concatenate([np.zeros((self.first, 2 * half)), table], axis=0).reshape(1, -1, 2 * half)


class SinCosPositions(Module):
    """`sincos_2d` as it is, nothing learned: (1, first + N, D), the first rows 0."""

    def __init__(self, grid, first, width):
        table = np.concatenate([np.zeros((first, width)), sincos_2d(*grid, width)])
        self.table = table[None].astype(np.float32)

    def forward(self):
        return self.table


def sincos_2d(rows, cols, width):
    """(rows · cols, D): [sin(x ω), cos(x ω), sin(y ω), cos(y ω)] with ωᵢ = 10000^(-i / (D/4)), i = 0 … D/4 - 1, for
    column x and row y, counted from 0. Raises ValueError unless D is a multiple of 4.

    A shift by one column turns each pair (sin, cos) by an angle that is the same everywhere, so a linear map can
    compute it: relative positions are there to be read. (MoCo v3's own code has x first by name, but row-major patches
    make it the row.)
    """
    if width % 4:
        raise ValueError(f"sines and cosines of two coordinates need a width that is a multiple of 4, got {width}")
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:rows, :cols])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def shifts(grid, first):
    """(T, T) integers with T = first + N: which shift leads from token i to token j, a row of a table of embeddings.

    Patches have (2 rows - 1)(2 cols - 1) shifts, numbered row by row; then come three more: from one of the first
    tokens to a patch, from a patch to one of them, and among them.
    """
    rows, cols = grid
    y, x = (axis.reshape(-1) for axis in np.mgrid[:rows, :cols])
    N, count = rows * cols, (2 * rows - 1) * (2 * cols - 1)
    index = np.empty((first + N, first + N), np.int64)
    index[first:, first:] = (y - y[:, None] + rows - 1) * (2 * cols - 1) + (x - x[:, None] + cols - 1)
    index[:first, first:], index[first:, :first], index[:first, :first] = count, count + 1, count + 2
    return index


class RelativeSelfAttention(MultiHeadSelfAttention):
    """MSA that knows shifts, not places: scores are (qᵢ · kⱼ + qᵢ · r_(j-i)) / √K, r a learned vector for each shift.

    Shapes as for MultiHeadSelfAttention, `index` as `shifts` numbers them: (T, T), one array for all layers. r
    (shifts, K) is shared by the heads of a layer and starts at deviation 0.02.
    The paper (appendix D.4) counts shifts along the sequence; here they are two-dimensional, rows and columns, as in
    Shaw et al. 2018 carried to images (Ramachandran et al. 2019). Swin and T5 add a learned number a head instead,
    which does not depend on the query.
    """

    def __init__(self, width, heads, rng, index):
        super().__init__(width, heads, rng)
        self.index = index
        self.shifts = Parameter(rng.normal(0, 0.02, (index.max() + 1, width // heads)).astype(np.float32))

    def forward(self, x, maps=None, bias=None):
        B, T, D = x.shape
        H, K = self.heads, D // self.heads
        qkv = self.qkv(x)
        # Σ_k q[b, h, i, k] r[shift(i, j), k] is a product of matrices for each i, (B H, K) with (K, T).
        q = qkv[:, :, :D].reshape(B, T, H, K).transpose(1, 0, 2, 3).reshape(T, B * H, K)
        scores = q @ F.embedding(self.shifts, self.index).mT * K**-0.5  # (T, B H, T)
        scores = scores.reshape(T, B, H, T).transpose(1, 2, 0, 3)
        scores = scores if bias is None else scores + bias
        return self.out(F.biased_attention(qkv, scores, heads=H, maps=maps))
