"""Compiled loops of the LASSO: inner products with all columns, and coordinate descent on some of them.

The columns of A are the rows of `values` (n, m); or, with `indices` and `indptr`, `values` (1, nnz) is that of CSC.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import helper, kernel
from .threads import run_blocks
from .thresholding import copy

MEMORY = 5  #: differences of iterates that the extrapolation combines
RIDGE = 1e-11  #: added to the matrix of Newton's method, as a part of the largest diagonal entry
NEWTON_STEPS = 10  #: nonzeros that Newton's method may lose


class Columns(NamedTuple):
    """The columns of A as the kernels take them."""

    values: np.ndarray
    indices: np.ndarray | None = None
    indptr: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of columns."""
        return self.values.shape[0] if self.indptr is None else self.indptr.shape[0] - 1


@helper
def _dot(values, indices, indptr, j, r):
    s = r.dtype.type(0)
    if indices is None:
        column = values[j]
        for i in range(r.shape[0]):
            s += column[i] * r[i]
    else:
        for p in range(indptr[j], indptr[j + 1]):
            s += values[0, p] * r[indices[p]]
    return s


@helper
def _subtract(values, indices, indptr, j, factor, r):
    if indices is None:
        column = values[j]
        for i in range(r.shape[0]):
            r[i] -= factor * column[i]
    else:
        for p in range(indptr[j], indptr[j + 1]):
            r[indices[p]] -= factor * values[0, p]


@helper
def _square_sum(v):
    s = 0.0
    for i in range(v.shape[0]):
        s += np.float64(v[i]) * v[i]
    return s


@helper
def _descend(values, indices, indptr, active, size, squares, reg, x, r):
    """One epoch of coordinate descent."""
    for k in range(size):
        j = active[k]
        old = x[j]
        v = old + _dot(values, indices, indptr, j, r) / squares[j]
        tau = reg / squares[j]
        new = v - tau if v > tau else v + tau if v < -tau else old * 0
        if new != old:
            _subtract(values, indices, indptr, j, new - old, r)
            x[j] = new


@helper
def _solve(M, v):
    """Solve ``M u = v`` by Cholesky's factorisation, u in place of v, M overwritten; whether M is definite."""
    K = v.shape[0]
    for i in range(K):
        row = M[i]
        for j in range(i + 1):
            other, s = M[j], row[j]
            for p in range(j):
                s -= row[p] * other[p]
            if i == j:
                if not s > 0:
                    return False
                row[i] = np.sqrt(s)
            else:
                row[j] = s / other[j]
    for i in range(K):
        s = v[i]
        for p in range(i):
            s -= M[i, p] * v[p]
        v[i] = s / M[i, i]
    for i in range(K - 1, -1, -1):
        v[i] /= M[i, i]
        for p in range(i):
            v[p] -= M[i, p] * v[i]
    return True


@helper
def _mixture(steps, weights):
    """Weights, of sum 1, of the combination of `steps` with the least norm; False where they are too alike."""
    K = steps.shape[0]
    M = np.empty((K, K))
    for i in range(K):
        for j in range(i + 1):
            s = 0.0
            for p in range(steps.shape[1]):
                s += np.float64(steps[i, p]) * steps[j, p]
            M[i, j] = s
    largest = 0.0
    for i in range(K):
        largest = max(largest, M[i, i])
    for i in range(K):
        M[i, i] += 1e-12 * largest
    weights[:] = 1
    if not (largest > 0 and _solve(M, weights)):
        return False
    total = weights.sum()
    weights /= total
    return np.isfinite(total) and total != 0


@helper
def _combine(weights, iterates, size, places, out):
    """``out = sum_q weights[q] iterates[q + 1]``, at some places of it."""
    for k in range(size):
        s = 0.0
        for q in range(weights.shape[0]):
            s += weights[q] * iterates[q + 1, k]
        if places is None:
            out[k] = s
        else:
            out[places[k]] = s


@helper
def _norm(active, size, x):
    s = 0.0
    for k in range(size):
        s += abs(x[active[k]])
    return s


@kernel
def coordinate_descent(values, indices, indptr, y, working, squares, reg, x, r, tol, max_epochs):
    """Lower the LASSO's gap on the columns `working` to `tol`, x and r in place; epochs it took, gap and objective.

    After every `MEMORY` + 1 epochs on the columns that matter, x and r go to the combination of the last iterates
    whose residuals move the least (Anderson), if that lowers the objective; r is the extrapolated dual point as well.
    """
    m, K = r.shape[0], MEMORY
    active = np.empty(working.shape[0], np.int64)
    iterates, residuals = np.empty((K + 1, working.shape[0]), x.dtype), np.empty((K + 1, m), r.dtype)
    steps, weights = np.empty((K, m), r.dtype), np.empty(K)
    epochs = 0
    while True:
        top, size, norm, cross = 0.0, 0, 0.0, 0.0
        for k in range(working.shape[0]):
            j = working[k]
            c = np.float64(abs(_dot(values, indices, indptr, j, r)))
            top = max(top, c)
            norm += abs(x[j])
            if (x[j] != 0 or c > reg) and squares[j] > 0:
                active[size] = j
                size += 1
        for i in range(m):
            cross += np.float64(r[i]) * y[i]
        share, squared = reg / max(reg, top), _square_sum(r)
        gap = 0.5 * (1 + share * share) * squared - share * cross + reg * norm
        if gap <= tol or epochs >= max_epochs:
            return epochs, gap, 0.5 * squared + reg * norm
        for q in range(K + 1):
            _descend(values, indices, indptr, active, size, squares, reg, x, r)
            for k in range(size):
                iterates[q, k] = x[active[k]]
            copy(r, residuals[q])
            if q:
                for i in range(m):
                    steps[q - 1, i] = residuals[q, i] - residuals[q - 1, i]
        epochs += K + 1
        if _mixture(steps, weights):
            before = 0.5 * _square_sum(r) + reg * _norm(active, size, x)
            _combine(weights, iterates, size, active, x)
            _combine(weights, residuals, m, None, r)
            if not 0.5 * _square_sum(r) + reg * _norm(active, size, x) < before:
                for k in range(size):
                    x[active[k]] = iterates[K, k]
                copy(residuals[K], r)


@kernel
def newton(values, indices, indptr, places, reg, x, r):
    """Steps towards the minimum over the nonzeros with their signs kept, each up to the first zero on the way.

    The nonzeros are at `places`, which is overwritten; x and r in place.
    """
    count, column = places.shape[0], np.empty_like(r)
    gram, largest = np.empty((count, count)), 0.0
    for k in range(count):
        column[:] = 0
        _subtract(values, indices, indptr, places[k], column.dtype.type(-1), column)
        for q in range(k + 1):
            gram[k, q] = _dot(values, indices, indptr, places[q], column)
            gram[q, k] = gram[k, q]
        largest = max(largest, gram[k, k])
    for _ in range(NEWTON_STEPS):
        M, d = gram[:count, :count].copy(), np.empty(count)
        for k in range(count):
            M[k, k] += RIDGE * largest  # dependent columns: a long step, up to the first zero
            d[k] = _dot(values, indices, indptr, places[k], r) - reg * np.sign(x[places[k]])
        if not _solve(M, d):
            return
        share, first = 1.0, -1
        for k in range(count):
            if -d[k] * x[places[k]] > 0 and abs(x[places[k]]) < share * abs(d[k]):
                share, first = abs(x[places[k]] / d[k]), k
        for k in range(count):
            j = places[k]
            new = x.dtype.type(0 if k == first else x[j] + share * d[k])
            _subtract(values, indices, indptr, j, new - x[j], r)
            x[j] = new
        if first < 0:
            return
        count -= 1
        for k in range(first, count):
            places[k] = places[k + 1]
            gram[k, : count + 1] = gram[k + 1, : count + 1]
        for k in range(first, count):
            gram[:count, k] = gram[:count, k + 1]


@kernel
def _squares_and_products(values, indices, indptr, y, lo, hi, squares, products):
    for j in range(lo, hi):
        s, t = 0.0, y.dtype.type(0)
        if indices is None:
            column = values[j]
            for i in range(y.shape[0]):
                s += np.float64(column[i]) * np.float64(column[i])
                t += column[i] * y[i]
        else:
            for p in range(indptr[j], indptr[j + 1]):
                s += np.float64(values[0, p]) * np.float64(values[0, p])
                t += values[0, p] * y[indices[p]]
        squares[j], products[j] = s, t


@kernel
def _products(values, indices, indptr, r, reg, moved, squares, lo, hi, products, slack):
    for j in range(lo, hi):
        slack[j] += moved
        if abs(products[j]) + slack[j] * np.sqrt(squares[j]) >= reg:
            products[j] = _dot(values, indices, indptr, j, r)
            slack[j] = 0


@kernel
def residual(values, indices, indptr, y, x, r, seen):
    """``r = y - A x`` in place, over the nonzeros of x; how far it is from `seen`, which becomes r."""
    copy(y, r)
    for j in range(x.shape[0]):
        if x[j] != 0:
            _subtract(values, indices, indptr, j, x[j], r)
    moved = 0.0
    for i in range(r.shape[0]):
        d = np.float64(r[i]) - np.float64(seen[i])
        moved += d * d
        seen[i] = r[i]
    return np.sqrt(moved)


@kernel
def statistics(x, y, r, products):
    """Largest size of a product, ``<r, r>``, ``<r, y>``, ``|x|_1`` and the number of nonzeros of x."""
    top, squares, cross, norm, count = 0.0, 0.0, 0.0, 0.0, 0
    for j in range(x.shape[0]):
        top = max(top, np.float64(abs(products[j])))
        norm += np.float64(abs(x[j]))
        count += x[j] != 0
    for i in range(r.shape[0]):
        squares += np.float64(r[i]) * np.float64(r[i])
        cross += np.float64(r[i]) * np.float64(y[i])
    return top, squares, cross, norm, count


def squares_and_products(columns: Columns, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of all columns, float64, and their inner products with y, in one pass."""
    n = columns.count
    squares, products = np.empty(n), np.empty(n, y.dtype)
    run_blocks(
        lambda lo, hi: _squares_and_products(*columns, y, lo, hi, squares, products), n, columns.values.size
    )
    return squares, products


def update_products(
    columns: Columns,
    r: np.ndarray,
    reg: float,
    moved: float,
    squares: np.ndarray,
    products: np.ndarray,
    slack: np.ndarray,
) -> None:
    """Products of the columns with r, which has moved so far since the last time, in place.

    Those that cannot have reached `reg` since are left as they are; their `slack`, in place too, is how far r has moved
    since they were evaluated.
    """
    n = columns.count
    run_blocks(
        lambda lo, hi: _products(*columns, r, reg, moved, squares, lo, hi, products, slack), n, columns.values.size
    )
