"""What a trained Vision Transformer looks at, as arrays; `viz.py` draws them.

Attention says, layer by layer, how much of each token a token reads. But a token that is read in layer 5 is no patch any
more: it holds what it has read in layers 1 to 4. *Rollout* follows the reading back to the patches. Each layer is a matrix
whose row i says what token i is mixed of; two layers after one another are the product of their matrices.

What it is not: it knows nothing of the values, the MLPs or the classes, so it shows where information came from and not
which class it spoke for. Abnar and Zuidema 2020, arXiv 2005.00928; paper figure 6 and appendix D.8.

Notebook 08.
"""

import numpy as np

from tinyvit.tensor import no_grad


def attention_rollout(attentions):
    """How much of each input token every output token is mixed of, over all layers.

    Ã₁ = A₁,  Ãₗ = Aₗ Ãₗ₋₁  with  Aₗ = ½ (mean over heads of layer l's attention) + ½ I

    The identity is the residual connection: half of a token is itself. A later layer mixes what earlier ones made, so it
    stands on the left.

    Args:
        attentions: a list of L arrays (B, H, T, T), first layer first; row i of a head says what token i reads, and sums
            to 1. T = N + 1 tokens. `model(images, intermediates=True)` gives them as "attention.0" and so on.

    Returns (B, T, T) in the inputs' dtype: row i says what output token i is made of; it sums to 1.

    Raises ValueError for no layers, other shapes, or rows that do not sum to 1.
    """
    attentions = [np.asarray(attention) for attention in attentions]
    if not attentions:
        raise ValueError("attention_rollout needs the attention of at least one layer, got an empty list")
    for layer, attention in enumerate(attentions):
        if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2]:
            raise ValueError(f"layer {layer}: attention must be (B, H, T, T), got {attention.shape}")
        B, _, T, _ = attention.shape
        if (B, T) != (len(attentions[0]), attentions[0].shape[-1]):
            raise ValueError(
                f"layer {layer}: all layers must have one batch and one number of tokens, got {attention.shape} "
                f"after {attentions[0].shape}"
            )
        sums = attention.sum(axis=-1)
        if not np.allclose(sums, 1, atol=1e-3):
            raise ValueError(
                f"layer {layer}: each row of attention must sum to 1, got {sums.min():.4g} to {sums.max():.4g}; "
                "softmax must run over the last axis, the tokens that are read"
            )
    identity = np.eye(T, dtype=attentions[0].dtype)
    rollout = identity
    for attention in attentions:
        rollout = (0.5 * attention.mean(axis=1) + 0.5 * identity) @ rollout  # (B, T, T)
    return rollout


def class_attention(model, images, batch_size=64):
    """Where the class token, from which the classes are read, has its information from: a map over the patches.

    Args:
        model: a ViT.
        images: (B, h, w, C) float32, normalised as in training.
        batch_size: how many at a time; all layers' attention is held for so many.

    Returns (B, rows, cols) in the model's grid of patches: the class token's row of the rollout without its own entry,
    scaled to sum 1 per image (zeros should it have read no patch at all). The model runs in eval mode, without a tape, and is left in the mode it was in.
    """
    rows, cols = model.config.grid
    maps = [np.empty((0, rows, cols), np.float32)]
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            for start in range(0, len(images), batch_size):
                _, seen = model(images[start : start + batch_size], intermediates=True)
                rollout = attention_rollout([seen[f"attention.{layer}"] for layer in range(model.config.depth)])
                patches = rollout[:, 0, 1:]                     # (B, N): the class token is token 0
                patches = patches / np.maximum(patches.sum(axis=1, keepdims=True), 1e-30)
                maps.append(patches.reshape(-1, rows, cols))    # patches run row by row, as `patchify` cuts them
    finally:
        model.train(was_training)
    return np.concatenate(maps)


def confusion(labels, predicted, classes):
    """How often each class was taken for each: (C, C) int64 counts, row the true class, column the predicted one.

    Args:
        labels, predicted: (M,) integers in [0, C).
        classes: C, how many classes there are.

    The diagonal holds what was right; row sums are the classes' sizes. Raises ValueError for other shapes or values.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(f"labels and predicted must both be (M,), got {labels.shape} and {predicted.shape}")
    for name, values in (("labels", labels), ("predicted", predicted)):
        if len(values) and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= classes):
            raise ValueError(
                f"{name} must be integers in [0, {classes}), got {values.dtype} from {values.min()} to {values.max()}; "
                "for probabilities, pass probabilities.argmax(axis=1)"
            )
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels.astype(np.int64), predicted.astype(np.int64)), 1)  # counts a repeated pair each time
    return counts
