"""What the tests share: deterministic property tests, and a fixture that runs a test on each kernel backend."""

import pytest
from hypothesis import settings

from tinyvit import kernels

settings.register_profile("tinyvit", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("tinyvit")


@pytest.fixture(params=["numba", "numpy"])
def backend(request):
    """Runs the test once on each kernel backend."""
    with kernels.use(request.param):
        yield request.param
