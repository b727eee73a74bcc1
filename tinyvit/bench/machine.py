"""What the machine is, and what it gives at this moment.

A ratio between threads means something only if the threads had their cores. On a shared machine they often have not,
and nothing in the operating system says so; a loop of known length does.
"""

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_info

from tinyvit import kernels
from tinyvit.train import available_cores


def machine():
    """{what: words} about processor, libraries and memory, for the head of a report."""
    packages = {"NumPy": "numpy", "Numba": "numba", "PyTorch": "torch"}
    installed = {title: name for title, name in packages.items() if importlib.util.find_spec(name)}
    blas = [p for p in threadpool_info() if p["user_api"] == "blas"]
    return {
        "processor": f"{processor()}, {available_cores()} cores for this process",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{title: importlib.metadata.version(name) for title, name in installed.items()},
        "BLAS": ", ".join(f"{p['internal_api']} {p['version']} ({p.get('architecture', '?')})" for p in blas) or "?",
        "kernels": kernels.backend(),
        "copying memory": f"{copy_bandwidth():.1f} GB/s, read and written, one thread",
    }


def processor():
    """The processor's name in the trade."""
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        if sys.platform == "darwin":
            ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, StopIteration, subprocess.CalledProcessError):
        pass
    return platform.processor() or platform.machine()


def copy_bandwidth(megabytes=64, times=7):
    """GB/s, reading and writing counted, of copies between two arrays larger than most caches; the best of `times`."""
    source, target = np.ones((2, megabytes * 10**6 // 4), np.float32)
    return 2 * source.nbytes / 1e9 / min(_seconds(lambda: np.copyto(target, source)) for _ in range(times))


class Cores:
    """Measures how many of `threads` cores the machine gives just now: `Cores(2)()` is 1.9 where all is well.

    One thread runs a loop that stays in its first-level cache; then as many as asked for run it at once, the median of
    three times. The fastest run alone so far is what a core can do. Each call takes some 100 ms.
    """

    def __init__(self, threads):
        self.threads = threads
        self.fastest = np.inf
        self.pool = ThreadPoolExecutor(threads)
        for _ in range(3):
            _loop(np.ones(4096, np.float32), ROUNDS)  # compiles, and wakes the processor up
            self()

    def __call__(self):
        self.fastest = min(self.fastest, self._run(1))
        together = median(self._run(self.threads) for _ in range(3))
        return self.threads * min(1.0, self.fastest / together)

    def _run(self, threads):
        arrays = np.ones((threads, 4096), np.float32)
        return _seconds(lambda: list(self.pool.map(_loop, arrays, [ROUNDS] * threads)))

    def close(self):
        self.pool.shutdown()


ROUNDS = 30_000  # some 20 ms


@kernels.jit
def _loop(x, rounds):
    for _ in range(rounds):
        for i in range(x.size):
            y = x[i]
            for _ in range(8):  # arithmetic rather than loads, and nothing that a compiler can shorten
                y = y * y * np.float32(0.5) + np.float32(0.25)
            x[i] = y


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
