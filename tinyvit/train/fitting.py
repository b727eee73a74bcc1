"""Fitting: a recipe and images go in, a folder with a trained model comes out; and a run that was stopped goes on.

What happens between is the loop (`loop.py`). Here is what must be settled before its first step: that the recipe fits
the images and the machine's memory, that nobody else trains in the folder, and for a run that goes on that data and
weights are those it was stopped with.

`folder.py` says what is in a run's folder, `progress.py` what a run has to remember.

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
from dataclasses import replace

from tinyvit.models import PRESETS, build, from_dict
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.folder import (
    CHECKPOINT,
    edited,
    empty_folder,
    fingerprint,
    machine,
    only_one,
    way_on,
    write_config,
)
from tinyvit.train.loop import Loop
from tinyvit.train.metrics import METRICS, cut_back
from tinyvit.train.progress import Progress, begun, read_saved
from tinyvit.train.ranks import job

MOST_BYTES = 16 * 2**30  # of attention maps, or of a feature map, in a step; more is a mistake, not a laptop's job


def configure(recipe, dataset):
    """The model's configuration: the recipe's preset, fitted to the data set's images and classes.

    Raises ValueError for an empty split, a patch size that does not divide, and more tokens than a laptop can hold.
    """
    check_splits(dataset)
    _, h, w, C = dataset.train.images.shape
    return fitted(recipe, (h, w), channels=C, classes=len(dataset.classes))


def fitted(recipe, image_size, **changes):
    """The recipe's preset for images of that size, with changes: as `configure`, also before there are such images."""
    preset = PRESETS[recipe.preset]
    changes["image_size"] = image_size
    for name in ("patch", "dropout", "drop_path"):
        if hasattr(preset, name):
            changes[name] = getattr(recipe, name) or getattr(preset, name)
        elif getattr(recipe, name):
            raise ValueError(f"{recipe.preset} has no {name}: it is a {preset.kind}")
    return check_memory(replace(preset, **changes), recipe.batch_size)


def check_splits(dataset):
    """Raises ValueError for an empty split."""
    for name in ("train", "validation", "test"):
        if not len(getattr(dataset, name)):
            raise ValueError(f"{dataset.name}: the {name} split must hold at least one image, got an empty one")


def check_memory(config, batch_size):
    """The configuration as it is. Raises ValueError for larger images, or more tokens, than a laptop can hold."""
    h, w = config.image_size
    tokens = getattr(config, "tokens", 0)
    if tokens:
        maps = batch_size * config.depth * config.heads * tokens**2 * 4
        if maps > MOST_BYTES:
            patches = " or larger patches (--patch)" if hasattr(config, "patch") else ""
            raise ValueError(
                f"images of {h}×{w} are {tokens:,} tokens, whose attention maps alone take {maps / 2**30:,.0f} GiB a "
                f"batch; use smaller images (--image-size){patches}"
            )
    first = getattr(config, "widths", (config.channels,))[0]  # numbers for each pixel: a ResNet's, or the image's own
    pixels = batch_size * h * w * first * 4
    if pixels > MOST_BYTES:
        raise ValueError(
            f"images of {h}×{w} with {first} numbers for each pixel take {pixels / 2**30:,.0f} GiB a batch; "
            "use smaller images (--image-size)"
        )
    return config


def fit(recipe, dataset, folder, *, model=None, origin=None, threads=None, say=print, bar=None, save_every=60):
    """Train by the recipe on the data set; write checkpoints and metrics into `folder` (made, or empty); test once.
    Under mpiexec all processes call it alike, share the work and return the same; one of them writes (`ranks.py`).

    Args:
        model: to go on with, changed in place; by default a new one, the recipe's preset with the recipe's seed.
        origin: where `model` comes from, a dict for the run's config.toml and checkpoint.
        threads: workers, at most one for each shard; changes the speed, not one bit of the result. By default as many
            as cores, or one if the first steps show that to be faster.
        say: receives each line of text.
        bar: a progress bar on stderr; by default only if that is a terminal.
        save_every: seconds from one checkpoint to the next within an epoch, which has one at its end anyway; changes no
            result.

    Returns a Run, whose model is the average of the weights where the recipe has `ema`. Raises ValueError where the
    recipe does not fit the data, TrainingError for a non-finite loss or a folder in use, OSError where it cannot be
    written: then the last checkpoint is kept.
    """
    model = model or build(configure(recipe, dataset), recipe.seed)
    data_sha256 = fingerprint(dataset)
    job().check(recipe, data_sha256, model)
    loop = Loop(recipe, dataset, model, folder, None, Progress())  # what does not fit is said before there is a folder
    loop.folder = folder = job().once(empty_folder, folder)
    with contextlib.ExitStack() as held:
        job().once(held.enter_context, only_one(folder))
        loop.about = job().once(write_config, folder, recipe, model.config, dataset, data_sha256, origin)
        with job().together():
            loop.save(CHECKPOINT)
            with way_on(folder):
                return loop.run([], threads, say, bar, save_every)


def resume(folder, dataset, *, threads=None, say=print, bar=None, save_every=60):
    """Go on with a run that was stopped, from its last checkpoint, on the data set that it began with: what it ends
    with is what it would have ended with, to the last bit.

    `dataset` is that data set, or a function that loads it and gets the run's recipe. A finished run is tested again,
    and nothing else. Other arguments and the Run that is returned are those of `fit`. Raises CheckpointError where
    there is nothing to go on with, DataError for other data, and what `fit` raises.
    """
    job().once(begun, folder)  # first: what is no run shall not get a lock
    with contextlib.ExitStack() as held:
        job().once(held.enter_context, only_one(folder))
        saved = job().once(read_saved, folder)
        recipe, now, say = saved.recipe, saved.progress, job().voice(say)
        loop = restored(saved, saved.prepared(dataset(recipe) if callable(dataset) else dataset))
        with job().together(), way_on(saved.folder):
            if saved.note:
                loop.save(CHECKPOINT)  # in place of the damaged one
            lines = saved.note, job().once(edited, saved.folder, saved.about), other_machine(saved.about["machine"])
            for line in filter(None, lines):
                say(line)
            history = job().once(cut_back, saved.folder, now.epochs_done)
            if lost := now.epochs_done - len(history):
                say(f"{METRICS} has no good line for {lost} of {now.epochs_done} epochs; the model has lost nothing")
            if now.epochs_done == recipe.epochs:
                say(f"{folder} is finished, all {recipe.epochs} epochs are done; testing again")
            else:
                say(f"going on after step {now.steps_done}, in epoch {now.epochs_done + 1} of {recipe.epochs}")
            return loop.run(history, threads, say, bar, save_every)


def restored(saved, dataset):
    """The Loop of a Saved, as it was when it was saved. Raises CheckpointError where its parts do not fit."""
    recipe, about = saved.recipe, saved.about
    try:
        model = build(check_memory(from_dict(about["model"]), recipe.batch_size))
        model.load_state_dict(saved.part("model."))
        loop = Loop(recipe, dataset, model, saved.folder, about | {"machine": machine()}, saved.progress)
        loop.optimizer.load_state_dict(saved.part("optimizer."))
        if loop.average:  # which is what the file calls the model, and what Loop began its own with
            model.load_state_dict(saved.part("training."))
    except (KeyError, TypeError, ValueError) as error:
        first = " ".join(" ".join(str(error).splitlines()[:2]).split())  # of what may be a list of all weights
        raise CheckpointError(f"{saved.folder}: weights and configuration do not fit: {first}") from None
    job().check(recipe, about["data_sha256"], model)
    return loop


def other_machine(before):
    """A line on how this machine differs from the one before; "" if it does not."""
    now = machine()
    changes = [f"{name} {now[name]}, was {before.get(name)}" for name in now if now[name] != before.get(name)]
    return f"the last bits may differ from here on: {'; '.join(changes)}" if changes else ""
