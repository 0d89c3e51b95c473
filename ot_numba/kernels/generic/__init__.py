"""Reference backend: the kernel contract in plain array-API code, the oracle of the tests and the fallback.

Works on blocks of rows, so that no temporary exceeds `BLOCK_ENTRIES` entries.  Where a kernel says "in place" it
assigns into the array it was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from array_api_compat import array_namespace

from ..contract import CITYBLOCK, DENSE, HISTOGRAM_BINS_PER_BIT, HISTOGRAM_BITS, CostData

BLOCK_ENTRIES` entries.  Where a kernel says "in place" it
assigns into the array it was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from array_api_compat import array_namespace

from ..contract import (
    CITYBLOCK,
    DENSE,
    DOT,
    EUCLIDEAN,
    HISTOGRAM_BINS_PER_BIT,
    HISTOGRAM_BITS,
    CostData,
)

BLOCK_ENTRIES = 1 << 22
Array = Any


def _row_blocks(n: int, m: int) -> Iterator[tuple[int, int]]:
    rows = max(1, BLOCK_ENTRIES // m)
    for lo in range(0, n, rows):
        yield lo, min(n, lo + rows)


def _cost_block(cost: CostData, lo: int, hi: int) -> Array:
    """``scale * c`` for rows lo:hi."""
    x = cost.x[lo:hi, ...]
    return cost.scale * (x if cost.kind == DENSE else -(x @ cost.y))


def _exponents(cost: CostData, F: Array, G: Array, lo: int, hi: int) -> Array:
    return F[lo:hi, None] + G[None, :] - _cost_block(cost, lo, hi)


def _exp2(xp: Any, z: Array) -> Array:
    """``2**z`` computed in float64."""
    return xp.exp(xp.astype(z, xp.float64) * math.log(2))


def _logsumexp2(xp: Any, z: Array, axis: int) -> Array:
    top = xp.max(z, axis=axis, keepdims=True)
    shift = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    sums = xp.sum(_exp2(xp, z - shift), axis=axis, keepdims=True)
    return xp.squeeze(xp.where(xp.isfinite(top), shift + xp.log2(sums), top), axis=axis)


def _target(xp: Any, potential: Array, weights: Array, offset: Array, damping: float) -> Array:
    """Marginal that the optimality conditions ask for: weights * exp(-potential / rho)."""
    weights = xp.astype(weights, xp.float64)
    return weights if damping == 1 else weights * _exp2(xp, (offset - potential) * (1 / damping - 1))


def _update(
    xp: Any, potential: Array, sums: Array, weights: Array, offset: Array, damping: float, relaxation: float
) -> tuple[float, Array]:
    """Relaxed, damped update of one potential; returns the error of its marginal before and the new potential."""
    error = float(xp.sum(xp.abs(sums - _target(xp, potential, weights, offset, damping))))
    ratio = xp.log2(xp.astype(weights, xp.float64) / sums)
    old = xp.astype(potential, xp.float64)
    new = old + relaxation * (offset + damping * (old - offset + ratio) - old)
    return error, xp.astype(new, potential.dtype)


def sinkhorn_rows(
    cost: CostData,
    F: Array,
    G: Array,
    a: Array,
    offset: Array,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[float, Array]:
    """Update F in place; return the row error before and the column sums after."""
    xp = array_namespace(F)
    n, m = cost.shape
    error = 0.0
    column_sums = xp.zeros(m, dtype=xp.float64)
    for lo, hi in _row_blocks(n, m):
        z = _exponents(cost, F, G, lo, hi)
        sums = xp.exp(_logsumexp2(xp, z, 1) * math.log(2))
        tiny, huge = sums < 1e-290, sums > 1e290
        lost = tiny | huge
        old = F[lo:hi]
        if bool(xp.any(lost)):
            top = xp.max(z, axis=1)
            old = xp.where(lost, old - top, old)
            sums = xp.where(lost, xp.sum(_exp2(xp, z - top[:, None]), axis=1), sums)
        block_error, new = _update(xp, old, sums, a[lo:hi], offset[lo:hi], damping, relaxation)
        error += block_error
        column_sums += xp.sum(_exp2(xp, z + (new - F[lo:hi])[:, None]), axis=0)
        F[lo:hi] = new
    return error, column_sums


def sinkhorn_columns(
    column_sums: Array, b: Array, G: Array, offset: Array, damping: float = 1.0, relaxation: float = 1.0
) -> float:
    """Update G in place from the column sums of the plan; return their error."""
    xp = array_namespace(G)
    sums = xp.where(column_sums > 1e-290, column_sums, xp.full_like(column_sums, 1e-290))
    error, new = _update(xp, G, sums, b, offset, damping, relaxation)
    G[...] = new
    return error


def _scale(xp: Any, scaling: Array, products: Array, weights: Array, relaxation: float) -> float:
    sums = xp.astype(scaling, xp.float64) * products
    weights = xp.astype(weights, xp.float64)
    error = float(xp.sum(xp.abs(sums - weights)))
    scaling[...] = xp.astype(scaling * (weights / sums) ** relaxation, scaling.dtype)
    return error


def absorbed_rows(K: Array, p: Array, q: Array, a: Array, relaxation: float = 1.0) -> tuple[float, Array]:
    """Update the scaling p in place; return the row error before and ``K' p``."""
    xp = array_namespace(K)
    error = _scale(xp, p, K @ q, a, relaxation)
    return error, xp.astype(p @ K, xp.float64)


def absorbed_columns(column_sums: Array, q: Array, b: Array, relaxation: float = 1.0) -> float:
    """Update the scaling q in place; return the column error before."""
    return _scale(array_namespace(q), q, column_sums, b, relaxation)


def row_logsumexp(cost: CostData, G: Array) -> Array:
    """``out[l, i] = log2 sum_j 2**(G[l, j] - scale c_ij)``."""
    xp = array_namespace(G)
    n, m = cost.shape
    blocks = []
    for lo, hi in _row_blocks(n, m):
        c = _cost_block(cost, lo, hi)
        blocks.append(xp.stack([_logsumexp2(xp, G[i, None, :] - c, 1) for i in range(G.shape[0])]))
    return xp.astype(xp.concat(blocks, axis=1), G.dtype)


def column_logsumexp(cost: CostData, F: Array) -> Array:
    """``log2 sum_i 2**(F_i - scale c_ij)``."""
    xp = array_namespace(F)
    n, m = cost.shape
    parts = [_logsumexp2(xp, F[lo:hi, None] - _cost_block(cost, lo, hi), 0) for lo, hi in _row_blocks(n, m)]
    return xp.astype(_logsumexp2(xp, xp.stack(parts), 0), F.dtype)


def marginals(cost: CostData, F: Array, G: Array) -> tuple[Array, Array, Array]:
    """Row sums, column sums and ``sum_j P_ij e_ij`` of the plan, float64."""
    xp = array_namespace(F)
    n, m = cost.shape
    rows, entropies = [], []
    column_sums = xp.zeros(m, dtype=xp.float64)
    for lo, hi in _row_blocks(n, m):
        z = _exponents(cost, F, G, lo, hi)
        P = _exp2(xp, z)
        rows.append(xp.sum(P, axis=1))
        column_sums += xp.sum(P, axis=0)
        entropies.append(xp.sum(xp.where(P > 0, P * z, xp.zeros_like(P)), axis=1))
    return xp.concat(rows), column_sums, xp.concat(entropies)


def products(
    cost: CostData, F: Array, G: Array, V: Array | None = None, U: Array | None = None
) -> tuple[Array | None, Array | None]:
    """``(P @ V, P.T @ U)`` for V (m, p), U (n, q); None where no factor is given."""
    xp = array_namespace(F)
    n, m = cost.shape
    PV = []
    PTU = 0
    for lo, hi in _row_blocks(n, m):
        P = _exp2(xp, _exponents(cost, F, G, lo, hi))
        if V is not None:
            PV.append(P @ xp.astype(V, xp.float64))
        if U is not None:
            PTU = PTU + P.T @ xp.astype(U[lo:hi, ...], xp.float64)
    return None if V is None else xp.concat(PV), None if U is None else PTU


def plan(cost: CostData, F: Array, G: Array, floor: float | None = None) -> Array:
    """Dense plan; entries with an exponent below `floor` (default: subnormal) are exactly 0."""
    xp = array_namespace(F)
    z = _exponents(cost, F, G, 0, cost.shape[0])
    floor = math.log2(xp.finfo(F.dtype).smallest_normal) if floor is None else floor
    P = _exp2(xp, z)
    return xp.astype(xp.where(z >= floor, P, xp.zeros_like(P)), F.dtype)


def pairwise_cost(metric: int, x: Array, y: Array, power: float = 1.0) -> Array:
    """Dense cost between the points x (n, d) and y (d, m)."""
    xp = array_namespace(x)
    out = xp.zeros((x.shape[0], y.shape[1]), dtype=x.dtype)
    for p in range(x.shape[1]):
        difference = xp.abs(x[:, p, None] - y[None, p, :])
        out += difference if metric == CITYBLOCK else difference**2
    return out if metric == CITYBLOCK else out ** (0.5 * power)


def mass_histogram(cost: CostData, F: Array, G: Array) -> Array:
    """Mass of the plan's entries by exponent, in bins of ``1 / HISTOGRAM_BINS_PER_BIT`` bit; the last is >= 0."""
    xp = array_namespace(F)
    n, m = cost.shape
    last = HISTOGRAM_BITS * HISTOGRAM_BINS_PER_BIT
    mass = xp.zeros(last + 1, dtype=xp.float64)
    for lo, hi in _row_blocks(n, m):
        z = xp.astype(xp.reshape(_exponents(cost, F, G, lo, hi), (-1,)), xp.float64)
        z = z[xp.argsort(z)]
        cumulative = xp.concat([xp.zeros(1, dtype=xp.float64), xp.cumulative_sum(_exp2(xp, z))])
        bins = last + xp.floor(xp.clip(z, -1e6, 0.0) * HISTOGRAM_BINS_PER_BIT)
        edges = xp.searchsorted(xp.clip(bins, 0, last), xp.arange(last + 2, dtype=xp.float64))
        mass += cumulative[edges[1:]] - cumulative[edges[:-1]]
    return mass


def csr_plan(
    cost: CostData, F: Array, G: Array, row_thresholds: Array, max_per_row: int | None = None
) -> tuple[Array, Array, Array]:
    """CSR arrays ``(data, indices, indptr)`` of the entries with ``e_ij >= row_thresholds_i``, column order."""
    xp = array_namespace(F)
    n, m = cost.shape
    data, indices, counts = [], [], []
    for lo, hi in _row_blocks(n, m):
        z = _exponents(cost, F, G, lo, hi)
        keep = z >= row_thresholds[lo:hi, None]
        if max_per_row is not None:
            keep &= xp.cumulative_sum(xp.astype(keep, xp.int64), axis=1) <= max_per_row
        counts.append(xp.sum(xp.astype(keep, xp.int64), axis=1))
        flat = xp.reshape(keep, (-1,))
        data.append(xp.astype(_exp2(xp, xp.reshape(z, (-1,))[flat]), F.dtype))
        indices.append(xp.nonzero(flat)[0] % m)
    indptr = xp.concat([xp.zeros(1, dtype=xp.int64), xp.cumulative_sum(xp.concat(counts))])
    return xp.concat(data), xp.concat(indices), indptr


def row_kth_exponent(cost: CostData, F: Array, G: Array, k: int) -> Array:
    """k-th largest exponent of every row."""
    xp = array_namespace(F)
    n, m = cost.shape
    return xp.concat(
        [xp.sort(_exponents(cost, F, G, lo, hi), axis=1)[:, m - k] for lo, hi in _row_blocks(n, m)]
    )
