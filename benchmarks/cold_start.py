"""What does a first run wait for? `PYTHONPATH=. python benchmarks/cold_start.py [--json FILE]` from a checkout.

Each measurement is a new process, and its clock starts before that process does, so that Python's own start is in it.
Caches of compiled kernels are new temporary folders (NUMBA_CACHE_DIR). A step is that of the digits recipe, as
`tinyvit train` takes it: a batch of 64 augmented images, forward and backward pass in two shards, clipping, AdamW.

    import          Python by itself, with NumPy, with Numba, with tinyvit
    first ever      the first step of all, with an empty cache: every kernel of it is compiled
    next process    the same again: the kernels come from the cache
    no cache        the same where no folder is writable: compiled in each process

"Kernels" is what the first step takes longer than the fifth: compiling, or loading, and the first touch of memory. The
rest of the time is imports, data and the model. Times are medians. Python's bytecode is there from the start, as pip
leaves it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tinyvit.train.folder import machine

IMPORTS = {"Python": "pass", "NumPy": "import numpy", "Numba": "import numba", "tinyvit": "import tinyvit"}
STEPS, IMPORT_ROUNDS, STEP_ROUNDS = 5, 7, 3
FIRST_STEPS = f"""
import time
from tinyvit import data, optim
from tinyvit.models import vit
from tinyvit.train import RECIPES, Shards

recipe, digits = RECIPES["digits"], data.load("digits")
model = vit(recipe.preset)
optimizer = optim.AdamW(model, lr=recipe.lr, weight_decay=recipe.weight_decay)
augment = data.AUGMENTS[recipe.augment]
ends = [time.time()]
with Shards(model, optimizer.flat, recipe.shards) as shards:
    for images, labels in data.batches(
        digits.train, recipe.batch_size, mean=digits.mean, std=digits.std, seed=0, epoch=0, augment=augment
    ):
        shards.gradient(images, labels, recipe.smoothing)
        optimizer.clip_gradients(recipe.clip)
        optimizer.step()
        ends.append(time.time())
        if len(ends) > {STEPS}:
            break
print(*ends)
"""


def launch(code, cache):
    """(seconds from launch to exit, the moments that `code` printed, in seconds after launch)."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "TINYVIT_KERNELS": "numba"}
    start = time.time()  # not perf_counter: the other process reads this clock too
    run = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return time.time() - start, [float(moment) - start for moment in run.stdout.split()]


def imports(cache):
    """{what: seconds of each round}; they take turns."""
    seconds = {name: [] for name in IMPORTS}
    for _ in range(IMPORT_ROUNDS):
        for name, code in IMPORTS.items():
            seconds[name].append(launch(code, cache)[0])
    return seconds


def first_steps(folder):
    """{case: (seconds from launch to the end of the first step, what its kernels took)}."""
    nowhere = folder / "a file"
    nowhere.touch()
    places = {"first ever": folder / "new", "next process": folder / "new", "no cache": nowhere / "below a file"}
    results = {}
    for case, cache in places.items():
        _, ends = launch(FIRST_STEPS, cache)
        first, last = ends[1] - ends[0], ends[-1] - ends[-2]
        results[case] = ends[1], first - last
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        launch(FIRST_STEPS, Path(folder) / "warm-up")  # bytecode, the disk's cache
        imported = imports(Path(folder) / "imports")
        runs = []
        for i in range(STEP_ROUNDS):
            (Path(folder) / str(i)).mkdir()
            runs.append(first_steps(Path(folder) / str(i)))
    steps = {case: [run[case] for run in runs] for case in runs[0]}
    print("| | seconds after launch | of these, kernels |")
    print("|---|---:|---:|")
    for name, seconds in imported.items():
        print(f"| {name if name == 'Python' else 'import ' + name.lower()} | {statistics.median(seconds):.2f} | |")
    for case, pairs in steps.items():
        after, kernels = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| first step: {case} | {after:.2f} | {kernels:.2f} |")
    about = machine()
    print("\n" + "  ".join(f"{name}: {value}" for name, value in about.items()))
    if arguments.json:
        numbers = dict(machine=about, imports=imported, first_steps=steps)
        arguments.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
