"""Where the four public data sets come from, and how to know that a file is the right one.

Each file's *decompressed content* has a checksum here, so that any mirror, any recompression and any unpacked
copy can be checked against the one original.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyvit.data.cifar import read_cifar, split_records
from tinyvit.data.idx import read_idx, read_labels


@dataclass(frozen=True)
class File:
    """One file to find or to download.

    `name` is its name at the mirrors; `unpacked` the name of its unpacked form, of an archive the first member's.
    `read(path)` checks the format in full and returns {content name: uint8 array}; it raises DataError.
    """

    name: str
    unpacked: str
    read: Callable[[Path], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """A public data set: its files, their checksums, their homes, and how to assemble them.

    `folders` are the sub-folder names to look in. `checksums` maps a content name to "algorithm:hex" of the
    decompressed bytes. `assemble(contents)` returns ((images, labels) of training, of test). `validation`
    images are cut from training.
    """

    classes: tuple[str, ...]
    files: tuple[File, ...]
    checksums: dict[str, str]
    mirrors: tuple[str, ...]
    folders: tuple[str, ...]
    assemble: Callable
    validation: int = 5_000


def idx_source(classes, checksums, mirrors, folders, train=60_000, test=10_000, side=28, validation=5_000):
    """Four IDX files in MNIST's layout; `checksums` in the order of IDX_NAMES."""

    def file(name, count):
        if "images" in name:
            return File(f"{name}.gz", name, lambda path: {name: read_idx(path, (count, side, side))})
        return File(f"{name}.gz", name, lambda path: {name: read_labels(path, count, len(classes))})

    def assemble(contents):
        images, labels, test_images, test_labels = (contents[name] for name in IDX_NAMES)
        return (images[..., None], labels.astype(np.int64)), (
            test_images[..., None],
            test_labels.astype(np.int64),
        )

    files = tuple(file(name, test if "t10k" in name else train) for name in IDX_NAMES)
    return Source(classes, files, dict(zip(IDX_NAMES, checksums, strict=True)), mirrors, folders, assemble, validation)


def cifar_source(classes, archive, folder, train, test, label_bytes, checksums, mirrors, folders, validation=5_000):
    """One archive of record files. `train` and `test` map member names to numbers of records."""
    members = train | test

    def read(path):
        return read_cifar(path, folder, members, label_bytes, len(classes))

    def assemble(contents):
        return [split_records([contents[name] for name in part], label_bytes) for part in (train, test)]

    files = (File(archive, next(iter(members)), read),)
    return Source(classes, files, dict(zip(members, checksums, strict=True)), mirrors, folders, assemble, validation)


IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# The original host throttles: 55 kB/s, which is an hour for the archive
# (github.com/pytorch/vision/issues/9536). So the mirror comes first; with the members' checksums it does not
# matter who sends them.
CIFAR_MIRRORS = (
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
    "https://www.cs.toronto.edu/~kriz/",
)

SOURCES = {
    # LeCun, Cortes and Burges 1998. SHA-256 of the decompressed files, computed from a copy whose MD5s are
    # the published ones.
    "mnist": idx_source(
        tuple("0123456789"),
        (
            "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        ("mnist", "MNIST/raw"),
    ),
    # Xiao, Rasul and Vollgraf 2017 (MIT licence). Published MD5s of the decompressed files. MD5 no longer
    # withstands a forger who makes both files, but a second file with a given MD5 nobody can make.
    "fashion": idx_source(
        (
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        (
            "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "md5:9018921c3c673c538a1fc5bad174d6f9",
            "md5:8181f5470baa50b63fa0f6fddb340f0a",
            "md5:15d484375f8d13e6eb1aabb0c3f46965",
        ),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        ("fashion", "fashion-mnist", "FashionMNIST/raw"),
    ),
    # Krizhevsky 2009, both. SHA-256 of the members, as published by other readers of the binary version.
    "cifar10": cifar_source(
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        {"test_batch.bin": 10_000},
        1,
        (
            "sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "sha256:8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
        CIFAR_MIRRORS,
        ("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
    ),
    "cifar100": cifar_source(
        tuple(
            """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
            butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
            crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
            lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
            oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
            possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
            spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
            train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
        ),
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        {"train.bin": 50_000},
        {"test.bin": 10_000},
        2,
        (
            "sha256:f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
            "sha256:d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
        CIFAR_MIRRORS,
        ("cifar100", "cifar-100-binary", "cifar100/cifar-100-binary"),
    ),
}
