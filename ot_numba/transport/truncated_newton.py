"""Newton steps on the semi-dual, for where Sinkhorn's iteration is slow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.namespaces import to_numpy
from ..arrays.validation import dtype_name
from ..costs.gibbs import LOG2E
from ..optimize import conjugate_gradient, factorize_laplacian, factorize_sparse
from .sweeps import LogSweep

Array = Any
LINEAR = ("auto", "cg", "direct", "sparse")
GLOBALIZATIONS = ("line_search", "gradient_regularization")
#: Relative to the diagonal: what products in single and in double precision need to stay positive.
RIDGE, FINE_RIDGE = 1e-6, 1e-14
FIRST_LIMIT = 20.0  #: nats by which a potential may move in the first step
SMALLEST_LIMIT = 1.0
#: And in any: where no plan has the marginals the potentials grow for ever.
LARGEST_LIMIT = {"float64": 1e6, "float32": 1e3}
INNER_ITERATIONS = {"auto": 500, "sparse": 500, "cg": 5000}
NEGLIGIBLE = 1e-3  #: share of the error asked for that is too small to move a potential for
NOISE = 32.0  #: units of rounding of a column sum
DIRECT_SIZE = 4096  #: columns up to which "auto" solves systems by elimination
#: Seconds of a system by elimination (for n m^2, m^3, m^2) and of a conjugate gradient iteration (each, and for n m):
#: only their ratios matter.
DIRECT_COST, ITERATION_COST = (1.2e-11, 7e-12, 6e-9), (2e-5, 1.5e-10)
POOR = 0.5  #: ratio of errors of an undamped step that asks for a more accurate system
SPARSE_AFTER = 200  #: conjugate gradient iterations after which a sparse preconditioner is tried
CLOSE = 0.3  #: nats by which potentials may have moved since a system was factorised for it to be used once more
SMALL = 128  #: columns up to which a factorisation costs about as much as a pass
DROP = 1e-3  #: entries of a row of the plan below this share of its mean are left out of a sparse system
WEAKEST_LINK = 1e-14  #: or, where its graph falls apart, below this


class TruncatedNewton:
    r"""Newton's method on the semi-dual.

    With the row potential optimal for g, the gradient is :math:`c^* - c`, where c are the column sums of the plan and
    :math:`c^*` those that the optimality conditions ask for, and minus the Hessian, times reg, is

    .. math:: S = diag(c) / \lambda_2 - \lambda_1 P^\top diag(1/r) P,\qquad \lambda_i = \rho_i / (\rho_i + reg),

    which for a balanced problem is the Laplacian of a weighted graph. The diagonal is rebuilt from the stored P, so
    that the system stays positive semi-definite; gradient and objective are exact.

    A step solves :math:`(S + diag(|c^* - c|) / t)\, d = c^* - c`. S being an M-matrix, no entry of d exceeds t nats,
    however weakly a part of the graph is linked with the rest, and the addition vanishes with the gradient. t is three
    times as large after a full step as long as that, and shrinks with the length of a damped one.

    Parameters
    ----------
    sweep : LogSweep
        Where to start.
    store : bool
        Whether P is stored in float32, scaled, n m numbers; otherwise every product evaluates it.
    linear : {"auto", "cg", "direct", "sparse"}
        How systems are solved: by conjugate gradients with products in single precision, and in double precision once
        that is not enough; by elimination; or, where conjugate gradients are slow, preconditioned by a sparse
        factorisation of the largest entries of S. ``"auto"`` starts with the first and goes on by elimination where
        that is cheaper.
    globalization : {"line_search", "gradient_regularization"}
        The step above with Armijo's rule; or :math:`(S + \|c^* - c\|_* / \gamma\, diag(c))\, d = c^* - c` with
        :math:`\|v\|_*^2 = \sum v_j^2 / c_j`, where :math:`\gamma` is doubled after a step and halved until one gains
        :math:`\gamma \|\nabla_+\|_*^2 / (8 \|\nabla\|_*)`.
    """

    def __init__(
        self, sweep: LogSweep, *, store: bool, linear: str = "auto", globalization: str = "line_search"
    ) -> None:
        self.sweep, self.store, self.linear, self.globalization = sweep, store, linear, globalization
        self.problem, self.xp = sweep.problem, sweep.gibbs.xp
        self.column_sums = sweep.half_step()
        self.products = self.passes = 1
        self.limit = FIRST_LIMIT
        self.gamma = 1.0
        name = dtype_name(self.problem.cost.dtype)
        self.largest_limit = LARGEST_LIMIT[name]
        self.unit = float(self.xp.finfo(self.problem.cost.dtype).eps) / 2
        self.fine = self.sparse = False
        self.direct = linear == "direct" or (self._may_eliminate() and self.problem.b.shape[0] <= SMALL)
        self._W: Array | None = None
        self._factor: Callable[[Array], Array] | None = None
        self._moved = math.inf

    def error(self) -> float:
        """L1 error of the columns, the rows being exact."""
        return float(self.xp.sum(self.xp.abs(self._gradient())))

    def _gradient(self) -> Array:
        return self.sweep.column_target() - self.column_sums

    @property
    def kind(self) -> str:
        """How the next system is solved."""
        return "direct" if self.direct else "sparse" if self.sparse else "cg"

    def continued(self, sweep: LogSweep) -> TruncatedNewton:
        """Steps at another regularisation, in the way that has proved itself here."""
        other = TruncatedNewton(sweep, store=self.store, linear=self.linear, globalization=self.globalization)
        other.direct, other.fine, other.sparse = self.direct, self.fine, self.sparse
        other._W = self._W
        return other

    def step(self, tol: float, most_products: float = math.inf) -> None:
        """One Newton step, damped until the dual grows, towards an error of `tol`, in about so many products."""
        gradient, error = self._gradient(), self.error()
        forcing = max(min(0.1, error / self.sweep.mass), min(0.05 * tol / error, 0.02), 1e-6)
        noise = max(NEGLIGIBLE * tol / self.sweep.mass, NOISE * self.unit)
        if self.globalization == "gradient_regularization":
            self._regularized_step(gradient, noise, forcing, most_products)
            return
        xp, mass = self.xp, self.sweep.mass
        extra = xp.abs(gradient) / (mass * self.limit) + noise / mass * self.sweep.column_target()
        direction = self._solve(gradient, extra, forcing, most_products)
        size = float(xp.max(xp.abs(direction)))
        if size > 1.1 * self.limit:  # rounding: conjugate gradients and products in float32 bound nothing
            direction = xp.clip(direction, -self.limit, self.limit)
        at_limit = size > 0.5 * self.limit
        length = self._search(gradient, direction, error)
        self._moved = length * min(size, self.limit)
        if length == 1 and not at_limit and self.error() > POOR * error:
            self._be_exact()
        if length < 1 or at_limit:  # far from the solution a plain iteration helps, and makes every step an ascent
            self.limit = self.limit * (3.0 if length == 1 else max(length, 0.1))
            self.limit = max(min(self.limit, self.largest_limit), SMALLEST_LIMIT)
            self.sweep.iterate()
            self.column_sums = self.sweep.half_step()
            self.products += 2
            self.passes += 2

    def _search(self, gradient: Array, direction: Array, error: float) -> float:
        """Go along a direction until the dual has grown enough; the step length, 0 for none."""
        xp, sweep = self.xp, self.sweep
        slope = float(xp.sum(gradient * direction))
        F, G, merit = *sweep.bits(), sweep.dual()
        F, G = xp.asarray(F, copy=True), xp.asarray(G, copy=True)
        # where the predicted gain drowns in the rounding of the dual, its slope decides: sums of the plan are exact
        drowned = 1e-11 * (abs(merit) + sweep.mass)
        length = 1.0
        while slope > 0 and length > 1e-3:
            self._move(F, G, length * direction)
            gain, predicted = sweep.dual() - merit, length * slope
            if gain >= 1e-4 * predicted:
                return length
            if predicted <= drowned and (
                self.error() < error or float(xp.sum(self._gradient() * direction)) >= -0.9998 * slope
            ):
                return length
            length *= 0.3
        sweep.set_bits(F, G)
        self.column_sums = sweep.half_step()
        return 0.0

    def _move(self, F: Array, G: Array, direction: Array) -> None:
        """Go from potentials in bits by a direction of G in nats; rows are made exact."""
        bits = LOG2E * direction
        self.sweep.set_bits(F, self.xp.astype(G + bits, G.dtype), float(self.xp.max(bits)))
        self.column_sums = self.sweep.half_step()
        self.products += 1
        self.passes += 1

    def _regularized_step(self, gradient: Array, noise: float, tol: float, most_products: float) -> None:
        """One step of gradient-regularised Newton in the metric of the column sums."""
        xp, sweep = self.xp, self.sweep
        F, G, merit = *sweep.bits(), sweep.dual()
        F, G = xp.asarray(F, copy=True), xp.asarray(G, copy=True)
        metric = xp.where(self.column_sums > 0, self.column_sums, xp.ones_like(self.column_sums))
        norm = self._dual_norm(gradient, metric)
        slack = 4e-16 * max(sweep.mass, abs(merit))
        self._factor = None
        while True:
            strength = norm / math.sqrt(sweep.mass) / self.gamma  # relative to S
            extra = (strength / math.sqrt(sweep.mass) + noise / sweep.mass) * metric
            direction = self._solve(gradient, extra, tol, most_products)
            self._move(F, G, xp.clip(direction, -self.largest_limit, self.largest_limit))
            after = self._dual_norm(self._gradient(), metric)
            if sweep.dual() - merit >= after**2 / (8 * strength) - slack or (
                norm**2 < 1e-11 * (abs(merit) + sweep.mass) and after < norm
            ):
                self.gamma *= 2.0
                return
            self.gamma /= 2.0
            if self.gamma < 1e-9:
                sweep.set_bits(F, G)
                sweep.iterate()
                self.column_sums = sweep.half_step()
                self.passes += 2
                self.gamma = 1.0
                return

    def _dual_norm(self, gradient: Array, metric: Array) -> float:
        return math.sqrt(float(self.xp.sum(gradient * gradient / metric)))

    def _solve(self, gradient: Array, extra: Array, tol: float, most_products: float) -> Array:
        """Solution of ``(S / mass + diag(extra)) d = gradient / mass``."""
        xp, problem = self.xp, self.problem
        gradient = xp.where(problem.b > 0, gradient / self.sweep.mass, xp.zeros_like(gradient))
        extra = xp.where(problem.b > 0, extra, xp.ones_like(extra))
        old = self._factor if problem.b.shape[0] > SMALL and self._moved <= CLOSE else None
        if self.direct and old is not None:
            self.products += 1
            return old(gradient)
        first, _ = self.sweep.damping
        rows = self.sweep.row_target()
        weights = xp.where(rows > 0, first / xp.where(rows > 0, rows, xp.ones_like(rows)), xp.zeros_like(rows))
        F, G = self._scaled(weights)
        found = None
        if not self.direct and not self.sparse:
            limit = min(INNER_ITERATIONS[self.linear], most_products, self._worthwhile_iterations())
            found, slow = self._iterate(F, G, gradient, extra, tol, max(1, int(limit)))
            if not slow or not self._be_exact():
                return found
        if self.direct:
            return self._solve_directly(F, G, gradient, extra)
        if self.sparse:
            return self._solve_sparse(F, G, gradient, extra, tol)
        return found

    def _be_exact(self) -> bool:
        """Solve systems from now on more accurately, if more slowly; whether there is another way."""
        if self.direct or self.sparse or (self.fine and self.linear == "cg"):
            return False
        if self.linear == "sparse":
            self.sparse = True
        elif self._may_eliminate():
            self.direct = True
        else:
            self.fine, self._W = True, None
            return False
        return True

    def _may_eliminate(self) -> bool:
        return self.linear == "auto" and self.store and self.problem.b.shape[0] <= DIRECT_SIZE

    def _worthwhile_iterations(self) -> float:
        """Conjugate gradient iterations that cost as much as elimination, or as a sparse factorisation."""
        n, m = self.problem.cost.shape
        if self.linear == "sparse":
            return SPARSE_AFTER
        if not self._may_eliminate():
            return math.inf
        direct = sum(cost * size for cost, size in zip(DIRECT_COST, (n * m * m, m**3, m * m), strict=True))
        return max(10.0, direct / (ITERATION_COST[0] + ITERATION_COST[1] * n * m))

    def _iterate(
        self, F: Array, G: Array, gradient: Array, extra: Array, tol: float, max_iter: int
    ) -> tuple[Array, bool]:
        """Solution by conjugate gradients, and whether they were too slow."""
        xp = self.xp
        first, second = self.sweep.damping
        product, fine = self._square(F, G)
        mass = product(xp.ones_like(gradient)) / first
        diagonal = xp.where(mass > 0, mass, xp.ones_like(mass)) / second
        ridged = diagonal * (1 + (FINE_RIDGE if fine else RIDGE)) + extra
        found = conjugate_gradient(
            lambda v: ridged * v - product(v),
            gradient,
            preconditioner=lambda r: r / ridged,
            tol=tol,
            max_iter=max_iter,
        )
        self.products += found.n_iter + 1
        return found.x, not found.converged and found.n_iter >= max_iter

    def _scaled(self, weights: Array) -> tuple[Array, Array]:
        """Potentials of ``W = (diag(weights) / mass)**(1/2) P``, whose entries stay in the range of float32."""
        xp = self.xp
        F, G = self.sweep.bits()
        positive = weights > 0
        half = 0.5 * (xp.log2(xp.where(positive, weights, xp.ones_like(weights))) - math.log2(self.sweep.mass))
        return xp.astype(xp.where(positive, F + half, xp.full_like(half, -math.inf)), F.dtype), G

    def _dense(self, F: Array, G: Array) -> Array:
        """W, in float32 unless that was not enough."""
        fine = self.fine and not self.direct
        self._W = self.sweep.gibbs.plan(F, G, dtype=dtype_name(F.dtype) if fine else "float32", out=self._W)
        self.passes += 1
        return self._W

    def _square(self, F: Array, G: Array) -> tuple[Callable[[Array], Array], bool]:
        """``v -> W' W v``, and whether in double precision."""
        xp, gibbs = self.xp, self.sweep.gibbs
        fine = self.fine and dtype_name(F.dtype) == "float64"
        if gibbs.screened and not fine:
            tiles = gibbs.tiles(*self.sweep.bits(), self.sweep.row_target(), self.column_sums)
            return gibbs.square(F, G, tiles), False
        if not self.store:
            return lambda v: gibbs.pair(F, G, v, xp.ones_like(F))[1], dtype_name(F.dtype) == "float64"
        W = self._dense(F, G)
        ones = xp.ones(W.shape[0], dtype=W.dtype, device=gibbs.cost.device)
        return lambda v: gibbs.kernels.absorbed_pair(W, xp.astype(v, W.dtype), ones)[1], fine

    def _loose(self) -> Array:
        """What an unbalanced problem adds to the diagonal of the Laplacian."""
        first, second = self.sweep.damping
        return self.column_sums / self.sweep.mass * (1 / second - first)

    def _solve_directly(self, F: Array, G: Array, gradient: Array, extra: Array) -> Array:
        """The same by elimination; every edge of the Laplacian keeps its relative accuracy, however weak."""
        self.products += 1
        W = self._dense(F, G)
        extra = extra + self._loose()
        for power in (0, 2, 4, 6):
            self._factor = factorize_laplacian(W, extra * 10.0**power)
            if self._factor is not None:
                return self._factor(gradient)
        return gradient / (extra + self.column_sums / self.sweep.mass)

    def _solve_sparse(self, F: Array, G: Array, gradient: Array, extra: Array, tol: float) -> Array:
        """The same by conjugate gradients with a factorisation of the largest entries of S."""
        xp, gibbs = self.xp, self.sweep.gibbs
        W = sparse_root(self.sweep, F, G)
        S = -(W.T @ W).tocsc()
        S.setdiag(0)
        S.setdiag(to_numpy(extra + self._loose()) - S.sum(axis=1))
        solve = factorize_sparse(S)
        first, second = self.sweep.damping
        ones = xp.ones_like(F)
        total = gibbs.pair(F, G, xp.ones_like(gradient), ones)[1] / first / second
        diagonal = total * (1 + FINE_RIDGE) + extra
        found = conjugate_gradient(
            lambda v: diagonal * v - gibbs.pair(F, G, v, ones)[1],
            gradient,
            preconditioner=lambda r: xp.asarray(solve(to_numpy(r))),
            tol=tol,
            max_iter=INNER_ITERATIONS[self.linear],
        )
        self.products += found.n_iter + 1
        self.passes += found.n_iter + 3
        return found.x


def sparse_root(sweep: LogSweep, F: Array, G: Array) -> Any:
    """Largest entries of W as a CSR array, so many that its graph does not fall apart."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    xp, gibbs = sweep.gibbs.xp, sweep.gibbs
    n, m = sweep.problem.cost.shape
    rows = sweep.row_target()
    means = xp.log2(xp.where(rows > 0, rows, xp.ones_like(rows)) / m) + (F - sweep.bits()[0])
    means = xp.where(rows > 0, means, xp.zeros_like(means))
    drop = DROP
    while True:
        thresholds = xp.astype(means + math.log2(drop), F.dtype)
        parts = tuple(map(to_numpy, gibbs.csr(F, G, thresholds)))
        W = csr_array(parts, shape=(n, m), dtype=float)
        links = csr_array((parts[0], parts[1] + n, parts[2]), shape=(n, n + m))
        links.resize(n + m, n + m)
        if drop < WEAKEST_LINK or connected_components(links, directed=False, return_labels=False) == 1:
            return W
        drop *= 1e-3
