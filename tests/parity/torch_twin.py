"""A second opinion: the same Vision Transformer in PyTorch, by the routes that PyTorch users take.

Nothing here imports tinyvit, and where there is a choice it is the other one: patches by strided convolution,
not by reshape, channels first, weights (out, in), PyTorch's own attention, cross-entropy, AdamW and clipping.
What agrees with this file to rounding agrees by meaning and not by sharing a mistake.

In and out go tinyvit's `state_dict`s and arrays in tinyvit's layout: images (B, h, w, C), weights (in, out).
"""

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)


class Twin:
    """A ViT with the weights `state`, {tinyvit's parameter path: array}.

    `config` is anything with the fields of a `ViTConfig`. `dtype` is torch.float32 or torch.float64.
    """

    def __init__(self, config, state, dtype=torch.float32):
        self.config, self.dtype = config, dtype
        self.p = {}
        for name, array in state.items():
            tensor = torch.tensor(self._to_torch(name, np.asarray(array)), dtype=dtype)
            self.p[name] = tensor.requires_grad_()

    def _to_torch(self, name, array):
        if name == "embedding.weight":  # (P·P·C, D) -> (D, C, P, P)
            P = self.config.patch
            return array.reshape(P, P, self.config.channels, -1).transpose(3, 2, 0, 1)
        return array.T if name.endswith(".weight") else array

    def _from_torch(self, name, array):
        if name == "embedding.weight":
            return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
        return array.T if name.endswith(".weight") else array

    def logits(self, images):
        """images (B, h, w, C), an array -> logits (B, K), a torch tensor with a graph."""
        p, c = self.p, self.config
        x = torch.tensor(images, dtype=self.dtype).permute(0, 3, 1, 2)
        x = F.conv2d(x, p["embedding.weight"], p["embedding.bias"], stride=c.patch)  # (B, D, h/P, w/P)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([p["cls"].expand(len(x), -1, -1), x], dim=1) + p["positions.table"]
        for i in range(c.depth):
            x = x + self._attention(self._norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attention")
            x = x + self._mlp(self._norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp")
        return self._linear(self._norm(x, "norm")[:, 0], "head")

    def _linear(self, x, path):
        return F.linear(x, self.p[f"{path}.weight"], self.p[f"{path}.bias"])

    def _norm(self, x, path):
        return F.layer_norm(x, x.shape[-1:], self.p[f"{path}.gamma"], self.p[f"{path}.beta"], eps=1e-6)

    def _attention(self, x, path):
        parts = self._linear(x, f"{path}.qkv").chunk(3, dim=-1)  # each becomes (B, H, N, K)
        q, k, v = (part.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for part in parts)
        return self._linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), f"{path}.out")

    def _mlp(self, x, path):
        form = "tanh" if self.config.gelu_tanh else "none"
        return self._linear(F.gelu(self._linear(x, f"{path}.fc1"), approximate=form), f"{path}.fc2")

    def loss(self, images, labels, smoothing):
        """The mean cross-entropy of a batch, a torch scalar with a graph."""
        return F.cross_entropy(self.logits(images), torch.tensor(labels), label_smoothing=smoothing)

    def reference(self, images, labels, smoothing):
        """(logits (B, K), loss, {parameter path: gradient}) for one batch, as arrays in tinyvit's layout."""
        logits = self.logits(images)
        loss = F.cross_entropy(logits, torch.tensor(labels), label_smoothing=smoothing)
        loss.backward()
        gradients = {name: self._from_torch(name, p.grad.numpy()) for name, p in self.p.items()}
        return logits.detach().numpy(), loss.item(), gradients

    def groups(self, weight_decay):
        """Parameter groups for a torch optimiser: matrices decay; biases, gains, cls and positions do not."""
        matrices = [p for name, p in self.p.items() if name.endswith("weight")]
        others = [p for name, p in self.p.items() if not name.endswith("weight")]
        return [dict(params=matrices, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]

    def adamw(self, weight_decay, betas, eps):
        return torch.optim.AdamW(self.groups(weight_decay), betas=tuple(betas), eps=eps)

    def train(self, optimizer, batches, rates, smoothing, clip):
        """A step on each batch (images, labels) with its learning rate; returns the losses before them."""
        losses = []
        for (images, labels), rate in zip(batches, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = self.loss(images, labels, smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.p.values(), clip)
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)
