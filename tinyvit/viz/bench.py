"""How long a training step takes, beside others and in its parts."""

import numpy as np
from matplotlib import colormaps

from tinyvit.viz.figure import GREY, INK, WIDTH, Picture, message, styled

RATIO_COLOURS = "#0072B2", "#80B8D8", "#E69F00", "#F2CF80"  # two hues, each dark and light


@styled
def benchmark(ratios, stacks):
    """Bars of other programs' times over ours, and our step cut into its parts.

    Args:
        ratios: {rival: {shape: (median, lowest, highest)}}; a rival may lack a shape.
        stacks: {shape: {part: seconds}}, the same parts in each.
    """
    if not stacks:
        return message("nothing was measured")
    figure = Picture(figsize=(WIDTH, 6.4 if ratios else 3.2))
    upper, lower = figure.subplots(2, 1) if ratios else (None, figure.subplots())
    if ratios:
        _bars(upper, ratios, list(stacks))
    _stack(lower, stacks)
    return figure


def _bars(axes, ratios, shapes):
    thickness = 0.8 / len(ratios)
    for i, (rival, by_shape) in enumerate(ratios.items()):
        known = [shape for shape in shapes if shape in by_shape]
        x = np.array([shapes.index(shape) for shape in known]) + (i - (len(ratios) - 1) / 2) * thickness
        median, low, high = np.array([by_shape[shape] for shape in known]).T.reshape(3, -1)
        axes.bar(x, median, 0.9 * thickness, color=RATIO_COLOURS[i % len(RATIO_COLOURS)], label=rival)
        axes.errorbar(x, median, [median - low, high - median], fmt="none", ecolor=INK, elinewidth=0.8)
        for place, value, top in zip(x, median, high, strict=True):
            axes.annotate(f"{value:.1f}", (place, top), (0, 1), textcoords="offset points", ha="center", va="bottom")
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set(ylabel="their time / tinyvit's", title="training step; above the line, tinyvit is faster")
    axes.set_xticks(range(len(shapes)), shapes)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)


def _stack(axes, stacks):
    parts = list(next(iter(stacks.values())))
    colours = colormaps["viridis"](np.linspace(0.1, 0.95, len(parts) - 1))
    left = np.zeros(len(stacks))
    steps = np.array([sum(stack.values()) for stack in stacks.values()])
    for i, part in enumerate(parts):
        share = 100 * np.array([stack[part] for stack in stacks.values()]) / steps
        share = np.maximum(share, 0)  # a part may take longer alone than in the step
        axes.barh(range(len(stacks)), share, 0.7, left, label=part, color=colours[i] if i < len(colours) else "#BBBBBB")
        left += share
    names = [f"{shape}\n{1e3 * step:.1f} ms" for shape, step in zip(stacks, steps, strict=True)]
    axes.set_yticks(range(len(stacks)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="% of a step", title="tinyvit's step on one thread, its blocks composed of single ops")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4)
