"""From a model of ours to a file for elsewhere: the tables of `layouts.py` the other way, and what must stand beside.

    hf       a folder that `transformers.ViTForImageClassification.from_pretrained` opens, with labels and preparation
    timm     a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` opens
    google   a .npz with the names of vit_jax

(A graph for any runtime, ONNX, is another matter: `onnx.py`.)

A format holds what its library can compute. Positions are written as the table that is added, whatever made it;
relative ones, which have no table, a convolutional stem, or a head that the library lacks are refused in a sentence.
What the file cannot say and only moves the last digits (GELU's form, layer norm's eps) is written, with a note.

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import io
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy

from tinyvit.data.image import FILTERS
from tinyvit.interop.layouts import LAYOUTS
from tinyvit.tensor import Tensor, no_grad
from tinyvit.train.checkpoint import clear_left_overs, patiently, umask, write_atomically

POOLS = {"google": ("class", "average"), "timm": ("class", "average", "average-norm"), "hf": ("class",)}
HEADS = {"google": ("linear", "mlp", "none"), "timm": ("linear", "none"), "hf": ("linear",)}


def theirs(model, layout):
    """{name: array} of a ViT's parameters in a layout, "google", "timm" or "hf", as float32.

    Raises ValueError that says which part of the model the layout cannot hold.
    """
    c = _checked(model.config, layout)
    weights = {name: array.astype(np.float32, copy=False) for name, array in model.state_dict().items()}
    with no_grad():
        table = 0 if model.positions is None else model.positions()
    table = table.data if isinstance(table, Tensor) else table
    weights["positions.table"] = np.zeros((1, c.tokens - c.registers, c.width), np.float32) + table
    entries = LAYOUTS[layout].table(replace(c, positions="1d"))
    tensors = {entry.theirs: np.ascontiguousarray(entry.write(weights[entry.ours])) for entry in entries}
    if c.registers:  # in timm's table of positions registers have rows, too
        first, table = c.prefix - c.registers, tensors["pos_embed"]
        rows = [table[:, :first], np.zeros_like(tensors["reg_token"]), table[:, first:]]
        tensors["pos_embed"] = np.concatenate(rows, axis=1)
    return tensors


def _checked(c, layout):
    """The configuration. Raises ValueError for what the layout cannot hold."""
    title = LAYOUTS[layout].title
    if c.kind != "vit":
        raise ValueError(f"{title} has no place for the model {c.kind!r}; only a plain ViT can be exported")
    if c.positions == "relative":
        raise ValueError(f"{title} has no relative positions; train with positions 1d, 2d, sincos or none")
    if c.registers and layout != "timm":
        raise ValueError(f"{title} has no registers; timm's layout has")
    if c.pool not in POOLS[layout]:
        raise ValueError(f"{title} has no pooling by {c.pool}, only by {' or '.join(POOLS[layout])}")
    if c.head not in HEADS[layout]:
        raise ValueError(f"{title} cannot hold the head {c.head!r}, only {' or '.join(HEADS[layout])}")
    return c


def write(format, path, classifier):
    """Write a classifier's model for elsewhere, in one step: nothing, or all of it, is there at any moment.

    Args:
        format: "hf" or "timm", then `path` is a folder that is new or empty; "google", a file.
        classifier: what `tinyvit.load` returns; or anything with its model, classes, mean, std and prepare.

    Returns lines that say what the file does not. Raises ValueError as `theirs`, FileExistsError for a folder with
    something in it, OSError where nothing can be written.
    """
    return WRITERS[format](Path(path), classifier)


def write_google(path, classifier):
    c, packed = classifier.model.config, io.BytesIO()
    np.savez(packed, **theirs(classifier.model, "google"))
    write_atomically(path, packed.getvalue())
    notes = ["a .npz has no names of classes and no mean and std: vit_jax maps pixels to -1 … 1"]
    if not c.gelu_tanh:
        notes.append("vit_jax takes the tanh form of GELU and this model has the exact one: last digits differ")
    if c.image_size[0] != c.image_size[1]:
        notes.append("a .npz has no image size, and this one is no square: ours refuses it, or takes it for a square")
    return notes + _other_eps(c, "vit_jax")


def write_hf(path, classifier):
    tensors = theirs(classifier.model, "hf")
    c, prepare = classifier.model.config, classifier.prepare
    h, w = c.image_size
    config = dict(
        architectures=["ViTForImageClassification"], model_type="vit", hidden_size=c.width, num_hidden_layers=c.depth,
        num_attention_heads=c.heads, intermediate_size=c.mlp, hidden_act="gelu_pytorch_tanh" if c.gelu_tanh else "gelu",
        hidden_dropout_prob=c.dropout, attention_probs_dropout_prob=0.0, layer_norm_eps=c.eps,
        image_size=h if h == w else [h, w], patch_size=c.patch, num_channels=c.channels, qkv_bias=True,
        id2label={str(k): name for k, name in enumerate(classifier.classes)}, dtype="float32",
        label2id={name: k for k, name in enumerate(classifier.classes)},
    )  # fmt: skip
    crops = prepare.resize is not None
    edge = {"shortest_edge": prepare.resize} if isinstance(prepare.resize, int) else None
    size = edge or dict(zip(("height", "width"), prepare.resize or (h, w), strict=True))
    pictures = dict(
        image_processor_type="CLIPImageProcessor" if crops else "ViTImageProcessor", do_resize=True, size=size,
        resample=FILTERS.index(prepare.filter), do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=list(classifier.mean), image_std=list(classifier.std), do_center_crop=crops,
        **({"crop_size": {"height": h, "width": w}, "do_convert_rgb": c.channels == 3} if crops else {}),
    )  # fmt: skip
    files = {"config.json": config, "preprocessor_config.json": pictures}
    _write_folder(path, files, tensors)
    return _other_margins(prepare, "transformers", floor=True)


def write_timm(path, classifier):
    tensors = theirs(classifier.model, "timm")
    c, prepare = classifier.model.config, classifier.prepare
    kept, mode = _crop_pct(prepare.resize, c.image_size)
    arguments = dict(
        img_size=list(c.image_size), patch_size=c.patch, in_chans=c.channels, embed_dim=c.width, depth=c.depth,
        num_heads=c.heads, mlp_ratio=_ratio(c.mlp, c.width), reg_tokens=c.registers, class_token=c.pool == "class",
        global_pool="token" if c.pool == "class" else "avg", fc_norm=c.pool == "average-norm",
        **({"act_layer": "gelu_tanh"} if c.gelu_tanh else {}),
    )  # fmt: skip
    pictures = dict(
        input_size=[c.channels, *c.image_size], fixed_input_size=True, interpolation=prepare.filter, crop_pct=kept,
        crop_mode=mode, mean=list(classifier.mean), std=list(classifier.std), custom_load=False,
        first_conv="patch_embed.proj", classifier="head",
    )  # fmt: skip
    classes = 0 if c.head == "none" else c.classes
    config = dict(
        architecture="vit_base_patch16_224", num_classes=classes, num_features=c.width, model_args=arguments,
        global_pool=arguments["global_pool"], pretrained_cfg=pictures | {"num_classes": classes},
        **({"label_names": list(classifier.classes)} if classes else {}),
    )  # fmt: skip
    _write_folder(path, {"config.json": config}, tensors)
    return _other_eps(c, "timm") + _other_margins(prepare, "timm", floor=False)


WRITERS = {"hf": write_hf, "timm": write_timm, "google": write_google}


def _ratio(mlp, width):
    """M / D as timm undoes it, int(D · ratio) = M, whatever the rounding."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else float(np.nextafter(ratio, np.inf))


def _crop_pct(resize, size):
    """timm's way to say a Preparation: size / crop_pct, rounded down, is what a picture is resized to."""
    if resize is None:
        return 1.0, "squash"
    sides, mode = ((resize,), "center") if isinstance(resize, int) else (resize, "squash")
    kept = size[0] / (sides[0] + 0.5)
    fits = all(int(side / kept) == wanted for side, wanted in zip(size, sides, strict=False))
    if not fits or kept > 1 or (mode == "center" and size[0] != size[1]):
        raise ValueError(f"timm cannot say that pictures are resized to {resize} before {size} are cut out")
    return kept, mode


def _other_eps(c, where):
    return [f"{where} adds 1e-06 in its layer norms and this model {c.eps:g}: last digits differ"] * (c.eps != 1e-6)


def _other_margins(prepare, where, floor):
    if prepare.resize is None or prepare.floor == floor:
        return []
    return [f"{where} rounds the margins of the centre that it cuts out otherwise: it may begin a pixel beside ours"]


def _write_folder(path, settings, tensors):
    """A folder with these JSON files and model.safetensors, made beside its place. A new one gets there by one rename;
    into one that is there and empty the files are renamed, the weights last."""
    path = path.resolve()  # where a link points to
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(17, "it must be new or empty, so that nothing is lost", str(path))
    made, moved = None, []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_left_overs(path)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        made.chmod(0o777 & ~umask())
        for name, values in settings.items():
            write_atomically(made / name, json.dumps(values, indent=2, ensure_ascii=False).encode())
        write_atomically(made / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))
        if path.exists():
            for name in [*settings, "model.safetensors"]:
                patiently(os.replace, made / name, path / name)
                moved.append(path / name)
            made.rmdir()
        else:
            patiently(os.replace, made, path)
    except BaseException as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        for file in moved:
            file.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
