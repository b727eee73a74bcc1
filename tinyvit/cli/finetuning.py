"""`tinyvit finetune`: a trained model on other data or larger images, as the paper fine-tunes."""

from pathlib import Path

from tinyvit import ViT, train
from tinyvit.classifier import load
from tinyvit.cli.shared import Mistake, complain, load_data
from tinyvit.cli.training import changed, finish, known_recipe
from tinyvit.data.image import SQUASH
from tinyvit.train.finetune import check_size, origin
from tinyvit.train.folder import empty_folder
from tinyvit.train.ranks import job


def run_finetune(options):
    if (options.data is None) == (options.data_too is None):
        raise Mistake("required: DATA, the images to train on, once")
    options.data = options.data or options.data_too
    start = load(options.checkpoint, options.heads)
    for note in start.notes:
        complain(f"tinyvit finetune: {note}")
    if start.prepare != SQUASH:
        cut = "" if start.prepare.resize is None else ", and their centres cut out"
        before = f"before, they were resized by a {start.prepare.filter} filter{cut}"
        complain(f"tinyvit finetune: pictures are squashed here, by a {SQUASH.filter} filter; {before}")
    if not isinstance(start.model, ViT):
        kind = start.model.config.kind
        return complain(f"tinyvit finetune: the model must be a ViT or a hybrid; {options.checkpoint} is a {kind}", 1)
    recipe = changed(train.finetuning_recipe(known_recipe(options), start), options)
    try:
        if recipe.image_size:  # before images of that size fill the memory
            check_size(start, recipe.image_size, recipe.batch_size)
        dataset = load_data(options.data, recipe.image_size)
        model, dataset = train.begin(start, dataset, recipe, options.mode)
    except ValueError as error:
        raise Mistake(error) from None
    folder = job().once(empty_folder, options.out or job().once(train.new_folder, recipe.data))
    job().voice(print)(_what_changes(start.model.config, model.config, options))
    begun = origin(start, Path(options.checkpoint).resolve(), options.mode)
    run = train.fit(recipe, dataset, folder, model=model, origin=begun, threads=options.threads)
    return finish("finetune", run)


def _what_changes(old, new, options):
    """One line: from where, to what size, with which positions and head."""
    (h, w), (rows, columns) = new.image_size, new.grid
    if new.image_size == old.image_size:
        size = f"images of {h}×{w} as before, positions as they are"
    else:
        fewer = ", fewer than before" if rows * columns < old.grid[0] * old.grid[1] else ""
        size = (
            f"images {old.image_size[0]}×{old.image_size[1]} → {h}×{w}, patches {old.grid[0]}×{old.grid[1]} → "
            f"{rows}×{columns}{fewer}, positions ({new.positions}) {_positions(new.positions, options.mode)}"
        )
    return f"from {options.checkpoint}: {size}; a new head for {new.classes} classes"


def _positions(kind, mode):
    return {"none": "need nothing", "sincos": "computed anew"}.get(kind, f"interpolated ({mode})")
