"""The words of the command line: each command, its options, and the function that it runs."""

import argparse

import tinyvit
from tinyvit import data, nn
from tinyvit.cli.comparing import run_compare
from tinyvit.cli.exporting import FORMATS, run_export
from tinyvit.cli.figures import run_figures
from tinyvit.cli.finetuning import run_finetune
from tinyvit.cli.machine import run_bench, run_data, run_info
from tinyvit.cli.reporting import run_report
from tinyvit.cli.shared import folder, positive
from tinyvit.cli.trained import run_eval, run_predict
from tinyvit.cli.training import run_recipes, run_train
from tinyvit.cli.watching import run_watch
from tinyvit.optim import OPTIMIZERS
from tinyvit.train.finetune import FINETUNING

TRAINED = "a run's folder or checkpoint, or published weights (.npz, .safetensors or their folder)"


def add_heads(sub):
    sub.add_argument("--heads", type=positive, help="of attention, for published weights whose files do not say")


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
        "                                         a sub-folder of images for each class\n"
        "  mpiexec -n 2 tinyvit train mnist       two processes, or machines, share each batch (tinyvit[mpi])\n"
        "  tinyvit train --resume runs/mnist-1    goes on with a run that was stopped, as if it never had been",
    )  # fmt: skip
    sub.add_argument("data", nargs="?", help=f"{', '.join(data.NAMES)}, or a folder of images (digits)")
    add = sub.add_argument
    add("--resume", metavar="RUN", help="go on with the run in that folder; takes no other option but --threads")
    add(
        "--recipe", metavar="NAME",
        help="in place of the data's own: a name that `tinyvit recipes` lists, or a file; DATA goes before its data",
    )  # fmt: skip
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
    add("--optimizer", choices=OPTIMIZERS, help="adamw, muon, or sgd with momentum")
    add("--augment", choices=data.AUGMENTS, metavar="KIND", help="random changes: " + ", ".join(data.AUGMENTS))
    add("--rand-ops", type=int, help="RandAugment: operations an image; 0 for none")
    add("--rand-magnitude", type=float, help="RandAugment: strength, 0 to 10")
    add("--erase", type=float, help="probability that a rectangle of an image is erased")
    add("--mixup", type=float, help="blend two images, α of the Beta distribution; 0 for none")
    add("--cutmix", type=float, help="put a rectangle of one image into another, α likewise; 0 for none")
    add("--drop-path", type=float, help="stochastic depth: probability at the last block")
    add("--ema", type=float, help="average the weights, decay a step; 0 for no average")
    add("--seed", type=int, help="of everything random (0)")
    add("--shards", type=int, help="parts of a batch for threads and ranks; changes rounding")
    add(
        "--threads",
        type=positive,
        help="workers, at most one a shard; changes no result (all cores, or one if that is faster)",
    )
    add("--out", metavar="FOLDER", type=folder, help="the run's folder, new or empty (runs/DATA-1, -2, …)")

    sub = command(
        "finetune", run_finetune, "train a trained ViT further, on other data or larger images",
        "  tinyvit finetune runs/digits-1 digits --image-size 16\n"
        "  tinyvit finetune runs/mnist-1 fashion --epochs 5\n"
        "  tinyvit finetune downloaded-vit path/to/pictures   published weights in their folder, your images in theirs",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help=f"{TRAINED}, of a ViT or a hybrid")
    sub.add_argument("data", metavar="DATA", nargs="?", help=f"{', '.join(data.NAMES)}, or a folder of images")
    add = sub.add_argument
    add("--data", dest="data_too", metavar="DATA", help="the same as DATA")
    add(
        "--image-size", type=int,
        help="resize the images to this side; the patches keep their size (the data's own; a published model's)",
    )  # fmt: skip
    add_heads(sub)
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
    sub.add_argument("checkpoint", metavar="RUN", help=TRAINED)
    add_heads(sub)
    sub.add_argument("--data", help="other data of the same kind than it was trained on")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="test")

    sub = command(
        "predict", run_predict, "say what is on pictures, and draw where the model looked",
        "  tinyvit predict runs/mnist-1 seven.png --top 3\n"
        "  tinyvit predict Ti_16.npz cat.jpg              weights as Google, timm or Hugging Face publish them",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help=TRAINED)
    add_heads(sub)
    sub.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    sub.add_argument("--top", type=positive, default=5, help="how many classes to name (5)")
    sub.add_argument("--out", metavar="FOLDER", type=folder, default=".", help="where IMAGE-attention.png goes (here)")

    sub = command(
        "figures", run_figures, "draw what a trained ViT has learned and where it looks, into the run's folder",
        "  tinyvit figures runs/mnist-1\n  tinyvit figures runs/mnist-1 --images 20 --out pictures",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help=f"{TRAINED}, of a ViT or a hybrid")
    add_heads(sub)
    sub.add_argument("--images", type=positive, default=10, help="how many test images to draw attention over (10)")
    sub.add_argument("--data", help="other data of the same kind than it was trained on")
    sub.add_argument("--out", metavar="FOLDER", type=folder, help="where the figures go (RUN/figures)")

    sub = command(
        "export", run_export, "write a trained ViT as other libraries read it",
        "  tinyvit export runs/mnist-1 --format hf            ViTForImageClassification.from_pretrained(the folder)\n"
        "  tinyvit export Ti_16.npz --format timm --out ti    timm.create_model('local-dir:ti', pretrained=True)",
    )  # fmt: skip
    sub.add_argument("checkpoint", metavar="RUN", help=TRAINED)
    add_heads(sub)
    sub.add_argument(
        "--format", required=True, choices=FORMATS, help="; ".join(f"{k}: {v}" for k, v in FORMATS.items())
    )
    sub.add_argument("--out", metavar="PATH", help="the folder, new or empty, or the file (beside the weights)")

    sub = command(
        "watch", run_watch, "draw the curves of a run in the terminal while it goes on in another one",
        "  tinyvit watch runs/cifar10-1\n"
        "  tinyvit watch runs/cifar10-1 --tensorboard events       and in TensorBoard: tensorboard --logdir events",
    )  # fmt: skip
    sub.add_argument("run_folder", metavar="RUN", help="a run's folder, which need not be there yet")
    sub.add_argument("--tensorboard", metavar="DIR", type=folder, help="also write TensorBoard's files, into DIR/RUN")

    sub = command(
        "report", run_report, "write a run's report.html again, or while the run goes on",
        "  tinyvit report runs/mnist-1\n  tinyvit report runs/mnist-1 --out result.html",
    )  # fmt: skip
    sub.add_argument("run_folder", metavar="RUN", help="a run's folder")
    sub.add_argument("--data", help="other data of the same kind than it was trained on")
    sub.add_argument("--out", metavar="FILE", help="where the page goes (RUN/report.html)")

    sub = command(
        "compare", run_compare, "show what runs have reached, and what differs between them",
        "  tinyvit compare runs/digits-1 runs/digits-2\n  tinyvit compare runs/* --out comparison",
    )  # fmt: skip
    sub.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    sub.add_argument("--out", metavar="FOLDER", type=folder, help="also write compare.html and compare.png there")

    command("recipes", run_recipes, "list the recipes and what each was measured to reach", "  tinyvit recipes")

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
