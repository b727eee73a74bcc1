"""Hours of training in one process: does memory grow, do steps become slower?

`PYTHONPATH=. python benchmarks/endurance.py RECIPE RECIPE … --out FOLDER` trains one recipe after the other, each a name
(`tinyvit recipes` lists them) or a TOML file that is read when its turn comes, with the command `tinyvit train`. Besides,
the memory that the process holds is noted every ten seconds in FOLDER/memory.jsonl. The tables: for each run, images a
second in the first and in the last quarter of its epochs (medians, without validation and
without the first epoch, which compiles), and the memory at a tenth of its time, at its end, and the most. Not for Windows, which does not say how much
memory a process holds.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from statistics import median

from tinyvit.bench.footprint import resident
from tinyvit.bench.machine import machine
from tinyvit.bench.report import table
from tinyvit.cli import main as tinyvit
from tinyvit.train.metrics import read_metrics

SECONDS = 10  # between two looks at the memory


def watch(file, start, over):
    """Until the event `over`: a line of JSON every SECONDS."""
    while not over.wait(SECONDS):
        line = dict(seconds=round(time.perf_counter() - start, 1), megabytes=round(resident()[0], 1))
        file.write(json.dumps(line) + "\n")
        file.flush()


def row(name, folder, begin, end, memory):
    """A run's row of the table. `memory`: (seconds, megabytes) of the whole process."""
    rates = [epoch["images_per_second"] for epoch in read_metrics(folder)[0]][1:]
    rates = [rate for rate in rates if rate]
    quarter = max(1, len(rates) // 4)
    first, last = (median(part) if part else 0 for part in (rates[:quarter], rates[-quarter:]))
    held = [mb for at, mb in memory if begin + 0.1 * (end - begin) <= at <= end] or [resident()[0]]
    speed = [f"{first:,.0f}", f"{last:,.0f}", f"{last / first:.3f}" if first else "?"]
    return [name, f"{(end - begin) / 60:.1f}", str(len(rates) + 1), *speed, *(f"{mb:,.0f}" for mb in (held[0], held[-1], max(held)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    options = parser.parse_args()
    if resident() is None:
        sys.exit("endurance.py: this system does not say how much memory a process holds")
    options.out.mkdir(parents=True, exist_ok=True)
    start, over, rows = time.perf_counter(), threading.Event(), []
    path = options.out / "memory.jsonl"
    with path.open("w", encoding="utf-8") as file:
        watcher = threading.Thread(target=watch, args=(file, start, over), daemon=True)
        watcher.start()
        for number, recipe in enumerate(options.recipes, 1):
            name, begin = f"{number}-{Path(recipe).stem}", time.perf_counter() - start
            code = tinyvit(["train", "--recipe", recipe, "--out", str(options.out / name)])
            if code:
                print(f"{name}: exit code {code}", file=sys.stderr)
                break
            end = time.perf_counter() - start
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            memory = [(line["seconds"], line["megabytes"]) for line in lines]
            rows.append(row(name, options.out / name, begin, end, memory))
        over.set()
        watcher.join()
    head = ["run", "minutes", "epochs", "images/s, first quarter", "last", "ratio", "MB at a tenth", "at the end", "most"]
    print("\n".join(f"- {what}: {words}" for what, words in machine().items()))
    print("\n" + table(head, rows))
    return code


if __name__ == "__main__":
    sys.exit(main())
