"""A Module owns parameters and says how to compute with them.

It is a plain Python object. Its parameters are found by walking over its attributes, so a layer is written by creating
them in `__init__` and using them in `forward`. Names are paths, `blocks.0.attention.qkv.weight`: they are what a
checkpoint stores, a tape prints and an error says.

What differs from call to call is not stored in modules but in the calling thread: whether they act as in eval mode,
and what random numbers they draw. So several threads can use one model.

Chapter of the course: notebooks/04-patches.ipynb.
"""

import contextlib
from contextvars import ContextVar

import numpy as np

from tinyvit.tensor import Tensor, checking_finite, no_grad

_generator = ContextVar("generator", default=None)


@contextlib.contextmanager
def random_state(seed):
    """Within this block, in this thread, what is random at each call (dropout, hidden patches) draws from a generator
    seeded so.

    The training loop seeds each shard of each step by (seed, step, shard): the same masks for any number of threads.
    """
    token = _generator.set(np.random.default_rng(seed))
    try:
        yield
    finally:
        _generator.reset(token)


def generator():
    """The block's generator; outside of one, a fresh unseeded one."""
    return _generator.get() or np.random.default_rng()


_evaluating = ContextVar("evaluating", default=False)


@contextlib.contextmanager
def evaluating():
    """Within this block, in this thread, every module acts as in eval mode, whatever mode it is in."""
    token = _evaluating.set(True)
    try:
        yield
    finally:
        _evaluating.reset(token)


def evaluating_now():
    return _evaluating.get()


_recording_statistics = ContextVar("recording_statistics", default=True)


@contextlib.contextmanager
def recording_statistics(on):
    """Within this block, in this thread, layers that keep statistics of what they see (batch norm) update them, or not.

    Shards of a batch run in any order, on threads that share these numbers. So only the first shard records: the same
    result for any number of threads, as data-parallel frameworks keep those of their first worker.
    """
    token = _recording_statistics.set(on)
    try:
        yield
    finally:
        _recording_statistics.reset(token)


def recording_statistics_now():
    return _recording_statistics.get()


_composing = ContextVar("composing", default=False)


@contextlib.contextmanager
def composed():
    """Within this block, in this thread, an encoder block is composed of its layers' ops even where one fused kernel
    would do: to see each op on the tape, or to find the one that goes wrong."""
    token = _composing.set(True)
    try:
        yield
    finally:
        _composing.reset(token)


def composing_now():
    return _composing.get() or checking_finite()  # which is to name an op, not a block of them


_observer = ContextVar("observer", default=None)


@contextlib.contextmanager
def _observe(function):
    """Within this block, in this thread, `function(module, output)` is told of every module's call."""
    token = _observer.set(function)
    try:
        yield
    finally:
        _observer.reset(token)


class Parameter(Tensor):
    """A Tensor that training changes.

    `decay` tells the optimiser whether weight decay applies. It does to the matrices of linear maps. It does not to
    biases, gains, the class token and positions: few numbers, each of which has to have some size of its own.
    """

    __slots__ = ("decay",)

    def __init__(self, data, decay=False, dtype=None):
        super().__init__(data, requires_grad=True, dtype=dtype)
        self.decay = decay

    def share(self):
        """A parameter with the same memory for its values, but a gradient of its own."""
        twin = type(self).__new__(type(self))
        for slot in ("requires_grad", "name", "decay", "_array"):
            setattr(twin, slot, getattr(self, slot))
        twin.grad = twin._node = twin._leaf = None
        return twin


class Statistic(Parameter):
    """Numbers that a layer measures while training, such as a running mean. They are kept with the parameters, in
    checkpoints and in replicas, but have no gradient and are not counted."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data)
        self.requires_grad = False


class Module:
    """Something with parameters that can be called.

    A subclass creates parameters and sub-modules as attributes (or lists of sub-modules) and defines `forward`.
    """

    training = True

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    def __call__(self, *inputs, **options):
        out = self.forward(*inputs, **options)
        observer = _observer.get()
        if observer is not None:
            observer(self, out)
        return out

    def children(self):
        """(name, module) for each direct sub-module, in order of definition; a list's items are `name.0`,
        `name.1`, …"""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def modules(self, prefix=""):
        """(path, module) for this module and all below it; this one's path is the prefix."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """(path, parameter), in order of definition. One that stands in two places has the path of the first.

        Raises TypeError for parameters or modules that nobody would find: in tuples, dicts or nested lists.
        """
        seen = set()
        for path, module in self.modules():
            for name, value in vars(module).items():
                where = f"{path}.{name}" if path else name
                if isinstance(value, Parameter):
                    if id(value) not in seen:
                        seen.add(id(value))
                        yield where, value
                elif _hides_parameters(value):
                    raise TypeError(
                        f"{where} must be a Parameter, a Module or a list of Modules, for training to find it"
                    )

    def name_parameters(self):
        """Note each parameter's path on it, so that tapes and errors can say which one they mean."""
        for path, parameter in self.named_parameters():
            parameter.name = path

    def parameters(self):
        return [parameter for _, parameter in self.named_parameters()]

    def parameter_count(self):
        """How many numbers the parameters hold together."""
        return sum(p.size for p in self.parameters() if not isinstance(p, Statistic))

    def zero_grad(self):
        """Forget the gradients, in place where an optimiser has laid them into its buffer."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad[...] = 0

    def train(self, training=True):
        """Switch to train mode (or eval mode), here and below; returns the module. In train mode dropout is on, and
        batch norm takes mean and variance from the batch."""
        for _, module in self.modules():
            module.training = training
        return self

    def eval(self):
        """Switch to eval mode, here and below; returns the module. Dropout is off, and batch norm takes the mean and
        variance that training has left."""
        return self.train(False)

    def astype(self, dtype):
        """Convert all parameters in place, to float64 for gradient checks say; forgets gradients; returns the
        module."""
        for p in self.parameters():
            p._array, p.grad = p._array.astype(dtype), None
        return self

    def replica(self, twins=None):
        """A copy whose parameters share their values with this module's, but collect gradients of their own.

        One for each worker thread: they read the same weights, and no two add to the same gradient. It is in the mode
        (train or eval) in which this module is now.
        """
        twins = {} if twins is None else twins  # id of a module or parameter: its twin, so that what is shared stays so
        twin = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(twin, name, _replica(value, twins))
        return twin

    def state_dict(self):
        """{path: copy of the values} for every parameter."""
        return {name: p.numpy() for name, p in self.named_parameters()}

    def load_state_dict(self, state):
        """Set every parameter from {path: array}. All or nothing: raises ValueError that lists each missing, unexpected
        and misshapen entry, before anything is changed."""
        own = dict(self.named_parameters())
        arrays = {name: np.asarray(values) for name, values in state.items()}
        problems = [f"missing: {name} {own[name].shape}" for name in own if name not in arrays]
        problems += [f"unexpected: {name} {arrays[name].shape}" for name in arrays if name not in own]
        for name in own.keys() & arrays.keys():
            if arrays[name].shape != own[name].shape:
                problems.append(f"wrong shape: {name} must be {own[name].shape}, got {arrays[name].shape}")
            elif arrays[name].dtype.kind not in "fiu":
                problems.append(f"wrong kind: {name} must be real numbers, got {arrays[name].dtype}")
            elif own[name].is_needed():
                problems.append(f"in use: {name} is still needed by a recorded graph; call backward() or drop it first")
        if problems:
            raise ValueError(
                f"these weights do not fit this {type(self).__name__}:\n  " + "\n  ".join(sorted(problems))
            )
        for name, p in own.items():
            p.data = arrays[name]

    def summary(self, *inputs):
        """A table of the modules with their output shapes for these inputs, and their parameter counts."""
        shapes = {}

        def note(module, out):
            shapes[id(module)] = (out[0] if isinstance(out, tuple) else out).shape

        with no_grad(), composed(), _observe(note):
            self(*inputs)
        lines = [f"{'module':<28} {'kind':<24} {'output':<20} {'parameters':>12}"]

        def add(name, module, indent):
            shape = str(shapes.get(id(module), ""))
            lines.append(f"{indent + name:<28} {type(module).__name__:<24} {shape:<20} {module.parameter_count():>12,}")
            for child_name, child in module.children():
                add(child_name, child, indent + "  ")

        add("(all)", self, "")
        return "\n".join(lines)

    def __repr__(self):
        inner = "\n".join(f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children())
        own = ", ".join(f"{n} {p.shape}" for n, p in vars(self).items() if isinstance(p, Parameter))
        body = "\n  ".join(part for part in (own, *inner.split("\n")) if part)
        return f"{type(self).__name__}({body})" if "\n" not in body else f"{type(self).__name__}(\n  {body}\n)"


def _replica(value, twins):
    if isinstance(value, list):
        return [_replica(item, twins) for item in value]
    if not isinstance(value, Parameter | Module):
        return value
    if id(value) not in twins:
        twins[id(value)] = value.share() if isinstance(value, Parameter) else value.replica(twins)
    return twins[id(value)]


def _hides_parameters(value, inside=False):
    """Whether a parameter sits where `named_parameters` does not look: all containers but a list of Modules."""
    if isinstance(value, Tensor):
        return value.requires_grad and (inside or not isinstance(value, Parameter))
    if isinstance(value, Module):
        return inside
    if isinstance(value, list) and not inside:
        return any(_hides_parameters(item, inside=True) for item in value if not isinstance(item, Module))
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return any(_hides_parameters(item, inside=True) for item in items)
    return False
