"""`tinyvit finetune`: a trained model on other data or larger images, as the paper fine-tunes."""

from pathlib import Path

from tinyvit import train
from tinyvit.classifier import load
from tinyvit.cli.shared import Mistake, load_data
from tinyvit.cli.training import changed, finish, known_recipe


def run_finetune(options):
    start = load(options.checkpoint)
    recipe = changed(train.finetuning_recipe(known_recipe(options), start), options)
    dataset = load_data(options.data, recipe.image_size)
    try:
        model, dataset = train.begin(start, dataset, recipe, options.mode)
    except ValueError as error:
        raise Mistake(error) from None
    print(_what_changes(start.model.config, model.config, options))
    run = train.finetune(
        start, dataset, options.out or train.new_folder(recipe.data), recipe,
        mode=options.mode, source=Path(options.checkpoint).resolve(), threads=options.threads,
    )  # fmt: skip
    return finish("finetune", run, dataset)


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
