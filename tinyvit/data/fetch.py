"""`load`: find a data set on this computer, or download it, and believe nothing before it is checked.

Search order: the `root` argument, the folder in the environment variable TINYVIT_DATA, the cache, the
mirrors. Your own files (the first two) must have the right format; if they are another version of the data, a
warning says so. What was downloaded must be the original, byte for byte: over the network, a wrong file is an
accident or an attack.

A download goes to a temporary name, is read and checked there, and then takes its final name in one step
(`os.replace`). Whatever happens before that, a power cut or Ctrl-C, leaves no file that counts.
"""

import difflib
import hashlib
import os
import warnings
from pathlib import Path

from tinyvit.data.dataset import DataError, Dataset, Split, stratified
from tinyvit.data.digits import load_digits
from tinyvit.data.folder import load_folder
from tinyvit.data.idx import header
from tinyvit.data.image import SQUASH, resized, sides
from tinyvit.data.sources import SOURCES

NAMES = ("digits", *SOURCES)
TIMEOUT = 30  # seconds without a byte before a mirror is given up


def load(name, *, root=None, download=True, image_size=None, prepare=SQUASH):
    """Load a data set by name, or a folder of images by path; returns a `Dataset`.

        digits      1,197 / 240 / 360 images, 8x8x1; part of the package
        mnist       55,000 / 5,000 / 10,000 images, 28x28x1, handwritten digits
        fashion     the same sizes, pieces of clothing
        cifar10     45,000 / 5,000 / 10,000 images, 32x32x3, ten classes
        cifar100    the same sizes, a hundred classes

    (train / validation / test). `root` is a folder to look in first; `download=False` keeps off the network.
    A path (`load("pets")`) reads a folder with one sub-folder a class, see `data/folder.py`. `image_size`, a side
    or (height, width), squashes all images to that; or another `Preparation` gives them that size, see `data/image.py`.

    Raises DataError for whatever is wrong: an unknown name, a file that cannot be had, is damaged, or is not
    what it claims.
    """
    pixels = (1, 1) if image_size is None else sides(image_size)
    if len(pixels) != 2 or not all(isinstance(side, int) and side >= 1 for side in pixels):
        raise DataError(
            f"image_size must be a whole number of pixels from 1 up, or two, (height, width); got {image_size!r}"
        )
    if name == "digits" or name in SOURCES:
        dataset = load_digits() if name == "digits" else _load_source(name, SOURCES[name], root, download)
        return resized(dataset, image_size, prepare) if image_size else dataset
    if Path(name).is_dir():
        return load_folder(name, image_size, prepare)
    near = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
    raise DataError(
        f"the data set must be one of {', '.join(NAMES)}, or a folder with one sub-folder of images a class; "
        f"got {str(name)!r}, which is neither" + (f". Did you mean {near[0]!r}?" if near else "")
    )


def cache_folder():
    """Where downloads are kept: the user's cache folder of this operating system."""
    import pooch

    return Path(pooch.os_cache("tinyvit"))


def found_in(folder):
    """The names of the public data sets whose files are in a folder (a cache, TINYVIT_DATA). Reads none of them."""
    place = [Path(folder)]
    return [name for name, source in SOURCES.items() if all(_find(file, source, place) for file in source.files)]


def _load_source(name, source, root, download):
    contents, foreign = {}, []
    for file in source.files:
        path = _find(file, source, _own_folders(root))
        if path:
            found = file.read(path)
            foreign += [(path.parent, content) for content in _other_version(found, source, name, path)]
        else:
            found = _from_cache(name, source, file, root, download)
        contents |= found
    if foreign:
        folder, content = foreign[0]
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        warnings.warn(
            f"{name}: {folder} holds another version than the original ({content}{more}); "
            "the format is right, but scores may not compare",
            stacklevel=3,
        )
    (images, labels), (test_images, test_labels) = source.assemble(contents)
    train, validation = stratified(labels, (len(labels) - source.validation, source.validation))
    everything = Split(images, labels)
    return Dataset.of(name, source.classes, everything[train], everything[validation], Split(test_images, test_labels))


# --- on this computer ---------------------------------------------------------------------------------


def _own_folders(root):
    """The user's folders, in the order in which they are searched."""
    named = {"root": root, "TINYVIT_DATA": os.environ.get("TINYVIT_DATA")}
    for what, folder in named.items():
        if folder and not Path(folder).is_dir():
            raise DataError(f"{what} must name an existing folder, got {os.fspath(folder)!r}")
    return [Path(folder) for folder in named.values() if folder]


def _find(file, source, folders):
    """The first place that has the file; of each folder first the sub-folders with the data set's name."""
    for folder in folders:
        for place in (*source.folders, "."):
            for name in (file.name, file.unpacked):
                if (folder / place / name).is_file():
                    return folder / place / name
    return None


def _from_cache(name, source, file, root, download):
    path = cache_folder() / name / file.name
    if path.is_file():
        try:
            return _read_original(file, path, source)
        except DataError:  # damaged on disk: fetch it again
            if not download:
                raise
    if download:
        return _download(name, source, file, path, root)
    raise _missing(name, source, file, root, ["download=False: no mirror was asked"])


# --- is it the original? ------------------------------------------------------------------------------


def _digest(array, algorithm):
    """Checksum of the decompressed file that the array was read from; an IDX file's header counts too."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    digest.update(header(array.shape) if _is_idx(array) else b"")
    digest.update(array.data)
    return digest.hexdigest()


def _is_idx(array):
    return array.ndim != 2  # images have three dimensions, labels one; CIFAR's records two


def _matches(array, checksum):
    algorithm, expected = checksum.split(":")
    return _digest(array, algorithm) == expected


def _read_original(file, path, source):
    found = file.read(path)
    for content, array in found.items():
        if not _matches(array, source.checksums[content]):
            raise DataError(f"{path} is not the original: {content} must have checksum {source.checksums[content]}")
    return found


def _other_version(found, source, name, path):
    """Which of the user's contents differ from the original.

    Raises DataError where one is another data set's original: MNIST and Fashion-MNIST share their file names.
    """
    differing = [content for content in found if not _matches(found[content], source.checksums[content])]
    for content in differing:
        for other in SOURCES.keys() - {name}:
            checksum = SOURCES[other].checksums.get(content)
            if checksum and _matches(found[content], checksum):
                raise DataError(f"{path} must hold {name}, but is {other}'s; put each data set in a folder of its name")
    return differing


# --- from the network ---------------------------------------------------------------------------------


def _download(name, source, file, path, root):
    """Ask the mirrors in turn; keep and read the first original. DataError with all answers otherwise."""
    from pooch import HTTPDownloader

    fetch = HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    part = path.with_name(f"{file.name}.{os.getpid()}.part")  # a name that no search looks for
    answers = []
    for mirror in source.mirrors:
        url = mirror + file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(url, str(part), None)
            found = _read_original(file, part, source)
            os.replace(part, path)
            return found
        except DataError as error:
            answers.append(f"{url}: {str(error).replace(str(part), 'the file sent')}")
        except OSError as error:  # requests' exceptions are OSErrors too
            answers.append(f"{url}: {_reason(error, path)}")
        finally:
            part.unlink(missing_ok=True)
    raise _missing(name, source, file, root, answers)


def _reason(error, path):
    """One line for people: what kept a download from succeeding."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, exceptions.Timeout):
        return f"no answer within {TIMEOUT} seconds"
    if isinstance(error, exceptions.SSLError):
        return "its certificate was not accepted; is there a proxy in between?"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection; is this computer online?"
    if isinstance(error, exceptions.RequestException):
        return str(error)
    return f"cannot write to {path.parent}: {error.strerror or error}"  # disk full, no permission


def _missing(name, source, file, root, answers):
    looked = [*_own_folders(root), cache_folder() / name]
    lines = [
        f"{name}: {file.name} (or, unpacked, {file.unpacked}) must be on this computer or be downloaded, "
        "and could not be had",
        "looked in " + ", ".join(map(str, looked)),
        *answers,
        f"download it elsewhere, for instance from {source.mirrors[-1]}{file.name}, and set TINYVIT_DATA "
        "to its folder; `digits` needs no download",
    ]
    return DataError("\n  ".join(lines))
