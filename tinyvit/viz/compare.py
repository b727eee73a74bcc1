"""Several runs beside each other: what each reached, what differs between them, and their curves in one picture.

Two runs that differ in one thing say what that thing does, if their seeds say how much is chance. So the table shows
the settings that differ and only those, and runs that differ in their seed alone get their mean and spread.
"""

import itertools
from statistics import mean, stdev

from tinyvit.train.runs import duration
from tinyvit.viz.figure import BLUE, INK, ORANGE, WIDTH, Picture, styled
from tinyvit.viz.page import escape, page, paragraph, plot, scrolling, section
from tinyvit.viz.panels import Line, draw_lines, panel

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", INK, "#D55E00")  # of Okabe and Ito, legible on white and on black
STROKES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dashed"}  # matplotlib's names and CSS's
PANELS = (  # x, y, and how they are called
    ("epoch", "validation_accuracy", "epoch", "validation accuracy in %"),
    ("seconds", "validation_accuracy", "seconds of training", "validation accuracy in %"),
    ("epoch", "validation_loss", "epoch", "validation loss"),
    ("epoch", "loss", "epoch", "training loss"),
)


def differences(records):
    """{setting: its value in each run} of those settings that are not the same in all runs, as text.

    Where the presets differ, the sizes of the models do so too; the preset's name stands for them.
    """
    settings = [record.settings() for record in records]
    names = list(dict.fromkeys(itertools.chain(*settings)))
    if len({record.recipe.preset for record in records}) > 1:
        names = list(dict.fromkeys(itertools.chain(*(vars(record.recipe) for record in records))))
    table = {name: [_plain(values.get(name, "")) for values in settings] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def table(records, names):
    """The comparison as rows of text, the first one the headings: a row for each run, a column for each result, then
    one for each setting that differs."""
    differing = differences(records)
    differing.pop("epochs", None)  # a column has them anyway
    rows = [["run", "test", "best validation", "epochs", "time", "parameters", *differing]]
    for i, (record, name) in enumerate(zip(records, names, strict=True)):
        reached = _percent(record.test["test_accuracy"]) if record.test else record.state
        best = record.best
        rows.append([
            name, "in progress" if reached == "running" else reached,
            f"{_percent(best['validation_accuracy'])} (epoch {best['epoch']})" if best else "none yet",
            f"{record.epochs_done} of {record.recipe.epochs}", duration(record.seconds),
            f"{record.parameter_count():,}", *(values[i] for values in differing.values()),
        ])  # fmt: skip
    return rows


def spread(records):
    """Mean and standard deviation (of the sample, as in a recipe's promise) over runs that differ in their seed alone,
    a sentence; "" for others."""
    if len(records) < 2 or set(differences(records)) != {"seed"} or not all(record.test for record in records):
        return ""
    reached = [100 * record.test["test_accuracy"] for record in records]
    numbers = f"{mean(reached):.2f} ± {stdev(reached):.2f} %"
    return f"test accuracy {numbers} (mean and standard deviation of {len(reached)} seeds)"


def other_data(records):
    """A sentence where the runs are of different data, so that their accuracies do not compare; else ""."""
    found = list(dict.fromkeys(record.about["data"] for record in records))
    return f"these runs are of different data ({', '.join(found)}): their accuracies do not compare" * (len(found) > 1)


@styled
def compare(records, names):
    """The runs' curves over each other: validation accuracy by epochs and by seconds, validation and training loss.

    Args:
        records: a Record for each run, see `train/runs.py`. names: what to call them.
    """
    rows = -(-len(records) // 2)
    labels = [" " + (name if len(name) <= 40 else f"…{name[-39:]}") for name in names]  # matplotlib hides a leading "_"
    figure = Picture(figsize=(WIDTH, 4.6 + 0.2 * rows))
    for axes, (x, y, xlabel, ylabel) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        draw_lines(axes, list(_lines(records, labels, x, y)), xlabel, ylabel, percent=y.endswith("accuracy"))
    if axes.lines:
        figure.legend(handles=axes.lines, loc="outside upper center", ncols=2)
    return figure


def comparison(records, names):
    """The same as a page, with the table: text of an HTML file."""
    title = "1 run" if len(records) == 1 else f"{len(records)} runs compared"
    title += f": {', '.join(dict.fromkeys(record.about['data'] for record in records))}"
    head, *rows = table(records, names)
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ""
    for (name, *values), (colour, stroke) in zip(rows, _looks(), strict=False):
        key = f'<span class="key" style="border-color: {_on_page(colour)}; border-top-style: {STROKES[stroke]}"></span>'
        body += f'<tr><th scope="row">{key}{escape(name)}</th>'
        body += "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>"
    same = "" if differences(records) or len(records) == 1 else paragraph("Their configurations are the same.", "about")
    return page(
        title,
        f"<header><h1>{escape(title)}</h1></header>",
        paragraph(_sentence(other_data(records)), "note"),
        scrolling(f'<table class="number"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>', "results"),
        same,
        paragraph(_sentence(spread(records))),
        section("How they learned", '<div class="panels">', *_plots(records, names), "</div>"),
    )


def _plots(records, names):
    for x, y, xlabel, ylabel in PANELS:
        lines = list(_lines(records, names, x, y))
        last = "; ".join(f"{line.label} ends at {line.y[-1]:.4g}" for line in lines if line.y)
        drawn = panel(lines, xlabel, percent=y.endswith("accuracy"))
        yield plot(drawn, f"{y}-{x}", f"{ylabel} by {xlabel}: {last}", f"{ylabel}, by {xlabel}")


def _lines(records, names, x, y):
    scale = 100 if y.endswith("accuracy") else 1
    for record, name, (colour, stroke) in zip(records, names, _looks(), strict=False):
        rows = [row for row in record.history if x in row]
        yield Line([row[x] for row in rows], [scale * row[y] for row in rows], colour, stroke, name)


def _looks():
    """Colours with strokes, without end: each colour solid, then each dashed, …"""
    return itertools.cycle((colour, stroke) for stroke in STROKES for colour in COLOURS)


def _on_page(colour):
    return {BLUE: "var(--blue)", ORANGE: "var(--orange)", INK: "var(--ink)"}.get(colour, colour)


def _sentence(words):
    return words and words[0].upper() + words[1:] + "."


def _percent(share):
    return f"{100 * share:.2f} %"


def _plain(value):
    return (
        f"{value:g}"
        if isinstance(value, float)
        else "×".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(value)
    )
