"""A model for any machine: an ONNX file, written from the tape.

ONNX is how frameworks hand over a model's forward pass: a file with a list of nodes, each an operator of a fixed
vocabulary with its inputs and outputs by name, and the weights. Runtimes for phones, browsers and servers read it. Our
tape is almost such a list. So we let the model look at a few images, watch the ops go onto the tape, and say each one
again in ONNX's words (`onnx_operators.py`). No layer and no model is mentioned here: whatever is made of our ops can be
exported, a model of your own too. PyTorch's exporter and JAX's jaxprs rest on the same idea, *tracing*.

A trace has one weakness: it shows what happened, not what would happen otherwise. A reshape to (2, 49, 64): is that 2
the model's, or were there two images? So the model is traced twice, with two images and with three others. What is the
same both times belongs to the model; a size that was 2 k and then 3 k is k for each image; and whatever else differs
was computed from the images where the tape did not see it, and is refused. (Frameworks trace with symbols for sizes.)

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import json
from typing import NamedTuple

import numpy as np

from tinyvit.interop.onnx_operators import RULES, Graph, Value
from tinyvit.models import ImageModel
from tinyvit.nn import composed, evaluating
from tinyvit.tape import watching
from tinyvit.tensor import Node, Tensor
from tinyvit.train.checkpoint import write_atomically

OPSET, IR_VERSION = 21, 10  # of early 2024: the first with a usable GroupNormalization
FEW, MORE = 2, 3  # images in the two traces
LARGEST = 2_000_000_000  # bytes of weights: a protobuf message, which the file is, ends at 2 GiB


def write_onnx(path, model, classes=(), mean=None, std=None, pictures=""):
    """Write a model as an ONNX file that gives its logits, for any number of images.

    Args:
        path: of the file, which is replaced whole or not at all.
        model: a ViT, Hybrid, ResNet or any other ImageModel, in either mode: it is written as it acts in eval mode.
        classes: their names, as JSON in the file's metadata under "classes".
        mean, std: per channel, of images scaled to 0 … 1, as a Classifier has them. Where they are given, the file's
            first nodes normalise, and it wants pixels from 0 to 1: weights without their normalisation give confident
            nonsense. Without them it wants images normalised as in training, just as the model does.
        pictures: how they get the model's size, for the metadata: no node resizes.

    The file's input "images" is (batch, height, width, channels) float32, as for the model and as image libraries give
    them (files from PyTorch want channels first); its output "logits" is (batch, classes). Weights bear the names that
    they have in a checkpoint, and float64 becomes float32. A runtime must know opset 21; onnxruntime 1.19 does.

    Raises ImportError where the package onnx is missing; TypeError for what is no ImageModel; ValueError for names or
    normalisation that do not fit the model, for weights of more than 2 GB, which one ONNX file cannot hold, for an op
    that has no rule, and for a model that computes from its images where the tape does not see it; OSError that names
    `path`.
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("write_onnx needs the package onnx: pip install tinyvit[onnx]") from None
    _check(model, classes, mean, std)
    g = Graph()
    c = model.config
    size = (-1, *c.image_size, c.channels)
    images = Value("images", size)
    if mean is not None:
        images = Value(g("Div", g("Sub", images, np.float32(mean)), np.float32(std)), size)
    g.nodes.append(("Identity", [_translate(model, g, images).name], "logits", {}))

    def described(name, shape, text):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape, text)

    wanted = "pixels from 0 to 1" if mean is not None else "pixels normalised as in training"
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ins, [out], name=out, **attributes) for op, ins, out, attributes in g.nodes],
        type(model).__name__,
        [described("images", ["batch", *size[1:]], f"(batch, height, width, channels), {wanted}")],
        [described("logits", ["batch", c.classes], "(batch, classes)")],
        [onnx.numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    proto = onnx.helper.make_model(graph, producer_name="tinyvit", opset_imports=[opset], ir_version=IR_VERSION)
    about = {"images": f"{pictures}, {wanted}" if pictures else wanted} | (
        {"classes": json.dumps(list(classes), ensure_ascii=False)} if len(classes) else {}
    )
    onnx.helper.set_model_props(proto, about)
    write_atomically(path, proto.SerializeToString())


def _check(model, classes, mean, std):
    if not isinstance(model, ImageModel):
        raise TypeError(f"write_onnx needs an ImageModel such as a ViT, got {type(model).__name__}")
    c = model.config
    if len(classes) not in (0, c.classes) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes must be {c.classes} names, or none, got {classes}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: pass both, or neither")
    if mean is not None and not len(mean) == len(std) == c.channels:
        raise ValueError(f"mean and std must have {c.channels} values, got {mean} and {std}")
    if mean is not None and not (np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise ValueError(f"mean must be finite and std positive, got {mean} and {std}")
    size = sum(4 * p.size for p in model.parameters())
    if size > LARGEST:
        raise ValueError(
            f"one ONNX file holds weights of {LARGEST / 1e9:g} GB at most, this model's are {size / 1e9:.1f} GB in "
            "float32. Other formats have no such limit: export it as safetensors"
        )


# ---------------------------------------------------------------------------------------------- tracing


class Call(NamedTuple):
    """An op that the tape recorded: its node; of its inputs the arrays of leaves and constants, None for what another
    op made; its keyword arguments."""

    node: Node
    arrays: list
    static: dict


class Trace(NamedTuple):
    """All calls of one forward pass, in order; the node where it starts and the one where it ends."""

    images: Node
    calls: list[Call]
    logits: Node


def _trace(model, count):
    """The Trace of the model for `count` random images."""
    c, dtype = model.config, model.parameters()[0].dtype
    pixels = np.random.default_rng(count).standard_normal((count, *c.image_size, c.channels))
    images = Tensor(pixels, requires_grad=True, dtype=dtype)  # so that a model with all weights frozen leaves a trace
    start, calls = images.node(), []

    def note(node, arrays, static):
        node.pullback = None  # and with it the activations: nobody goes back
        known = [parent is None or parent.tensor is not None for parent in node.parents]
        calls.append(Call(node, [a if k else None for a, k in zip(arrays, known, strict=True)], static))

    with evaluating(), composed(), watching(note):
        logits = model(images)
    if not calls:
        raise ValueError("write_onnx follows the tape, and under no_grad() there is none: call it outside")
    return Trace(start, calls, logits.node())


def _translate(model, g, images):
    """Add the model's ops to a Graph, which has the Value `images`. Returns the Value of the logits."""
    few, more = _trace(model, FEW), _trace(model, MORE)
    names = {id(p): path for path, p in model.named_parameters()}
    values = {few.images: images, more.images: images}  # a node of either trace: its Value
    if [call.node.op for call in few.calls] != [call.node.op for call in more.calls]:
        raise ValueError("for other images the model takes other steps: a list of ONNX nodes has no choice")
    for a, b in zip(few.calls, more.calls, strict=True):
        op, shape = a.node.op, _shape(a.node.op, a.node.shape, b.node.shape)
        if op not in RULES:
            raise ValueError(f"no rule in tinyvit/interop/onnx_operators.py says {op} in ONNX's words; add one")
        inputs = [_input(a, b, i, values, g, names) for i in range(len(a.arrays))]
        values[a.node] = values[b.node] = Value(RULES[op](g, *inputs, **_static(a, b, shape)), shape)
    logits = values.get(few.logits)
    shape = (-1, model.config.classes)
    if logits is None or logits is not values.get(more.logits) or logits.shape != shape:
        raise ValueError(f"the model's logits must be (B, {shape[1]}) and come from its images")
    return logits


# ---------------------------------------------------------------------------------------------- what two traces share


def _shape(op, few, more):
    """The shape that was `few` in the trace with few images and `more` in the other, with a size -k where it is k for
    each image."""
    shape = tuple(a if a == b else -(a // FEW) for a, b in zip(few, more, strict=False))
    for images, seen in (FEW, few), (MORE, more):
        if tuple(size if size >= 0 else -size * images for size in shape) != seen:
            raise ValueError(f"{op}: a shape is {few} with {FEW} images and {more} with {MORE}: not so much for each")
    return shape


def _input(a, b, i, values, g, names):
    """The Value of the i-th input of a call in either trace; None for an absent one."""
    node, few, more = a.node.parents[i], a.arrays[i], b.arrays[i]
    if values.get(node) is not values.get(b.node.parents[i]) or (few is None) != (more is None):
        raise ValueError(f"{a.node.op}: for other images its input comes from elsewhere")
    if node in values or few is None:
        return values.get(node)
    if few is more:  # a parameter
        return Value(g.constant(few, names.get(id(node.tensor))), few.shape)
    shape = _shape(a.node.op, few.shape, more.shape)
    once = few[tuple(slice(1) if size < 0 else slice(None) for size in shape)]  # zeros (2, 8, 8, 4), say: (1, 8, 8, 4)
    if not all(np.array_equal(np.broadcast_to(once, seen.shape), seen) for seen in (few, more)):
        raise _unseen(a.node.op, f"a constant {few.shape}")
    name = g.constant(once)
    return Value(g("Expand", name, g.sizes(shape)) if min(shape, default=0) < 0 else name, shape)


def _static(a, b, shape):
    """The keyword arguments of two calls. `shape`, where there is one, is that of the result."""
    for key in a.static:
        if key != "shape" and not _same(a.static[key], b.static[key]):
            raise _unseen(a.node.op, key)
    return a.static | {"shape": shape} if "shape" in a.static else a.static


def _same(a, b):
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def _unseen(op, what):
    return ValueError(
        f"{op}: {what} depends on the images, by a way that is not on the tape; write it with tinyvit's ops on Tensors"
    )
