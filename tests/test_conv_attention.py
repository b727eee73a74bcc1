"""Attention as convolution: the constructed equality, what a head's parabola means, gradients through centres."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import Circle

import tinyvit
from tinyvit import Tensor, functional, gradcheck, nn, optim, viz
from tinyvit.models.conv_attention import QuadraticAttention, QuadraticConfig, QuadraticNet, attention_from_convolution

SMALL = QuadraticConfig(image_size=(4, 6), patch=2, channels=2, classes=3, width=8, depth=2, heads=4, mlp=8)


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layer(heads=2, channels=3, width=4, head_width=5, padding=0):
    return QuadraticAttention(channels, width, heads, np.random.default_rng(1), head_width, padding).astype(np.float64)


def randomised(model):
    """In float64, and away from the zero head, which would hide what is below it."""
    rng = np.random.default_rng(0)
    for p in model.astype(np.float64).parameters():
        p.data = rng.normal(0, 0.5, p.shape)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "channels", "width"), [(1, 2, 3), (3, 1, 1), (3, 3, 4), (3, 8, 2), (5, 2, 3)])
def test_equals_a_convolution(backend, size, channels, width, dtype):
    """To 1e-5 on random images, at the border as inside, also where the window is larger than the image."""
    weight, bias = random(size, size, channels, width, dtype=dtype), random(width, seed=1, dtype=dtype)
    attention = attention_from_convolution(weight, bias)
    assert attention.heads == size**2 and attention.centres.dtype == dtype
    for h, w in ((6, 6), (5, 9), (2, 3), (1, 1)):
        x = Tensor(random(2, h, w, channels, seed=2, dtype=dtype))
        expected = functional.conv2d(x, Tensor(weight), Tensor(bias), padding=size // 2).data
        np.testing.assert_allclose(attention(x).data, expected, rtol=1e-5, atol=1e-5)
        if dtype == np.float64:  # where only rounding is left
            np.testing.assert_allclose(attention(x).data, expected, rtol=1e-12, atol=1e-12)


def test_a_small_alpha_is_no_convolution():
    """A head that looks at its neighbours too: the error is about 4 e^-α of what it reads."""
    weight, x = random(3, 3, 2, 2), Tensor(random(1, 7, 7, 2, seed=1))
    expected = functional.conv2d(x, Tensor(weight), None, padding=1).data
    errors = [np.abs(attention_from_convolution(weight, alpha=a)(x).data - expected).max() for a in (2, 7, 12)]
    assert errors[0] > 0.1 > errors[1] > 1e-3 > errors[2]
    assert errors[1] / errors[2] == pytest.approx(np.exp(5), rel=0.1)


def test_bias_may_be_missing_and_a_tensor_may_be_the_weight():
    weight, x = random(3, 3, 2, 2), Tensor(random(1, 4, 4, 2))
    expected = functional.conv2d(x, Tensor(weight), None, padding=1).data
    np.testing.assert_allclose(attention_from_convolution(Tensor(weight))(x).data, expected, atol=1e-12)


def test_one_head_that_looks_one_pixel_to_the_right():
    """By hand: with padding the last column reads zeros, without it stays where it is, the nearest that there is."""
    x = np.arange(6.0).reshape(1, 2, 3, 1)
    for padding, last in ((1, [0, 0]), (0, [2, 5])):
        head = layer(heads=1, channels=1, width=1, head_width=1, padding=padding)
        head.centres.data, head.sharpness.data = [[0, 1]], 50.0
        head.value.data = head.out.weight.data = 1.0
        np.testing.assert_allclose(head(Tensor(x)).data[0, :, :, 0], [[1, 2, last[0]], [4, 5, last[1]]], atol=1e-12)


def test_maps_are_the_papers_softmax():
    """Scores v · r with v = -α (1, -2 Δ) and r = (‖δ‖², δ), key by key: the parabola up to a constant (section 3.3)."""
    attention, (h, w) = layer(), (3, 2)
    attention.sharpness.data = [0.5, 1.3]
    maps = attention.maps(h, w).data
    for head in range(2):
        alpha, centre = attention.sharpness.data[head], attention.centres.data[head]
        v = -alpha * np.array([1, *(-2 * centre)])
        for query in range(h * w):
            shift = [np.array(divmod(key, w)) - divmod(query, w) for key in range(h * w)]
            scores = np.exp([v @ [d @ d, *d] for d in shift])
            np.testing.assert_allclose(maps[head, query], scores / scores.sum(), rtol=1e-12)


def test_maps_with_padding_sum_to_one():
    maps = layer(padding=2).maps(3, 4).data
    assert maps.shape == (2, 12, 7 * 8)
    np.testing.assert_allclose(maps.sum(axis=-1), 1)


def test_heads_are_mixed_by_one_matrix():
    """Σ_h A_h X V_h W_h + b, written out: the layer as in the paper's equation for multi-head attention."""
    attention = layer()
    x = random(2, 3, 2, 3)
    maps, values = attention.maps(3, 2).data, attention.value.data.reshape(3, 2, 5)
    mix = attention.out.weight.data.reshape(2, 5, 4)
    parts = [maps[head] @ x.reshape(2, 6, 3) @ values[:, head] @ mix[head] for head in range(2)]
    expected = sum(parts).reshape(2, 3, 2, 4) + attention.out.bias.data
    np.testing.assert_allclose(attention(Tensor(x)).data, expected, rtol=1e-12)


def test_what_moves_moves_along():
    """A blob far from the border, moved by two pixels: with padding, so does the result."""
    attention = attention_from_convolution(random(3, 3, 2, 3))
    x = np.zeros((1, 9, 9, 2))
    x[:, 2:5, 2:5] = random(1, 3, 3, 2, seed=3)
    moved = np.roll(x, (2, 1), axis=(1, 2))
    expected = np.roll(attention(Tensor(x)).data, (2, 1), axis=(1, 2))
    np.testing.assert_allclose(attention(Tensor(moved)).data, expected, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
def test_gradcheck_layer(backend, padding):
    """Centres and α among the parameters, and the feature map."""
    errors = gradcheck(layer(padding=padding), Tensor(random(2, 3, 4, 3), requires_grad=True))
    assert {"centres", "sharpness", "value", "out.weight", "out.bias", "argument 0"} == set(errors)


def test_a_centre_follows_its_gradient():
    """A head that starts in the middle finds out that the answer stands one pixel above."""
    head = layer(heads=1, channels=1, width=1, head_width=1, padding=1)
    head.centres.data, head.value.data, head.out.weight.data = 0.0, 1.0, 1.0
    x = random(8, 6, 6, 1)
    answer = np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :6]
    optimizer = optim.AdamW(head, lr=0.03, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        ((head(Tensor(x)) - answer) ** 2).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(head.centres.data, [[-1, 0]], atol=0.05)


def test_gradcheck_whole_model(backend):
    model = randomised(QuadraticNet(SMALL))

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self, x):
            return functional.cross_entropy(self.model(x), [1, 2, 0], 0.1)

    gradcheck(WithLoss(), Tensor(random(3, 4, 6, 2), requires_grad=True))


def test_initial_values(backend):
    """Loss ln K; centres normal with variance 2 and α = 1, as in the paper."""
    model = QuadraticNet(replace(SMALL, width=900, heads=900))
    loss = functional.cross_entropy(model(random(3, 4, 6, 2, dtype=np.float32)), np.arange(3))
    assert loss.item() == pytest.approx(np.log(3), abs=1e-6)
    first = model.blocks[0].attention
    assert first.centres.data.std() == pytest.approx(2**0.5, rel=0.05) and (first.sharpness.data == 1).all()


def test_overfits_a_batch(backend):
    """Random labels on random images, all learnt by heart: nothing is disconnected."""
    model = QuadraticNet(QuadraticConfig(depth=2))
    x, y = random(32, 8, 8, 1, dtype=np.float32), np.random.default_rng(1).integers(0, 10, 32)
    optimizer = optim.AdamW(model, lr=5e-3, weight_decay=0.0)
    before = model.blocks[0].attention.centres.numpy()
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert (model.predict(x).argmax(1) == y).all() and loss.item() < 0.1
    assert np.abs(model.blocks[0].attention.centres.data - before).max() > 0.01


def test_trains_and_loads(tmp_path):
    """`train.fit` takes it as it takes a ViT, and `tinyvit.load` gives it back."""
    data = tinyvit.data.load("digits")
    data = replace(data, train=data.train[:32])
    config = QuadraticConfig(depth=1)
    run = tinyvit.train.fit(
        tinyvit.train.Recipe(epochs=1),
        data,
        tmp_path / "run",
        model=QuadraticNet(config),
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
        (dict(patch=4), "patch size 4 must divide the image's 4×6; 2 is the nearest"),
        (dict(heads=3), "heads must divide the width, got width 8 and 3 heads"),
        (dict(depth=0), "depth must be a whole number, at least 1, got 0"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_picture_of_centres():
    """A row of panels before and after; circles by α, none where a head looks away; layers must match."""
    centres, sharpness = np.array([[0.0, 1.0], [2.0, -3.0]]), np.array([1.0, -1.0])
    figure = viz.attention_centres([(centres, sharpness)] * 3, [(centres + 1, sharpness)] * 3)
    axes = [axes for axes in figure.axes if axes.get_title()]
    assert [a.get_title() for a in axes][:4] == [f"layer {i}, before training" for i in (1, 2, 3)] + [
        "layer 1, after training"
    ]
    for panel, (y, x) in ((axes[0], (0, 1)), (axes[3], (1, 2))):
        circles = [patch for patch in panel.patches if isinstance(patch, Circle)]
        assert len(circles) == 2 and circles[0].center == (x, y)
        assert circles[0].radius == pytest.approx(np.log(2) ** 0.5)
    with pytest.raises(ValueError, match="same layers before and after, got 1 and 0"):
        viz.attention_centres([(centres, sharpness)], [])


def test_wrong_inputs():
    for weight in (np.zeros((2, 2, 1, 1)), np.zeros((3, 5, 1, 1)), np.zeros((3, 3))):
        with pytest.raises(ValueError, match=r"weight must be \(k, k, C, D\) with k odd"):
            attention_from_convolution(weight)
    with pytest.raises(ValueError, match=r"QuadraticAttention reads \(B, h, w, 3\), got \(2, 4, 4, 2\)"):
        layer()(Tensor(random(2, 4, 4, 2)))
    with pytest.raises(ValueError, match=r"reads images \(B, 4, 6, 2\), got \(1, 8, 8, 2\)"):
        QuadraticNet(SMALL)(np.zeros((1, 8, 8, 2)))
