"""The two functions that other kernels lean on: the exponential, and the normal distribution behind GELU.

Numba calls the C library for `exp` and `erfc`, one element at a time. Written out as a few multiplications
and additions instead, they become part of the caller's loop and the compiler computes 4, 8 or 16 elements at
once. PyTorch takes the same functions, in the same way, from a vector maths library (SLEEF).

The polynomials are minimax fits for float32: `benchmarks/minimax.py` derives them and prints their errors, before
and after rounding the coefficients to float32. float64 keeps the library's functions, slower and good to 16
digits: it is there for gradient checks.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

import math

import numpy as np

from tinyvit.kernels.backend import jit, numba

F = np.float32


def exp(x):
    """e^x of one float, inside a kernel: float32 in vector instructions, float64 by the library."""
    return np.exp(x)


def normal(x):
    """(Φ(x), φ(x)) of one float, inside a kernel: the standard normal's distribution function and density."""
    from scipy.special import ndtr  # here, because importing it takes longer than all of tinyvit

    x = np.asarray(x)
    return ndtr(x), np.exp(-x * x / 2) / x.dtype.type(math.sqrt(2 * math.pi))


# Without `reassoc` here: (p · 2^a) · 2^b must not become p · 2^(a + b), which overflows too early.
STRICT = {"contract", "nsz"}

LOG2E, LN2_HIGH, LN2_LOW = F(1 / math.log(2)), F(0.693359375), F(math.log(2) - 0.693359375)
# e^r = 1 + r + r² (E0 + E1 r + …) for |r| ≤ ln 2 / 2, to 3.9e-9 relative
E0, E1, E2, E3, E4 = (
    F(4.999999345e-01), F(1.666652069e-01), F(4.166838736e-02), F(8.368709827e-03), F(1.381461327e-03),
)  # fmt: skip


@jit(fastmath=STRICT)
def _exp32(x):
    # Outside of these bounds e^x is 0 or infinity in float32. A comparison with NaN is False, so NaN passes.
    x = F(-104.5) if x < F(-104.5) else x
    x = F(89) if x > F(89) else x
    # x = n ln 2 + r with n whole and |r| ≤ ln 2 / 2, so e^x = 2^n e^r. ln 2 comes in two parts, so that
    # n · LN2_HIGH is exact. (Rounding by adding and subtracting a large number is faster, but fastmath folds
    # it away.)
    n = np.floor(x * LOG2E + F(0.5))
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = F(1) + (r + r * r * (E0 + r * (E1 + r * (E2 + r * (E3 + r * E4)))))
    # A float's bits are (sign, exponent + 127, fraction), so n + 127 shifted to the exponent's place is 2^n.
    # In two halves, since n may lie outside of the exponent's range where e^x is subnormal or infinite.
    n = np.int32(n)
    half = n >> np.int32(1)
    low = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    high = np.int32((n - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * low * high


# Φ(-t) / e^(-t²/2) for 0 ≤ t ≤ 14.5, a polynomial in u = TAIL_K / (TAIL_K + t), to 1.2e-7 relative; further down the
# tail e^(-t²/2) is 0 in float32.
TAIL_K = F(3.5)
T0, T1, T2, T3, T4, T5, T6, T7, T8 = (
    F(2.907169785e-05), F(1.133308019e-01), F(1.202360492e-01), F(7.122619616e-02), F(1.957246201e-01),
    F(-1.656496170e-01), F(3.180669996e-01), F(-1.894711811e-01), F(3.650700622e-02),
)  # fmt: skip
INV_SQRT_2PI, SQRT_HALF = 1 / math.sqrt(2 * math.pi), math.sqrt(0.5)


@jit(fastmath=STRICT)
def _normal32(x):
    # Φ(-t) = e^(-t²/2) s(t) for t ≥ 0, where s is smooth and slow: a polynomial in u = K / (K + t).
    # So Φ keeps its relative accuracy down the tail, where 1 - erf would cancel, and shares its exp with φ.
    # Over [-6, 6] both are good to 1.3e-6 relative, most of it from rounding x² in the exponent.
    e = _exp32(F(-0.5) * x * x)
    u = TAIL_K / (TAIL_K + abs(x))
    s = T0 + u * (T1 + u * (T2 + u * (T3 + u * (T4 + u * (T5 + u * (T6 + u * (T7 + u * T8)))))))
    tail = e * s
    return (F(1) - tail if x > F(0) else tail), e * F(INV_SQRT_2PI)


@jit
def _exp64(x):
    return math.exp(x)


@jit
def _normal64(x):
    return 0.5 * math.erfc(-x * SQRT_HALF), INV_SQRT_2PI * math.exp(-0.5 * x * x)


if numba:  # inside a kernel, exp and normal mean the version for their argument's type

    @numba.extending.overload(exp)
    def _(x):
        chosen = _exp32 if x == numba.types.float32 else _exp64
        return lambda x: chosen(x)

    @numba.extending.overload(normal)
    def _(x):
        chosen = _normal32 if x == numba.types.float32 else _normal64
        return lambda x: chosen(x)
