"""Images with what the model makes of them: where it has its information from, and where it is wrong.

Paper figure 6 for the attention.
"""

from textwrap import wrap

import matplotlib
import numpy as np

from tinyvit.viz.figure import WIDTH, Picture, message, styled


def overlay(image, map):
    """One image with the attention laid over it: (H, W, 3) uint8, enlarged to about 256 pixels.

    Args:
        image: (h, w, C) uint8, C = 1 or 3.
        map: (rows, cols), not negative; its largest entry becomes the brightest, 0 the darkest colour.

    Neither is smoothed: a patch is the smallest thing that attention can point at.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3) or map.ndim != 2:
        raise ValueError(
            f"overlay needs an image (h, w, 1 or 3) and a map (rows, cols), got {image.shape} and {map.shape}"
        )
    factor = max(1, round(256 / max(image.shape[:2])))
    pixels = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(factor, axis=0).repeat(factor, axis=1)
    H, W, _ = pixels.shape
    rows, cols = map.shape
    patches = map[np.arange(H) * rows // H][:, np.arange(W) * cols // W]
    colours = matplotlib.colormaps["viridis"](patches / max(map.max(), 1e-30))[..., :3]
    return np.round(0.35 * pixels + 0.65 * 255 * colours).astype(np.uint8)


@styled
def attention(images, maps, titles=None):
    """Images, and below each the same with the attention laid over it.

    Args:
        images: (B, h, w, C) uint8.
        maps: (B, rows, cols), from `interpret.class_attention`.
        titles: a caption for each image; " · " in it is a line break.
    """
    titles = [""] * len(images) if titles is None else titles
    if not len(images) == len(maps) == len(titles) or not len(images):
        raise ValueError(
            f"attention needs a map and a title for each image, got {len(images)} images, {len(maps)} maps, "
            f"{len(titles)} titles"
        )
    about = "yellow: where the model has its information from (attention rollout)"
    figure, cells = _image_grid(images, [title.split(" · ") for title in titles], 5, about, panels=2)
    for axes, image, map in zip(cells, images, maps, strict=True):
        axes[1].imshow(overlay(image, map))
    return figure


@styled
def mistakes(images, labels, probabilities, classes, most=24):
    """The wrongly classified images of which the model was surest, with what it said.

    Args:
        images: (M, h, w, C) uint8. labels: (M,) integers. probabilities: (M, classes). classes: their names.
        most: how many to show at most.
    """
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    if not len(wrong):
        return message(f"no mistakes among {len(labels):,} images")
    shown = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    said = [f"said {classes[predicted[i]]} ({100 * sure[i]:.0f} %)" for i in shown]
    captions = [(f"true {classes[labels[i]]}", words) for i, words in zip(shown, said, strict=True)]
    about = f"{len(wrong):,} of {len(labels):,} images wrong ({100 * len(wrong) / len(labels):.1f} %)"
    about += f"; the {len(shown)} surest" * (len(shown) < len(wrong))
    return _image_grid(images[shown], captions, 6, about)[0]


def _image_grid(images, captions, columns, title, panels=1):
    """A titled figure with a cell for each image: a caption, the image, and below it `panels` - 1 axes more.

    Returns (figure, axes (B, panels)). A caption is a list of lines. Laid out by hand, in inches from the top
    left, so that captions stand close to their images in any number of rows.
    """
    B, h, w, C = images.shape
    columns = min(B, columns)
    gap, line = 0.06, 8 * 1.3 / 72  # a line of 8 pt
    width = min((WIDTH - gap) / columns - gap, 1.6)
    height = width * h / w
    captions = [_wrapped(lines, width + gap) for lines in captions]
    head = line * max(caption.count("\n") + 1 for caption in captions)
    band = head + panels * (height + gap) + 0.08
    total = 0.3 + -(-B // columns) * band
    left = (WIDTH - columns * (width + gap) + gap) / 2
    figure = Picture(figsize=(WIDTH, total), layout="none")
    figure.suptitle(title, y=1 - 0.08 / total)
    cells = np.empty((B, panels), object)
    for (b, panel), _ in np.ndenumerate(cells):
        x = left + b % columns * (width + gap)
        y = 0.3 + b // columns * band + head + panel * (height + gap)
        axes = figure.add_axes((x / WIDTH, 1 - (y + height) / total, width / WIDTH, height / total))
        axes.set_axis_off()
        cells[b, panel] = axes
    for (axes, *_), image, caption in zip(cells, images, captions, strict=True):
        axes.imshow(image[..., 0] if C == 1 else image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, pad=3.5)
    return figure, cells


def _wrapped(lines, inches):
    """Lines broken so that 8 pt letters fit, about 16 an inch; a number stays with its %."""
    return "\n".join("\n".join(wrap(line.replace(" %", "\u00a0%"), int(16 * inches))) for line in lines)
