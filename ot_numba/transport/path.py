"""Stages of Sinkhorn iterations and Newton steps along a path of decreasing regularisations."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..costs import CostMatrix
from .problem import Problem
from .result import TransportResult
from .solver import Solver, Watch, is_short
from .sparse_newton import PER_ROW, SparseNewton
from .sweeps import AbsorbedSweep, LogSweep
from .truncated_newton import TruncatedNewton

Array = Any
LINEAR = {"auto": "auto", "semidual": "direct", "pcg": "cg", "sparse": "sparse"}
PATH_RATIO = 4.0  #: of one regularisation to the next
SWEEPS = 2  #: iterations at the start of every stage
STAGE_ERROR = 3e-3  #: relative marginal error that ends a stage: small enough for the potentials to be extrapolated
STAGE_STEPS = 30
PATIENCE = 15  #: predicted plain iterations above which Newton steps are cheaper
CG_TOL = 1e-8  #: of the sparse systems of "sns"


class NewtonProgress(NamedTuple):
    """One entry of the history of `sinkhorn_newton`.

    Iterations so far (Sinkhorn's and Newton's), the regularisation at work, the residual relative to the mass, what is
    iterated ("sinkhorn", or how Newton's systems are solved: "cg", "direct", "sparse", "sns"), and the passes over the
    whole plan so far that evaluated its exponentials.
    """

    n_iter: int
    reg: float
    marginal_error: float
    method: str
    n_passes: int


def extrapolated(points: list[tuple[float, Array, Array]], reg: float, xp: Any) -> tuple[Array, Array]:
    """Potentials at `reg` on the line through those at the last two regularisations."""
    *before, (last, f, g) = points
    if not before:
        return f, g
    first, older_f, older_g = before[-1]
    share = (reg - last) / (last - first)
    return _line(xp, older_f, f, share), _line(xp, older_g, g, share)


def _line(xp: Any, older: Array, newer: Array, share: float) -> Array:
    """``newer + share (newer - older)`` where both are finite."""
    both = xp.isfinite(older) & xp.isfinite(newer)
    zeros = xp.zeros_like(newer)
    return newer + share * (xp.where(both, newer, zeros) - xp.where(both, older, zeros))


class PathSolver(Solver):
    """One run: stages of a few Sinkhorn iterations and Newton steps each.

    Parameters
    ----------
    problem, options
        As in `Solver`.
    method, globalization : str
        As in `sinkhorn_newton`.
    n_sinkhorn : int
        Iterations at the start of every stage, at most.
    density : float, optional
        Of the Hessian of ``"sns"``.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        method: str = "auto",
        globalization: str = "line_search",
        n_sinkhorn: int = SWEEPS,
        density: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(problem, **options)
        self.method, self.globalization = method, globalization
        self.n_sinkhorn, self.density = n_sinkhorn, density
        self.kind, self.passes = "sinkhorn", 0
        self.remark = ""

    def follow(self, schedule: list[float], start: tuple[Array, Array] | None) -> TransportResult:
        """Solve along the schedule, and report."""
        xp, status, sweep = self.inner.xp, "", None
        potentials = start or (xp.zeros_like(self.inner.a), xp.zeros_like(self.inner.b))
        points: list[tuple[float, Array, Array]] = []
        newton: TruncatedNewton | None = None
        try:
            for reg in [*schedule, self.problem.reg]:
                last = reg == self.problem.reg
                if not last and self.n_iter >= self.max_iter - 1:
                    continue
                gibbs = self.inner.cost.gibbs(reg)
                f, g = extrapolated(points[-2:], reg, xp) if points else potentials
                sweep = LogSweep(self.inner, gibbs, f, g, 2 if last and not points and start is None else 1)
                self.passes += 1
                if self.method == "sns" and last:
                    status = self._sparse(sweep)
                    continue
                goal = self.goal if last else max(STAGE_ERROR, self.tol)
                if last and is_short(self.problem):
                    sweep, status = self._plain(sweep)
                    if status != "slow":
                        continue
                else:
                    self._sweep(sweep, goal)
                newton = self._steps_from(sweep, newton)
                status = self._descend(newton, last)
                points.append((reg, *sweep.potentials()))
        except StopIteration:
            status = "stopped"
        finally:
            if self.bar is not None:
                self.bar.close()
        return self.report(sweep, status)

    def _plain(self, sweep: LogSweep) -> tuple[LogSweep, str]:
        """Plain iterations while few are due, on a stored kernel if there is room; the status, "slow" otherwise."""
        if self._fits() and isinstance(self.inner.cost, CostMatrix):
            sweep = AbsorbedSweep(self.inner, sweep.gibbs, *sweep.potentials(), 0)
            self.passes += 1
        self.kind = "sinkhorn"
        status = self.relaxed(sweep, 1.0, PATIENCE)
        if status == "slow":
            sweep = LogSweep(self.inner, sweep.gibbs, *sweep.potentials(), 0)
            self._settled = None
        return sweep, status

    def _sweep(self, sweep: LogSweep, goal: float) -> None:
        """A few iterations."""
        self.kind = "sinkhorn"
        exact = False
        for row_error, column_error in self._iterations(sweep, min(self.n_sinkhorn, self.max_iter - 1 - self.n_iter)):
            # after a column update the columns are exact, and this row error is the whole residual
            error = row_error if exact else row_error + column_error
            exact = self.problem.balanced
            self.passes += 1
            self._tell(sweep, error)
            if error <= goal * self.mass:
                break

    def _steps_from(self, sweep: LogSweep, previous: TruncatedNewton | None) -> TruncatedNewton:
        if previous is not None:
            return previous.continued(sweep)
        store = self._fits(4)
        if self.method in ("pcg", "sparse"):
            store = store and isinstance(self.inner.cost, CostMatrix)
        elif self.method == "semidual":
            store = True
        return TruncatedNewton(sweep, store=store, linear=LINEAR[self.method], globalization=self.globalization)

    def _descend(self, newton: TruncatedNewton | SparseNewton, last: bool) -> str:
        """Newton steps down to the error that ends the stage, or that of the result; the status."""
        sweep = newton.sweep
        watch = Watch(self, sweep, patience=10) if last else None
        steps, seen = 0, 0
        while True:
            error = newton.error()
            if steps:
                self.passes += newton.passes - seen
                self._tell(sweep, error)
            seen = newton.passes
            self.kind = newton.kind
            goal = self.goal if last else max(STAGE_ERROR, self.tol)
            if watch:
                status = watch.status(sweep, error, plain=True)
            else:
                status = "converged" if error <= goal * self.mass else None
            if status or self.n_iter >= self.max_iter or (not watch and steps == STAGE_STEPS):
                return status or "max_iter"
            newton.step(goal * self.mass)
            steps += 1

    def _sparse(self, sweep: LogSweep) -> str:
        """Sinkhorn-Newton-Sparse; the status."""
        self._sweep(sweep, self.goal)
        n, m = self.inner.cost.shape
        density = min(1.0, PER_ROW / max(n, m)) if self.density is None else self.density
        newton = SparseNewton(sweep, density=density, tol=CG_TOL)
        status = self._descend(newton, last=True)
        if newton.failures:
            self.remark = (
                f"; the sparse Hessian was not good enough {newton.failures} times, its density was raised from "
                f"{density:.2g} to {newton.density:.2g}"
            )
        return status

    def _entry(self, reg: float, error: float) -> NewtonProgress:
        return NewtonProgress(self.n_iter, reg, error, self.kind, self.passes)

    def _message(self, status: str, error: float) -> str:
        return super()._message(status, error) + self.remark
