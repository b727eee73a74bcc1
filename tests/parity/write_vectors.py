"""Write `vectors.npz`: small reference vectors, computed by PyTorch, for machines that have none.

    python tests/parity/write_vectors.py            needs the extra: pip install -e ".[parity]"

Run it when the model's parameters change name or a case is added; never to make a failing test pass, unless
the change in the numbers is meant and `tests/test_parity_live.py` agrees with it.
"""

import comparison
import numpy as np
import torch
from torch_twin import Twin

from tinyvit.data import load
from tinyvit.models import ViTConfig

POOL, BATCH = 64, 16
RECIPE = dict(  # clips some of the steps, not all: Adam would not notice a common factor
    smoothing=0.0, steps=50, lr=3e-3, warmup=5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3, clip=4.0
)  # fmt: skip
CASES = {
    "grey": (dict(image_size=(8, 8), patch=2, width=16, depth=2, heads=4, mlp=32), RECIPE),
    "colour": (
        dict(image_size=(12, 8), patch=4, channels=3, classes=5, width=18, depth=1, heads=3, mlp=40),
        RECIPE | dict(smoothing=0.1, clip=2.0),
    ),
    "tanh": (
        dict(image_size=(8, 8), patch=4, width=16, depth=3, heads=2, mlp=24, gelu_tanh=True),
        RECIPE | dict(smoothing=0.1, clip=2.0),
    ),
}


def pool(config, rng):
    """(pixels, labels): digits where they fit the model, else noise, which a model can learn by heart."""
    shape = (*config.image_size, config.channels)
    digits = load("digits").train
    if digits.images.shape[1:] == shape:
        return digits.images[:POOL], digits.labels[:POOL]
    return rng.integers(0, 256, (POOL, *shape), dtype=np.uint8), rng.integers(0, config.classes, POOL)


def main():
    cases = []
    for seed, (name, (fields, recipe)) in enumerate(CASES.items()):
        rng, config = np.random.default_rng([seed, 1]), ViTConfig(**fields)
        pixels, labels = pool(config, rng)
        batches = rng.integers(0, POOL, (recipe["steps"], BATCH), dtype=np.uint8)
        weights = comparison.random_weights(config, seed)
        case = comparison.Case(name, fields, recipe, weights, pixels, labels, batches)
        twin = Twin(config, weights, torch.float64)  # so that rounding, and the machine, do not show
        case.logits, case.loss, case.gradients = twin.reference(*case.batch(), recipe["smoothing"])
        case.losses = twin.train(twin.adamw(**case.adamw()), *case.run())
        cases.append(case)
    comparison.write(cases, torch.__version__)
    print(f"{comparison.FILE}: {comparison.FILE.stat().st_size / 1000:.0f} kB, {', '.join(CASES)}")


if __name__ == "__main__":
    main()
