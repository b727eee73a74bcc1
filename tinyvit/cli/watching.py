"""`tinyvit watch`: a run's curves in the terminal while it goes on in another one.

A terminal that moves its cursor gets a picture that is drawn over; a file, a pipe or a plainer terminal gets a line an
epoch. Both come from reading the run's folder again and again, so the run itself knows nothing of its watchers.
"""

import os
import shutil
import sys

from tinyvit.cli.shared import complain
from tinyvit.cli.tensorboard import Events
from tinyvit.train.folder import command_to_resume
from tinyvit.train.runs import duration, follow

CURVES = (("accuracy", "validation_accuracy"), ("loss", "validation_loss"))


def run_watch(options):
    events = Events(options.tensorboard) if options.tensorboard else None
    show = Picture(sys.stdout) if draws(sys.stdout) else Lines(sys.stdout)
    record = None
    try:
        for record in follow(options.run_folder, waiting=lambda why: complain(f"waiting for the run: {why}")):
            show(record)
            if events:
                events.write(record)
    except KeyboardInterrupt:  # whoever watches may stop, and needs no words for it
        return 130
    finally:
        if events:
            events.close()
    if record.state == "stopped":
        return complain(f"the run has {record.progress()}; {command_to_resume(record.folder)} lets it go on", 1)
    print(f"test accuracy {100 * record.test['test_accuracy']:.2f} %")
    return 0


def draws(stream):
    """Whether the stream is a terminal whose cursor moves and that has colours and all letters."""
    modern = os.name != "nt" or "WT_SESSION" in os.environ  # Windows' old console shows the codes as text
    plain = os.environ.get("TERM") == "dumb" or "NO_COLOR" in os.environ
    return modern and not plain and stream.isatty() and "utf" in (stream.encoding or "").lower()


class Lines:
    """A line for each epoch."""

    def __init__(self, stream):
        self.stream, self.done = stream, None

    def __call__(self, record):
        if self.done is None:
            self.say(headline(record))
            self.done = 0
        if record.epochs_done < self.done:
            self.say(f"resumed after epoch {record.epochs_done}")
        for row in record.after(min(self.done, record.epochs_done)):
            speed = f"  {row['images_per_second']:,.0f} images/s" if "images_per_second" in row else ""
            self.say(
                f"epoch {row['epoch']:3d}/{record.recipe.epochs}  loss {row['loss']:.3f}  "
                f"validation {row['validation_accuracy']:.2%}{speed}"
            )
        self.done = record.epochs_done

    def say(self, text):
        encoding = self.stream.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=self.stream, flush=True)


class Picture:
    """The curves, drawn over the ones before."""

    def __init__(self, stream):
        self.stream, self.height = stream, 0

    def __call__(self, record):
        columns, lines = shutil.get_terminal_size()
        picture = frame(record, max(columns - 1, 40), max(lines - 1, 12))
        up = f"\x1b[{self.height}A" if self.height else ""
        # Each line is cleared to its end, and below the last all that a taller picture has left.
        self.stream.write(up + "".join(f"{line}\x1b[K\n" for line in picture) + "\x1b[J")
        self.stream.flush()
        self.height = len(picture)


def headline(record):
    return f"{record.folder}: {record.about['data']}, {record.parameter_count():,} parameters"


def status(record):
    """How far, how well, how long still."""
    parts = [f"epoch {record.epochs_done} of {record.recipe.epochs}"]
    if record.history:
        left = record.seconds / record.epochs_done * (record.recipe.epochs - record.epochs_done)
        parts.append(duration(record.seconds) + (f" and about {duration(left)} to go" if left else ""))
        best = record.best
        parts.append(f"best validation {best['validation_accuracy']:.2%} in epoch {best['epoch']}")
    return " · ".join(parts)


def frame(record, columns, lines):
    """The picture: at most so many lines, each of at most so many letters (colours not counted)."""
    from tinyvit.cli.plot import epoch_axis, plot

    each = min((lines - 3) // len(CURVES) - 1, 12)
    picture = [headline(record)[:columns], status(record)[:columns]]
    for curves in CURVES:
        picture += plot(record.history, curves, record.recipe.epochs, each, columns)
    return [*picture, epoch_axis(record.recipe.epochs, columns)]
