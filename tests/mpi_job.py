"""What each rank of a job does in the tests of tests/test_ranks.py:

mpiexec -n R python tests/mpi_job.py WHAT FOLDER
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinyvit import data, optim, train, vit
from tinyvit.data.dataset import Dataset
from tinyvit.models import ResNet, ResNetConfig
from tinyvit.train.ranks import job

RECIPE = train.Recipe(epochs=5, batch_size=50, warmup=1.0, dropout=0.1, ema=0.9, shards=4)  # 5 epochs of 4 steps
UNEVEN = replace(RECIPE, batch_size=33, shards=6)  # 3 or 6 shards a rank; the last batch of an epoch holds 2 images
BATCH_NORM = ResNetConfig((8, 8), 1, 10, (1,), (4,), "batch")


def few_digits():
    """The first 200 / 50 / 50 digits."""
    whole = data.load("digits")
    return Dataset.of("digits", whole.classes, whole.train[:200], whole.validation[:50], whole.test[:50])


def fit(recipe, folder, **options):
    return train.fit(recipe, few_digits(), folder, **dict(say=lambda line: None, bar=False, threads=1) | options)


def before_step(number, act):
    """From now on this rank calls act() before that step."""
    step = train.loop.Loop.train_step

    def train_step(loop, *batch):
        if loop.progress.steps_done == number:
            act()
        return step(loop, *batch)

    train.loop.Loop.train_step = train_step


def equality(folder):
    """20 steps of a ViT, of a model with batch norm, and where the shards of a rank are no branch of the tree."""
    fit(RECIPE, folder / "vit")
    fit(replace(RECIPE, optimizer="muon"), folder / "muon")
    fit(replace(RECIPE, batch_size=66), folder / "batch-norm", model=ResNet(BATCH_NORM, 0))
    if 6 % job().size == 0:
        fit(UNEVEN, folder / "uneven")


def unlike(folder):
    """Rank 1 has another learning rate and another image; the words of the error are written down by rank 0."""
    rank, dataset = job().rank, few_digits()
    if rank == 1:
        dataset.train.images[0] += 1
    try:
        train.fit(replace(RECIPE, lr=4e-3 + 1e-3 * rank), dataset, folder / "never")
    except train.TrainingError as error:
        (folder / f"said-{rank}").write_text(str(error), encoding="utf-8")


def diverging(folder):
    """An image that only rank 1 works on is not a number: all ranks are told the same culprit."""
    model = vit("digits", depth=1)
    optimizer = optim.AdamW(model)
    images, labels = np.zeros((4, 8, 8, 1), np.float32), np.arange(4)
    with job().interrupt() as interrupt, job().shards(model, optimizer.flat, 2, 1, interrupt) as shards:
        model.head.weight.data[0, 0] = 3e38
        images[3] = 1e38
        loss, _ = shards.gradient(images, labels)
        words = shards.culprit(images, labels, 0.0, (0,))
    (folder / f"said-{job().rank}").write_text(f"{loss} {words}", encoding="utf-8")


def drifting(folder):
    """Rank 1's weights get out of step, as on another kind of processor; after the epoch they are rank 0's again."""
    rank = job().rank
    model = vit("digits", depth=1)
    if rank == 1:

        def drift():
            model.head.bias.data = model.head.bias.data + 1

        before_step(2, drift)
    fit(replace(RECIPE, epochs=1, ema=0.0), folder / "run", model=model)
    np.save(folder / f"bias-{rank}.npy", model.head.bias.data)


def failing(folder):
    """Rank 1 meets an error that rank 0 does not."""
    if job().rank == 1:
        before_step(7, lambda: open(folder / "missing" / "file"))
    fit(RECIPE, folder / "run")


def dying(folder):
    """Rank 1 is killed before step 7; a checkpoint is written after each step."""
    if job().rank == 1:
        before_step(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
    fit(RECIPE, folder / "run", save_every=0)


def terminated(folder):
    """Rank 1 gets SIGTERM before step 7; the rank's number of steps is its last word."""
    if job().rank == 1:
        before_step(7, lambda: signal.raise_signal(signal.SIGTERM))
    run = fit(RECIPE, folder / "run")
    (folder / f"said-{job().rank}").write_text(f"{run.interrupted}", encoding="utf-8")


if __name__ == "__main__":
    what, where = sys.argv[1:]
    globals()[what](Path(where))
