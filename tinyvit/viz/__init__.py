"""Pictures of a run: how it learned, what it looks at, where it errs, and the graph that the engine recorded.

Every function takes arrays and returns a matplotlib Figure; in a notebook, one on the last line of a cell
shows itself. `save` writes a PNG.
"""

from tinyvit.viz.bench import benchmark
from tinyvit.viz.centres import attention_centres
from tinyvit.viz.figure import Picture, png, save
from tinyvit.viz.graph import draw_tape
from tinyvit.viz.images import attention, mistakes, overlay
from tinyvit.viz.inside import attention_distance, filters, heads, inside, positions
from tinyvit.viz.training import confusion, curves

__all__ = [
    "Picture", "attention", "attention_centres", "attention_distance", "benchmark", "confusion", "curves", "draw_tape",
    "filters", "heads", "inside", "mistakes", "overlay", "png", "positions", "save",
]  # fmt: skip
