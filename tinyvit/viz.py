"""Pictures of a run: how it learned, what it looks at, where it errs, and the graph that the engine recorded.

Every function takes arrays and returns a matplotlib Figure. None touches pyplot or your settings: they work
without a display, and in a notebook a figure on the last line of a cell shows itself. `save` writes a PNG.
Colours stay apart for colour-blind readers: blue and orange (Okabe and Ito), a hue that darkens, or viridis.

Paper figure 6 for the attention.
"""

import functools
import io
from dataclasses import dataclass, field
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from matplotlib.style import context
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

from tinyvit.tape import Row
from tinyvit.train.checkpoint import write_atomically

BLUE, ORANGE, INK, GREY, FAINT = "#0072B2", "#E69F00", "#222222", "#666666", "#E4E4E4"
WIDTH = 6.0  # inches: 8 pt stay legible where a page shows the figure 600 pixels wide
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "figure.titlesize": 9, "figure.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.08,
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
    """A Figure that a notebook shows without pyplot. Drawing makes the ticks, so that is styled too."""

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
    if not history:
        return _message("no epoch is finished yet")
    figure = Picture(figsize=(WIDTH, 6.2))
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    mark = dict(marker="o", markersize=3) if len(history) < 20 else {}  # one epoch alone makes no line
    epochs = [row["epoch"] for row in history]

    def draw(axes, name, colour, label=None, scale=1):
        values = [scale * row[name] for row in history]
        axes.plot(epochs, values, color=colour, label=label, **mark)
        return values

    values = draw(loss, "loss", ORANGE, "training, mean over the epoch")
    values += draw(loss, "validation_loss", BLUE, "validation, after the epoch")
    loss.set(ylabel="loss (cross-entropy)", ylim=(0, 1.05 * max(values)))
    loss.legend()
    values = draw(accuracy, "accuracy", ORANGE, scale=100)
    values += draw(accuracy, "validation_accuracy", BLUE, scale=100)
    _percent_axis(accuracy, values)
    accuracy.set(ylabel="accuracy (%), errors on a log scale")
    rate.set(ylabel="learning\nrate", xlabel="epoch", ylim=(0, 1.1 * max(draw(rate, "lr", GREY)) or 1))
    rate.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    figure.align_ylabels()
    last = 100 * history[-1]["validation_accuracy"]
    figure.suptitle(f"validation accuracy {last:.2f} % after epoch {epochs[-1]}")
    return figure


def _percent_axis(axes, values):
    """A y-axis for percentages that stretches towards 100, with round ticks where there is room."""

    def stretch(percent):
        return -np.log(np.maximum(100.3 - np.asarray(percent, float), 1e-6))  # 100 itself stays on the axis

    axes.set_yscale("function", functions=(stretch, lambda s: 100.3 - np.exp(-s)))
    low, high = stretch(min(values)), stretch(max(values))
    pad = max(0.06 * (high - low), 0.2)
    low, high = low - pad, min(high + pad, stretch(100.05))
    axes.set_ylim(100.3 - np.exp(-low), 100.3 - np.exp(-high))
    ticks, last = [], np.inf
    for tick in (100, 99.8, 99.5, 99, 98, 95, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0):
        if low <= stretch(tick) <= high and last - stretch(tick) > (high - low) / 12:
            ticks, last = [*ticks, tick], stretch(tick)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _message(text):
    figure = Picture(figsize=(WIDTH, 1))
    figure.suptitle(text, y=0.5, verticalalignment="center")
    return figure


# ----------------------------------------------------------------------------------------------- images


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
    about = "yellow: where the class token takes its information from (attention rollout)"
    figure, cells = _image_grid(images, [title.split(" · ") for title in titles], 5, about, panels=2)
    for axes, image, map in zip(cells, images, maps, strict=True):
        axes[1].imshow(overlay(image, map))
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
        return _message(f"no mistakes among {len(labels):,} images")
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
    axes.set(aspect="equal", xlim=(-0.5, C - 0.5), ylim=(C - 0.5, -0.5))
    axes.grid(False)
    most = max(errors.max(), 1)
    axes.imshow(np.ma.masked_equal(errors, 0), cmap="Blues", vmin=-0.2 * most, vmax=1.2 * most)
    every = range(0, C, -(-C // 40))  # more names would not fit
    names = [classes[k] for k in every]
    axes.set_xticks(every, names, rotation=90 if max(map(len, names)) > 3 or C > 20 else 0)
    axes.set_yticks(every, names)
    axes.set(xlabel="predicted class", ylabel="true class")
    if C <= 20:  # then a number fits into its cell
        for ticks in (axes.set_xticks, axes.set_yticks):
            ticks(np.arange(C - 1) + 0.5, minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="minor", length=0)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = GREY if i == j else "white" if errors[i, j] > 0.6 * most else INK
            axes.text(j, i, f"{counts[i, j]}", color=colour, ha="center", va="center")
    figure.suptitle(f"{errors.sum():,} of {np.sum(counts):,} wrong; the darker, the more often")
    return figure


# ----------------------------------------------------------------------------------------------- the graph


PITCH, TOP = 0.6, 0.65  # inches: from layer to layer, and for the title


@styled
def draw_tape(tape, most=60):
    """The recorded graph: each op a box, under the boxes that it reads. `backward` climbs it from the bottom.

    Args:
        tape: from `tensor.trace()`. Of a tape longer than `most` rows the last `most` are drawn.

    An op's layer is its longest path from the leaves; a leaf stands right above its first reader. The arrows
    arrive in the order of the arguments. Six inches wide, more where a layer needs it.
    """
    rows = tape.rows[-most:]
    items = _layered(rows)
    depth = 1 + max(item.layer for item in items)
    width, height = max(WIDTH, _place(items, depth) + 0.2), TOP + PITCH * depth
    figure = Picture(figsize=(width, height), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-width / 2, width / 2), ylim=(height, 0))  # in inches
    axes.set_axis_off()
    some = f"{len(rows)} rows"
    if len(rows) < len(tape.rows):
        some = f"too long to draw whole: the last {len(rows)} of {len(tape.rows)} rows"
    figure.suptitle(f"{some}, remembering {_bytes(sum(row.remembered for row in rows))}", y=1 - 0.08 / height)
    about = "darker: remembers more for the backward pass · grey: a parameter or an input"
    axes.text(0, 0.38, about, ha="center", va="center")
    largest = max(1, max(row.remembered for row in rows))
    for item in items:
        if item.row is not None:
            _draw_box(axes, item, item.row.remembered / largest)
            for link in item.inputs:
                _draw_edge(axes, item, *link)
    return figure


@dataclass(eq=False)
class _Item:
    """A box of the graph; or, with row None, a bend: where a long edge passes between the boxes of a layer.

    A port says where an arrow arrives: in inches from the reader's centre.
    """

    row: Row | None
    layer: int
    width: float = 0.12  # inches
    x: float = 0.0  # of the centre
    inputs: list = field(default_factory=list)  # (item in the layer above, port)
    readers: list = field(default_factory=list)  # (item in the layer below, port)

    @property
    def leaf(self):
        return self.row is not None and self.row.op == "leaf"

    @property
    def weight(self):
        """How strongly it pulls: a parameter makes way for the ops, which then stand in a column."""
        return 0.02 if self.leaf else 1.0

    @property
    def top(self):
        return TOP + PITCH * self.layer + (0.04 if self.leaf else 0.0)

    @property
    def bottom(self):
        return TOP + PITCH * self.layer + (0.35 if self.leaf else 0.38)


def _layered(rows):
    """The items of the graph, linked layer by layer: an edge that skips layers gets a bend in each."""
    layer = {}
    for row in rows:  # inputs come before results
        if row.op != "leaf":
            layer[row.number] = 1 + max((layer[i] for i in row.inputs if i in layer), default=0)
    for row in rows:
        if row.op == "leaf":
            layer[row.number] = min((layer[r.number] for r in rows if row.number in r.inputs), default=1) - 1
    boxes = {r.number: _Item(r, layer[r.number], 0.16 + max(map(_inches, _lines(r)))) for r in rows}
    items = list(boxes.values())
    for item in boxes.values():
        inputs = [boxes[i] for i in item.row.inputs if i in boxes]
        for k, above in enumerate(inputs):
            for between in range(above.layer + 1, item.layer):
                bend = _Item(None, between)
                _link(above, bend, 0.0)
                items.append(bend)
                above = bend
            _link(above, item, (k - (len(inputs) - 1) / 2) * min(0.3, item.width / (len(inputs) + 1)))
    return items


def _link(above, item, port):
    item.inputs.append((above, port))
    above.readers.append((item, port))


def _place(items, depth):
    """Set every item's x, centred about 0, so that edges are short and nothing overlaps; returns the width.

    Each item wishes to stand amid its neighbours. Layer by layer, downwards and upwards in turn, they are
    sorted by that wish, and moved no more than is needed to keep apart. Source: Sugiyama et al. 1981, the
    barycentre method.
    """
    layers = [[item for item in items if item.layer == layer] for layer in range(depth)]
    for sweep in range(24):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wishes = []
            for item in layer:
                lean = 1 if item.leaf else 0.1  # an op just so much towards its port that the order is right
                above = [(other.x, other.weight) for other, _ in item.inputs]
                below = [(other.x + lean * port, other.weight) for other, port in item.readers]
                near = above + below if sweep >= 20 else above if down and above else below
                total = sum(weight for _, weight in near)
                wishes.append(sum(x * weight for x, weight in near) / total if near else item.x)
            _spread(layer, np.array(wishes))
    left = min(item.x - item.width / 2 for item in items)
    right = max(item.x + item.width / 2 for item in items)
    for item in items:
        item.x -= (left + right) / 2
    return right - left


def _spread(layer, wishes, gap=0.12):
    """Place a layer's items in the order of their wishes, side by side, as near to the wishes as can be.

    Measured from where each would stand if all were packed, "no overlap" reads "not decreasing"; the nearest
    such sequence, in weighted squares, is the isotonic regression of the wishes.
    """
    order = np.argsort(wishes, kind="stable")
    items = [layer[i] for i in order]
    packed = np.cumsum([item.width + gap for item in items]) - [item.width / 2 for item in items]
    nearest = isotonic_regression(wishes[order] - packed, weights=[item.weight for item in items])
    for item, x in zip(items, nearest.x + packed, strict=True):
        item.x = float(x)


def _draw_box(axes, item, share):
    """`share` in [0, 1]: of the bytes that the largest op remembers."""
    face = "#F4F4F4" if item.leaf else matplotlib.colormaps["Blues"](0.08 + 0.62 * share)
    box = FancyBboxPatch(
        (item.x - item.width / 2, item.top), item.width, item.bottom - item.top, linewidth=0.8, zorder=2,
        boxstyle="round,pad=0,rounding_size=0.06", facecolor=face, edgecolor=GREY if item.leaf else BLUE,
    )  # fmt: skip
    axes.add_patch(box)
    colour = GREY if item.leaf else "white" if share > 0.75 else INK
    middle = (item.top + item.bottom) / 2
    text = "\n".join(_lines(item.row))
    axes.text(item.x, middle, text, color=colour, ha="center", va="center", linespacing=1.1, zorder=3)


def _draw_edge(axes, item, above, port):
    """From the item's port up to the next box: curved between layers, straight through a bend within one."""
    points, codes = [(item.x + port, item.top)], [Curve.MOVETO]
    while True:
        x, y = points[-1]
        middle = (y + above.bottom) / 2
        points += [(x, middle), (above.x, middle), (above.x, above.bottom)]
        codes += [Curve.CURVE4] * 3
        if above.row is not None:
            break
        points.append((above.x, above.top))
        codes.append(Curve.LINETO)
        above = above.inputs[0][0]
    arrow = FancyArrowPatch(
        path=Curve(points, codes), arrowstyle="<|-,head_length=3.5,head_width=1.8", mutation_scale=1,
        color=GREY, linewidth=0.8, zorder=1, shrinkA=0, shrinkB=0,
    )  # fmt: skip
    axes.add_patch(arrow)


def _lines(row):
    """What stands in a row's box: its number with op or name, then shape and memory."""
    title = f"{row.number} {row.name or row.op}" + " (const)" * (-1 in row.inputs)
    shape = "×".join(map(str, row.shape)) or "scalar"
    return title, f"{shape} · {_bytes(row.remembered)}" if row.remembered else shape


def _bytes(count):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _inches(text):
    """How wide 8 pt text is."""
    return TextPath((0, 0), text, size=8).vertices[:, 0].max() / 72
