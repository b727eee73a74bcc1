"""Attention-augmented convolution: shifts and nothing else decide, both halves are there, gradients through all."""

from dataclasses import replace

import numpy as np
import pytest

import tinyvit
from tinyvit import Tensor, functional, gradcheck, nn, optim
from tinyvit.models.augmented import AugmentedConfig, AugmentedConv2d, AugmentedNet, RelativeAttention2D

SMALL = AugmentedConfig(image_size=(4, 5), channels=2, classes=3, width=6, depth=2, attention=4, heads=2, groups=2)


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def attention(grid=(3, 4)):
    return RelativeAttention2D(5, 6, 2, np.random.default_rng(1), grid).astype(np.float64)


def test_attention_is_the_papers_equation():
    """Pair by pair: softmax of qᵢ · (k_j + r_rows + r_columns) / √K, and the mixing matrix (eq. 3)."""
    layer, (h, w), K = attention(), (3, 4), 3
    x, maps = random(1, h, w, 5), []
    out = layer(Tensor(x), maps=maps).data[0].reshape(h * w, 6)
    q, k, v = np.split(x[0].reshape(h * w, 5) @ layer.qkv.weight.data, 3, axis=1)
    read = np.empty((h * w, 6))
    for head in range(2):
        part = slice(head * K, (head + 1) * K)
        for i in range(h * w):
            scores = np.empty(h * w)
            for j in range(h * w):
                (yi, xi), (yj, xj) = divmod(i, w), divmod(j, w)
                r = layer.rows.data[yj - yi + h - 1] + layer.columns.data[xj - xi + w - 1]
                scores[j] = q[i, part] @ (k[j, part] + r) / np.sqrt(K)
            p = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(maps[0][0, head, i], p, rtol=1e-12)
            read[i, part] = p @ v[:, part]
    np.testing.assert_allclose(out, read @ layer.out.weight.data, rtol=1e-10)


def test_scores_depend_on_shifts_only():
    """Equal queries everywhere: what is added to the score of two tokens is the same one row and one column further."""
    layer, (h, w) = attention(), (3, 4)
    q = np.broadcast_to(random(2, 3), (1, h, w, 2, 3))
    scores = layer.shift_scores(Tensor(q)).data.reshape(2, h, w, h, w)
    np.testing.assert_allclose(scores[:, 1:, 1:, 1:, 1:], scores[:, :-1, :-1, :-1, :-1], rtol=1e-12)
    assert np.ptp(scores[:, 0, 0]) > 0.1


def test_the_first_channels_are_the_convolution_the_last_the_attention():
    layer = AugmentedConv2d(5, 8, 6, 2, np.random.default_rng(0), (3, 4)).astype(np.float64)
    x = Tensor(random(2, 3, 4, 5))
    expected = functional.conv2d(x, layer.convolution.weight, layer.convolution.bias, padding=1).data
    np.testing.assert_array_equal(layer(x).data[..., :2], expected)
    np.testing.assert_array_equal(layer(x).data[..., 2:], layer.attention(x).data)


@pytest.mark.parametrize("channels", [0, 8])
def test_all_or_no_channels_may_be_attention(channels):
    layer = AugmentedConv2d(5, 8, channels, 2, np.random.default_rng(0), (3, 4))
    assert (layer.convolution is None, layer.attention is None) == (channels == 8, channels == 0)
    assert layer(Tensor(random(2, 3, 4, 5, dtype=np.float32))).shape == (2, 3, 4, 8)


def test_attention_sees_what_the_window_does_not():
    """One corner changes: the convolution's channels in the opposite one stay, the attention's do not."""
    layer = AugmentedConv2d(1, 4, 2, 1, np.random.default_rng(0), (5, 5)).astype(np.float64)
    x = random(1, 5, 5, 1)
    changed = x.copy()
    changed[0, 0, 0] += 1
    moved = np.abs(layer(Tensor(changed)).data - layer(Tensor(x)).data)[0, 4, 4]
    assert (moved[:2] == 0).all() and (moved[2:] > 1e-4).all()


def test_gradcheck_layer(backend):
    layer = AugmentedConv2d(3, 6, 4, 2, np.random.default_rng(0), (3, 4)).astype(np.float64)
    errors = gradcheck(layer, Tensor(random(2, 3, 4, 3), requires_grad=True))
    assert {"attention.rows", "attention.columns", "attention.qkv.weight", "convolution.weight"} < set(errors)


def test_gradcheck_whole_model(backend):
    """With the norm's ReLU on, so the seed must not put a number within 1e-5 of 0; this one does not."""
    model = AugmentedNet(SMALL).astype(np.float64)
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data = rng.normal(0, 0.5, p.shape)

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self, x):
            return functional.cross_entropy(self.model(x), [1, 2, 0], 0.1)

    gradcheck(WithLoss(), Tensor(random(3, 4, 5, 2), requires_grad=True), h=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_initial_loss_is_ln_k(backend, stride):
    model = AugmentedNet(replace(SMALL, stride=stride))
    loss = functional.cross_entropy(model(random(3, 4, 5, 2, dtype=np.float32)), np.arange(3))
    assert loss.item() == pytest.approx(np.log(3), abs=1e-6)
    assert model.blocks[0].mix.attention.grid == ((4, 5) if stride == 1 else (2, 3))


@pytest.mark.parametrize("channels", [0, 8])
def test_overfits_a_batch(backend, channels):
    """Random labels on random images, all learnt by heart: nothing is disconnected."""
    model = AugmentedNet(AugmentedConfig(depth=1, attention=channels, width=24))
    x, y = random(16, 8, 8, 1, dtype=np.float32), np.random.default_rng(1).integers(0, 10, 16)
    optimizer = optim.AdamW(model, lr=2e-2, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert (model.predict(x).argmax(1) == y).all() and loss.item() < 0.1


def test_trains_and_loads(tmp_path):
    """`train.fit` takes it as it takes a ViT, and `tinyvit.load` gives it back."""
    data = tinyvit.data.load("digits")
    data = replace(data, train=data.train[:32])
    config = AugmentedConfig(attention=4, depth=1)
    run = tinyvit.train.fit(
        tinyvit.train.Recipe(epochs=1),
        data,
        tmp_path / "run",
        model=AugmentedNet(config),
        threads=1,
        say=str,
        bar=False,
    )
    loaded = tinyvit.load(run.folder)
    assert loaded.model.config == config
    x = random(2, 8, 8, 1, dtype=np.float32)
    np.testing.assert_array_equal(loaded.model.predict(x), run.model.predict(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention=7), "attention must be a whole number from 0 to the width 6, got 7"),
        (dict(heads=3), "heads must divide attention, got 3 and 4"),
        (dict(groups=4), "groups must divide width, got 4 and 6"),
        (dict(stride=0), "stride must be a whole number, at least 1, got 0"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_wrong_inputs():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"made for feature maps \(B, 3, 4, C\), got \(1, 4, 3, 5\)"):
        attention()(Tensor(random(1, 4, 3, 5)))
    with pytest.raises(ValueError, match="heads must divide the width of attention: 6 = 4 × 1.5"):
        RelativeAttention2D(5, 6, 4, rng, (3, 4))
    with pytest.raises(ValueError, match="from 0 to all of the 8 output channels, got 9"):
        AugmentedConv2d(5, 8, 9, 3, rng, (3, 4))
    with pytest.raises(ValueError, match=r"reads images \(B, 4, 5, 2\), got \(1, 4, 4, 2\)"):
        AugmentedNet(SMALL)(np.zeros((1, 4, 4, 2)))
