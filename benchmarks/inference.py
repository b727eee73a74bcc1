"""Prediction against PyTorch: `python benchmarks/inference.py` prints a Markdown report.

The latency of one image (median and ninetieth percentile) and the throughput of batches of 256, of `model.predict` and
of PyTorch eager in inference mode, in turns. Under a minute for a thread count. `--shapes ti16 b16` measures ViT-Ti/16
and ViT-B/16 at 224 × 224 pixels instead, in batches of 8, in three minutes.
"""

import argparse
import sys

from tinyvit import bench


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    known = [*bench.SHAPES, *bench.PUBLISHED]
    names = f"models, of {' '.join(known)} ({' '.join(bench.SHAPES)})"
    add("--shapes", nargs="+", choices=known, default=list(bench.SHAPES), metavar="NAME", help=names)
    add("--threads", nargs="+", type=int, default=[1], metavar="N", help="thread counts (1)")
    add("--rounds", type=int, default=5, metavar="N", help="rounds a model (5)")
    add("--json", metavar="FILE", help="write the times of all rounds there")
    options = parser.parse_args()
    results = bench.inference(
        options.shapes, options.threads, options.rounds, say=lambda text: print(text, file=sys.stderr)
    )
    print(bench.inference_report(results))
    if options.json:
        results.save(options.json)


if __name__ == "__main__":
    try:
        main()
    except bench.BenchError as error:
        sys.exit(f"inference: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
