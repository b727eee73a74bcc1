"""Pictures of a run: how it learned, what it looks at, where it errs, and the graph that the engine recorded.

Most functions take arrays and return a matplotlib Figure; in a notebook, one on the last line of a cell shows itself.
`save` writes a PNG. `report` and `comparison` make pages of runs, `live` draws the curves of one while it goes on.
"""

from tinyvit.viz.bench import benchmark
from tinyvit.viz.centres import attention_centres
from tinyvit.viz.compare import compare, comparison
from tinyvit.viz.figure import Picture, png, save
from tinyvit.viz.graph import draw_tape
from tinyvit.viz.images import attention, mistakes, overlay
from tinyvit.viz.inside import attention_distance, filters, heads, inside, positions
from tinyvit.viz.live import live
from tinyvit.viz.report import Answers, report
from tinyvit.viz.training import confusion, curves

__all__ = [
    "Answers", "Picture", "attention", "attention_centres", "attention_distance", "benchmark", "compare", "comparison",
    "confusion", "curves", "draw_tape", "filters", "heads", "inside", "live", "mistakes", "overlay", "png", "positions",
    "report", "save",
]  # fmt: skip
