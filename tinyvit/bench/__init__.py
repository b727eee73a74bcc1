"""How fast is it, beside PyTorch and beside the limit? The code behind `tinyvit bench` and `benchmarks/`.

In reading order:

    shapes        the models that are measured
    ours          tinyvit's step and prediction, as contenders
    pytorch       the same model as a good PyTorch user writes it
    parts         the step taken apart: its matrix products alone are the limit
    footprint     how much memory a process takes
    worker        a contender in a process of its own
    machine       what the machine is, and how many cores it gives just now
    statistics    ratios within rounds
    rounds        taking turns, and again where the machine was busy
    results       shape after shape
    report        what every report says
    training      the training step
    inference     prediction
"""

from tinyvit.bench.inference import inference, inference_report
from tinyvit.bench.results import Results
from tinyvit.bench.rounds import BenchError
from tinyvit.bench.shapes import PUBLISHED, SHAPES
from tinyvit.bench.training import RIVALS, has_pytorch, train_step, training_picture, training_report

__all__ = [
    "BenchError", "PUBLISHED", "RIVALS", "Results", "SHAPES", "has_pytorch", "inference", "inference_report",
    "train_step", "training_picture", "training_report",
]  # fmt: skip
