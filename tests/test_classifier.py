"""A checkpoint read back: it prepares pictures as training did, and a file that contradicts itself is refused."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from tinyvit.classifier import load
from tinyvit.data import DataError
from tinyvit.data import load as load_data
from tinyvit.models import ResNet, ResNetConfig, ViT, ViTConfig, to_dict
from tinyvit.train import CHECKPOINT, CheckpointError, Recipe, checkpoint

CONFIG = dict(image_size=(8, 8), patch=4, channels=1, classes=2, width=8, depth=2, heads=2, mlp=8)


def about(**changes):
    """The metadata that a run writes, with changes."""
    whole = dict(
        recipe=asdict(Recipe()), model=to_dict(ViTConfig(**CONFIG)), data="digits", classes=["cat", "dog"],
        mean=[0.3], std=[0.2], epochs_done=1, steps_done=7,
    )  # fmt: skip
    return whole | changes


def save(folder, metadata, **config):
    model = ViT(ViTConfig(**CONFIG | config))
    tensors = {f"model.{name}": p.data for name, p in model.named_parameters()}
    checkpoint.save(folder / CHECKPOINT, tensors, metadata)
    return folder


def test_a_whole_checkpoint_loads(tmp_path):
    """Protects the refusals below from being refusals of everything."""
    classifier = load(save(tmp_path, about()))
    assert classifier.classes == ("cat", "dog") and classifier.recipe == Recipe() and classifier.epochs_done == 1
    for threads in (1, 2):
        assert classifier.predict(np.zeros((3, 8, 8, 1), np.uint8), threads=threads).shape == (3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(recipe={}), "the recipe names no data"),
        (dict(recipe=None), "not iterable"),
        (dict(recipe={"data": "digits", "colour": 1}), "a recipe has no colour"),
        (dict(recipe={"data": "digits", "lr": "fast"}), "lr must be a finite number"),
        (dict(classes=["cat"]), "2 names of classes, got .*cat"),
        (dict(classes="ab", mean=3), "not iterable"),
        (dict(classes=[1, 2]), "2 names of classes"),
        (dict(mean=[0.3] * 3, std=[0.2] * 3), "mean and std must have 1 values"),
        (dict(std=[0]), "std positive"),
        (dict(mean=[float("nan")]), "mean must be finite"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(width=4_000_000)), "must be .*4000000.*got"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(mlp=4_000_000_000)), "mlp.fc1.weight must be"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(depth=1_000_000)), "depth must be 2"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(image_size=[2**20, 2**20])), "use smaller images"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(image_size=[16, 16])), "positions.table must be"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(kind="cnn")), "kind must be one of vit.*; got 'cnn'"),
        (dict(model=to_dict(ViTConfig(**CONFIG)) | dict(heads=3)), "heads must divide"),
        (dict(model=None), "not subscriptable"),
    ],
)
def test_a_checkpoint_that_contradicts_itself(changes, message, tmp_path):
    """Protects: no class without a name, no wrong normalisation, and no memory filled before the error."""
    save(tmp_path, about(**changes))
    with pytest.raises(
        CheckpointError, match=f"checkpoint.safetensors: weights and configuration do not fit: .*{message}"
    ):
        load(tmp_path)


RESNET = ResNetConfig((8, 8), 1, 2, (1,), (4,), "batch")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.weight", np.nan, "head.weight must be finite"),
        ("trunk.norm.variance", np.inf, "trunk.norm.variance must be finite"),
        ("trunk.norm.variance", -1, "trunk.norm.variance must not be negative, got -1"),
    ],
)
def test_weights_that_can_only_give_nan(name, value, message, tmp_path):
    """Protects: no answer of NaN %, in silence."""
    tensors = {f"model.{path}": p.numpy() for path, p in ResNet(RESNET).named_parameters()}
    checkpoint.save(tmp_path / CHECKPOINT, tensors, about(model=to_dict(RESNET)))
    load(tmp_path)
    tensors[f"model.{name}"].flat[0] = value
    checkpoint.save(tmp_path / CHECKPOINT, tensors, about(model=to_dict(RESNET)))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_convolutions_image_size_is_bounded_too(tmp_path):
    """No weight has the size of the image, so nothing else contradicts it."""
    tensors = {f"model.{path}": p.numpy() for path, p in ResNet(RESNET).named_parameters()}
    checkpoint.save(tmp_path / CHECKPOINT, tensors, about(model=to_dict(RESNET) | dict(image_size=[10**6, 10**6])))
    with pytest.raises(CheckpointError, match="images of 1000000×1000000 .* GiB.*use smaller images"):
        load(tmp_path)


def test_metadata_that_lacks_something(tmp_path):
    for name in ("recipe", "model", "data", "classes", "mean", "std", "epochs_done"):
        metadata = about()
        del metadata[name]
        save(tmp_path, metadata)
        with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
            load(tmp_path)


@pytest.mark.parametrize("kind", ["photo.jpg", "sideways.jpg", "deep.png", "clear.png"])
def test_pictures_are_prepared_as_in_training(kind, tmp_path):
    """Protects: the pixels that a classifier reads from a file are those that a folder's data set holds for it."""
    rng = np.random.default_rng(0)
    grey = kind == "deep.png"
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(3):
            path = tmp_path / "pets" / name / f"{i}-{kind}"
            if kind == "deep.png":
                Image.fromarray(rng.integers(0, 30_000, (20, 14), np.uint16)).save(path)
            elif kind == "clear.png":
                Image.fromarray(rng.integers(0, 256, (20, 14, 4), np.uint8), "RGBA").save(path)
            else:
                image = Image.fromarray(rng.integers(0, 256, (20, 14, 3), np.uint8))
                exif = image.getexif()
                exif[0x0112] = 6 if kind == "sideways.jpg" else 1
                image.save(path, exif=exif)
    channels = 1 if grey else 3
    metadata = about(
        model=to_dict(ViTConfig(**CONFIG | dict(channels=channels))), mean=[0.5] * channels, std=[0.2] * channels
    )
    classifier = load(save(tmp_path, metadata, channels=channels))
    dataset = load_data(tmp_path / "pets", image_size=8)
    held = {image.tobytes() for part in (dataset.train, dataset.validation, dataset.test) for image in part.images}
    read = [classifier.read(path) for path in (tmp_path / "pets").rglob(f"*-{kind}")]
    assert {pixels.tobytes() for pixels, _ in read} == held and len(held) == 6
    assert {note for _, note in read} == {None}


def test_ink_on_paper_is_inverted_for_a_model_of_light_strokes(tmp_path):
    classifier = load(save(tmp_path, about()))
    page = np.full((8, 8), 250, np.uint8)
    page[2:6, 4] = 10
    Image.fromarray(page).save(tmp_path / "page.png")
    pixels, note = classifier.read(tmp_path / "page.png")
    assert "inverted" in note and (pixels[:, :, 0] == 255 - page).all()


def test_what_is_no_image(tmp_path, monkeypatch):
    classifier = load(save(tmp_path, about()))
    with pytest.raises(DataError, match="there is no image at .*nothing.png"):
        classifier.read(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("hello")
    Image.new("F", (3, 3)).save(tmp_path / "float.tif")
    Image.new("L", (6, 5)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow itself only warns below the double of it
    for name, message in {"text.png": "", "float.tif": "floating-point", "huge.png": "decompression bomb"}.items():
        with pytest.raises(DataError, match=f"{name} cannot be read as an image: .*{message}"):
            classifier.read(tmp_path / name)
