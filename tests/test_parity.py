"""tinyvit computes what PyTorch computes, by stored vectors: runs where PyTorch is not installed.

`parity/vectors.npz` was made by `parity/write_vectors.py`; `test_parity_live.py` makes the wider comparison.
"""

import numpy as np
import pytest
from parity import comparison

from tinyvit.models import ViT, ViTConfig
from tinyvit.optim import AdamW

CASES = comparison.read()


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_vectors_fit_the_model(case):
    """A renamed, added or reshaped parameter, before it shows as a wrong number elsewhere."""
    own = ViT(ViTConfig(**case.config)).state_dict()
    shapes = {name: array.shape for name, array in own.items()}
    assert {name: array.shape for name, array in case.weights.items()} == shapes
    assert {name: array.shape for name, array in case.gradients.items()} == shapes


def test_vectors_are_worth_comparing_with(case):
    """Vectors in which something is zero or out of play would agree with a model that lacks it."""
    assert all(np.abs(array).max() > 0.1 for array in case.weights.values())
    size = np.sqrt(sum((g**2).sum() for g in case.gradients.values()))
    assert size > case.recipe["clip"]  # so that clipping does something
    assert all(np.linalg.norm(g) > 1e-3 * size for g in case.gradients.values())
    assert case.losses[-10:].mean() < 0.7 * case.losses[:10].mean()


@pytest.mark.parametrize("dtype, logits, gradients", [("float32", 1e-5, 1e-4), ("float64", 1e-10, 1e-10)])
def test_logits_and_gradients(case, backend, dtype, logits, gradients):
    """The model's equations and the derivative of every op in it."""
    images, labels = case.batch()
    ours = comparison.results(case.model(dtype), images, labels, case.recipe["smoothing"])
    comparison.assert_close(ours, (case.logits, case.loss, case.gradients), logits, gradients)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("float64", 1e-5)])
def test_fifty_steps_of_adamw(case, backend, dtype, tolerance):
    """The optimiser: which parameters decay, momentum, bias correction, clipping, the learning rates."""
    model = case.model(dtype)
    losses = comparison.train(model, AdamW(model, **case.adamw()), *case.run())
    # No closer in float64: torch's clipping adds 1e-6 to the norm, and the steps that follow enlarge that.
    np.testing.assert_allclose(losses, case.losses, rtol=tolerance)
