"""The data-size study: its subsets, its moved and shuffled images, its budget; and a tiny one from end to end."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import inductive_bias as study_of  # noqa: E402
import inductive_bias_report as reporting  # noqa: E402

TINY = replace(
    study_of.STUDIES["digits"], sizes=(50, 100), examined=(50, 100), shuffled_size=50, shuffles=(2,), seconds=0.01,
    shifts=(0, 1), grids=(2,), validation=20, tested=20,
)  # fmt: skip


def test_subsets_are_nested_and_stratified():
    """Protects: more images means the same images and more; no class is missing by chance."""
    labels = tv.data.load("digits").train.labels
    small, medium, large = study_of.nested(labels, (50, 150, 1150), seed=1)
    assert set(small) < set(medium) < set(large) and len(set(large)) == 1150
    assert np.ptp(np.bincount(labels[small], minlength=10)) <= 4
    assert set(small) == set(study_of.nested(labels, (50, 400), seed=1)[0]), "other sizes must not change it"
    assert set(small) != set(study_of.nested(labels, (50, 400), seed=2)[0]), "each seed draws its own"


def test_moved_by_hand():
    """Protects: right, left, down, up in turn; what leaves is lost, what comes in is 0."""
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)[..., None]
    wanted = [
        [[0, 1, 2], [0, 4, 5], [0, 7, 8]],
        [[2, 3, 0], [5, 6, 0], [8, 9, 0]],
        [[0, 0, 0], [1, 2, 3], [4, 5, 6]],
        [[4, 5, 6], [7, 8, 9], [0, 0, 0]],
        [[0, 1, 2], [0, 4, 5], [0, 7, 8]],
    ]
    np.testing.assert_array_equal(study_of.moved(np.stack([image] * 5), 1)[..., 0], wanted)
    np.testing.assert_array_equal(study_of.moved(np.stack([image] * 5), 0), np.stack([image] * 5))


def test_shuffled_by_hand():
    """Protects: patches stay whole, none stays in its place, all images are shuffled alike."""
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    images = np.stack([image, image + 100])
    out = study_of.shuffled(images, 2)

    def pieces(image):
        return [image[r : r + 2, c : c + 2].tobytes() for r in (0, 2, 4) for c in (0, 2, 4)]

    before, after = pieces(image), pieces(out[0])
    assert sorted(before) == sorted(after) and all(a != b for a, b in zip(before, after, strict=True))
    np.testing.assert_array_equal(out[1], out[0] + 100)
    np.testing.assert_array_equal(study_of.shuffled(images, 6), images)  # a single patch has nowhere to go


def test_a_vit_does_not_care_where_its_patches_lie():
    """Protects: shuffled patches and a position table in the same order give the same logits, as nothing else in a
    ViT knows where a patch was; a ResNet has no such table."""
    config = study_of.STUDIES["digits"].contenders["ViT"].config
    model = tv.models.build(config, seed=0)
    rng = np.random.default_rng(0)
    model.head.weight.data = rng.standard_normal(model.head.weight.shape)  # it begins with zeros
    images = rng.standard_normal((3, 8, 8, 1)).astype(np.float32)
    where = study_of.shuffled(np.arange(64.0).reshape(1, 8, 8, 1), 2)[0, ::2, ::2, 0].astype(int)
    order = (where // 16 * 4 + where % 8 // 2).ravel()  # which patch stands where now
    before = model(images).data
    moved = study_of.shuffled(images, 2)
    assert np.abs(model(moved).data - before).max() > 1e-3
    table = model.positions.table.data
    model.positions.table.data = np.concatenate([table[:, :1], table[:, 1:][:, order]], axis=1)
    np.testing.assert_allclose(model(moved).data, before, rtol=1e-4, atol=1e-5)


def test_the_budget(monkeypatch):
    """Protects: the same seconds for all, so more steps for the cheaper one; a rate that fits the run's length."""
    rates = []

    def step(shards, optimizer, batch, lr, *rest):
        rates.append(lr)
        return 0.0, 0, 0.0

    monkeypatch.setattr(study_of, "take_step", step)
    steps = {}
    for name in TINY.contenders:
        rates.clear()
        record = study_of.run(
            replace(TINY, seconds=1.0), {"ViT": 0.01, "ResNet": 0.04, "hybrid": 0.02}, (0, 50, name, 0)
        )
        steps[name] = record["steps"]
        assert len(rates) == record["steps"] and [look["step"] for look in record["looks"]][-1] == record["steps"]
        assert max(rates) == TINY.contenders[name].lr and rates[0] < max(rates) and rates[-1] < max(rates) / 50
    assert steps["ViT"] == 100 and steps["ResNet"] == 25


def test_the_best_look_is_kept():
    """Protects: what is tested is the model that was best on validation, not the last one."""
    dataset = study_of.prepared(TINY, 100, seed=0)
    model, _, looks = study_of.train(TINY.contenders["ViT"], 1.0, dataset, 50, steps=12, seed=0)
    accuracy, _, _ = tv.train.evaluate(model, dataset.validation, dataset.mean, dataset.std)
    assert len(looks) == study_of.LOOKS and accuracy == max(look["validation"] for look in looks)


def test_from_end_to_end(tmp_path, monkeypatch):
    """Protects: runs are kept, a second call goes on where the first one stopped, other settings are refused, and the
    tables and pictures come from the file alone."""
    monkeypatch.setitem(study_of.STUDIES, "digits", TINY)
    path, said = tmp_path / "runs" / "r.json", []
    study_of.collect(TINY, path, [0], workers=1, minutes=0, say=said.append)
    assert len(said) == 1
    arguments = "--quick --workers 1 --seeds 0 --json", str(path), "--picture", str(tmp_path / "a.png")
    results = study_of.main([*arguments[0].split(), *arguments[1:], "--report", str(tmp_path / "a.md")])
    runs = 3 * len(TINY.contenders)  # two sizes, and one shuffled
    assert len(results["runs"]) == runs == len({(r["model"], r["size"], r["patch"]) for r in results["runs"]})
    study_of.collect(TINY, path, [0], workers=1, say=said.append)
    assert len(said) == 1, "nothing was left to do"
    with pytest.raises(SystemExit, match="other settings"):
        study_of.collect(replace(TINY, seconds=2.0), path, [0])
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "| 50 |" in text and "| 2 px |" in text and f"{runs} runs" in text
    assert (tmp_path / "a.png").stat().st_size > 5000 and (tmp_path / "a-shifts.png").stat().st_size > 5000


def test_images_needed():
    """Protects: the reading off, halfway on logarithmic axes, and no answer beyond the curve's ends."""
    runs = [dict(model="m", patch=0, size=n, test=1 - e) for n, e in ((100, 0.4), (10_000, 0.1))]
    assert reporting.images_needed({"runs": runs}, "m", 20.0) == pytest.approx(1000)
    assert reporting.images_needed({"runs": runs}, "m", 5.0) is None
    assert reporting.images_needed({"runs": runs}, "m", 50.0) is None
