"""Reference backend: the kernel contract in plain array-API code, the oracle of the tests and the fallback.

Works on blocks of rows, so that no temporary exceeds `BLOCK_ENTRIES` entries. Where a kernel says "in place"
it assigns into the array it was given. Sums are taken in float64; exponents beyond the dtype are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from array_api_compat import array_namespace, device

from ..contract import CITYBLOCK, DENSE, HISTOGRAM_BINS_PER_BIT, HISTOGRAM_BITS, CostData

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
    """``2**z`` in float64; z counts as 960 at most, in float32 127, so that no sum overflows."""
    highest = xp.full_like(z, 960 if z.dtype == xp.float64 else 127)
    return xp.exp(math.log(2) * xp.astype(xp.where(z < highest, z, highest), xp.float64))


def _float64_zeros(xp: Any, shape: int | tuple[int, ...], like: Array) -> Array:
    return xp.zeros(shape, dtype=xp.float64, device=device(like))


def _largest(xp: Any, z: Array, axis: int) -> Array:
    """Largest exponents, 0 where all are -inf; the axis is kept."""
    top = xp.max(z, axis=axis, keepdims=True)
    return xp.where(xp.isfinite(top), top, xp.zeros_like(top))


def _logsumexp2(xp: Any, z: Array, axis: int) -> Array:
    top = _largest(xp, z, axis)
    sums = xp.sum(_exp2(xp, z - top), axis=axis, keepdims=True)
    empty = sums == 0
    logs = xp.log2(xp.where(empty, xp.ones_like(sums), sums))
    return xp.squeeze(xp.where(empty, xp.full_like(sums, -math.inf), top + logs), axis=axis)


def _target(xp: Any, potential: Array, weights: Array, offset: Array, damping: float) -> Array:
    """Marginal that the optimality conditions ask for: weights * exp(-potential / rho)."""
    weights = xp.astype(weights, xp.float64)
    if damping == 1:
        return weights
    dual = xp.astype(offset, xp.float64) - xp.astype(potential, xp.float64)
    return weights * _exp2(xp, dual * (1 / damping - 1))


def _tiny(xp: Any, dtype: Any) -> float:
    """Sums below it, or above its inverse, are at the end of the range of 2**x."""
    return 1e-289 if dtype == xp.float64 else 1e-29


def _error(xp: Any, sums: Array, target: Array) -> float:
    return float(xp.sum(xp.abs(sums - target)))


def _update(
    xp: Any, old: Array, sums: Array, weights: Array, offset: Array, damping: float, relaxation: Array | float
) -> Array:
    """Relaxed and damped potential, float64, that takes no sum out of the range of 2**x."""
    reach = 900.0 if offset.dtype == xp.float64 else 90.0
    offset = xp.astype(offset, xp.float64)
    logs = xp.log2(sums)
    log_ratio = xp.log2(xp.astype(weights, xp.float64)) - logs
    new = old + relaxation * (offset + damping * (old - offset + log_ratio) - old)
    bound = xp.clip(reach - logs, None, reach + 30.0)
    return xp.where((new - old <= 16) | (new - old <= bound), new, old + bound)


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
    tiny = _tiny(xp, F.dtype)
    error = 0.0
    column_sums = _float64_zeros(xp, m, F)
    for lo, hi in _row_blocks(n, m):
        z = xp.astype(_exponents(cost, F, G, lo, hi), xp.float64)
        old = xp.astype(F[lo:hi], xp.float64)
        sums = xp.sum(_exp2(xp, z), axis=1)
        error += _error(xp, sums, _target(xp, F[lo:hi], a[lo:hi], offset[lo:hi], damping))
        lost = (sums < tiny) | (sums > 0.75 / tiny)  # powers saturate at 2**960 < 1 / tiny
        relax = xp.where(lost, xp.ones_like(sums), xp.full_like(sums, relaxation))
        if bool(xp.any(lost)):  # bring the largest exponent to 0
            top = xp.where(lost, xp.squeeze(_largest(xp, z, 1), axis=1), xp.zeros_like(sums))
            z, old = z - top[:, None], old - top
            sums = xp.sum(_exp2(xp, z), axis=1)
            relax = xp.where(sums > 0, relax, xp.zeros_like(relax))  # no path: the potential stays
            sums = xp.where(sums > 0, sums, xp.ones_like(sums))
        new = xp.astype(_update(xp, old, sums, a[lo:hi], offset[lo:hi], damping, relax), F.dtype)
        step = xp.where(xp.isfinite(old), xp.astype(new, xp.float64) - old, xp.zeros_like(old))
        column_sums += xp.sum(_exp2(xp, z + step[:, None]), axis=0)
        F[lo:hi] = new
    return error, column_sums


def sinkhorn_columns(
    column_sums: Array, b: Array, G: Array, offset: Array, damping: float = 1.0, relaxation: float = 1.0
) -> float:
    """Update G in place from the column sums of the plan; return their error."""
    xp = array_namespace(G)
    tiny = _tiny(xp, G.dtype)
    error = _error(xp, column_sums, _target(xp, G, b, offset, damping))
    sums = xp.clip(column_sums, tiny, 1 / tiny)
    relax = xp.where(sums == column_sums, xp.full_like(sums, relaxation), xp.ones_like(sums))
    G[...] = xp.astype(_update(xp, xp.astype(G, xp.float64), sums, b, offset, damping, relax), G.dtype)
    return error


def _scale(
    xp: Any,
    scaling: Array,
    products: Array,
    weights: Array,
    base: Array | None,
    damping: float,
    relaxation: float,
) -> float:
    """Update a scaling in place; returns the error of its marginal before."""
    old, weights = xp.astype(scaling, xp.float64), xp.astype(weights, xp.float64)
    target, new = weights, weights / products
    if damping != 1:
        base = xp.astype(base, xp.float64)
        target = weights * (base / old ** (1 - damping)) ** (1 / damping)
        new = base * new**damping
    scaling[...] = xp.astype(old ** (1 - relaxation) * new**relaxation, scaling.dtype)
    return _error(xp, old * products, target)


def absorbed_rows(
    K: Array,
    p: Array,
    q: Array,
    a: Array,
    base: Array | None = None,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[float, Array]:
    """Update the scaling p in place; return the row error before and ``K' p``."""
    xp = array_namespace(K)
    error = _scale(xp, p, xp.astype(K @ q, xp.float64), a, base, damping, relaxation)
    return error, xp.astype(p @ K, xp.float64)


def absorbed_columns(
    column_sums: Array,
    q: Array,
    b: Array,
    base: Array | None = None,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> float:
    """Update the scaling q in place; return the column error before."""
    return _scale(array_namespace(q), q, column_sums, b, base, damping, relaxation)


def absorbed_pair(K: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """``(t, K' (w t))`` for ``t = K v``."""
    xp = array_namespace(K)
    t = K @ v
    return t, xp.astype((w * t) @ K, xp.float64)


def plan_pair(cost: CostData, F: Array, G: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """``(t, P' (w t))`` for ``t = P v``, float64."""
    xp = array_namespace(F)
    n, m = cost.shape
    ts, total = [], _float64_zeros(xp, m, F)
    for lo, hi in _row_blocks(n, m):
        P = _exp2(xp, _exponents(cost, F, G, lo, hi))
        t = P @ xp.astype(v, xp.float64)
        ts.append(t)
        total += (xp.astype(w[lo:hi], xp.float64) * t) @ P
    return xp.concat(ts), total


def row_logsumexp(cost: CostData, G: Array) -> Array:
    """``out[l, i] = log2 sum_j 2**(G[l, j] - scale c_ij)``."""
    xp = array_namespace(G)
    n, m = cost.shape
    blocks = []
    for lo, hi in _row_blocks(n, m):
        c = _cost_block(cost, lo, hi)
        blocks.append(xp.stack([_logsumexp2(xp, G[i, :][None, :] - c, 1) for i in range(G.shape[0])]))
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
    column_sums = _float64_zeros(xp, m, F)
    for lo, hi in _row_blocks(n, m):
        z = xp.astype(_exponents(cost, F, G, lo, hi), xp.float64)
        P = _exp2(xp, z)
        rows.append(xp.sum(P, axis=1))
        column_sums += xp.sum(P, axis=0)
        entropies.append(xp.sum(P * xp.where(P > 0, z, xp.zeros_like(z)), axis=1))
    return xp.concat(rows), column_sums, xp.concat(entropies)


def products(
    cost: CostData, F: Array, G: Array, V: Array | None = None, U: Array | None = None
) -> tuple[Array | None, Array | None]:
    """``(P @ V, P.T @ U)`` for V (m, p), U (n, q); None where no factor is given."""
    xp = array_namespace(F)
    n, m = cost.shape
    PV = []
    PTU = None if U is None else _float64_zeros(xp, (m, U.shape[1]), F)
    for lo, hi in _row_blocks(n, m):
        P = _exp2(xp, _exponents(cost, F, G, lo, hi))
        if V is not None:
            PV.append(P @ xp.astype(V, xp.float64))
        if U is not None:
            PTU += P.T @ xp.astype(U[lo:hi, ...], xp.float64)
    return None if V is None else xp.concat(PV), PTU


def _lowest(xp: Any, dtype: Any) -> float:
    """Exponent of the smallest normal number."""
    return math.log2(float(xp.finfo(dtype).smallest_normal))


def plan(
    cost: CostData,
    F: Array,
    G: Array,
    floor: float | None = None,
    dtype: str | None = None,
    out: Array | None = None,
) -> Array:
    """Dense plan; entries with an exponent not above `floor` (default: the least normal one) are exactly 0."""
    xp = array_namespace(F)
    if out is None:
        out = xp.empty(cost.shape, dtype=F.dtype if dtype is None else getattr(xp, dtype), device=device(F))
    floor = _lowest(xp, out.dtype) if floor is None else floor
    for lo, hi in _row_blocks(*cost.shape):
        z = _exponents(cost, F, G, lo, hi)
        P = _exp2(xp, z)
        out[lo:hi, :] = xp.astype(xp.where(z > floor, P, xp.zeros_like(P)), out.dtype)
    return out


def pairwise_cost(metric: int, x: Array, y: Array, power: float = 1.0) -> Array:
    """Dense cost between the points x (n, d) and y (d, m)."""
    xp = array_namespace(x)
    n, m = x.shape[0], y.shape[1]
    out = xp.zeros((n, m), dtype=x.dtype, device=device(x))
    for lo, hi in _row_blocks(n, m):
        for p in range(x.shape[1]):
            difference = xp.abs(x[lo:hi, p][:, None] - y[p, :][None, :])
            out[lo:hi, :] += difference if metric == CITYBLOCK else difference**2
        if metric != CITYBLOCK and power != 2:
            out[lo:hi, :] = out[lo:hi, :] ** (0.5 * power)
    return out


def mass_histogram(cost: CostData, F: Array, G: Array) -> Array:
    """Mass of the plan by exponent, in bins of ``1 / HISTOGRAM_BINS_PER_BIT`` bit; the last is >= 0."""
    xp = array_namespace(F)
    n, m = cost.shape
    last = HISTOGRAM_BITS * HISTOGRAM_BINS_PER_BIT
    lower_edges = xp.arange(1 - last, 1, dtype=xp.float64, device=device(F)) / HISTOGRAM_BINS_PER_BIT
    mass = _float64_zeros(xp, last + 1, F)
    for lo, hi in _row_blocks(n, m):
        z = xp.sort(xp.astype(xp.reshape(_exponents(cost, F, G, lo, hi), (-1,)), xp.float64))
        sums = xp.cumulative_sum(_exp2(xp, z), include_initial=True)
        below = xp.take(sums, xp.searchsorted(z, lower_edges))
        mass += xp.concat([below, sums[-1:]]) - xp.concat([sums[:1], below])
    return mass


def csr_plan(
    cost: CostData, F: Array, G: Array, row_thresholds: Array, max_per_row: int | None = None
) -> tuple[Array, Array, Array]:
    """CSR arrays ``(data, indices, indptr)`` of the normal entries with ``e_ij >= row_thresholds_i``."""
    xp = array_namespace(F)
    n, m = cost.shape
    lowest = _lowest(xp, F.dtype)
    data, indices, counts = [], [], []
    for lo, hi in _row_blocks(n, m):
        z = _exponents(cost, F, G, lo, hi)
        keep = (z >= row_thresholds[lo:hi, None]) & (z >= lowest)
        if max_per_row is not None:
            keep = keep & (xp.cumulative_sum(xp.astype(keep, xp.int64), axis=1) <= max_per_row)
        counts.append(xp.sum(xp.astype(keep, xp.int64), axis=1))
        flat = xp.reshape(keep, (-1,))
        data.append(xp.astype(_exp2(xp, xp.reshape(z, (-1,))[flat]), F.dtype))
        indices.append(xp.nonzero(flat)[0] % m)
    indptr = xp.cumulative_sum(xp.concat(counts), include_initial=True)
    return xp.concat(data), xp.concat(indices), indptr


def row_kth_exponent(cost: CostData, F: Array, G: Array, k: int) -> Array:
    """k-th largest exponent of every row."""
    xp = array_namespace(F)
    n, m = cost.shape
    return xp.concat([xp.sort(_exponents(cost, F, G, lo, hi), axis=1)[:, m - k] for lo, hi in _row_blocks(n, m)])
