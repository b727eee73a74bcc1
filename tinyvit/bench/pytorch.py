"""The rival: the same Vision Transformer as a good PyTorch user writes it.

The same parameters and the same mathematics as `models/vit.py`, by PyTorch's fastest ordinary route: one product for q,
k and v, its fused attention, its fused AdamW, gradients set to None instead of zero; eager, and through
`torch.compile`. Only the benchmark's worker imports this file, so tinyvit does not need PyTorch.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tinyvit.bench.shapes import BATCH, batch, many


class Block(nn.Module):
    """Equations 2 and 3 of the paper."""

    def __init__(self, width, heads, mlp):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))

    def forward(self, z):
        B, N, D = z.shape
        q, k, v = self.qkv(self.norm1(z)).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, N, K) each
        z = z + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))
        return z + self.mlp(self.norm2(z))


class ViT(nn.Module):
    """Images (B, C, h, w) -> logits (B, classes); `config` is a tinyvit ViTConfig."""

    def __init__(self, config):
        super().__init__()
        c = config
        self.patches = nn.Conv2d(c.channels, c.width, c.patch, c.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, c.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, c.tokens, c.width))
        self.blocks = nn.Sequential(*(Block(c.width, c.heads, c.mlp) for _ in range(c.depth)))
        self.norm = nn.LayerNorm(c.width, eps=1e-6)
        self.head = nn.Linear(c.width, c.classes)

    def forward(self, images):
        z = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, D)
        z = torch.cat([self.cls.expand(len(z), -1, -1), z], dim=1) + self.positions
        return self.head(self.norm(self.blocks(z))[:, 0])


def eager(config, threads):
    """Forward, backward and AdamW, op by op."""
    return _training(config, threads, lambda model: model)


def compiled(config, threads):
    """The same with forward and backward fused and generated as C++ by torch.compile."""
    return _training(config, threads, torch.compile)


def _training(config, threads, prepare):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = ViT(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    forward = prepare(model)
    images, labels = batch(config, BATCH)
    images, labels = _channels_first(images), torch.from_numpy(labels)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"step": step}


def prediction(config, threads):
    """Class probabilities of one image, and of many at once."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = ViT(config).eval()
    images = _channels_first(batch(config, many(config))[0])

    def predict(images):
        with torch.inference_mode():
            return torch.softmax(model(images), -1).numpy()

    return {"one": lambda: predict(images[:1]), "many": lambda: predict(images)}


def _channels_first(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
