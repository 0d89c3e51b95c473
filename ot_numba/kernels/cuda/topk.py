"""Rows of quadratic and cardinality-constrained plans, projections and norms of rows: see `topk.cu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..contract import DENSE, CostData
from .loader import launch

Array = Any
WARPS = 8  #: of the block that takes a row; one where a row has no more columns than `SHORT`
SHORT = 256
ALL_WARPS = 3168  #: that may be at work, 24 for each multiprocessor of the largest GPUs
SCRATCH = 1 << 26  #: entries of all blocks that wait in global memory, at 20 bytes with the partial sums
STORED = 40 << 10  #: bytes of shared memory in which a row waits for its selection
SUMS, COUNT, FILL = map(np.int32, range(3))  #: what is done with the rows of a plan
OUTPUTS = ("row_sums", "conjugates", "partial", "counts", "narrow_indices", "wide_indices", "data")
LARGEST_INDEX = np.iinfo(np.int32).max  #: beyond it, indices are 64-bit numbers


def _geometry(n: int, m: int) -> tuple[int, int]:
    """Numbers of blocks and threads for rows of m entries."""
    warps = 1 if m <= SHORT else WARPS
    return max(1, min(n, ALL_WARPS // warps, SCRATCH // m)), 32 * warps


def _place(m: int, dtype: Any, blocks: int) -> tuple[tuple[Any, Array, Array], int]:
    """Where entries of a row and their columns wait, as arguments, and as bytes of shared memory."""
    import cupy

    size = m * (dtype.itemsize + 4)
    stored = size <= STORED
    shape = (1, 1) if stored else (blocks, m)
    return (np.int32(stored), cupy.empty(shape, dtype), cupy.empty(shape, np.int32)), size if stored else 0


class _Rows:
    """Launches on the rows of a plan: of F, or with a those that sum to a, for which F is an output."""

    def __init__(
        self, cost: CostData, F: Array, G: Array, a: Array | None, reg: float, k: int, delta: float
    ) -> None:
        import cupy

        n, m = cost.shape
        dtype = G.dtype
        if k == m:  # where delta only adds to reg
            reg, delta = reg + delta, 0.0
        inverses = (1 / x if x > 0 else 0.0 for x in (reg + delta, delta))
        numbers = map(np.float64, (reg, delta, reg / delta if delta > 0 else 0.0, *inverses))
        self.blocks, self.threads = _geometry(n, m)
        place, self.shared = _place(m, dtype, self.blocks)
        data = cost.x, cost.y, dtype.type(cost.scale), np.int64(cost.x.shape[1]), np.int32(cost.kind == DENSE), G
        potential = F, G if a is None else a, np.int32(a is not None)
        self.arguments = *data, np.int64(n), np.int32(m), *potential, np.int32(k), *numbers, *place
        kinds = dict(zip(OUTPUTS, (*[np.float64] * 3, np.int64, np.int32, np.int64, dtype.type), strict=True))
        self.unused = {name: cupy.empty(1, kind) for name, kind in kinds.items()}
        self.name = f"plan_rows_{dtype.name}"

    def __call__(self, mode: np.int32, **outputs: Array) -> None:
        wide = np.int32("wide_indices" in outputs)
        arguments = *self.arguments, mode, wide, *(self.unused | outputs).values()
        launch("topk", self.name, self.blocks, self.threads, arguments, self.shared)


def _sums(rows: _Rows, n: int, m: int) -> tuple[Array, Array, Array]:
    """Row sums of given potentials, conjugates, and column sums."""
    import cupy

    sums, conjugates, partial = cupy.empty(n), cupy.empty(n), cupy.zeros((rows.blocks, m))
    rows(SUMS, row_sums=sums, conjugates=conjugates, partial=partial)
    return sums, conjugates, partial.sum(axis=0)


def semidual_rows(
    cost: CostData, G: Array, a: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """``(F, conjugates, column_sums)`` of the plan whose rows sum to a."""
    import cupy

    F = cupy.empty(cost.shape[0])
    _, conjugates, columns = _sums(_Rows(cost, F, G, a, reg, k, delta), *cost.shape)
    return F, conjugates, columns


def dual_rows(
    cost: CostData, F: Array, G: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """``(row_sums, conjugates, column_sums)`` of the plan of F and G."""
    return _sums(_Rows(cost, F, G, None, reg, k, delta), *cost.shape)


def semidual_plan_rows(
    cost: CostData, G: Array, a: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array, Array]:
    """F, and CSR arrays ``(data, indices, indptr)`` of the plan whose rows sum to a, in column order."""
    import cupy

    F = cupy.empty(cost.shape[0])
    return F, *_csr(cost, F, G, a, reg, k, delta)


def plan_rows(
    cost: CostData, F: Array, G: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """CSR arrays ``(data, indices, indptr)`` of the plan of F and G, in column order."""
    return _csr(cost, F, G, None, reg, k, delta)


def _csr(
    cost: CostData, F: Array, G: Array, a: Array | None, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """Count, then fill; with a, F is an output."""
    import cupy

    n, m = cost.shape
    rows = _Rows(cost, F, G, a, reg, k, delta)
    counts, starts = cupy.empty(n, np.int64), cupy.zeros(n + 1, np.int64)
    rows(COUNT, counts=counts)
    starts[1:] = cupy.cumsum(counts)
    total = int(starts[-1])
    wide = max(m, total) > LARGEST_INDEX
    indices, data = cupy.empty(total, np.int64 if wide else np.int32), cupy.empty(total, G.dtype)
    if total:
        rows(FILL, counts=starts, data=data, **{f"{'wide' if wide else 'narrow'}_indices": indices})
    return data, indices, starts.astype(indices.dtype, copy=False)


def project_simplex(V: Array, z: Array, k: int) -> Array:
    """Projections of the rows of V on ``{t >= 0, sum t = z_i, at most k entries > 0}``."""
    import cupy

    n, m = V.shape
    blocks, threads = _geometry(n, m)
    place, shared = _place(m, V.dtype, blocks)
    out = cupy.empty((n, m), V.dtype)
    arguments = V, np.int64(n), np.int32(m), z, np.int32(k), *place, out
    launch("topk", f"project_rows_{V.dtype.name}", blocks, threads, arguments, shared)
    return out


def ksupport_norm_sq(T: Array, k: int) -> Array:
    """Squared k-support norms of the rows of T, float64."""
    import cupy

    n, m = T.shape
    blocks, threads = _geometry(n, m)
    out = cupy.empty(n)
    arguments = T, np.int64(n), np.int32(m), np.int32(k), out
    launch("topk", f"ksupport_rows_{T.dtype.name}", blocks, threads, arguments)
    return out
