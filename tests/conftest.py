"""What the tests share: deterministic property tests, one BLAS thread, and a fixture that runs a test on each
kernel backend."""

import signal

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from tinyvit import kernels

settings.register_profile("tinyvit", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("tinyvit")

# Matrices this small gain nothing from BLAS's own threads, which on a busy machine wait for each other.
_blas = threadpool_limits(1, user_api="blas")

# What a shell starts in the background ignores Ctrl-C, and so would the tests of it and all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # so it is with nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(params=["numba", "numpy"])
def backend(request):
    """Runs the test once on each kernel backend."""
    with kernels.use(request.param):
        yield request.param
