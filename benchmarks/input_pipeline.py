"""Does making a batch hold up training? `python benchmarks/input_pipeline.py [--threads N] [--rounds N]`

The images of a step are gathered, augmented, normalised and mixed by the thread that then trains on them: no second
process, no queue. That is simplest, and replays exactly; it is right as long as it takes a small share of the step.
Here is that share, for three shapes and three amounts of augmentation:

    plain         as in the data set's recipe: shift, turn, zoom; or mirror and crop
    everything    besides, two operations of RandAugment, a quarter of the images erased, mixup or CutMix

and what of it each part takes. The images are noise, which costs as much as pictures. Batches and steps take turns, and
so do the amounts, so that a busy moment of the machine hits all of them.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from tinyvit.data import Mix, Split, augmentation, batches
from tinyvit.models import PRESETS, build
from tinyvit.optim import AdamW
from tinyvit.train import RECIPES, Shards

SHAPES = {"digits": 1_197, "mnist": 55_000, "cifar10": 45_000}  # recipe: training images
AMOUNTS = {
    "plain": {},
    "everything": dict(rand_ops=2, rand_magnitude=9.0, erase=0.25, mixup=0.2, cutmix=1.0, drop_path=0.1),
}
WARM_UP = 32  # steps: the kernels compile, and the shards try which number of threads is faster
LIMIT = 0.05  # of a step


class Run:
    """Training on noise of a recipe's shape; `step()` is one step, and returns (seconds of its batch, of the rest)."""

    def __init__(self, name, changes, threads):
        recipe = self.recipe = replace(RECIPES[name], **changes)
        config = replace(PRESETS[recipe.preset], drop_path=recipe.drop_path)
        model = build(config, 0)
        self.optimizer = AdamW(model, lr=1e-5)
        self.shards = Shards(model, self.optimizer.flat, recipe.shards, threads)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (SHAPES[name], *config.image_size, config.channels), np.uint8)
        split = Split(images, rng.integers(0, config.classes, len(images)))
        mix = Mix(recipe.mixup, recipe.cutmix, config.classes) if recipe.mixup or recipe.cutmix else None
        how = dict(mean=[0.5] * config.channels, std=[0.25] * config.channels, augment=augmentation(recipe), mix=mix)
        self.batches = (b for epoch in range(10**9) for b in batches(split, recipe.batch_size, epoch=epoch, **how))

    def step(self):
        start = time.perf_counter()
        images, targets = next(self.batches)
        made = time.perf_counter()
        self.shards.gradient(images, targets, self.recipe.smoothing)
        self.optimizer.clip_gradients(1.0)
        self.optimizer.step()
        return made - start, time.perf_counter() - made


def parts(run):
    """{what: milliseconds} of the parts of a batch, each called by itself; the median of 15 calls."""
    recipe, config = run.recipe, PRESETS[run.recipe.preset]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (recipe.batch_size, *config.image_size, config.channels), np.uint8)
    seconds = {}
    chain = augmentation(recipe)
    steps = [(type(step).__name__, step) for step in chain.steps]
    labels = np.zeros(len(images), np.int64)
    mix = Mix(recipe.mixup, recipe.cutmix, config.classes)
    steps.append(("Mix", lambda x, rng: mix(x.astype(np.float32, copy=False), labels, rng)))
    for name, step in steps:
        times = []
        for _ in range(15):
            start = time.perf_counter()
            step(images, rng)
            times.append(time.perf_counter() - start)
        seconds[name] = 1e3 * float(np.median(times))
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="workers; by default as `tinyvit train` takes them")
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    print(f"{'':9}{'':12}{'batch':>8} ms {'step':>8} ms   share")
    worst = 0.0
    for name in options.shapes:
        runs = {amount: Run(name, changes, options.threads) for amount, changes in AMOUNTS.items()}
        for run in runs.values():
            for _ in range(WARM_UP):
                run.step()
        times = np.array([[run.step() for run in runs.values()] for _ in range(options.rounds)])
        for amount, (batch, rest) in zip(runs, times.transpose(1, 2, 0), strict=True):
            share = batch.mean() / (batch + rest).mean()
            worst = max(worst, share)
            print(f"{name:9}{amount:12}{1e3 * batch.mean():8.2f}    {1e3 * rest.mean():8.2f}    {share:6.1%}")
        print(f"{'':9}" + ", ".join(f"{part} {ms:.2f}" for part, ms in parts(runs["everything"]).items()))
        for run in runs.values():
            run.shards.close()
    print(f"the largest share is {worst:.1%}, {'within' if worst <= LIMIT else 'ABOVE'} the {LIMIT:.0%} that we allow")


if __name__ == "__main__":
    main()
