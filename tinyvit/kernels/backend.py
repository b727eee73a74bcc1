"""Two versions of every hot loop: a NumPy spec that says what, a Numba kernel that says how fast.

A kernel file reads top to bottom: the equation, the NumPy function that computes it in a few whole-array
expressions (the *spec*), and under it the loop that Numba compiles to machine code. The two have one signature and
`tests/test_kernels.py` holds them together over shapes, dtypes and memory layouts::

    @kernel
    def relu(x):                    # the spec: short, obviously right, runs anywhere
        return np.maximum(x, 0)

    @relu.fast
    def relu(x): ...                # the same numbers from one pass over memory

`relu(x)` then runs whichever version is active: `TINYVIT_KERNELS=numba` (the default) or `numpy`, or
`with kernels.use("numpy"):` for a few lines. The NumPy side is also how to step through with a debugger.

Why not NumPy alone: `np.exp(x - x.max())` makes three passes over memory and two temporary arrays. A kernel makes one
pass, and keeps what it just computed in registers. PyTorch does the same with hand-written C++ and a code generator.
"""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir

try:
    import numba
except ImportError:
    numba = None

BACKENDS = ("numba", "numpy")

# Every rounding liberty but two. `nnan` and `ninf` would let the compiler assume that NaN and infinity never occur, and
# a diverged run would go unnoticed: with fastmath=True, isnan(nan) is False.
FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}


def _first_backend():
    asked = os.environ.get("TINYVIT_KERNELS") or "numba"
    if asked not in BACKENDS:
        warnings.warn(f"TINYVIT_KERNELS must be one of {', '.join(BACKENDS)}, got {asked!r}; using numba", stacklevel=2)
        asked = "numba"
    if asked == "numba" and numba is None:
        warnings.warn(
            "Numba is not installed: kernels run as NumPy, several times slower. Install it with `pip install numba`, "
            "or set TINYVIT_KERNELS=numpy to silence this.",
            stacklevel=2,
        )
        asked = "numpy"
    return asked


_active = _first_backend()


def backend():
    """The active kernel backend, "numba" or "numpy"."""
    return _active


@contextlib.contextmanager
def use(name):
    """Run the body with the kernel backend `name`, "numba" or "numpy", in all threads; then go back.

    Raises ValueError for another name and ImportError for "numba" where Numba is not installed.
    """
    global _active
    if name not in BACKENDS:
        raise ValueError(f"a kernel backend is one of {', '.join(BACKENDS)}; got {name!r}")
    if name == "numba" and numba is None:
        raise ImportError("the numba backend needs Numba: pip install numba")
    before, _active = _active, name
    try:
        yield
    finally:
        _active = before


class Kernel:
    """One function, two implementations; calling it runs the active one.

    `.numpy` and `.numba` are the implementations themselves, for tests and for the curious.
    """

    def __init__(self, spec):
        functools.update_wrapper(self, spec)
        self.numpy = spec
        self.numba = None

    def fast(self, implementation):
        """Register the Numba implementation; returns the kernel, so that the name keeps meaning the pair."""
        self.numba = implementation
        return self

    def __call__(self, *args, **kwargs):
        return (self.numba if _active == "numba" else self.numpy)(*args, **kwargs)

    def __repr__(self):
        return f"<kernel {self.__name__}: {_active}>"


def kernel(spec):
    """Decorator: `spec` becomes a `Kernel` whose NumPy side it is."""
    return Kernel(spec)


def _fingerprint():
    """A hash of every file of this package. Numba notices an edit in a kernel's own file only, not in a helper's, nor a
    changed compiler flag; a folder named after all of them cannot go stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cache_folder():
    """The first writable place for compiled kernels, or None: then each process compiles for itself."""
    asked = os.environ.get("NUMBA_CACHE_DIR")
    places = [asked] if asked else [Path(__file__).parent / "__pycache__", user_cache_dir("tinyvit", appauthor=False)]
    for place in places:
        folder = Path(place) / f"tinyvit-kernels-{_fingerprint()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError:
            continue
    return None


CACHE_FOLDER = _cache_folder() if numba else None


def jit(function=None, **options):
    """Compile a loop with the house's flags: no GIL, so that threads run side by side; `error_model="numpy"`, because
    Python's zero check at each division keeps a loop from vectorising; FASTMATH above; cached on disk.

    There is no `parallel=True`: training cuts the batch into shards and gives each thread one
    (`train/shards.py`), which keeps all cores busy without a second pool of threads beside BLAS's.
    """
    if function is None:
        return functools.partial(jit, **options)
    if numba is None:
        return function
    flags = dict(nogil=True, error_model="numpy", fastmath=FASTMATH, cache=CACHE_FOLDER is not None) | options
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(CACHE_FOLDER or before)  # read while decorating; other packages keep their setting
    try:
        return numba.njit(**flags)(function)
    finally:
        numba.config.CACHE_DIR = before


def compiled_before():
    """True when compiled kernels from an earlier run are on disk, so that the first call will not be slow."""
    return CACHE_FOLDER is not None and next(CACHE_FOLDER.rglob("*.nbi"), None) is not None


def announce_compilation():
    """Say in one line why nothing seems to happen, where the coming calls will compile. Silent otherwise."""
    if _active == "numba" and not compiled_before():
        print("compiling kernels, once per install (about 10 s) …", file=sys.stderr, flush=True)


def contiguous(*arrays):
    """The arrays as Numba wants them: C-contiguous and writeable. Copies only what is not.

    Numba compiles a kernel anew (0.2 s and more) for each layout and for read-only arrays; at this door all look alike.
    """
    ready = tuple(a if a.flags.c_contiguous and a.flags.writeable else np.array(a, order="C") for a in arrays)
    return ready if len(ready) > 1 else ready[0]
