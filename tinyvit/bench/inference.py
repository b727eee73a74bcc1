"""Prediction beside PyTorch's: how long one image takes, and how many images a second in a batch.

For one image, much of it is the cost of calling: dozens of operations of a few microseconds each. Whoever waits for an
answer minds the slow ones, so the ninetieth percentile stands beside the median.
"""

from tinyvit.bench.report import ms, opening, remarks, spread, table
from tinyvit.bench.results import survey
from tinyvit.bench.rounds import label
from tinyvit.bench.shapes import MODELS, SHAPES, many
from tinyvit.bench.training import has_pytorch


def inference(shapes=tuple(SHAPES), threads=(1,), rounds=5, seconds=0.4, say=print):
    """Measure `model.predict`, and PyTorch eager in inference mode. Arguments and result as in `train_step`; shapes of
    PUBLISHED are possible, too."""
    names = ["tinyvit predict"] + ["eager predict"] * has_pytorch()
    contenders = [(name, count) for count in threads for name in names]
    return survey(contenders, shapes, threads, rounds, seconds, say)


def inference_report(results):
    """Results of `inference` as Markdown."""
    what = "From normalised images in memory to class probabilities; PyTorch eager in inference mode."
    sections = [opening("Prediction", results, what)]
    sections += ["## One image", _one(results), "## Many images at once", _many(results)]
    return "\n\n".join([*sections, "## Remarks", remarks(results)])


def _one(results):
    head = ["shape", "threads", "tinyvit ms", "p90", "PyTorch ms", "p90", "ratio", "ratio of p90"]
    rows = []
    for shape, count, measured, ours, theirs in _pairs(results):
        row = [shape, count, ms(measured.time(ours, "one")), ms(measured.time(ours, "one", "p90"))]
        if theirs in measured:
            row += [ms(measured.time(theirs, "one")), ms(measured.time(theirs, "one", "p90"))]
            row += [spread(measured.ratio(theirs, ours, "one", what)) for what in ("median", "p90")]
        rows.append(row + ["–"] * (len(head) - len(row)))
    return table(head, rows)


def _many(results):
    rows = []
    for shape, count, measured, ours, theirs in _pairs(results):
        images, known = many(MODELS[shape]), theirs in measured
        row = [shape, images, count, _rate(images / measured.time(ours, "many"))]
        row += [_rate(images / measured.time(theirs, "many"))] if known else ["–"]
        row += [spread(measured.ratio(theirs, ours, "many"))] if known else ["–"]
        rows.append(row)
    return table(["shape", "images", "threads", "tinyvit images/s", "PyTorch images/s", "ratio of times"], rows)


def _rate(a_second):
    return f"{a_second:,.0f}" if a_second >= 100 else f"{a_second:.1f}"


def _pairs(results):
    for shape, measured in results.shapes.items():
        for count in results.threads:
            yield shape, count, measured, label("tinyvit predict", count), label("eager predict", count)
