"""Image GPT: a Transformer that learns images by guessing the next pixel, with no label and no idea of two dimensions.

Row by row, an image is a sentence x₁ … x_N whose words are the colours of a palette (`data/palette.py`). Any
distribution over sentences is a product of guesses,

    p(x) = Πₜ p(xₜ | x₁ … xₜ₋₁),        loss = mean over t of -ln p(xₜ | x₁ … xₜ₋₁)

and one Transformer makes all N of them in one pass: token t carries pixel t - 1 (the first one a learned start token),
and a causal mask, -∞ added to the scores of later tokens, keeps it from reading what it is to guess. The loss divided
by ln 2 is in bits per pixel: what a compressor with this model would spend.

To guess well, it has to learn what the images are made of. How much, three readers show: samples drawn pixel by pixel,
a linear probe on what each layer holds (`features`), and fine-tuning (`ImageGPTClassifier`).

Source: Chen et al. 2020, "Generative Pretraining from Pixels". Its initial values for tokens and positions and its zero
head; the encoder block is our ViT's (their layer norm has no mean and no β, their GELU is x σ(1.702 x)).

Chapter of the course: notebooks/12-learning-without-labels.ipynb.
"""

from dataclasses import dataclass

import numpy as np

from tinyvit import functional as F
from tinyvit import kernels, ops
from tinyvit.memory import Pool
from tinyvit.models.model import check_heads, check_sizes, probabilities
from tinyvit.nn import Dropout, EncoderBlock, LayerNorm, Linear, Module, Parameter, evaluating
from tinyvit.tensor import no_grad


@dataclass(frozen=True)
class ImageGPTConfig:
    """What defines an ImageGPT. Raises ValueError where the numbers do not fit together.

    image_size: (height, width) in pixels, or one number for a square. Each pixel is a token.
    palette: V, how many colours a pixel can have.
    width: D, numbers per token.
    depth: L, encoder blocks.
    heads: H, must divide the width.
    mlp: hidden units of the MLP; Chen et al. take 4 D.
    dropout: probability, as in a ViT.
    """

    image_size: tuple[int, int] = (8, 8)
    palette: int = 17
    width: int = 64
    depth: int = 4
    heads: int = 4
    mlp: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        check_sizes(self, "palette", "width", "depth", "heads", "mlp")
        if self.palette < 2:
            raise ValueError(f"palette must have two colours or more, got {self.palette}")
        check_heads(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def tokens(self):
        """N: one for each pixel."""
        return self.image_size[0] * self.image_size[1]


class ImageGPT(Module):
    """A causal Transformer over pixels.

    Args:
        config: an ImageGPTConfig.
        seed: of the initial values. The head is zero, so that the first loss is exactly ln V.
    """

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        c = self.config = config
        self.embedding = Parameter(rng.normal(0, 0.02, (c.palette, c.width)).astype(np.float32))
        self.start = Parameter(rng.normal(0, 0.02, (1, 1, c.width)).astype(np.float32))
        self.positions = Parameter(rng.normal(0, 0.01, (c.tokens, c.width)).astype(np.float32))
        self.dropout = Dropout(c.dropout)
        self.blocks = [EncoderBlock(c.width, c.heads, c.mlp, rng, c.dropout) for _ in range(c.depth)]
        self.norm = LayerNorm(c.width)
        self.head = Linear(c.width, c.palette, rng)
        self.head.weight.data = 0.0
        self.name_parameters()

    def forward(self, pixels):
        """Guess each pixel from those before it.

        Args:
            pixels: (B, height, width) integers in [0, V), from `Palette.encode`.

        Returns logits (B, N, V): at t those of pixel t, row by row. Raises ValueError for another shape or another
        number, TypeError for what is not integer.
        """
        return self.head(self.encode(pixels))

    def encode(self, pixels):
        """Pixels (B, height, width) -> tokens after the last norm, (B, N, D)."""
        return self.norm(self._blocks(self.checked(pixels)[:, :-1])[-1])

    def features(self, pixels, batch_size=64):
        """What each layer holds of an image, for a linear probe: L + 1 arrays (B, height, D).

        Entry l is nˡ = LN(hˡ), the layer norm that follows block l (entry 0 is before the first block), averaged over
        the tokens of each row of pixels. The mean over the rows too, `f.mean(axis=1)`, is what Chen et al. probe
        (section 2.4). The last pixel is never read, as nothing comes after it.
        """
        rows = (-1, *self.config.image_size, self.config.width)
        norms = [block.norm1 for block in self.blocks] + [self.norm]
        parts = []
        with no_grad(), evaluating(), Pool():
            for part in _parts(self.checked(pixels), batch_size):
                layers = zip(norms, self._blocks(part[:, :-1]), strict=True)
                parts.append([norm(h).data.reshape(rows).mean(axis=2) for norm, h in layers])
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def bits_per_pixel(self, pixels, batch_size=64):
        """The mean loss over images (B, height, width), without dropout, in bits. Raises ValueError for B = 0."""
        if not len(pixels):
            raise ValueError("bits_per_pixel is a mean over images and needs at least one, got none")
        with no_grad(), evaluating(), Pool():
            total = sum(next_pixel(self, part, part)[0].item() * len(part) for part in _parts(pixels, batch_size))
        return total / len(pixels) / np.log(2)

    def sample(self, count, rng, temperature=1.0):
        """Draw `count` images (count, height, width) from the model; see `complete`."""
        if not isinstance(count, int | np.integer) or count < 0:
            raise ValueError(f"count must be a whole number of images from 0 up, got {count!r}")
        return self.complete(np.empty((count, 0, self.config.image_size[1]), np.int64), rng, temperature)

    def complete(self, upper, rng, temperature=1.0):
        """Draw the rest of images whose upper rows are given, pixel by pixel.

        Args:
            upper: (B, rows, width) integers in [0, V); kept as they are.
            rng: a numpy Generator; the same one in the same state draws the same images.
            temperature: divides the logits. Below 1 the likely becomes likelier; 1 is the model's own distribution.

        Returns (B, height, width). Each step reads only the pixels that are there, so the mean step costs half a pass.
        (Production systems keep each layer's keys and values and compute one token a step.)
        """
        h, w = self.config.image_size
        upper = self._checked_colours(upper)
        if upper.ndim != 3 or upper.shape[1] > h or upper.shape[2] != w:
            raise ValueError(f"complete needs upper rows (B, at most {h}, {w}), got {upper.shape}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        B, rows, _ = upper.shape
        pixels = np.empty((B, h * w), np.int64)
        pixels[:, : rows * w] = upper.reshape(B, rows * w)
        with no_grad(), evaluating(), Pool():
            for t in range(rows * w, h * w):
                last = self._blocks(pixels[:, :t])[-1][:, -1]
                p = kernels.softmax(self.head(self.norm(last)).data.astype(np.float64) / temperature)
                # The first colour whose cumulated probability exceeds a uniform number
                u = rng.random((len(p), 1))
                pixels[:, t] = np.minimum((p.cumsum(axis=1) <= u).sum(axis=1), self.config.palette - 1)
        return pixels.reshape(-1, h, w)

    def checked(self, pixels):
        """Pixels (B, height, width) as sequences (B, N). Raises ValueError or TypeError for what are not such."""
        h, w = self.config.image_size
        if np.shape(pixels)[1:] != (h, w):
            raise ValueError(f"this ImageGPT reads numbers of colours (B, {h}, {w}), got {np.shape(pixels)}")
        return self._checked_colours(pixels).reshape(-1, h * w)

    def _checked_colours(self, pixels):
        pixels = np.asarray(pixels)
        if pixels.dtype.kind not in "iu":
            raise TypeError(f"pixels must be integers, the numbers of colours (Palette.encode), got {pixels.dtype}")
        if pixels.size and not 0 <= pixels.min() <= pixels.max() < self.config.palette:
            raise ValueError(
                f"pixels must be colours in [0, {self.config.palette}), got {pixels.min()} to {pixels.max()}"
            )
        return pixels

    def _blocks(self, pixels):
        """(B, t) pixels, t < N -> h⁰ … hᴸ, a list of Tensors (B, t + 1, D): what goes into each block, and what leaves
        the last."""
        B, t = pixels.shape
        start = ops.broadcast_to(self.start, shape=(B, 1, self.config.width))
        z = ops.concatenate([start, F.embedding(self.embedding, pixels)], axis=1) + self.positions[: t + 1]
        layers = [self.dropout(z)]
        later = np.triu(np.full((t + 1, t + 1), -np.inf, z.dtype), 1)  # row i, column j > i
        for block in self.blocks:
            layers.append(block(layers[-1], bias=later))
        return layers


class ImageGPTClassifier(Module):
    """An ImageGPT with a head for classes: the mean over its last tokens, then a linear layer that is zero at first.

    For fine-tuning (Chen et al. section 2.3). All of `gpt` is trained too, in place: pass `copy.deepcopy(gpt)` to keep
    it.
    """

    def __init__(self, gpt, classes):
        self.gpt = gpt
        self.head = Linear(gpt.config.width, classes, np.random.default_rng(0))
        self.head.weight.data = 0.0
        self.name_parameters()

    def forward(self, pixels):
        """Pixels (B, height, width) -> logits (B, classes)."""
        return self.head(self.gpt.encode(pixels).mean(axis=1))

    def predict(self, pixels, batch_size=64):
        """Class probabilities (B, classes), without dropout."""
        return probabilities(self, pixels, len(self.head.bias), batch_size)


def next_pixel(model, pixels, targets, smoothing=0.0):
    """The objective of pre-training, for `train.pretrain`: (loss, share of pixels guessed right times images).

    `pixels` and `targets` (B, height, width) are the same thing: the mask keeps a pixel from itself.
    """
    logits = model(pixels).reshape(-1, model.config.palette)
    loss = F.cross_entropy(logits, np.reshape(targets, -1), smoothing)
    return loss, float((logits.data.argmax(axis=1) == np.reshape(targets, -1)).mean()) * len(pixels)


def _parts(pixels, batch_size):
    starts = range(0, max(1, len(pixels)), batch_size)  # of no image: one empty part
    return [pixels[i : i + batch_size] for i in starts]


def marginal_bits_per_pixel(training, pixels, colours):
    """What a model must beat: bits per pixel of `pixels` (B, h, w) under each place's own histogram of colours in the
    `training` pixels (M, h, w), one added to each count. It knows where ink tends to be, and no pixel's neighbours.

    `colours` is their number, V = len(palette). Raises ValueError for what is no number."""
    if not isinstance(colours, int | np.integer):
        raise ValueError(f"colours must be how many there are, len(palette), got a {type(colours).__name__}")
    counts = 1 + np.stack([(training == colour).sum(axis=0) for colour in range(colours)], axis=-1)  # (h, w, V)
    p = counts / counts.sum(axis=-1, keepdims=True)
    _, h, w = pixels.shape
    return float(-np.log2(p[np.arange(h)[:, None], np.arange(w), pixels]).mean())
