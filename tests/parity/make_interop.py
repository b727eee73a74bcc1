"""Makes the small published-like checkpoints of tests/parity/interop/, with the logits that their own libraries give.

    pip install torch transformers safetensors && pip install --no-deps timm
    python tests/parity/make_interop.py

`tests/test_interop.py` reads them where neither library is installed. A run with other versions may change them in the
last bits; then commit what it writes.
"""

from pathlib import Path

import libraries
import numpy as np
import torch

FOLDER = Path(__file__).parent / "interop"
TIMM = dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, mlp_ratio=2, reg_tokens=2)
HF = dict(
    image_size=16, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    id2label={0: "cat", 1: "dog", 2: "hen"}, label2id={"cat": 0, "dog": 1, "hen": 2},
)  # fmt: skip


def main():
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    x, answers = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), {"images": images}
    timm, transformers = libraries.timm(), libraries.transformers()

    model = libraries.randomised(timm.create_model("vit_base_patch16_224", **TIMM))
    timm.models.save_for_hf(model, FOLDER / "timm", safe_serialization=True, model_args=TIMM)
    with torch.no_grad():
        answers["timm"] = model(x).numpy()
    for name, dtype in (("hf", torch.float32), ("hf-bfloat16", torch.bfloat16)):
        model = libraries.randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**HF))).to(dtype)
        model.save_pretrained(FOLDER / name)
        processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=3)
        processor.save_pretrained(FOLDER / name)
        with torch.no_grad():
            answers[name] = model.float()(x).logits.numpy()
    np.savez(FOLDER / "answers.npz", **answers)


if __name__ == "__main__":
    main()
