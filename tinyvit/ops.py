"""The primitives: elementwise, reductions, shapes, matmul. Each derivative stands under the thing it differentiates.

Every rule here is one line of a calculus textbook, because the engine does the rest: where broadcasting stretched an
input, `tensor.fit` sums its gradient; where a tensor is used twice, `tensor.walk` adds the terms. A pullback receives g
= dL/d(output), of the output's shape, and returns dL/d(input) for each positional argument.

The last lines attach the ops to Tensor as operators and methods.

Chapter of the course: notebooks/01-autograd.ipynb.
"""

import functools

import numpy as np

from tinyvit import memory
from tinyvit.tensor import Tensor, differentiable

# ---------------------------------------------------------------------------------------------- elementwise


@differentiable
def add(a, b):
    """a + b, entry by entry."""
    return memory.add(a, b), lambda g: (g, g)


@differentiable
def subtract(a, b):
    """a - b, entry by entry."""
    return a - b, lambda g: (g, -g)


@differentiable
def multiply(a, b):
    """a * b, entry by entry."""

    def pullback(g, wanted):  # d(ab) = b da + a db
        return g * b if wanted[0] else None, g * a if wanted[1] else None

    return a * b, pullback


@differentiable
def divide(a, b):
    """a / b, entry by entry."""

    def pullback(g, wanted):  # d(a/b) = da / b - a db / b²
        return g / b if wanted[0] else None, -g * a / (b * b) if wanted[1] else None

    return a / b, pullback


@differentiable
def negative(x):
    """-x."""
    return -x, lambda g: -g


@differentiable
def power(x, *, exponent):
    """x ** exponent for a constant Python number."""

    def pullback(g):
        return g * (exponent * x ** (exponent - 1)) if exponent else 0 * g  # x⁻¹ would spoil 0 · x⁻¹ at x = 0

    return x**exponent, pullback


@differentiable
def exp(x):
    """eˣ, entry by entry."""
    y = np.exp(x)
    return y, lambda g: g * y


@differentiable
def log(x):
    """The natural logarithm, entry by entry."""
    return np.log(x), lambda g: g / x


@differentiable
def sqrt(x):
    """√x, entry by entry."""
    y = np.sqrt(x)
    return y, lambda g: g / (2 * y)


@differentiable
def tanh(x):
    """The hyperbolic tangent, entry by entry."""
    y = np.tanh(x)
    return y, lambda g: g * (1 - y * y)


@differentiable
def absolute(x):
    """|x|, entry by entry; derivative 0 at 0."""
    return np.abs(x), lambda g: g * np.sign(x)


@differentiable
def maximum(a, b):
    """The larger of the two, entry by entry. Where they tie, each gets half of the gradient."""

    def pullback(g):
        share = (a > b) + (a == b) * np.asarray(0.5, g.dtype)  # of a: 1, ½ or 0
        return g * share, g * (1 - share)

    return np.maximum(a, b), pullback


def _array(x):
    """The values of a Tensor or of anything that NumPy reads."""
    return x._array if isinstance(x, Tensor) else np.asarray(x)


@differentiable
def relu(x):
    """max(x, 0), with derivative 0 at and below 0."""
    passes = ~(x <= 0)  # not "> 0": a NaN must stay one
    return np.where(passes, x, 0), lambda g: g * passes


@differentiable
def where(a, b, *, condition):
    """a where the boolean array `condition` holds, b elsewhere."""
    condition = np.array(condition, bool)
    return np.where(condition, a, b), lambda g: (g * condition, g * ~condition)


# ---------------------------------------------------------------------------------------------- reductions


def _axes(axis, ndim):
    """The reduced axes as a tuple of numbers from 0."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(np.lib.array_utils.normalize_axis_index(a, ndim) for a in axes)


@differentiable
def sum(x, *, axis=None, keepdims=False):
    """Sum over `axis`: one, a tuple, or all. Each summand gets the sum's gradient."""
    axes, shape = _axes(axis, x.ndim), x.shape
    kept = tuple(1 if i in axes else size for i, size in enumerate(shape))  # the result's shape with keepdims=True
    return x.sum(axis=axes, keepdims=keepdims), lambda g: np.broadcast_to(g.reshape(kept), shape)


def mean(x, *, axis=None, keepdims=False):
    """Average over `axis`: one, a tuple, or all."""
    total = sum(x, axis=axis, keepdims=keepdims)
    shape = _array(x).shape
    count = int(np.prod([shape[a] for a in _axes(axis, len(shape))]))
    if count == 0:
        raise ValueError(f"mean over no entries: shape {shape}, axis {axis}")
    return total * (1 / count)


@differentiable
def max(x, *, axis=None, keepdims=False):
    """The largest entry over `axis`. Equal largest entries share the gradient."""
    axes = _axes(axis, x.ndim)
    top = x.max(axis=axes, keepdims=True)

    def pullback(g):
        winners = (x == top).astype(x.dtype)
        return winners / winners.sum(axis=axes, keepdims=True) * g.reshape(top.shape)

    return top if keepdims else np.squeeze(top, axes), pullback


# ---------------------------------------------------------------------------------------------- shapes


@differentiable
def reshape(x, *, shape):
    """The same entries in row-major order under another shape; one size may be -1. A view."""
    old = x.shape
    return x.reshape(shape), lambda g: g.reshape(old)


@differentiable
def transpose(x, *, axes=None):
    """The axes in another order (reversed by default). A view."""
    return x.transpose(axes), lambda g: g.transpose(None if axes is None else np.argsort(axes))


@differentiable
def broadcast_to(x, *, shape):
    """x stretched to `shape` as NumPy broadcasts. A view; the engine sums the gradient back."""
    return np.broadcast_to(x, shape), lambda g: g


@differentiable
def getitem(x, *, index):
    """x[index]: slices, integers, None, ..., integer and boolean arrays, as NumPy reads them.

    An entry picked more than once gets the sum of its gradients, hence np.add.at, where `+=` would count it once.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            "an index is made of integers, slices and NumPy arrays, not of Tensors: use index.data.astype(int)"
        )
    basic = all(part is None or part is ... or isinstance(part, int | np.integer | slice) for part in parts)
    index = index if basic else tuple(np.array(p) if isinstance(p, list | np.ndarray) else p for p in parts)
    shape, dtype = x.shape, x.dtype

    def pullback(g):
        dx = np.zeros(shape, dtype)
        if basic:
            dx[index] = g
        else:
            np.add.at(dx, index, g)
        return dx

    return x[index], pullback


@differentiable
def _concatenate(*xs, axis):
    joined = np.concatenate(xs, axis)
    cuts = np.cumsum([x.shape[axis] for x in xs])[:-1]
    return joined, lambda g: tuple(np.split(g, cuts, axis))


def concatenate(xs, axis=0):
    """Join a sequence of tensors along an axis that they have."""
    return _concatenate(*xs, axis=axis)


def stack(xs, axis=0):
    """Join a sequence of tensors of one shape along a new axis."""
    if len(xs) == 0:
        raise ValueError("stack needs at least one tensor")
    return concatenate([_with_axis(x, axis) for x in xs], axis)


def _with_axis(x, axis):
    """x with a new axis of size 1, the `axis`-th of the result."""
    if isinstance(x, Tensor):
        return reshape(x, shape=np.expand_dims(x._array, axis).shape)
    return np.expand_dims(x, axis)  # a constant stays one, so that it takes the tensors' dtype


@differentiable
def astype(x, *, dtype):
    """x as another float type; its gradient comes back in x's own."""
    own = x.dtype
    return x.astype(dtype), lambda g: g.astype(own)


# ---------------------------------------------------------------------------------------------- matmul


@differentiable
def _matmul(a, b):
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"(…, M, K) @ (…, K, N) needs equal inner sizes, got {a.shape[-1]} and {b.shape[-2]}")

    def pullback(g, wanted):  # dL/dA = G Bᵀ, dL/dB = Aᵀ G
        return g @ b.mT if wanted[0] else None, a.mT @ g if wanted[1] else None

    return a @ b, pullback


def matmul(a, b):
    """(…, M, K) @ (…, K, N) -> (…, M, N); leading axes broadcast. A 1-D `a` stands for a row, a 1-D `b` for a
    column, and the result lacks that axis."""
    shapes = [_array(x).shape for x in (a, b)]
    if () in shapes:
        raise ValueError(f"matmul: shapes {shapes[0]} and {shapes[1]}: a number has no inner size; use *")
    if len(shapes[0]) == len(shapes[1]) == 1 and shapes[0] != shapes[1]:
        raise ValueError(f"matmul: shapes {shapes[0]} and {shapes[1]}: two vectors must have one length")
    if len(shapes[0]) == len(shapes[1]) == 1:
        return sum(multiply(a, b))
    if len(shapes[0]) == 1:
        return _matmul(_with_axis(a, 0), b)[..., 0, :]
    if len(shapes[1]) == 1:
        return _matmul(a, _with_axis(b, 1))[..., 0]
    return _matmul(a, b)


# ---------------------------------------------------------------------------------------------- Tensor's operators


def _power(x, exponent):
    """x ** exponent for a constant number."""
    if not isinstance(exponent, int | float | np.number):
        return NotImplemented
    return power(x, exponent=exponent.item() if isinstance(exponent, np.number) else exponent)


def _shape(sizes):
    """Both x.reshape(2, 3) and x.reshape((2, 3))."""
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _reduction(op):
    """The method of an op that reduces: here `axis` may stand without its name."""

    @functools.wraps(op)
    def method(self, axis=None, keepdims=False):
        return op(self, axis=axis, keepdims=keepdims)

    return method


@functools.wraps(reshape)
def _reshape(self, *sizes):
    return reshape(self, shape=_shape(sizes))


@functools.wraps(transpose)
def _transpose(self, *axes):
    return transpose(self, axes=_shape(axes) or None)


@functools.wraps(astype)
def _astype(self, dtype):
    return astype(self, dtype=dtype)


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda self, other: subtract(other, self)
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda self, other: divide(other, self)
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda self, other: matmul(other, self)
Tensor.__neg__ = negative
Tensor.__pow__ = _power
Tensor.__getitem__ = lambda self, index: getitem(self, index=index)
Tensor.__iter__ = lambda self: (self[i] for i in range(len(self)))

Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.tanh, Tensor.abs, Tensor.relu = exp, log, sqrt, tanh, absolute, relu
Tensor.sum, Tensor.mean, Tensor.max = map(_reduction, (sum, mean, max))
Tensor.reshape, Tensor.transpose, Tensor.astype = _reshape, _transpose, _astype
Tensor.T = property(transpose)
Tensor.mT = property(lambda self: transpose(self, axes=(*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)))
