"""Each fused op equals its composition from primitives, in value and in gradient, on both kernel backends; and
passes the
gradient check."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvit import Tensor, convolution, functional, gradcheck, kernels, nn, ops

rng = np.random.default_rng(0)


def leaf(*shape, dtype=np.float64):
    return Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)


# The composed versions: the equations, in primitives.


def linear(x, w, b):
    return x @ w + b


def softmax(x):
    e = ops.exp(x - x.data.max(-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, gamma, beta, eps=1e-6):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / ((centred**2).mean(axis=-1, keepdims=True) + eps) ** 0.5 * gamma + beta


def gelu_tanh(x):
    return 0.5 * x * (1 + ops.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def attention(qkv, heads):
    B, N, D3 = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, heads, D3 // 3 // heads).transpose(2, 0, 3, 1, 4)  # each (B, H, N, K)
    p = softmax(q @ k.mT * (D3 / 3 / heads) ** -0.5)
    return (p @ v).transpose(0, 2, 1, 3).reshape(B, N, D3 // 3)


def biased_attention(qkv, bias, heads):
    B, N, D3 = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, heads, D3 // 3 // heads).transpose(2, 0, 3, 1, 4)
    p = softmax(q @ k.mT * (D3 / 3 / heads) ** -0.5 + bias)
    return (p @ v).transpose(0, 2, 1, 3).reshape(B, N, D3 // 3)


def cross_entropy(logits, labels, smoothing=0.0):
    target = labels if labels.ndim == 2 else np.eye(logits.shape[1])[labels]
    target = target * (1 - smoothing) + smoothing / logits.shape[1]
    return -(ops.log(softmax(logits)) * target).sum(axis=-1).mean()


def conv2d(x, w, b, stride, padding):
    kh, kw, _, D = w.shape
    B, h, wd, C = x.shape
    rows = ops.concatenate([Tensor(np.zeros((B, padding, wd, C))), x, Tensor(np.zeros((B, padding, wd, C)))], axis=1)
    sides = Tensor(np.zeros((B, h + 2 * padding, padding, C)))
    x = ops.concatenate([sides, rows, sides], axis=2)
    oh, ow = (h + 2 * padding - kh) // stride + 1, (wd + 2 * padding - kw) // stride + 1
    total = 0
    for i in range(kh):
        for j in range(kw):
            total = total + x[:, i : i + stride * oh : stride, j : j + stride * ow : stride][:, :oh, :ow] @ w[i, j]
    return total + b


def relu(x):
    return x.relu()


def group_norm(x, gamma, beta, groups, eps=1e-6):
    B, h, w, C = x.shape
    split = x.reshape(B, h, w, groups, C // groups)
    centred = split - split.mean(axis=(1, 2, 4), keepdims=True)
    normed = centred / ((centred**2).mean(axis=(1, 2, 4), keepdims=True) + eps) ** 0.5
    return normed.reshape(B, h, w, C) * gamma + beta


def batch_norm(x, gamma, beta, eps=1e-5):
    centred = x - x.mean(axis=(0, 1, 2))
    return centred / ((centred**2).mean(axis=(0, 1, 2)) + eps) ** 0.5 * gamma + beta


def standardise(w):
    centred = w - w.mean(axis=(0, 1, 2))
    return centred / ((centred**2).mean(axis=(0, 1, 2)) + 1e-10) ** 0.5


def pool(x, size, stride, padding, reduce):
    B, h, w, C = x.shape
    outside = Tensor(np.full((B, h, padding, C), -np.inf))
    x = ops.concatenate([outside, x, outside], axis=2)
    outside = Tensor(np.full((B, padding, w + 2 * padding, C), -np.inf))
    x = ops.concatenate([outside, x, outside], axis=1)
    rows = []
    for i in range(0, h + 2 * padding - size + 1, stride):
        windows = [x[:, i : i + size, j : j + size] for j in range(0, w + 2 * padding - size + 1, stride)]
        rows.append(ops.stack([reduce(window, axis=(1, 2)) for window in windows], axis=1))
    return ops.stack(rows, axis=1)


LABELS = np.array([0, 4, 4, 2])
TARGETS = np.eye(5)[LABELS] * 0.7 + np.eye(5)[[1, 3, 4, 2]] * 0.3
CAUSAL = np.triu(np.full((5, 5), -np.inf), 1)  # a token reads itself and what came before
PICKED = np.array([[2, 0, 2], [2, 3, 0]])
CASES = {
    "linear": (functional.linear, linear, lambda: (leaf(2, 3, 4), leaf(4, 5), leaf(5))),
    "linear, one row": (functional.linear, linear, lambda: (leaf(4), leaf(4, 5), leaf(5))),
    "linear_gelu": (
        lambda *a: functional.linear_gelu(*a, tanh=True), lambda *a: gelu_tanh(linear(*a)), lambda:
        (leaf(2, 3, 4), leaf(4, 5), leaf(5))),
    "linear_gelu, exact": (
        functional.linear_gelu, lambda *a: functional.gelu(linear(*a)), lambda:
        (leaf(2, 3, 4), leaf(4, 5), leaf(5))),
    "softmax": (functional.softmax, softmax, lambda: (leaf(3, 2, 7),)),
    "layer_norm": (functional.layer_norm, layer_norm, lambda: (leaf(2, 3, 7), leaf(7), leaf(7))),
    "layer_norm, one row": (functional.layer_norm, layer_norm, lambda: (leaf(5), leaf(5), leaf(5))),
    "gelu, tanh": (lambda x: functional.gelu(x, tanh=True), gelu_tanh, lambda: (leaf(3, 11),)),
    "attention, one head": (
        lambda x: functional.attention(x, heads=1), lambda x: attention(x, 1), lambda: (leaf(2, 5, 9),)),
    "attention, heads": (
        lambda x: functional.attention(x, heads=4), lambda x: attention(x, 4), lambda: (leaf(3, 7, 3 * 12),)),
    "attention, one token": (
        lambda x: functional.attention(x, heads=2), lambda x: attention(x, 2), lambda: (leaf(2, 1, 12),)),
    "biased_attention, a bias for all": (
        lambda x, b: functional.biased_attention(x, b, heads=2), lambda x, b: biased_attention(x, b, 2), lambda:
        (leaf(3, 5, 12), leaf(2, 5, 5))),
    "biased_attention, for each image": (
        lambda x, b: functional.biased_attention(x, b, heads=2), lambda x, b: biased_attention(x, b, 2), lambda:
        (leaf(3, 4, 18), leaf(3, 2, 4, 4))),
    "biased_attention, causal": (
        lambda x: functional.biased_attention(x, CAUSAL, heads=3), lambda x: biased_attention(x, CAUSAL, 3), lambda:
        (leaf(2, 5, 18),)),
    "embedding": (
        lambda t: functional.embedding(t, PICKED), lambda t: t[PICKED], lambda: (leaf(4, 3),)),
    "cross_entropy": (
        lambda x: functional.cross_entropy(x, LABELS), lambda x: cross_entropy(x, LABELS), lambda: (leaf(4, 5),)),
    "cross_entropy, smoothed": (
        lambda x: functional.cross_entropy(x, LABELS, 0.2), lambda x: cross_entropy(x, LABELS, 0.2), lambda:
        (leaf(4, 5),)),
    "cross_entropy, of distributions": (
        lambda x: functional.cross_entropy(x, TARGETS), lambda x: cross_entropy(x, TARGETS), lambda: (leaf(4, 5),)),
    "cross_entropy, of distributions, smoothed": (
        lambda x: functional.cross_entropy(x, TARGETS, 0.2), lambda x: cross_entropy(x, TARGETS, 0.2), lambda:
        (leaf(4, 5),)),
    "conv2d": (
        functional.conv2d, lambda x, w, b: conv2d(x, w, b, 1, 0), lambda: (leaf(2, 5, 4, 3), leaf(3, 2, 3, 4),
        leaf(4))),
    "conv2d, stride, padding": (
        lambda x, w, b: functional.conv2d(x, w, b, stride=2, padding=1), lambda x, w, b: conv2d(x, w, b, 2, 1),
        lambda: (leaf(2, 5, 6, 2), leaf(3, 3, 2, 4), leaf(4))),
    "group_norm": (
        lambda *a: functional.group_norm(*a, groups=3), lambda *a: group_norm(*a, 3), lambda:
        (leaf(2, 5, 4, 6), leaf(6), leaf(6))),
    "group_norm, relu": (
        lambda *a: functional.group_norm(*a, groups=2, relu=True), lambda *a: relu(group_norm(*a, 2)), lambda:
        (leaf(2, 4, 4, 6), leaf(6), leaf(6))),
    "batch_norm": (functional.batch_norm, batch_norm, lambda: (leaf(3, 5, 4, 6), leaf(6), leaf(6))),
    "batch_norm, relu": (
        lambda *a: functional.batch_norm(*a, relu=True), lambda *a: relu(batch_norm(*a)), lambda:
        (leaf(3, 4, 4, 6), leaf(6), leaf(6))),
    "add_relu": (functional.add_relu, lambda a, b: (a + b).relu(), lambda: (leaf(2, 3, 4), leaf(2, 3, 4))),
    "standardise": (functional.standardise, standardise, lambda: (leaf(3, 2, 4, 5),)),
    "max_pool": (
        lambda x: functional.max_pool(x, size=2), lambda x: pool(x, 2, 2, 0, ops.max), lambda: (leaf(2, 5, 4, 3),)),
    "max_pool, stride, padding": (
        lambda x: functional.max_pool(x, size=3, stride=2, padding=1), lambda x: pool(x, 3, 2, 1, ops.max),
        lambda: (leaf(2, 5, 6, 3),)),
    "average_pool": (
        lambda x: functional.average_pool(x, size=3, stride=2), lambda x: pool(x, 3, 2, 0, ops.mean), lambda:
        (leaf(2, 7, 6, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fused_equals_composed(name, backend):
    fused, composed, inputs = CASES[name]
    inputs = inputs()
    ours, theirs = fused(*inputs), composed(*inputs)
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-10, atol=1e-12)
    seed = rng.standard_normal(ours.shape)
    ours.backward(seed)
    gradients = [x.grad for x in inputs]
    for x in inputs:
        x.grad = None
    theirs.backward(seed)
    for x, gradient in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(gradient, x.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*CASES, "gelu"])
def test_gradcheck(name, backend):
    fused, _, inputs = CASES.get(name, (functional.gelu, None, lambda: (leaf(3, 11),)))
    gradcheck(fused, *inputs())


def test_every_fused_op_is_checked():
    public = vars(functional) | vars(convolution)
    fused = {name.lstrip("_") for name, op in public.items() if hasattr(op, "__wrapped__")}
    assert fused == {name.split(",")[0] for name in [*CASES, "gelu"]} | {"encoder_block"}


compiled = pytest.mark.skipif(kernels.backend() != "numba", reason="the block's kernel is a compiled one")


@compiled
@pytest.mark.parametrize("sizes", [(3, 17, 48, 4, 96, False), (1, 1, 4, 1, 8, True), (2, 130, 16, 2, 20, False)])
def test_an_encoder_block_in_one_kernel_equals_the_composed_one(sizes):
    """With which it also has its gradients checked: the composed one's ops are, above."""
    B, N, D, heads, hidden, tanh = sizes
    block = nn.EncoderBlock(D, heads, hidden, np.random.default_rng(0), tanh=tanh).astype(np.float64)
    for p in block.parameters():
        p.data += 0.3 * rng.standard_normal(p.shape)
    z, seed = leaf(B, N, D), rng.standard_normal((B, N, D))

    def run():
        for x in (z, *block.parameters()):
            x.grad = None
        out = block(z)
        ops_seen = [row.op for row in out.trace().rows]
        out.backward(seed)
        return ops_seen, [out.data, z.grad, *(p.grad for p in block.parameters())]

    names, fused = run()
    with nn.composed():
        more_names, composed = run()
    assert "encoder_block" in names and {"attention", "linear_gelu", "layer_norm"} < set(more_names)
    for ours, theirs in zip(fused, composed, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_an_encoder_block_that_does_not_fit_the_kernel_is_composed(backend):
    for width, heads, hidden in ((6, 2, 8), (8, 2, 6)):
        block = nn.EncoderBlock(width, heads, hidden, np.random.default_rng(0))
        names = {row.op for row in block(leaf(1, 3, width, dtype=np.float32)).trace().rows}
        assert "encoder_block" not in names and "attention" in names


def test_gelu_is_x_times_the_normal_distribution(backend):
    from math import erf, sqrt

    x = np.linspace(-6, 6, 101)
    np.testing.assert_allclose(
        functional.gelu(Tensor(x)).data, [t * 0.5 * (1 + erf(t / sqrt(2))) for t in x], rtol=1e-9, atol=1e-12
    )


@given(B=st.integers(1, 3), N=st.integers(1, 9), H=st.integers(1, 3), K=st.integers(1, 5))
def test_attention_over_shapes(B, N, H, K):
    for name in ("numba", "numpy"):
        with kernels.use(name):
            x = leaf(B, N, 3 * H * K)
            np.testing.assert_allclose(
                functional.attention(x, heads=H).data, attention(x, H).data, rtol=1e-9, atol=1e-12
            )
            gradcheck(lambda x: functional.attention(x, heads=H), x)


def test_a_causal_mask_hides_what_comes_later(backend):
    """Change the last token: no earlier one notices, and nothing of it comes back to them."""
    x, changed = leaf(2, 5, 12), None
    y = functional.biased_attention(x, CAUSAL, heads=2)
    changed = Tensor(x.data + np.eye(5)[4][:, None])
    np.testing.assert_array_equal(functional.biased_attention(changed, CAUSAL, heads=2).data[:, :4], y.data[:, :4])
    y.backward(np.ones(5)[None, :, None] * (np.arange(5) < 2)[None, :, None] * np.ones((2, 5, 4)))
    assert x.grad[:, :2].any() and not x.grad[:, 2:].any()


def test_without_a_bias_it_is_attention(backend):
    x, maps, others = leaf(2, 5, 12), [], []
    ours = functional.biased_attention(x, np.zeros((5, 5)), heads=2, maps=maps)
    np.testing.assert_allclose(ours.data, functional.attention(x, heads=2, maps=others).data, rtol=1e-12)
    np.testing.assert_allclose(maps[0], others[0], rtol=1e-12)


def test_what_embedding_and_biased_attention_refuse():
    table = leaf(4, 3)
    with pytest.raises(ValueError, match=r"index in \[0, V\), got \(4, 3\) and -1 to 2"):
        functional.embedding(table, [-1, 2])
    with pytest.raises(TypeError, match="must be integers, got float64"):
        functional.embedding(table, [1.0])
    with pytest.raises(ValueError, match=r"bias must be broadcastable to \(B, H, N, N\) = \(2, 2, 5, 5\)"):
        functional.biased_attention(leaf(2, 5, 12), leaf(3, 5, 5), heads=2)


def test_attention_hands_out_its_maps(backend):
    maps = []
    functional.attention(leaf(2, 5, 24), heads=4, maps=maps)
    assert maps[0].shape == (2, 4, 5, 5)
    np.testing.assert_allclose(maps[0].sum(-1), 1)


def test_attention_does_not_care_for_the_order_of_tokens(backend):
    """Permute the tokens, and the outputs are permuted alike: why a ViT needs position embeddings."""
    x, order = leaf(1, 6, 12), rng.permutation(6)
    y = functional.attention(x, heads=2).data
    np.testing.assert_allclose(functional.attention(x[:, order], heads=2).data, y[:, order], rtol=1e-12)


def test_cross_entropy_is_stable(backend):
    for dtype in (np.float32, np.float64):
        x = Tensor(np.array([[1000, 1000], [-1000, -1000]], dtype), requires_grad=True)
        assert functional.cross_entropy(x, [0, 1]).item() == pytest.approx(np.log(2), rel=1e-6)
        assert functional.cross_entropy(Tensor(np.array([[1e4, 0]], dtype)), [1]).item() == 1e4


def test_a_one_hot_distribution_is_its_label(backend):
    """And float32 targets go with logits of either precision."""
    for dtype in (np.float32, np.float64):
        x, y = (Tensor(5 * np.random.default_rng(1).standard_normal((4, 5)).astype(dtype), True) for _ in range(2))
        ours = functional.cross_entropy(x, np.eye(5, dtype="f4")[LABELS], 0.1)
        theirs = functional.cross_entropy(y, LABELS, 0.1)
        assert ours.dtype == dtype and ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        ours.backward()
        theirs.backward()
        np.testing.assert_allclose(x.grad, y.grad, rtol=1e-5, atol=1e-7)


def test_dropout_keeps_the_mean_and_its_mask():
    x = Tensor(np.ones((200, 200)), requires_grad=True)
    y = functional.dropout(x, 0.25, np.random.default_rng(0))
    assert abs((y.data == 0).mean() - 0.25) < 0.01 and abs(y.data.mean() - 1) < 0.01
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (lambda: functional.linear(leaf(2, 3), leaf(4, 5), None), ValueError, "linear: .*last axis"),
        (lambda: functional.layer_norm(leaf(2, 3), leaf(4), leaf(4)), ValueError, "layer_norm: "),
        (lambda: functional.attention(leaf(2, 3, 10), heads=2), ValueError, "multiple of heads"),
        (lambda: functional.cross_entropy(leaf(2, 3), [0, 3]), ValueError, r"labels must be in \[0, 3\)"),
        (lambda: functional.cross_entropy(leaf(2, 3), [0, -1]), ValueError, r"got -1 to 0"),
        (lambda: functional.cross_entropy(leaf(2, 3), [0.0, 1.0]), TypeError, "integers"),
        (lambda: functional.cross_entropy(leaf(2, 3), [0]), ValueError, r"got \(2, 3\) and \(1,\)"),
        (lambda: functional.cross_entropy(leaf(2, 3), [0, 1], 1.0), ValueError, "smoothing"),
        (lambda: functional.cross_entropy(leaf(2, 3), np.eye(3, dtype=int)[:2]), TypeError, "must be floats, got int"),
        (lambda: functional.cross_entropy(leaf(2, 3), np.eye(2)), ValueError, r"got \(2, 3\) and \(2, 2\)"),
        (lambda: functional.cross_entropy(leaf(2, 3), np.eye(3)[:2] * 0.9), ValueError, "sum of 1; .* from 0.9 to"),
        (lambda: functional.cross_entropy(leaf(2, 2), [[1.5, -0.5], [0, 1]]), ValueError, "a least number -0.5"),
        (lambda: functional.cross_entropy(leaf(1, 2), [[np.nan, 1]]), ValueError, "must be a distribution"),
        (lambda: functional.cross_entropy(leaf(2, 0), np.ones((2, 0))), ValueError, r"got \(2, 0\)"),
        (lambda: functional.conv2d(leaf(1, 4, 4, 2), leaf(3, 3, 3, 2), None), ValueError, "one C"),
        (lambda: functional.conv2d(leaf(1, 2, 2, 1), leaf(3, 3, 1, 2), None), ValueError, "does not fit"),
        (lambda: functional.group_norm(leaf(1, 2, 2, 4), leaf(4), leaf(4), groups=3), ValueError, "groups divide C"),
        (lambda: functional.group_norm(leaf(1, 2, 4), leaf(4), leaf(4), groups=2), ValueError, r"x must be \(B, h"),
        (lambda: functional.batch_norm(leaf(0, 2, 2, 4), leaf(4), leaf(4)), ValueError, "at least one image"),
        (lambda: functional.batch_norm(leaf(1, 2, 2, 4), leaf(4), leaf(3)), ValueError, r"gamma and beta \(C,\)"),
        (lambda: functional.standardise(leaf(3, 4)), ValueError, r"weight \(kh, kw, C, D\)"),
        (lambda: functional.max_pool(leaf(1, 2, 2, 1), size=3), ValueError, "does not fit"),
        (lambda: functional.max_pool(leaf(1, 2, 2, 1), size=0), ValueError, "got size 0, stride 0 and padding 0"),
        (lambda: functional.max_pool(leaf(2, 2, 1), size=1), ValueError, r"pooling needs x \(B, h, w, C\)"),
        (lambda: functional.max_pool(leaf(1, 4, 4, 1), size=2, padding=2), ValueError, "padding below the size"),
        (lambda: functional.average_pool(leaf(1, 2, 2, 1), size=1, stride=0), ValueError, "stride 0"),
    ],
)
def test_errors(mistake, error, message):
    with pytest.raises(error, match=message):
        mistake()


def test_batch_norm_by_given_statistics(backend):
    """As in evaluation: constants, whatever the batch is; differentiable in x, gamma and beta."""
    mean, variance = rng.standard_normal(4), rng.random(4) + 0.5
    x, gamma, beta = leaf(2, 3, 3, 4), leaf(4), leaf(4)

    def normed(*a, relu=False):
        return functional.batch_norm(*a, (mean, variance), relu=relu)

    want = (x.data - mean) / np.sqrt(variance + 1e-5) * gamma.data + beta.data
    np.testing.assert_allclose(normed(x, gamma, beta).data, want, rtol=1e-12)
    np.testing.assert_allclose(normed(x, gamma, beta, relu=True).data, np.maximum(want, 0), rtol=1e-12)
    gradcheck(normed, x, gamma, beta)


def test_batch_norm_hands_out_its_statistics(backend):
    seen, x = [], leaf(3, 2, 5, 4)
    functional.batch_norm(x, leaf(4), leaf(4), seen=seen)
    np.testing.assert_allclose(seen, [x.data.mean((0, 1, 2)), x.data.var((0, 1, 2))], rtol=1e-12)


def test_group_norm_knows_no_other_image(backend):
    x, gamma, beta = leaf(3, 4, 4, 6), leaf(6), leaf(6)
    together = functional.group_norm(x, gamma, beta, groups=2).data
    alone = functional.group_norm(x[1:2], gamma, beta, groups=2).data
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-12)


def test_of_equal_numbers_the_first_gets_the_gradient_of_max_pool():
    x = Tensor(np.ones((1, 2, 2, 1)), requires_grad=True)
    functional.max_pool(x, size=2).sum().backward()
    np.testing.assert_array_equal(x.grad.reshape(4), [1, 0, 0, 0])


def test_linear_takes_an_empty_batch(backend):
    for op in (functional.linear, functional.linear_gelu):
        x, w = leaf(0, 5, 4), leaf(4, 3)
        op(x, w, None).sum().backward()
        assert x.grad.shape == (0, 5, 4) and not w.grad.any()


def encoder_block(**changes):
    return nn.EncoderBlock(8, 2, 16, np.random.default_rng(0), **changes)


def is_one_kernel(block):
    return "encoder_block" in {row.op for row in block(leaf(2, 3, 8, dtype=np.float32)).trace().rows}


@compiled
def test_a_block_that_was_changed_is_composed():
    """The kernel knows nothing of a replaced part, so it must not be used."""

    class OtherMLP(nn.MLP):
        def forward(self, x):
            return x

    assert is_one_kernel(encoder_block()) and not is_one_kernel(encoder_block(dropout=0.5))
    changes = {
        "dropout in the MLP alone": lambda b: setattr(b.mlp.dropout, "p", 0.5),
        "another MLP": lambda b: setattr(b, "mlp", OtherMLP(8, 16, np.random.default_rng(0))),
        "another epsilon": lambda b: setattr(b.norm2, "eps", 0.5),
        "a frozen weight": lambda b: setattr(b.mlp.fc1.weight, "requires_grad", False),
    }
    for what, change in changes.items():
        block = encoder_block()
        change(block)
        assert not is_one_kernel(block), what


@compiled
def test_the_block_kernel_checks_shapes_and_takes_an_empty_batch():
    with pytest.raises(ValueError, match="encoder_block: z must be"):
        encoder_block()(leaf(2, 3, 6, dtype=np.float32))
    z = leaf(0, 3, 8, dtype=np.float32)
    encoder_block()(z).sum().backward()
    assert z.grad.shape == (0, 3, 8)


@compiled
def test_a_block_used_twice_gets_both_gradients():
    block, z = encoder_block().astype(np.float64), leaf(2, 3, 8)

    def gradients():
        block.zero_grad()
        block(block(z)).sum().backward()
        return [p.grad.copy() for p in block.parameters()]

    ours = gradients()
    with nn.composed():
        for a, b in zip(ours, gradients(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
