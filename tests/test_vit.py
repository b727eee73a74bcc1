"""The model: the paper's equations line by line, its parameter counts, and the promises of a fresh network."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tinyvit import Tensor, ViT, ViTConfig, functional, gradcheck, kernels, nn, optim, vit
from tinyvit.cores import one_blas_thread
from tinyvit.models.vit import PRESETS

SMALL = ViTConfig(image_size=(4, 6), patch=2, channels=3, classes=5, width=8, depth=2, heads=2, mlp=12)


def images(count, config, seed=0, dtype=np.float32):
    shape = (count, *config.image_size, config.channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def randomised(model, seed=0):
    """Away from the zero head, which would hide what is below it."""
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = rng.normal(0, 0.4, p.shape)
    return model


@pytest.mark.parametrize(("preset", "count"), [("Ti/16", 5_717_416), ("S/16", 22_050_664), ("B/16", 86_567_656)])
def test_parameter_counts_are_the_papers(preset, count):
    assert vit(preset).parameter_count() == count


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_together(preset):
    config = PRESETS[preset]
    assert config.width % config.heads == 0 and config.tokens == config.grid[0] * config.grid[1] + 1


def test_equations_1_to_4():
    """The forward pass, written out in NumPy from the paper: one image, one head, one token at a time."""
    model, c = randomised(ViT(SMALL).astype(np.float64)), SMALL
    s = model.state_dict()
    x = images(1, c, dtype=np.float64)

    def LN(z, name):
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6) * s[f"{name}.gamma"] + s[
            f"{name}.beta"
        ]

    patches = [x[0, i : i + 2, j : j + 2].reshape(-1) for i in (0, 2) for j in (0, 2, 4)]
    z = [s["cls"][0, 0]] + [p @ s["embedding.weight"] + s["embedding.bias"] for p in patches]
    z = np.stack(z) + s["positions.table"][0]  # eq. 1
    for b in ("blocks.0", "blocks.1"):
        q, k, v = np.split(
            LN(z, f"{b}.norm1") @ s[f"{b}.attention.qkv.weight"] + s[f"{b}.attention.qkv.bias"], 3, axis=1
        )
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            A = np.exp(q[:, h] @ k[:, h].T / np.sqrt(4))  # eq. 6: √(D_h), the width of a head
            heads.append(A / A.sum(1, keepdims=True) @ v[:, h])
        z = np.concatenate(heads, 1) @ s[f"{b}.attention.out.weight"] + s[f"{b}.attention.out.bias"] + z  # eq. 2, 8
        hidden = LN(z, f"{b}.norm2") @ s[f"{b}.mlp.fc1.weight"] + s[f"{b}.mlp.fc1.bias"]
        hidden = functional.gelu(Tensor(hidden)).data
        z = hidden @ s[f"{b}.mlp.fc2.weight"] + s[f"{b}.mlp.fc2.bias"] + z  # eq. 3
    y = LN(z[0], "norm")  # eq. 4
    np.testing.assert_allclose(model(x).data[0], y @ s["head.weight"] + s["head.bias"], rtol=1e-10)


FORMS = [{}, dict(gelu_tanh=True), dict(eps=0.1), dict(pool="average-norm"), dict(head="none", classes=8)]


@pytest.mark.parametrize("changes", FORMS, ids=str)
def test_gradcheck_whole_model(backend, changes):
    """Every parameter, and the image, through a smoothed loss."""
    model = randomised(ViT(replace(SMALL, **changes)).astype(np.float64))

    class WithLoss(nn.Module):
        def __init__(self):
            self.model = model

        def forward(self, x):
            return functional.cross_entropy(self.model(x), [1, 4, 0], 0.1)

    errors = gradcheck(WithLoss(), Tensor(images(3, SMALL, dtype=np.float64), requires_grad=True))
    lacks = ("pool" in changes) + 2 * ("head" in changes)  # the class token, the head
    assert len(errors) == 1 + 2 + 2 + 2 * 12 + 2 + 2 - lacks


def test_forms_that_other_libraries_have():
    """Protects: the norm of the mean is not the mean of the norms, eps reaches each norm on both ways to compute a
    block, and without a head come the numbers that a head would read."""
    x = images(3, SMALL)
    model = randomised(ViT(SMALL))
    _, seen = model(x, intermediates=True)
    bare = ViT(replace(SMALL, head="none", classes=8))
    bare.load_state_dict({name: a for name, a in model.state_dict().items() if not name.startswith("head.")})
    np.testing.assert_allclose(bare(x).data, seen["encoded"].data[:, 0], atol=1e-6)
    average, other = (randomised(ViT(replace(SMALL, pool=pool))) for pool in ("average", "average-norm"))
    assert np.abs(average(x).data - other(x).data).max() > 0.01
    coarse = randomised(ViT(replace(SMALL, eps=0.5)))
    assert {module.eps for _, module in coarse.modules() if isinstance(module, nn.LayerNorm)} == {0.5}
    whole = coarse(x).data
    with nn.composed():
        np.testing.assert_allclose(coarse(x).data, whole, atol=1e-5)
    assert np.abs(whole - model(x).data).max() > 0.01
    with pytest.raises(ValueError, match="the outputs are the width, 8 numbers; got classes=5"):
        replace(SMALL, head="none")
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\), got 1"):
        replace(SMALL, eps=1)


def test_initial_loss_is_exactly_ln_k(backend):
    for preset in ("digits", "mnist"):
        model = vit(preset)
        loss = functional.cross_entropy(model(images(8, model.config)), np.arange(8))
        assert loss.item() == pytest.approx(np.log(10), abs=1e-6)


def test_initial_values_are_the_paper_codes():
    """Positions normal with deviation 0.02; class token, head, most biases 0, the MLP's about 1e-6; weights by fan."""
    state = vit("Ti/16", depth=1).state_dict()
    assert state["positions.table"].std() == pytest.approx(0.02, rel=0.02)
    for name in ("cls", "head.weight", "head.bias", "embedding.bias", "blocks.0.attention.qkv.bias", "norm.beta"):
        assert not state[name].any(), name
    assert state["blocks.0.mlp.fc1.bias"].std() == pytest.approx(1e-6, rel=0.1)
    assert state["embedding.weight"].std() == pytest.approx(768**-0.5, rel=0.01)  # LeCun: P² C = 768 inputs
    assert state["blocks.0.mlp.fc1.weight"].std() == pytest.approx((2 / (192 + 768)) ** 0.5, rel=0.01)  # Xavier
    assert state["blocks.0.attention.qkv.weight"].std() == pytest.approx((2 / (192 + 192)) ** 0.5, rel=0.01)


def test_dropout_acts_in_the_papers_places(monkeypatch):
    """After the positions, after each attention, and after both layers of each MLP: 1 + 3 L times."""
    shapes = []
    monkeypatch.setattr(functional, "dropout", lambda x, p, rng: shapes.append(x.shape[-1]) or x)
    ViT(replace(SMALL, dropout=0.1))(images(1, SMALL))
    assert shapes == [8] + [8, 12, 8] * 2  # widths: D; then D, the hidden layer's, D


def test_stochastic_depth_grows_linearly_from_the_first_block_to_the_last():
    model = ViT(replace(SMALL, depth=5, drop_path=0.2))
    assert [block.drop_path.p for block in model.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert ViT(replace(SMALL, depth=1, drop_path=0.2)).blocks[0].drop_path.p == 0
    assert model.state_dict().keys() == ViT(replace(SMALL, depth=5)).state_dict().keys()
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1"):
        replace(SMALL, drop_path=1)


def test_prediction_on_many_threads_leaves_the_mode_alone():
    model = randomised(ViT(replace(SMALL, dropout=0.5)))
    x = images(4, SMALL)
    expected = model.predict(x)
    with ThreadPoolExecutor(4) as pool:
        for p in pool.map(lambda _: model.predict(x), range(40)):
            np.testing.assert_array_equal(p, expected)
    assert model.training


@pytest.mark.parametrize("count", range(12))
def test_threads_share_the_images_and_give_them_back_in_order(count, monkeypatch):
    model, x, seen = randomised(ViT(replace(SMALL, dropout=0.5))), images(count, SMALL), set()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda images: (seen.add(threading.current_thread()), forward(images))[1])
    with nn.composed():
        np.testing.assert_allclose(model.predict(x, batch_size=2, threads=3), model.predict(x), rtol=1e-5)
    assert len(seen) >= min(2, count)  # the caller's own, for the second prediction, among them


def test_an_error_ends_all_threads_before_their_next_batch(monkeypatch):
    model, begun = ViT(SMALL), []

    def forward(images):
        begun.append(len(images))
        time.sleep(0.01)
        raise MemoryError("no room")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(MemoryError, match="no room"):
        model.predict(images(400, SMALL), batch_size=1, threads=2)
    assert len(begun) < 40


def test_two_predictions_at_once_leave_blas_its_threads():
    """Protects: the first to end gave back all threads while the other went on, and that one then kept BLAS at one."""

    def number():
        return [entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before, first, second = number(), one_blas_thread(), one_blas_thread()
        first.close()
        first.close()
        assert set(number()) <= {1}
        second.close()
        assert number() == before


def test_what_goes_wrong_in_a_thread_is_said():
    with pytest.raises(ValueError, match=r"reads images \(B, 4, 6, 3\), got \(4, 4, 6, 1\)"):
        ViT(SMALL).predict(np.zeros((8, 4, 6, 1)), threads=2)
    with pytest.raises(ValueError, match="batch_size and threads must be at least 1, got 32 and 0"):
        ViT(SMALL).predict(images(2, SMALL), threads=0)


def test_overfits_a_batch_of_32(backend):
    """Random labels on random images, all learnt by heart: nothing is disconnected."""
    model = vit("digits", depth=2)
    x, y = images(32, model.config), np.random.default_rng(1).integers(0, 10, 32)
    optimizer = optim.AdamW(model, lr=3e-3, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert (model.predict(x).argmax(1) == y).all() and loss.item() < 0.1


def test_intermediates():
    model = ViT(SMALL)
    logits, seen = model(images(2, SMALL), intermediates=True)
    assert list(seen) == ["tokens", "blocks.0", "attention.0", "blocks.1", "attention.1", "encoded"]
    assert seen["tokens"].shape == seen["blocks.1"].shape == seen["encoded"].shape == (2, 7, 8)
    assert seen["attention.1"].shape == (2, 2, 7, 7)
    np.testing.assert_array_equal(logits.data, model(images(2, SMALL)).data)


def test_patches_without_positions_are_a_bag():
    """With zero position embeddings, shuffling the patches changes nothing; with them it does."""
    model, x = randomised(ViT(replace(SMALL, channels=1))), images(1, replace(SMALL, channels=1))
    swapped = x.copy()
    swapped[:, :2, :2], swapped[:, 2:, 4:] = x[:, 2:, 4:], x[:, :2, :2]
    assert not np.allclose(model(x).data, model(swapped).data, atol=1e-4)
    model.positions.table.data = 0.0
    np.testing.assert_allclose(model(x).data, model(swapped).data, rtol=1e-4, atol=1e-5)


def test_predict_has_no_tape_and_no_dropout():
    model = randomised(ViT(replace(SMALL, dropout=0.5)))
    x = images(5, SMALL)
    p = model.predict(x, batch_size=2)
    assert p.shape == (5, 5) and model.training
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(p, model.predict(x), rtol=1e-5)
    assert not model.positions.table.is_needed()
    assert model.predict(x[:0]).shape == (0, 5)


def test_dropout_changes_training_only():
    model = randomised(ViT(replace(SMALL, dropout=0.5)))
    x = images(3, SMALL)
    assert not np.array_equal(model(x).data, model(x).data)
    model.eval()
    np.testing.assert_array_equal(model(x).data, model(x).data)


def test_backends_agree():
    model, x = randomised(vit("digits")), images(4, PRESETS["digits"])
    with kernels.use("numpy"):
        spec = model(x).data
    np.testing.assert_allclose(model(x).data, spec, rtol=1e-4, atol=1e-4)


def test_same_seed_same_model():
    a, b, c = vit("digits", seed=3), vit("digits", seed=3), vit("digits", seed=4)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)
    assert not np.array_equal(a.positions.table.data, c.positions.table.data)


def test_a_step_leaves_nothing_behind():
    """1,000 forward and backward passes, without the garbage collector: the process does not grow."""
    model = vit("digits", depth=1)
    x, y = images(4, model.config), np.arange(4)
    gc.collect()
    gc.disable()
    try:
        before = None
        for step in range(1000):
            functional.cross_entropy(model(x), y).backward()
            if step == 50:
                before = len(gc.get_objects())
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(patch=3), "patch size 3 must divide the image's 4×6; 2 is the nearest"),
        (dict(heads=3), "heads must divide the width, got width 8 and 3 heads"),
        (dict(depth=0), "depth must be a whole number, at least 1, got 0"),
        (dict(width=8.0), "width must be a whole number, at least 1, got 8.0"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(image_size=(4, 4, 4)), "image_size must be"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_wrong_images_and_names():
    model = vit("digits")
    with pytest.raises(ValueError, match=r"images \(B, 8, 8, 1\), got \(2, 8, 8\); add the channel axis"):
        model(np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"got \(2, 28, 28, 1\)"):
        model(np.zeros((2, 28, 28, 1)))
    with pytest.raises(ValueError, match="no preset is called 'B/32'; there are digits, mnist"):
        vit("B/32")
    with pytest.raises(ValueError, match="a ViTConfig has no colour; it has image_size"):
        vit("digits", colour=1)
    with pytest.raises(ValueError, match="batch_size and threads must be at least 1"):
        model.predict(np.zeros((2, 8, 8, 1)), batch_size=0)
    assert replace(SMALL, image_size=np.int64(4)).image_size == (4, 4)
