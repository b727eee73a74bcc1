"""The training step beside PyTorch's, on one thread and on several; where its time goes; what memory it takes.

Per shape, all contenders are in the same rounds: tinyvit on one thread and on as many as asked for, PyTorch eager and
compiled on as many as asked for, and the step's parts on one. So every ratio in the report, between rivals or between
thread counts, is one within rounds.
"""

import importlib.util

from tinyvit.bench.parts import breakdown
from tinyvit.bench.report import ms, opening, remarks, spread, table
from tinyvit.bench.results import survey
from tinyvit.bench.rounds import label
from tinyvit.bench.shapes import BATCH, SHAPES
from tinyvit.bench.statistics import paired, verdict

PARTS = label("parts", 1)
RIVALS = {"eager": "PyTorch eager", "compile": "torch.compile"}


def has_pytorch():
    """Whether PyTorch is installed; it is not imported for that."""
    return importlib.util.find_spec("torch") is not None


def train_step(shapes=tuple(SHAPES), threads=(1,), rivals=tuple(RIVALS), rounds=5, seconds=0.4, say=print):
    """Measure the training step; returns Results.

    Args:
        shapes: keys of SHAPES.
        threads: thread counts at which to compare; tinyvit is measured on one thread in any case.
        rivals: keys of RIVALS; left away where PyTorch is not installed.
        rounds, seconds: rounds a shape; the length of a turn.
        say: is told what happens, a line a call.

    Raises BenchError if tinyvit itself cannot be measured.
    """
    contenders = [("tinyvit", count) for count in sorted({1, *threads})]
    contenders += [(rival, count) for rival in rivals for count in threads if has_pytorch()]
    contenders += [("parts", 1)]
    return survey(contenders, shapes, threads, rounds, seconds, say)


def training_report(results):
    """Results of `train_step` as Markdown. The last line is the verdict, if there was a rival."""
    step = f"A step is forward, backward and AdamW on a batch of {BATCH} images."
    sections = [opening("The training step", results, step), _comparison(results)]
    if max(results.threads) > 1:
        sections += ["## What threads bring", _scaling(results)]
    sections += [
        "## Where a step on one thread goes, in ms",
        "Kernel by kernel, forward and backward together, with each encoder block composed of its single ops, where a "
        "real step runs it as one kernel. All else is Python, the engine, and what NumPy does itself.",
        _parts(results),
        "## The limit: matrix products alone, one thread",
        "Through NumPy's BLAS into arrays that are there already. A step takes so many times as long:",
        _limit(results),
        "## Memory, in MB",
        _memory(results),
        "## Remarks",
        remarks(results),
    ]
    if not has_pytorch():
        sections.append("PyTorch is not installed here; `pip install torch` gives the comparison.")
    if ratios := [ratio[0] for *_, ratio in best_rivals(results)]:
        sections.append(verdict(ratios))
    return "\n\n".join(sections)


def best_rivals(results):
    """[(shape, threads, rival, (median, lowest, highest) of its time over tinyvit's)], of the rivals the faster."""
    best = []
    for shape, measured in results.shapes.items():
        for count in results.threads:
            ours, theirs = label("tinyvit", count), {rival: label(rival, count) for rival in RIVALS}
            ratios = [(measured.ratio(theirs[r], ours), r) for r in RIVALS if theirs[r] in measured]
            if ratios:
                ratio, rival = min(ratios)
                best.append((shape, count, rival, ratio))
    return best


def stacks(results):
    """{shape: {part: seconds}} of tinyvit's step on one thread."""
    return {
        shape: breakdown({part: measured.time(PARTS, part) for part in measured.rounds[0][PARTS]})
        for shape, measured in results.shapes.items()
        if PARTS in measured
    }


def training_picture(results):
    """The ratios and the parts as a figure."""
    from tinyvit import viz  # matplotlib is slow to load

    bars = {}
    for rival in _present(results):
        for count in results.threads:
            ours, theirs = label("tinyvit", count), label(rival, count)
            known = {s: m.ratio(theirs, ours) for s, m in results.shapes.items() if theirs in m}
            bars |= {label(RIVALS[rival], count): known} if known else {}
    return viz.benchmark(bars, stacks(results))


# ---------------------------------------------------------------------------------------------- tables


def _present(results):
    """The rivals that were measured anywhere."""
    names = {name for measured in results.shapes.values() for name in measured.memory}
    return [rival for rival in RIVALS if any(name.startswith(rival) for name in names)]


def _comparison(results):
    head = ["shape", "threads", "tinyvit ms", "images/s"]
    for rival in _present(results):
        head += [f"{RIVALS[rival]} ms", "ratio"]
    rows = []
    for shape, measured in results.shapes.items():
        for count in results.threads:
            ours = label("tinyvit", count)
            row = [shape, count, ms(measured.time(ours)), f"{BATCH / measured.time(ours):,.0f}"]
            for theirs in (label(rival, count) for rival in _present(results)):
                known = theirs in measured
                row += [ms(measured.time(theirs)), spread(measured.ratio(theirs, ours))] if known else ["–", "–"]
            rows.append(row)
    return table(head, rows)


def _scaling(results):
    """How many times as fast as on one thread."""
    many, names = max(results.threads), ["tinyvit"] + _present(results) * (1 in results.threads)
    rows = []
    for shape, measured in results.shapes.items():
        pairs = [(label(name, 1), label(name, many)) for name in names]
        rows.append([shape, *(spread(measured.ratio(*p)) if all(n in measured for n in p) else "–" for p in pairs)])
    head = ["shape", *(f"{RIVALS.get(name, name)} ×{many} against ×1" for name in names)]
    return table(head, rows)


def _parts(results):
    rows, names = [], []
    for shape, stack in stacks(results).items():
        names = names or list(stack)
        rows.append([shape, ms(sum(stack.values())), *(ms(stack[name]) for name in names)])
    return table(["shape", "step", *names], rows)


def _limit(results):
    rows = []
    for shape, measured in results.shapes.items():
        if PARTS in measured:
            alone, row = measured.times(PARTS, "products"), [shape, ms(measured.time(PARTS, "products"))]
            for name in ("tinyvit", *_present(results)):
                known = label(name, 1) in measured
                row.append(spread(paired(measured.times(label(name, 1)), alone)) if known else "–")
            rows.append(row)
    names = [f"{RIVALS.get(name, name)} over products" for name in ("tinyvit", *_present(results))]
    return table(["shape", "products ms", *names], rows)


def _memory(results):
    names = dict.fromkeys(n for m in results.shapes.values() for n in m.memory if not n.startswith("parts"))
    rows, whole_life = [], False
    for shape, measured in results.shapes.items():
        each = [measured.memory.get(name) for name in names]
        rows.append([shape, *(f"{m['growth']:.0f} ({m['peak']:.0f})" if m else "–" for m in each)])
        whole_life |= any(m and m["whole life"] for m in each)
    note = "How much a process grows by model, batch and steps, and (its peak in all, with interpreter and libraries)."
    if whole_life:
        note += " This system does not forget a peak, so both are those of the whole life, compilation included."
    return f"{note}\n\n{table(['shape', *names], rows)}"
