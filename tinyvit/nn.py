"""Layers: a Module owns parameters and says how to compute with them.

The encoder's parts, in the order in which the paper stacks them: Linear, LayerNorm, Dropout,
MultiHeadSelfAttention (MSA), MLP, EncoderBlock; then PatchEmbedding, which makes tokens of an image. A weight
is (in, out), so that `x @ W + b` reads as it does on paper. PyTorch stores (out, in) and transposes in each
call.

Paper: section 3.1 and appendix A. Notebooks 04 to 06.
"""

import contextlib
from contextvars import ContextVar

import numpy as np

from tinyvit import functional as F
from tinyvit.tensor import Tensor, no_grad

# ---------------------------------------------------------------------------------------------- randomness

_generator = ContextVar("generator", default=None)


@contextlib.contextmanager
def random_state(seed):
    """Within this block, in this thread, what is random at each call (dropout) draws from a generator seeded so.

    The training loop seeds each shard of each step by (seed, step, shard): the same masks for any number of threads,
    and in a resumed run.
    """
    token = _generator.set(np.random.default_rng(seed))
    try:
        yield
    finally:
        _generator.reset(token)


def generator():
    """The block's generator; outside of one, a fresh unseeded one."""
    return _generator.get() or np.random.default_rng()


# ---------------------------------------------------------------------------------------------- Module


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

    `decay` tells the optimiser whether weight decay applies: it does to matrices, which can trade size for nothing; it
    does not to biases, normalisation gains and embeddings, whose size means something.
    """

    __slots__ = ("decay",)

    def __init__(self, data, decay=False, dtype=None):
        super().__init__(data, requires_grad=True, dtype=dtype)
        self.decay = decay

    def share(self):
        """A parameter with the same memory for its values, but a gradient of its own."""
        twin = Parameter.__new__(Parameter)
        for slot in ("requires_grad", "name", "decay", "_array"):
            setattr(twin, slot, getattr(self, slot))
        twin.grad = twin._node = twin._leaf = None
        return twin


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
        """(path, parameter), in order of definition."""
        for path, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield f"{path}.{name}" if path else name, value

    def name_parameters(self):
        """Note each parameter's path on it, so that tapes and errors can say which one they mean."""
        for path, parameter in self.named_parameters():
            parameter.name = path

    def parameters(self):
        return [parameter for _, parameter in self.named_parameters()]

    def parameter_count(self):
        """How many numbers the parameters hold together."""
        return sum(p.size for p in self.parameters())

    def zero_grad(self):
        """Forget the gradients, in place where an optimiser has laid them into its buffer."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad[...] = 0

    def train(self, training=True):
        """Switch dropout on (or off), here and below; returns the module."""
        for _, module in self.modules():
            module.training = training
        return self

    def eval(self):
        """Switch dropout off, here and below; returns the module."""
        return self.train(False)

    def astype(self, dtype):
        """Convert all parameters in place, to float64 for gradient checks say; forgets gradients; returns the
        module."""
        for p in self.parameters():
            p._array, p.grad = p._array.astype(dtype), None
        return self

    def replica(self):
        """A copy whose parameters share their values with this module's, but collect gradients of their own.

        One for each worker thread: they read the same weights, and no two add to the same gradient.
        """
        twin = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(twin, name, _replica(value))
        return twin

    def state_dict(self):
        """{path: copy of the values} for every parameter."""
        return {name: p.numpy() for name, p in self.named_parameters()}

    def load_state_dict(self, state):
        """Set every parameter from {path: array}. All or nothing: raises ValueError that lists each missing, unexpected
        and misshapen entry, before anything is changed."""
        own = dict(self.named_parameters())
        problems = [f"missing: {name} {own[name].shape}" for name in own if name not in state]
        problems += [f"unexpected: {name} {np.shape(state[name])}" for name in state if name not in own]
        problems += [
            f"wrong shape: {name} must be {own[name].shape}, got {np.shape(state[name])}"
            for name in own
            if name in state and np.shape(state[name]) != own[name].shape
        ]
        if problems:
            raise ValueError(f"these weights do not fit this {type(self).__name__}:\n  " + "\n  ".join(problems))
        for name, p in own.items():
            p.data = state[name]

    def summary(self, *inputs):
        """A table of the modules with their output shapes for these inputs, and their parameter counts."""
        shapes = {}
        with no_grad(), _observe(lambda module, out: shapes.setdefault(id(module), _first(out).shape)):
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


def _replica(value):
    if isinstance(value, Parameter):
        return value.share()
    if isinstance(value, Module):
        return value.replica()
    if isinstance(value, list):
        return [_replica(item) for item in value]
    return value


def _first(out):
    return out[0] if isinstance(out, tuple) else out


# ---------------------------------------------------------------------------------------------- initial values


def xavier_uniform(rng, fan_in, fan_out, copies=1):
    """(fan_in, copies · fan_out) uniform in ±√(6 / (fan_in + fan_out)): keeps the size of signals both ways
    (Glorot and Bengio 2010).

    `copies` > 1 is for matrices that are several in one, such as q, k and v: each gets the limit of its own
    shape. Taking 3 D as the fan-out instead would make the weights √2 too small.
    """
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return rng.uniform(-limit, limit, (fan_in, copies * fan_out)).astype(np.float32)


def lecun_normal(rng, fan_in, fan_out):
    """(fan_in, fan_out) normal with variance 1 / fan_in, cut off at two deviations and widened to make up for it."""
    cut_deviation = 0.87962566  # of a standard normal cut off at ±2
    return (_truncated_normal(rng, (fan_in, fan_out)) * (fan_in**-0.5 / cut_deviation)).astype(np.float32)


def _truncated_normal(rng, shape):
    draws = rng.standard_normal(shape)
    while (outside := np.abs(draws) > 2).any():
        draws[outside] = rng.standard_normal(int(outside.sum()))
    return draws


# ---------------------------------------------------------------------------------------------- layers


class Linear(Module):
    """x W + b: (…, D_in) -> (…, D_out). Xavier-uniform weight, zero bias."""

    def __init__(self, d_in, d_out, rng, copies=1):
        self.weight = Parameter(xavier_uniform(rng, d_in, d_out, copies), decay=True)
        self.bias = Parameter(np.zeros(copies * d_out, np.float32))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Normalise each token over its D entries, then scale and shift: (…, D) -> (…, D). See `functional.layer_norm`."""

    def __init__(self, width, eps=1e-6):
        self.gamma = Parameter(np.ones(width, np.float32))
        self.beta = Parameter(np.zeros(width, np.float32))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x, self.gamma, self.beta, eps=self.eps)


class Dropout(Module):
    """Zero entries at random while training, see `functional.dropout`; the identity in eval mode, or with p = 0."""

    def __init__(self, p):
        if not 0 <= p < 1:
            raise ValueError(f"a dropout probability must be in [0, 1), got {p}")
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, generator()) if self.training and self.p else x


class MultiHeadSelfAttention(Module):
    """MSA, paper appendix A: every token asks all tokens (query · key) and takes a mixture of their values.

    Shapes: x (B, N, D) -> (B, N, D). One matrix makes q, k and v of all heads (eq. 5), the heads attend side by side
    (eq. 6, 7), a last matrix mixes them (eq. 8, U_msa).
    """

    def __init__(self, width, heads, rng):
        if width % heads:
            raise ValueError(f"heads must divide the width: {width} = {heads} × {width / heads:g}")
        self.heads = heads
        self.qkv = Linear(width, width, rng, copies=3)
        self.out = Linear(width, width, rng)

    def forward(self, x, maps=None):
        return self.out(F.attention(self.qkv(x), heads=self.heads, maps=maps))


class MLP(Module):
    """Two linear layers with GELU between them, token by token: (B, N, D) -> (B, N, D). Paper section 3.1."""

    def __init__(self, width, hidden, rng, dropout=0.0, tanh=False):
        self.fc1 = Linear(width, hidden, rng)
        self.fc2 = Linear(hidden, width, rng)
        self.dropout = Dropout(dropout)
        self.tanh = tanh
        for layer in (self.fc1, self.fc2):  # as in the paper's code: biases that are not all alike
            layer.bias.data = 1e-6 * rng.standard_normal(layer.bias.shape)

    def forward(self, x):
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x), tanh=self.tanh))))


class EncoderBlock(Module):
    """One layer of the encoder, (B, N, D) -> (B, N, D):

    z' = MSA(LN(z)) + z      (paper eq. 2)
    z  = MLP(LN(z')) + z'    (paper eq. 3)

    Normalising *before* each part leaves a path of plain additions from input to output, so that gradients reach the
    first layer undiminished. (The original Transformer normalised after the addition.)
    """

    def __init__(self, width, heads, hidden, rng, dropout=0.0, tanh=False):
        self.norm1 = LayerNorm(width)
        self.attention = MultiHeadSelfAttention(width, heads, rng)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, hidden, rng, dropout, tanh)
        self.dropout = Dropout(dropout)

    def forward(self, z, maps=None):
        z = z + self.dropout(self.attention(self.norm1(z), maps=maps))
        return z + self.mlp(self.norm2(z))


class PatchEmbedding(Module):
    """Cut images into P×P patches and map each, flattened, to D numbers: (B, h, w, C) -> (B, N, D), N = h w / P².

    Patches run row by row, and a patch's entries (row, column, channel). The same as a convolution with a P×P
    window and stride P, which is how most code writes it. Paper eq. 1, x_p E.
    """

    def __init__(self, patch, channels, width, rng):
        self.patch = patch
        self.weight = Parameter(lecun_normal(rng, patch * patch * channels, width), decay=True)
        self.bias = Parameter(np.zeros(width, np.float32))

    def forward(self, images):
        return F.linear(patchify(images, self.patch), self.weight, self.bias)


def patchify(images, patch):
    """(B, h, w, C) -> (B, N, P·P·C): the patches row by row, each flattened as (row, column, channel).

    The two axes inside a patch must be brought together *before* flattening. A bare reshape to (B, N, P·P·C)
    has the right shape and scrambles the image: it cuts rows of pixels, not squares.
    """
    B, h, w, C = images.shape
    P = patch
    if h % P or w % P:
        raise ValueError(
            f"patch size {P} must divide the image's {h}×{w}; {nearest_patch(h, w, P)} is the nearest that does"
        )
    x = images.reshape(B, h // P, P, w // P, P, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, h/P, w/P, P, P, C)
    return x.reshape(B, (h // P) * (w // P), P * P * C)


def nearest_patch(h, w, patch):
    """The patch size nearest to `patch` that divides both sides; the smaller one of two equally near."""
    return min((p for p in range(1, min(h, w) + 1) if h % p == 0 and w % p == 0), key=lambda p: (abs(p - patch), p))
