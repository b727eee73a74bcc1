"""ONNX files: onnxruntime gives our logits for every model and any number of images; what cannot be told is refused."""

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason='needs pip install -e ".[parity]"')
onnxruntime = pytest.importorskip("onnxruntime")

from tinyvit import Classifier, Tensor, convolution, data, differentiable, functional, load, no_grad, ops, vit  # noqa: E402
from tinyvit.cli import main  # noqa: E402
from tinyvit.interop import onnx as export  # noqa: E402
from tinyvit.interop.onnx import write_onnx  # noqa: E402
from tinyvit.interop.onnx_operators import OPERATORS, RULES  # noqa: E402
from tinyvit.models import PRESETS, AugmentedConfig, HybridConfig, QuadraticConfig, ResNetConfig, build  # noqa: E402
from tinyvit.models.model import ImageModel  # noqa: E402
from tinyvit.models.vit import ViTConfig  # noqa: E402
from tinyvit.nn import Parameter, layers  # noqa: E402
from tinyvit.train.recipes import Recipe  # noqa: E402

small = dict(image_size=(8, 12), patch=4, channels=3, classes=5, width=24, depth=2, heads=3, mlp=40)
CONFIGS = {
    "as in the paper": ViTConfig(**small),
    "one token": ViTConfig(**small | dict(image_size=4, pool="average")),
    "tanh GELU, 2-D positions, registers": ViTConfig(**small, gelu_tanh=True, positions="2d", registers=2),
    "average, MLP head, sines": ViTConfig(**small, positions="sincos", pool="average", head="mlp"),
    "no positions": ViTConfig(**small, positions="none"),
    "relative, registers": ViTConfig(**small, positions="relative", registers=1),
    "relative, no prefix": ViTConfig(**small, positions="relative", pool="average"),
    "Ti/16, two blocks": replace(PRESETS["Ti/16"], depth=2),
    "hybrid": HybridConfig(**small | dict(image_size=(7, 9), patch=1), blocks=(1, 1), widths=(8, 16)),
    "hybrid, batch norm": HybridConfig(**small | dict(patch=2), blocks=(1, 1), widths=(8, 16), norm="batch"),
    "ResNet, group norm": ResNetConfig((9, 7), 3, 5, (1, 2), (8, 24), "group"),
    "ResNet, batch norm": ResNetConfig((9, 7), 3, 5, (2, 1), (8, 24), "batch"),
    "attention-augmented": AugmentedConfig((6, 8), 2, 5, stride=2, width=12, depth=2, attention=4),
    "quadratic": QuadraticConfig((6, 8), 2, 3, 5, width=18, depth=2, heads=9, mlp=20),
}


def filled(model, seed=0):
    """The model with numbers in place of what starts as zero or one."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        p.data = rng.uniform(0.5, 2, p.shape) if name.endswith("variance") else p.data + 0.1 * rng.normal(size=p.shape)
    return model


def pictures(config, count):
    shape = (count, *config.image_size, config.channels)
    return np.random.default_rng(count).standard_normal(shape).astype(np.float32)


def session(path):
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def logits(path, images):
    return session(path).run(["logits"], {"images": images})[0]


def assert_same(model, path):
    runtime = session(path)
    for count in 1, 3, 2:
        images = pictures(model.config, count)
        ours = model.eval()(images).data
        theirs = runtime.run(["logits"], {"images": images})[0]
        assert theirs.shape == ours.shape and theirs.dtype == np.float32
        assert np.abs(theirs - ours).max() <= 1e-5 * np.abs(ours).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_onnxruntime_gives_our_logits(name, tmp_path):
    """Measured 1.2e-6 of the largest logit at most."""
    model = filled(build(CONFIGS[name]))
    write_onnx(tmp_path / "model.onnx", model)
    assert_same(model, tmp_path / "model.onnx")


def test_it_is_the_model_in_eval_mode_and_leaves_it_as_it_was(tmp_path):
    model = filled(vit("digits", dropout=0.5, drop_path=0.5, depth=2))
    before = model.state_dict()
    write_onnx(tmp_path / "model.onnx", model)
    assert model.training and model.blocks[0].dropout.training
    assert all(np.array_equal(before[name], p.data) and p.grad is None for name, p in model.named_parameters())
    assert_same(model, tmp_path / "model.onnx")


def test_float64_becomes_float32(tmp_path):
    model = filled(build(CONFIGS["relative, registers"]).astype(np.float64))
    write_onnx(tmp_path / "model.onnx", model)
    assert_same(model, tmp_path / "model.onnx")


def test_frozen_weights_are_written_too(tmp_path):
    """What is computed from them alone never gets onto a tape."""
    for name in "as in the paper", "relative, registers", "ResNet, group norm", "ResNet, batch norm":
        model = filled(build(CONFIGS[name]))
        for p in model.parameters():
            p.requires_grad = False
        write_onnx(tmp_path / "model.onnx", model)
        assert_same(model, tmp_path / "model.onnx")


def test_weights_keep_their_names_and_the_batch_stays_open(tmp_path):
    model = filled(build(CONFIGS["tanh GELU, 2-D positions, registers"]))
    write_onnx(tmp_path / "model.onnx", model, classes=["α", "b", "c", "d", "e"])
    proto = onnx.load(tmp_path / "model.onnx")
    stored = {x.name: onnx.numpy_helper.to_array(x) for x in proto.graph.initializer}
    for name, values in model.state_dict().items():
        assert np.array_equal(stored[name], values), name
    runtime = session(tmp_path / "model.onnx")
    assert runtime.get_inputs()[0].name == "images" and runtime.get_inputs()[0].shape == ["batch", 8, 12, 3]
    assert runtime.get_outputs()[0].name == "logits" and runtime.get_outputs()[0].shape == ["batch", 5]
    about = runtime.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["α", "b", "c", "d", "e"]
    assert about["images"] == "pixels normalised as in training"


def test_with_mean_and_std_it_wants_pixels(tmp_path):
    config = CONFIGS["as in the paper"]
    names, mean, std = ("a", "b", "c", "d", "e"), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    ours = Classifier(filled(build(config)).eval(), names, mean, std, "made up", Recipe(), 0)
    write_onnx(tmp_path / "model.onnx", ours.model, ours.classes, ours.mean, ours.std)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), np.uint8)
    theirs = logits(tmp_path / "model.onnx", pixels.astype(np.float32) / 255)
    expected = ours.model(ours.normalise(pixels)).data
    assert np.abs(theirs - expected).max() <= 1e-5 * np.abs(expected).max()


# ---------------------------------------------------------------------------------------------- op by op


class Function(ImageModel):
    """A model that is a function of images (B, 4, 6, 4)."""

    def __init__(self, function, logits=None):
        self.scale = Parameter(np.full(4, 1.5, np.float32))
        self.function, self.config = function, SimpleNamespace(image_size=(4, 6), channels=4, classes=0)
        self.config.classes = self(np.zeros((1, 4, 6, 4))).shape[1] if logits is None else logits

    def forward(self, images):
        y = self.function(self.checked(images) * self.scale)
        return y.reshape(len(images), -1)


rng = np.random.default_rng(0)
matrix, filters, four = rng.normal(size=(4, 12)), rng.normal(size=(3, 2, 4, 5)), rng.normal(size=4)
table = rng.normal(size=(7, 4))
OPS = {
    "arithmetic": lambda x: (2 - x) * x / (1.5 + x * x) - -x + four,
    "exp log sqrt tanh abs": lambda x: ((x.abs() + 0.5).log().exp() + 1).sqrt().tanh(),
    "power": lambda x: x**3 + (x * x + 1) ** -1.5,
    "maximum relu": lambda x: ops.maximum(x, four) + x.relu(),
    "sum": lambda x: x.sum(axis=(1, -1)) + x.sum(axis=2, keepdims=True).sum(axis=(1, 2, 3))[:, None],
    "mean max": lambda x: x.mean(axis=1) + x.max(axis=(1, 3), keepdims=True).max(axis=-2),
    "reshape": lambda x: x.reshape(-1, 8, 12) @ x.reshape(len(x), 12, 8),
    "transpose": lambda x: (
        x.transpose(0, 2, -1, 1).mT.transpose(1, 0, 2, 3).reshape(6, len(x) * 4, 4).transpose(1, 0, 2)
    ),
    "reversed axes": lambda x: x.transpose().transpose(),
    "broadcast to": lambda x: ops.broadcast_to(x[:, :1, None], shape=(len(x), 2, 3, 6, 4)),
    "images merged and stretched": lambda x: (
        ops.broadcast_to(x.reshape(len(x) * 4, 1, 24), shape=(len(x) * 4, 2, 24)) + np.ones((len(x) * 4, 1, 24))
    ),
    "joined with constants": lambda x: ops.concatenate([x, np.zeros((*x.shape[:3], 2)), x[:, :, :, :1]], axis=3),
    "stack": lambda x: ops.stack([x, np.ones(x.shape), x], axis=-1),
    "slices": lambda x: x[:, 1:, ::2, 1:-1] + x[:, -3:, 4::-2, 1:3] + x[:, :3, ::-2, :2],
    "integers": lambda x: x[:, -1, 2] + x[..., 0, :, :][:, 1],
    "new axes": lambda x: x[:, None, 0, ..., None, 1:] + x[..., None, :2, 1:][:, :1],
    "everything": lambda x: x[...] + x[:],
    "embedding": lambda x: x[:, None] @ functional.embedding(Tensor(table, True, np.float32), [[[0, 3]], [[6, 3]]]).mT,
    "matmul": lambda x: x @ x.mT @ np.ones(6),
    "linear": lambda x: functional.linear_gelu(functional.linear(x, matrix, None), matrix.T, four, tanh=True),
    "linear with defaults": lambda x: functional.linear_gelu(x, matrix, None),
    "softmax gelu": lambda x: functional.softmax(functional.gelu(x)) + functional.gelu(x, tanh=True),
    "layer norm": lambda x: functional.layer_norm(x, four, four) + functional.layer_norm(x, four, four, eps=0.1),
    "attention": lambda x: functional.attention(x.reshape(len(x), 8, 12), heads=2),
    "causal attention": lambda x: functional.biased_attention(
        x.reshape(len(x), 8, 12), np.triu(np.full((8, 8), -np.inf), 1), heads=4
    ),
    "patchify": lambda x: layers.patchify(x, 2),
    "convolution": lambda x: functional.conv2d(x, filters, None, stride=2, padding=1),
    "convolution with defaults": lambda x: functional.conv2d(x, filters, rng.normal(size=5) * 0 + 1),
    "standardised": lambda x: functional.conv2d(x, functional.standardise(Tensor(filters, True, np.float32)), None),
    "group norm": lambda x: functional.group_norm(x, four, four, groups=2) + x,
    "group norm, relu": lambda x: functional.group_norm(x, four, four, groups=1, eps=0.1, relu=True),
    "batch norm": lambda x: functional.batch_norm(x, four, four, (four, four**2), relu=True),
    "add and relu": lambda x: functional.add_relu(x, x * -2 + 1),
    "max pool": lambda x: functional.max_pool(x, size=3, stride=2, padding=1) + functional.max_pool(x, size=2),
    "average pool": lambda x: functional.average_pool(x, size=3, stride=1) + functional.average_pool(x, size=4),
}


@pytest.mark.parametrize("name", OPS)
def test_op(name, tmp_path):
    model = Function(OPS[name])
    write_onnx(tmp_path / "model.onnx", model)
    assert_same(model, tmp_path / "model.onnx")


METHODS = "_reshape", "_transpose", "_astype"  # of Tensor, in terms of ops


def engine_ops():
    """{name on the tape: op} of all ops there are."""
    everything = vars(ops) | vars(convolution) | vars(functional) | vars(layers)
    found = [op.__wrapped__ for name, op in everything.items() if hasattr(op, "__wrapped__") and name not in METHODS]
    return {op.__name__.lstrip("_"): op for op in found}


def test_every_op_has_a_rule_or_a_reason():
    reasons = {
        "where": "its condition is computed off the tape",
        "astype": "ONNX files are float32",
        "encoder_block": "composed while tracing",
        "batch_norm": "in eval mode it is arithmetic",
        "cross_entropy": "a loss",
    }
    assert set(engine_ops()) == RULES.keys() | reasons.keys()


def test_a_rule_has_its_ops_signature():
    """Defaults too: a call on the tape says only what the caller said."""
    for name, rule in RULES.items():
        theirs = inspect.signature(engine_ops()[name]).parameters.values()
        _, *ours = inspect.signature(rule).parameters.values()
        if name not in OPERATORS:
            assert [str(p) for p in ours] == [str(p) for p in theirs], name


# ---------------------------------------------------------------------------------------------- refusals


@differentiable
def _cube(x):
    return x**3, lambda g: g * 3 * x**2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_cube, "says cube in ONNX's words"),
        (lambda x: x - x.mean(axis=0), "multiply: a constant .* depends on the images"),
        (lambda x: x - x.data.max(axis=(1, 2, 3), keepdims=True), "subtract: a constant .* depends on the images"),
        (lambda x: x[:, :, :, : 1 + (len(x) == 2)] * x[..., :1], "getitem: a shape is"),
        (lambda x: x[..., : 1 if len(x) == 2 else -3], "getitem: index depends on the images"),
        (lambda x: x * 2 if len(x) == 2 else x + 2, "takes other steps"),
        (lambda x: (x * 2, x * 3)[len(x) % 2] + 1, "add: for other images its input comes from elsewhere"),
        (lambda x: x.reshape(len(x), 96) @ x.reshape(len(x), 96).mT, "logits must be"),
        (lambda x: Tensor(np.ones((len(x), 3))) * 2, "logits must be .* and come from its images"),
        (lambda x: x[:, [0, 1]], "indices must be integers"),
    ],
)
def test_what_a_trace_cannot_tell_is_refused(function, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_onnx(tmp_path / "model.onnx", Function(function, logits=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(classes=["a"]), "classes must be 10 names"),
        (dict(classes=range(10)), "classes must be 10 names"),
        (dict(mean=(0.5,)), "mean and std belong together"),
        (dict(mean=(0.5, 0.5, 0.5), std=(1, 1, 1)), "must have 1 values"),
        (dict(mean=(0.5,), std=(0,)), "std positive"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_onnx(tmp_path / "model.onnx", vit("digits"), **arguments)
    assert not list(tmp_path.iterdir())


def test_what_has_no_images_is_refused(tmp_path):
    with pytest.raises(TypeError, match="needs an ImageModel such as a ViT, got EncoderBlock"):
        write_onnx(tmp_path / "model.onnx", vit("digits").blocks[0])


def test_there_is_no_tape_without_gradients(tmp_path):
    with no_grad(), pytest.raises(ValueError, match=r"under no_grad\(\) there is none"):
        write_onnx(tmp_path / "model.onnx", vit("digits"))


def test_weights_beyond_what_a_file_holds_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    model = vit("digits")
    monkeypatch.setattr(export, "LARGEST", 4 * model.parameter_count() - 1)
    monkeypatch.setattr(export, "_translate", None)
    with pytest.raises(ValueError, match="this model's are 0.0 GB in float32"):
        write_onnx(tmp_path / "model.onnx", model)


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install tinyvit\[onnx\]"):
        write_onnx(tmp_path / "model.onnx", vit("digits"))


def test_the_command_writes_a_run_with_its_normalisation_and_names(tmp_path, monkeypatch, capsys):
    """The file alone answers as the run does, from pixels scaled to 0 … 1."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--epochs", "1", "--threads", "1", "--out", "run"]) == 0
    assert main(["export", "run", "--format", "onnx"]) == 0
    path, run = Path("run") / "model.onnx", load("run")
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    images = data.load("digits").test.images
    scaled = images.astype(np.float32) / 255
    ours = run.model.eval()(run.normalise(images)).data
    assert np.abs(logits(path, scaled) - ours).max() <= 1e-4 * np.abs(ours).max()
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert tuple(json.loads(properties["classes"])) == run.classes == tuple("0123456789")
    assert main(["export", "run", "--format", "onnx", "--out", "new/m.onnx"]) == 0 and Path("new/m.onnx").exists()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "run", "--format", "onnx"]) == 1
    assert "pip install tinyvit[onnx]" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="model.onnx"):
        write_onnx(path, vit("digits"))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
