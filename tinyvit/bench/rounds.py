"""Rounds: the contenders take turns, in an order that changes, while a calibration watches the machine.

In a round each contender works for a fraction of a second; whoever had the first turn has the last in the next round.
Before and after each round it is measured how many cores the machine gives. A round in which it gave too few is played
again, up to as many extra rounds as were asked for; then the best of all rounds are kept, best by the calibration, not
by anyone's times, and what is wrong with them is said.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from statistics import median

from tinyvit.bench.machine import Cores
from tinyvit.bench.statistics import paired

ENOUGH = 0.85  # of the cores asked for


class Died(Exception):
    """A contender cannot go on; the text says why."""


class BenchError(RuntimeError):
    """Nothing can be measured; the text says why."""


class Worker:
    """A contender in its own process (`worker.py`), with `threads` threads for whatever library it uses."""

    def __init__(self, name, shape, threads):
        self.label = label(name, threads)
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        path = os.pathsep.join(filter(None, sys.path))  # it finds what this process finds, and, by -P, nothing else
        environment = os.environ | dict.fromkeys(variables, str(threads)) | {"PYTHONPATH": path}
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tinyvit.bench.worker", name, shape, str(threads)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, encoding="utf-8",
        )  # fmt: skip

    def answer(self):
        """Its next answer, a dict. Raises Died."""
        line = self.process.stdout.readline()
        content = json.loads(line) if line.endswith("\n") else {"error": self._last_words()}
        if "error" in content:
            raise Died(content["error"])
        return content

    def turn(self, seconds):
        """Let it work. Returns {step: {"median", "p90"}} in seconds. Raises Died."""
        with contextlib.suppress(OSError):  # a broken pipe: it has died, and `answer` says of what
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        return self.answer()

    def _last_words(self):
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"ended with exit code {code}: {said}"

    def close(self):
        """End the process, which has nothing to lose, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # what was not yet sent to it
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


def label(name, threads):
    return f"{name} ×{threads}"


@dataclass
class Measured:
    """One shape's rounds.

    rounds: for each round kept, {label: {step: {"median", "p90"}}} in seconds.
    cores: for each round kept, how many cores of `threads` the machine gave.
    played: rounds in all.
    memory: {label: {"growth", "peak", "whole life"} in MB, or None}.
    left_out: {label: reason}.
    """

    rounds: list
    cores: list
    threads: int
    played: int
    memory: dict
    left_out: dict

    def __contains__(self, label):
        return label in self.memory

    def times(self, label, step="step", what="median"):
        """Seconds, one number a round."""
        return [times[label][step][what] for times in self.rounds]

    def time(self, label, step="step", what="median"):
        """Seconds, the median over the rounds."""
        return median(self.times(label, step, what))

    def ratio(self, label, reference, step="step", what="median"):
        """(median, lowest, highest) over the rounds of label's time over the reference's."""
        return paired(self.times(label, step, what), self.times(reference, step, what))

    def short_of_cores(self):
        """The rounds kept in which the machine gave too few cores, as a list of what it gave."""
        return [cores for cores in self.cores if cores < ENOUGH * self.threads]


def measure(shape, contenders, rounds, seconds, say):
    """Play `rounds` rounds of `contenders`, a list of (name, threads), at a shape; returns a Measured.

    `say(text)` is told what happens. Raises BenchError if not one contender is left.
    """
    workers, memory, left_out = [], {}, {}
    threads = max(threads for _, threads in contenders)
    cores = Cores(threads)
    try:
        for name, count in contenders:
            workers.append(Worker(name, shape, count))  # one by one, so that Ctrl-C finds all that were started
        say(f"{shape}: preparing {len(contenders)} contenders, each in its own process")
        alive = list(workers)

        def ask(worker, question):
            try:
                return question()
            except Died as reason:
                left_out[worker.label] = str(reason)
                memory.pop(worker.label, None)
                alive.remove(worker)
                if not alive:
                    raise BenchError(f"{shape}: {worker.label}: {reason}") from None

        for worker in workers:
            if ready := ask(worker, worker.answer):
                memory[worker.label] = ready["memory"]

        def play(number):
            extra = number >= rounds
            say(f"{shape}: " + ("one more round, for want of cores" if extra else f"round {number + 1} of {rounds}"))
            order = [workers[(number + i) % len(workers)] for i in range(len(workers))]
            return {w.label: ask(w, lambda w=w: w.turn(seconds)) for w in order if w in alive}

        kept, played = play_rounds(play, lambda: cores() / threads, rounds)
    finally:
        for worker in workers:
            worker.close()
        cores.close()
    finished = [{name: times[name] for name in memory} for times, _ in kept]
    return Measured(finished, [threads * share for _, share in kept], threads, played, memory, left_out)


def play_rounds(play, calibrate, wanted):
    """Play until `wanted` rounds had ENOUGH of the machine, at most twice as many in all.

    `play(number)` returns what a round measured, `calibrate()` the share in [0, 1] of the machine that we get. Returns
    ([(measured, share)] of the `wanted` rounds with the best shares, the number of rounds played).
    """
    played, before = [], calibrate()
    while sum(share >= ENOUGH for _, share in played) < wanted and len(played) < 2 * wanted:
        measured = play(len(played))
        after = calibrate()
        played.append((measured, min(before, after)))
        before = after
    return sorted(played, key=lambda item: -item[1])[:wanted], len(played)
