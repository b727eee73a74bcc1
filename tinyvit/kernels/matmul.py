"""Many small matrix products: (B, M, K) @ (B, K, N).

NumPy hands each product to BLAS, which takes 60 ns even for 2 × 2: a call, checks, the choice of a blocking.
So a plain loop wins while the matrices are tiny: it is three times as fast at 4 × 4 and level at 8 × 8. From there
it loses to BLAS's register tiles, and is half as fast at 17 × 16, so that attention.py calls BLAS.
(2,000 products at a time, float32, one thread, AMD EPYC, OpenBLAS limited to AVX2; `benchmarks/kernels.py`.)
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require


def _check(a, b):
    holds = a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
    require(holds, "batched_matmul: a must be (B, M, K) and b (B, K, N), without broadcasting", a, b)


@Kernel
def batched_matmul(a, b):
    """(B, M, K) @ (B, K, N) -> (B, M, N). Unlike np.matmul it does not broadcast: B must be the same."""
    _check(a, b)
    return a @ b


@batched_matmul.fast
def batched_matmul(a, b):
    _check(a, b)
    a, b = contiguous(a, b)
    out = np.zeros((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    _batched_matmul(a, b, out)
    return out


@jit
def _batched_matmul(a, b, out):
    for i in range(out.shape[0]):
        A, B, C = a[i], b[i], out[i]
        # Four rows of C at once: each element of B, once loaded, serves four multiplications. (BLAS keeps a
        # whole tile of C in registers, say 6 × 16, over all of k.) The loop over n is innermost, since it
        # walks along memory.
        whole = C.shape[0] // 4 * 4
        for m in range(0, whole, 4):
            c0, c1, c2, c3 = C[m], C[m + 1], C[m + 2], C[m + 3]
            for k in range(A.shape[1]):
                a0, a1, a2, a3, row = A[m, k], A[m + 1, k], A[m + 2, k], A[m + 3, k], B[k]
                for n in range(row.size):
                    c0[n] += a0 * row[n]
                    c1[n] += a1 * row[n]
                    c2[n] += a2 * row[n]
                    c3[n] += a3 * row[n]
        for m in range(whole, C.shape[0]):
            c0 = C[m]
            for k in range(A.shape[1]):
                a0, row = A[m, k], B[k]
                for n in range(row.size):
                    c0[n] += a0 * row[n]
