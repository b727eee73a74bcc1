"""`tinyvit train`: a recipe for the data, the words of the command on top of it, the run and its pictures."""

from dataclasses import fields, replace
from pathlib import Path

import tinyvit
from tinyvit import train
from tinyvit.cli.shared import Mistake, caption, complain, in_turn, load_data
from tinyvit.data.dataset import normalise


def run_train(options):
    recipe = changed(known_recipe(options), options)
    h = w = recipe.image_size
    try:
        if recipe.image_size:  # before images of that size fill the memory
            train.loop.fitted(recipe, (h, w))
        dataset = load_data(options.data, recipe.image_size)
        h, w = dataset.train.images.shape[1:3]
        train.loop.configure(recipe, dataset)
    except ValueError as error:
        raise Mistake(f"{error}{_other_size(recipe, h, w)}") from None
    run = train.fit(recipe, dataset, options.out or train.new_folder(recipe.data), threads=options.threads)
    return finish("train", run, dataset)


def known_recipe(options):
    """The recipe for the data that the options name, as the table has it."""
    if options.data in train.RECIPES:
        return train.RECIPES[options.data]
    name = str(Path(options.data).resolve())  # `eval` may be called from elsewhere
    if Path(options.out or "runs").resolve().is_relative_to(name):
        raise Mistake("the run's folder would be one more class inside the data folder; go up one folder or use --out")
    return replace(train.FOLDER_RECIPE, data=name)


def changed(recipe, options):
    """The recipe with what the options say in its place."""
    words = {f.name: getattr(options, f.name, None) for f in fields(train.Recipe) if f.name != "data"}
    try:
        return replace(recipe, **{field: value for field, value in words.items() if value is not None})
    except ValueError as error:
        raise Mistake(error) from None


def finish(command, run, dataset):
    """Draw the run's pictures, say how it went; returns the exit code."""
    try:
        draw(run, dataset)
    except (Exception, KeyboardInterrupt) as error:  # of whatever drawing dies, the result is told
        complain(f"tinyvit {command}: not all pictures are drawn: {str(error) or type(error).__name__}")
    pictures = ", ".join(sorted(path.name for path in run.folder.glob("*.png"))) or "none"
    if run.interrupted:
        print(f"run folder: {run.folder}  ({pictures})")
        return 130
    print(f"trained in {run.seconds:.0f} s; pictures: {pictures}")
    print(f"test accuracy {100 * run.test_accuracy:.2f} %")
    print(f"run folder: {run.folder}")
    return 0


def draw(run, dataset):
    """Write the run's pictures into its folder."""
    from tinyvit import interpret, viz

    viz.save(viz.curves(run.history), run.folder / "curves.png")
    if run.probabilities is not None:
        test, p = dataset.test, run.probabilities
        if interpret.has_attention(run.model):
            chosen = in_turn(test.labels, 10)
            images = test.images[chosen]
            maps = interpret.class_attention(run.model, normalise(images, dataset.mean, dataset.std))
            captions = [caption(dataset.classes, test.labels[i], p[i]) for i in chosen]
            viz.save(viz.attention(images, maps, captions), run.folder / "attention.png")
        viz.save(viz.mistakes(test.images, test.labels, p, dataset.classes), run.folder / "mistakes.png")


def _other_size(recipe, h, w):
    """The other way out when a patch does not divide the images, or a hybrid's their feature map: other images."""
    preset = tinyvit.PRESETS[recipe.preset]
    if not hasattr(preset, "patch"):
        return ""
    patch = recipe.patch or preset.patch
    if all(-(-side // preset.stride) % patch == 0 for side in (h, w)):
        return ""
    multiple = patch * preset.stride
    return f"; or resize the images, for instance with --image-size {multiple * max(1, round(max(h, w) / multiple))}"
