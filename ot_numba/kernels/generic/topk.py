"""Reference for rows of quadratic and cardinality-constrained plans, in plain array-API code; see `contract`."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, device

from ..contract import CostData
from . import _cost_block, _float64_zeros, _row_blocks

Array = Any
MAX_STEPS = 100  #: of Newton's method with bisection on piecewise linear functions, which takes a handful
NEAR = 1e-14  #: a relative step of this size is the last: it ends on the piece it began on, where it is exact


def _scores(cost: CostData, G: Array, lo: int, hi: int) -> Array:
    """``s_ij = G_j - c_ij`` for rows lo:hi, in float64 after the subtraction."""
    xp = array_namespace(G)
    return xp.astype(G[None, :] - _cost_block(cost, lo, hi), xp.float64)


def _largest(xp: Any, s: Array, k: int) -> Array:
    """Whether an entry is among the k largest of its row; of equal ones the first are."""
    if k >= s.shape[1]:
        return xp.ones_like(s, dtype=xp.bool)
    return xp.argsort(xp.argsort(-s, axis=1, stable=True), axis=1) < k


def _without(xp: Any, s: Array, kept: Array) -> Array:
    return xp.where(kept, s, xp.full_like(s, -math.inf))


def _threshold(xp: Any, s: Array, z: Array) -> Array:
    """The tau (rows, 1) with ``sum_j max(s_j - tau, 0) = z``; the largest entry where z is 0."""
    u = -xp.sort(-s, axis=1)
    top = u[:, :1]
    shift = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    u = u - shift
    sums = xp.cumulative_sum(u, axis=1) - z[:, None]
    count = xp.arange(1, s.shape[1] + 1, dtype=xp.float64, device=device(s))[None, :]
    last = xp.max(xp.where(count * u > sums, count, xp.ones_like(count)), axis=1, keepdims=True)
    chosen = xp.sum(xp.where(count == last, sums, xp.zeros_like(sums)), axis=1, keepdims=True)
    return xp.where(xp.isfinite(top), shift + chosen / last, top)


def _sum(xp: Any, x: Array) -> Array:
    return xp.sum(x, axis=1, keepdims=True)


def _count(xp: Any, mask: Array) -> Array:
    return _sum(xp, xp.astype(mask, xp.float64))


def _level(xp: Any, x: Array, k: int, reg: float, delta: float) -> Array:
    """Level L > 0 at which the relaxed model pools entries; 0 where at most k entries are positive; (rows, 1)."""
    ratio = reg / delta
    low, high = xp.zeros_like(x[:, :1]), xp.max(x, axis=1, keepdims=True)
    done = _count(xp, x > 0) <= k
    level = xp.where(done, low, high / 2)
    for _ in range(MAX_STEPS):
        excess = (x - level) * ratio
        full = excess >= level
        pooled = (excess > 0) & ~full
        value = (_count(xp, full) - k) * level + _sum(xp, xp.where(pooled, excess, xp.zeros_like(x)))
        low, high = xp.where(value > 0, level, low), xp.where(value > 0, high, level)
        weight = k - _count(xp, full) + ratio * _count(xp, pooled)
        safe = xp.where(weight > 0, weight, xp.ones_like(weight))
        new = ratio * _sum(xp, xp.where(pooled, x, xp.zeros_like(x))) / safe
        last = ~done & (weight > 0) & (xp.abs(new - level) <= NEAR * level)
        level = xp.where(last, new, level)
        done = done | last | (value == 0) | (high - low <= 0)
        if bool(xp.all(done)):
            break
        inside = (weight > 0) & (new > low) & (new < high)
        level = xp.where(done, level, xp.where(inside, new, (low + high) / 2))
    return level


def _oracle(xp: Any, s: Array, F: Array, reg: float, k: int, delta: float) -> tuple[Array, Array, Array]:
    """Plan of rows at ``x = s + F``, its conjugates (rows, 1), and how fast its row sums grow with F (rows, 1)."""
    x = xp.where(xp.isinf(F), xp.full_like(s, -math.inf), s + F)
    if delta == 0 or k >= s.shape[1]:
        t = xp.where(_largest(xp, s, k) & (x > 0), x, xp.zeros_like(x)) / (reg + delta)
        return t, (reg + delta) / 2 * _sum(xp, t * t), _count(xp, t > 0) / (reg + delta)
    x = xp.where(x > 0, x, xp.zeros_like(x))
    level = _level(xp, x, k, reg, delta)
    full = ((x - level) * (reg / delta) >= level) & (x > 0)
    pooled = (x > level) & ~full
    t = xp.where(full, x / (reg + delta), xp.where(pooled, (x - level) / delta, xp.zeros_like(x)))
    rest = xp.where(level > 0, k - _count(xp, full), xp.zeros_like(level))
    weights = xp.where(full, xp.full_like(t, reg + delta), xp.full_like(t, delta))
    conjugate = _sum(xp, weights * t * t) / 2 + rest * level * level / (2 * reg)
    size = _count(xp, pooled) * reg / delta
    share = xp.where(size > 0, size / xp.where(rest + size > 0, rest + size, xp.ones_like(size)), xp.zeros_like(size))
    return t, conjugate, _count(xp, full) / (reg + delta) + rest * share / reg


def _solve_rows(
    xp: Any, s: Array, a: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """F (rows, 1) for which the rows of the plan sum to a, the plan, and its conjugates (rows, 1).

    All is done with scores less the largest, so that sums are exact however small they are next to the scores.
    """
    top = xp.max(s, axis=1, keepdims=True)
    a = a[:, None]
    active = (a > 0) & xp.isfinite(top)
    if reg == 0:
        t = xp.where(_largest(xp, s, 1) & active, a, xp.zeros_like(s))
        return -top, t, xp.zeros_like(top)
    s = s - xp.where(active, top, xp.zeros_like(top))
    relaxed = delta > 0 and k < s.shape[1]
    F = -_threshold(xp, s if relaxed else _without(xp, s, _largest(xp, s, k)), (reg + delta) * a[:, 0])
    if relaxed:
        F = _relaxed_potential(xp, s, F, a, reg, k, delta)
    t, conjugates, _ = _oracle(xp, s, _without(xp, F, active), reg, k, delta)
    return xp.where(active, F - top, -top), t, conjugates


def _relaxed_potential(
    xp: Any, s: Array, F: Array, a: Array, reg: float, k: int, delta: float
) -> Array:
    """F (rows, 1) of relaxed rows; the one given is that without a limit on the entries, a bound."""
    low, high = F, xp.full_like(F, math.inf)
    done = ~(a > 0)
    for _ in range(MAX_STEPS):
        t, _, slope = _oracle(xp, s, F, reg, k, delta)
        missing = a - _sum(xp, t)
        low, high = xp.where(missing > 0, F, low), xp.where(missing > 0, high, F)
        new = F + missing / xp.where(slope > 0, slope, xp.ones_like(slope))
        last = ~done & (xp.abs(new - F) <= NEAR * xp.abs(F))
        F = xp.where(last, new, F)
        done = done | last | (missing == 0) | (high - low <= 0)
        if bool(xp.all(done)):
            break
        middle = xp.where(xp.isfinite(high), (low + high) / 2, new)
        F = xp.where(done, F, xp.where((new > low) & (new < high), new, middle))
    return F


def semidual_rows(
    cost: CostData, G: Array, a: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """``(F, conjugates, column_sums)`` of the plan whose rows sum to a."""
    xp = array_namespace(G)
    n, m = cost.shape
    potentials, conjugates, column_sums = [], [], _float64_zeros(xp, m, G)
    for lo, hi in _row_blocks(n, m):
        s, masses = _scores(cost, G, lo, hi), xp.astype(a[lo:hi], xp.float64)
        F, t, values = _solve_rows(xp, s, masses, reg, k, delta)
        potentials.append(F[:, 0])
        conjugates.append(values[:, 0])
        column_sums += xp.sum(t, axis=0)
    return xp.concat(potentials), xp.concat(conjugates), column_sums


def dual_rows(
    cost: CostData, F: Array, G: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """``(row_sums, conjugates, column_sums)`` of the plan of F and G."""
    xp = array_namespace(G)
    n, m = cost.shape
    row_sums, conjugates, column_sums = [], [], _float64_zeros(xp, m, G)
    for lo, hi in _row_blocks(n, m):
        t, values, _ = _oracle(xp, _scores(cost, G, lo, hi), F[lo:hi, None], reg, k, delta)
        row_sums.append(xp.sum(t, axis=1))
        conjugates.append(values[:, 0])
        column_sums += xp.sum(t, axis=0)
    return xp.concat(row_sums), xp.concat(conjugates), column_sums


def semidual_plan_rows(
    cost: CostData, G: Array, a: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array, Array]:
    """F, and CSR arrays ``(data, indices, indptr)`` of the plan whose rows sum to a, in column order."""
    xp = array_namespace(G)
    potentials, plans = [], []
    for lo, hi in _row_blocks(*cost.shape):
        s, masses = _scores(cost, G, lo, hi), xp.astype(a[lo:hi], xp.float64)
        F, t, _ = _solve_rows(xp, s, masses, reg, k, delta)
        potentials.append(F[:, 0])
        plans.append(_positive(xp, t, G.dtype))
    return xp.concat(potentials), *_csr(xp, plans)


def plan_rows(
    cost: CostData, F: Array, G: Array, reg: float, k: int, delta: float
) -> tuple[Array, Array, Array]:
    """CSR arrays ``(data, indices, indptr)`` of the plan of F and G, in column order."""
    xp = array_namespace(G)
    plans = []
    for lo, hi in _row_blocks(*cost.shape):
        t, _, _ = _oracle(xp, _scores(cost, G, lo, hi), F[lo:hi, None], reg, k, delta)
        plans.append(_positive(xp, t, G.dtype))
    return _csr(xp, plans)


def _positive(xp: Any, t: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """Positive entries of a block of rows, their columns, and how many there are in each row."""
    flat = xp.reshape(t, (-1,))
    counts = xp.sum(xp.astype(t > 0, xp.int64), axis=1)
    return xp.astype(flat[flat > 0], dtype), xp.nonzero(flat > 0)[0] % t.shape[1], counts


def _csr(xp: Any, plans: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    data, indices, counts = (xp.concat(parts) for parts in zip(*plans, strict=True))
    return data, indices, xp.cumulative_sum(counts, include_initial=True)


def project_simplex(V: Array, z: Array, k: int) -> Array:
    """Projections of the rows of V on ``{t >= 0, sum t = z_i, at most k entries > 0}``."""
    xp = array_namespace(V)
    parts = []
    for lo, hi in _row_blocks(*V.shape):
        s = xp.astype(V[lo:hi, :], xp.float64)
        s = s - xp.max(s, axis=1, keepdims=True)
        kept = _largest(xp, s, k)
        tau = _threshold(xp, _without(xp, s, kept), z[lo:hi])
        parts.append(xp.astype(xp.where(kept & (s > tau), s - tau, xp.zeros_like(s)), V.dtype))
    return xp.concat(parts)


def ksupport_norm_sq(T: Array, k: int) -> Array:
    """Squared k-support norms of the rows of T, float64."""
    xp = array_namespace(T)
    parts = []
    for lo, hi in _row_blocks(*T.shape):
        u = -xp.sort(-xp.abs(xp.astype(T[lo:hi, :], xp.float64)), axis=1)
        squares = xp.zeros_like(u[:, 0])
        done = xp.zeros_like(squares, dtype=xp.bool)
        for r in range(k):
            mean = xp.sum(u[:, k - r - 1 :], axis=1) / (r + 1)
            here = ~done if r == k - 1 else ~done & (u[:, k - r - 2] > mean)
            value = xp.sum(u[:, : k - r - 1] ** 2, axis=1) + (r + 1) * mean**2
            squares, done = xp.where(here, value, squares), done | here
        parts.append(squares)
    return xp.concat(parts)
