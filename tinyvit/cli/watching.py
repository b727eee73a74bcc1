"""`tinyvit watch`: a run's curves in the terminal while it goes on in another one.

A terminal that moves its cursor gets a picture that is drawn over, as much of it as there is room for; a file, a pipe
or a plainer terminal gets a line an epoch. Both come from reading the run's folder again and again, so the run itself
knows nothing of its watchers.
"""

import os
import shutil
import sys
import unicodedata

from tinyvit.cli.shared import complain
from tinyvit.cli.tensorboard import Events
from tinyvit.train.folder import command_to_resume
from tinyvit.train.runs import duration, follow

CURVES = (("accuracy", "validation_accuracy"), ("loss", "validation_loss"))
LEAST = (39, 3)  # columns and rows of text below which curves are no curves


def run_watch(options):
    events = Events(options.tensorboard) if options.tensorboard else None
    show = Picture(sys.stdout) if draws(sys.stdout) else Lines(sys.stdout)
    record = None
    try:
        waiting = dict(waiting=lambda why: complain(f"waiting for the run: {why}"), idle=show.again)
        for record in follow(options.run_folder, **waiting):
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

    def again(self):
        """Nothing: what is said stays as it is."""

    def say(self, text):
        encoding = self.stream.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=self.stream, flush=True)


class Picture:
    """The curves, drawn over the ones before. Always smaller than the terminal, by the line and the column at which it
    would scroll or wrap; a picture that did could not be drawn over."""

    def __init__(self, stream):
        self.stream, self.record, self.size, self.height = stream, None, None, 0

    def __call__(self, record):
        size = shutil.get_terminal_size()
        picture = frame(record, max(size[0] - 1, 1), max(size[1] - 1, 1))
        begin = f"\x1b[{self.height}A" if self.height else ""
        if self.size not in (None, size):  # where the lines of the old picture are now, the terminal alone knows
            begin = "\x1b[2J\x1b[H"
        # Each line is cleared to its end, and below the last all that a taller picture has left.
        self.stream.write(begin + "".join(f"{line}\x1b[K\n" for line in picture) + "\x1b[J")
        self.stream.flush()
        self.record, self.size, self.height = record, size, len(picture)

    def again(self):
        """Draw the same once more if the terminal has another size by now."""
        if self.record is not None and shutil.get_terminal_size() != self.size:
            self(self.record)


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
    """The picture: at most so many lines, each of at most so many columns (colours not counted). Where there is no room
    for all curves it is the accuracy's alone, or none; the last that stays is how far the run is."""
    from tinyvit.cli.plot import epoch_axis, plot

    picture = [cut(text, columns) for text in (headline(record), status(record))[-lines:]]
    for count in (2, 1):
        rows = min((lines - 3) // count - 1, 12)
        if columns >= LEAST[0] and rows >= LEAST[1]:
            for curves in CURVES[:count]:
                picture += plot(record.history, curves, record.recipe.epochs, rows, columns)
            return [*picture, epoch_axis(record.recipe.epochs, columns)]
    return picture


def cut(text, columns):
    """As much of the text as stands in so many columns; letters of some scripts take two."""
    taken = 0
    for i, letter in enumerate(text):
        taken += 1 + (unicodedata.east_asian_width(letter) in "WF")
        if taken > columns:
            return text[:i]
    return text
