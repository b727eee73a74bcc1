"""Seconds of training to a given accuracy, beside the same recipe in PyTorch: `python benchmarks/time_to_accuracy.py`.

A fast step is worth little if it takes more of them. So here both train: the same initial weights, the same batches in
the same order with the same augmentation, the same AdamW with warm-up, cosine and clipping. They take turns, an epoch
each, in processes of their own, so that a busy moment of the machine meets both. Counted is training alone: making
batches and steps, not looking at the validation images after each epoch. An accuracy counts as reached at the end of
the first epoch whose validation accuracy is not below it.

PyTorch runs eagerly, once on one thread and once on all (small models can be faster on one); tinyvit chooses for
itself. The last line is the geometric mean, over data sets and accuracies, of the faster PyTorch's seconds over
tinyvit's.
"""

import argparse
import multiprocessing
import sys
import time
from dataclasses import replace
from statistics import median

import numpy as np

from tinyvit import bench, data, kernels, models, optim, train
from tinyvit.bench.machine import machine
from tinyvit.bench.report import spread, table
from tinyvit.bench.statistics import paired, verdict
from tinyvit.data.batches import steps_per_epoch

TARGETS = {"digits": (90, 95, 97, 98), "mnist": (97, 98, 98.5, 99)}  # validation accuracy in percent
OURS = "tinyvit"


class Tinyvit:
    """A recipe's training by tinyvit: `step` on a batch, `right` counts on images."""

    def __init__(self, recipe, model):
        self.recipe, self.model = recipe, model
        self.optimizer = optim.AdamW(model, weight_decay=recipe.weight_decay)
        self.shards = train.Shards(model, self.optimizer.flat, recipe.shards)

    def step(self, images, labels, lr):
        self.shards.gradient(images, labels, self.recipe.smoothing)
        self.optimizer.clip_gradients(self.recipe.clip)
        self.optimizer.step(lr)

    def right(self, images, labels):
        return int((self.model.predict(images).argmax(1) == labels).sum())


class PyTorch:
    """The same by PyTorch, as `tinyvit/bench/pytorch.py` writes the model."""

    def __init__(self, recipe, model, threads):
        import torch

        from tinyvit.bench.pytorch import ViT

        torch.set_num_threads(threads)
        self.torch, self.recipe = torch, recipe
        self.model = ViT(model.config)
        self.model.load_state_dict(
            {name: torch.from_numpy(w.copy()) for name, w in weights_for_pytorch(model).items()}, strict=True
        )
        decay = [p for p in self.model.parameters() if p.ndim in (2, 4)]  # matrices; class token and positions have 3
        rest = [p for p in self.model.parameters() if p.ndim not in (2, 4)]
        groups = [dict(params=decay, weight_decay=recipe.weight_decay), dict(params=rest, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)

    def step(self, images, labels, lr):
        torch = self.torch
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(self.tensor(images))
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels), label_smoothing=self.recipe.smoothing
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()

    def right(self, images, labels):
        with self.torch.inference_mode():
            return int((self.model(self.tensor(images)).argmax(1).numpy() == labels).sum())

    def tensor(self, images):
        return self.torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def weights_for_pytorch(model):
    """{name in bench/pytorch.py: array} of a ViT's parameters; a Linear there is (out, in), a patch (D, C, P, P)."""
    w = {name: p.data for name, p in model.named_parameters()}
    c = model.config
    patches = w["embedding.weight"].reshape(c.patch, c.patch, c.channels, c.width).transpose(3, 2, 0, 1)
    theirs = {"patches.weight": patches, "patches.bias": w["embedding.bias"], "cls": w["cls"]}
    theirs |= {"positions": w["positions.table"], "norm.weight": w["norm.gamma"], "norm.bias": w["norm.beta"]}
    theirs |= {"head.weight": w["head.weight"].T, "head.bias": w["head.bias"]}
    layers = {"qkv": "attention.qkv", "out": "attention.out", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    for i in range(c.depth):
        for norm in ("norm1", "norm2"):
            theirs[f"blocks.{i}.{norm}.weight"] = w[f"blocks.{i}.{norm}.gamma"]
            theirs[f"blocks.{i}.{norm}.bias"] = w[f"blocks.{i}.{norm}.beta"]
        for name, ours in layers.items():
            theirs[f"blocks.{i}.{name}.weight"] = w[f"blocks.{i}.{ours}.weight"].T
            theirs[f"blocks.{i}.{name}.bias"] = w[f"blocks.{i}.{ours}.bias"]
    return {name: np.ascontiguousarray(array) for name, array in theirs.items()}


def check(recipe):
    """Raises BenchError for a recipe with more to it than the two here do: they would train by another one."""
    strange = [name for name in ("dropout", "mixup", "cutmix", "drop_path", "ema") if getattr(recipe, name)]
    strange += ["clip"] if not recipe.clip else []
    strange += ["optimizer"] if recipe.optimizer != "adamw" else []
    strange += ["preset"] if type(models.PRESETS[recipe.preset]) is not models.ViTConfig else []
    if strange:
        said = ", ".join(f"{name} = {getattr(recipe, name)}" for name in strange)
        raise bench.BenchError(f"{recipe.data}: PyTorch's side of this race has no {said}")


def worker(name, recipe, threads, pipe):
    """A process: at each message it trains for an epoch and answers (seconds, validation accuracy)."""
    dataset = data.load(recipe.data, image_size=recipe.image_size or None)
    model = models.build(train.fitting.configure(recipe, dataset), recipe.seed)
    racer = Tinyvit(recipe, model) if name == OURS else PyTorch(recipe, model, threads)
    steps = steps_per_epoch(len(dataset.train), recipe.batch_size)
    total = recipe.epochs * steps
    warmup = min(int(recipe.warmup * steps), total // 5)
    how = dict(mean=dataset.mean, std=dataset.std)
    once = next(data.batches(dataset.train, recipe.batch_size, **how))
    racer.step(*once, 0.0)  # compiles; with rate 0 it changes nothing but Adam's moments, for all alike
    racer.right(*once)
    pipe.send("ready")
    for epoch in range(recipe.epochs):
        pipe.recv()
        start = time.perf_counter()
        served = data.batches(
            dataset.train,
            recipe.batch_size,
            **how,
            seed=recipe.seed,
            epoch=epoch,
            augment=data.augmentation(recipe),
        )
        for i, (images, labels) in enumerate(served):
            racer.step(images, labels, optim.warmup_cosine(epoch * steps + i, total, recipe.lr, warmup))
        seconds = time.perf_counter() - start
        seen = data.batches(dataset.validation, 256, **how, shuffle=False)
        right = sum(racer.right(images, labels) for images, labels in seen)
        pipe.send((seconds, right / len(dataset.validation)))


def race(recipe, contenders):
    """{name: [(seconds so far, validation accuracy), …]}, an entry an epoch; the contenders in turn, who begins too.

    contenders: {name: threads}.
    """
    names = list(contenders)
    spawn = multiprocessing.get_context("spawn")
    pipes, processes, curves = {}, [], {name: [] for name in names}
    try:
        for name in names:
            pipes[name], theirs = spawn.Pipe()
            processes.append(spawn.Process(target=worker, args=(name, recipe, contenders[name], theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes[name].recv()
        for epoch in range(recipe.epochs):
            for name in names if epoch % 2 else reversed(names):
                pipes[name].send("go")
                seconds, accuracy = pipes[name].recv()
                before = curves[name][-1][0] if curves[name] else 0.0
                curves[name].append((before + seconds, accuracy))
    except EOFError:
        raise bench.BenchError(f"{recipe.data}: a contender died, see above") from None
    finally:
        for process in processes:
            process.terminate()
    return curves


def reached(curve, target):
    """Seconds at the end of the first epoch with that accuracy in percent; None if there is none."""
    return next((seconds for seconds, accuracy in curve if 100 * accuracy >= target - 1e-9), None)


def report(recipe, races):
    """(Markdown about the races of one data set, the faster PyTorch's ratio at each accuracy that all reach)."""
    names, rows, ratios = list(races[0]), [], []
    rivals = [name for name in names if name != OURS]
    for target in [*TARGETS[recipe.data], None]:
        seconds = {
            name: [curves[name][-1][0] if target is None else reached(curves[name], target) for curves in races]
            for name in names
        }
        row, best = ["whole recipe" if target is None else f"{target} %"], []
        for name in names:
            got = [t for t in seconds[name] if t is not None]
            some = f" ({len(got)} of {len(races)})" if len(got) < len(races) else ""
            row.append(f"{median(got):.1f}{some}" if got else "–")
            if name in rivals:
                both = [(a, b) for a, b in zip(seconds[name], seconds[OURS], strict=True) if a and b]
                ratio = paired(*zip(*both, strict=True)) if both else None
                row.append(spread(ratio) if ratio else "–")
                best += [ratio[0]] if ratio and target else []
        rows.append(row)
        ratios += [min(best)] if best else []
    head = ["validation accuracy", f"{OURS}, s"]
    for name in rivals:
        head += [f"{name}, s", "ratio"]
    ends = "; ".join(f"{name} " + " ".join(f"{100 * curves[name][-1][1]:.2f}" for curves in races) for name in names)
    seeds = f"{len(races)} seed{'s' * (len(races) > 1)}"
    text = f"## {recipe.data}: {recipe.epochs} epochs, {seeds}\n\n{table(head, rows)}\n\n"
    return text + f"Validation accuracy at the end, by seed, in percent: {ends}.", ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", nargs="+", choices=TARGETS, default=list(TARGETS), help="data sets (all)")
    add("--seeds", type=int, default=3, metavar="N", help="races a data set (3)")
    add("--epochs", type=int, metavar="N", help="in place of the recipe's, for a quick look")
    options = parser.parse_args()
    cores = train.shards.available_cores()
    contenders = {OURS: cores} | {f"PyTorch, {n} thread{'s' * (n > 1)}": n for n in sorted({1, cores})}
    print("# Time to accuracy\n")
    print(*(f"- {what}: {value}" for what, value in machine().items()), sep="\n")
    print("- seconds are medians over the seeds; a ratio is PyTorch's seconds over tinyvit's, (lowest to highest)\n")
    kernels.announce_compilation()
    ratios = []
    for name in options.data:
        recipe = train.RECIPES[name]
        recipe = replace(recipe, epochs=options.epochs or recipe.epochs)
        check(recipe)
        races = []
        for seed in range(options.seeds):
            races.append(race(replace(recipe, seed=seed), contenders))
            print(f"{name}: seed {seed} done", file=sys.stderr)
        text, more = report(recipe, races)
        print(f"{text}\n")
        ratios += more
    print(f"the faster PyTorch at each accuracy: {verdict(ratios)}" if ratios else "no accuracy was reached by both")


if __name__ == "__main__":
    try:
        main()
    except (bench.BenchError, data.DataError) as error:
        sys.exit(f"time_to_accuracy: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
