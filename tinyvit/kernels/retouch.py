"""Retouch: for each image of a batch one of fourteen operations, and how much of it.

They are RandAugment's; `data/randaugment.py` draws them. An image is 8-bit levels, and the result is rounded to such,
as in Pillow, whose ImageOps and ImageEnhance the spec below retells in a line or two each. Those with a "how much" of f
mix the image x with a version d of it that lacks something:

    d + f (x - d)       f = 1 changes nothing, f = 0 gives d, f > 1 goes beyond x; cut to 0..255

In the kernel, what depends on a pixel's level alone becomes a table of 256 levels. Libraries for large photos leave
this to the processes that load the data, several to a GPU.

Chapter of the course: notebooks/07-training.ipynb.
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit
from tinyvit.kernels.warp import warp, warp_image, warp_room


def identity(x, amount):
    return x


def autocontrast(x, amount):
    """In each channel, stretch the levels that occur to 0..255."""
    low, high = (of(x, axis=(0, 1)).astype(int) for of in (np.min, np.max))
    return np.where(high > low, (x - low) * 255 // np.maximum(high - low, 1), x).astype(np.uint8)


def equalize(x, amount):
    """In each channel, make a pixel's level the share of pixels below it, so that all levels are equally frequent.

    Not where there are fewer than 255 pixels besides those of the highest level: too few for as many levels.
    """
    out = x.copy()
    for old, new in zip(np.moveaxis(x, 2, 0), np.moveaxis(out, 2, 0), strict=True):  # (h, w) each
        count = np.bincount(old.reshape(-1), minlength=256)
        step = (old.size - count[old.max()]) // 255  # pixels for each new level
        if step:
            below = np.cumsum(count) - count
            new[...] = np.minimum((step // 2 + below) // step, 255)[old]
    return out


def posterize(x, bits):
    """Keep so many of the 8 bits, the highest; 1 to 8."""
    return x & np.uint8(256 - 2 ** (8 - int(bits)))


def solarize(x, threshold):
    """Turn levels from the threshold on into their negative."""
    return np.where(x < threshold, x, 255 - x)


def brightness(x, f):
    """d is black."""
    return blend(np.float32(0), x, f)


def contrast(x, f):
    """d is grey, of the image's mean."""
    levels = grey(x) if x.shape[2] == 3 else x
    return blend(np.floor(levels.mean(dtype=np.float64) + 0.5).astype(np.float32), x, f)


def colour(x, f):
    """d is the image in greys. Nothing for images of other than three channels, red, green and blue."""
    return blend(grey(x)[:, :, None].astype(np.float32), x, f) if x.shape[2] == 3 else x


def sharpness(x, f):
    """d is the image blurred: the mean over 3×3 pixels, the middle one five times; at the border the image itself."""
    h, w, _ = x.shape
    d, wide = x.copy(), x.astype(np.int64)
    if h > 2 and w > 2:
        total = sum(wide[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)) + 4 * wide[1:-1, 1:-1]
        d[1:-1, 1:-1] = (2 * total + 13) // 26  # total / 13, rounded
    return blend(d.astype(np.float32), x, f)


def rotate(x, degrees):
    """Anticlockwise about the centre."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return moved(x, cos, -sin, sin, cos, 0, 0)


def shear_x(x, slope):
    """Each row by so many pixels more to the left than the one above it; the middle row stays."""
    return moved(x, 1, slope, 0, 1, 0, 0)


def shear_y(x, slope):
    """Each column by so many pixels more upwards than the one left of it; the middle column stays."""
    return moved(x, 1, 0, slope, 1, 0, 0)


def translate_x(x, share):
    """To the right by this share of the image's width."""
    return moved(x, 1, 0, 0, 1, share * x.shape[1], 0)


def translate_y(x, share):
    """Down by this share of the image's height."""
    return moved(x, 1, 0, 0, 1, 0, share * x.shape[0])


def blend(d, x, f):
    """d + f (x - d) in float32, cut to 0..255 and rounded down."""
    return (d + np.float32(f) * (x.astype(np.float32) - d)).clip(0, 255).astype(np.uint8)


def grey(x):
    """(h, w, 3) -> (h, w) int64: how bright red, green and blue look to us (ITU-R BT.601)."""
    return (x @ np.array([19595, 38470, 7471]) + 32768) >> 16  # of 65536


def moved(x, a, b, c, d, right, down):
    """Output pixel q shows p = centre + [[a, b], [c, d]] (q - centre - (right, down)); what is outside is 0."""
    matrix = about_centre(x.shape[0], x.shape[1], a, b, c, d, right, down)
    return np.rint(warp.numpy(x[None], matrix[None])[0]).astype(np.uint8)


def about_centre(h, w, a, b, c, d, right, down):
    """The matrix (2, 3) for `warp`."""
    x, y = (w - 1) / 2, (h - 1) / 2
    m = np.empty((2, 3))
    m[0, 0], m[0, 1], m[0, 2] = a, b, x - a * (x + right) - b * (y + down)
    m[1, 0], m[1, 1], m[1, 2] = c, d, y - c * (x + right) - d * (y + down)
    return m


# An operation's number is its place here. The kernel knows them by their numbers.
OPERATIONS = [
    identity, autocontrast, equalize, posterize, solarize, brightness, contrast, colour, sharpness, rotate, shear_x,
    shear_y, translate_x, translate_y,
]  # fmt: skip
(
    IDENTITY, AUTOCONTRAST, EQUALIZE, POSTERIZE, SOLARIZE, BRIGHTNESS, CONTRAST, COLOUR, SHARPNESS, ROTATE, SHEAR_X,
    SHEAR_Y, TRANSLATE_X, TRANSLATE_Y,
) = range(14)  # fmt: skip


def _check(images, operations, amounts):
    B = len(images)
    if images.ndim != 4 or images.dtype != np.uint8 or not operations.shape == amounts.shape == (B,):
        raise ValueError(
            "retouch needs images (B, h, w, C) uint8, and an operation and an amount for each, (B,); "
            f"got {images.dtype} {images.shape}, {operations.shape} and {amounts.shape}"
        )
    if B and not 0 <= operations.min() <= operations.max() < len(OPERATIONS):
        raise ValueError(
            f"retouch: operations must be in [0, {len(OPERATIONS)}), got {operations.min()} to {operations.max()}"
        )
    return contiguous(images, operations.astype(np.int64, copy=False), amounts.astype(np.float64, copy=False))


@Kernel
def retouch(images, operations, amounts):
    """Each image after its operation.

    `images` (B, h, w, C) uint8; `operations` (B,) numbers, places in OPERATIONS; `amounts` (B,), which each operation
    says what they are. Returns changed copies, uint8. Raises ValueError for other shapes or dtypes, and for numbers
    that are no operation.
    """
    images, operations, amounts = _check(images, operations, amounts)
    out = np.empty_like(images)
    if images.size:
        for b, (image, number, amount) in enumerate(zip(images, operations, amounts, strict=True)):
            out[b] = OPERATIONS[number](image, amount)
    return out


@retouch.fast
def retouch(images, operations, amounts):
    images, operations, amounts = _check(images, operations, amounts)
    out = np.empty_like(images)
    if images.size:
        _retouch(images, operations, amounts, out)
    return out


@jit
def _retouch(images, operations, amounts, out):
    _, h, w, C = images.shape
    room, mapped = warp_room(h, w, C), np.empty((h, w, C), np.float32)
    table, count = np.empty(256, np.uint8), np.empty(256, np.int64)
    for b in range(len(images)):
        number, amount = operations[b], amounts[b]
        x, to = images[b].reshape(h * w, C), out[b].reshape(h * w, C)
        flat, flat_to = x.reshape(x.size), to.reshape(x.size)
        if number >= ROTATE:
            warp_image(images[b], _matrix(number, amount, h, w), room, mapped)
            _round_off(mapped.reshape(mapped.size), flat_to)
        elif number == COLOUR and C == 3:
            _colour(x, to, np.float32(amount))
        elif number == IDENTITY or number == COLOUR:
            _copy(flat, flat_to)
        elif number == SHARPNESS:
            _copy(flat, flat_to)
            _sharpness(images[b].reshape(h, w * C), out[b].reshape(h, w * C), C, np.float32(amount))
        elif number == AUTOCONTRAST or number == EQUALIZE:
            for c in range(C):
                _count(x, c, count)
                if number == AUTOCONTRAST:
                    _stretch(count, table)
                else:
                    _spread(count, table)
                _look_up(x, table, to, c)
        else:
            mean = _mean(x) if number == CONTRAST else np.float32(0)
            for level in range(256):
                if number == POSTERIZE:
                    table[level] = level & (256 - (1 << (8 - int(amount))))
                elif number == SOLARIZE:
                    table[level] = level if level < amount else 255 - level
                else:
                    table[level] = _blend(mean, np.float32(level), np.float32(amount))
            _look_up(x.reshape(x.size, 1), table, to.reshape(x.size, 1), 0)


@jit
def _copy(x, out):
    for i in range(x.size):
        out[i] = x[i]


_about_centre = jit(about_centre)


@jit
def _blend(d, x, f):
    return np.uint8(min(max(d + f * (x - d), np.float32(0)), np.float32(255)))


@jit
def _look_up(x, table, out, c):
    for i in range(len(x)):
        out[i, c] = table[x[i, c]]


@jit
def _round_off(x, out):
    for i in range(x.size):
        out[i] = np.uint8(np.rint(x[i]))


@jit
def _count(x, c, count):
    """How many pixels have each level, in one channel."""
    count[...] = 0
    for i in range(len(x)):
        count[x[i, c]] += 1


@jit
def _ends(count):
    """The lowest and the highest level that occur."""
    low, high = 0, 255
    while count[low] == 0:
        low += 1
    while count[high] == 0:
        high -= 1
    return low, high


@jit
def _stretch(count, table):
    low, high = _ends(count)
    for level in range(low, high + 1):
        table[level] = (level - low) * 255 // (high - low) if high > low else level


@jit
def _spread(count, table):
    _, high = _ends(count)
    step = (count.sum() - count[high]) // 255
    below = 0
    for level in range(256):
        table[level] = min((step // 2 + below) // step, 255) if step else level
        below += count[level]


@jit
def _grey(pixel):
    return (19595 * np.int32(pixel[0]) + 38470 * np.int32(pixel[1]) + 7471 * np.int32(pixel[2]) + 32768) >> 16


@jit
def _mean(x):
    """The mean of (h w, C) levels, of colours' greys, rounded."""
    total = 0
    if x.shape[1] == 3:
        for i in range(len(x)):
            total += _grey(x[i])
        return np.float32(np.floor(total / len(x) + 0.5))
    levels = x.reshape(x.size)
    for i in range(x.size):
        total += levels[i]
    return np.float32(np.floor(total / x.size + 0.5))


@jit
def _colour(x, out, f):
    for i in range(len(x)):
        d = np.float32(_grey(x[i]))
        for c in range(3):
            out[i, c] = _blend(d, np.float32(x[i, c]), f)


@jit
def _sharpness(x, out, C, f):
    """x and out (h, w C): a pixel's neighbours in its row are C places away. The border of `out` stays as it is."""
    h, width = x.shape
    half, part = np.float32(0.5), np.float32(1 / 13)
    total = np.empty(max(width - 2 * C, 0), np.float32)
    for i in range(1, h - 1):
        row, to = x[i, C : width - C], out[i, C : width - C]
        for j in range(total.size):
            total[j] = np.float32(4) * np.float32(row[j])
        for near in range(i - 1, i + 2):
            left, middle, right = x[near, : width - 2 * C], x[near, C : width - C], x[near, 2 * C :]
            for j in range(total.size):
                total[j] += np.float32(left[j]) + np.float32(middle[j]) + np.float32(right[j])
        for j in range(total.size):
            to[j] = _blend(np.floor(total[j] * part + half), np.float32(row[j]), f)


@jit
def _matrix(number, amount, h, w):
    if number == ROTATE:
        cos, sin = np.cos(np.radians(amount)), np.sin(np.radians(amount))
        return _about_centre(h, w, cos, -sin, sin, cos, 0.0, 0.0)
    if number == SHEAR_X:
        return _about_centre(h, w, 1.0, amount, 0.0, 1.0, 0.0, 0.0)
    if number == SHEAR_Y:
        return _about_centre(h, w, 1.0, 0.0, amount, 1.0, 0.0, 0.0)
    if number == TRANSLATE_X:
        return _about_centre(h, w, 1.0, 0.0, 0.0, 1.0, amount * w, 0.0)
    return _about_centre(h, w, 1.0, 0.0, 0.0, 1.0, 0.0, amount * h)
