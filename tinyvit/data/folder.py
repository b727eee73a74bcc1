"""Your own images: a folder with one sub-folder a class.

    pets/cat/*.jpg   pets/dog/*.jpg                             cut 80 / 10 / 10 into train, validation, test
    pets/train/cat/*.jpg   …   pets/test/cat/*.jpg              or already cut; val/ or validation/ too

Everything is decoded once and kept as uint8 in memory: simple, and right for some ten thousand small images.
For millions of photos one decodes in background processes, from disk, epoch after epoch.
"""

from pathlib import Path

import numpy as np

from tinyvit.data.dataset import DataError, Dataset, Split, reading, stratified
from tinyvit.data.image import SQUASH, read_header, read_image, sides

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def load_folder(path, image_size=None, prepare=SQUASH):
    """A Dataset from a folder of images; classes are the sub-folders' names, sorted.

    Images are (h, w, 1) if every file is greyscale, else (h, w, 3). `image_size`, a side or (height, width),
    squashes all to that, or `prepare` gives them that size; without it all must agree. How a file becomes pixels:
    `data/image.py`. The cut into parts is fixed and stratified; of a folder with train/ only what is missing is cut
    from it, a tenth each.

    Raises DataError, naming files, for: no images, fewer than two classes, an empty class, a class of test/
    that train/ lacks, unreadable images (all of them, in one error), images above Pillow's decompression-bomb
    limit, and differing sizes without `image_size`.
    """
    path = Path(path)
    with reading(path, "a folder with one sub-folder of images a class"):
        folders = _part_folders(path) or {"all": path}
        classes = _classes(folders.get("train", path))
        files = {part: _files(folder, classes) for part, folder in folders.items()}
    arrays = _decode([file for part in files.values() for file, _ in part], image_size, prepare)
    parts, start = {}, 0
    for part, listed in files.items():
        labels = np.array([label for _, label in listed], np.int64)
        parts[part] = Split(arrays[start : start + len(listed)], labels)
        start += len(listed)
    parts = _cut(parts, path)
    return Dataset.of(path.resolve().name, classes, parts["train"], parts["validation"], parts["test"])


def _subfolders(path):
    return [p for p in _sorted(path) if p.is_dir() and not p.name.startswith((".", "__"))]


def _images(path):
    return [p for p in _sorted(path) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]


def _sorted(path):
    """By name, letter case counting: paths themselves sort differently on Windows."""
    return sorted(path.iterdir(), key=lambda p: p.name)


def _part_folders(path):
    """{part: folder} where the folder is already cut, else {}. A class called "train" holds images itself."""
    folders = [p for p in _subfolders(path) if p.name in PARTS and _subfolders(p) and not _images(p)]
    found = {PARTS[p.name]: p for p in folders}
    if len(found) < len(folders):
        raise DataError(f"{path}: the validation images must lie in val/ or in validation/, got both")
    return found if "train" in found else {}


def _classes(path):
    classes = tuple(p.name for p in _subfolders(path))
    if not classes and _images(path):
        raise DataError(
            f"{path}: images must lie in one sub-folder a class, as in {path / 'cat' / _images(path)[0].name}"
        )
    if len(classes) < 2:
        raise DataError(f"{path}: must have at least two sub-folders, one a class; got {', '.join(classes) or 'none'}")
    return classes


def _files(path, classes):
    """All (file, label) of one part, in an order that does not depend on the file system."""
    strangers = [p.name for p in _subfolders(path) if p.name not in classes]
    if strangers:
        raise DataError(f"{path}: every class must also be in train/, which lacks {', '.join(strangers)}")
    listed = []
    for label, name in enumerate(classes):
        images = _images(path / name) if (path / name).is_dir() else []
        if not images:
            raise DataError(
                f"{path / name}: each class needs at least one image, got none "
                f"with a name that ends in {', '.join(sorted(SUFFIXES))}"
            )
        listed += [(image, label) for image in images]
    return listed


def _decode(files, image_size, prepare):
    """All images as one array (M, h, w, C). All headers are read first: a wrong set costs no decoding."""
    headers = _each(files, read_header)
    grey = all(is_grey for _, is_grey in headers)
    w, h = sides(image_size)[::-1] if image_size else _common_size(files, [size for size, _ in headers])
    images = np.empty((len(files), h, w, 1 if grey else 3), np.uint8)  # where memory is too small, it shows here
    place = dict(zip(files, images, strict=True))
    _each(files, lambda file: np.copyto(place[file], read_image(file, (w, h), grey, prepare)))
    return images


def _each(files, function):
    """[function(file) …], or one DataError that names every file on which it failed."""
    results, broken = [], []
    for file in files:
        try:
            results.append(function(file))
        except Exception as error:  # decoders raise anything at all on hostile bytes
            broken.append(f"{file} ({str(error) or type(error).__name__})")
    if broken:
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise DataError(
            f"all images must be readable, {len(broken)} of {len(files)} are not: "
            f"{'; '.join(broken[:5])}{more}. Remove or replace them"
        )
    return results


def _common_size(files, sizes):
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            (w0, h0), (w1, h1) = sizes[0], size
            raise DataError(
                f"all images must have one size, but {files[0]} is {w0}x{h0} and {file} is {w1}x{h1}; "
                "resize them on loading, for instance with image_size=32 (--image-size 32 on the command line)"
            )
    return sizes[0]


def _cut(parts, path):
    """Add the parts that are missing, each a tenth of the images at hand."""
    missing = [part for part in ("train", "validation", "test") if part not in parts and part != "train"]
    source = parts.pop("all", None) or parts.pop("train")
    if len(source) <= len(missing):
        raise DataError(f"{path}: {len(missing) + 1} parts need at least as many images, got {len(source)}")
    tenth = max(1, round(len(source) / 10))
    sizes = [len(source) - tenth * len(missing)] + [tenth] * len(missing)
    cut = [source[index] for index in stratified(source.labels, sizes)]
    return parts | dict(zip(["train", *missing], cut, strict=True))
