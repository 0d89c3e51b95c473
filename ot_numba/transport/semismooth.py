"""Semi-smooth Newton steps on the semi-dual of quadratic transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import to_numpy
from ..optimize import factorize_rows
from .sparse_duals import SparseDual

Array = Any
WIDTH, LIMIT = 0.5, 3.0  #: first width of the band and first limit of a step, in units of reg times a mean mass
GROWTH = 3.0  #: of the limit after a full step as long as that
SHORTEST = 1e-4  #: step length at which a direction is given up
FAILURES = 5  #: directions given up in a row at the rounding floor
RIDGE = 1e-12


class SemismoothNewton:
    r"""Newton's method on the semi-dual h of quadratic transport.

    The plan is :math:`P_{ij} = [x_{ij}]_+ / reg` with :math:`x = f + g - C`, its rows exact. Minus the generalised
    Hessian, times reg, is the Laplacian of the graph that joins columns with a common row,

    .. math:: L = diag(c) - W^\top W,\qquad W = diag(r)^{-1/2} S,

    with S = 1 where x > 0, its row sums r, and :math:`c = W^\top W 1`. A step solves :math:`(L + reg\, diag(|\nabla|) /
    t)\, d = reg \nabla`: L being an M-matrix, no entry of d exceeds t. Since entries with x just below 0 will be met on
    the way, S is 1 + x / width for those in a band below 0, whose width is the mean length of the last step: without it
    steps are too long where many pairs are about to be used, as for costs with ties. At the solution the width is 0.

    Parameters
    ----------
    dual : SparseDual
        Without a limit on the entries of a row.
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
        drowned = 1e-12 * abs(value)  # below it the value says nothing
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
        self.width = length * float(xp.mean(xp.abs(direction)))

    def _direction(self) -> Array:
        """Solution of Newton's system."""
        xp = self.xp
        grad = to_numpy(self.grad)
        extra = self.reg * np.abs(grad) / self.limit + RIDGE
        solve = self._factorize(extra)
        return xp.asarray(solve(self.reg * grad), device=self.dual.cost.device)

    def _factorize(self, extra: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Factorisation of ``L + diag(extra)``, on the host."""
        indptr, indices, values = map(to_numpy, self.dual.plan_from_dual(self.F + self.width, self.G))
        weights = np.minimum(values * self.reg, self.width) / self.width if self.width > 0 else np.ones(len(values))
        return factorize_rows(indptr, indices, weights, extra)
