"""What every report says: on which machine, of what, and what a reader must know before believing it.

Markdown, so that it reads in a terminal and renders on a page.
"""

from tinyvit.bench.shapes import MODELS, describe


def opening(title, results, explanation):
    """The report's head, up to its first table."""
    facts = "\n".join(f"- {name}: {value}" for name, value in results.facts.items())
    shapes = "\n".join(f"- {shape}: {describe(MODELS[shape])}" for shape in results.shapes)
    rounds = len(next(iter(results.shapes.values())).rounds)
    how = (
        f"Float32. Times are medians over {rounds} rounds in which all take turns. A ratio is the rival's time over "
        "tinyvit's in the same round: the median over the rounds, and (the lowest to the highest)."
    )
    return "\n\n".join([f"# {title}", facts, f"{explanation} {how}", shapes])


def remarks(results):
    """Who was left out, and whether the machine gave what was asked for."""
    lines = []
    for shape, measured in results.shapes.items():
        lines += [f"- {shape}: {label} is left out: {reason}" for label, reason in measured.left_out.items()]
        short, kept = measured.short_of_cores(), f"{len(measured.rounds)} rounds ({measured.played} played)"
        if short:
            consequence = "ratios between threads mean little" if measured.threads > 1 else "times mean little"
            gave = f"{min(short):.2f} of {measured.threads} cores in {len(short)} of {kept}; {consequence}"
        else:
            gave = f"{min(measured.cores):.2f} of {measured.threads} cores or more in all of {kept}"
        lines.append(f"- {shape}: the machine gave {gave}")
    return "\n".join(lines)


def table(head, rows):
    """A Markdown table; its first column to the left, all others to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ms(seconds):
    return f"{1e3 * seconds:.2f}"


def spread(ratio):
    """(median, lowest, highest) in words."""
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
