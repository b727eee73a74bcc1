"""Hours of training in one process: does memory grow, do steps become slower?

`PYTHONPATH=. python benchmarks/endurance.py RECIPE RECIPE … --out FOLDER` trains one recipe after the other, each a
name (`tinyvit recipes` lists them) or a TOML file that is read when its turn comes, with the command `tinyvit train`.
At the end of each epoch, looked for once a second, it notes the time, the processor time and the memory that the
process holds, a line each in FOLDER/epochs.jsonl. The table has a row for each run: processor seconds an epoch,
validation included, and memory, both in the first and in the last quarter of the epochs (medians, without the first
epoch, which compiles). Processor time, for that is not longer where others use the machine, too. (macOS tells a process
only the most memory that it ever held, Windows nothing.)
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np

from tinyvit.bench.footprint import resident
from tinyvit.bench.machine import machine
from tinyvit.bench.report import table
from tinyvit.cli import main as tinyvit
from tinyvit.train.metrics import METRICS


class Watcher(threading.Thread):
    """Looks once a second whether the run in `folder` has finished an epoch, and notes then what there is to note."""

    def __init__(self, folder, file):
        super().__init__(daemon=True)
        self.folder, self.file, self.over = folder, file, threading.Event()
        self.epochs = []  # (how many are done, seconds, processor seconds, MB)

    def run(self):
        while not self.over.wait(1.0):
            metrics = self.folder / METRICS
            done = metrics.read_bytes().count(b'"epoch"') if metrics.exists() else 0
            if done > (self.epochs[-1][0] if self.epochs else 0):
                self.epochs.append((done, time.perf_counter(), time.process_time(), resident()[0]))
                names = "epoch", "seconds", "processor_seconds", "megabytes"
                line = dict(zip(names, self.epochs[-1], strict=True))
                print(json.dumps({"run": self.folder.name} | line), file=self.file, flush=True)


def row(name, epochs):
    """A run's row of the table."""
    done, seconds, processor, memory = map(np.array, zip(*epochs, strict=True))
    each = np.diff(processor) / np.diff(done)
    quarter = max(1, len(each) // 4)
    numbers = []
    for values in (each, memory[1:]):
        first, last = median(values[:quarter]), median(values[-quarter:])
        numbers += [f"{first:,.1f}", f"{last:,.1f}", f"{last / first:.3f}"]
    return [name, done[-1], f"{(seconds[-1] - seconds[0]) / 60:.1f}", *numbers]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    options = parser.parse_args()
    if resident() is None:
        sys.exit("endurance.py: this system does not say how much memory a process holds")
    options.out.mkdir(parents=True, exist_ok=True)
    rows, start = [], time.perf_counter()
    with (options.out / "epochs.jsonl").open("w", encoding="utf-8") as file:
        for number, recipe in enumerate(options.recipes, 1):
            folder = options.out / f"{number}-{Path(recipe).stem}"
            watcher = Watcher(folder, file)
            watcher.start()
            code = tinyvit(["train", "--recipe", recipe, "--out", str(folder)])
            time.sleep(2)  # the watcher sees the last epoch
            watcher.over.set()
            watcher.join()
            if len(watcher.epochs) > 2:
                rows.append(row(folder.name, watcher.epochs))
            if code:
                print(f"endurance.py: {folder} ended with exit code {code}", file=sys.stderr)
                break
    print("\n".join(f"- {what}: {words}" for what, words in machine().items()))
    print(f"- one process, {(time.perf_counter() - start) / 60:.0f} minutes\n")
    pairs = [f"{what}, {when}" for what in ("s/epoch", "MB") for when in ("first quarter", "last", "ratio")]
    print(table(["run", "epochs", "minutes", *pairs], rows))
    return code


if __name__ == "__main__":
    sys.exit(main())
