"""From three loops to the speed of BLAS, a step at a time: `python benchmarks/matmul_story.py [--json F] [--picture F]`

One product C = A B in float32, written eleven times. Each function is short, and its docstring says what changed, why
that is faster and what is in the way now. A core is measured beside them: how many multiply-adds it does in a second
when all numbers are in registers already (`peak`). All ask for the same 2 M N K flops, so how near a step comes to that
peak tells how well it feeds the core, and nothing else.

The steps run on one thread, and so does NumPy's BLAS beside them; the last two share the rows among threads. Each
result is compared with A @ B before it is timed. The contenders take turns within each round, so that a busy moment of
the machine hits all of them; a time is the median of the rounds.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
from stories import LIGHT_BLUE, bars, blas_name, short, taking_turns
from threadpoolctl import threadpool_limits

from tinyvit.bench.machine import machine
from tinyvit.kernels.backend import jit
from tinyvit.kernels.matmul import NARROWEST, WIDEST, multiply, multiply_arrays
from tinyvit.kernels.simd import LANES, load, madd, plus, spread, store, window
from tinyvit.train import available_cores, one_blas_thread
from tinyvit.viz.figure import BLUE, GREY, ORANGE, WIDTH, Picture, save, styled


def python_loops(A, B):
    """The definition, in Python on lists. Each turn of the inner loop makes new objects for its numbers, looks up what
    `*` and `+` mean for them, and follows pointers. The arithmetic itself is lost in that."""
    return [[sum(a * B[k][j] for k, a in enumerate(row)) for j in range(len(B[0]))] for row in A]


@jit
def three_loops(A, B, C):
    """i, j, k: the definition, compiled. No objects any more, but k walks down a column of B, and each number of a
    column lies in a cache line of its own, of which the other 15 numbers are not used now. So the core waits for
    caches, and has no vectors: the numbers that would share a register are not neighbours in memory."""
    for i in range(A.shape[0]):
        for j in range(B.shape[1]):
            total = C.dtype.type(0)
            for k in range(A.shape[1]):
                total += A[i, k] * B[k, j]
            C[i, j] = total


@jit
def along_rows(A, B, C):
    """i, k, j: the same multiply-adds in another order. Now the inner loop walks along a row of B and a row of C, every
    cache line is used whole, and the compiler does 8 or 16 numbers with one instruction. What limits is that each
    multiply-add loads two vectors, and stores one, for one vector of arithmetic."""
    C[:] = 0
    add_product(A, B, C, 0, A.shape[0], 0, A.shape[1], 0, B.shape[1])


@jit
def add_product(A, B, C, i0, i1, k0, k1, n0, n1):
    """C += A B, over some rows i of C, columns n of C, and stretch of k. The steps below use it for their edges: the
    rows that are left over when one takes four at a time."""
    for i in range(i0, i1):
        c = C[i, n0:n1]
        for k in range(k0, k1):
            a, b = A[i, k], B[k, n0:n1]
            for j in range(c.size):
                c[j] += a * b[j]


@jit
def four_rows_of_b(A, B, C):
    """Four k at a time: a vector of C is loaded and stored once for four multiply-adds, not for each. Five loads and a
    store for four multiply-adds are better than eight and four. Now most of the loads are B's, and every row of C
    fetches all of B again, from the second-level cache if it is larger than the first."""
    C[:] = 0
    K, N = B.shape
    whole = K // 4 * 4
    for i in range(A.shape[0]):
        c = C[i]
        for k in range(0, whole, 4):
            a0, a1, a2, a3 = A[i, k], A[i, k + 1], A[i, k + 2], A[i, k + 3]
            b0, b1, b2, b3 = B[k], B[k + 1], B[k + 2], B[k + 3]
            for j in range(c.size):
                c[j] += a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j]
        add_product(A, B, C, i, i + 1, whole, K, 0, N)


@jit
def four_by_four(A, B, C):
    """Four rows of B with four rows of C: a vector of B, once loaded, serves four rows, and B passes by a fourth as
    often. Eight loads and four stores for sixteen multiply-adds. Still, C travels between cache and registers K / 4
    times, where once would do."""
    C[:] = 0
    add_four_by_four(A, B, C, 0, B.shape[0], 0, B.shape[1])


@jit
def add_four_by_four(A, B, C, k0, k1, n0, n1):
    """C += A B over some columns n and a stretch of k, four rows and four k at a time."""
    M, whole, end = A.shape[0], A.shape[0] // 4 * 4, k0 + (k1 - k0) // 4 * 4
    for i in range(0, whole, 4):
        c0, c1, c2, c3 = C[i, n0:n1], C[i + 1, n0:n1], C[i + 2, n0:n1], C[i + 3, n0:n1]
        for k in range(k0, end, 4):
            b0, b1, b2, b3 = B[k, n0:n1], B[k + 1, n0:n1], B[k + 2, n0:n1], B[k + 3, n0:n1]
            w0, w1, w2, w3 = A[i, k], A[i, k + 1], A[i, k + 2], A[i, k + 3]
            x0, x1, x2, x3 = A[i + 1, k], A[i + 1, k + 1], A[i + 1, k + 2], A[i + 1, k + 3]
            y0, y1, y2, y3 = A[i + 2, k], A[i + 2, k + 1], A[i + 2, k + 2], A[i + 2, k + 3]
            z0, z1, z2, z3 = A[i + 3, k], A[i + 3, k + 1], A[i + 3, k + 2], A[i + 3, k + 3]
            for j in range(c0.size):
                p, q, r, s = b0[j], b1[j], b2[j], b3[j]
                c0[j] += w0 * p + w1 * q + w2 * r + w3 * s
                c1[j] += x0 * p + x1 * q + x2 * r + x3 * s
                c2[j] += y0 * p + y1 * q + y2 * r + y3 * s
                c3[j] += z0 * p + z1 * q + z2 * r + z3 * s
    add_product(A, B, C, 0, whole, end, k1, n0, n1)
    add_product(A, B, C, whole, M, k0, k1, n0, n1)


DEEP, WIDE = 64, 512  # a block of B: 128 kB, for the second-level cache


@jit
def blocked(A, B, C):
    """One block of B at a time, small enough to stay in a near cache while all rows of A pass by it. Textbooks expect
    much of this step, but here it is worth little: caches of today are large for such matrices, they fetch ahead along
    rows, and the loads themselves are the limit, however near they find their numbers. It comes into its own
    when the block is packed and the sums are in registers (below)."""
    C[:] = 0
    K, N = B.shape
    for k in range(0, K, DEEP):
        for n in range(0, N, WIDE):
            add_four_by_four(A, B, C, k, min(k + DEEP, K), n, min(n + WIDE, N))


def tile(lanes):
    """The product by tiles of 4 × lanes, a constant: only so can the compiler give each vector a register of its
    own."""

    @jit
    def product_in_tiles(A, B, C):
        M, K, N = *A.shape, B.shape[1]
        rows, columns = M // 4 * 4, N // lanes * lanes
        for n in range(0, columns, lanes):
            for m in range(0, rows, 4):
                c0 = c1 = c2 = c3 = spread(C.dtype.type(0), lanes)
                for k in range(K):
                    b = load(B[k], n, lanes)
                    c0 = madd(A[m, k], b, c0)
                    c1 = madd(A[m + 1, k], b, c1)
                    c2 = madd(A[m + 2, k], b, c2)
                    c3 = madd(A[m + 3, k], b, c3)
                store(C[m], n, c0)
                store(C[m + 1], n, c1)
                store(C[m + 2], n, c2)
                store(C[m + 3], n, c3)
        C[:rows, columns:] = 0
        C[rows:] = 0
        add_product(A, B, C, 0, rows, 0, K, columns, N)
        add_product(A, B, C, rows, M, 0, K, 0, N)

    return product_in_tiles


_narrow_tile, _wide_tile = tile(LANES), tile(WIDEST)


def narrow_tile(A, B, C):
    """Four registers hold a tile of C, 4 rows by one register, for all of k: C is written once and never read. The
    compiler does not find this, because for it the order of the loops is ours to choose; so the registers are named
    (`simd.py`). A multiply-add takes four cycles, though, and two can begin in each: four sums in the making keep at
    most half of the core busy."""
    _narrow_tile(A, B, C)


def wide_tile(A, B, C):
    """A tile of 4 rows by 4 registers (2 where registers are few): enough sums to hide the four cycles, and a number of
    A, once loaded, is good for four multiply-adds. What is left is the way to B: a strip of its columns, in
    short pieces that lie a row apart. For large matrices the strip falls out of the near caches, and each row is
    another page of memory to look up: of 1024³ this does 93 GFLOP/s where the next step does 217."""
    _wide_tile(A, B, C)


def packed(A, B, C):
    """tinyvit's kernel: the strip of B is first copied into a panel, dense and in the first-level cache, which all
    rows of A then read. The copy costs one pass over B and is used M / 4 times. What is left is the edge of things:
    loops and slices, C's stores. BLAS also packs A and blocks for the outer caches, for larger matrices."""
    multiply_arrays(A, B, zeros(B), C, False)


def zeros(B):
    """What the kernel's sums begin at. It takes whole registers, and does not look."""
    if B.shape[1] % NARROWEST:
        raise ValueError(f"the kernel takes a multiple of {NARROWEST} columns; got {B.shape[1]}")
    return np.zeros((1, B.shape[1]), B.dtype)


@jit(parallel=True)
def _parallel(A, B, start, C, parts):
    (M, K), N = A.shape, B.shape[1]
    for part in numba.prange(parts):
        first, end = part * M // parts, (part + 1) * M // parts
        a, b = window(A, first, end - first, 0, K), window(B, 0, K, 0, N)
        multiply(a, b, window(start, 0, 1, 0, N), window(C, first, end - first, 0, N))


def prange_rows(A, B, C):
    """The rows of C shared out among cores by Numba's `prange`; nobody waits for anybody, since no two cores write one
    row. Its pool of threads is OpenMP's or Numba's own, and knows nothing of BLAS's pool: in a program that uses both,
    each keeps cores busy waiting while the other computes (the second table). OMP_WAIT_POLICY=passive and
    OPENBLAS_THREAD_TIMEOUT=4 send them to sleep instead, and then each call has to wake them: on two cores the small
    product took 4 to 7 ms in turns with BLAS and 0.28 alone, and with these two 0.5 and 0.55. Nor may two threads of
    Python call such functions at a time, if Numba found no OpenMP."""
    _parallel(A, B, zeros(B), C, numba.get_num_threads())


def shared_out(A, B, C, pool, parts):
    """The same with Python's threads and the serial kernel, which releases the GIL. Handing out the parts took two
    tenths of a millisecond, where half of the small product takes no more. tinyvit does this with whole training steps:
    a part is a shard of the batch, and nothing has to be handed out in between (`train/shards.py`)."""
    list(pool.map(packed, np.array_split(A, parts), [B] * parts, np.array_split(C, parts)))


def blas(A, B, C):
    """NumPy's BLAS: the work of decades, in assembly or intrinsics for each processor by itself."""
    np.matmul(A, B, out=C)


STEPS = {
    "three loops: i, j, k": three_loops,
    "along rows: i, k, j": along_rows,
    "four rows of B at a time": four_rows_of_b,
    "four of B by four of C": four_by_four,
    "blocked for the caches": blocked,
    "tile of 4 × 1 registers": narrow_tile,
    "tile of 4 × 4 registers" if WIDEST == 4 * LANES else "tile of 4 × 2 registers": wide_tile,
    "B packed: tinyvit's kernel": packed,
}

TURNS, SUMS = 200_000, 10


@jit
def peak(a, out):
    """Nothing but multiply-adds on registers: ten sums in the making, which do not wait for each other, and no loads.
    Each sum is its own factor, so that no product can be computed once and for all."""
    b = spread(a, LANES)
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = c8 = c9 = b
    for _ in range(TURNS):
        c0, c1, c2, c3, c4 = madd(a, c0, b), madd(a, c1, b), madd(a, c2, b), madd(a, c3, b), madd(a, c4, b)
        c5, c6, c7, c8, c9 = madd(a, c5, b), madd(a, c6, b), madd(a, c7, b), madd(a, c8, b), madd(a, c9, b)
    for c in (c0, c1, c2, c3, c4, c5, c6, c7, c8, c9):
        store(out, 0, plus(load(out, 0, LANES), c))


def matrices(M, K, N):
    """A, B and room for C."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    return A, B, np.empty((M, N), np.float32)


def checked(name, step, A, B, C):
    """A call of the step, after a first one that compiles and must compute A @ B."""
    C[:] = np.nan
    step(A, B, C)
    # An entry is a sum of K products of size 1, which each order of summing rounds differently.
    if not np.allclose(C, A @ B, rtol=1e-4, atol=1e-5 * B.shape[0]):
        raise AssertionError(f"{name} does not compute A @ B: off by up to {np.abs(C - A @ B).max():.3g}")
    return lambda: step(A, B, C)


def measure(M, K, N, rounds, threads):
    """Rows of a table, as dicts, and how two pools of threads get along."""
    A, B, C = matrices(M, K, N)
    flops, out = 2 * M * N * K, np.zeros(LANES, np.float32)
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        serial = {name: checked(name, step, A, B, C) for name, step in (STEPS | {"BLAS": blas}).items()}
        peak(np.float32(0.5), out)
        times = taking_turns({"peak": lambda: peak(np.float32(0.5), out)} | serial, rounds)
        best = TURNS * SUMS * LANES * 2 / times.pop("peak")
        a, b = A[:48, :48].tolist(), B[:48, :48].tolist()
        corner = taking_turns({"Python": lambda: python_loops(a, b)}, 3)["Python"]
        python = corner * M * N * K / (len(a) * len(b) * len(b[0]))
        several = {
            "rows among cores: prange": prange_rows,
            "rows among threads of Python": lambda A, B, C: shared_out(A, B, C, pool, threads),
        }
        together = taking_turns({name: checked(name, step, A, B, C) for name, step in several.items()}, rounds)
    rows = [dict(step="Python's loops (extrapolated)", threads=1, seconds=python)]
    rows += [dict(step=name, threads=1, seconds=time) for name, time in times.items() if name != "BLAS"]
    rows += [dict(step=name, threads=threads, seconds=time) for name, time in together.items()]
    rows += [dict(step="BLAS", threads=1, seconds=times["BLAS"])]
    for row in rows:
        row["gflops"] = flops / row["seconds"] / 1e9
        row["of_blas"], row["of_peak"] = times["BLAS"] / row["seconds"], row["gflops"] * 1e9 / best
    return dict(M=M, K=K, N=N, blas=blas_name(), peak=best / 1e9, rows=rows, pools=two_pools(A, B, C, rounds, threads))


def two_pools(A, B, C, rounds, threads):
    """What a product takes by prange and by BLAS, both with all threads: each for a while alone, and taking turns."""
    if threads == 1:
        return []
    runs = {"prange": lambda: prange_rows(A, B, C), "BLAS": lambda: blas(A, B, C)}
    with threadpool_limits(threads, user_api="blas"):
        apart = {}
        for name, run in runs.items():
            time.sleep(0.3)  # until the other pool has gone to sleep
            apart |= taking_turns({name: run}, rounds)
        turns = taking_turns(runs, rounds)
    return [dict(pool=name, apart=apart[name], turns=turns[name]) for name in runs]


def table(result):
    """A result of `measure` as lines of Markdown."""
    M, K, N = (result[key] for key in "MKN")
    yield f"({M}, {K}) @ ({K}, {N}), float32; BLAS: {result['blas']}; a core's peak: {result['peak']:.0f} GFLOP/s"
    yield ""
    yield "| step | threads | time | GFLOP/s | of BLAS | of a core's peak |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in result["rows"]:
        took = f"{row['seconds']:.1f} s" if row["seconds"] > 1 else f"{row['seconds'] * 1e3:.2f} ms"
        shares = f"{short(100 * row['of_blas'])} % | {short(100 * row['of_peak'])} %"
        yield f"| {row['step']} | {row['threads']} | {took} | {short(row['gflops'])} | {shares} |"
    if result["pools"]:
        yield ""
        threads = max(row["threads"] for row in result["rows"])
        yield f"| two pools of {threads} threads | alone | taking turns with the other |"
        yield "|---|---:|---:|"
        for row in result["pools"]:
            yield f"| {row['pool']} | {row['apart'] * 1e3:.2f} ms | {row['turns'] * 1e3:.2f} ms |"
    yield ""


@styled
def draw(results):
    """GFLOP/s as bars, step after step; the line is the peak of one core."""
    figure = Picture(figsize=(WIDTH, 0.6 + 2.6 * len(results)))
    figure.suptitle("One matrix product, written again and again: GFLOP/s")
    for axes, result in zip(np.atleast_1d(figure.subplots(len(results), 1, sharex=True)), results, strict=True):
        rows = result["rows"]
        names = [row["step"] + (f", {row['threads']}" if row["threads"] > 1 else "") for row in rows[:-1]]
        colours = [LIGHT_BLUE if row["threads"] > 1 else BLUE for row in rows[:-1]]
        bars(axes, [row["gflops"] for row in rows], [*names, f"BLAS: {result['blas']}"], [*colours, ORANGE])
        axes.axvline(result["peak"], color=GREY, linewidth=1, linestyle="--", zorder=0)
        axes.annotate(
            "peak of one core", (result["peak"], 0), (4, 0), textcoords="offset points", va="center", color=GREY
        )
        axes.set_title("({M}, {K}) @ ({K}, {N})".format(**result), loc="left")
    axes.set_xlabel("GFLOP/s; one thread, and several in the light bars")
    return figure


def size(text):
    """From "3200x64x256" to (3200, 64, 256)."""
    try:
        M, K, N = (int(part) for part in text.split("x"))
    except ValueError:
        M = K = N = 0
    if min(M, K, N) < 1 or N % NARROWEST:
        must = f"a size is MxKxN, whole numbers from 1 on, N a multiple of {NARROWEST}, as in 3200x64x256"
        raise argparse.ArgumentTypeError(f"{must}; got {text!r}")
    return M, K, N


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=size, default=[(3200, 64, 256), (512, 512, 512)], metavar="MxKxN")
    parser.add_argument("--rounds", type=int, default=15, help="of which a time is the median (15)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--picture", type=Path, help="write the picture to this PNG file")
    arguments = parser.parse_args()
    threads = min(available_cores(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    results = []
    for shape in arguments.sizes:
        results.append(measure(*shape, arguments.rounds, threads))
        print("\n".join(table(results[-1])), flush=True)
    about = machine() | {"threads of prange": f"{threads}, {numba.threading_layer()}"}
    print("  ".join(f"{name}: {value}" for name, value in about.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(machine=about, sizes=results), indent=1), encoding="utf-8")
    if arguments.picture:
        save(draw(results), arguments.picture)


if __name__ == "__main__":
    main()
