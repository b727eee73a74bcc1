"""`tinyvit export`: a trained model as other libraries read it."""

from pathlib import Path

from tinyvit.classifier import load
from tinyvit.cli.shared import complain
from tinyvit.interop import WRITERS, write

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
    if path.exists() and path.samefile(options.checkpoint):
        return complain(
            f"tinyvit export: {path} must be another file than the one that is read: --out", 1
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if options.format in WRITERS:
            for note in write(options.format, path, classifier):
                complain(f"tinyvit export: {note}")
        else:
            from tinyvit.interop.onnx import write_onnx

            write_onnx(path, classifier.model, classifier.classes, classifier.mean, classifier.std)
    except (ValueError, ImportError) as error:
        return complain(f"tinyvit export: {error}", 1)
    print(path)
    return 0


def _beside(checkpoint, ending):
    """RUN/model-hf in a run's folder, or beside a file."""
    checkpoint = Path(checkpoint)
    return checkpoint / f"model{ending}" if checkpoint.is_dir() else checkpoint.with_name(f"{checkpoint.stem}{ending}")
