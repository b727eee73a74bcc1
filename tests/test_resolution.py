"""Another resolution: interpolation is exact and the libraries' own, and a model keeps all that has no place in it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import zoom

from tinyvit import functional, nn
from tinyvit.models import ViT, ViTConfig, at_resolution
from tinyvit.models.hybrid import Hybrid, HybridConfig
from tinyvit.nn.positions import KINDS
from tinyvit.nn.resolution import MODES, interpolate, interpolation_matrix

SIZES = [
    ((4, 4), (8, 8)),
    ((3, 5), (7, 2)),
    ((14, 14), (24, 24)),
    ((24, 24), (14, 14)),
    ((2, 2), (3, 3)),
    ((1, 4), (3, 1)),
]


def grid(rows, columns, D=3, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns, D))


# ------------------------------------------------------------------------------------ interpolate


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_corners_is_scipys_zoom(old, new):
    """Protects: positions of a checkpoint come out as the paper's code makes them."""
    expected = zoom(grid(*old), (new[0] / old[0], new[1] / old[1], 1), order=1)
    np.testing.assert_allclose(interpolate(grid(*old), new, "corners"), expected, atol=1e-12)
    in_single = interpolate(grid(*old).astype(np.float32), new, "corners")
    assert in_single.dtype == np.float32
    np.testing.assert_allclose(in_single, expected, atol=1e-6)


def test_scipys_zoom_rounds_halves_to_even():
    """The words of the docstring: 5 points, factor ½, make 2 and not 3."""
    assert zoom(grid(5, 7), (0.5, 0.5, 1), order=1).shape == (2, 4, 3)


@pytest.mark.parity
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_pytorchs_interpolate(old, new):
    torch = pytest.importorskip("torch")
    channels_first = torch.tensor(grid(*old)).permute(2, 0, 1)[None]
    theirs = {
        "corners": dict(mode="bilinear", align_corners=True),
        "bilinear": dict(mode="bilinear", align_corners=False),
        "bicubic": dict(mode="bicubic", align_corners=False),
    }
    for mode in MODES:
        expected = torch.nn.functional.interpolate(channels_first, size=new, **theirs[mode])[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(interpolate(grid(*old), new, mode), expected, atol=1e-12)


# By hand. corners: x = 0, 1/3, 2/3, 1. The others: x = -¼, ¼, ¾, 1¼, where Keys' kernel with a = -¾ is
# k(¼) = 225/256, k(¾) = 67/256, k(1¼) = -27/256, k(1¾) = -9/256.
@pytest.mark.parametrize(
    ("mode", "second"),
    [
        ("corners", [0, 1 / 3, 2 / 3, 1]),
        ("bilinear", [0, 1 / 4, 3 / 4, 1]),
        ("bicubic", [-27 / 256, 58 / 256, 198 / 256, 283 / 256]),
    ],
)
def test_two_points_become_four(mode, second):
    W = interpolation_matrix(2, 4, mode)
    np.testing.assert_allclose(W[:, 1], second, atol=1e-15)
    np.testing.assert_allclose(W[:, 0], 1 - np.array(second), atol=1e-15)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("corners", [0, 1.5, 3]), ("bilinear", [1 / 6, 1.5, 17 / 6]), ("bicubic", [0.1262, 1.5, 2.8738])],
)
def test_four_points_become_three(mode, expected):
    """Half-pixel: x = 1/6, 3/2, 17/6. Bicubic at 1/6 of 0, 0, 1, 2: k(5/6) + 2 k(11/6) = 0.1609 - 2 · 0.0174."""
    np.testing.assert_allclose(interpolation_matrix(4, 3, mode) @ np.arange(4.0), expected, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_size_changes_not_one_bit(mode):
    old = grid(3, 4).astype(np.float32)
    old[0, 0] = [-0.0, np.nan, 1e-40]
    new = interpolate(old, (3, 4), mode)
    assert new.tobytes() == old.tobytes() and new is not old and not np.shares_memory(new, old)


@given(st.sampled_from(MODES), *[st.integers(1, 12)] * 4)
def test_a_constant_stays_constant_and_rows_are_apart_from_columns(mode, rows, columns, new_rows, new_columns):
    """Protects: weights that sum to 1 at every border, and W_r not swapped with W_c."""
    np.testing.assert_allclose(interpolate(np.full((rows, columns, 2), 7.0), (new_rows, new_columns), mode), 7)
    down = np.arange(float(rows))[:, None, None] * np.ones((1, columns, 1))
    stretched = interpolate(down, (new_rows, new_columns), mode)
    np.testing.assert_allclose(stretched, stretched[:, :1].repeat(new_columns, 1), atol=1e-12)
    turned = interpolate(down.swapaxes(0, 1), (new_columns, new_rows), mode).swapaxes(0, 1)
    np.testing.assert_allclose(stretched, turned, atol=1e-12)


def test_what_lies_between_is_shorter():
    """The average of two independent vectors is shorter than they are by √2; cubic weights lose less."""
    old = np.random.default_rng(0).standard_normal((8, 8, 400))
    length = {mode: np.linalg.norm(interpolate(old, (16, 16), mode), axis=2).mean() / 20 for mode in MODES}
    assert length["corners"] < 0.75 and length["bilinear"] < 0.75 and 0.8 < length["bicubic"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 4)), (8, 8)), r"grid must be floats \(rows, columns, D\).*got float64 \(4, 4\)"),
        ((np.zeros((4, 4, 2), int), (8, 8)), "grid must be floats.*int"),
        ((np.zeros((0, 4, 2)), (8, 8)), "none of them 0"),
        ((grid(2, 2), (8,)), "size must be"),
        ((grid(2, 2), 4), r"size must be \(rows, columns\).*got 4"),
        ((grid(2, 2), (8, 0)), "size must be"),
        ((grid(2, 2), (8, 2.5)), "size must be"),
        ((grid(2, 2), (8, 8), "nearest"), "mode must be one of corners, bilinear, bicubic; got 'nearest'"),
        ((grid(2, 2), (2, 2), "nearest"), "mode must be one of"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolate(*arguments)


# ---------------------------------------------------------------------------------- at_resolution

SMALL = ViTConfig(image_size=(6, 4), patch=2, channels=2, classes=3, width=8, depth=2, heads=2, mlp=12)
SHAPES = [dict(), dict(pool="average"), dict(registers=2), dict(registers=1, pool="average")]


def trained(seed=0, **changes):
    """A model none of whose weights is zero or the same as another's."""
    model = ViT(replace(SMALL, **changes), seed)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = rng.normal(0, 0.3, p.shape)
    return model.eval()


def images(size, count=2):
    return np.random.default_rng(1).standard_normal((count, *size, 2)).astype(np.float32)


def position_grid(model):
    """What is added to the patches, (rows, columns, D), and to the tokens before them."""
    table, first = model.positions(), model.config.prefix - model.config.registers
    table = np.asarray(getattr(table, "data", table))[0]
    return table[first:].reshape(*model.config.grid, -1), table[:first]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_size_is_the_same_model(mode, positions, shape):
    model = trained(positions=positions, **shape)
    other = at_resolution(model, (6, 4), mode)
    for name, values in model.state_dict().items():
        assert other.state_dict()[name].tobytes() == values.tobytes()
    np.testing.assert_array_equal(model(images((6, 4))).data, other(images((6, 4))).data)
    assert other is not model and not other.training


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("size", [(12, 8), (4, 10), (2, 2)])
def test_only_positions_change(size, positions, shape):
    """Protects: class token, registers, matrices and head stay bit for bit, and the model reads the new size."""
    model = trained(positions=positions, **shape)
    before = model.state_dict()
    other = at_resolution(model, size)
    places = {name for name in before if name.startswith("positions.") or name.endswith("attention.shifts")}
    assert bool(places) == (positions in ("1d", "2d", "relative"))
    for name, values in other.state_dict().items():
        assert name in places or values.tobytes() == before[name].tobytes(), name
    assert all(np.array_equal(before[name], values) for name, values in model.state_dict().items())
    assert other(images(size)).shape == (2, 3) and other.config == replace(model.config, image_size=size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("positions", ["1d", "2d"])
@pytest.mark.parametrize("shape", SHAPES)
def test_learned_positions_are_interpolated_as_a_grid(shape, positions, mode):
    """Also where they are stored as rows and columns; the class token's is no part of the grid."""
    model = trained(positions=positions, **shape)
    other = at_resolution(model, (10, 16), mode)
    (old, old_first), (new, new_first) = position_grid(model), position_grid(other)
    np.testing.assert_allclose(new, interpolate(old, (5, 8), mode), atol=1e-6)
    np.testing.assert_array_equal(old_first, new_first)


def test_a_model_in_float64_stays_one():
    """To the last bit of its positions, and with a new head too."""
    model = trained().astype(np.float64)
    model.positions.table.data = model.positions.table.data + 1e-12  # more digits than float32 has
    for other in (at_resolution(model, (6, 4)), at_resolution(model, (6, 4), classes=2)):
        assert {p.dtype for p in other.parameters()} == {np.dtype(np.float64)}
        np.testing.assert_array_equal(other.positions.table.data, model.positions.table.data)


def test_sines_and_cosines_are_computed_anew():
    model = trained(positions="sincos")
    expected = ViT(replace(model.config, image_size=(12, 8))).positions()
    np.testing.assert_array_equal(at_resolution(model, (12, 8)).positions(), expected)


@pytest.mark.parametrize("mode", MODES)
def test_no_shift_stays_no_shift(mode):
    """Relative positions: the middle of the table stays the middle, opposite shifts stay opposite, and the three kinds
    of shift from and to other tokens stay."""
    model = trained(positions="relative")
    for block in model.blocks:
        table = block.attention.shifts.data
        odd = np.arange(15)[:, None] - 7 + 0 * table[:15]  # odd about the middle, which is 7 of 15 = 5 × 3
        block.attention.shifts.data = np.concatenate([odd, table[15:]])
    old, new = (m.blocks[1].attention.shifts.data for m in (model, at_resolution(model, (12, 8), mode)))
    assert new.shape == (11 * 7 + 3, 4)
    np.testing.assert_allclose(new[:77] + new[:77][::-1], 0, atol=1e-5)
    np.testing.assert_array_equal(new[77:], old[15:])


def test_a_new_head_is_zero_and_linear():
    """Its first loss is ln of the classes, exactly what knowing nothing costs."""
    for head in ("linear", "mlp"):
        model = trained(head=head, dropout=0.2)
        other = at_resolution(model, (12, 8), classes=7, dropout=0.0)
        assert isinstance(other.head, nn.Linear) and other.config.classes == 7 and other.config.head == "linear"
        loss = functional.cross_entropy(other(images((12, 8))), np.array([0, 6]))
        assert loss.item() == pytest.approx(np.log(7))
        assert other.config.dropout == other.dropout.p == 0 and model.config.dropout == 0.2
        np.testing.assert_array_equal(other.blocks[1].mlp.fc1.weight.data, model.blocks[1].mlp.fc1.weight.data)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((7, 9), {}, "multiples of 2 pixels, got 7×9; 8×8 is the nearest"),
        (1, {}, "multiples of 2 pixels, got 1×1; 2×2 is the nearest"),
        ((0, 4), {}, "image_size must be"),
        ((4, 4, 4), {}, "image_size must be"),
        ("a", {}, "image_size must be .*got 'a'"),
        (8.0, {}, "image_size must be .*got 8.0"),
        ((12, 8), dict(mode="nearest"), "mode must be one of"),
        ((12, 8), dict(classes=0), "classes must be"),
    ],
)
def test_sizes_that_do_not_fit(size, options, message):
    with pytest.raises(ValueError, match=message):
        at_resolution(trained(), size, **options)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_hybrid(norm):
    """Its feature map grows with the image; what batch norm has measured goes along."""
    hybrid = Hybrid(HybridConfig((8, 8), width=8, depth=1, heads=2, mlp=8, blocks=(1, 1), widths=(2, 4), norm=norm))
    rng = np.random.default_rng(0)
    for _, p in hybrid.named_parameters():
        p.data = np.abs(rng.normal(0, 0.3, p.shape))
    hybrid.eval()
    x = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(at_resolution(hybrid, 8)(x).data, hybrid(x).data)
    other = at_resolution(hybrid, (16, 11), "bicubic", classes=3)
    assert other.config.grid == (8, 6) and other(np.zeros((2, 16, 11, 1))).shape == (2, 3)
    assert all(
        name.startswith("head.") or name == "positions.table" or np.array_equal(values, hybrid.state_dict()[name])
        for name, values in other.state_dict().items()
    )


def test_a_model_without_positions_is_named():
    with pytest.raises(ValueError, match="needs a ViT or a hybrid.*got a Linear"):
        at_resolution(nn.Linear(2, 2, np.random.default_rng(0)), 8)
