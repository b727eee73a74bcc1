"""A finished array's memory serves the next array: not sooner, not for another thread, and not for small ones."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tinyvit.memory import SMALL, Pool, add, empty, empty_like, share

LARGE = SMALL // 4 + 1  # float32 numbers: a byte more than small


def address(array):
    return array.__array_interface__["data"][0]


def overlap(a, b):
    return np.may_share_memory(a, b)  # of whole blocks, its answer is exact


@pytest.fixture
def pool():
    with Pool() as pool:
        yield pool


VIEWS = {
    "the array": lambda a: a,
    "slice": lambda a: a[5:7, 3:],
    "transpose": lambda a: a.T,
    "reshape": lambda a: a.reshape(-1),
    "view of a view": lambda a: a.T[1:][::2],
    "another dtype": lambda a: a.view(np.int32),
    "one number": lambda a: a[3, 4:5],
    "broadcast": lambda a: np.broadcast_to(a[None], (3, *a.shape)),
    "memoryview": memoryview,
    "from the buffer": lambda a: np.frombuffer(a, np.uint8),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_memory_comes_back_with_the_last_view(pool, make):
    """Protects: memory is used again, and not while anyone can still see it."""
    a = empty((100, 100))
    place = address(a)
    view = make(a)
    del a
    assert address(empty((100, 100))) != place
    assert len(pool.leases) == 1
    del view
    assert not pool.leases and sum(map(len, pool.free.values())) == 2
    assert address(empty((100, 100))) == place
    gc.disable()  # the reference count alone must do it
    try:
        b = empty((100, 100))
        assert address(b) == place
        del b
        assert address(empty((100, 100))) == place
    finally:
        gc.enable()


def test_other_shapes_and_dtypes_find_it(pool):
    """Protects: a last, smaller batch needs no memory of its own; nor does float64 or a transpose's shape."""
    place = address(empty((100, 100)))
    for shape, dtype in ((90, 100), np.float32), ((50, 100), np.float64), ((100, 1, 75), np.int64), ((9000,), np.int32):
        assert address(empty(shape, dtype)) == place
    first, second = empty((100, 100)), empty((100, 100))
    assert address(first) == place and not overlap(first, second)


def test_shapes_dtypes_alignment(pool):
    """Protects: what np.empty promises, and the alignment that vector loads like."""
    for shape in (LARGE,), (3, LARGE), (2, 3, 5, 7, 11, 13), (LARGE, 0), (0,), ():
        for dtype in np.float32, np.float64, np.int8, np.bool_, np.complex128, ">f4":
            a = empty(shape, dtype)
            assert a.shape == shape and a.dtype == dtype
            assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
            assert a.nbytes <= SMALL or address(a) % 64 == 0
            a[...] = 1
            assert (a == 1).all()
    turned = empty_like(np.ones((LARGE, 3), np.float64).T)
    assert turned.shape == (3, LARGE) and turned.dtype == np.float64 and turned.flags.c_contiguous


def test_sum(pool):
    """Protects: `add` broadcasts as + does, keeps the dtype and leaves its arguments alone."""
    a, b = np.arange(3 * LARGE, dtype=np.float32).reshape(3, LARGE), np.float32([[1], [2], [3]])
    c = add(a, b)
    np.testing.assert_array_equal(c, a + b)
    assert c.dtype == np.float32 and not overlap(c, a) and pool.leases


def test_small_arrays_bypass_the_pool(pool):
    """Protects: small arrays, a hundred a step, cost no bookkeeping; the limit is where SMALL says."""
    small = empty((SMALL // 4,)), empty((SMALL,), np.int8), empty(()), empty((0, LARGE))
    assert all(a.base is None for a in small) and not pool.leases
    large = empty((LARGE,))
    assert large.base is not None and len(pool.leases) == 1


def test_without_a_pool():
    """Protects: outside of a pool all is NumPy's."""
    assert empty((LARGE,)).base is None


def test_nested_pools():
    """Protects: the inner pool serves, keeps its blocks to itself, and hands back, after an error too."""
    with Pool() as outer:
        place = address(empty((LARGE,)))
        with pytest.raises(KeyError), Pool() as inner:
            a = empty((LARGE,))
            assert address(a) != place and len(inner.leases) == 1 and not outer.leases
            raise KeyError
        assert address(empty((LARGE,))) == place
        del a  # goes to the inner pool, though the outer one is in use
        assert not inner.leases and not outer.leases and address(empty((LARGE,))) == place
        with inner, inner:
            pass
        assert address(empty((LARGE,))) == place
        with inner:
            assert address(empty((LARGE,))) != place
    assert empty((LARGE,)).base is None


def test_threads_have_pools_of_their_own(pool):
    """Protects: a pool serves the thread that entered it, and no other."""
    empty((LARGE,))  # leaves a free block here

    def elsewhere(with_pool):
        if not with_pool:
            return empty((LARGE,))
        with Pool():
            return [empty((LARGE,)) for _ in range(3)]

    with ThreadPoolExecutor(2) as workers:
        assert workers.submit(elsewhere, False).result().base is None
        mine = [empty((LARGE,)) for _ in range(3)]
        theirs = workers.submit(elsewhere, True).result()
    arrays = mine + theirs
    assert not any(overlap(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    assert len(pool.leases) == 3


def test_freed_on_another_thread(pool):
    """Protects: an array that a worker drops last goes back to the pool it came from."""
    a = empty((LARGE,))
    place, held = address(a), [a]
    del a
    worker = threading.Thread(target=held.clear)
    worker.start()
    worker.join()
    assert not pool.leases and address(empty((LARGE,))) == place


def test_arrays_outlive_their_pool():
    """Protects: a result may be kept when the pool is gone, and dropped later; the pool itself does not stay."""
    with Pool() as pool:
        a, b = empty((LARGE,)), empty((LARGE,))
    a[:], b[:] = 1, 2
    view, gone = b[3:], weakref.ref(pool)
    del pool, b
    gc.collect()
    with Pool():
        others = [empty((LARGE,)) for _ in range(4)]
        for other in others:
            other[:] = 9
    assert (a == 1).all() and (view == 2).all()
    del a, view
    gc.collect()
    assert gone() is None


def test_a_pool_without_arrays_goes_at_once():
    """Protects: memory goes back to the system with the pool, without waiting for the garbage collector."""
    gc.disable()
    try:
        with Pool() as pool:
            empty((LARGE,))
        gone = weakref.ref(pool)
        del pool
        assert gone() is None
    finally:
        gc.enable()


def random_run(seed, steps, elsewhere=None):
    """Make, view and drop arrays at random; each is filled with a number of its own, and must keep it."""
    rng = np.random.default_rng(seed)
    live, blocks = [], set()
    for number in range(steps):
        if len(live) < 12 and rng.random() < 0.55:
            a = empty((int(rng.integers(1, 9)) * LARGE // 2, 2), rng.choice([np.float32, np.int32]))
            a[:] = number
            blocks.add(address(a))
            live.append((number, [a, a.T, a[1:], a[::2, 1]][rng.integers(4)]))  # a itself may be gone now
            del a
        elif live:
            dropped = live.pop(rng.integers(len(live)))
            if elsewhere is not None:
                elsewhere.append(dropped)
            del dropped
        if number % 16 == 0:
            assert all((view == n).all() for n, view in live)
    assert all((view == n).all() for n, view in live)
    return len(blocks)


def test_live_arrays_are_never_overwritten(pool):
    """Protects: no two live arrays share memory, over a thousand arrays; and most of these needed no new memory."""
    blocks = random_run(0, 1500)
    assert blocks < 12 * 5  # at the most twelve live ones, of five sizes
    assert not pool.leases and sum(map(len, pool.free.values())) <= blocks


def test_live_arrays_of_several_threads():
    """Protects: the same while other threads run it too, and a further one drops the arrays of all."""
    dropped, done = [], threading.Event()

    def run(seed):
        with Pool():
            return random_run(seed, 200, dropped)

    def drop():
        while dropped or not done.is_set():
            if dropped:
                dropped.pop()

    with ThreadPoolExecutor(4) as workers:
        dropping = workers.submit(drop)
        try:
            assert all(list(workers.map(run, range(3))))
        finally:
            done.set()
        dropping.result()


def test_share_sees_every_kind_of_view(pool):
    """Protects: an unrecorded result that shows an input's memory is copied."""
    for x in (np.zeros(50), empty((5 * LARGE,))):
        views = (
            x,
            x[3:],
            x.reshape(5, -1),
            np.lib.stride_tricks.sliding_window_view(x, 4),
            np.broadcast_to(x, (2, *x.shape)),
        )
        assert all(share(view, [None, x]) and share(x, [view]) for view in views)
        assert not any(share(view, [x.copy(), None, empty((LARGE,))]) for view in views)


def test_add_of_two_dtypes_is_numpys():
    assert add(np.float32([1]), np.float64([1e-12]))[0] == 1 + 1e-12
