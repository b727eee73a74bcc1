"""What the runs of `inductive_bias.py` say, as tables and as pictures.

    python examples/inductive_bias_report.py RESULTS.json [--report F] [--picture F]

Nothing is trained, so it takes a second.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.ticker import NullLocator

from tinyvit.train.checkpoint import write_atomically
from tinyvit.viz.figure import BLUE, INK, ORANGE, WIDTH, Picture, save, styled

COLOURS = {"ViT": BLUE, "hybrid": "#009E73", "ResNet": ORANGE}  # Okabe and Ito
MARKS = {"ViT": "o", "hybrid": "s", "ResNet": "^"}


def by(results, model, field, size=None, patch=0):
    """The values of a field, seed by seed: {size: array (seeds, …)}, or of one size the array."""
    runs = [r for r in results["runs"] if r["model"] == model and r["patch"] == patch and field in r]
    sizes = sorted({r["size"] for r in runs})
    values = {n: np.array([r[field] for r in runs if r["size"] == n]) for n in sizes}
    return values if size is None else values[size]


def errors(results, model, patch=0):
    """{size: test errors (seeds,) in %}."""
    return {size: 100 * (1 - test) for size, test in by(results, model, "test", patch=patch).items()}


def spread(values):
    """Mean ± standard deviation over the seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"


def images_needed(results, model, error):
    """How many images the model needs for an error in %, read off its mean curve (straight between the points on
    logarithmic axes); None where the curve does not get there."""
    curve = {size: e.mean() for size, e in errors(results, model).items()}
    size, reached = np.log(list(curve)), np.log(np.minimum.accumulate(list(curve.values())))
    if not reached[-1] <= np.log(error) <= reached[0]:
        return None
    return float(np.exp(np.interp(-np.log(error), -reached, size)))


def report(results):
    """The results as lines of Markdown."""
    study, names = results["study"], list(results["parameters"])
    first, last = names[0], names[-1]
    yield f"# Inductive bias: {study['data']}, {study['seconds']:g} CPU seconds a run"
    yield ""
    yield f"`python examples/inductive_bias.py {study['data']}`; what it means stands at the top of that file."
    yield ""
    yield f"Test accuracy on {study['data']} in %, mean ± standard deviation over the seeds"
    yield ""
    yield "| training images | " + " | ".join(names) + f" | {first}'s errors / {last}'s | {last} gets there with |"
    yield "|---:|" + "---:|" * (len(names) + 2)
    curves = {name: errors(results, name) for name in names}
    for size in study["sizes"]:
        if all(size in curve for curve in curves.values()):
            cells = [spread(100 - curves[name][size]) for name in names]
            ratio = curves[first][size].mean() / curves[last][size].mean()
            needed = images_needed(results, last, curves[first][size].mean())
            cells += [f"{ratio:.2f}", f"{needed:,.0f}" if needed else "–"]
            yield f"| {size:,} | " + " | ".join(cells) + " |"
    yield ""
    yield f"Trained on {study['shuffled_size']:,} images, all patches (training, test) shuffled the same way"
    yield ""
    yield "| side of a patch | " + " | ".join(names) + " |"
    yield "|---:|" + "---:|" * len(names)
    for patch in (0, *study["shuffles"]):
        if all(study["shuffled_size"] in errors(results, name, patch) for name in names):
            cells = [spread(100 - errors(results, name, patch)[study["shuffled_size"]]) for name in names]
            yield f"| {f'{patch} px' if patch else 'not shuffled'} | " + " | ".join(cells) + " |"
    for field, what, amounts in (
        ("shifts", "Test images moved by so many pixels", study["shifts"]),
        ("consistency", "Share that keeps its class when moved, %", study["shifts"]),
        ("grids", "Test images cut into n × n patches, shuffled", study["grids"]),
    ):
        yield ""
        yield f"{what} ({study['tested']:,} of the test images)"
        yield ""
        yield "| model | training images | " + " | ".join(map(str, amounts)) + " |"
        yield "|---|---:|" + "---:|" * len(amounts)
        for name in names:
            for size, values in by(results, name, field).items():
                yield f"| {name} | {size:,} | " + " | ".join(map(spread, 100 * values.T)) + " |"
    yield ""
    yield "| model | parameters | steps a run | passes over the largest set | CPU s of training, mean (least to most) |"
    yield "|---|---:|---:|---:|---:|"
    for name in names:
        mine = [r for r in results["runs"] if r["model"] == name]
        cpu, steps = [r["cpu_seconds"] for r in mine], mine[0]["steps"]
        passes = steps * study["batch"] / study["sizes"][-1]
        yield (
            f"| {name} | {results['parameters'][name]:,} | {steps:,} | {passes:.2f} | "
            f"{np.mean(cpu):.1f} ({min(cpu):.1f} to {max(cpu):.1f}) |"
        )
    total = sum(r["cpu_seconds"] + r["test_seconds"] for r in results["runs"]) / 60
    yield ""
    yield f"{len(results['runs'])} runs, {total:.1f} CPU minutes in all: {total / 2:.1f} minutes on two cores."
    yield ""
    yield "  ".join(f"{name}: {value}" for name, value in results["machine"].items())


@styled
def draw(results):
    """Test error against training images, and the same as a multiple of the ResNet's."""
    study, names = results["study"], list(results["parameters"])
    figure = Picture(figsize=(WIDTH, 5.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.5))
    curves = {name: errors(results, name) for name in names}
    for name, curve in curves.items():
        lines(upper, name, curve)
        reference = {size: curves[names[-1]][size].mean() for size in curve if size in curves[names[-1]]}
        lines(lower, name, {size: curve[size] / error for size, error in reference.items()})
    logarithmic(upper, (0.5, 1, 2, 5, 10, 20, 50), "{x:g} %")
    upper.set_ylabel("test error")
    upper.legend()
    logarithmic(lower, (0.5, 1, 2, 3, 5), "{x:g}×")
    lower.set(ylabel=f"over the {names[-1]}'s", xlabel="training images", xscale="log")
    lower.set_xticks(study["sizes"], [f"{size:,}" for size in study["sizes"]])
    lower.xaxis.set_minor_locator(NullLocator())
    figure.suptitle(f"{study['data']}: equal CPU time ({study['seconds']:g} s a run), more and more images")
    return figure


def lines(axes, name, curve, x=None, **style):
    """The mean as a line, each seed a dot; `curve` {x: values (seeds,)}."""
    where = list(curve) if x is None else x
    means = [values.mean() for values in curve.values()]
    axes.plot(where, means, color=COLOURS[name], label=name, **style)
    for place, values in zip(where, curve.values(), strict=True):
        axes.plot([place] * len(values), values, MARKS[name], color=COLOURS[name], ms=3.5, alpha=0.6, mew=0)


def logarithmic(axes, ticks, form):
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_locator(NullLocator())


@styled
def draw_shifts(results):
    """Accuracy on moved images; on shuffled ones; and error after training on shuffled ones."""
    study, names = results["study"], list(results["parameters"])
    figure = Picture(figsize=(WIDTH, 3.0))
    moving, testing, training = figure.subplots(1, 3)
    for name in names:
        for size, style in zip(study["examined"], ("--", "-"), strict=True):
            values = by(results, name, "shifts").get(size)
            if values is not None:
                curve = dict(zip(study["shifts"], 100 * values.T, strict=True))
                lines(moving, name, curve, linestyle=style)
                whole = {1: curve[0]} | dict(zip(study["grids"], 100 * by(results, name, "grids", size).T, strict=True))
                lines(testing, name, whole, x=range(len(whole)), linestyle=style)
        kinds = {patch: errors(results, name, patch).get(study["shuffled_size"]) for patch in (0, *study["shuffles"])}
        known = {patch: values for patch, values in kinds.items() if values is not None}
        lines(training, name, known, x=range(len(known)))
    moving.set(xlabel="moved by pixels", ylabel="test accuracy, %", title="moved")
    testing.set(xlabel="cut into", title="shuffled when testing")
    testing.set_xticks(range(1 + len(study["grids"])), [f"{n}×{n}" if n > 1 else "whole" for n in (1, *study["grids"])])
    training.set(ylabel="test error", xlabel="side of the patches", title="shuffled from the start")
    training.set_xticks(range(1 + len(study["shuffles"])), ["whole", *(f"{p} px" for p in study["shuffles"])])
    logarithmic(training, (1, 2, 3, 5, 10, 20, 30), "{x:g} %")
    handles = [*moving.get_lines()[:: 1 + len(study["shifts"])][1::2], *plain_lines()]
    small, large = (f"{size:,} images" for size in study["examined"])
    figure.legend(handles, [*names, large, small], loc="outside lower center", ncols=5)
    return figure


def plain_lines():
    """What solid and dashed lines look like, for the legend."""
    axes = Picture().subplots()
    return axes.plot(0, 0, color=INK)[0], axes.plot(0, 0, "--", color=INK)[0]


def write_report(results, report_path=None, picture_path=None):
    """Print the tables; write them and the two pictures, NAME.png and NAME-shifts.png, where asked."""
    text = "\n".join(report(results))
    print(text)
    if report_path:
        write_atomically(report_path, (text + "\n").encode())
    if picture_path:
        save(draw(results), picture_path)
        save(draw_shifts(results), picture_path.with_stem(picture_path.stem + "-shifts"))


def add_outputs(parser):
    parser.add_argument("--report", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--picture", type=Path, help="write NAME.png and NAME-shifts.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    add_outputs(parser)
    given = parser.parse_args()
    write_report(json.loads(given.results.read_text(encoding="utf-8")), given.report, given.picture)
