"""What the parity tests share: the reference vectors, tinyvit's side of a comparison, the measure of error.

Runs without PyTorch. `vectors.npz` (the plain ViT, trained by AdamW) and `vectors-models.npz` (its choices and the
other models, trained by SGD) hold what PyTorch computed: `about` (JSON: PyTorch's version, each case's configuration
and recipe) and arrays named `<case>/<field>`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyvit import functional as F
from tinyvit import models
from tinyvit.nn import evaluating
from tinyvit.optim import warmup_cosine
from tinyvit.tensor import no_grad

FILE = Path(__file__).with_name("vectors.npz")
MODELS_FILE = Path(__file__).with_name("vectors-models.npz")


def build(kind="vit", **fields):
    """tinyvit's model of a kind, with its configuration's fields."""
    if kind == "igpt":  # no classifier, so not among `models.MODELS`
        return models.ImageGPT(models.ImageGPTConfig(**fields))
    return models.build(models.from_dict({"kind": kind} | fields))


@dataclass
class Case:
    """One model, a pool of images, and what PyTorch makes of them.

    config: the arguments of `build`.
    recipe: smoothing, steps, lr, warmup, weight_decay, clip; for AdamW betas and eps, for SGD momentum.
    weights: {path: float32 array}. pixels: (M, h, w, C) uint8, for Image GPT (M, h, w). labels: (M,) int64.
    batches: (steps, B), places in the pool.
    logits (B, K), loss and gradients {path: array}: of the first batch, in float64 (`gradients` may be rounded).
    losses: (steps,), before each step of the optimiser, in float64 too, so that PyTorch's own rounding does not show.
    trained: (B, K), logits of the first batch after these steps, in eval mode.
    """

    name: str
    config: dict
    recipe: dict
    weights: dict
    pixels: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    logits: np.ndarray = None
    loss: float = None
    gradients: dict = None
    losses: np.ndarray = None
    trained: np.ndarray = None

    def model(self, dtype=np.float32):
        """tinyvit's model with these weights."""
        model = build(**self.config)
        model.load_state_dict(self.weights)
        return model.astype(dtype)

    def batch(self, step=0):
        """(images float32, labels) of a step. Division by a power of two is exact, so no machine differs. For Image GPT
        the pixels are both."""
        places = self.batches[step]
        if self.config.get("kind") == "igpt":
            return self.pixels[places], self.pixels[places]
        return self.pixels[places].astype(np.float32) / 128 - 1, self.labels[places]

    def run(self):
        """What a training run takes: (batches, learning rates, smoothing, clip)."""
        r = self.recipe
        rates = [warmup_cosine(step, r["steps"], r["lr"], r["warmup"]) for step in range(r["steps"])]
        return [self.batch(step) for step in range(r["steps"])], rates, r["smoothing"], r["clip"]

    def adamw(self):
        """The recipe's arguments for AdamW."""
        return {name: self.recipe[name] for name in ("weight_decay", "betas", "eps")}

    def sgd(self):
        """The recipe's arguments for SGD."""
        return {name: self.recipe[name] for name in ("weight_decay", "momentum")}


def write(cases, torch_version, file=FILE):
    """Save the cases. The same cases give the same bytes: np.savez stamps no time of day."""
    described = {c.name: {"config": c.config, "recipe": c.recipe} for c in cases}
    about = {"torch": torch_version, "cases": described}
    arrays = {"about": np.array(json.dumps(about, indent=1))}
    for c in cases:
        for field in ("pixels", "labels", "batches", "logits", "loss", "losses", "trained"):
            if getattr(c, field) is not None:
                arrays[f"{c.name}/{field}"] = np.asarray(getattr(c, field))
        for field in ("weights", "gradients"):
            for path, array in getattr(c, field).items():
                arrays[f"{c.name}/{field}/{path}"] = array
    np.savez_compressed(file, **arrays)


def read(file=FILE):
    """{name: Case}, as saved by `write`."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    cases = {}
    for name, described in json.loads(str(arrays.pop("about")))["cases"].items():
        fields = {"weights": {}, "gradients": {}}
        for key, array in arrays.items():
            case, field, *path = key.split("/")
            if case == name and path:
                fields[field][path[0]] = array
            elif case == name:
                fields[field] = array
        cases[name] = Case(name=name, **described, **fields)
    return cases


def random_weights(model, seed):
    """Weights at which everything counts: no zero head, gains that differ, attention with preferences."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, array in model.state_dict().items():
        inputs = array.size // array.shape[-1]  # of a matrix, or of a convolution's filter
        deviation = 1.5 * inputs**-0.5 if name.endswith("weight") else 0.3
        draw = deviation * rng.standard_normal(array.shape) + name.endswith(("gamma", "sharpness", "variance"))
        weights[name] = np.abs(draw) if name.endswith("variance") else draw
    return {name: draw.astype(np.float32) for name, draw in weights.items()}


def results(model, images, labels, smoothing):
    """tinyvit's (logits (…, K), loss, {path: gradient}) for one batch, as arrays."""
    logits = model(images)
    loss = cross_entropy(logits, labels, smoothing)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return logits.numpy(), loss.item(), gradients


def cross_entropy(logits, labels, smoothing):
    """The mean over images, or over all pixels of them: logits (B, K) or (B, N, K)."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), smoothing)


def evaluate(model, images):
    """tinyvit's logits in eval mode, an array."""
    with no_grad(), evaluating():
        return model(images).numpy()


def train(model, optimizer, batches, rates, smoothing, clip):
    """A step on each batch (images, labels) with its learning rate; returns the losses before them."""
    losses = []
    for (images, labels), rate in zip(batches, rates, strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels, smoothing)
        loss.backward()
        optimizer.clip_gradients(clip)
        optimizer.step(rate)
        losses.append(loss.item())
    return np.array(losses)


def relative(ours, theirs):
    """‖ours - theirs‖ / ‖theirs‖; where theirs is all zero, ‖ours‖: only zero agrees with zero."""
    assert ours.shape == theirs.shape
    distance, size = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    return distance / size if size else distance


def assert_close(ours, theirs, logits_tolerance, gradient_tolerance):
    """Compare two (logits, loss, gradients): logits by the largest difference, gradients by `relative`."""
    assert np.abs(ours[0] - theirs[0]).max() <= logits_tolerance
    assert abs(ours[1] - theirs[1]) <= logits_tolerance
    assert ours[2].keys() == theirs[2].keys()
    errors = {name: relative(ours[2][name], theirs[2][name]) for name in theirs[2]}
    too_large = {name: error for name, error in errors.items() if not error <= gradient_tolerance}
    assert not too_large, f"gradients further apart than {gradient_tolerance}: {too_large}"
