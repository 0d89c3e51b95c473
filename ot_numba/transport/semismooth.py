"""Semi-smooth Newton steps on the semi-dual of quadratic transport."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import to_numpy
from ..arrays.validation import dtype_name
from ..optimize import factorize_rows
from .sparse_duals import SparseDual

Array = Any
WIDTH, LIMIT = 0.2, 3.0  #: first width of the band and first limit of a step, in units of reg times a mean mass
GROWTH = 3.0  #: of the limit after a full step as long as that
SHORTEST = 1e-4  #: step length at which a direction is given up
FAILURES = 5  #: directions given up in a row at the rounding floor
RIDGE = 1e-12
NOISE = {"float64": 1e-12, "float32": 1e-6}  #: of the value, relative


class SemismoothNewton:
    r"""Newton's method on the semi-dual h of quadratic transport, or of relaxed k-sparse transport.

    The plan is :math:`P_{ij} = [x_{ij}]_+ / reg` with :math:`x = f + g - C`, its rows exact. Minus the generalised
    Hessian, times reg, is the Laplacian of the graph that joins columns with a common row,

    .. math:: L = diag(c) - W^\top W,\qquad W = diag(r)^{-1/2} S,

    with S = 1 where x > 0, its row sums r, and :math:`c = W^\top W 1`. A step solves :math:`(L + reg\, diag(|\nabla|) /
    t)\, d = reg \nabla`: L being an M-matrix, no entry of d exceeds t. Since entries with x just below 0 will be met on
    the way, S is 1 + x / width for those in a band below 0, whose width is the root mean square of the last step.
    Without it steps are too long where many pairs are about to be used, as for costs with ties. At the solution the
    width is 0.

    With a limit k and a relaxation delta, a row with more than k entries has some that are full, t = x / (reg + delta),
    and p others that are pooled, t = (x - level) / delta, at a level that is the mean of reg t of the pooled ones over
    the k - r places that r full ones leave. Each pooled entry counts (reg + delta) / delta times, less what flows back
    through the level, which joins the pooled entries with each other: L is a Laplacian again, of twice as many rows.

    Parameters
    ----------
    dual : SparseDual
        Without a limit on the entries of a row, or relaxed.
    G : array of shape (m,)
        Where to start, float64.
    """

    def __init__(self, dual: SparseDual, G: Array) -> None:
        self.dual, self.xp, self.G = dual, dual.xp, G
        self.reg = dual.reg + dual.delta
        n, m = dual.cost.shape
        unit = self.reg * float(self.xp.sum(self.xp.astype(dual.a, self.xp.float64))) / max(n, m)
        self.width, self.limit = WIDTH * unit, LIMIT * unit
        self.n_evaluations = self.failures = 0
        self.dtype = dtype_name(dual.cost.dtype)
        self._move(G)

    def _move(self, G: Array) -> None:
        self.G = G
        self.value, self.grad, self.F = self.dual.semidual(G)
        self.n_evaluations += 1

    def error(self) -> float:
        """L1 error of the columns, the rows being exact."""
        return float(self.xp.sum(self.xp.abs(self.grad)))

    @property
    def stuck(self) -> bool:
        """Whether rounding leaves nothing to gain."""
        return self.failures >= FAILURES

    def step(self) -> None:
        """One step; nothing but a smaller limit where no ascent is found."""
        xp, error = self.xp, self.error()
        start, value, grad, F = self.G, self.value, self.grad, self.F
        direction = self._direction()
        size, slope = float(xp.max(xp.abs(direction))), float(xp.sum(grad * direction))
        drowned = NOISE[self.dtype] * abs(value)  # below it the value says nothing
        length = 1.0
        while slope > 0 and length > SHORTEST:
            self._move(start + length * direction)
            predicted = length * slope
            if self.value - value >= 1e-4 * predicted or (predicted < drowned and self.error() < error):
                break
            after = float(xp.sum(self.grad * direction))
            length *= min(0.5, max(0.1, slope / (slope - after))) if after < 0 else 0.5
        else:
            self.G, self.value, self.grad, self.F = start, value, grad, F
            self.limit, self.width = 0.1 * min(self.limit, size), 2 * self.width
            self.failures += 1
            return
        self.failures = 0
        if length < 1:
            self.limit = max(length, 0.1) * min(size, self.limit)
        elif size > 0.5 * self.limit:
            self.limit *= GROWTH
        self.width = length * math.sqrt(float(xp.mean(direction * direction)))

    def _direction(self) -> Array:
        """Solution of Newton's system."""
        xp = self.xp
        grad = to_numpy(self.grad)
        extra = self.reg * np.abs(grad) / self.limit + RIDGE
        solve = self._factorize(extra)
        return xp.asarray(solve(self.reg * grad), device=self.dual.cost.device)

    def _factorize(self, extra: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Factorisation of ``L + diag(extra)``, on the host."""
        dual = self.dual
        indptr, indices, values = map(to_numpy, dual.plan_from_dual(self.F + self.width, self.G))
        counts = np.diff(indptr)
        steepness = np.ones(len(values))
        pools = np.flatnonzero(counts > dual.k)  # none without a limit
        if len(pools):
            where, pooled, rest = _pooled(indptr, counts, values, pools, dual.k)
            steepness[where[pooled]] = self.reg / dual.delta
        if self.width > 0:
            steepness = np.minimum(steepness, values * self.reg / self.width)
        if len(pools):
            held = np.where(pooled, steepness[where], 0.0)
            total = held.sum(axis=1)
            share = total / (total + rest * self.reg / dual.reg)  # 0 / 0 is no pool: rest > 0
            steepness[where[pooled]] *= np.repeat(1 - share, pooled.sum(axis=1))
            sizes = pooled.sum(axis=1)
            kept = sizes > 0
            indptr = np.concatenate([indptr, indptr[-1] + np.cumsum(sizes[kept])])
            indices = np.concatenate([indices, indices[where[pooled]]])
            steepness = np.concatenate([steepness, (held * share[:, None])[pooled]])
        return factorize_rows(indptr, indices, steepness, extra)


def _pooled(
    indptr: np.ndarray, counts: np.ndarray, values: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the entries of rows with more than k, which of them are pooled, and the places left by the others."""
    width = counts[rows].max()
    inside = np.arange(width) < counts[rows][:, None]
    where = np.where(inside, indptr[rows][:, None] + np.arange(width), 0)
    masses = np.where(inside, values[where].astype(float), 0.0)
    order = np.argsort(-masses, axis=1, kind="stable")
    largest = np.take_along_axis(masses, order, axis=1)
    tails = np.cumsum(largest[:, ::-1], axis=1)[:, ::-1][:, :k]  # mass from the r-th largest on, r < k
    levels = tails / (k - np.arange(k))
    # r entries are full for the first r whose next entry lies below the level of the rest; the last, k - 1, always does
    full = np.argmax(largest[:, :k] < levels, axis=1)
    pooled = np.empty_like(inside)
    np.put_along_axis(pooled, order, np.arange(width) >= full[:, None], axis=1)
    return where, pooled & inside, (k - full).astype(float)
