"""The machine's cores: how many of them are ours, and that one pool of threads uses them, not two.

Each thread of ours works on a part of its own, a shard of a batch, and inside it all is serial. BLAS, which multiplies
matrices, has a pool of threads, too; two pools on the same cores wait for each other in loops.

Chapter of the course: notebooks/07-training.ipynb.
"""

import os

from threadpoolctl import threadpool_limits


def available_cores():
    """How many cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_blas_thread():
    """Context manager: matrix products inside run on the calling thread alone. (macOS's Accelerate decides
    for itself.)"""
    return threadpool_limits(1, user_api="blas")
