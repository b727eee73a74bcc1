"""Layers: gradients of every module on both backends, and what a Module promises about its parameters."""

import numpy as np
import pytest

from tinyvit import Tensor, gradcheck, kernels, nn
from tinyvit.nn.positions import shifts

rng = np.random.default_rng(0)


def leaf(*shape):
    return Tensor(rng.standard_normal(shape), requires_grad=True)


class Added(nn.Module):
    """Positions where they belong: added to tokens."""

    def __init__(self, positions):
        self.positions = positions

    def forward(self, z):
        return z + self.positions()


class Dropping(nn.Module):
    """Stochastic depth about a layer, the same coins at each call."""

    def __init__(self):
        self.layer, self.drop = nn.Linear(5, 5, rng), nn.DropPath(0.5)

    def forward(self, z):
        with nn.random_state((1,)):
            return self.drop(z, self.layer(z))


MODULES = {
    "Linear": (lambda: nn.Linear(5, 3, rng), lambda: leaf(2, 4, 5)),
    "LayerNorm": (lambda: nn.LayerNorm(5), lambda: leaf(2, 4, 5)),
    "Dropout, eval": (lambda: nn.Dropout(0.5).eval(), lambda: leaf(2, 5)),
    "DropPath": (Dropping, lambda: leaf(6, 2, 5)),
    "MultiHeadSelfAttention": (lambda: nn.MultiHeadSelfAttention(6, 3, rng), lambda: leaf(2, 5, 6)),
    "MLP": (lambda: nn.MLP(4, 7, rng), lambda: leaf(2, 3, 4)),
    "MLP, tanh": (lambda: nn.MLP(4, 7, rng, tanh=True), lambda: leaf(2, 3, 4)),
    "EncoderBlock": (lambda: nn.EncoderBlock(6, 2, 9, rng), lambda: leaf(2, 5, 6)),
    "MLPHead": (lambda: nn.MLPHead(4, 3, rng), lambda: leaf(5, 4)),
    "LearnedPositions": (lambda: Added(nn.LearnedPositions(5, 4, rng)), lambda: leaf(2, 5, 4)),
    "LearnedPositions2D": (lambda: Added(nn.LearnedPositions2D((2, 3), 1, 4, rng)), lambda: leaf(2, 7, 4)),
    "SinCosPositions": (lambda: Added(nn.SinCosPositions((2, 3), 0, 8)), lambda: leaf(2, 6, 8)),
    "RelativeSelfAttention": (lambda: nn.RelativeSelfAttention(6, 2, rng, shifts((2, 3), 2)), lambda: leaf(2, 8, 6)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3, rng, stride=2), lambda: leaf(2, 5, 6, 3)),
    "StandardisedConv2d": (lambda: nn.StandardisedConv2d(3, 4, 3, rng, bias=False), lambda: leaf(2, 4, 5, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(6, 3), lambda: leaf(2, 3, 4, 6)),
    "BatchNorm": (lambda: nn.BatchNorm(4), lambda: leaf(3, 4, 3, 4)),
    "BatchNorm, eval": (lambda: nn.BatchNorm(4).eval(), lambda: leaf(3, 4, 3, 4)),
    "PatchEmbedding": (lambda: nn.PatchEmbedding(2, 3, 5, rng), lambda: leaf(2, 4, 6, 3)),
}


def randomised(module):
    """In float64, with parameters away from special values such as 0."""
    module.astype(np.float64)
    for p in module.parameters():
        if p.requires_grad:  # a running variance must not be negative
            p.data = rng.normal(0.1, 0.5, p.shape)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_gradcheck(name, backend):
    make, inputs = MODULES[name]
    gradcheck(randomised(make()), inputs())


def test_every_layer_is_checked():
    layers = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert layers - {"Module"} == {name.split(",")[0] for name in MODULES}


def test_dropout_draws_from_the_blocks_generator():
    layer, x = nn.Dropout(0.5), Tensor(np.ones((50, 50)))
    with nn.random_state((1, 2)):
        a, b = layer(x).data, layer(x).data
    with nn.random_state((1, 2)):
        c = layer(x).data
    assert (a != b).any() and (a == c).all()
    assert layer.eval()(x) is x


def test_drop_path_forgets_the_whole_block_for_some_images(backend):
    """An image of the batch goes past the block or gets more of it; the mean stays; in eval mode the block is whole."""
    block, z = nn.EncoderBlock(8, 2, 8, rng, drop_path=0.25), Tensor(rng.standard_normal((400, 3, 8)).astype("f4"))
    with nn.evaluating():
        whole = block(z).data - z.data
    with nn.random_state((1, 2)):
        ours = block(z).data - z.data
    kept = ours.any(axis=(1, 2))
    assert 250 < kept.sum() < 350
    np.testing.assert_allclose(ours[kept], whole[kept] / 0.75, rtol=0, atol=1e-5)
    assert not ours[~kept].any()
    with nn.random_state((1, 2)):
        np.testing.assert_array_equal(block(z).data - z.data, ours)
    np.testing.assert_array_equal(block.eval()(z).data - z.data, whole)


def test_drop_path_keeps_the_fused_kernel():
    """And adds nothing to it where it is off."""
    if kernels.backend() == "numba":
        z = leaf(2, 3, 8)
        on, off = (nn.EncoderBlock(8, 2, 8, rng, drop_path=p).astype(float) for p in (0.5, 0.0))

        def ops_of(block):
            return [row.op for row in block(z).trace().rows if row.op != "leaf"]

        assert ops_of(on)[0] == "encoder_block" and len(ops_of(on)) > 1
        assert ops_of(off) == ops_of(on.eval()) == ["encoder_block"]


def test_patchify_cuts_squares_row_by_row():
    """Against a loop that says it in words; a bare reshape has the right shape and fails here."""
    B, h, w, C, P = 2, 4, 6, 3, 2
    images = np.arange(B * h * w * C, dtype=float).reshape(B, h, w, C)
    patches = nn.patchify(Tensor(images), P).data
    assert patches.shape == (B, 6, P * P * C)
    for b in range(B):
        for row in range(h // P):
            for column in range(w // P):
                square = images[b, row * P : (row + 1) * P, column * P : (column + 1) * P]
                np.testing.assert_array_equal(patches[b, row * (w // P) + column], square.reshape(-1))
    assert not np.array_equal(patches, images.reshape(B, 6, -1))


def test_patch_embedding_is_a_strided_convolution(backend):
    from tinyvit.functional import conv2d

    layer, images = randomised(nn.PatchEmbedding(2, 3, 5, rng)), leaf(2, 4, 6, 3)
    convolved = conv2d(images, layer.weight.reshape(2, 2, 3, 5), layer.bias, stride=2)
    np.testing.assert_allclose(layer(images).data, convolved.data.reshape(2, 6, 5), rtol=1e-12)


@pytest.mark.parametrize(
    ("size", "patch", "nearest"), [((28, 28), 5, 4), ((32, 48), 7, 8), ((7, 7), 3, 1), ((8, 12), 3, 2)]
)
def test_a_patch_that_does_not_divide_names_the_nearest_that_does(size, patch, nearest):
    with pytest.raises(ValueError, match=f"patch size {patch} must divide.* {nearest} is the nearest that does"):
        nn.patchify(leaf(1, *size, 1), patch)


def test_initial_values():
    """Xavier's limit for q, k and v each, not √2 less; LeCun's deviation after the cut-off."""
    layer = nn.Linear(64, 64, rng, copies=3)
    limit = (6 / 128) ** 0.5
    assert layer.weight.shape == (64, 192) and 0.99 * limit < np.abs(layer.weight.data).max() <= limit
    values = nn.lecun_normal(rng, 100, 5000)
    assert values.std() == pytest.approx(0.1, rel=0.01) and np.abs(values).max() < 0.1 * 2 / 0.8796


class Tree(nn.Module):
    def __init__(self):
        self.first = nn.Linear(2, 3, rng)
        self.rest = [nn.LayerNorm(3), nn.Linear(3, 1, rng)]
        self.scale = nn.Parameter(np.ones(1, np.float32))

    def forward(self, x):
        return self.rest[1](self.rest[0](self.first(x))) * self.scale


NAMES = ["scale", "first.weight", "first.bias", "rest.0.gamma", "rest.0.beta", "rest.1.weight", "rest.1.bias"]


def test_named_parameters_and_counts():
    tree = Tree()
    assert [name for name, _ in tree.named_parameters()] == NAMES
    assert tree.parameter_count() == sum(p.size for p in tree.parameters()) == 1 + 9 + 6 + 4


def test_state_dict_round_trip():
    a, b = Tree(), Tree()
    a.scale.data = 3.0
    b.load_state_dict(a.state_dict())
    x = leaf(4, 2).astype(np.float32)
    np.testing.assert_array_equal(a(x).data, b(x).data)
    a.state_dict()["scale"][0] = 9
    assert a.scale.item() == 3, "a state_dict is a copy"


def test_load_state_dict_lists_every_problem_and_changes_nothing():
    tree = Tree()
    state = {name: values + 1 for name, values in tree.state_dict().items()}
    state["first.bias"] = np.ones(4)
    state["stray"] = state.pop("rest.0.beta")
    before = tree.state_dict()
    with pytest.raises(ValueError) as caught:
        tree.load_state_dict(state)
    message = str(caught.value)
    assert "missing: rest.0.beta (3,)" in message and "unexpected: stray (3,)" in message
    assert "wrong shape: first.bias must be (3,), got (4,)" in message
    for name, values in tree.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


def test_load_state_dict_is_all_or_nothing():
    """Entries that cannot be converted, or are in use, are found before anything is written."""
    tree = Tree()
    before = tree.state_dict()
    state = {name: values + 1 for name, values in before.items()}
    for wrong in (np.array(["a"]), np.array([1j])):
        with pytest.raises(ValueError, match="wrong kind: scale must be real numbers"):
            tree.load_state_dict(state | {"scale": wrong})
    y = tree(leaf(4, 2).astype(np.float32))
    with pytest.raises(ValueError, match="in use: scale is still needed"):
        tree.load_state_dict(state)
    del y
    for name, values in tree.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.parametrize(
    "hidden",
    [
        lambda: (nn.LayerNorm(2),),
        lambda: {"a": nn.Parameter([1.0])},
        lambda: [nn.Parameter([1.0])],
        lambda: [[nn.LayerNorm(2)]],
        lambda: Tensor([1.0], requires_grad=True),
    ],
)
def test_parameters_that_training_would_not_find_are_refused(hidden):
    tree = Tree()
    tree.rest[0].hidden = hidden()
    with pytest.raises(TypeError, match="rest.0.hidden must be a Parameter, a Module or a list of Modules"):
        tree.parameters()


def test_evaluating_acts_in_this_block_only():
    layer, x = nn.Dropout(0.5), Tensor(np.ones(100))
    with nn.evaluating():
        assert layer(x) is x
    assert layer.training and (layer(x).data == 0).any()


def test_train_and_eval_reach_every_module():
    tree = Tree().eval()
    assert not any(module.training for _, module in tree.modules())
    assert all(module.training for _, module in tree.train().modules())


def test_replica_shares_values_but_not_gradients():
    tree = Tree()
    twin = tree.replica()
    tree.scale.data = 5.0
    assert twin.scale.item() == 5 and twin.rest[1] is not tree.rest[1]
    twin(leaf(4, 2).astype(np.float32)).sum().backward()
    assert twin.first.weight.grad is not None and tree.first.weight.grad is None


def test_zero_grad_keeps_the_memory():
    tree = Tree()
    tree(leaf(4, 2).astype(np.float32)).sum().backward()
    memory = tree.scale.grad
    tree.zero_grad()
    assert tree.scale.grad is memory and not memory.any()


def test_summary_and_repr():
    table = Tree().summary(np.ones((5, 2), np.float32)).splitlines()
    assert "(5, 1)" in table[1] and table[1].endswith("20")
    assert any("rest.1" in line and "Linear" in line and line.endswith("4") for line in table)
    assert "Linear" in repr(Tree()) and "rest.0" in repr(Tree())


def test_a_module_without_forward_says_so():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define forward"):
        Empty()(1)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="heads must divide the width"):
        nn.MultiHeadSelfAttention(10, 3, rng)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        nn.Dropout(1)
