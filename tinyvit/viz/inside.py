"""What a ViT has learned and how it reads: filters, positions, distances, heads. Paper figures 6 and 7.

The arrays of each figure come from the function of `interpret.py` that it names. `inside` is the paper's figure 7:
three of them side by side.

Chapter of the course: notebooks/08-what-a-vit-sees.ipynb.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from tinyvit.viz.figure import BLUE, GREY, WIDTH, Picture, styled
from tinyvit.viz.images import overlay

MOST_FILTERS = 28  # as many as the paper shows


@styled
def filters(filters, shares):
    """The patterns that the patch embedding tells apart, the strongest first, at most 28.

    Args:
        filters: (K, P, P, C), C = 1 or 3; shares: (K,). From `interpret.embedding_filters`.

    Zero is white; in colour, mid-grey. Each pattern has its own scale.
    """
    pictures = _filter_pictures(filters)
    cell, label = 0.8, 0.17
    columns = min(len(pictures), 7)
    place, figure = _grid(-(-len(pictures) // columns), columns, cell, cell, label, left=0)
    known = f"{len(pictures)} of the {len(filters)}" if len(pictures) < len(filters) else f"the {len(filters)}"
    _headline(
        figure,
        "patterns that the patch embedding tells apart",
        f"{known} principal components of its filters, with their shares of the variance; "
        + ("0 is grey" if filters.shape[3] == 3 else "+ orange, - purple"),
    )
    for k, picture in enumerate(pictures):
        axes = place(*divmod(k, columns))
        axes.imshow(picture)
        axes.set_title(f"{100 * shares[k]:.0f} %", pad=2)
    return figure


@styled
def positions(similarity):
    """How alike the position embeddings of any two patches are: a map for each patch, at its place in the image.

    Args:
        similarity: (rows, cols, rows, cols) in [-1, 1], from `interpret.position_similarity`.
    """
    rows, cols = similarity.shape[:2]
    width = WIDTH - 1.5
    height = min(width * rows / cols, 8)
    figure = Picture(figsize=(WIDTH, height + 1.2), layout="none")
    _headline(
        figure,
        "which places in the image are alike to the model",
        "a tile for each patch, at its place: how alike its position embedding is to those of all patches",
    )
    axes = _in_inches(figure, 0.6, 0.65, width, height)
    _draw_positions(axes, similarity)
    axes.set_xticks(*_middles(cols))
    axes.set_yticks(*_middles(rows))
    bar = _in_inches(figure, 0.6 + width + 0.15, 0.65, 0.12, height)
    _draw_scale(figure, bar, "cosine similarity of position embeddings")
    return figure


@styled
def attention_distance(distances, even):
    """How far each head looks, layer by layer: one dot a head.

    Args:
        distances: (L, H) in pixels, from `interpret.attention_distance`.
        even: the mean distance of attention that is spread evenly, `interpret.patch_distances(config).mean()`.
    """
    figure = Picture(figsize=(WIDTH, 3.6), layout="none")
    _headline(
        figure,
        "how far away each head looks",
        "mean distance from a patch to the patches that it reads, weighted by its attention to them",
    )
    axes = _in_inches(figure, 0.6, 0.9, WIDTH - 0.75, 2.2)
    _draw_distances(axes, distances, even)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    return figure


@styled
def heads(image, maps):
    """What each head of each layer reads for the prediction, in one image.

    Args:
        image: (h, w, C) uint8. maps: (L, H, rows, cols), from `interpret.head_attention`, for this image.

    Each map has its own scale. The numbers say how much of the head's attention goes to patches.
    """
    L, H = maps.shape[:2]
    cell = min((WIDTH - 0.6) / (H + 1), 1.2)
    tall, wordy = cell * image.shape[0] / image.shape[1], cell > 0.45
    place, figure = _grid(L, H + 1, cell, tall, 0.17 if wordy else 0, left=0.5, top=0.13 * wordy)
    about = "yellow: where a head looks most" + "; number: how much of its attention goes to patches" * wordy
    _headline(figure, "where each head looks for the prediction", about)
    axes = place(0, 0)
    axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
    for (layer, head), share in np.ndenumerate(maps.sum(axis=(2, 3))):
        axes = place(layer, 1 + head)
        axes.imshow(overlay(image, maps[layer, head]))
        if wordy:
            axes.set_title(f"head {head + 1}\n" * (layer == 0) + f"{100 * share:.0f} %", pad=2)
        if head == 0:
            words = f"layer {layer + 1}"
            axes.text(-0.08, 0.5, words, transform=axes.transAxes, ha="right", va="center")
    return figure


@styled
def inside(filters, similarity, distances, even):
    """The paper's figure 7 in one picture: filters, position similarity, attention distance. Arguments as above."""
    figure = Picture(figsize=(WIDTH, 2.82), layout="none")
    top, side = 0.52, 1.65

    pictures = _filter_pictures(filters)
    columns = int(np.ceil(np.sqrt(len(pictures))))
    tiles = np.ones((-(-len(pictures) // columns) * columns, *pictures.shape[1:]))
    tiles[: len(pictures)] = pictures
    axes = _in_inches(figure, 0.1, top, side, side)
    axes.imshow(_mosaic(tiles.reshape(-1, columns, *pictures.shape[1:])))
    axes.set_axis_off()
    _column_head(figure, 0.1 + side / 2, "patterns it tells apart", "patch embedding, PCA")

    axes = _in_inches(figure, 2.12, top, side, side)
    _draw_positions(axes, similarity)
    axes.set(xticks=[], yticks=[])
    _draw_scale(figure, _in_inches(figure, 2.12 + side + 0.07, top, 0.07, side))
    _column_head(figure, 2.12 + side / 2, "places it finds alike", "position embeddings, cosine")

    axes = _in_inches(figure, 4.6, top, 1.3, side)
    _draw_distances(axes, distances, even)
    axes.set_ylabel("pixels", labelpad=1)
    figure.legend(loc="lower right", ncols=2, handletextpad=0.4, handlelength=1.3, columnspacing=1, borderaxespad=0.1)
    _column_head(figure, 4.6 + 0.55, "how far its heads look", "mean attention distance")
    return figure


def _filter_pictures(filters):
    """The first filters (K, P, P, C) as colours (K', P, P, 3) in [0, 1], 0 in the middle, each as strong as can be."""
    filters = filters[:MOST_FILTERS]
    scaled = filters / np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-30)
    unit = (scaled + 1) / 2
    return unit if filters.shape[3] == 3 else colormaps["PuOr_r"](unit[..., 0])[..., :3]


def _mosaic(tiles):
    """Tiles (rows, cols, h, w, 3) side by side in one picture, a white pixel between them."""
    rows, cols, h, w, _ = tiles.shape
    page = np.ones((rows, h + 1, cols, w + 1, 3))
    page[:, :h, :, :w] = tiles.transpose(0, 2, 1, 3, 4)
    return page.reshape(rows * (h + 1), cols * (w + 1), 3)[:-1, :-1]


def _draw_positions(axes, similarity):
    axes.grid(False)
    axes.imshow(_mosaic(colormaps["viridis"]((similarity + 1) / 2)[..., :3]))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="column of the patch", ylabel="row of the patch")


def _middles(count):
    """Where the middle of each tile in a mosaic of `count` × `count` tiles lies, and its number."""
    step = -(-count // 16)  # more numbers would not fit
    tiles = np.arange(0, count, step)
    return tiles * (count + 1) + (count - 1) / 2, tiles + 1


def _draw_scale(figure, axes, label=None):
    figure.colorbar(ScalarMappable(Normalize(-1, 1), "viridis"), cax=axes, label=label, ticks=[-1, 0, 1])
    axes.grid(False)
    figure.axes[-1].spines[:].set_visible(False)


def _draw_distances(axes, distances, even):
    L, H = distances.shape
    layers = np.repeat(np.arange(1, L + 1), H)
    axes.plot(layers, distances.ravel(), "o", color=BLUE, markersize=5, alpha=0.6, markeredgewidth=0, label="a head")
    axes.axhline(even, color=GREY, linewidth=1, linestyle="--", label="even attention")
    axes.set(xlabel="layer", ylabel="mean attention distance (pixels)", xlim=(0.5, L + 0.5))
    axes.set_ylim(0, 1.1 * max(even, distances.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", visible=False)


def _headline(figure, title, about):
    """A title, and below it a line that says how to read the figure."""
    height = figure.get_figheight()
    figure.suptitle(title, y=1 - 0.08 / height)
    figure.text(0.5, 1 - 0.3 / height, about, ha="center", va="top")


def _column_head(figure, x, title, about):
    W, H = figure.get_size_inches()
    figure.text(x / W, 1 - 0.1 / H, title, ha="center", va="top", weight="bold")
    figure.text(x / W, 1 - 0.26 / H, about, ha="center", va="top")


def _grid(rows, columns, width, height, label, left, top=0.0):
    """A figure for rows × columns pictures, each with a line of words above: (place, figure).

    `place(row, column)` makes axes. All in inches; the first column stands `left` apart from the others.
    """
    gap = 0.06
    total = 0.6 + top + rows * (height + label + gap) + 0.05
    figure = Picture(figsize=(WIDTH, total), layout="none")
    start = (WIDTH - columns * width - left) / 2

    def place(row, column):
        x = start + column * width + left * (column > 0) + gap / 2
        axes = _in_inches(figure, x, 0.6 + top + row * (height + label + gap) + label, width - gap, height)
        axes.set_axis_off()
        return axes

    return place, figure


def _in_inches(figure, x, y, width, height):
    """Axes at so many inches from the figure's top left."""
    W, H = figure.get_size_inches()
    return figure.add_axes((x / W, 1 - (y + height) / H, width / W, height / H))
