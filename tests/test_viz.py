"""The pictures: each renders without a display, says what it must, and no box lies on another."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.transforms import Affine2D
from PIL import Image

from tinyvit import nn, viz
from tinyvit.tape import Tape
from tinyvit.tensor import Tensor


def rendered(figure):
    """Pixels (H, W, 4) of the figure as Agg draws it; every letter must lie within the page."""
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    for text in texts(figure):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
        assert text.get_fontsize() >= 8
    return np.asarray(canvas.buffer_rgba())


def texts(figure):
    """Titles, labels and annotations, without the ticks' numbers."""
    own = [*figure.texts]
    for axes in figure.axes:
        own += [*axes.texts, axes.title] + [axes.xaxis.label, axes.yaxis.label] * axes.axison
    return [text for text in own if text.get_text()]


def words(figure):
    rendered(figure)
    return [text.get_text() for text in texts(figure)]


def epochs(count, accuracy=lambda i: 1 - 0.9 / (i + 1)):
    return [
        dict(epoch=i + 1, loss=2 / (i + 1), accuracy=accuracy(i), validation_loss=1 / (i + 1),
             validation_accuracy=accuracy(i), lr=1e-3 / (i + 1), gradient_norm=1.0)
        for i in range(count)
    ]  # fmt: skip


def random_images(B, h=8, w=8, C=1):
    return np.random.default_rng(0).integers(0, 256, (B, h, w, C), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------- figures


def test_neither_tinyvit_nor_its_pictures_import_what_they_need_not():
    """`import tinyvit` stays quick, and viz leaves the choice of a backend to the user."""
    code = (
        "import sys, tinyvit; assert 'matplotlib' not in sys.modules; "
        "from tinyvit import viz; viz.png(viz.curves([])); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_users_settings_are_neither_used_nor_changed():
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "text.color": "yellow"}):
        before = dict(matplotlib.rcParams)
        picture = viz.png(viz.curves(epochs(3)))
        assert dict(matplotlib.rcParams) == before
    assert picture == viz.png(viz.curves(epochs(3)))


def test_save_writes_a_png_six_inches_wide_and_nothing_else(tmp_path):
    figure = viz.curves(epochs(2))
    viz.save(figure, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width == 900
    assert figure._repr_png_() == (tmp_path / "curves.png").read_bytes()  # what a notebook shows
    with pytest.raises(OSError):
        viz.save(figure, tmp_path / "missing" / "curves.png")


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("count", [1, 2, 300])
def test_curves(count):
    figure = viz.curves(epochs(count))
    loss, accuracy, rate = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1]
    assert f"validation accuracy {100 - 90 / count:.2f} % after epoch {count}" in words(figure)
    assert loss.get_ylabel() and accuracy.get_ylabel() and rate.get_ylabel() and rate.get_xlabel()
    for axes in figure.axes:  # nothing is cut off
        low, high = axes.get_ylim()
        for line in axes.lines:
            assert low <= min(line.get_ydata()) and max(line.get_ydata()) <= high


def test_curves_of_no_epoch_say_so():
    assert words(viz.curves([])) == ["no epoch is finished yet"]


@pytest.mark.parametrize("low, high", [(0, 1), (0.3, 0.75), (0.98, 0.999), (1, 1)])
def test_accuracy_ticks_are_readable_and_the_last_percents_stretched(low, high):
    figure = viz.curves(epochs(2, accuracy=lambda i: [low, high][i]))
    rendered(figure)
    axes = figure.axes[1]
    ticks = axes.get_yticks()
    assert len(ticks) >= 2 or low == high
    heights = axes.transData.transform([(1, tick) for tick in sorted(ticks)])[:, 1]
    assert (np.diff(heights) > 8 / 72 * figure.dpi).all()  # 8 pt letters do not touch
    y = axes.transData.transform([(1, 80), (1, 90), (1, 98), (1, 99)])[:, 1]
    assert y[3] - y[2] > 0.8 * (y[1] - y[0])


# ---------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("B, size, C", [(1, (8, 8), 1), (2, (4, 12), 3), (7, (12, 4), 1)])
def test_attention(B, size, C):
    maps = np.random.default_rng(1).random((B, 2, 3))
    figure = viz.attention(random_images(B, *size, C), maps, ["true 3 · predicted 4 (98 %)"] * B)
    rendered(figure)
    assert len(figure.axes) == 2 * B
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert_apart(boxes)
    for top, below in zip(boxes[::2], boxes[1::2], strict=True):  # the overlay under its own image
        assert top.x0 == pytest.approx(below.x0) and top.y0 > below.y1
    for axes in figure.axes[::2]:
        assert axes.get_title() == "true 3\npredicted 4 (98\u00a0%)"
        assert not any(axes.title.get_window_extent().overlaps(box) for box in boxes)


def test_attention_without_titles_and_with_what_does_not_fit():
    images, maps = random_images(2), np.ones((2, 4, 4))
    assert words(viz.attention(images, maps)) == [
        "yellow: where the model has its information from (attention rollout)"
    ]
    with pytest.raises(ValueError, match="a map and a title for each image, got 2 images, 1 maps"):
        viz.attention(images, maps[:1])


def test_overlay_is_brightest_where_the_map_is():
    grey = np.full((6, 4, 1), 100, np.uint8)
    attention = np.array([[0.0, 0.1], [0.2, 0.1], [0.1, 0.6]])
    picture = viz.overlay(grey, attention)
    assert picture.dtype == np.uint8 and picture.shape == (258, 172, 3)  # 43 times as large
    luminance = picture @ [0.2126, 0.7152, 0.0722]
    cells = luminance.reshape(3, 86, 2, 86)
    assert (cells == cells[:, :1, :, :1]).all()  # a patch is of one colour, up to its edges
    assert (np.argsort(cells[:, 0, :, 0].ravel())[[0, -1]] == [0, 5]).all()


def test_overlay_keeps_the_image_visible_and_takes_odd_sizes():
    colour = random_images(1, 5, 7, 3)[0]
    picture = viz.overlay(colour, np.ones((2, 3)))
    assert picture.shape == (5 * 37, 7 * 37, 3)
    assert np.corrcoef(picture[18::37, 18::37, 0].ravel(), colour[..., 0].ravel())[0, 1] > 0.999
    assert viz.overlay(random_images(1, 600, 400, 3)[0], np.ones((2, 3))).shape == (600, 400, 3)
    assert viz.overlay(colour, np.zeros((2, 3))).shape == picture.shape  # no division by zero
    with pytest.raises(ValueError, match=r"got \(5, 7\) and \(2, 3\)"):
        viz.overlay(colour[..., 0], np.ones((2, 3)))


def mistaken(wrong, right=10, classes=10, C=1, size=(8, 8)):
    """Images, labels and probabilities with so many wrong ones, each surer than the one before."""
    count = wrong + right
    labels = np.zeros(count, np.int64)
    p = np.full((count, classes), 0.3 / (classes - 1))
    p[:right, 0] = 0.7
    p[right:, 1] = 0.4 + 0.5 * np.arange(wrong) / max(wrong, 1)
    return random_images(count, *size, C), labels, p


@pytest.mark.parametrize("wrong, C, size", [(1, 1, (8, 8)), (7, 3, (4, 9)), (25, 1, (28, 28))])
def test_mistakes_are_shown_the_surest_first(wrong, C, size):
    images, labels, p = mistaken(wrong, C=C, size=size)
    figure = viz.mistakes(images, labels, p, [str(k) for k in range(10)])
    assert len(figure.axes) == min(wrong, 24)
    shown = [axes.get_title() for axes in figure.axes]
    assert shown[0] == f"true 0\nsaid 1 ({100 * p[-1, 1]:.0f}\u00a0%)"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[-1].squeeze())
    more = "; the 24 surest" if wrong > 24 else ""
    assert f"{wrong} of {wrong + 10} images wrong ({100 * wrong / (wrong + 10):.1f} %){more}" in words(figure)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert_apart(boxes)
    assert not any(axes.title.get_window_extent().overlaps(box) for axes in figure.axes for box in boxes)


def test_no_mistakes_say_so():
    assert words(viz.mistakes(*mistaken(0), list("0123456789"))) == ["no mistakes among 10 images"]


def test_long_and_strange_class_names_do_not_run_into_each_other():
    names = ["automobile with trailer", "a $^_$ and a $", *"23456789"]
    figure = viz.mistakes(*mistaken(12), names)
    rendered(figure)
    assert_apart([axes.title.get_window_extent() for axes in figure.axes])


@pytest.mark.parametrize("C", [2, 10, 100])
def test_confusion(C):
    counts = np.diag(np.full(C, 30))
    counts[0, 1] = 4
    figure = viz.confusion(counts, [f"class {k}" for k in range(C)])
    assert f"4 of {30 * C + 4:,} wrong; the darker, the more often" in words(figure)
    [axes] = figure.axes
    if C <= 20:
        assert sorted(text.get_text() for text in axes.texts) == ["30"] * C + ["4"]
        [four] = [text for text in axes.texts if text.get_text() == "4"]
        assert four.get_position() == (1, 0)  # column 1, predicted; row 0, true
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert_apart(labels)


def test_confusion_without_errors_and_with_names_that_do_not_fit():
    assert "0 of 9 wrong; the darker, the more often" in words(viz.confusion(3 * np.eye(3, dtype=int), "abc"))
    with pytest.raises(ValueError, match=r"needs counts \(2, 2\) for 2 classes, got \(3, 3\)"):
        viz.confusion(np.eye(3), "ab")


# ---------------------------------------------------------------------------------------------- inside a ViT


def random_filters(K, P, C):
    filters = np.random.default_rng(0).normal(size=(K, P, P, C))
    return filters, np.full(K, 1 / K)


@pytest.mark.parametrize("K, P, C", [(1, 1, 1), (4, 2, 1), (12, 2, 3), (49, 7, 1)])
def test_filters(K, P, C):
    filters, shares = random_filters(K, P, C)
    figure = viz.filters(filters, shares)
    said = words(figure)
    shown = min(K, 28)
    assert len(figure.axes) == shown and said.count(f"{100 / K:.0f} %") == shown
    assert any((f"28 of the {K} principal" if K > 28 else f"the {K} principal") in text for text in said)
    assert_apart([axes.get_window_extent() for axes in figure.axes])
    assert_apart([axes.title.get_window_extent() for axes in figure.axes])


def test_a_filters_colours_are_its_signs():
    """Grey filters run from purple over white to orange; filters of colours show them around mid-grey."""
    figure = viz.filters(np.array([[[[-2.0], [0.0]], [[1.0], [2.0]]]]), np.ones(1))
    low, zero, _, high = figure.axes[0].images[0].get_array().reshape(4, 3)
    assert zero.min() > 0.9 and low[2] > low[1] and high[0] > 2 * high[2]
    colour = np.zeros((1, 1, 1, 3))
    colour[..., 1] = -0.3
    np.testing.assert_allclose(viz.filters(colour, np.ones(1)).axes[0].images[0].get_array(), [[[0.5, 0, 0.5]]])
    viz.png(viz.filters(np.zeros((1, 2, 2, 1)), np.zeros(1)))  # no division by zero


@pytest.mark.parametrize("rows, cols", [(1, 1), (2, 3), (7, 7), (24, 24)])
def test_positions_show_each_patch_as_a_tile_in_its_place(rows, cols):
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-1, 0.5, (rows, cols, rows, cols))
    for r, c in np.ndindex(rows, cols):
        similarity[r, c, r, c] = 1
    figure = viz.positions(similarity)
    rendered(figure)
    axes, scale = figure.axes
    picture = np.asarray(axes.images[0].get_array())
    yellow = np.argwhere((picture == matplotlib.colormaps["viridis"](1.0)[:3]).all(axis=2))
    assert {tuple(place) for place in yellow} == {
        (r * (rows + 1) + r, c * (cols + 1) + c) for r, c in np.ndindex(rows, cols)
    }
    assert_apart([axes.get_window_extent(), scale.get_window_extent()])
    assert_apart([label.get_window_extent() for label in axes.get_xticklabels()])
    numbers = [label.get_text() for label in axes.get_yticklabels()]
    assert numbers[:2] == ["1", "3" if rows > 16 else "2"][:rows]


@pytest.mark.parametrize("L, H", [(1, 1), (4, 4), (24, 16)])
def test_distances_are_a_dot_a_head_over_its_layer(L, H):
    distances = np.random.default_rng(0).uniform(1, 20, (L, H))
    figure = viz.attention_distance(distances, 14.0)
    rendered(figure)
    [axes] = figure.axes
    dots, even = axes.lines
    assert sorted(zip(*dots.get_data(), strict=True)) == sorted((i + 1, distances[i, j]) for i, j in np.ndindex(L, H))
    assert set(even.get_ydata()) == {14.0}
    low, high = axes.get_ylim()
    assert low == 0 and high > max(distances.max(), 14)
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("L, H, size", [(1, 1, (8, 8)), (3, 4, (12, 8)), (12, 12, (8, 8))])
def test_heads_stand_in_rows_of_layers(L, H, size):
    maps = np.random.default_rng(0).random((L, H, 2, 2)) / 4
    image = random_images(1, *size)[0]
    figure = viz.heads(image, maps)
    said = words(figure)
    assert len(figure.axes) == 1 + L * H
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert_apart(boxes)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image[..., 0])
    np.testing.assert_array_equal(figure.axes[-1].images[0].get_array(), viz.overlay(image, maps[-1, -1]))
    assert {f"layer {i + 1}" for i in range(L)} <= set(said)
    if H < 12:  # else there is no room for words
        assert f"head {H}\n{100 * maps[0, -1].sum():.0f} %" in said
        titles = [axes.title.get_window_extent().padded(-1) for axes in figure.axes[1:]]
        assert not any(title.overlaps(box) for title in titles for box in boxes)


@pytest.mark.parametrize("K, P, C, rows, cols", [(4, 2, 1, 4, 4), (49, 7, 1, 4, 4), (48, 4, 3, 8, 6)])
def test_inside_is_figure_7(K, P, C, rows, cols):
    similarity = np.random.default_rng(0).uniform(-1, 1, (rows, cols, rows, cols))
    figure = viz.inside(random_filters(K, P, C)[0], similarity, np.full((4, 4), 13.0), 14.4)
    rendered(figure)
    assert_apart([axes.get_window_extent() for axes in figure.axes])
    assert_apart([text.get_window_extent() for text in texts(figure)])
    _, tiles, _, distances = figure.axes
    assert tiles.get_xlabel() and tiles.get_ylabel() and distances.get_xlabel() and distances.get_ylabel()


# ---------------------------------------------------------------------------------------------- the graph


def scalar_tape():
    a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
    a.name, b.name = "a", "b"
    c = a * a
    return ((c * b + a) * 2.0 + c.tanh() / b).trace()


def block_tape(layers=1):
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(2, 5, 8)), requires_grad=True, dtype=np.float32)
    for _ in range(layers):
        block = nn.EncoderBlock(8, 2, 16, rng)
        block.name_parameters()
        with nn.composed():
            x = block(x)
    return x.sum().trace()


def fan_tape(leaves=8):
    """One op after another over leaves that are all read twice: many long edges."""
    xs = [Tensor(np.ones((2, 3)), requires_grad=True) for _ in range(leaves)]
    total = xs[0]
    for x in (*xs[1:], *xs):
        total = total + x
    return total.trace()


def parts(figure):
    [axes] = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    return axes, boxes, [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


def assert_apart(boxes):
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (min(a.x1, b.x1) > max(a.x0, b.x0) + 1e-6 and min(a.y1, b.y1) > max(a.y0, b.y0) + 1e-6), (a, b)


@pytest.mark.parametrize("make", [scalar_tape, block_tape, fan_tape])
def test_tape_has_a_box_for_each_row_and_an_arrow_for_each_input(make):
    tape = make()
    figure = viz.draw_tape(tape)
    rendered(figure)
    axes, boxes, arrows = parts(figure)
    assert len(boxes) == len(tape.rows) <= 60
    assert len(arrows) == sum(i >= 0 for row in tape.rows for i in row.inputs)
    rectangles = [box.get_bbox() for box in boxes]
    assert_apart(rectangles)
    page = axes.viewLim
    assert all(page.xmin <= r.xmin and r.xmax <= page.xmax and page.ymin <= r.ymin and r.ymax <= page.ymax
               for r in rectangles)  # fmt: skip
    for text in axes.texts:  # letters stay within their box
        inside = axes.transData.inverted().transform_bbox(text.get_window_extent())
        if "\n" in text.get_text():
            around = [r for r in rectangles if r.ymin < inside.ymin and inside.ymax < r.ymax]
            assert any(r.x0 < inside.x0 and inside.x1 < r.x1 for r in around)


@pytest.mark.parametrize("make", [scalar_tape, block_tape, fan_tape])
def test_arrows_go_from_box_to_box_and_pass_behind_no_other(make):
    axes, boxes, arrows = parts(viz.draw_tape(make()))
    rectangles = [box.get_bbox() for box in boxes]
    for arrow in arrows:
        path = Affine2D().scale(200).transform_path(arrow._path_original)  # curves become lines a pixel long
        points = np.concatenate(path.to_polygons(closed_only=False)) / 200
        inner = [r.padded(-1e-6) for r in rectangles]
        assert not any(r.xmin < x < r.xmax and r.ymin < y < r.ymax for x, y in points for r in inner)
        (x0, y0), (x1, y1) = points[[0, -1]]  # from a box's top up to another's bottom
        assert any(r.x0 < x0 < r.x1 and abs(r.ymin - y0) < 1e-6 for r in rectangles)
        assert any(r.x0 < x1 < r.x1 and abs(r.ymax - y1) < 1e-6 for r in rectangles)


def test_inputs_stand_above_their_readers_and_show_what_is_remembered():
    tape = scalar_tape()
    figure = viz.draw_tape(tape)
    axes, boxes, _ = parts(figure)
    tops = {row.number: box.get_bbox().ymin for row, box in zip(tape.rows, boxes, strict=True)}
    for row in tape.rows:  # the y-axis points down
        assert all(tops[i] < tops[row.number] for i in row.inputs if i >= 0)
    said = words(figure)
    assert "0 a\nscalar" in said and "1 multiply\nscalar · 4 B" in said
    assert any("multiply (const)" in text for text in said)  # the factor 2
    assert f"{len(tape.rows)} rows, remembering {tape.remembered} B" in said


def test_a_long_tape_is_cut_and_says_so():
    tape = block_tape(3)
    figure = viz.draw_tape(tape)
    _, boxes, _ = parts(figure)
    assert len(boxes) == 60
    about = f"too long to draw whole: the last 60 of {len(tape.rows)} rows"
    assert any(about in text for text in words(figure))
    assert_apart([box.get_bbox() for box in boxes])


def test_a_tape_of_one_leaf():
    x = Tensor(np.ones(3), requires_grad=True)
    figure = viz.draw_tape(Tape(x.trace().rows))
    assert len(parts(figure)[1]) == 1
    assert io.BytesIO(viz.png(figure)).read(4) == b"\x89PNG"
