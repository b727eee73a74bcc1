"""Attention, from six passes over memory to one visit: `python benchmarks/attention_story.py [--json F] [--picture F]`

The forward pass of multi-head attention in float32, p = softmax(scale q kᵀ) and out = p v, written in several ways. Its
two products are small, a head has 16 numbers a token, and between them stands an exponential for each of the N² scores:
so what counts is how often the scores travel between memory and core, and whether all loops are in vectors. Each
function's docstring says what changed, why that is faster or not, and what is in the way now.

GFLOP/s count the two products' 4 B H N² K flops, the softmax not. "Kept" is what the backward pass will want of the
scores. All run on one thread but two, and each is compared with the NumPy spec before it is timed. The
contenders take turns within each round; a time is the median of the rounds. Large arrays come from a pool of memory, as
in training, but for NumPy's and PyTorch's own.
"""

import argparse
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
from stories import LIGHT_BLUE, bars, blas_name, short, taking_turns

from tinyvit.bench import has_pytorch
from tinyvit.bench.machine import machine
from tinyvit.kernels import attention
from tinyvit.kernels.backend import jit
from tinyvit.kernels.elementary import exp
from tinyvit.kernels.softmax import softmax_rows
from tinyvit.memory import Pool, empty
from tinyvit.train import available_cores, one_blas_thread
from tinyvit.viz.figure import BLUE, GREY, ORANGE, WIDTH, Picture, save, styled


def numpy_spec(qkv, heads, scale):
    """The equation in NumPy. Each of its operations is a pass over all scores of the batch, which by then have left the
    near caches: the product, the scaling, the maximum, the difference, the exponential, the sum, the division, the
    second product. And each result is an array of its own, whose memory the operating system has to find and to
    clear."""
    return attention.numpy(qkv, heads, scale)


def new_results(qkv, heads):
    """Room for out (B, N, D) and p (B, H, N, N)."""
    B, N, width = qkv.shape
    return empty((B, N, width // 3), qkv.dtype), empty((B, heads, N, N), qkv.dtype)


def query_by_query(qkv, heads, scale):
    """The equation in loops: for one query all scores, their softmax, and the mean of the values. Everything stays near
    the core, no array is passed over twice, and yet it is the slowest: computed indices and sums over 16 neighbours
    keep the compiler from vectors, and the library's exponential takes one number at a time. Less traffic alone
    gains nothing where arithmetic is the limit."""
    out, p = new_results(qkv, heads)
    _query_by_query(qkv, heads, qkv.dtype.type(scale), p, out)
    return out, p


@jit
def _query_by_query(qkv, H, scale, p, out):
    B, N, width = qkv.shape
    D, K, zero = width // 3, width // 3 // H, qkv.dtype.type(0)
    for b in range(B):
        for h in range(H):
            for i in range(N):
                for j in range(N):
                    s = zero
                    for c in range(K):
                        s += qkv[b, i, h * K + c] * qkv[b, j, D + h * K + c]
                    p[b, h, i, j] = s * scale
                top, total = p[b, h, i].max(), zero
                for j in range(N):
                    p[b, h, i, j] = math.exp(p[b, h, i, j] - top)
                    total += p[b, h, i, j]
                for j in range(N):
                    p[b, h, i, j] /= total
                for c in range(K):
                    mean = zero
                    for j in range(N):
                        mean += p[b, h, i, j] * qkv[b, j, 2 * D + h * K + c]
                    out[b, i, h * K + c] = mean


def head_by_head(qkv, heads, scale):
    """All in one kernel, with loops that the compiler puts in vectors. A head's keys are copied once, transposed, so
    that a query's scores lie side by side: each of its 16 numbers times a row of that copy. At 50 tokens three fourths
    of the time are still the products: their inner loops, over 50 scores or a head's 16 numbers, are short, and load
    and store the sums at each turn instead of keeping them in registers."""
    out, p = new_results(qkv, heads)
    _head_by_head(qkv, heads, qkv.dtype.type(scale), p, out)
    return out, p


@jit
def _head_by_head(qkv, H, scale, p, out):
    for b in range(len(qkv)):
        _one_image(qkv[b], H, scale, p[b], out[b])


@jit
def _one_image(x, H, scale, p, out):
    """x (N, 3 D), p (H, N, N), out (N, D)."""
    N, D = out.shape
    K = D // H
    k, v = np.empty((K, N), x.dtype), np.empty((N, K), x.dtype)
    for h in range(H):
        _copy_head(x, D, h * K, k, v)
        for i in range(N):
            row, mean = p[h, i], out[i, h * K : (h + 1) * K]
            _scores(x[i, h * K : (h + 1) * K], k, scale, row)
            top = row.max()
            for j in range(N):
                row[j] = exp(row[j] - top)
            row /= row.sum()
            _mean(row, v, mean)


@jit
def _copy_head(x, D, first, k, v):
    """A head's keys, transposed (K, N), and values (N, K), out of x (N, 3 D)."""
    for j in range(x.shape[0]):
        keys, values = x[j, D + first : 2 * D], x[j, 2 * D + first :]
        for c in range(k.shape[0]):
            k[c, j] = keys[c]
            v[j, c] = values[c]


@jit
def _scores(q, k, scale, s):
    """s_j = scale Σ_c q_c k_cj"""
    s[:] = 0
    for c in range(q.size):
        a, keys = q[c] * scale, k[c]
        for j in range(s.size):
            s[j] += a * keys[j]


@jit
def _mean(p, v, mean):
    """mean_c = Σ_j p_j v_jc"""
    mean[:] = 0
    for j in range(p.size):
        weight, values = p[j], v[j]
        for c in range(mean.size):
            mean[c] += weight * values[c]


def fused_softmax(qkv, heads, scale):
    """Leave the products to BLAS, then; between the two, one kernel does scale, maximum, exponential and division in
    place, a few rows at a time, with an exponential in vectors (`kernels/elementary.py`). That leaves three passes over
    the scores and one array. Now it is the way to BLAS that is long for matrices so small: NumPy calls it for one head
    of one image at a time."""
    B, N, width = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, heads, -1).transpose(2, 0, 3, 1, 4)  # views, (B, H, N, K)
    out, p = new_results(qkv, heads)
    np.matmul(q, k.mT, out=p)
    softmax_rows(p.reshape(-1, N), qkv.dtype.type(scale))
    np.matmul(p, v, out=out.reshape(B, N, heads, -1).transpose(0, 2, 1, 3))
    return out, p


def in_registers(qkv, heads, scale):
    """tinyvit's kernel: head by head again, with both products in tiles of registers, as `matmul_story.py` comes to
    them, and the scores of 8 or 16 queries side by side in a register, so that no step of the softmax goes from lane to
    lane. At 50 tokens half of the time are the products now, four tenths the softmax, and a tenth copying queries. Some
    of it is for nothing: 50 queries take 64 places, since registers come whole."""
    return attention.numba(qkv, heads, scale)


KEYS = 32  # in a block


def online_softmax(qkv, heads, scale):
    """FlashAttention's idea (Dao et al. 2022; the running maximum: Milakov and Gimelshein 2018) in plain loops: a few
    keys at a time, and no row of p ever exists. The mean so far was weighted relative to the largest score so far; when
    a larger one comes, it shrinks by e^(old - new). Of N² scores nothing is kept but a number for each query, log Σ
    e^score, from which the backward pass computes p again. For few tokens this is more work and saves nothing that was
    short; for thousands, p would not fit."""
    B, N, width = qkv.shape
    out, log_sums = empty((B, N, width // 3), qkv.dtype), empty((B, heads, N), qkv.dtype)
    _online_softmax(qkv, heads, qkv.dtype.type(scale), log_sums, out)
    return out, log_sums


@jit
def _online_softmax(qkv, H, scale, log_sums, out):
    B, N, D = out.shape
    K, zero = D // H, qkv.dtype.type(0)
    k, v, s = np.empty((K, N), qkv.dtype), np.empty((N, K), qkv.dtype), np.empty(KEYS, qkv.dtype)
    for b in range(B):
        for h in range(H):
            _copy_head(qkv[b], D, h * K, k, v)
            for i in range(N):
                q, mean = qkv[b, i, h * K : (h + 1) * K], out[b, i, h * K : (h + 1) * K]
                mean[:] = 0
                top, total = qkv.dtype.type(-np.inf), zero
                for j in range(0, N, KEYS):
                    some = s[: min(KEYS, N - j)]
                    new_top = max(top, _scores_of_block(q, k, j, scale, some))
                    shrink = exp(top - new_top)  # 0 for the first block
                    total = total * shrink + _exponentials(some, new_top)
                    mean *= shrink
                    _add_values(some, v, j, mean)
                    top = new_top
                mean /= total
                log_sums[b, h, i] = top + math.log(total)


@jit
def _scores_of_block(q, k, first, scale, s):
    """s_j = scale Σ_c q_c k_cj for the keys from `first` on; returns the largest."""
    s[:] = 0
    for c in range(q.size):
        a, keys = q[c] * scale, k[c, first : first + s.size]
        for j in range(s.size):
            s[j] += a * keys[j]
    return s.max()


@jit
def _exponentials(s, top):
    """s becomes e^(s - top); returns the sum."""
    for j in range(s.size):
        s[j] = exp(s[j] - top)
    return s.sum()


@jit
def _add_values(weights, v, first, mean):
    for j in range(weights.size):
        weight, values = weights[j], v[first + j]
        for c in range(mean.size):
            mean[c] += weight * values[c]


def prange_images(qkv, heads, scale):
    """`head_by_head` with the images shared out among cores by `prange`, which takes one more word: no two images have
    anything in common. A second pool of threads beside BLAS's comes with it (see `matmul_story.py`)."""
    out, p = new_results(qkv, heads)
    _prange_images(qkv, heads, qkv.dtype.type(scale), p, out)
    return out, p


@jit(parallel=True)
def _prange_images(qkv, H, scale, p, out):
    for b in numba.prange(len(qkv)):
        _one_image(qkv[b], H, scale, p[b], out[b])


def shards(qkv, heads, scale, workers, pools):
    """tinyvit's kernel on a shard of the batch in each of several Python threads, which is how training uses all cores:
    there the whole step is one such call, and its cost, here in plain sight, does not count."""

    def one_shard(qkv, pool):
        with pool:
            return attention.numba(qkv, heads, scale)

    return list(workers.map(one_shard, np.array_split(qkv, len(pools)), pools))


def pytorch(qkv, heads, scale):
    """PyTorch's fused attention: in blocks, with an online softmax, and with products from a BLAS."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        q, k, v = torch.from_numpy(qkv).view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return out.transpose(1, 2).flatten(2).numpy(), None


STEPS = {
    "NumPy: pass after pass": numpy_spec,
    "query by query, plain loops": query_by_query,
    "head by head, loops in vectors": head_by_head,
    "softmax fused between products": fused_softmax,
    "products in registers: tinyvit": in_registers,
    "online softmax, p never stored": online_softmax,
}
PYTORCH = "PyTorch's fused attention"


def checked(name, step, qkv, heads, scale):
    """A call of the step, after a first one that compiles and must compute what the spec does."""
    out, p = attention.numpy(qkv, heads, scale)
    got = step(qkv, heads, scale)
    if isinstance(got, list):  # a pair for each shard
        got = [np.concatenate(parts) for parts in zip(*got, strict=True)]
    off = np.abs(got[0] - out).max()
    if got[1] is not None and got[1].shape == p.shape:
        off = max(off, np.abs(got[1] - p).max())
    if not off < 1e-4:
        raise AssertionError(f"{name} does not compute attention: off by up to {off:.3g}")
    return lambda: step(qkv, heads, scale)


def measure(B, N, D, H, rounds, threads):
    """Rows of a table, as dicts."""
    qkv, scale = np.random.default_rng(0).standard_normal((B, N, 3 * D), dtype=np.float32), math.sqrt(H / D)
    flops, scores, sums = 4 * B * N * N * D, 4 * B * H * N * N, 4 * B * H * N
    several = {"head by head, images by prange": prange_images}
    pools = [Pool() for _ in range(threads)]
    with one_blas_thread(), ThreadPoolExecutor(threads) as workers, Pool():
        several["tinyvit, shards in threads"] = lambda *args: shards(*args, workers, pools)
        serial = STEPS | ({PYTORCH: pytorch} if has_pytorch() else {})
        times = {}
        for group in serial, several:  # apart, because threads that wait for work disturb who computes alone
            times |= taking_turns({name: checked(name, step, qkv, H, scale) for name, step in group.items()}, rounds)
    rows = []
    for name, seconds in times.items():
        kept = sums if name == PYTORCH or "online" in name else scores
        row = dict(step=name, threads=threads if name in several else 1, seconds=seconds)
        rows.append(row | dict(gflops=flops / seconds / 1e9, kept=kept))
    return dict(B=B, N=N, D=D, H=H, blas=blas_name(), rows=rows)


def table(result):
    """A result of `measure` as lines of Markdown."""
    yield "B = {B}, N = {N}, D = {D}, H = {H}, float32; BLAS: {blas}".format(**result)
    yield ""
    yield "| step | threads | µs | GFLOP/s | of the scores is kept, kB |"
    yield "|---|---:|---:|---:|---:|"
    for row in result["rows"]:
        numbers = f"{row['seconds'] * 1e6:,.0f} | {short(row['gflops'])} | {row['kept'] / 1e3:,.0f}"
        yield f"| {row['step']} | {row['threads']} | {numbers} |"
    yield ""


@styled
def draw(results):
    """Times as bars, step after step, shorter is better."""
    figure = Picture(figsize=(WIDTH, 0.5 + 2.1 * len(results)))
    figure.suptitle("Attention's forward pass, written again and again: µs, shorter is better")
    for axes, result in zip(np.atleast_1d(figure.subplots(len(results), 1)), results, strict=True):
        rows = result["rows"]
        names = [row["step"] + (f", {row['threads']}" if row["threads"] > 1 else "") for row in rows]
        colours = [
            GREY if row["step"] in list(STEPS)[:1] else ORANGE if row["step"] == PYTORCH
            else LIGHT_BLUE if row["threads"] > 1 else BLUE for row in rows
        ]  # fmt: skip
        bars(axes, [row["seconds"] * 1e6 for row in rows], names, colours)
        axes.set_title("{B} images, {N} tokens, width {D}, {H} heads".format(**result), loc="left")
    axes.set_xlabel("µs; one thread, and several in the light bars")
    return figure


def shape(text):
    """From "64x50x64x4" to (64, 50, 64, 4)."""
    try:
        B, N, D, H = (int(part) for part in text.split("x"))
    except ValueError:
        B = N = D = H = 0
    if min(B, N, D, H) < 1 or D % H:
        must = "a shape is B x N x D x H, whole numbers from 1 on, D a multiple of H, as in 64x50x64x4"
        raise argparse.ArgumentTypeError(f"{must}; got {text!r}")
    return B, N, D, H


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [(64, 50, 64, 4), (64, 17, 64, 4)]
    parser.add_argument("--shapes", nargs="+", type=shape, default=default, metavar="BxNxDxH")
    parser.add_argument("--rounds", type=int, default=25, help="of which a time is the median (25)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--picture", type=Path, help="write the picture to this PNG file")
    arguments = parser.parse_args()
    threads = min(available_cores(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    results = []
    for one in arguments.shapes:
        results.append(measure(*one, arguments.rounds, threads))
        print("\n".join(table(results[-1])), flush=True)
    about = machine()
    print("  ".join(f"{name}: {value}" for name, value in about.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(machine=about, shapes=results), indent=1), encoding="utf-8")
    if arguments.picture:
        save(draw(results), arguments.picture)


if __name__ == "__main__":
    main()
