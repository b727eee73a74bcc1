"""Curves in small axes, several side by side: for pages, which lay them out anew for a phone, and to compare runs."""

from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from tinyvit.viz.figure import Picture, styled
from tinyvit.viz.training import percent_axis

SIZE = (3.6, 2.3)  # inches; twice that is the width of a page, once that a phone's


@dataclass(frozen=True)
class Line:
    """A curve: x and y, equally many, its colour and matplotlib's name for its kind of stroke."""

    x: list
    y: list
    colour: str
    stroke: str = "-"
    label: str = ""


def draw_lines(axes, lines, xlabel, ylabel="", percent=False):
    """Draw Lines into axes; `percent` stretches towards 100, as errors on a logarithmic axis."""
    lines = [line for line in lines if len(line.y)]
    for line in lines:
        mark = dict(marker="o", markersize=2.5) if len(line.y) < 20 else {}  # one epoch alone makes no line
        axes.plot(line.x, line.y, color=line.colour, linestyle=line.stroke, label=line.label, **mark)
    values = [value for line in lines for value in line.y]
    if percent and values:
        percent_axis(axes, values, 1 / 8)
    elif values:
        axes.set_ylim(min(0, *values), 1.05 * max(*values, 1e-12))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    whole = all(isinstance(x, int) for line in lines for x in line.x)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1))


@styled
def panel(lines, xlabel, percent=False):
    """A small figure with Lines, without title or legend: a page says these in letters of its own."""
    figure = Picture(figsize=SIZE)
    draw_lines(figure.subplots(), lines, xlabel, percent=percent)
    return figure
