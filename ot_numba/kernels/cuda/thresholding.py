"""Layers of sparse recovery: products of cuBLAS, and what is between them fused, see `thresholding.cu`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..contract import SOFT
from .loader import launch

Array = Any
THREADS = 256
BLOCKS = 1056  #: at most, eight for each multiprocessor of the largest GPUs
BLOCK_ENTRIES = 1024  #: at least, unless there are fewer
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


def _partials(count: int, size: int) -> Array:
    """Room for the partial sums of so many numbers, a column for each block."""
    import cupy

    return cupy.empty((count, min(math.ceil(size / BLOCK_ENTRIES), BLOCKS)))


def _sums(partial: Array) -> tuple[Array, ...]:
    """Sums of the rows, on the device."""
    import cupy

    count, blocks = partial.shape
    if blocks > 1:
        sums = cupy.empty((count, 1))
        launch("thresholding", "sum_partials", count, THREADS, (partial, np.int32(blocks), sums))
        partial = sums
    return tuple(partial[i, 0] for i in range(count))


def proximal_step(
    kind: int,
    step: float,
    tau: float,
    momentum: float,
    X: Array,
    Z: Array,
    G: Array,
    signs: Array | None = None,
) -> Array | float:
    """Layer of X and Z in place; the sign of what it has made, and the product that tells when to restart."""
    import cupy

    if not X.size:
        return 0.0
    pair, signing = X is not Z, signs is not None
    partial = _partials(1, X.size)
    numbers = np.int32(kind == SOFT), *map(X.dtype.type, (step, tau, momentum))
    arrays = X, Z if pair else cupy.empty(1, X.dtype), np.int32(pair), G
    signs = signs if signing else cupy.empty(1, np.int8)
    arguments = *numbers, *arrays, signs, np.int32(signing), np.int64(X.size), partial
    launch("thresholding", f"proximal_step_{X.dtype.name}", partial.shape[1], THREADS, arguments)
    return _sums(partial)[0] if pair else 0.0


def masked_adjoint(P: Array, signs: Array, G: Array) -> tuple[Array, Array] | tuple[float, float]:
    """``(sum Q G, sum Q signs)`` where Q, which P becomes, is P where it may pass."""
    if not P.size:
        return 0.0, 0.0
    partial = _partials(2, P.size)
    arguments = P, signs, G, np.int64(P.size), partial
    launch("thresholding", f"masked_adjoint_{P.dtype.name}", partial.shape[1], THREADS, arguments)
    return _sums(partial)


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
