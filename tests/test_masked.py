"""Masked patch prediction: what is corrupted and how, what is asked, and that nothing else is."""

import numpy as np
import pytest

from tinyvit import Tensor, ViT, ViTConfig, data, gradcheck, nn, optim, train
from tinyvit.data.dataset import normalise
from tinyvit.models import PRESETS, Hybrid, HybridConfig, MaskedPatches, ResNet, masked_colours, mean_colours
from tinyvit.models.masked import corruption

SMALL = ViTConfig(image_size=(4, 6), patch=2, channels=3, width=8, depth=2, heads=2, mlp=12)


def images(count, seed=0, C=3):
    return np.random.default_rng(seed).standard_normal((count, 4, 6, C))


def randomised(model):
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = rng.normal(0, 0.4, p.shape)
    return model


@pytest.mark.parametrize("changes", [{}, dict(pool="average", registers=2)])
def test_gradcheck_whole_model(changes, backend):
    """Images and all parameters, the mask's among them. Seed 3 corrupts in all three ways."""
    vit = ViT(ViTConfig(**(vars(SMALL) | changes)))
    model = randomised(MaskedPatches(vit).astype(np.float64))
    for p in (vit.head.weight, vit.head.bias):
        p.requires_grad = False
    targets = np.random.default_rng(1).integers(0, 512, (4, 6))

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self, x):
            with nn.random_state(3):
                return masked_colours(self.model, x, targets)[0]

    corrupted, masked, source = corruption(4, 6, np.random.default_rng(3))
    assert masked.any() and (source != np.arange(24).reshape(4, 6)).any() and corrupted.any()
    errors = gradcheck(WithLoss(), Tensor(images(4), requires_grad=True))
    assert len(errors) > 25


def test_corruption_rates():
    """Exactly half of each image's patches; of these 80 % masked, 10 % of another patch, 10 % kept, within four
    deviations of 160,000 draws."""
    B, N = 5000, 64
    corrupted, masked, source = corruption(B, N, np.random.default_rng(0))
    own = np.arange(B * N).reshape(B, N)
    assert (corrupted.sum(axis=1) == N // 2).all()
    assert not (masked & ~corrupted).any() and not ((source != own) & ~corrupted).any()
    assert not ((source != own) & masked).any()
    count = corrupted.sum()
    rates = masked.sum() / count, (source != own).sum() / count, (corrupted & ~masked & (source == own)).sum() / count
    for rate, p in zip(rates, (0.8, 0.1, 0.1), strict=True):
        assert abs(rate - p) < 4 * np.sqrt(p * (1 - p) / count)
    assert abs(corrupted.mean(axis=0) - 0.5).max() < 0.04, "every place alike"


def test_corruption_of_few_patches():
    """Five patches: three of them. One patch in all: there is no other to take."""
    assert (corruption(7, 5, np.random.default_rng(0))[0].sum(axis=1) == 3).all()
    for seed in range(30):
        corrupted, _, source = corruption(1, 1, np.random.default_rng(seed))
        assert corrupted.all() and source == 0


def test_corruption_is_a_function_of_the_seed():
    a, b, c = (corruption(4, 16, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert (a[0] != c[0]).any()


def test_mean_colours_by_hand():
    """Two patches of 2×2 in RGB: 64 r + 8 g + b, each channel's mean cut into eight steps of 32."""
    image = np.zeros((1, 2, 4, 3), np.uint8)
    image[0, :, :2] = [[[255, 0, 31], [255, 0, 33]], [[255, 0, 31], [255, 0, 33]]]  # means 255, 0, 32
    image[0, :, 2:] = [0, 128, 127]
    np.testing.assert_array_equal(mean_colours(image, 2), [[64 * 7 + 0 + 1, 0 + 8 * 4 + 3]])
    grey = np.array([[0, 31, 32, 255]], np.float32).reshape(1, 1, 4, 1)
    np.testing.assert_array_equal(mean_colours(grey, 1), [[0, 0, 1, 7]])
    with pytest.raises(ValueError, match="patch size 3 must divide"):
        mean_colours(image, 3)


def test_mean_colours_come_in_the_order_of_patches():
    """The same order in which `patchify` cuts."""
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 1)).astype(np.float32)
    patches = nn.patchify(Tensor(image), 2).data
    np.testing.assert_array_equal(mean_colours(image, 2), (patches.mean(axis=-1) // 32).astype(int))


def test_initial_loss_is_ln_of_the_colours(backend):
    model = MaskedPatches(ViT(SMALL))
    targets = np.random.default_rng(0).integers(0, 512, (5, 6))
    assert masked_colours(model, images(5), targets)[0].item() == pytest.approx(np.log(512), abs=1e-5)


def test_only_corrupted_patches_are_asked_for():
    """Other answers for the intact ones change nothing; for the corrupted ones they do."""
    model = randomised(MaskedPatches(ViT(SMALL)))
    targets = np.zeros((4, 6), np.int64)

    def loss(targets):
        with nn.random_state(0):
            return masked_colours(model, images(4), targets)[0].item()

    with nn.random_state(0):
        _, corrupted = model(images(4))
    assert loss(np.where(corrupted, targets, 5)) == loss(targets) != loss(np.where(corrupted, 5, targets))


def test_a_masked_patch_is_invisible():
    """What is under [mask] changes no guess, one's own or another's; what is not, does."""
    model = randomised(MaskedPatches(ViT(SMALL).astype(np.float64)).astype(np.float64))
    x = images(2)
    with nn.random_state(0):
        before, _ = model(x)
    _, masked, source = corruption(2, 6, np.random.default_rng(0))
    masked[:] &= ~np.isin(np.arange(12), source[source != np.arange(12).reshape(2, 6)]).reshape(2, 6)
    i = int(np.flatnonzero(masked[0])[0])
    changed = x.copy()
    changed[0, i // 3 * 2 :, i % 3 * 2 :][:2, :2] += 1
    with nn.random_state(0):
        np.testing.assert_array_equal(model(changed)[0].data, before.data)
    j = int(np.flatnonzero((source == np.arange(12).reshape(2, 6))[0] & ~masked[0])[0])
    changed = x.copy()
    changed[0, j // 3 * 2 :, j % 3 * 2 :][:2, :2] += 1
    with nn.random_state(0):
        assert (model(changed)[0].data[0] != before.data[0]).all()


def test_overfits_a_batch(backend):
    """Random colours by heart: the same images under the same masks."""
    model = MaskedPatches(ViT(ViTConfig(image_size=(4, 6), patch=2, width=32, depth=2, heads=2, mlp=64)))
    x, targets = images(8, C=1), np.random.default_rng(0).integers(0, 8, (8, 6))
    optimizer = optim.AdamW(model, lr=1e-2, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        with nn.random_state(0):
            loss, right = masked_colours(model, x, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 and right == 8


def test_threads_give_the_same_bits(backend):
    digits = data.load("digits")
    split = digits.train[:40]
    states = []
    for threads in (1, 2):
        model = MaskedPatches(ViT(ViTConfig(width=16, depth=1, heads=2, mlp=16, dropout=0.1)))
        train.pretrain(
            model, split, masked_colours,
            lambda x, _: (normalise(x, digits.mean, digits.std), mean_colours(x, 2)),
            epochs=2, batch_size=20, threads=threads, bar=False, augment=data.AUGMENTS["digits"],
        )  # fmt: skip
        states.append(np.concatenate([p.data.ravel() for p in model.parameters()]))
    np.testing.assert_array_equal(*states)


def test_state_dict_round_trip_and_errors():
    model, other = randomised(MaskedPatches(ViT(SMALL))), MaskedPatches(ViT(SMALL, seed=1), seed=1)
    other.load_state_dict(model.state_dict())
    with nn.random_state(0):
        a = model(images(2))[0].data
    with nn.random_state(0):
        np.testing.assert_array_equal(other(images(2))[0].data, a)
    with pytest.raises(ValueError, match=r"reads images \(B, 4, 6, 3\)"):
        model(images(2, C=1))
    with pytest.raises(ValueError, match="needs a ViT or a hybrid.*got a ResNet"):
        MaskedPatches(ResNet(PRESETS["resnet20"]))


def test_a_hybrid_hides_its_tokens():
    """One token for each pixel of the feature map."""
    config = HybridConfig((4, 6), width=8, depth=1, heads=2, mlp=8, blocks=(1, 1), widths=(2, 4))
    logits, corrupted = MaskedPatches(Hybrid(config))(images(2, C=1))
    assert logits.shape == (2, 6, 8) and corrupted.sum() == 6
