"""The hybrid: a ViT whose patches are pixels of a feature map."""

from dataclasses import replace

import numpy as np
import pytest

from tinyvit import Tensor, functional, gradcheck, models
from tinyvit.models import Hybrid, HybridConfig, at_resolution
from tinyvit.optim import AdamW

rng = np.random.default_rng(0)
SMALL = HybridConfig((8, 12), channels=2, classes=3, width=8, depth=2, heads=2, mlp=12, blocks=(1, 1), widths=(4, 8))


def images(count, config=SMALL):
    return rng.standard_normal((count, *config.image_size, config.channels))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradients_and_initial_loss(norm, backend):
    config = replace(SMALL, norm=norm)
    loss = functional.cross_entropy(Hybrid(config)(images(4)), [0, 1, 2, 2])
    assert loss.item() == pytest.approx(np.log(3), rel=1e-6)
    model = Hybrid(config).astype(np.float64)
    for p in model.parameters():
        if p.requires_grad:
            p.data = rng.normal(0.1, 0.5, p.shape)
    gradcheck(model, Tensor(images(2), requires_grad=True), tolerance=1e-5)


def test_tokens_are_the_feature_maps_pixels():
    model = Hybrid(SMALL)
    features = model.embedding.trunk(model.checked(images(3)))
    assert features.shape == (3, 4, 6, 8) and SMALL.grid == (4, 6) and SMALL.tokens == 25
    patches = model.embedding.patches
    tokens = model.embedding(model.checked(x := images(2)))
    by_hand = model.embedding.trunk(model.checked(x)).data.reshape(2, 24, 8) @ patches.weight.data + patches.bias.data
    np.testing.assert_allclose(tokens.data, by_hand, rtol=1e-5, atol=1e-6)
    logits, seen = model(images(2), intermediates=True)
    assert logits.shape == (2, 3) and seen["attention.1"].shape == (2, 2, 25, 25)


def test_odd_sizes_and_larger_patches():
    config = replace(SMALL, image_size=(7, 7), blocks=(1, 1, 1), widths=(4, 4, 4), patch=2)
    assert config.pixels == (2, 2) and config.tokens == 2
    assert Hybrid(config)(images(1, config)).shape == (1, 3)


def test_it_overfits_a_batch():
    model, x, labels = Hybrid(SMALL), images(6).astype(np.float32), np.arange(6) % 3
    optimizer = AdamW(model, lr=0.01, weight_decay=0.0)
    for _ in range(40):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_it_goes_to_a_file_and_to_another_resolution():
    model = Hybrid(SMALL)
    state = model.state_dict()
    assert {name: state[name].shape for name in SMALL.shapes()} == SMALL.shapes()
    assert models.from_dict(models.to_dict(SMALL)) == SMALL
    larger = at_resolution(model, (16, 24))
    assert larger.config.grid == (8, 12) and larger(images(1, larger.config)).shape == (1, 3)


def test_wrong_configurations():
    with pytest.raises(ValueError, match="patch size 3 must divide the feature map's 4×6"):
        replace(SMALL, patch=3)
    with pytest.raises(ValueError, match="blocks and widths must have a number for each stage"):
        replace(SMALL, blocks=(1,))
    with pytest.raises(ValueError, match="heads must divide the width"):
        replace(SMALL, heads=3)
