"""What all classifiers of images have in common: they check what they are shown, and can be asked for probabilities.

A model has a `config`, a frozen dataclass that says all about it; `kind` names its class, so that a checkpoint can say
which one to build. Its `forward` maps images (B, height, width, C) to logits (B, classes).

Chapter of the course: notebooks/06-the-whole-vit.ipynb.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np

from tinyvit import kernels
from tinyvit.cores import one_blas_thread
from tinyvit.memory import Pool
from tinyvit.nn import Module, evaluating, nearest_patch
from tinyvit.tensor import Tensor, no_grad


def check_sizes(config, *names):
    """For a config's `__post_init__`: image_size becomes (height, width), and the fields `names` must be whole numbers
    from 1 up. Raises ValueError."""
    size = config.image_size
    pair = tuple(size) if np.iterable(size) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in pair):
        raise ValueError(f"image_size must be (height, width) or one number, in whole pixels, got {size}")
    object.__setattr__(config, "image_size", (int(pair[0]), int(pair[1])))
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        object.__setattr__(config, name, int(value))


def check_heads(config):
    """Each head gets the same part of the width. Raises ValueError."""
    if config.width % config.heads:
        raise ValueError(f"heads must divide the width, got width {config.width} and {config.heads} heads")


def check_patch(patch, h, w, of="image"):
    """Patches cover what is cut, and nothing is left over. Raises ValueError that names the nearest size that does."""
    if h % patch or w % patch:
        raise ValueError(
            f"patch size {patch} must divide the {of}'s {h}×{w}; {nearest_patch(h, w, patch)} is the nearest that does"
        )


def probabilities(model, inputs, classes, batch_size, threads=1):
    """softmax(model(inputs)), an array (B, classes), without a tape and in eval mode: `batch_size` at a time, or fewer,
    so that each of the threads has some."""
    if batch_size < 1 or threads < 1:
        raise ValueError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
    batch_size = max(1, min(batch_size, -(-len(inputs) // threads)))
    starts = range(0, len(inputs), batch_size)

    memory = threading.local()  # a pool a thread, used again from batch to batch

    def part(start):
        memory.pool = getattr(memory, "pool", None) or Pool()
        with no_grad(), evaluating(), memory.pool:
            return kernels.softmax(model(inputs[start : start + batch_size]).data)

    if threads == 1 or len(starts) < 2:
        parts = [part(start) for start in starts]
    else:
        workers = ThreadPoolExecutor(threads, "tinyvit")
        try:
            with one_blas_thread():
                futures = [workers.submit(copy_context().run, part, start) for start in starts]
                parts = [future.result() for future in futures]
        finally:  # after an error or Ctrl-C no batch is begun any more
            workers.shutdown(cancel_futures=True)
    return np.concatenate(parts) if parts else np.empty((0, classes), np.float32)


class ImageModel(Module):
    """A model with `config.image_size`, `config.channels` and `config.classes`."""

    def checked(self, images):
        """Images as a Tensor of the parameters' dtype. Raises ValueError for images of another shape."""
        _, first = next(self.named_parameters())
        images = images if isinstance(images, Tensor) else Tensor(images, dtype=first.dtype)
        want = (*self.config.image_size, self.config.channels)
        if images.ndim != 4 or images.shape[1:] != want:
            hint = "; add the channel axis with images[..., None]" if images.shape[1:] == want[:2] else ""
            wanted = ", ".join(map(str, want))
            raise ValueError(f"this {type(self).__name__} reads images (B, {wanted}), got {images.shape}{hint}")
        return images

    def predict(self, images, batch_size=32, *, threads=1):
        """Class probabilities, an array (B, classes), without a tape and in eval mode. Images as for `forward`.

        `batch_size` images at a time, for few of them stay in the processor's cache, on so many threads. Both change
        the speed only (and last digits: BLAS adds up in an order that depends on the size)."""
        return probabilities(self, images, self.config.classes, batch_size, threads)
