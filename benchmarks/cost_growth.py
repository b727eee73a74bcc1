"""What does a training step cost, and how does that grow? `python benchmarks/cost_growth.py [--json F] [--picture F]`

Four sweeps of a small ViT on random images, one thread, float32: more tokens N (smaller patches of the same image, down
to a token a pixel), more width D, depth L, batch B. A step is forward and backward pass, without the optimiser, its
blocks composed of single ops, as the formulas count them (`nn.composed`; training runs a block as one kernel).

Time. For each token and layer the forward pass takes these FLOPs, a multiply-add counted as two, M the MLP's width:

    linear layers   2 (3 D² + D² + 2 D M) = 8 D² + 4 D M        q, k, v; the heads' mixing; the MLP
    attention       2 (N D + N D) = 4 N D                       q kᵀ and p v, each token with all N

and the backward pass twice as much. So the work grows with N as a N + b N², and the two parts are equal at

    N = 2 D + M

tokens: 256 for D = 64, M = 128. (ViT-B/16 has 197 tokens, and with D = 768, M = 3072 its N would be 4,608.) Three
constants make seconds of it: the rate of attention, the rate of all else, and what an op takes however small it is.
They are fitted to all sweeps together. The attention op is also measured by itself, which the fit does not see.
A head's products, with K = 16 numbers a token and the softmax between them, run at a lower rate than the large products
of the linear layers, so in time attention takes over earlier than in FLOPs.

Memory. For each token and layer the pullbacks remember, in numbers of 4 bytes (`loss.trace()` counts them),

    8 D + 2 M       layer norm D, q k v D, attention 3 D, mixing D, layer norm D, MLP D + M, GELU M
    H N             what the token reads, p, for each of H heads

and p's gradient is never there as a whole: the kernel has a head's part of it at a time. So the maps weigh as much as
all else at N = (8 D + 2 M) / H, 192 tokens here. FlashAttention (Dao et al. 2022) computes p again instead of keeping
it, and has no N² in its memory. The peak is tracemalloc's, to which NumPy reports its arrays: what a step adds to the
parameters and their gradients. BLAS's own buffers are not in it.

Points take turns, so that a busy moment of the machine hits all of them; a time is the median of the rounds. It is
taken with a pool of memory, as in training; the peak without, because the pool's memory is none of NumPy's.
"""

import argparse
import json
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from threadpoolctl import threadpool_info

from tinyvit import Tensor, ViT, ViTConfig
from tinyvit import functional as F
from tinyvit.memory import Pool
from tinyvit.nn import composed
from tinyvit.train import one_blas_thread
from tinyvit.train.folder import machine
from tinyvit.viz.figure import BLUE, GREY, INK, ORANGE, WIDTH, Picture, save, styled

IMAGE, CHANNELS, CLASSES, HEADS, ROUNDS = 32, 3, 10, 4, 15
BASE = dict(patch=4, width=64, depth=2, batch=4)  # the MLP has twice the width
DARK_ORANGE = "#9A6700"  # of words: orange ones would be too faint
SWEEPS = {
    "tokens": (16, 8, 4, 2, 1),  # the patch size, which gives 5, 17, 65, 257, 1,025 tokens
    "width": (32, 64, 128, 256, 512),
    "depth": (1, 2, 4, 8, 16),
    "batch": (1, 4, 16, 64),
}


@dataclass
class Point:
    """One configuration: what the formulas say of a step, and what was measured."""

    sweep: str
    tokens: int
    width: int
    depth: int
    batch: int
    ops: int  # on the tape
    attention_flops: int  # forward and backward
    other_flops: int  # linear layers, and the few of what works entry by entry
    token_bytes: int  # remembered, in proportion to N
    map_bytes: int  # in proportion to N²
    seconds: float = 0.0
    attention_seconds: float = 0.0  # of the attention ops by themselves; measured in the sweep of N only
    predicted_seconds: float = 0.0
    peak_bytes: int = 0
    predicted_bytes: int = 0

    @property
    def x(self):
        return getattr(self, self.sweep)

    @property
    def flops(self):
        return self.attention_flops + self.other_flops


def make(sweep, value):
    """The point of `sweep` at `value`, all else as in BASE; and two functions, a step and its attention op alone."""
    shape = BASE | {"patch" if sweep == "tokens" else sweep: value}
    B, D, L = shape["batch"], shape["width"], shape["depth"]
    model = ViT(ViTConfig(IMAGE, shape["patch"], CHANNELS, CLASSES, D, L, HEADS, 2 * D))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((B, IMAGE, IMAGE, CHANNELS), dtype=np.float32)
    labels = rng.integers(0, CLASSES, B)
    N = model.config.tokens
    qkv = Tensor(rng.standard_normal((B, N, 3 * D), dtype=np.float32), requires_grad=True)
    g = np.ones((B, N, D), np.float32)

    def step():
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    def attend():
        F.attention(qkv, heads=HEADS).backward(g)

    tape = F.cross_entropy(model(images), labels).trace()
    attention = 3 * sum(row.flops for row in tape.rows if row.op == "attention")
    # Pullbacks hold weights and gains as well, which are no cost of the step: they are there anyway.
    held = sum(p.data.nbytes for name, p in model.named_parameters() if name.endswith(("weight", "gamma")))
    maps = 4 * B * L * HEADS * N**2
    other, rest = 3 * tape.flops - attention, tape.remembered - held - maps
    M, wrong = 2 * D, "the formulas at the top of this file no longer say what the tape counts"
    assert attention == 12 * B * L * N**2 * D and other >= 3 * B * L * N * (8 * D**2 + 4 * D * M), wrong
    assert rest >= 4 * B * L * N * (8 * D + 2 * M), wrong
    point = Point(
        sweep, N, D, L, B, ops=sum(row.op != "leaf" for row in tape.rows), attention_flops=attention,
        other_flops=other, token_bytes=rest, map_bytes=maps,
        predicted_bytes=rest + maps,
    )  # fmt: skip
    return point, step, attend


def measure(made):
    """Fill in the points' seconds and peak bytes."""
    jobs = [step for _, step, _ in made] + [attend for p, _, attend in made if p.sweep == "tokens"]
    times = {run: [] for run in jobs}
    with Pool():
        for run in jobs:
            run()  # compiles; allocates the gradients
        for _ in range(ROUNDS):
            for run in jobs:
                start = time.perf_counter()
                run()
                times[run].append(time.perf_counter() - start)
    for p, step, attend in made:
        p.seconds = float(np.median(times[step]))
        if attend in times:
            p.attention_seconds = p.depth * float(np.median(times[attend]))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        step()
        p.peak_bytes = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()


def terms(p):
    return np.array([p.ops, p.other_flops, p.attention_flops], float)


def fit(points):
    """Seconds an op, a FLOP outside of attention, a FLOP inside: the constants ≥ 0 with the least relative errors.
    Fills in the points' predictions."""
    rows = np.array([terms(p) / p.seconds for p in points])
    size = rows.max(0)
    constants = nnls(rows / size, np.ones(len(points)))[0] / size
    for p in points:
        p.predicted_seconds = float(terms(p) @ constants)
    return constants


def slope(points, name):
    """The exponent e of  name ∝ xᵉ,  a straight line through the logarithms."""
    x, y = ([np.log(getattr(p, key)) for p in points] for key in ("x", name))
    return float(np.polyfit(x, y, 1)[0])


def exponents(sweeps):
    names = "seconds", "predicted_seconds", "flops", "peak_bytes", "predicted_bytes"
    return {sweep: {name: slope(ps, name) for name in names} for sweep, ps in sweeps.items()}


def crossings(constants):
    """From how many tokens on the part that grows with N² is the larger one: of the work, the time, the peak."""
    D, M = BASE["width"], 2 * BASE["width"]
    _, other, attention = constants
    flops = 2 * D + M
    return dict(flops=flops, time=flops * other / attention, memory=(8 * D + 2 * M) / HEADS)


def table(sweeps, grown, constants, crossing):
    """The results as lines of Markdown."""
    op, other, attention = constants
    points = [p for ps in sweeps.values() for p in ps]
    yield "| sweep | N | D | L | B | ms | formula | attention's share | MB at the peak | formula |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for p in points:
        share = p.attention_flops * attention / p.predicted_seconds
        numbers = f"{p.seconds * 1e3:.2f}", f"{p.predicted_seconds * 1e3:.2f}", f"{share:.0%}"
        numbers += f"{p.peak_bytes / 1e6:.2f}", f"{p.predicted_bytes / 1e6:.2f}"
        yield "| " + " | ".join([p.sweep, *(f"{n:,}" for n in (p.tokens, p.width, p.depth, p.batch)), *numbers]) + " |"
    yield ""
    yield "| exponent over the whole sweep | time | formula | FLOPs | memory | formula |"
    yield "|---|---:|---:|---:|---:|---:|"
    for sweep, row in grown.items():
        yield "| " + " | ".join([sweep, *(f"{e:.2f}" for e in row.values())]) + " |"
    yield ""
    off = sorted(abs(p.predicted_seconds / p.seconds - 1) for p in points)
    alone = (
        f"N = {p.tokens:,}: {p.attention_seconds * 1e3:.2f} "
        f"({(p.depth * op + p.attention_flops * attention) * 1e3:.2f})"
        for p in sweeps["tokens"]
    )
    yield (
        f"Constants: {op * 1e6:.0f} µs an op, {1e-9 / other:.0f} GFLOP/s outside of attention, {1e-9 / attention:.0f} "
        f"inside. The time they give is off by {np.median(off):.0%} in the median, {off[-1]:.0%} at the most."
    )
    yield ""
    yield f"Attention by itself, ms (formula): {'; '.join(alone)}."
    yield ""
    yield (
        f"Attention is half of the work from N = {crossing['flops']:.0f} on, half of the time (the ops' own apart) "
        f"from {crossing['time']:.0f}; its maps are half of the memory from {crossing['memory']:.0f}."
    )


@styled
def draw(sweeps, grown, constants, crossing):
    """Time and memory against N, each with its linear and its quadratic part; below, time against D, L and B."""
    figure = Picture(figsize=(WIDTH, 5.6))
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.35, 1])
    ps, b = sweeps["tokens"], BASE
    figure.suptitle("What a training step costs: measured (dots) and by formula (lines)")
    bottom.supxlabel(
        f"Unless it is the one that varies: N = {sweeps['depth'][0].tokens}, D = {b['width']}, L = {b['depth']}, "
        f"B = {b['batch']}. MLP 2 D, {HEADS} heads, one thread.",
        fontsize=8,
    )
    time_axes, memory_axes = top.subplots(1, 2)

    N = [p.tokens for p in ps]
    ops, other, attention = np.array([terms(p) * constants * 1e3 for p in ps]).T
    time_axes.plot(N, ops, ":", color=GREY)
    time_axes.plot(N, [p.attention_seconds * 1e3 for p in ps], "s", color=ORANGE, ms=4)
    growth(time_axes, ps, ops, other, attention, [p.seconds * 1e3 for p in ps], crossing["time"])
    time_axes.set_ylim(0.05)
    time_axes.set_title("time against tokens N, ms", loc="left")
    note(time_axes, 1025, 3.2, "all else: N", BLUE, "right")
    note(time_axes, 40, 0.11, "attention: N²\n(squares: by itself)", DARK_ORANGE, "left")
    note(time_axes, 5, 0.75, f"{constants[0] * 1e6:.0f} µs an op", GREY, "left")

    maps = np.array([p.map_bytes for p in ps]) / 1e6
    rest = np.array([p.token_bytes for p in ps]) / 1e6
    growth(memory_axes, ps, 0, rest, maps, [p.peak_bytes / 1e6 for p in ps], crossing["memory"])
    memory_axes.set_ylim(0.05)
    memory_axes.set_title("memory at the peak against N, MB", loc="left")
    note(memory_axes, 1025, 4.5, "all else: N", BLUE, "right")
    note(memory_axes, 40, 0.11, "attention maps: N²", DARK_ORANGE, "left")

    panels = bottom.subplots(1, 3, sharey=True)
    for axes, (sweep, letter) in zip(panels, dict(width="D", depth="L", batch="B").items(), strict=True):
        ps, e = sweeps[sweep], grown[sweep]
        axes.plot([p.x for p in ps], [p.predicted_seconds * 1e3 for p in ps], color=INK)
        axes.plot([p.x for p in ps], [p.seconds * 1e3 for p in ps], "o", color=INK, ms=4)
        logarithmic(axes, ps)
        axes.set_yticks([1, 3, 10, 30, 100])
        power = f"slope {e['seconds']:.2f}\nformula's {e['predicted_seconds']:.2f}\nFLOPs' {e['flops']:.2f}"
        axes.text(0.05, 0.95, power, transform=axes.transAxes, va="top", backgroundcolor="white")
        axes.set_title(f"time against {sweep} {letter}, ms", loc="left")
    return figure


def growth(axes, ps, constant, linear, quadratic, measured, crossing):
    """Measured dots, the formula's sum, its two parts, and where these cross."""
    N = [p.tokens for p in ps]
    axes.plot(N, linear, "--", color=BLUE)
    axes.plot(N, quadratic, "--", color=ORANGE)
    axes.plot(N, constant + linear + quadratic, color=INK)
    axes.plot(N, measured, "o", color=INK, ms=4)
    logarithmic(axes, ps)
    axes.axvline(crossing, color=GREY, lw=0.8, ls=":")
    axes.text(
        crossing * 0.92, 0.93, f"equal at {crossing:.0f}", transform=axes.get_xaxis_transform(), color=GREY, ha="right"
    )


def note(axes, x, y, text, color, align):
    axes.text(x, y, text, color=color, ha=align, va="center", bbox=dict(facecolor="white", edgecolor="none", pad=1))


def logarithmic(axes, ps):
    axes.loglog()
    axes.minorticks_off()
    axes.set_xticks([p.x for p in ps], [f"{p.x:,}" for p in ps])
    axes.yaxis.set_major_formatter("{x:,g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--picture", type=Path, help="write the picture to this PNG file")
    arguments = parser.parse_args()
    with one_blas_thread(), composed():
        made = [make(sweep, value) for sweep, values in SWEEPS.items() for value in values]
        measure(made)
    points = [p for p, *_ in made]
    constants = fit(points)
    sweeps = {sweep: [p for p in points if p.sweep == sweep] for sweep in SWEEPS}
    grown, crossing = exponents(sweeps), crossings(constants)
    print("\n".join(table(sweeps, grown, constants, crossing)))
    blas = sorted({f"{i['internal_api']} {i['version']} {i.get('architecture', '')}" for i in threadpool_info()})
    about = machine() | {"libraries": blas}
    print("\n" + "  ".join(f"{name}: {value}" for name, value in about.items()))
    if arguments.json:
        numbers = dict(machine=about, points=[asdict(p) for p in points], exponents=grown, crossing=crossing)
        numbers["constants"] = dict(zip(("op", "other_flop", "attention_flop"), constants.tolist(), strict=True))
        arguments.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    if arguments.picture:
        save(draw(sweeps, grown, constants, crossing), arguments.picture)


if __name__ == "__main__":
    main()
