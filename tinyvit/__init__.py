"""tinyvit: a Vision Transformer from scratch on NumPy, to read like a short book.

Reading order, which is also import order; each file opens with what it teaches:

    memory.py        arrays that come back, so that no step waits for the operating system
    tensor.py        an array that remembers how it was made, and the walk that gives gradients
    gradcheck.py     a derivative is right when it agrees with the function's own differences
    tape.py          the recorded graph as a table
    kernels/         the hot loops: what they compute in NumPy, how they run fast in Numba
    ops.py           primitives: arithmetic, reductions, shapes, matmul
    convolution.py   the ops of a convolutional network: convolution, norms, pooling
    functional.py    softmax, GELU, layer norm, attention, cross-entropy
    nn/              layers: Linear, LayerNorm, MultiHeadSelfAttention, MLP, EncoderBlock; convolutions; positions
    optim.py         AdamW, Muon and SGD over one flat buffer; the learning-rate schedule
    cores.py         how many cores are ours, and that one pool of threads uses them
    models/          the Vision Transformer, and what it is compared with: ResNet, hybrid, Image GPT and more
    data/            digits, MNIST, CIFAR, your folder; augmentation; batches; palettes
    train/           recipes, threads, checkpoints, the loop; fine-tuning; training without labels
    interop/         models from elsewhere, and ours for elsewhere: Google's, timm's and Hugging Face's files, ONNX
    classifier.py    a trained model that reads image files
    interpret.py     what a trained ViT has learned and what it looks at, as arrays
    viz/             the same as pictures
    bench/           how fast a training step is, beside PyTorch and beside its matrix products alone
    cli/             the `tinyvit` command
"""

import importlib

from tinyvit import data, functional, interop, kernels, models, nn, ops, optim, tape, train
from tinyvit.classifier import Classifier, load
from tinyvit.gradcheck import gradcheck, jacobian
from tinyvit.models import PRESETS, ViT, ViTConfig, vit
from tinyvit.tensor import Tensor, check_finite, differentiable, no_grad


def __getattr__(name):
    """`tinyvit.viz` and `tinyvit.interpret` are imported when first used: matplotlib is slow to load."""
    if name in ("interpret", "viz"):
        return importlib.import_module(f"tinyvit.{name}")
    raise AttributeError(f"module 'tinyvit' has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "PRESETS",
    "Tensor",
    "ViT",
    "ViTConfig",
    "check_finite",
    "data",
    "differentiable",
    "functional",
    "gradcheck",
    "interop",
    "jacobian",
    "kernels",
    "load",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "tape",
    "train",
    "vit",
]
