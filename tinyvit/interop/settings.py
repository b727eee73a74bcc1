"""What weights do not say: heads, GELU's form, class names, how pictures are prepared; from config.json and its like.

Of arrays one can see the width, the depth, the patch, but not how many heads share the width, nor what was subtracted
from the pixels. Hugging Face and timm put that into JSON files beside the weights; Google's files say none of it, and
what vit_jax does holds for them. Where nobody says, a convention is taken, and a line in `notes` says so.

A setting is believed only where it agrees with the arrays (`reading.py` compares them), and each value is checked.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tinyvit.data.image import FILTERS, SQUASH, Preparation
from tinyvit.interop.files import read_json
from tinyvit.train.checkpoint import CheckpointError

# timm's widths at which heads are not 64 numbers wide: so400m, H/14, g/14, G/14, and its tiny test models.
CUSTOMARY_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 64: 2, 96: 3}
LARGE = 2**31  # no setting is so large
GELU_TANH = {"gelu": False, "gelu_new": True, "gelu_pytorch_tanh": True, "gelu_tanh": True}
GLOBAL_POOLS = {"token": "class", "avg": "average", "": None}  # timm's names for what the head reads

# What nothing but the name of one of timm's architectures says: parts that ours lacks, 16 heads, and GELU's form.
ARCHITECTURES = (
    (r"_rpn_", "norms behind each part of a block; ours has them before"),
    (r"_rope_", "queries and keys turned by their place; ours adds positions to the tokens, once"),
)
SIXTEEN_HEADS = r"^vit_(giantopt|base_patch16_gap)_"
TANH = r"^vit_(base_patch32_siglip_gap_256|large_patch16_siglip_gap_512|(so400m|giantopt)_patch16_siglip_gap_)"

# timm's `model_args` that are read here, that the arrays show, or that do nothing when a trained model predicts.
ARGUMENTS = frozenset(
    """img_size patch_size in_chans num_classes embed_dim depth num_heads global_pool no_embed_class act_layer
    mlp_ratio qkv_bias qk_norm proj_bias init_values class_token reg_tokens pre_norm final_norm fc_norm scale_attn_norm
    scale_mlp_norm drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate weight_init
    fix_init dynamic_img_size dynamic_img_pad strict_img_size device dtype""".split()
)
NEUTRAL = {"pool_include_prefix": False, "pos_embed": "learn", "norm_layer": "layernorm"}  # others, as they mostly are

# What a preprocessor_config.json leaves out, by the class of transformers that it is for; size: (height, width), or
# (shortest edge,), which for CLIP's one number means, too.
PROCESSORS = {
    "ViT": dict(size=(224, 224), resample=2, crops=False, mean=(0.5,), std=(0.5,)),
    "DeiT": dict(size=(256, 256), resample=3, crops=True, mean=(0.5,), std=(0.5,)),
    "CLIP": dict(
        size=(224,), resample=3, crops=True, mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
}  # fmt: skip


@dataclass
class Settings:
    """sizes: fields of a ViTConfig that the file states, to be compared with the arrays. heads, image_size, pool (as a
    ViTConfig names it; `fold` adds what the arrays show), place_first (whether the first tokens have positions of their
    own), mean and std: None where it says nothing. sines: whether positions that no array holds are big_vision's.
    labels: {index: name}; control characters, line breaks and the like are spelled out (\\n), for names are printed,
    drawn and written into files."""

    sizes: dict = field(default_factory=dict)
    heads: int | None = None
    image_size: tuple | None = None
    pool: str | None = None
    place_first: bool | None = None
    sines: bool = False
    gelu_tanh: bool = False
    eps: float = 1e-6
    labels: dict = field(default_factory=dict)
    mean: tuple | None = None
    std: tuple | None = None
    prepare: Preparation = SQUASH
    notes: list = field(default_factory=list)

    def __post_init__(self):
        self.labels = {k: "".join(map(_spelled, name)) for k, name in self.labels.items()}


def _spelled(character):
    """The character, or what stands for it where a terminal or a file would take it for a command: of controls, halves
    of a character, line and paragraph separators, and what turns the direction of writing."""
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    harms = turns or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return ascii(character)[1:-1] if harms else character


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
    architecture = file.text("architecture") or pictures.text("architecture")
    if not architecture:
        raise CheckpointError(f"{file.name} must be timm's, with an `architecture`, for the weights beside it are")
    for pattern, reason in ARCHITECTURES:
        if re.search(pattern, architecture):
            raise CheckpointError(f"{file.name}: architecture {architecture[:60]!r} has {reason}")
    for key, value in arguments.values.items():
        if key not in ARGUMENTS and value is not None and value != NEUTRAL.get(key):
            said = f"{key[:60]!r} = {str(value)[:60]!r}"
            raise CheckpointError(f"{file.name}: model_args say {said}; what the model then computes is not known here")
    pool = arguments.text("global_pool") or file.text("global_pool")
    if pool not in GLOBAL_POOLS:
        raise CheckpointError(f"{file.name}: global_pool must be token or avg, got {pool[:60]!r}")
    sizes = {"width": "embed_dim", "depth": "depth", "channels": "in_chans", "patch": "patch_size"}
    input_size = pictures.numbers("input_size", 3) or ()
    settings = Settings(
        sizes={ours: arguments.whole(theirs) for ours, theirs in sizes.items()},
        heads=arguments.whole("num_heads", 16 if re.search(SIXTEEN_HEADS, architecture) else None),
        image_size=arguments.pair("img_size") or tuple(input_size[1:]) or None,
        pool=GLOBAL_POOLS[pool],
        gelu_tanh=arguments.gelu("act_layer", "gelu_tanh" if re.search(TANH, architecture) else "gelu"),
        mean=pictures.numbers("mean"),
        std=pictures.numbers("std"),
        labels=_described(file, pictures),
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
    made_for = pictures.text("image_processor_type") or pictures.text("feature_extractor_type") or "ViT"
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", made_for)
    if kind not in PROCESSORS:
        settings.notes.append(f"how {made_for[:60]!r} prepares pictures is not known here; done as for a ViT")
    usual = PROCESSORS.get(kind, PROCESSORS["ViT"])
    if not pictures.flag("do_rescale", True) or abs(pictures.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise CheckpointError(f"{pictures.name}: pixels must be divided by 255 (do_rescale, rescale_factor)")
    normalised = pictures.flag("do_normalize", True)
    settings.mean = (pictures.numbers("image_mean") or usual["mean"]) if normalised else (0.0,)
    settings.std = (pictures.numbers("image_std") or usual["std"]) if normalised else (1.0,)
    number = pictures.whole("resample", usual["resample"])
    if number >= len(FILTERS):
        raise CheckpointError(f"{pictures.name}: resample must be one of Pillow's 0 to 5, got {number}")
    cut = pictures.flag("do_center_crop", usual["crops"])
    sides = pictures.sides("size", one_is_square=kind != "CLIP") or usual["size"]
    if not pictures.flag("do_resize", True):
        sides = None
        settings.notes.append("do_resize is false, so pictures must have the model's size; others are squashed to it")
    if pictures.flag("do_pad", False):
        settings.notes.append("do_pad is true, and nothing is padded here")
    made = (pictures.sides("crop_size") or (224, 224)) if cut else sides
    if made is not None and made != settings.image_size and made != settings.image_size[:1]:
        raise CheckpointError(f"{pictures.name}: pictures become {made}, and the model reads {settings.image_size}")
    resize = None
    if cut and sides:
        resize = sides[0] if len(sides) == 1 else sides
    elif sides and len(sides) == 1 and not cut:
        settings.notes.append("size says the shortest edge and nothing crops; pictures are squashed instead")
    resize = None if resize == settings.image_size else resize
    settings.prepare = _prepare(pictures.name, FILTERS[number], resize, floor=resize is not None)


def _prepare(name, filter, resize, floor=False):
    try:
        return Preparation(filter, resize, floor)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def _described(file, pictures):
    """{index: name} of timm's label_names, in the words of its label_descriptions, {name: words}, where it has them."""
    names = _names(file.any("label_names") or pictures.any("label_names"), file.name)
    table = (file if file.any("label_descriptions") else pictures).table("label_descriptions").values
    if not all(isinstance(words, str) for words in table.values()):
        raise CheckpointError(f"{file.name}: label_descriptions must be a table of texts")
    words = {k: table.get(name, name) for k, name in names.items()}
    count = Counter(words.values())  # ImageNet has two cranes
    return {
        k: f"{words[k]} ({name})" if count[words[k]] > 1 and words[k] != name else words[k] for k, name in names.items()
    }


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

    def flag(self, key, default):
        return self._checked(key, default, lambda x: isinstance(x, bool), "true or false")

    def whole(self, key, default=None):
        return self._checked(key, default, lambda x: type(x) is int and 0 <= x < LARGE, "a whole number")

    def number(self, key, default=None):
        return self._checked(key, default, _finite, "a number")

    def numbers(self, key, count=None):
        def holds(x):
            return isinstance(x, list) and 0 < len(x) <= 1000 and all(map(_finite, x)) and count in (None, len(x))

        value = self._checked(key, None, holds, f"a list of {count} numbers" if count else "a list of numbers")
        return None if value is None else tuple(value)

    def pair(self, key):
        """A side, or (height, width), as a pair."""
        value = self.any(key)
        sides = value if isinstance(value, list) else [value, value]
        if value is not None and (len(sides) != 2 or not all(type(side) is int and 0 < side < LARGE for side in sides)):
            raise CheckpointError(f"{self.name}: {key} must be one or two whole numbers, got {str(value)[:60]!r}")
        return None if value is None else tuple(sides)

    def sides(self, key, one_is_square=True):
        """(height, width) or (shortest edge,) of Hugging Face's ways to say a size."""
        value = self.any(key)
        if not isinstance(value, dict):
            pair = self.pair(key)
            return pair if one_is_square or isinstance(value, list) or pair is None else pair[:1]
        size = _Table(value, f"{self.name}: {key}")
        names = [name for name in value if size.any(name) is not None]
        if set(names) not in ({"height", "width"}, {"shortest_edge"}):
            raise CheckpointError(f"{self.name}: {key} must say height and width, or the shortest_edge, and no more")
        return tuple(size.whole(name) for name in sorted(names))

    def gelu(self, key, default="gelu"):
        """Whether GELU is in its tanh form."""
        name = self.text(key, default)
        if name not in GELU_TANH:
            raise CheckpointError(f"{self.name}: {key} must be one of {', '.join(GELU_TANH)}; got {name[:60]!r}")
        return GELU_TANH[name]


def _finite(value):
    return type(value) in (int, float) and abs(value) < LARGE  # false for NaN
