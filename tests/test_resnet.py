"""The ResNets: shapes and counts, gradients of the whole, what batch norm remembers; and threads change nothing."""

from dataclasses import replace

import numpy as np
import pytest

from tinyvit import Tensor, functional, gradcheck, nn, optim
from tinyvit.models.resnet import PRESETS, ResNet, ResNetConfig
from tinyvit.train.shards import Shards

SMALL = ResNetConfig((6, 5), channels=2, classes=3, blocks=(1, 1), widths=(4, 8))
NORMS = pytest.mark.parametrize("norm", ["batch", "group"])


def images(count, config, seed=0, dtype=np.float32):
    shape = (count, *config.image_size, config.channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def small(norm, seed=0, dtype=np.float32):
    """Away from the zero head, which would hide what is below it."""
    model, rng = ResNet(replace(SMALL, norm=norm), seed).astype(dtype), np.random.default_rng(seed)
    model.head.weight.data = rng.standard_normal(model.head.weight.shape)
    return model


def test_resnet20_has_the_published_number_of_parameters():
    assert ResNet(PRESETS["resnet20"]).parameter_count() == 269_722


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_classify_and_start_at_ln_k(preset):
    model = ResNet(PRESETS[preset])
    logits = model(images(4, model.config))
    assert logits.shape == (4, 10)
    assert functional.cross_entropy(logits, np.arange(4)).item() == pytest.approx(np.log(10), abs=1e-6)


@NORMS
def test_each_later_stage_halves_the_image(norm):
    config = replace(SMALL, image_size=(9, 14), blocks=(1, 2, 1), widths=(4, 8, 12), norm=norm)
    assert ResNet(config).features(images(2, config)).shape == (2, 3, 4, 12)


@NORMS
def test_gradcheck_whole_model(norm, backend):
    model = small(norm, dtype=np.float64)

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self, x):
            return functional.cross_entropy(self.model(x), [1, 2, 0], 0.1)

    errors = gradcheck(WithLoss(), Tensor(images(3, SMALL, dtype=np.float64), requires_grad=True))
    assert len(errors) == 1 + sum(p.requires_grad for p in model.parameters())


@NORMS
def test_a_batch_is_learnt_by_heart(norm):
    model, x, y = small(norm), images(8, SMALL), np.arange(8) % 3
    optimizer = optim.AdamW(model, lr=2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_a_block_is_the_identity_where_it_corrects_nothing():
    """f(x) = 0 leaves x, in both forms; a shortcut that changes the shape keeps what was there (option A)."""
    rng, x = np.random.default_rng(0), np.abs(images(2, replace(SMALL, channels=4)))
    from tinyvit.models.resnet import BatchNormBlock, GroupNormBlock

    same = BatchNormBlock(4, 4, 1, rng)
    same.norm2.gamma.data = 0.0
    np.testing.assert_array_equal(same(Tensor(x)).data, x)
    same = GroupNormBlock(4, 4, 1, rng)
    same.conv2.weight.data = 0.0
    np.testing.assert_array_equal(same(Tensor(x)).data, x)
    wider = BatchNormBlock(4, 6, 2, rng)
    wider.norm2.gamma.data = 0.0
    y = wider(Tensor(x)).data
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    assert not y[..., 4:].any()


def test_batch_norm_keeps_a_running_average():
    layer, x = nn.BatchNorm(2, momentum=0.25), images(3, SMALL) * 2 + 1
    layer(Tensor(x))
    n = x.size // 2
    np.testing.assert_allclose(layer.mean.data, 0.25 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.variance.data, 0.75 + 0.25 * x.var((0, 1, 2)) * n / (n - 1), rtol=1e-5)
    for _ in range(60):
        layer(Tensor(x))
    y = layer.eval()(Tensor(x)).data
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=0.02)


def statistics(model):
    return {name: p.numpy() for name, p in model.named_parameters() if isinstance(p, nn.Statistic)}


def test_looking_changes_no_statistics():
    """`predict`, eval mode and `recording_statistics(False)` leave them, training moves them."""
    model, x = small("batch"), images(4, SMALL)
    before = statistics(model)
    model.predict(x)
    model.eval()(x)
    model.train()
    with nn.recording_statistics(False):
        model(x)
    for name, values in statistics(model).items():
        np.testing.assert_array_equal(values, before[name])
    model(x)
    assert all((values != before[name]).any() for name, values in statistics(model).items())


def test_an_image_is_classified_alike_in_any_company_once_trained():
    model, x = small("batch"), images(6, SMALL)
    model(x)
    np.testing.assert_allclose(model.predict(x)[2:3], model.predict(x[2:3]), rtol=1e-5)


def trained(threads, steps=3):
    model = small("batch")
    optimizer = optim.SGD(model, lr=0.1)
    with Shards(model, optimizer.flat, shards=4, threads=threads) as shards:
        for step in range(steps):
            shards.gradient(images(8, SMALL, seed=step), np.arange(8) % 3)
            optimizer.step()
    return model.state_dict()


def test_threads_change_no_bit():
    """The running statistics too, which all replicas share: only the first shard records."""
    alone, together = trained(1), trained(2)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, together[name], err_msg=name)


def test_the_first_shard_records():
    model = small("batch")
    alone = small("batch")
    x = images(8, SMALL)
    with Shards(model, optim.FlatParameters(model), shards=4, threads=2) as shards:
        shards.gradient(x, np.arange(8) % 3)
    alone(x[:2])
    for name, values in statistics(alone).items():
        np.testing.assert_array_equal(values, statistics(model)[name], err_msg=name)


def test_the_optimiser_leaves_the_statistics_alone():
    model = small("batch")
    model(images(4, SMALL))
    before = statistics(model)
    optimizer = optim.AdamW(model, lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert not any("mean" in name or "variance" in name for name in optimizer.flat.names)
    for name, values in statistics(model).items():
        np.testing.assert_array_equal(values, before[name])


@NORMS
def test_a_state_dict_holds_all(norm):
    """The running statistics among them: without, a loaded model would answer as if untrained."""
    model, other, x = small(norm), ResNet(replace(SMALL, norm=norm), seed=1), images(4, SMALL)
    model(x)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(model.predict(x), other.predict(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(blocks=(1, 0)), "blocks must be whole numbers from 1 up"),
        (dict(blocks=()), "blocks must be whole numbers"),
        (dict(widths=(4.0, 8)), "widths must be whole numbers"),
        (dict(widths=8), "widths must be whole numbers"),
        (dict(blocks=(1,)), r"a number for each stage, got \(1,\) and \(4, 8\)"),
        (dict(norm="layer"), "norm must be one of batch, group; got 'layer'"),
        (dict(widths=(8, 4)), "widths must not shrink"),
        (dict(classes=0), "classes must be a whole number"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_wrong_images():
    with pytest.raises(ValueError, match=r"this ResNet reads images \(B, 6, 5, 2\), got \(2, 5, 6, 2\)"):
        small("batch")(np.zeros((2, 5, 6, 2)))
    with pytest.raises(ValueError, match="odd, so that it has a centre, got 2"):
        nn.Conv2d(1, 1, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="got 6 channels and 4 groups"):
        nn.GroupNorm(6, 4)
