"""What `matmul_story.py` and `attention_story.py` share: who takes turns, what BLAS it is, numbers and bars."""

import time

import numpy as np
from threadpoolctl import threadpool_info

from tinyvit.viz.figure import INK

LIGHT_BLUE = "#80B8D8"


def blas_name():
    """Which BLAS NumPy has, and for which processor it takes this one, as in "openblas Haswell"."""
    found = sorted(
        (p for p in threadpool_info() if p["user_api"] == "blas"), key=lambda p: "numpy" not in p["filepath"]
    )
    return " ".join([found[0]["internal_api"], found[0].get("architecture", "")]).strip() if found else "BLAS"


def taking_turns(contenders, rounds):
    """{name: median seconds} of functions that take turns."""
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(ts)) for name, ts in times.items()}


def short(number):
    """With two digits where it is small."""
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def bars(axes, values, names, colours):
    """Horizontal bars from top to bottom, each with its value."""
    axes.barh(range(len(values)), values, 0.75, color=colours)
    for i, value in enumerate(values):
        words = axes.annotate(short(value), (value, i), (3, 0), textcoords="offset points", va="center", color=INK)
        words.set_bbox(dict(facecolor="white", edgecolor="none", pad=0.5))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
