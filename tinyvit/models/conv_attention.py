"""Attention that can be a convolution: heads that look at a fixed shift, wherever they stand, whatever they see.

A 3×3 convolution reads, for each pixel, nine pixels at nine fixed shifts, and mixes what it read with one matrix. A
layer of nine attention heads can do that too, if head h, at every pixel q, puts all its attention on the pixel q + Δ_h.
Let its score be a parabola over shifts δ = k - q to the key k, with its top at the *centre* Δ_h,

    s_h(δ) = -α_h ‖δ - Δ_h‖²  =  v_h · r_δ + constant,    v_h = -α_h (1, -2 Δ_h),  r_δ = (‖δ‖², δ)

(the constant does not change a softmax): the *quadratic encoding*, relative positions with three numbers for each
shift. The softmax of a parabola is a Gaussian around Δ_h, as narrow as α_h is large. Narrow enough it is a single pixel
and the layer equals the convolution: `attention_from_convolution` constructs it. And since Δ_h and α_h have gradients,
a network can find out by itself where its heads should look: `QuadraticNet`.

Scores do not depend on the image, so the maps (H, N, N) serve a whole batch. (A Gaussian is a product of one over rows
and one over columns, so products with h×h and w×w matrices could take the place of those with N×N, N = h w. That was
1.5 times as fast at 14×14 tokens, forward and backward, and hides the maps.)

Source: Cordonnier, Loukas and Jaggi 2020, "On the Relationship between Self-Attention and Convolutional Layers",
arXiv 1911.03584: theorem 1 with its two lemmas for the construction, the experiments for the network.

Chapter of the course: notebooks/11-attention-as-convolution.ipynb.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyvit import functional as F
from tinyvit import ops
from tinyvit.models.model import ImageModel, check_heads, check_patch, check_sizes
from tinyvit.nn import MLP, LayerNorm, Linear, Module, Parameter, PatchEmbedding, xavier_uniform
from tinyvit.tensor import Tensor


class QuadraticAttention(Module):
    """Multi-head attention by relative position alone, on a feature map: (B, h, w, C) -> (B, h, w, D).

    Args:
        channels, width: C and D.
        heads: H; k² of them can be a k×k convolution.
        rng: of the initial values: centres normal with variance 2, as in the paper; α = 1; matrices Xavier-uniform.
        head_width: K, the numbers that a head reads from a pixel.
        padding: so many pixels of zeros around the image can be looked at too, as in a convolution.

    Parameters: `centres` (H, 2), Δ as (rows, columns) in pixels; `sharpness` (H,), α; `value` (C, H K), all heads'
    matrices side by side, and `out`, which mixes what the heads have read.
    """

    def __init__(self, channels, width, heads, rng, head_width, padding=0):
        self.heads, self.padding = heads, padding
        self.centres = Parameter(rng.normal(0, 2**0.5, (heads, 2)).astype(np.float32))
        self.sharpness = Parameter(np.ones(heads, np.float32))
        self.value = Parameter(xavier_uniform(rng, channels, head_width, copies=heads), decay=True)
        self.out = Linear(heads * head_width, width, rng)

    def maps(self, h, w):
        """(H, N, M) for a feature map of h×w = N pixels: row q says what pixel q reads, of the M pixels of the map and
        its padding. Rows sum to 1."""
        y, x = (axis.reshape(-1) for axis in np.mgrid[:h, :w])
        p = self.padding
        key_y, key_x = (axis.reshape(-1) for axis in np.mgrid[-p : h + p, -p : w + p])
        down, right = key_y - y[:, None], key_x - x[:, None]  # δ, (N, M) each
        centres, alpha = self.centres.reshape(self.heads, 2, 1, 1), self.sharpness.reshape(self.heads, 1, 1)
        squares = ops.subtract(down, centres[:, 0]) ** 2 + ops.subtract(right, centres[:, 1]) ** 2  # ‖δ - Δ‖²
        return F.softmax(-alpha * squares)

    def forward(self, x):
        if x.ndim != 4 or x.shape[3] != self.value.shape[0]:
            raise ValueError(f"QuadraticAttention reads (B, h, w, {self.value.shape[0]}), got {x.shape}")
        B, h, w, _ = x.shape
        N, H, K, p = h * w, self.heads, self.value.shape[1] // self.heads, self.padding
        maps = self.maps(h, w)
        if p:  # what is read from the padding is zero, so those columns need no product
            maps = maps.reshape(H, N, h + 2 * p, w + 2 * p)[:, :, p : p + h, p : p + w].reshape(H, N, N)
        values = F.linear(x, self.value, None).reshape(B, N, H, K).transpose(2, 1, 0, 3).reshape(H, N, B * K)
        read = (maps @ values).reshape(H, N, B, K).transpose(2, 1, 0, 3)  # one product a head, for all images
        return self.out(read.reshape(B, h, w, H * K))


def attention_from_convolution(weight, bias=None, alpha=50.0):
    """The QuadraticAttention layer that equals `functional.conv2d(x, weight, bias, padding=k // 2)`, borders included.

    Args:
        weight: (k, k, C, D), k odd, an array or a Tensor; float32 or float64, which becomes the layer's dtype.
        bias: (D,) or None.
        alpha: how sharply the heads look.

    k² heads, one for each place of the window: its centre is that place; its value matrix is the identity, so that the
    heads side by side hold the window's pixels, exactly what `kernels.im2col` lays out; and the output matrix is the
    convolution's. Keys are the zero-padded image: a head that looks across the border reads zeros, as the convolution
    does, where attention over the image's own pixels would take the nearest one.

    α must be large, since a head pays a neighbour at distance 1 e^-α times what it pays its centre, and there are four
    of them. Largest error against conv2d, relative to the largest output; 3×3, 8 to 8 channels, random images:

        α            2        5       10       15       20       30       40       50
        float64   3.0e-1   2.1e-2   1.5e-4   9.9e-7   6.7e-9   3.0e-13  5.3e-16  5.3e-16
        float32   3.0e-1   2.1e-2   1.5e-4   1.0e-6   3.8e-7   3.8e-7   3.8e-7   3.8e-7

    So from 20 in float32, from 40 in float64 only rounding is left, and a larger α changes nothing. But then a head's
    gradient with respect to its centre is 0 too: a layer that was constructed so does not learn to look elsewhere.

    Raises ValueError for a window that is not square or has no middle.
    """
    weight = weight.data if isinstance(weight, Tensor) else np.asarray(weight)
    if weight.ndim != 4 or weight.shape[0] != weight.shape[1] or weight.shape[0] % 2 == 0:
        raise ValueError(f"the convolution's weight must be (k, k, C, D) with k odd, got {weight.shape}")
    k, _, C, D = weight.shape
    layer = QuadraticAttention(C, D, k * k, np.random.default_rng(0), head_width=C, padding=k // 2).astype(weight.dtype)
    layer.centres.data = np.stack(np.mgrid[:k, :k], axis=-1).reshape(k * k, 2) - k // 2
    layer.sharpness.data = alpha
    layer.value.data = np.tile(np.eye(C), k * k)
    layer.out.weight.data = weight.reshape(k * k * C, D)
    layer.out.bias.data = 0.0 if bias is None else bias
    return layer


@dataclass(frozen=True)
class QuadraticConfig:
    """What defines a QuadraticNet. Raises ValueError where the numbers do not fit together.

    image_size, patch, channels, classes, width, depth, mlp: as in ViTConfig.
    heads: 9 make a layer at least as able as a 3×3 convolution of heads' width; must divide the width.
    """

    kind: ClassVar[str] = "quadratic"

    image_size: tuple[int, int] = (8, 8)
    patch: int = 2
    channels: int = 1
    classes: int = 10
    width: int = 72
    depth: int = 3
    heads: int = 9
    mlp: int = 144

    def __post_init__(self):
        check_sizes(self, "patch", "channels", "classes", "width", "depth", "heads", "mlp")
        check_patch(self.patch, *self.image_size)
        check_heads(self)

    @property
    def grid(self):
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def tokens(self):
        """N, the length of the sequence: the patches and nothing else."""
        return self.grid[0] * self.grid[1]

    def shapes(self):
        """{path: shape} of a few parameters that fix all sizes: enough to see whether stored weights are these."""
        return {
            "embedding.weight": (self.patch * self.patch * self.channels, self.width),
            "blocks.0.attention.centres": (self.heads, 2),
            "blocks.0.mlp.fc1.weight": (self.width, self.mlp),
            "head.weight": (self.width, self.classes),
        }


class QuadraticBlock(Module):
    """An encoder block whose attention is quadratic: (B, h, w, D) -> (B, h, w, D)."""

    def __init__(self, width, heads, hidden, rng):
        self.norm1 = LayerNorm(width)
        self.attention = QuadraticAttention(width, width, heads, rng, width // heads)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, hidden, rng)

    def forward(self, z):
        z = z + self.attention(self.norm1(z))
        return z + self.mlp(self.norm2(z))


class QuadraticNet(ImageModel):
    """A network of attention layers that know positions only: what is seen never changes where they look.

    2×2 pixels become a token (the paper's "invertible down-sampling", which loses nothing), blocks with quadratic
    encoding, the average over all places, a linear head. The paper's network normalises after each addition, as the
    first Transformers did; this one before, as in the ViT, to be compared with it. It needs neither a class token nor a
    position embedding.

    Args:
        config: a QuadraticConfig.
        seed: of the initial values; the head's are zero, so that the first loss is ln(classes).
    """

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        c = self.config = config
        self.embedding = PatchEmbedding(c.patch, c.channels, c.width, rng)
        self.blocks = [QuadraticBlock(c.width, c.heads, c.mlp, rng) for _ in range(c.depth)]
        self.norm = LayerNorm(c.width)
        self.head = Linear(c.width, c.classes, rng)
        self.head.weight.data = 0.0
        self.name_parameters()

    def forward(self, images):
        """Images (B, height, width, C), normalised as in training -> logits (B, classes). Raises ValueError for images
        of another shape."""
        z = self.embedding(self.checked(images))
        z = z.reshape(len(z), *self.config.grid, self.config.width)
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z).mean(axis=(1, 2)))
