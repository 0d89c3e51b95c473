"""Layers of sparse recovery: products of cuBLAS, and what is between them fused, see `thresholding.cu`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..contract import SOFT
from ..generic.thresholding import repeat_steps
from .loader import launch

Array = Any
THREADS = 256
BLOCKS = 1056  #: at most, eight for each multiprocessor of the largest GPUs
BLOCK_ENTRIES = 1024  #: at least, unless there are fewer
WARP = 32  #: columns of a block, at most, where each has sums of its own
GROUPS = 132  #: of columns, from which columns go together to a block, for the sake of neighbours in memory
WIDTH = 8  #: columns of a group, at most
LONG = 1 << 17  #: entries of a group up to which one block goes through them
PIECE = 1 << 14  #: of them for a block, at least, where several do


def product(A: Array, Z: Array, out: Array) -> None:
    """``out = A Z`` in place."""
    import cupy

    cupy.matmul(A, Z, out=out)


def columns_of(A: Array) -> None:
    """What serves `residual_gradient` where Z is sparse: nothing here."""


def residual_gradient(A: Array, Z: Array, Y: Array, R: Array, G: Array, columns: Array | None = None) -> None:
    """``R = A Z - Y`` and ``G = A' R`` in place."""
    product(A, Z, R)
    R -= Y
    product(A.T, R, G)


def _blocks(size: int) -> int:
    """Of threads that go through so many entries."""
    return min(math.ceil(size / BLOCK_ENTRIES), BLOCKS)


def _shares(rows: int, count: int) -> tuple[np.int32, int, int]:
    """Columns that go to a block together, how many such groups there are, and pieces of rows, a block for each."""
    width = min(WARP, 1 << (count - 1).bit_length())
    groups = math.ceil(count / width)
    return np.int32(width), groups, max(1, min(math.ceil(rows * width / BLOCK_ENTRIES), BLOCKS // groups))


def proximal_step(
    kind: int,
    step: float,
    tau: float,
    momentum: float,
    X: Array,
    Z: Array,
    G: Array,
    signs: Array | None = None,
) -> None:
    """Layer of X and Z in place, and the sign of what it has made."""
    import cupy

    if not X.size:
        return
    pair, signing = X is not Z, signs is not None
    numbers = np.int32(kind == SOFT), *map(X.dtype.type, (step, tau, momentum))
    arrays = X, Z if pair else cupy.empty(1, X.dtype), np.int32(pair), G
    signs = signs if signing else cupy.empty(1, np.int8)
    arguments = *numbers, *arrays, signs, np.int32(signing), np.int64(X.size)
    launch("thresholding", f"proximal_step_{X.dtype.name}", _blocks(X.size), THREADS, arguments)


def accelerated_step(kind: int, step: float, tau: float, theta: Array, X: Array, Z: Array, G: Array) -> None:
    """The same with the momentum of FISTA for each signal, which restarts by itself; theta in place."""
    import cupy

    n, count = X.shape
    if not count:
        return
    width, groups, pieces = _shares(n, count)
    partial, momenta = cupy.empty((pieces, count)), cupy.empty(count)
    numbers, size = (np.int32(kind == SOFT), *map(X.dtype.type, (step, tau))), np.int64(count)
    shares, grid = (np.int64(n), size, width), (groups, pieces)
    launch("thresholding", f"restart_products_{X.dtype.name}", grid, THREADS, (*numbers, X, Z, G, *shares, partial))
    launch("thresholding", "update_momenta", groups, THREADS, (partial, np.int32(pieces), size, width, theta, momenta))
    launch("thresholding", f"accelerated_step_{X.dtype.name}", grid, THREADS, (*numbers, momenta, X, Z, G, *shares))


def steps(
    kind: int,
    step: np.ndarray,
    tau: np.ndarray,
    A: Array,
    Y: Array,
    X: Array,
    Z: Array,
    R: Array,
    G: Array,
    momentum: np.ndarray | None = None,
    theta: Array | None = None,
    columns: Array | None = None,
) -> None:
    """Layers one after the other, X and Z in place, from R and G of the old X to those of the new one."""
    repeat_steps(
        lambda V: residual_gradient(A, V, Y, R, G), proximal_step, accelerated_step, kind, step, tau, X, Z, G, momentum,
        theta,
    )  # fmt: skip


def lasso_values(reg: float, X: Array, Y: Array, R: Array, G: Array) -> Array:
    """Objective and duality gap of the LASSO of every column; float64 (2, B)."""
    import cupy

    (n, count), m = X.shape, R.shape[0]
    out = cupy.empty((2, count))
    if count:
        width, groups, pieces = _shares(max(m, n), count)
        partial, size = cupy.empty((4, pieces, count)), np.int64(count)
        arguments = X, Y, R, G, np.int64(m), np.int64(n), size, width, partial
        launch("thresholding", f"lasso_sums_{X.dtype.name}", (groups, pieces), THREADS, arguments)
        arguments = np.float64(reg), partial, np.int32(pieces), size, width, out
        launch("thresholding", "lasso_values", groups, THREADS, arguments)
    return out


def masked_adjoint(P: Array, signs: Array, G: Array) -> tuple[Array, Array] | tuple[float, float]:
    """``(sum Q G, sum Q signs)`` where Q, which P becomes, is P where it may pass."""
    import cupy

    if not P.size:
        return 0.0, 0.0
    blocks = _blocks(P.size)
    sums = partial = cupy.empty((2, blocks))
    arguments = P, signs, G, np.int64(P.size), partial
    launch("thresholding", f"masked_adjoint_{P.dtype.name}", blocks, THREADS, arguments)
    if blocks > 1:
        sums = cupy.empty((2, 1))
        launch("thresholding", "sum_partials", 2, THREADS, (partial, np.int32(blocks), sums))
    return sums[0, 0], sums[1, 0]


def keep_largest(X: Array, k: int) -> None:
    """All but the k largest absolute values of every column become 0, in place; of equal ones the first stay."""
    import cupy

    n, count = X.shape
    if k >= n or not count:
        return
    width = 1 << max(0, min(WIDTH, count // GROUPS).bit_length() - 1)
    groups = math.ceil(count / width)
    pieces = 1 if n * width <= LONG else max(1, min(math.ceil(n * width / PIECE), BLOCKS // groups))
    rows = math.ceil(n / pieces)
    threads = min(1024, max(THREADS, 32 * math.ceil(rows * width / 1024)))
    passes = X.dtype.itemsize + math.ceil((n - 1).bit_length() / 8)  # digits of a size, and of a place
    arguments = X, np.int64(n), np.int64(count), np.uint32(k), np.int32(width), np.int32(passes)
    if pieces == 1:
        launch("thresholding", f"keep_largest_{X.dtype.name}", groups, threads, arguments)
        return
    grid, rows = (groups, pieces), np.int64(rows)
    known = cupy.empty((passes + 1, 3, groups * width), np.uint64)
    counts = cupy.zeros((passes, groups, 256 * width), np.uint32)
    for number in map(np.int32, range(passes)):
        launch("thresholding", f"count_digits_{X.dtype.name}", grid, threads, (*arguments, number, rows, known, counts))
    launch("thresholding", f"drop_rest_{X.dtype.name}", grid, threads, (*arguments, rows, known, counts))
