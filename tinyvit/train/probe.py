"""A linear probe: how much of what we want to know can be read off features by the simplest reader there is.

Freeze the model, take its features, fit a multinomial logistic regression to them. If a plane through the features
separates the classes, the model has done the work; a probe is too weak to do it itself. Three rules keep the comparison
fair: features are standardised with the training set's mean and deviation, since the penalty is not blind to scale; its
strength is chosen on validation images, since features differ in number; and the test images are looked at once.

The loss is convex, so there is one answer: L-BFGS finds it without a learning rate.

Chapter of the course: notebooks/12-learning-without-labels.ipynb.
"""

from dataclasses import dataclass

import numpy as np

from tinyvit import kernels
from tinyvit.cores import one_blas_thread

STRENGTHS = tuple(10.0**k for k in range(1, -7, -1))  # from strong to weak: each fit starts at the one before


@dataclass(frozen=True, eq=False)
class Probe:
    """What `linear_probe` returns. `weight` (D, classes) and `bias` (classes,) act on features standardised by `mean`
    and `std` (D,); `strength` is the penalty that was chosen; accuracies are in [0, 1]."""

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    strength: float
    validation_accuracy: float
    test_accuracy: float

    def predict(self, features):
        """Class probabilities (M, classes) of features (M, D)."""
        return kernels.softmax(((features - self.mean) / self.std) @ self.weight + self.bias)


def linear_probe(train, validation, test, strengths=STRENGTHS):
    """Fit on `train`, choose the penalty's strength on `validation`, look at `test` once.

    Args:
        train, validation, test: (features (M, D), labels (M,) integers from 0 up) each.
        strengths: of the L2 penalty, to choose from: λ in

            mean cross-entropy + λ/2 Σ w²      (the bias is free).

            The most accurate one wins; of equally accurate ones that with the lowest validation loss.

    Returns a Probe. Raises ValueError for features and labels that do not fit together or are not finite.
    """
    splits = {name: _checked(name, *pair) for name, pair in dict(train=train, validation=validation, test=test).items()}
    x, y = splits["train"]
    for name, (features, labels) in splits.items():
        if features.shape[1] != x.shape[1] or labels.max() > y.max():
            raise ValueError(
                f"{name} must have the training set's {x.shape[1]} features and {y.max() + 1} classes, "
                f"got {features.shape[1]} and {labels.max() + 1}"
            )
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 1e-9 * abs(x).max(axis=0), std, 1.0)  # a feature that never varies says nothing
    x = (x - mean) / std
    solution = np.zeros((x.shape[1] + 1, y.max() + 1))
    best, best_score = None, None
    with one_blas_thread():  # in products as small as these threads would mostly wait for each other
        for strength in sorted(strengths, reverse=True):
            solution = fit_logistic(x, y, strength, solution)
            probe = Probe(solution[:-1], solution[-1], mean, std, strength, 0.0, 0.0)
            accuracy, loss = _score(probe, *splits["validation"])
            if best is None or (accuracy, -loss) > best_score:
                best, best_score = probe, (accuracy, -loss)
        accuracy, _ = _score(best, *splits["test"])
    return Probe(best.weight, best.bias, mean, std, best.strength, best_score[0], accuracy)


def fit_logistic(x, y, strength, start):
    """The minimum of mean cross-entropy + strength/2 Σ w² over weights and bias.

    x (M, D), y (M,) integers. `start` (D + 1, classes), the bias in the last row; the result is like it.
    """
    from scipy.optimize import minimize  # here, because importing it takes long

    rows = np.arange(len(y))

    def objective(flat):
        solution = flat.reshape(start.shape)
        z = x @ solution[:-1] + solution[-1]
        p = kernels.softmax(z)
        loss = -np.log(np.maximum(p[rows, y], 1e-300)).mean() + strength / 2 * (solution[:-1] ** 2).sum()
        p[rows, y] -= 1  # d loss / d z, times M
        gradient = np.vstack([x.T @ p, p.sum(axis=0)]) / len(y)
        gradient[:-1] += strength * solution[:-1]
        return loss, gradient.ravel()

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=dict(maxiter=500, gtol=1e-6))
    return found.x.reshape(start.shape)


def _checked(name, features, labels):
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"{name} must be features (M, D) and labels (M,), M ≥ 1, got {features.shape} and {labels.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"{name}: labels must be integers from 0 up, got {labels.dtype} from {labels.min()}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: features must be finite")
    return features, labels


def _score(probe, features, labels):
    p = probe.predict(features)
    return float((p.argmax(axis=1) == labels).mean()), -np.log(np.maximum(p[np.arange(len(p)), labels], 1e-300)).mean()
