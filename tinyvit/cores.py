"""The machine's cores: how many of them are ours, and that one pool of threads uses them, not two.

Each thread of ours works on a part of its own, a shard of a batch, and inside it all is serial. BLAS, which multiplies
matrices, has a pool of threads, too; two pools on the same cores wait for each other in loops.

Chapter of the course: notebooks/07-training.ipynb.
"""

import os
import threading

from threadpoolctl import threadpool_limits


def available_cores():
    """How many cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class one_blas_thread:
    """Context manager, or from now until `close`: matrix products run on the thread that asks for them alone. (macOS's
    Accelerate decides for itself.)

    BLAS has one number of threads for the whole process. So the first of several that overlap sets it, and the last one
    to end gives back what was there before.
    """

    _lock, _open, _before = threading.Lock(), 0, None

    def __init__(self):
        with self._lock:
            if one_blas_thread._open == 0:
                one_blas_thread._before = threadpool_limits(1, user_api="blas")
            one_blas_thread._open += 1
        self._closed = False

    def close(self):
        with self._lock:
            if not self._closed:
                self._closed = True
                one_blas_thread._open -= 1
                if one_blas_thread._open == 0:
                    one_blas_thread._before.restore_original_limits()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
