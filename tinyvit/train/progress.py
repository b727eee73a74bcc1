"""Going on as if never stopped: what a run has to remember, and what it need not.

To remember are the weights, batch norm's statistics, the optimiser's moments, the running average, and the few numbers
of `Progress`. Not to remember are random numbers: which images a step sees, in which order and how changed, and which
activations dropout leaves out, are functions of (seed, epoch, step) alone (`data/batches.py`, `train/shards.py`), and
so is the learning rate. A loop that drew from one stream would have to save its state to the exact draw; forgetting
that is the usual reason why a resumed run sees the first epoch's order again.

So a run that was stopped anywhere ends with the same bits as one that was not. It follows that nothing is lost with a
checkpoint as long as an older one is whole: the way from there leads to the same place.

Chapter of the course: notebooks/07-training.ipynb.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from tinyvit.data import DataError
from tinyvit.train.checkpoint import CheckpointError, load
from tinyvit.train.folder import BEST, CHECKPOINT, fingerprint
from tinyvit.train.recipes import Recipe


@dataclass
class Progress:
    """How far a run is: whole epochs, steps, seconds of training; sums over the part of an epoch that has begun; and
    accuracy and loss on the validation images after the best epoch.

    JSON gives back each float to the last bit, so the sums go on as they would have.
    """

    epochs_done: int = 0
    steps_done: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    right: int = 0
    seen: int = 0
    norm_sum: float = 0.0
    epoch_seconds: float = 0.0
    best_accuracy: float = -1.0
    best_loss: float = 0.0

    def add(self, loss, right, norm, count):
        """Count a step of `count` images in."""
        self.steps_done += 1
        self.loss_sum += loss * count
        self.right += right
        self.seen += count
        self.norm_sum += norm

    def end_epoch(self):
        """The next epoch's sums begin at 0."""
        self.epochs_done += 1
        self.loss_sum, self.right, self.seen, self.norm_sum, self.epoch_seconds = 0.0, 0, 0, 0.0, 0.0

    def improved(self, accuracy, loss):
        """Whether an epoch is the best so far, which then is noted; among equal accuracies the lower loss is better."""
        better = (accuracy, -loss) > (self.best_accuracy, -self.best_loss)
        if better:
            self.best_accuracy, self.best_loss = accuracy, loss
        return better


@dataclass
class Saved:
    """A run as its checkpoint has it: the folder, the recipe, how far it is; the file's arrays, and what it is a
    function of, as in config.toml.

    `note` is empty, or says why the file was not the last checkpoint.
    """

    folder: Path
    recipe: Recipe
    progress: Progress
    tensors: dict
    about: dict
    note: str = ""

    def prepared(self, dataset):
        """The data set as the run has seen it: normalised as the weights are used to, which for a fine-tuned run is as
        its start was. Raises DataError for other data."""
        if fingerprint(dataset) != self.about["data_sha256"]:
            raise DataError(
                f"a run goes on with the data that it began with; {dataset.name}, as it is here, has other images, "
                f"labels or classes than {self.folder} has seen"
            )
        return replace(dataset, mean=tuple(self.about["mean"]), std=tuple(self.about["std"]))

    def part(self, prefix):
        """{name: array} of those whose names begin so, by the rest of the name."""
        named = self.tensors.items()
        return {name.removeprefix(prefix): array for name, array in named if name.startswith(prefix)}


def begun(folder):
    """The folder's Path. Raises CheckpointError unless there is a checkpoint in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no run's folder at {folder}")
    if not any((folder / name).exists() for name in (CHECKPOINT, BEST)):
        raise CheckpointError(f"{folder} holds no {CHECKPOINT}: no run, or stopped before its first step; begin anew")
    return folder


def read_saved(folder):
    """Read what a run has left in its folder into a Saved, to go on with it: its last checkpoint or, where that is
    damaged, the best epoch's. Raises CheckpointError that says what is missing, damaged or does not fit."""
    folder, note = begun(folder), ""
    path = folder / CHECKPOINT
    try:
        tensors, about = load(path)
    except CheckpointError as error:
        path = folder / BEST
        try:
            tensors, about = load(path)
        except CheckpointError:
            raise error from None
        note = f"{error}. Going on from the best epoch's, {path}"
    names = [field.name for field in fields(Progress)]
    if not all(name in about for name in names):
        raise CheckpointError(
            f"{path} holds a model, but not a run to go on with: an older tinyvit wrote it, or pre-training did. "
            "`tinyvit finetune` goes on with such a model"
        )
    try:
        recipe = Recipe.from_dict(about["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds a recipe that cannot be: {error}") from None
    return Saved(folder, recipe, Progress(**{name: about.pop(name) for name in names}), tensors, about, note)
