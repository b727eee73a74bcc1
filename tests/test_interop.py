"""Weights of Google's, timm's and Hugging Face's ViTs become ours and go back; no library is needed here.

`parity/interop/` holds small models that timm and transformers have saved, with their logits (`make_interop.py` beside
it); Google's layout is built here from known arrays, with a forward pass written out from vit_jax.
`test_interop_live.py` compares with the libraries themselves.
"""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import tinyvit
from tinyvit import interop
from tinyvit.cli import main
from tinyvit.cli.shared import data_for
from tinyvit.data.image import SQUASH, Preparation
from tinyvit.models import HybridConfig, ResNetConfig, ViT, ViTConfig, build
from tinyvit.nn import evaluating
from tinyvit.tensor import no_grad
from tinyvit.train import CheckpointError, checkpoint

STORED = Path(__file__).parent / "parity" / "interop"
SMALL = ViTConfig(image_size=(12, 8), patch=4, channels=3, classes=5, width=24, depth=2, heads=3, mlp=40)


def classifier_of(config, seed=3):
    """What `interop.write` needs, of a model with weights at which everything counts."""
    rng, C = np.random.default_rng(seed), config.channels
    model = build(config).eval()
    for name, p in model.named_parameters():
        p.data = float(name.endswith("gamma")) + 0.3 * rng.standard_normal(p.shape)
    names = tuple(f"name {k}" for k in range(config.classes))
    return SimpleNamespace(model=model, classes=names, mean=(0.4,) * C, std=(0.3,) * C, prepare=SQUASH)


def logits(model, images):
    with no_grad(), evaluating():
        return model(images).data


def close(found, expected):
    """To 1e-5 of the largest; 1e-6 is reached, and the other form of GELU costs 1e-4."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def random_images(config, count=2):
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, *config.image_size, config.channels)).astype(np.float32)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------ the tables


EXPRESSIBLE = {
    "google": [
        SMALL,
        replace(SMALL, pool="average"),
        replace(SMALL, head="mlp"),
        replace(SMALL, head="none", classes=24),
    ],
    "timm": [SMALL, replace(SMALL, pool="average"), replace(SMALL, pool="average-norm"), replace(SMALL, registers=3)],
    "hf": [SMALL, replace(SMALL, channels=1, gelu_tanh=True, eps=1e-12)],
}
pairs = [(layout, config) for layout, configs in EXPRESSIBLE.items() for config in configs]


@pytest.mark.parametrize(("layout", "config"), pairs)
def test_a_table_names_every_parameter_and_undoes_itself(layout, config):
    """Protects: no weight stays random, none is turned the wrong way, and one table serves both directions."""
    weights, entries = classifier_of(config).model.state_dict(), list(interop.LAYOUTS[layout].table(config))
    assert {entry.ours for entry in entries} == weights.keys()
    assert len({entry.theirs for entry in entries}) == len(entries)
    back = {name: np.full_like(array, np.nan) for name, array in weights.items()}
    for entry in entries:
        theirs = entry.write(weights[entry.ours])
        assert theirs.shape == entry.stored
        entry.read(theirs, back[entry.ours])
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("layout", "config"), pairs)
def test_ours_there_and_back(layout, config, tmp_path):
    if layout == "google":
        config = replace(config, image_size=(8, 8), gelu_tanh=True)  # an npz says neither the one nor the other
    before = classifier_of(config)
    interop.write(layout, tmp_path / "out.npz", before)
    after = interop.read(tmp_path / "out.npz")
    assert after.model.config == config and same_weights(before.model, after.model)
    if layout != "google":
        assert (after.classes, after.mean, after.std, after.prepare) == (
            before.classes, before.mean, before.std, before.prepare
        )  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "formats"),
    [
        (SQUASH, ("hf", "timm")),
        (Preparation("bicubic"), ("hf", "timm")),
        (Preparation("lanczos", 10), ("timm",)),
        (Preparation("bicubic", (9, 9)), ("timm",)),
        (Preparation("bicubic", 10, floor=True), ("hf",)),
        (Preparation("bicubic", (9, 9), floor=True), ("hf",)),
    ],
)
def test_a_preparation_goes_where_it_is_the_custom_and_elsewhere_a_note_says_so(prepare, formats, tmp_path):
    before = classifier_of(replace(SMALL, image_size=(8, 8)))
    before.prepare = prepare
    for format in ("hf", "timm"):
        notes = interop.write(format, tmp_path / format, before)
        after = interop.read(tmp_path / format).prepare
        assert (after.filter, after.resize) == (prepare.filter, prepare.resize)
        assert (after == prepare) == (notes == []) == (format in formats)


@pytest.mark.parametrize("positions", ["none", "2d", "sincos"])
def test_positions_are_written_as_what_is_added(positions, tmp_path):
    before = classifier_of(replace(SMALL, positions=positions))
    interop.write("hf", tmp_path / "out", before)
    after, images = interop.read(tmp_path / "out").model, random_images(SMALL)
    assert after.config.positions == "1d"
    np.testing.assert_allclose(logits(after, images), logits(before.model, images), atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("hf", dict(registers=2), "Hugging Face's ViT has no registers"),
        ("google", dict(registers=2), "has no registers"),
        ("hf", dict(pool="average"), "no pooling by average, only by class"),
        ("google", dict(pool="average-norm"), "no pooling by average-norm"),
        ("hf", dict(head="mlp"), "cannot hold the head 'mlp'"),
        ("timm", dict(head="mlp"), "cannot hold the head 'mlp'"),
        ("hf", dict(head="none", classes=24), "cannot hold the head 'none'"),
        ("timm", dict(positions="relative"), "no relative positions"),
    ],
)
def test_what_a_layout_cannot_hold(layout, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        interop.write(layout, tmp_path / "out", classifier_of(replace(SMALL, **changes)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", interop.WRITERS)
@pytest.mark.parametrize(
    "config",
    [
        HybridConfig(image_size=(8, 8), channels=1, width=24, depth=1, heads=2, mlp=24),
        ResNetConfig((8, 8), 1, 10),
    ],
)
def test_what_is_no_plain_vit_stays_at_home(config, layout, tmp_path):
    with pytest.raises(ValueError, match=f"no place for the model '{config.kind}'"):
        interop.write(layout, tmp_path / "out", classifier_of(config))
    assert not list(tmp_path.iterdir())


def test_nothing_is_lost_by_writing(tmp_path):
    """A folder with something in it stays; an export that fails leaves nothing behind."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="new or empty"):
        interop.write("hf", tmp_path / "full", classifier_of(SMALL))
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    interop.write("timm", tmp_path / "empty", classifier_of(SMALL))
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"config.json", "model.safetensors"}


def test_an_empty_folder_is_filled_where_it_is(tmp_path, monkeypatch):
    """The folder that a shell stands in, and the one that a link leads to; permissions as for any folder."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path("."), tmp_path / "link"):
        interop.write("hf", path, classifier_of(SMALL))
        assert same_weights(tinyvit.load(path).model, classifier_of(SMALL).model)
    assert Path("config.json").exists() and (tmp_path / "there").stat().st_mode & 0o777 == 0o777 & ~checkpoint.umask()
    assert {path.name for path in tmp_path.iterdir()} == {"here", "link", "there"}
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device: .*full'"):
        interop.write("hf", tmp_path / "full", classifier_of(SMALL))
    assert not (tmp_path / "full").exists()


def test_an_export_that_fails_halfway_leaves_an_empty_folder_empty(tmp_path, monkeypatch):
    replace_file = os.replace

    def full_at_the_weights(source, target):
        if Path(target) == tmp_path / "vit" / "model.safetensors":
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    (tmp_path / "vit").mkdir()
    monkeypatch.setattr("os.replace", full_at_the_weights)
    with pytest.raises(OSError, match="No space left on device"):
        interop.write("hf", tmp_path / "vit", classifier_of(SMALL))
    assert [path.name for path in tmp_path.rglob("*")] == ["vit"]
    monkeypatch.undo()
    assert interop.write("hf", tmp_path / "vit", classifier_of(SMALL)) == []


def test_an_export_that_came_second_leaves_the_first_ones_files(tmp_path, monkeypatch):
    """Two at once into one new folder: the one that cannot put its own there must not clear away the other's."""

    def taken(source, target):
        if Path(target) == tmp_path / "vit":
            (tmp_path / "vit").mkdir()
            (tmp_path / "vit" / "config.json").write_text("the other's")
            raise OSError(39, "Directory not empty")
        replace_file(source, target)

    replace_file = os.replace
    monkeypatch.setattr("os.replace", taken)
    with pytest.raises(OSError, match="Directory not empty"):
        interop.write("hf", tmp_path / "vit", classifier_of(SMALL))
    assert (tmp_path / "vit" / "config.json").read_text() == "the other's"


def test_what_a_killed_export_left_is_cleared_when_nobody_can_be_at_it(tmp_path):
    for name, age in ((".vit.old.tmp", 2 * 3600), (".vit.new.tmp", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    interop.write("hf", tmp_path / "vit", classifier_of(SMALL))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".vit.new.tmp", "vit"]


# ------------------------------------------------------------------------------------------ timm and Hugging Face


@pytest.mark.parametrize("name", ["timm", "hf", "hf-bfloat16"])
def test_logits_are_those_of_the_library_that_saved_it(name):
    answers = np.load(STORED / "answers.npz")
    close(logits(interop.read(STORED / name).model, answers["images"]), answers[name])


def test_what_stands_beside_the_weights():
    timm, hf = tinyvit.load(STORED / "timm"), tinyvit.load(STORED / "hf")
    assert hf.classes == ("cat", "dog", "hen") and timm.classes == tuple(f"class {k}" for k in range(5))
    assert hf.mean == timm.mean == (0.5,) * 3 and hf.prepare == Preparation("bicubic")
    assert timm.prepare == Preparation("bicubic", 17)  # 16 / 0.9, rounded down
    assert timm.model.config.heads == hf.model.config.heads == 3
    assert timm.model.config.registers == 2 and hf.model.config.eps == 1e-12
    assert timm.notes == hf.notes == () and timm.recipe is hf.recipe is None


def changed(kind, tmp_path, pictures=None, **changes):
    """A stored model's folder, with other values in config.json; `pictures` for a preprocessor_config.json."""
    folder = tmp_path / "changed"
    shutil.copytree(STORED / kind, folder, dirs_exist_ok=True)
    config = json.loads((STORED / kind / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes))
    if pictures is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder


def arguments(**more):
    """The stored model's model_args, and more."""
    return json.loads((STORED / "timm" / "config.json").read_text(encoding="utf-8"))["model_args"] | more


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_rpn_224", "'vit_base_patch16_rpn_224' has norms behind each part"),
        ("vit_small_patch16_rope_ape_224", "queries and keys turned by their place"),
    ],
)
def test_architectures_whose_arrays_look_like_a_vit(name, message, tmp_path):
    """Protects: logits of another function, without a word."""
    with pytest.raises(CheckpointError, match=message):
        tinyvit.load(changed("timm", tmp_path, architecture=name))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool_include_prefix", True),
        ("block_fn", "ResPostBlock"),
        ("attn_layer", "diff"),
        ("norm_layer", "rmsnorm"),
        ("pos_embed", "rope"),
        ("a key\x1b[2J", 1),
    ],
)
def test_arguments_of_timm_that_change_the_function(key, value, tmp_path):
    with pytest.raises(CheckpointError, match="not known here") as caught:
        tinyvit.load(changed("timm", tmp_path, model_args=arguments(**{key: value})))
    assert f"{key!r} = {str(value)!r}" in str(caught.value)


def test_arguments_of_timm_that_change_nothing(tmp_path):
    harmless = dict(
        drop_path_rate=0.1, dynamic_img_size=True, weight_init="skip", pool_include_prefix=False, pos_embed="learn",
        norm_layer="layernorm", block_fn=None,
    )  # fmt: skip
    again = tinyvit.load(changed("timm", tmp_path, model_args=arguments(**harmless)))
    assert same_weights(again.model, tinyvit.load(STORED / "timm").model) and again.notes == ()


@pytest.mark.parametrize(
    ("name", "tanh"),
    [
        ("vit_base_patch32_siglip_gap_256", True),
        ("vit_large_patch16_siglip_gap_512", True),
        ("vit_so400m_patch16_siglip_gap_384", True),
        ("vit_large_patch16_siglip_gap_384", False),
        ("vit_so400m_patch14_siglip_gap_384", False),
        ("vit_base_patch16_224", False),
    ],
)
def test_the_form_of_gelu_that_an_architecture_is_known_for(name, tanh, tmp_path):
    assert tinyvit.load(changed("timm", tmp_path, architecture=name)).model.config.gelu_tanh == tanh
    told = changed("timm", tmp_path, architecture=name, model_args=arguments(act_layer="gelu"))
    assert not tinyvit.load(told).model.config.gelu_tanh


def test_names_of_classes_in_words(tmp_path):
    """timm's label_names are synsets; label_descriptions say what they mean, which may be the same for two."""
    names = ["n1", "n2", "n3", "n4", "n5"]
    words = {"n1": "tabby, tabby cat", "n2": "crane", "n4": "crane", "n9": "nothing here"}
    folder = changed("timm", tmp_path, label_names=names, label_descriptions=words)
    assert tinyvit.load(folder).classes == ("tabby, tabby cat", "crane (n2)", "n3", "crane (n4)", "n5")
    for wrong in (["cat"], {"n1": 3}):
        with pytest.raises(CheckpointError, match="label_descriptions must be"):
            tinyvit.load(changed("timm", tmp_path, label_names=names, label_descriptions=wrong))


def test_names_of_classes_cannot_write_on_the_terminal(picture, tmp_path, capsys):
    """Protects: a downloaded file that clears the screen, or adds a line of its own to the answer."""
    names = {"0": "\x1b[2Jcat\x07", "1": "dog\n 99.99 %  fake", "2": "poule d\u2019eau \ud800"}
    folder = changed("hf", tmp_path, id2label=names)
    assert tinyvit.load(folder).classes == (r"\x1b[2Jcat\x07", r"dog\n 99.99 %  fake", "poule d\u2019eau \\ud800")
    assert main(["predict", str(folder), str(picture), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "fake" in out and all(line.isprintable() for line in out.splitlines())
    assert sum("%" in line for line in out.splitlines()) == 3
    assert main(["export", str(folder), "--format", "timm", "--out", str(tmp_path / "timm")]) == 0
    assert tinyvit.load(tmp_path / "timm").classes == tinyvit.load(folder).classes


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
PICTURES = dict(do_resize=True, do_rescale=True, do_normalize=True, rescale_factor=1 / 255)
CUT = PICTURES | dict(do_center_crop=True, crop_size=16)


@pytest.mark.parametrize(
    ("pictures", "prepare", "note"),
    [
        (PICTURES | dict(size=16), Preparation("bilinear"), None),
        (PICTURES | dict(image_processor_type="ViTImageProcessorFast", size=16), Preparation("bilinear"), None),
        (CUT | dict(feature_extractor_type="DeiTFeatureExtractor", size=20),
         Preparation("bicubic", (20, 20), True), None),
        (PICTURES | dict(image_processor_type="DeiTImageProcessorPil", crop_size=16),
         Preparation("bicubic", (256, 256), True), None),
        (CUT | dict(feature_extractor_type="CLIPFeatureExtractor", size=20), Preparation("bicubic", 20, True), None),
        (CUT | dict(image_processor_type="CLIPImageProcessor", size=16), Preparation("bicubic", 16, True), None),
        (CUT | dict(image_processor_type="CLIPImageProcessor", size=[16, 16]), Preparation("bicubic"), None),
        (PICTURES | dict(image_processor_type="CLIPImageProcessor", crop_size=16),
         Preparation("bicubic", 224, True), None),
        (PICTURES | dict(image_processor_type="ConvNextImageProcessor", size={"shortest_edge": 16}, crop_pct=0.8),
         Preparation("bilinear"), "how 'ConvNextImageProcessor' prepares pictures is not known here"),
        (CUT | dict(do_resize=False), Preparation("bilinear"), "do_resize is false"),
        (PICTURES | dict(size=16, do_pad=True), Preparation("bilinear"), "nothing is padded here"),
    ],
)  # fmt: skip
def test_the_kind_of_processor_says_what_a_size_means(pictures, prepare, note, tmp_path):
    """What a file leaves out is the default of the class that it names; what that does and ours cannot do is said."""
    classifier = tinyvit.load(changed("hf", tmp_path, pictures))
    assert classifier.prepare == prepare
    assert classifier.mean == (CLIP_MEAN if "CLIP" in str(pictures) else (0.5,) * 3)
    assert any(note in said for said in classifier.notes) if note else classifier.notes == ()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (PICTURES, r"pictures become \(224, 224\), and the model reads \(16, 16\)"),
        (PICTURES | dict(size=16, do_center_crop=True), r"become \(224, 224\)"),
        (CUT | dict(size={"shortest_edge": 20, "longest_edge": 30}), "size must say height and width, or the shortest"),
        (CUT | dict(size={"height": 20, "shortest_edge": 30}), "size must say height and width, or the shortest"),
        (CUT | dict(size=20, do_resize="no"), "do_resize must be true or false, got 'no'"),
        (CUT | dict(size=20, image_processor_type=3), "image_processor_type must be a text"),
    ],
)
def test_sizes_that_cannot_be(pictures, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        tinyvit.load(changed("hf", tmp_path, pictures))


def test_a_file_alone(tmp_path):
    """Without its config.json: what is assumed is said, `heads` says otherwise, Hugging Face's is refused."""
    shutil.copy(STORED / "timm" / "model.safetensors", tmp_path / "vit.safetensors")
    shutil.copy(STORED / "hf" / "model.safetensors", tmp_path / "hf.safetensors")
    classifier = tinyvit.load(tmp_path / "vit.safetensors", heads=3)
    assert same_weights(classifier.model, tinyvit.load(STORED / "timm").model)
    assert classifier.notes == ("no file says how pictures are prepared; squashed, mean and std 0.5 is assumed",)
    assert any("1 assumed" in note for note in tinyvit.load(tmp_path / "vit.safetensors").notes)
    with pytest.raises(CheckpointError, match="need their config.json"):
        tinyvit.load(tmp_path / "hf.safetensors")
    with pytest.raises(CheckpointError, match="heads must divide the width, got width 24 and 5"):
        tinyvit.load(tmp_path / "vit.safetensors", heads=5)


def test_what_is_missing_unexpected_and_misshapen_is_one_error(tmp_path):
    shutil.copytree(STORED / "timm", tmp_path / "vit")
    arrays = safetensors.numpy.load_file(tmp_path / "vit" / "model.safetensors")
    del arrays["blocks.1.norm1.bias"], arrays["blocks.0.attn.qkv.bias"]
    arrays["head.bias"] = arrays["head.bias"][:2]
    arrays["teacher.weight"] = np.zeros((2, 3), np.float32)
    arrays["norm.bias"] = arrays["norm.bias"].astype(np.int32)
    safetensors.numpy.save_file(arrays, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        tinyvit.load(tmp_path / "vit")
    for words in (
        "looks like timm's VisionTransformer", "missing: blocks.1.norm1.bias (24,)",
        "missing: blocks.0.attn.qkv.bias (72,)",
        "of width 24, depth 2, with patches of 8×8", "unexpected: teacher.weight",
        "head.bias must be (5,), got (2,)", "norm.bias must be floating-point numbers, got int32",
    ):  # fmt: skip
        assert words in str(caught.value)


def test_a_folder_of_several_or_none_is_not_guessed_at(tmp_path):
    for name in ("a.npz", "._a.npz"):  # macOS leaves the second one on a stick
        np.savez(tmp_path / name, **google_arrays())
    assert tinyvit.load(tmp_path).data.startswith("Google")
    np.savez(tmp_path / "b.npz", **google_arrays())
    with pytest.raises(CheckpointError, match=r"holds several files of weights; name one of them: a\.npz, b\.npz"):
        tinyvit.load(tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="must be a run's folder.* or hold published weights.*holds neither"):
        tinyvit.load(tmp_path / "none")
    (tmp_path / "none" / "deit.pth").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match="deit.pth is a pickle"):
        tinyvit.load(tmp_path / "none")


def test_heads_are_told_only_where_no_file_says(tmp_path):
    np.savez(tmp_path / "vit.npz", **google_arrays())
    for path in (STORED / "timm", tmp_path / "vit.npz"):
        assert tinyvit.load(path, heads=3).model.config.heads == 3
        with pytest.raises(CheckpointError, match="heads must be left to the file, which says 3; got 8"):
            tinyvit.load(path, heads=8)
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        tinyvit.load(tmp_path / "missing", heads=3)


def test_names_in_all_languages_stay(tmp_path):
    shutil.copytree(STORED / "hf", tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    names = ["a\u00a0b", "می\u200cشود", "\N{WOMAN}\u200d\N{FIRE ENGINE}"]
    config["id2label"] = dict(enumerate(names))
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    assert tinyvit.load(tmp_path / "vit").classes == tuple(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.layer_scale.gamma", "layer scale"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        ("dist_token", "a distillation token"),
        ("attn_pool.q.weight", "pools by attention"),
        ("norm_pre.weight", "a norm before the first block"),
        ("blocks.0.attn.rel_pos.relative_position_bias_table", "positions that attention adds"),
        ("patch_embed.backbone.stem.conv.weight", "a hybrid on a ResNet that ours is not"),
        ("blocks.0.ffns.1.mlp.fc1.weight", "parts run side by side"),
        ("blocks.1.in_proj.weight", "parts run side by side"),
    ],
)
def test_relatives_of_the_vit_are_refused_by_name(name, message, tmp_path):
    shutil.copytree(STORED / "timm", tmp_path / "vit")
    arrays = safetensors.numpy.load_file(tmp_path / "vit" / "model.safetensors")
    safetensors.numpy.save_file(arrays | {name: np.ones(3, np.float32)}, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        tinyvit.load(tmp_path / "vit")


def test_pickles_are_not_opened(tmp_path):
    """Whatever its content: it would have run."""
    (tmp_path / "vit.pth").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    for path in (tmp_path / "vit.pth", tmp_path):
        if path == tmp_path:
            os.rename(tmp_path / "vit.pth", tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="is a pickle.*Convert it.*save_file"):
            tinyvit.load(path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_several_files_with_an_index(tmp_path):
    arrays = safetensors.numpy.load_file(STORED / "hf" / "model.safetensors")
    shutil.copy(STORED / "hf" / "config.json", tmp_path)
    places = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(arrays)}
    for file in set(places.values()):
        part = {name: array for name, array in arrays.items() if places[name] == file}
        safetensors.numpy.save_file(part, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same_weights(tinyvit.load(tmp_path).model, tinyvit.load(STORED / "hf").model)
    assert same_weights(tinyvit.load(index).model, tinyvit.load(STORED / "hf").model)
    second = {"extra": np.ones(2, np.float32), "classifier.bias": arrays["classifier.bias"]}
    safetensors.numpy.save_file(second, tmp_path / "more.safetensors")
    index.write_text(json.dumps({"weight_map": places | {"extra": "more.safetensors"}}))
    with pytest.raises(CheckpointError, match="must name each array once; classifier.bias is in two files"):
        tinyvit.load(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"classifier.bias": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="must name files beside it"):
        tinyvit.load(tmp_path)


# ------------------------------------------------------------------------------------------ Google


def google_arrays(D=24, H=3, M=40, L=2, classes=5, N=4, P=4, cls=True, seed=0):
    """{name: array} as vit_jax saves them, of random numbers."""
    rng = np.random.default_rng(seed)

    def linear(name, *shape, fan=None):
        kernel = rng.standard_normal(shape) * (fan or shape[0]) ** -0.5
        bias = rng.standard_normal(shape[1:] if name.rsplit("/")[-1] in ("query", "key", "value") else shape[-1:])
        return {f"{name}/kernel": kernel, f"{name}/bias": 0.3 * bias}

    def norm(name):
        return {f"{name}/scale": 1 + 0.2 * rng.standard_normal(D), f"{name}/bias": 0.2 * rng.standard_normal(D)}

    arrays = linear("embedding", P, P, 3, D, fan=3 * P * P)
    arrays |= {"cls": rng.standard_normal((1, 1, D))} if cls else {}
    arrays["Transformer/posembed_input/pos_embedding"] = rng.standard_normal((1, N + cls, D))
    for i in range(L):
        block = f"Transformer/encoderblock_{i}"
        arrays |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_2")
        for name in ("query", "key", "value"):
            arrays |= linear(f"{block}/MultiHeadDotProductAttention_1/{name}", D, H, D // H)
        arrays |= linear(f"{block}/MultiHeadDotProductAttention_1/out", H, D // H, D, fan=D)
        arrays |= linear(f"{block}/MlpBlock_3/Dense_0", D, M) | linear(f"{block}/MlpBlock_3/Dense_1", M, D)
    arrays |= norm("Transformer/encoder_norm") | linear("head", D, classes)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def google_forward(a, images, L=2):
    """vit_jax, written out in float64: (B, h, w, 3) -> logits. The convolution of the patches as a sum over windows."""
    a = {name: array.astype(np.float64) for name, array in a.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * a[f"{name}/scale"] + a[f"{name}/bias"]

    def gelu(x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    kernel, places = a["embedding/kernel"], a["Transformer/posembed_input/pos_embedding"]
    P, (B, h, w, _) = len(kernel), images.shape
    tokens = [
        np.einsum("bijc,ijcd->bd", images[:, y : y + P, x : x + P], kernel)
        for y in range(0, h, P)
        for x in range(0, w, P)
    ]
    z = np.stack(tokens, axis=1) + a["embedding/bias"]
    if "cls" in a:
        z = np.concatenate([np.broadcast_to(a["cls"], (B, 1, z.shape[2])), z], axis=1)
    z = z + places
    for i in range(L):
        block = f"Transformer/encoderblock_{i}"
        attention, y = f"{block}/MultiHeadDotProductAttention_1", norm(z, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("btd,dhk->bthk", y, a[f"{attention}/{name}/kernel"]) + a[f"{attention}/{name}/bias"]
            for name in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("bqhk,bthk->bhqt", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("bhqt,bthk->bqhk", scores / scores.sum(-1, keepdims=True), v)
        z = z + np.einsum("bqhk,hkd->bqd", mixed, a[f"{attention}/out/kernel"]) + a[f"{attention}/out/bias"]
        y, mlp = norm(z, f"{block}/LayerNorm_2"), f"{block}/MlpBlock_3"
        y = gelu(y @ a[f"{mlp}/Dense_0/kernel"] + a[f"{mlp}/Dense_0/bias"])
        z = z + y @ a[f"{mlp}/Dense_1/kernel"] + a[f"{mlp}/Dense_1/bias"]
    z = norm(z, "Transformer/encoder_norm")
    y = z[:, 0] if "cls" in a else z.mean(axis=1)
    if "pre_logits/kernel" in a:
        y = np.tanh(y @ a["pre_logits/kernel"] + a["pre_logits/bias"])
    return y @ a["head/kernel"] + a["head/bias"] if "head/kernel" in a else y


def big_vision(arrays):
    """The names of big_vision."""
    spelled = {}
    for name, array in arrays.items():
        name = name.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
        name = name.replace("LayerNorm_2", "LayerNorm_1").replace("Attention_1", "Attention_0")
        spelled[name.replace("MlpBlock_3", "MlpBlock_0")] = array
    return spelled


def scanned(arrays, L=2):
    """All layers in one array."""
    stacked = {name: array for name, array in arrays.items() if "encoderblock" not in name}
    for name in arrays:
        if "encoderblock_0/" in name:
            layers = [arrays[name.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(L)]
            stacked[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return stacked


def prefixed(prefix):
    return lambda arrays: {prefix + name: array for name, array in arrays.items()}


SPELLINGS = {
    "vit_jax": lambda arrays: arrays,
    "opt/target/": lambda arrays: prefixed("opt/target/")(arrays) | {"opt/state/step": np.int64(7)},
    "params/": prefixed("params/"),
    "params/img/": lambda arrays: (
        prefixed("params/img/")(big_vision(arrays))
        | {"params/t": np.ones(1), "params/txt/head/kernel": np.ones((2, 2))}
    ),
    "big_vision": big_vision,
    "scan": lambda arrays: scanned(big_vision(arrays)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_google_files_in_all_spellings(spelling, cls, packed, tmp_path):
    """The class token, and the average (vit_jax: "gap")."""
    arrays = google_arrays(cls=cls)
    (np.savez_compressed if packed else np.savez)(tmp_path / "vit.npz", **SPELLINGS[spelling](arrays))
    classifier = tinyvit.load(tmp_path / "vit.npz")
    config = classifier.model.config
    assert (config.gelu_tanh, config.heads, config.pool) == (True, 3, "class" if cls else "average")
    images = random_images(config)
    close(logits(classifier.model, images), google_forward(arrays, images))
    interop.write("google", tmp_path / "back.npz", classifier)
    back = np.load(tmp_path / "back.npz")
    assert set(back) == set(arrays) and all(np.array_equal(back[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(("P", "side", "H"), [(16, 224, 3), (32, 384, 4), (16, 384, 12)])
def test_google_at_published_sizes(P, side, H, tmp_path):
    """Patches and images as large as the paper's, the number of heads not the customary one for its width."""
    arrays = google_arrays(D=48, H=H, M=96, N=(side // P) ** 2, P=P)
    np.savez(tmp_path / "vit.npz", **arrays)
    classifier = tinyvit.load(tmp_path / "vit.npz")
    config = classifier.model.config
    assert (config.image_size, config.patch, config.heads) == ((side, side), P, H)
    images = random_images(config)
    close(logits(classifier.model, images), google_forward(arrays, images))


def test_big_visions_sines(tmp_path):
    """Nothing is stored of them; each of the two slowest waves is 10000 times as long as the quickest."""
    arrays = google_arrays(P=32, N=49, cls=False)
    y, x = np.divmod(np.arange(49), 7)
    waves = [1 / 10000 ** (i / 5) for i in range(6)]  # D / 4 of them
    table = [[f(at * wave) for at in (x, y) for f in (np.sin, np.cos) for wave in waves]]
    table = np.stack([np.stack(row, axis=-1) for row in table]).astype(np.float32)
    arrays["Transformer/posembed_input/pos_embedding"] = table
    stored = {name: array for name, array in arrays.items() if "posembed" not in name}
    np.savez(tmp_path / "vit.npz", **big_vision(stored))
    found = interop.read(tmp_path / "vit.npz")
    images = random_images(found.model.config)
    close(logits(found.model, images), google_forward(arrays, images))
    assert found.model.config.image_size == (224, 224) and "sines for 224 pixels, 7×7 patches" in found.notes[0]
    np.savez(tmp_path / "vit.npz", **stored)  # in vit_jax's spelling they must be there
    with pytest.raises(CheckpointError, match="pos_embedding must be an array with 3 sides, got none"):
        interop.read(tmp_path / "vit.npz")


def test_google_hidden_layer_before_the_head(tmp_path):
    """pre_logits, which pre-trained checkpoints of the paper have: our MLP head, D → D, tanh, → K."""
    arrays = google_arrays() | {
        "pre_logits/kernel": np.random.default_rng(1).standard_normal((24, 24)).astype(np.float32) / 5,
        "pre_logits/bias": np.full(24, 0.1, np.float32),
    }
    np.savez(tmp_path / "vit.npz", **arrays)
    model = interop.read(tmp_path / "vit.npz").model
    images = random_images(model.config)
    assert model.config.head == "mlp"
    close(logits(model, images), google_forward(arrays, images))
    arrays |= {"pre_logits/kernel": np.zeros((24, 16), "f4"), "pre_logits/bias": np.zeros(16, "f4")}
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"pre_logits/kernel must be \(24, 24\), got \(24, 16\)"):
        interop.read(tmp_path / "vit.npz")


def test_big_vision_places_that_leave_the_class_token_out(tmp_path):
    """There positions are added before the class token is put first: N of them."""
    arrays = google_arrays()
    places = arrays["Transformer/posembed_input/pos_embedding"]
    places[:, 0] = 0
    np.savez(tmp_path / "vit.npz", **big_vision(arrays | {"Transformer/posembed_input/pos_embedding": places[:, 1:]}))
    model = interop.read(tmp_path / "vit.npz").model
    images = random_images(model.config)
    close(logits(model, images), google_forward(arrays, images))


def test_google_without_a_head(tmp_path):
    """Features, equal to what the head would read; no class is ever named."""
    arrays = {name: array for name, array in google_arrays().items() if not name.startswith("head")}
    np.savez(tmp_path / "vit.npz", **arrays)
    classifier = tinyvit.load(tmp_path / "vit.npz")
    images = random_images(classifier.model.config)
    close(logits(classifier.model, images), google_forward(arrays, images))
    with pytest.raises(ValueError, match="no head, so it knows no classes"):
        classifier.predict(np.zeros((1, 8, 8, 3), np.uint8))


def test_google_bfloat16(tmp_path):
    """NumPy saves JAX's bfloat16 as two bytes without a name."""
    arrays = google_arrays()
    halves = {name: (array.view("u4") >> 16).astype("u2").view("V2") for name, array in arrays.items()}
    np.savez(tmp_path / "vit.npz", **halves)
    cut = {name: (array.view("u4") & 0xFFFF0000).view("f4") for name, array in arrays.items()}
    np.savez(tmp_path / "cut.npz", **cut)
    assert same_weights(interop.read(tmp_path / "vit.npz").model, interop.read(tmp_path / "cut.npz").model)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"conv_root/kernel": np.ones((7, 7, 3, 8), "f4")}, "a hybrid on a ResNet that ours is not"),
        ({"MAPHead_0/probe": np.ones((1, 1, 24), "f4")}, "pools by attention"),
    ],
)
def test_google_models_that_ours_cannot_be(extra, message, tmp_path):
    np.savez(tmp_path / "vit.npz", **google_arrays() | extra)
    with pytest.raises(CheckpointError, match=message):
        tinyvit.load(tmp_path / "vit.npz")


# ------------------------------------------------------------------------------------------ pictures and commands


def test_a_preparation_squashes_or_cuts_out_the_centre():
    """A grey ramp, 60 × 20, for 10 × 10: squashed it is all there; of its centre only the middle third."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (20, 1)))
    whole = np.asarray(Preparation()(ramp, (10, 10)))
    centre = np.asarray(Preparation("bilinear", 10)(ramp, (10, 10)))
    assert whole.shape == centre.shape == (10, 10)
    assert whole[0, 0] < 15 and whole[0, -1] > 240
    assert 80 < centre[0, 0] < 100 and 155 < centre[0, -1] < 175
    both = np.asarray(Preparation("bicubic", (20, 20))(ramp, (10, 10)))
    assert 60 < both[0, 0] < 75 and 180 < both[0, -1] < 195
    columns = Image.fromarray(np.tile(np.arange(27, dtype=np.uint8), (16, 1)))  # 11 too many: 5 and 6, or 6 and 5
    assert np.asarray(Preparation("bilinear", 16, floor=True)(columns, (16, 16)))[0, 0] == 5
    assert np.asarray(Preparation("bilinear", 16)(columns, (16, 16)))[0, 0] == 6
    with pytest.raises(ValueError, match="must be|resized by one of"):
        Preparation("sinc")
    with pytest.raises(ValueError, match="sides of 1 to"):
        Preparation("bicubic", 10**9)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


def test_predict(picture, tmp_path, capsys):
    assert main(["predict", str(STORED / "hf"), str(picture), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("cat", "dog", "hen")) and (tmp_path / "picture.png-attention.png").exists()
    assert main(["predict", str(STORED / "timm"), str(picture), "--out", str(tmp_path)]) == 0
    assert "only its centre is seen" in capsys.readouterr().out
    np.savez(tmp_path / "vit.npz", **{k: v for k, v in google_arrays().items() if not k.startswith("head")})
    assert main(["predict", str(tmp_path / "vit.npz"), str(picture)]) == 1
    assert "has no head; `tinyvit finetune` gives it one" in capsys.readouterr().err


@pytest.fixture
def pets(tmp_path):
    """A folder of 24 pictures of different sizes, two classes that colour tells apart."""
    rng = np.random.default_rng(0)
    for name, colour in (("fire", (200, 60, 30)), ("water", (30, 60, 200))):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(-30, 30, (20 + i, 30, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                tmp_path / "pets" / name / f"{i}.png"
            )
    return tmp_path / "pets"


@pytest.mark.parametrize("words", ["{start} {pets}", "{start} --data {pets}"])
def test_finetune_a_published_model_on_a_folder(words, pets, tmp_path, monkeypatch, capsys):
    """The start's size and normalisation, the folder's classes; what comes out is a run like any other."""
    monkeypatch.chdir(tmp_path)
    words = words.format(start=STORED / "hf", pets=pets).split()
    assert main(["finetune", *words, "--epochs", "4", "--threads", "1", "--out", "run"]) == 0
    captured = capsys.readouterr()
    assert "test accuracy 100.00 %" in captured.out
    assert "squashed here, by a bilinear filter; before, they were resized by a bicubic filter\n" in captured.err
    tuned = tinyvit.load("run")
    assert tuned.classes == ("fire", "water") and tuned.mean == (0.5,) * 3
    assert tuned.model.config.eps == 1e-12 and tuned.model.config.image_size == (16, 16)
    assert main(["eval", "run"]) == 0 and "test accuracy 100.00 %" in capsys.readouterr().out


def test_figures_of_a_published_model(pets, tmp_path, capsys):
    """Without data what the weights say; with data, which must have the model's classes, all of them."""
    shutil.copytree(STORED / "hf", tmp_path / "vit")
    assert main(["figures", str(tmp_path / "vit")]) == 1
    assert "name yours with --data" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "vit" / "figures").iterdir()} == {"filters.png", "positions.png"}
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["id2label"] = {"0": "fire", "1": "water"}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    assert main(["figures", str(tmp_path / "vit"), "--data", str(pets)]) == 1  # three outputs, two classes
    assert "class 2 must be the model's" in capsys.readouterr().err


def test_a_published_model_of_images_that_are_no_squares(pets, tmp_path, capsys):
    before = classifier_of(replace(SMALL, classes=2))
    before.classes = ("fire", "water")
    interop.write("hf", tmp_path / "vit", before)
    assert main(["eval", str(tmp_path / "vit"), "--data", str(pets)]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert main(["figures", str(tmp_path / "vit"), "--data", str(pets)]) == 0
    assert (tmp_path / "vit" / "figures" / "attention.png").exists()
    notes = interop.write("google", tmp_path / "vit.npz", before)
    assert any("no image size, and this one is no square" in note for note in notes)
    with pytest.raises(CheckpointError, match="no square of patches"):
        tinyvit.load(tmp_path / "vit.npz")


def test_figures_say_what_was_assumed(tmp_path, capsys):
    shutil.copy(STORED / "timm" / "model.safetensors", tmp_path / "vit.safetensors")
    main(["figures", str(tmp_path / "vit.safetensors")])
    err = capsys.readouterr().err
    assert "tinyvit figures: no file says how many heads" in err and "no file says how pictures are prepared" in err


def test_a_published_model_is_tested_on_pictures_prepared_as_its_files_say(pets):
    classifier = tinyvit.load(STORED / "timm")
    assert classifier.prepare.resize is not None
    dataset = data_for(classifier, str(pets))
    seen = {image.tobytes() for part in (dataset.train, dataset.validation, dataset.test) for image in part.images}
    assert seen == {classifier.read(path)[0].tobytes() for path in pets.glob("*/*.png")}


def test_export_of_a_run_and_of_published_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--epochs", "1", "--threads", "1", "--out", "run"]) == 0
    for format, name in (("hf", "model-hf"), ("timm", "model-timm"), ("google", "model.npz")):
        assert main(["export", "run", "--format", format]) == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines()[-1] == str(Path("run") / name)
        assert ("tanh form of GELU" in captured.err) == (format == "google")
        assert same_weights(tinyvit.load(Path("run") / name).model, tinyvit.load("run").model)
    assert main(["export", "run", "--format", "hf"]) == 1 and "new or empty" in capsys.readouterr().err
    before = Path("run/model.npz").read_bytes()
    assert main(["export", "run/model.npz", "--format", "google"]) == 1
    assert "is what is read" in capsys.readouterr().err
    Path("vit").mkdir()
    shutil.copy("run/model.npz", "vit/model.npz")
    assert main(["export", "vit", "--format", "google"]) == 1 and "is what is read" in capsys.readouterr().err
    assert Path("run/model.npz").read_bytes() == Path("vit/model.npz").read_bytes() == before
    assert main(["export", "run", "--format", "google", "--out", "run/checkpoint.safetensors"]) == 1
    assert "must end in .npz" in capsys.readouterr().err and tinyvit.load("run")
    assert main(["export", "run", "--format", "google"]) == 0  # its own earlier file is replaced
    assert main(["export", "run/model-hf", "--format", "timm", "--out", "again"]) == 0
    assert tinyvit.load("again").classes == tuple("0123456789")
    assert main(["export", str(STORED / "timm"), "--format", "hf", "--out", "no"]) == 1
    assert "has no registers" in capsys.readouterr().err and not Path("no").exists()


def test_a_default_model_goes_through_google_with_its_gelu_said(tmp_path):
    """The note that the command prints is true: the largest difference is small and there."""
    before = classifier_of(replace(SMALL, image_size=(8, 8)))
    notes = interop.write("google", tmp_path / "vit.npz", before)
    assert any("tanh form" in note for note in notes)
    after, images = interop.read(tmp_path / "vit.npz").model, random_images(replace(SMALL, image_size=(8, 8)))
    assert type(after) is ViT
    difference = np.abs(logits(after, images) - logits(before.model, images)).max()
    assert 0 < difference < 0.01
