"""The transpose of a lookup: rows that were picked from a table get back the sum of what came of them.

`table[index]` copies rows; its derivative adds rows, and adds again where one was picked twice. (`+=` with an array of
indices does not: it keeps the last.)
"""

import numpy as np

from tinyvit.kernels.backend import Kernel, contiguous, jit, require


def _check(index, g, rows):
    holds = index.ndim == 1 and g.ndim == 2 and len(index) == len(g) and rows >= 0
    must = "scatter_add: index must be (M,) integers and g (M, D)"
    require(holds and index.dtype.kind in "iu", must, g, index=f"{index.dtype} {index.shape}", rows=rows)


@Kernel
def scatter_add(index, g, rows):
    """index (M,) integers in [0, rows), g (M, D) -> (rows, D): row r is the sum of all g[m] with index[m] = r."""
    _check(index, g, rows)
    table = np.zeros((rows, g.shape[1]), g.dtype)
    np.add.at(table, index, g)
    return table


@scatter_add.fast
def scatter_add(index, g, rows):
    _check(index, g, rows)
    if len(index) and not 0 <= index.min() <= index.max() < rows:
        raise IndexError(f"scatter_add: index must lie in [0, {rows}), got {index.min()} to {index.max()}")
    table = np.zeros((rows, g.shape[1]), g.dtype)
    _scatter_add(index.astype(np.int64), contiguous(g), table)
    return table


@jit
def _scatter_add(index, g, table):
    for m in range(index.size):
        source, target = g[m], table[index[m]]
        for d in range(source.size):
            target[d] += source[d]
