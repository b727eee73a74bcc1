"""tinyvit as a contender: what `tinyvit train` does in each step, and `model.predict`.

A contender is a function (config, threads) -> {name: step}. A step takes nothing, does its work on one fixed batch and
returns numbers that must be finite (or the times of its parts, if it clocks itself). It is built and called in a
process of its own (`worker.py`).
"""

from tinyvit.bench.shapes import BATCH, SHARDS, batch, many
from tinyvit.models import ViT
from tinyvit.optim import AdamW
from tinyvit.train import Shards


def training(config, threads):
    """Forward, backward and AdamW."""
    model = ViT(config)
    optimizer = AdamW(model)
    shards = Shards(model, optimizer.flat, max(SHARDS, threads), threads)
    images, labels = batch(config, BATCH)

    def step():
        loss, _ = shards.gradient(images, labels)
        optimizer.step()
        return loss

    return {"step": step}


def prediction(config, threads):
    """Class probabilities of one image, and of many at once."""
    model = ViT(config).eval()
    images, _ = batch(config, many(config))
    return {"one": lambda: model.predict(images[:1]), "many": lambda: model.predict(images, threads=threads)}
