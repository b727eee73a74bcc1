"""The layers of a Vision Transformer, in the order in which the paper stacks them.

Linear, LayerNorm, Dropout, DropPath; MultiHeadSelfAttention (MSA), MLP, EncoderBlock; MLPHead; then PatchEmbedding,
which makes tokens of an image. A weight is (in, out), so that `x @ W + b` reads as it does on paper. PyTorch stores
(out, in) and transposes in each call.

Paper: section 3.1 and appendix A. (Its equations leave out the biases, which its code has.)

Chapter of the course: notebooks/04-patches.ipynb.
"""

import numpy as np

from tinyvit import functional as F
from tinyvit import kernels
from tinyvit.nn.initial import lecun_normal, xavier_uniform
from tinyvit.nn.module import Module, Parameter, composing_now, evaluating_now, generator
from tinyvit.tensor import differentiable


class Linear(Module):
    """x W + b: (…, D_in) -> (…, D_out). Xavier-uniform weight drawn from `rng`, zero bias.

    `copies` > 1 lays so many matrices side by side, (…, D_in) -> (…, copies · D_out).
    """

    def __init__(self, d_in, d_out, rng, copies=1):
        self.weight = Parameter(xavier_uniform(rng, d_in, d_out, copies), decay=True)
        self.bias = Parameter(np.zeros(copies * d_out, np.float32))

    def forward(self, x, gelu=None):
        """`gelu` "exact" or "tanh" puts that GELU behind it."""
        if gelu is None:
            return F.linear(x, self.weight, self.bias)
        return F.linear_gelu(x, self.weight, self.bias, tanh=gelu == "tanh")


class LayerNorm(Module):
    """Normalise each token over its D entries, then scale and shift: (…, D) -> (…, D). See `functional.layer_norm`."""

    def __init__(self, width, eps=1e-6):
        self.gamma = Parameter(np.ones(width, np.float32))
        self.beta = Parameter(np.zeros(width, np.float32))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x, self.gamma, self.beta, eps=self.eps)


class Dropout(Module):
    """Zero entries at random while training, see `functional.dropout`; the identity in eval mode, or with p = 0."""

    def __init__(self, p):
        if not 0 <= p < 1:
            raise ValueError(f"a dropout probability must be in [0, 1), got {p}")
        self.p = p

    def is_active(self):
        return self.p > 0 and self.training and not evaluating_now()

    def forward(self, x):
        return F.dropout(x, self.p, generator()) if self.is_active() else x


class DropPath(Dropout):
    """Stochastic depth: while training, for each image, forget with probability p what a block has done to z.

    (z before the block, z after it), both (B, N, D) -> (B, N, D); in eval mode, or with p = 0, it is z after. An image
    whose block is forgotten sees a network with a layer less. To the others the block adds 1 / (1 - p) times as much,
    so that the mean stays (Huang et al. 2016, arXiv 1603.09382, section 3, scale when evaluating instead). One coin
    decides for the whole encoder block, which so stays one kernel; timm tosses one for each of its two parts.
    """

    def forward(self, z, after):
        return F.drop_path(z, after, self.p, generator()) if self.is_active() else after


class MultiHeadSelfAttention(Module):
    """MSA, paper appendix A: every token asks all tokens (query · key) and takes a mixture of their values.

    Shapes: x (B, N, D) -> (B, N, D). One matrix makes q, k and v of all heads (eq. 5), the heads attend side by side
    (eq. 6, 7), a last matrix mixes them (eq. 8, U_msa).
    """

    def __init__(self, width, heads, rng):
        if width % heads:
            raise ValueError(f"heads must divide the width: {width} = {heads} × {width / heads:g}")
        self.heads = heads
        self.qkv = Linear(width, width, rng, copies=3)
        self.out = Linear(width, width, rng)

    def forward(self, x, maps=None, bias=None):
        """`maps` receives the attention, `bias` is added to the scores, see `functional.biased_attention`."""
        if bias is None:
            return self.out(F.attention(self.qkv(x), heads=self.heads, maps=maps))
        return self.out(F.biased_attention(self.qkv(x), bias, heads=self.heads, maps=maps))


class MLP(Module):
    """Two linear layers with GELU between them, token by token: (B, N, D) -> (B, N, D). Paper section 3.1."""

    def __init__(self, width, hidden, rng, dropout=0.0, tanh=False):
        self.fc1 = Linear(width, hidden, rng)
        self.fc2 = Linear(hidden, width, rng)
        self.dropout = Dropout(dropout)
        self.gelu = "tanh" if tanh else "exact"
        for layer in (self.fc1, self.fc2):  # as in the paper's code: biases that are not all alike
            layer.bias.data = 1e-6 * rng.standard_normal(layer.bias.shape)

    def forward(self, x):
        return self.dropout(self.fc2(self.dropout(self.fc1(x, gelu=self.gelu))))


class EncoderBlock(Module):
    """One layer of the encoder, (B, N, D) -> (B, N, D):

    z' = MSA(LN(z)) + z      (paper eq. 2)
    z  = MLP(LN(z')) + z'    (paper eq. 3)

    Normalising *before* each part leaves a path of plain additions from input to output, so that gradients reach the
    first layer undiminished. (The original Transformer normalised after the addition.)
    """

    def __init__(self, width, heads, hidden, rng, dropout=0.0, tanh=False, drop_path=0.0, eps=1e-6):
        self.norm1 = LayerNorm(width, eps)
        self.attention = MultiHeadSelfAttention(width, heads, rng)
        self.norm2 = LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, rng, dropout, tanh)
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, z, maps=None, bias=None):
        """`maps` and `bias` as for MultiHeadSelfAttention."""
        if maps is None and bias is None and self._can_be_one_kernel():
            return self.drop_path(z, self._as_one_kernel(z))
        return self.drop_path(z, self._layer_by_layer(z, maps, bias))

    def _layer_by_layer(self, z, maps, bias):
        """Equations 2 and 3."""
        z = z + self.dropout(self.attention(self.norm1(z), maps=maps, bias=bias))
        return z + self.mlp(self.norm2(z))

    def _can_be_one_kernel(self):
        """Whether the block is as `__init__` made it, no part replaced or frozen, and nobody wants to see its ops."""
        if composing_now() or kernels.backend() != "numba":
            return False
        attention, mlp = self.attention, self.mlp
        parts = self.norm1, self.norm2, attention, mlp, self.dropout
        if tuple(map(type, parts)) != (LayerNorm, LayerNorm, MultiHeadSelfAttention, MLP, Dropout):
            return False
        linears = attention.qkv, attention.out, mlp.fc1, mlp.fc2
        if any(type(x) is not Linear or x.bias is None or not x.weight.requires_grad for x in linears):
            return False
        if self.dropout.is_active() or mlp.dropout.is_active() or self.norm1.eps != self.norm2.eps:
            return False
        return kernels.encoder_block_fits(mlp.fc1.weight.shape[0], attention.heads, mlp.fc1.weight.shape[1])

    def _as_one_kernel(self, z):
        """The same in one op, see kernels/block.py: fewer visits to Python."""
        norm1, norm2, attention, mlp = self.norm1, self.norm2, self.attention, self.mlp
        qkv, out, fc1, fc2 = attention.qkv, attention.out, mlp.fc1, mlp.fc2
        weights = (
            norm1.gamma, norm1.beta, qkv.weight, qkv.bias, out.weight, out.bias,
            norm2.gamma, norm2.beta, fc1.weight, fc1.bias, fc2.weight, fc2.bias,
        )  # fmt: skip
        return F.encoder_block(z, *weights, heads=attention.heads, eps=norm1.eps, tanh=mlp.gelu == "tanh")


class MLPHead(Module):
    """A head with one hidden layer, (B, D) -> (B, K): what the paper has at pre-training and takes off to fine-tune.

    D → D, tanh, → K; the last matrix is zero, so that the first loss is ln K. Paper section 3.1; tanh is its code's.
    """

    def __init__(self, width, classes, rng):
        self.hidden = Linear(width, width, rng)
        self.out = Linear(width, classes, rng)
        self.out.weight.data = 0.0

    def forward(self, y):
        return self.out(self.hidden(y).tanh())


class PatchEmbedding(Module):
    """Cut images into P×P patches and map each, flattened, to D numbers: (B, h, w, C) -> (B, N, D), N = h w / P².

    Patches run row by row, and a patch's entries (row, column, channel). The same as a convolution with a P×P
    window and stride P, which is how most code writes it. Paper eq. 1, x_p E.
    """

    def __init__(self, patch, channels, width, rng):
        self.patch = patch
        self.weight = Parameter(lecun_normal(rng, patch * patch * channels, width), decay=True)
        self.bias = Parameter(np.zeros(width, np.float32))

    def forward(self, images):
        return F.linear(patchify(images, self.patch), self.weight, self.bias)


@differentiable
def _patchify(images, *, patch):
    B, h, w, C = images.shape
    P, rows, cols = patch, h // patch, w // patch
    squares = images.reshape(B, rows, P, cols, P, C).transpose(0, 1, 3, 2, 4, 5)  # (B, rows, cols, P, P, C)

    def pullback(g):
        return g.reshape(B, rows, cols, P, P, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, h, w, C)

    return squares.reshape(B, rows * cols, P * P * C), pullback


def patchify(images, patch):
    """(B, h, w, C) -> (B, N, P·P·C): the patches row by row, each flattened as (row, column, channel).

    The two axes inside a patch must be brought together *before* flattening. A bare reshape to (B, N, P·P·C)
    has the right shape and scrambles the image: it cuts rows of pixels, not squares.

    Raises ValueError for a patch size that does not divide both sides, naming the nearest that does.
    """
    if len(images.shape) != 4:
        raise ValueError(f"patchify needs images (B, height, width, C), got {images.shape}")
    _, h, w, _ = images.shape
    if h % patch or w % patch:
        raise ValueError(
            f"patch size {patch} must divide the image's {h}×{w}; {nearest_patch(h, w, patch)} is the nearest that does"
        )
    return _patchify(images, patch=patch)


def nearest_patch(h, w, patch):
    """The patch size nearest to `patch` that divides both sides; the smaller one of two equally near."""
    return min((p for p in range(1, min(h, w) + 1) if h % p == 0 and w % p == 0), key=lambda p: (abs(p - patch), p))
