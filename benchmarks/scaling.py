"""How far do more machines carry? `PYTHONPATH=. python benchmarks/scaling.py` from a checkout, with mpi4py and mpiexec.

Measured, on this machine, with real augmentation, clipping and AdamW:

    strong scaling   the same batch on one process, on two ranks, on one process with two threads
    weak scaling     twice the batch on two ranks
    the sum          what the all-reduce takes of a step, waiting for the other rank included; and by itself
    a ping           8 bytes and 8 MiB to and fro between two ranks: latency and bandwidth

Predicted for R machines with a rank each, from a model of the step:

    t = serve · B  +  fixed + image · B / R  +  update
        +  2 (R - 1) / R · bytes / bandwidth  +  (R - 1 + 2 log₂ R) · latency

B is the batch of all ranks. Each makes all of it (serve) and takes the whole optimiser's step (update): neither gets
shorter with more ranks. A shard costs something even without images (fixed). The bytes are the gradient's. The messages
are those of an all-to-all, as if one waited for the other, and of two all-gathers, as trees. What the backward pass
could hide, if the gradient were sent in buckets while it runs, is the term with the bytes at most.

The networks of the prediction are assumed, not measured: 94 % of 1 or 10 Gb/s, latency 50 or 20 µs.

Times are lower quartiles over steps, as others may use the machine too; then medians over rounds in which the
contenders take turns.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from tinyvit import data, optim
from tinyvit.bench.shapes import SHAPES
from tinyvit.data.dataset import Split
from tinyvit.models import ViT
from tinyvit.train import one_blas_thread
from tinyvit.train.folder import machine
from tinyvit.train.ranks import job

AUGMENT = {"digits": "digits", "mnist7": "mnist", "cifar": "cifar"}
BATCH, SMALL, SHARDS = 128, 16, 2
CONTENDERS = {  # ranks, threads, batch, shards
    "1 rank × 1 thread": (1, 1, BATCH, SHARDS),
    "2 ranks × 1 thread": (2, 1, BATCH, SHARDS),
    "1 rank × 2 threads": (1, 2, BATCH, SHARDS),
    "2 ranks, twice the batch": (2, 1, 2 * BATCH, SHARDS),
    "one shard": (1, 1, BATCH, 1),
    "one small shard": (1, 1, SMALL, 1),
}
NETWORKS = {"1 Gb/s": (0.94e9 / 8, 50e-6), "10 Gb/s": (9.4e9 / 8, 20e-6)}  # bytes a second, seconds
PARTS = ("serve", "gradient", "sum", "numbers", "update")


def measure(shape, threads, batch, shards, seconds):
    """Train for so many seconds, two epochs at least; returns {part: its seconds in a step}, and "step", the whole of
    it, "alone", the sum when no rank waits, "bytes" of the gradient."""
    config, rng = SHAPES[shape], np.random.default_rng(0)
    images = rng.integers(0, 256, (1024, *config.image_size, config.channels), np.uint8)
    split = Split(images, rng.integers(0, config.classes, 1024))
    options = dict(mean=(0.5,) * config.channels, std=(0.5,) * config.channels, augment=data.AUGMENTS[AUGMENT[shape]])
    model, times = ViT(config), {part: [] for part in PARTS}
    optimizer = optim.AdamW(model)
    with job().interrupt() as interrupt, job().shards(model, optimizer.flat, shards, threads, interrupt) as workers:
        clock(workers, "_own_part", times["gradient"])
        if job().size > 1:
            clock(job(), "add_up", times["sum"])
        epoch, end = 0, time.perf_counter() + seconds
        while job().once(time.perf_counter) < end or len(times["serve"]) < 16:
            end = job().once(lambda end: end, end)
            served, epoch = data.batches(split, batch, epoch=epoch, **options), epoch + 1
            while True:
                start = time.perf_counter()
                x, y = next(served, (None, None))
                if x is None or len(x) < batch:
                    break
                times["serve"].append(time.perf_counter() - start)
                start = time.perf_counter()
                workers.gradient(x, y, 0.1, (0, epoch))
                inside = times["gradient"][-1] + (times["sum"][-1] if times["sum"] else 0.0)
                times["numbers"].append(time.perf_counter() - start - inside)
                start = time.perf_counter()
                optimizer.clip_gradients(1.0)
                optimizer.step()
                times["update"].append(time.perf_counter() - start)
        alone = []
        if job().size > 1:
            del job().add_up  # the clocked one
            clock(job(), "add_up", alone)
            for _ in range(50):
                job().comm.Barrier()
                job().add_up(workers.message, workers.pieces)
            del job().add_up
    steps = np.sum([times[part] for part in PARTS[1:] if times[part]], axis=0)
    found = {part: quartile(times[part]) if times[part] else 0.0 for part in PARTS}
    found["serve"] = float(np.mean(times["serve"][8:]))  # small images are served for several steps at once
    return found | {
        "step": quartile(steps) + found["serve"], "alone": quartile(alone) if alone else 0.0,
        "bytes": optimizer.flat.gradients.nbytes,
    }  # fmt: skip


def quartile(times):
    """The lower one, without the first 8: they compile, and touch memory for the first time."""
    return float(np.quantile(times[8:], 0.25))


def clock(thing, name, seconds):
    """From now on this method notes its seconds."""
    method = getattr(thing, name)

    def clocked(*arguments):
        start = time.perf_counter()
        result = method(*arguments)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(thing, name, clocked)


def ping(size, rounds=200):
    """Seconds that so many bytes take from one rank to the other: half of there and back."""
    comm, message, seconds = job().comm, np.zeros(size, np.uint8), []
    for _ in range(rounds):
        comm.Barrier()
        start = time.perf_counter()
        for sender in (0, 1):
            if job().rank == sender:
                comm.Send(message, 1 - sender)
            else:
                comm.Recv(message, sender)
        seconds.append((time.perf_counter() - start) / 2)
    return median(seconds)


def rank(arguments):
    """A process of a job: measure all shapes, and let rank 0 print the result."""
    threads, batch, shards, seconds, shapes = arguments
    with job().together(), one_blas_thread():
        found = {
            shape: measure(shape, int(threads), int(batch), int(shards), float(seconds)) for shape in shapes.split(",")
        }
        if job().size == 2:
            found["ping"] = ping(8), ping(2**23, 20)
    job().voice(print)(json.dumps(found))


def launch(contender, seconds, shapes):
    ranks, threads, batch, shards = CONTENDERS[contender]
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    numbers = map(str, (threads, batch, shards, seconds))
    command = [sys.executable, __file__, "--rank", *numbers, ",".join(shapes)]
    command = [mpiexec, "-n", str(ranks), *command] if ranks > 1 else command
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def predict(cost, R, batch, bandwidth, latency, hidden=False):
    """Seconds of a step on R ranks by the model above; `hidden`: the bytes at no cost, as if all overlapped."""
    own = cost["serve"] * batch + cost["fixed"] + cost["image"] * batch / R + cost["update"]
    sent = 0.0 if hidden else 2 * (R - 1) / R * cost["bytes"] / bandwidth
    return own + (sent + (R - 1 + 2 * math.log2(R)) * latency if R > 1 else 0.0)


def report(rounds, shapes):
    """Print the tables."""

    def of(contender, shape, part="step"):
        return median(found[contender][shape][part] for found in rounds)

    def gain(numerator, denominator, shape, factor=1):
        ratios = [factor * f[numerator][shape]["step"] / f[denominator][shape]["step"] for f in rounds]
        return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    one, two, threads, double, whole, small = CONTENDERS
    about = machine()
    print(f"# Scaling\n\n{os.cpu_count()} cores, {about['system']}, Python {about['python']}, NumPy {about['numpy']},")
    print(f"Numba {about['numba']}; batch {BATCH}, {SHARDS} shards, {len(rounds)} rounds; ms a step\n")
    print(f"| shape | parameters | {one} | {two} | {threads} | {double} |\n|---|---|---|---|---|---|")
    for shape in shapes:
        cells = [f"{1e3 * of(contender, shape):.2f}" for contender in (one, two, threads, double)]
        print(f"| {shape} | {int(of(one, shape, 'bytes')) // 4:,} | {' | '.join(cells)} |")
    print("\n| shape | speed of 2 ranks | of 2 threads | weak scaling, images a second |\n|---|---|---|---|")
    for shape in shapes:
        print(f"| {shape} | {gain(one, two, shape)} | {gain(one, threads, shape)} | {gain(one, double, shape, 2)} |")
    print(f"\n{two}, where the time goes (the sum includes waiting for the other rank; by itself in brackets):\n")
    print(f"| shape | {' | '.join(PARTS)} | sum's share |\n|---|{'---|' * (len(PARTS) + 1)}")
    for shape in shapes:
        cells = [f"{1e3 * of(two, shape, part):.3f}" for part in PARTS]
        alone, step = of(two, shape, "alone"), of(two, shape)
        cells[2] += f" ({1e3 * alone:.3f})"
        print(f"| {shape} | {' | '.join(cells)} | {of(two, shape, 'sum') / step:.1%} ({alone / step:.1%}) |")

    latency = median(found[two]["ping"][0] for found in rounds)
    bandwidth = 2**23 / (median(found[two]["ping"][1] for found in rounds) - latency)
    print(f"\nping between two ranks here: {1e6 * latency:.1f} µs, {bandwidth / 1e9:.1f} GB/s\n")
    costs = {}
    for shape in shapes:
        little = of(small, shape, "gradient")
        image = (of(whole, shape, "gradient") - little) / (BATCH - SMALL)
        costs[shape] = dict(
            serve=of(whole, shape, "serve") / BATCH, image=image, fixed=max(0.0, little - SMALL * image),
            update=of(whole, shape, "update"), bytes=of(whole, shape, "bytes"),
        )  # fmt: skip
    print(
        "| shape | serve, µs an image | gradient, µs an image | fixed, ms | update, ms | 2 ranks: model, measured, ms |"
    )
    print("|---|---|---|---|---|---|")
    for shape, cost in costs.items():
        model, measured = predict(cost, 2, BATCH, bandwidth, latency), of(two, shape)
        numbers = 1e6 * cost["serve"], 1e6 * cost["image"], 1e3 * cost["fixed"], 1e3 * cost["update"]
        print(f"| {shape} | {' | '.join(f'{x:.2f}' for x in numbers)} | {1e3 * model:.2f}, {1e3 * measured:.2f} |")
    many = (4, 8, 16, 64)
    print(f"\nPredicted efficiency: speed of R machines over R times that of one, batch {BATCH} (in brackets: with the")
    print(f"transfer hidden); and with a batch of {BATCH} for each machine.\n")
    print(f"| shape, network | {' | '.join(f'R = {R}' for R in many)} | {' | '.join(f'weak, {R}' for R in many)} |")
    print(f"|---|{'---|' * (2 * len(many))}")
    for shape, cost in costs.items():
        base = predict(cost, 1, BATCH, 1, 0)
        for network, link in NETWORKS.items():
            strong = [[base / R / predict(cost, R, BATCH, *link, hidden) for hidden in (False, True)] for R in many]
            weak = [base / predict(cost, R, R * BATCH, *link) for R in many]
            cells = [f"{a:.0%} ({b:.0%})" for a, b in strong] + [f"{x:.0%}" for x in weak]
            print(f"| {shape}, {network} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape in each round")
    parser.add_argument("--shapes", nargs="+", default=list(AUGMENT), choices=AUGMENT)
    parser.add_argument("--rank", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        return rank(options.rank)
    report(
        [{name: launch(name, options.seconds, options.shapes) for name in CONTENDERS} for _ in range(options.rounds)],
        options.shapes,
    )


if __name__ == "__main__":
    main()
