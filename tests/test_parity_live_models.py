"""The ViT's choices, ResNet, hybrid, Image GPT and what attention has of convolution, with PyTorch beside them.

Skipped where PyTorch is missing: pip install -e ".[parity]". The other side is `parity/torch_models.py`.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as TF  # noqa: E402
from parity import comparison  # noqa: E402
from parity.torch_models import TWINS, QuadraticTwin  # noqa: E402

from tinyvit import functional as F  # noqa: E402
from tinyvit.models.conv_attention import QuadraticAttention, attention_from_convolution  # noqa: E402
from tinyvit.models.igpt import ImageGPTClassifier  # noqa: E402
from tinyvit.nn import interpolate  # noqa: E402
from tinyvit.optim import SGD  # noqa: E402
from tinyvit.tensor import Tensor, no_grad  # noqa: E402

CASES = comparison.read(comparison.MODELS_FILE)
VIT = dict(image_size=(8, 12), patch=4, channels=3, classes=5, width=16, depth=2, heads=2, mlp=24)
RESNET = dict(kind="resnet", image_size=(9, 10), channels=2, classes=5)
HYBRID = VIT | dict(kind="hybrid", patch=1, depth=1, norm="group", blocks=(1, 1), widths=(8, 12))
IGPT = dict(kind="igpt", image_size=(5, 4), palette=7, width=12, depth=2, heads=3, mlp=20)
QUADRATIC = dict(kind="quadratic", image_size=(8, 12), patch=2, channels=2, classes=5, width=18, heads=9, mlp=20)
AUGMENTED = dict(kind="augmented", image_size=(7, 6), channels=2, classes=5, width=12, attention=6, heads=2, groups=3)
MODELS = {
    **{
        f"{positions} {pool} {registers}": VIT | dict(positions=positions, pool=pool, registers=registers)
        for positions in ("1d", "none", "2d", "sincos", "relative")
        for pool in ("class", "average")
        for registers in (0, 2)
    },
    "mlp head": VIT | dict(head="mlp"),
    "mlp head, relative, tanh": VIT | dict(head="mlp", positions="relative", gelu_tanh=True),
    "relative on one row": VIT | dict(positions="relative", image_size=(4, 20), pool="average"),
    "resnet20": RESNET | dict(norm="batch"),
    "resnet batch, stride without more channels": RESNET | dict(norm="batch", blocks=(1, 2), widths=(6, 6)),
    "resnet group": RESNET | dict(norm="group", blocks=(2, 2, 1), widths=(8, 16, 24)),
    "resnet group, odd": RESNET | dict(norm="group", blocks=(1, 2), widths=(12, 9), image_size=(7, 5)),
    "hybrid": HYBRID,
    "hybrid, resnet batch, two stages down, patches": HYBRID
    | dict(norm="batch", image_size=(22, 12), patch=3, blocks=(1, 1, 1), widths=(6, 8, 8)),
    "hybrid, relative, no class token": HYBRID | dict(positions="relative", pool="average", registers=1),
    "igpt": IGPT,
    "igpt wide": IGPT | dict(image_size=(3, 7), palette=3, width=20, heads=1, mlp=8),
    "quadratic": QUADRATIC,
    "quadratic, four heads": QUADRATIC | dict(patch=4, heads=4, width=16),
    "augmented": AUGMENTED,
    "augmented, stride 2": AUGMENTED | dict(stride=2, heads=3, image_size=(9, 8)),
    "augmented, attention only": AUGMENTED | dict(attention=12, depth=1),
    "augmented, convolution only": AUGMENTED | dict(attention=0),
}
FLOAT32 = dict(dtype="float32", logits=1e-5, gradients=1e-4)
FLOAT64 = dict(dtype="float64", logits=1e-10, gradients=1e-10)

pytestmark = pytest.mark.parity


def example(fields, count=6, seed=1):
    """(model with weights at which everything counts, images, labels)"""
    rng = np.random.default_rng(seed)
    model = comparison.build(**fields)
    model.load_state_dict(comparison.random_weights(model, seed))
    c = model.config
    if fields.get("kind") == "igpt":
        pixels = rng.integers(0, c.palette, (count, *c.image_size))
        return model, pixels, pixels
    images = rng.standard_normal((count, *c.image_size, c.channels)).astype(np.float32)
    return model, images, rng.integers(0, c.classes, count)


def twin_of(model, fields, dtype):
    return TWINS[fields.get("kind", "vit")](model.config, model.state_dict(), getattr(torch, dtype))


# ---------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("tolerance", [FLOAT32, FLOAT64], ids=lambda t: t["dtype"])
@pytest.mark.parametrize("name", MODELS)
def test_model(backend, name, tolerance):
    """Logits, loss and every gradient while training."""
    model, images, labels = example(MODELS[name])
    dtype, logits, gradients = tolerance.values()
    theirs = twin_of(model, MODELS[name], dtype).reference(images, labels, 0.1)
    ours = comparison.results(model.astype(dtype), images, labels, 0.1)
    comparison.assert_close(ours, theirs, logits, gradients)


@pytest.mark.parametrize("name", [name for name, fields in MODELS.items() if "norm" in fields])
def test_steps_and_what_they_leave_for_use(backend, name):
    """20 steps of SGD in float64, then the running statistics and the logits that use them."""
    fields = MODELS[name]
    model, images, labels = example(fields, 24)
    twin = twin_of(model, fields, "float64")
    model.astype(np.float64)
    np.testing.assert_allclose(comparison.evaluate(model, images), twin.evaluate(images), rtol=0, atol=1e-10)
    batches = [(images[i::3], labels[i::3]) for i in range(3)] * 6 + [(images[:1], labels[:1]), (images, labels)]
    run = batches, [0.01] * 20, 0.1, 0.0
    theirs = twin.train(twin.sgd(0.01, 0.9), *run)
    ours = comparison.train(model, SGD(model, momentum=0.9, weight_decay=0.01), *run)
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)
    state = model.state_dict()
    for path, statistic in twin.statistics.items():
        np.testing.assert_allclose(state[path], statistic.numpy(), rtol=1e-7, atol=1e-9, err_msg=path)
    assert ("batch" in fields["norm"]) == bool(twin.statistics)
    np.testing.assert_allclose(comparison.evaluate(model, images), twin.evaluate(images), rtol=0, atol=1e-7)


def test_next_pixel_reads_no_later_pixel():
    """Both sides: a pixel changed moves the logits behind it, and none up to its own place."""
    model, pixels, _ = example(IGPT, 1)
    changed = pixels.copy()
    changed[0, 2, 1] = (changed[0, 2, 1] + 1) % 7  # the tenth of 20
    twin = twin_of(model, IGPT, "float32")
    for logits in (lambda x: model(x).data, lambda x: twin.logits(x).detach().numpy()):
        moved = np.abs(logits(changed) - logits(pixels)).max(axis=(0, 2)) > 0
        assert not moved[:10].any() and moved[10:].all()


def test_image_gpt_as_a_classifier(backend):
    """The mean of the encoded tokens, and gradients through all of it."""
    model, pixels, _ = example(IGPT)
    classifier = ImageGPTClassifier(model, 5)
    classifier.load_state_dict(comparison.random_weights(classifier, 2))  # those of `model` too
    classifier.astype(np.float64)
    twin, labels = twin_of(model, IGPT, "float64"), np.arange(6) % 5
    _, loss, gradients = comparison.results(classifier, pixels, labels, 0.0)
    weight, bias = (torch.tensor(p.numpy(), requires_grad=True) for p in classifier.head.parameters())
    theirs = TF.cross_entropy(twin.encoded(pixels).mean(dim=1) @ weight + bias, torch.tensor(labels))
    theirs.backward()
    assert abs(loss - theirs.item()) <= 1e-10
    their_gradients = {f"gpt.{path}": gradient for path, gradient in twin.gradients().items()}
    their_gradients |= {"head.weight": weight.grad.numpy(), "head.bias": bias.grad.numpy()}
    for path, gradient in their_gradients.items():  # all but the head's for pixels, which a classifier does not ask
        assert comparison.relative(gradients[path], gradient) <= 1e-10, path


# ---------------------------------------------------------------------------- attention and convolution


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_constructed_attention_is_torchs_convolution(backend, kernel, dtype, tolerance):
    """On random images, the border included, where torch pads with zeros."""
    rng = np.random.default_rng(kernel)
    weight = (rng.standard_normal((kernel, kernel, 3, 4)) / kernel / 3**0.5).astype(dtype)
    x, bias = rng.standard_normal((2, 8, 7, 3)).astype(dtype), rng.standard_normal(4).astype(dtype)
    with no_grad():
        ours = attention_from_convolution(weight, bias)(Tensor(x)).data
    torch_x, torch_weight = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(weight).permute(3, 2, 0, 1)
    theirs = TF.conv2d(torch_x, torch_weight, torch.tensor(bias), padding="same").permute(0, 2, 3, 1).numpy()
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tolerance", [FLOAT32, FLOAT64], ids=lambda t: t["dtype"])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_quadratic_attention(backend, padding, tolerance):
    """Values and gradients, centres and α among them, for a gradient that differs from place to place."""
    dtype, values, gradients = tolerance.values()
    rng = np.random.default_rng(padding)
    layer = QuadraticAttention(3, 5, 4, rng, head_width=2, padding=padding)
    layer.load_state_dict(comparison.random_weights(layer, 1))
    state = {f"a.{path}": array for path, array in layer.state_dict().items()}
    twin = QuadraticTwin(None, state, getattr(torch, dtype))
    x = rng.standard_normal((2, 4, 6, 3)).astype(dtype)
    g = rng.standard_normal((2, 4, 6, 5)).astype(dtype)
    out = layer.astype(dtype)(Tensor(x))
    out.backward(g)
    theirs = twin.quadratic_attention(torch.tensor(x).flatten(1, 2), "a", 4, (4, 6), padding)
    theirs.backward(torch.tensor(g).flatten(1, 2))
    np.testing.assert_allclose(out.data.reshape(2, 24, 5), theirs.detach().numpy(), rtol=0, atol=values)
    their_gradients = twin.gradients()
    for path, p in layer.named_parameters():
        assert comparison.relative(p.grad, their_gradients[f"a.{path}"]) <= gradients, path


# ---------------------------------------------------------------------------- ops


def channels_first(op):
    """A torch op on (B, C, h, w) as one on (B, h, w, C)."""
    return lambda x, *parameters: op(x.permute(0, 3, 1, 2), *parameters).permute(0, 2, 3, 1)


def theirs_standardised(weight):
    """As BiT's PyTorch code has it."""
    w = weight.permute(3, 2, 0, 1)
    variance, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return ((w - mean) / torch.sqrt(variance + 1e-10)).permute(2, 3, 1, 0)


def theirs_biased_attention(qkv, bias):
    q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return TF.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


LATER = np.triu(np.full((5, 5), -np.inf), 1)
RUNNING = np.array([0.5, -1.0, 0.0, 2.0, 0.1, 0.3]), np.array([0.5, 1.0, 2.0, 0.1, 3.0, 0.7])
MAP, C = (3, 7, 6, 6), (6,)
OPS = {  # ours, theirs, the inputs' shapes
    "group_norm": (
        lambda x, g, b: F.group_norm(x, g, b, groups=3),
        channels_first(lambda x, g, b: TF.group_norm(x, 3, g, b, 1e-6)),
        [MAP, C, C],
    ),
    "group_norm_relu": (
        lambda x, g, b: F.group_norm(x, g, b, groups=2, relu=True),
        channels_first(lambda x, g, b: TF.relu(TF.group_norm(x, 2, g, b, 1e-6))),
        [MAP, C, C],
    ),
    "batch_norm": (
        F.batch_norm, channels_first(lambda x, g, b: TF.batch_norm(x, None, None, g, b, True)), [MAP, C, C]
    ),
    "batch_norm_relu": (
        lambda x, g, b: F.batch_norm(x, g, b, relu=True),
        channels_first(lambda x, g, b: TF.relu(TF.batch_norm(x, None, None, g, b, True))),
        [MAP, C, C],
    ),
    "batch_norm_in_use": (
        lambda x, g, b: F.batch_norm(x, g, b, RUNNING),
        channels_first(lambda x, g, b: TF.batch_norm(x, *map(torch.tensor, RUNNING), g, b)),
        [MAP, C, C],
    ),
    "standardise": (F.standardise, theirs_standardised, [(3, 2, 4, 5)]),
    "biased_attention": (
        lambda qkv, bias: F.biased_attention(qkv, bias, heads=3), theirs_biased_attention, [(2, 5, 36), (2, 3, 5, 5)]
    ),
    "biased_attention_shared": (
        lambda qkv, bias: F.biased_attention(qkv, bias, heads=3), theirs_biased_attention, [(2, 5, 36), (3, 5, 5)]
    ),
    "causal_attention": (
        lambda qkv: F.biased_attention(qkv, LATER, heads=3),
        lambda qkv: theirs_biased_attention(qkv, torch.tensor(LATER)),
        [(2, 5, 36)],
    ),
    "embedding": (
        lambda table: F.embedding(table, np.array([[0, 3, 3], [1, 0, 3]])),
        lambda table: TF.embedding(torch.tensor([[0, 3, 3], [1, 0, 3]]), table),
        [(5, 4)],
    ),
}  # fmt: skip
for size, stride, padding in [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0), (2, 3, 0)]:
    OPS[f"max_pool_{size}_stride{stride}_padding{padding}"] = (
        lambda x, size=size, stride=stride, padding=padding: F.max_pool(x, size=size, stride=stride, padding=padding),
        channels_first(lambda x, size=size, stride=stride, padding=padding: TF.max_pool2d(x, size, stride, padding)),
        [MAP],
    )
    OPS[f"average_pool_{size}_stride{stride}"] = (
        lambda x, size=size, stride=stride: F.average_pool(x, size=size, stride=stride),
        channels_first(lambda x, size=size, stride=stride: TF.avg_pool2d(x, size, stride)),
        [MAP],
    )


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


TORCH_MODES = {
    "corners": dict(mode="bilinear", align_corners=True),
    "bilinear": dict(mode="bilinear", align_corners=False),
    "bicubic": dict(mode="bicubic", align_corners=False),
}


@pytest.mark.parametrize("old, new", [((4, 4), (8, 8)), ((3, 5), (7, 4)), ((8, 8), (3, 5)), ((1, 4), (3, 1))], ids=str)
@pytest.mark.parametrize("mode", TORCH_MODES)
def test_interpolation_of_positions(mode, old, new):
    """To finer and to coarser grids; torch's kernels for a coarser one are not widened unless asked to."""
    grid = np.random.default_rng(0).standard_normal((*old, 3))
    theirs = TF.interpolate(torch.tensor(grid).permute(2, 0, 1)[None], new, **TORCH_MODES[mode])[0].permute(1, 2, 0)
    np.testing.assert_allclose(interpolate(grid, new, mode), theirs.numpy(), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------- the stored vectors


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_what_this_torch_computes(name):
    """Vectors that someone edited, or that another version of PyTorch contradicts."""
    case = CASES[name]
    twin = TWINS[case.config.get("kind", "vit")](case.model().config, case.weights, torch.float64)
    theirs = twin.reference(*case.batch(), case.recipe["smoothing"])
    comparison.assert_close((case.logits, case.loss, case.gradients), theirs, 1e-8, 1e-6)
    twin = TWINS[case.config.get("kind", "vit")](case.model().config, case.weights, torch.float64)
    np.testing.assert_allclose(case.losses, twin.train(twin.sgd(**case.sgd()), *case.run()), rtol=1e-6)
    np.testing.assert_allclose(case.trained, twin.evaluate(case.batch()[0]), rtol=0, atol=1e-6)
