"""A token for every pixel, the naive way to show an image to a Transformer: what it costs, and what it brings.

    python examples/pixel_attention.py cost [--picture PATH]
    python examples/pixel_attention.py accuracy [--epochs E] [--seeds S]

Attention compares all N tokens with all N, so with a token a pixel, N = h w, a step's time and memory grow with the
fourth power of an image's side. `cost` measures training steps of one small ViT (width 64, 4 blocks, 4 heads, MLP 128)
on random images, one thread, each in a fresh process, and draws the formulas through: for each image and layer the
pullbacks remember, in numbers of 4 bytes,

    (8 D + 2 M) N + H N²        what works token by token; the attention maps, one for each of H heads

and the time is fitted by a + b N + c N², constants ≥ 0, to all points but the largest, which tests it. From the first
formula follows the wall: the largest image whose step fits into 16 GB. `accuracy` trains on the 8×8 digits with patches
of 4×4, 2×2 and 1×1.

Measured with these commands, AMD EPYC VM, two shared cores, Python 3.11, NumPy 2.4.6. `cost` takes two minutes. A step
of 8 images of 28×28 takes 238 ms and 405 MB with a token a pixel, 27 ms and 39 MB with 2×2 patches, 4.4 ms and 7 MB
with 4×4. The memory formula is within 4 % of the peak from 785 tokens on (5.35 GB by formula, 5.41 measured at 3,137);
the time formula, fitted below, says 3.4 s there where 4.4 were measured. 16 GB are full at 125×125 pixels with one
image a step, at 74×74 with 8, at 43×43 with 64. A photograph of 224×224, 50,177 tokens, would take 162 GB; with 16×16
patches it takes 5 MB.

`accuracy`: 3 seeds of 60 epochs on the digits, by the recipe that was chosen for patch 2. Test accuracy 98.98 ± 0.26 %
with 4×4 patches, 98.52 ± 0.35 % with 2×2, 94.81 ± 0.86 % with a token a pixel, in 4, 10 and 39 s a run at the quickest:
nine times the work of patch 4, and worse. A pixel alone says little, and 65 tokens have to find out which belong
together.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import brentq, nnls

import tinyvit as tv
from tinyvit.bench import footprint
from tinyvit.viz import save
from tinyvit.viz.figure import BLUE, GREY, INK, ORANGE, WIDTH, Picture, styled

WIDE, DEPTH, HEADS, MLP = 64, 4, 4, 128
BATCH, GB = 8, 1e9
PIXELS = tuple((side, 1) for side in (8, 14, 20, 28, 32, 56))
PATCHES = (8, 2), (14, 2), (28, 2), (32, 2), (28, 4), (32, 4), (28, 7)  # image side, patch


def config(side, patch):
    return tv.ViTConfig(side, patch, 1, 10, WIDE, DEPTH, HEADS, MLP)


def remembered(tokens, batch=BATCH):
    """Bytes that a step keeps for its way back, by the formula at the top of this file."""
    return 4 * batch * DEPTH * ((8 * WIDE + 2 * MLP) * tokens + HEADS * tokens**2)


def wall(batch, patch=1, room=16 * GB):
    """The side in pixels, a whole number of patches, of the largest square image whose step fits into `room` bytes."""
    tokens = brentq(lambda n: remembered(n, batch) - room, 1, 1e9)
    return patch * int(max(tokens - 1, 0) ** 0.5)


def measure(side, patch):
    """Training steps in this process: {"tokens", "seconds" (their median), "bytes" (what a step adds at its peak)}."""
    model = tv.ViT(config(side, patch))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, side, side, 1), dtype=np.float32)
    labels = rng.integers(0, 10, BATCH)
    times = []
    with tv.train.one_blas_thread():

        def step():
            start = time.perf_counter()
            model.zero_grad()
            tv.functional.cross_entropy(model(images), labels).backward()
            times.append(time.perf_counter() - start)

        tv.functional.cross_entropy(model(images[:1]), labels[:1]).backward()  # compiles
        before, _ = footprint.resident() or (None, None)
        footprint.forget_peak()
        step()
        peak = None if before is None else 1e6 * (footprint.resident()[1] - before)
        with tv.memory.Pool():  # as in training: memory that comes back
            step()  # takes the memory that the others use again
            times.clear()
            while len(times) < 3 or sum(times) < 1:
                step()
    return dict(tokens=model.config.tokens, seconds=float(np.median(times)), bytes=peak)


def cost(points=PIXELS + PATCHES, picture=None):
    """Measure each point in a process of its own, print a table, draw; returns the rows."""
    rows = []
    print(f"a training step with {BATCH} images, width {WIDE}, {DEPTH} blocks, {HEADS} heads, one thread")
    print("| image | patch | tokens | ms | MB at the peak | MB by the formula |\n|---|---:|---:|---:|---:|---:|")
    for side, patch in points:
        command = [sys.executable, __file__, "measure", "--side", str(side), "--patch", str(patch)]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        row = dict(side=side, patch=patch) | json.loads(out.splitlines()[-1])
        rows.append(row)
        peak = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        print(
            f"| {side}×{side} | {patch} | {row['tokens']:,} | {1e3 * row['seconds']:.1f} | {peak} | "
            f"{remembered(row['tokens']) / 1e6:.1f} |",
            flush=True,
        )
    rows.sort(key=lambda row: row["tokens"])
    constants, largest = fit(rows[:-1]), rows[-1]
    N = largest["tokens"]
    share = constants[2] * N**2 / (constants @ powers(N))
    print(
        f"fitted to all points but the largest, the time formula says {constants @ powers(N):.2f} s for {N:,} tokens, "
        f"where {largest['seconds']:.2f} s were measured; {share:.0%} of it grows with N²"
    )
    for batch in (1, 8, 64):
        print(
            f"batch {batch}: 16 GB hold images up to {wall(batch)}×{wall(batch)} with a token a pixel, "
            f"{wall(batch, 4)}×{wall(batch, 4)} with 4×4 patches, {wall(batch, 16)}×{wall(batch, 16)} with 16×16"
        )
    for patch in (1, 16):
        N = (224 // patch) ** 2 + 1
        print(
            f"224×224 with patch {patch}: {N:,} tokens, {remembered(N, 1) / GB:.3g} GB and, if the fit holds so far, "
            f"{constants @ powers(N) / BATCH:.2g} s an image"
        )
    if picture:
        save(draw(rows, constants), picture)
    return rows


def powers(tokens):
    return np.array([1.0, tokens, tokens**2])


def fit(rows):
    """Seconds of a step as a + b N + c N²: (a, b, c) ≥ 0 with the least relative errors."""
    matrix = np.array([powers(row["tokens"]) / row["seconds"] for row in rows])
    size = matrix.max(0)
    return nnls(matrix / size, np.ones(len(rows)))[0] / size


@styled
def draw(rows, constants):
    """Two panels against the image's side, time and memory: measured points, and the formulas as lines."""
    figure = Picture(figsize=(WIDTH, 3.6))
    figure.suptitle(f"a training step of {BATCH} images: a token a pixel against patches")
    left, right = figure.subplots(1, 2)
    sides = np.geomspace(7, 320, 100)
    styles = {1: (ORANGE, "-", "o"), 2: (BLUE, "-", "s"), 4: ("#56B4E9", "--", "^"), 7: (GREY, ":", "D")}
    for patch, (colour, line, marker) in styles.items():
        tokens = (sides / patch) ** 2 + 1
        mine = [row for row in rows if row["patch"] == patch]
        panels = (
            (left, [row["seconds"] for row in mine], np.array([constants @ powers(n) for n in tokens])),
            (right, [(row["bytes"] or np.nan) / GB for row in mine], remembered(tokens) / GB),
        )
        name = "a token a pixel" if patch == 1 else f"patches of {patch}×{patch}"
        for axes, measured, formula in panels:
            axes.plot(sides, formula, line, color=colour)
            axes.plot([row["side"] for row in mine], measured, marker, color=colour, mec=INK, ms=5)
            axes.plot([], [], line + marker, color=colour, mec=INK, ms=5, label=name)
    photo = (224**2 + 1, 224)  # tokens, side
    left.plot(photo[1], constants @ powers(photo[0]), "x", color=INK, ms=7, mew=1.6)
    right.plot(photo[1], remembered(photo[0]) / GB, "x", color=INK, ms=7, mew=1.6)
    words = (
        f"224×224:\n{constants @ powers(photo[0]) / 60:,.0f} minutes",
        f"224×224:\n{remembered(photo[0]) / GB:,.0f} GB",
    )
    heights = constants @ powers(photo[0]), remembered(photo[0]) / GB
    for axes, text, height in zip((left, right), words, heights, strict=True):
        axes.annotate(text, (224, height), (-9, 0), textcoords="offset points", ha="right", va="center")
    side = wall(BATCH)
    right.axhline(16, color=INK, lw=1)
    right.plot(side, 16, "x", color=INK, ms=7, mew=1.6)
    right.annotate(f"16 GB: {side}×{side}", (side, 16), (-9, 3), textcoords="offset points", ha="right", va="bottom")
    for axes, title in ((left, "seconds a step"), (right, "GB at the step's peak")):
        axes.loglog()
        axes.minorticks_off()
        axes.set_xticks([8, 14, 28, 56, 112, 224], ["8", "14", "28", "56", "112", "224"])
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set(xlabel="side of the image in pixels", title=title, ylim=(1e-3, 1e4))
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, title="points measured, lines by formula")
    return figure


def accuracy(epochs=60, seeds=3, images=None):
    """Train the digits' ViT with patches 4, 2, 1; print and return {patch: test accuracies}."""
    dataset = tv.data.load("digits")
    dataset = replace(dataset, train=dataset.train[:images])
    print(f"digits, {epochs} epochs, seeds 0 to {seeds - 1}, the recipe of patch 2; mean ± standard deviation")
    accuracies = {}
    for patch in (4, 2, 1):
        rows = []
        for seed in range(seeds):
            recipe = replace(tv.train.RECIPES["digits"], patch=patch, epochs=epochs, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                run = tv.train.fit(recipe, dataset, folder, threads=1, bar=False, say=lambda line: None)
            rows.append((run.history[-1]["validation_accuracy"], run.test_accuracy, run.seconds))
        validation, test, seconds = np.array(rows).T
        accuracies[patch] = test.tolist()
        print(
            f"  patch {patch}: {run.model.config.tokens} tokens, validation {validation.mean():.2%} ± "
            f"{validation.std():.2%}, test {test.mean():.2%} ± {test.std():.2%}, {seconds.mean():.0f} s a run",
            flush=True,
        )
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "accuracy", "measure"))
    parser.add_argument("--picture", type=Path, help="cost: write the picture to this PNG file")
    parser.add_argument("--epochs", type=int, default=60, help="accuracy: of each run")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy: runs a patch size")
    parser.add_argument("--side", type=int, help="measure: one point, this image's")
    parser.add_argument("--patch", type=int, help="measure: and this patch's")
    arguments = parser.parse_args()
    if arguments.what == "cost":
        cost(picture=arguments.picture)
    elif arguments.what == "accuracy":
        accuracy(arguments.epochs, arguments.seeds)
    else:
        print(json.dumps(measure(arguments.side, arguments.patch)))
