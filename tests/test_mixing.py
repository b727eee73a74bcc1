"""Mixing and erasing: images and targets stay together, areas and shares are what they say, all of it replays."""

import numpy as np
import pytest

from tinyvit import Tensor, gradcheck, vit
from tinyvit import functional as F
from tinyvit.data import AUGMENTS, Augment, Erase, Mix, RandAugment, Split, augmentation, batches
from tinyvit.data.mixing import cutmix, mixup
from tinyvit.optim import FlatParameters
from tinyvit.train import Shards
from tinyvit.train.recipes import Recipe

MEAN, STD = (0.5,), (0.25,)


def rng_(seed=0):
    return np.random.default_rng(seed)


def numbered(count, side=8, channels=1):
    """Images that are everywhere their number: what of which image is where can be read off."""
    return np.broadcast_to(
        np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, side, side, channels)
    ).copy()


def split_of(count, side=8):
    images = rng_(count).integers(0, 256, (count, side, side, 1), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % 10)


# --- mixup and CutMix -----------------------------------------------------------------------------------------------


def test_mixup_is_the_papers_equation():
    """λ of each image and 1 - λ of the next; of the last, of the first."""
    mixed, share = mixup(numbered(5), 0.75)
    assert share == 0.75 and mixed.dtype == np.float32
    np.testing.assert_allclose(mixed[:, 3, 4, 0], [0.25, 1.25, 2.25, 3.25, 3.0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_cutmix_pastes_one_rectangle(share):
    """Protects: whole pixels of two images, a rectangle, at one place for all; and the share is counted, not wished."""
    areas = []
    for seed in range(40):
        mixed, kept = cutmix(numbered(3, 32), share, rng_(seed))
        pasted = mixed[..., 0] != numbered(3, 32)[..., 0]
        assert (pasted == pasted[0]).all() and kept == pytest.approx(1 - pasted[0].mean())
        assert (mixed[..., 0] == np.where(pasted, np.array([1, 2, 0]).reshape(3, 1, 1), numbered(3, 32)[..., 0])).all()
        rows, columns = pasted[0].any(axis=1), pasted[0].any(axis=0)
        assert (pasted[0] == np.outer(rows, columns)).all() and np.diff(np.flatnonzero(rows)).max(initial=1) == 1
        areas.append(1 - kept)
    assert max(areas) <= 1 - share + 1e-12 and max(areas) >= 0.8 * (1 - share)


@pytest.mark.parametrize("mix", [Mix(0.4, 0, 10), Mix(0, 1.0, 10), Mix(0.8, 1.0, 10)])
def test_targets_say_what_is_in_the_image(mix):
    """Protects: the share in the target is that of the pixels, after cutting at the border too."""
    labels = np.array([3, 7, 7, 0])
    for seed in range(30):
        mixed, targets = mix(numbered(4, 16), labels, rng_(seed))
        assert targets.dtype == np.float32 and targets.shape == (4, 10)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        first = targets[0, 3]  # λ: the label 3 is the first image's, and nobody else's
        assert mixed[0].mean() == pytest.approx(1 - first, abs=1e-5)  # image 0 holds zeros, image 1 ones
        assert targets[1, 7] == pytest.approx(1) and targets[3, 3] == pytest.approx(1 - first, abs=1e-6)


def test_each_batch_gets_one_of_the_two():
    """Protects: a coin decides, and λ spreads over 0..1."""
    mix, images, labels = Mix(0.8, 1.0, 4), numbered(4, 16), np.arange(4)
    whole, shares = [], []
    for seed in range(400):
        mixed, targets = mix(images, labels, rng_(seed))
        whole.append((mixed == np.rint(mixed)).all())  # CutMix's pixels are whole
        shares.append(targets[0, 0])
    assert 150 < sum(whole) < 250
    assert np.histogram(shares, 5, (0, 1))[0].min() > 30


def test_with_neither_targets_are_one_hot():
    images = numbered(3)
    mixed, targets = Mix(0, 0, 4)(images, np.array([2, 0, 2]), rng_())
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, np.eye(4)[[2, 0, 2]])


def test_a_batch_of_one_mixes_with_itself():
    mixed, targets = Mix(1.0, 1.0, 3)(numbered(1) + 5, np.array([1]), rng_())
    np.testing.assert_allclose(mixed, 5, rtol=1e-6)
    np.testing.assert_allclose(targets, [[0, 1, 0]], rtol=1e-6)


def test_mixing_leaves_its_input_alone():
    images = numbered(6)
    for seed in range(6):
        Mix(1.0, 1.0, 6)(images, np.arange(6), rng_(seed))
    np.testing.assert_array_equal(images, numbered(6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((-1, 0, 10), "mixup must be at least 0"), ((0, np.inf, 10), "cutmix must be at least 0"),
        ((np.nan, 0, 10), "mixup must"), ((0.2, 0, 0), "classes must be a whole number"), ((0.2, 0, 2.5), "classes"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Mix(*wrong)


# --- the loss -------------------------------------------------------------------------------------------------------


def test_gradcheck_through_mixed_targets(backend):
    _, targets = Mix(1.0, 0, 5)(numbered(4), np.array([0, 3, 3, 1]), rng_(1))
    logits = Tensor(rng_(2).standard_normal((4, 5)), requires_grad=True)
    for smoothing in (0.0, 0.1):
        gradcheck(lambda z, s=smoothing: F.cross_entropy(z, targets.astype(float), s), logits)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "values", "gradients"), [(np.float32, 1e-5, 1e-4), (np.float64, 1e-10, 1e-10)])
def test_soft_targets_as_in_pytorch(backend, dtype, values, gradients, smoothing):
    torch = pytest.importorskip("torch")
    _, targets = Mix(0.8, 1.0, 10)(numbered(33), rng_(3).integers(0, 10, 33), rng_(4))
    logits = (4 * rng_(5).standard_normal((33, 10))).astype(dtype)
    ours, theirs = Tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(ours, targets, smoothing)
    their_targets = torch.tensor(targets.astype(dtype))
    their_loss = torch.nn.functional.cross_entropy(theirs, their_targets, label_smoothing=smoothing)
    loss.backward()
    their_loss.backward()
    assert abs(loss.item() - their_loss.item()) <= values
    difference = np.linalg.norm(ours.grad - theirs.grad.numpy()) / np.linalg.norm(theirs.grad.numpy())
    assert difference <= gradients


def test_shards_take_targets(backend):
    """Protects: the gradient of the whole batch is that of its parts, with targets as with labels."""
    model = vit("digits", depth=1)
    for p in model.parameters():
        p.data += 0.1 * rng_(1).standard_normal(p.shape).astype(np.float32)
    ((images, targets),) = batches(split_of(13), 13, mean=MEAN, std=STD, mix=Mix(1.0, 0, 10))

    def objective(replica, x, y, smoothing):
        return F.cross_entropy(replica(x), y, smoothing), 0

    flat = FlatParameters(model)
    gradients = []
    for count in (1, 4):
        with Shards(model, flat, shards=count, threads=1, objective=objective) as shards:
            shards.gradient(images, targets, 0.1)
        gradients.append(flat.gradients.copy())
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-5 * np.abs(gradients[0]).max())


# --- random erasing -------------------------------------------------------------------------------------------------


def test_erasing_fills_a_rectangle_with_noise():
    """Protects: the share of images, one rectangle in each, its area and sides, noise over the whole range."""
    images = np.full((2000, 40, 40, 3), 300, np.float32)
    erased = Erase(0.3)(images, rng_())
    gone = (erased != 300).any(axis=3)
    some = gone.any(axis=(1, 2))
    assert 500 < some.sum() < 700
    areas, ratios = [], []
    for mask in gone[some]:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        assert (mask == np.outer(rows, columns)).all()
        areas.append(mask.mean())
        ratios.append(rows.sum() / columns.sum())
    assert 0.01 < min(areas) < 0.03 and 0.3 < max(areas) < 0.42 and 0.19 < np.mean(areas) < 0.23
    assert 0.25 < min(ratios) and max(ratios) < 4 and abs(np.mean(np.log(ratios))) < 0.1
    noise = erased[gone]
    assert noise.min() >= 0 and noise.max() < 255 and abs(noise.mean() - 127.5) < 1 and abs(noise.std() - 73.6) < 1
    assert images.min() == 300, "the input was changed"


@pytest.mark.parametrize("shape", [(7, 1, 9, 1), (5, 3, 3, 2), (0, 8, 8, 1), (4, 30, 2, 3)])
def test_erasing_stays_inside(shape):
    images = np.zeros(shape, np.uint8)
    for seed in range(20):
        erased = Erase(1.0)(images, rng_(seed))
        assert erased.shape == shape and erased.dtype == np.float32
        assert (erased > 0).any(axis=(1, 2, 3)).all()


def test_a_wrong_probability_is_named():
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"probability must be in .0, 1., got {wrong}"):
            Erase(wrong)


# --- the pipeline of a recipe ---------------------------------------------------------------------------------------


def test_a_recipes_augmentation():
    """Protects: each field switches its part, and nothing else; the order; None where there is nothing to do."""
    assert augmentation(Recipe(augment="none")) is None
    assert augmentation(Recipe(augment="cifar")).steps == (AUGMENTS["cifar"],)
    everything = augmentation(Recipe(augment="mnist", rand_ops=2, rand_magnitude=7.0, erase=0.25))
    assert everything.steps == (AUGMENTS["mnist"], RandAugment(2, 7.0), Erase(0.25))
    assert augmentation(Recipe(augment="none", erase=0.1)).steps == (Erase(0.1),)


def test_one_step_by_itself_is_that_step():
    images = split_of(9).images
    for recipe, step in (
        (Recipe(augment="mnist"), AUGMENTS["mnist"]),
        (Recipe(augment="none", rand_ops=1), RandAugment(1, 9.0)),
        (Recipe(augment="none", erase=0.5), Erase(0.5)),
    ):
        ours = augmentation(recipe)(images, rng_(1))
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, step(images, rng_(1)))


EVERYTHING = dict(
    mean=MEAN, std=STD, augment=augmentation(Recipe(augment="mnist", rand_ops=2, erase=0.5)), mix=Mix(0.8, 1.0, 10)
)


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_start_equals_skipping_with_everything_on(start):
    """Protects: resuming in the middle of an epoch continues it exactly, RandAugment, erasing and mixing included."""
    whole = list(batches(split_of(23), 5, seed=7, epoch=4, **EVERYTHING))
    rest = list(batches(split_of(23), 5, seed=7, epoch=4, start=start, **EVERYTHING))
    assert len(rest) == len(whole) - start
    for (x, y), (resumed_x, resumed_y) in zip(whole[start:], rest, strict=True):
        assert x.dtype == y.dtype == np.float32 and y.shape[1] == 10
        np.testing.assert_array_equal(x, resumed_x)
        np.testing.assert_array_equal(y, resumed_y)


def test_mixing_changes_neither_order_nor_augmentation():
    """Protects: two runs that differ in mixing alone are compared on the same pictures."""
    options = dict(mean=MEAN, std=STD, augment=Augment(shift=2), seed=3)
    plain = list(batches(split_of(23), 5, **options))
    mixed = list(batches(split_of(23), 5, mix=Mix(0, 0, 10), **options))
    for (x, y), (other_x, other_y) in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(np.eye(10)[y], other_y)
