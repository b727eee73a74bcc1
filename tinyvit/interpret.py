"""What a trained Vision Transformer looks at, as arrays; `viz/` draws them.

Attention says, layer by layer, how much of each token a token reads. But what is read in layer 5 is no patch
any more: it holds what it has read itself in layers 1 to 4. *Rollout* follows the reading back to the
patches. A layer is a matrix whose row i says what token i is mixed of; two layers in sequence are the product
of their matrices.

What rollout is not: it ignores the values, the MLPs and the classes. It shows where information came from,
and not which class it spoke for.

Abnar and Zuidema 2020, arXiv 2005.00928; paper figure 6 and appendix D.8.
"""

import numpy as np

from tinyvit.tensor import no_grad


def attention_rollout(attentions):
    """Of how much of each input token every output token is made, through all layers.

    Ã₁ = A₁,  Ãₗ = Aₗ Ãₗ₋₁  with  Aₗ = ½ (mean over heads of layer l's attention) + ½ I

    The identity is the residual connection: half of a token stays itself. A later layer mixes what earlier
    ones made, so it stands on the left.

    Args:
        attentions: a list of L arrays (B, H, T, T), first layer first; a row says what one token reads, and
            sums to 1. T = N + 1 tokens. They are "attention.0", … of `model(images, intermediates=True)`.

    Returns (B, T, T) in the inputs' dtype; row i says what output token i is made of, and sums to 1.

    Raises ValueError for no layers, for other shapes, and for rows that do not sum to 1.
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
                f"layer {layer}: all layers must have the same B and T, got {attention.shape} "
                f"after {attentions[0].shape}"
            )
        sums = attention.sum(axis=-1)
        if not np.allclose(sums, 1, atol=1e-3):
            raise ValueError(
                f"layer {layer}: rows of attention must sum to 1, got {sums.min():.4g} to {sums.max():.4g}; "
                "take softmax over the last axis, the tokens that are read"
            )
    identity = np.eye(T, dtype=attentions[0].dtype)
    rollout = identity
    for attention in attentions:
        rollout = (0.5 * attention.mean(axis=1) + 0.5 * identity) @ rollout  # (B, T, T)
    return rollout


def class_attention(model, images, batch_size=64):
    """Where the class token, which alone is classified, has its information from: a map over the patches.

    Args:
        model: a ViT.
        images: (B, h, w, C) float32, normalised as in training.
        batch_size: images at a time; the attention of all layers is held for so many.

    Returns (B, rows, cols), the model's grid of patches: the class token's row of the rollout without its own
    entry, scaled to sum 1 for each image (zeros where it has read no patch). The model runs in eval mode and
    without a tape, and is left in the mode in which it was.
    """
    rows, cols = model.config.grid
    maps = [np.empty((0, rows, cols), np.float32)]
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            for start in range(0, len(images), batch_size):
                _, seen = model(images[start : start + batch_size], intermediates=True)
                rollout = attention_rollout([seen[f"attention.{i}"] for i in range(model.config.depth)])
                patches = rollout[:, 0, 1:]  # (B, N): what token 0, the class token, has of the others
                patches = patches / np.maximum(patches.sum(axis=1, keepdims=True), 1e-30)
                maps.append(patches.reshape(-1, rows, cols))  # row by row, as `patchify` cut them
    finally:
        model.train(was_training)
    return np.concatenate(maps)


def confusion(labels, predicted, classes):
    """How often each class was taken for each: (C, C) int64 counts, rows true, columns predicted.

    Args:
        labels, predicted: (M,) integers in [0, C).
        classes: C, how many classes there are.

    The diagonal counts what was right. Raises ValueError for other shapes or values.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(f"labels and predicted must both be (M,), got {labels.shape} and {predicted.shape}")
    for name, values in (("labels", labels), ("predicted", predicted)):
        if len(values) and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= classes):
            raise ValueError(
                f"{name} must be integers in [0, {classes}), got {values.dtype} from {values.min()} to "
                f"{values.max()}; of probabilities, pass .argmax(axis=1)"
            )
    pairs = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
