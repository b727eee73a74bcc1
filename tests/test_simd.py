"""Vectors in registers and the matrix product made of them: exact against NumPy, and nothing written beside C."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from tinyvit import kernels
from tinyvit.kernels import jit

if kernels.backend() != "numba":
    pytest.skip("about compiled code", allow_module_level=True)

from tinyvit.kernels.matmul import DEPTH, NARROWEST, multiply_arrays, multiply_small, product  # noqa: E402
from tinyvit.kernels.simd import (  # noqa: E402
    larger,
    load,
    madd,
    minus,
    over,
    plus,
    spread,
    store,
    times,
    window,
)

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
UNTOUCHED = -77777.0


def every_operation(lanes):
    """One kernel for all, since a compilation takes longer than the rest of the test."""

    @jit
    def run(number, x, y, n, out):
        a, b = load(x, n, lanes), load(y, n, lanes)
        store(out[0], n, a)
        store(out[1], n, spread(number, lanes))
        store(out[2], n, plus(a, b))
        store(out[3], n, minus(a, b))
        store(out[4], n, times(a, b))
        store(out[5], n, over(a, b))
        store(out[6], n, larger(a, b))
        store(out[7], n, madd(number, a, b))

    return run


@DTYPES
@pytest.mark.parametrize("lanes", [4, 8, 16, 32, 64])
def test_operations(lanes, dtype):
    """Protects: each operation does to each lane what NumPy does to it, at places that are not aligned, with NaN,
    infinity and zero among the numbers; and `store` writes its lanes and no other."""
    rng = np.random.default_rng(0)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -3.5, 1e-30]
    x, y = rng.standard_normal((2, lanes + 9)).astype(dtype)
    x[rng.random(x.size) < 0.4] = rng.choice(special)
    x[5], y[5], x[6], y[7], y[8] = np.nan, 1, 2, np.nan, 0
    number, run = dtype(1.7), every_operation(lanes)
    with np.errstate(all="ignore"):
        wanted = [x, np.full_like(x, number), x + y, x - y, x * y, x / y, np.where(x > y, x, y)]
        two_roundings = number * x + y
        one_rounding = (np.longdouble(number) * x + y).astype(dtype)
    for n in 0, 5:
        out = np.full((8, x.size), UNTOUCHED, dtype)
        run(number, x, y, n, out)
        lane = slice(n, n + lanes)
        np.testing.assert_array_equal(out[:7, lane], np.array(wanted)[:, lane])
        np.testing.assert_allclose(out[7, lane], one_rounding[lane], rtol=0, atol=4 * np.finfo(dtype).eps)
        same = (out[7] == two_roundings) | (out[7] == one_rounding) | (np.isnan(out[7]) & np.isnan(two_roundings))
        assert dtype is np.float64 or same[lane].all()  # a float64's exact product fits into no other type everywhere
        assert (np.delete(out, np.r_[lane], axis=1) == UNTOUCHED).all()


@jit
def write_through(x, i, rows, j, columns):
    part = window(x, i, rows, j, columns)
    inner = window(part, 0, rows, columns - 1, 1)
    for n in range(rows):
        part[n, 0] = n
        inner[n, 0] += 100
    return part[rows - 1, 0]


LAYOUTS = dict(whole=lambda x: x, slice=lambda x: x[2:-3, 1:], transpose=lambda x: x.T, steps=lambda x: x[::2, ::3])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_window(layout):
    """Protects: a window is the same memory, of any array and of a window, and only its part of it; and the array is
    still freed by its owner, once."""
    for _ in range(50):  # freed twice, or too early, something breaks in one of them
        x = np.full((31, 32), UNTOUCHED, np.float32)
        wanted = x.copy()
        part = layout(wanted)[3:9, 2:7]
        part[:, 0] = range(6)
        part[:, -1] += 100
        assert write_through(layout(x), 3, 6, 2, 5) == 5
        np.testing.assert_array_equal(x, wanted)


def integers(*shape, dtype=np.float32):
    """Whole numbers, so small that their products' sums are exact in any order: the result must be equal, not close."""
    return np.random.default_rng(sum(shape)).integers(-4, 5, shape).astype(dtype)


def guarded(M, N, dtype):
    """C (M, N), C-contiguous, and the array in whose middle it lies."""
    around = np.full(M * N + 600, UNTOUCHED, dtype)
    return around[300:-300].reshape(M, N), around


@DTYPES
def test_multiply(dtype):
    """Protects: the product at each width that ends in another strip, at each number of rows that a tile leaves over,
    for more than a panel's depth, for a transposed A, for `start` with one row or one for each; nothing is written
    around C."""
    widths = [*range(4, 204, 4), 260]
    for N, M in [(N, M) for N in widths for M in (1, 6, 11)] + [(20, M) for M in range(18)] + [(68, 4), (8, 300)]:
        for K in (1, 5) if N % 12 else (3, DEPTH, 2 * DEPTH + 1):
            A, B = integers(M, K, dtype=dtype), integers(K, N, dtype=dtype)
            for transposed, rows in (False, 1), (True, M):
                start, (C, around) = integers(rows, N, dtype=dtype), guarded(M, N, dtype)
                multiply_arrays(np.array(A.T, order="C") if transposed else A, B, start, C, transposed)
                np.testing.assert_array_equal(C, start + A @ B, f"M = {M}, K = {K}, N = {N}, {transposed=}")
                assert (around[:300] == UNTOUCHED).all() and (around[-300:] == UNTOUCHED).all()


@jit
def multiply_inside(A, transposed, B, start, C, M, K, N):
    """multiply_small on windows of larger arrays, as kernels call it."""
    a = window(A.T, 2, M, 1, K) if transposed else window(A, 1, M, 2, K)
    begin = window(start, 1, start.shape[0] - 2, 3, N)
    multiply_small(a, window(B, 2, K, 1, N), begin, window(C, 3, M, 5, N))


@DTYPES
def test_multiply_small(dtype):
    """Protects: windows of larger arrays, `start` with one row or a row for each; and all around stays as it was."""
    for N in [*range(4, 204, 4)]:
        for M, K in ((1, 2), (4, 1), (7, 5), (9, 3), (17, 4)) if N % 3 else ((2, 7), (8, 0), (23, 2)):
            B = integers(K + 5, N + 9, dtype=dtype)
            for transposed in False, True:
                A = integers(*((K + 2, M + 4) if transposed else (M + 2, K + 4)), dtype=dtype)
                a = A[1 : 1 + K, 2 : 2 + M].T if transposed else A[1 : 1 + M, 2 : 2 + K]
                for rows in 1, M:
                    start = integers(rows + 2, N + 6, dtype=dtype)
                    C = np.full((M + 7, N + 11), UNTOUCHED, dtype)
                    multiply_inside(A, transposed, B, start, C, M, K, N)
                    wanted = np.full_like(C, UNTOUCHED)
                    wanted[3 : 3 + M, 5 : 5 + N] = start[1 : 1 + rows, 3 : 3 + N] + a @ B[2 : 2 + K, 1 : 1 + N]
                    np.testing.assert_array_equal(C, wanted, f"M = {M}, K = {K}, N = {N}, {transposed=}, {rows=}")


@DTYPES
def test_start_may_be_c(dtype):
    """Protects: sums that go on where C stands, as attention's backward pass and a second panel need them."""
    for N in 4, 12, 28, 100:
        A, B, C = integers(15, 13, dtype=dtype), integers(18, N + 9, dtype=dtype), integers(22, N + 11, dtype=dtype)
        wanted = C.copy()
        wanted[3:16, 5 : 5 + N] += A[1:14, 2:11] @ B[2:11, 1 : 1 + N]
        go_on(A, B, C, 13, 9, N)
        np.testing.assert_array_equal(C, wanted)


@jit
def go_on(A, B, C, M, K, N):
    c = window(C, 3, M, 5, N)
    multiply_small(window(A, 1, M, 2, K), window(B, 2, K, 1, N), c, c)


@DTYPES
def test_nan_and_infinity_pass_through(dtype):
    """Protects: a diverged run shows, in the rows and columns that it touches and in no other."""
    for N in 8, 100:
        A, B, start = integers(13, 9, dtype=dtype), integers(9, N, dtype=dtype), integers(1, N, dtype=dtype)
        A[2, 3], A[12, 0], B[4, N - 1], B[5, 1], start[0, 2] = np.nan, -np.inf, np.inf, np.nan, np.inf
        C = np.empty((13, N), dtype)
        multiply_arrays(A, B, start, C, False)
        with np.errstate(invalid="ignore"):
            wanted = start + (A[:, :, None] * B).sum(axis=1)
        assert np.isnan(wanted[2]).all() and np.isinf(wanted[:, 2]).any() and np.isfinite(wanted[0, 3 : N - 1]).all()
        np.testing.assert_array_equal(C, wanted)


@DTYPES
def test_product(dtype):
    """Protects: any number of columns, with a bias and without, Aᵀ B, and nothing to add up at all."""
    for N in [1, 2, 3, 5, 10, 17, 63, 67]:
        A, B, bias = integers(7, 5, dtype=dtype), integers(5, N, dtype=dtype), integers(N, dtype=dtype)
        At = np.array(A.T, order="C")
        for result, wanted in (
            (product(A, B), A @ B),
            (product(A, B, bias), A @ B + bias),
            (product(At, B, transposed=True), A @ B),
        ):
            np.testing.assert_array_equal(result, wanted)
            assert result.dtype == dtype and result.flags.c_contiguous
    for M, K, N in (3, 0, 4), (0, 5, 4), (2, 5, 0):
        A, B, bias = integers(M, K, dtype=dtype), integers(K, N, dtype=dtype), integers(N, dtype=dtype)
        np.testing.assert_array_equal(product(A, B, bias), A @ B + bias)


def test_rounding_errors_stay_small():
    """Protects: sums in float32 are as good as BLAS's, for numbers that are not whole."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((33, 500), dtype=np.float32), rng.standard_normal((500, 4 * NARROWEST), dtype=np.float32)
    exact = A.astype(np.float64) @ B
    error, blas = np.abs(product(A, B) - exact).max(), np.abs(A @ B - exact).max()
    assert error < 4 * blas


AVX2 = """
import numpy as np
from tinyvit import kernels
from tinyvit.kernels.simd import LANES

assert LANES == 8
r = np.random.default_rng(0)
for M, K, N in (13, 5, 60), (8, 130, 23), (3, 2, 1):
    args = [r.standard_normal(s, dtype=np.float32) for s in ((M, K), (K, N), (N,))]
    assert np.abs(kernels.linear.numba(*args) - kernels.linear.numpy(*args)).max() < 1e-4
for N, D, H in (17, 24, 2), (130, 10, 1):
    qkv = r.standard_normal((2, N, 3 * D), dtype=np.float32)
    for ours, spec in zip(kernels.attention.numba(qkv, H, 0.3), kernels.attention.numpy(qkv, H, 0.3)):
        assert np.abs(ours - spec).max() < 1e-5
"""


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the processor's name is an x86 one")
def test_kernels_for_narrower_registers():
    """Protects: a machine without AVX-512 gets other strips of columns, and the same numbers."""
    features = "+sse4.2,+avx,+avx2,+fma,+popcnt"
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", AVX2], env=environment, check=True, timeout=240)
