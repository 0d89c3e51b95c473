"""Truncated Newton steps on the semi-dual, for where Sinkhorn's iteration is slow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.validation import dtype_name
from ..costs.gibbs import LOG2E
from ..optimize import conjugate_gradient
from .sweeps import LogSweep

Array = Any
RIDGE = 1e-6  #: relative to the diagonal: what float32 products need to stay positive
FIRST_LIMIT = 8.0  #: nats by which a potential may move in the first step
#: And in any: where no plan has the marginals the potentials grow for ever.
LARGEST_LIMIT = {"float64": 1e6, "float32": 1e3}
INNER_ITERATIONS = 500
WEAKEST = 1e-30  #: exchange of mass per nat of a column that has none with the others, so that its step is long
DIRECT_SIZE = 2048  #: columns up to which a system may be solved by elimination
DIRECT_SHARE = 1 / 3  #: conjugate gradient iterations per column that cost as much


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
        Whether P is stored in float32, scaled, n m numbers; otherwise every product evaluates it.
    """

    def __init__(self, sweep: LogSweep, *, store: bool) -> None:
        self.sweep, self.store = sweep, store
        self.problem, self.xp = sweep.problem, sweep.gibbs.xp
        self.column_sums = sweep.half_step()
        self.products = 1
        self.limit = FIRST_LIMIT
        self.largest_limit = LARGEST_LIMIT[dtype_name(self.problem.cost.dtype)]
        self.direct = False
        self._W: Array | None = None

    def error(self) -> float:
        """L1 error of the columns, the rows being exact."""
        return float(self.xp.sum(self.xp.abs(self._gradient())))

    def _gradient(self) -> Array:
        return self.sweep.column_target() - self.column_sums

    def step(self, tol: float, most_products: float = math.inf) -> None:
        """One Newton step, damped until the dual grows, towards an error of `tol`, in about so many products."""
        xp, sweep = self.xp, self.sweep
        gradient, error = self._gradient(), self.error()
        forcing = max(min(0.1, error / sweep.mass), min(0.05 * tol / error, 0.02), 1e-6)
        direction = self._solve(gradient, forcing, min(INNER_ITERATIONS, most_products))
        if self.problem.balanced:  # the constants are free
            direction = direction - xp.sort(direction)[direction.shape[0] // 2]
        # a part that hardly exchanges mass with the rest asks for a huge shift: it must not shorten all other steps
        clipped = xp.clip(direction, -self.limit, self.limit)
        at_limit = bool(xp.any(clipped != direction))
        direction, length = clipped, 1.0
        slope = float(xp.sum(gradient * direction))
        F, G, merit = *sweep.bits(), sweep.dual()
        F, G = xp.asarray(F, copy=True), xp.asarray(G, copy=True)
        # where the predicted gain drowns in the rounding of the dual, the error decides
        drowned = 1e-11 * (abs(merit) + sweep.mass)
        while slope > 0 and length > 1e-3:
            bits = length * LOG2E * direction
            sweep.set_bits(F, xp.astype(G + bits, G.dtype), float(xp.max(bits)))
            self.column_sums = sweep.half_step()
            self.products += 1
            gain, predicted = sweep.dual() - merit, length * slope
            if gain >= 1e-4 * predicted or (predicted <= drowned and self.error() < error):
                break
            length *= 0.3
        else:
            sweep.set_bits(F, G)
        if length < 1 or at_limit:  # far from the solution a plain iteration helps, and makes every step an ascent
            self.limit = min(self.limit * (3.0 if length == 1 else max(length, 0.1)), self.largest_limit)
            sweep.iterate()
            self.column_sums = sweep.half_step()
            self.products += 2

    def _solve(self, gradient: Array, tol: float, max_iter: int) -> Array:
        """Newton direction to a relative accuracy of `tol`."""
        xp, problem = self.xp, self.problem
        first, second = self.sweep.damping
        rows = self.sweep.row_target()
        weights = xp.where(rows > 0, first / xp.where(rows > 0, rows, xp.ones_like(rows)), xp.zeros_like(rows))
        gradient = xp.where(problem.b > 0, gradient / self.sweep.mass, xp.zeros_like(gradient))
        F, G = self._scaled(weights)
        if self.direct:
            self.products += 1
            return self._solve_directly(F, G, gradient)
        product = self._square(F, G)
        mass = product(xp.ones_like(gradient)) / first
        diagonal = xp.where(mass > 0, mass, xp.ones_like(mass)) / second
        ridged = diagonal * (1 + RIDGE)
        found = conjugate_gradient(
            lambda v: ridged * v - product(v),
            gradient,
            preconditioner=lambda r: r / diagonal,
            tol=tol,
            max_iter=max_iter,
        )
        self.products += found.n_iter + 1
        size = gradient.shape[0]
        self.direct = self.store and size <= DIRECT_SIZE and found.n_iter > DIRECT_SHARE * size
        return found.x

    def _scaled(self, weights: Array) -> tuple[Array, Array]:
        """Potentials of ``W = (diag(weights) / mass)**(1/2) P``, whose entries stay in the range of float32."""
        xp = self.xp
        F, G = self.sweep.bits()
        positive = weights > 0
        half = 0.5 * (xp.log2(xp.where(positive, weights, xp.ones_like(weights))) - math.log2(self.sweep.mass))
        return xp.astype(xp.where(positive, F + half, xp.full_like(half, -math.inf)), F.dtype), G

    def _dense(self, F: Array, G: Array) -> Array:
        """W in float32."""
        self._W = self.sweep.gibbs.plan(F, G, dtype="float32", out=self._W)
        return self._W

    def _square(self, F: Array, G: Array) -> Callable[[Array], Array]:
        """``v -> W' W v``."""
        xp, gibbs = self.xp, self.sweep.gibbs
        if gibbs.screened:
            return gibbs.square(F, G, gibbs.tiles(*self.sweep.bits(), self.sweep.row_target(), self.column_sums))
        if not self.store:
            return lambda v: gibbs.pair(F, G, v, xp.ones_like(F))[1]
        W = self._dense(F, G)
        ones = xp.ones(W.shape[0], dtype=W.dtype, device=gibbs.cost.device)
        return lambda v: gibbs.kernels.absorbed_pair(W, xp.astype(v, W.dtype), ones)[1]

    def _solve_directly(self, F: Array, G: Array, gradient: Array) -> Array:
        """The same by elimination; every edge of the Laplacian keeps its relative accuracy, however weak."""
        xp = self.xp
        first, second = self.sweep.damping
        W = self._dense(F, G)
        S = -xp.astype(xp.matrix_transpose(W) @ W, xp.float64)
        index = xp.arange(S.shape[0], device=self.sweep.gibbs.cost.device)
        diagonal = index[:, None] == index[None, :]
        S = xp.where(diagonal, xp.zeros_like(S), S)
        mass = -xp.sum(S, axis=1)
        loose = xp.zeros_like(mass)
        if first * second < 1:
            loose = self.column_sums / self.sweep.mass * (1 / second - first)
        total = (mass + loose) * (1 + 1e-12)  # parts that exchange nothing must not make it singular
        total = xp.where(total > 0, total, xp.full_like(total, WEAKEST))
        if first * second == 1:
            total = xp.where(index == 0, 2 * total, total)  # the constants are free
        return xp.linalg.solve(xp.where(diagonal, total[:, None], S), gradient)
