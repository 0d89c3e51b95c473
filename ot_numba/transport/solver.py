"""What the solvers of one entropic problem share: options, the watch over the error, and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..arrays.namespaces import is_asynchronous, memory_of, read_floats
from ..arrays.progress import progress_bar
from ..arrays.validation import check_choice, check_real, dtype_name
from ..costs import CostMatrix, Grid
from .acceleration import Relaxation
from .objective import marginal_residual, pair
from .problem import Problem, check_pair, check_potentials
from .result import Progress, TransportResult, make_result
from .sweeps import LogSweep

Array = Any
ONLINE_KERNEL_BYTES = 1 << 28  #: largest kernel that is stored for a cost which is not stored itself
FIRST_STAGE = 0.25  #: first regularisation of the automatic schedule, relative to the range of the cost
SHORT_RANGE = 100.0  #: range of the cost over reg up to which no schedule is worth its passes
#: Rounding floor of the marginal error in units of rounding, u: of the sums, and for each bit of the mean potential.
SUM_ROUNDINGS, POTENTIAL_ROUNDINGS = 24.0, 2.0
LENIENCE = 10.0  #: factor by which a tolerance below the floor may be raised; beyond, the result is not converged


@dataclass
class State:
    """What a callback sees.

    Attributes
    ----------
    n_iter : int
        Iterations so far.
    reg : float
        Regularisation at work (larger than the target during the schedule).
    marginal_error : float
        Residual met in the latest iteration, relative to the mass.
    potentials : callable
        ``potentials()`` returns copies of (f, g) at the points with positive weight, in the units of the cost.
    """

    n_iter: int
    reg: float
    marginal_error: float
    potentials: Callable[[], tuple[Array, Array]]


def check_schedule(reg_schedule: Any, reg: float, automatic: Callable[[], list[float]]) -> list[float]:
    """Regularisations before the last one."""
    if reg_schedule is None:
        return []
    if isinstance(reg_schedule, str):
        check_choice(reg_schedule, "reg_schedule", ("auto",))
        return automatic()
    if not isinstance(reg_schedule, Iterable):
        raise TypeError(f"reg_schedule must be 'auto', None or a sequence of numbers, got {reg_schedule!r}")
    stages = [check_real(value, "reg_schedule", low=reg, high=math.inf, high_open=True) for value in reg_schedule]
    if any(later > earlier for earlier, later in pairwise(stages)):
        raise ValueError(f"reg_schedule must decrease, got {stages}")
    return [value for value in dict.fromkeys(stages) if value > reg]


def is_short(problem: Problem) -> bool:
    """Whether the range of the cost is a small multiple of reg, so that no path to it is needed."""
    low, high = problem.cost.bounds()
    return high - low <= SHORT_RANGE * problem.reg


def automatic_schedule(problem: Problem, ratio: float) -> list[float]:
    """Regularisations that fall by factors of `ratio`; none where the range of the cost is short."""
    low, high = problem.cost.bounds()
    first, reg = FIRST_STAGE * (high - low), problem.reg
    count = 0 if is_short(problem) else math.ceil(math.log(first / reg, ratio) - 1e-9)
    return [first / ratio**i for i in range(count)]


def check_start(init: Any, problem: Problem) -> tuple[Array, Array] | None:
    """Potentials to start from on the positive weights."""
    if init is None:
        return None
    f, g = (init.f, init.g) if isinstance(init, TransportResult) else check_pair(init, "a TransportResult")
    return problem.restrict(*check_potentials(f, g, problem))


class Solver:
    """One run on one problem."""

    def __init__(
        self,
        problem: Problem,
        *,
        name: str = "sinkhorn",
        advice: str = "increase max_iter or reg",
        tol: float,
        max_iter: int,
        check_every: int,
        callback: Callable[[State], None] | None,
        progress: bool,
    ) -> None:
        self.advice = advice
        self.problem, self.inner = problem, problem.restricted
        self.max_iter, self.check_every, self.callback = max_iter, check_every, callback
        self.unit = float(problem.cost.xp.finfo(problem.cost.dtype).eps) / 2
        self.asked, self.tol, self.floor = tol, tol, 0.0
        self.mass = problem.mass
        self.n_iter = 0
        self._settled: tuple | None = None
        self.history: list[Progress] = []
        self.bar = progress_bar(max_iter, name) if progress else None

    @property
    def goal(self) -> float:
        """Relative error at which nothing more is to be had."""
        return max(self.tol, self.floor)

    def raise_floor(self, F: Array, G: Array) -> None:
        """Stop, and within limits be content, at what the rounding of these potentials, in bits, allows.

        An error of u |F_i| bits is one of u |F_i| log 2 in a row of the plan: ``u log(2) (<a, |F|> + <b, |G|>)`` in
        all. Measured residuals at which iterations got stuck were 0.4 to 3 times that.
        """
        inner, xp, problem = self.inner, self.inner.xp, self.problem
        bits = 0.0
        for weights, potential in ((inner.a, F), (inner.b, G)):
            size = xp.where(weights > 0, xp.abs(potential), xp.zeros_like(potential))
            bits += float(xp.sum(xp.astype(weights, xp.float64) * xp.astype(size, xp.float64))) / self.mass
        sums = self.unit * SUM_ROUNDINGS * max(1.0, 0.1 * problem.reg / min(problem.rho))
        self.floor = max(sums, self.unit * POTENTIAL_ROUNDINGS * math.log(2) * bits)
        self.tol = max(self.asked, min(self.floor, LENIENCE * max(self.asked, sums)))

    def _fits(self, itemsize: int | None = None) -> bool:
        """Whether a kernel may be stored."""
        n, m = self.inner.cost.shape
        size = n * m * (itemsize or (4 if dtype_name(self.inner.cost.dtype) == "float32" else 8))
        if isinstance(self.inner.cost, CostMatrix):
            return size <= memory_of(self.inner.cost.device) // 4
        return not isinstance(self.inner.cost, Grid) and size <= ONLINE_KERNEL_BYTES

    def _iterations(self, sweep: LogSweep, count: int, relaxation: float = 1.0) -> Iterator[tuple[float, float]]:
        """Errors of so many iterations: of each, or, where to read a number is to wait for a device, after the last."""
        if not is_asynchronous(self.inner.xp):
            for _ in range(count):
                yield sweep.iterate(relaxation)
        else:
            errors = read_floats(error for _ in range(count) for error in sweep.iterate(relaxation))
            yield from zip(errors[::2], errors[1::2], strict=True)

    def _tell(self, sweep: LogSweep, error: float, passes: int = 1) -> None:
        """Count iterations; every `check_every`, record them and let the callback see them."""
        before, self.n_iter = self.n_iter, self.n_iter + passes
        if self.bar is not None:
            self.bar.update(passes)
        if self.n_iter // self.check_every == before // self.check_every:
            return
        reg = sweep.gibbs.reg
        self.history.append(self._entry(reg, error / self.mass))
        if self.bar is not None:
            self.bar.set_postfix_str(f"marginal error {error / self.mass:.1e}")
        if self.callback is not None:
            potentials = lambda: self.problem.in_order(*sweep.potentials())  # noqa: E731
            self.callback(State(self.n_iter, reg, error / self.mass, potentials))
        sweep.maintain()

    def _entry(self, reg: float, error: float) -> Progress:
        """What the history keeps of an iteration."""
        return Progress(self.n_iter, reg, error)

    def _unwatched(self) -> int:
        """Iterations up to the next look at the error."""
        if not is_asynchronous(self.inner.xp):
            return 1
        due = self.check_every - self.n_iter % self.check_every
        return max(1, min(due, self.max_iter - 1 - self.n_iter))

    def relaxed(self, sweep: LogSweep, relaxation: str | float, patience: float) -> str:
        """Over-relaxed iterations at the target regularisation; the status, "slow" if more than `patience` are due."""
        adaptive = Relaxation() if relaxation == "auto" else None
        watch = Watch(self, sweep)
        errors: list[float] = []
        factor = None
        while self.n_iter < self.max_iter:
            previous, factor = factor, adaptive.factor if adaptive else relaxation
            if self.n_iter == self.max_iter - 1:
                factor = 1.0  # so that the columns of the plan are exact
            for row_error, column_error in self._iterations(sweep, self._unwatched(), factor):
                # after a plain column update the columns are exact, and this row error is the whole residual
                error = row_error if previous == 1 and self.problem.balanced else row_error + column_error
                previous = factor
                self._tell(sweep, error)
                if adaptive:
                    adaptive.observe(error)
                errors.append(error / self.mass)
            status = watch.status(sweep, error, plain=factor == 1)
            if status:
                return status
            if len(errors) > 5 and errors[-1] > 0:
                rate = (errors[-1] / errors[-6]) ** (1 / 5)
                if _iterations_left(rate, errors[-1], self.goal) > patience:
                    return "slow"
        return "max_iter"

    def settle(self, sweep: LogSweep) -> tuple[Array, Array, Array, Array, float, float]:
        """Potentials as they will be returned, with the marginals, <C, P> and the residual of their plan."""
        if self._settled and self._settled[:2] == (sweep, self.n_iter):
            return self._settled[2]
        inner, xp = self.inner, self.inner.xp
        f, g = sweep.potentials()
        if inner.balanced:
            shift = (pair(xp, f, inner.a) - pair(xp, g, inner.b)) / (2 * self.mass)
            f, g = f - shift, g + shift
        bits = inner.to_bits(f, g, sweep.gibbs)
        self.raise_floor(*bits)
        r, c, linear_cost = sweep.gibbs.statistics(*bits)
        self._settled = sweep, self.n_iter, (f, g, r, c, linear_cost, marginal_residual(inner, f, g, r, c))
        return self._settled[2]

    def report(self, sweep: LogSweep, status: str) -> TransportResult:
        """Recompute everything from the potentials that are returned."""
        problem, inner = self.problem, self.inner
        if sweep.gibbs.reg != problem.reg:  # stopped on the way: g carries over in the units of the cost, f follows
            sweep = LogSweep(inner, inner.cost.gibbs(problem.reg), *sweep.potentials(), 1)
        f, g, r, c, linear_cost, error = self.settle(sweep)
        converged = error <= self.tol
        if status == "converged" and not converged:
            status = "floor"
        elif converged:
            status = "converged"
        return make_result(
            problem,
            f,
            g,
            r,
            c,
            linear_cost=linear_cost,
            marginal_error=error,
            n_iter=self.n_iter,
            converged=converged,
            status=status,
            message=self._message(status, error),
            history=self.history,
        )

    def _message(self, status: str, error: float) -> str:
        reached = f"marginal error {error:.2e} after {self.n_iter} iterations"
        if self.asked < min(error, self.floor):
            reached += f" (tol={self.asked:g} is below the rounding floor, {self.floor:.1e})"
        if status == "converged":
            return f"converged: {reached}, tol={self.tol:.3g}"
        if status == "stopped":
            return f"stopped by the callback: {reached}"
        if status == "floor":
            return (
                f"stuck at the rounding floor: {reached}, tol={self.tol:.3g}; the cost is up to "
                f"{self._largest_ratio():.1e} times reg: use float64, a larger reg or a larger tol"
            )
        return f"not converged: {reached}, tol={self.tol:.3g}; {self._outlook(error)}"

    def _largest_ratio(self) -> float:
        """Largest absolute cost over reg."""
        return max(map(abs, self.problem.cost.bounds())) / self.problem.reg

    def _outlook(self, error: float) -> str:
        """Rate of the last iterations, and what to change."""
        tail = [entry for entry in self.history if entry.reg == self.problem.reg][-5:]
        advice = self.advice
        if len(tail) < 2 or not tail[0].marginal_error > tail[-1].marginal_error > 0 or not error > 0:
            return advice
        rate = (tail[-1].marginal_error / tail[0].marginal_error) ** (1 / (tail[-1].n_iter - tail[0].n_iter))
        more = _iterations_left(rate, error, self.tol)
        left = f"about {math.ceil(more)} more are needed; " if math.isfinite(more) else ""
        return f"the error shrinks by {rate:.6f} per iteration; {left}{advice}"


def _iterations_left(rate: float, error: float, tol: float) -> float:
    """Iterations from `error` to `tol` at a rate per iteration."""
    if error <= tol:
        return 0.0
    return math.log(tol / error) / math.log(rate) if 0 < rate < 1 else math.inf


class Watch:
    """Decides when the iterations at the target are over."""

    attempts = 3  #: times that a residual recomputed from the potentials may contradict the running one

    def __init__(self, solver: Solver, sweep: LogSweep, patience: int = 100) -> None:
        """`patience` is the number of steps without progress, near the rounding floor, that mean it is reached."""
        solver.raise_floor(*sweep.bits())
        self.solver, self.patience = solver, patience
        self.best, self.since, self.refused = math.inf, 0, 0
        self.goal = solver.goal

    def status(self, sweep: LogSweep, error: float, *, plain: bool) -> str | None:
        """Status to end with after an iteration that met this error, None to go on."""
        solver = self.solver
        error /= solver.mass
        if error <= self.goal:
            if not plain:
                sweep.iterate()
                solver.n_iter += 1
            if solver.settle(sweep)[-1] <= solver.goal:
                return "converged"
            self.refused += 1
            if self.refused == self.attempts:
                return "floor"
            self.goal = error / 2  # ask for more before looking again
            sweep.refresh()
        self.since += 1
        if error < 0.99 * self.best:
            self.best, self.since = error, 0
        elif self.since > self.patience and self.best < 30 * solver.floor:
            return "floor"
        return None
