"""Write `vectors.npz` and `vectors-models.npz`: small reference vectors, computed by PyTorch, for machines without.

    cd tests; python -m parity.write_vectors            needs the extra: pip install -e ".[parity]"

Run it when a model's parameters change name or a case is added; never to make a failing test pass, unless the change
in the numbers is meant and the live tests, `tests/test_parity_live*.py`, agree with it.
"""

import numpy as np
import torch
from parity import comparison
from parity.torch_models import TWINS

from tinyvit.data import load

BATCH = 16
ADAMW = dict(  # clips some of the steps, not all: Adam would not notice a common factor
    smoothing=0.0, steps=50, lr=3e-3, warmup=5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3, clip=4.0
)  # fmt: skip
CASES = {
    "grey": (dict(image_size=(8, 8), patch=2, width=16, depth=2, heads=4, mlp=32), ADAMW),
    "colour": (
        dict(image_size=(12, 8), patch=4, channels=3, classes=5, width=18, depth=1, heads=3, mlp=40),
        ADAMW | dict(smoothing=0.1, clip=2.0),
    ),
    "tanh": (
        dict(image_size=(8, 8), patch=4, width=16, depth=3, heads=2, mlp=24, gelu_tanh=True),
        ADAMW | dict(smoothing=0.1, clip=2.0),
    ),
}
# The other models and choices. SGD moves by the gradient itself, where Adam makes a step of any noise.
SGD = dict(smoothing=0.1, steps=10, lr=0.03, warmup=3, momentum=0.9, weight_decay=0.01, clip=0.0)
VIT = dict(image_size=(4, 6), patch=2, channels=2, classes=4, width=8, depth=1, heads=2, mlp=12)
RESNET = dict(kind="resnet", image_size=(8, 8), channels=1)
MODELS = {
    "none, mlp head": VIT | dict(positions="none", head="mlp"),
    "2d, average": VIT | dict(positions="2d", pool="average"),
    "sincos, registers": VIT | dict(positions="sincos", registers=2),
    "relative": VIT | dict(positions="relative"),
    "relative, average, register": VIT | dict(positions="relative", pool="average", registers=1),
    "resnet batch": RESNET | dict(norm="batch", blocks=(1, 2), widths=(4, 8)),
    "resnet group": RESNET | dict(norm="group", blocks=(1, 1), widths=(6, 12)),
    "hybrid": VIT | dict(kind="hybrid", image_size=(8, 6), patch=1, blocks=(1, 1), widths=(4, 8)),
    "igpt": dict(kind="igpt", image_size=(3, 4), palette=6, width=8, depth=2, heads=2, mlp=12),
    "quadratic": dict(kind="quadratic", image_size=(4, 6), patch=2, channels=2, classes=4, width=9, depth=2,
                      heads=3, mlp=12),
    "augmented": dict(kind="augmented", image_size=(6, 5), channels=2, classes=4, stride=1, width=8, depth=2,
                      attention=4, heads=2, groups=2),
}  # fmt: skip
RECIPES = {"resnet batch": SGD | dict(steps=20)}


def pool(config, rng, count):
    """(pixels, labels): digits where they fit the model, else noise, which a model can learn by heart."""
    shape = (*config.image_size, config.channels)
    digits = load("digits").train
    if digits.images.shape[1:] == shape:
        return digits.images[:count], digits.labels[:count]
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, config.classes, count)


def colours(config, rng, count):
    """The same for Image GPT, whose pixels are numbers of colours; it needs no labels."""
    return rng.integers(0, config.palette, (count, *config.image_size), dtype=np.uint8), np.zeros(count, np.int64)


def start(name, fields, recipe, seed, count, binary_digits=None):
    """A Case with `count` images, before PyTorch has said anything. Weights with few digits after the point take up
    less of the file."""
    model, rng = comparison.build(**fields), np.random.default_rng([seed, 1])
    pixels, labels = (colours if fields.get("kind") == "igpt" else pool)(model.config, rng, count)
    batches = rng.integers(0, count, (recipe["steps"], BATCH), dtype=np.uint8)
    weights = comparison.random_weights(model, seed)
    if binary_digits is not None:
        unit = np.float32(2.0**-binary_digits)
        weights = {path: np.round(array / unit) * unit for path, array in weights.items()}
    return comparison.Case(name, fields, recipe, weights, pixels, labels, batches)


def twin(case):
    """In float64, so that rounding, and the machine, do not show."""
    return TWINS[case.config.get("kind", "vit")](case.model().config, case.weights, torch.float64)


def main():
    cases = [start(name, *described, seed, 64) for seed, (name, described) in enumerate(CASES.items())]
    for case in cases:
        case.logits, case.loss, case.gradients = twin(case).reference(*case.batch(), case.recipe["smoothing"])
        model = twin(case)
        case.losses = model.train(model.adamw(**case.adamw()), *case.run())
    comparison.write(cases, torch.__version__, comparison.FILE)

    models = [start(name, MODELS[name], RECIPES.get(name, SGD), seed, 32, 6) for seed, name in enumerate(MODELS)]
    for case in models:
        case.logits, case.loss, gradients = twin(case).reference(*case.batch(), case.recipe["smoothing"])
        case.gradients = {path: gradient.astype(np.float32) for path, gradient in gradients.items()}
        model = twin(case)
        case.losses = model.train(model.sgd(**case.sgd()), *case.run())
        case.trained = model.evaluate(case.batch()[0])
    comparison.write(models, torch.__version__, comparison.MODELS_FILE)

    for file, names in ((comparison.FILE, CASES), (comparison.MODELS_FILE, MODELS)):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB, {', '.join(names)}")


if __name__ == "__main__":
    main()
