"""Pictures of a run: how it learned, what it looks at, where it errs, and the graph that the engine recorded.

Every function takes arrays and returns a matplotlib Figure. None touches pyplot or your settings: they work
without a display, and in a notebook a figure on the last line of a cell shows itself. `save` writes it as PNG.
Colours stay apart for colour-blind readers: blue and orange by Okabe and Ito, one hue that darkens, or viridis.

Paper figure 6 for the attention.
"""

import functools
import io
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from matplotlib.style import context
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator

from tinyvit.train.checkpoint import write_atomically

BLUE, ORANGE, INK, GREY, FAINT = "#0072B2", "#E69F00", "#222222", "#767676", "#E4E4E4"
WIDTH = 6.0  # inches: 8 pt stay legible where a page shows the figure 600 pixels wide
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "figure.titlesize": 9, "figure.titleweight": "bold", "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a class may be called "$"
}  # fmt: skip


def styled(draw):
    """Run `draw` under matplotlib's defaults and STYLE, whatever the user has set, and put that back."""

    @functools.wraps(draw)
    def wrapper(*arguments, **options):
        with context(["default", STYLE]):
            return draw(*arguments, **options)

    return wrapper


class Picture(Figure):
    """A Figure that a notebook shows without pyplot, in our style also where ticks are made at the last moment."""

    draw = styled(Figure.draw)

    def _repr_png_(self):
        return png(self)


def png(figure):
    """The figure as PNG bytes, 150 pixels an inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def save(figure, path):
    """Write the figure to `path` as PNG, whole or not at all. Raises OSError where that cannot be written."""
    write_atomically(path, png(figure))


# ----------------------------------------------------------------------------------------------- training


@styled
def curves(history):
    """Loss, accuracy and learning rate over the epochs of a run.

    Args:
        history: a dict for each epoch, as `train.fit` returns and metrics.jsonl holds: epoch, loss, accuracy,
            validation_loss, validation_accuracy (in [0, 1]), lr.

    The accuracy axis is logarithmic in the errors: 98 to 99 % is as far as 80 to 90 %.
    """
    figure = Picture(figsize=(WIDTH, 6.2))
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    epochs = [row["epoch"] for row in history]

    def draw(axes, name, scale=1):
        mark = dict(marker="o", markersize=3) if len(history) < 20 else {}
        values = {key: [scale * row[key] for row in history] for key in (name, f"validation_{name}")}
        axes.plot(epochs, values[name], color=ORANGE, label="training, mean over the epoch", **mark)
        axes.plot(epochs, values[f"validation_{name}"], color=BLUE, label="validation, after it", **mark)
        return values[name] + values[f"validation_{name}"]

    draw(loss, "loss")
    loss.set(ylabel="loss (cross-entropy)")
    loss.set_ylim(bottom=0)
    loss.legend()
    _percent_axis(accuracy, draw(accuracy, "accuracy", 100))
    accuracy.set(ylabel="accuracy (%), by log of errors")
    rate.plot(epochs, [row["lr"] for row in history], color=GREY)
    rate.set(ylabel="learning\nrate", xlabel="epoch", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.align_ylabels()
    if history:
        figure.suptitle(
            f"validation accuracy {100 * history[-1]['validation_accuracy']:.2f} % after epoch {epochs[-1]}"
        )
    else:
        figure.suptitle("no epoch is finished yet")
        for axes in (loss, accuracy, rate):
            axes.set(xlim=(0, 1), xticks=[], yticks=[])
    return figure


def _percent_axis(axes, values):
    """A y-axis for percentages that stretches towards 100, with round ticks where there is room."""

    def stretch(percent):
        return -np.log(np.maximum(100.3 - np.asarray(percent, float), 1e-6))  # 100 itself stays on the axis

    axes.set_yscale("function", functions=(stretch, lambda s: 100.3 - np.exp(-s)))
    low, high = stretch(min(values, default=0)), stretch(max(values, default=100))
    pad = max(0.06 * (high - low), 0.2)
    low, high = low - pad, min(high + pad, stretch(100.05))
    axes.set_ylim(100.3 - np.exp(-low), 100.3 - np.exp(-high))
    ticks, last = [], np.inf
    for tick in (100, 99.8, 99.5, 99, 98, 95, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0):
        if low <= stretch(tick) <= high and last - stretch(tick) > (high - low) / 12:
            ticks, last = [*ticks, tick], stretch(tick)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


# ----------------------------------------------------------------------------------------------- images


def overlay(image, map):
    """One image with the attention laid over it: (H, W, 3) uint8, enlarged to about 256 pixels.

    Args:
        image: (h, w, C) uint8, C = 1 or 3.
        map: (rows, cols), not negative; its largest entry becomes the brightest, 0 the darkest colour.

    Neither is smoothed: a patch is the smallest thing that attention can point at.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3) or map.ndim != 2:
        raise ValueError(f"overlay needs an image (h, w, 1 or 3) and a map (rows, cols), got {image.shape}, {map.shape}")
    factor = max(1, round(256 / max(image.shape[:2])))
    pixels = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(factor, axis=0).repeat(factor, axis=1)
    H, W, _ = pixels.shape
    rows, cols = map.shape
    patches = map[np.arange(H) * rows // H][:, np.arange(W) * cols // W]
    colours = matplotlib.colormaps["viridis"](patches / max(map.max(), 1e-30))[..., :3]
    return np.round(0.45 * pixels + 0.55 * 255 * colours).astype(np.uint8)


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
    figure, cells = _image_grid(images, [title.split(" · ") for title in titles], columns=5, panels=2)
    for axes, image, map in zip(cells, images, maps, strict=True):
        axes[1].imshow(overlay(image, map))
    figure.suptitle("bright: where the class token takes its information from (attention rollout)")
    return figure


@styled
def mistakes(images, labels, probabilities, classes, most=24):
    """The wrongly classified images of which the model was surest, with what it said.

    Args:
        images: (M, h, w, C) uint8. labels: (M,) integers. probabilities: (M, K). classes: K names.
        most: how many to show at most.
    """
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    if not len(wrong):
        figure = Picture(figsize=(WIDTH, 1))
        figure.suptitle(f"no mistakes among {len(labels):,} images", y=0.5, verticalalignment="center")
        return figure
    shown = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    captions = [(f"true {classes[labels[i]]}", f"said {classes[predicted[i]]} ({100 * sure[i]:.0f} %)") for i in shown]
    figure, _ = _image_grid(images[shown], captions, columns=6)
    which = "" if len(shown) == 1 else "; the surest first" if len(shown) == len(wrong) else f"; the {most} surest"
    figure.suptitle(f"{len(wrong):,} of {len(labels):,} images wrong ({100 * len(wrong) / len(labels):.2g} %){which}")
    return figure


def _image_grid(images, captions, columns, panels=1):
    """A figure with a cell for each image, `panels` axes below one another, the image on the first.

    Returns (figure, axes (B, panels)). A caption is a list of lines.
    """
    B, h, w, C = images.shape
    columns = min(B, columns)
    bands = -(-B // columns)
    cell = min(WIDTH / columns, 1.6)
    captions = [_wrapped(lines, cell) for lines in captions]
    line = 8 * 1.2 / 72  # inches of an 8 pt line
    band = panels * (cell * h / w + 0.04) + line * max(caption.count("\n") + 1 for caption in captions) + 0.1
    figure = Picture(figsize=(WIDTH, bands * band + 0.35))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, hspace=0, wspace=0)
    axes = figure.subplots(bands * panels, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    cells = axes.reshape(bands, panels, columns).transpose(0, 2, 1).reshape(-1, panels)
    for ax in cells[B:].flat:
        ax.remove()
    for (ax, *_), image, caption in zip(cells, images, captions, strict=False):
        ax.imshow(image[..., 0] if C == 1 else image, cmap="gray", vmin=0, vmax=255)
        ax.set_title(caption, pad=3)
    return figure, cells[:B]


def _wrapped(lines, inches):
    """Lines broken so that 8 pt letters fit, about 16 an inch; a number stays with its %."""
    return "\n".join("\n".join(wrap(line.replace(" %", "\u00a0%"), int(16 * inches))) for line in lines)


@styled
def confusion(counts, classes):
    """What was taken for what: counts (C, C) from `interpret.confusion`, and the names of the C classes.

    Only the errors are coloured, else the diagonal would outshine them all.
    """
    C = len(classes)
    if np.shape(counts) != (C, C):
        raise ValueError(f"confusion needs counts ({C}, {C}) for {C} classes, got {np.shape(counts)}")
    errors = np.where(np.eye(C, dtype=bool), 0, counts)
    figure = Picture(figsize=(WIDTH, WIDTH))
    axes = figure.subplots()
    axes.grid(False)
    axes.imshow(errors, cmap="Blues", vmin=0, vmax=max(errors.max() / 0.8, 1))
    every = range(0, C, -(-C // 40))  # more names would not fit
    names = [classes[k] for k in every]
    axes.set_xticks(every, names, rotation=90 if max(map(len, names)) > 3 or C > 20 else 0)
    axes.set_yticks(every, names)
    axes.set(xlabel="predicted class", ylabel="true class")
    for i, j in zip(*np.nonzero(counts), strict=True) if C <= 20 else ():
        colour = GREY if i == j else "white" if errors[i, j] > 0.5 * errors.max() else INK
        axes.text(j, i, f"{counts[i, j]}", color=colour, ha="center", va="center")
    figure.suptitle(f"{errors.sum():,} of {np.sum(counts):,} wrong; the darker, the more often")
    return figure


# ----------------------------------------------------------------------------------------------- the graph


@styled
def draw_tape(tape, most=60):
    """The recorded graph: a box for each op under the boxes that it reads; what is read at the top.

    Args:
        tape: from `tensor.trace()`. Of a tape longer than `most`, the last `most` rows are drawn.

    An op's layer is its longest path from the leaves; a leaf stands right above its first reader. Darker boxes
    remember more for their pullback. Six inches wide, more where a layer needs it.
    """
    rows = tape.rows[-most:]
    boxes, layers, links = _layered(rows)
    widths = {b: 0.16 if row is None else _width(row) for b, row in boxes.items()}
    x = _positions(boxes, layers, links, widths)
