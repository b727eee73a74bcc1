"""Each step of the stories in `benchmarks/` computes what NumPy does, at sizes with edges, so that they stay true."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

from tinyvit import kernels
from tinyvit.memory import Pool

if kernels.backend() != "numba":
    pytest.skip("the stories are about compiled loops", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import attention_story  # noqa: E402
import matmul_story  # noqa: E402


def in_two_threads(A, B, C):
    with ThreadPoolExecutor(2) as pool:
        matmul_story.shared_out(A, B, C, pool, 2)


PRODUCTS = matmul_story.STEPS | {"prange": matmul_story.prange_rows, "threads": in_two_threads}
WHOLE = {"B packed: tinyvit's kernel", "prange", "threads"}  # take whole registers only
# One row; less than a tile; tiles and edges; more than a block of each kind
SIZES = (1, 1, 4), (3, 5, 8), (13, 9, 76), (5, 131, 524)
ODD = (2, 3, 1), (9, 6, 67)


def numbers(*shape):
    """Small whole numbers, of which every sum is exact, whatever its order."""
    return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_products(name):
    """Protects: every step is the same product; none relies on what C held, or forgets an edge."""
    for M, K, N in SIZES if name in WHOLE else SIZES + ODD:
        A, B, C = numbers(M, K), numbers(K, N), np.full((M, N), np.nan, np.float32)
        PRODUCTS[name](A, B, C)
        np.testing.assert_array_equal(C, A @ B, f"{(M, K, N)}")


def test_python_loops():
    """Protects: what is timed as Python is the product too."""
    A, B = numbers(3, 5), numbers(5, 2)
    np.testing.assert_array_equal(matmul_story.python_loops(A.tolist(), B.tolist()), A @ B)


def test_columns_that_fill_no_register():
    """Protects: an error, where the kernel would write behind the end of C."""
    for step in matmul_story.packed, matmul_story.prange_rows:
        with pytest.raises(ValueError, match="multiple of 4 columns; got 6"):
            step(numbers(2, 3), numbers(3, 6), numbers(2, 6))


def test_peak_counts_its_sums():
    """Protects: as many sums as the flops count; each comes to rest where c = c / 2 + 1 / 2."""
    out = np.zeros(matmul_story.LANES, np.float32)
    matmul_story.peak(np.float32(0.5), out)
    assert (out == matmul_story.SUMS).all()


def in_shards(qkv, heads, scale):
    with ThreadPoolExecutor(2) as workers:
        parts = attention_story.shards(qkv, heads, scale, workers, [Pool(), Pool()])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


ATTENTIONS = attention_story.STEPS | {"prange": attention_story.prange_images, "shards": in_shards}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name):
    """Protects: every step is attention, also with one token, a head width of 3, and more than two blocks of keys."""
    for B, N, D, H in (2, 1, 4, 1), (3, 5, 6, 2), (2, 70, 8, 2):
        qkv = 2 * np.random.default_rng(0).standard_normal((B, N, 3 * D), dtype=np.float32)
        scale = math.sqrt(H / D)
        out, p = ATTENTIONS[name](qkv, H, scale)
        wanted = kernels.attention.numpy(qkv.astype(np.float64), H, scale)
        np.testing.assert_allclose(out, wanted[0], rtol=1e-4, atol=1e-5)
        if p.ndim == 3:  # the online softmax keeps log Σ e^score
            q, k, _ = qkv.reshape(B, N, 3, H, -1).transpose(2, 0, 3, 1, 4)
            np.testing.assert_allclose(p, logsumexp(q @ k.mT * scale, axis=-1), rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_allclose(p, wanted[1], rtol=1e-4, atol=1e-6)


def test_tables_and_pictures(monkeypatch):
    """Protects: both programs run to their end and name each step in table and picture."""
    monkeypatch.setattr(attention_story, "has_pytorch", lambda: False)  # importing it takes longer than all of this
    for story, size in (matmul_story, (9, 7, 8)), (attention_story, (2, 5, 6, 2)):
        result = story.measure(*size, rounds=1, threads=1)
        text = "\n".join(story.table(result))
        drawn = story.draw([result]).axes[0].get_yticklabels()
        assert len(drawn) == len(result["rows"]) > len(story.STEPS)
        assert all(name in text and name in str(drawn) for name in story.STEPS)


def test_a_wrong_step_is_not_timed():
    """Protects: the check before the clock starts."""
    A, B, C = matmul_story.matrices(3, 4, 8)
    with pytest.raises(AssertionError, match="does not compute A @ B"):
        matmul_story.checked("copy", lambda A, B, C: np.copyto(C, 0), A, B, C)
    with pytest.raises(AssertionError, match="does not compute attention"):
        attention_story.checked("one", lambda qkv, *_: (np.ones((2, 3, 4)), None), numbers(2, 3, 12), 2, 1.0)
