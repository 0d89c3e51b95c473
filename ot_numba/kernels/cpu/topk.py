"""Compiled loops over rows of quadratic and cardinality-constrained plans; see `contract`.

A row is evaluated once, into a buffer that stays in a cache, together with the maxima of groups of entries. Of those
all but a few lie below a bound of what can have mass, and only the entries of the others are looked at one by one.
"""

from __future__ import annotations

import numpy as np

from ..contract import CostData
from . import _arguments, _blocks, _sum_blocks
from .exponents import TILE, fill_exponents, maximum
from .jit import helper, kernel
from .threads import run_blocks

GROUP = 16  #: entries whose maximum is looked at first
MAX_STEPS = 100  #: of Newton's method with bisection on piecewise linear functions, which takes a handful
NEAR = 1e-14  #: a relative step of this size is the last: it ends on the piece it began on, where it is exact


@helper(fastmath={"contract", "reassoc", "nsz", "nnan"})
def _group_maxima(z, out):
    """Largest of every GROUP entries; without NaN, which lets the loop vectorise."""
    whole = z.shape[0] // GROUP
    for t in range(whole):
        part = z[t * GROUP : (t + 1) * GROUP]
        top = part[0]
        for j in range(GROUP):
            top = part[j] if part[j] > top else top
        out[t] = top
    if whole < out.shape[0]:
        out[whole] = maximum(z[whole * GROUP :])


@helper
def _fill_scores(x, y, scale, i, zero, G, scores, tops):
    """``s_j = G_j - c_ij`` of a row into ``scores[0]``, and the maxima of their groups."""
    m = G.shape[0]
    j0 = 0
    while j0 < m:
        j1 = min(m, j0 + TILE)
        fill_exponents(x[i : i + 1], y, scale, 0, 1, j0, j1, zero, G, scores)
        _group_maxima(scores[0, j0:j1], tops[j0 // GROUP : (j1 + GROUP - 1) // GROUP])
        j0 = j1


@helper
def _sift(heap, size, v):
    """Replace the root of a heap of so many numbers, its smallest, by v."""
    i = 0
    child = 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= v:
            break
        heap[i] = heap[child]
        i = child
        child = 2 * i + 1
    heap[i] = v


@helper
def _push(z, limit, k, count, heap):
    """Put entries from `limit` on onto a heap of the k largest so far, whose root is the limit once it is full."""
    for j in range(z.shape[0]):
        v = np.float64(z[j])
        if v >= limit:
            if count < k:
                i = count
                count += 1
                while i > 0 and heap[(i - 1) // 2] > v:
                    heap[i] = heap[(i - 1) // 2]
                    i = (i - 1) // 2
                heap[i] = v
                if count == k:
                    limit = heap[0]
            elif v > limit:
                _sift(heap, k, v)
                limit = heap[0]
    return limit, count


@helper
def _select(s, tops, limit, k, heap, index, value):
    """Entries from `limit` on, of more than k the k largest, of equal ones the first; returns their number."""
    m = s.shape[0]
    if k < tops.shape[0]:
        limit, _ = _push(tops, limit, k, 0, heap)  # k groups reach it, so the k-th largest entry does
    count = 0
    for t in range(tops.shape[0]):
        if tops[t] >= limit:
            for j in range(t * GROUP, min(m, (t + 1) * GROUP)):
                v = np.float64(s[j])
                index[count] = j
                value[count] = v
                count += 1 if v >= limit else 0
    if count <= k:
        return count
    limit, _ = _push(value[:count], limit, k, 0, heap)
    ties = k
    for c in range(k):
        ties -= 1 if heap[c] > limit else 0
    kept = 0
    for c in range(count):
        v = value[c]
        index[kept] = index[c]
        value[kept] = v
        kept += 1 if v > limit or (v == limit and ties > 0) else 0
        ties -= 1 if v == limit else 0
    return kept


@helper
def _threshold(index, value, count, z):
    """``tau`` with ``sum max(value - tau, 0) = z``, and the number of entries above it, moved to the front."""
    top = value[0]
    for c in range(count):
        top = value[c] if value[c] > top else top
    total = 0.0
    for c in range(count):
        total += value[c] - top
    tau = (total - z) / count
    while True:
        kept = 0
        total = 0.0
        for c in range(count):
            v = value[c]
            above = v - top > tau
            index[kept] = index[c]
            value[kept] = v
            kept += 1 if above else 0
            total += v - top if above else 0.0
        if kept == count or kept == 0:
            return top + tau, count if kept > 0 else 1
        count = kept
        tau = (total - z) / count


@helper
def _level(value, count, f, k, reg, delta):
    """Where the relaxed model pools ``x = value + f``: ``sum min(max(x - level, 0) reg / delta, level) = k level``.

    Returns it, how many entries lie so far above that they are not pooled, and how many are pooled.
    """
    ratio = reg / delta
    low, high = 0.0, 0.0
    positive = 0
    for c in range(count):
        x = value[c] + f
        high = x if x > high else high
        positive += 1 if x > 0 else 0
    if positive <= k:
        return 0.0, positive, 0
    level = 0.5 * high
    full = pooled = 0
    for _ in range(MAX_STEPS):
        full = pooled = 0
        total = excesses = 0.0
        for c in range(count):
            x = value[c] + f
            excess = (x - level) * ratio
            if excess >= level:
                full += 1
            elif excess > 0:
                pooled += 1
                total += x
                excesses += excess
        missing = (full - k) * level + excesses
        if missing > 0:
            low = level
        else:
            high = level
        weight = k - full + ratio * pooled
        new = ratio * total / weight if weight > 0 else -1.0
        if abs(new - level) <= NEAR * level:
            level = new
            break
        if missing == 0 or high <= low:
            break
        level = new if low < new < high else 0.5 * (low + high)
    return level, full, pooled


@helper
def _relaxed_potential(value, count, f, a, k, reg, delta):
    """Potential at which the relaxed plan of a row has mass a; `f` is that without a limit on the entries, a bound."""
    low, high = f, np.inf
    for _ in range(MAX_STEPS):
        level, full, pooled = _level(value, count, f, k, reg, delta)
        missing = a
        for c in range(count):
            x = value[c] + f
            missing -= max(0.0, min((x - level) / delta, x / (reg + delta)))
        if missing > 0:
            low = f
        else:
            high = f
        slope = full / (reg + delta)
        if pooled > 0:
            rest = np.float64(k - full)
            size = pooled * reg / delta
            slope += rest * size / ((rest + size) * reg)
        new = f + missing / slope
        if abs(new - f) <= NEAR * abs(f):
            return new
        if missing == 0 or high <= low:
            break
        f = new if low < new < high or high == np.inf else 0.5 * (low + high)
    return f


@helper
def _masses(value, count, f, k, reg, delta):
    """Replace scores by entries of the plan; returns their sum and the conjugate."""
    level, full = 0.0, k
    if delta > 0 and count > k:
        level, full, _ = _level(value, count, f, k, reg, delta)
    total = conjugate = 0.0
    for c in range(count):
        x = max(value[c] + f, 0.0)
        t = x / (reg + delta)
        weight = reg + delta
        if level > 0 and (x - level) * (reg / delta) < level:
            t = max(x - level, 0.0) / delta
            weight = delta
        value[c] = t
        total += t
        conjugate += weight * t * t
    return total, 0.5 * conjugate + (0.5 * (k - full) * level * level / reg if level > 0 else 0.0)


@helper
def _solve_row(scores, tops, mass, reg, k, delta, heap, index, value):
    """Potential, conjugate and number of entries of the row of this mass; its entries are left in `index`, `value`.

    All is done with scores less the largest, so that the mass is exact however small it is next to the scores.
    """
    top = np.float64(maximum(tops))
    if not (mass > 0 and top > -np.inf):
        return -top, 0.0, 0
    z = (reg + delta) * mass
    count = _select(scores, tops, top - z, scores.shape[0] if delta > 0 else k, heap, index, value)
    if reg == 0:
        value[0] = mass
        return -top, 0.0, 1
    for c in range(count):
        value[c] -= top
    tau, count = _threshold(index, value, count, z)
    f = -tau
    if delta > 0 and count > k:
        f = _relaxed_potential(value, count, f, mass, k, reg, delta)
    _, conjugate = _masses(value, count, f, k, reg, delta)
    return f - top, conjugate, count


@helper(fastmath={"contract", "reassoc", "nsz"})
def _add_positive_parts(s, f, column):
    """Add ``max(f + s, 0)`` to the column; its sum, and that of its squares."""
    total = 0.0
    square = 0.0
    for j in range(s.shape[0]):
        v = f + np.float64(s[j])
        v = v if v > 0.0 else 0.0
        column[j] += v
        total += v
        square += v * v
    return total, square


@helper
def _add_row(x, y, scale, i, zero, f, G, scores, column):
    """The same for a row of ``s``, where no entry has to be chosen."""
    total = 0.0
    square = 0.0
    for j0 in range(0, G.shape[0], TILE):
        j1 = min(G.shape[0], j0 + TILE)
        fill_exponents(x[i : i + 1], y, scale, 0, 1, j0, j1, zero, G, scores)
        first, second = _add_positive_parts(scores[0, j0:j1], f, column[j0:j1])
        total += first
        square += second
    return total, square


@kernel
def _semidual_rows(
    x, y, scale, G, a, reg, k, delta, lo, hi, block_rows, F, conjugates, columns, scores, tops, heap, index, value
):
    n = a.shape[0]
    zero = np.zeros(1, G.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        for i in range(block * block_rows, min(n, (block + 1) * block_rows)):
            _fill_scores(x, y, scale, i, zero, G, scores, tops)
            F[i], conjugates[i], count = _solve_row(
                scores[0], tops, np.float64(a[i]), reg, k, delta, heap, index, value
            )
            for c in range(count):
                column[index[c]] += value[c]


@kernel
def _dual_rows(
    x, y, scale, F, G, reg, k, delta, lo, hi, block_rows, sums, conjugates, columns, scores, tops, heap, index, value
):
    n, m = F.shape[0], G.shape[0]
    zero = np.zeros(1, G.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        for i in range(block * block_rows, min(n, (block + 1) * block_rows)):
            sums[i] = conjugates[i] = 0.0
            if not F[i] > -np.inf:
                continue
            if k == m:
                sums[i], conjugates[i] = _add_row(x, y, scale, i, zero, F[i], G, scores, column)
            else:
                _fill_scores(x, y, scale, i, zero, G, scores, tops)
                count = _select(scores[0], tops, -F[i], m if delta > 0 else k, heap, index, value)
                sums[i], conjugates[i] = _masses(value, count, F[i], k, reg, delta)
                for c in range(count):
                    column[index[c]] += value[c]
    if k == m:
        weight = 1 / (reg + delta)
        for block in range(lo, hi):
            for j in range(m):
                columns[block, j] *= weight
            for i in range(block * block_rows, min(n, (block + 1) * block_rows)):
                sums[i] *= weight
                conjugates[i] *= 0.5 * weight


@kernel
def _plan_rows(
    x, y, scale, F, G, a, reg, k, delta, lo, hi, block_rows, indptr, indices, data, filling,
    scores, tops, heap, index, value,
):  # fmt: skip
    """Plan of F, or, with a, of the F that is found. Without `filling`, sizes of the rows i as ``indptr[i + 1]``."""
    n, m = F.shape[0], G.shape[0]
    zero = np.zeros(1, G.dtype)
    for i in range(lo * block_rows, min(n, hi * block_rows)):
        count = 0
        if a is not None or F[i] > -np.inf:
            _fill_scores(x, y, scale, i, zero, G, scores, tops)
            if a is None:
                count = _select(scores[0], tops, -F[i], m if delta > 0 else k, heap, index, value)
                _masses(value, count, F[i], k, reg, delta)
            else:
                F[i], _, count = _solve_row(scores[0], tops, np.float64(a[i]), reg, k, delta, heap, index, value)
        position = indptr[i] if filling else 0
        for c in range(count):
            if value[c] > 0:
                if filling:
                    indices[position] = index[c]
                    data[position] = value[c]
                position += 1
        if not filling:
            indptr[i + 1] = position


@kernel
def _project_simplex(V, z, k, lo, hi, block_rows, out, tops, heap, index, value):
    n = V.shape[0]
    for i in range(lo * block_rows, min(n, hi * block_rows)):
        _group_maxima(V[i], tops)
        top = np.float64(maximum(tops))
        out[i] = 0
        if z[i] > 0:
            count = _select(V[i], tops, top - z[i], k, heap, index, value)
            for c in range(count):
                value[c] -= top  # which keeps the digits of the differences
            tau, count = _threshold(index, value, count, z[i])
            for c in range(count):
                out[i, index[c]] = max(value[c] - tau, 0.0)


@kernel
def _ksupport_norm_sq(T, k, lo, hi, block_rows, out, sizes, heap):
    n = T.shape[0]
    for i in range(lo * block_rows, min(n, hi * block_rows)):
        for j in range(sizes.shape[0]):
            sizes[j] = abs(T[i, j])
        least, _ = _push(sizes, 0.0, k, 0, heap)
        ties = k
        for c in range(k):
            ties -= 1 if heap[c] > least else 0
        total = 0.0  # of what is not among the k largest
        for j in range(sizes.shape[0]):
            if sizes[j] < least or (sizes[j] == least and ties <= 0):
                total += sizes[j]
            ties -= 1 if sizes[j] == least else 0
        left = k
        while True:
            total += heap[0]
            left -= 1
            _sift(heap, left, heap[left])
            mean = total / (k - left)
            if left == 0 or heap[0] > mean:
                break
        square = total * mean
        for c in range(left):
            square += heap[c] * heap[c]
        out[i] = square


def _scratch(m: int, k: int, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Scores, maxima of groups, heap, and indices and values of what is selected."""
    groups = -(-m // GROUP)
    return np.empty((1, m), dtype), np.empty(groups, dtype), np.empty(k), np.empty(m, np.int64), np.empty(m)


def semidual_rows(
    cost: CostData, G: np.ndarray, a: np.ndarray, reg: float, k: int, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(F, conjugates, column_sums)`` of the plan whose rows sum to a."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    F, conjugates, columns = np.empty(n), np.empty(n), np.empty((count, m))
    arguments = *_arguments(cost), G, a, float(reg), k, float(delta)

    def task(lo: int, hi: int) -> None:
        _semidual_rows(*arguments, lo, hi, rows, F, conjugates, columns, *_scratch(m, k, G.dtype))

    run_blocks(task, count, n * m)
    return F, conjugates, _sum_blocks(columns)


def dual_rows(
    cost: CostData, F: np.ndarray, G: np.ndarray, reg: float, k: int, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(row_sums, conjugates, column_sums)`` of the plan of F and G."""
    n, m = cost.shape
    count, rows = _blocks(n, m)
    sums, conjugates, columns = np.empty(n), np.empty(n), np.empty((count, m))
    arguments = *_arguments(cost), F, G, float(reg), k, float(delta)

    def task(lo: int, hi: int) -> None:
        _dual_rows(*arguments, lo, hi, rows, sums, conjugates, columns, *_scratch(m, k, G.dtype))

    run_blocks(task, count, n * m)
    return sums, conjugates, _sum_blocks(columns)


def semidual_plan_rows(
    cost: CostData, G: np.ndarray, a: np.ndarray, reg: float, k: int, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F, and CSR arrays ``(data, indices, indptr)`` of the plan whose rows sum to a, in column order."""
    F = np.empty(a.shape[0])
    return F, *_csr(cost, F, G, a, reg, k, delta)


def plan_rows(
    cost: CostData, F: np.ndarray, G: np.ndarray, reg: float, k: int, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR arrays ``(data, indices, indptr)`` of the plan of F and G, in column order."""
    return _csr(cost, F, G, None, reg, k, delta)


def _csr(
    cost: CostData, F: np.ndarray, G: np.ndarray, a: np.ndarray | None, reg: float, k: int, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, then fill; with a, F is an output."""
    n, m = cost.shape
    blocks, rows = _blocks(n, m)
    arguments = *_arguments(cost), F, G, a, float(reg), k, float(delta)
    indptr = np.zeros(n + 1, np.int64)

    def run(indices: np.ndarray, data: np.ndarray, filling: bool) -> None:
        def task(lo: int, hi: int) -> None:
            _plan_rows(*arguments, lo, hi, rows, indptr, indices, data, filling, *_scratch(m, k, G.dtype))

        run_blocks(task, blocks, n * m)

    run(np.empty(0, np.int32), np.empty(0, G.dtype), False)
    np.cumsum(indptr, out=indptr)
    wide = max(m, indptr[-1]) > np.iinfo(np.int32).max
    indices, data = np.empty(indptr[-1], np.int64 if wide else np.int32), np.empty(indptr[-1], G.dtype)
    run(indices, data, True)
    return data, indices, indptr.astype(indices.dtype, copy=False)


def project_simplex(V: np.ndarray, z: np.ndarray, k: int) -> np.ndarray:
    """Projections of the rows of V on ``{t >= 0, sum t = z_i, at most k entries > 0}``."""
    n, m = V.shape
    blocks, rows = _blocks(n, m)
    out = np.empty_like(V)

    def task(lo: int, hi: int) -> None:
        _project_simplex(V, z, k, lo, hi, rows, out, *_scratch(m, k, V.dtype)[1:])

    run_blocks(task, blocks, n * m)
    return out


def ksupport_norm_sq(T: np.ndarray, k: int) -> np.ndarray:
    """Squared k-support norms of the rows of T, float64."""
    n, m = T.shape
    blocks, rows = _blocks(n, m)
    out = np.empty(n)

    def task(lo: int, hi: int) -> None:
        _ksupport_norm_sq(T, k, lo, hi, rows, out, np.empty(m), np.empty(k))

    run_blocks(task, blocks, n * m)
    return out
