"""timm and transformers, imported as the tests need them.

timm imports torchvision, of which its ViT uses nothing, and torchvision must match PyTorch's build: the one on PyPI is
made for CUDA and does not load beside a CPU-only PyTorch. So timm is installed without what it depends on (`pip install
--no-deps timm`), and where torchvision is missing it is stood in for while timm is imported.
"""

import importlib
import importlib.util
import sys
from unittest.mock import MagicMock

import pytest

torch = pytest.importorskip("torch")

STOOD_IN = [
    "torchvision", *(f"torchvision.{part}" for part in (
        "datasets", "models", "models.feature_extraction", "ops", "ops.misc", "transforms", "transforms.functional",
        "utils",
    ))
]  # fmt: skip


def timm():
    """The module timm, or skip the test."""
    if "timm" not in sys.modules:
        if importlib.util.find_spec("timm") is None:
            pytest.skip("timm is not installed")
        stand_ins = {}
        if importlib.util.find_spec("torchvision") is None:
            stand_ins = {name: MagicMock() for name in STOOD_IN}
            stand_ins["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (torch.nn.Module,), {})
        sys.modules.update(stand_ins)
        try:
            importlib.import_module("timm")
        finally:
            for name in stand_ins:  # transformers looks whether torchvision is there
                del sys.modules[name]
    return sys.modules["timm"]


def transformers():
    """The module transformers, or skip the test; quiet."""
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


def randomised(module, seed=0):
    """The PyTorch module with weights at which everything counts, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            values = torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * values if is_scale else values * (0.5 if p.ndim == 1 else p.shape[-1] ** -0.5))
    return module.eval()
