"""Every primitive's derivative against differences, over shapes and broadcasts that nobody thought of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyvit import Tensor, gradcheck, ops

rng = np.random.default_rng(0)


def leaf(shape, low=-2.0, high=2.0):
    return Tensor(rng.uniform(low, high, shape), requires_grad=True)


# name: (function of Tensors, NumPy's own, range of the inputs, how many inputs)
ELEMENTWISE = {
    "add": (ops.add, np.add, (-2, 2), 2),
    "subtract": (ops.subtract, np.subtract, (-2, 2), 2),
    "multiply": (ops.multiply, np.multiply, (-2, 2), 2),
    "divide": (ops.divide, np.divide, (0.5, 2), 2),
    "maximum": (ops.maximum, np.maximum, (-2, 2), 2),
    "negative": (ops.negative, np.negative, (-2, 2), 1),
    "square": (lambda x: x**2, np.square, (-2, 2), 1),
    "power": (lambda x: x**-1.5, lambda x: x**-1.5, (0.5, 2), 1),
    "exp": (ops.exp, np.exp, (-2, 2), 1),
    "log": (ops.log, np.log, (0.5, 2), 1),
    "sqrt": (ops.sqrt, np.sqrt, (0.5, 2), 1),
    "tanh": (ops.tanh, np.tanh, (-2, 2), 1),
    "absolute": (ops.absolute, np.abs, (0.5, 2), 1),
    "relu": (ops.relu, lambda x: np.maximum(x, 0), (-2, 2), 1),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=0, max_dims=3, min_side=1, max_side=3))
def test_elementwise(name, shapes):
    """Values equal NumPy's; gradients have their input's shape, whatever was broadcast, and pass the check."""
    op, reference, (low, high), arity = ELEMENTWISE[name]
    inputs = [leaf(shape, low, high) for shape in shapes.input_shapes[:arity]]
    y = op(*inputs)
    np.testing.assert_allclose(y.data, reference(*(x.data for x in inputs)), rtol=1e-15)
    y.backward(np.ones(y.shape))
    assert [x.grad.shape for x in inputs] == [x.shape for x in inputs]
    gradcheck(op, *inputs)


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
    keepdims=st.booleans(),
    data=st.data(),
)
def test_reductions(shape, keepdims, data):
    axis = data.draw(
        st.none()
        | st.integers(-len(shape), len(shape) - 1)
        | st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1).map(tuple)
    )
    x = leaf(shape)
    for op, reference in ((ops.sum, np.sum), (ops.mean, np.mean), (ops.max, np.max)):
        y = op(x, axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(y.data, reference(x.data, axis=axis, keepdims=keepdims), rtol=1e-12)
        gradcheck(lambda x, op=op: op(x, axis=axis, keepdims=keepdims), x)


@given(
    m=st.integers(1, 4), k=st.integers(1, 4), n=st.integers(1, 4),
    batch=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=0, max_dims=2, max_side=3),
)  # fmt: skip
def test_matmul(m, k, n, batch):
    a, b = leaf((*batch.input_shapes[0], m, k)), leaf((*batch.input_shapes[1], k, n))
    np.testing.assert_allclose((a @ b).data, a.data @ b.data, rtol=1e-12)
    gradcheck(ops.matmul, a, b)


@pytest.mark.parametrize(
    ("left", "right"), [((3,), (3,)), ((3,), (3, 2)), ((3,), (4, 3, 2)), ((2, 3), (3,)), ((4, 2, 3), (3,))]
)
def test_matmul_with_vectors(left, right):
    a, b = leaf(left), leaf(right)
    np.testing.assert_allclose((a @ b).data, a.data @ b.data, rtol=1e-12)
    gradcheck(ops.matmul, a, b)


SHAPES = {
    "reshape": (lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1)),
    "reshape tuple": (lambda x: x.reshape((6, 4)), lambda x: x.reshape(6, 4)),
    "transpose": (lambda x: x.transpose(), lambda x: x.transpose()),
    "transpose axes": (lambda x: x.transpose(2, 0, 1), lambda x: x.transpose(2, 0, 1)),
    "T": (lambda x: x.T, lambda x: x.T),
    "mT": (lambda x: x.mT, lambda x: x.mT),
    "broadcast_to": (lambda x: ops.broadcast_to(x, shape=(5, 2, 3, 4)), lambda x: np.broadcast_to(x, (5, 2, 3, 4))),
    "slice": (lambda x: x[:, 1:, ::2], lambda x: x[:, 1:, ::2]),
    "negative step": (lambda x: x[::-1], lambda x: x[::-1]),
    "integer": (lambda x: x[1], lambda x: x[1]),
    "ellipsis, newaxis": (lambda x: x[..., None, 0], lambda x: x[..., None, 0]),
    "integer array": (lambda x: x[:, [0, 2, 2]], lambda x: x[:, [0, 2, 2]]),
    "two arrays": (lambda x: x[[0, 1, 1], [2, 0, 0]], lambda x: x[[0, 1, 1], [2, 0, 0]]),
    "boolean": (
        lambda x: x[np.arange(24).reshape(2, 3, 4) % 3 == 0],
        lambda x: x[np.arange(24).reshape(2, 3, 4) % 3 == 0],
    ),
    "list": (lambda x: x[[1, 0, 1]], lambda x: x[[1, 0, 1]]),
    "concatenate": (lambda x: ops.concatenate([x, 2 * x, x], axis=1), lambda x: np.concatenate([x, 2 * x, x], 1)),
    "stack": (lambda x: ops.stack([x, -x], axis=-1), lambda x: np.stack([x, -x], -1)),
    "where": (lambda x: ops.where(x, -x * x, condition=x.data > 0), lambda x: np.where(x > 0, x, -x * x)),
    "astype": (lambda x: x.astype(np.float64), lambda x: x),
    "iteration": (lambda x: sum(i * row for i, row in enumerate(x)), lambda x: 0 * x[0] + x[1]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_ops(name):
    op, reference = SHAPES[name]
    x = leaf((2, 3, 4))
    np.testing.assert_allclose(op(x).data, reference(x.data))
    gradcheck(op, x)


def test_every_primitive_is_checked():
    primitives = {
        name.lstrip("_") for name, op in vars(ops).items() if hasattr(op, "__wrapped__") and not name == "_astype"
    }
    elsewhere = {"sum", "max", "matmul", "getitem", "reshape", "transpose"}  # above and below, under other names
    assert primitives <= set(ELEMENTWISE) | set(SHAPES) | elsewhere


def test_repeated_indices_accumulate():
    x = Tensor(np.zeros(3), requires_grad=True)
    x[[0, 0, 0, 2]].sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 0, 1])


def test_an_index_array_edited_later_does_not_matter():
    x, index = Tensor(np.arange(3.0), requires_grad=True), np.array([0, 1])
    y = x[index]
    index[:] = 2
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1, 0])


@given(
    hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1, 1)),
    st.data(),
)
def test_basic_indexing_is_numpys(array, data):
    index = data.draw(hnp.basic_indices(array.shape, allow_newaxis=True))
    x = Tensor(array, requires_grad=True)
    y = x[index]
    np.testing.assert_array_equal(y.data, array[index])
    y.backward(np.ones(y.shape))
    expected = np.zeros_like(array)
    expected[index] = 1
    np.testing.assert_array_equal(x.grad, expected)


def test_stack_and_vectors_refuse_what_numpy_refuses():
    with pytest.raises(ValueError, match="concatenate"):
        ops.stack([leaf((2, 3)), leaf((3, 2))])
    with pytest.raises(ValueError, match="at least one"):
        ops.stack([])
    with pytest.raises(ValueError, match=r"matmul: shapes \(3,\) and \(1,\)"):
        leaf((3,)) @ leaf((1,))
    for axis in (0, 1, 2, -1, -2):
        a, b = leaf((2, 3)), leaf((2, 3))
        np.testing.assert_array_equal(ops.stack([a, b], axis).data, np.stack([a.data, b.data], axis))


def test_relu_has_derivative_0_at_0():
    x = Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    x.relu().sum().backward()
    assert x.grad.tolist() == [0, 0, 1]


def test_relu_keeps_a_nan():
    assert np.isnan(ops.relu(Tensor([np.nan, 1.0])).data).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constants_follow_the_tensor_in_every_product(dtype):
    x, v, ones = Tensor(np.ones((3, 3), dtype)), Tensor(np.ones(3, dtype)), np.ones(3)
    for y in (x @ ones, ones @ x, v @ ones, x @ [1, 2, 3], x @ np.eye(3), ops.stack([v, np.zeros(3)])):
        assert y.dtype == dtype


def test_an_axis_out_of_range_names_the_op():
    for join in (ops.concatenate, ops.stack):
        with pytest.raises(ValueError, match="axis 5"):
            join([leaf((3,)), leaf((3,))], 5)


def test_power_of_0_and_of_numpys_numbers():
    x = Tensor([0.0, 2.0], requires_grad=True)
    (x**0).sum().backward()
    assert x.grad.tolist() == [0, 0]
    for exponent in (np.int64(2), np.float32(2), np.float64(2)):
        assert (x**exponent).data.tolist() == [0, 4] and (x**exponent).dtype == np.float32


def test_methods_have_help():
    for name in ("sum", "mean", "max", "reshape", "transpose", "exp", "astype", "relu"):
        method = getattr(Tensor, name)
        assert method.__doc__ and method.__name__ != "<lambda>", name


def test_astype_between_the_two_floats():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    y = x.astype(np.float64) * np.arange(3.0)
    assert y.dtype == np.float64
    y.sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match="astype must return float32"):
        x.astype(np.int64)


def test_ties_share_the_gradient():
    x = Tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 0.5])
    a, b = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
    ops.maximum(a, b).sum().backward()
    np.testing.assert_array_equal(a.grad, b.grad)


def test_inputs_are_not_changed():
    """No op writes into its inputs or into the gradient that it is handed."""
    for op, _, (low, high), arity in ELEMENTWISE.values():
        inputs = [leaf((3, 2), low, high) for _ in range(arity)]
        before = [x.numpy() for x in inputs]
        seed = np.ones((3, 2))
        op(*inputs).backward(seed)
        for x, old in zip(inputs, before, strict=True):
            np.testing.assert_array_equal(x.data, old)
        np.testing.assert_array_equal(seed, 1)


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (lambda x: x[5], IndexError, "out of bounds"),
        (lambda x: x[x], TypeError, "not of Tensors"),
        (lambda x: x.reshape(5), ValueError, r"reshape: shapes \(2, 3\)"),
        (lambda x: x @ x, ValueError, "inner sizes"),
        (lambda x: x @ 2, ValueError, r"matmul: shapes \(2, 3\) and \(\)"),
        (lambda x: x @ x[:, 0], ValueError, "inner sizes, got 3 and 2"),
        (lambda x: ops.concatenate([x, x.T]), ValueError, r"concatenate: shapes \(2, 3\) and \(3, 2\)"),
        (lambda x: x ** Tensor(2.0), TypeError, "unsupported"),
        (lambda x: x[:0].mean(), ValueError, "no entries"),
        (lambda x: x.sum(axis=2), ValueError, r"sum: shapes \(2, 3\): axis 2"),
    ],
)
def test_errors(mistake, error, message):
    with pytest.raises(error, match=message):
        mistake(leaf((2, 3)))
