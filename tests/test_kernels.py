"""Every Numba kernel computes what its NumPy spec says, over shapes, dtypes and layouts, and with NaN."""

import importlib.util
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from scipy import special

from tinyvit import kernels
from tinyvit.kernels import elementary

pytestmark = pytest.mark.skipif(kernels.backend() != "numba", reason="compares with the Numba kernels")

# The kernels compile into the package's own cache, not into a temporary one. That is what users run; its name is a hash
# of the sources, so that it is never stale; and compiling everything anew makes this file take twice as long.

SIDES = pytest.mark.parametrize("side", ["numba", "numpy"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def draw(rng, dtype):
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


def labels(B, C):
    return np.arange(B, dtype=np.int64) * 7 % C


def normed(x):
    """x with its mean and rstd, as the forward pass hands them to layernorm_backward."""
    _, mean, rstd = kernels.layernorm.numpy(x, np.ones_like(x[0]), np.zeros_like(x[0]), 1e-6)
    return mean, rstd


def layernorm_backward_args(r, M, D):
    x = r(M, D)
    mean, rstd = normed(np.vstack([x, r(1, D)]))  # a row more, so that x may be empty
    return x, r(D), mean[:M], rstd[:M], r(M, D)


def group_norm_backward_args(r, S, M, C, groups, relu):
    x = r(S, M, C)
    _, mean, variance = kernels.group_norm.numpy(x, r(C), r(C), groups, 1e-5, relu)
    return x, r(C), r(C), mean, variance, r(S, M, C), 1e-5, relu


def attention_backward_args(r, B, N, D, H):
    return r(B, N, 3 * D), kernels.softmax.numpy(r(B, H, N, N)), r(B, N, D), H, (D // H) ** -0.5


def conv2d_args(r, shape, kernel, stride, padding):
    return r(*shape), r(*kernel[:2], shape[3], kernel[2]), r(kernel[2]), stride, padding


def conv2d_backward_args(r, shape, kernel, stride, padding):
    x, w, bias, *how = conv2d_args(r, shape, kernel, stride, padding)
    return x, w, r(*kernels.conv2d.numpy(x, w, bias, *how).shape), *how


def col2im_args(r, shape, kernel, stride, padding):
    B, h, w, C = shape
    oh, ow = (h + 2 * padding - kernel[0]) // stride + 1, (w + 2 * padding - kernel[1]) // stride + 1
    return r(B, oh, ow, kernel[0] * kernel[1] * C), shape, kernel, stride, padding


# The last two: more queries than a block holds, and a head width that is no multiple of 4.
ATTENTION_SIZES = [
    (2, 17, 48, 4),
    (1, 1, 3, 3),
    (3, 5, 7, 1),
    (1, 65, 32, 2),
    (0, 5, 8, 2),
    (1, 300, 8, 2),
    (1, 129, 10, 2),
]
# Each width of a strip, rows left over, more than one panel deep and wide, single numbers, nothing.
LINEAR_SIZES = [(13, 5, 124), (8, 300, 200), (17, 16, 4), (1, 1, 1), (2, 7, 3), (0, 4, 5), (4, 0, 5), (3, 2, 0)]
LABELLED_SIZES = [(9, 10, 0.0), (9, 10, 0.1), (1, 2, 0.5), (0, 3, 0.1)]  # B, C, smoothing
# S, M, C, groups, relu: several pixels in a row of the loops, several blocks of them, odd numbers, one row, no image.
GROUPED_SIZES = [
    (2, 196, 16, 4, True),
    (1, 1300, 24, 24, False),
    (3, 7, 5, 1, True),
    (2, 1, 12, 3, False),
    (0, 4, 6, 2, True),
]
WINDOW_SIZES = [
    ((2, 8, 12, 3), (4, 4), 4, 0),  # patches
    ((2, 7, 5, 2), (3, 3), 1, 1),
    ((1, 9, 8, 1), (3, 2), 2, 1),
    ((1, 3, 3, 1), (3, 3), 1, 0),
    ((0, 4, 4, 1), (2, 2), 2, 0),
]

# x, the kernel (kh, kw, D), stride, padding: strips of both widths, an odd window, 1×1, more pixels in a row than a
# tile has and fewer, a padding wider than the window, no image.
CONVOLVED_SIZES = [
    ((2, 10, 9, 16), (3, 3, 60), 1, 1),
    ((1, 7, 12, 3), (3, 2, 5), 2, 1),
    ((2, 5, 6, 2), (1, 1, 8), 2, 0),
    ((1, 3, 4, 1), (2, 3, 1), 1, 3),
    ((0, 4, 4, 2), (3, 3, 4), 1, 1),
]

# kernel, its arguments from r, which draws an array of a shape, and the sizes to try: single rows, odd ones,
# no batch
TABLE = [
    ("scatter_add", lambda r, M, D, rows: (np.arange(M) * 7 % rows, r(M, D), rows),
     [(20, 5, 6), (1, 1, 1), (0, 3, 2), (3, 0, 4), (5, 4, 100)]),
    ("softmax", lambda r, *s: (r(*s),), [(3, 5, 17), (1, 1), (7,), (0, 4), (2, 5000)]),
    ("softmax_backward", lambda r, *s: (kernels.softmax.numpy(r(*s)), r(*s)),
     [(3, 5, 17), (1, 1), (7,), (0, 4)]),
    ("attention", lambda r, B, N, D, H: (r(B, N, 3 * D), H, (D // H) ** -0.5), ATTENTION_SIZES),
    ("attention_backward", attention_backward_args, ATTENTION_SIZES),
    ("batched_matmul", lambda r, B, M, K, N: (r(B, M, K), r(B, K, N)),
     [(3, 17, 16, 17), (1, 1, 1, 1), (2, 4, 1, 5), (2, 7, 33, 3), (0, 2, 3, 4)]),
    ("linear", lambda r, M, K, N: (r(M, K), r(K, N), r(N)), LINEAR_SIZES),
    ("linear_backward", lambda r, M, K, N: (r(M, K), r(K, N), r(M, N)), LINEAR_SIZES),
    ("linear_gelu", lambda r, tanh, M, K, N: (r(M, K), r(K, N), r(N), tanh),
     [(tanh, *size) for tanh in (False, True) for size in LINEAR_SIZES]),
    ("layernorm", lambda r, M, D: (r(M, D), r(D), r(D), 1e-6), [(7, 48), (1, 5), (3, 1), (2, 33), (0, 8)]),
    ("layernorm_backward", layernorm_backward_args, [(7, 48), (1, 5), (2, 33), (0, 8)]),
    ("group_norm", lambda r, S, M, C, groups, relu: (r(S, M, C), r(C), r(C), groups, 1e-5, relu), GROUPED_SIZES),
    ("group_norm_backward", group_norm_backward_args, GROUPED_SIZES),
    ("gelu", lambda r, tanh, *s: (3 * r(*s), tanh),
     [(False, 5, 99), (True, 5, 99), (False, 1), (True, 2, 3, 4), (False, 0, 3)]),
    ("gelu_backward", lambda r, tanh, *s: (3 * r(*s), r(*s), tanh),
     [(False, 5, 99), (True, 5, 99), (True, 1), (False, 0, 3)]),
    ("cross_entropy", lambda r, B, C, s: (3 * r(B, C), labels(B, C), s), LABELLED_SIZES),
    ("cross_entropy_backward", lambda r, B, C, s: (kernels.softmax.numpy(r(B, C)), labels(B, C), r(B), s),
     LABELLED_SIZES),
    ("soft_cross_entropy", lambda r, B, C, s: (3 * r(B, C), kernels.softmax.numpy(r(B, C)), s), LABELLED_SIZES),
    ("soft_cross_entropy_backward",
     lambda r, B, C, s: (kernels.softmax.numpy(r(B, C)), kernels.softmax.numpy(9 * r(B, C)), r(B), s), LABELLED_SIZES),
    ("im2col", lambda r, shape, *how: (r(*shape), *how), WINDOW_SIZES),
    ("col2im", col2im_args, WINDOW_SIZES),
    ("conv2d", conv2d_args, CONVOLVED_SIZES),
    ("conv2d_backward", conv2d_backward_args, CONVOLVED_SIZES),
    ("squared_norm", lambda r, n: (r(n),), [(1001,), (1,), (0,)]),
]  # fmt: skip


def cases(most=None):
    """One test for each kernel and size, or for each kernel and its first `most` sizes."""
    table = [(name, make, size) for name, make, sizes in TABLE for size in sizes[:most]]
    return [pytest.param(*row, id=f"{row[0]}-{row[2]}") for row in table]


DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def arrays(result):
    return [np.asarray(a) for a in (result if isinstance(result, tuple) else (result,))]


def is_map(a):
    """Attention's p, which lies in memory with a column for each query."""
    return a.ndim == 4 and a.strides[2] == a.itemsize


def assert_same(got, want, dtype):
    """Same dtype, shape and numbers, relative to the result's scale; C-contiguous and writeable."""
    for a, b in zip(arrays(got), arrays(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert (a.flags.c_contiguous or is_map(a)) and a.flags.writeable
        scale = np.abs(b).max(initial=0) or 1
        np.testing.assert_allclose(a, b, rtol=0, atol=scale * (1e-5 if dtype == np.float32 else 1e-10))


@DTYPES
@pytest.mark.parametrize("name, make, size", cases())
def test_kernel_equals_its_spec(name, make, size, dtype, rng):
    pair = getattr(kernels, name)
    args = make(draw(rng, dtype), *size)
    before = [np.array(a) for a in args]
    want = pair.numpy(*args)
    assert_same(pair.numba(*args), want, dtype)
    for a, b in zip(args, before, strict=True):
        assert np.array_equal(a, b), "an input was changed"
    assert name == "squared_norm" or all(a.dtype == dtype for a in arrays(want)), "the spec changed the dtype"


def strided(a):
    wide = np.repeat(a, 2, axis=-1)
    return wide[..., ::2]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def specialisations():
    """How many versions of kernels exist in this process, by their argument types."""
    modules = [module for name, module in sys.modules.items() if name.startswith("tinyvit.kernels.")]
    loops = [f for module in modules for f in vars(module).values() if hasattr(f, "py_func")]
    return sum(len(f.signatures) for f in loops)


@DTYPES
@pytest.mark.parametrize("layout", [strided, read_only, np.asfortranarray])
@pytest.mark.parametrize("name, make, size", cases(2)[:-2])  # all but squared_norm, which reads a flat buffer
def test_layout_does_not_matter(name, make, size, layout, dtype, rng):
    """And compiles nothing more: a kernel compiled for each stray layout would cost a reader a second."""
    pair = getattr(kernels, name)
    args = make(draw(rng, dtype), *size)
    pair.numba(*args)
    compiled = specialisations()
    views = [layout(a) if isinstance(a, np.ndarray) else a for a in args]
    assert_same(pair.numba(*views), pair.numpy(*args), dtype)
    assert specialisations() == compiled


@DTYPES
@pytest.mark.parametrize("name, make, size", cases(2))
def test_nan_comes_out_where_the_spec_says(name, make, size, dtype, rng):
    """A compiler that may assume "no NaN" would hide a diverged run."""
    pair = getattr(kernels, name)
    args = make(draw(rng, dtype), *size)
    for i, a in enumerate(args):
        if not isinstance(a, np.ndarray) or a.dtype != dtype:
            continue
        seen = False
        for position in a.size // 3, -1:
            bad = a.copy()
            bad.flat[position] = np.nan
            spoilt = (*args[:i], bad, *args[i + 1 :])
            for x, y in zip(arrays(pair.numba(*spoilt)), arrays(pair.numpy(*spoilt)), strict=True):
                found, wanted = np.isnan(x), np.isnan(y)
                if name == "conv2d_backward":
                    found &= wanted  # it multiplies a NaN by the zeros around the image too, and so has more of them
                np.testing.assert_array_equal(found, wanted)
                seen |= found.any()
        assert seen or (name, i) == ("group_norm_backward", 2)  # beta, which only decides what a ReLU lets pass


# The optimisers write into their arguments: w first, then the state.
STEPS = [("adamw", 4, (1e-2, 0.9, 0.999, 1e-8, 0.1, step)) for step in (1, 2, 1000)] + [
    ("sgd", 3, (1e-2, 0.9, 0.1)),
    ("sgd", 3, (1e-2, 0.0, 0.0)),
    ("add_into", 2, ()),
]


@DTYPES
@pytest.mark.parametrize("size", [0, 1, 1003])
@pytest.mark.parametrize("name, count, options", STEPS)
def test_update_equals_its_spec(name, count, options, size, dtype, rng):
    pair = getattr(kernels, name)
    start = [np.abs(rng.standard_normal(size)).astype(dtype) for _ in range(count)]
    fast, spec = [a.copy() for a in start], [a.copy() for a in start]
    pair.numba(*fast, *options)
    pair.numpy(*spec, *options)
    for a, b in zip(fast, spec, strict=True):
        assert_same(a, b, dtype)
    assert np.array_equal(fast[1], start[1]), "the gradient was changed"


@DTYPES
@SIDES
@pytest.mark.parametrize("name, count, options", STEPS)
def test_a_nan_in_the_gradient_shows_in_the_weights(name, count, options, side, dtype):
    """A diverged run must not look healthy."""
    arrays = [np.ones(9, dtype) for _ in range(count)]
    w, g = arrays[:2]
    g[[2, -1]] = np.nan
    getattr(getattr(kernels, name), side)(*arrays, *options)
    np.testing.assert_array_equal(np.isnan(w), np.isnan(g))


def f32(*shape):
    return np.zeros(shape, np.float32)


def f64(*shape):
    return np.zeros(shape)


READ_ONLY, TWO = np.zeros(3, np.float32), np.zeros(2, np.int64)
READ_ONLY.flags.writeable = False
ADAMW, SGD = (1e-2, 0.9, 0.999, 1e-8, 0.1, 1), (1e-2, 0.9, 0.1)

# kernel, error, arguments: one thing is wrong in each row
WRONG = [
    ("softmax", TypeError, (np.zeros((2, 3), np.int64),)),
    ("softmax", TypeError, (np.zeros((2, 3), np.float16),)),
    ("softmax", TypeError, (np.zeros((2, 3), np.dtype(np.float32).newbyteorder()),)),
    ("softmax", ValueError, (f32(2, 0),)),
    ("softmax", ValueError, (f32(),)),
    ("softmax_backward", ValueError, (f32(2, 3), f32(2, 4))),
    ("softmax_backward", ValueError, (f32(2, 0), f32(2, 0))),
    ("softmax_backward", TypeError, (f32(2, 3), f64(2, 3))),
    ("attention", ValueError, (f32(5, 12), 2, 1.0)),
    ("attention", ValueError, (f32(1, 5, 13), 2, 1.0)),
    ("attention", ValueError, (f32(1, 0, 12), 2, 1.0)),
    ("attention", ValueError, (f32(1, 5, 12), 0, 1.0)),
    ("attention", ValueError, (f32(1, 5, 12), 2, -1.0)),
    ("attention", TypeError, (f32(1, 5, 12).astype(np.int64), 2, 1.0)),
    ("attention_backward", ValueError, (f32(1, 5, 12), f32(1, 2, 5, 4), f32(1, 5, 4), 2, 1.0)),
    ("attention_backward", ValueError, (f32(1, 5, 12), f32(1, 2, 5, 5), f32(1, 4, 4), 2, 1.0)),
    ("attention_backward", TypeError, (f32(1, 5, 12), f32(1, 2, 5, 5), f64(1, 5, 4), 2, 1.0)),
    ("batched_matmul", ValueError, (f32(2, 2, 3), f32(1, 3, 2))),
    ("batched_matmul", ValueError, (f32(2, 2, 3), f32(2, 4, 2))),
    ("batched_matmul", ValueError, (f32(2, 3), f32(3, 2))),
    ("batched_matmul", TypeError, (f32(2, 2, 3), f64(2, 3, 2))),
    ("layernorm", ValueError, (f32(2, 5), f32(4), f32(5), 1e-6)),
    ("layernorm", ValueError, (f32(2, 5), f32(5), f32(1), 1e-6)),
    ("layernorm", ValueError, (f32(2, 0), f32(0), f32(0), 1e-6)),
    ("layernorm", ValueError, (f32(5), f32(5), f32(5), 1e-6)),
    ("layernorm", TypeError, (f32(2, 5), f64(5), f64(5), 1e-6)),
    ("layernorm_backward", ValueError, (f32(2, 5), f32(5), f32(1), f32(2), f32(2, 5))),
    ("layernorm_backward", ValueError, (f32(2, 5), f32(4), f32(2), f32(2), f32(2, 5))),
    ("layernorm_backward", ValueError, (f32(2, 5), f32(5), f32(2), f32(2), f32(1, 5))),
    ("layernorm_backward", TypeError, (f32(2, 5), f32(5), f32(2), f64(2), f32(2, 5))),
    ("group_norm", ValueError, (f32(2, 5, 4), f32(4), f32(3), 2, 1e-5, False)),
    ("group_norm", ValueError, (f32(2, 5, 4), f32(4), f32(4), 3, 1e-5, False)),
    ("group_norm", ValueError, (f32(2, 0, 4), f32(4), f32(4), 2, 1e-5, False)),
    ("group_norm", TypeError, (f32(2, 5, 4), f64(4), f64(4), 2, 1e-5, False)),
    ("group_norm_backward", ValueError, (f32(2, 5, 4), f32(4), f32(4), f32(2, 2), f32(2, 2), f32(2, 4, 4), 1e-5, True)),
    ("group_norm_backward", ValueError, (f32(2, 5, 4), f32(4), f32(4), f32(2, 2), f32(1, 2), f32(2, 5, 4), 1e-5, True)),
    ("group_norm_backward", TypeError, (f32(2, 5, 4), f32(4), f32(4), f32(2, 2), f64(2, 2), f32(2, 5, 4), 1e-5, True)),
    ("gelu", TypeError, (np.arange(3), False)),
    ("gelu_backward", ValueError, (f32(2, 3), f32(3), True)),
    ("gelu_backward", TypeError, (f32(2, 3), f64(2, 3), False)),
    ("cross_entropy", ValueError, (f32(3, 4), TWO, 0.0)),
    ("cross_entropy", ValueError, (f32(2), TWO, 0.0)),
    ("cross_entropy", ValueError, (f32(0, 0), TWO[:0], 0.0)),
    ("cross_entropy", TypeError, (f32(2, 4), f32(2), 0.0)),
    ("cross_entropy", TypeError, (f32(2, 4).astype(np.float16), TWO, 0.0)),
    ("cross_entropy_backward", ValueError, (f32(2, 4), TWO, f32(1), 0.0)),
    ("cross_entropy_backward", ValueError, (f32(3, 4), TWO, f32(3), 0.0)),
    ("cross_entropy_backward", TypeError, (f32(2, 4), TWO, f64(2), 0.0)),
    ("soft_cross_entropy", ValueError, (f32(3, 4), f32(3, 3), 0.0)),
    ("soft_cross_entropy", ValueError, (f32(3, 4), TWO, 0.0)),
    ("soft_cross_entropy", ValueError, (f32(3, 0), f32(3, 0), 0.0)),
    ("soft_cross_entropy", TypeError, (f32(3, 4), f64(3, 4), 0.0)),
    ("soft_cross_entropy_backward", ValueError, (f32(3, 4), f32(3, 4), f32(2), 0.0)),
    ("soft_cross_entropy_backward", ValueError, (f32(3, 4), f32(3, 3), f32(3), 0.0)),
    ("soft_cross_entropy_backward", TypeError, (f32(3, 4), f32(3, 4), f64(3), 0.0)),
    ("im2col", ValueError, (f32(8, 8, 3), (4, 4), 4, 0)),
    ("im2col", ValueError, (f32(1, 3, 8, 3), (4, 4), 4, 0)),
    ("im2col", ValueError, (f32(1, 8, 8, 3), (4, 0), 4, 0)),
    ("im2col", ValueError, (f32(1, 8, 8, 3), (4, 4), 0, 0)),
    ("im2col", ValueError, (f32(1, 8, 8, 3), (4, 4), 4, -1)),
    ("im2col", TypeError, (np.zeros((1, 8, 8, 3), np.uint8), (4, 4), 4, 0)),
    ("col2im", ValueError, (f32(1, 2, 3, 48), (1, 8, 8, 3), (4, 4), 4, 0)),
    ("col2im", ValueError, (f32(1, 1, 1, 48), (1, 3, 3, 3), (4, 4), 4, 0)),
    ("col2im", TypeError, (np.zeros((1, 2, 2, 48), np.int64), (1, 8, 8, 3), (4, 4), 4, 0)),
    ("conv2d", ValueError, (f32(1, 4, 4, 2), f32(3, 3, 3, 4), None, 1, 1)),
    ("conv2d", ValueError, (f32(1, 4, 4, 2), f32(3, 3, 2, 4), f32(3), 1, 1)),
    ("conv2d", ValueError, (f32(1, 2, 4, 2), f32(3, 3, 2, 4), None, 1, 0)),
    ("conv2d", ValueError, (f32(1, 4, 4, 2), f32(3, 3, 2, 4), None, 0, 1)),
    ("conv2d", ValueError, (f32(4, 4, 2), f32(3, 3, 2, 4), None, 1, 1)),
    ("conv2d", TypeError, (f32(1, 4, 4, 2), f64(3, 3, 2, 4), None, 1, 1)),
    ("conv2d_backward", ValueError, (f32(1, 4, 4, 2), f32(3, 3, 2, 4), f32(1, 4, 3, 4), 1, 1)),
    ("conv2d_backward", ValueError, (f32(1, 4, 4, 2), f32(3, 3, 2, 4), f32(1, 4, 4, 4), 2, 1)),
    ("conv2d_backward", TypeError, (f32(1, 4, 4, 2), f32(3, 3, 2, 4), f64(1, 4, 4, 4), 1, 1)),
    ("warp", ValueError, (f32(1, 4, 4, 1), f32(2, 2, 3))),
    ("adamw", ValueError, (f32(3), f32(3), f32(2), f32(3), *ADAMW)),
    ("adamw", ValueError, (f32(3), f32(3), f32(3), f32(1), *ADAMW)),
    ("adamw", ValueError, (f32(3, 1), f32(3, 1), f32(3, 1), f32(3, 1), *ADAMW)),
    ("adamw", ValueError, (READ_ONLY, f32(3), f32(3), f32(3), *ADAMW)),
    ("adamw", ValueError, (f32(3), f32(3), f32(3), READ_ONLY, *ADAMW)),
    ("adamw", ValueError, (f32(3), f32(3), f32(3), f32(3), *ADAMW[:-1], 0)),
    ("adamw", TypeError, (f32(3), f64(3), f32(3), f32(3), *ADAMW)),
    ("sgd", ValueError, (f32(3), f32(1), f32(3), *SGD)),
    ("sgd", ValueError, (f32(3), f32(3), READ_ONLY, *SGD)),
    ("sgd", TypeError, (f32(3), f32(3), f64(3), *SGD)),
    ("add_into", ValueError, (f32(3), f32(1))),
    ("add_into", ValueError, (READ_ONLY, f32(3))),
    ("add_into", TypeError, (f32(3), f64(3))),
    ("squared_norm", ValueError, (f32(3, 1),)),
    ("squared_norm", TypeError, (np.arange(3),)),
]  # fmt: skip


@SIDES
@pytest.mark.parametrize("name, error, args", WRONG)
def test_a_wrong_call_is_a_clear_error(name, error, args, side):
    """Without a check at the door, compiled code would read and write beyond an array's end, or hand out garbage."""
    with pytest.raises(error, match=f"{name.removesuffix('_backward')}.* (must|needs) .*got "):
        getattr(getattr(kernels, name), side)(*args)


@SIDES
def test_updates_are_pytorchs(side, rng):
    torch = pytest.importorskip("torch")
    w, grads = rng.standard_normal(50), rng.standard_normal((5, 50))
    for name in "adamw", "sgd":
        theirs = torch.nn.Parameter(torch.tensor(w))
        if name == "adamw":
            optimiser = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2)
        else:
            optimiser = torch.optim.SGD([theirs], lr=0.01, momentum=0.9, weight_decay=0.2)
        ours, m, v = w.copy(), np.zeros(50), np.zeros(50)
        for step, g in enumerate(grads, start=1):
            theirs.grad = torch.tensor(g)
            optimiser.step()
            if name == "adamw":
                getattr(kernels.adamw, side)(ours, g, m, v, 0.01, 0.8, 0.95, 1e-3, 0.2, step)
            else:
                getattr(kernels.sgd, side)(ours, g, m, 0.01, 0.9, 0.2)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)


@SIDES
@DTYPES
@pytest.mark.parametrize(
    "logits, label, loss",
    [([1000, 1000], 0, math.log(2)), ([-1000, -1000], 1, math.log(2)), ([1e4, 0], 1, 1e4), ([1e4, 0], 0, 0)],
)
def test_cross_entropy_at_the_extremes(logits, label, loss, dtype, side):
    got, p = getattr(kernels.cross_entropy, side)(np.array([logits], dtype), np.array([label]), 0.0)
    np.testing.assert_allclose(got, loss, rtol=1e-6, atol=0)
    assert np.isfinite(p).all() and abs(p.sum() - 1) < 1e-6


@SIDES
@DTYPES
@pytest.mark.parametrize("large", [1000, -1000, 1e4, -1e4])
def test_softmax_at_the_extremes(large, dtype, side):
    """Where e^x overflows, or is 0 for the whole row: without the maximum trick this is NaN."""
    p = getattr(kernels.softmax, side)(np.array([[large, large - 1], [large, -large]], dtype))
    larger = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(p, [[larger, 1 - larger], [large > 0, large < 0]], rtol=1e-6)


@SIDES
@DTYPES
@pytest.mark.parametrize("large", [1000, -1000, 1e4, -1e4])
def test_attention_at_the_extremes(large, dtype, side):
    """Scores [large, large - 1] for the first token, [-large, 1 - large] for the second."""
    q, k, v = [1, -1], [large, large - 1], [1, 0]
    qkv = np.stack([q, k, v], axis=1)[None].astype(dtype)  # (1, 2, 3): one image, two tokens, K = 1
    out, p = getattr(kernels.attention, side)(qkv, 1, 1.0)
    larger = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(p[0, 0], [[larger, 1 - larger], [1 - larger, larger]], rtol=1e-6)
    np.testing.assert_allclose(out[0, :, 0], [larger, 1 - larger], rtol=1e-6)


@SIDES
@pytest.mark.parametrize("bad", [-1, 3])
def test_a_label_outside_of_the_classes_is_an_error(bad, side):
    """The loops use it as an index. The backward kernel is no less dangerous than the forward one."""
    x, labels = np.zeros((2, 3)), np.array([1, bad])
    message = rf"labels must be in \[0, 3\), the classes; got {min(1, bad)} to {max(1, bad)}"
    with pytest.raises(ValueError, match=message):
        getattr(kernels.cross_entropy, side)(x, labels, 0.0)
    with pytest.raises(ValueError, match=message):
        getattr(kernels.cross_entropy_backward, side)(x, labels, np.zeros(2), 0.0)


@SIDES
def test_squared_norm_does_not_overflow(side):
    g = np.array([3e20, 4e20], np.float32)
    assert getattr(kernels.squared_norm, side)(g) == pytest.approx(2.5e41, rel=1e-6)


@SIDES
def test_layernorm_survives_a_large_mean(side):
    """The one-pass variance Σ x² - D μ² would be off by thousands here."""
    x = np.array([[4096, 4097, 4098, 4099]], np.float32)
    y, _, _ = getattr(kernels.layernorm, side)(x, np.ones(4, np.float32), np.zeros(4, np.float32), 0.0)
    np.testing.assert_allclose(y[0], np.array([-3, -1, 1, 3]) / math.sqrt(5), rtol=1e-6)


@SIDES
@pytest.mark.parametrize("how", [((4, 4), 4, 0), ((3, 3), 1, 1), ((3, 2), 2, 1)])
def test_col2im_is_the_adjoint_of_im2col(how, side, rng):
    x = rng.standard_normal((2, 8, 12, 3))
    cols = getattr(kernels.im2col, side)(x, *how)
    y = rng.standard_normal(cols.shape)
    back = getattr(kernels.col2im, side)(y, x.shape, *how)
    assert (cols * y).sum() == pytest.approx((x * back).sum(), rel=1e-12)


# elementary: called from loops, so tested in one


@kernels.jit
def exp_of(x, out):
    for i in range(x.size):
        out[i] = elementary.exp(x[i])


@kernels.jit
def normal_of(x, cdf, density):
    for i in range(x.size):
        cdf[i], density[i] = elementary.normal(x[i])


def exps(x):
    out = np.empty_like(x)
    exp_of(x, out)
    return out


def test_exp_is_within_two_ulps_everywhere():
    """Over every 1021st of all float32 numbers: an ulp is the distance of neighbouring floats there."""
    bits = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore", under="ignore"):
        want = np.exp(x.astype(np.float64))
        got = exps(x)
        inside = want < 2.0**128 * (1 - 2.0**-25)  # beyond that the nearest float32 is infinity
        assert np.isposinf(got[~inside]).all()
        ulp = 2.0 ** (np.floor(np.log2(np.maximum(want[inside], 2.0**-126))) - 23)
    assert (np.abs(got[inside] - want[inside]) / ulp).max() < 1.1


def test_exp_at_the_extremes():
    x = np.array([0, np.inf, -np.inf, 88.72283, 88.72284, -103.97, -103.98, np.nan], np.float32)
    want = [1, np.inf, 0, 3.4028e38, np.inf, 2.0**-149, 0, np.nan]
    np.testing.assert_allclose(exps(x), want, rtol=1e-4)
    x = x.astype(np.float64)
    np.testing.assert_array_equal(exps(x), np.exp(x))


@pytest.mark.parametrize("dtype, rtol, atol", [(np.float32, 1.5e-6, 5e-7), (np.float64, 1e-14, 1e-15)])
def test_normal_distribution_keeps_its_relative_accuracy_in_the_tail(dtype, rtol, atol):
    x = np.linspace(-6, 6, 200_001).astype(dtype)
    cdf, density = np.empty_like(x), np.empty_like(x)
    normal_of(x, cdf, density)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(cdf, special.ndtr(exact), rtol=rtol)
    np.testing.assert_allclose(density, np.exp(-exact * exact / 2) / math.sqrt(2 * math.pi), rtol=rtol)
    np.testing.assert_allclose(  # erf(z) = 2 Φ(√2 z) - 1
        2 * cdf.astype(np.float64) - 1, special.erf(exact / math.sqrt(2)), rtol=0, atol=atol
    )


def test_normal_distribution_at_the_extremes():
    x = np.array([-np.inf, -40, 40, np.inf, np.nan], np.float32)
    cdf, density = np.empty_like(x), np.empty_like(x)
    normal_of(x, cdf, density)
    np.testing.assert_array_equal(cdf, [0, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(density, [0, 0, 0, 0, np.nan])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instructions' names are x86's")
@pytest.mark.parametrize("module, loop", [("gelu", "_gelu_exact"), ("softmax", "softmax_rows")])
def test_the_speed_comes_from_vector_instructions(module, loop):
    """A loop that ceases to vectorise still computes the right numbers, several times more slowly."""
    python = getattr(sys.modules[f"tinyvit.kernels.{module}"], loop).py_func
    fresh = kernels.jit(python, cache=False)  # cached code cannot be inspected
    x = np.ones((2, 3), np.float32)
    fresh(*((x, np.float32(1)) if loop == "softmax_rows" else (x.ravel(), x.ravel())))
    (assembly,) = fresh.inspect_asm().values()
    assert "mulps" in assembly  # several products at once; mulss is one
    assert "expf" not in assembly  # a call to the C library


def test_backend_switches_and_comes_back():
    assert kernels.backend() == "numba"
    with kernels.use("numpy"):
        assert kernels.backend() == "numpy"
        with kernels.use("numba"):
            assert kernels.backend() == "numba"
        assert kernels.backend() == "numpy"
    with pytest.raises(RuntimeError), kernels.use("numpy"):
        raise RuntimeError
    assert kernels.backend() == "numba"
    with pytest.raises(ValueError, match="numba, numpy; got 'cuda'"), kernels.use("cuda"):
        pass


def test_a_kernel_runs_the_active_side():
    both = kernels.Kernel(lambda: "spec").fast(lambda: "loop")
    assert both() == "loop"
    with kernels.use("numpy"):
        assert both() == "spec"


# backend.py afresh, from a copy of the package


@pytest.fixture
def copy(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    source = Path(sys.modules["tinyvit.kernels"].__file__).parent
    return shutil.copytree(source, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))


def import_backend(copy):
    spec = importlib.util.spec_from_file_location("copied_backend", copy / "backend.py")
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend


def test_an_edited_helper_moves_the_cache(copy):
    """Numba's own cache would go on serving kernels that were compiled with the old helper."""
    before = import_backend(copy).CACHE_FOLDER
    assert before == import_backend(copy).CACHE_FOLDER and before.parent == copy / "__pycache__"
    with open(copy / "elementary.py", "a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert import_backend(copy).CACHE_FOLDER != before


def test_a_new_cache_removes_those_of_days_ago(copy):
    """And only those: a process may still use a recent one, and the folder is not ours alone."""
    names = ["tinyvit-kernels-old", "tinyvit-kernels-recent", "another"]
    for name, hours in zip(names, (25, 23, 25), strict=True):
        folder = copy / "__pycache__" / name
        folder.mkdir(parents=True)
        (folder / "kernel.nbi").touch()
        os.utime(folder, (time.time() - hours * 3600,) * 2)
    new = import_backend(copy).CACHE_FOLDER
    assert {f.name for f in new.parent.iterdir() if f.is_dir()} == {*names[1:], new.name}


def test_using_a_cache_keeps_it_recent(copy):
    folder = import_backend(copy).CACHE_FOLDER
    os.utime(folder, (0, 0))
    import_backend(copy)
    assert time.time() - folder.stat().st_mtime < 3600


def test_an_old_cache_that_cannot_be_removed_stops_nobody(copy, monkeypatch):
    folder = copy / "__pycache__" / "tinyvit-kernels-old"
    folder.mkdir(parents=True)
    os.utime(folder, (0, 0))

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert import_backend(copy).CACHE_FOLDER.is_dir()


def test_a_user_without_a_home_has_a_cache_in_the_package(copy, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(platformdirs, "user_cache_dir", refuse)
    assert import_backend(copy).CACHE_FOLDER.parent == copy / "__pycache__"


def test_kernels_run_where_no_folder_is_writable():
    script = """
import platformdirs, tempfile

def no_home(*args, **kwargs):
    raise RuntimeError("could not determine the home directory")

def no_file(*args, **kwargs):
    raise PermissionError

platformdirs.user_cache_dir, tempfile.NamedTemporaryFile = no_home, no_file
import numpy as np
from tinyvit import kernels
kernels.announce_compilation()
print(kernels.CACHE_FOLDER, kernels.backend(), kernels.squared_norm(np.ones(3)))
"""
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    env |= {"PYTHONPATH": str(Path(sys.modules["tinyvit"].__file__).parents[1]), "PYTHONUTF8": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, encoding="utf-8")
    assert run.stdout == "None numba 3.0\n", run.stderr
    assert "in each run: set NUMBA_CACHE_DIR" in run.stderr


def test_the_first_run_says_that_it_compiles(copy, capsys):
    backend = import_backend(copy)
    backend.announce_compilation()
    assert "once per install" in capsys.readouterr().err
    (backend.CACHE_FOLDER / "kernel.nbi").touch()
    backend.announce_compilation()
    assert capsys.readouterr().err == ""


def test_without_numba_the_warning_says_why(copy, tmp_path, monkeypatch):
    """Numba may be installed and refuse this NumPy: "not installed" would send the user the wrong way."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numba")
    with pytest.warns(UserWarning, match="Numba needs NumPy 2.4 or less"):
        backend = import_backend(copy)
    assert backend.backend() == "numpy"
    with pytest.raises(ImportError, match="Numba needs NumPy 2.4 or less"), backend.use("numba"):
        pass


def test_without_compiling_the_kernels_are_numpys():
    """NUMBA_DISABLE_JIT is how people step through Numba code; ours needs the compiler for registers, and says so."""
    code = "from tinyvit import kernels; import numpy as np; assert kernels.softmax(np.ones((2, 20)))[0, 0] == 0.05"
    code += "; assert kernels.backend() == 'numpy'"
    environment = {k: v for k, v in os.environ.items() if k != "TINYVIT_KERNELS"} | {"NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "NUMBA_DISABLE_JIT is set" in run.stderr
