"""The Vision Transformer: an image as a sequence of patches, read by a plain Transformer encoder.

    z₀ = [x_class; x¹E; x²E; …; xᴺE] + E_pos            (paper eq. 1)
    z'ₗ = MSA(LN(zₗ₋₁)) + zₗ₋₁,   l = 1 … L              (eq. 2, in nn.EncoderBlock)
    zₗ = MLP(LN(z'ₗ)) + z'ₗ                              (eq. 3)
    y = LN(z_L⁰)                                        (eq. 4)

and a linear layer from y to the classes. Nothing in it knows that an image has two dimensions but the cutting
into patches; where a patch came from must be learned, in E_pos.

Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1 and table 1.
"""

from dataclasses import dataclass, replace

import numpy as np

from tinyvit import kernels, ops
from tinyvit.memory import Pool
from tinyvit.nn import (
    Dropout,
    EncoderBlock,
    LayerNorm,
    Linear,
    Module,
    Parameter,
    PatchEmbedding,
    evaluating,
    nearest_patch,
)
from tinyvit.tensor import Tensor, no_grad


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
    """

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

    def __post_init__(self):
        size = self.image_size
        pair = tuple(size) if np.iterable(size) else (size, size)
        if len(pair) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in pair):
            raise ValueError(f"image_size must be (height, width) or one number, in whole pixels, got {size}")
        object.__setattr__(self, "image_size", (int(pair[0]), int(pair[1])))
        for name in ("patch", "channels", "classes", "width", "depth", "heads", "mlp"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
            object.__setattr__(self, name, int(value))
        h, w = self.image_size
        if h % self.patch or w % self.patch:
            raise ValueError(
                f"patch size {self.patch} must divide the image's {h}×{w}; "
                f"{nearest_patch(h, w, self.patch)} is the nearest that does"
            )
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width, got width {self.width} and {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def grid(self):
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def tokens(self):
        """N + 1: the patches and the class token."""
        return self.grid[0] * self.grid[1] + 1


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


class ViT(Module):
    """A Vision Transformer with a class token, learned position embedding and a linear head.

    Args:
        config: a ViTConfig.
        seed: of the initial values. As in the paper's code: position embedding normal with deviation 0.02, class
            token and head zero (so that the first loss is exactly ln(classes)), dense layers Xavier-uniform, patch
            embedding LeCun-normal.
    """

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        c = self.config = config
        self.embedding = PatchEmbedding(c.patch, c.channels, c.width, rng)
        self.cls = Parameter(np.zeros((1, 1, c.width), np.float32))
        self.positions = Parameter(rng.normal(0, 0.02, (1, c.tokens, c.width)).astype(np.float32))
        self.dropout = Dropout(c.dropout)
        self.blocks = [EncoderBlock(c.width, c.heads, c.mlp, rng, c.dropout, c.gelu_tanh) for _ in range(c.depth)]
        self.norm = LayerNorm(c.width)
        self.head = Linear(c.width, c.classes, rng)
        self.head.weight.data = 0.0
        self.name_parameters()

    def forward(self, images, intermediates=False):
        """Classify images.

        Args:
            images: (B, height, width, C), a Tensor or an array, normalised as in training.
            intermediates: also return what happened on the way.

        Returns logits (B, classes); with `intermediates`, (logits, seen): a dict of Tensors "tokens" (B, N+1, D),
        "blocks.0" … (B, N+1, D) each, "encoded" (B, N+1, D), and arrays "attention.0" … (B, H, N+1, N+1).

        Raises ValueError for images of another shape.
        """
        images = self._checked(images)
        seen = {}
        patches = self.embedding(images)  # (B, N, D)
        cls = ops.broadcast_to(self.cls, shape=(len(images), 1, self.config.width))
        z = ops.concatenate([cls, patches], axis=1) + self.positions  # (B, N+1, D), eq. 1
        z = self.dropout(z)
        seen["tokens"] = z
        for i, block in enumerate(self.blocks):
            maps = [] if intermediates else None
            z = block(z, maps=maps)  # eq. 2 and 3
            if intermediates:
                seen[f"blocks.{i}"], seen[f"attention.{i}"] = z, maps[0]
        z = self.norm(z)  # eq. 4 for all tokens; the head reads the class token's, which has read the others
        seen["encoded"] = z
        logits = self.head(z[:, 0])
        return (logits, seen) if intermediates else logits

    def predict(self, images, batch_size=32):
        """Class probabilities, an array (B, classes), without a tape and without dropout. Images as for `forward`.

        `batch_size` images at a time, which changes the speed only: few of them stay in the processor's cache."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        with no_grad(), evaluating(), Pool():
            parts = [kernels.softmax(self(images[i : i + batch_size]).data) for i in range(0, len(images), batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, self.config.classes), self.positions.dtype)

    def _checked(self, images):
        images = images if isinstance(images, Tensor) else Tensor(images, dtype=self.positions.dtype)
        want = (*self.config.image_size, self.config.channels)
        if images.ndim != 4 or images.shape[1:] != want:
            hint = "; add the channel axis with images[..., None]" if images.shape[1:] == want[:2] else ""
            raise ValueError(f"this ViT reads images (B, {want[0]}, {want[1]}, {want[2]}), got {images.shape}{hint}")
        return images


def vit(preset, seed=0, **changes):
    """A ViT by name, `vit("digits")`, with changes to its configuration, `vit("B/16", classes=10)`.

    Raises ValueError that lists the names for a preset or a field that does not exist.
    """
    unknown = sorted(set(changes) - set(ViTConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(f"a ViTConfig has no {', '.join(unknown)}; it has {', '.join(ViTConfig.__dataclass_fields__)}")
    if preset not in PRESETS:
        raise ValueError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    return ViT(replace(PRESETS[preset], **changes), seed)
