"""The training step against PyTorch, at full length: `python benchmarks/train_step.py` prints a Markdown report.

Four models, on one thread and on two, beside PyTorch eager and torch.compile and beside the step's matrix products
alone; a few minutes a model, with torch.compile's own compiling. Its last line is the geometric mean and the minimum,
over models and thread counts, of the faster PyTorch's time over tinyvit's. `tinyvit bench` is the short form.
"""

import argparse
import sys

from tinyvit import bench, viz


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shapes", nargs="+", choices=bench.SHAPES, default=list(bench.SHAPES), metavar="NAME", help="models (all)")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="thread counts (1 2)")
    add("--rounds", type=int, default=5, metavar="N", help="rounds a model (5)")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--json", metavar="FILE", help="write the times of all rounds there")
    add("--picture", metavar="FILE", help="draw a PNG")
    options = parser.parse_args()
    rivals = [name for name in bench.RIVALS if name != "compile" or not options.no_compile]
    results = bench.train_step(
        options.shapes, options.threads, rivals, options.rounds, say=lambda text: print(text, file=sys.stderr)
    )
    print(bench.training_report(results))
    if options.json:
        results.save(options.json)
    if options.picture:
        viz.save(bench.training_picture(results), options.picture)


if __name__ == "__main__":
    try:
        main()
    except bench.BenchError as error:
        sys.exit(f"train_step: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
