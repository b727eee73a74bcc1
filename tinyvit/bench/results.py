"""A survey: the same contenders at one shape after the other, on a machine that is described beside the numbers."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from tinyvit import kernels
from tinyvit.bench.machine import machine
from tinyvit.bench.rounds import BenchError, Measured, label, measure


@dataclass
class Results:
    """facts: {what: words} about the machine; threads: the counts compared; shapes: {shape: Measured}."""

    facts: dict
    threads: tuple[int, ...]
    shapes: dict[str, Measured]

    def save(self, path):
        """Write everything, each round included, as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def survey(contenders, shapes, threads, rounds, seconds, say):
    """Measure `contenders`, (name, threads) each; returns Results. Raises BenchError if one of tinyvit's own fails, or
    cannot be what is meant."""
    if kernels.backend() != "numba":
        raise BenchError("this measures the compiled kernels: Numba must be there, and TINYVIT_KERNELS not be numpy")
    if min(threads) < 1 or rounds < 1:
        raise BenchError(f"threads and rounds must be at least 1, got {min(threads)} and {rounds}")
    kernels.announce_compilation()
    results = Results(machine(), tuple(threads), {})
    for shape in shapes:
        results.shapes[shape] = measured = measure(shape, contenders, rounds, seconds, say)
        for name, count in contenders:
            if name.startswith("tinyvit") and label(name, count) in measured.left_out:
                raise BenchError(f"{shape}: {label(name, count)}: {measured.left_out[label(name, count)]}")
    return results
