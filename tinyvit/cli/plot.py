"""Curves in letters: a row of text is a step of the y-axis, a column some epochs."""

import numpy as np

from tinyvit.viz.training import round_percentages, shrink, stretch

TRAINING, VALIDATION, RESET = "\x1b[33m", "\x1b[94m", "\x1b[0m"  # yellow and light blue, legible on black and white
MARKS = (TRAINING + "·" + RESET, VALIDATION + "•" + RESET)
MARGIN = 8  # letters for the numbers of the y-axis and its line


def plot(history, names, epochs, rows, columns):
    """Lines of text: a heading, then `rows` of two curves, training and validation, over all epochs of the run.

    Args:
        history: a dict for each finished epoch. names: of the two curves in it; accuracies are stretched towards 100 %.
        epochs: how many the run shall have; the curves' width says how much of it is done.
    """
    accuracy = "accuracy" in names[0]
    heading = f"{names[0]}{' in %' if accuracy else ''}  {MARKS[0]} training  {MARKS[1]} validation"
    wide = columns - MARGIN
    places = [[] for _ in names]
    if history:
        values = np.array([[row[name] for name in names] for row in history]).T
        places = stretch(100 * values) if accuracy else values
    low, high = _limits(places)
    cells = [[" "] * wide for _ in range(rows)]
    ends = np.array([row["epoch"] for row in history])
    for mark, curve in zip(MARKS, places, strict=True):
        for column in range(wide):
            epoch = 1 + (epochs - 1) * column / max(wide - 1, 1)
            if not history or epoch > ends[-1] + 0.5 * epochs / wide:
                break
            height = (np.interp(epoch, ends, curve) - low) / (high - low)
            cells[round((1 - height) * (rows - 1))][column] = mark
    labels = _labels(low, high, rows, accuracy) if history else {}
    return [heading] + [f"{labels.get(i, ''):>{MARGIN - 2}}│ {''.join(line)}".rstrip() for i, line in enumerate(cells)]


def epoch_axis(epochs, columns):
    """A line of text: the first and the last epoch below the ends of the curves."""
    wide = columns - MARGIN
    return " " * MARGIN + "1" + f"{'epoch':^{wide - 1 - len(str(epochs))}}{epochs}"


def _limits(places):
    values = np.ravel(places)
    if not len(values):
        return 0.0, 1.0
    low, high = values.min(), values.max()
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _labels(low, high, rows, accuracy):
    """{row: number} for the y-axis: its ends, or where they fit round percentages."""
    if accuracy:
        ticks = round_percentages(low, high, 2 * (high - low) / rows)
        if len(ticks) > 1:
            return {round((high - stretch(t)) / (high - low) * (rows - 1)): f"{t:g}" for t in ticks}
    return {row: f"{shrink(place) if accuracy else place:.3g}" for row, place in ((0, high), (rows - 1, low))}
