"""`tinyvit info`, `tinyvit data` and `tinyvit bench`: what is here, and how fast it is."""

import importlib.metadata
import os
import platform
from pathlib import Path

import tinyvit
from tinyvit import kernels, train
from tinyvit.cli.shared import complain, load_data
from tinyvit.data.fetch import cache_folder, found_in


def run_info(options):
    from threadpoolctl import threadpool_info

    blas = [p for p in threadpool_info() if p["user_api"] == "blas"]
    rows = {
        "tinyvit": f"{tinyvit.__version__} in {Path(tinyvit.__file__).parent}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in ("numpy", "numba", "scipy", "matplotlib")),
        "cores": f"{train.available_cores()} for this process",
        "BLAS": ", ".join(
            f"{p['internal_api']} {p['version']} ({p.get('architecture', '?')}, {p['num_threads']} threads)"
            for p in blas
        )
        or "not visible (one thread each is asked for while training)",
        "kernels": kernels.backend(),
        "compiled": f"{kernels.CACHE_FOLDER or 'anew in each process: no writable folder'}"
        + ("" if kernels.compiled_before() else " (nothing yet)"),
        "data": f"TINYVIT_DATA={_contents(os.environ.get('TINYVIT_DATA'))}",
        "": f"downloads: {_contents(cache_folder())}",
    }
    for name, value in rows.items():
        print(f"{name:<10} {value}")


def _contents(folder):
    """A folder and the data sets in it, in words."""
    if not folder:
        return "(not set)"
    if not Path(folder).is_dir():
        return f"{folder} (no such folder)"
    return f"{folder} ({', '.join(found_in(folder)) or 'no data sets'})"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def run_data(options):
    dataset = load_data(options.name)
    print(dataset)
    print("classes: " + ", ".join(dataset.classes))


def run_bench(options):
    from tinyvit import bench, viz

    rivals = [name for name in bench.RIVALS if name != "compile" or options.compile]
    threads = options.threads or min(2, train.available_cores())
    try:
        results = bench.train_step(threads=[threads], rivals=rivals, rounds=3, seconds=0.25, say=complain)
    except bench.BenchError as error:
        return complain(f"tinyvit bench: {error}", 1)
    print(bench.training_report(results))  # first, so that no full disk can take it away
    if options.json:
        results.save(options.json)
    if options.picture:
        viz.save(bench.training_picture(results), options.picture)
