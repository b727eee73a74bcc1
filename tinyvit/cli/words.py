"""The words of the command line: each command, its options, and the function that it runs."""

import argparse

import tinyvit
from tinyvit import data, nn
from tinyvit.cli.figures import run_figures
from tinyvit.cli.finetuning import run_finetune
from tinyvit.cli.machine import run_bench, run_data, run_info
from tinyvit.cli.shared import folder, positive
from tinyvit.cli.trained import run_eval, run_predict
from tinyvit.cli.training import run_train
from tinyvit.train.finetune import FINETUNING


def parser():
    """The parser of `tinyvit`; what it parses has `run`, the function to call with it."""
    parser = argparse.ArgumentParser(
        "tinyvit", description="A Vision Transformer from scratch on NumPy, to read, train and look into.",
        epilog="`tinyvit COMMAND --help` explains each command.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tinyvit {tinyvit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, help, example):
        sub = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", epilog="examples:\n" + example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "train", run_train, "train a model, a ViT unless --preset says otherwise, and test it",
        "  tinyvit train                          handwritten digits, embedded, under a minute\n"
        "  tinyvit train mnist --epochs 5         downloads MNIST once\n"
        "  tinyvit train path/to/folder --image-size 32 --patch 4\n"
        "                                         a sub-folder of images for each class",
    )  # fmt: skip
    sub.add_argument(
        "data", nargs="?", default="digits", help=f"{', '.join(data.NAMES)}, or a folder of images (digits)"
    )
    add = sub.add_argument
    add("--preset", choices=tinyvit.PRESETS, metavar="NAME", help="model: " + ", ".join(tinyvit.PRESETS))
    add("--patch", type=int, help="patch size in pixels (a hybrid's: of its feature map)")
    add("--image-size", type=int, help="resize the images to this side")
    add("--epochs", type=int, help="passes over the training images")
    add("--batch-size", type=int, help="images per step")
    add("--lr", type=float, help="peak learning rate")
    add("--warmup", type=float, help="epochs of rising learning rate")
    add("--weight-decay", type=float, help="decay of matrices")
    add("--smoothing", type=float, help="label smoothing")
    add("--clip", type=float, help="longest gradient norm; 0 for no clipping")
    add("--dropout", type=float, help="dropout probability")
    add("--optimizer", choices=("adamw", "sgd"), help="adamw or sgd with momentum")
    add("--augment", choices=data.AUGMENTS, metavar="KIND", help="random changes: " + ", ".join(data.AUGMENTS))
    add("--seed", type=int, help="of everything random (0)")
    add("--shards", type=int, help="parts of a batch for the threads; changes rounding")
    add(
        "--threads",
        type=positive,
        help="workers, at most one a shard; changes no result (all cores, or one if that is faster)",
    )
    add("--out", metavar="FOLDER", type=folder, help="the run's folder, new or empty (runs/DATA-1, -2, …)")

    sub = command(
        "finetune", run_finetune, "train a trained ViT further, on other data or larger images",
        "  tinyvit finetune runs/digits-1 digits --image-size 16\n"
        "  tinyvit finetune runs/mnist-1 fashion --epochs 5",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help="a run's folder or checkpoint, of a ViT or a hybrid")
    sub.add_argument("data", metavar="DATA", help=f"{', '.join(data.NAMES)}, or a folder of images")
    add = sub.add_argument
    add("--image-size", type=int, help="resize the images to this side; the patches keep their size (the data's own)")
    add(
        "--mode", choices=nn.resolution.MODES, default="corners",
        help="how positions are interpolated: corners (the paper's code), bilinear or bicubic",
    )  # fmt: skip
    add("--epochs", type=int, help=f"passes over the training images ({FINETUNING['epochs']})")
    add("--batch-size", type=int, help="images per step")
    add("--lr", type=float, help=f"peak learning rate ({FINETUNING['lr']})")
    add("--augment", choices=data.AUGMENTS, metavar="KIND", help="random changes: " + ", ".join(data.AUGMENTS))
    add("--seed", type=int, help="of everything random (0)")
    add("--threads", type=positive, help="workers, at most one a shard; changes no result")
    add("--out", metavar="FOLDER", type=folder, help="the run's folder, new or empty (runs/DATA-1, -2, …)")

    sub = command(
        "eval", run_eval, "test a trained model again",
        "  tinyvit eval runs/digits-1\n  tinyvit eval runs/digits-1 --split validation",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help="a run's folder or checkpoint")
    sub.add_argument("--data", help="other data of the same kind than it was trained on")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="test")

    sub = command(
        "predict", run_predict, "say what is on pictures, and draw where the model looked",
        "  tinyvit predict runs/mnist-1 seven.png --top 3",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help="a run's folder or checkpoint")
    sub.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    sub.add_argument("--top", type=positive, default=5, help="how many classes to name (5)")
    sub.add_argument("--out", metavar="FOLDER", type=folder, default=".", help="where IMAGE-attention.png goes (here)")

    sub = command(
        "figures", run_figures, "draw what a trained ViT has learned and where it looks, into the run's folder",
        "  tinyvit figures runs/mnist-1\n  tinyvit figures runs/mnist-1 --images 20 --out pictures",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help="a run's folder or checkpoint, of a ViT or a hybrid")
    sub.add_argument("--images", type=positive, default=10, help="how many test images to draw attention over (10)")
    sub.add_argument("--data", help="other data of the same kind than it was trained on")
    sub.add_argument("--out", metavar="FOLDER", type=folder, help="where the figures go (RUN/figures)")

    command("info", run_info, "show versions, cores, BLAS, kernels and caches", "  tinyvit info")

    sub = command("data", run_data, "fetch a data set, verify it, show its sizes", "  tinyvit data mnist")
    sub.add_argument("name", metavar="NAME", help=f"{', '.join(data.NAMES)}, or a folder of images")

    sub = command(
        "bench", run_bench, "measure the training step, beside PyTorch where that is installed",
        "  tinyvit bench                          a minute or two; no other work on the machine, please\n"
        "  tinyvit bench --compile --json bench.json --picture bench.png",
    )  # fmt: skip
    sub.add_argument("--threads", type=positive, help="for each contender (2, or 1 where there is one core)")
    sub.add_argument("--compile", action="store_true", help="beside torch.compile too, which takes minutes more")
    sub.add_argument("--json", metavar="FILE", help="write the times of all rounds there")
    sub.add_argument("--picture", metavar="FILE", help="draw a PNG")
    return parser
