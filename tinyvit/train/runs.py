"""What a run's folder tells, while the run goes on and long after.

Who reads beside a writer must expect three things: that the file is not there yet, that its last line is half written,
and that a resumed run cuts it back to what its checkpoint knows. So nothing is remembered from one look to the next:
the file is short, and read as a whole each time. No server, no second process: the folder is the interface, and its
lock says whether somebody still trains.

Chapter of the course: notebooks/07-training.ipynb.
"""

import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyvit.models import build, from_dict, to_dict
from tinyvit.train.checkpoint import CheckpointError, patiently
from tinyvit.train.folder import CHECKPOINT, CONFIG, being_trained
from tinyvit.train.metrics import METRICS, read_metrics
from tinyvit.train.recipes import Recipe


class NotYet(CheckpointError):
    """There is no run, or none yet: the folder or its config.toml is missing."""


@dataclass(frozen=True)
class Record:
    """A run as its folder has it at one moment.

    folder: as it was asked for.
    about: config.toml, a dict: recipe, model, data, classes, mean, std, machine, and for a fine-tuned run origin.
    recipe: its Recipe. model: its configuration.
    history: a dict for each finished epoch, as in metrics.jsonl, with numbers for all of OF_AN_EPOCH (`metrics.py`).
    test: the last line of a finished run, with test_accuracy and test_loss; else None.
    state: "finished"; "running" while a process trains in the folder; else "stopped", by whatever.
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
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def seconds(self):
        """Of training, as far as it is recorded."""
        return (self.test or (self.history or [{}])[-1]).get("seconds", 0.0)

    @property
    def best(self):
        """The epoch with the highest validation accuracy, of equals the one with the lower loss, as best.safetensors
        has it; None before the first has ended."""
        return max(self.history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]), default=None)

    def after(self, epoch):
        """The history from there on. (It may have gaps, where lines were damaged and the run has gone on.)"""
        return [row for row in self.history if row["epoch"] > epoch]

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
    """The Record of a run's folder. Raises NotYet where it is missing, CheckpointError that says what is damaged."""
    folder = Path(folder)
    about, recipe, model = _configuration(folder)
    running = being_trained(folder)  # first: what is written afterwards can only be more than it says
    try:
        history, test, trouble = read_metrics(folder)
    except OSError as error:
        raise CheckpointError(f"{folder / METRICS} cannot be read: {error.strerror}") from None
    if trouble:
        raise CheckpointError(trouble)
    state = "finished" if test else "running" if running else "stopped"
    written = [_written(folder / name) for name in (CONFIG, METRICS, CHECKPOINT)]
    return Record(folder, about, recipe, model, history, test, state, written[0], max(written))


def follow(folder, every=1.0, waiting=lambda why: None, idle=lambda: None):
    """Yield the run's Record now and after each change, until the run ends; the last one is of a run that has ended.

    Args:
        folder: need not be there yet, nor the run in it have begun; `waiting(why)` is told once for each reason.
        every: seconds between two looks. `idle()` is called before each such pause.

    Raises CheckpointError for what is damaged, and where the folder goes away.
    """
    last, told = None, None
    while True:
        try:
            record = read_run(folder)
        except NotYet as error:
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
        idle()
        time.sleep(every)


def duration(seconds):
    """A time in words: 42 s, 12 min 3 s, 2 h 5 min."""
    minutes, whole = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return f"{minutes} min {whole} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _configuration(folder):
    """(about, Recipe, model's configuration) of config.toml."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise NotYet(f"there is no run's folder at {folder}")
    try:
        about = tomllib.loads(patiently(path.read_text, "utf-8"))
        if not isinstance(about["data"], str) or not all(isinstance(name, str) for name in about["classes"]):
            raise ValueError("data and classes must be names")
        return about, Recipe.from_dict(about["recipe"]), from_dict(about["model"])
    except FileNotFoundError:
        raise NotYet(f"{folder} is not a run's folder: it holds no {CONFIG}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise CheckpointError(f"{path} is damaged: {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:  # TOML's and Unicode's own errors are ValueErrors
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _written(path):
    """When the file was last written, seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
