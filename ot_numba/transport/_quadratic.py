"""Quadratically regularised transport to high accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..arrays.progress import progress_bar
from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from .semismooth import SemismoothNewton
from .solver import LENIENCE, SUM_ROUNDINGS, State, check_schedule
from .sparse_result import SparseModel, SparseProgress, SparseReport, SparseTransportResult

Array = Any
FIRST_STAGE = 0.3  #: first automatic regularisation times the mean mass of a point, over the range of the cost
STAGE_RATIO = 4.0
STAGE_ERROR = 0.03


def quadratic_ot(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    reg_schedule: str | Iterable[float] | None = "auto",
    tol: float = 1e-9,
    max_iter: int = 2000,
    init: SparseTransportResult | tuple[Any, Any] | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> SparseTransportResult:
    r"""Quadratically regularised optimal transport, whose plan is sparse, to high accuracy.

    .. math:: \min_{P \ge 0}\ \langle C, P\rangle + \tfrac{reg}{2} \|P\|^2 \quad\text{s.t.}\quad P 1 = a,\ P^\top 1 = b

    The plan is :math:`P_{ij} = \max(f_i + g_j - C_{ij}, 0) / reg`. It is found by a semi-smooth Newton method on the
    semi-dual (one potential eliminated exactly), at decreasing regularisations. Every step is an ascent step; once the
    positive entries are the right ones, one step gives the exact solution.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost: an array, or a `PointCloud`, `Grid`, `CostMatrix`. ``inf`` forbids a pair.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0, default uniform with mass 1. Their sums must agree (1e-8 relative; float32 1e-5).
    reg : float
        Regularisation strength > 0, in the units of the cost **per mass**: the entries of a plan being of the size
        mass / n, a strength of n times the range of the cost over the mass is large.
    reg_schedule : "auto", None or sequence of float
        Decreasing regularisations to pass on the way to `reg`, to an error of 3% each. ``"auto"``: from 0.3 max(n, m)
        times the range of the cost over the mass, by factors of 4; none with an `init`.
    tol : float
        On the L1 error of both marginals relative to the mass. It is raised to the rounding floor where that is at most
        ten times `tol` or 240 units of rounding, and the message says so.
    max_iter : int
        Largest number of Newton steps, those of the schedule included.
    init : SparseTransportResult or (f, g), optional
        Potentials to start from, in the units of the cost.
    callback : callable, optional
        ``callback(state)`` after every step, with the `State` of `sinkhorn`; may raise StopIteration.
    progress : bool
        Whether to show a progress bar (tqdm).
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached: `ConvergenceWarning`, `ConvergenceError` or nothing.

    Returns
    -------
    SparseTransportResult

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
    A step takes about four passes over the cost, and a factorisation with the smaller number of points p: sparse where
    the plan is, p^3 / 3 multiply-adds otherwise; systems are solved on the host. Memory beyond the cost: up to
    p^2 numbers, and the copy of a stored cost if it has fewer rows than columns or points without weight. float32
    costs are solved to float32's floor, about 1e-6.

    References
    ----------
    Lorenz, Manns, Meyer, "Quadratically regularized optimal transport", Applied Mathematics & Optimization 83, 2021,
    arXiv 1903.01112. Blondel, Seguy, Rolet, "Smooth and sparse optimal transport", AISTATS 2018, arXiv 1710.06276.

    Examples
    --------
    >>> import numpy as np, ot_numba
    >>> C = np.abs(np.arange(5.0)[:, None] - np.arange(5.0))
    >>> result = ot_numba.quadratic_ot(C, reg=1.0)
    >>> result.converged, result.nnz, bool(abs(result.gap) < 1e-12)
    (True, 5, True)
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    model = SparseModel.of(C, a, b, reg=reg, k=None, relax=0.0, axis=1)
    rows, columns = model.problem.cost.shape
    if columns > rows:  # the system has as many unknowns as there are columns
        model = SparseModel(model.problem, None, 0.0, 0)
    run = Run("quadratic_ot", model, tol=tol, max_iter=max_iter, callback=callback, progress=progress)
    schedule = check_schedule(
        reg_schedule, model.problem.reg, lambda: _automatic_schedule(model) if init is None else []
    )
    _, G = model.start(init)
    try:
        newton, status = run.follow([(reg, 0.0) for reg in schedule], STAGE_ERROR, G)
    finally:
        run.close()
    *plan, F = newton.dual.plan_from_semidual(newton.G)
    report = SparseReport(model, F, newton.G, tuple(plan))
    result = run.report(report, newton.value, status, "increase max_iter or reg")
    if not result.converged and result.status != "stopped":
        report_failure(result.message, on_fail)
    return result


class Run:
    """One run of a solver: its options, what it has done, and what it says about it."""

    def __init__(
        self,
        name: str,
        model: SparseModel,
        *,
        tol: float,
        max_iter: int,
        callback: Callable[[State], None] | None,
        progress: bool,
    ) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function, got {callback!r}")
        self.name, self.model, self.callback = name, model, callback
        self.tol, self.max_iter = check_real(tol, "tol", low=0), check_int(max_iter, "max_iter", low=1)
        self.n_iter = self.n_evaluations = 0
        self.history: list[SparseProgress] = []
        self.bar = progress_bar(self.max_iter, name) if progress else None

    def close(self) -> None:
        """The end of the iterations."""
        if self.bar is not None:
            self.bar.close()

    def tell(
        self, reg: float, relax: float, value: float, error: float, potentials: Callable[[], tuple[Array, Array]]
    ) -> None:
        """One iteration is done; `potentials` are those of the rows and the columns of `native`."""
        self.n_iter += 1
        self.history.append(SparseProgress(self.n_iter, self.n_evaluations, reg, relax, value, error))
        if self.bar is not None:
            self.bar.update(1)
        if self.callback is not None:
            self.callback(State(self.n_iter, reg, error, lambda: self.model.orient(*potentials())))

    def follow(
        self, stages: list[tuple[float, float]], stage_error: float, G: Array
    ) -> tuple[SemismoothNewton, str]:
        """Newton's method at other regularisations and relaxations first; where it ended, and the status."""
        model, newton = self.model, None
        try:
            for reg, relax in stages:
                if self.n_iter < self.max_iter - 1:
                    newton = SemismoothNewton(model.dual(reg, relax), G)
                    self._descend(newton, reg, relax, max(stage_error, self.tol))
                    G = newton.G
            newton = SemismoothNewton(model.dual(), G)
            self._descend(newton, model.problem.reg, model.relax, self.tol)
        except StopIteration:
            return SemismoothNewton(model.dual(), newton.G), "stopped"
        return newton, "infeasible" if self.refuted(newton) else "floor" if newton.stuck else "max_iter"

    def refuted(self, newton: SemismoothNewton) -> bool:
        """Whether the dual value exceeds the objective of any plan, which forbidden pairs may leave without any."""
        cost, mass = self.model.native.cost, self.model.mass
        return not cost.finite and newton.value > 1.01 * (
            max(map(abs, cost.bounds())) * mass + newton.reg / 2 * mass * mass
        )

    def _descend(self, newton: SemismoothNewton, reg: float, relax: float, tol: float) -> None:
        """Steps down to an error relative to the mass."""
        before, mass = self.n_evaluations, self.model.mass
        goal = tol * mass
        self.n_evaluations += newton.n_evaluations
        while newton.error() > goal and self.n_iter < self.max_iter and not (newton.stuck or self.refuted(newton)):
            newton.step()
            self.n_evaluations = before + newton.n_evaluations
            self.tell(reg, relax, newton.value, newton.error() / mass, lambda: (newton.F, newton.G))

    def report(
        self, report: SparseReport, dual_value: float, status: str, advice: str, notes: Iterable[str] = ()
    ) -> SparseTransportResult:
        """The result; whether it has converged is decided by the plan."""
        errors = report.errors()
        error = sum(errors)
        problem = self.model.problem
        unit = float(problem.xp.finfo(problem.cost.dtype).eps) / 2
        reached = f"marginal error {error:.2e} after {self.n_iter} iterations and {self.n_evaluations} evaluations"
        if status == "floor" and self.tol < error <= LENIENCE * max(self.tol, SUM_ROUNDINGS * unit):
            self.tol = error  # as `sinkhorn` does
            reached += " (the rounding floor)"
        converged = error <= self.tol
        if converged and status != "stopped":
            status = "converged"
        if status == "converged":
            message = f"converged: {reached}, tol={self.tol:.3g}"
        elif status == "stopped":
            message = f"stopped by the callback: {reached}"
        else:
            advice = REMEDIES.get(status, advice)
            message = f"not converged ({REASONS[status]}): {reached}, tol={self.tol:.3g}; {advice}"
        message = "; ".join([message, *notes])
        return report.result(
            dual_value,
            n_iter=self.n_iter,
            n_evaluations=self.n_evaluations,
            converged=converged,
            status=status,
            message=message,
            history=self.history,
        )


REASONS = {
    "max_iter": "max_iter is reached",
    "kink": "no step raises the dual, as at a maximum where it has no gradient",
    "stalled": "the dual value no longer changes",
    "floor": "the rounding floor is reached",
    "infeasible": "the forbidden pairs leave no plan with these marginals",
}
REMEDIES = {
    "floor": "use float64, a larger reg or tol, or take off a constant that all costs share",
    "infeasible": "allow more pairs",
}


def _automatic_schedule(model: SparseModel) -> list[float]:
    """Regularisations to pass on the way, by factors of `STAGE_RATIO`."""
    low, high = model.native.cost.bounds()
    first, reg = FIRST_STAGE * (high - low) * max(model.native.cost.shape) / model.mass, model.problem.reg
    stages = max(0, math.ceil(math.log(first / reg, STAGE_RATIO))) if first > reg else 0
    return [reg * STAGE_RATIO**i for i in range(stages - 1, 0, -1)]
