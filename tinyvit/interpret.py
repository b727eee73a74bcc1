"""What a trained Vision Transformer has learned and what it looks at, as arrays; `viz/` draws them.

Its weights already say something without any image: which patterns of pixels the patch embedding tells apart, and
whether the position embedding has found out that patches lie on a grid. With images come the attention maps: how far
each head looks, and where.

Attention says, layer by layer, how much of each token a token reads. But what is read in layer 5 is no patch any more:
it holds what it has read itself in layers 1 to 4. *Rollout* follows the reading back to the patches. A layer is a
matrix whose row i says what token i is mixed of; two layers in sequence are the product of their matrices.

What none of this is: attention ignores the values, the MLPs and the classes. It shows where information came from, and
not which class it spoke for.

Paper figures 6 and 7, appendices D.7 and D.8; Abnar and Zuidema 2020, arXiv 2005.00928, for the rollout.

Chapter of the course: notebooks/08-what-a-vit-sees.ipynb.
"""

import numpy as np

from tinyvit.models import ViT
from tinyvit.nn import evaluating
from tinyvit.tensor import Tensor, no_grad

# ---------------------------------------------------------------------------------------------- from the weights alone


def embedding_filters(model):
    """Which patterns the patch embedding tells apart: the principal components of its D filters.

    A token's D numbers are inner products of its patch with the D columns of E (paper eq. 1), each a filter of P×P×C
    pixels. Many of them say much the same. The principal components, the directions in which the filters spread most
    about their mean, say it in few pictures.

    Args:
        model: a ViT that cuts images into patches.

    Returns (filters, shares), K = min(P²C, D): filters (K, P, P, C), orthogonal and of length 1, the strongest first;
    and shares (K,), how much of the filters' variance each one holds, which sum to 1. They apply to normalised pixels.
    A component is as good as its negative; here the entry that is largest in size is positive. Paper figure 7, left.

    Raises ValueError for a model whose embedding reads something else than pixels.
    """
    if model.config.kind != "vit":
        raise ValueError(f"only a ViT's embedding has filters of pixels; this model is a {model.config.kind}")
    P, C = model.config.patch, model.config.channels
    columns = model.embedding.weight.data.astype(np.float64)  # (P²C, D)
    components, sizes, _ = np.linalg.svd(columns - columns.mean(axis=1, keepdims=True), full_matrices=False)
    largest = np.abs(components).argmax(axis=0)
    components *= np.where(components[largest, np.arange(len(largest))] < 0, -1, 1)
    variances = sizes**2
    return components.T.reshape(-1, P, P, C), variances / max(variances.sum(), 1e-30)


def position_similarity(model):
    """How alike the position embeddings of any two patches are: cosine similarity, (rows, cols, rows, cols) in [-1, 1].

    Entry [r, c] is a map over all patches, seen from the one in row r and column c; at [r, c, r, c] stands 1. The
    class token's position is no place and left out. Paper figure 7, centre.

    Args:
        model: a ViT or hybrid whose positions are "1d", "2d" or "sincos".

    Raises ValueError for a model that adds nothing to its patches, and so has no embedding of a place to compare.
    """
    kind = getattr(model.config, "positions", "none")
    if kind in ("none", "relative"):
        raise ValueError(
            f'similarity of positions needs an embedding for each place, "1d", "2d" or "sincos"; this model\'s '
            f"positions are {kind!r}"
        )
    rows, cols = model.config.grid
    with no_grad():
        table = model.positions()  # (1, T', D), the patches last
    table = (table.data if isinstance(table, Tensor) else table)[0, -rows * cols :].astype(np.float64)
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-30)
    return (unit @ unit.T).reshape(rows, cols, rows, cols)


# ---------------------------------------------------------------------------------------------- how far a head looks


def patch_distances(config):
    """(N, N) distances from patch to patch, centre to centre, in pixels of the image."""
    (rows, cols), (h, w) = config.grid, config.image_size
    y, x = (axis.reshape(-1) for axis in np.mgrid[:rows, :cols])
    return np.hypot((y[:, None] - y) * h / rows, (x[:, None] - x) * w / cols)


def mean_distance(attention, distances):
    """How far away what a head reads lies on average: Σⱼ aᵢⱼ dᵢⱼ, averaged over the reading patches i.

    Args:
        attention: (…, T, T), a row says what one token reads.
        distances: (N, N) from `patch_distances`. The last N of the T tokens are the patches.

    Returns (…). The tokens before the patches have no place: as readers they are left out, and what a patch reads of
    them is taken away, the rest of its row scaled to sum 1. (Code that only cuts them off calls a head local that reads
    the class token.) A patch's reading of itself counts, with distance 0. Evenly spread attention has
    `distances.mean()`.
    """
    patches = attention[..., -len(distances) :, -len(distances) :]
    read = np.maximum(patches.sum(axis=-1, dtype=np.float64), 1e-30)
    return ((patches * distances).sum(axis=-1) / read).mean(axis=-1)


def attention_distance(model, images, batch_size=32):
    """The mean distance of each layer's heads over images: (L, H) in pixels. What a receptive field is to a CNN.

    Paper figure 7, right, and appendix D.7, which takes 128 images. Arguments as for `class_attention`. Raises
    ValueError for no images and for a model without attention maps.
    """
    if not len(images):
        raise ValueError("attention_distance needs at least one image to average over, got none")

    def summary(layers):  # (B, L, H)
        distances = patch_distances(model.config)
        return np.stack([mean_distance(attention, distances) for attention in layers], axis=1)

    return _of_attention(model, images, summary, batch_size).mean(axis=0)


# ---------------------------------------------------------------------------------------------- where it looks


def attention_rollout(attentions):
    """Of how much of each input token every output token is made, through all layers.

    Ã₁ = A₁,  Ãₗ = Aₗ Ãₗ₋₁  with  Aₗ = ½ (mean over heads of layer l's attention) + ½ I

    The identity is the residual connection: half of a token stays itself. A later layer mixes what earlier
    ones made, so it stands on the left.

    Args:
        attentions: a list of L arrays (B, H, T, T), first layer first; a row says what one token reads, and
            sums to 1. They are "attention.0", … of `model(images, intermediates=True)`.

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


def class_attention(model, images, batch_size=32):
    """Where what is classified has its information from: a map over the patches.

    Args:
        model: a ViT or a hybrid.
        images: (B, h, w, C) float32, normalised as in training.
        batch_size: images at a time; the attention of all layers is held for so many.

    Returns (B, rows, cols), the model's grid of patches: the class token's row of the rollout without what is no patch
    (itself, registers), scaled to sum 1 for each image (zeros where it has read no patch). Without a class token, where
    the patches are averaged, the mean of their rows. The model runs as in eval mode and without a tape.

    Raises ValueError for a model without attention maps.
    """
    maps = _of_attention(model, images, lambda layers: _pooled(attention_rollout(layers), model.config), batch_size)
    return maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-30)


def head_attention(model, images, batch_size=32):
    """What the class token reads in each layer and head, no rollout: (B, L, H, rows, cols).

    A map's sum is the share that goes to patches; the rest goes to the class token itself and to registers. A head that
    has nothing to say in an image often rests there, and what its map then shows counts little. Otherwise as
    `class_attention`.
    """
    return _of_attention(
        model, images, lambda layers: np.stack([_pooled(a, model.config) for a in layers], axis=1), batch_size
    )


def has_attention(model):
    """Whether the model hands back its attention maps: a ViT and a hybrid do, a ResNet has none."""
    return isinstance(model, ViT)


def _of_attention(model, images, summary, batch_size):
    """`summary` of the layers' attention, a list of arrays (B, H, T, T), for a batch at a time, put together."""
    if not has_attention(model):
        raise ValueError(f"attention maps must come from a ViT or a hybrid; this model is a {model.config.kind}")
    parts = []
    for start in range(0, max(len(images), 1), batch_size):
        with no_grad(), evaluating():
            _, seen = model(images[start : start + batch_size], intermediates=True)
        parts.append(summary([seen[f"attention.{i}"] for i in range(model.config.depth)]))
    return np.concatenate(parts)


def _pooled(attention, config):
    """(…, T, T) -> (…, rows, cols): the row of the token that is classified, or the patches' mean row, over patches."""
    N = config.grid[0] * config.grid[1]
    row = attention[..., 0, -N:] if config.pool == "class" else attention[..., -N:, -N:].mean(axis=-2)
    return row.reshape(*row.shape[:-1], *config.grid)  # row by row, as `patchify` cut them


# ---------------------------------------------------------------------------------------------- what it takes for what


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
