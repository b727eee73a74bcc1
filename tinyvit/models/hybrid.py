"""The hybrid: a Vision Transformer that reads the feature map of a small ResNet instead of the image.

"As an alternative to raw image patches, the input sequence can be formed from feature maps of a CNN" (paper section
3.1). Each pixel of the map, which has seen a neighbourhood of the image, is a patch of 1×1, mapped to D numbers like
any other; class token, positions and encoder are the ViT's. So the first layers have a convolution's knowledge of
images, neighbours first and the same everywhere, and the later ones attention's freedom. In the paper hybrids win at
small budgets of computation, and the difference vanishes for large models (figure 5).

The paper takes stages of a ResNet-50 with group norm and standardised weights; so do we, of our own ResNet.

Chapter of the course: notebooks/09-inductive-bias.ipynb.
"""

from dataclasses import dataclass
from typing import ClassVar

from tinyvit.models.resnet import Trunk, check_stages, trunk_shapes
from tinyvit.models.vit import ViT, ViTConfig
from tinyvit.nn import Module, PatchEmbedding


@dataclass(frozen=True)
class HybridConfig(ViTConfig):
    """A ViTConfig and that of the ResNet in front of it. `patch` counts pixels of the feature map.

    blocks, widths, norm: as for a ResNetConfig; each stage but the first halves the image. Raises ValueError where the
    numbers do not fit together.
    """

    kind: ClassVar[str] = "hybrid"
    cut: ClassVar[str] = "feature map"

    patch: int = 1
    blocks: tuple[int, ...] = (1, 1)
    widths: tuple[int, ...] = (16, 32)
    norm: str = "group"

    def __post_init__(self):
        check_stages(self)
        super().__post_init__()

    @property
    def pixels(self):
        """(height, width) of the feature map."""
        return tuple(-(-side // self.stride) for side in self.image_size)

    @property
    def stride(self):
        return 2 ** (len(self.blocks) - 1)

    def embedding_shapes(self):
        patch = self.patch * self.patch * self.widths[-1]
        return trunk_shapes(self, "embedding.trunk") | {"embedding.patches.weight": (patch, self.width)}


#                                 image     patch C  outs width depth heads MLP
_mnist, _digits = dict(blocks=(1, 1, 1), widths=(16, 32, 64)), dict(blocks=(1, 1), widths=(16, 32))
PRESETS = {
    "hybrid":        HybridConfig((28, 28), 1,  1, 10,   64,   3,    4,  128, **_mnist),
    "hybrid-cifar":  HybridConfig((32, 32), 1,  3, 10,  128,   4,    4,  256, **_mnist),
    "hybrid-digits": HybridConfig(( 8,  8), 1,  1, 10,   48,   2,    4,   96, **_digits),
}  # fmt: skip


class FeatureEmbedding(Module):
    """Images (B, h, w, C) -> tokens (B, N, D): a ResNet without its head, then patches of its feature map."""

    def __init__(self, config, rng):
        self.trunk = Trunk(config, rng)
        self.patches = PatchEmbedding(config.patch, config.widths[-1], config.width, rng)

    def forward(self, images):
        return self.patches(self.trunk(images))


class Hybrid(ViT):
    """A ViT on a feature map. All that takes a ViT takes a Hybrid. `config` is a HybridConfig, `seed` as for a ViT."""

    def _embedding(self, rng):
        return FeatureEmbedding(self.config, rng)
