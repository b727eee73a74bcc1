"""How a run learned, epoch by epoch, and what the trained model takes for what."""

import numpy as np
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator

from tinyvit.viz.figure import BLUE, GREY, INK, ORANGE, WIDTH, Picture, message, styled


@styled
def curves(history):
    """Loss, accuracy and learning rate over the epochs of a run.

    Args:
        history: a dict for each epoch, as `train.fit` returns and metrics.jsonl holds: epoch, loss, accuracy,
            validation_loss, validation_accuracy (in [0, 1]), lr.

    The accuracy axis is logarithmic in the errors: 98 to 99 % is as far as 80 to 90 %.
    """
    if not history:
        return message("no epoch is finished yet")
    figure = Picture(figsize=(WIDTH, 6.2))
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    mark = dict(marker="o", markersize=3) if len(history) < 20 else {}  # one epoch alone makes no line
    epochs = [row["epoch"] for row in history]

    def draw(axes, name, colour, label=None, scale=1):
        values = [scale * row[name] for row in history]
        axes.plot(epochs, values, color=colour, label=label, **mark)
        return values

    values = draw(loss, "loss", ORANGE, "training, mean over the epoch")
    values += draw(loss, "validation_loss", BLUE, "validation, after the epoch")
    loss.set(ylabel="loss (cross-entropy)", ylim=(0, 1.05 * max(values)))
    loss.legend()
    values = draw(accuracy, "accuracy", ORANGE, scale=100)
    values += draw(accuracy, "validation_accuracy", BLUE, scale=100)
    percent_axis(accuracy, values)
    accuracy.set(ylabel="accuracy (%), errors on a log scale")
    rate.set(ylabel="learning\nrate", xlabel="epoch", ylim=(0, 1.1 * max(draw(rate, "lr", GREY)) or 1))
    rate.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    figure.align_ylabels()
    last = 100 * history[-1]["validation_accuracy"]
    figure.suptitle(f"validation accuracy {last:.2f} % after epoch {epochs[-1]}")
    return figure


def stretch(percent):
    """Where a percentage stands on an axis on which halving the errors is one length; 100 itself stays on it."""
    return -np.log(np.maximum(100.3 - np.asarray(percent, float), 1e-6))


def shrink(place):
    """The percentage at a place on that axis."""
    return 100.3 - np.exp(-np.asarray(place, float))


def round_percentages(low, high, distance):
    """The round percentages between two places on that axis, from 100 downwards, none closer than `distance`."""
    ticks, last = [], np.inf
    for tick in (100, 99.8, 99.5, 99, 98, 95, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0):
        if low <= stretch(tick) <= high and last - stretch(tick) > distance:
            ticks, last = [*ticks, tick], stretch(tick)
    return ticks


def percent_axis(axes, values, distance=1 / 12):
    """A y-axis for percentages that stretches towards 100, with round ticks where there is room: none closer than
    `distance`, a share of the axis."""
    axes.set_yscale("function", functions=(stretch, shrink))
    low, high = stretch(min(values)), stretch(max(values))
    pad = max(0.06 * (high - low), 0.2)
    low, high = low - pad, min(high + pad, stretch(100.05))
    axes.set_ylim(shrink(low), shrink(high))
    axes.yaxis.set_major_locator(FixedLocator(round_percentages(low, high, distance * (high - low))))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


@styled
def confusion(counts, classes):
    """What was taken for what: counts (C, C) from `interpret.confusion`, and the names of the C classes.

    Only the errors are coloured, else the diagonal would outshine them all.
    """
    C = len(classes)
    if np.shape(counts) != (C, C):
        raise ValueError(f"confusion needs counts ({C}, {C}) for {C} classes, got {np.shape(counts)}")
    errors = np.where(np.eye(C, dtype=bool), 0, counts)
    figure = Picture(figsize=(WIDTH, WIDTH))
    axes = figure.subplots()
    axes.set(aspect="equal", xlim=(-0.5, C - 0.5), ylim=(C - 0.5, -0.5))
    axes.grid(False)
    most = max(errors.max(), 1)
    axes.imshow(np.ma.masked_equal(errors, 0), cmap="Blues", vmin=-0.2 * most, vmax=1.2 * most)
    every = range(0, C, -(-C // 40))  # more names would not fit
    names = [classes[k] for k in every]
    axes.set_xticks(every, names, rotation=90 if max(map(len, names)) > 3 or C > 20 else 0)
    axes.set_yticks(every, names)
    axes.set(xlabel="predicted class", ylabel="true class")
    if C <= 20:  # then a number fits into its cell
        for ticks in (axes.set_xticks, axes.set_yticks):
            ticks(np.arange(C - 1) + 0.5, minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="minor", length=0)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = GREY if i == j else "white" if errors[i, j] > 0.6 * most else INK
            axes.text(j, i, f"{counts[i, j]}", color=colour, ha="center", va="center")
    figure.suptitle(f"{errors.sum():,} of {np.sum(counts):,} wrong; the darker, the more often")
    return figure
