"""metrics.jsonl: a line for each epoch, the last one for the test.

A line is added at an epoch's end, and never changed; so all that a kill can leave is half a line at the end, and who
reads while the run goes on finds whole lines. One reader serves all. What is damaged it names, and returns what is not:
who shows a run to people stops at the first, a run that goes on keeps each good line.

Chapter of the course: notebooks/07-training.ipynb.
"""

import json
import math
import os
from pathlib import Path

from tinyvit.train.checkpoint import patiently, write_atomically

METRICS = "metrics.jsonl"
OF_AN_EPOCH = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "lr")
OF_THE_TEST = ("test_accuracy", "test_loss")


def log(folder, row):
    """Add a line; when this returns it is on the disk, as the checkpoint is that will count it."""
    with open(Path(folder) / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_metrics(folder):
    """(history, test, trouble): a dict for each epoch with numbers for all of OF_AN_EPOCH, as they stand in the file;
    the test's dict, or None; what is wrong with the first damaged line, or "". A last line that is torn, or a file that
    is missing, is not there yet. Raises OSError where it cannot be read."""
    try:
        *lines, _ = patiently((Path(folder) / METRICS).read_bytes).split(b"\n")
    except FileNotFoundError:
        lines = []
    history, test, trouble = [], None, ""
    for number, line in enumerate(lines, 1):
        try:
            row, misplaced = json.loads(line.decode("utf-8"), parse_constant=_no_number), ""
            if test is not None:
                misplaced = "it stands after the test's"
            if "test_accuracy" in row:
                test = _with_numbers(row, OF_THE_TEST)
            else:
                history.append(_with_numbers(row, OF_AN_EPOCH))
                if len(history) > 1 and history[-2]["epoch"] >= row["epoch"]:
                    misplaced = misplaced or f"epoch {row['epoch']} stands after epoch {history[-2]['epoch']}"
        except (ValueError, TypeError) as error:
            misplaced = str(error)
        if misplaced and not trouble:
            trouble = f"{Path(folder) / METRICS} is damaged in line {number}: {misplaced}"
    return history, test, trouble


def cut_back(folder, epochs):
    """Make of metrics.jsonl what a run after so many epochs has: each epoch's line that is good, once, in order.
    Returns them."""
    history, _, _ = read_metrics(folder)
    rows = {row["epoch"]: row for row in history if row["epoch"] <= epochs}
    rows = [rows[epoch] for epoch in sorted(rows)]
    write_atomically(Path(folder) / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def _with_numbers(row, names):
    """The row. Raises ValueError unless it is a dict with finite numbers of those names; others it may have."""
    for name in names:
        value = row.get(name) if isinstance(row, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return row


def _no_number(text):
    raise ValueError(f"{text} is no number")
