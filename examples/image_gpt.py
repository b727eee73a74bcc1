"""Image GPT on handwritten digits: learn to guess the next pixel, then see what that has taught.

    python examples/image_gpt.py [--seed 0] [--data digits] [--picture image-gpt.png]

"""

import argparse
import copy
import time

import numpy as np

import tinyvit as tv
from tinyvit.data import Palette
from tinyvit.models import (
    ImageGPT,
    ImageGPTClassifier,
    ImageGPTConfig,
    marginal_bits_per_pixel,
    next_pixel,
)
from tinyvit.train import classify, linear_probe, pretrain
from tinyvit.viz.figure import BLUE, ORANGE, WIDTH, Picture, save, styled

#                   side  levels  width depth heads MLP  dropout epochs batch lr   images
SETTINGS = {
    "digits": dict(size=None, levels=17, width=48, depth=3, heads=4, mlp=96, dropout=0.1, epochs=120, batch_size=64,
                   lr=4e-3, weight_decay=1.0, images=None),
    "mnist": dict(size=14, levels=8, width=64, depth=4, heads=4, mlp=128, dropout=0.0, epochs=6, batch_size=64,
                  lr=3e-3, weight_decay=0.1, images=5000),
}  # fmt: skip
LABELS = (100, None)  # how many labelled images a probe gets; None: all


def main(data="digits", seed=0, epochs=None, images=None, picture=None, threads=None):
    """Returns (bits per pixel, those of the histograms, {labels: (probe of the pixels, probes of the layers)})."""
    s = SETTINGS[data] | {name: value for name, value in dict(epochs=epochs, images=images).items() if value}
    dataset = tv.data.load(data, image_size=s["size"])
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    splits["train"] = splits["train"][: s["images"]]
    palette = Palette.grey(s["levels"])
    pixels = {name: palette.encode(split.images) for name, split in splits.items()}
    labels = {name: split.labels for name, split in splits.items()}

    # 1. Pre-train, without a label
    baseline = marginal_bits_per_pixel(pixels["train"], pixels["validation"], len(palette))
    h, w = pixels["train"].shape[1:]
    fields = {name: s[name] for name in ("width", "depth", "heads", "mlp", "dropout")}
    gpt = ImageGPT(ImageGPTConfig((h, w), len(palette), **fields), seed)
    start = time.perf_counter()
    pretrain(
        gpt, splits["train"], next_pixel, lambda images, _: (palette.encode(images),) * 2, seed=seed, threads=threads,
        epochs=s["epochs"], batch_size=s["batch_size"], lr=s["lr"], weight_decay=s["weight_decay"],
        validate=lambda model: model.bits_per_pixel(pixels["validation"][:1000]),
    )  # fmt: skip
    bits = gpt.bits_per_pixel(pixels["validation"])
    print(f"{gpt.parameter_count():,} parameters, {s['epochs']} epochs in {time.perf_counter() - start:.0f} s")
    print(f"bits per pixel, validation: {bits:.3f}; each pixel's own histogram {baseline:.3f}; {1 - bits / baseline:.1%} less")

    # 2. Probe each layer; the layer is chosen on validation, and only the chosen one sees the test images
    features = {name: gpt.features(x) for name, x in pixels.items()}
    curves = {}
    for count in LABELS:
        raw = probe({name: split.images.reshape(len(split), -1) for name, split in splits.items()}, labels, count)
        layers = [probe({name: f[i] for name, f in features.items()}, labels, count) for i in range(s["depth"] + 1)]
        best = max(range(len(layers)), key=lambda i: layers[i].validation_accuracy)
        curves[count or len(labels["train"])] = raw, layers
        print(f"linear probe on {count or len(labels['train']):,} labelled images, validation: pixels "
              f"{raw.validation_accuracy:.2%}, layers 0 to {s['depth']}: "
              + ", ".join(f"{p.validation_accuracy:.2%}" for p in layers))  # fmt: skip
        print(f"    test: pixels {raw.test_accuracy:.2%}, layer {best} {layers[best].test_accuracy:.2%}")

    # 3. Fine-tune on the labels, and the same network from scratch
    for name, body in (("fine-tuned", copy.deepcopy(gpt)), ("from scratch", ImageGPT(gpt.config, seed))):
        accuracy = finetune(body, palette, splits, pixels, seed, max(1, s["epochs"] // 4), threads)
        print(f"{name}: test {accuracy:.2%}")
    if picture:
        save(draw(gpt, palette, pixels["test"], curves), picture)
    return bits, baseline, curves


def probe(features, labels, count):
    """A linear probe on the first `count` training images."""
    few = slice(count)
    return linear_probe(
        (features["train"][few], labels["train"][few]),
        (features["validation"], labels["validation"]),
        (features["test"], labels["test"]),
    )


def finetune(gpt, palette, splits, pixels, seed, epochs, threads):
    """Train all of it on the labels; the epoch is chosen on validation. Returns the test accuracy."""
    model = ImageGPTClassifier(gpt, classes=10)

    def accuracy(name):
        return (model.predict(pixels[name]).argmax(axis=1) == splits[name].labels).mean()

    pretrain(
        model, splits["train"], classify, lambda images, labels: (palette.encode(images), labels), seed=seed,
        epochs=epochs, lr=1e-3, weight_decay=1.0, threads=threads, validate=lambda model: 1 - accuracy("validation"),
    )  # fmt: skip
    return accuracy("test")


@styled
def draw(gpt, palette, pixels, curves, columns=10):
    """Samples; completions of upper halves beside the truth; the probe by layer."""
    rng = np.random.default_rng(0)
    upper = pixels[:columns, : pixels.shape[1] // 2]
    hidden = np.full_like(pixels[:columns, pixels.shape[1] // 2 :], len(palette) // 3)
    rows = {f"sample {i + 1}": gpt.sample(columns, rng) for i in range(3)}
    rows |= {"truth": pixels[:columns], "given": np.concatenate([upper, hidden], axis=1)}
    rows |= {f"completed {i + 1}": gpt.complete(upper, rng) for i in range(3)}
    figure = Picture(figsize=(WIDTH, 7.4))
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.9, 2.5))
    top.suptitle("Image GPT: drawn pixel by pixel, and completed from a given upper half")
    for i, (name, row) in enumerate(rows.items()):
        for j, image in enumerate(palette.decode(row)):
            axes = top.add_subplot(len(rows), columns, i * columns + j + 1)
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
            if j == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes = bottom.add_subplot()
    for (count, (raw, layers)), colour in zip(curves.items(), (ORANGE, BLUE), strict=True):
        axes.plot([100 * p.validation_accuracy for p in layers], "o-", color=colour, label=f"{count:,} labels")
        axes.axhline(100 * raw.validation_accuracy, color=colour, linestyle=":", label=f"raw pixels, {count:,} labels")
    axes.set(xlabel="layer", ylabel="accuracy on validation, %", xticks=range(len(layers)), title="Linear probe by layer")
    axes.legend()
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--picture")
    parser.add_argument("--threads", type=int)
    main(**vars(parser.parse_args()))
