"""The arrays behind the figures: rollout by hand and by brute force, the class map, confusion counts."""

import numpy as np
import pytest

from tinyvit import interpret
from tinyvit.interpret import attention_rollout, class_attention
from tinyvit.models import ViT, ViTConfig
from tinyvit.tensor import Tensor


def random_attention(rng, B=2, H=3, T=5, dtype=np.float64):
    logits = rng.normal(0, 2, (B, H, T, T))
    e = np.exp(logits)
    return (e / e.sum(axis=-1, keepdims=True)).astype(dtype)


def random_vit(**changes):
    """A ViT with weights large enough that its attention is far from uniform."""
    config = dict(image_size=(4, 6), patch=2, width=8, heads=2, depth=3, mlp=8) | changes
    model = ViT(ViTConfig(**config), seed=1)
    rng = np.random.default_rng(2)
    for p in model.parameters():
        p.data = rng.normal(0, 0.7, p.shape)
    return model


# ---------------------------------------------------------------------------------- rollout


def test_uniform_attention_stays_uniform_off_the_diagonal():
    """Every layer keeps half of a token: after L of them 2⁻ᴸ is left, the rest is spread evenly."""
    T, L = 4, 3
    rollout = attention_rollout([np.full((2, 2, T, T), 1 / T)] * L)
    np.testing.assert_allclose(rollout, np.broadcast_to((1 - 0.5**L) / T + 0.5**L * np.eye(T), (2, T, T)))


def test_identity_stays_identity():
    identity = np.broadcast_to(np.eye(4), (2, 3, 4, 4))
    np.testing.assert_array_equal(attention_rollout([identity] * 5), np.broadcast_to(np.eye(4), (2, 4, 4)))


def test_two_layers_by_hand():
    """Token 1 reads token 2 first; then token 0 reads token 1, and so has a quarter of token 2. In the
    other order it would have none: this is where a product taken from the wrong side shows."""
    reads_2 = np.eye(3)
    reads_2[1] = [0, 0, 1]
    reads_1 = np.eye(3)
    reads_1[0] = [0, 1, 0]
    first, second = reads_2[None, None], reads_1[None, None]
    expected = [[0.5, 0.25, 0.25], [0, 0.5, 0.5], [0, 0, 1]]
    np.testing.assert_array_equal(attention_rollout([first, second])[0], expected)
    assert attention_rollout([second, first])[0, 0, 2] == 0


def test_heads_are_averaged():
    """One head reads itself, one reads the other token: the mean is uniform, so the layer is (0.75, 0.25)."""
    heads = np.stack([np.eye(2), np.eye(2)[::-1]])[None]
    np.testing.assert_array_equal(attention_rollout([heads])[0], [[0.75, 0.25], [0.25, 0.75]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_sum_to_one_and_the_dtype_is_kept(dtype):
    rng = np.random.default_rng(0)
    rollout = attention_rollout([random_attention(rng, dtype=dtype) for _ in range(12)])
    assert rollout.dtype == dtype
    assert (rollout >= 0).all()
    np.testing.assert_allclose(rollout.sum(axis=-1), 1, rtol=10 * np.finfo(dtype).eps)


def test_inputs_are_left_alone():
    attention = random_attention(np.random.default_rng(0))
    before = attention.copy()
    attention_rollout([attention, attention])
    np.testing.assert_array_equal(attention, before)


@pytest.mark.parametrize(
    "attentions, words",
    [
        ([], "at least one layer"),
        ([np.ones((2, 5, 5)) / 5], r"must be \(B, H, T, T\), got \(2, 5, 5\)"),
        ([np.ones((2, 1, 5, 4)) / 4], r"must be \(B, H, T, T\)"),
        ([np.ones((2, 1, 5, 5)) / 5, np.ones((2, 1, 4, 4)) / 4], "layer 1: all layers must have the same"),
        ([np.ones((2, 1, 5, 5)) / 5, np.ones((1, 1, 5, 5)) / 5], "layer 1: all layers must have the same"),
        ([np.ones((2, 1, 5, 5))], "layer 0: rows of attention must sum to 1, got 5 to 5"),
        ([random_attention(np.random.default_rng(0)).mT], "take softmax over the last axis"),
        ([np.full((1, 1, 2, 2), np.nan)], "must sum to 1, got nan"),
    ],
)
def test_what_is_no_attention_is_refused(attentions, words):
    with pytest.raises(ValueError, match=words):
        attention_rollout(attentions)


# ---------------------------------------------------------------------------------- class token


def brute_force_class_map(attentions, b, rows, cols):
    """The class token's row by following each token's reading in loops, first layer to last."""
    T = attentions[0].shape[-1]
    holds = [[float(i == j) for j in range(T)] for i in range(T)]  # what token i holds of input token j
    for attention in attentions:
        mixed = []
        for i in range(T):
            row = [0.5 * holds[i][j] for j in range(T)]
            for k in range(T):
                reads = sum(float(head[i, k]) for head in attention[b]) / attention.shape[1]
                row = [row[j] + 0.5 * reads * holds[k][j] for j in range(T)]
            mixed.append(row)
        holds = mixed
    patches = holds[0][1:]
    return [[patches[r * cols + c] / sum(patches) for c in range(cols)] for r in range(rows)]


def test_class_map_equals_brute_force_on_a_grid_that_is_not_square():
    model = random_vit()
    images = np.random.default_rng(3).normal(size=(3, 4, 6, 1)).astype(np.float32)
    maps = class_attention(model, images)
    _, seen = model(images, intermediates=True)
    attentions = [seen[f"attention.{i}"] for i in range(3)]
    assert maps.shape == (3, 2, 3)
    for b in range(3):
        np.testing.assert_allclose(maps[b], brute_force_class_map(attentions, b, 2, 3), rtol=1e-5)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-6)
    assert maps.max() > 0.25  # far from 1/6 everywhere, or this test could not tell right from wrong


def test_class_map_finds_the_patch_that_is_read():
    """Queries and keys by hand: patches embed their brightness, everybody reads the brightest. A map
    transposed, or shifted by the class token, points elsewhere."""
    model = ViT(ViTConfig(image_size=(4, 6), patch=2, width=4, heads=1, depth=2, mlp=4))
    for p in model.parameters():
        p.data = 0.0
    model.embedding.weight.data[:, 0] = 1.0
    model.positions.data[:, 0, 3] = 3.0
    model.positions.data[:, 1:, 3] = 1.0
    for block in model.blocks:
        block.norm1.gamma.data = 1.0
        block.attention.qkv.bias.data[0] = 10.0  # every query asks for entry 0 …
        block.attention.qkv.weight.data[0, 4] = 1.0  # … which every key shows
    image = np.zeros((1, 4, 6, 1), np.float32)
    image[0, 2:4, 2:4] = 5.0  # row 1, column 1 of the grid
    [attention] = class_attention(model, image)
    assert np.unravel_index(attention.argmax(), attention.shape) == (1, 1)
    assert attention.max() > 0.9


def test_class_map_does_not_depend_on_the_batch_size():
    model = random_vit()
    images = np.random.default_rng(3).normal(size=(5, 4, 6, 1)).astype(np.float32)
    np.testing.assert_allclose(class_attention(model, images, 2), class_attention(model, images), rtol=1e-5)
    assert class_attention(model, images[:0]).shape == (0, 2, 3)


@pytest.mark.parametrize("training", [True, False])
def test_class_map_runs_without_dropout_or_tape_and_restores_the_mode(training):
    model = random_vit(dropout=0.5).train(training)
    images = Tensor(np.ones((1, 4, 6, 1), np.float32), requires_grad=True)
    np.testing.assert_array_equal(class_attention(model, images), class_attention(model, images))
    assert all(module.training is training for _, module in model.modules())
    assert not images.is_needed() and images.grad is None
    with pytest.raises(ValueError, match="this ViT reads images"):
        class_attention(model, np.ones((1, 6, 4, 1), np.float32))
    assert model.training is training


# ---------------------------------------------------------------------------------- confusion


def test_confusion_counts_pairs():
    counts = interpret.confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 0, 2], 4)
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]])
    assert counts.dtype == np.int64


def test_confusion_of_bytes_does_not_overflow_and_of_nothing_is_zero():
    many = np.full(300, 199, np.uint8)
    assert interpret.confusion(many, many, 200)[199, 199] == 300
    assert interpret.confusion(np.empty(0, int), np.empty(0, int), 3).sum() == 0


@pytest.mark.parametrize(
    "labels, predicted, words",
    [
        ([0, 1], [0], "must both be"),
        ([0, 3], [0, 1], r"labels must be integers in \[0, 3\), got int64 from 0 to 3"),
        ([0, 1], [0, -1], "predicted must be integers"),
        ([0, 1], [0.2, 0.9], "argmax"),
    ],
)
def test_confusion_refuses_what_is_no_class(labels, predicted, words):
    with pytest.raises(ValueError, match=words):
        interpret.confusion(labels, predicted, 3)
