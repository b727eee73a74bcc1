"""The arrays behind the figures, each against hand-made weights or attention, or against loops over its definition."""

import numpy as np
import pytest

from tinyvit import interpret, nn
from tinyvit.interpret import (
    attention_distance,
    attention_rollout,
    class_attention,
    embedding_filters,
    head_attention,
    mean_distance,
    patch_distances,
    position_similarity,
)
from tinyvit.models import HybridConfig, ResNet, ResNetConfig, ViT, ViTConfig
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


def random_images(count=3):
    return np.random.default_rng(3).normal(size=(count, 4, 6, 1)).astype(np.float32)


def attentions_of(model, images):
    """What the model's own intermediates hold, (B, L, H, T, T)."""
    _, seen = model(images, intermediates=True)
    return np.stack([seen[f"attention.{i}"] for i in range(model.config.depth)], axis=1)


# What stands before the patches: a class token, with registers, nothing, registers alone.
PREFIXES = [dict(), dict(registers=2), dict(pool="average"), dict(pool="average", registers=3)]


# ---------------------------------------------------------------------------------- filters


def test_filters_are_the_patterns_that_were_put_in():
    """Each column of E is a mean plus multiples of two patterns; the stronger comes first, and the mean is gone."""
    rng = np.random.default_rng(0)
    patterns, _ = np.linalg.qr(rng.normal(size=(2 * 2 * 3, 2)))
    strengths = rng.normal(size=(2, 40))
    strengths -= strengths.mean(axis=1, keepdims=True)
    strengths[1] -= strengths[0] * (strengths[1] @ strengths[0]) / (strengths[0] @ strengths[0])
    strengths *= np.array([[3], [2]]) / np.linalg.norm(strengths, axis=1, keepdims=True)
    model = ViT(ViTConfig(channels=3, width=40))
    model.embedding.weight.data = patterns @ strengths + rng.normal(size=(12, 1))
    filters, shares = embedding_filters(model)
    assert filters.shape == (12, 2, 2, 3)
    np.testing.assert_allclose(shares[:3], [9 / 13, 4 / 13, 0], atol=1e-6)
    for found, put in zip(filters[:2].reshape(2, 12), patterns.T, strict=True):
        np.testing.assert_allclose(np.abs(found @ put), 1, rtol=1e-5)
        assert found[np.abs(found).argmax()] > 0


def test_a_filter_lies_as_the_patches_are_cut():
    """Protects: rows, columns and colours of a filter. An image of the pattern excites its filter most."""
    model = ViT(ViTConfig(image_size=(3, 3), patch=3, channels=2, width=4))
    pattern = np.random.default_rng(1).normal(size=(3, 3, 2))
    model.embedding.weight.data = nn.patchify(Tensor(pattern[None]), 3).data[0, 0][:, None] * [1, -1, 2, -2]
    filters, _ = embedding_filters(model)
    np.testing.assert_allclose(np.abs((filters[0] * pattern).sum()), np.linalg.norm(pattern), rtol=1e-5)


def test_filters_are_orthonormal_and_few_where_the_width_is_small():
    filters, shares = embedding_filters(random_vit(patch=2, width=2, heads=1))
    assert filters.shape == (2, 2, 2, 1) and (np.diff(shares) <= 0).all()
    np.testing.assert_allclose(shares.sum(), 1)
    filters, _ = embedding_filters(random_vit())
    flat = filters.reshape(len(filters), -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-6)


# ---------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("prefix", PREFIXES)
def test_similarity_of_positions_by_hand(prefix):
    """Row r's patches get the unit vector r, of any length: alike within a row, nothing in common across."""
    model = ViT(ViTConfig(image_size=(4, 6), width=8, **prefix))
    table = model.positions.table.data
    table[...] = 5  # the class token's must not matter
    table[0, -6:] = 0
    for n in range(6):
        table[0, n - 6, n // 3] = 1 + n
    similarity = position_similarity(model)
    assert similarity.shape == (2, 3, 2, 3)
    same_row = np.eye(2)[:, None, :, None]
    np.testing.assert_allclose(similarity, np.broadcast_to(same_row, similarity.shape), atol=1e-6)


def test_similarity_of_row_and_column_embeddings():
    model = random_vit(positions="2d")
    rows, columns = model.positions.rows.data[:, 0], model.positions.columns.data[0]
    similarity = position_similarity(model)
    for r, c, s, d in np.ndindex(2, 3, 2, 3):
        a, b = np.concatenate([rows[r], columns[c]]), np.concatenate([rows[s], columns[d]])
        np.testing.assert_allclose(similarity[r, c, s, d], a @ b / np.sqrt((a @ a) * (b @ b)), rtol=1e-5)


def test_similarity_of_sines_depends_on_the_shift_alone():
    similarity = position_similarity(ViT(ViTConfig(image_size=(6, 8), width=16, positions="sincos")))
    for r, c, s, d in np.ndindex(3, 4, 3, 4):
        np.testing.assert_allclose(similarity[r, c, s, d], similarity[0, 0, abs(r - s), abs(c - d)], rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "relative"])
def test_what_adds_no_positions_has_none_to_compare(kind):
    with pytest.raises(ValueError, match=f"an embedding for each place.*positions are '{kind}'"):
        position_similarity(random_vit(positions=kind))


# ---------------------------------------------------------------------------------- distance


def test_even_attention_reads_at_the_mean_of_all_distances():
    """Brute force over the centres of patches that are no squares: 2 pixels high, 5 / 3 wide."""
    config = HybridConfig(image_size=(4, 5), blocks=(1, 1), widths=(4, 4))  # a feature map of 2×3
    centres = [(2 * r + 1, 5 / 3 * (c + 0.5)) for r in range(2) for c in range(3)]
    brute = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a in centres for b in centres])
    distances = patch_distances(config)
    np.testing.assert_allclose(distances.mean(), brute)
    np.testing.assert_allclose(mean_distance(np.full((5, 2, 8, 8), 1 / 8), distances), np.full((5, 2), brute))


def test_distance_of_attention_put_by_hand():
    """Three patches of 7 pixels in a row. The first reads the second, the second itself, the third the first."""
    distances = patch_distances(ViTConfig(image_size=(7, 21), patch=7))
    hand = np.zeros((4, 4))  # a class token stands first
    hand[[0, 1, 2, 3], [3, 2, 2, 1]] = 1
    np.testing.assert_allclose(mean_distance(hand, distances), (7 + 0 + 14) / 3)
    assert mean_distance(np.eye(4), distances) == 0


def test_what_goes_to_the_class_token_is_taken_away_and_the_rest_counts_whole():
    """Protects: a head that reads the class token would otherwise look local. Its own reading counts nowhere."""
    rng = np.random.default_rng(0)
    distances = patch_distances(ViTConfig(image_size=(4, 6)))
    patches = random_attention(rng, 2, 3, 6)
    full = np.zeros((2, 3, 8, 8))
    share = rng.uniform(0.1, 0.9, (2, 3, 6, 1))
    full[..., 2:, 2:] = share * patches
    full[..., 2:, :1] = 1 - share
    full[..., :2, :] = random_attention(rng, 2, 3, 8)[..., :2, :]
    np.testing.assert_allclose(mean_distance(full, distances), mean_distance(patches, distances), rtol=1e-12)
    full[..., 2:, :] = np.eye(8)[0]  # no patch is read at all
    np.testing.assert_array_equal(mean_distance(full, distances), 0)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_attention_distance_of_a_model_equals_loops(prefix):
    model = random_vit(**prefix)
    images = random_images()
    attentions = attentions_of(model, images)
    expected = np.zeros((3, 2))
    for b, layer, head in np.ndindex(3, 3, 2):
        for i in range(6):
            row = attentions[b, layer, head, -6 + i, -6:]
            for j in range(6):
                distance = 2 * np.hypot(i // 3 - j // 3, i % 3 - j % 3)
                expected[layer, head] += row[j] / row.sum() * distance / (3 * 6)
    np.testing.assert_allclose(attention_distance(model, images), expected, rtol=1e-5)
    np.testing.assert_allclose(attention_distance(model, images, 2), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one image"):
        attention_distance(model, images[:0])


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


def brute_force_class_map(attentions, b, rows, cols, class_token):
    """The class token's row, or the sum of the patches', by following each token's reading in loops, layer by layer."""
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
    N = rows * cols
    readers = [0] if class_token else range(T - N, T)
    patches = [sum(holds[i][T - N + j] for i in readers) for j in range(N)]
    return [[patches[r * cols + c] / sum(patches) for c in range(cols)] for r in range(rows)]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_class_map_equals_brute_force_on_a_grid_that_is_not_square(prefix):
    model = random_vit(**prefix)
    images = random_images()
    maps = class_attention(model, images)
    attentions = list(attentions_of(model, images).swapaxes(0, 1))
    assert maps.shape == (3, 2, 3)
    for b in range(3):
        by_hand = brute_force_class_map(attentions, b, 2, 3, class_token="pool" not in prefix)
        np.testing.assert_allclose(maps[b], by_hand, rtol=1e-5)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-6)
    assert maps.max() > 0.22  # far from 1/6 everywhere, or this test could not tell right from wrong


def test_class_map_finds_the_patch_that_is_read():
    """Queries and keys by hand: patches embed their brightness, everybody reads the brightest. A map
    transposed, or shifted by the class token, points elsewhere."""
    model = ViT(ViTConfig(image_size=(4, 6), patch=2, width=4, heads=1, depth=2, mlp=4))
    for p in model.parameters():
        p.data = 0.0
    model.embedding.weight.data[:, 0] = 1.0
    model.positions.table.data[:, 0, 3] = 3.0
    model.positions.table.data[:, 1:, 3] = 1.0
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
    images = random_images(5)
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


@pytest.mark.parametrize("prefix", PREFIXES)
def test_heads_show_the_row_that_is_classified(prefix):
    model = random_vit(**prefix)
    images = random_images()
    attentions, maps = attentions_of(model, images), head_attention(model, images, 2)
    assert maps.shape == (3, 3, 2, 2, 3)
    for b, layer, head, r, c in np.ndindex(maps.shape):
        column = attentions[b, layer, head, :, model.config.prefix + 3 * r + c]
        expected = column[model.config.prefix :].mean() if "pool" in prefix else column[0]
        np.testing.assert_allclose(maps[b, layer, head, r, c], expected, rtol=1e-5)
    assert (maps.sum(axis=(3, 4)) < 1 - 1e-3).any() == (model.config.prefix > 0)


def test_a_resnet_says_that_it_has_none_of_this():
    model = ResNet(ResNetConfig(image_size=(8, 8), blocks=(1,), widths=(4,)))
    assert not interpret.has_attention(model) and interpret.has_attention(random_vit())
    images = np.zeros((1, 8, 8, 3), np.float32)
    for look in (class_attention, head_attention, attention_distance):
        with pytest.raises(ValueError, match="from a ViT or a hybrid; this model is a resnet"):
            look(model, images)
    with pytest.raises(ValueError, match="only a ViT's embedding has filters.*is a resnet"):
        embedding_filters(model)
    with pytest.raises(ValueError, match="an embedding for each place"):
        position_similarity(model)


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
