"""Machines: the shards of a batch dealt out to processes, and one sum a step between them, over MPI.

    mpiexec -n 4 tinyvit train mnist

MPI starts the same program R times. The processes differ in one number, their *rank*. Each holds the whole model and
makes the whole batch, computes the gradient of its own shards, and adds to it the other ranks'; then all take the same
step from the same gradient, so weights need not be sent. Rank 0 writes the run's folder and speaks; of the validation
images each takes its share.

The sum is an all-reduce: each rank is given one R-th of everyone's flat gradient (all-to-all), adds these pieces up,
and gives the sum to everyone (all-gather). So each sends 2 (R - 1) / R gradients, however many there are, which is
the least possible (Rabenseifner 2004). MPI's own Allreduce does not say in which order it adds, on which the last bits
depend. Here it is the tree of `shards.py`: where each rank has 1, 2, 4, 8, … shards, the result has the bits of one
process with the same number of shards. (PyTorch's DistributedDataParallel cuts the gradient into buckets and sends one
while the backward pass computes the next; `benchmarks/scaling.py` says what that would gain here.)

What is to fear is a process that waits for one that will never come. So an error that not all ranks meet ends the job,
and a signal is acted upon at the step at which all have heard of it.

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import functools
import hashlib
import math
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict
from fractions import Fraction

import numpy as np

from tinyvit import kernels
from tinyvit.cores import available_cores
from tinyvit.data import DataError
from tinyvit.models import to_dict
from tinyvit.nn import Statistic
from tinyvit.nn.module import recording_statistics_now
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.folder import TrainingError
from tinyvit.train.interrupt import Interrupt
from tinyvit.train.shards import NO_SINGLE_OP, Shards, cut, tree

# What tells a process its rank and how many there are: MPICH and Intel MPI, Open MPI, Slurm's srun.
LAUNCHERS = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
HASHED = "weights", "images, labels or classes"
PATIENCE = 2.0  # seconds in which an error that all ranks meet must have come to all of them


def launched():
    """(rank, size) as whatever has started this process says; (0, 1) if nothing has."""
    for rank, size in LAUNCHERS:
        if os.environ.get(rank, "").isdecimal() and os.environ.get(size, "").isdecimal():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


@functools.cache
def job():
    """The job that this process is part of: `Ranks` under mpiexec, else `Alone`. Raises TrainingError where mpiexec has
    started several processes that cannot talk to each other."""
    _, size = launched()
    if size == 1:
        return Alone()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it is there, but finds no MPI
        raise TrainingError(
            f"{size} processes have been started to train together, for which they need mpi4py and an MPI ({error}); "
            'install both by `pip install "tinyvit[mpi]"`, or start one process, without mpiexec'
        ) from None
    world = MPI.COMM_WORLD
    if world.size != size:
        library = MPI.Get_library_version().partition("\n")[0].strip("\0 ")
        raise TrainingError(
            f"{size} processes have been started to train together, but mpi4py's MPI ({library}) finds {world.size}: "
            "mpiexec belongs to another MPI; use the one that is installed beside it"
        )
    return Ranks(world, world.Split_type(MPI.COMM_TYPE_SHARED))


class Alone:
    """A job of one process: what a job is to the training loop, without MPI."""

    rank, size = 0, 1

    def together(self):
        """Context manager: an error inside that not all ranks meet is said, and ends the job."""
        return contextlib.nullcontext()

    def in_turn(self):
        """Context manager: of the ranks on a machine one goes first; the others then find on its disk what it has left
        there, a data set or compiled kernels."""
        return contextlib.nullcontext()

    def once(self, function, *arguments):
        """function(*arguments), called by rank 0; all get the result, or the error."""
        return function(*arguments)

    def voice(self, say):
        """The function, on rank 0; on the others one that does nothing."""
        return say

    def check(self, recipe, data_sha256, model):
        """Raises TrainingError unless all ranks are about to do the same, and the shards can be dealt out.
        `data_sha256` is the `fingerprint` of the data set that this rank has."""

    def level(self, array):
        """Set the array to what it is on rank 0. On equal processors nothing changes; on unlike ones the last bits may
        have drifted apart."""

    def interrupt(self):
        """An Interrupt whose `asked` is at each step the same on all ranks."""
        return Interrupt()

    def shards(self, model, flat, shards, threads, interrupt):
        """The Shards with which this rank takes part."""
        return Shards(model, flat, shards, threads)


class Ranks(Alone):
    """A job of several processes.

    Args:
        world: mpi4py's communicator of all of them.
        here: that of those on this machine.
    """

    def __init__(self, world, here):
        self.comm, self.here, self.failures = world.Dup(), here, world.Dup()
        self.rank, self.size = world.rank, world.size

    @contextlib.contextmanager
    def together(self):
        try:
            yield
        except BaseException as error:
            if not _meet(self.failures, PATIENCE):  # an error that all have met needs no such end
                words = str(error) or type(error).__name__
                if isinstance(error, OSError):
                    words = f"{error.filename or 'input/output'}: {error.strerror or error}"
                elif not isinstance(error, TrainingError | CheckpointError | DataError | KeyboardInterrupt):
                    traceback.print_exception(error)
                print(f"rank {self.rank} of {self.size}: {words}; the job ends", file=sys.stderr, flush=True)
                self.comm.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)
            raise

    @contextlib.contextmanager
    def in_turn(self):
        if self.here.rank > 0:
            _meet(self.here)
        try:
            yield
        finally:  # what has failed here will fail there too
            if self.here.rank == 0:
                _meet(self.here)

    def once(self, function, *arguments):
        result, error = None, None
        if self.rank == 0:
            try:
                result = function(*arguments)
            except Exception as caught:
                error = caught
        result, error = self.comm.bcast((result, error))
        if error is not None:
            raise error
        return result

    def voice(self, say):
        return say if self.rank == 0 else lambda *_, **__: None

    def check(self, recipe, data_sha256, model):
        S, R = recipe.shards, self.size
        if S % R:
            fitting = ", ".join(str(n) for n in range(1, S + 1) if S % n == 0)
            raise TrainingError(
                f"the {S} shards of a batch must be dealt out evenly, which {R} ranks cannot do; start {fitting} of "
                f"them, or cut each batch into {S + R - S % R} (--shards {S + R - S % R})"
            )
        weights = hashlib.sha256()
        for p in model.parameters():
            weights.update(p.numpy().tobytes())
        mine = asdict(recipe) | {f"the model's {name}": value for name, value in to_dict(model.config).items()}
        mine |= {"kernels": kernels.backend(), "numpy": np.__version__}
        mine |= dict(zip(HASHED, (weights.hexdigest(), data_sha256), strict=True))
        everyones = self.comm.allgather(mine)
        for rank, theirs in enumerate(everyones):
            differences = [
                name if name in HASHED else f"{name} ({theirs.get(name)!r}, not {value!r})"
                for name, value in everyones[0].items()
                if theirs.get(name) != value
            ]
            if differences:
                raise TrainingError(f"all ranks must train alike; rank {rank} has other {', '.join(differences)}")

    def level(self, array):
        self.comm.Bcast(array)

    def interrupt(self):
        return SharedInterrupt(aloud=self.rank == 0)

    def shards(self, model, flat, shards, threads, interrupt):
        return RankedShards(self, model, flat, shards, threads, interrupt)

    def cores(self):
        """How many cores of this machine are for this rank: those that it may use, shared with the ranks that may use
        them too. (Some launchers bind each rank to cores of its own, others none.)"""
        if not hasattr(os, "sched_getaffinity"):
            return max(1, available_cores() // self.here.size)
        mine = os.sched_getaffinity(0)
        users = Counter(core for cores in self.here.allgather(mine) for core in cores)
        return max(1, int(sum(Fraction(1, users[core]) for core in mine)))

    def add_up(self, array, pieces):
        """Set `array` to the sum of all ranks' arrays, in the order of `tree`; `pieces` is memory for it, of the shape
        (R, len(array) / R)."""
        self.comm.Alltoall(array, pieces)  # pieces[r] is what rank r has in the part that is ours
        for i, j in tree(self.size):
            kernels.add_into(pieces[i], pieces[j])
        self.comm.Allgather(pieces[0], array)


def _meet(comm, patience=math.inf):
    """Wait until all ranks of `comm` are here; returns whether they came in that many seconds. MPI's own Barrier would
    keep a core busy with looking."""
    everyone, until = comm.Ibarrier(), time.monotonic() + patience
    while not everyone.Test():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


class SharedInterrupt(Interrupt):
    """A signal may come to one rank before the others, or to one alone. So it is noted in `heard`, sent along with the
    next step's numbers, and only then `asked`, by all."""

    def __init__(self, aloud):
        super().__init__(aloud)
        self.heard = 0

    def hear(self, number):
        self.heard = number


class RankedShards(Shards):
    """Shards of which some are ours. All ranks call the same methods with the same arguments, and get the same results.

    Running statistics (batch norm's) are those of the first shard, as always. They travel with its gradient, the others
    add zeros to them, and so no message more is needed.
    """

    def __init__(self, ranks, model, flat, shards, threads, interrupt):
        self.ranks, self.interrupt = ranks, interrupt
        share = shards // ranks.size
        own = range(ranks.rank * share, (ranks.rank + 1) * share)
        super().__init__(model, flat, shards, threads, own=own, cores=ranks.cores())
        self.statistics = [p.data for p in model.parameters() if isinstance(p, Statistic)]
        sizes = [flat.gradients.size, *(array.size for array in self.statistics)]
        piece = -(-sum(sizes) // ranks.size)
        self.message = np.zeros(piece * ranks.size, flat.gradients.dtype)
        self.pieces = np.empty((ranks.size, piece), flat.gradients.dtype)
        self.sum, *self.sums, _ = np.split(self.message, np.cumsum(sizes))  # of gradients, of each statistic; the rest
        self.numbers = np.empty((ranks.size, 3))  # each rank's loss, images right, signal
        self.first_turn = ranks.in_turn()  # kernels are compiled in it

    def gradient(self, images, labels, smoothing=0.0, seed=(0,)):
        with self.first_turn:
            loss, right, recorded = self._own_part(images, labels, smoothing, seed)
        self.first_turn = contextlib.nullcontext()
        self.sum[...] = self.gradients[0]
        for sent, array in zip(self.sums, self.statistics, strict=True):
            sent[...] = array.reshape(-1) if recorded else 0
        self.ranks.add_up(self.message, self.pieces)
        self.flat.gradients[...] = self.sum
        if recording_statistics_now():
            for sent, array in zip(self.sums, self.statistics, strict=True):
                array[...] = sent.reshape(array.shape)
        self.ranks.comm.Allgather(np.array([loss, right, self.interrupt.heard]), self.numbers)
        for i, j in tree(self.ranks.size):
            self.numbers[i, :2] += self.numbers[j, :2]
        self.interrupt.asked = int(self.numbers[:, 2].max())
        return float(self.numbers[0, 0]), int(self.numbers[0, 1])

    def culprit(self, *batch):
        said = self.ranks.comm.allgather(super().culprit(*batch))
        return next((words for words in said if words != NO_SINGLE_OP), NO_SINGLE_OP)

    def map(self, function, items):
        """list(map(function, items)), each rank a part of them."""
        mine = self.on_threads(function, items[cut(len(items), self.ranks.size)[self.ranks.rank]])
        return [result for results in self.ranks.comm.allgather(mine) for result in results]
