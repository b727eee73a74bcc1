"""Handwritten digits, 8x8 pixels, inside the package: something real to train on in seconds, without a
download.

The test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998): 1,797 images
with 17 grey levels, each level the number of ink pixels in a 4x4 block of a 32x32 scan. Source and licence:
`digits-LICENCE.txt`.

Chapter of the course: notebooks/00-the-map.ipynb.
"""

from pathlib import Path

import numpy as np

from tinyvit.data.dataset import DataError, Dataset, Split, stratified

FILE = Path(__file__).with_name("digits.npz")
SIZES = (1197, 240, 360)  # train, validation, test


def load_digits():
    """1,197 training, 240 validation and 360 test images, (8, 8, 1) uint8; ten classes, balanced in each
    part.

    The grey levels 0..16 are scaled to 0..255 and rounded. The cut into three is ours, stratified and fixed.

    All 1,797 images come from the same 13 writers, and each part holds images of all of them. So the test
    score says how well a model reads *known* hands; for a stranger's hand expect less.
    """
    try:
        with np.load(FILE, allow_pickle=False) as arrays:
            levels, labels = arrays["images"], arrays["labels"]
    except Exception as error:
        raise DataError(
            f"{FILE} is part of the package and must be readable, got {error!r}; "
            "install again: pip install --force-reinstall tinyvit"
        ) from error
    images = np.rint(levels * (255 / 16)).astype(np.uint8)[..., None]
    everything = Split(images, labels.astype(np.int64))
    parts = (everything[index] for index in stratified(labels, SIZES))
    return Dataset.of("digits", tuple("0123456789"), *parts)
