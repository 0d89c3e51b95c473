"""Truncated Newton steps on the semi-dual, for where Sinkhorn's iteration is slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..costs.gibbs import LOG2E
from ..optimize import conjugate_gradient
from .sweeps import LogSweep

Array = Any
LARGEST_STEP = 8.0  #: nats by which a potential may move in one step
INNER_ITERATIONS = 500


class TruncatedNewton:
    r"""Newton's method on the semi-dual, its linear systems solved by conjugate gradients.

    With the row potential optimal for g, the gradient is :math:`c^* - c`, where c are the column sums of the plan and
    :math:`c^*` those that the optimality conditions ask for, and minus the Hessian, times reg, is

    .. math:: S = diag(c) / \lambda_2 - \lambda_1 P^\top diag(1/r) P,\qquad \lambda_i = \rho_i / (\rho_i + reg),

    which for a balanced problem is the Laplacian of a weighted graph. The diagonal is rebuilt from the stored P, in
    float32, so that the system stays positive semi-definite; gradient and objective are exact.

    Parameters
    ----------
    sweep : LogSweep
        Where to start.
    store : bool
        Whether P is stored in float32, n m numbers; otherwise every product evaluates it.
    """

    def __init__(self, sweep: LogSweep, *, store: bool) -> None:
        self.sweep, self.store = sweep, store
        self.problem, self.xp = sweep.problem, sweep.gibbs.xp
        self.column_sums = sweep.half_step()
        self.products = 1

    def error(self) -> float:
        """L1 error of the columns, the rows being exact."""
        return float(self.xp.sum(self.xp.abs(self._gradient())))

    def _gradient(self) -> Array:
        return self.sweep.column_target() - self.column_sums

    def step(self, tol: float) -> None:
        """One Newton step, damped until the dual grows, towards an error of `tol`."""
        xp, sweep = self.xp, self.sweep
        gradient, error = self._gradient(), self.error()
        forcing = max(min(0.1, error / sweep.mass), 0.2 * tol / error, 1e-6)
        direction = self._solve(gradient, forcing)
        spread = float(xp.max(xp.abs(direction - xp.mean(direction))))
        length = min(1.0, LARGEST_STEP / spread) if spread > 0 else 1.0
        slope = float(xp.sum(gradient * direction))
        F, G, merit = *sweep.bits(), sweep.dual()
        F, G = xp.asarray(F, copy=True), xp.asarray(G, copy=True)
        while True:
            sweep.set_bits(F, xp.astype(G + length * LOG2E * direction, G.dtype))
            self.column_sums = sweep.half_step()
            self.products += 1
            gain = sweep.dual() - merit
            if gain >= 1e-4 * length * slope or self.error() < error or length < 1e-3:
                return
            length *= 0.3

    def _solve(self, gradient: Array, tol: float) -> Array:
        xp, problem = self.xp, self.problem
        first, second = self.sweep.damping
        rows = self.sweep.row_target()
        weights = xp.where(rows > 0, first / xp.where(rows > 0, rows, xp.ones_like(rows)), xp.zeros_like(rows))
        product = self._pair(weights)
        mass = product(xp.ones_like(gradient)) / first
        diagonal = xp.where(mass > 0, mass, xp.ones_like(mass)) / second
        found = conjugate_gradient(
            lambda v: diagonal * v - product(v),
            xp.where(problem.b > 0, gradient, xp.zeros_like(gradient)),
            preconditioner=lambda r: r / diagonal,
            tol=tol,
            max_iter=INNER_ITERATIONS,
        )
        self.products += found.n_iter + 1
        return found.x

    def _pair(self, weights: Array) -> Callable[[Array], Array]:
        """``v -> P' (weights P v)``."""
        xp, sweep = self.xp, self.sweep
        if not self.store:
            return lambda v: sweep.gibbs.pair(*sweep.bits(), v, weights)[1]
        P = sweep.gibbs.plan(*sweep.bits(), dtype="float32")
        single = P.dtype
        weights = xp.astype(weights, single)
        return lambda v: sweep.gibbs.kernels.absorbed_pair(P, xp.astype(v, single), weights)[1]
