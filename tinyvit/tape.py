"""Looking at the graph: the tape as a table, one row an op, with shapes, bytes remembered and FLOPs.

`print(loss.trace())` before `loss.backward()` shows what the engine has recorded. "Remembered" are the arrays that the
op's pullback captured, parameters among them, counted once where two ops share one. With many images this is most of
the memory of training, and (but for the parameters) it is what `backward` frees step by step. FLOPs are the forward
pass's, a multiply-add counted as two; a backward pass through a matrix product costs twice its forward.

Frameworks hide this table behind a profiler. `viz.draw_tape` draws the same graph.

Chapter of the course: notebooks/01-autograd.ipynb.
"""

import contextlib
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tinyvit.tensor import Tensor, watcher

# FLOPs from the shapes of inputs and output; every op that is not here counts one per entry of its output.
FLOPS = {
    "leaf": lambda ins, out: 0,
    "reshape": lambda ins, out: 0,
    "transpose": lambda ins, out: 0,
    "broadcast_to": lambda ins, out: 0,
    "getitem": lambda ins, out: 0,
    "concatenate": lambda ins, out: 0,
    "patchify": lambda ins, out: 0,
    "astype": lambda ins, out: 0,
    "sum": lambda ins, out: prod(ins[0]),
    "max": lambda ins, out: prod(ins[0]),
    "matmul": lambda ins, out: 2 * ins[0][-1] * prod(out),
    "linear": lambda ins, out: (2 * ins[1][0] + (ins[2] is not None)) * prod(out),
    "linear_gelu": lambda ins, out: (2 * ins[1][0] + 8 + (ins[2] is not None)) * prod(out),
    "encoder_block": lambda ins, out: _block_flops(*out, ins[9][1]),
    "attention": lambda ins, out: 4 * ins[0][1] * prod(out),  # q kᵀ and p v: 2·N²·D multiply-adds an image
    "biased_attention": lambda ins, out: 4 * ins[0][1] * prod(out),
    "embedding": lambda ins, out: 0,
    "conv2d": lambda ins, out: 2 * prod(ins[1][:-1]) * prod(out),
    "softmax": lambda ins, out: 5 * prod(out),
    "gelu": lambda ins, out: 8 * prod(out),
    "layer_norm": lambda ins, out: 8 * prod(out),
    "group_norm": lambda ins, out: 8 * prod(out),
    "batch_norm": lambda ins, out: 8 * prod(out),
    "add_relu": lambda ins, out: 2 * prod(out),
    "standardise": lambda ins, out: 8 * prod(out),
    "max_pool": lambda ins, out: prod(ins[0]),
    "average_pool": lambda ins, out: prod(ins[0]),
    "cross_entropy": lambda ins, out: 5 * prod(ins[0]),
}


def _block_flops(B, N, D, M):
    """What the block's ops add up to: products with weights and biases, attention, two norms, GELU, two additions."""
    return B * N * (2 * (4 * D * D + 2 * D * M) + 5 * D + M + 4 * N * D + 2 * 8 * D + 8 * M + 2 * D)


@dataclass(frozen=True)
class Row:
    """One op of the tape. `inputs` are the numbers of the rows that it reads; -1 stands for a constant. An absent
    argument, such as no bias, has the input shape None. `remembered` counts bytes."""

    number: int
    op: str
    name: str | None
    inputs: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...] | None, ...]
    shape: tuple[int, ...]
    remembered: int
    flops: int


@dataclass(frozen=True)
class Tape:
    """The recorded graph below one tensor, inputs before results. Print it, or read `.rows`."""

    rows: tuple[Row, ...] = field(repr=False)

    @property
    def remembered(self):
        """Bytes that the pullbacks hold together."""
        return sum(row.remembered for row in self.rows)

    @property
    def flops(self):
        return sum(row.flops for row in self.rows)

    def __str__(self):
        names = [f"{row.op} {row.name}" if row.name else row.op for row in self.rows]
        wide = max(map(len, names))
        lines = [f"{'#':>4}  {'op':<{wide}}  {'inputs':<12} {'shape':<18} {'remembered':>12} {'FLOPs':>14}"]
        for row, name in zip(self.rows, names, strict=True):
            inputs = " ".join("const" if i < 0 else str(i) for i in row.inputs)
            shape = str(row.shape)
            numbers = f"{row.remembered:>12,} {row.flops:>14,}"
            lines.append(f"{row.number:>4}  {name:<{wide}}  {inputs:<12} {shape:<18} {numbers}")
        total = f"{len(self.rows)} rows"
        lines.append(f"{'':>4}  {total:<{wide}}  {'':<12} {'':<18} {self.remembered:>12,} {self.flops:>14,}")
        return "\n".join(lines)

    __repr__ = __str__


def trace(tensor):
    """The tape below `tensor` as a `Tape`. Raises RuntimeError where nothing was recorded, or it has been walked."""
    if not tensor.requires_grad or (tensor._node is not None and tensor._node.pullback is None):
        raise RuntimeError(
            "trace() needs a recorded graph: call it before backward(), on a result that requires gradients"
        )
    nodes, todo = {}, [tensor.node()]
    while todo:
        node = todo.pop()
        if node not in nodes:
            nodes[node] = None
            todo += [parent for parent in node.parents if parent is not None]
    ordered = sorted(nodes, key=lambda node: node.order)
    numbers = {node: i for i, node in enumerate(ordered)}
    seen = set()
    return Tape(tuple(_row(node, numbers, seen) for node in ordered))


@contextlib.contextmanager
def watching(function):
    """Within this block, in this thread, `function(node, arrays, static)` is told of each op that the tape records: its
    node, the arrays that it read, its keyword arguments. The tape itself keeps what the way back needs; this is enough
    to write down the way forward, for another machine (`interop/onnx.py`)."""
    token = watcher.set(function)
    try:
        yield
    finally:
        watcher.reset(token)


def _row(node, numbers, seen):
    return Row(
        number=numbers[node],
        op=node.op,
        name=node.tensor.name if node.tensor is not None else None,
        inputs=tuple(-1 if parent is None else numbers[parent] for parent in node.parents),
        input_shapes=tuple(node.input_shapes),
        shape=node.shape,
        remembered=sum(array.nbytes for array in _captured(node.pullback, seen)),
        flops=FLOPS.get(node.op, lambda ins, out: prod(out))(node.input_shapes, node.shape),
    )


def _captured(pullback, seen):
    """The arrays in the pullback's closure that no earlier row has counted."""
    cells = getattr(pullback, "__closure__", None) or ()
    for cell in cells:
        array = cell.cell_contents
        if isinstance(array, np.ndarray):
            memory = array.__array_interface__["data"][0], array.nbytes
            if memory not in seen:
                seen.add(memory)
                yield array


Tensor.trace = trace
