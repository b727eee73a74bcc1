"""Random models of timm and transformers, carried over and back: the same logits, the same bytes.

Skipped where the libraries are missing: pip install -e ".[parity]", then pip install --no-deps timm.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import libraries  # noqa: E402
from parity.libraries import randomised  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_interop import classifier_of  # noqa: E402

import tinyvit  # noqa: E402
from tinyvit import interop  # noqa: E402
from tinyvit.data.image import Preparation  # noqa: E402
from tinyvit.interop.settings import CUSTOMARY_HEADS, timm_settings  # noqa: E402
from tinyvit.models import ViT, ViTConfig  # noqa: E402
from tinyvit.nn import evaluating  # noqa: E402
from tinyvit.tensor import no_grad  # noqa: E402
from tinyvit.train import CheckpointError  # noqa: E402

pytestmark = pytest.mark.parity

TIMM = {
    "16/224": dict(embed_dim=192, num_heads=3, depth=2, num_classes=11),
    "32/384": dict(img_size=384, patch_size=32, embed_dim=48, num_heads=4, depth=3, num_classes=5),
    "no head": dict(img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=0),
    "grey, wide MLP": dict(
        img_size=(48, 32), embed_dim=24, num_heads=6, depth=1, num_classes=3, in_chans=1, mlp_ratio=5
    ),
    "tanh": dict(img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, act_layer="gelu_tanh"),
    "no qkv bias": dict(img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, qkv_bias=False),
    "layer scale": dict(img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, init_values=0.1),
    "average": dict(
        img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, global_pool="avg", class_token=False
    ),
    "average, norm first": dict(
        img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, global_pool="avg", class_token=False,
        fc_norm=False,
    ),
    "average beside a class token": dict(
        img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, global_pool="avg"
    ),
    "registers": dict(img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, reg_tokens=3),
    "registers without places": dict(
        img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, reg_tokens=3, no_embed_class=True
    ),
    "registers, average": dict(
        img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4, reg_tokens=4, global_pool="avg"
    ),
}  # fmt: skip
SAME_FORM = [  # the others are folded into ours
    "16/224",
    "32/384",
    "no head",
    "grey, wide MLP",
    "tanh",
    "average",
    "average, norm first",
]
HF = {
    "16/224": dict(hidden_size=192, num_attention_heads=3, num_hidden_layers=2, intermediate_size=768, num_labels=7),
    "32/384": dict(
        hidden_size=48, num_attention_heads=6, num_hidden_layers=2, intermediate_size=96, num_labels=3, image_size=384,
        patch_size=32,
    ),
    "grey, not square": dict(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=40, num_labels=3,
        image_size=[32, 48], num_channels=1,
    ),
    "tanh, eps": dict(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=40, num_labels=3, image_size=32,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3,
    ),
    "no qkv bias": dict(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=40, num_labels=3, image_size=32,
        qkv_bias=False,
    ),
}  # fmt: skip
timm_case = pytest.mark.parametrize("name", TIMM)
hf_case = pytest.mark.parametrize("name", HF)


def timm_model(name):
    options = TIMM[name]
    return randomised(libraries.timm().create_model("vit_base_patch16_224", **options)), options


def hf_model(name, kind="ViTForImageClassification", **changes):
    transformers = libraries.transformers()
    return randomised(getattr(transformers, kind)(transformers.ViTConfig(**HF[name] | changes)))


def images_for(config, count=2):
    rng = np.random.default_rng(5)
    return rng.standard_normal((count, *config.image_size, config.channels)).astype(np.float32)


def ours(model, images):
    """(logits, the hidden states) of our model."""
    with no_grad(), evaluating():
        logits, seen = model(images, intermediates=True)
    return logits.data, [seen[f"blocks.{i}"].data for i in range(model.config.depth)]


def hooked(module, blocks, images):
    """(what a PyTorch module returns, what its blocks return)."""
    states = []

    def note(_, __, out):
        states.append((out[0] if isinstance(out, tuple) else out).numpy())

    hooks = [block.register_forward_hook(note) for block in blocks]
    with torch.no_grad():
        out = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return out, states


def agree(found, expected):
    """To 1e-5 of the largest, hidden state by hidden state: the first that differs names the layer. (1e-6 is reached,
    and the other form of GELU costs 1e-4.)"""
    logits, states = found
    for i, (a, b) in enumerate(zip(states, expected[1], strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=f"block {i}")
    np.testing.assert_allclose(logits, expected[0], rtol=0, atol=1e-5 * np.abs(expected[0]).max())


def theirs_of_timm(model, images):
    logits, states = hooked(model, model.blocks, images)
    return logits.numpy(), states


def theirs_of_hf(model, images):
    core = getattr(model, "vit", model)
    out, states = hooked(model, core.layers, images)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state[:, 0]).numpy(), states


def tensors(folder):
    return interop.files.read_tensors(Path(folder) / "model.safetensors")


# ------------------------------------------------------------------------------------------ timm


@timm_case
def test_a_folder_of_timm(name, tmp_path):
    """As timm puts it on the hub: config.json and safetensors."""
    model, options = timm_model(name)
    libraries.timm().models.save_for_hf(model, tmp_path, safe_serialization=True, model_args=options)
    read = interop.read(tmp_path, heads=options["num_heads"])
    images = images_for(read.model.config)
    agree(ours(read.model, images), theirs_of_timm(model, images))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_file_of_timm_alone(prefix, tmp_path):
    model, options = timm_model("32/384")
    save_file({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "vit.safetensors")
    read = interop.read(tmp_path / "vit.safetensors", heads=4)
    images = images_for(read.model.config)
    agree(ours(read.model, images), theirs_of_timm(model, images))
    assert "1 assumed" in interop.read(tmp_path / "vit.safetensors").notes[0]  # 48 wide: no custom fits


@timm_case
def test_back_to_timm(name, tmp_path):
    """theirs -> ours -> a folder -> timm: the same logits; and where our form is theirs, the same bytes."""
    timm, (model, options) = libraries.timm(), timm_model(name)
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization=True, model_args=options)
    read = interop.read(tmp_path / "theirs", heads=options["num_heads"])
    assert interop.write("timm", tmp_path / "ours", read) == []
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    images = images_for(read.model.config)
    expected = theirs_of_timm(model, images)
    agree(theirs_of_timm(again, images), expected)
    agree(ours(interop.read(tmp_path / "ours").model, images), expected)
    if name in SAME_FORM:
        before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key].view("u4"), after[key].view("u4")) for key in before)


# ------------------------------------------------------------------------------------------ Hugging Face


@hf_case
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "ViTModel"])
def test_a_folder_of_hugging_face(kind, name, tmp_path):
    model = hf_model(name, kind)
    model.save_pretrained(tmp_path)
    read = interop.read(tmp_path)
    images = images_for(read.model.config)
    agree(ours(read.model, images), theirs_of_hf(model, images))
    assert (read.model.config.head == "none") == (kind == "ViTModel")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deit_tiny_distilled_patch16_224", {}, "a distillation token"),
        ("vit_relpos_small_patch16_224", {}, "positions that attention adds or turns by"),
        ("beit_base_patch16_224", dict(embed_dim=24, num_heads=2), "positions that attention adds or turns by"),
        ("vit_tiny_r_s16_p8_224", dict(img_size=64), "a hybrid on a ResNet"),
        ("vit_giant_patch14_dinov2", dict(img_size=28, embed_dim=24, num_heads=2), "gated MLPs"),
        ("vit_base_patch16_siglip_224", dict(img_size=32, embed_dim=24, num_heads=2), "pools by attention"),
    ],
)
def test_whole_models_that_ours_cannot_be_are_refused_by_name(name, changes, message, tmp_path):
    timm = libraries.timm()
    timm.models.save_for_hf(
        timm.create_model(name, depth=1, num_classes=3, **changes), tmp_path, safe_serialization=True
    )
    with pytest.raises(CheckpointError, match=message):
        tinyvit.load(tmp_path)


def test_heads_that_no_file_says_are_those_of_timms_architectures(tmp_path):
    """A published config.json names the architecture alone: for each width of each, what is read without `heads`."""
    timm = libraries.timm()
    checked = 0
    for name in timm.list_models("vit_*", module="vision_transformer"):
        if re.search("_rpn_|_rope_|parallel|_xp_|_pwee|_dpwee|_dlittle|gigantic|little", name):
            continue
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        if not hasattr(model.blocks[0], "attn"):
            continue
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
        said = timm_settings(tmp_path).heads
        assert (said or CUSTOMARY_HEADS.get(model.embed_dim) or model.embed_dim // 64) == model.blocks[
            0
        ].attn.num_heads, name
        checked += 1
    assert checked > 100


def test_the_names_of_the_modules_too(tmp_path):
    """What a user's own `save_file(model.state_dict())` writes with transformers 5."""
    model = hf_model("32/384")
    model.save_pretrained(tmp_path)
    before = interop.read(tmp_path).model.state_dict()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    after = interop.read(tmp_path).model.state_dict()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_types(dtype, tmp_path):
    """Rounded weights, exactly as PyTorch widens them."""
    model = hf_model("32/384").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    read, rounded = interop.read(tmp_path), model.float()
    weight = read.model.blocks[0].mlp.fc1.weight.data
    assert np.array_equal(weight, rounded.vit.layers[0].mlp.fc1.weight.detach().numpy().T)
    images = images_for(read.model.config)
    agree(ours(read.model, images), theirs_of_hf(rounded, images))


def test_a_model_in_several_files(tmp_path):
    model = hf_model("32/384")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    read = interop.read(tmp_path)
    images = images_for(read.model.config)
    agree(ours(read.model, images), theirs_of_hf(model, images))


@hf_case
def test_back_to_hugging_face(name, tmp_path):
    transformers, model = libraries.transformers(), hf_model(name)
    model.save_pretrained(tmp_path / "theirs")
    read = interop.read(tmp_path / "theirs")
    assert interop.write("hf", tmp_path / "ours", read) == []
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    images = images_for(read.model.config)
    agree(theirs_of_hf(again, images), theirs_of_hf(model, images))
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    if name != "no qkv bias":
        assert before.keys() == after.keys()
    assert all(np.array_equal(before[key].view("u4"), after[key].view("u4")) for key in before)


# ------------------------------------------------------------------------------------------ ours


def exported(format, tmp_path, **config):
    """(our model, the folder) of a small model that was exported."""
    classifier = classifier_of(ViTConfig(**dict(image_size=(12, 8), patch=4, channels=1, classes=3, width=24) | config))
    interop.write(format, tmp_path / "out", classifier)
    return classifier, tmp_path / "out"


@pytest.mark.parametrize(
    "config", [{}, dict(positions="2d"), dict(positions="sincos"), dict(positions="none", channels=3)]
)
def test_ours_to_hugging_face(config, tmp_path):
    classifier, folder = exported("hf", tmp_path, **config)
    transformers = libraries.transformers()
    model, report = transformers.ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = images_for(classifier.model.config)
    agree(theirs_of_hf(model.eval(), images), ours(classifier.model, images))
    assert tuple(model.config.id2label[k] for k in range(3)) == classifier.classes


@pytest.mark.parametrize("config", [
    {}, dict(positions="2d", gelu_tanh=True), dict(registers=2, mlp=50), dict(pool="average", registers=1),
    dict(pool="average-norm", image_size=8, positions="sincos"),
])  # fmt: skip
def test_ours_to_timm(config, tmp_path):
    classifier, folder = exported("timm", tmp_path, **config)
    model = libraries.timm().create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = images_for(classifier.model.config)
    agree(theirs_of_timm(model, images), ours(classifier.model, images))


@pytest.mark.parametrize(
    "prepare",
    [
        Preparation("bicubic"),
        Preparation("bilinear", 20, floor=True),  # the long side becomes 28: a margin of 12
        Preparation("bilinear", 21, floor=True),
        Preparation("bicubic", 23, floor=True),
        Preparation("lanczos", (20, 24), floor=True),
        Preparation("bilinear", (19, 25), floor=True),
    ],
)
@pytest.mark.parametrize("shape", [(50, 71, 3), (70, 48, 3)])
def test_pictures_are_prepared_as_hugging_face_prepares_them(prepare, shape, tmp_path):
    """Its processor, made of the settings that we write, and ours, made of them too, on a picture of other proportions:
    squashed, and with the centre cut out, of margins even and odd."""
    classifier = classifier_of(ViTConfig(image_size=(16, 16), patch=4, channels=3, classes=3, width=24))
    classifier.prepare = prepare
    assert interop.write("hf", tmp_path / "out", classifier) == []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    picture.save(tmp_path / "picture.png")
    processor = libraries.transformers().AutoImageProcessor.from_pretrained(tmp_path / "out")
    expected = processor(picture, return_tensors="np")["pixel_values"]
    again = tinyvit.load(tmp_path / "out")
    assert again.prepare == prepare
    found = again.normalise(again.read(tmp_path / "picture.png")[0][None]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


CUT = dict(do_normalize=True, do_resize=True, do_center_crop=True, crop_size=16)


@pytest.mark.parametrize(
    "pictures",
    [
        CUT | dict(feature_extractor_type="DeiTFeatureExtractor", size=21),
        CUT | dict(feature_extractor_type="ViTFeatureExtractor", size=21),
        CUT | dict(feature_extractor_type="CLIPFeatureExtractor", size=21),
        CUT | dict(image_processor_type="CLIPImageProcessor", size=16),
        dict(image_processor_type="DeiTImageProcessor", crop_size={"height": 16, "width": 16}),
        dict(image_processor_type="CLIPImageProcessor", crop_size=16),
        dict(image_processor_type="ViTImageProcessor", size=16),
        dict(image_processor_type="CLIPImageProcessor", size=[16, 16], do_center_crop=False),
    ],
)
def test_settings_of_hugging_face_mean_what_its_processors_do(pictures, tmp_path):
    """Of files that leave out most: what is not said is the default of the class that is named."""
    interop.write("hf", tmp_path, classifier_of(ViTConfig(image_size=16, patch=4, channels=3, classes=3, width=24)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 68, 3), np.uint8))
    picture.save(tmp_path / "picture.png")
    expected = libraries.transformers().AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="np")
    ours = tinyvit.load(tmp_path)
    assert ours.notes == ()
    found = ours.normalise(ours.read(tmp_path / "picture.png")[0][None]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_base_patch16_rpn_224", {}, "norms behind each part of a block"),
        ("vit_base_patch16_224", dict(global_pool="avg", pool_include_prefix=True), "'pool_include_prefix' = 'True'"),
        ("vit_base_patch16_224", dict(norm_layer="rmsnorm"), "'norm_layer' = 'rmsnorm'"),
    ],
)
def test_models_of_timm_that_compute_something_else(name, options, message, tmp_path):
    size = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=1, num_classes=4)
    model = libraries.timm().create_model(name, **size | options)
    libraries.timm().models.save_for_hf(model, tmp_path, safe_serialization=True, model_args=size | options)
    with pytest.raises(CheckpointError, match=message):
        interop.read(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch32_siglip_gap_256", "vit_large_patch16_siglip_gap_256", "vit_so400m_patch16_siglip_gap_256"],
)
def test_the_form_of_gelu_that_only_an_architecture_says(name, tmp_path):
    """A hub's config.json has no model_args where they are the architecture's own."""
    timm = libraries.timm()
    model = randomised(timm.create_model(name, img_size=64, embed_dim=24, num_heads=2, depth=2, num_classes=4))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("model_args", None)
    config["pretrained_cfg"]["input_size"] = [3, 64, 64]
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = interop.read(tmp_path, heads=2)
    images = images_for(read.model.config)
    expected = theirs_of_timm(model, images)
    agree(ours(read.model, images), expected)
    np.testing.assert_allclose(ours(read.model, images)[0], expected[0], rtol=0, atol=1e-5 * np.abs(expected[0]).max())


def test_a_twin_of_the_default_model(tmp_path):
    """Protects: an exported run's model, untouched by any test's random weights, is read by its own reader."""
    classifier, folder = exported("timm", tmp_path)
    again = interop.read(folder)
    assert type(again.model) is ViT and again.classes == classifier.classes
    for name, values in classifier.model.state_dict().items():
        assert np.array_equal(values, again.model.state_dict()[name])
