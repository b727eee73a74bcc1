"""Where the heads of an attention layer look, when position alone decides: `models/conv_attention.py`.

Chapter of the course: notebooks/11-attention-as-convolution.ipynb.
"""

import numpy as np
from matplotlib.patches import Circle, Rectangle

from tinyvit.viz.figure import BLUE, GREY, INK, ORANGE, WIDTH, Picture, styled

ABOUT = """A dot is a head's centre; its circle holds half of what the head reads. Grey: the token that asks, in the 3×3
window of a convolution. Thin lines below: how far training has moved the centres."""


@styled
def attention_centres(before, after, title="where nine heads look, seen from the token that asks"):
    """Two rows of panels, a layer each: the heads' centres before and after training, with a convolution's 3×3 window.

    Args:
        before, after: a list with (centres (H, 2), sharpness (H,)) for each layer, arrays, as QuadraticAttention has
            them: rows and columns from the token that asks, and α. The same layers in both.

    The circle is where the map does not end: e^(-α r²) = ½, so r = √(ln 2 / α). A head with α ≤ 0 looks away from its
    centre and gets a cross and no circle. Raises ValueError where the layers do not match.
    """
    if not before or len(before) != len(after):
        raise ValueError(
            f"attention_centres needs the same layers before and after, got {len(before)} and {len(after)}"
        )
    reach = max(2.0, *(np.abs(centres).max() + 1.2 for centres, _ in (*before, *after)))
    columns = len(before)
    side = (WIDTH - 0.6) / max(columns, 2)
    figure = Picture(figsize=(WIDTH, 2 * side + 1.3))
    figure.suptitle(title)
    figure.supxlabel(ABOUT, fontsize=8)
    cells = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    for i in range(columns):
        _panel(cells[0, i], *before[i], before[i][0], BLUE)
        _panel(cells[1, i], *after[i], before[i][0], ORANGE)
        for axes, when in zip(cells[:, i], ("before", "after"), strict=True):
            axes.set(xlim=(-reach, reach), ylim=(reach, -reach), title=f"layer {i + 1}, {when} training")
            axes.set_aspect("equal")
            axes.locator_params(nbins=6, integer=True)
    for axes in cells[:, 0]:
        axes.set_ylabel("tokens down")
    for axes in cells[1]:
        axes.set_xlabel("tokens to the right")
    return figure


def _panel(axes, centres, sharpness, origins, colour):
    for y, x in np.ndindex(3, 3):
        middle = x == y == 1
        axes.add_patch(Rectangle((x - 1.5, y - 1.5), 1, 1, fc="#BBBBBB" if middle else "none", ec=GREY, lw=0.8))
    for (y, x), alpha, (y0, x0) in zip(centres, sharpness, origins, strict=True):
        if alpha > 0:
            radius = np.sqrt(np.log(2) / alpha)
            axes.add_patch(Circle((x, y), radius, facecolor=colour, alpha=0.2, edgecolor="none"))
            axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=colour, lw=1))
        axes.plot((x0, x), (y0, y), color=INK, lw=0.9)
        axes.plot(x, y, "o" if alpha > 0 else "x", color=INK, ms=3)
