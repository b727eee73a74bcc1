"""Higher resolution: what a ViT keeps when its images grow and its patches do not (paper section 3.2).

    python examples/higher_resolution.py [digits|mnist] [--seeds N] [--picture FILE]

A model is trained on small images. Then the images double their sides, the sequence becomes four times as long, and the
positions are interpolated, in three ways. Asked at once, with its old head, it is tested; fine-tuned with a new head of
zeros, by the paper's SGD recipe, it is tested again; and a model from scratch gets the same number of steps and images.

Digits 8×8 → 16×16, patches of 2×2, test accuracy, mean ± standard deviation over 4 seeds:

    on the small images                                98.6 ± 0.4 %
                                                   corners         bilinear        bicubic
    after interpolation, the old head            59.4 ± 4.4 %    64.8 ± 3.6 %    84.9 ± 2.3 %
    length of a position, of before              0.69            0.71            0.89
    the same with lengths restored               70.3 ± 6.6 %    80.7 ± 2.3 %    86.1 ± 2.7 %
                                                   5 epochs        20 epochs
    fine-tuned (corners)                         97.7 ± 0.3 %    98.2 ± 0.3 %
    from scratch, AdamW                          68.2 ± 9.0 %    97.4 ± 0.5 %
    from scratch, SGD                            56.9 ± 4.4 %    96.7 ± 0.9 %

So what was learned goes along: five epochs are enough, and a new model needs twenty to come near. A good part of the
first fall is that averages of positions are short, as restored lengths show. But these large images are the small ones
drawn larger, with no detail that was not there; nobody should expect more than 98.6 %.

MNIST 14×14 → 28×28, where there is more to see (one seed; 3,000 training images for 3 epochs at the high resolution,
against 55,000 for 3 at the low one): small images 93.8 %, interpolated 52.4, 57.0 and 58.7 %, fine-tuned 89.9 %, from
scratch 34.7 % (AdamW) and 32.3 % (SGD). So little fine-tuning wins back most, and not yet more than there was.

On one core of a busy AMD EPYC VM (two shared cores, Python 3.11, NumPy 2.4.6) a seed took 1.3 to 1.5 minutes on digits
and 3.8 on MNIST.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace

import numpy as np

import tinyvit as tv
from tinyvit import data, train, viz
from tinyvit.data.dataset import Dataset
from tinyvit.models import at_resolution
from tinyvit.nn.resolution import MODES, interpolate
from tinyvit.viz.figure import WIDTH, Picture, styled


@dataclass(frozen=True)
class Setting:
    """small: the recipe at the low resolution. low, high: sides of the images. images: how many to train on at the high
    one. budgets: {epochs: peak learning rates of fine-tuning, SGD from scratch, AdamW from scratch}, on digits the best
    on validation images of three or more (two seeds), on MNIST of two (one seed; of SGD's only this was tried)."""

    small: train.Recipe
    low: int
    high: int
    images: int
    budgets: dict


SETTINGS = {
    "digits": Setting(train.RECIPES["digits"], 8, 16, 1197, {5: (0.03, 0.2, 8e-3), 20: (0.03, 0.2, 4e-3)}),
    "mnist": Setting(
        replace(train.RECIPES["mnist"], preset="digits", batch_size=64, epochs=3), 14, 28, 3000, {3: (0.03, 0.2, 4e-3)}
    ),
}


def measure(name, setting, seed):
    """All results of one seed, {row of the table: value}, and the Classifier of the small images."""
    start = pretrained(name, setting, seed)
    large = enlarged(name, setting)
    small = data.load(name, image_size=setting.low)
    results = {"small images": train.evaluate(start.model, small.test, start.mean, start.std)[0]}
    for mode in MODES:
        model = at_resolution(start.model, setting.high, mode)
        results[f"interpolated, {mode}"] = train.evaluate(model, large.test, start.mean, start.std)[0]
        results[f"length of a position, {mode}"] = float(lengths(model).mean() / lengths(start.model).mean())
        restore_lengths(model, interpolate(lengths(start.model)[..., None], model.config.grid, mode))
        results[f"lengths restored, {mode}"] = train.evaluate(model, large.test, start.mean, start.std)[0]
    for epochs, (tuned, sgd, adamw) in setting.budgets.items():
        results[f"fine-tuned, {epochs} epochs"] = fine_tuned(start, large, setting, seed, epochs, tuned)
        results[f"from scratch, {epochs} epochs, SGD"] = from_scratch(large, setting, seed, epochs, sgd, "sgd")
        results[f"from scratch, {epochs} epochs, AdamW"] = from_scratch(large, setting, seed, epochs, adamw, "adamw")
    return results, start


def fit(recipe, dataset, model=None):
    """(validation, test) accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        run = train.fit(recipe, dataset, folder, model=model, threads=1, say=lambda line: None)
    return run.history[-1]["validation_accuracy"], run.test_accuracy


def pretrained(name, setting, seed):
    """The Classifier that is trained on the small images."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(setting.small, image_size=setting.low, seed=seed)
        train.fit(recipe, data.load(name, image_size=setting.low), folder, threads=1, say=lambda line: None)
        return tv.load(folder)


def enlarged(name, setting):
    """The data at the high resolution, with as many training images as the budget allows, and no more than 1,000 and
    5,000 for validation and test."""
    large = data.load(name, image_size=setting.high)
    return Dataset.of(name, large.classes, large.train[: setting.images], large.validation[:1000], large.test[:5000])


def fine_tuned(start, large, setting, seed, epochs, lr):
    recipe = train.finetuning_recipe(setting.small, start)
    recipe = replace(recipe, image_size=setting.high, epochs=epochs, lr=lr, seed=seed)
    model, large = train.begin(start, large, recipe)
    return fit(recipe, large, model)[1]


def from_scratch(large, setting, seed, epochs, lr, optimizer):
    """The same steps and images: with SGD by the recipe of fine-tuning, with AdamW by that of the small images."""
    recipe = replace(setting.small, **(train.FINETUNING if optimizer == "sgd" else {}))
    return fit(replace(recipe, image_size=setting.high, epochs=epochs, lr=lr, seed=seed), large)[1]


def lengths(model):
    """The length of each patch's position, (rows, columns)."""
    return np.linalg.norm(positions(model), axis=2)


def restore_lengths(model, wanted):
    """Make each patch's position as long as `wanted` (rows, columns, 1) says, in its own direction."""
    vectors = positions(model)
    table = model.positions.table.data.copy()
    table[0, 1:] = (vectors * (wanted / lengths(model)[..., None])).reshape(table[0, 1:].shape)
    model.positions.table.data = table


def positions(model):
    """The patches' positions, (rows, columns, D), without the class token's."""
    return model.positions.table.data[0, 1:].reshape(*model.config.grid, -1)


def table(name, setting, results):
    """The results of several seeds as lines: mean and standard deviation."""
    yield f"{name}, {setting.low}×{setting.low} → {setting.high}×{setting.high}, {len(results)} seeds"
    for row in results[0]:
        values = np.array([result[row] for result in results])
        scale, unit = (1, " of before") if row.startswith("length of") else (100, " %")
        spread = f" ± {scale * values.std():5.2f}" if len(values) > 1 else ""
        yield f"{row:<36} {scale * values.mean():6.2f}{spread}{unit}"


@styled
def draw(model, high):
    """The positions before and after: above their first three principal components as a colour, below their lengths."""
    models = {"before": model} | {mode: at_resolution(model, high, mode) for mode in MODES}
    flat = positions(model).reshape(-1, model.config.width)
    axes_of_colour = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:3].T
    low, high = (f((flat - flat.mean(0)) @ axes_of_colour) for f in (np.min, np.max))
    figure = Picture(figsize=(WIDTH, 3.4))
    panels = figure.subplots(2, 4)
    longest = lengths(model).max()
    for (title, one), (top, bottom) in zip(models.items(), panels.T, strict=True):
        colours = ((positions(one) - flat.mean(0)) @ axes_of_colour - low) / (high - low)
        top.imshow(np.clip(colours, 0, 1))
        top.set_title(f"{title}, {one.config.grid[0]}×{one.config.grid[1]}")
        shown = bottom.imshow(lengths(one), vmin=0, vmax=longest, cmap="viridis")
        bottom.set_title(f"mean length {lengths(one).mean():.2f}")
        for axes in (top, bottom):
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
    panels[0, 0].set_ylabel("direction")
    panels[1, 0].set_ylabel("length")
    figure.colorbar(shown, ax=panels[1], shrink=0.8, label="length")
    figure.suptitle("A position between two others is an average, and shorter; cubic weights lose less")
    return figure


def main(name="digits", seeds=4, picture=None, setting=None):
    setting = setting or SETTINGS[name]
    measured = [measure(name, setting, seed) for seed in range(seeds)]
    results = [result for result, _ in measured]
    print(*table(name, setting, results), sep="\n")
    if picture:
        viz.save(draw(measured[0][1].model, setting.high), picture)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a ViT keeps when its images grow and its patches do not.")
    parser.add_argument("name", nargs="?", default="digits", choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--picture", metavar="FILE")
    options = parser.parse_args()
    main(options.name, options.seeds, options.picture)
