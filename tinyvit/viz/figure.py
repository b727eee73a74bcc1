"""What all figures share: a style of their own, how a notebook shows them, how they become a file.

A figure is made without pyplot, so it needs no display and leaves the user's settings and open figures alone.
Colours stay apart for colour-blind readers: blue and orange (Okabe and Ito), a hue that darkens, or viridis.
"""

import functools
import html
import io
import re

from matplotlib.figure import Figure
from matplotlib.style import context

from tinyvit.train.checkpoint import write_atomically

BLUE, ORANGE, INK, GREY, FAINT = "#0072B2", "#E69F00", "#222222", "#666666", "#E4E4E4"
WIDTH = 6.0  # inches: 8 pt stay legible where a page shows the figure 600 pixels wide
ON_A_PAGE = {INK: "ink", GREY: "grey", FAINT: "faint", BLUE: "blue", ORANGE: "orange"}  # in the CSS of `page.py`
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "figure.titlesize": 9, "figure.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.08,
    "text.parse_math": False,  # a class may be called "$"
    "svg.fonttype": "none", "svg.hashsalt": "tinyvit",  # letters stay text; the same bytes each time
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


def svg(figure, name, alt):
    """The figure as an <svg> element for a page of `page.py`: no background, and the page's colours, light or dark.

    Args:
        name: a word for the figure, unlike those of others on the page: ids begin with it.
        alt: what there is to see, for those who cannot.
    """
    content = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in ON_A_PAGE.items():
        text = re.sub(colour, f"var(--{variable})", text, flags=re.IGNORECASE)
    box = re.search(r'viewBox="[^"]+"', text)[0]
    return f'<svg role="img" aria-label="{html.escape(alt)}" {box}>' + text[text.index(">") + 1 :]


def save(figure, path):
    """Write the figure to `path` as PNG, whole or not at all. Raises OSError where that cannot be written."""
    write_atomically(path, png(figure))


def message(text):
    """A figure that holds one line of text: what there is to say where there is nothing to draw."""
    figure = Picture(figsize=(WIDTH, 1))
    figure.suptitle(text, y=0.5, verticalalignment="center")
    return figure
