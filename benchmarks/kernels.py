"""How fast is each kernel on one core? `python benchmarks/kernels.py [name …]` prints a Markdown table.

Beside the Numba kernel stand its own NumPy spec and, where it is installed, PyTorch; all with one thread,
float32. The contenders take turns within each round, so that a busy moment of the machine hits all of them; a
time is the median of the rounds. `ns` is time for one element of the largest array, an attention matrix
included (matrix products: for one multiply-add). The other columns are multiples of the kernel's time.
"""

import argparse
import os
import time
from functools import partial

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy loads its BLAS

import numpy as np  # noqa: E402

from tinyvit import kernels  # noqa: E402

try:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
except ImportError:
    torch = None

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def probabilities(*shape):
    return kernels.softmax.numpy(normal(*shape))


def forward(f, *tensors):
    """PyTorch's side of a forward kernel: without a graph."""
    return lambda: torch.no_grad()(f)(*tensors)


def backward(f, *tensors):
    """PyTorch's side of a backward kernel: the graph is built once, only the walk is measured."""
    y = f(*(t.requires_grad_() for t in tensors))
    g = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, tensors, g, retain_graph=True)


def heads_of(qkv, heads):
    B, N, D3 = qkv.shape
    return qkv.view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)


def attend(heads, scale):
    """The same mathematics in PyTorch operators, keeping p as our kernel does."""

    def f(qkv):
        q, k, v = heads_of(qkv, heads)
        p = torch.softmax(q @ k.mT * scale, dim=-1)
        return (p @ v).transpose(1, 2).flatten(2)

    return f


def sdpa(heads, scale):
    def f(qkv):
        q, k, v = heads_of(qkv, heads)
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)

    return f


def cases():
    """(name, shape, elements, kernel, its arguments, PyTorch contenders as {label: callable})"""
    t = torch.from_numpy if torch else None

    def case(name, shape, elements, args, tensors=(), back=False, **contenders):
        run = {}
        for label, f in contenders.items() if torch else ():
            leaves = [t(a.copy()) for a in tensors]
            run[label] = (backward if back else forward)(f, *leaves)
        return name, shape, elements, getattr(kernels, name), args, run

    shapes = (32, 17, 48, 4), (64, 17, 64, 4), (64, 50, 64, 4), (64, 65, 192, 3)
    for B, N, D, H in shapes:
        qkv, g, scale = normal(B, N, 3 * D), normal(B, N, D), (D // H) ** -0.5
        shape = f"B={B} N={N} D={D} H={H}"
        p = kernels.attention.numpy(qkv, H, scale)[1]
        work = max(qkv.size, p.size)
        rivals = dict(torch=attend(H, scale), sdpa=sdpa(H, scale)) if torch else {}
        yield case("attention", shape, work, (qkv, H, scale), [qkv], **rivals)
        yield case("attention_backward", shape, work, (qkv, p, g, H, scale), [qkv], back=True, **rivals)
    for M, K, N in (17, 16, 17), (50, 16, 50), (65, 64, 65):
        a, b = normal(256, M, K), normal(256, K, N)
        yield case(
            "batched_matmul", f"256 × ({M}, {K}) ({K}, {N})", 256 * M * N * K, (a, b), [a, b], torch=lambda a, b: a @ b
        )
    for M, K, N in (64 * 17, 64, 128), (64 * 50, 64, 256), (64 * 65, 192, 768):
        x, w, b, g = normal(M, K), normal(K, N) / K**0.5, normal(N), normal(M, N)
        shape = f"({M}, {K}) ({K}, {N})"
        apply = (lambda x, w, b: F.linear(x, w.T, b)) if torch else None
        both = (lambda x, w, b: F.gelu(F.linear(x, w.T, b))) if torch else None
        yield case("linear", shape, M * K * N, (x, w, b), [x, w, b], torch=apply)
        yield case("linear_backward", shape, 2 * M * K * N, (x, w, g), [x, w, b], back=True, torch=apply)
        yield case("linear_gelu", shape, M * K * N, (x, w, b, False), [x, w, b], torch=both)
    for shape in (64 * 4 * 17, 17), (64 * 4 * 65, 65), (64, 1000):
        x, g, p = normal(*shape), normal(*shape), probabilities(*shape)
        soft = partial(torch.softmax, dim=-1) if torch else None
        yield case("softmax", shape, x.size, (x,), [x], torch=soft)
        yield case("softmax_backward", shape, x.size, (p, g), [x], back=True, torch=soft)
    for M, D in (64 * 17, 64), (64 * 65, 192):
        x, g, gamma, beta = normal(M, D), normal(M, D), normal(D), normal(D)
        _, mean, rstd = kernels.layernorm.numpy(x, gamma, beta, 1e-6)
        norm = (lambda x, gamma, beta: F.layer_norm(x, x.shape[1:], gamma, beta)) if torch else None
        yield case("layernorm", (M, D), x.size, (x, gamma, beta, 1e-6), [x, gamma, beta], torch=norm)
        args = x, gamma, mean, rstd, g
        yield case("layernorm_backward", (M, D), x.size, args, [x, gamma, beta], back=True, torch=norm)
    for M, D in (64 * 17, 128), (64 * 65, 768):
        x, g = normal(M, D), normal(M, D)
        for tanh in False, True:
            f = partial(F.gelu, approximate="tanh" if tanh else "none") if torch else None
            shape = f"({M}, {D}) {'tanh' if tanh else 'exact'}"
            yield case("gelu", shape, x.size, (x, tanh), [x], torch=f)
            yield case("gelu_backward", shape, x.size, (x, g, tanh), [x], back=True, torch=f)
    for B, C in (128, 10), (128, 1000):
        z, labels, g, p = normal(B, C), rng.integers(0, C, B), normal(B), probabilities(B, C)
        how = dict(reduction="none", label_smoothing=0.1)
        f = partial(F.cross_entropy, target=t(labels), **how) if torch else None
        yield case("cross_entropy", (B, C), z.size, (z, labels, 0.1), [z], torch=f)
        yield case("cross_entropy_backward", (B, C), z.size, (p, labels, g, 0.1), [z], back=True, torch=f)
    for kernel, stride, padding in ((4, 4), 4, 0), ((3, 3), 1, 1):
        x = normal(64, 32, 32, 3)
        cols = kernels.im2col.numpy(x, kernel, stride, padding)
        shape = f"(64, 32, 32, 3) kernel {kernel[0]} stride {stride}"
        yield case("im2col", shape, cols.size, (x, kernel, stride, padding))
        yield case("col2im", shape, cols.size, (cols, x.shape, kernel, stride, padding))
    for n in 200_000, 2_700_000:
        w, g, m, v = normal(n), normal(n), normal(n), normal(n) ** 2
        run = {}
        if torch:
            weight = torch.nn.Parameter(t(w.copy()))
            weight.grad = t(g.copy())
            run["torch"] = torch.optim.AdamW([weight], fused=True).step
        yield "adamw", n, n, kernels.adamw, (w, g, m, v, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1000), run
        yield "squared_norm", n, n, kernels.squared_norm, (g,), {}
        yield "add_into", n, n, kernels.add_into, (w, g), {}


def measure(contenders, seconds=0.4):
    """Median time of each contender, taking turns."""
    for f in contenders.values():
        f()  # compile, touch memory
    times = {label: [] for label in contenders}
    end = time.perf_counter() + seconds * len(contenders)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for label, f in contenders.items():
            start = time.perf_counter()
            f()
            times[label].append(time.perf_counter() - start)
    return {label: np.median(ts) for label, ts in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="kernels to measure, e.g. gelu attention; default all")
    names = parser.parse_args().names
    print("| kernel | shape | ns | µs | NumPy spec | PyTorch | its fused attention |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, shape, elements, kernel, args, rivals in cases():
        if names and name not in names:
            continue
        own = {"numba": partial(kernel.numba, *args), "numpy": partial(kernel.numpy, *args)}
        times = measure(own | rivals)
        best = times["numba"]
        columns = ("numpy", "torch", "sdpa")
        ratio = [f"{times[label] / best:.2f}×" if label in times else "" for label in columns]
        row = name, str(shape), f"{best / elements * 1e9:.3f}", f"{best * 1e6:.1f}", *ratio
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
