"""Fine-tuning: a trained model goes on, on other data or larger images, with a new head.

What the paper does (section 3.2, appendix B.1.1): take the head off and put a linear layer of zeros in its place, so
that the first step changes nothing but the head; interpolate the positions to the new grid; then SGD with momentum 0.9,
no weight decay, gradients clipped to length 1, a short warm-up and a cosine, no dropout, and a learning rate that
validation chose. A gentle recipe: most of what the weights know is to be kept.

Two things stay as they were, for the weights were made for them: the size of the patch, and the mean and deviation by
which pixels are normalised, also where the new images have others.

Chapter of the course: notebooks/10-higher-resolution.ipynb.
"""

from dataclasses import replace

from tinyvit.models import PRESETS, ViT, at_resolution
from tinyvit.models.resolution import enlarged
from tinyvit.train.fitting import check_memory, check_splits, fit

# On validation images of digits, 8×8 → 16×16, two seeds: lr 0.01 98.8 %, 0.03 99.0 %, 0.1 97.5 %.
FINETUNING = dict(
    epochs=5, lr=0.03, warmup=1.0, optimizer="sgd", weight_decay=0.0, smoothing=0.0, clip=1.0, dropout=0.0,
    rand_ops=0, erase=0.0, mixup=0.0, cutmix=0.0, drop_path=0.0, ema=0.0,
)  # fmt: skip


def finetuning_recipe(recipe, start):
    """A recipe for training made one for fine-tuning the Classifier `start`: batches and geometric augmentation stay
    the data's, the model is the start's, the rest is the paper's. For a model from elsewhere the images get its size,
    and the preset named is the one of its width and depth, where there is one."""
    if start.recipe is not None:
        return replace(recipe, preset=start.recipe.preset, patch=start.recipe.patch, **FINETUNING)
    c = start.model.config
    like = [name for name, p in PRESETS.items() if p.kind == c.kind and (p.width, p.depth) == (c.width, c.depth)]
    (preset, *_), size = [*like, recipe.preset], c.image_size[0] if len(set(c.image_size)) == 1 else 0
    return replace(recipe, preset=preset, patch=c.patch, image_size=recipe.image_size or size, **FINETUNING)


def begin(start, dataset, recipe, mode="corners"):
    """What fine-tuning begins with, a model and a data set: the start's weights, positions for the data's size, a head
    of zeros for its classes; and the data with the start's mean and std. Arguments and errors as for `finetune`."""
    check_splits(dataset)
    _, h, w, C = dataset.train.images.shape
    check_size(start, (h, w), recipe.batch_size)
    config = start.model.config
    if C != config.channels:
        raise ValueError(
            f"the model reads images of {_channels(config.channels)}, those of {dataset.name} have {_channels(C)}; "
            "start from a model that was trained on such images"
        )
    model = at_resolution(start.model, (h, w), mode, classes=len(dataset.classes), dropout=recipe.dropout)
    return model.train(), replace(dataset, mean=start.mean, std=start.std)


def check_size(start, image_size, batch_size):
    """Raises ValueError for a model without positions to interpolate, and for images of a size that its patches do not
    divide or that no laptop can hold."""
    config = start.model.config
    if not isinstance(start.model, ViT):
        raise ValueError(f"fine-tuning needs a ViT or a hybrid, whose positions can be interpolated; got {config.kind}")
    check_memory(enlarged(config, image_size), batch_size)


def origin(start, source, mode):
    """What a fine-tuned run's config.toml says of the run `source` that it began with, the Classifier `start`."""
    size = list(start.model.config.image_size)
    return dict(run=str(source), data=start.data, image_size=size, epochs_done=start.epochs_done, mode=mode)


def finetune(start, dataset, folder, recipe, *, mode="corners", source="", **options):
    """Fine-tune a trained model on a data set, whose images may be larger than those that it knows; returns a Run.

    Args:
        start: a Classifier, as `tinyvit.load` returns, of a ViT or a hybrid; its model is left as it is.
        dataset: its images say the new size, its classes the new head.
        folder: of the new run, made or empty. Its config.toml says in [origin] where the run began.
        recipe: see `finetuning_recipe`.
        mode: how positions are interpolated, see `nn/resolution.py`.
        source: the name of the start, for [origin].
        options: threads, say and bar, see `fit`.

    Raises ValueError for another kind of model, images of other channels, a size that the patch does not divide or that
    no laptop can hold, an unknown mode and an empty split; and what `fit` raises.
    """
    model, dataset = begin(start, dataset, recipe, mode)
    return fit(recipe, dataset, folder, model=model, origin=origin(start, source, mode), **options)


def _channels(C):
    return {1: "1 channel, grey", 3: "3 channels, colour"}.get(C, f"{C} channels")
