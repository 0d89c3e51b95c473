"""Sinkhorn divergences: entropic transport without its bias."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..arrays.namespaces import array_namespace
from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from ..costs import PointCloud, as_cost
from ..costs.gibbs import LOG2E, GibbsKernel
from ._sinkhorn import METHODS, sinkhorn
from .gradients import transport_gradients
from .problem import Problem, check_potentials, check_unbalanced, make_problem
from .result import TransportResult
from .solver import Solver
from .sweeps import LogSweep

Array = Any
WRT = ("a", "b", "x", "y")
#: Heavy-ball step and momentum that are best for a Hessian with eigenvalues in [1, 2].
STEP = 0.6862915010152396  # 4 / (1 + sqrt(2))**2
MOMENTUM = 0.029437251522859406  # ((sqrt(2) - 1) / (sqrt(2) + 1))**2
#: Difference of row and column sums, relative to the mass, that no rounding explains.
ASYMMETRY = 1e-3


@dataclass(frozen=True, repr=False)
class DivergenceResult:
    """A Sinkhorn divergence, with the three transport problems that it is made of.

    Attributes
    ----------
    value : float
        The divergence, in the units of the cost times mass. As computed: rounding may leave a tiny negative
        number between equal measures.
    xy, xx, yy : TransportResult
        OT(a, b), OT(a, a) and OT(b, b). In the last two ``f`` and ``g`` are equal.
    """

    value: float
    xy: TransportResult
    xx: TransportResult
    yy: TransportResult

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        n, m = self.xy.problem.cost.shape
        return (
            f"DivergenceResult({n} x {m}, value={self.value:.6g}, marginal_error={self.marginal_error:.1e}, "
            f"n_iter={self.n_iter}, converged={self.converged})"
        )

    @property
    def marginal_error(self) -> float:
        """The largest of the three."""
        return max(result.marginal_error for result in (self.xy, self.xx, self.yy))

    @property
    def n_iter(self) -> int:
        """Iterations of all three problems."""
        return sum(result.n_iter for result in (self.xy, self.xx, self.yy))

    @property
    def converged(self) -> bool:
        """Whether all three are."""
        return all(result.converged for result in (self.xy, self.xx, self.yy))

    @property
    def message(self) -> str:
        """What happened in each of the three."""
        return "; ".join(f"OT({name}): {getattr(self, name).message}" for name in ("xy", "xx", "yy"))

    def gradients(self, wrt: str | Iterable[str] = ("a", "b", "x", "y")) -> dict[str, Array]:
        r"""Gradients of the divergence by the weights and the points.

        .. math::

            \nabla_a S = f_{ab} - f_{aa}, \qquad
            \nabla_{x_i} S = \sum_j P^{ab}_{ij} \nabla_1 c(x_i, y_j) - \sum_j P^{aa}_{ij} \nabla_1 c(x_i, x_j)

        and the same for b and y; the unbalanced formulas are those of `transport_gradients`.

        Parameters
        ----------
        wrt : str or iterable of str
            Any of ``"a"``, ``"b"``, ``"x"``, ``"y"``.

        Returns
        -------
        dict
            From the name to an array of the shape and dtype of that argument. Balanced, those by the weights
            hold for changes that keep the two masses equal, and are defined up to a constant (t, -t).

        Raises
        ------
        ValueError
            If a name is unknown, or the costs are not those of point clouds with a metric known by name
            (``"x"``, ``"y"``).

        Notes
        -----
        O((n^2 + n m) d) time for x, O((n + m) d) memory and a tile of a plan.

        Examples
        --------
        >>> import ot_numba
        >>> S = ot_numba.sinkhorn_divergence([[0.0], [1.0]], [[2.0], [3.0]], reg=0.1)
        >>> S.gradients("x")["x"].round(4).tolist()
        [[-2.0], [-2.0]]
        """
        names = [wrt] if isinstance(wrt, str) else list(wrt)
        for name in names:
            check_choice(name, "wrt", WRT)
        problem = self.xy.problem
        mixed = transport_gradients(self.xy, names)
        out = {}
        for name in names:
            own, first = (self.xx, "ax") if name in "ax" else (self.yy, "by")
            # the derivative by both arguments of OT(a, a), halved, is that by the first
            argument = "ax"[first.index(name)]
            out[name] = mixed[name] - transport_gradients(own, argument)[argument]
            if name in "ab" and not problem.balanced:
                sign = 1 if name == "a" else -1
                out[name] += sign * problem.reg * (problem.masses[0] - problem.masses[1])
        return out


def sinkhorn_divergence(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    metric: Any = "sqeuclidean",
    unbalanced: float | None = None,
    method: str = "auto",
    tol: float = 1e-6,
    max_iter: int = 10_000,
    init: DivergenceResult | None = None,
    on_fail: str = "warn",
) -> DivergenceResult:
    r"""Sinkhorn divergence between two weighted point clouds.

    .. math::

        S(a, b) = OT(a, b) - \tfrac12 OT(a, a) - \tfrac12 OT(b, b)
        + \tfrac{reg}{2} \Big(\sum_i a_i - \sum_j b_j\Big)^2

    where OT is the value of `sinkhorn` in the KL form at the same `reg`; the last term, 0 if balanced, is
    that of the unbalanced divergence. If :math:`\exp(-c/reg)` is a positive definite kernel, as for
    ``"sqeuclidean"``, ``"euclidean"``, ``"cityblock"`` and powers p <= 2 of the Euclidean distance, S >= 0, S
    = 0 if and only if the measures are equal, and S is convex in each. It goes from OT (reg -> 0) to a kernel
    distance with the kernel -c/2 (reg -> inf).

    Parameters
    ----------
    x, y : array_like of shape (n, d), (m, d), or (n,), (m,)
        Points.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0, of one total unless unbalanced; default uniform.
    reg : float
        Regularisation strength > 0, in the units of the cost; with ``"sqeuclidean"`` its square root is a
        length.
    metric : str, float or callable, default "sqeuclidean"
        As in `PointCloud`; a function must be symmetric.
    unbalanced : float, optional
        Strength of the penalties on both marginals, in the units of the cost.
    method : {"auto", "log", "kernel"}
        As in `sinkhorn`, for OT(a, b); ``"log"`` stores nothing of size n x m. The other two never do.
    tol : float
        On the L1 error of both marginals, relative to the mass, of each of the three problems. The error of
        the value is of second order in it.
    max_iter : int
        Largest number of iterations for each of the three.
    init : DivergenceResult, optional
        Earlier result for measures of the same sizes, to start from: as in a gradient flow.
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached: `ConvergenceWarning`, `ConvergenceError` or nothing.

    Returns
    -------
    DivergenceResult

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached and ``on_fail="warn"``.

    Notes
    -----
    OT(a, a) has one potential, the fixed point of :math:`T f = -reg \log \sum_j a_j e^{(f_j - C_{ij})/reg}`
    (times :math:`\rho/(\rho + reg)` if unbalanced). It is found by averaged updates, with the step and the
    momentum of the heavy-ball method: for a positive definite kernel the error shrinks by 0.17 per iteration
    whatever the data and `reg`, so about 15 iterations give 1e-9, each n^2 exponentials. Memory O((n + m) d)
    with ``method="log"``.

    References
    ----------
    Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré, "Interpolating between optimal transport and MMD using
    Sinkhorn divergences", AISTATS 2019. Séjourné, Feydy, Vialard, Trouvé, Peyré, "Sinkhorn divergences for
    unbalanced optimal transport", arXiv 1910.12958. Polyak, "Some methods of speeding up the convergence of
    iteration methods", USSR Comput. Math. Math. Phys. 4(5), 1964.

    Examples
    --------
    >>> import ot_numba
    >>> S = ot_numba.sinkhorn_divergence([[0.0], [1.0]], [[2.0], [3.0]], reg=0.1)
    >>> round(S.value, 6)
    4.0
    """
    array_namespace(x, y, a, b)
    return _divergence(
        PointCloud(x, y, metric),
        PointCloud(x, metric=metric),
        PointCloud(y, metric=metric),
        a,
        b,
        reg=reg,
        unbalanced=unbalanced,
        method=method,
        tol=tol,
        max_iter=max_iter,
        init=init,
        on_fail=on_fail,
    )


def sinkhorn_divergence_cost(
    C_xy: Any,
    C_xx: Any,
    C_yy: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    unbalanced: float | None = None,
    method: str = "auto",
    tol: float = 1e-6,
    max_iter: int = 10_000,
    init: DivergenceResult | None = None,
    on_fail: str = "warn",
) -> DivergenceResult:
    """Sinkhorn divergence from the costs between and within two measures, such as three times one `Grid`.

    Parameters
    ----------
    C_xy, C_xx, C_yy : Cost or array_like of shape (n, m), (n, n), (m, m)
        Costs of one dtype. The last two must be symmetric.
    a, b, reg, unbalanced, method, tol, max_iter, init, on_fail
        As in `sinkhorn_divergence`.

    Returns
    -------
    DivergenceResult

    Raises
    ------
    ValueError, TypeError, ConvergenceError
        As in `sinkhorn_divergence`; ValueError too if the shapes of the costs do not fit.

    Warns
    -----
    ConvergenceWarning
        As in `sinkhorn_divergence`; also where the potential of a cost that is not symmetric misses a
        marginal.

    Notes
    -----
    On a grid of N nodes with n_k along axis k, an iteration takes O(N sum_k n_k) time, and memory is O(N).

    References
    ----------
    See `sinkhorn_divergence`.

    Examples
    --------
    >>> import ot_numba
    >>> from ot_numba.transport.divergence import sinkhorn_divergence_cost
    >>> C = ot_numba.Grid((2, 2))
    >>> a, b = [0.25, 0.25, 0.25, 0.25], [0.4, 0.4, 0.1, 0.1]
    >>> round(sinkhorn_divergence_cost(C, C, C, a, b, reg=0.01).value, 4)
    0.2957
    """
    return _divergence(
        C_xy,
        C_xx,
        C_yy,
        a,
        b,
        reg=reg,
        unbalanced=unbalanced,
        method=method,
        tol=tol,
        max_iter=max_iter,
        init=init,
        on_fail=on_fail,
    )


def _divergence(
    C_xy: Any,
    C_xx: Any,
    C_yy: Any,
    a: Any,
    b: Any,
    *,
    reg: float,
    unbalanced: float | None,
    method: str,
    tol: float,
    max_iter: int,
    init: DivergenceResult | None,
    on_fail: str,
) -> DivergenceResult:
    """Solve the three problems."""
    check_choice(on_fail, "on_fail", ON_FAIL)
    check_choice(method, "method", METHODS)
    rho = check_unbalanced(unbalanced)
    if rho[0] != rho[1]:
        raise ValueError(f"unbalanced must be one number for both marginals, got {unbalanced!r}")
    problem = make_problem(C_xy, a, b, reg=reg, unbalanced=unbalanced)
    tol, max_iter = check_real(tol, "tol", low=0), check_int(max_iter, "max_iter", low=1)
    if init is not None and not isinstance(init, DivergenceResult):
        raise TypeError(f"init must be a DivergenceResult, got {type(init).__name__}")
    selfs = []
    for name, C, weights, size in (("C_xx", C_xx, problem.a, 0), ("C_yy", C_yy, problem.b, 1)):
        cost = as_cost(C)
        size = problem.cost.shape[size]
        if cost.shape != (size, size):
            raise ValueError(f"{name} must have shape {(size, size)}, got {tuple(cost.shape)}")
        if cost.dtype != problem.cost.dtype:
            raise TypeError(f"{name} must have the dtype of C_xy, {problem.cost.dtype}, got {cost.dtype}")
        selfs.append(make_problem(cost, weights, weights, reg=problem.reg, unbalanced=unbalanced))
    xy = sinkhorn(
        problem.cost,
        problem.a,
        problem.b,
        reg=problem.reg,
        unbalanced=unbalanced,
        method=method,
        tol=tol,
        max_iter=max_iter,
        init=None if init is None else init.xy,
        on_fail="ignore",
    )
    starts = (None, None) if init is None else (init.xx.f, init.yy.f)
    xx, yy = (sinkhorn_symmetric(own, tol=tol, max_iter=max_iter, f=f) for own, f in zip(selfs, starts, strict=True))
    for name, own in (("C_xx", xx), ("C_yy", yy)):
        if own.status == "floor":
            _refuse_asymmetric(name, own)
    # the dual values err in second order of the marginal error, those of the plans in first
    value = xy.dual_value - (xx.dual_value + yy.dual_value) / 2
    if not problem.balanced:
        value += problem.reg / 2 * (problem.masses[0] - problem.masses[1]) ** 2
    result = DivergenceResult(value, xy, xx, yy)
    if not result.converged:
        report_failure(result.message, on_fail)
    return result


def _refuse_asymmetric(name: str, result: TransportResult) -> None:
    """Raise if one potential cannot give both marginals."""
    xp = result.problem.xp
    r, c = result.marginals
    apart = float(xp.sum(xp.abs(r - c))) / result.problem.masses[0]
    if apart > ASYMMETRY:
        raise ValueError(f"{name} must be symmetric: with one potential, row and column sums differ by {apart:.1e}")


def sinkhorn_symmetric(problem: Problem, *, tol: float, max_iter: int, f: Array | None = None) -> TransportResult:
    """Solve a problem with a symmetric cost and equal weights on both sides, for its one potential."""
    if f is None:
        start = problem.xp.zeros_like(problem.restricted.a)
    else:
        start = problem.restrict(*check_potentials(f, f, problem))[0]
    solver = Solver(problem, tol=tol, max_iter=max_iter, check_every=10, callback=None, progress=False)
    inner = problem.restricted
    sweep = SymmetricSweep(inner, inner.cost.gibbs(problem.reg), start)
    status = solver.relaxed(sweep, 1.0, math.inf)
    return solver.report(sweep, status)


class SymmetricSweep(LogSweep):
    """Heavy-ball iterations on the one potential of a symmetric problem.

    Near the solution ``f -> f - T f`` is linear, its eigenvalues 1 + s with those s of ``P / a``: in [1, 2]
    for a positive definite kernel; else in (0, 2], where the iterations are stable too, as averaged ones are.
    """

    def __init__(self, problem: Problem, gibbs: GibbsKernel, f: Array) -> None:
        super().__init__(problem, gibbs, f, f, 0)
        xp = gibbs.xp
        self._folded = xp.astype(gibbs.row_offset(), xp.float64)
        self._potential = gibbs.k * xp.astype(f, xp.float64)  # the potential in bits, without weights and folded terms
        self._before = self._potential

    def iterate(self, relaxation: float = 1.0) -> tuple[float, float]:
        """One iteration; the errors of both marginals before it."""
        xp, damping, dual = self.gibbs.xp, self.damping[0], self._potential
        weights = xp.astype(self.problem.a, xp.float64)
        softmin = -(xp.astype(self.gibbs.row_logsumexp(self.G), xp.float64) + self._folded)
        target = xp.exp(-dual * (1 / damping - 1) / LOG2E)
        error = float(xp.sum(weights * xp.abs(xp.exp((dual - softmin) / LOG2E) - target)))
        self._potential = dual + STEP * (damping * softmin - dual) + MOMENTUM * (dual - self._before)
        self._before = dual
        self.F, self.G = (
            xp.astype(xp.astype(offset, xp.float64) + self._potential, self.F.dtype) for offset in self.offsets
        )
        return error, error

    def potentials(self) -> tuple[Array, Array]:
        """The potential in cost units, twice."""
        f = self.gibbs.xp.astype(self._potential / self.gibbs.k, self.F.dtype)
        return f, f
