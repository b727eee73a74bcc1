"""Arrays that come back: memory that a finished array leaves is kept for the next one.

A training step makes some hundred arrays of megabytes, frees them, and the next step makes the same ones again. The
operating system hands out each page anew, zeroed, at the first touch (a page fault), which takes longer than computing
what goes into it. So within `with Pool():` the large arrays of this thread come from memory that earlier ones left:

    a = empty((64, 50, 64))     # new memory
    del a                       # nobody looks at it any more
    b = empty((64, 50, 64))     # the same memory, still in the processor's cache

Nothing has to be given back by hand: Python's reference count knows when an array and all views of it are gone, and a
weak reference tells the pool. PyTorch's caching allocator does the same for the memory of a GPU.

Chapter of the course: notebooks/03-making-numpy-fly.ipynb.
"""

import math
import mmap
import threading
import weakref

import numpy as np

SMALL = 2**15  # bytes up to which the C library is quick, since it keeps small pieces itself

# A forked process must get a copy of its own, not write into ours. (Windows has no fork, and no such flags.)
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}

_thread = threading.local()


def empty(shape, dtype=np.float32):
    """An array with arbitrary contents, as np.empty gives it; from the thread's pool, if there is one."""
    pool = getattr(_thread, "pool", None)
    if pool is None:
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.empty(shape, dtype) if size <= SMALL else pool.take(shape, dtype, size)


def empty_like(x):
    """An array of x's shape and dtype with arbitrary contents, C-contiguous."""
    return empty(x.shape, x.dtype)


def add(a, b):
    """a + b, the sum that residual connections make so often."""
    if a.dtype != b.dtype:
        return a + b
    shape = a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape)
    return np.add(a, b, out=empty(shape, a.dtype))


def share(x, others):
    """Whether x shows the memory of one of the other arrays (None among them is passed over)."""
    others = [a for a in others if a is not None]
    if all(type(a.base) in KINDS for a in (x, *others)):
        owner = x.base if type(x.base) is np.ndarray else x  # NumPy lets a view's view point to the owner
        return any(a is owner or a.base is owner for a in others)
    return any(np.may_share_memory(x, a) for a in others)  # slower, and for any kind of view


KINDS = {type(None), np.ndarray, mmap.mmap}  # of `base`: an array's own memory, an array that it shows, a pool's block


class Lease(weakref.ref):
    """A weak reference to an array that lies in a block of the pool."""

    __slots__ = ("block", "key")


class Pool:
    """Blocks of memory that one thread at a time uses again and again, inside `with pool:`.

    Blocks have sizes of powers of two, so that an array of another batch size finds one too. (Linux and macOS give
    memory when it is touched first, so the part beyond the array costs nothing.) They go back with the pool.
    """

    def __init__(self):
        self.free = {}  # size: blocks that no array lies in
        self.leases = {}  # keeps the weak references alive, without which no one would call
        self.outer = []  # the pools that this one stands in for, one for each `with` that is open

    def __enter__(self):
        self.outer.append(getattr(_thread, "pool", None))
        _thread.pool = self
        return self

    def __exit__(self, *exception):
        _thread.pool = self.outer.pop()

    def take(self, shape, dtype, size):
        """An array in a free block, or in a new one."""
        room = 1 << (size - 1).bit_length()
        blocks = self.free.setdefault(room, [])
        try:
            block = blocks.pop() if blocks else mmap.mmap(-1, room, **PRIVATE)
        except (OSError, OverflowError):
            return np.empty(shape, dtype)  # which says MemoryError, if that does not fit either
        array = np.ndarray(shape, dtype, buffer=block)  # a view of it, or of a view, keeps this very array alive
        lease = Lease(array, self.give_back)
        lease.block, lease.key = block, id(lease)
        self.leases[lease.key] = lease
        return array

    def give_back(self, lease):
        del self.leases[lease.key]
        self.free[len(lease.block)].append(lease.block)
