"""RandAugment: each operation is Pillow's, the kernel is the spec, and strength means what it should."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tinyvit import kernels
from tinyvit.data import RandAugment
from tinyvit.data.randaugment import RANGES, amounts
from tinyvit.kernels.retouch import OPERATIONS, retouch

NAMES = [operation.__name__ for operation in OPERATIONS]
SIZES = [(32, 32, 3), (28, 28, 1), (9, 17, 3), (2, 3, 1), (5, 1, 3), (7, 6, 2)]
SIDES = pytest.mark.parametrize("side", ["numpy", "numba"] if kernels.backend() == "numba" else ["numpy"])


def photo(h, w, C, seed=0):
    """Levels that vary smoothly, with noise, and that do not reach 0 and 255: not all alike, as those of a photo."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:h, :w, :C]
    smooth = 90 + 60 * np.sin(y / 3 + c) + 50 * np.cos(x / 4 - c)
    return (smooth + rng.normal(0, 12, smooth.shape)).clip(7, 243).astype(np.uint8)


def apply(name, image, amount, side="numpy"):
    """One operation on one image, by the spec or by the kernel."""
    return getattr(retouch, side)(image[None], np.array([NAMES.index(name)]), np.array([float(amount)]))[0]


def some_amounts(name):
    """Weak, strong and, where there are two, in both directions."""
    at = [NAMES.index(name)] * 6
    return amounts(np.array(at), np.arange(6) % 2 == 1, np.array([1, 1, 5, 9, 10, 10]))


# --- Pillow ---------------------------------------------------------------------------------------------------------


def enhanced(kind):
    return lambda image, f: kind(image).enhance(f)


PILLOW = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "brightness": enhanced(ImageEnhance.Brightness),
    "contrast": enhanced(ImageEnhance.Contrast),
    "colour": enhanced(ImageEnhance.Color),
    "sharpness": enhanced(ImageEnhance.Sharpness),
}


@SIDES
@pytest.mark.parametrize("size", [(32, 32, 3), (28, 28, 1), (9, 40, 3)])
@pytest.mark.parametrize("name", PILLOW)
def test_levels_are_pillows(name, size, side):
    """Protects: the operations are those that others' accuracies were reached with."""
    image = photo(*size)
    theirs = Image.fromarray(image.squeeze())
    for amount in some_amounts(name):
        want = np.asarray(PILLOW[name](theirs, amount)).reshape(size).astype(int)
        difference = np.abs(apply(name, image, amount, side) - want)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def transformed(*coefficients):
    """Pillow's transform: what output (x, y) shows, with the middle of the first pixel at (½, ½)."""
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def moved_by_pillow(name, image, amount):
    w, h = image.size
    if name == "rotate":
        return image.rotate(amount, Image.Resampling.BILINEAR)
    return {
        "shear_x": transformed(1, amount, -amount * h / 2, 0, 1, 0),
        "shear_y": transformed(1, 0, 0, amount, 1, -amount * w / 2),
        "translate_x": transformed(1, 0, -amount * w, 0, 1, 0),
        "translate_y": transformed(1, 0, 0, 0, 1, -amount * h),
    }[name](image)


@SIDES
@pytest.mark.parametrize("size", [(32, 32, 3), (28, 28, 1), (9, 40, 3)])
@pytest.mark.parametrize("name", NAMES[9:])
def test_geometry_is_pillows(name, size, side):
    """Protects: direction, centre and interpolation. But for the border, where Pillow repeats the last pixel and we
    blend with 0: compared is where all four pixels that are read lie inside."""
    image = photo(*size)
    for amount in some_amounts(name):
        want = np.asarray(moved_by_pillow(name, Image.fromarray(image.squeeze()), amount)).reshape(size).astype(int)
        inside = apply(name, np.full(size, 255, np.uint8), amount, side) == 255
        assert inside.mean() > 0.2
        assert np.abs(apply(name, image, amount, side) - want)[inside].max() <= 1


# --- the kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(kernels.backend() != "numba", reason="compares with the Numba kernel")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_kernel_equals_its_spec(name, size):
    """To one level, where a number falls on the edge between two; flat images and those of two levels too."""
    two = np.where(photo(*size) > 100, 200, 3).astype(np.uint8)
    images = np.stack([photo(*size, seed) for seed in range(4)] + [two, np.full(size, 37, np.uint8)])
    numbers, before = np.full(6, NAMES.index(name)), images.copy()
    for layout in (images, images[:, ::-1], np.asfortranarray(images)):
        fast, spec = (run(layout, numbers, some_amounts(name)).astype(int) for run in (retouch.numba, retouch.numpy))
        assert np.abs(fast - spec).max() <= 1 and (fast != spec).sum() <= max(2, 0.01 * fast.size)
    np.testing.assert_array_equal(images, before)


@SIDES
def test_each_image_gets_its_own_operation(side):
    """Protects: images, numbers and amounts stay together, whatever the others in the batch get."""
    images = np.stack([photo(12, 10, 3, seed) for seed in range(14)])
    amount = amounts(np.arange(14), np.arange(14) % 2 == 0, 7)
    together = getattr(retouch, side)(images, np.arange(14), amount)
    assert together.dtype == np.uint8 and together.shape == images.shape
    for name, image, a, result in zip(NAMES, images, amount, together, strict=True):
        np.testing.assert_array_equal(apply(name, image, a, side), result)


@SIDES
@pytest.mark.parametrize(
    "wrong",
    [
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), np.zeros(2)),
        (np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, int), np.zeros(2)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), np.zeros(2)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int), np.zeros(1)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 14]), np.zeros(2)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([-1, 0]), np.zeros(2)),
    ],
)
def test_a_wrong_call_is_a_clear_error(wrong, side):
    with pytest.raises(ValueError, match="retouch.* (must|needs) .*got "):
        getattr(retouch, side)(*wrong)


@SIDES
@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (3, 0, 4, 1)])
def test_no_pixels(shape, side):
    for number in range(14):
        out = getattr(retouch, side)(np.zeros(shape, np.uint8), np.full(shape[0], number), np.ones(shape[0]))
        assert out.shape == shape and out.dtype == np.uint8


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_all_operations_have_a_range():
    assert list(RANGES) == NAMES and len(NAMES) == 14


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_changes_nothing(name, backend):
    """And ten does. The exceptions have no strength: these two, and the one that never does anything."""
    image = photo(24, 24, 3)
    for other_way in (False, True):
        number = np.array([NAMES.index(name)])
        weak, strong = (retouch(image[None], number, amounts(number, other_way, s))[0] for s in (0, 10))
        assert np.array_equal(weak, image) == (name not in ("autocontrast", "equalize"))
        assert np.array_equal(strong, image) == (name == "identity")


def test_the_ranges_are_the_papers():
    """Protects: a recipe's strength means what it means elsewhere."""
    got = {name: amounts(np.array([k, k]), np.array([False, True]), 10).tolist() for k, name in enumerate(NAMES)}
    for name in ("brightness", "contrast", "colour", "sharpness"):
        assert got[name] == pytest.approx([1.9, 0.1])
    assert got["rotate"] == [30, -30] and got["shear_x"] == got["shear_y"] == [0.3, -0.3]
    assert got["translate_x"] == got["translate_y"] == pytest.approx([150 / 331, -150 / 331])
    assert got["posterize"] == [4, 4] and got["solarize"] == [0, 0]
    bits = [amounts(np.array([NAMES.index("posterize")]), np.array([False]), m)[0] for m in range(11)]
    assert bits == [8, 8, 7, 7, 6, 6, 6, 5, 5, 4, 4]  # whole numbers


def test_grey_images_have_no_colour_to_change(backend):
    image = photo(16, 16, 1)
    np.testing.assert_array_equal(apply("colour", image, 0.1, kernels.backend()), image)


def test_operations_and_directions_are_drawn_with_equal_chances(monkeypatch):
    """Protects: no operation left out, each image its own; as many operations one after the other as asked for."""
    seen = []
    monkeypatch.setattr("tinyvit.data.randaugment.retouch", lambda x, *how: seen.append(how) or x)
    RandAugment(3, 10)(np.zeros((7000, 2, 2, 1), np.uint8), np.random.default_rng(0))
    assert len(seen) == 3
    for numbers, amount in seen:
        counts = np.bincount(numbers, minlength=14)
        assert 400 < counts.min() and counts.max() < 600
        turned = amount[numbers == NAMES.index("rotate")]
        assert set(turned) == {30, -30} and 0.4 < (turned > 0).mean() < 0.6
    assert not np.array_equal(seen[0][0], seen[1][0])


def test_shape_range_and_input(backend):
    """Protects: 8-bit levels out, of the float images that geometry leaves too; and the data set left alone."""
    images = np.stack([photo(20, 20, 3, seed) for seed in range(30)])
    before = images.copy()
    for given in (images, images.astype(np.float32) + np.float32(0.3)):
        changed = RandAugment(2, 9)(given, np.random.default_rng(0))
        assert changed.dtype == np.uint8 and changed.shape == images.shape
        assert (changed != images).any(axis=(1, 2, 3)).mean() > 0.8
    np.testing.assert_array_equal(images, before)


def test_same_generator_same_images(backend):
    images = np.stack([photo(20, 20, 3, seed) for seed in range(8)])
    once, again, other = (RandAugment(2, 9)(images, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


@pytest.mark.parametrize("wrong", [dict(operations=0), dict(operations=1.5), dict(strength=-1), dict(strength=10.5),
                                   dict(strength=float("nan"))])  # fmt: skip
def test_values_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        RandAugment(**wrong)
