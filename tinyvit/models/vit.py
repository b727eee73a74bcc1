"""The Vision Transformer: an image as a sequence of patches, read by a plain Transformer encoder.

    z₀ = [x_class; x¹E; x²E; …; xᴺE] + E_pos            (paper eq. 1)
    z'ₗ = MSA(LN(zₗ₋₁)) + zₗ₋₁,   l = 1 … L              (eq. 2, in nn.EncoderBlock)
    zₗ = MLP(LN(z'ₗ)) + z'ₗ                              (eq. 3)
    y = LN(z_L⁰)                                        (eq. 4)

and a linear layer from y to the classes. Nothing in it knows that an image has two dimensions but the cutting
into patches; where a patch came from must be learned, in E_pos.

The rest are the choices that the paper compares: the head, what the head reads, how positions are told (appendix D.3
and D.4); and register tokens (Darcet et al. 2023, arXiv 2309.16588).

Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1 and table 1.

Chapter of the course: notebooks/04-patches.ipynb.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np

from tinyvit import ops
from tinyvit.models.model import ImageModel, check_heads, check_patch, check_sizes
from tinyvit.nn import (
    Dropout,
    EncoderBlock,
    LayerNorm,
    Linear,
    MLPHead,
    Parameter,
    PatchEmbedding,
    RelativeSelfAttention,
)
from tinyvit.nn.positions import KINDS, absolute_positions, shifts

POOLS = ("class", "average", "average-norm")
HEADS = ("linear", "mlp", "none")


@dataclass(frozen=True)
class ViTConfig:
    """What defines a ViT. Raises ValueError where the numbers do not fit together.

    image_size: (height, width) in pixels, or one number for a square.
    patch: P, the side of a patch; must divide both sides of the image.
    channels: C of the images, 1 for greyscale, 3 for colour.
    classes: the number of outputs.
    width: D, numbers per token.
    depth: L, encoder blocks.
    heads: H, must divide the width.
    mlp: hidden units of the MLP; the paper takes 4 D.
    dropout: probability, after the position embedding, the attention and both MLP layers (paper appendix B.1).
    gelu_tanh: use the tanh form of GELU, as the paper's code does.
    positions: "1d" learned (the paper's), "none", "2d" learned, "sincos" or "relative", see `nn/positions.py`.
    pool: what the head reads, the "class" token or the "average" of the patches (then there is no class token);
        "average-norm" averages first and normalises then, as timm does.
    head: "linear", or "mlp" with one hidden layer, which the paper has at pre-training; "none" where the model returns
        what a head would read, so that `classes` is the width.
    registers: tokens that stand for no patch and that no head reads, as scratch paper.
    drop_path: stochastic depth, the probability at the last block; it grows linearly from 0 at the first.
    eps: what layer norm adds to the variance, 1e-6 in the paper's code.
    """

    kind: ClassVar[str] = "vit"
    cut: ClassVar[str] = "image"

    image_size: tuple[int, int] = (8, 8)
    patch: int = 2
    channels: int = 1
    classes: int = 10
    width: int = 48
    depth: int = 3
    heads: int = 4
    mlp: int = 96
    dropout: float = 0.0
    gelu_tanh: bool = False
    positions: str = "1d"
    pool: str = "class"
    head: str = "linear"
    registers: int = 0
    drop_path: float = 0.0
    eps: float = 1e-6

    def __post_init__(self):
        check_sizes(self, "patch", "channels", "classes", "width", "depth", "heads", "mlp")
        check_patch(self.patch, *self.pixels, of=self.cut)
        for name, known in dict(positions=KINDS, pool=POOLS, head=HEADS).items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        if not isinstance(self.registers, int | np.integer) or self.registers < 0:
            raise ValueError(f"registers must be a whole number from 0 up, got {self.registers!r}")
        check_heads(self)
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must be in (0, 1), got {self.eps}")
        if self.head == "none" and self.classes != self.width:
            raise ValueError(
                f"without a head the outputs are the width, {self.width} numbers; got classes={self.classes}"
            )

    @property
    def pixels(self):
        """(height, width) of what is cut into patches: here the image."""
        return self.image_size

    @property
    def stride(self):
        """Pixels of the image for each of these, along a side."""
        return 1

    @property
    def grid(self):
        """(rows, columns) of patches."""
        return self.pixels[0] // self.patch, self.pixels[1] // self.patch

    @property
    def prefix(self):
        """How many tokens stand before the patches: the class token, where there is one, and the registers."""
        return (self.pool == "class") + self.registers

    @property
    def tokens(self):
        """T, the length of the sequence: N patches and what stands before them."""
        return self.prefix + self.grid[0] * self.grid[1]

    def embedding_shapes(self):
        return {"embedding.weight": (self.patch * self.patch * self.channels, self.width)}

    def shapes(self):
        """{path: shape} of a few parameters that fix all sizes: enough to see whether stored weights are these."""
        shapes = self.embedding_shapes() | {
            "blocks.0.attention.qkv.weight": (self.width, 3 * self.width),
            "blocks.0.mlp.fc1.weight": (self.width, self.mlp),
        }
        if self.head != "none":
            shapes["head.weight" if self.head == "linear" else "head.out.weight"] = (self.width, self.classes)
        rows, cols = self.grid
        if self.positions == "1d":
            shapes["positions.table"] = (1, self.tokens - self.registers, self.width)
        if self.positions == "2d":
            shapes |= {"positions.rows": (rows, 1, self.width // 2), "positions.columns": (1, cols, self.width // 2)}
        if self.positions == "relative":
            count = (2 * rows - 1) * (2 * cols - 1) + (3 if self.prefix else 0)  # see `shifts`, nn/positions.py
            shapes["blocks.0.attention.shifts"] = (count, self.width // self.heads)
        if self.registers:
            shapes["registers"] = (1, self.registers, self.width)
        if self.pool == "class":
            shapes["cls"] = (1, 1, self.width)
        return shapes


def _row(image, patch, channels, classes, width, depth, heads, mlp):
    return ViTConfig((image, image), patch, channels, classes, width, depth, heads, mlp)


# mnist7 cuts a digit into 16 patches of 7×7 where mnist has 49 of 4×4: a fraction of the work, a little less accurate.
# The last five rows are the paper's (table 1; Ti and S from Touvron et al. 2021 and Steiner et al. 2021).
#                     image patch  C  outs  width depth heads   MLP
PRESETS = {
    "digits":   _row(    8,    2,  1,   10,   48,    3,    4,   96),
    "mnist":    _row(   28,    4,  1,   10,   64,    4,    4,  128),
    "mnist7":   _row(   28,    7,  1,   10,   64,    6,    4,  128),
    "cifar":    _row(   32,    4,  3,   10,  128,    6,    4,  256),
    "Ti/16":    _row(  224,   16,  3, 1000,  192,   12,    3,  768),
    "S/16":     _row(  224,   16,  3, 1000,  384,   12,    6, 1536),
    "B/16":     _row(  224,   16,  3, 1000,  768,   12,   12, 3072),
    "L/16":     _row(  224,   16,  3, 1000, 1024,   24,   16, 4096),
    "H/14":     _row(  224,   14,  3, 1000, 1280,   32,   16, 5120),
}  # fmt: skip


class ViT(ImageModel):
    """A Vision Transformer; by default with a class token, learned position embedding and a linear head.

    Args:
        config: a ViTConfig.
        seed: of the initial values. As in the paper's code: position embedding normal with deviation 0.02, class
            token and head zero (so that the first loss is exactly ln(classes)), dense layers Xavier-uniform, patch
            embedding LeCun-normal.
    """

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        c = self.config = config
        self.embedding = self._embedding(rng)
        self.cls = Parameter(np.zeros((1, 1, c.width), np.float32)) if c.pool == "class" else None
        self.positions = absolute_positions(c.positions, c.grid, c.prefix - c.registers, c.width, rng)
        self.registers = None
        if c.registers:
            self.registers = Parameter(rng.normal(0, 0.02, (1, c.registers, c.width)).astype(np.float32))
        self.dropout = Dropout(c.dropout)
        self.blocks = [
            EncoderBlock(c.width, c.heads, c.mlp, rng, c.dropout, c.gelu_tanh, p, c.eps)
            for p in np.linspace(0, c.drop_path, c.depth).tolist()  # Huang et al. 2016, section 4
        ]
        if c.positions == "relative":
            index = shifts(c.grid, c.prefix)  # the same for all layers
            for block in self.blocks:
                block.attention = RelativeSelfAttention(c.width, c.heads, rng, index)
        self.norm = LayerNorm(c.width, c.eps)
        self.head = None if c.head == "none" else (MLPHead if c.head == "mlp" else Linear)(c.width, c.classes, rng)
        if c.head == "linear":
            self.head.weight.data = 0.0
        self.name_parameters()

    def _embedding(self, rng):
        """What makes tokens of images."""
        c = self.config
        return PatchEmbedding(c.patch, c.channels, c.width, rng)

    def forward(self, images, intermediates=False):
        """Classify images.

        Args:
            images: (B, height, width, C), a Tensor or an array, normalised as in training.
            intermediates: also return what happened on the way.

        Returns logits (B, classes); with `intermediates`, (logits, seen): a dict of Tensors "tokens" (B, T, D),
        "blocks.0" … (B, T, D) each, "encoded" (B, T, D), and arrays "attention.0" … (B, H, T, T). The T tokens are the
        class token (where there is one), the registers, the patches row by row.

        Raises ValueError for images of another shape.
        """
        seen = {} if intermediates else None
        encoded = self.encode(self.embedding(self.checked(images)), seen)
        logits = self.pooled(encoded) if self.head is None else self.head(self.pooled(encoded))
        return (logits, seen) if intermediates else logits

    def encode(self, patches, seen=None):
        """Patch embeddings (B, N, D) -> encoded tokens (B, T, D). `seen`, a dict, receives the intermediates."""
        c, B = self.config, patches.shape[0]

        def for_each_image(tokens):
            return ops.broadcast_to(tokens, shape=(B, *tokens.shape[1:]))

        z = patches if self.cls is None else ops.concatenate([for_each_image(self.cls), patches], axis=1)
        if self.positions is not None:
            z = z + self.positions()  # eq. 1
        if self.registers is not None:
            first = c.prefix - c.registers
            z = ops.concatenate([z[:, :first], for_each_image(self.registers), z[:, first:]], axis=1)
        z = self.dropout(z)
        if seen is not None:
            seen["tokens"] = z
        for i, block in enumerate(self.blocks):
            maps = None if seen is None else []
            z = block(z, maps=maps)  # eq. 2 and 3
            if seen is not None:
                seen[f"blocks.{i}"], seen[f"attention.{i}"] = z, maps[0]
        if self.config.pool != "average-norm":
            z = self.norm(z)  # eq. 4 for all tokens
        if seen is not None:
            seen["encoded"] = z
        return z

    def pooled(self, encoded):
        """The head's input, (B, T, D) -> (B, D): the class token, which has read the others, or the patches' mean."""
        if self.cls is not None:
            return encoded[:, 0]
        mean = encoded[:, self.config.prefix :].mean(axis=1)
        return self.norm(mean) if self.config.pool == "average-norm" else mean


def vit(preset, seed=0, **changes):
    """A ViT by name, `vit("digits")`, with changes to its configuration, `vit("B/16", classes=10)`.

    Raises ValueError that lists the names for a preset or a field that does not exist.
    """
    known = [field.name for field in fields(ViTConfig)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"a ViTConfig has no {', '.join(unknown)}; it has {', '.join(known)}")
    if preset not in PRESETS:
        raise ValueError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    return ViT(replace(PRESETS[preset], **changes), seed)
