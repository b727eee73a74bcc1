"""`tinyvit report`: the page that `train` leaves at its end, written again, or while the run still goes on."""

from pathlib import Path

import numpy as np

from tinyvit import data, train
from tinyvit.classifier import load
from tinyvit.cli.shared import check_fits, complain, data_for, in_turn
from tinyvit.train.checkpoint import write_atomically
from tinyvit.train.runs import read_run

PAGE = "report.html"
ENOUGH = 1000  # validation images that a run which is not finished is asked about
SHOWN = 10  # images with attention


def run_report(options):
    path = Path(options.out or Path(options.run_folder) / PAGE)
    missing = write_report(options.run_folder, path=path, asked=options.data)
    print(path)
    return complain(f"tinyvit report: without confusion matrix, mistakes and attention: {missing}", 1) if missing else 0


def write_report(folder, dataset=None, probabilities=None, *, path=None, asked=None):
    """Write the page of a run, into its folder or to `path`; returns why pictures are missing, or "".

    Args:
        dataset: what the run was trained on; by default it is loaded, from `asked` if that is given.
        probabilities: of the test images, (M, classes), where the run is finished and they are known.

    Raises CheckpointError for what is no run's folder, OSError where the page cannot be written.
    """
    from tinyvit import viz

    record, answers, missing = read_run(folder), None, ""
    try:
        answers = ask(record, dataset, probabilities, asked)
    except (data.DataError, train.CheckpointError) as error:
        if asked and isinstance(error, data.DataError):
            raise
        missing = str(error)
    page = viz.report(record, answers, missing)
    write_atomically(path or Path(folder) / PAGE, page.encode("utf-8", "replace"))
    return missing


def ask(record, dataset=None, probabilities=None, asked=None):
    """The Answers of a run's model: to the test images where the run is finished; else to some of the validation
    images, for the test images are looked at once."""
    from tinyvit import interpret, viz

    classifier = load(record.folder)
    dataset = dataset or data_for(classifier, asked)
    check_fits(classifier, dataset)
    split, name = (dataset.test, "test") if record.test else (dataset.validation, "validation")
    images, labels = split.images, split.labels
    if not record.test:
        some = in_turn(labels, ENOUGH)
        images, labels, probabilities = images[some], labels[some], None
    if probabilities is None:
        probabilities = np.concatenate(
            [classifier.predict(images[start : start + 256]) for start in range(0, len(images), 256)]
        )
    chosen = in_turn(labels, SHOWN)
    seen = interpret.has_attention(classifier.model)
    maps = interpret.class_attention(classifier.model, classifier.normalise(images[chosen])) if seen else ()
    return viz.Answers(name, images, labels, probabilities, chosen, maps, classifier.epochs_done)
