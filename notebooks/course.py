"""What every chapter uses: `check` after each step, `figure` and `show` to draw, `slider` to play.

Importing this sets matplotlib's style for the notebook: the package's own, whose colours colour-blind readers can tell
apart.
"""

import base64
import html
import os
import reprlib
import sys

try:
    import matplotlib
    import numpy as np
    from cycler import cycler
    from matplotlib.figure import Figure

    from tinyvit.tensor import Tensor
    from tinyvit.viz.figure import BLUE, GREY, INK, ORANGE, STYLE, WIDTH, Picture
except ModuleNotFoundError as error:  # the notebook was opened with another Python's kernel
    raise ModuleNotFoundError(
        f"this notebook's kernel, {sys.executable}, has no {error.name}. Choose the kernel of .venv, the folder that "
        '`python3 run.py notebooks` makes beside notebooks/; or install into this one: pip install -e ".[notebooks]"'
    ) from None

STATIC = bool(os.environ.get("TINYVIT_STATIC"))  # set by execute.py: what is saved must not need a kernel
GREEN, PINK, SKY = "#009E73", "#CC79A7", "#56B4E9"  # with BLUE and ORANGE five of Okabe and Ito's colours
CYCLE = cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, INK])

matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": CYCLE, "image.cmap": "viridis", "text.parse_math": True})


class Drawing(Picture):
    """A figure in the style above. Unlike the package's, which draw names of classes, it reads $…$ as a formula."""

    draw = Figure.draw


class CheckFailed(AssertionError):
    """A step that is not right yet. A notebook shows the message alone, not how the program got there."""

    def _render_traceback_(self):
        return [f"✗ {self}"]


def plain(x):
    """A Tensor's array; a bool or string of NumPy's as Python's."""
    x = x.data if isinstance(x, Tensor) else x
    return x.item() if isinstance(x, np.ndarray | np.generic) and x.ndim == 0 and x.dtype.kind in "bU" else x


def equal(a, b):
    """a == b as one bool."""
    try:
        return bool(a == b)
    except (TypeError, ValueError):  # a Tensor or an array in one of them
        return False


def check(name, got, expected, *, tolerance=1e-6, hint=""):
    """Say whether a step is right: its shape, then its values.

    Args:
        name: what is checked, in a word or two.
        got: the reader's result: a number, array, Tensor, tuple, string or bool. None and `...` mean "not done yet".
        expected: what it must be.
        tolerance: largest accepted difference |got - expected|, as a share of the largest |expected| or of 1.
        hint: what to look at when it is wrong.

    Raises CheckFailed that says what must hold, what came instead, and the hint.
    """
    if got is None or got is ...:
        print(f"○ {name}: not done yet. Replace the dots and return the result, then run the cell again.")
        return
    hint = f"\n  Hint: {hint}" if hint else ""
    got, expected = plain(got), plain(expected)
    if isinstance(expected, str | bool) or isinstance(expected, tuple) and isinstance(got, tuple):
        if type(got) is not type(expected) or not equal(got, expected):
            raise CheckFailed(f"{name}: must be {expected!r}, but is {got!r}{hint}")
        print(f"✓ {name}: {expected!r}")
        return
    given = got
    try:
        got, expected = np.asarray(got), np.asarray(expected)
    except ValueError:  # lists of different lengths in a list
        raise CheckFailed(f"{name}: must be one array, but its rows differ in length{hint}") from None
    if got.dtype.kind not in "biufc":  # a function that was not called, a dict, a string
        raise CheckFailed(f"{name}: must hold numbers, but is {reprlib.repr(given)}{hint}")
    if got.shape != expected.shape:
        raise CheckFailed(f"{name}: the shape must be {expected.shape}, but is {got.shape}{hint}")
    what = f"shape {got.shape}" if got.ndim else f"{got:,}" if got.dtype.kind in "iu" else f"{got:.6g}"
    exact = np.result_type(got, expected, np.float64)  # or complex128: an imaginary part must not get lost
    got, expected = got.astype(exact), expected.astype(exact)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.where(same, 0, np.abs(got - expected))
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    # Written so that NaN fails.
    if not (difference <= tolerance * scale).all():
        worst = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)), difference.shape)
        at = f" at {tuple(int(i) for i in worst)}" if worst else ""
        wrong = np.count_nonzero(~(difference <= tolerance * scale))
        share = f"; {wrong} of {got.size} entries are wrong" if got.ndim else ""
        raise CheckFailed(f"{name}: must be {expected[worst]:.6g}{at}, but is {got[worst]:.6g}{share}{hint}")
    largest = difference.max(initial=0)
    print(f"✓ {name}: {what}, " + (f"largest difference {largest:.1e}" if largest else "equal to the last bit"))


def figure(rows=1, columns=1, *, height=2.2, **options):
    """An empty figure as wide as the text and its axes: (figure, axes), one axes or an array of them.

    height: in inches. options: for `Figure.subplots`, such as sharey=True or width_ratios=[1, 2].
    """
    drawn = Drawing(figsize=(WIDTH, height))
    return drawn, drawn.subplots(rows, columns, **options)


def images(axes, pictures, titles=(), **options):
    """Draw grey or RGB pictures into a row of axes, without ticks. options: for `Axes.imshow`."""
    options = {"cmap": "gray", "interpolation": "nearest"} | options
    for i, (ax, picture) in enumerate(zip(np.ravel(axes), pictures, strict=True)):
        ax.imshow(np.squeeze(picture), **options)
        ax.set(xticks=[], yticks=[], title=titles[i] if i < len(titles) else "")
        ax.grid(False)


def show(drawn, alt):
    """Show a figure with a description for those who cannot see it.

    alt: what the figure shows and what follows from it, in a sentence or two.
    """
    shown(drawn, alt)


def shown(drawn, alt):
    """Show a figure; returns the handle that can put another one in its place."""
    from IPython.display import display  # here, so that `check` can be tested without Jupyter

    data, metadata = described(drawn, alt)
    return display(data, metadata=metadata, raw=True, display_id=True)


def described(drawn, alt):
    """A figure and its description as (data by MIME type, metadata by MIME type).

    JupyterLab takes a description from HTML and not from a PNG's metadata; GitHub shows no picture that is inside HTML.
    So a reader's kernel sends HTML, and what `execute.py` saves for the web is a PNG.
    """
    png = drawn._repr_png_()
    if STATIC:
        return {"image/png": png, "text/plain": alt}, {"image/png": {"alt": alt}}
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {
        "text/html": f'<img src="{source}" alt="{html.escape(alt)}" style="max-width: 100%">',
        "text/plain": alt,
    }, {}


def slider(draw, values, label, alt, start=None):
    """A slider that redraws a figure; without a kernel, as on the web, or without ipywidgets, the figure alone.

    Args:
        draw: a function of one value that returns a figure.
        values: what the slider can be set to.
        label: what the slider sets.
        alt: describes the figure at `start`.
        start: the value to begin with; the middle one unless told.
    """
    values = list(values)
    start = values[len(values) // 2] if start is None else start
    if STATIC:
        show(draw(start), alt)
        return
    from IPython.display import display

    try:
        from ipywidgets import SelectionSlider
    except ModuleNotFoundError:
        print(f"Without ipywidgets no slider for {label}: pip install ipywidgets, then restart the kernel.")
        show(draw(start), alt)
        return

    def redraw(change):
        try:
            drawn, text = draw(change.new), alt if change.new == start else f"{label}: {change.new}"
        except Exception as error:  # a slider has no cell to show its errors in
            picture.update({"text/plain": f"{type(error).__name__}: {error}"}, raw=True)
        else:
            data, metadata = described(drawn, text)
            picture.update(data, metadata=metadata, raw=True)

    control = SelectionSlider(
        options=[(f"{v:g}" if isinstance(v, float) else str(v), v) for v in values],
        value=start, description=label, continuous_update=False, style={"description_width": "initial"},
    )  # fmt: skip
    control.observe(redraw, "value")
    display(control)
    picture = shown(draw(start), alt)  # an output of the cell, not of the slider: it is saved with the notebook


__all__ = [
    "BLUE", "GREEN", "GREY", "INK", "ORANGE", "PINK", "SKY", "CheckFailed", "check", "figure", "images", "show",
    "slider",
]  # fmt: skip
