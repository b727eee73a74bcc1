"""A test for each equation of the paper: whoever breaks a line of the model reads here which equation they broke.

Each test takes a property that its equation alone has, with no reference implementation: a picture put together again,
weights that sum to 1, a part that must not matter. Paper: Dosovitskiy et al. 2020, section 3.1 and appendix A.
`python tests/bug_zoo.py` holds them to it: it puts ten mistakes that public code has made into copies of the package,
and the one test that is named after the equation must fail, and no other of this file.
"""

import numpy as np

from tinyvit import Tensor, ViT, ViTConfig, functional, nn

rng = np.random.default_rng(0)
B, N, D, H = 2, 5, 12, 3  # images, tokens, width, heads
K = D // H
CONFIG = ViTConfig(image_size=(4, 6), patch=2, channels=3, classes=5, width=8, depth=1, heads=2, mlp=12)


def randomised(module):
    """In float64, with no parameter at 0 or 1."""
    module.astype(np.float64)
    for p in module.parameters():
        p.data = rng.normal(0.1, 0.5, p.shape)
    return module


def attend(qkv):
    """The output (B, N, D) and the attention (B, H, N, N) of packed queries, keys and values (B, N, 3 D)."""
    maps = []
    return functional.attention(Tensor(qkv), heads=H, maps=maps).data, maps[0]


def of_heads(qkv):
    """q, k and v of all heads, (B, H, N, K) each, cut out one by one."""
    return [np.stack([part[..., h * K : (h + 1) * K] for h in range(H)], 1) for part in np.split(qkv, 3, -1)]


def against_token_0(scores):
    """What scores (…, N, N) differ by, beside those of token 0: of log A too, whatever its softmax divided by."""
    return (scores - scores[..., :1] - scores[..., :1, :] + scores[..., :1, :1])[..., 1:, 1:]


def span(x):
    low, high = f"{x.min():.4g}", f"{x.max():.4g}"
    return low if low == high else f"{low} to {high}"


def test_eq1_each_patch_is_a_square_of_the_image():
    """x_p: laid back in their places, row by row, the patches are the image."""
    image = rng.random((1, 4, 6, 3))
    patches = nn.patchify(Tensor(image), 2).data
    rows = [np.concatenate([p.reshape(2, 2, 3) for p in patches[0, i : i + 3]], 1) for i in (0, 3)]
    assert np.array_equal(np.concatenate(rows), image[0]), "the patches, laid back in their places, are not the image"


def test_eq1_a_position_belongs_to_a_token_not_to_an_image():
    """E_pos: two equal images get the same tokens; two equal patches of an image do not."""
    model = randomised(ViT(CONFIG))
    _, seen = model(np.ones((3, 4, 6, 3)), intermediates=True)
    tokens = seen["tokens"].data
    assert (tokens[1:] == tokens[:-1]).all(), "equal images get different tokens"
    assert (tokens[:, 2:] != tokens[:, 1:-1]).any(-1).all(), "equal patches get equal tokens in different places"


def test_eq2_eq3_a_block_whose_parts_are_silent_is_the_identity():
    """z + MSA(LN(z)), z' + MLP(LN(z')): with all their weights 0, what remains is z, neither lost nor normalised."""
    block, z = randomised(nn.EncoderBlock(8, 2, 12, rng)), rng.standard_normal((B, N, 8))
    for layer in (block.attention.qkv, block.attention.out, block.mlp.fc1, block.mlp.fc2):
        layer.weight.data = layer.bias.data = 0.0
    difference = np.abs(block(Tensor(z)).data - z).max()
    assert difference == 0, f"a block whose parts say nothing changes z by up to {difference:.4g}"


def test_eq4_the_head_reads_the_class_token():
    """y = LN(z_L⁰): of the encoded tokens, the first alone matters."""
    model, encoded = ViT(CONFIG), rng.standard_normal((B, CONFIG.tokens, 8))
    before, read = model.pooled(Tensor(encoded)).data, []
    for token in range(CONFIG.tokens):
        changed = encoded.copy()
        changed[:, token] += 1
        if (model.pooled(Tensor(changed)).data != before).any():
            read.append(token)
    assert read == [0], f"of {CONFIG.tokens} tokens the head reads {read}, not [0]"


def test_eq5_q_asks_and_k_is_asked():
    """[q, k, v] = z U_qkv, in this order: another q moves its token's row of scores, another k a column, v nothing."""
    qkv = rng.standard_normal((B, N, 3 * D))
    before, moved = against_token_0(np.log(attend(qkv)[1])), []
    for part in range(3):
        changed = qkv.copy()
        changed[:, 2, part * D : (part + 1) * D] += 1
        differs = np.abs(against_token_0(np.log(attend(changed)[1])) - before) > 1e-9
        moved.append([np.flatnonzero(differs.any(axes)) + 1 for axes in ((0, 1, 3), (0, 1, 2))])
    rows_and_columns = [[x.tolist() for x in each] for each in moved]
    expected = [[[2], [1, 2, 3, 4]], [[1, 2, 3, 4], [2]], [[], []]]
    assert rows_and_columns == expected, f"rows and columns that q, k, v of token 2 move: {rows_and_columns}"


def test_eq6_scores_are_divided_by_the_root_of_a_heads_width():
    """A = softmax(q kᵀ / √D_h): differences of log A are those of the scores, whatever the softmax divided by."""
    qkv = rng.standard_normal((B, N, 3 * D))
    q, k, _ = of_heads(qkv)
    by = against_token_0(q @ k.mT) / against_token_0(np.log(attend(qkv)[1]))
    assert np.allclose(by, K**0.5), f"the scores are divided by {span(by)}, not by √D_h = {K**0.5:g}"


def test_eq6_each_token_shares_out_a_weight_of_1():
    """The softmax runs along A's rows."""
    sums = attend(rng.standard_normal((B, N, 3 * D)))[1].sum(-1)
    assert np.allclose(sums, 1), f"a token's attention sums to {span(sums)}, not to 1"


def test_eq7_a_head_mixes_its_own_values():
    """SA(z) = A v, one head beside the other."""
    qkv = rng.standard_normal((B, N, 3 * D))
    out, A = attend(qkv)
    mixed = (A @ of_heads(qkv)[2]).swapaxes(1, 2).reshape(B, N, D)
    assert np.allclose(out, mixed), f"the output differs from A v by up to {np.abs(out - mixed).max():.4g}"


def test_eq8_every_head_reaches_every_output():
    """U_msa mixes the heads: with other values in the last head alone, all D outputs of all tokens change."""
    layer, z = randomised(nn.MultiHeadSelfAttention(D, H, rng)), Tensor(rng.standard_normal((B, N, D)))
    before = layer(z).data
    layer.qkv.bias.data[-K:] += 1
    changed = np.abs(layer(z).data - before) > 1e-9
    reached = np.flatnonzero(changed.all((0, 1))).tolist()
    assert len(reached) == D, f"the last head reaches the outputs {reached} of {D}, not all"


def test_layer_norm_looks_at_one_token_at_a_time():
    """LN: each token by itself gets mean 0 and variance 1, whatever the others are."""
    x = rng.uniform(-9, 9, (B, N, 1)) + rng.uniform(1, 9, (B, N, 1)) * rng.standard_normal((B, N, D))
    y = functional.layer_norm(Tensor(x), np.ones(D), np.zeros(D)).data
    assert np.allclose(y.mean(-1), 0), f"the tokens' means are {span(y.mean(-1))}, not 0"
    assert np.allclose(y.var(-1), 1, 1e-5), f"the tokens' variances are {span(y.var(-1))}, not 1"


def test_cross_entropy_is_ln_C_without_an_opinion_and_0_with_certainty():
    """-log softmax(logits)[label], with one softmax, averaged over images and not over classes."""
    labels, C = np.array([2, 0, 1]), 4
    equal, sure = (functional.cross_entropy(Tensor(size * np.eye(C)[labels]), labels).item() for size in (0, 100))
    assert abs(equal - np.log(C)) < 1e-12, f"equal logits cost {equal:.4g}, not ln {C} = {np.log(C):.4g}"
    assert abs(sure) < 1e-12, f"certainty of the right class costs {sure:.4g}, not 0"


def test_the_chain_rule_adds_up_the_paths():
    """A tensor that is read twice gets both gradients: d(x² + 3x) = (2x + 3) dx."""
    x = Tensor(np.array([5.0]), requires_grad=True)
    (x * x + 3 * x).sum().backward()
    assert x.grad[0] == 13, f"d(x² + 3x)/dx at 5 is 13, but backward gives {x.grad[0]:g}"
