"""Cores: cut the batch into shards, one thread each, and add up the gradients.

The loss is a mean over images, so its gradient is the weighted mean of the shards' gradients: nothing is lost
by computing them apart. Each worker runs forward and backward through a *replica* of the model, whose
parameters share memory with the model's and whose gradients are its own. Then the flat gradients are summed in
the order of the shards, not in the order in which threads finish, so that the result is the same to the bit for
any number of threads. The order is that of a tree, (0 + 1) + (2 + 3), whose branches can be summed apart: so the same
holds for any number of machines that share the shards (`ranks.py`).

Threads suffice, without processes: our kernels, the matrix products among them, release the GIL. Inside a shard all
is serial, and BLAS gets one thread (`cores.py`).

Chapter of the course: notebooks/07-training.ipynb.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tinyvit import functional as F
from tinyvit import kernels
from tinyvit.cores import available_cores, one_blas_thread
from tinyvit.memory import Pool
from tinyvit.nn import composed, random_state, recording_statistics
from tinyvit.nn.module import recording_statistics_now
from tinyvit.tensor import check_finite


def classify(model, images, labels, smoothing):
    """The objective of a classifier: (cross-entropy, a Tensor; how many images it got right)."""
    logits = model(images)
    truth = labels if labels.ndim == 1 else labels.argmax(1)  # of a mixed image the larger part
    return F.cross_entropy(logits, labels, smoothing), int((logits.data.argmax(1) == truth).sum())


NO_SINGLE_OP = "no single op: every op's result is finite, only the sum over the batch is not"
TRIALS = 8  # steps with threads, and as many without, before it is settled which is faster


class Shards:
    """Training steps of `model` on several threads. Use as a context manager, or call `close`.

    Args:
        model: with the default objective it maps images (B, h, w, C) to logits (B, classes).
        flat: its FlatParameters.
        shards: parts of each batch; decides the sums, and so the result.
        threads: workers; decides the speed only. By default as many as there are shards and cores, unless the first
            steps show that one thread is faster: in a small model the threads wait for Python's lock (the GIL) more
            than they compute.
        objective: objective(replica, images, labels, smoothing) -> (the mean loss over these images, a scalar Tensor;
            how many of them are right). What labels are is the objective's affair.
        own: the numbers of those shards that are computed here, a range; by default all of them.
        cores: how many there are for us, by default all that the process may use.

    The replicas keep the mode (train or eval) that the model is in now.
    """

    def __init__(self, model, flat, shards, threads=None, objective=classify, *, own=None, cores=None):
        if shards < 1 or (threads is not None and threads < 1):
            raise ValueError(f"shards and threads must be at least 1, got {shards} and {threads}")
        self.shards, self.own = shards, range(shards) if own is None else own
        self.threads = min(threads or cores or available_cores(), len(self.own))
        self.flat = flat
        self.objective = objective
        self.memory = {}  # by thread
        self.replicas = [model.replica() for _ in self.own]
        self.gradients = [flat.attach(replica) for replica in self.replicas]
        self.blas = one_blas_thread()  # until `close`
        self.pool = ThreadPoolExecutor(self.threads - 1, "tinyvit") if self.threads > 1 else None
        self.timings = {"pool": [], "alone": []} if threads is None and self.pool else None  # until that is known

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self._stop_threads()
        self.blas.close()

    def _stop_threads(self):
        if self.pool is not None:
            self.pool.shutdown()
            self.pool, self.threads = None, 1
            self.memory.clear()

    def map(self, function, items):
        """list(map(function, items)) on all threads."""
        return self.on_threads(function, items)

    def on_threads(self, function, items):
        """The calling thread works too: from the end of the list on it takes back what no worker has begun."""
        if self.pool is None:
            return list(map(function, items))
        futures = [self.pool.submit(function, item) for item in items]
        tasks = reversed(list(zip(futures, items, strict=True)))
        results = [function(item) if future.cancel() else future.result() for future, item in tasks]
        return results[::-1]

    def _timed(self, function, items):
        """The same for the first steps: with and without threads in turn, then the faster way for good. As threads
        change nothing about the result, this changes nothing either."""
        way = min(self.timings, key=lambda way: len(self.timings[way]))
        start = time.perf_counter()
        results = self.on_threads(function, items) if way == "pool" else list(map(function, items))
        self.timings[way].append(time.perf_counter() - start)
        if all(len(seconds) == TRIALS for seconds in self.timings.values()):
            best = {way: min(seconds[1:]) for way, seconds in self.timings.items()}  # the first one compiles
            if best["alone"] < best["pool"]:
                self._stop_threads()
            self.timings = None
        return results

    def gradient(self, images, labels, smoothing=0.0, seed=(0,)):
        """Put the gradient of the batch's mean loss into `flat.gradients`.

        Args:
            images, labels: what the objective takes, B of each: with the default one (B, h, w, C) float32 and (B,)
                int64.
            seed: tuple of integers; with the shard's number appended it seeds what is random inside the model.

        Returns (mean loss, how many are right, as the objective counts them).
        """
        loss, right, _ = self._own_part(images, labels, smoothing, seed)
        self.flat.gradients[...] = self.gradients[0]
        return loss, right

    def _own_part(self, images, labels, smoothing, seed):
        """`gradient`, of our own shards alone: their sum is put into `self.gradients[0]`.

        Returns (their part of the mean loss, how many are right, whether running statistics were recorded).
        """
        if not len(images) == len(labels) > 0:
            raise ValueError(f"a batch needs a label for each image, got {len(images)} images, {len(labels)} labels")
        slices = cut(len(labels), self.shards)
        first = next(i for i, part in enumerate(slices) if part.start < part.stop)  # there may be fewer images
        record = recording_statistics_now()  # as in this thread, so in all

        def run(i):
            replica, gradient = self.replicas[i - self.own.start], self.gradients[i - self.own.start]
            x, y = images[slices[i]], labels[slices[i]]
            weight = len(y) / len(labels)
            memory = self.memory.setdefault(threading.get_ident(), Pool())
            gradient[...] = 0
            if not len(y):
                return 0.0, 0
            # An overflow shows in the loss; NumPy's warning, once per thread, would only hide the message below it.
            quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
            with memory, random_state((*seed, i)), recording_statistics(record and i == first), quiet:
                loss, right = self.objective(replica, x, y, smoothing)
                loss.backward(weight)
            return loss.item() * weight, right

        results = self._timed(run, self.own) if self.timings else self.on_threads(run, self.own)
        losses = [loss for loss, _ in results]
        for i, j in tree(len(results)):
            kernels.add_into(self.gradients[i], self.gradients[j])
            losses[i] += losses[j]
        return losses[0], sum(right for _, right in results), record and first in self.own

    def culprit(self, images, labels, smoothing, seed):
        """Compute the batch again and say where the first NaN or infinity comes from; the parameters must be
        unchanged. Running statistics stay as they are."""
        for p in self.flat.parameters:
            if not np.isfinite(p.data).all():
                return f"the parameter {p.name} itself is not finite"
        if not np.isfinite(images).all():
            return "the images themselves are not finite"
        pool, self.pool = self.pool, None  # check_finite acts on this thread
        try:
            with check_finite(), composed(), recording_statistics(False):
                self._own_part(images, labels, smoothing, seed)
        except FloatingPointError as error:
            return str(error)
        finally:
            self.pool = pool
        return NO_SINGLE_OP


def cut(count, parts):
    """`count` items in `parts` contiguous slices whose lengths differ by one at most."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def tree(count):
    """The pairs (i, j), in order, for which `x[i] += x[j]` leaves the sum of all `count` in x[0]: neighbours first,
    then pairs of pairs, (0 + 1) + (2 + 3). A branch of 2, 4, 8, … of them may be summed apart: it is the same sum."""
    step = 1
    while step < count:
        yield from ((i, i + step) for i in range(0, count - step, 2 * step))
        step *= 2
