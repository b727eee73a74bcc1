"""Each op of the tape, said once more in the words of ONNX.

Each of our ops is an operator of ONNX, or a few of them. A rule has its op's signature, with a Graph in front: a linear
layer is linear(x, weight, bias) where it computes, and linear(g, x, weight, bias) here. Its inputs are Values, which
have a name and a shape in place of numbers, and it returns the name of its result. Images stay (B, h, w, C); a
convolution, which ONNX wants channels first, stands between two transposes, which runtimes know how to take out.

The operators: https://onnx.ai/onnx/operators, as of opset 21.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

from typing import NamedTuple

import numpy as np

FIRST, LAST = np.iinfo(np.int64).min, np.iinfo(np.int64).max  # in a Slice: as far as the axis goes


class Value(NamedTuple):
    """What stands for an array. A size of -k in its shape is k for each image of the batch."""

    name: str
    shape: tuple[int, ...]


class Graph:
    """An ONNX graph in the making: `nodes`, each (operator, input names, output name, attributes), in order, and
    `constants`, {name: array}."""

    def __init__(self):
        self.nodes, self.constants = [], {}
        self._names = {}  # of constants, by content

    def __call__(self, operator, *inputs, **attributes):
        """Add a node; the name of its result. Inputs are Values or names, numbers and arrays, or None where absent."""
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append((operator, [self._name(x) for x in inputs], output, attributes))
        return output

    def _name(self, x):
        if x is None:
            return ""
        if isinstance(x, Value):
            return x.name
        return x if isinstance(x, str) else self.constant(x)

    def constant(self, values, name=None):
        """The name of a constant; of one that is there already if it has no name of its own. Whole numbers become
        int64, which is what ONNX wants for shapes and indices, all others float32."""
        array = np.asarray(values)
        array = np.ascontiguousarray(array, np.int64 if array.dtype.kind in "iu" else np.float32).reshape(array.shape)
        if name is None:
            key = array.dtype, array.shape, array.tobytes()
            name = self._names.setdefault(key, f"constant_{len(self._names)}")
        self.constants[name] = array
        return name

    def sizes(self, shape):
        """The name of a shape as an array, which for a shape with the batch in it is known only when the graph runs."""
        if all(size >= 0 for size in shape):
            return self.constant(shape)
        batch = self("Shape", "images", start=0, end=1)
        return self("Concat", *(self("Mul", batch, [-size]) if size < 0 else [size] for size in shape), axis=0)


def elementwise(operator):
    """The rule of an op that is an operator of ONNX."""
    return lambda g, *inputs: g(operator, *inputs)


def power(g, x, *, exponent):
    return g("Pow", x, float(exponent))


# ---------------------------------------------------------------------------------------------- reductions, shapes


def _axes(x, axis):
    return list(range(len(x.shape))) if axis is None else list(axis) if isinstance(axis, tuple) else [axis]


def sum(g, x, *, axis=None, keepdims=False):
    return g("ReduceSum", x, _axes(x, axis), keepdims=int(keepdims))


def max(g, x, *, axis=None, keepdims=False):
    return g("ReduceMax", x, _axes(x, axis), keepdims=int(keepdims))


def reshape(g, x, *, shape):
    batch = [size for size in shape if size < 0]
    if len(batch) == 1:  # one size may be left open
        return g("Reshape", x, [-1 if size < 0 else size for size in shape])
    return g("Reshape", x, g.sizes(shape))


def transpose(g, x, *, axes=None):
    n = len(x.shape)
    return g("Transpose", x, perm=[axis % n for axis in axes] if axes else list(range(n))[::-1])


def broadcast_to(g, x, *, shape):
    return g("Expand", x, g.sizes(shape))


def concatenate(g, *xs, axis):
    return g("Concat", *xs, axis=axis)


def getitem(g, x, *, index):
    """Slices, integers, None and ...; an array as index is `embedding`."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(part is None or part is ... or isinstance(part, int | np.integer | slice) for part in parts):
        raise ValueError("indices must be integers, slices, None or ..., for an array there is functional.embedding")
    at = parts.index(...) if ... in parts else len(parts)
    named = [part for part in parts if part is not None and part is not ...]
    parts[at : at + 1] = [slice(None)] * (len(x.shape) - len(named))

    cuts, gone, new, axis, place = [], [], [], 0, 0  # `axis` counts those of x, `place` those of the result
    for part in parts:
        if part is None:
            new.append(place)
        elif isinstance(part, slice):
            step = 1 if part.step is None else part.step
            start = (0 if step > 0 else LAST) if part.start is None else part.start
            stop = (LAST if step > 0 else FIRST) if part.stop is None else part.stop
            cuts += [(start, stop, axis, step)] if part != slice(None) else []
        else:
            cuts.append((part, part + 1 or LAST, axis, 1))
            gone.append(axis)
        axis += part is not None
        place += part is None or isinstance(part, slice)
    y = g("Slice", x, *map(list, zip(*cuts, strict=True))) if cuts else x
    y = g("Squeeze", y, gone) if gone else y
    return g("Unsqueeze", y, new) if new else g("Identity", y)


def embedding(g, table, *, index):
    return g("Gather", table, index, axis=0)


def patchify(g, images, *, patch):
    _, h, w, C = images.shape
    squares = g("Reshape", images, [-1, h // patch, patch, w // patch, patch, C])
    squares = g("Transpose", squares, perm=[0, 1, 3, 2, 4, 5])
    return g("Reshape", squares, [-1, (h // patch) * (w // patch), patch * patch * C])


# ---------------------------------------------------------------------------------------------- the ops of a ViT


def linear(g, x, weight, bias):
    y = g("MatMul", x, weight)
    return y if bias is None else g("Add", y, bias)


def linear_gelu(g, x, weight, bias, *, tanh=False):
    return gelu(g, linear(g, x, weight, bias), tanh=tanh)


def gelu(g, x, *, tanh=False):
    return g("Gelu", x, approximate="tanh" if tanh else "none")


def layer_norm(g, x, gamma, beta, *, eps=1e-6):
    return g("LayerNormalization", x, gamma, beta, axis=-1, epsilon=eps)


def softmax(g, x):
    return g("Softmax", x, axis=-1)


def attention(g, qkv, *, heads, maps=None):
    return biased_attention(g, qkv, None, heads=heads)


def biased_attention(g, qkv, bias, *, heads, maps=None):
    """softmax(q kᵀ / √K + bias) v, node by node: ONNX has attention as one operator from opset 23 on."""
    N, D = qkv.shape[1], qkv.shape[2] // 3
    K = D // heads
    by_heads, as_columns = [0, 2, 1, 3], [0, 2, 3, 1]  # (B, N, H, K) -> (B, H, N, K) or (B, H, K, N)

    def part(i, order):
        x = g("Slice", qkv, [i * D], [(i + 1) * D], [2])
        return g("Transpose", g("Reshape", x, [-1, N, heads, K]), perm=order)

    q, k, v = part(0, by_heads), part(1, as_columns), part(2, by_heads)
    scores = g("MatMul", g("Mul", q, K**-0.5), k)
    scores = scores if bias is None else g("Add", scores, bias)
    read = g("MatMul", g("Softmax", scores, axis=-1), v)
    return g("Reshape", g("Transpose", read, perm=by_heads), [-1, N, D])


# ---------------------------------------------------------------------------------------------- those of a ResNet


def _channels_first(g, x):
    return g("Transpose", x, perm=[0, 3, 1, 2])


def _channels_last(g, x):
    return g("Transpose", x, perm=[0, 2, 3, 1])


def conv2d(g, x, weight, bias, *, stride=1, padding=0):
    filters = g("Transpose", weight, perm=[3, 2, 0, 1])
    window = dict(kernel_shape=weight.shape[:2], strides=[stride] * 2, pads=[padding] * 4)
    return _channels_last(g, g("Conv", _channels_first(g, x), filters, bias, **window))


def standardise(g, weight, *, eps=1e-10):
    centred = g("Sub", weight, g("ReduceMean", weight, [0, 1, 2]))
    variance = g("ReduceMean", g("Mul", centred, centred), [0, 1, 2])
    return g("Div", centred, g("Sqrt", g("Add", variance, eps)))


def group_norm(g, x, gamma, beta, *, groups, eps=1e-6, relu=False):
    y = g("GroupNormalization", _channels_first(g, x), gamma, beta, num_groups=groups, epsilon=eps)
    y = _channels_last(g, y)
    return g("Relu", y) if relu else y


def add_relu(g, a, b):
    return g("Relu", g("Add", a, b))


def max_pool(g, x, *, size, stride=None, padding=0):
    window = dict(kernel_shape=[size] * 2, strides=[stride or size] * 2, pads=[padding] * 4)
    return _channels_last(g, g("MaxPool", _channels_first(g, x), **window))


def average_pool(g, x, *, size, stride=None):
    window = dict(kernel_shape=[size] * 2, strides=[stride or size] * 2)
    return _channels_last(g, g("AveragePool", _channels_first(g, x), **window))


OPERATORS = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "negative": "Neg", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "tanh": "Tanh", "absolute": "Abs", "maximum": "Max", "relu": "Relu", "matmul": "MatMul",
}  # fmt: skip
RULES = {op: elementwise(operator) for op, operator in OPERATORS.items()} | {
    rule.__name__: rule
    for rule in (
        power, sum, max, reshape, transpose, broadcast_to, concatenate, getitem, embedding, patchify, linear,
        linear_gelu, gelu, layer_norm, softmax, attention, biased_attention, conv2d, standardise, group_norm, add_relu,
        max_pool, average_pool,
    )
}  # fmt: skip
