"""Our models once more, made of `torch_twin.py`'s layers, each written from its paper; nothing here imports tinyvit.

Where papers and PyTorch users have another way to the same numbers, it is taken here: a relative table is read through
a sliding window, not by an index; scores of shifts are computed by skewing; sines and cosines are complex numbers;
standardised weights come out of a batch norm.
"""

from math import gcd

import torch
import torch.nn.functional as F

from .torch_twin import Twin


class ViTTwin(Twin):
    """The Vision Transformer with the choices of a ViTConfig."""

    def logits(self, images):
        """images (B, h, w, C), an array -> logits (B, K)."""
        c, p = self.config, self.p
        x = self._feature_map(images)
        grid = x.shape[2] // c.patch, x.shape[3] // c.patch
        z = self._with_prefix(self._patches(x), grid)
        first = z.shape[1] - grid[0] * grid[1]
        for i in range(c.depth):
            path, scores = f"blocks.{i}", None
            if c.positions == "relative":
                scores = self._shift_scores(f"{path}.attention.shifts", grid, first)
            z = z + self._attention(self._norm(z, f"{path}.norm1"), f"{path}.attention", c.heads, scores)
            z = z + self._mlp(self._norm(z, f"{path}.norm2"), f"{path}.mlp", c.gelu_tanh)
        z = self._norm(z, "norm")
        y = z[:, 0] if "cls" in p else z[:, first:].mean(dim=1)
        if c.head == "mlp":
            return self._linear(torch.tanh(self._linear(y, "head.hidden")), "head.out")
        return self._linear(y, "head")

    def _feature_map(self, images):
        """(B, C, h, w), of which patches are cut."""
        return self._channels_first(images)

    def _with_prefix(self, x, grid):
        """Patches (B, N, D) -> the sequence: class token, registers, patches, and positions for all but registers."""
        x = x + self._positions(grid, x.shape[-1])
        parts = [self.p["cls"].expand(len(x), -1, -1)] if "cls" in self.p else []
        if self.config.positions == "1d":  # the only kind that the class token has too
            x = torch.cat([*parts, x], dim=1) + self.p["positions.table"]
            parts, x = [x[:, : len(parts)]], x[:, len(parts) :]
        if "registers" in self.p:
            parts.append(self.p["registers"].expand(len(x), -1, -1))
        return torch.cat([*parts, x], dim=1)

    def _positions(self, grid, width):
        """What is added to the patches alone, (1, N, D)."""
        kind, (rows, cols) = self.config.positions, grid
        if kind == "2d":
            of_row, of_column = self.p["positions.rows"], self.p["positions.columns"]
            return torch.cat([of_row.expand(-1, cols, -1), of_column.expand(rows, -1, -1)], dim=-1).flatten(0, 1)[None]
        if kind == "sincos":  # e^iωx: its imaginary part is the sine
            omega = torch.logspace(0, -4, width // 4 + 1, dtype=torch.float64)[:-1]
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
            waves = [torch.polar(torch.ones(()).double(), axis.reshape(-1, 1) * omega) for axis in (x, y)]
            return torch.cat([part for w in waves for part in (w.imag, w.real)], dim=1)[None].float().to(self.dtype)
        return torch.zeros((), dtype=self.dtype)

    def _shift_scores(self, path, grid, first):
        """Queries (B, H, T, K) -> qᵢ · r_(j-i) / √K: (B, H, T, T). Shaw et al. 2018, eq. 4, in two dimensions."""
        (rows, cols), r = grid, self.p[path]
        plane, others = r.tensor_split([(2 * rows - 1) * (2 * cols - 1)])
        plane = plane.view(2 * rows - 1, 2 * cols - 1, -1)  # shifts from (1 - rows, 1 - cols) on
        seen = [  # by the query at (y, x): the part of the plane whose corner is the shift to the first patch
            plane[rows - 1 - y : 2 * rows - 1 - y, cols - 1 - x : 2 * cols - 1 - x].flatten(0, 1)
            for y in range(rows)
            for x in range(cols)
        ]
        N, K = len(seen), r.shape[1]
        if not first:
            return lambda q: torch.einsum("bhik,ijk->bhij", q, torch.stack(seen)) / K**0.5
        to_patch, from_patch, among = others
        upper = torch.cat([among.expand(first, first, K), to_patch.expand(first, N, K)], dim=1)
        lower = torch.cat([from_patch.expand(N, first, K), torch.stack(seen)], dim=1)
        table = torch.cat([upper, lower])  # (T, T, K)
        return lambda q: torch.einsum("bhik,ijk->bhij", q, table) / K**0.5


class ResNetTwin(Twin):
    """The ResNet for small images: He et al. 2016 with batch norm, "Identity Mappings" with group norm and
    standardised weights (BiT)."""

    trunk = "trunk"  # path of the network without its head

    def logits(self, images):
        x = self._features(self._channels_first(images))
        return self._linear(F.adaptive_avg_pool2d(x, 1).flatten(1), "head")

    def _features(self, x):
        """(B, C, h, w) -> the last feature map, (B, C', h', w')."""
        batch = self.config.norm == "batch"
        if batch:
            x = F.relu(self._batch_norm(self._conv(x, f"{self.trunk}.stem"), f"{self.trunk}.norm"))
        else:
            x = self._standardised_conv(x, f"{self.trunk}.stem")
        strides = [1 + (stage > 0 and i == 0) for stage, n in enumerate(self.config.blocks) for i in range(n)]
        for i, stride in enumerate(strides):
            x = (self._basic if batch else self._pre_activated)(x, f"{self.trunk}.blocks.{i}", stride)
        return x if batch else self._activated(x, f"{self.trunk}.norm")

    def _basic(self, x, path, stride):
        """arXiv 1512.03385, eq. 1 and figure 2; a shortcut of type A: thinned out, with zeros for further channels."""
        y = F.relu(self._batch_norm(self._conv(x, f"{path}.conv1", stride), f"{path}.norm1"))
        y = self._batch_norm(self._conv(y, f"{path}.conv2"), f"{path}.norm2")
        x = F.avg_pool2d(x, kernel_size=1, stride=stride)
        return F.relu(F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])) + y)

    def _pre_activated(self, x, path, stride):
        """arXiv 1603.05027, figure 4e; where the shape changes, the shortcut is a projection of the activation."""
        a = self._activated(x, f"{path}.norm1")
        y = self._standardised_conv(a, f"{path}.conv1", stride)
        y = self._standardised_conv(self._activated(y, f"{path}.norm2"), f"{path}.conv2")
        if y.shape != x.shape:
            x = self._standardised_conv(a, f"{path}.projection", stride)
        return x + y

    def _activated(self, x, path):
        return F.relu(self._group_norm(x, path, gcd(8, x.shape[1])))


class HybridTwin(ViTTwin, ResNetTwin):
    """A ViT on a ResNet's feature map. The ViT's paper, section 3.1."""

    embedding, trunk = "embedding.patches", "embedding.trunk"

    def _feature_map(self, images):
        return self._features(self._channels_first(images))


class ImageGPTTwin(Twin):
    """Image GPT: each pixel guessed from those before it, by PyTorch's own causal attention. Chen et al. 2020."""

    def logits(self, pixels):
        """pixels (B, h, w), whole numbers -> logits (B, N, V)."""
        return self._linear(self.encoded(pixels), "head")

    def encoded(self, pixels):
        """pixels (B, h, w) -> tokens after the last norm, (B, N, D)."""
        c, p = self.config, self.p
        z = F.embedding(torch.tensor(pixels).long().flatten(1), p["embedding"])
        z = torch.cat([p["start"].expand(len(z), 1, -1), z], dim=1)[:, :-1] + p["positions"]
        for i in range(c.depth):
            path = f"blocks.{i}"
            z = z + self._attention(self._norm(z, f"{path}.norm1"), f"{path}.attention", c.heads, causal=True)
            z = z + self._mlp(self._norm(z, f"{path}.norm2"), f"{path}.mlp")
        return self._norm(z, "norm")


class QuadraticTwin(Twin):
    """Attention by relative position alone. Cordonnier et al. 2020, section 3.3, in a network of pre-norm blocks."""

    def logits(self, images):
        c = self.config
        z = self._patches(self._channels_first(images))  # (B, N, D)
        grid = c.image_size[0] // c.patch, c.image_size[1] // c.patch
        for i in range(c.depth):
            path = f"blocks.{i}"
            z = z + self.quadratic_attention(self._norm(z, f"{path}.norm1"), f"{path}.attention", c.heads, grid)
            z = z + self._mlp(self._norm(z, f"{path}.norm2"), f"{path}.mlp")
        return self._linear(self._norm(z, "norm").mean(dim=1), "head")

    def quadratic_attention(self, x, path, heads, grid, padding=0):
        """x (B, h w, C) -> (B, h w, D). Scores v · r with v = -α (1, -2 Δ) and r = (‖δ‖², δ), eq. 9; all keys, those
        in the padding too, have values."""
        (h, w), s = grid, padding
        alpha, centres = self.p[f"{path}.sharpness"], self.p[f"{path}.centres"]
        v = -alpha[:, None] * torch.cat([torch.ones(heads, 1, dtype=self.dtype), -2 * centres], dim=1)
        queries = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        keys = torch.cartesian_prod(torch.arange(-s, h + s), torch.arange(-s, w + s))
        delta = (keys - queries[:, None]).to(self.dtype)  # (N, M, 2)
        r = torch.cat([delta.square().sum(dim=-1, keepdim=True), delta], dim=-1)
        maps = torch.softmax(torch.einsum("hd,qkd->hqk", v, r), dim=-1)
        padded = F.pad(x.unflatten(1, grid), (0, 0, s, s, s, s)).flatten(1, 2)  # (B, M, C)
        values = (padded @ self.p[f"{path}.value"]).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, M, K)
        return self._linear((maps @ values).transpose(1, 2).flatten(2), f"{path}.out")


class AugmentedTwin(Twin):
    """Attention-augmented convolutions in a pre-activation ResNet. Bello et al. 2019, section 3."""

    def logits(self, images):
        c = self.config
        x = self._conv(self._channels_first(images), "stem", c.stride)
        for i in range(c.depth):
            path = f"blocks.{i}"
            a = F.relu(self._group_norm(x, f"{path}.norm", c.groups))
            parts = []
            if c.attention < c.width:
                parts.append(self._conv(a, f"{path}.mix.convolution"))
            if c.attention:
                parts.append(self._attention_2d(a, f"{path}.mix.attention"))
            x = x + torch.cat(parts, dim=1)
        x = F.relu(self._group_norm(x, "norm", c.groups))
        return self._linear(x.mean(dim=(2, 3)), "head")

    def _attention_2d(self, a, path):
        """(B, C, h, w) -> (B, D, h, w), eq. 3 and 4."""
        h, w = a.shape[2:]

        def scores(q):
            q = q.unflatten(2, (h, w)) / q.shape[-1] ** 0.5  # (B, H, h, w, K)
            below = _skewed(q.transpose(2, 3), self.p[f"{path}.rows"])  # (B, H, w, h, h)
            right = _skewed(q, self.p[f"{path}.columns"])  # (B, H, h, w, w)
            below, right = below.transpose(2, 3)[..., :, None], right[..., None, :]
            return (below + right).flatten(4, 5).flatten(2, 3)

        tokens = self._attention(a.flatten(2).mT, path, self.config.heads, scores)
        return tokens.mT.unflatten(2, (h, w))


def _skewed(q, r):
    """Queries (…, n, K) of a line and r (2 n - 1, K), its first row the shift 1 - n -> (…, n, n) with q[i] · r[j - i].

    Query i needs the n products from n - 1 - i on. Rows one longer, cut as if one shorter, put them below each other
    (Huang et al. 2018, "Music Transformer"; Bello et al., appendix)."""
    n = q.shape[-2]
    products = F.pad(q @ r.T, (0, 1)).flatten(-2)  # (…, n · 2 n)
    return F.pad(products, (0, n - 1)).unflatten(-1, (n + 1, 2 * n - 1))[..., :n, n - 1 :]


TWINS = {
    "vit": ViTTwin, "resnet": ResNetTwin, "hybrid": HybridTwin, "igpt": ImageGPTTwin, "quadratic": QuadraticTwin,
    "augmented": AugmentedTwin,
}  # fmt: skip
