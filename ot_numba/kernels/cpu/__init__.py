"""NumPy backend: the kernel contract on Numba loops, driven by the package's thread pool."""

from __future__ import annotations

import math

import numpy as np

from ..contract import DENSE, HISTOGRAM_BINS_PER_BIT, HISTOGRAM_BITS, CostData
from . import distances, plans
from .exponents import ROWS
from .threads import run_blocks

MAX_BLOCKS = 32
BLOCK_ENTRIES = 250_000  #: entries that make a block worth a thread
MAX_PARTIALS = 1 << 23  #: float64 numbers that partial column sums may take


def _blocks(n: int, m: int, width: int = 1) -> tuple[int, int]:
    """Number of row blocks and rows in each: a function of the size alone, so that sums do not depend on threads."""
    count = max(1, min(MAX_BLOCKS, n * m // BLOCK_ENTRIES, max(4, MAX_PARTIALS // (m * width))))
    rows = ROWS * math.ceil(n / (count * ROWS))
    return math.ceil(n / rows), rows


def _buffer(m: int, dtype: np.dtype) -> np.ndarray:
    return np.empty((ROWS, m), dtype)


def _arguments(cost: CostData) -> tuple:
    """What kernels take of a cost; they are compiled for each kind apart, and know a stored one by y = None."""
    return cost.x, None if cost.kind == DENSE else cost.y, cost.x.dtype.type(cost.scale)


def _sum_blocks(partial: np.ndarray) -> np.ndarray:
    out = np.empty(partial.shape[1])
    plans.sum_blocks(partial, out)
    return out


def sinkhorn_rows(
    cost: CostData,
    F: np.ndarray,
    G: np.ndarray,
    a: np.ndarray,
    offset: np.ndarray,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[float, np.ndarray]:
    """Update F in place; return the row error before and the column sums after."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    columns, errors = np.empty((count, m), F.dtype), np.empty(count)
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.sinkhorn_rows(
            *arguments, F, G, a, offset, damping, relaxation, lo, hi, rows, columns, errors, _buffer(m, F.dtype)
        )

    run_blocks(task, count, n * m)
    return float(errors.sum()), _sum_blocks(columns)


def sinkhorn_columns(
    column_sums: np.ndarray,
    b: np.ndarray,
    G: np.ndarray,
    offset: np.ndarray,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> float:
    """Update G in place from the column sums of the plan; return their error."""
    return plans.sinkhorn_columns(column_sums, b, G, offset, damping, relaxation)


def absorbed_rows(
    K: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    a: np.ndarray,
    base: np.ndarray | None = None,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[float, np.ndarray]:
    """Update the scaling p in place; return the row error before and ``K' p``."""
    n, m = K.shape
    count, rows = _blocks(n, m)
    columns, errors = np.empty((count, m), K.dtype), np.empty(count)
    base = a if base is None else base

    def task(lo: int, hi: int) -> None:
        plans.absorbed_rows(K, p, q, a, base, damping, relaxation, lo, hi, rows, columns, errors)

    run_blocks(task, count, n * m)
    return float(errors.sum()), _sum_blocks(columns)


def absorbed_columns(
    column_sums: np.ndarray,
    q: np.ndarray,
    b: np.ndarray,
    base: np.ndarray | None = None,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> float:
    """Update the scaling q in place; return the column error before."""
    return plans.absorbed_columns(column_sums, q, b, b if base is None else base, damping, relaxation)


def absorbed_pair(K: np.ndarray, v: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(t, K' (w t))`` for ``t = K v``."""
    n, m = K.shape
    count, rows = _blocks(n, m)
    columns, t = np.empty((count, m), K.dtype), np.empty(n, K.dtype)

    def task(lo: int, hi: int) -> None:
        plans.absorbed_pair(K, v, w, lo, hi, rows, t, columns)

    run_blocks(task, count, n * m)
    return t, _sum_blocks(columns)


def plan_pair(
    cost: CostData, F: np.ndarray, G: np.ndarray, v: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``(t, P' (w t))`` for ``t = P v``, float64."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    columns, t = np.empty((count, m), F.dtype), np.empty(n)
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.plan_pair(*arguments, F, G, v, w, lo, hi, rows, t, columns, _buffer(m, F.dtype))

    run_blocks(task, count, n * m)
    return t, _sum_blocks(columns)


def row_logsumexp(cost: CostData, G: np.ndarray) -> np.ndarray:
    """``out[l, i] = log2 sum_j 2**(G[l, j] - scale c_ij)``."""
    n, m = cost.shape
    count, rows = _blocks(n, m * G.shape[0])
    out = np.empty((G.shape[0], n), G.dtype)
    zero = np.zeros(n, G.dtype)
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.row_logsumexp(*arguments, G, lo, hi, rows, zero, out, _buffer(m, G.dtype))

    run_blocks(task, count, n * m * G.shape[0])
    return out


def column_logsumexp(cost: CostData, F: np.ndarray) -> np.ndarray:
    """``log2 sum_i 2**(F_i - scale c_ij)``."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    columns = np.empty((count, m), F.dtype)
    zero = np.zeros(m, F.dtype)
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.column_maximum(*arguments, F, zero, lo, hi, rows, columns, _buffer(m, F.dtype))

    run_blocks(task, count, n * m)
    top = columns.max(axis=0)
    shift = np.where(np.isfinite(top), top, 0)
    _, sums, _ = marginals(cost, F, -shift)
    return np.where(np.isfinite(top), shift + np.log2(sums), top).astype(F.dtype)


def marginals(cost: CostData, F: np.ndarray, G: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row sums, column sums and ``sum_j P_ij e_ij`` of the plan, float64."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    columns = np.empty((count, m), np.float64)
    row_sums, entropies = np.empty(n), np.empty(n)
    arguments = _arguments(cost)
    info = np.finfo(F.dtype)
    limits = F.dtype.type(info.minexp), F.dtype.type(info.maxexp - 1)

    def task(lo: int, hi: int) -> None:
        plans.marginals(
            *arguments, F, G, *limits, lo, hi, rows, row_sums, entropies, columns, _buffer(m, F.dtype)
        )

    run_blocks(task, count, n * m)
    return row_sums, _sum_blocks(columns), entropies


def products(
    cost: CostData, F: np.ndarray, G: np.ndarray, V: np.ndarray | None = None, U: np.ndarray | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """``(P @ V, P.T @ U)`` for V (m, p), U (n, q); None where no factor is given."""
    n, m = cost.shape
    VT = np.empty((0, m), F.dtype) if V is None else np.ascontiguousarray(V.T, F.dtype)
    UT = np.empty((0, n), F.dtype) if U is None else np.ascontiguousarray(U.T, F.dtype)
    count, rows = _blocks(n, m, max(1, UT.shape[0]))
    PV = np.empty((n, VT.shape[0]))
    partial = np.empty((count, UT.shape[0], m))
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.products(*arguments, F, G, VT, UT, lo, hi, rows, PV, partial, _buffer(m, F.dtype))

    run_blocks(task, count, n * m)
    return (
        None if V is None else PV,
        None if U is None else _sum_blocks(partial.reshape(count, -1)).reshape(-1, m).T,
    )


def plan(
    cost: CostData,
    F: np.ndarray,
    G: np.ndarray,
    floor: float | None = None,
    dtype: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Dense plan; entries with an exponent not above `floor` (default: the smallest normal number's) are exactly 0."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    out = np.empty((n, m), dtype or F.dtype) if out is None else out
    smallest = F.dtype.type(2.0 ** (np.finfo(out.dtype).minexp if floor is None else floor))
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.plan(*arguments, F, G, smallest, lo, hi, rows, out, _buffer(m, F.dtype))

    run_blocks(task, count, n * m)
    return out


def pairwise_cost(metric: int, x: np.ndarray, y: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Dense cost between the points x (n, d) and y (d, m)."""
    n, m = x.shape[0], y.shape[1]
    count, rows = _blocks(n, m)
    out = np.empty((n, m), x.dtype)
    half_power = x.dtype.type(0.5 * power)

    def task(lo: int, hi: int) -> None:
        distances.pairwise_cost(metric, x, y, half_power, lo, hi, rows, out)

    run_blocks(task, count, n * m)
    return out


def mass_histogram(cost: CostData, F: np.ndarray, G: np.ndarray) -> np.ndarray:
    """Mass of the plan's entries by exponent, in bins of ``1 / HISTOGRAM_BINS_PER_BIT`` bit; the last is >= 0."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    partial = np.empty((count, HISTOGRAM_BITS * HISTOGRAM_BINS_PER_BIT + 1))
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.mass_histogram(
            *arguments, F, G, lo, hi, rows, HISTOGRAM_BINS_PER_BIT, partial, _buffer(m, F.dtype)
        )

    run_blocks(task, count, n * m)
    return _sum_blocks(partial)


def csr_plan(
    cost: CostData, F: np.ndarray, G: np.ndarray, row_thresholds: np.ndarray, max_per_row: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR arrays ``(data, indices, indptr)`` of the entries with ``e_ij >= row_thresholds_i``, column order."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    counts = np.empty(n, np.int64)
    arguments = _arguments(cost)

    def counting(lo: int, hi: int) -> None:
        plans.count_above(*arguments, F, G, row_thresholds, lo, hi, rows, counts, _buffer(m, F.dtype))

    run_blocks(counting, count, n * m)
    if max_per_row is not None:
        np.minimum(counts, max_per_row, out=counts)
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices = np.empty(indptr[-1], np.int64 if max(m, indptr[-1]) > np.iinfo(np.int32).max else np.int32)
    data = np.empty(indptr[-1], F.dtype)

    def filling(lo: int, hi: int) -> None:
        plans.fill_csr(
            *arguments, F, G, row_thresholds, lo, hi, rows, indptr, indices, data, _buffer(m, F.dtype)
        )

    run_blocks(filling, count, n * m)
    return data, indices, indptr.astype(indices.dtype, copy=False)


def row_kth_exponent(cost: CostData, F: np.ndarray, G: np.ndarray, k: int) -> np.ndarray:
    """k-th largest exponent of every row."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    out = np.empty(n, F.dtype)
    arguments = _arguments(cost)

    def task(lo: int, hi: int) -> None:
        plans.row_kth_exponent(*arguments, F, G, k, lo, hi, rows, out, _buffer(m, F.dtype))

    run_blocks(task, count, n * m)
    return out
