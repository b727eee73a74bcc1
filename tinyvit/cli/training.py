"""`tinyvit train`: a recipe for the data, the words of the command on top of it, the run and its pictures; and going on
with a run that was stopped."""

from dataclasses import fields, replace
from pathlib import Path

import tinyvit
from tinyvit import data, train
from tinyvit.cli.reporting import PAGE, write_report
from tinyvit.cli.shared import Mistake, caption, complain, in_turn, load_data
from tinyvit.data.dataset import normalise
from tinyvit.train.ranks import job
from tinyvit.train.recipes import FILES, KNOWN


def run_train(options):
    if options.resume is not None:
        return go_on(options)
    recipe = changed(known_recipe(options), options)
    h = w = recipe.image_size
    try:
        if recipe.image_size:  # before images of that size fill the memory
            train.fitting.fitted(recipe, (h, w))
        dataset = load_data(options.data or recipe.data, recipe.image_size)
        h, w = dataset.train.images.shape[1:3]
        train.fitting.configure(recipe, dataset)
    except ValueError as error:
        raise Mistake(f"{error}{_other_size(recipe, h, w)}") from None
    out = options.out or job().once(train.new_folder, recipe.data)
    run = train.fit(recipe, dataset, out, threads=options.threads)
    return finish("train", run)


def go_on(options):
    """`tinyvit train --resume RUN`: what the run is was decided when it began."""
    given = {name for name, value in vars(options).items() if value is not None}
    others = sorted(given - {"command", "run", "resume", "threads"})
    if others:
        words = ", ".join("DATA" if name == "data" else f"--{name.replace('_', '-')}" for name in others)
        raise Mistake(f"--resume goes on with the run as it began, and takes --threads only; got {words}")
    if not options.resume:
        raise Mistake("--resume needs the run's folder")
    folder = Path(options.resume)
    if folder.name == train.CHECKPOINT:  # which other commands take for the run, too
        folder = folder.parent
    return finish("train", train.resume(folder, data_as_before, threads=options.threads))


def data_as_before(recipe):
    """What the run of that recipe was begun on."""
    if recipe.data not in data.NAMES and not Path(recipe.data).is_dir():
        raise data.DataError(f"the run was begun on {recipe.data}, which is not here; put it back there")
    return load_data(recipe.data, recipe.image_size)


def known_recipe(options):
    """The recipe that the options name, or else the one of the package for their data."""
    named = getattr(options, "recipe", None)
    recipe = None if named is None else named_recipe(named)
    name = options.data or (recipe.data if recipe else "digits")
    if not name:
        raise Mistake("this recipe is for any folder of images: tinyvit train FOLDER --recipe …")
    if name in data.NAMES:
        return replace(recipe or train.RECIPES[name], data=name)
    if name in KNOWN and not Path(name).is_dir():
        raise Mistake(f"{name} is a recipe, not data: tinyvit train --recipe {name}")
    folder = str(Path(name).resolve())  # `eval` may be called from elsewhere
    if Path(options.out or "runs").resolve().is_relative_to(folder):
        raise Mistake("the run's folder would be one more class inside the data folder; go up one folder or use --out")
    return replace(recipe or train.FOLDER_RECIPE, data=folder)


def named_recipe(name):
    """The recipe of that name, or of that file."""
    if name in KNOWN:
        return KNOWN[name][0]
    try:
        return train.read_recipe(name)[0]
    except train.RecipeError as error:
        raise Mistake(f"{error}; the package has {', '.join(KNOWN)}") from None


def run_recipes(options):
    """Each recipe, what it was measured to reach, and how to see the same."""
    for name, (_, promise) in KNOWN.items():
        print(f"{name:<16}" + (f"{promise}\n{'':<16}{promise.command}" if promise else "not measured"))
    print(f"files to begin your own from: {FILES['digits'].parent}")


def changed(recipe, options):
    """The recipe with what the options say in its place."""
    words = {f.name: getattr(options, f.name, None) for f in fields(train.Recipe) if f.name != "data"}
    try:
        return replace(recipe, **{field: value for field, value in words.items() if value is not None})
    except ValueError as error:
        raise Mistake(error) from None


def finish(command, run):
    """Say how the run went, draw its pictures; returns the exit code. Of several ranks one does."""
    code = 128 + run.interrupted if run.interrupted else 0
    if job().rank > 0:
        return code
    if not run.interrupted:  # said first: drawing takes seconds, in which the process may be killed
        print(f"trained in {run.seconds:.0f} s")
        print(f"test accuracy {100 * run.test_accuracy:.2f} %")
    try:
        draw(run)
    except (Exception, KeyboardInterrupt) as error:  # of whatever drawing dies, the result is told
        complain(f"tinyvit {command}: not all pictures are drawn: {str(error) or type(error).__name__}")
    pictures = ", ".join(sorted(path.name for path in run.folder.glob("*.png"))) or "none"
    if (run.folder / PAGE).exists():
        pictures += f"; all of it: {PAGE}"
    print(f"run folder: {run.folder}  ({pictures})")
    return code


def draw(run):
    """Write the run's pictures into its folder."""
    from tinyvit import interpret, viz

    dataset = run.dataset
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
    write_report(run.folder, dataset, run.probabilities)


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
