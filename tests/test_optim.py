"""Optimisers: the equations by hand, the flat buffer, the schedule."""

import numpy as np
import pytest

from tinyvit import functional, nn, optim, train, vit
from tinyvit.models import ResNet, ResNetConfig

rng = np.random.default_rng(0)


class Two(nn.Module):
    """A bias that does not decay, defined before a matrix that does."""

    def __init__(self):
        self.bias = nn.Parameter(np.array([1.0, -2.0], np.float32))
        self.matrix = nn.Parameter(np.array([[3.0], [4.0]], np.float32), decay=True)


class Stack(nn.Module):
    """The same in a list of blocks."""

    def __init__(self):
        self.blocks = [Two()]


def test_flat_buffer_holds_values_and_gradients_decaying_first():
    module = Two()
    flat = optim.FlatParameters(module)
    assert flat.names == ["matrix", "bias"] and flat.decaying == 2
    np.testing.assert_array_equal(flat.values, [3, 4, 1, -2])
    flat.values[2] = 7
    assert module.bias.data[0] == 7
    (module.bias * 3).sum().backward()
    np.testing.assert_array_equal(flat.gradients, [0, 0, 3, 3])


def test_adamw_by_hand(backend):
    """Three steps of the docstring's equations, in float64, for each entry."""
    module = Two()
    optimizer = optim.AdamW(module, lr=0.1, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.5)
    w, m, v = np.array([3.0, 4, 1, -2]), np.zeros(4), np.zeros(4)
    decay = np.array([0.5, 0.5, 0, 0])
    for t in range(1, 4):
        g = rng.standard_normal(4)
        optimizer.flat.gradients[...] = g
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w = w - 0.1 * decay * w - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        np.testing.assert_allclose(optimizer.flat.values, w, rtol=1e-5)


def test_sgd_by_hand(backend):
    module = Two()
    optimizer = optim.SGD(module, lr=0.1, momentum=0.9, weight_decay=0.5)
    w, u = np.array([3.0, 4, 1, -2]), np.zeros(4)
    for _ in range(3):
        g = rng.standard_normal(4)
        optimizer.flat.gradients[...] = g
        optimizer.step()
        u = 0.9 * u + g + np.array([0.5, 0.5, 0, 0]) * w
        w = w - 0.1 * u
        np.testing.assert_allclose(optimizer.flat.values, w, rtol=1e-5)


def test_orthogonal():
    """Singular vectors stay, each singular value goes five times through the polynomial; tall, wide, rank 1, zero."""
    rng = np.random.default_rng(1)  # whose square matrix has no singular value below 1/500 of its norm
    for shape in ((6, 6), (6, 20), (20, 6)):
        matrix = rng.standard_normal(shape)
        U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
        S /= np.sqrt((S**2).sum())
        for _ in range(5):
            S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
        np.testing.assert_allclose(optim.orthogonal(matrix), U * S @ Vt, atol=1e-5)
        assert 0.68 < S.min() and S.max() < 1.21
        assert optim.orthogonal(matrix.astype(np.float32)).dtype == np.float32
    assert not optim.orthogonal(np.zeros((3, 4), np.float32)).any()
    assert np.linalg.matrix_rank(optim.orthogonal(np.ones((3, 4)))) == 1


def test_muon_by_hand(backend):
    """Matrices inside blocks by the docstring's equations, a kernel of a convolution as a matrix, the rest by AdamW;
    on threads the same."""
    model, twin, third = (vit("digits", depth=1) for _ in range(3))
    settings = dict(lr=0.1, weight_decay=0.5)
    muon, adamw = optim.Muon(model, momentum=0.8, **settings), optim.AdamW(twin, **settings)
    threaded = optim.Muon(third, momentum=0.8, **settings)
    w = model.blocks[0].mlp.fc1.weight.data.astype(np.float64)
    m = np.zeros_like(w)
    with train.Shards(third, threaded.flat, 2, 2) as shards:
        for _ in range(3):
            g = rng.standard_normal(muon.flat.values.size).astype(np.float32)
            muon.flat.gradients[...] = adamw.flat.gradients[...] = threaded.flat.gradients[...] = g
            muon.step(), adamw.step(), threaded.step(map=shards.on_threads)
            m = 0.8 * m + 0.2 * model.blocks[0].mlp.fc1.weight.grad
            step = optim.orthogonal(0.8 * m + 0.2 * model.blocks[0].mlp.fc1.weight.grad)
            w = w * 0.95 - 0.1 * 0.2 * np.sqrt(max(w.shape)) * step
    np.testing.assert_allclose(model.blocks[0].mlp.fc1.weight.data, w, atol=1e-5)
    np.testing.assert_array_equal(threaded.flat.values, muon.flat.values)
    turned = [name for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True)
              if not np.array_equal(a.data, b.data)]  # fmt: skip
    inside = "attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2"
    assert turned == [f"blocks.0.{layer}.weight" for layer in inside]
    kernels = optim.Muon(ResNet(ResNetConfig((8, 8), 1, 10))).matrices
    assert all(columns in (16, 32, 64) for _, (_, columns) in kernels) and len(kernels) > 4


def test_which_parameters_decay():
    """Matrices do; biases, norms, the class token and the positions do not."""
    model = vit("digits", depth=1)
    decaying = [name for name, p in model.named_parameters() if p.decay]
    assert decaying == [
        "embedding.weight", "blocks.0.attention.qkv.weight", "blocks.0.attention.out.weight", "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight", "head.weight",
    ]  # fmt: skip


def test_clipping():
    optimizer = optim.SGD(Two())
    optimizer.flat.gradients[...] = [3, 0, 0, 4]
    assert optimizer.clip_gradients(10) == 5
    np.testing.assert_array_equal(optimizer.flat.gradients, [3, 0, 0, 4])
    assert optimizer.clip_gradients(1) == 5
    np.testing.assert_allclose(optimizer.flat.gradients, [0.6, 0, 0, 0.8], rtol=1e-6)
    optimizer.flat.gradients[...] = np.array([3e20, 0, 0, 4e20])  # its square is beyond float32
    optimizer.clip_gradients(1)
    np.testing.assert_allclose(optimizer.flat.gradients, [0.6, 0, 0, 0.8], rtol=1e-6)
    optimizer.flat.gradients[...] = 100
    optimizer.clip_gradients(0)
    assert (optimizer.flat.gradients == 100).all()


@pytest.mark.parametrize("make", [optim.AdamW, optim.Muon, optim.SGD])
def test_state_dict_lets_another_go_on(make):
    a, b = Stack(), Stack()
    first, second = make(a, lr=0.1), make(b, lr=0.1)
    gradients = rng.standard_normal((4, 4)).astype(np.float32)
    for g in gradients[:2]:
        first.flat.gradients[...] = g
        first.step()
    b.load_state_dict(a.state_dict())
    second.load_state_dict(first.state_dict())
    for g in gradients[2:]:
        for optimizer in (first, second):
            optimizer.flat.gradients[...] = g
            optimizer.step()
    np.testing.assert_array_equal(first.flat.values, second.flat.values)
    before = second.state_dict()
    misshapen = {name: np.zeros(3) for name in before} | {"steps": np.array(1)}
    for state in ({"steps": 1}, misshapen, before | {"steps": np.array(-1)}):
        with pytest.raises(ValueError, match="does not fit: see"):
            second.load_state_dict(state)
    assert all(np.array_equal(second.state_dict()[name], values) for name, values in before.items())


def test_step_before_backward_is_refused():
    model = vit("digits", depth=1)
    optimizer = optim.AdamW(model)
    loss = functional.cross_entropy(model(np.zeros((1, 8, 8, 1))), [0])
    with pytest.raises(RuntimeError, match="still needs: call loss.backward"):
        optimizer.step()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    "leave",
    [
        lambda model, optimizer: model.astype(np.float32),
        lambda model, optimizer: optim.AdamW(model),
        lambda model, optimizer: setattr(model.cls, "grad", None),
        lambda model, optimizer: setattr(model.cls, "grad", np.zeros_like(model.cls.data)),
    ],
    ids=["astype", "second optimiser", "no gradient", "another gradient"],
)
def test_a_step_that_would_train_nothing_is_refused(leave):
    model = vit("digits", depth=1)
    optimizer = optim.AdamW(model)
    optimizer.step()
    leave(model, optimizer)
    with pytest.raises(RuntimeError, match="step\\(\\) would not reach"):
        optimizer.step()


def test_frozen_parameters_stay_and_earlier_gradients_count():
    module = Two()
    module.matrix.requires_grad = False
    (module.bias * 3).sum().backward()
    optimizer = optim.SGD(module, lr=1.0, momentum=0.0, weight_decay=0.5)
    optimizer.step()
    assert module.matrix.data.tolist() == [[3.0], [4.0]] and module.bias.data.tolist() == [-2.0, -5.0]


def test_shared_parameters_are_one():
    """One parameter in two places: counted once, trained once, and shared in replicas too."""

    class Tied(nn.Module):
        def __init__(self):
            self.a = nn.Linear(2, 2, rng)
            self.b = self.a

    module = Tied()
    assert module.parameter_count() == 6 and optim.FlatParameters(module).values.size == 6
    twin = module.replica()
    assert twin.a is twin.b and twin.a.weight is not module.a.weight


def test_schedule():
    rates = [optim.warmup_cosine(t, 100, 0.1, 10) for t in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.01)
    assert rates[10] == 0.1 and rates[55] == pytest.approx(0.05) and 0 < rates[99] < 1e-4
    assert (np.diff(rates[10:]) < 0).all()
    assert optim.warmup_cosine(0, 0, 0.1, 0) == 0.1 and optim.warmup_cosine(100, 100, 0.1, 10, final=0.01) == 0.01


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda: optim.AdamW(Two(), lr=-1), ValueError),
        (lambda: optim.AdamW(Two(), betas=(1.0, 0.9)), ValueError),
        (lambda: optim.SGD(Two(), momentum=1), ValueError),
        (lambda: optim.Muon(Stack(), momentum=1), ValueError),
        (lambda: optim.Muon(Two()), ValueError),
        (lambda: optim.AdamW(nn.Dropout(0.1)), ValueError),
        (lambda: optim.AdamW(Two()).clip_gradients(-1), ValueError),
    ],
)
def test_errors(mistake, error):
    with pytest.raises(error):
        mistake()


def test_mixed_dtypes_are_refused():
    module = Two()
    module.matrix._array = module.matrix._array.astype(np.float64)
    with pytest.raises(TypeError, match="share one dtype"):
        optim.FlatParameters(module)
