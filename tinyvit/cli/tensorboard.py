"""A run's numbers for TensorBoard, which reads files of its own kind: one "event" a number, written by tensorboardX."""

import time
from pathlib import Path

from tinyvit.cli.shared import Mistake

NAMES = {
    "loss": "loss/training", "validation_loss": "loss/validation", "accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation", "lr": "training/learning_rate",
    "gradient_norm": "training/gradient_norm", "images_per_second": "training/images_per_second",
    "test_accuracy": "test/accuracy", "test_loss": "test/loss",
}  # fmt: skip


class Events:
    """Writes into `folder`/<the run's name> what of a Record is new since the last time. Raises Mistake without
    tensorboardX."""

    def __init__(self, folder):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise Mistake("--tensorboard needs tensorboardX: pip install tinyvit[tensorboard]") from None
        self.make, self.folder, self.writer, self.done = SummaryWriter, Path(folder), None, 0

    def write(self, record):
        done = record.epochs_done
        if self.writer is None or done < self.done:  # at first, and when the run was resumed from an earlier epoch
            self.done = min(self.done, done)
            self.close()
            name = record.folder.resolve().name
            # From `purge_step` on, what earlier files say is void. Files are named by the second; two may share one.
            suffix = f".{time.time_ns()}"
            self.writer = self.make(str(self.folder / name), purge_step=self.done + 1, filename_suffix=suffix)
        for row in record.after(self.done):
            self._add(row, row["epoch"], record.started + row.get("seconds", 0.0))
        if record.test:
            self._add(record.test, done, record.started + record.seconds)
        self.writer.flush()
        self.done = done

    def _add(self, row, step, when):
        for name in NAMES.keys() & row.keys():
            self.writer.add_scalar(NAMES[name], row[name], step, when)

    def close(self):
        if self.writer is not None:
            self.writer.close()
