"""The engine: what is recorded, how the walk adds up, what is freed and when, and what it says to a mistake."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

from tinyvit import Tensor, check_finite, differentiable, no_grad, ops


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


# ------------------------------------------------------------------------------------------ what a Tensor holds


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1, 2], np.float32),
        (True, np.float32),
        (np.arange(3), np.float32),
        (np.ones(2, np.float16), np.float32),
        (np.ones(2, np.float32), np.float32),
        (np.ones(2), np.float64),
        (np.float64(1), np.float64),
    ],
)
def test_dtype_rules(data, dtype):
    assert Tensor(data).dtype == dtype


@pytest.mark.parametrize("data", ["text", 1j, None, [object()]])
def test_refuses_what_is_not_real_numbers(data):
    with pytest.raises((TypeError, ValueError)):
        Tensor(data)


def test_refuses_integer_dtype():
    with pytest.raises(TypeError, match="float32 or float64, got int"):
        Tensor([1], dtype=np.int64)


def test_copies_its_data():
    mine = np.ones(3)
    x = Tensor(mine)
    mine[0] = 5
    assert x.data[0] == 1
    x.numpy()[0] = 7
    x.detach().data[0] = 7
    np.asarray(x)[0] = 7
    assert x.data[0] == 1


def test_item_len_float_bool_repr():
    assert Tensor([[2.5]]).item() == 2.5 == float(Tensor(2.5))
    assert len(leaf(3, 2)) == 3 and bool(Tensor(1)) and not bool(Tensor(0))
    assert "shape=(2,)" in repr(Tensor([1.0, 2.0])) and "op=multiply" in repr(leaf(2) * 2)
    with pytest.raises(ValueError, match=r"one element, got shape \(2,\)"):
        leaf(2).item()
    with pytest.raises(TypeError, match="without axes"):
        len(Tensor(1.0))


# ------------------------------------------------------------------------------------------ the walk


def test_a_tensor_used_twice_gets_both_terms():
    x = leaf(3)
    (x + x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 2.0))


def test_diamond_is_walked_once_per_node():
    """y = (2x)·(3x) through a shared node: dy/dx = 12x. A depth-first walk that visits the shared node at its first
    consumer gives the wrong number."""
    x, calls = Tensor(np.array([2.0]), requires_grad=True), []

    @differentiable
    def shared(a):
        def pullback(g):
            calls.append(g.copy())
            return g

        return a + 0, pullback

    s = shared(x)
    ((s * 2) * (s * 3)).backward()
    assert len(calls) == 1
    np.testing.assert_allclose(x.grad, [24.0])


def test_diamonds_stacked_50_deep_take_linear_time():
    """x ← x + x, 50 times: 2⁵⁰ paths, 50 nodes."""
    x = y = Tensor(np.array([1.0]), requires_grad=True)
    for _ in range(50):
        y = y + y
    y.backward()
    assert x.grad[0] == 2.0**50


def test_a_chain_of_100_000_ops_needs_no_recursion():
    x = y = Tensor(np.array([1.0]), requires_grad=True)
    for _ in range(100_000):
        y = -y
    y.backward()
    assert x.grad[0] == 1
    del y  # nor does freeing what is left


def test_an_unwalked_chain_of_100_000_ops_is_freed_without_recursion():
    x = y = Tensor(np.array([1.0]), requires_grad=True)
    for _ in range(100_000):
        y = -y
    del y
    assert not x.is_needed()


def test_gradients_accumulate_over_backwards_until_zeroed():
    x = leaf(3)
    (2 * x).sum().backward()
    (3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 5.0))


def test_only_leaves_that_ask_get_gradients():
    x, constant = leaf(3), Tensor(np.ones(3))
    y = x * constant
    y.sum().backward()
    assert constant.grad is None and y.grad is None and x.grad is not None


def test_a_gradient_does_not_alias_another():
    """add hands the same g to both inputs; changing one leaf's gradient must not change the other's."""
    a, b = leaf(3), leaf(3)
    (a + b).sum().backward()
    a.grad += 1
    np.testing.assert_array_equal(b.grad, np.ones(3))


def test_pullbacks_learn_which_inputs_want_a_gradient():
    told = []

    @differentiable
    def op(a, b, c):
        def pullback(g, wanted):
            told.append(wanted)
            return g, None, None

        return a + b + c, pullback

    op(leaf(2), Tensor(np.ones(2)), np.ones(2)).sum().backward()
    assert told == [[True, False, False]]


def test_seed_gradient():
    x = leaf(2, 3)
    seed = np.arange(6.0).reshape(2, 3)
    (2 * x).backward(seed)
    np.testing.assert_array_equal(x.grad, 2 * seed)


def test_no_grad_records_nothing():
    x = leaf(3)
    with no_grad():
        y = x * 2
    assert not y.requires_grad and not x.is_needed()
    assert (x * 2).requires_grad


def test_detach_cuts_the_graph():
    x = leaf(3)
    (x * x.detach()).sum().backward()
    np.testing.assert_array_equal(x.grad, x.data)


def test_a_pullback_with_a_default_is_no_pullback_with_wanted():
    """`lambda g, y=y: …` is an ordinary idiom; its second parameter is not for the engine."""

    @differentiable
    def exponential(a):
        y = np.exp(a)
        return y, lambda g, y=y: g * y

    x = leaf(3)
    exponential(x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.data))


def test_copies_and_pickles_leave_the_graph_behind():
    """A copy made while a graph is alive collects its own gradients."""
    x = leaf(3)
    y = x * 2
    for twin in (copy.deepcopy(x), copy.copy(x), pickle.loads(pickle.dumps(x))):
        (twin * 3).sum().backward()
        np.testing.assert_array_equal(twin.grad, np.full(3, 3.0))
        assert not np.shares_memory(twin.data, x.data)
    assert x.grad is None and y.requires_grad


def test_a_gradient_is_an_array_also_for_a_number():
    x = Tensor(2.0, requires_grad=True)
    (x * x).backward()
    assert isinstance(x.grad, np.ndarray) and x.grad == 4


# ------------------------------------------------------------------------------------------ memory


def test_a_graph_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        x = leaf(3)
        y = (x * 2).exp()
        node = weakref.ref(y._node)
        z = y.sum()
        del y, z
        assert node() is None
    finally:
        gc.enable()


def test_backward_frees_each_steps_memory_as_it_passes():
    """While an early op's pullback runs, what later ops remembered is gone already."""
    alive = []

    @differentiable
    def early(a):
        def pullback(g):
            alive.append(remembered() is not None)
            return g

        return a * 1, pullback

    x = leaf(1000)
    y = early(x).exp()  # exp's pullback remembers its result
    remembered = weakref.ref(y._array)
    z = y.sum()
    del y
    z.backward()
    assert alive == [False]


# ------------------------------------------------------------------------------------------ in-place edits


def test_an_edit_that_a_pullback_would_notice_is_refused():
    x = leaf(3)
    y = x * x
    for edit in (lambda: x.__setitem__(0, 1.0), lambda: setattr(x, "data", np.ones(3))):
        with pytest.raises(RuntimeError, match="in-place edit"):
            edit()
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        x.data -= 1
    with pytest.raises(RuntimeError, match="in-place edit"):
        y[0] = 1  # y's own pullback may remember it, as exp's does


def test_edits_are_free_before_and_after():
    x = leaf(3)
    x[0] = 7
    (x * x).sum().backward()
    x.data -= 0.1 * x.grad
    x.data = np.zeros(3)
    x[:2] = Tensor(np.ones(2))
    np.testing.assert_array_equal(x.data, [1, 1, 0])


def test_a_dropped_graph_unlocks_its_inputs():
    x = leaf(3)
    y = x * 2
    assert x.is_needed()
    del y
    x[0] = 1


def test_an_unrecorded_view_is_a_copy():
    """Else an edit of the one would reach a graph that remembers the other."""
    c, w = Tensor(np.ones(3)), leaf(3)
    y = (c.reshape(3) * w).sum()
    c[0] = 100
    y.backward()
    np.testing.assert_array_equal(w.grad, np.ones(3))


def test_setting_data_keeps_shape_and_memory():
    x = leaf(3)
    memory = x.data
    x.data = [1, 2, 3]
    assert memory is x.data and x.dtype == np.float64
    with pytest.raises(ValueError, match="broadcast"):
        x.data = np.ones(4)


# ------------------------------------------------------------------------------------------ errors


def test_backward_without_graph():
    with pytest.raises(RuntimeError, match="no graph"):
        Tensor([1.0]).backward()


def test_backward_of_many_numbers_needs_a_seed():
    with pytest.raises(ValueError, match=r"shape \(3,\) needs the seed gradient"):
        (leaf(3) * 2).backward()
    with pytest.raises(ValueError, match=r"must have shape \(3,\), got \(2,\)"):
        (leaf(3) * 2).backward(np.ones(2))


def test_a_graph_serves_once():
    x = leaf(3)
    y = x.exp()
    y.sum().backward()
    with pytest.raises(RuntimeError, match="reached exp, whose graph an earlier backward"):
        y.mean().backward()


def test_shape_mismatch_names_op_and_shapes():
    with pytest.raises(ValueError, match=r"add: shapes \(3,\) and \(4,\)"):
        leaf(3) + leaf(4)
    with pytest.raises(ValueError, match=r"matmul: shapes \(2, 3\) and \(4, 2\): .*inner sizes"):
        leaf(2, 3) @ leaf(4, 2)


def test_mixed_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"add: tensors must share one dtype, got float64 and float32.*astype"):
        leaf(3) + Tensor(np.ones(3, np.float32))


def test_constants_follow_the_tensor():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    for y in (x * 2, 2 * x, x * np.ones(3), np.ones(3) * x, x / np.float64(3), 1 - x):
        assert isinstance(y, Tensor) and y.dtype == np.float32


def test_an_op_that_promotes_is_caught():
    @differentiable
    def careless(a):
        return a * np.sqrt(np.float64(2)), lambda g: g

    with pytest.raises(TypeError, match="careless must return float32"):
        careless(Tensor(np.ones(3, np.float32)))


def test_a_pullback_that_promotes_or_missizes_is_caught():
    @differentiable
    def promotes(a):
        return a * 1, lambda g: g * np.float64(2)

    @differentiable
    def missizes(a):
        return a * 1, lambda g: np.ones(5, g.dtype)

    for op, error in ((promotes, TypeError), (missizes, ValueError)):
        with pytest.raises(error, match=f"pullback of {op.__name__} returned"):
            op(Tensor(np.ones(3, np.float32), requires_grad=True)).sum().backward()


def test_an_op_or_a_pullback_of_the_wrong_form_is_named():
    @differentiable
    def no_pullback(a):
        return a + 1

    @differentiable
    def too_few(a, b):
        return a + b, lambda g: g

    @differentiable
    def nothing(a):
        return a + 1, lambda g: None

    with pytest.raises(TypeError, match=r"no_pullback must return \(output array, pullback\), got ndarray"):
        no_pullback(leaf(3))
    with pytest.raises(ValueError, match="too_few must return a gradient for each of its 2 .* got 1"):
        too_few(leaf(3), leaf(3)).sum().backward()
    with pytest.raises(TypeError, match="pullback of nothing must return an array .* got None"):
        nothing(leaf(3)).sum().backward()


def test_what_would_silently_leave_the_graph_is_refused():
    x = leaf(3)
    for mistake in (lambda: Tensor(x), lambda: Tensor([x.sum(), x.sum()]), lambda: x + [x, x]):
        with pytest.raises(TypeError, match="detach|ops.stack"):
            mistake()
    with pytest.raises(TypeError, match="x.data == y.data"):
        x == leaf(3)  # noqa: B015
    assert {x: 1}[x] == 1


def test_dtypes_are_compared_by_value():
    """An unpickled array carries a dtype object of its own."""
    x = Tensor(pickle.loads(pickle.dumps(np.ones(3))), requires_grad=True)
    (x * leaf(3)).sum().backward()
    assert x.grad.shape == (3,)


def test_numpy_ufuncs_do_not_loop_over_tensors():
    with pytest.raises(TypeError):
        np.exp(leaf(3))


# ------------------------------------------------------------------------------------------ finding the first NaN


def test_check_finite_names_the_first_op():
    x = Tensor([-1.0, 4.0], requires_grad=True)
    with np.errstate(invalid="ignore"), check_finite(), pytest.raises(FloatingPointError, match="sqrt.*first op"):
        (ops.sqrt(x) * 2).sum()


def test_check_finite_watches_the_backward_pass_too():
    x = Tensor([0.0, 4.0], requires_grad=True)
    with np.errstate(divide="ignore"), check_finite(), pytest.raises(FloatingPointError, match="gradient of sqrt"):
        ops.sqrt(x).sum().backward()
