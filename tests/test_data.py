"""Data sets: the right images in the right part, found in the right place, or a clear error."""

import gzip
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvit.data import NAMES, DataError, Dataset, Split, fetch, load
from tinyvit.data.dataset import channel_statistics, normalise, stratified
from tinyvit.data.idx import header
from tinyvit.data.image import read_header, read_image
from tinyvit.data.sources import IDX_NAMES, cifar_source, idx_source

PARTS = ("train", "validation", "test")


# --- toy copies of the public formats -----------------------------------------------------------------


def toy_idx():
    """{file name: content} of a tiny set in MNIST's format: 30 training, 10 test images, 4x4, 3 classes."""
    rng = np.random.default_rng(0)
    shapes = [(30, 4, 4), (30,), (10, 4, 4), (10,)]
    return {
        name: header(shape) + rng.integers(0, 256 if len(shape) == 3 else 3, shape, np.uint8).tobytes()
        for name, shape in zip(IDX_NAMES, shapes, strict=True)
    }


def toy_cifar():
    """{file name: content}: two training files of 10 records and a test file of 10, 3 classes."""
    rng = np.random.default_rng(0)
    contents = {}
    for name in ("a.bin", "b.bin", "t.bin"):
        records = rng.integers(0, 256, (10, 3073), np.uint8)
        records[:, 0] %= 3
        contents[name] = records.tobytes()
    return contents


def tarred(contents, folder="toy-bin"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def checksums(contents):
    return ["sha256:" + hashlib.sha256(content).hexdigest() for content in contents.values()]


IDX = idx_source(("a", "b", "c"), checksums(toy_idx()), (), ("toy",), train=30, test=10, side=4, validation=6)
CIFAR = cifar_source(
    ("a", "b", "c"), "toy.tar.gz", "toy-bin", {"a.bin": 10, "b.bin": 10}, {"t.bin": 10}, 1,
    checksums(toy_cifar()), (), ("toyc", "toy-bin"), validation=5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def sandbox(monkeypatch, tmp_path):
    """Toy sources, an empty cache, and no TINYVIT_DATA: no test reads or fills a developer's own cache."""
    monkeypatch.setitem(fetch.SOURCES, "toy", IDX)
    monkeypatch.setitem(fetch.SOURCES, "toyc", CIFAR)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("TINYVIT_DATA", raising=False)
    return tmp_path


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def packed(contents):
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}


def same(one, other):
    return all(
        np.array_equal(getattr(one, part).images, getattr(other, part).images)
        and np.array_equal(getattr(one, part).labels, getattr(other, part).labels)
        for part in PARTS
    )


# --- digits -------------------------------------------------------------------------------------------


def test_digits_sizes_and_balance():
    """Protects: the published split; a change of it would make old scores incomparable."""
    digits = load("digits")
    assert [len(getattr(digits, part)) for part in PARTS] == [1197, 240, 360]
    assert digits.classes == tuple("0123456789")
    for part in PARTS:
        split = getattr(digits, part)
        assert split.images.shape[1:] == (8, 8, 1) and split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        counts = np.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= max(2, 0.06 * counts.max())


def test_digits_are_pinned():
    """Protects: pixels, labels and order, on every platform and NumPy."""
    digest = hashlib.sha256()
    for part in PARTS:
        split = getattr(load("digits"), part)
        digest.update(split.images.tobytes() + split.labels.astype("<i8").tobytes())
    assert digest.hexdigest() == "98c3e51a857c5f76d5c32d880656fdb1f9016b45fe0057ba4159bef23f71314b"


def test_no_digit_is_in_two_parts():
    """Protects: a test image seen in training would make every score a lie."""
    digits = load("digits")
    seen = [{image.tobytes() for image in getattr(digits, part).images} for part in PARTS]
    assert len(seen[0] | seen[1] | seen[2]) == sum(map(len, seen)) == 1797


@pytest.mark.parametrize("size", [16, 5])
def test_a_named_set_is_resized_as_a_file_is(size, sandbox):
    """Protects: what `predict` makes of a picture of a digit is what the model was trained on."""
    small, large = load("digits"), load("digits", image_size=size)
    for part in PARTS:
        assert getattr(large, part).images.shape == (len(getattr(small, part)), size, size, 1)
        np.testing.assert_array_equal(getattr(large, part).labels, getattr(small, part).labels)
    for i in (0, 359):
        Image.fromarray(small.test.images[i, :, :, 0]).save(sandbox / "digit.png")
        np.testing.assert_array_equal(read_image(sandbox / "digit.png", (size, size), True), large.test.images[i])
    np.testing.assert_allclose(large.mean[0], large.train.images.mean() / 255, rtol=1e-9)
    assert large.std != small.std and large.classes == small.classes and same(small, load("digits", image_size=8))


def test_a_colour_set_is_resized_channel_by_channel(sandbox):
    write(sandbox / "data" / "toy-bin", toy_cifar())
    small, large = (load("toyc", root=sandbox / "data", download=False, image_size=size) for size in (None, 48))
    Image.fromarray(small.train.images[3]).save(sandbox / "x.png")
    np.testing.assert_array_equal(read_image(sandbox / "x.png", (48, 48), False), large.train.images[3])
    wide = load("toyc", root=sandbox / "data", download=False, image_size=(20, 48))
    np.testing.assert_array_equal(read_image(sandbox / "x.png", (48, 20), False), wide.train.images[3])


# --- Split, Dataset, helpers --------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(70, 20, 10), (97, 1, 2), (100, 0, 0), (34, 33, 33)])
def test_stratified_parts_are_disjoint_complete_and_proportional(sizes):
    """Protects: no sample lost or in two parts, and every class's share within 2 of its exact value."""
    labels = np.repeat([0, 1, 2, 5], [50, 30, 19, 1])
    parts = stratified(labels, sizes)
    assert [len(part) for part in parts] == list(sizes)
    assert sorted(np.concatenate(parts)) == list(range(100))
    for part in parts:
        for label, count in ((0, 50), (1, 30), (2, 19)):
            assert abs((labels[part] == label).sum() - len(part) * count / 100) <= 2


def test_stratified_depends_on_the_seed_only():
    labels = np.arange(60) % 3
    once, again, other = (stratified(labels, (40, 20), seed)[1].tolist() for seed in (0, 0, 1))
    assert once == again != other
    with pytest.raises(DataError, match="must sum to the 60"):
        stratified(labels, (40, 21))


def test_statistics_are_those_of_numpy():
    """Protects: sums in whole numbers over several chunks give the mean and std of the whole."""
    images = np.random.default_rng(0).integers(0, 256, (2345, 3, 2, 3), np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-9)


def test_a_constant_channel_normalises_to_zero():
    """Protects: no division by zero for all-black images."""
    images = np.full((4, 2, 2, 1), 7, np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(normalise(images, mean, std), 0, atol=1e-6)


def test_split_and_dataset_check_what_they_are_given():
    good = Split(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 2]))
    assert len(good) == 3 and len(good[1:]) == 2
    with pytest.raises(DataError, match="uint8"):
        Split(np.zeros((3, 2, 2, 1)), good.labels)
    with pytest.raises(DataError, match="one for each of the 3 images"):
        Split(good.images, good.labels[:2])
    with pytest.raises(DataError, match=r"0\.\.1"):
        Dataset.of("x", ("a", "b"), good, good, good)


# --- finding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "toy"])
@pytest.mark.parametrize("form", [dict, packed])
def test_idx_is_read_raw_and_gzipped_from_root(sandbox, place, form):
    write(sandbox / "data" / place, form(toy_idx()))
    toy = load("toy", root=sandbox / "data", download=False)
    assert [len(getattr(toy, part)) for part in PARTS] == [24, 6, 10]
    expected = np.frombuffer(toy_idx()[IDX_NAMES[2]], np.uint8)[16:].reshape(10, 4, 4, 1)
    np.testing.assert_array_equal(toy.test.images, expected)


def test_cifar_is_read_from_archive_and_folder_alike(sandbox):
    """Protects: planes become colours of pixels, and both forms give the same set."""
    write(sandbox / "one", {"toy.tar.gz": tarred(toy_cifar() | {"readme.html": b"hello"})})
    write(sandbox / "two" / "toy-bin", toy_cifar())
    one, two = (load("toyc", root=sandbox / name, download=False) for name in ("one", "two"))
    assert same(one, two) and len(one.train) == 15 and len(one.validation) == 5
    record = np.frombuffer(toy_cifar()["t.bin"], np.uint8)[:3073]
    assert one.test.labels[0] == record[0]
    np.testing.assert_array_equal(one.test.images[0, 0, 1], record[[1 + 1, 1 + 1024 + 1, 1 + 2048 + 1]])


def test_search_order_is_root_then_environment_then_cache(sandbox, monkeypatch):
    """Protects: the nearest word counts; and what a user put there wins over what was downloaded."""
    write(sandbox / "cache" / "toy", packed(toy_idx()))
    assert load("toy", download=False)
    write(sandbox / "environment", {IDX_NAMES[0]: b"wrong"})
    monkeypatch.setenv("TINYVIT_DATA", str(sandbox / "environment"))
    with pytest.raises(DataError, match="environment"):
        load("toy", download=False)
    write(sandbox / "root", toy_idx())
    assert load("toy", root=sandbox / "root", download=False)


def test_another_version_of_the_users_own_gives_one_warning(sandbox):
    contents = toy_idx()
    for name in IDX_NAMES[:2]:
        contents[name] = contents[name][:-1] + b"\1"
    contents[IDX_NAMES[0]] = contents[IDX_NAMES[0]][:-1] + bytes([contents[IDX_NAMES[0]][-1] ^ 1])
    write(sandbox / "data", contents)
    with pytest.warns(UserWarning, match="another version than the original") as caught:
        load("toy", root=sandbox / "data", download=False)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_files_of_a_namesake_are_not_taken(sandbox, monkeypatch):
    """Protects: MNIST and Fashion-MNIST share their file names; one must not pass for the other."""
    monkeypatch.setitem(fetch.SOURCES, "other", replace(IDX, checksums=dict.fromkeys(IDX_NAMES, "sha256:00")))
    write(sandbox / "data", toy_idx())
    with pytest.raises(DataError, match="must hold other, but is toy's"):
        load("other", root=sandbox / "data", download=False)


def test_what_a_folder_holds_is_told(sandbox):
    """Protects: `tinyvit info` names the sets that are at hand, and not one of which a file is missing."""
    write(sandbox / "data" / "toy", packed(toy_idx()))
    write(sandbox / "data" / "toy-bin", toy_cifar())
    assert fetch.found_in(sandbox / "data") == ["toy", "toyc"]
    next((sandbox / "data" / "toy").iterdir()).unlink()
    assert fetch.found_in(sandbox / "data") == ["toyc"]


def test_unknown_name_and_wrong_folders(sandbox, monkeypatch):
    with pytest.raises(DataError, match="digits, mnist, fashion, cifar10, cifar100.*Did you mean 'mnist'"):
        load("Mnist")
    with pytest.raises(DataError, match="digits") as caught:
        load("xylophone")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(DataError, match="root must name an existing folder"):
        load("toy", root=sandbox / "nowhere")
    monkeypatch.setenv("TINYVIT_DATA", str(sandbox / "nowhere"))
    with pytest.raises(DataError, match="TINYVIT_DATA must name an existing folder"):
        load("toy")
    assert load("digits")
    for size in (0, -1, 2.5, (8, 0), (8,), (8, 8, 1), [8, 8], (2.5, 8)):
        with pytest.raises(DataError, match=r"image_size must be a whole number of pixels from 1 up, or two"):
            load("digits", image_size=size)
    assert NAMES == ("digits", "mnist", "fashion", "cifar10", "cifar100")


def test_missing_and_offline_says_what_where_and_how(sandbox):
    """Protects: the first message a user without a network sees."""
    with pytest.raises(DataError) as caught:
        load("mnist", root=sandbox, download=False)
    message = str(caught.value)
    for needed in (
        "train-images-idx3-ubyte.gz",
        str(sandbox),
        str(sandbox / "cache"),
        "https://",
        "TINYVIT_DATA",
        "digits",
    ):
        assert needed in message


# --- downloading --------------------------------------------------------------------------------------


class Mirror(http.server.BaseHTTPRequestHandler):
    """/good/… serves the toy files, /gone/… 404, /wrong/… other bytes, /cut/… breaks off half-way."""

    asked = []

    def do_GET(self):
        _, kind, name = self.path.split("/", 2)
        self.asked.append(kind)
        content = (packed(toy_idx()) | {"toy.tar.gz": tarred(toy_cifar())})[name]
        if kind == "gone":
            self.send_error(404)
            return
        if kind == "wrong":
            content = b"<html>please log in</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if kind == "cut" else content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def mirrors(monkeypatch, server):
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def use(*kinds):
        Mirror.asked.clear()
        urls = tuple(f"{server}/{kind}/" for kind in kinds)
        monkeypatch.setitem(fetch.SOURCES, "toy", replace(IDX, mirrors=urls))
        monkeypatch.setitem(fetch.SOURCES, "toyc", replace(CIFAR, mirrors=urls))

    return use


def kept(sandbox):
    return sorted(p.name for p in (sandbox / "cache").rglob("*") if p.is_file())


@pytest.mark.parametrize("kinds", [("good",), ("gone", "good"), ("wrong", "good"), ("cut", "good")])
def test_the_first_mirror_that_has_the_original_is_used_once(sandbox, mirrors, kinds):
    mirrors(*kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = load("toy")
        assert kept(sandbox) == sorted(packed(toy_idx()))
        assert set(Mirror.asked) == set(kinds)
        mirrors("gone")
        assert same(first, load("toy")) and not Mirror.asked


def test_an_archive_is_downloaded_and_checked_by_its_members(sandbox, mirrors):
    mirrors("gone", "good")
    assert len(load("toyc").train) == 15
    assert kept(sandbox) == ["toy.tar.gz"]


def test_a_wrong_download_is_deleted_and_refused(sandbox, mirrors):
    """Protects: a captive portal's page or a forged file never becomes a data set."""
    mirrors("wrong", "gone", "cut")
    for name in ("toy", "toyc"):
        with pytest.raises(DataError) as caught:
            load(name)
        assert kept(sandbox) == []
        for needed in ("/wrong/", "/gone/", "404", "/cut/", "broke off"):
            assert needed in str(caught.value)


def test_right_format_but_other_content_is_refused(sandbox, mirrors, monkeypatch):
    """Protects: over the network the checksum decides, not the format."""
    mirrors("good")
    source = replace(fetch.SOURCES["toy"], checksums=dict.fromkeys(IDX_NAMES, "sha256:00"))
    monkeypatch.setitem(fetch.SOURCES, "toy", source)
    with pytest.raises(DataError, match="is not the original"):
        load("toy")
    assert kept(sandbox) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_download_leaves_nothing_that_counts(sandbox, mirrors, monkeypatch, interrupt):
    import pooch

    class Interrupted:
        def __init__(self, **_):
            pass

        def __call__(self, url, output, _):
            Path(output).write_bytes(b"half")
            raise interrupt

    mirrors("good")
    with monkeypatch.context() as patch:
        patch.setattr(pooch, "HTTPDownloader", Interrupted)
        with pytest.raises(interrupt):
            load("toy")
    assert kept(sandbox) == []
    assert load("toy")


def test_no_server_and_no_room(sandbox, mirrors, monkeypatch):
    """Protects: no traceback of a library, but a reason in plain words."""
    import pooch

    mirrors("good")
    source = replace(fetch.SOURCES["toy"], mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(fetch.SOURCES, "toy", source)
    with pytest.raises(DataError, match="no connection"):
        load("toy")

    def full(self, url, output, _):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(DataError, match="cannot write to .*No space left"):
        load("toy")


def test_a_damaged_cache_is_downloaded_again(sandbox, mirrors):
    """Protects: a bad disk does not stop a user for ever; without the network it says so."""
    write(sandbox / "cache" / "toy", packed(toy_idx()) | {f"{IDX_NAMES[0]}.gz": b"damaged"})
    with pytest.raises(DataError, match="train-images"):
        load("toy", download=False)
    mirrors("good")
    assert load("toy")
    assert Mirror.asked == ["good"]


# --- folders of images --------------------------------------------------------------------------------


def paint(path, value=0, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 255 - value, 0)).save(path)


@pytest.fixture
def pets(sandbox):
    for i in range(20):
        paint(sandbox / "pets" / "cat" / f"{i}.png", i)
        paint(sandbox / "pets" / "dog" / f"{i}.png", 100 + i)
    return sandbox / "pets"


def test_a_folder_is_cut_80_10_10(pets):
    (pets / "cat" / "notes.txt").write_text("not an image", encoding="utf-8")
    (pets / ".hidden").mkdir()
    data = load(str(pets))
    assert data.name == "pets" and data.classes == ("cat", "dog")
    assert [len(getattr(data, part)) for part in PARTS] == [32, 4, 4]
    assert data.train.images.shape[1:] == (5, 6, 3)
    for part in PARTS:
        split = getattr(data, part)
        assert ((split.images[:, 0, 0, 0] >= 100) == split.labels).all()
        assert 2 * split.labels.sum() == len(split)
    assert same(data, load(pets))


@pytest.mark.parametrize("given", [("test",), ("val",), ("validation", "test"), ("val", "test")])
def test_a_folder_that_is_already_cut(pets, given):
    pets.rename(pets.with_name("train"))
    root = pets.with_name("cut")
    root.mkdir()
    pets.with_name("train").rename(root / "train")
    for part in given:
        paint(root / part / "cat" / "x.png", 50)
        paint(root / part / "dog" / "y.png", 150)
    data = load(root)
    names = {"val": "validation"}
    for part in given:
        split = getattr(data, names.get(part, part))
        assert split.images[:, 0, 0, 0].tolist() == [50, 150] and split.labels.tolist() == [0, 1]
    assert len(data.train) == 40 - 4 * (2 - len(given))


def test_a_class_may_be_called_train(pets):
    """Protects: vehicles/train/*.png is a class, not a part."""
    (pets / "cat").rename(pets / "train")
    assert load(pets).classes == ("dog", "train")


def test_grey_stays_grey_and_mixed_becomes_colour(pets):
    for file in pets.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert load(pets).train.images.shape[1:] == (5, 6, 1)
    paint(pets / "cat" / "0.png", 0)
    assert load(pets).train.images.shape[1:] == (5, 6, 3)


def test_sixteen_bit_grey_keeps_its_upper_byte(sandbox):
    """Protects: medical and depth images do not turn white."""
    for name in "ab":
        for i in range(4):
            path = sandbox / "deep" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((3, 3), 256 * (10 + i), np.uint16)).save(path)
    data = load(sandbox / "deep")
    values = np.concatenate([getattr(data, part).images.ravel() for part in PARTS])
    assert set(values) == {10, 11, 12, 13}


@pytest.mark.parametrize(
    ("name", "mode", "levels"),
    [("x.png", "I;16", 256), ("x.tif", "I;16", 256), ("x.pgm", "I;16", 256), ("x.png", "L", 1)],
)
def test_grey_levels_of_8_and_16_bits(sandbox, name, mode, levels):
    """Protects: each of the ways in which Pillow hands out 16-bit grey keeps its upper byte."""
    kind = np.uint8 if mode == "L" else np.uint16
    Image.fromarray((np.arange(12).reshape(3, 4) * 20 * levels).astype(kind)).save(sandbox / name)
    assert read_header(sandbox / name) == ((4, 3), True)
    assert read_image(sandbox / name, (4, 3), grey=True).ravel().tolist() == list(range(0, 240, 20))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_fixed_range_are_refused(sandbox, mode):
    """Protects: a height map or a float mask is not clipped into black and white without a word."""
    Image.new(mode, (3, 3), 7).save(sandbox / "x.tif")
    with pytest.raises(ValueError, match="pixels are (32-bit integers|floating-point numbers).*8 or 16 bits"):
        read_image(sandbox / "x.tif", (3, 3), grey=True)
    for name in "ab":
        paint(sandbox / "maps" / name / "x.tif", 7, mode=mode)
    with pytest.raises(DataError, match="2 of 2 are not.*x.tif .its pixels are"):
        load(sandbox / "maps")


@pytest.mark.parametrize(
    ("mode", "clear", "expected"), [("RGBA", (0, 0, 0, 0), 255), ("LA", (0, 0), 255), ("RGBA", (9, 9, 9, 255), 9)]
)
def test_what_is_transparent_is_white(sandbox, mode, clear, expected):
    """Protects: the colour under full transparency, which no viewer shows, is not learned."""
    Image.new(mode, (3, 2), clear).save(sandbox / "x.png")
    for grey in (True, False):
        pixels = read_image(sandbox / "x.png", (3, 2), grey)
        assert pixels.shape == (2, 3, 1 if grey else 3) and (pixels == expected).all()


def test_a_palette_with_a_transparent_colour(sandbox):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putdata([0, 1])
    image.save(sandbox / "x.gif", transparency=0)
    assert read_image(sandbox / "x.gif", (2, 1), grey=False).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_the_whole_picture_is_squashed(sandbox):
    """Protects: what stands at the edge of a wide picture stays in it, in training and prediction."""
    image = Image.new("L", (40, 10), 0)
    image.paste(255, (0, 0, 10, 10))
    image.save(sandbox / "wide.png")
    pixels = read_image(sandbox / "wide.png", (8, 8), grey=True)[:, :, 0]
    assert pixels[:, 0].min() == 255 and pixels[:, 3:].max() == 0


def test_sizes_must_agree_or_be_given(pets):
    paint(pets / "dog" / "odd.png", 3, size=(9, 9))
    with pytest.raises(DataError) as caught:
        load(pets)
    for needed in ("cat", "odd.png", "6x5", "9x9", "image_size=", "--image-size"):
        assert needed in str(caught.value)
    assert load(pets, image_size=7).train.images.shape[1:] == (7, 7, 3)
    assert load(pets, image_size=(7, 4)).train.images.shape[1:] == (7, 4, 3)
    with pytest.raises(DataError, match="image_size must be"):
        load(pets, image_size=0)


def test_a_camera_held_sideways_is_turned(sandbox):
    """Protects: phones store photos sideways with a note; everyone else's viewer obeys it."""
    for name in "ab":
        for i in range(4):
            path = sandbox / "photos" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (16, 8), (0, 0, 0))
            image.paste((255, 255, 255), (0, 0, 8, 8))
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(path, exif=exif, quality=95)
    images = load(sandbox / "photos").train.images
    assert images.shape[1:] == (16, 8, 3)
    assert images[0, :7].min() > 200 and images[0, 9:].max() < 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pets: (pets / "cow").mkdir(), "cow: each class needs at least one image"),
        (lambda pets: shutil.rmtree(pets / "dog"), "at least two sub-folders"),
        (lambda pets: [shutil.rmtree(pets / "dog"), (pets / "cat").rename(pets.with_name("c")),
                       shutil.rmtree(pets), pets.with_name("c").rename(pets)], "one sub-folder a class"),
        (lambda pets: [p.unlink() for p in pets.rglob("*.png")], "each class needs at least one image"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_a_data_set(pets, change, message):
    change(pets)
    with pytest.raises(DataError, match=message):
        load(pets)


def test_two_folders_for_one_part(pets):
    root = pets.with_name("cut")
    for part in ("train", "val", "validation"):
        shutil.copytree(pets, root / part)
    with pytest.raises(DataError, match="val/ or in validation/, got both"):
        load(root)


def test_a_class_that_training_lacks(pets):
    root = pets.with_name("cut")
    root.mkdir()
    pets.rename(root / "train")
    paint(root / "test" / "cow" / "x.png")
    with pytest.raises(DataError, match="which lacks cow"):
        load(root)


@pytest.mark.parametrize("limit", [20, 10])
def test_a_decompression_bomb_is_not_decoded(pets, monkeypatch, limit):
    """Protects: Pillow only warns of a picture up to twice its limit (6x5 above 20); here it is an error."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="40 of 40 are not.*decompression bomb"):
        load(pets)


def test_all_unreadable_images_are_named_in_one_error(pets):
    (pets / "cat" / "3.png").write_bytes(b"no image")
    (pets / "dog" / "7.png").write_bytes((pets / "dog" / "7.png").read_bytes()[:40])
    with pytest.raises(DataError, match="2 of 40") as caught:
        load(pets)
    assert "3.png" in str(caught.value) and "7.png" in str(caught.value)


# --- the real files, where they are at hand -----------------------------------------------------------


def at_hand(name):
    folder = os.environ.get("TINYVIT_DATA")
    source = fetch.SOURCES[name]
    there = folder and Path(folder).is_dir() and all(fetch._find(file, source, [Path(folder)]) for file in source.files)
    return pytest.param(name, Path(folder or "."), marks=pytest.mark.skipif(
        not there, reason=f"{name}: set TINYVIT_DATA to a folder that holds it"))  # fmt: skip


@pytest.mark.parametrize(("name", "folder"), [at_hand(name) for name in ("mnist", "fashion", "cifar10", "cifar100")])
def test_the_real_thing(name, folder):
    """Protects: sizes, and balance of the validation cut."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(name, root=folder, download=False)
    total = 60_000 if name in ("mnist", "fashion") else 50_000
    assert [len(getattr(data, part)) for part in PARTS] == [total - 5_000, 5_000, 10_000]
    C = len(data.classes)
    share = np.bincount(data.validation.labels, minlength=C) * ((total - 5_000) / 5_000)
    assert abs(share - np.bincount(data.train.labels, minlength=C)).max() <= 30
    assert len(caught) <= 1
    if name == "mnist" and not caught:
        assert data.mean == pytest.approx((0.1307,), abs=1e-3)
        assert data.std == pytest.approx((0.3081,), abs=1e-3)
        assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
