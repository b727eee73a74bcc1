"""The linear probe: the minimum it finds is the minimum, and each split plays its own part."""

import numpy as np
import pytest
from scipy.optimize import brentq

from tinyvit import data
from tinyvit.train import linear_probe
from tinyvit.train.probe import fit_logistic


def clouds(count, seed, distance=2.0, D=6, classes=4):
    """Points around one centre for each class."""
    centres = np.random.default_rng(99).normal(0, distance, (classes, D))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return centres[labels] + rng.standard_normal((count, D)), labels


def test_a_known_solution():
    """One feature of ±1 with labels that agree in 3 of 4 cases. By symmetry the weights are ∓w and the bias 0, and w
    solves σ(2w) - 3/4 + λ w = 0: found here by bisection of that one equation."""
    x = np.array([[1.0], [1], [1], [1], [-1], [-1], [-1], [-1]])
    y = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    strength = 0.1
    # loss = mean of ln(1 + e^∓2w) + λ/2 (w² + w²); its derivative by w is 2 (σ(2w) - 3/4) + 2 λ w
    w = brentq(lambda w: 1 / (1 + np.exp(-2 * w)) - 0.75 + strength * w, 0, 5)
    found = fit_logistic(x, y, strength, np.zeros((2, 2)))
    np.testing.assert_allclose(found, [[-w, w], [0, 0]], atol=1e-5)


def test_the_gradient_vanishes_and_the_start_does_not_matter():
    x, y = clouds(200, 0)
    found = fit_logistic(x, y, 0.01, np.zeros((7, 4)))
    other = fit_logistic(x, y, 0.01, np.random.default_rng(0).normal(size=(7, 4)))
    np.testing.assert_allclose(found[:-1], other[:-1], atol=1e-3)
    z = x @ found[:-1] + found[-1]
    p = np.exp(z - z.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(4)[y]
    assert abs(x.T @ p / 200 + 0.01 * found[:-1]).max() < 1e-4 and abs(p.mean(0)).max() < 1e-4


def test_separable_clouds_are_separated():
    probe = linear_probe(clouds(300, 0, 6.0), clouds(100, 1, 6.0), clouds(100, 2, 6.0))
    assert probe.test_accuracy == probe.validation_accuracy == 1.0
    features, labels = clouds(50, 3, 6.0)
    p = probe.predict(features)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p.argmax(1) == labels).all()


def test_units_do_not_matter():
    """Features are standardised by the training set: other scales and origins give the same answer; so does a feature
    that never varies."""
    parts = [clouds(120, seed) for seed in range(3)]
    moved = [(np.c_[x * [1e3, 1e-3, 1, 1, 1, 1] + 5, np.full(len(x), 7.0)], y) for x, y in parts]
    a, b = linear_probe(*parts), linear_probe(*moved)
    assert (a.strength, a.validation_accuracy, a.test_accuracy) == (b.strength, b.validation_accuracy, b.test_accuracy)
    np.testing.assert_allclose(a.weight, b.weight[:-1], atol=1e-3)


def test_the_strength_is_chosen_on_validation_and_test_has_no_say():
    """60 training points in 40 mostly empty dimensions: a penalty helps. Other test labels change the test's result
    only."""
    rng = np.random.default_rng(0)

    def noisy(count, seed):
        x, y = clouds(count, seed, 1.0)
        return np.c_[x, rng.standard_normal((count, 34))], y

    train, validation, test = noisy(60, 0), noisy(500, 1), noisy(500, 2)
    probe = linear_probe(train, validation, test)
    alone = {s: linear_probe(train, validation, test, strengths=(s,)) for s in (10.0, 0.1, 1e-6)}
    assert probe.validation_accuracy >= max(p.validation_accuracy for p in alone.values())
    assert probe.strength > 1e-6 and probe.test_accuracy > alone[1e-6].test_accuracy
    wrong = linear_probe(train, validation, (test[0], (test[1] + 1) % 4))
    assert wrong.strength == probe.strength and wrong.test_accuracy < 0.5 < probe.test_accuracy
    np.testing.assert_array_equal(wrong.weight, probe.weight)


def test_digits_pixels():
    """Raw pixels of the digits: a known, strong baseline."""
    digits = data.load("digits")
    parts = [(split.images.reshape(len(split), -1), split.labels) for split in (digits.train, digits.validation)]
    probe = linear_probe(parts[0], parts[1], parts[1])
    assert 0.93 < probe.validation_accuracy == probe.test_accuracy < 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x[0], y), r"test must be features \(M, D\) and labels \(M,\)"),
        (lambda x, y: (x, y[:-1]), "test must be features"),
        (lambda x, y: (x[:0], y[:0]), "M ≥ 1"),
        (lambda x, y: (x, y / 2), "test: labels must be integers"),
        (lambda x, y: (x, y - 1), "from 0 up"),
        (lambda x, y: (x * np.nan, y), "test: features must be finite"),
        (lambda x, y: (x[:, :5], y), "training set's 6 features and 4 classes, got 5"),
        (lambda x, y: (x, y + 3), "4 classes, got 6 and 7"),
    ],
)
def test_wrong_input(spoil, message):
    good = clouds(30, 0)
    with pytest.raises(ValueError, match=message):
        linear_probe(good, good, spoil(*good))
