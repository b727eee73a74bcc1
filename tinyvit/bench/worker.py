"""One contender in a process of its own: `python -m tinyvit.bench.worker NAME SHAPE THREADS`.

Threads must be fixed before a library starts its pool, two OpenMP runtimes in one process disturb each other, and a
crash must cost one contender only. So each one gets a process, and talks in lines: it says that it is ready, then for
each line on stdin, a number of seconds, it works that long and answers with the times of its steps.
"""

import importlib
import json
import os
import signal
import sys
import time

import numpy as np

from tinyvit.bench import footprint
from tinyvit.bench.shapes import MODELS

CONTENDERS = {  # name: module and function; imported only where it runs
    "tinyvit": ("ours", "training"),
    "eager": ("pytorch", "eager"),
    "compile": ("pytorch", "compiled"),
    "parts": ("parts", "parts"),
    "tinyvit predict": ("ours", "prediction"),
    "eager predict": ("pytorch", "prediction"),
}


def main(name, shape, threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the one that started us ends us
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)

    try:
        steps, memory = prepare(name, shape, int(threads))
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return answer({"error": f"{type(error).__name__}: {text[0]}"})
    answer({"memory": memory})
    for line in sys.stdin:  # until the other side closes it
        times = {}
        for label, step in steps.items():
            times |= timed(label, step, float(line) / len(steps))
        answer(times)


def prepare(name, shape, threads):
    """Build the contender and warm it up. Returns ({label: step}, memory in MB: {"growth", "peak", "whole life"})."""
    module, function = CONTENDERS[name]
    build = getattr(importlib.import_module(f"tinyvit.bench.{module}"), function)
    before = footprint.resident()
    steps = build(MODELS[shape], threads)
    for step in steps.values():
        step()  # the first call compiles
    forgot = footprint.forget_peak()
    for label, step in steps.items():
        result = step()
        if not np.isfinite(list(result.values()) if isinstance(result, dict) else result).all():
            raise FloatingPointError(f"its {label} gives numbers that are not finite")
    if before is None:
        return steps, None
    _, peak = footprint.resident()
    return steps, {"growth": peak - before[0], "peak": peak, "whole life": not forgot}


def timed(label, step, seconds):
    """Step for so long, twice at least; returns {label: {"median", "p90"}} of the seconds that one takes.

    A step that returns a dict has clocked itself: its labels and seconds take the place of these.
    """
    rows, end = [], time.perf_counter() + seconds
    while len(rows) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        result = step()
        rows.append(result if isinstance(result, dict) else {label: time.perf_counter() - start})
    times = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: {"median": float(np.median(t)), "p90": float(np.quantile(t, 0.9))} for name, t in times.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
