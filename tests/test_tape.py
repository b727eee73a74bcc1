"""The tape as a table: which rows, what they remember, how many FLOPs."""

import numpy as np
import pytest

from tinyvit import Tensor, functional, optim, tape, vit
from tinyvit.nn import composed


def test_rows_of_a_small_graph():
    x, w = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((3, 4)), requires_grad=True)
    w.name = "w"
    rows = ((x @ w).exp() * 2).sum().trace().rows
    assert [row.op for row in rows] == ["leaf", "leaf", "matmul", "exp", "multiply", "sum"]
    assert [row.inputs for row in rows] == [(), (), (0, 1), (2,), (3, -1), (4,)]
    assert rows[1].name == "w" and rows[2].shape == (2, 4)
    assert rows[2].flops == 2 * 2 * 3 * 4 and rows[3].flops == 8
    assert rows[2].remembered == x.data.nbytes + w.data.nbytes and rows[3].remembered == 8 * 8
    assert rows[4].remembered == 8, "exp's result is counted where it was remembered first"


def test_shared_memory_counts_once_and_a_shared_node_is_one_row():
    x = Tensor(np.ones(10), requires_grad=True)
    y = x.exp()
    t = (y * y).sum().trace()
    assert [row.op for row in t.rows] == ["leaf", "exp", "multiply", "sum"]
    assert t.remembered == 80


def test_flops_of_a_vit_are_the_formulas():
    """Per block and image 2·N·(4 D² + 2 D M) for the products with weights, 4·N²·D for attention."""
    model = vit("digits", depth=2)
    c = model.config
    N, D, M = c.tokens, c.width, c.mlp
    with composed():
        t = model(np.zeros((1, 8, 8, 1))).trace()
    weights = sum(row.flops for row in t.rows if row.op.startswith("linear"))
    biases = 2 * N * (3 * D + D + M + D) + 16 * D + 10
    gelu = 2 * 8 * N * M
    assert weights - gelu == 2 * 2 * N * (4 * D * D + 2 * D * M) + 2 * 16 * 4 * D + 2 * D * 10 + biases
    assert sum(row.flops for row in t.rows if row.op == "attention") == 2 * 4 * N * N * D


def test_constants_and_absent_arguments_have_their_place():
    x, w = np.ones((2, 3)), Tensor(np.ones((3, 2)), requires_grad=True)
    row = (x @ w).trace().rows[-1]
    assert row.inputs == (-1, 0) and row.input_shapes == ((2, 3), (3, 2)) and row.flops == 24
    assert functional.linear(Tensor(x), w, None).trace().rows[-1].flops == 24
    assert functional.conv2d(Tensor(np.ones((1, 4, 4, 1)), True), np.ones((3, 3, 1, 2)), None).trace().flops == 144


def test_an_optimiser_changes_nothing_about_what_is_remembered():
    """Parameters that share a buffer are still arrays of their own."""
    model, x = vit("digits", depth=1), np.zeros((2, 8, 8, 1))
    before = model(x).trace().remembered
    optim.AdamW(model)
    assert model(x).trace().remembered == before


def test_watching_tells_of_each_op_that_is_recorded():
    """Only in its block, and with what the tape itself forgets: constants and keyword arguments."""
    x, told = Tensor(np.ones((2, 3)), requires_grad=True), []
    with tape.watching(lambda node, arrays, static: told.append((node, arrays, static))):
        y = (x * 2).sum(axis=1)
        Tensor(np.ones(2)) * 2  # without a gradient, so not on a tape
    y.exp()
    (product, arrays, _), (total, _, static) = told
    assert product.op == "multiply" and arrays[0] is x._array and arrays[1] == 2
    assert total.parents == [product] and static == {"axis": 1, "keepdims": False}
    y.backward(np.ones(2))
    assert (x.grad == 2).all(), "watching changes nothing"


def test_it_prints():
    model = vit("digits", depth=1)
    text = str(functional.cross_entropy(model(np.zeros((2, 8, 8, 1))), [0, 1]).trace())
    assert "leaf blocks.0.attention.qkv.weight" in text and "attention" in text and "rows" in text
    assert text == repr(tape.trace(functional.cross_entropy(model(np.zeros((2, 8, 8, 1))), [0, 1])))


def test_nothing_to_trace():
    x = Tensor(np.ones(3), requires_grad=True)
    y = x.sum()
    y.backward()
    for tensor in (Tensor(np.ones(3)), y):
        with pytest.raises(RuntimeError, match="needs a recorded graph"):
            tensor.trace()


def test_every_fused_op_has_a_formula():
    fused = {name for name in vars(functional) if hasattr(getattr(functional, name), "__wrapped__")}
    missing = {name.lstrip("_") for name in fused} - set(tape.FLOPS)
    assert not missing, f"tape.FLOPS lacks {missing}"
