"""The checker is checked: it passes what is right, catches an error of 0.1 %, and refuses what it cannot judge."""

import numpy as np
import pytest

from tinyvit import Tensor, differentiable, functional, gradcheck, jacobian, nn, ops

rng = np.random.default_rng(0)


def wrong_by(factor, entry=None):
    """x³ with a derivative that is off by `factor`, everywhere or at one entry."""

    @differentiable
    def cube(x):
        def pullback(g):
            scale = np.full(x.shape, factor) if entry is None else np.ones(x.shape)
            if entry is not None:
                scale[entry] = factor
            return g * 3 * x * x * scale

        return x**3, pullback

    return cube


def leaf(*shape):
    return Tensor(rng.uniform(0.5, 2, shape), requires_grad=True)


def test_passes_and_reports_errors_by_argument():
    errors = gradcheck(ops.multiply, leaf(3, 4), leaf(4))
    assert set(errors) == {"argument 0", "argument 1"} and max(errors.values()) < 1e-9


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_catches_a_tenth_of_a_percent(factor, seed):
    gradcheck(wrong_by(1.0), leaf(5, 7), seed=seed)
    with pytest.raises(AssertionError, match="gradient of argument 0"):
        gradcheck(wrong_by(factor), leaf(5, 7), seed=seed)


@pytest.mark.parametrize(("shape", "entry"), [((4, 3), (2, 1)), ((1000,), (777,))])
def test_names_the_entry_that_is_wrong(shape, entry):
    with pytest.raises(AssertionError) as caught:
        gradcheck(wrong_by(1.5, entry=entry), leaf(*shape))
    assert f"For instance at {list(entry)}" in str(caught.value) and "ratio 1.5" in str(caught.value)


def test_refuses_to_judge_what_rounding_hides():
    @differentiable
    def offset(x):
        return x * x + 1e8, lambda g: g * 2.02 * x

    with pytest.raises(ValueError, match="rounding hides the gradient of argument 0"):
        gradcheck(offset, leaf(20))


def test_names_the_parameter_of_a_module():
    layer = nn.Linear(3, 2, rng).astype(np.float64)
    layer.bias.data = 1.0
    broken = wrong_by(1.01)

    class Block(nn.Module):
        def __init__(self):
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + broken(self.layer.bias)

    with pytest.raises(AssertionError, match="gradient of layer.bias"):
        gradcheck(Block(), leaf(4, 3))


def test_refuses_float32_by_name():
    with pytest.raises(TypeError, match=r"needs float64, got a float32 tensor of shape \(3,\)"):
        gradcheck(ops.exp, Tensor(np.ones(3, np.float32), requires_grad=True))
    with pytest.raises(TypeError, match="float64"):
        gradcheck(nn.Linear(2, 2, rng), Tensor(np.ones((1, 2))))


def test_refuses_nothing_to_check_and_chance():
    with pytest.raises(ValueError, match="nothing to check"):
        gradcheck(ops.exp, Tensor(np.ones(3)))
    with pytest.raises(ValueError, match="deterministic"):
        gradcheck(nn.Dropout(0.5), leaf(10))


def test_catches_a_missing_gradient():
    @differentiable
    def forgetful(a, b):
        return a * b, lambda g: (g * b, g * 0)

    with pytest.raises(AssertionError, match="argument 1"):
        gradcheck(forgetful, leaf(3), leaf(3))


def test_catches_a_nan_gradient():
    with pytest.raises(AssertionError):
        gradcheck(wrong_by(np.nan), leaf(3))


def test_no_false_alarm_where_the_gradient_is_0():
    """Only rounding is left then, and it must not count as an error."""
    for seed in range(30):
        gradcheck(lambda x: functional.softmax(x).sum(axis=-1), leaf(3, 5), seed=seed)
        gradcheck(lambda x: x + 1e6, leaf(3), seed=seed)
        for width in (2, 3, 5):
            gradcheck(nn.LayerNorm(width).astype(np.float64), leaf(4, width), seed=seed)


def test_leaves_values_and_gradients_as_they_were():
    x = leaf(3)
    values, x.grad = x.numpy(), np.full(3, 7.0)
    gradcheck(ops.exp, x)
    np.testing.assert_array_equal(x.data, values)
    np.testing.assert_array_equal(x.grad, 7)


def test_jacobian():
    a, b = jacobian(lambda x: x @ x.T, leaf(3, 2))
    assert a.shape == b.shape == (3, 3, 3, 2)
    np.testing.assert_allclose(a, b, atol=1e-8)
