"""Augmentation and batches: what moves goes where it should, and every batch can be made again."""

import numpy as np
import pytest

from tinyvit import kernels
from tinyvit.data import AUGMENTS, Augment, DataError, Split, batches, load
from tinyvit.data.augment import affine, crop
from tinyvit.kernels.warp import warp

BACKENDS = ["numpy", "numba"]
MEAN, STD = (0.5,), (0.25,)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with kernels.use(request.param):
        yield request.param


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def split_of(count, side=6, channels=1):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64))


# --- the warp -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 7, 5, 2), (2, 28, 28, 1), (4, 9, 32, 3), (0, 4, 4, 1)])
def test_spec_and_kernel_agree(shape):
    """Protects: the fast loop computes what the spec says, over the border and far outside too."""
    pytest.importorskip("numba")
    rng = np.random.default_rng(1)
    images = pictures(*shape)
    matrices = affine(
        shape[1],
        shape[2],
        rng.uniform(-180, 180, shape[0]),
        rng.uniform(0.3, 2, shape[0]),
        rng.uniform(-9, 9, shape[0]),
    )
    for x in (images, images[:, ::-1], np.asfortranarray(images), images.astype(np.float64)):
        fast, spec = warp.numba(x, matrices), warp.numpy(x, matrices)
        assert fast.dtype == spec.dtype == np.float32
        np.testing.assert_allclose(fast, spec, atol=1e-5)


def test_levels_are_warped_as_floats(backend):
    """Protects: 8-bit images come out as float32, not rounded or wrapped around."""
    images = split_of(3, side=9, channels=3).images
    matrices = affine(9, 9, np.array([5.0, -20, 90]), 1.1, 0.4, -0.3)
    moved = warp(images, matrices)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(moved, warp(images.astype(np.float32), matrices))


def test_identity_is_exact(backend):
    """Protects: no blur and no half-pixel offset where nothing is to move."""
    images = pictures(3, 5, 8, 2)
    np.testing.assert_array_equal(warp(images, affine(5, 8, np.zeros(3))), images)


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, 3), (-1, 2), (-4, -4), (50, 0)])
def test_whole_pixel_shift_is_exact(backend, dx, dy):
    """Protects: direction and sign of both shifts, and zeros coming in from the border."""
    images = pictures(2, 6, 7, 1)
    expected = np.zeros_like(images)
    for y in range(6):
        for x in range(7):
            if 0 <= y - dy < 6 and 0 <= x - dx < 7:
                expected[:, y, x] = images[:, y - dy, x - dx]
    np.testing.assert_array_equal(warp(images, affine(6, 7, np.zeros(2), 1.0, dx, dy)), expected)


def test_half_pixel_shift_is_the_mean_of_neighbours(backend):
    """Protects: the interpolation weights."""
    images = pictures(1, 4, 6, 1)
    moved = warp(images, affine(4, 6, shift_x=0.5))
    np.testing.assert_allclose(moved[:, :, 1:], (images[:, :, 1:] + images[:, :, :-1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
@pytest.mark.parametrize("side", [5, 8])
def test_quarter_turns_equal_rot90(backend, turns, side):
    """Protects: the sense of rotation and the centre, for odd and even sides."""
    images = pictures(1, side, side, 2)
    np.testing.assert_allclose(warp(images, affine(side, side, 90.0 * turns))[0], np.rot90(images[0], turns), atol=1e-5)


def test_zoom_keeps_the_centre(backend):
    """Protects: zoom above 1 enlarges, about the centre."""
    images = np.zeros((1, 9, 9, 1), np.float32)
    images[0, 3:6, 3:6] = 1
    larger = warp(images, affine(9, 9, zoom=2.0))
    assert larger.sum() > 2.5 * images.sum()
    np.testing.assert_allclose(larger, larger[:, ::-1, ::-1], atol=1e-6)


def test_not_a_number_gives_background(backend):
    """Protects: a NaN or infinite matrix must not index memory."""
    images = pictures(2, 4, 4, 1)
    matrices = np.full((2, 2, 3), np.nan, np.float32)
    matrices[1] = np.inf
    assert not warp(images, matrices).any()


def test_warp_says_which_shapes_it_needs(backend):
    with pytest.raises(ValueError, match=r"\(B, 2, 3\)"):
        warp(pictures(2, 4, 4, 1), np.zeros((1, 2, 3), np.float32))


# --- Augment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_default_keeps_shape_range_and_input(name, backend):
    """Protects: float32 out in the units that went in, and the data set itself left alone."""
    images = split_of(16, side=12, channels=3).images
    before = images.copy()
    changed = AUGMENTS[name](images, np.random.default_rng(0))
    assert changed.dtype == np.float32 and changed.shape == images.shape
    assert 0 <= changed.min() and changed.max() <= 255.001
    np.testing.assert_array_equal(images, before)
    assert (name == "none") == np.array_equal(changed, images)


def test_flip_mirrors_half_of_the_images_exactly():
    """Protects: left and right swapped, not up and down, with probability one half."""
    images = split_of(400, side=5).images
    changed = Augment(flip=True)(images, np.random.default_rng(0))
    kept = (changed == images).all(axis=(1, 2, 3))
    mirrored = (changed == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_crop_moves_whole_pixels_and_fills_with_background():
    """Protects: a crop is the image shifted by whole pixels, all shifts occur, the rest is 0."""
    images = np.broadcast_to(pictures(1, 6, 6, 1) + 1, (300, 6, 6, 1)).copy()
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 6, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    assert {image.tobytes() for image in crop(images, 2, np.random.default_rng(0))} == windows


def test_shift_rotate_and_scale_stay_in_range():
    """Protects: the drawn values cover ± their bound and do not pass it."""
    dot = np.zeros((500, 21, 21, 1), np.float32)
    dot[:, 10, 10] = 1
    moved = Augment(shift=3)(dot, np.random.default_rng(0))[..., 0]
    column = (moved.sum(axis=1) * np.arange(21)).sum(axis=1) - 10
    row = (moved.sum(axis=2) * np.arange(21)).sum(axis=1) - 10
    for offset in (column, row):
        assert 2.9 < offset.max() <= 3.001 and -3.001 <= offset.min() < -2.9
    arm = np.zeros((500, 21, 21, 1), np.float32)
    arm[:, 10, 18] = 1
    turned = Augment(rotate=30)(arm, np.random.default_rng(0))[..., 0]
    y, x = (turned.sum(axis=axis) @ np.arange(21) / turned.sum(axis=(1, 2)) - 10 for axis in (2, 1))
    angle = np.degrees(np.arctan2(-y, x))
    assert 28 < angle.max() < 32 and -32 < angle.min() < -28


def test_same_generator_same_images():
    images = split_of(8).images
    once, again, other = (AUGMENTS["mnist"](images, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


@pytest.mark.parametrize(
    "wrong",
    [dict(shift=-1), dict(shift=np.inf), dict(shift=np.nan), dict(rotate=181), dict(rotate=-1), dict(scale=1),
     dict(crop=-1), dict(crop=1.5)],
)  # fmt: skip
def test_values_out_of_range_are_named(wrong):
    """Protects: a typing error in a recipe is found where it was made."""
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        Augment(**wrong)


# --- batches ------------------------------------------------------------------------------------------


def test_one_epoch_serves_every_image_once_normalised():
    """Protects: no image lost or repeated, the last short batch included, and (x/255 - mean)/std."""
    split = split_of(23)
    served = list(batches(split, 5, mean=MEAN, std=STD, seed=1, epoch=0))
    assert [len(labels) for _, labels in served] == [5, 5, 5, 5, 3]
    labels = np.concatenate([labels for _, labels in served])
    assert sorted(labels) == list(range(23)) and not np.array_equal(labels, np.arange(23))
    images = np.concatenate([images for images, _ in served])
    assert images.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_allclose(images, (split.images[labels] / 255 - 0.5) / 0.25, atol=1e-6)


def test_training_images_come_out_with_mean_0_and_variance_1():
    """Protects: mean and std fit each other and the train part, channel by channel."""
    digits = load("digits")
    ((images, _),) = batches(digits.train, 2000, mean=digits.mean, std=digits.std, shuffle=False)
    assert abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-5


def test_a_batch_depends_on_seed_epoch_and_step_only():
    """Protects: exact replay; and new order and augmentation in the next epoch and with another seed."""

    def run(seed, epoch, **more):
        more = dict(augment=AUGMENTS["digits"]) | more
        return list(batches(split_of(23), 5, mean=MEAN, std=STD, seed=seed, epoch=epoch, **more))

    first = run(1, 2)
    for (x, y), (again_x, again_y) in zip(first, run(1, 2), strict=True):
        np.testing.assert_array_equal(x, again_x)
        np.testing.assert_array_equal(y, again_y)
    for other in (run(1, 3), run(2, 2)):
        assert not np.array_equal(first[0][1], other[0][1])
    ordered = [run(1, epoch, shuffle=False)[0][0] for epoch in (2, 3)]
    assert not np.array_equal(*ordered)


def test_each_step_augments_differently():
    """Protects: not the same shifts in the same order in every batch of an epoch."""
    twins = Split(np.repeat(split_of(1, side=12).images, 8, axis=0), np.zeros(8, np.int64))
    first, second = (x for x, _ in batches(twins, 4, mean=MEAN, std=STD, augment=Augment(shift=3)))
    assert not np.array_equal(first, second) and not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_start_equals_skipping(start):
    """Protects: resuming in the middle of an epoch continues it exactly, augmentation included."""
    options = dict(mean=MEAN, std=STD, seed=7, epoch=4, augment=AUGMENTS["cifar"])
    whole = list(batches(split_of(23), 5, **options))
    rest = list(batches(split_of(23), 5, start=start, **options))
    assert len(rest) == len(whole) - start
    for (x, y), (resumed_x, resumed_y) in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(x, resumed_x)
        np.testing.assert_array_equal(y, resumed_y)


def test_order_is_pinned():
    """Protects: an old run replays on another platform and with another NumPy."""
    labels = np.concatenate([y for _, y in batches(split_of(8), 4, mean=MEAN, std=STD, seed=0, epoch=1)])
    assert labels.tolist() == [7, 4, 5, 1, 6, 2, 0, 3]


def test_no_shuffle_keeps_the_order():
    """Protects: evaluation's probabilities belong to the images in their own order."""
    served = list(batches(split_of(23), 5, mean=MEAN, std=STD, shuffle=False))
    assert np.concatenate([labels for _, labels in served]).tolist() == list(range(23))


def test_wrong_arguments_are_refused_at_once():
    """Protects: the error appears at the call and not at the first batch, and says what to change."""
    options = dict(mean=MEAN, std=STD)
    with pytest.raises(DataError, match="at least one image"):
        batches(split_of(0), 5, **options)
    for name, value in (("batch_size", 0), ("seed", -1), ("epoch", -1), ("start", -2)):
        with pytest.raises(ValueError, match=f"{name} must be a whole number from . up, got {value}"):
            batches(split_of(3), **dict(batch_size=2) | {name: value}, **options)
