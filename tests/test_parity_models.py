"""The ViT's choices, ResNet, hybrid, Image GPT and attention of other kinds compute what PyTorch computes, by stored
vectors: runs where PyTorch is not installed.

`parity/vectors-models.npz` was made by `parity/write_vectors.py`; `test_parity_live_models.py` makes the wider
comparison.
"""

import numpy as np
import pytest
from parity import comparison

from tinyvit.optim import SGD

CASES = comparison.read(comparison.MODELS_FILE)
FLOAT32 = dict(dtype="float32", logits=1e-5, gradients=1e-4, trained=1e-3)
FLOAT64 = dict(dtype="float64", logits=1e-10, gradients=1e-6, trained=1e-8)  # stored gradients are rounded to float32


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=[FLOAT32, FLOAT64], ids=lambda t: t["dtype"])
def tolerance(request):
    return request.param


def test_vectors_fit_the_model(case):
    """A renamed, added or reshaped parameter, before it shows as a wrong number elsewhere."""
    model = case.model()
    assert {name: array.shape for name, array in case.weights.items()} == {
        name: array.shape for name, array in model.state_dict().items()
    }
    learned = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert {name: array.shape for name, array in case.gradients.items()} == learned


def test_vectors_are_worth_comparing_with(case):
    """Vectors in which something is zero or out of play would agree with a model that lacks it."""
    assert all(np.abs(array).max() > 0.1 for array in case.weights.values())
    assert all(np.abs(array).max() > 1e-4 for array in case.gradients.values())
    assert np.ptp(case.logits, axis=-1).min() > 0.1
    assert np.abs(case.trained - case.logits).max() > 0.1  # the steps went somewhere


def test_logits_loss_and_gradients(case, backend, tolerance):
    """Forward and backward pass, so the sign and the factor of every op in it."""
    dtype, logits, gradients, _ = tolerance.values()
    images, labels = case.batch()
    ours = comparison.results(case.model(dtype), images, labels, case.recipe["smoothing"])
    comparison.assert_close(ours, (case.logits, case.loss, case.gradients), logits, gradients)


def test_steps_of_sgd(case, backend, tolerance):
    """Losses, and logits of the trained model in eval mode: batch norm's running statistics are in them."""
    dtype, *_, close = tolerance.values()
    model = case.model(dtype)
    losses = comparison.train(model, SGD(model, **case.sgd()), *case.run())
    np.testing.assert_allclose(losses, case.losses, rtol=close)
    np.testing.assert_allclose(comparison.evaluate(model, case.batch()[0]), case.trained, rtol=0, atol=close)
