"""An array that remembers how it was made, and the walk that turns this memory into gradients.

Reverse-mode automatic differentiation in one idea: while the forward pass computes y = f(x), keep beside y a function
that takes dL/dy and returns dL/dx, the *pullback* of f. Chain the pullbacks from the loss backwards and every parameter
has its gradient, at about twice the forward pass's cost, without symbolic algebra and without finite differences.

    @differentiable
    def multiply(a, b):
        return a * b, lambda g: (g * b, g * a)      # the output, and its pullback

An op sees plain arrays; `Tensor`s exist only outside. Rules for writing one: positional arguments are differentiable,
keyword-only ones are not; capture arrays, never Tensors; never change `g` in place, it may belong to others too.

This file is the whole engine: a Node is a step of the tape, `differentiable` records it, `walk` goes back along it, a
Tensor is the value that carries it. PyTorch's autograd is the same machine in C++; JAX traces and transposes programs.

Chapter of the course: notebooks/01-autograd.ipynb.
"""

import contextlib
import copy
import functools
import heapq
import itertools
import weakref
from contextvars import ContextVar

import numpy as np

from tinyvit import memory

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))

_recording = ContextVar("recording", default=True)
_checking = ContextVar("checking", default=False)
watcher = ContextVar("watcher", default=None)  # see `tape.watching`
_next_order = itertools.count().__next__


@contextlib.contextmanager
def no_grad():
    """Within this block, in this thread, ops compute values only: nothing is recorded, nothing kept alive."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


@contextlib.contextmanager
def check_finite():
    """Within this block, in this thread, the first op that turns finite inputs into NaN or infinity raises
    FloatingPointError with its name, forward and backward. It reads every array twice: not for training."""
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


def checking_finite():
    return _checking.get()


class Node:
    """One step of the tape: an op's pullback and the nodes that its inputs came from.

    A leaf (a parameter, an input) has a node too while some op remembers it: `tensor` is set, and gradients that reach
    it are added to `tensor.grad`. Nodes point backwards only, from result to input, so there are no reference cycles: a
    graph that nobody holds any more is freed at once, without the garbage collector.
    """

    __slots__ = ("order", "op", "pullback", "parents", "input_shapes", "shape", "dtype", "tensor", "__weakref__")

    def __init__(self, op, array, pullback=None, parents=(), input_shapes=(), tensor=None):
        self.order = _next_order()  # grows with time, so that an input's number is below its consumers'
        self.op = op
        self.shape = array.shape
        self.dtype = array.dtype
        self.pullback = pullback
        self.parents = parents  # a Node per positional argument; None for a constant
        self.input_shapes = input_shapes  # a shape per positional argument; None for an absent one
        self.tensor = tensor

    def wants_gradient(self):
        return self.tensor is None or self.tensor.requires_grad


def differentiable(op):
    """Turn `op(*arrays, **static) -> (array, pullback)` into a function on Tensors that records itself.

    Positional arguments may be Tensors, arrays or numbers (constants, copied to the tensors' dtype) or None (absent).
    The pullback maps dL/d(output) to a tuple with dL/d(input) for each positional argument (or the bare array if there
    is one); it may have the output's broadcast shape, `fit` sums it. A pullback with a second parameter named `wanted`
    is told which inputs want a gradient, a list of bools, and may return None for the others.
    """

    name = op.__name__.lstrip("_")

    @functools.wraps(op)
    def record(*inputs, **static):
        dtype, graph = None, False
        for x in inputs:
            if isinstance(x, Tensor):
                graph = graph or x.requires_grad
                own = x._array.dtype
                if dtype is not None and own is not dtype and own != dtype:
                    raise TypeError(f"{name}: tensors must share one dtype, got {dtype} and {own}; use .astype()")
                dtype = own
        arrays = [x._array if isinstance(x, Tensor) else constant(x, dtype) for x in inputs]
        try:
            result = op(*arrays, **static)
        except ValueError as error:
            shapes = " and ".join(str(a.shape) for a in arrays if a is not None)
            raise ValueError(f"{name}: shapes {shapes}: {error}") from error
        if not isinstance(result, tuple) or len(result) != 2 or not callable(result[1]):
            raise TypeError(f"{name} must return (output array, pullback), got {type(result).__name__}")
        out, pullback = result
        if not isinstance(out, np.ndarray):
            out = np.asarray(out)  # a full reduction gives a NumPy scalar
        if out.dtype is not dtype and out.dtype != dtype:
            if out.dtype not in FLOATS or (dtype is not None and "dtype" not in static):
                raise TypeError(f"{name} must return {dtype or 'floats'} for {dtype or 'such'} inputs, not {out.dtype}")
        if _checking.get() and not np.isfinite(out).all():
            if all(np.isfinite(a).all() for a in arrays if a is not None):
                raise FloatingPointError(f"{name} {out.shape} is the first op with a non-finite result")
        if not graph or not _recording.get():
            return Tensor.wrap(out.copy() if memory.share(out, arrays) else out)  # an edit must not reach a graph
        parents = [x.node() if isinstance(x, Tensor) else None for x in inputs]
        node = Node(name, out, pullback, parents, [a if a is None else a.shape for a in arrays])
        watch = watcher.get()
        if watch is not None:
            watch(node, arrays, static)
        return Tensor.wrap(out, node)

    return record


def walk(root, gradient):
    """Visit the graph below `root`, results before inputs, and hand each node the gradient of its output.

    A node's number is larger than those of its inputs, so "largest number first" is a topological order: when a
    node's turn comes, all that consumed it have had theirs, and `arrived` holds the full sum over paths (the
    multivariable chain rule; a tensor used twice gets two terms). A heap gives that order without recursion.
    """
    arrived = {root: gradient}
    todo = [(-root.order, root)]
    checking = _checking.get()
    while todo:
        _, node = heapq.heappop(todo)
        gradient = arrived.pop(node)
        if node.tensor is not None:
            accumulate(node.tensor, gradient)
            continue
        if node.pullback is None:
            raise RuntimeError(
                f"backward() reached {node.op}, whose graph an earlier backward() has walked and freed. "
                "A graph serves once: compute the forward pass again, or add the losses and walk their sum."
            )
        pullback, parents = node.pullback, node.parents
        node.pullback, node.parents = None, ()  # from here on only this loop holds the activations
        wanted = [parent is not None and parent.wants_gradient() for parent in parents]
        gradients = pullback(gradient, wanted) if takes_wanted(pullback) else pullback(gradient)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(gradients) != len(parents):
            raise ValueError(
                f"the pullback of {node.op} must return a gradient for each of its {len(parents)} positional "
                f"arguments, got {len(gradients)}"
            )
        for parent, part, want in zip(parents, gradients, wanted, strict=True):
            if not want:
                continue
            part = fit(part, parent, node.op)
            if checking and np.isfinite(gradient).all() and not np.isfinite(part).all():
                raise FloatingPointError(
                    f"the gradient of {node.op} with respect to its input {parent.shape} is the first non-finite one"
                )
            if parent in arrived:
                arrived[parent] = memory.add(arrived[parent], part)  # not +=: others may share the first term
            else:
                arrived[parent] = part
                heapq.heappush(todo, (-parent.order, parent))
        del pullback, parents, gradients, gradient, node


def takes_wanted(pullback):
    """Whether a pullback has the parameter `wanted`. By name: in `lambda g, y=y: …` the second is something else."""
    code = getattr(pullback, "__code__", None)
    return code is not None and "wanted" in code.co_varnames[: code.co_argcount]


def accumulate(leaf, gradient):
    if leaf.grad is None:
        leaf.grad = np.array(gradient)
    else:
        leaf.grad += gradient  # in place: the optimiser's flat buffer sees it


def fit(gradient, parent, op):
    """Undo broadcasting: an input that was stretched to the output's shape gets the sum over its copies."""
    shape = parent.shape
    if not isinstance(gradient, np.ndarray | np.generic):
        raise TypeError(
            f"the pullback of {op} must return an array for each input that wants a gradient, got {gradient!r}"
        )
    if gradient.dtype is not parent.dtype and gradient.dtype != parent.dtype:
        raise TypeError(
            f"the pullback of {op} returned {gradient.dtype} for a {parent.dtype} input; a NumPy scalar in the formula "
            "promotes float32, a Python float does not"
        )
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    stretched = tuple(i + extra for i, size in enumerate(shape) if size == 1 and gradient.shape[i + extra] != 1)
    summed = gradient.sum(axis=(*range(extra), *stretched), keepdims=True) if extra >= 0 else gradient
    if summed.size != np.prod(shape, dtype=int):
        raise ValueError(f"the pullback of {op} returned shape {gradient.shape} for an input of shape {shape}")
    return summed.reshape(shape)


class Tensor:
    """An n-dimensional array of floats that ops can differentiate through.

    Args:
        data: anything NumPy reads as numbers. Copied, so that editing your array later cannot reach into a graph.
            float32 and float64 arrays keep their dtype; all other numbers (Python's, lists, integers, float16 …)
            become float32.
        requires_grad: `backward` collects a gradient for this tensor in `.grad`, an array of its shape.
        dtype: np.float32 or np.float64, to convert.

    Raises TypeError for data that are not real numbers.

    Operators and methods (`+ * @ [] .sum() .reshape() …`) broadcast and index as NumPy's do; `ops.py` defines them.
    """

    __slots__ = ("_array", "grad", "requires_grad", "name", "_node", "_leaf", "__weakref__")
    __array_ufunc__ = None  # makes `array + tensor` ask us instead of looping over the array's entries

    def __init__(self, data, requires_grad=False, dtype=None):
        if isinstance(data, Tensor):
            raise TypeError("a Tensor is made of numbers, got a Tensor; use .detach(), or .astype() to keep the graph")
        self._array = as_array(data, dtype)
        self.grad = None
        self.requires_grad = requires_grad
        self.name = None
        self._node = None  # the step that made it; None for a leaf
        self._leaf = None  # a leaf's weak reference to its node, if any graph holds one

    @staticmethod
    def wrap(array, node=None):
        """A Tensor around `array` itself, uncopied: how ops hand out results."""
        tensor = Tensor.__new__(Tensor)
        tensor._array = array
        tensor.grad = tensor.name = tensor._leaf = None
        tensor.requires_grad = node is not None
        tensor._node = node
        return tensor

    # What it holds

    @property
    def data(self):
        """The values as an array. Writeable, as in `p.data -= lr * p.grad`, unless a recorded op may still need the
        values for its pullback: then it is a read-only view, and writing raises NumPy's "read-only" error. (An array
        that you took before the op was recorded stays writeable: do not keep one.)"""
        if not self.is_needed():
            return self._array
        view = self._array.view()
        view.flags.writeable = False
        return view

    @data.setter
    def data(self, values):
        if values is not self._array:  # `p.data -= …` has written already and now assigns the same array
            self[...] = values

    def __setitem__(self, index, values):
        """Write into the values, in place. Not recorded: to differentiate through a choice, use `where`."""
        if self.is_needed():
            raise RuntimeError(
                f"in-place edit of a {self.shape} tensor that a pullback still needs: its gradient would be wrong. "
                "Edit after backward(), or make a new tensor instead (ops.where, x + delta)."
            )
        self._array[index] = values.data if isinstance(values, Tensor) else values

    def is_needed(self):
        """True while a recorded op may read these values in its pullback."""
        if self._node is not None:
            return self._node.pullback is not None
        return self._leaf is not None and self._leaf() is not None

    shape = property(lambda self: self._array.shape)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)

    def numpy(self):
        """A copy of the values, yours to edit."""
        return self._array.copy()

    def item(self):
        """The value of a one-element tensor as a Python float."""
        if self.size != 1:
            raise ValueError(f"item() needs one element, got shape {self.shape}; index or reduce the tensor first")
        return self._array.item()

    def detach(self):
        """A copy outside any graph: a constant with these values."""
        return Tensor(self._array)

    def __getstate__(self):
        """For `copy` and `pickle`: a copy of the values and the gradient. The graph stays behind."""
        slots = (slot for kind in type(self).__mro__ for slot in getattr(kind, "__slots__", ()))
        state = {slot: copy.copy(getattr(self, slot)) for slot in slots if slot != "__weakref__"}
        return None, state | {"_node": None, "_leaf": None}

    def __eq__(self, other):
        raise TypeError("tensors are not compared with ==; compare their values, x.data == y.data")

    __hash__ = object.__hash__  # by identity, so that a tensor can be a key

    def __len__(self):
        if self.ndim == 0:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    __float__ = item

    def __bool__(self):
        return bool(self.item())

    def __array__(self, dtype=None, copy=None):
        return np.array(self._array, dtype=dtype)

    def __repr__(self):
        values = np.array2string(self._array, precision=4, threshold=20, prefix="Tensor(")
        made_by = f", op={self._node.op}" if self._node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({values}, shape={self.shape}, {self.dtype}{made_by})"

    # The tape

    def node(self):
        """The node that stands for this tensor in a graph; a leaf gets one when the first op remembers it."""
        if self._node is not None:
            return self._node
        node = self._leaf() if self._leaf is not None else None
        if node is None:
            node = Node("leaf", self._array, tensor=self)
            self._leaf = weakref.ref(node)
        return node

    def backward(self, gradient=None):
        """Walk the tape from this tensor back to the leaves and add dL/dleaf to each leaf's `.grad`.

        Args:
            gradient: dL/d(this tensor), of its shape; may be left out for a one-element tensor, where it is 1.

        A graph can be walked once: what each step remembered is freed as the walk passes it. (So a walk that an
        error or Ctrl-C breaks off leaves some leaves with their gradient and some without: zero them and start over.)

        Raises RuntimeError where there is no graph, or it has been walked; ValueError for a seed that is missing or has
        the wrong shape.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() needs a tensor computed from one with requires_grad=True; this one has no graph. "
                "Was it made under no_grad(), or from constants only?"
            )
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() of a tensor of shape {self.shape} needs the seed gradient dL/d(tensor) of that shape; "
                    "pass backward(gradient), or reduce to one number first, as in loss.mean().backward()"
                )
            gradient = np.ones(self.shape, self.dtype)
        gradient = np.array(gradient, self.dtype)
        if gradient.shape != self.shape:
            raise ValueError(f"backward(): the seed gradient must have shape {self.shape}, got {gradient.shape}")
        walk(self.node(), gradient)


def constant(x, dtype):
    """A positional argument that is no Tensor: None stays, a number takes the quick way."""
    if x is None:
        return None
    return np.array(x, dtype) if dtype is not None and type(x) in (float, int) else as_array(x, dtype)


def as_array(data, dtype=None):
    """A new float array with the values of `data`; see Tensor for the dtype rules."""
    if isinstance(data, list | tuple) and any(isinstance(item, Tensor) for item in data):
        raise TypeError("a list of Tensors is joined by ops.stack or ops.concatenate, which record it")
    array = np.array(data)
    if dtype is None:
        keep = isinstance(data, np.ndarray | np.generic) and array.dtype in FLOATS
        dtype = array.dtype if keep else np.dtype(np.float32)
    if array.dtype.kind not in "fiub" or np.dtype(dtype) not in FLOATS:
        wrong = array.dtype if array.dtype.kind not in "fiub" else np.dtype(dtype)
        raise TypeError(f"a Tensor holds real numbers as float32 or float64, got {wrong}")
    return array.astype(dtype, copy=False)
