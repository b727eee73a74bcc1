"""tinyvit computes what PyTorch computes, op by op, model by model and step by step, with PyTorch beside it.

Skipped where PyTorch is missing: pip install -e ".[parity]". The other side is `parity/torch_twin.py`;
`test_parity_live_models.py` has the ViT's choices and the other models.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as TF  # noqa: E402
from parity import comparison  # noqa: E402
from parity.torch_models import ViTTwin  # noqa: E402

from tinyvit import functional as F  # noqa: E402
from tinyvit.data import load  # noqa: E402
from tinyvit.data.dataset import normalise  # noqa: E402
from tinyvit.models import ViT, ViTConfig  # noqa: E402
from tinyvit.nn import EncoderBlock, Module, Parameter  # noqa: E402
from tinyvit.optim import SGD, AdamW, FlatParameters, Muon, warmup_cosine  # noqa: E402
from tinyvit.tensor import Tensor  # noqa: E402
from tinyvit.train import Shards  # noqa: E402

CASES = comparison.read()
MODELS = {
    "grey": dict(image_size=(8, 8), patch=2, width=16, depth=2, heads=4, mlp=32),
    "colour": dict(image_size=(12, 8), patch=4, channels=3, classes=5, width=18, depth=1, heads=3, mlp=40),
    "wide": dict(image_size=(8, 12), patch=2, channels=2, classes=2, width=24, depth=2, heads=2, mlp=24),
    "tanh": dict(image_size=(8, 8), patch=4, width=20, depth=3, heads=1, mlp=33, gelu_tanh=True),
}

pytestmark = pytest.mark.parity


@pytest.fixture(params=MODELS)
def config(request):
    return ViTConfig(**MODELS[request.param])


def example(config, count, seed=1):
    """(model with weights at which everything counts, images, labels)"""
    rng = np.random.default_rng(seed)
    model = ViT(config)
    model.load_state_dict(comparison.random_weights(model, seed))
    images = rng.standard_normal((count, *config.image_size, config.channels)).astype(np.float32)
    return model, images, rng.integers(0, config.classes, count)


# ---------------------------------------------------------------------------- the model


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_model_in_float32(backend, config, smoothing):
    """Logits, loss and every gradient of the model as it is trained."""
    model, images, labels = example(config, 7)
    theirs = ViTTwin(config, model.state_dict()).reference(images, labels, smoothing)
    comparison.assert_close(comparison.results(model, images, labels, smoothing), theirs, 1e-5, 1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_model_in_float64(backend, config, smoothing):
    """The same where rounding cannot hide an equation that is off by a little."""
    model, images, labels = example(config, 7)
    theirs = ViTTwin(config, model.state_dict(), torch.float64).reference(images, labels, smoothing)
    ours = comparison.results(model.astype(np.float64), images, labels, smoothing)
    comparison.assert_close(ours, theirs, 1e-10, 1e-10)
    for name, gradient in ours[2].items():
        if name.endswith("qkv.bias"):  # one number added to all of a row's scores: softmax does not see it
            q, k, v = np.split(gradient, 3)
            assert np.linalg.norm(k) <= 1e-12 * np.linalg.norm(v)


def test_new_model(backend):
    """A zero head stops every gradient but its own: exactly zero on both sides."""
    config = ViTConfig(**MODELS["grey"])
    _, images, labels = example(config, 7)
    model = ViT(config)
    theirs = ViTTwin(config, model.state_dict()).reference(images, labels, 0.0)
    ours = comparison.results(model, images, labels, 0.0)
    comparison.assert_close(ours, theirs, 1e-5, 1e-4)
    assert {name for name, gradient in ours[2].items() if gradient.any()} == {"head.weight", "head.bias"}


def test_block_is_torchs_encoder_layer(backend):
    """Our reading of the encoder and the twin's could share a mistake; PyTorch's own layer is a third."""
    rng = np.random.default_rng(0)
    block = EncoderBlock(12, 3, 20, rng).astype(np.float64)
    for parameter in block.parameters():
        parameter.data = rng.standard_normal(parameter.shape)
    layer = torch.nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    names = {
        "norm1.gamma": "norm1.weight", "norm1.beta": "norm1.bias",
        "attention.qkv.weight": "self_attn.in_proj_weight", "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out.weight": "self_attn.out_proj.weight", "attention.out.bias": "self_attn.out_proj.bias",
        "norm2.gamma": "norm2.weight", "norm2.beta": "norm2.bias",
        "mlp.fc1.weight": "linear1.weight", "mlp.fc1.bias": "linear1.bias",
        "mlp.fc2.weight": "linear2.weight", "mlp.fc2.bias": "linear2.bias",
    }  # fmt: skip
    layer.load_state_dict({names[name]: torch.tensor(a.T.copy()) for name, a in block.state_dict().items()})
    z = rng.standard_normal((2, 5, 12))
    theirs = layer(torch.tensor(z)).detach().numpy()
    np.testing.assert_allclose(block(Tensor(z)).data, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [13, 3])
def test_four_shards_make_the_whole_batchs_gradient(backend, count):
    """Shards of unequal size, and fewer images than shards."""
    config = ViTConfig(**MODELS["grey"])
    model, images, labels = example(config, count)
    _, loss, gradients = ViTTwin(config, model.state_dict(), torch.float64).reference(images, labels, 0.1)
    flat = FlatParameters(model)
    with Shards(model, flat, shards=4, threads=2) as shards:
        our_loss, _ = shards.gradient(images, labels, smoothing=0.1)
    assert abs(our_loss - loss) <= 1e-5
    for name, parameter in model.named_parameters():
        assert comparison.relative(parameter.grad, gradients[name]) <= 1e-4, name


# ---------------------------------------------------------------------------- op by op


def theirs_attention(qkv, heads=3):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return TF.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def theirs_conv2d(stride, padding):
    def conv2d(x, weight, bias):
        y = TF.conv2d(x.permute(0, 3, 1, 2), weight.permute(3, 2, 0, 1), bias, stride, padding)
        return y.permute(0, 2, 3, 1)

    return conv2d


LABELS = np.array([2, 0, 4, 4, 1, 3])
OPS = {  # ours, theirs, the inputs' shapes
    "linear": (F.linear, lambda x, w, b: TF.linear(x, w.T, b), [(2, 5, 4), (4, 3), (3,)]),
    "layer_norm": (F.layer_norm, lambda x, g, b: TF.layer_norm(x, (7,), g, b, 1e-6), [(2, 5, 7), (7,), (7,)]),
    "gelu": (F.gelu, TF.gelu, [(4, 37)]),
    "gelu_tanh": (lambda x: F.gelu(x, tanh=True), lambda x: TF.gelu(x, approximate="tanh"), [(4, 37)]),
    "softmax": (F.softmax, lambda x: TF.softmax(x, -1), [(3, 4, 9)]),
    "attention": (lambda x: F.attention(x, heads=3), theirs_attention, [(2, 5, 36)]),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, LABELS), lambda x: TF.cross_entropy(x, torch.tensor(LABELS)), [(6, 5)]
    ),
    "cross_entropy_smoothed": (
        lambda x: F.cross_entropy(x, LABELS, 0.1),
        lambda x: TF.cross_entropy(x, torch.tensor(LABELS), label_smoothing=0.1),
        [(6, 5)],
    ),
}  # fmt: skip
WINDOWS = [(3, 3, 1, 0), (3, 3, 1, 1), (3, 3, 2, 1), (5, 2, 3, 2), (1, 1, 2, 0), (4, 4, 4, 0)]
OPS |= {
    f"conv2d_{kh}x{kw}_stride{stride}_padding{padding}": (
        lambda x, w, b, stride=stride, padding=padding: F.conv2d(x, w, b, stride=stride, padding=padding),
        theirs_conv2d(stride, padding),
        [(2, 9, 8, 3), (kh, kw, 3, 4), (4,)],
    )
    for kh, kw, stride, padding in WINDOWS
}


@pytest.mark.parametrize("name", OPS)
def test_op(backend, name):
    """One op's values and the derivative by each input, for a gradient that differs from place to place."""
    ours, theirs, shapes = OPS[name]
    rng = np.random.default_rng(0)
    arrays = [2 * rng.standard_normal(shape) for shape in shapes]
    our_inputs = [Tensor(array, requires_grad=True) for array in arrays]
    their_inputs = [torch.tensor(array, requires_grad=True) for array in arrays]
    our_out, their_out = ours(*our_inputs), theirs(*their_inputs)
    np.testing.assert_allclose(our_out.data, their_out.detach().numpy(), rtol=0, atol=1e-10)
    g = rng.standard_normal(our_out.shape)
    our_out.backward(g)
    their_out.backward(torch.tensor(g))
    for x, y in zip(our_inputs, their_inputs, strict=True):
        np.testing.assert_allclose(x.grad, y.grad.numpy(), rtol=0, atol=1e-10)


def test_attention_maps(backend):
    """Rows of the maps are tokens that read, columns the tokens that are read."""
    qkv, maps = np.random.default_rng(0).standard_normal((2, 5, 36)), []
    F.attention(Tensor(qkv), heads=3, maps=maps)
    q, k, _ = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in torch.tensor(qkv).chunk(3, dim=-1))
    np.testing.assert_allclose(maps[0], torch.softmax(q @ k.mT / 2, dim=-1).numpy(), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------- training


def digits_run(lr, steps=50, batch=32):
    """(batches, learning rates, smoothing, clip) on the embedded digits."""
    digits = load("digits")
    order = np.random.default_rng(0).permutation(len(digits.train))
    parts = [digits.train[places] for places in np.resize(order, (steps, batch))]
    batches = [(normalise(part.images, digits.mean, digits.std), part.labels) for part in parts]
    return batches, [warmup_cosine(step, steps, lr, 10) for step in range(steps)], 0.1, 1.0


def test_fifty_steps_of_adamw(backend):
    """The whole step on real images from a fresh model, as `fit` takes it."""
    config = ViTConfig(width=16, depth=2, mlp=32)
    model = ViT(config)
    twin = ViTTwin(config, model.state_dict())
    recipe = dict(weight_decay=0.3, betas=(0.9, 0.95), eps=1e-8)
    theirs = twin.train(twin.adamw(**recipe), *digits_run(lr=3e-3))
    ours = comparison.train(model, AdamW(model, **recipe), *digits_run(lr=3e-3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_fifty_steps_of_sgd(backend):
    """The same for momentum, whose velocity sums without 1 - μ, and for decay as a term of the gradient."""
    config = ViTConfig(width=16, depth=2, mlp=32)
    model = ViT(config)
    twin = ViTTwin(config, model.state_dict())
    run = digits_run(lr=0.06)
    theirs = twin.train(torch.optim.SGD(twin.groups(0.01), momentum=0.9), *run)
    ours = comparison.train(model, SGD(model, momentum=0.9, weight_decay=0.01), *run)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


class Pair(Module):
    """A parameter that decays and one that does not."""

    def __init__(self, rng):
        self.weight = Parameter(rng.standard_normal(30), decay=True, dtype=np.float64)
        self.bias = Parameter(rng.standard_normal(20), dtype=np.float64)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimiser_update_by_update(backend, name):
    """Parameters after each of 20 updates from given gradients, some near zero, where eps and decay show."""
    rng = np.random.default_rng(0)
    model = Pair(rng)
    theirs = [torch.tensor(p.numpy()) for p in (model.weight, model.bias)]
    groups = [dict(params=theirs[:1], weight_decay=0.3), dict(params=theirs[1:], weight_decay=0.0)]
    if name == "adamw":
        ours = AdamW(model, lr=0.01, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.3)
        optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-4)
    else:
        ours = SGD(model, lr=0.01, momentum=0.8, weight_decay=0.3)
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.8)
    for _ in range(20):
        for p, q in zip((model.weight, model.bias), theirs, strict=True):
            p.grad[...] = rng.standard_normal(p.shape) * 10.0 ** rng.uniform(-6, 0, p.shape)
            q.grad = torch.tensor(p.grad)
        ours.step()
        optimizer.step()
        for p, q in zip((model.weight, model.bias), theirs, strict=True):
            np.testing.assert_allclose(p.data, q.numpy(), rtol=0, atol=1e-10)


class Matrix(Module):
    def __init__(self, rng, shape):
        self.weight = Parameter(rng.standard_normal(shape), decay=True, dtype=np.float32)


class Matrices(Module):
    """A wide matrix and a tall one, where Muon looks for them."""

    def __init__(self, rng):
        self.blocks = [Matrix(rng, shape) for shape in ((6, 14), (14, 6))]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs PyTorch 2.9")
def test_muon_update_by_update(monkeypatch):
    """As above. PyTorch makes momenta orthogonal in bfloat16, which would hide what is compared: here in float32. No
    gradient is as small as 1e-7, which we add to its norm and PyTorch takes for the least norm there is."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    rng = np.random.default_rng(0)
    model = Matrices(rng)
    theirs = [torch.tensor(p.numpy()) for p in model.parameters()]
    ours = Muon(model, lr=0.01, momentum=0.8, weight_decay=0.3)
    optimizer = torch.optim.Muon(theirs, 0.01, 0.3, momentum=0.8, adjust_lr_fn="match_rms_adamw")
    for _ in range(20):
        for p, q in zip(model.parameters(), theirs, strict=True):
            p.grad[...] = rng.standard_normal(p.shape) * 10.0 ** rng.uniform(-2, 0)
            q.grad = torch.tensor(p.grad)
        ours.step()
        optimizer.step()
        for p, q in zip(model.parameters(), theirs, strict=True):
            np.testing.assert_allclose(p.data, q.numpy(), rtol=0, atol=1e-5)


def test_clipping(backend):
    """A gradient that is too long gets the norm asked for, a short one stays; torch adds 1e-6 to the norm."""
    rng = np.random.default_rng(0)
    model = Pair(rng)
    optimizer = AdamW(model)
    for size in (10.0, 0.01):
        optimizer.flat.gradients[...] = size * rng.standard_normal(50)
        theirs = torch.zeros(50, dtype=torch.float64)
        theirs.grad = torch.tensor(optimizer.flat.gradients)
        norm = torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        assert optimizer.clip_gradients(1.0) == pytest.approx(norm.item(), rel=1e-12)
        np.testing.assert_allclose(optimizer.flat.gradients, theirs.grad.numpy(), rtol=2e-6)


def test_schedule():
    """Learning rates are those of torch's LinearLR followed by CosineAnnealingLR."""
    total, peak, warmup = 40, 0.003, 8
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], peak)
    schedules = torch.optim.lr_scheduler
    up = schedules.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    down = schedules.CosineAnnealingLR(optimizer, total - warmup)
    schedule = schedules.SequentialLR(optimizer, [up, down], [warmup])
    for step in range(total):
        assert warmup_cosine(step, total, peak, warmup) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


# ---------------------------------------------------------------------------- the stored vectors


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_what_this_torch_computes(name):
    """Vectors that someone edited, or that another version of PyTorch contradicts."""
    case = CASES[name]
    config = ViTConfig(**case.config)
    twin = ViTTwin(config, case.weights, torch.float64)
    theirs = twin.reference(*case.batch(), case.recipe["smoothing"])
    comparison.assert_close((case.logits, case.loss, case.gradients), theirs, 1e-5, 1e-5)
    np.testing.assert_allclose(case.losses, twin.train(twin.adamw(**case.adamw()), *case.run()), rtol=1e-5)
