"""Position embeddings: each kind says where a patch came from, and what the choices of head and pooling do."""

from dataclasses import replace

import numpy as np
import pytest

from tinyvit import Tensor, ViT, ViTConfig, functional, gradcheck, nn
from tinyvit.nn.positions import KINDS, shifts, sincos_2d

rng = np.random.default_rng(0)
SMALL = ViTConfig((4, 6), patch=2, channels=2, classes=3, width=8, depth=2, heads=2, mlp=12)
CHOICES = [
    *(dict(positions=kind) for kind in KINDS),
    dict(positions="relative", pool="average"),
    dict(positions="relative", pool="average", registers=1),
    dict(positions="2d", pool="average"),
    dict(head="mlp"),
    dict(registers=3),
    dict(pool="average", registers=2, head="mlp"),
]


def randomised(model):
    """In float64 with weights far from special values."""
    model.astype(np.float64)
    for p in model.parameters():
        p.data = rng.normal(0.1, 0.5, p.shape)
    return model


def images(count, config=SMALL):
    return rng.standard_normal((count, *config.image_size, config.channels))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_gradients_and_initial_loss_of_every_choice(choice, backend):
    config = replace(SMALL, **choice)
    logits = ViT(config)(images(4))
    assert functional.cross_entropy(logits, [0, 1, 2, 2]).item() == pytest.approx(np.log(3), rel=1e-6)
    gradcheck(randomised(ViT(config)), Tensor(images(2), requires_grad=True))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_a_model_hands_back(choice):
    config = replace(SMALL, **choice)
    model = ViT(config)
    logits, seen = model(images(2), intermediates=True)
    T = 6 + config.registers + (config.pool == "class")
    assert config.tokens == T and config.prefix == T - 6 and logits.shape == (2, 3)
    assert seen["tokens"].shape == seen["encoded"].shape == (2, T, 8)
    assert seen["attention.1"].shape == (2, 2, T, T)
    state = model.state_dict()
    assert {name: state[name].shape for name in config.shapes()} == config.shapes()
    other = ViT(config, seed=1)
    other.load_state_dict(state)
    x = images(1)
    np.testing.assert_array_equal(other(x).data, model(x).data)


def swapped(x):
    """Images whose first two patches have changed places."""
    x = x.copy()
    x[:, :2, :2], x[:, :2, 2:4] = x[:, :2, 2:4].copy(), x[:, :2, :2].copy()
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_only_without_positions_a_ViT_reads_a_bag_of_patches(kind):
    model, x = randomised(ViT(replace(SMALL, positions=kind))), images(3)
    same = np.allclose(model(x).data, model(swapped(x)).data, atol=1e-9)
    assert same == (kind == "none")


def test_learned_2d_is_a_row_beside_a_column():
    positions = nn.LearnedPositions2D((2, 3), 1, 4, rng)
    table, rows, columns = positions().data[0], positions.rows.data, positions.columns.data
    assert not table[0].any()  # the class token's
    for y in range(2):
        for x in range(3):
            np.testing.assert_array_equal(table[1 + 3 * y + x], [*rows[y, 0], *columns[0, x]])


def test_sincos_by_the_formula():
    """And its point: the product of two positions depends on the shift between them alone."""
    table = sincos_2d(3, 5, 16).reshape(3, 5, 16)
    omega = [1.0, 0.1, 0.01, 0.001]
    np.testing.assert_allclose(table[2, 4, :4], np.sin(4 * np.array(omega)), rtol=1e-12)
    np.testing.assert_allclose(table[2, 4, 12:], np.cos(2 * np.array(omega)), rtol=1e-12)
    products = np.einsum("yxd,vud->yxvu", table, table)
    assert products[0, 0, 1, 2] == pytest.approx(products[1, 2, 2, 4]) == pytest.approx(products[2, 3, 1, 1])


def test_shifts_number_each_offset_once():
    index = shifts((2, 3), 1)
    seen = {}
    for i in range(6):
        for j in range(6):
            offset = (j // 3 - i // 3, j % 3 - i % 3)
            assert seen.setdefault(offset, index[1 + i, 1 + j]) == index[1 + i, 1 + j]
    assert sorted(seen.values()) == list(range(15))
    assert set(index[0, 1:]) == {15} and set(index[1:, 0]) == {16} and index[0, 0] == 17


def test_relative_attention_by_hand(backend):
    """(qᵢ · kⱼ + qᵢ · r) / √K, written as a loop."""
    layer = randomised(nn.RelativeSelfAttention(6, 2, rng, shifts((2, 2), 1)))
    x, maps = rng.standard_normal((2, 5, 6)), []
    layer(Tensor(x), maps=maps)
    q, k, _ = np.split(x @ layer.qkv.weight.data + layer.qkv.bias.data, 3, axis=-1)
    r, index = layer.shifts.data, shifts((2, 2), 1)
    for b in range(2):
        for h in range(2):
            part = slice(3 * h, 3 * h + 3)
            for i in range(5):
                scores = [q[b, i, part] @ (k[b, j, part] + r[index[i, j]]) / 3**0.5 for j in range(5)]
                e = np.exp(scores)
                np.testing.assert_allclose(maps[0][b, h, i], e / e.sum(), rtol=1e-9)


def test_relative_attention_sees_shifts_and_no_places():
    """Two neighbours alone in the image say the same wherever they stand, if nothing lies at the border."""
    layer = randomised(nn.RelativeSelfAttention(4, 1, rng, shifts((1, 4), 0)))
    pair = rng.standard_normal((2, 4))
    mask = np.full((4, 4), -np.inf)
    mask[:2, :2] = mask[2:, 2:] = 0  # each pair reads itself
    out = layer(Tensor(np.concatenate([pair, pair])[None]), bias=mask).data[0]
    np.testing.assert_allclose(out[:2], out[2:], rtol=1e-12)


def test_average_pooling_reads_the_patches_and_no_register():
    model = randomised(ViT(replace(SMALL, pool="average", registers=2)))
    encoded = rng.standard_normal((3, 8, 8))
    np.testing.assert_allclose(model.pooled(Tensor(encoded)).data, encoded[:, 2:].mean(1))


def test_layers_share_one_table_of_shift_numbers():
    """T² integers once, not once a layer; a worker's replica reads the same ones."""
    model = ViT(replace(SMALL, positions="relative", depth=2))
    assert model.blocks[0].attention.index is model.blocks[1].attention.index
    assert model.replica().blocks[1].attention.index is model.blocks[0].attention.index


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(positions="3d"), "positions must be one of 1d, none, 2d, sincos, relative; got '3d'"),
        (dict(pool="max"), "pool must be one of class, average"),
        (dict(head=2), "head must be one of linear, mlp, none; got 2"),
        (dict(registers=-1), "registers must be a whole number from 0 up, got -1"),
    ],
)
def test_wrong_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


def test_widths_that_do_not_fit():
    with pytest.raises(ValueError, match="7 is odd"):
        ViT(ViTConfig((4, 4), width=7, heads=1, positions="2d"))
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        ViT(ViTConfig((4, 4), width=6, heads=1, positions="sincos"))
