"""Many small matrix products: (B, M, K) @ (B, K, N).

BLAS is unbeatable for one large product. For thousands of 17 × 16 ones, most of its time goes into being called: it checks,
packs and blocks each matrix as if it were large. A plain loop wins there.
"""

import numpy as np

from tinyvit.kernels.backend import contiguous, jit, kernel


@kernel
def batched_matmul(a, b):
    """(B, M, K) @ (B, K, N) -> (B, M, N)."""
    return a @ b


@batched_matmul.fast
def batched_matmul(a, b):
    a, b = contiguous(a, b)
    out = np.zeros((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    _batched_matmul(a, b, out)
    return out


@jit
def _batched_matmul(a, b, out):
    for i in range(a.shape[0]):
        A, B, C = a[i], b[i], out[i]
        for m in range(A.shape[0]):
            row, arow = C[m], A[m]
            for k in range(A.shape[1]):
                brow = B[k]
                for n in range(brow.size):
                    row[n] += arow[k] * brow[n]
