"""The limit, and the way to it: a step's matrix products alone, and the step's time kernel by kernel.

The products are what no step can do without. Here they run through NumPy's BLAS, one thread, outputs allocated
beforehand, in the shards' shapes and, in attention, on strided views of the packed q, k and v. So a step's time over
theirs says how much all else costs, or, where it is below 1, that our products beat this BLAS.

Where the rest goes is clocked inside a step that is composed of its single ops, at the one door through which every
kernel is called. What a step takes beyond its kernels is Python, the engine, and what NumPy does itself.
"""

import contextlib
import time
from collections import defaultdict

import numpy as np

from tinyvit.bench.ours import training
from tinyvit.bench.shapes import BATCH, SHARDS
from tinyvit.kernels import Kernel
from tinyvit.nn import composed


def parts(config, threads):
    """The contender: "products", and a step that returns the seconds of its kernels and of itself."""
    step = training(config, threads)["step"]

    def clocked():
        with composed(), clock() as seconds:
            start = time.perf_counter()
            step()
            return dict(seconds) | {"step": time.perf_counter() - start}

    return {"products": products(config), "step": clocked}


@contextlib.contextmanager
def clock():
    """Gives {kernel: seconds spent in it}, forward and backward together, for the calls within this block."""
    seconds = defaultdict(float)
    call = Kernel.__call__

    def clocked(kernel, *args, **kwargs):
        start = time.perf_counter()
        result = call(kernel, *args, **kwargs)
        seconds[kernel.__name__.removesuffix("_backward")] += time.perf_counter() - start
        return result

    Kernel.__call__ = clocked
    try:
        yield seconds
    finally:
        Kernel.__call__ = call


def products(config):
    """A function that does all matrix products of one training step, and nothing else."""
    c, B = config, BATCH // SHARDS
    D, N, H, rows = c.width, c.tokens, c.heads, B * c.tokens
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    def linear(rows, d_in, d_out, wants_dx=True):  # y = x W, dW = xᵀ g, dx = g Wᵀ
        x, w, g = normal(rows, d_in), normal(d_in, d_out), normal(rows, d_out)
        jobs = [(x, w, np.empty_like(g)), (x.T, g, np.empty_like(w))]
        return jobs + [(g, w.T, np.empty_like(x))] * wants_dx

    def heads(x, parts):  # (B, N, parts D) -> (parts, B, H, N, K), views
        return x.reshape(B, N, parts, H, D // H).transpose(2, 0, 3, 1, 4)

    q, k, v = heads(normal(B, N, 3 * D), 3)
    dq, dk, dv = heads(normal(B, N, 3 * D), 3)
    (y,), (g,) = heads(normal(B, N, D), 1), heads(normal(B, N, D), 1)
    p, ds = np.empty((2, B, H, N, N), np.float32)
    attention = [(q, k.mT, p), (p, v, y), (g, v.mT, ds), (ds, k, dq), (ds.mT, q, dk), (p.mT, g, dv)]
    block = linear(rows, D, 3 * D) + linear(rows, D, D) + linear(rows, D, c.mlp) + linear(rows, c.mlp, D) + attention
    embedding = linear(B * (N - 1), c.patch**2 * c.channels, D, wants_dx=False)  # nobody asks for the images' gradient
    jobs = SHARDS * (embedding + c.depth * block + linear(B, D, c.classes))

    def run():
        for left, right, out in jobs:
            np.matmul(left, right, out=out)
        return jobs[0][2]

    return run


def breakdown(times):
    """{part: seconds} that sum up to a step, from the times that a clocked step gives."""
    kernels = {name: t for name, t in times.items() if name not in ("step", "products")}
    largest_first = dict(sorted(kernels.items(), key=lambda item: -item[1]))
    return largest_first | {"all else": times["step"] - sum(kernels.values())}
