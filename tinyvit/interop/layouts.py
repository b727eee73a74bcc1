"""Three layouts of the same numbers: how Google, timm and Hugging Face name and turn the parameters of a ViT.

A ViT's parameters are the same everywhere; what differs is their names, and which axis of an array comes first. One
table a layout says both, in the form

    theirs = ours.reshape(shape).transpose(axes)

and so serves in both directions: `Entry.write` computes it, `Entry.read` undoes it. Our weights are (in, out) and
patches are flattened (row, column, channel), as in Google's files: there a reshape is all. PyTorch's weights are
(out, in), its patches a convolution's (D, C, P, P): axes change places. Ours packs query, key and value into one matrix
(D, 3 D), so does timm; the others keep three, so that each is a `part` of ours.

Old and new spellings of a layout are respelled into one first. Names as in google-research/vision_transformer and
big_vision, timm 1.0 and transformers 4 and 5 (which renamed the modules, not the files).

Chapter of the course: notebooks/13-real-weights.ipynb.
"""

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One array of theirs. ours, theirs: names. shape, axes: see above. part: which third of ours; None: all of it."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    part: int | None = None

    @property
    def stored(self):
        """The shape of theirs."""
        return self.shape if self.axes is None else tuple(self.shape[axis] for axis in self.axes)

    def write(self, ours):
        """Theirs of ours."""
        if self.part is not None:
            ours = np.split(ours, 3, axis=-1)[self.part]
        return ours.reshape(self.shape).transpose(self.axes or range(len(self.shape)))

    def read(self, theirs, ours):
        """Put theirs where it belongs in the array `ours`."""
        if self.part is not None:
            ours = np.split(ours, 3, axis=-1)[self.part]  # views
        ours[...] = theirs.transpose(np.argsort(self.axes or range(len(self.shape)))).reshape(ours.shape)


def google(c):
    """The table for the .npz files of vit_jax, of a ViTConfig. K is the width of a head."""
    D, H, M, P, K = c.width, c.heads, c.mlp, c.patch, c.width // c.heads
    yield Entry("embedding.weight", "embedding/kernel", (P, P, c.channels, D))
    yield Entry("embedding.bias", "embedding/bias", (D,))
    if c.pool == "class":
        yield Entry("cls", "cls", (1, 1, D))
    yield Entry("positions.table", "Transformer/posembed_input/pos_embedding", (1, c.tokens, D))
    for i in range(c.depth):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        yield from _google_norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0", D)
        for part, name in enumerate(("query", "key", "value")):
            yield Entry(f"{ours}.attention.qkv.weight", f"{attention}/{name}/kernel", (D, H, K), part=part)
            yield Entry(f"{ours}.attention.qkv.bias", f"{attention}/{name}/bias", (H, K), part=part)
        yield Entry(f"{ours}.attention.out.weight", f"{attention}/out/kernel", (H, K, D))
        yield Entry(f"{ours}.attention.out.bias", f"{attention}/out/bias", (D,))
        yield from _google_norm(f"{ours}.norm2", f"{theirs}/LayerNorm_2", D)
        yield from _google_linear(f"{ours}.mlp.fc1", f"{theirs}/MlpBlock_3/Dense_0", D, M)
        yield from _google_linear(f"{ours}.mlp.fc2", f"{theirs}/MlpBlock_3/Dense_1", M, D)
    yield from _google_norm("norm", "Transformer/encoder_norm", D)
    if c.head == "mlp":
        yield from _google_linear("head.hidden", "pre_logits", D, D)
    if c.head != "none":
        yield from _google_linear("head" if c.head == "linear" else "head.out", "head", D, c.classes)


def timm(c):
    """The table for timm's VisionTransformer."""
    D = c.width
    yield Entry("embedding.weight", "patch_embed.proj.weight", (c.patch, c.patch, c.channels, D), (3, 2, 0, 1))
    yield Entry("embedding.bias", "patch_embed.proj.bias", (D,))
    if c.pool == "class":
        yield Entry("cls", "cls_token", (1, 1, D))
    if c.registers:
        yield Entry("registers", "reg_token", (1, c.registers, D))
    yield Entry("positions.table", "pos_embed", (1, c.tokens - c.registers, D))
    for i in range(c.depth):
        ours = theirs = f"blocks.{i}"
        yield from _torch_norm(f"{ours}.norm1", f"{theirs}.norm1", D)
        yield from _torch_linear(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", D, 3 * D)
        yield from _torch_linear(f"{ours}.attention.out", f"{theirs}.attn.proj", D, D)
        yield from _torch_norm(f"{ours}.norm2", f"{theirs}.norm2", D)
        yield from _torch_linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", D, c.mlp)
        yield from _torch_linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", c.mlp, D)
    yield from _torch_norm("norm", "fc_norm" if c.pool == "average-norm" else "norm", D)
    if c.head != "none":
        yield from _torch_linear("head", "head", D, c.classes)


def hugging_face(c):
    """The table for Hugging Face's ViTForImageClassification, as its files name it."""
    D = c.width
    embeddings, patches = "vit.embeddings", "vit.embeddings.patch_embeddings.projection"
    yield Entry("embedding.weight", f"{patches}.weight", (c.patch, c.patch, c.channels, D), (3, 2, 0, 1))
    yield Entry("embedding.bias", f"{patches}.bias", (D,))
    yield Entry("cls", f"{embeddings}.cls_token", (1, 1, D))
    yield Entry("positions.table", f"{embeddings}.position_embeddings", (1, c.tokens, D))
    for i in range(c.depth):
        ours, theirs = f"blocks.{i}", f"vit.encoder.layer.{i}"
        yield from _torch_norm(f"{ours}.norm1", f"{theirs}.layernorm_before", D)
        for part, name in enumerate(("query", "key", "value")):
            yield from _torch_linear(f"{ours}.attention.qkv", f"{theirs}.attention.attention.{name}", D, D, part)
        yield from _torch_linear(f"{ours}.attention.out", f"{theirs}.attention.output.dense", D, D)
        yield from _torch_norm(f"{ours}.norm2", f"{theirs}.layernorm_after", D)
        yield from _torch_linear(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense", D, c.mlp)
        yield from _torch_linear(f"{ours}.mlp.fc2", f"{theirs}.output.dense", c.mlp, D)
    yield from _torch_norm("norm", "vit.layernorm", D)
    if c.head != "none":
        yield from _torch_linear("head", "classifier", D, c.classes)


def _google_linear(ours, theirs, d_in, d_out):
    yield Entry(f"{ours}.weight", f"{theirs}/kernel", (d_in, d_out))
    yield Entry(f"{ours}.bias", f"{theirs}/bias", (d_out,))


def _google_norm(ours, theirs, D):
    yield Entry(f"{ours}.gamma", f"{theirs}/scale", (D,))
    yield Entry(f"{ours}.beta", f"{theirs}/bias", (D,))


def _torch_linear(ours, theirs, d_in, d_out, part=None):
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (d_in, d_out), (1, 0), part)
    yield Entry(f"{ours}.bias", f"{theirs}.bias", (d_out,), None, part)


def _torch_norm(ours, theirs, D):
    yield Entry(f"{ours}.gamma", f"{theirs}.weight", (D,))
    yield Entry(f"{ours}.beta", f"{theirs}.bias", (D,))


@dataclass(frozen=True)
class Layout:
    """A layout as the reader needs it.

    title: for sentences. table: of a ViTConfig, its entries. patches, positions, block, hidden, head: the arrays whose
    sides say a model's size; by the patch embedding a file is known; `block` begins the names of layer {i}, `hidden`
    goes on to its MLP. prefixes: what may stand before all names. spellings: (pattern, replacement) from others.
    """

    title: str
    table: object
    patches: str
    positions: str
    block: str
    hidden: str
    head: str
    prefixes: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...]

    def respelled(self, names):
        """{name in the file: name in the table}, or None if this is not the layout. A file of several things, such as a
        model and its optimiser, is read as far as it is the model."""
        for prefix in self.prefixes:
            named = {name: self._respell(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}
            if self.patches in named.values():
                return named
        return None

    def _respell(self, name):
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name


LAYOUTS = {
    "google": Layout(
        "Google's ViT (vit_jax, big_vision)", google, "embedding/kernel",
        "Transformer/posembed_input/pos_embedding", "Transformer/encoderblock_{i}/", "MlpBlock_3/Dense_0/kernel",
        "head/kernel",
        ("", "opt/target/", "params/", "params/img/", "img/"),
        (  # big_vision's
            (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
            (r"(encoderblock\w*)/LayerNorm_1/", r"\1/LayerNorm_2/"),
            (r"/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
            (r"/MlpBlock_0/", "/MlpBlock_3/"),
        ),
    ),
    "timm": Layout(
        "timm's VisionTransformer", timm, "patch_embed.proj.weight",
        "pos_embed", "blocks.{i}.", "mlp.fc1.weight", "head.weight",
        ("", "model.", "module."), (),
    ),
    "hf": Layout(
        "Hugging Face's ViT", hugging_face, "vit.embeddings.patch_embeddings.projection.weight",
        "vit.embeddings.position_embeddings", "vit.encoder.layer.{i}.", "intermediate.dense.weight",
        "classifier.weight",
        ("",),
        (
            (r"^(?=embeddings|encoder|layers|layernorm|pooler)", "vit."),  # a ViTModel alone
            (r"^vit\.layers\.", "vit.encoder.layer."),  # transformers 5, as its modules are called
            (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{_QKV[m[1]]}."),
            (r"\.attention\.o_proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        ),
    ),
}  # fmt: skip
_QKV = {"q": "query", "k": "key", "v": "value"}
