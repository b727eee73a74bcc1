"""The recorded graph as boxes and arrows: `tape.py`'s table, drawn.

Laying out a graph is three steps: give each node a layer, order the nodes of a layer so that few edges cross,
move them as close to their neighbours as they fit (Sugiyama et al. 1981). Graphviz does it with more care.
"""

from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath
from scipy.optimize import isotonic_regression

from tinyvit.tape import Row
from tinyvit.viz.figure import BLUE, GREY, INK, WIDTH, Picture, styled

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
