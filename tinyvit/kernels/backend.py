"""Two versions of every hot loop: a NumPy spec that says what, a Numba kernel that says how fast.

A kernel file reads top to bottom: the equation, the NumPy function that computes it in a few whole-array
expressions (the *spec*), and under it the loop that Numba compiles to machine code. The two have one signature and
`tests/test_kernels.py` holds them together over shapes, dtypes and memory layouts::

    @Kernel
    def relu(x):                    # the spec: short, obviously right, runs anywhere
        return np.maximum(x, 0)

    @relu.fast
    def relu(x): ...                # the same numbers from one pass over memory

`relu(x)` then runs whichever version is active: `TINYVIT_KERNELS=numba` (the default) or `numpy`, or
`with kernels.use("numpy"):` for a few lines. The NumPy side is also how to step through with a debugger.

Why not NumPy alone: `np.exp(x - x.max())` makes three passes over memory and two temporary arrays. A kernel makes one
pass, and keeps what it just computed in registers. PyTorch does the same with hand-written C++ and a code generator.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir

try:
    import numba

    if numba.config.DISABLE_JIT:  # registers as values cannot be had without compiling
        raise ImportError("NUMBA_DISABLE_JIT is set")
    _no_numba = None
except ImportError as error:  # not installed, or it refuses this NumPy: the reason belongs into the warning below
    numba, _no_numba = None, error

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
            f"Numba cannot be imported ({_no_numba}): kernels run as NumPy, several times slower. Mend it with "
            "`pip install --upgrade numba`, or set TINYVIT_KERNELS=numpy to silence this.",
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

    Raises ValueError for another name and ImportError for "numba" where Numba cannot be imported.
    """
    global _active
    if name not in BACKENDS:
        raise ValueError(f"a kernel backend is one of {', '.join(BACKENDS)}; got {name!r}")
    if name == "numba" and numba is None:
        raise ImportError(f"the numba backend needs Numba, which cannot be imported: {_no_numba}") from _no_numba
    before, _active = _active, name
    try:
        yield
    finally:
        _active = before


class Kernel:
    """One function, two implementations; calling it runs the active one. As a decorator it takes the NumPy spec.

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


def _fingerprint():
    """A hash of every file of this package. Numba notices an edit in a kernel's own file only, not in a helper's, nor a
    changed compiler flag; a folder named after all of them cannot go stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cache_places():
    asked = os.environ.get("NUMBA_CACHE_DIR")
    if asked:
        yield Path(asked)
        return
    yield Path(__file__).parent / "__pycache__"
    with contextlib.suppress(RuntimeError):  # a user without a home, as containers have them
        place = Path(user_cache_dir("tinyvit", appauthor=False))
        if place.is_absolute():  # else an older platformdirs left "~" as it stands: a folder of that name, here
            yield place


def _cache_folder():
    """The first writable place for compiled kernels, or None: then each process compiles for itself."""
    for place in _cache_places():
        folder = place / f"tinyvit-kernels-{_fingerprint()}"
        try:
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.NamedTemporaryFile(dir=folder).close()  # we may write; and the folder's time says: used just now
        except OSError:
            continue
        if is_new:
            _remove_old_folders(place)
        return folder
    return None


def _remove_old_folders(place):
    """Remove what earlier versions of this package compiled, but for the last day's: a process may still use that."""
    with contextlib.suppress(OSError):  # tidying up must not stop anyone; another process may be at it as well
        for folder in place.glob("tinyvit-kernels-*"):
            if time.time() - folder.stat().st_mtime > 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


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
        return _forgiving(numba.njit(**flags)(function))
    finally:
        numba.config.CACHE_DIR = before


def _forgiving(dispatcher):
    """Let a broken cache cost a compilation, never the run. Numba lets every error of its cache through: a disk that is
    full by now, a folder that went away, a file that a power failure cut off (and which would stop all later runs)."""
    cache = getattr(dispatcher, "_cache", None)  # none with NUMBA_DISABLE_JIT=1
    if cache is None:
        return dispatcher
    load, save = cache.load_overload, cache.save_overload

    def load_if_whole(*args):
        try:
            return load(*args)
        except Exception:  # whatever pickle makes of half a file
            with contextlib.suppress(OSError):
                cache.flush()  # empty the index, so that the compiled kernel can be saved anew
            return None

    def save_if_possible(*args):
        with contextlib.suppress(Exception):
            save(*args)

    cache.load_overload, cache.save_overload = load_if_whole, save_if_possible
    return dispatcher


def compiled_before():
    """True when kernels from an earlier run are on disk: what that run called will not be slow at the first call.

    One kernel is enough for True. What no run has called yet (another dtype, GELU's other form) still compiles at its
    first call.
    """
    return CACHE_FOLDER is not None and next(CACHE_FOLDER.rglob("*.nbi"), None) is not None


def announce_compilation():
    """Say in one line why nothing seems to happen, where the coming calls will compile. Silent otherwise."""
    if _active == "numba" and not compiled_before():
        how_often = (
            "once per install" if CACHE_FOLDER else "in each run: set NUMBA_CACHE_DIR to a writable folder to keep them"
        )
        print(f"compiling kernels (ten seconds or so), {how_often} …", file=sys.stderr, flush=True)


FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}


def require(holds, must, *arrays, **options):
    """The check at a kernel's door, on both sides: compiled code does not look where it reads and writes.

    `holds` is what must hold of the shapes, `must` says it in words. Raises ValueError when it does not, TypeError
    when the arrays are not all float32 or all float64; `options` are shown beside the arrays.
    """
    dtypes = {a.dtype for a in arrays}
    if holds and len(dtypes) == 1 and dtypes <= FLOATS:
        return
    got = [f"{a.dtype} {a.shape}" for a in arrays] + [f"{name}={value}" for name, value in options.items()]
    if not holds:
        raise ValueError(f"{must}; got {', '.join(got)}")
    raise TypeError(f"{must}, all float32 or all float64; got {', '.join(got)}")


def contiguous(*arrays):
    """The arrays as Numba wants them: C-contiguous and writeable. Copies only what is not.

    Numba compiles a kernel anew (0.2 s and more) for each layout and for read-only arrays; at this door all look alike.
    """
    ready = [a if a.flags.carray else np.array(a, order="C") for a in arrays]
    return ready if len(ready) > 1 else ready[0]
