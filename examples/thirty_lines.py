"""A Vision Transformer trained in thirty lines: the loop inside `tinyvit train`, with nothing around it.

    python examples/thirty_lines.py [EPOCHS]

No threads, no checkpoints, no bar: data, model, gradient, step. 30 epochs take 5.3 s (start included) and reach
97.78 % on the test images with seed 0; measured with the command above, AMD EPYC, one core, Python 3.11, NumPy 2.4.6.
"""

import sys

import tinyvit as tv
from tinyvit.data import AUGMENTS, batches


def main(epochs=30):
    digits = tv.data.load("digits")
    model = tv.vit("digits")
    optimizer = tv.optim.AdamW(model, lr=4e-3, weight_decay=1.0)
    steps = epochs * -(-len(digits.train) // 64)
    step = 0
    with tv.train.one_blas_thread():
        for epoch in range(epochs):
            for images, labels in batches(
                digits.train, 64, mean=digits.mean, std=digits.std, epoch=epoch, augment=AUGMENTS["digits"]
            ):
                optimizer.zero_grad()
                loss = tv.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.clip_gradients(1.0)
                optimizer.step(tv.optim.warmup_cosine(step, steps, peak=4e-3, warmup=steps // 5))
                step += 1
            accuracy, _, _ = tv.train.evaluate(model, digits.validation, digits.mean, digits.std)
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.3f}  validation {accuracy:.2%}")
        accuracy, _, _ = tv.train.evaluate(model, digits.test, digits.mean, digits.std)
    print(f"test accuracy {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
