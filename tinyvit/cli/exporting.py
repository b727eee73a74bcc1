"""`tinyvit export`: a trained model as other libraries read it."""

from pathlib import Path

from tinyvit.classifier import load
from tinyvit.cli.shared import complain
from tinyvit.interop import WRITERS, find_weights, write

FORMATS = {
    "hf": "a folder for Hugging Face's transformers",
    "timm": "a folder for timm",
    "google": "a .npz as vit_jax has it",
    "onnx": "a graph for any runtime",
}
ENDINGS = {"hf": "-hf", "timm": "-timm", "google": ".npz", "onnx": ".onnx"}


def run_export(options):
    classifier = load(options.checkpoint, options.heads)
    path = Path(options.out or _beside(options.checkpoint, ENDINGS[options.format]))
    for note in classifier.notes:
        complain(f"tinyvit export: {note}")
    ending = ENDINGS[options.format]
    if ending.startswith("."):  # a file, which replaces one of that name
        if path.suffix.lower() != ending:
            return complain(f"tinyvit export: the file's name must end in {ending}, got {path}", 1)
        if path.exists() and classifier.recipe is None and path.samefile(find_weights(options.checkpoint)):
            return complain(f"tinyvit export: {path} is what is read; name another file with --out", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if options.format in WRITERS:
            for note in write(options.format, path, classifier):
                complain(f"tinyvit export: {note}")
        else:
            from tinyvit.interop.onnx import write_onnx

            names = classifier.classes if classifier.knows_classes else ()
            write_onnx(path, classifier.model, names, classifier.mean, classifier.std, _seen(classifier))
    except (ValueError, ImportError) as error:
        return complain(f"tinyvit export: {error}", 1)
    print(path)
    return 0


def _seen(classifier):
    """How a picture gets the model's size, in words for the file's metadata."""
    prepare, (h, w) = classifier.prepare, classifier.model.config.image_size
    if prepare.resize is None:
        return f"squashed to {h}×{w} ({prepare.filter})"
    sides = prepare.resize
    first = f"shortest side to {sides}" if isinstance(sides, int) else f"squashed to {sides[0]}×{sides[1]}"
    return f"{first} ({prepare.filter}), then the centre, {h}×{w}"


def _beside(checkpoint, ending):
    """RUN/model-hf in a run's folder, or beside a file."""
    checkpoint = Path(checkpoint)
    return checkpoint / f"model{ending}" if checkpoint.is_dir() else checkpoint.with_name(f"{checkpoint.stem}{ending}")
