"""`tinyvit eval` and `tinyvit predict`: ask a trained model again, about a test set or about pictures."""

import io
import itertools
from pathlib import Path

import numpy as np

from tinyvit import data, train
from tinyvit.classifier import load
from tinyvit.cli.shared import check_fits, complain, data_for
from tinyvit.train.checkpoint import write_atomically


def run_eval(options):
    classifier = load(options.checkpoint, options.heads)
    for note in classifier.notes:
        complain(f"tinyvit eval: {note}")
    if not classifier.knows_classes:
        return complain(f"tinyvit eval: {options.checkpoint} has no head; `tinyvit finetune` gives it one", 1)
    dataset = data_for(classifier, options.data)
    check_fits(classifier, dataset)
    split = getattr(dataset, options.split)
    accuracy, loss, _ = train.evaluate(classifier.model, split, classifier.mean, classifier.std)
    print(f"{dataset.name}, {len(split):,} {options.split} images: loss {loss:.4f}")
    print(f"{options.split} accuracy {100 * accuracy:.2f} %")


def run_predict(options):
    classifier = load(options.checkpoint, options.heads)
    for note in classifier.notes:
        complain(f"tinyvit predict: {note}")
    if not classifier.knows_classes:
        return complain(f"tinyvit predict: {options.checkpoint} has no head; `tinyvit finetune` gives it one", 1)
    from PIL import Image

    from tinyvit import interpret, viz

    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    taken = {_key(path) for path in options.images}  # never drawn over
    failed = 0
    for path in options.images:
        try:
            image, note = classifier.read(path)
        except data.DataError as error:  # the other images still get their answer
            failed = complain(f"tinyvit predict: {error}", 1)
            continue
        p = classifier.predict(image[None])[0]
        print(f"{path}" + (f"  ({note})" if note else ""))
        for k in np.argsort(-p)[: options.top]:
            print(f"  {100 * p[k]:6.2f} %  {classifier.classes[k]}")
        if not interpret.has_attention(classifier.model):
            continue
        overlay = viz.overlay(image, interpret.class_attention(classifier.model, classifier.normalise(image[None]))[0])
        picture = _free(folder / f"{Path(path).name}-attention.png", taken)
        taken.add(_key(picture))
        png = io.BytesIO()
        Image.fromarray(overlay).save(png, "PNG")
        write_atomically(picture, png.getvalue())
        print(f"  attention: {picture}")
    return failed


def _free(path, taken):
    """The path, or where that is taken, the path with the first free number."""
    numbered = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if _key(p) not in taken)


def _key(path):
    """Equal for two paths of one file, also where letter case does not count."""
    return str(Path(path).resolve()).casefold()
