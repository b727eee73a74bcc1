"""Masked patch prediction: hide half of an image's patches and ask what colour they had. No label is needed.

The paper's own self-supervision (appendix B.1.2), after BERT. Half of the patch embeddings are corrupted: 80 % of these
become a learned [mask], 10 % the embedding of another patch, 10 % stay. From what the encoder makes of it, one linear
layer predicts for each corrupted patch its mean colour, 3 bits a channel: 512 classes for RGB, 8 for grey.

Why not [mask] for all? Then the encoder would learn that a patch without [mask] needs no thought, and after
pre-training there is no [mask] at all. Why half? Patches say more about their neighbours than words do; the paper found
BERT's 15 % slightly worse. (It also tried finer targets, down to the pixels themselves: no better.)

Chapter of the course: notebooks/12-learning-without-labels.ipynb.
"""

import numpy as np

from tinyvit import functional as F
from tinyvit import ops
from tinyvit.models.model import check_patch
from tinyvit.models.vit import ViT
from tinyvit.nn import Linear, Module, Parameter, generator

BITS = 3  # a channel
CORRUPTED, MASKED, SWAPPED = 0.5, 0.8, 0.1  # of the patches; of the corrupted ones


class MaskedPatches(Module):
    """A ViT that guesses the colours of corrupted patches. `vit` is trained in place; its head is not used.

    Args:
        vit: a ViT or a hybrid. Without a class token or with registers is fine.
        seed: of the [mask] embedding's initial values. The head is zero, so that the first loss is exactly ln 8ᶜ.

    Raises ValueError for a model of another kind.
    """

    def __init__(self, vit, seed=0):
        if not isinstance(vit, ViT):
            raise ValueError(f"MaskedPatches needs a ViT or a hybrid, which have tokens; got a {type(vit).__name__}")
        rng = np.random.default_rng(seed)
        self.vit = vit
        width = vit.config.width
        self.mask = Parameter(rng.normal(0, 0.02, (1, 1, width)).astype(np.float32))
        self.colours = Linear(width, 2 ** (BITS * vit.config.channels), rng)  # 8 for grey, 512 for RGB
        self.colours.weight.data = 0.0
        self.name_parameters()

    def forward(self, images):
        """Corrupt images and guess.

        Args:
            images: (B, height, width, C), normalised as for the ViT.

        Returns (logits (B, N, 8ᶜ), corrupted (B, N)): guesses for all patches, and which of them are asked for. What is
        corrupted comes from `nn.generator()`, so within `nn.random_state(seed)` it depends on the seed alone.
        """
        patches = self.vit.embedding(self.vit.checked(images))  # (B, N, D)
        corrupted, masked, source = corruption(*patches.shape[:2], generator())
        B, N, D = patches.shape
        patches = F.embedding(patches.reshape(B * N, D), source)
        patches = ops.where(self.mask, patches, condition=masked[..., None])
        encoded = self.vit.encode(patches)[:, self.vit.config.prefix :]
        return self.colours(encoded), corrupted


def corruption(B, N, rng):
    """What happens to the N patches of B images: three arrays (B, N).

    corrupted: bool, N / 2 patches of each image, rounded up. masked: bool, which of these become [mask]. source: whose
    embedding stands in the place of a patch, as an index into all B·N of them: its own, or that of another one, from
    any of the images.
    """
    own = np.arange(B * N).reshape(B, N)
    rank = rng.random((B, N)).argsort(axis=1).argsort(axis=1)
    corrupted = rank < CORRUPTED * N
    fate = rng.random((B, N))
    other = (own + rng.integers(1, max(2, B * N), (B, N))) % (B * N)  # a step of 1 … B·N - 1 never comes back to itself
    swapped = corrupted & (fate >= MASKED) & (fate < MASKED + SWAPPED)
    return corrupted, corrupted & (fate < MASKED), np.where(swapped, other, own)


def mean_colours(images, patch):
    """The mean colour of each patch, 3 bits a channel: images (B, h, w, C) in 0..255 -> (B, N) int64 in [0, 8ᶜ).

    From the pixels themselves, not from normalised ones: the eight steps divide 0..255 evenly. For RGB the number is
    64 r + 8 g + b. Raises ValueError for a patch size that does not divide the sides.
    """
    B, h, w, C = images.shape
    check_patch(patch, h, w)
    mean = images.reshape(B, h // patch, patch, w // patch, patch, C).mean(axis=(2, 4), dtype=np.float64)
    steps = np.minimum(mean * 2**BITS // 256, 2**BITS - 1).astype(np.int64)
    return steps.reshape(B, -1, C) @ (2**BITS) ** np.arange(C)[::-1]


def masked_colours(model, images, targets, smoothing=0.0):
    """The objective, for `train.pretrain`: (mean cross-entropy over the corrupted patches, share of them guessed right
    times images). `images` are normalised, `targets` (B, N) their `mean_colours`."""
    logits, corrupted = model(images)
    asked = np.flatnonzero(corrupted)
    logits = F.embedding(logits.reshape(-1, logits.shape[-1]), asked)  # these rows
    targets = targets.reshape(-1)[asked]
    loss = F.cross_entropy(logits, targets, smoothing)
    return loss, float((logits.data.argmax(axis=1) == targets).mean()) * len(images)
