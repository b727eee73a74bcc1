"""The matrix product, where nearly all of a Transformer's time goes: start + A B in registers.

C_mn = Σ_k A_mk B_kn asks for two numbers for each multiply-add, and a core can multiply-add far more than it can load.
So load less: keep a *tile* of C, 4 rows by 4 registers (AVX-512; by 2 with AVX2), in registers for all of k. Then one
turn of the loop over k loads 4 registers of B and 4 numbers of A for 16 multiply-adds, and C is loaded and stored once.

    for each strip of columns:  copy the strip of B into a panel, which lies dense in the first-level cache
        for each four rows:     c = start;  for k:  c += A[m, k] · panel[k];  C = c

`start` is where the sums begin: a bias, which so costs nothing, or C itself for the next stretch of k. That is the
inner half of how BLAS libraries do it (Goto and van de Geijn 2008; BLIS); they also pack A and block for the outer
caches, which matters for matrices larger than a small Transformer's.

`benchmarks/matmul_story.py` goes the way there, from three plain loops, a step at a time.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require
from tinyvit.kernels.simd import LANES, WIDE_REGISTERS, load, madd, store, window
from tinyvit.memory import empty

DEPTH = 128  # of a panel: 128 × 4 registers are 32 kB, and the first-level cache holds 32 or 48
WIDEST = 64 if WIDE_REGISTERS else 16  # columns of a tile: AVX-512 has 32 registers, AVX2 16 of half the size
NARROWEST = 4


def _strip(lanes):
    """The kernel for a strip of so many columns: a constant, so that the compiler can assign registers."""

    @jit
    def low(A, B, start, C):
        """C = start + A B in tiles of four rows. `start` has a row for each of C's, or one for all of them."""
        M, K = A.shape
        whole, step = M // 4 * 4, min(start.shape[0] - 1, 1)
        for m in range(0, whole, 4):
            c0, c1 = load(start[m * step], 0, lanes), load(start[(m + 1) * step], 0, lanes)
            c2, c3 = load(start[(m + 2) * step], 0, lanes), load(start[(m + 3) * step], 0, lanes)
            for k in range(K):
                b = load(B[k], 0, lanes)
                c0 = madd(A[m, k], b, c0)
                c1 = madd(A[m + 1, k], b, c1)
                c2 = madd(A[m + 2, k], b, c2)
                c3 = madd(A[m + 3, k], b, c3)
            store(C[m], 0, c0)
            store(C[m + 1], 0, c1)
            store(C[m + 2], 0, c2)
            store(C[m + 3], 0, c3)
        for m in range(whole, M):
            c0 = load(start[m * step], 0, lanes)
            for k in range(K):
                c0 = madd(A[m, k], load(B[k], 0, lanes), c0)
            store(C[m], 0, c0)

    @jit
    def tall(A, B, start, C):
        """The same in tiles of eight rows, for a strip of one register: a sum waits a few cycles for its last
        multiply-add, so it takes several sums in the making to keep a core busy."""
        M, K = A.shape
        whole, step = M // 8 * 8, min(start.shape[0] - 1, 1)
        for m in range(0, whole, 8):
            c0, c1 = load(start[m * step], 0, lanes), load(start[(m + 1) * step], 0, lanes)
            c2, c3 = load(start[(m + 2) * step], 0, lanes), load(start[(m + 3) * step], 0, lanes)
            c4, c5 = load(start[(m + 4) * step], 0, lanes), load(start[(m + 5) * step], 0, lanes)
            c6, c7 = load(start[(m + 6) * step], 0, lanes), load(start[(m + 7) * step], 0, lanes)
            for k in range(K):
                b = load(B[k], 0, lanes)
                c0 = madd(A[m, k], b, c0)
                c1 = madd(A[m + 1, k], b, c1)
                c2 = madd(A[m + 2, k], b, c2)
                c3 = madd(A[m + 3, k], b, c3)
                c4 = madd(A[m + 4, k], b, c4)
                c5 = madd(A[m + 5, k], b, c5)
                c6 = madd(A[m + 6, k], b, c6)
                c7 = madd(A[m + 7, k], b, c7)
            store(C[m], 0, c0)
            store(C[m + 1], 0, c1)
            store(C[m + 2], 0, c2)
            store(C[m + 3], 0, c3)
            store(C[m + 4], 0, c4)
            store(C[m + 5], 0, c5)
            store(C[m + 6], 0, c6)
            store(C[m + 7], 0, c7)
        for m in range(whole, M):
            c0 = load(start[m * step], 0, lanes)
            for k in range(K):
                c0 = madd(A[m, k], load(B[k], 0, lanes), c0)
            store(C[m], 0, c0)

    return tall if lanes <= LANES else low


_strip_64, _strip_32, _strip_16, _strip_8, _strip_4 = map(_strip, (64, 32, 16, 8, 4))


@jit
def multiply_small(A, B, start, C):
    """C = start + A B where B fits into the first-level cache as it lies. All are slices of larger arrays with rows of
    contiguous numbers; C and B have a multiple of NARROWEST columns, start a row for each of C's or one for all."""
    (M, K), N, S = A.shape, C.shape[1], start.shape[0]
    n = 0
    while n < N:
        if WIDE_REGISTERS and n + 64 <= N:
            _strip_64(A, window(B, 0, K, n, 64), window(start, 0, S, n, 64), window(C, 0, M, n, 64))
            n += 64
        elif WIDE_REGISTERS and n + 32 <= N:
            _strip_32(A, window(B, 0, K, n, 32), window(start, 0, S, n, 32), window(C, 0, M, n, 32))
            n += 32
        elif n + 16 <= N:
            _strip_16(A, window(B, 0, K, n, 16), window(start, 0, S, n, 16), window(C, 0, M, n, 16))
            n += 16
        elif n + 8 <= N:
            _strip_8(A, window(B, 0, K, n, 8), window(start, 0, S, n, 8), window(C, 0, M, n, 8))
            n += 8
        else:
            _strip_4(A, window(B, 0, K, n, 4), window(start, 0, S, n, 4), window(C, 0, M, n, 4))
            n += 4


@jit
def multiply(A, B, start, C):
    """C (M, N) = start + A (M, K) B (K, N), for N a multiple of NARROWEST; all of them windows, `start` with a row for
    each of C's, or with one for all."""
    (K, N), M, S = B.shape, A.shape[0], start.shape[0]
    panel = np.empty((DEPTH, WIDEST), B.dtype)
    for k in range(0, K, DEPTH):
        depth = min(DEPTH, K - k)
        for n in range(0, N, WIDEST):
            width = min(WIDEST, N - n)
            for i in range(depth):
                for j in range(0, width // LANES * LANES, LANES):
                    store(panel[i], j, load(B[k + i], n + j, LANES))
                for j in range(width // LANES * LANES, width, NARROWEST):
                    store(panel[i], j, load(B[k + i], n + j, NARROWEST))
            strip = window(C, 0, M, n, width)
            first = window(start, 0, S, n, width) if k == 0 else strip
            multiply_small(window(A, 0, M, k, depth), window(panel, 0, depth, 0, width), first, strip)


@jit
def multiply_arrays(A, B, start, C, transposed):
    """`multiply` for whole arrays, A (K, M) if it is `transposed`. One kernel for both: each takes time to compile."""
    multiply(turned(A) if transposed else whole(A), whole(B), whole(start), whole(C))


@jit
def whole(x):
    """A window on all of x (M, N)."""
    return window(x, 0, x.shape[0], 0, x.shape[1])


@jit
def turned(x):
    """A window on xᵀ (N, M)."""
    return window(x.T, 0, x.shape[1], 0, x.shape[0])


def product(A, B, bias=None, transposed=False):
    """A (M, K) B (K, N) + bias (N,), or Aᵀ B, for other kernels: contiguous arrays of one dtype."""
    M, N = A.shape[1 if transposed else 0], B.shape[1]
    width = -(-N // NARROWEST) * NARROWEST
    start = np.zeros((1, width), B.dtype)
    if bias is not None:
        start[0, :N] = bias
    if width > N:  # whole registers; the surplus columns are cut off again
        B, narrow = np.zeros((len(B), width), B.dtype), B
        B[:, :N] = narrow
    C = empty((M, width), B.dtype)
    if B.size:
        multiply_arrays(A, B, start, C, transposed)
    else:
        C[...] = start
    return C if width == N else C[:, :N].copy()


def _check(a, b):
    holds = a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
    require(holds, "batched_matmul: a must be (B, M, K) and b (B, K, N), without broadcasting", a, b)


@Kernel
def batched_matmul(a, b):
    """(B, M, K) @ (B, K, N) -> (B, M, N). Unlike np.matmul it does not broadcast: B must be the same.

    From 17 × 16 × 17 up, np.matmul through OpenBLAS takes 0.6 to 0.7 of this kernel's time (AVX-512, one thread,
    `benchmarks/kernels.py`), so models do not use it; attention needs the products inside its own loop.
    """
    _check(a, b)
    return a @ b


@batched_matmul.fast
def batched_matmul(a, b):
    _check(a, b)
    a, b = contiguous(a, b)
    out = np.empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    _batched_matmul(a, b, out)
    return out


@jit
def _batched_matmul(a, b, out):
    (B, M, N), K = out.shape, a.shape[2]
    width = -(-N // NARROWEST) * NARROWEST
    right, result = np.zeros((K, width), b.dtype), np.empty((M, width), b.dtype)
    zeros = np.zeros((1, width), b.dtype)
    for i in range(B):
        for k in range(K):
            row, copy = b[i, k], right[k]
            for n in range(row.size):
                copy[n] = row[n]
        multiply_small(whole(a[i]), whole(right), whole(zeros), whole(result))
        for m in range(M):
            row, copy = out[i, m], result[m]
            for n in range(row.size):
                row[n] = copy[n]
