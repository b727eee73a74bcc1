"""Masked patch prediction, the paper's own self-supervision: hide half of a digit and ask for the colours.

    python examples/masked_patches.py [--seeds 3] [--data digits]

"""

import argparse
import copy
import time

import numpy as np

import tinyvit as tv
from tinyvit.data import AUGMENTS, normalise
from tinyvit.models import MaskedPatches, masked_colours, mean_colours
from tinyvit.nn import evaluating
from tinyvit.train import linear_probe, pretrain

#                preset  epochs, training images (None: all)
SETTINGS = {
    "digits": dict(preset="digits", epochs=150, batch_size=64, lr=2e-3, images=None),
    "mnist": dict(preset="mnist", epochs=10, batch_size=128, lr=2e-3, images=10_000),
}
LABELS = (100, None)  # how many labelled images a probe gets; None: all


def main(data="digits", seeds=3, epochs=None, images=None, threads=None):
    """Returns {(labels, which model, which tokens): mean test accuracy}."""
    s = SETTINGS[data] | {name: value for name, value in dict(epochs=epochs, images=images).items() if value}
    dataset = tv.data.load(data)
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    splits["train"] = splits["train"][: s["images"]]
    results = []
    for seed in range(seeds):
        fresh = tv.vit(s["preset"], seed)
        vit, start = copy.deepcopy(fresh), time.perf_counter()
        history = learn(vit, dataset, splits["train"], s, seed, threads)
        common = np.bincount(mean_colours(splits["train"].images, vit.config.patch).ravel()).max()
        common /= splits["train"].images[..., 0].size / vit.config.patch**2
        print(f"seed {seed}: {s['epochs']} epochs in {time.perf_counter() - start:.0f} s; of the hidden colours "
              f"{history[-1]['accuracy']:.1%} right, always guessing the commonest {common:.1%}")  # fmt: skip
        results.append({})
        for count in LABELS:
            for name, model in (("random", fresh), ("pre-trained", vit)):
                read = {split: features(model, part.images, dataset) for split, part in splits.items()}
                for tokens in read["train"]:
                    results[-1][count, name, tokens] = probe({k: v[tokens] for k, v in read.items()}, splits, count)
            pixels = {split: part.images.reshape(len(part), -1) for split, part in splits.items()}
            results[-1][count, "raw pixels", ""] = probe(pixels, splits, count)
    for key in results[0]:
        accuracies = 100 * np.array([result[key].test_accuracy for result in results])
        count, *name = key
        print(f"{count or len(splits['train']):6,} labels  {' '.join(name):36} test {accuracies.mean():.2f} ± "
              f"{accuracies.std():.2f} %")  # fmt: skip
    return {key: np.mean([result[key].test_accuracy for result in results]) for key in results[0]}


def learn(vit, dataset, split, s, seed, threads):
    """Pre-train `vit` in place, without a label."""

    def prepare(images, _):
        return normalise(images, dataset.mean, dataset.std), mean_colours(images, vit.config.patch)

    return pretrain(
        MaskedPatches(vit, seed), split, masked_colours, prepare, epochs=s["epochs"], batch_size=s["batch_size"],
        lr=s["lr"], augment=AUGMENTS[dataset.name], seed=seed, threads=threads,
    )  # fmt: skip


def features(vit, images, dataset):
    """What a frozen ViT says of uint8 images: its class token, and the mean of its patch tokens, (M, D) each."""
    tokens = []
    with tv.no_grad(), evaluating():
        for i in range(0, len(images), 64):
            x = normalise(images[i : i + 64], dataset.mean, dataset.std)
            tokens.append(vit.encode(vit.embedding(vit.checked(x))).data)
    tokens = np.concatenate(tokens)
    return {"class token": tokens[:, 0], "mean of patches": tokens[:, vit.config.prefix :].mean(axis=1)}


def probe(features, splits, count):
    """A linear probe on the first `count` training images, its strength chosen on validation."""
    few = slice(count)
    return linear_probe(
        (features["train"][few], splits["train"].labels[few]),
        (features["validation"], splits["validation"].labels),
        (features["test"], splits["test"].labels),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--threads", type=int)
    main(**vars(parser.parse_args()))
