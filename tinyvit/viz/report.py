"""A run on one page: how well, how it learned, where it errs, where it looks, and how to use it.

The page is a file that can be sent to somebody who has no tinyvit, and that still says in a year what was done. So it
holds all that it shows (see `page.py`), the whole configuration, and the lines that load the model again.
"""

import html
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from PIL import Image

from tinyvit.interpret import confusion
from tinyvit.train.folder import command_to_resume, quoted
from tinyvit.train.runs import duration
from tinyvit.viz.figure import BLUE, GREY, ORANGE
from tinyvit.viz.images import overlay
from tinyvit.viz.page import (
    drawing,
    escape,
    facts,
    page,
    paragraph,
    plot,
    scrolling,
    section,
    settings,
    thumbnail,
    tile,
)
from tinyvit.viz.panels import Line, panel
from tinyvit.viz.training import confusion as confusion_figure

MISTAKES = 24
PAIRS = 20  # of classes that are mistaken for each other, where the matrix has no room for numbers
MOST_CLASSES = 20  # whose numbers have room


@dataclass(frozen=True)
class Answers:
    """What a model has said of images.

    split: "test" or "validation". images: (M, h, w, C) uint8. labels: (M,). probabilities: (M, classes).
    chosen: indices of those to show attention for. maps: (len(chosen), rows, cols) from `interpret.class_attention`.
    epochs_done: those that the model had behind it, which may be fewer than the run's: checkpoints come in between.
    """

    split: str
    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    chosen: np.ndarray = ()
    maps: np.ndarray = ()
    epochs_done: int = 0

    @property
    def accuracy(self):
        return float((self.probabilities.argmax(1) == self.labels).mean())


def report(record, answers=None, missing=""):
    """The page, as text.

    Args:
        record: a Record, see `train/runs.py`; of a run that is in progress or stopped too.
        answers: Answers of its model, for everything that needs images.
        missing: why there are none, a sentence.
    """
    classes = record.about["classes"]
    title = f"{record.about['data']}: {_result(record)}"
    return page(
        title,
        f"<header>\n<h1>{escape(title)}</h1>",
        paragraph(_state(record), "note") if record.state != "finished" else "",
        paragraph(_story(record)),
        facts(_facts(record)),
        "</header>",
        section("How it learned", *_curves(record.history)),
        *([] if answers is None else _pictures(record, answers, classes)),
        paragraph(f"No confusion matrix, mistakes and attention: {missing}", "note") if missing else "",
        section("How to use it", *_use(record)),
        section("Configuration", *_configuration(record)),
    )


def _percent(share):
    return f"{100 * share:.2f}\u00a0%"


def _result(record):
    if record.test:
        return f"{_percent(record.test['test_accuracy'])} of the test images right"
    return record.progress()


def _state(record):
    when = datetime.fromtimestamp(record.changed).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    if record.state == "running":
        return f"This run is in progress. The page shows it as it was on {when}. To write it anew, run tinyvit report."
    return f"This run has stopped before its end, on {when}. It can go on from its checkpoint, see below."


def _story(record):
    model, origin = record.model, record.about.get("origin")
    kind = {"vit": "Vision Transformer", "resnet": "ResNet"}.get(model.kind, f"model of kind {model.kind}")
    h, w = model.image_size
    text = f"A {kind} with {record.parameter_count():,} parameters for images of {h}×{w}"
    text += f", {model.tokens} tokens each. " if hasattr(model, "tokens") else ". "
    if origin:
        text += f"It began with the weights of {origin.get('run')}, trained on {origin.get('data')}. "
    begun = datetime.fromtimestamp(record.started).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return text + f"Trained on {record.about['data']}, begun on {begun}."


def _facts(record):
    found = {}
    if record.test:
        found["test accuracy"] = _percent(record.test["test_accuracy"])
        found["test loss"] = f"{record.test['test_loss']:.4f}"
    if record.best:
        found["best validation"] = f"{_percent(record.best['validation_accuracy'])} (epoch {record.best['epoch']})"
        found["last validation"] = _percent(record.history[-1]["validation_accuracy"])
    found["epochs"] = f"{record.epochs_done} of {record.recipe.epochs}"
    found["training time"] = duration(record.seconds)
    speeds = [row["images_per_second"] for row in record.history if "images_per_second" in row]
    if speeds:
        found["training speed"] = f"{np.median(speeds):,.0f} images/s"
    return found


# ---------------------------------------------------------------------------------------------- curves


def _curves(history):
    if not history:
        yield paragraph("No epoch is finished yet.")
        return
    keys = {"orange": "training images, mean over the epoch", "blue": "validation images, after the epoch"}
    keys = (f'<span><span class="key" style="border-color: var(--{c})"></span>{t}</span> ' for c, t in keys.items())
    yield f'<p class="about keys">{"".join(keys)}</p>'
    panels = [
        ("loss", "loss (cross-entropy)", {"loss": ORANGE, "validation_loss": BLUE}),
        ("accuracy", "accuracy in %, errors on a logarithmic scale",
         {"accuracy": ORANGE, "validation_accuracy": BLUE}),
        ("rate", "learning rate", {"lr": GREY}),
        ("norm", "length of the gradient before clipping, mean over the epoch", {"gradient_norm": GREY}),
    ]  # fmt: skip
    yield '<div class="panels">'
    for name, caption, colours in panels:
        if all(set(colours) <= row.keys() for row in history):
            yield plot(*_panel(history, name, caption, colours), caption)
    yield "</div>"


def _panel(history, name, caption, colours):
    """(figure, its name on the page, its description)."""
    epochs, scale = [row["epoch"] for row in history], 100 if name == "accuracy" else 1
    lines = [Line(epochs, [scale * row[key] for row in history], colour) for key, colour in colours.items()]
    ends = [
        f"{key.replace('_', ' ')} {line.y[0]:.4g} after epoch {epochs[0]}, {line.y[-1]:.4g} after epoch {epochs[-1]}"
        for key, line in zip(colours, lines, strict=True)
    ]
    return panel(lines, "epoch", percent=name == "accuracy"), name, f"{caption}: {'; '.join(ends)}"


# ---------------------------------------------------------------------------------------------- images


def _pictures(record, answers, classes):
    """The sections that need images."""
    accuracy = f"Right on {_percent(answers.accuracy)} of {len(answers.labels):,} {answers.split} images"
    if not record.test:
        accuracy += (
            f", by the checkpoint after {answers.epochs_done} whole epochs; the test images are for the run's end"
        )
    told = record.test["test_accuracy"] if record.test else answers.accuracy
    if abs(answers.accuracy - told) > 1e-6:
        accuracy += f"; when the run ended it was {_percent(told)}, so the images or the checkpoint are others now"
    yield section("What it takes for what", paragraph(accuracy + "."), *_confusion(answers, classes))
    yield section("Its surest mistakes", *_mistakes(answers, classes))
    if len(answers.maps):
        about = "Beside each image the same with its patches coloured: yellow is where the model has its information "
        about += "from, by attention rollout."
        tiles = [_looked_at(answers, i, map, classes) for i, map in zip(answers.chosen, answers.maps, strict=True)]
        tiles = f'<div class="tiles" style="--tile: 10.5rem">{"".join(tiles)}</div>'
        yield section("Where it looks", paragraph(about, "about"), tiles)


def _confusion(answers, classes):
    counts = confusion(answers.labels, answers.probabilities.argmax(1), len(classes))
    if len(classes) > MOST_CLASSES:
        yield drawing(confusion_figure(counts, classes), "The confusion matrix; its largest entries are listed below.")
        yield _worst_pairs(counts, classes)
        return
    long = max(map(len, classes)) > 3
    head = "".join(
        f'<th scope="col"><div class="long">{escape(c)}</div></th>' if long else f'<th scope="col">{escape(c)}</th>'
        for c in classes
    )
    most = max((counts - np.diag(np.diag(counts))).max(), 1)
    rows = []
    for i, name in enumerate(classes):
        cells = "".join(
            "<td></td>" if not n else f'<td class="right">{n}</td>' if i == j
            else f'<td class="wrong" style="--share: {0.15 + 0.45 * n / most:.2f}">{n}</td>'
            for j, n in enumerate(counts[i])
        )  # fmt: skip
        total = counts[i].sum()
        share = f"{100 * counts[i, i] / total:.1f} %" if total else "none"
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{share}</td></tr>')
    about = "A row is what an image shows, a column what the model said; the bluer, the more often it erred so."
    yield paragraph(about, "about")
    head = f'<tr><td></td>{head}<th scope="col">right</th></tr>'
    table = f'<table class="counts"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    yield scrolling(table, "confusion matrix")


def _worst_pairs(counts, classes):
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    rows = "".join(
        f'<tr><th scope="row">{escape(classes[i])}</th><td>{escape(classes[j])}</td><td>{wrong[i, j]} of '
        f"{counts[i].sum()}</td></tr>"
        for i, j in pairs
    )
    head = '<tr><th scope="col">true</th><th scope="col">taken for</th><th scope="col">images</th></tr>'
    return scrolling(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>", "most frequent mistakes")


def _mistakes(answers, classes):
    predicted, sure = answers.probabilities.argmax(1), answers.probabilities.max(1)
    wrong = np.flatnonzero(predicted != answers.labels)
    if not len(wrong):
        yield paragraph(f"No mistakes among {len(predicted):,} images.")
        return
    shown = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]
    which = f"the {len(shown)} of which it was surest" if len(shown) < len(wrong) else "all of them, the surest first"
    yield paragraph(f"{len(wrong):,} of {len(predicted):,} images wrong; {which}.", "about")
    tiles = []
    for i in shown:
        caption = _caption(answers, i, classes)
        alt = f"an image of class {classes[answers.labels[i]]}"
        tiles.append(f"<figure>{tile(thumbnail(answers.images[i]), alt)}<figcaption>{caption}</figcaption></figure>")
    yield f'<div class="tiles">{"".join(tiles)}</div>'


def _looked_at(answers, i, map, classes):
    picture = thumbnail(answers.images[i])
    pixels = np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    enlarged = overlay(pixels, map)
    factor = len(enlarged) // len(pixels)
    seen = Image.fromarray(np.ascontiguousarray(enlarged[::factor, ::factor]))
    alt = f"an image of class {classes[answers.labels[i]]}"
    return (
        f'<figure><div class="pair">{tile(picture, alt)}{tile(seen, "the same, coloured by attention")}</div>'
        f"<figcaption>{_caption(answers, i, classes)}</figcaption></figure>"
    )


def _caption(answers, i, classes):
    p = answers.probabilities[i]
    said = f"said {classes[p.argmax()]} ({100 * p.max():.0f}\u00a0%)"
    return f"{escape(f'true {classes[answers.labels[i]]}')}<br>{escape(said)}"


# ---------------------------------------------------------------------------------------------- words


def _use(record):
    def code(text):
        return f"<pre><code>{html.escape(text, quote=False)}</code></pre>"

    folder = str(record.folder)
    word = quoted(folder)
    if record.state == "stopped":
        yield paragraph("Let it go on, as if it had never stopped:")
        yield code(command_to_resume(folder))
    if record.state == "running":
        yield paragraph("See the curves grow in a terminal:")
        yield code(f"tinyvit watch {word}")
    yield paragraph("Load it in Python, and ask it about an image file:")
    yield code(f"import tinyvit; model = tinyvit.load({folder!r})\nmodel.predict(model.read('image.png')[0][None])")
    yield paragraph("Or in a terminal, where predict also draws what it looked at:")
    yield code(f"tinyvit predict {word} image.png\ntinyvit eval {word}")


def _configuration(record):
    def plain(values):
        return {name: _value(value) for name, value in values.items()}

    about = record.about
    yield '<div class="tables">'
    yield settings("Recipe", plain(about["recipe"]))
    yield settings("Model", plain(about["model"]))
    classes = about["classes"]
    data = {"name": about["data"], "classes": f"{len(classes)}: {', '.join(classes[:40])}{', …' * (len(classes) > 40)}"}
    yield settings("Data", data | plain({name: about.get(name, "") for name in ("mean", "std")}))
    yield settings("Machine", plain(about.get("machine", {})))
    if "origin" in about:
        yield settings("Began with", plain(about["origin"]))
    yield "</div>"


def _value(value):
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)
