"""Optimisers: all parameters in one flat buffer, so that a step of AdamW is one kernel call.

A model's parameters are scattered arrays. Here they move into one 1-D array, and so do their gradients; each
parameter then is a view into it. Then clipping by the global norm is one reduction, AdamW one loop over three
arrays, summing the gradients of several workers one addition, and sending them to another machine would be one
message. (PyTorch's "fused" and "foreach" optimisers chase the same goal through lists of tensors; DeepSpeed and
Megatron use flat buffers.)

Chapter of the course: notebooks/07-training.ipynb.
"""

import math

import numpy as np

from tinyvit import kernels


class FlatParameters:
    """The parameters of a module, laid side by side: `values` and `gradients` are 1-D, and every parameter a
    view into them.

    Those that decay come first, so that weight decay is a matter of two slices: `values[:decaying]` and the rest.
    Parameters with requires_grad=False stay out, as do modules that are put into the model later. Gradients that are
    there already are kept.
    """

    def __init__(self, module):
        module.name_parameters()
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("an optimiser needs a module with parameters that require gradients, this one has none")
        dtypes = {p.dtype for _, p in named}
        if len(dtypes) > 1:
            raise TypeError(f"parameters must share one dtype, got {sorted(map(str, dtypes))}; convert with .astype()")
        named.sort(key=lambda item: not item[1].decay)  # stable: order of definition otherwise
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.decaying = sum(p.size for p in self.parameters if p.decay)
        total = sum(p.size for p in self.parameters)
        self.values = np.empty(total, dtypes.pop())
        self.gradients = np.zeros_like(self.values)
        self.slices = {}
        start = 0
        for name, p in named:
            self.slices[name] = slice(start, start + p.size)
            values = self.values[self.slices[name]].reshape(p.shape)
            gradients = self.gradients[self.slices[name]].reshape(p.shape)
            values[...] = p.data
            if p.grad is not None:
                gradients[...] = p.grad
            p._array, p.grad = values, gradients
            start += p.size

    def attach(self, replica):
        """Give a replica of the module a flat gradient buffer of its own, which is returned."""
        gradients = np.zeros_like(self.gradients)
        for name, p in replica.named_parameters():
            if name in self.slices:
                p.grad = gradients[self.slices[name]].reshape(p.shape)
        return gradients

    def check(self):
        """Raises RuntimeError if a step would go wrong: a parameter has left the buffer, or a graph still needs one."""
        for p in self.parameters:
            if p._array.base is not self.values or p.grad is None or p.grad.base is not self.gradients:
                raise RuntimeError(
                    f"step() would not reach {p.name}: its values or gradient have left this optimiser's buffer. Make "
                    "the optimiser after astype() and copying, one for each model; clear gradients with zero_grad()"
                )
            if p.is_needed():
                raise RuntimeError(
                    f"step() would change {p.name}, which a recorded graph still needs: call loss.backward() first, "
                    "or drop the loss, or compute it under no_grad()"
                )


class Optimizer:
    """What all share: the flat buffer, and per parameter state of the same layout."""

    state_names = ()

    def __init__(self, module, lr, weight_decay):
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr} and {weight_decay}")
        self.flat = FlatParameters(module)
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = 0
        self.state = {name: np.zeros_like(self.flat.values) for name in self.state_names}
        self.parts = [(slice(0, self.flat.decaying), weight_decay), (slice(self.flat.decaying, None), 0.0)]

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        self.flat.gradients[...] = 0

    def clip_gradients(self, max_norm):
        """Scale the gradients down to `max_norm` if they are longer, all by one factor, so that their direction stays.
        Returns the norm before (Pascanu et al. 2013). 0 switches clipping off."""
        if not max_norm >= 0:
            raise ValueError(f"max_norm must not be negative, got {max_norm}")
        norm = math.sqrt(kernels.squared_norm(self.flat.gradients))
        if max_norm and norm > max_norm:
            self.flat.gradients *= max_norm / norm
        return norm

    def step(self, lr=None, map=map):
        """Update the parameters from the gradients. `lr` stands in for the optimiser's own for this step, `map` for
        Python's, to share work among threads (`Shards.on_threads`)."""
        self.flat.check()
        self.steps += 1
        self._step(self.lr if lr is None else lr, map)

    def _step(self, lr, map):
        for part, decay in self.parts:  # a kernel or two, not worth sharing
            self._update(*self._at(part), lr, decay)

    def _at(self, part):
        """Values, gradients and each state of a slice."""
        return [array[part] for array in (self.flat.values, self.flat.gradients, *self.state.values())]

    def state_dict(self):
        """{"steps": …, "m.<parameter>": …}: what a later run needs to go on."""
        named = {
            f"{kind}.{name}": self.state[kind][part].copy()
            for kind in self.state_names
            for name, part in self.flat.slices.items()
        }
        return {"steps": np.array(self.steps)} | named

    def load_state_dict(self, state):
        """Raises ValueError that lists the entries that are missing or do not fit, before anything is changed."""
        own = self.state_dict()
        arrays = {name: np.asarray(state[name]) for name in own if name in state}
        problems = [
            name
            for name in own
            if name not in arrays or arrays[name].shape != own[name].shape or arrays[name].dtype.kind not in "fiu"
        ]
        if problems or arrays["steps"] < 0:
            named = ", ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ValueError("this optimiser state does not fit: see " + (named or "steps, below 0"))
        self.steps = int(arrays["steps"])
        for kind in self.state_names:
            for name, part in self.flat.slices.items():
                self.state[kind][part] = arrays[f"{kind}.{name}"].reshape(-1)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019).

    m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
    w ← w - lr λ w - lr m̂ / (√v̂ + ε),   with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)

    The decay λ acts on w itself. As an L2 term in the loss it would be divided by √v̂ too, and so weaken just where
    gradients are large.
    """

    state_names = ("m", "v")

    def __init__(self, module, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05):
        super().__init__(module, lr, weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        self.betas = betas
        self.eps = eps

    def _update(self, w, g, m, v, lr, decay):
        kernels.adamw(w, g, m, v, lr, *self.betas, self.eps, decay, self.steps)


class Muon(AdamW):
    """Momentum, made orthogonal: for the matrices inside a model's blocks. All else gets AdamW.

    m ← μ m + (1 - μ) g,   u = μ m + (1 - μ) g               (Nesterov's momentum)
    w ← w - lr λ w - lr 0.2 √max(n, k) orthogonal(u)          for w of n rows and k columns

    AdamW makes all *entries* of a step about equal, Muon all its *singular values*: no direction in which the layer
    could learn is drowned by another whose gradients are larger. The factor gives the steps the size that AdamW's
    have, so that its learning rates and decays serve here, too. What reads the input or feeds the output gets AdamW, as
    does what is no matrix. A convolution's kernel is one: (K K C, C'). So are the weights of queries, keys and values,
    side by side; Jordan takes them apart. (Adam's v stays 0 where Muon rules.)

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the factor Liu et al. 2025, arXiv 2502.16982.
    """

    def __init__(self, module, lr=1e-3, momentum=0.95, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05):
        super().__init__(module, lr, betas, eps, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.matrices, others = [], []
        for name, p in zip(self.flat.names, self.flat.parameters, strict=True):
            part = self.flat.slices[name]
            if p.decay and "blocks" in name.split("."):
                self.matrices.append((part, (-1, p.shape[-1])))
            elif p.decay:
                others.append((part, weight_decay))
        if not self.matrices:
            raise ValueError("Muon is for the matrices inside a model's blocks, and this one has none; use AdamW")
        self.parts[:1] = others  # before what does not decay

    def _step(self, lr, map):
        super()._step(lr, map)
        list(map(lambda matrix: self._turn(*matrix, lr), self.matrices))

    def _turn(self, part, shape, lr):
        w, g, m, _ = (array.reshape(shape) for array in self._at(part))
        m *= self.momentum
        m += (1 - self.momentum) * g
        u = self.momentum * m + (1 - self.momentum) * g
        with np.errstate(over="ignore", invalid="ignore"):  # shows in the next loss; each thread has its own errstate
            w *= 1 - lr * self.weight_decay
            w -= lr * 0.2 * math.sqrt(max(w.shape)) * orthogonal(u)


def orthogonal(matrix):
    """For a matrix U Σ Vᵀ about U Vᵀ: the same directions, all singular values between 0.68 and 1.21.

    Five times X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, which leaves U and V and turns each σ into a σ + b σ³ + c σ⁵. Jordan
    chose a, b and c so that small σ grow as fast as can be and land near 1, if not on it; exactness gains nothing. An
    SVD takes 4 to 9 times as long. (What is below 1/500 of the matrix' norm remains smaller.)
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # the smaller X Xᵀ
    X = X / (np.linalg.norm(X) + 1e-7)  # no σ above 1
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X if matrix.shape[0] <= matrix.shape[1] else X.T


class SGD(Optimizer):
    """Gradient descent with momentum, with which the paper fine-tunes: u ← μ u + g + λ w,  w ← w - lr u."""

    state_names = ("velocity",)

    def __init__(self, module, lr=0.01, momentum=0.9, weight_decay=0.0):
        super().__init__(module, lr, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum

    def _update(self, w, g, velocity, lr, decay):
        kernels.sgd(w, g, velocity, lr, self.momentum, decay)


OPTIMIZERS = {"adamw": AdamW, "muon": Muon, "sgd": SGD}


def warmup_cosine(step, total, peak, warmup, final=0.0):
    """The learning rate of step 0, 1, … total - 1: up in a line over `warmup` steps, then down half a cosine to
    `final`.

    Warm-up, because Adam's v̂ is a guess from few gradients at first, and one large step can spoil a
    Transformer for good.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
