"""What a run's folder tells, while the run goes on and long after.

Who reads beside a writer must expect three things: that the file is not there yet, that its last line is half written,
and that a resumed run cuts it back to what its checkpoint knows. So nothing is remembered from one look to the next:
the file is short, and read as a whole each time. No server, no second process, no lock: the folder is the interface.

Chapter of the course: notebooks/07-training.ipynb.
"""

import json
import math
import time
import tomllib
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from tinyvit.models import build, from_dict, to_dict
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.folder import CHECKPOINT, METRICS
from tinyvit.train.recipes import Recipe

CONFIG = "config.toml"
LAST_WORD = "curves.png"  # `tinyvit train` draws it when it ends, however it ends
QUIET = 180.0  # seconds without a sign of life, and three epochs' more, after which nobody seems to train any longer
OF_AN_EPOCH = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "lr")


@dataclass(frozen=True)
class Record:
    """A run as its folder has it at one moment.

    folder: as it was asked for.
    about: config.toml, a dict: recipe, model, data, classes, mean, std, machine, and for a fine-tuned run origin.
    recipe: its Recipe. model: its configuration.
    history: a dict for each finished epoch, as in metrics.jsonl, with numbers for all of OF_AN_EPOCH.
    test: the last line of a finished run, with test_accuracy and test_loss; else None.
    state: "finished"; "running"; or "stopped", which is known from the pictures that are drawn at the end, or concluded
        from the silence.
    started, changed: when config.toml and when anything was written, seconds since 1970.
    """

    folder: Path
    about: dict
    recipe: Recipe
    model: object
    history: list
    test: dict | None
    state: str
    started: float
    changed: float

    @property
    def epochs_done(self):
        return len(self.history)

    @property
    def seconds(self):
        """Of training, as far as it is recorded."""
        return (self.test or (self.history or [{}])[-1]).get("seconds", 0.0)

    @property
    def best(self):
        """The epoch with the highest validation accuracy, of equals the one with the lower loss, as best.safetensors
        has it; None before the first has ended."""
        return max(self.history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]), default=None)

    def parameter_count(self):
        """How many numbers the model's parameters hold together."""
        return build(self.model).parameter_count()

    def settings(self):
        """{name: value} of the recipe, and of what the model has besides."""
        recipe = asdict(self.recipe)
        model = {name: value for name, value in to_dict(self.model).items() if name not in recipe}
        return recipe | model

    def progress(self):
        """How far the run is, in a few words."""
        done = f"{self.epochs_done} of {self.recipe.epochs} epochs"
        return {"finished": done, "running": f"in progress, {done}", "stopped": f"stopped after {done}"}[self.state]


def read_run(folder):
    """The Record of a run's folder. Raises CheckpointError that says what is missing or damaged."""
    folder = Path(folder)
    about, recipe, model = _configuration(folder)
    history, test = _metrics(folder / METRICS)
    written = {name: _written(folder / name) for name in (CONFIG, METRICS, CHECKPOINT, LAST_WORD)}
    ended, changed = written.pop(LAST_WORD), max(written.values())
    ends = [0.0, *(row.get("seconds", 0.0) for row in history)]
    longest = max((end - begin for begin, end in pairwise(ends)), default=0.0)
    if test is not None:
        state = "finished"
    else:
        state = "stopped" if ended >= changed or time.time() - changed > QUIET + 3 * longest else "running"
    return Record(folder, about, recipe, model, history, test, state, written[CONFIG], changed)


def follow(folder, every=1.0, waiting=lambda why: None):
    """Yield the run's Record now and after each change, until the run ends; the last one is of a run that has ended.

    Args:
        folder: need not be there yet, nor the run in it have begun; `waiting(why)` is told once for each reason.
        every: seconds between two looks.

    Raises CheckpointError for what is damaged after the run has begun, and where the folder goes away.
    """
    last, told = None, None
    while True:
        try:
            record = read_run(folder)
        except CheckpointError as error:
            if last is not None:
                raise
            if str(error) != told:
                waiting(told := str(error))
        else:
            if last is None or (record.history, record.test, record.state) != last:
                last = record.history, record.test, record.state
                yield record
            if record.state != "running":
                return
        time.sleep(every)


def _configuration(folder):
    """(about, Recipe, model's configuration) of config.toml."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"there is no run's folder at {folder}")
    try:
        about = tomllib.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about["data"], str) or not all(isinstance(name, str) for name in about["classes"]):
            raise ValueError("data and classes must be names")
        return about, Recipe.from_dict(about["recipe"]), from_dict(about["model"])
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run's folder: it holds no {CONFIG}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise CheckpointError(f"{path} is damaged: {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:  # TOML's and Unicode's own errors are ValueErrors
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _metrics(path):
    """(a dict for each epoch, the test's dict or None). A last line that is torn is not there yet."""
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    history, test = [], None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=_no_number)
            if test is not None:
                raise ValueError("it stands after the test's")
            if "test_accuracy" in row:
                test = _with_numbers(row, ("test_accuracy", "test_loss"))
            else:
                history.append(_with_numbers(row, OF_AN_EPOCH))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged in line {number}: {error}") from None
    return history, test


def _with_numbers(row, names):
    """The row. Raises ValueError unless it is a dict with finite numbers of those names; others it may have."""
    for name in names:
        value = row.get(name) if isinstance(row, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return row


def _no_number(text):
    raise ValueError(f"{text} is no number")


def _written(path):
    """When the file was last written, seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
