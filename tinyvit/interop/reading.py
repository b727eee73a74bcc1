"""From a file of weights to a model: recognise the layout, measure the arrays, compare, and only then build.

    names  ->  a layout      whose patch embedding is called like that?
    shapes ->  a ViTConfig   width, depth, patch, classes … are sides of arrays; settings say what no array does
    table  ->  problems      each array that is missing, unexpected or misshapen, in one error
           ->  a ViT         entry by entry, as float32

The model is made after the third step has found no problem: then it is as large as the file.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from tinyvit.data.image import Preparation
from tinyvit.interop.files import (
    PICKLES,
    as_float32,
    is_floating,
    read_json,
    read_remarks,
    read_tensors,
    refuse_pickles,
)
from tinyvit.interop.folding import fold, is_square, layers
from tinyvit.interop.layouts import LAYOUTS
from tinyvit.interop.settings import CUSTOMARY_HEADS, google_settings, hf_settings, timm_settings
from tinyvit.models import ViT, ViTConfig
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.fitting import check_memory
from tinyvit.train.folder import BEST, CHECKPOINT

SETTINGS = {"google": google_settings, "timm": timm_settings, "hf": hf_settings}
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"

# What else files hold: a part of a name, and why a ViT of ours cannot take it.
STRANGERS = (
    (r"^conv_root/|^patch_embed\.backbone\.", "a hybrid on a ResNet that ours is not (bottlenecks, a 7×7 root)"),
    (
        r"\.(attns|ffns)\.\d|^blocks\.\d+\.in_proj\.|\.lambda_[qk]",
        "blocks whose parts run side by side; ours follow each other",
    ),
    (r"rel_pos|relative_position|rope", "positions that attention adds or turns by; ours are added to the tokens once"),
    (r"^MAPHead_0/|^attn_pool\.", "a head that pools by attention; ours reads the class token or the average"),
    (r"layer_scale", "layer scale, a factor behind each part of a block; our blocks have none"),
    (r"\.[qk]_norm\.", "norms of queries and keys; our attention has none"),
    (r"dist_token|head_dist|distillation", "a distillation token, a second class token; ours has one"),
    (r"^norm_pre\.", "a norm before the first block; ours has none"),
    (r"w12|\.fc1_g\.", "gated MLPs; ours have GELU between two matrices"),
    (r"decoder|mask_token", "parts for guessing masked pixels; only the encoder is a classifier"),
)


@dataclass
class Foreign:
    """A model from elsewhere, and what it needs to read pictures.

    model: a ViT. classes: names. mean, std: per channel. prepare: how a picture gets its size. layout: a name among
    LAYOUTS. notes: lines on what nobody said and was assumed, or was left out.
    """

    model: ViT
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prepare: Preparation
    layout: str
    notes: tuple[str, ...]


def find_weights(path):
    """The file of weights that a path means: itself, or of a folder what hubs put there; None if nothing is there.
    Raises CheckpointError if it could be one or another."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in (WEIGHTS, SHARDS) if (path / name).is_file()]
    found = found or [file for ending in ("*.safetensors", "*.npz") for file in sorted(path.glob(f"[!.]{ending}"))]
    if len(found) > 1 and found[0].name != WEIGHTS:
        names = ", ".join(file.name for file in found[:5])
        raise CheckpointError(f"{path} holds several files of weights; name one of them: {names}")
    found = found or sorted(file for file in path.iterdir() if file.suffix.lower() in PICKLES)
    return found[0] if found else None


def is_ours(path):
    """Whether it is a run's folder or a checkpoint of ours, whole or damaged, by its name or the remark in it."""
    path = Path(path)
    if path.is_dir():
        return any((path / name).is_file() for name in (CHECKPOINT, BEST))
    if path.name in (CHECKPOINT, BEST):
        return True
    with contextlib.suppress(CheckpointError):
        return "tinyvit" in read_remarks(path)
    return False


def read(path, heads=None):
    """Read a ViT in Google's, timm's or Hugging Face's layout into a Foreign.

    Args:
        path: a .npz or .safetensors file, or a folder with one and perhaps its config.json.
        heads: how many, where no file says.

    Raises CheckpointError that says what the file looks like, and lists what is missing, unexpected or misshapen.
    """
    file = find_weights(path)
    if file is None:
        raise CheckpointError(f"{path} holds no weights: no {WEIGHTS}, no other .safetensors and no .npz")
    tensors = _all_shards(file) if file.name.endswith(".json") else read_tensors(file)
    big_vision = any("MlpBlock_0/" in stored for stored in tensors)  # which also has models with sines for positions
    name, tensors = _recognised(file, tensors)
    size = f", {len(tensors)} arrays"
    try:
        settings = SETTINGS[name](file.parent)
        settings.sines = big_vision
        fold(name, tensors, settings)
        config = _measured(name, tensors, settings, heads)
        size = f" of width {config.width}, depth {config.depth}, with patches of {config.patch}×{config.patch}"
        return _built(name, config, tensors, settings)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{file} looks like {LAYOUTS[name].title}{size}: {error}") from None


def _all_shards(index):
    """The arrays of all the files that an index of Hugging Face's names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} must have a weight_map, a table of files")
    tensors = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or "\\" in shard or len(tensors) > 100_000:
            raise CheckpointError(f"{index} must name files beside it, got {shard[:60]!r}")
        refuse_pickles(index.parent / shard)
        found = read_tensors(index.parent / shard)
        if twice := sorted(found.keys() & tensors):
            raise CheckpointError(f"{index} must name each array once; {_short(twice[0])} is in two files, one {shard}")
        tensors |= found
    return tensors


def _recognised(file, tensors):
    """(name of the layout, arrays by their names in its table)."""
    for name, layout in LAYOUTS.items():
        if names := layout.respelled(tensors):
            if len(set(names.values())) < len(names):
                raise CheckpointError(f"{file} holds an array in two spellings")
            _refuse_strangers(file, names.values())
            return name, {theirs: tensors[stored] for stored, theirs in names.items()}
    _refuse_strangers(file, tensors)
    known = ", ".join(f"{layout.patches} ({layout.title})" for layout in LAYOUTS.values())
    found = ", ".join(_short(name) for name in list(tensors)[:3]) or "nothing"
    raise CheckpointError(f"{file} must hold a ViT, with an array called {known}; found {found} …")


def _refuse_strangers(file, names):
    for pattern, reason in STRANGERS:
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise CheckpointError(f"{file} holds {reason} ({_short(found)})")


# ---------------------------------------------------------------------------------------------- measured, built


def _measured(layout, tensors, settings, heads):
    """The ViTConfig that the arrays' sides and the settings give. Raises CheckpointError where they disagree."""
    at, turned = LAYOUTS[layout], layout != "google"
    P, also_P, C, D = _sides(tensors, at.patches, 4, turned)
    if P != also_P:
        raise CheckpointError(f"patches must be squares, got {P}×{also_P}")
    first, depth = at.block.format(i=0), len(layers(tensors, layout))
    if depth > 1000:
        raise CheckpointError(f"it must have at most 1,000 layers, got {depth:,}")
    if layout == "timm" and _is_gated(tensors, first):
        raise CheckpointError(
            "it has gated MLPs, half of whose hidden numbers multiply the others; ours have GELU alone"
        )
    size = dict(
        patch=P, channels=C, width=D, depth=depth,
        mlp=_sides(tensors, first + at.hidden, 2, turned)[1],
        classes=_sides(tensors, at.head, 2, turned)[1] if at.head in tensors else D,
    )  # fmt: skip
    stated = settings.sizes if at.head in tensors else settings.sizes | {"classes": None}
    if wrong := [
        f"{name} {stated[name]}, not {size[name]}" for name in stated if stated[name] not in (None, size[name])
    ]:
        raise CheckpointError(f"config.json must describe the arrays beside it, and says {'; '.join(wrong)}")
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    if layout == "google":
        settings.heads = _sides(tensors, f"{first}MultiHeadDotProductAttention_1/query/kernel", 3)[1]
    N = _sides(tensors, at.positions, 3)[1] - (settings.pool == "class")
    kind = "mlp" if "pre_logits/kernel" in tensors else "linear"
    return check_memory(
        ViTConfig(
            image_size=_image_size(settings, N, P), **size, heads=_heads(settings, heads, D), registers=registers,
            gelu_tanh=settings.gelu_tanh, eps=settings.eps, pool=settings.pool,
            head=kind if at.head in tensors else "none",
        ),
        batch_size=1,
    )  # fmt: skip


def _is_gated(tensors, first):
    """Whether layer 0's first matrix of the MLP makes twice the numbers that the second one reads."""
    shapes = [
        tensors[first + name].shape if first + name in tensors else () for name in ("mlp.fc1.weight", "mlp.fc2.weight")
    ]
    return all(len(shape) == 2 for shape in shapes) and shapes[0][0] == 2 * shapes[1][1] > 0


def _heads(settings, told, D):
    """How many heads: as the file says, as told, or by the convention that a head is 64 numbers wide."""
    if told and settings.heads and told != settings.heads:
        raise CheckpointError(f"heads must be left to the file, which says {settings.heads}; got {told}")
    heads = settings.heads or told
    if heads is None:
        heads = CUSTOMARY_HEADS.get(D) or max(1, D // 64)
        settings.notes.append(f"no file says how many heads there are; {heads} assumed, as is the custom at width {D}")
    return heads


def _image_size(settings, N, P):
    """(height, width) of which N patches are cut; a square, unless the settings say otherwise."""
    if settings.image_size is None:
        if not is_square(N):
            raise CheckpointError(f"{N} positions are no square of patches; a config.json must say the image's size")
        return math.isqrt(N) * P, math.isqrt(N) * P
    h, w = settings.image_size
    if h % P or w % P:
        raise CheckpointError(f"images of {h}×{w} are no whole number of {P}×{P} patches; ours cuts nothing off")
    if (h // P) * (w // P) != N:
        raise CheckpointError(f"config.json says images of {h}×{w}, that is {h // P}×{w // P} patches, not {N}")
    return h, w


def _built(layout, config, tensors, settings):
    """The Foreign, after every array was found to be as the table says."""
    entries = list(LAYOUTS[layout].table(config))
    _check_arrays(tensors, {entry.theirs: entry.stored for entry in entries})
    model = ViT(config)
    parameters = dict(model.named_parameters())
    for entry in entries:
        entry.read(as_float32(tensors[entry.theirs]), parameters[entry.ours].data)
    if settings.mean is None or settings.std is None:
        settings.mean = settings.std = (0.5,)
        settings.notes.append("no file says how pictures are prepared; squashed, mean and std 0.5 is assumed")
    mean, std = (x * config.channels if len(x) == 1 else x for x in (settings.mean, settings.std))
    classes = config.classes
    strange = [index for index in settings.labels if not 0 <= index < classes]
    if strange and config.head != "none":
        raise CheckpointError(f"config.json names class {strange[0]}, and there are {classes}")
    names = tuple(settings.labels.get(k) or f"class {k}" for k in range(classes))
    if config.head == "none":
        names = tuple(f"feature {k}" for k in range(classes))
    return Foreign(model, names, mean, std, settings.prepare, layout, tuple(settings.notes))


def _check_arrays(tensors, wanted):
    """One CheckpointError for all that is missing, unexpected, misshapen or no floating-point number."""
    problems = [f"missing: {_short(name)} {shape}" for name, shape in wanted.items() if name not in tensors]
    problems += [f"unexpected: {_short(name)} {tensors[name].shape}" for name in tensors if name not in wanted]
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            problems.append(f"wrong shape: {name} must be {shape}, got {tensors[name].shape}")
        elif name in tensors and not is_floating(tensors[name]):
            problems.append(f"wrong kind: {name} must be floating-point numbers, got {tensors[name].dtype}")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise CheckpointError("these arrays do not fit:\n  " + "\n  ".join(problems[:10] + more))


def _sides(tensors, name, rank, turned=False):
    """The shape of an array, in the order of ours: (in, out), (P, P, C, D). Raises CheckpointError."""
    shape = tensors[name].shape if name in tensors else ()
    if len(shape) != rank:
        raise CheckpointError(f"{name} must be an array with {rank} sides, got {shape or 'none'}")
    return tuple(shape[axis] for axis in ((2, 3, 1, 0) if rank == 4 else (1, 0))) if turned else shape


def _short(name):
    return name if len(name) <= 80 and name.isprintable() else repr(name[:80])
