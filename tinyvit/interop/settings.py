"""What weights do not say: heads, GELU's form, class names, how pictures are prepared; from config.json and its like.

Of arrays one can see the width, the depth, the patch, but not how many heads share the width, nor what was subtracted
from the pixels. Hugging Face and timm put that into JSON files beside the weights; Google's files say none of it, and
what vit_jax does holds for them. Where nobody says, a convention is taken, and a line in `notes` says so.

A setting is believed only where it agrees with the arrays (`reading.py` compares them), and each value is checked.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from tinyvit.data.image import FILTERS, SQUASH, Preparation
from tinyvit.interop.files import read_json
from tinyvit.train.checkpoint import CheckpointError

# timm's published widths whose heads are not 64 numbers wide: so400m, H/14, g/14, G/14, and its tiny test models.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 64: 2, 96: 3}
LARGE = 2**31  # no setting is so large
GELU_TANH = {"gelu": False, "gelu_new": True, "gelu_pytorch_tanh": True, "gelu_tanh": True}


@dataclass
class Settings:
    """sizes: fields of a ViTConfig that the file states, to be compared with the arrays. heads, image_size, pool,
    place_first (whether the first tokens have positions of their own), mean and std: None where it says nothing."""

    sizes: dict = field(default_factory=dict)
    heads: int | None = None
    image_size: tuple | None = None
    pool: str | None = None
    place_first: bool | None = None
    gelu_tanh: bool = False
    eps: float = 1e-6
    labels: dict = field(default_factory=dict)
    mean: tuple | None = None
    std: tuple | None = None
    prepare: Preparation = SQUASH
    notes: list = field(default_factory=list)


def google_settings(folder):
    """vit_jax: GELU in its tanh form (Flax's default), eps 1e-6, pixels in [-1, 1], pictures squashed."""
    return Settings(gelu_tanh=True, mean=(0.5,), std=(0.5,))


def timm_settings(folder):
    """Of timm's config.json, as its hub has it; without one, timm's defaults for a ViT."""
    file = _Table.beside(folder, "config.json")
    if file is None:
        return Settings()
    arguments, pictures = file.table("model_args"), file
    if file.any("pretrained_cfg") is not None:  # which older files have not
        pictures = file.table("pretrained_cfg")
    if not file.text("architecture") and not pictures.text("architecture"):
        raise CheckpointError(f"{file.name} must be timm's, with an `architecture`, for the weights beside it are")
    sizes = {"width": "embed_dim", "depth": "depth", "channels": "in_chans", "patch": "patch_size"}
    input_size = pictures.numbers("input_size", 3) or ()
    settings = Settings(
        sizes={ours: arguments.whole(theirs) for ours, theirs in sizes.items()},
        heads=arguments.whole("num_heads"),
        image_size=arguments.pair("img_size") or tuple(input_size[1:]) or None,
        pool=arguments.text("global_pool") or file.text("global_pool") or None,
        gelu_tanh=arguments.gelu("act_layer"),
        mean=pictures.numbers("mean"),
        std=pictures.numbers("std"),
        labels=_names(pictures.any("label_names") or file.any("label_names"), file.name),
    )
    settings.sizes["classes"] = file.whole("num_classes") or None
    if (embedded := arguments.any("no_embed_class")) is not None:
        settings.place_first = not embedded
    if settings.image_size:
        settings.prepare = _crop(pictures, settings.image_size, settings.notes)
    return settings


def _crop(pictures, size, notes):
    """What timm's evaluation does: the shortest side to size / crop_pct, rounded down; then the centre."""
    kept, mode = pictures.number("crop_pct", 0.875), pictures.text("crop_mode", "center")
    if not 0.01 <= kept <= 1 or mode not in ("center", "squash"):
        raise CheckpointError(f"{pictures.name}: pictures must be cropped by center or squash, got {mode!r}, {kept}")
    filter = pictures.text("interpolation", "bicubic")
    sides = tuple(math.floor(side / kept) for side in size)
    if mode == "center" and size[0] != size[1]:
        notes.append("the model's images are no squares: pictures are squashed where timm keeps their proportions")
    if mode == "squash" or size[0] != size[1]:
        return _prepare(pictures.name, filter, None if sides == tuple(size) else sides)
    return _prepare(pictures.name, filter, sides[0])


def hf_settings(folder):
    """Of Hugging Face's config.json, which must be there, and preprocessor_config.json."""
    file = _Table.beside(folder, "config.json")
    if file is None:
        raise CheckpointError(
            "Hugging Face's weights need their config.json beside them: the number of heads is nowhere else"
        )
    if file.text("model_type") != "vit":
        raise CheckpointError(f"{file.name}: model_type must be 'vit', got {str(file.any('model_type'))[:60]!r}")
    sizes = {
        "width": "hidden_size", "depth": "num_hidden_layers", "mlp": "intermediate_size", "channels": "num_channels",
    }  # fmt: skip
    patch = file.pair("patch_size") or (None, None)
    if patch[0] != patch[1]:
        raise CheckpointError(f"{file.name}: patches must be squares, got {patch[0]}×{patch[1]}")
    settings = Settings(
        sizes={ours: file.whole(theirs) for ours, theirs in sizes.items()} | {"patch": patch[0]},
        heads=file.whole("num_attention_heads", 12),  # what a file leaves out is the library's default
        image_size=file.pair("image_size") or (224, 224),
        gelu_tanh=file.gelu("hidden_act"),
        eps=file.number("layer_norm_eps", 1e-12),
        labels=_names(file.any("id2label"), file.name),
    )
    pictures = _Table.beside(folder, "preprocessor_config.json")
    if pictures is not None:
        _processor(pictures, settings)
    return settings


def _processor(pictures, settings):
    """mean, std and preparation of preprocessor_config.json."""
    if pictures.any("do_rescale") is False or abs(pictures.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise CheckpointError(f"{pictures.name}: pixels must be divided by 255 (do_rescale, rescale_factor)")
    normalised = pictures.any("do_normalize") is not False
    settings.mean = (pictures.numbers("image_mean") or (0.5,)) if normalised else (0.0,)
    settings.std = (pictures.numbers("image_std") or (0.5,)) if normalised else (1.0,)
    number = pictures.whole("resample", 2)
    if number >= len(FILTERS):
        raise CheckpointError(f"{pictures.name}: resample must be one of Pillow's 0 to 5, got {number}")
    sides, cut = pictures.sides("size"), pictures.any("do_center_crop") is True
    made = pictures.sides("crop_size") if cut else sides
    if made is not None and made != settings.image_size and made != settings.image_size[:1]:
        raise CheckpointError(f"{pictures.name}: pictures become {made}, and the model reads {settings.image_size}")
    resize = None
    if cut and sides:
        resize = sides[0] if len(sides) == 1 else sides
    elif sides and len(sides) == 1 and not cut:
        settings.notes.append("size says the shortest edge and nothing crops; pictures are squashed instead")
    settings.prepare = _prepare(pictures.name, FILTERS[number], None if resize == settings.image_size else resize)


def _prepare(name, filter, resize):
    try:
        return Preparation(filter, resize)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def _names(table, file):
    """{index: name} of a list or a table of class names."""
    if table is None:
        return {}
    try:
        pairs = table.items() if isinstance(table, dict) else enumerate(table)
        names = {int(index): name for index, name in pairs}
    except (TypeError, ValueError):
        names = None
    if not isinstance(table, dict | list) or names is None or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{file}: the names of classes must be texts, a list or a table by number")
    return names


class _Table:
    """A table of JSON whose values are asked for by type. null and what is missing are the default."""

    def __init__(self, values, name):
        self.values, self.name = values, name

    @classmethod
    def beside(cls, folder, name):
        """That file of the folder, or None."""
        path = Path(folder) / name
        return cls(read_json(path), str(path)) if path.is_file() else None

    def any(self, key, default=None):
        value = self.values.get(key)
        return default if value is None else value

    def _checked(self, key, default, holds, must):
        value = self.any(key, default)
        if value is not None and not holds(value):
            raise CheckpointError(f"{self.name}: {key} must be {must}, got {str(value)[:60]!r}")
        return value

    def table(self, key):
        return _Table(self._checked(key, {}, lambda x: isinstance(x, dict), "a table"), self.name)

    def text(self, key, default=""):
        return self._checked(key, default, lambda x: isinstance(x, str), "a text")

    def whole(self, key, default=None):
        return self._checked(key, default, lambda x: type(x) is int and 0 <= x < LARGE, "a whole number")

    def number(self, key, default=None):
        return self._checked(key, default, _finite, "a number")

    def numbers(self, key, count=None):
        def holds(x):
            return isinstance(x, list) and 0 < len(x) <= 1000 and all(map(_finite, x)) and count in (None, len(x))

        value = self._checked(key, None, holds, f"a list of {count or ''} numbers")
        return None if value is None else tuple(value)

    def pair(self, key):
        """A side, or (height, width), as a pair."""
        value = self.any(key)
        sides = value if isinstance(value, list) else [value, value]
        if value is not None and (len(sides) != 2 or not all(type(side) is int and 0 < side < LARGE for side in sides)):
            raise CheckpointError(f"{self.name}: {key} must be one or two whole numbers, got {str(value)[:60]!r}")
        return None if value is None else tuple(sides)

    def sides(self, key):
        """(height, width) or (shortest edge,) of Hugging Face's ways to say a size."""
        if not isinstance(self.any(key), dict):
            return self.pair(key)
        size = _Table(self.any(key), f"{self.name}: {key}")
        sides = [size.whole(name) for name in ("height", "width", "shortest_edge")]
        sides = tuple(side for side in sides if side is not None)
        if len(sides) not in (1, 2):
            raise CheckpointError(f"{self.name}: {key} must say height and width, or the shortest_edge")
        return sides

    def gelu(self, key):
        """Whether GELU is in its tanh form."""
        name = self.text(key, "gelu")
        if name not in GELU_TANH:
            raise CheckpointError(f"{self.name}: {key} must be one of {', '.join(GELU_TANH)}; got {name[:60]!r}")
        return GELU_TANH[name]


def _finite(value):
    return type(value) in (int, float) and abs(value) < LARGE  # false for NaN
