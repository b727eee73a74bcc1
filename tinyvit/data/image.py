"""An image file as the model sees it: upright, 8 bits, grey or colour, of one size.

Training and prediction must prepare an image in the same way. A model that learned from squashed photos and is
asked about cropped ones sees shapes that it never saw, and no error says so. Hence one function for both, and one way
to resize, for files and for data sets alike.

It decides once: the whole picture is squashed to the size asked for, as the paper's code does when it tests, so
that nothing at the edge is lost. What is transparent shows white paper. A model that was trained elsewhere must be
shown what it was shown there, which a `Preparation` says: ImageNet's usual test keeps the proportions and cuts out the
centre.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import contextlib
import math
import warnings
from dataclasses import dataclass

import numpy as np

from tinyvit.data.dataset import Dataset, Split

GREY = ("1", "L", "I", "F")  # how Pillow's names for one channel of light begin: L, LA, I;16 …
ORIENTATION = 0x0112  # EXIF: how the camera was held
SIDEWAYS = (5, 6, 7, 8)
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers for them


@dataclass(frozen=True)
class Preparation:
    """How a picture gets the size that a model reads. Raises ValueError for what cannot be.

    filter: a name among FILTERS, for resizing; all but "nearest" average over the pixels that they merge (antialiased).
    resize: None squashes the picture to the model's size. A number of pixels gives that to its shortest side, keeping
        the proportions; (height, width) squashes it to that. Both then cut out the centre.
    floor: where the margins cannot be equal: whether the one above and on the left is the smaller one, as Hugging Face
        cuts; else it is the even one of the two, as torchvision and timm round.
    """

    filter: str = "bilinear"
    resize: int | tuple[int, int] | None = None
    floor: bool = False

    def __post_init__(self):
        if self.filter not in FILTERS:
            raise ValueError(f"pictures are resized by one of {', '.join(FILTERS)}; got {self.filter!r}")
        for side in () if self.resize is None else np.atleast_1d(self.resize).tolist():
            if type(side) is not int or not 0 < side <= MOST_SIDE:
                raise ValueError(f"pictures are resized to sides of 1 to {MOST_SIDE} pixels, got {side!r}")

    def __call__(self, image, size):
        """The Pillow image with `size` = (width, height)."""
        from PIL import Image

        how = Image.Resampling[self.filter.upper()]
        if self.resize is None:
            return image if image.size == size else image.resize(size, how)
        if isinstance(self.resize, int):
            shortest = min(image.size)
            between = tuple(int(self.resize * side / shortest) for side in image.size)
            if max(between) > MOST_SIDE:
                raise ValueError(
                    f"it is {image.size[0]}×{image.size[1]} pixels, too long and thin to cut out its centre"
                )
        else:
            between = self.resize[::-1]
        cut = math.floor if self.floor else round
        left, top = (cut((side - wanted) / 2) for side, wanted in zip(between, size, strict=True))
        return image.resize(between, how).crop((left, top, left + size[0], top + size[1]))


MOST_SIDE = 16_384
SQUASH = Preparation()


def read_header(path):
    """((width, height) as seen upright, whether the image is grey), without decoding a pixel."""
    with _opened(path) as image:
        sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
        size = image.size[::-1] if sideways else image.size
        return size, image.mode.startswith(GREY) and image.mode != "LAB"


def read_image(path, size, grey, prepare=SQUASH):
    """The image as a uint8 array (h, w, C): `size` is (w, h), C is 1 if `grey`, else 3.

    It is turned as the camera's note says, laid over white and prepared: by default squashed, with a triangle filter
    that averages over all pixels it merges (bilinear). Of 16-bit grey the upper 8 bits are kept; of an animation the
    first frame.

    Raises ValueError for pixels that have no fixed range (32-bit integers, floats), and on hostile bytes whatever
    Pillow raises, which can be anything; above its decompression-bomb limit that is an error, not a warning.
    """
    from PIL import Image, ImageOps

    with _opened(path) as file:
        image = _eight_bits(ImageOps.exif_transpose(file), file.format)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if grey else "RGB")
        return np.array(prepare(image, size)).reshape(size[1], size[0], -1)


def resized(dataset, image_size, prepare=SQUASH):
    """The data set with all images squashed to `image_size`, a side or (height, width), or prepared, as `read_image`
    does it; mean and std are those of the new training images. A larger size adds pixels, and no detail that was not
    there."""
    splits = [
        _resized_split(split, sides(image_size), prepare) for split in (dataset.train, dataset.validation, dataset.test)
    ]
    return Dataset.of(dataset.name, dataset.classes, *splits)


def sides(image_size):
    """(height, width) of a side, or of the two."""
    return image_size if isinstance(image_size, tuple) else (image_size, image_size)


def _resized_split(split, size, prepare):
    from PIL import Image

    M, _, _, C = split.images.shape
    images = np.empty((M, *size, C), np.uint8)
    for old, new in zip(split.images, images, strict=True):
        for c in range(C):
            new[:, :, c] = prepare(Image.fromarray(old[:, :, c]), size[::-1])
    return Split(images, split.labels)


def _eight_bits(image, file_format):
    """16-bit grey as 8-bit grey; other images as they are."""
    from PIL import Image

    wide_pgm = image.mode == "I" and file_format == "PPM"  # 0..65535 in 32 bits
    if image.mode.startswith("I;16") or wide_pgm:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        kind = "32-bit integers" if image.mode.startswith("I") else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, which have no fixed white; save it with 8 or 16 bits a pixel")
    return image


@contextlib.contextmanager
def _opened(path):
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            yield image
