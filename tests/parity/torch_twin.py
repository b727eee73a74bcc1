"""A second opinion: the layers and the training of our models in PyTorch, by the routes that PyTorch users take.

Nothing here imports tinyvit, and where there is a choice it is the other one: channels first, weights (out, in),
PyTorch's own convolution, norms, attention, cross-entropy, optimisers and clipping. What agrees with this file to
rounding agrees by meaning and not by sharing a mistake. `torch_models.py` makes models of these layers.

In and out go tinyvit's `state_dict`s and arrays in tinyvit's layout: images (B, h, w, C), weights (in, out).
"""

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)


class Twin:
    """A model with the weights `state`, {tinyvit's parameter path: array}; a subclass defines `logits(images)`.

    `config` is anything with the fields of tinyvit's configuration. `dtype` is torch.float32 or torch.float64.
    """

    training = True  # to batch norm this makes a difference
    embedding = "embedding"  # path of the patches' matrix, (P·P·C, D)

    def __init__(self, config, state, dtype=torch.float32):
        self.config, self.dtype = config, dtype
        self.p, self.statistics = {}, {}
        for name, array in state.items():
            tensor = torch.tensor(self._to_torch(name, np.asarray(array)), dtype=dtype)
            if name.endswith((".mean", ".variance")):  # measured, not learned
                self.statistics[name] = tensor
            else:
                self.p[name] = tensor.requires_grad_()

    def _to_torch(self, name, array):
        if name == f"{self.embedding}.weight":  # -> (D, C, P, P)
            P = self.config.patch
            return array.reshape(P, P, -1, array.shape[1]).transpose(3, 2, 0, 1)
        if name.endswith(".weight"):  # (in, out) -> (out, in), (kh, kw, C, D) -> (D, C, kh, kw)
            return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        return array

    def _from_torch(self, name, array):
        if name == f"{self.embedding}.weight":
            return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
        if name.endswith(".weight"):
            return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        return array

    # ------------------------------------------------------------------------ layers

    def _channels_first(self, images):
        return torch.tensor(images, dtype=self.dtype).permute(0, 3, 1, 2)

    def _linear(self, x, path):
        return F.linear(x, self.p[f"{path}.weight"], self.p[f"{path}.bias"])

    def _norm(self, x, path):
        return F.layer_norm(x, x.shape[-1:], self.p[f"{path}.gamma"], self.p[f"{path}.beta"], eps=1e-6)

    def _attention(self, x, path, heads, scores=None, causal=False):
        """`scores(q)`, from queries (B, H, N, K), are added to q kᵀ / √K."""
        parts = self._linear(x, f"{path}.qkv").chunk(3, dim=-1)  # each becomes (B, H, N, K)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        mask = None if scores is None else scores(q)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self._linear(read.transpose(1, 2).flatten(2), f"{path}.out")

    def _mlp(self, x, path, tanh=False):
        x = F.gelu(self._linear(x, f"{path}.fc1"), approximate="tanh" if tanh else "none")
        return self._linear(x, f"{path}.fc2")

    def _patches(self, x):
        """(B, C, h, w) -> (B, N, D), by the strided convolution."""
        weight, bias = self.p[f"{self.embedding}.weight"], self.p[f"{self.embedding}.bias"]
        x = F.conv2d(x, weight, bias, stride=self.config.patch)
        return x.flatten(2).transpose(1, 2)

    def _conv(self, x, path, stride=1):
        weight = self.p[f"{path}.weight"]
        return F.conv2d(x, weight, self.p.get(f"{path}.bias"), stride, padding=weight.shape[-1] // 2)

    def _standardised_conv(self, x, path, stride=1):
        """Weight standardisation as batch norm of the weight, for which each filter is a channel."""
        weight = self.p[f"{path}.weight"]
        filters = F.batch_norm(weight.flatten(1)[None], None, None, training=True, momentum=0.0, eps=1e-10)
        return F.conv2d(x, filters.view_as(weight), None, stride, padding=weight.shape[-1] // 2)

    def _group_norm(self, x, path, groups):
        return F.group_norm(x, groups, self.p[f"{path}.gamma"], self.p[f"{path}.beta"], eps=1e-6)

    def _batch_norm(self, x, path):
        running = self.statistics[f"{path}.mean"], self.statistics[f"{path}.variance"]
        return F.batch_norm(x, *running, self.p[f"{path}.gamma"], self.p[f"{path}.beta"], self.training)

    # ------------------------------------------------------------------------ training

    def logits(self, images):
        """Images in tinyvit's layout -> logits (…, K), a torch tensor with a graph."""
        raise NotImplementedError

    def loss(self, logits, labels, smoothing):
        """The mean cross-entropy, over images or over pixels."""
        labels = torch.tensor(np.asarray(labels, np.int64)).flatten()
        return F.cross_entropy(logits.flatten(0, -2), labels, label_smoothing=smoothing)

    def reference(self, images, labels, smoothing):
        """(logits (…, K), loss, {parameter path: gradient}) for one batch, as arrays in tinyvit's layout."""
        logits = self.logits(images)
        loss = self.loss(logits, labels, smoothing)
        loss.backward()
        return logits.detach().numpy(), loss.item(), self.gradients()

    def gradients(self):
        """{parameter path: gradient}, in tinyvit's layout, for those that have one."""
        grads = {name: p.grad.numpy() for name, p in self.p.items() if p.grad is not None}
        return {name: self._from_torch(name, grad) for name, grad in grads.items()}

    def evaluate(self, images):
        """Logits in eval mode, an array."""
        self.training = False
        with torch.no_grad():
            logits = self.logits(images)
        self.training = True
        return logits.numpy()

    def groups(self, weight_decay):
        """Parameter groups for a torch optimiser: matrices decay; biases, gains, cls and positions do not."""
        matrices = [p for name, p in self.p.items() if name.endswith((".weight", ".value"))]
        others = [p for name, p in self.p.items() if not name.endswith((".weight", ".value"))]
        return [dict(params=matrices, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]

    def adamw(self, weight_decay, betas, eps):
        return torch.optim.AdamW(self.groups(weight_decay), betas=tuple(betas), eps=eps)

    def sgd(self, weight_decay, momentum):
        return torch.optim.SGD(self.groups(weight_decay), momentum=momentum)

    def train(self, optimizer, batches, rates, smoothing, clip):
        """A step on each batch (images, labels) with its learning rate; returns the losses before them.

        clip: the largest norm of the gradient, 0 for any."""
        losses = []
        for (images, labels), rate in zip(batches, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = self.loss(self.logits(images), labels, smoothing)
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(self.p.values(), clip)
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)
