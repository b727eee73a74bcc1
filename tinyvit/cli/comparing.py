"""`tinyvit compare`: runs side by side in the terminal, as a page and as a picture.

`tinyvit compare runs/*` meets whatever lies there: a folder that is empty yet, a file. What is no run is named and left
out, and that is all; what is damaged, or not there at all, is a failure (exit code 1), though the others are compared.
"""

import glob
import os
from pathlib import Path

from tinyvit import train
from tinyvit.cli.shared import complain
from tinyvit.train.checkpoint import write_atomically
from tinyvit.train.runs import NotYet, read_run


def run_compare(options):
    from tinyvit import viz
    from tinyvit.viz.compare import other_data, spread, table

    records, failed = [], 0
    for folder in named(options.runs):
        try:
            records.append(read_run(folder))
        except train.CheckpointError as error:  # the others are still compared
            complain(f"tinyvit compare: {error}")
            failed = failed or not (isinstance(error, NotYet) and Path(folder).exists())
    if not records:
        return 1
    if said := other_data(records):
        complain(f"tinyvit compare: {said}")
    names = short([str(record.folder) for record in records])
    for line in aligned(table(records, names)):
        print(line)
    if said := spread(records):
        print(said)
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "compare.html", viz.comparison(records, names).encode("utf-8", "replace"))
        viz.save(viz.compare(records, names), out / "compare.png")
        print(f"{out / 'compare.html'}\n{out / 'compare.png'}")
    return int(failed)


def named(words):
    """The folders that the words name, each once. Windows' shells leave it to the command to see what * stands for."""
    paths = [path for word in words for path in ([] if Path(word).exists() else sorted(glob.glob(word))) or [word]]
    return list({Path(path).resolve(): path for path in paths}.values())


def short(paths):
    """Names for paths: without the folder that they share."""
    absolute = [os.path.abspath(path) for path in paths]
    try:
        shared = Path(os.path.commonpath([os.path.dirname(path) for path in absolute]))
    except ValueError:  # on two drives
        return paths
    return [Path(path).relative_to(shared).as_posix() for path in absolute]


def aligned(rows):
    """Rows of text as lines whose columns stand below each other: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        cells = [f"{name:<{widths[0]}}", *(f"{v:>{w}}" for v, w in zip(values, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
