"""Image GPT: it never sees what it is to guess, its samples follow its own distribution, and it learns."""

import copy
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tinyvit import Tensor, data, functional, gradcheck, kernels, nn, optim, train
from tinyvit.data.dataset import Split
from tinyvit.data.palette import Palette
from tinyvit.models import ImageGPT, ImageGPTClassifier, ImageGPTConfig, marginal_bits_per_pixel, next_pixel

SMALL = ImageGPTConfig(image_size=(3, 4), palette=5, width=8, depth=2, heads=2, mlp=12)


def pixels(count, config=SMALL, seed=0):
    return np.random.default_rng(seed).integers(0, config.palette, (count, *config.image_size))


def randomised(model, deviation=0.4):
    """Away from the zero head, which would hide what is below it."""
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = rng.normal(0, deviation, p.shape)
    return model


def test_gradcheck_whole_model(backend):
    model = randomised(ImageGPT(SMALL).astype(np.float64))
    x = pixels(3)

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self):
            return next_pixel(self.model, x, x)[0]

    assert len(gradcheck(WithLoss())) == 3 + 2 * 12 + 2 + 2


def test_gradcheck_classifier(backend):
    model = randomised(ImageGPTClassifier(ImageGPT(SMALL), 3).astype(np.float64))
    for p in (model.gpt.head.weight, model.gpt.head.bias):
        p.requires_grad = False  # classification has no use for them

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self):
            return functional.cross_entropy(self.model(pixels(3)), [1, 2, 0], 0.1)

    assert len(gradcheck(WithLoss())) == 3 + 2 * 12 + 2 + 2


def test_a_pixel_changes_no_guess_before_it_or_of_itself():
    """Causality, to the bit; and all guesses after it do change."""
    model, x = randomised(ImageGPT(SMALL)), pixels(1)
    before = model(x).data[0]
    for t in range(11):  # nothing comes after the last pixel
        changed = x.copy()
        changed.reshape(-1)[t] = (changed.reshape(-1)[t] + 1) % 5
        after = model(changed).data[0]
        np.testing.assert_array_equal(after[: t + 1], before[: t + 1])
        assert (after[t + 1 :] != before[t + 1 :]).any(axis=1).all()
    x[0, 2, 3] = (x[0, 2, 3] + 1) % 5
    np.testing.assert_array_equal(model(x).data[0], before)


def test_equations():
    """The forward pass in NumPy, one token and one head at a time: token t reads tokens 0 … t, no mask needed."""
    model = randomised(ImageGPT(SMALL).astype(np.float64))
    s, x = model.state_dict(), pixels(1)

    def LN(z, name):
        z = (z - z.mean()) / np.sqrt(z.var() + 1e-6)
        return z * s[f"{name}.gamma"] + s[f"{name}.beta"]

    def linear(z, name):
        return z @ s[f"{name}.weight"] + s[f"{name}.bias"]

    words = [s["start"][0, 0]] + [s["embedding"][i] for i in x.reshape(-1)[:-1]]
    z = [word + position for word, position in zip(words, s["positions"], strict=True)]
    for b in ("blocks.0", "blocks.1"):
        q, k, v = np.split(np.stack([linear(LN(t, f"{b}.norm1"), f"{b}.attention.qkv") for t in z]), 3, axis=1)
        for t in range(len(z)):
            read = []
            for h in (slice(0, 4), slice(4, 8)):
                p = np.exp(k[: t + 1, h] @ q[t, h] / 2)
                read.append(p / p.sum() @ v[: t + 1, h])
            z[t] = z[t] + linear(np.concatenate(read), f"{b}.attention.out")
            hidden = functional.gelu(Tensor(linear(LN(z[t], f"{b}.norm2"), f"{b}.mlp.fc1"))).data
            z[t] = z[t] + linear(hidden, f"{b}.mlp.fc2")
    expected = [linear(LN(t, "norm"), "head") for t in z]
    np.testing.assert_allclose(model(x).data[0], expected, rtol=1e-9, atol=1e-12)


def test_initial_loss_is_exactly_ln_of_the_palette(backend):
    model = ImageGPT(replace(SMALL, palette=17))
    x = pixels(4, model.config)
    assert next_pixel(model, x, x)[0].item() == pytest.approx(np.log(17), abs=1e-6)
    assert model.bits_per_pixel(x) == pytest.approx(np.log2(17), abs=1e-6)
    classifier = ImageGPTClassifier(model, 10)
    assert functional.cross_entropy(classifier(x), [1, 2, 3, 4]).item() == pytest.approx(np.log(10), abs=1e-6)


def test_overfits_a_batch(backend):
    """Random pixels, learnt by heart. The first pixel stays a guess among eight, 3 bits of 12 · log2 5."""
    model, x = ImageGPT(replace(SMALL, width=32, mlp=64)), pixels(8)
    optimizer = optim.AdamW(model, lr=1e-2, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss, _ = next_pixel(model, x, x)
        loss.backward()
        optimizer.step()
    assert model.bits_per_pixel(x) < 0.4
    assert (model.complete(x[:, :2], np.random.default_rng(0), temperature=0.1) == x).all(), "it completes by heart"


def test_bits_per_pixel_counts_every_image_once():
    model, x = randomised(ImageGPT(replace(SMALL, dropout=0.5))), pixels(5)
    logits = model.eval()(x).data.astype(np.float64)
    p = np.take_along_axis(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), x.reshape(5, 12, 1), -1)
    assert model.train().bits_per_pixel(x, batch_size=2) == pytest.approx(-np.log2(p).mean(), rel=1e-5)
    assert model.training


# ---------------------------------------------------------------------------------------- sampling


def test_sampling_is_a_function_of_the_generator():
    model = randomised(ImageGPT(SMALL))
    a, b, c = (model.sample(3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a.shape == (3, 3, 4) and a.dtype == np.int64 and 0 <= a.min() <= a.max() < 5
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_models_distribution(temperature):
    """4,000 drawn images of two pixels, three colours: each of the nine as often as the model says, within four
    deviations; and with a temperature, step by step, as often as p^(1/T)."""
    config = replace(SMALL, image_size=(1, 2), palette=3)
    model, count = randomised(ImageGPT(config)), 4000
    every = np.array([[[a, b]] for a in range(3) for b in range(3)])
    p = kernels.softmax(model(every).data / np.float32(temperature))
    expected = p[np.arange(9), 0, every[:, 0, 0]] * p[np.arange(9), 1, every[:, 0, 1]]
    drawn = model.sample(count, np.random.default_rng(0), temperature)
    share = np.bincount(drawn[:, 0, 0] * 3 + drawn[:, 0, 1], minlength=9) / count
    assert expected.sum() == pytest.approx(1, abs=1e-5) and expected.max() - expected.min() > 0.1
    assert (abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)).all()


def test_completion_keeps_what_was_given():
    model, x = randomised(ImageGPT(SMALL)), pixels(6)
    done = model.complete(x[:, :2], np.random.default_rng(0))
    np.testing.assert_array_equal(done[:, :2], x[:, :2])
    assert (done[:, 2] != x[:, 2]).any()
    np.testing.assert_array_equal(model.complete(x, np.random.default_rng(0)), x)
    assert model.complete(x[:0, :2], np.random.default_rng(0)).shape == (0, 3, 4)


def test_sampling_leaves_the_mode_and_no_tape():
    model = randomised(ImageGPT(replace(SMALL, dropout=0.5)))
    a, b = (model.sample(2, np.random.default_rng(0)) for _ in range(2))
    np.testing.assert_array_equal(a, b, err_msg="dropout is off")
    assert model.training and not model.embedding.is_needed()


# ---------------------------------------------------------------------------------------- features


def test_features_are_means_of_normed_layers():
    """Of every layer, row by row, by the model's own parts; in batches of any size."""
    model, x = randomised(ImageGPT(SMALL)), pixels(5)
    features = model.features(x, batch_size=2)
    assert [f.shape for f in features] == [(5, 3, 8)] * 3
    assert [f.shape for f in model.features(x[:0])] == [(0, 3, 8)] * 3
    encoded = model.encode(x).data
    np.testing.assert_allclose(features[-1][:, 1], encoded[:, 4:8].mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features[-1].mean(axis=1), encoded.mean(axis=1), rtol=1e-4, atol=1e-5)
    words = np.concatenate([np.zeros((5, 1, 8)), model.embedding.data[x.reshape(5, -1)[:, :-1]]], axis=1)
    words[:, 0] = model.start.data[0, 0]
    first = model.blocks[0].norm1(Tensor((words + model.positions.data).astype(np.float32))).data.mean(axis=1)
    np.testing.assert_allclose(features[0].mean(axis=1), first, rtol=1e-4, atol=1e-5)


def test_the_marginal_baseline_by_hand():
    """Two places, two colours, three training images; one count added to each."""
    training = np.array([[[0, 1]], [[0, 0]], [[0, 1]]])
    p = np.array([[4 / 5, 1 / 5], [2 / 5, 3 / 5]])  # place, colour
    one = np.array([[[1, 1]]])
    assert marginal_bits_per_pixel(training, one, 2) == pytest.approx(-(np.log2(p[0, 1]) + np.log2(p[1, 1])) / 2)
    with pytest.raises(ValueError, match=r"how many there are, len\(palette\), got a Palette"):
        marginal_bits_per_pixel(training, one, Palette.grey(2))


def test_the_marginal_baseline_counts_a_colour_at_a_time():
    """400 images of 16×16 in 512 colours: 52 million comparisons, which must not stand in memory at once."""
    x = np.random.default_rng(0).integers(0, 512, (400, 16, 16))
    tracemalloc.start()
    try:
        marginal_bits_per_pixel(x, x, 512)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_state_dict_round_trip():
    model, other, x = randomised(ImageGPT(SMALL)), ImageGPT(SMALL, seed=1), pixels(2)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other(x).data, model(x).data)
    a, b = ImageGPT(SMALL, seed=3), ImageGPT(SMALL, seed=3)
    assert all(np.array_equal(p.data, q.data) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image_size=(8, 0)), "image_size must be"),
        (dict(palette=1), "palette must have two colours"),
        (dict(width=10, heads=4), "heads must divide the width, got width 10 and 4 heads"),
        (dict(depth=1.5), "depth must be a whole number"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: m(pixels(2)[:, :2]), ValueError, r"numbers of colours \(B, 3, 4\), got \(2, 2, 4\)"),
        (lambda m: m(pixels(2) / 5), TypeError, "must be integers.*Palette.encode.*float64"),
        (lambda m: m(pixels(2) + 1), ValueError, r"colours in \[0, 5\), got 1 to 5"),
        (lambda m: m.features(pixels(2)[0]), ValueError, r"got \(3, 4\)"),
        (lambda m: m.complete(np.zeros((2, 4, 4), int), None), ValueError, "upper rows .B, at most 3, 4."),
        (lambda m: m.complete(np.zeros((2, 1, 4)), None), TypeError, "must be integers"),
        (lambda m: m.sample(1, None, temperature=0.0), ValueError, "temperature must be positive"),
        (lambda m: m.sample(-1, None), ValueError, "count must be a whole number of images from 0 up, got -1"),
        (lambda m: m.bits_per_pixel(pixels(0)), ValueError, "needs at least one, got none"),
        (
            lambda m: ImageGPTClassifier(m, 3).predict(pixels(2), batch_size=0),
            ValueError,
            "batch_size and threads must",
        ),
    ],
)
def test_wrong_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call(ImageGPT(SMALL))


# ---------------------------------------------------------------------------------------- palette


def test_grey_palette_keeps_digits_exactly():
    digits, palette = data.load("digits").train.images, Palette.grey(17)
    levels = palette.encode(digits)
    assert levels.max() == 16 and len(palette) == 17
    np.testing.assert_array_equal(palette.decode(levels), digits)


def test_palette_takes_the_nearest_colour(monkeypatch):
    """Against the distances themselves, and in chunks that do not divide the number of pixels."""
    rng = np.random.default_rng(0)
    images, colours = rng.integers(0, 256, (3, 5, 4, 3)).astype(np.uint8), rng.integers(0, 256, (9, 3))
    distance = ((images[..., None, :].astype(float) - colours) ** 2).sum(axis=-1)
    monkeypatch.setattr("tinyvit.data.palette.CHUNK", 7)
    np.testing.assert_array_equal(Palette(colours).encode(images), distance.argmin(axis=-1))
    assert Palette(colours).encode(images[:0]).shape == (0, 5, 4)


def test_k_means_finds_the_colours_of_three_clouds():
    """Seeded; each centre is the mean of its pixels; sorted by brightness."""
    rng, centres = np.random.default_rng(1), np.array([[20, 20, 40], [200, 30, 30], [240, 240, 200]])
    images = np.clip(centres[rng.integers(0, 3, (50, 6, 6))] + rng.normal(0, 5, (50, 6, 6, 3)), 0, 255).astype(np.uint8)
    palette = Palette.fit(images, 3, seed=1)
    np.testing.assert_allclose(palette.colours, centres, atol=1.5)
    np.testing.assert_array_equal(palette.colours, Palette.fit(images, 3, seed=1).colours)
    error = abs(palette.decode(palette.encode(images)).astype(float) - images).mean()
    assert error < 5


def test_a_palette_sees_every_pixel_of_few():
    """Ten pixels of ten colours are ten colours: none is drawn twice while another is left out."""
    images = np.arange(0, 250, 25, dtype=np.uint8).reshape(1, 2, 5, 1)
    np.testing.assert_array_equal(Palette.fit(images, 10).colours.ravel(), images.ravel())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Palette(np.zeros((1, 3))), r"two or more different colours \(V, C\), got \(1, 3\)"),
        (lambda: Palette([[1], [1]]), "different"),
        (lambda: Palette.grey(1), "levels must be a whole number in 2..256"),
        (lambda: Palette.fit(np.zeros((2, 4, 4, 1), np.uint8), 2), "size must be in 2..1, the different colours"),
        (lambda: Palette.fit(np.arange(6.0).reshape(1, 2, 3, 1), 7), "2..6, the different colours in the sample of 6"),
        (lambda: Palette.grey(4).encode(np.zeros((1, 2, 2, 3))), r"images \(B, h, w, 1\), got"),
    ],
)
def test_palette_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------- training


def tiny_split(count=24):
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, 3, 4, 1)).astype(np.uint8), rng.integers(0, 3, count))


def pretrained(palette=Palette.grey(5), **options):  # noqa: B008
    model = ImageGPT(replace(SMALL, dropout=0.1))
    settings = dict(epochs=3, batch_size=8, lr=3e-3, bar=False) | options
    history = train.pretrain(
        model, tiny_split(), next_pixel, lambda images, _: (palette.encode(images),) * 2, **settings
    )
    return model, history


def test_threads_give_the_same_bits(backend):
    """With dropout and augmentation, two shards on one thread and on two."""
    runs = [pretrained(threads=threads, augment=data.Augment(crop=1)) for threads in (1, 2)]
    states = [np.concatenate([p.data.ravel() for p in model.parameters()]) for model, _ in runs]
    np.testing.assert_array_equal(*states)
    assert [row["loss"] for row in runs[0][1]] == [row["loss"] for row in runs[1][1]]


def test_pretraining_lowers_the_loss_and_keeps_the_best_epoch():
    _, history = pretrained(epochs=12)
    assert history[-1]["loss"] < history[0]["loss"] < np.log(5) + 0.1 and [row["epoch"] for row in history][-1] == 12
    assert 0 < history[-1]["accuracy"] < 1
    seen, numbers = [], iter([3.0, 1.0, 2.0])

    def validate(model):
        seen.append(model.head.weight.numpy())
        return next(numbers)

    model, history = pretrained(validate=validate)
    assert [row["validation"] for row in history] == [3.0, 1.0, 2.0]
    np.testing.assert_array_equal(model.head.weight.data, seen[1])
    assert (seen[1] != seen[2]).any()


def test_a_diverging_pretraining_stops_and_says_so():
    with pytest.raises(train.TrainingError, match=r"training stopped.*smaller lr, or clip=1"):
        pretrained(lr=1e30, warmup=0.0, clip=0.0)


def test_ctrl_c_ends_pretraining_with_the_step(capsys):
    import signal

    def validate(model):
        signal.raise_signal(signal.SIGINT)  # after the first epoch: one more step, and out
        return 1.0

    _, history = pretrained(validate=validate)
    assert len(history) == 1 and "finishing this step" in capsys.readouterr().err


def test_fine_tuning_learns_labels_and_leaves_the_original():
    gpt = ImageGPT(SMALL)
    before = gpt.state_dict()
    classifier, palette, split = ImageGPTClassifier(copy.deepcopy(gpt), 3), Palette.grey(5), tiny_split()
    train.pretrain(
        classifier, split, train.classify, lambda images, labels: (palette.encode(images), labels),
        epochs=80, batch_size=8, lr=1e-2, bar=False, threads=1,
    )  # fmt: skip
    x = palette.encode(split.images)
    p = classifier.predict(x, batch_size=5)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert (p.argmax(axis=1) == split.labels).mean() > 0.9
    assert classifier.predict(x[:0]).shape == (0, 3)
    assert all(np.array_equal(before[name], values) for name, values in gpt.state_dict().items())


def test_it_learns_more_than_where_ink_tends_to_be():
    """Eight epochs of the digits in five greys: 23 to 25 % fewer bits than each pixel's own histogram (seeds 0 to 2).
    A model that reads no neighbours can at best equal the histogram."""
    digits, palette = data.load("digits"), Palette.grey(5)
    model = ImageGPT(ImageGPTConfig(image_size=(8, 8), palette=5, width=24, depth=2, heads=4, mlp=48))
    train.pretrain(
        model, digits.train, next_pixel, lambda images, _: (palette.encode(images),) * 2,
        epochs=8, lr=1e-2, batch_size=32, bar=False, threads=1,
    )  # fmt: skip
    training, validation = (palette.encode(split.images) for split in (digits.train, digits.validation))
    assert model.bits_per_pixel(validation) < 0.85 * marginal_bits_per_pixel(training, validation, 5)
