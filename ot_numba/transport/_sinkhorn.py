"""Sinkhorn's algorithm in its stable forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..arrays.namespaces import is_asynchronous, memory_of, read_floats
from ..arrays.validation import check_choice, check_int, check_real, dtype_name
from ..arrays.warnings import ON_FAIL, report_failure
from ..costs import CostMatrix, Grid
from .acceleration import Anderson, Relaxation
from .objective import marginal_residual, pair
from .problem import Problem, check_potentials, make_problem
from .result import Progress, TransportResult, make_result
from .sweeps import AbsorbedSweep, LogSweep
from .truncated_newton import TruncatedNewton

Array = Any
METHODS = ("auto", "log", "kernel")
ONLINE_KERNEL_BYTES = 1 << 28  #: largest kernel that "auto" stores for a cost which is not stored itself
FIRST_STAGE = 0.25  #: first regularisation of the automatic schedule, relative to the range of the cost
STAGE_RATIO = 2.0
STAGE_ITERATIONS = 5
STAGE_STEPS = 10  #: truncated Newton steps that a stage may take where its iterations do not get that far
STAGE_ERROR = 0.05  #: relative marginal error that ends a stage early
SHORT_RANGE = 100.0  #: range of the cost over reg up to which no schedule is worth its passes
PATIENCE = 15  #: predicted iterations above which truncated Newton steps are cheaper
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


def sinkhorn(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "kl",
    method: str = "auto",
    unbalanced: float | tuple[float, float] | None = None,
    reg_schedule: str | Iterable[float] | None = "auto",
    relaxation: str | float = "auto",
    anderson: int = 0,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    check_every: int = 10,
    init: TransportResult | tuple[Any, Any] | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> TransportResult:
    r"""Entropic optimal transport by Sinkhorn's algorithm.

    .. math::

        \min_{P \ge 0}\ \langle C, P\rangle + reg\, R(P) \quad\text{s.t.}\quad P 1 = a,\ P^\top 1 = b,

    with :math:`R(P) = KL(P | a b^\top)` (``regularizer="kl"``) or :math:`\sum_{ij} P_{ij} (\log P_{ij} - 1)`
    (``"entropy"``; the balanced plan is the same, the potentials and the value differ). With `unbalanced` the
    constraints become penalties :math:`\rho_1 KL(P 1 | a) + \rho_2 KL(P^\top 1 | b)`.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost: an array, or a `PointCloud`, `Grid`, `CostMatrix`. ``inf`` forbids a pair. float32 data are worked
        on in float32 with sums in float64, everything else in float64.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0, default uniform with mass 1. In a balanced problem their sums must agree (1e-8 relative; float32
        1e-5); `b` is then rescaled to the mass of `a`.
    reg : float
        Regularisation strength > 0, in the units of the cost; see `suggest_reg`.
    regularizer : {"kl", "entropy"}
        Form of R.
    method : {"auto", "log", "kernel"}
        ``"log"`` evaluates every exponential in every iteration; nothing of size n x m is stored. ``"kernel"`` stores
        :math:`\exp((f + g - C)/reg)` with the potentials absorbed, n m numbers, and iterates by scalings; it absorbs
        again when the scalings grow and takes a step in the log domain if one leaves the range of the dtype. Both are
        stable at any `reg`. ``"auto"`` iterates on the kernel if it fits (a quarter of the physical memory beside a
        stored cost, 256 MB beside a cost that is evaluated on the fly), in the log domain otherwise, and where the
        rate predicts many more iterations it goes on with truncated Newton steps on the semi-dual (unless `relaxation`
        or `anderson` asks for something else), each product with the Hessian counted as an iteration.
    unbalanced : float or pair of float, optional
        Strengths :math:`\rho_1, \rho_2 > 0` of the marginal penalties, in the units of the cost; ``inf`` or None in a
        pair keeps that marginal a constraint. The constant shift of the potentials, the slow mode at large rho, is
        optimised exactly in every iteration.
    reg_schedule : "auto", None or sequence of float
        Decreasing regularisations to pass on the way to `reg`, up to five iterations each. ``"auto"``: from a quarter
        of the range of the cost, by factors of 2; none if there is an `init` or the range is below 100 `reg`.
    relaxation : "auto" or float
        Over-relaxation factor in [1, 2); ``"auto"`` estimates the best one from the observed rate (and is not needed
        with ``method="auto"``, see there).
    anderson : int
        Memory of Anderson acceleration (5 to 10 is usual), 0 for none. A step that lowers the dual is undone. Replaces
        over-relaxation.
    tol : float
        On the L1 error of both marginals relative to the mass. Iterations stop at the rounding floor, about
        ``2 u log(2)`` times the mean potential in bits and at least ``24 u``, for rounding errors u of the dtype. A
        smaller `tol` is raised to it, and the message says so, but no further than to ten times `tol` or ``240 u``:
        above that the result has not converged, its status is ``"floor"``. Plain iterations that converge slowly get
        stuck higher, where their steps round to nothing.
    max_iter : int
        Largest number of iterations, those of the schedule included.
    check_every : int
        Iterations between history entries, calls of `callback` and maintenance of an absorbed kernel. The residual
        comes free with every iteration and is compared with `tol` in each.
    init : TransportResult or (f, g), optional
        Potentials to start from, in the units of the cost and the form of `regularizer`.
    callback : callable, optional
        ``callback(state)`` with a `State`; may raise StopIteration to end with status ``"stopped"``.
    progress : bool
        Whether to show a progress bar (tqdm).
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached: `ConvergenceWarning`, `ConvergenceError` or nothing.

    Returns
    -------
    TransportResult

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
    Time per iteration: n m exponentials (log), 2 n m multiply-adds (kernel), n d sums for a grid. Memory beyond the
    input: O(n + m), or n m numbers (kernel). Between points in at most three dimensions (squared Euclidean or cosine),
    at a `reg` so small that most of the plan is negligible, iterations visit only the tiles of the plan that count,
    with the same sums up to rounding, and ``"auto"`` stores no more than those, up to 256 MB.

    References
    ----------
    Cuturi, "Sinkhorn distances", NeurIPS 2013. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized
    transport problems", SIAM J. Sci. Comput. 41(3), 2019. Séjourné, Vialard, Peyré, "Faster unbalanced optimal
    transport: translation invariant Sinkhorn and 1-D Frank-Wolfe", AISTATS 2022. `Relaxation` and `Anderson` name
    theirs.

    Examples
    --------
    >>> import numpy as np, ot_numba
    >>> result = ot_numba.sinkhorn([[0.0, 1.0], [2.0, 0.5]], [0.3, 0.7], [0.6, 0.4], reg=1.0, tol=1e-10)
    >>> result.converged, round(result.value, 8)
    (True, 0.96602791)
    >>> result.plan.round(4).tolist()
    [[0.2742, 0.0258], [0.3258, 0.3742]]
    """
    check_choice(method, "method", METHODS)
    check_choice(on_fail, "on_fail", ON_FAIL)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, got {callback!r}")
    problem = make_problem(
        C, a, b, reg=reg, regularizer=regularizer, unbalanced=unbalanced, ordered=True, stored=method == "kernel"
    )
    if relaxation != "auto":
        relaxation = check_real(relaxation, "relaxation", low=1, high=2, high_open=True)
    anderson = check_int(anderson, "anderson", low=0)
    if anderson and relaxation not in ("auto", 1.0):
        raise ValueError(f"anderson replaces over-relaxation: relaxation must be 'auto' or 1, got {relaxation}")
    schedule = _schedule(reg_schedule, problem, init is not None)
    start = _start(init, problem)
    solver = _Solver(
        problem,
        tol=check_real(tol, "tol", low=0),
        max_iter=check_int(max_iter, "max_iter", low=1),
        check_every=check_int(check_every, "check_every", low=1),
        callback=callback,
        progress=progress,
    )
    result = solver.run(schedule, start, method, relaxation, anderson)
    if not result.converged and result.status != "stopped":
        report_failure(result.message, on_fail)
    return result


def _schedule(reg_schedule: Any, problem: Problem, warm: bool) -> list[float]:
    """Regularisations before the last one."""
    reg = problem.reg
    if reg_schedule is None:
        return []
    if isinstance(reg_schedule, str):
        check_choice(reg_schedule, "reg_schedule", ("auto",))
        low, high = problem.cost.bounds()
        first = FIRST_STAGE * (high - low)
        short = warm or high - low <= SHORT_RANGE * reg
        count = 0 if short else math.ceil(math.log(first / reg, STAGE_RATIO) - 1e-9)
        return [first / STAGE_RATIO**i for i in range(count)]
    if not isinstance(reg_schedule, Iterable):
        raise TypeError(f"reg_schedule must be 'auto', None or a sequence of numbers, got {reg_schedule!r}")
    stages = [check_real(value, "reg_schedule", low=reg, high=math.inf, high_open=True) for value in reg_schedule]
    if any(later > earlier for earlier, later in pairwise(stages)):
        raise ValueError(f"reg_schedule must decrease, got {stages}")
    return [value for value in stages if value > reg]


def _start(init: Any, problem: Problem) -> tuple[Array, Array] | None:
    """Potentials to start from on the positive weights."""
    if init is None:
        return None
    f, g = (init.f, init.g) if isinstance(init, TransportResult) else _pair(init)
    return problem.restrict(*check_potentials(f, g, problem))


def _pair(init: Any) -> tuple[Any, Any]:
    if not isinstance(init, (tuple, list)) or len(init) != 2:
        raise TypeError(f"init must be a TransportResult or a pair (f, g), got {type(init).__name__}")
    return init[0], init[1]


class _Solver:
    """One run: the stages of the schedule, then the iterations at the target."""

    name = "sinkhorn"
    advice = "increase max_iter or reg, or try anderson=5"

    def __init__(
        self,
        problem: Problem,
        *,
        tol: float,
        max_iter: int,
        check_every: int,
        callback: Callable[[State], None] | None,
        progress: bool,
    ) -> None:
        self.problem, self.inner = problem, problem.restricted
        self.max_iter, self.check_every, self.callback = max_iter, check_every, callback
        self.unit = float(problem.cost.xp.finfo(problem.cost.dtype).eps) / 2
        self.asked, self.tol, self.floor = tol, tol, 0.0
        self.mass = problem.mass
        self.n_iter = 0
        self._settled: tuple | None = None
        self.history: list[Progress] = []
        self.bar = progress_bar(max_iter, self.name) if progress else None

    def run(
        self,
        schedule: list[float],
        start: tuple[Array, Array] | None,
        method: str,
        relaxation: str | float,
        anderson: int,
    ) -> TransportResult:
        """Solve, and report."""
        status, sweep = "", None
        f, g = start or (self.inner.xp.zeros_like(self.inner.a), self.inner.xp.zeros_like(self.inner.b))
        newton = method == "auto" and relaxation == "auto" and not anderson
        previous = math.inf
        try:
            for reg in [*schedule, self.problem.reg]:
                last = reg == self.problem.reg
                if not last and self.n_iter >= self.max_iter - 1:
                    continue
                gibbs = self.inner.cost.gibbs(reg)
                stored = method == "kernel" or (method == "auto" and not gibbs.screened and self._fits())
                kind = AbsorbedSweep if last and stored else LogSweep
                # potentials can be far off after a long step only; a cold start at a small reg needs both transforms
                exact = 0 if previous <= STAGE_RATIO * reg * (1 + 1e-9) else 2 if sweep is start is None and last else 1
                sweep, previous = kind(self.inner, gibbs, f, g, exact), reg
                if last and anderson:
                    status = self._anderson(sweep, anderson)
                elif last:
                    status = self._relaxed(sweep, 1.0 if newton else relaxation, PATIENCE if newton else math.inf)
                    if status == "slow":
                        f, g = sweep.potentials()
                        sweep = self._settled = None  # its kernel may be large
                        sweep = LogSweep(self.inner, gibbs, f, g, 0)
                        status = self._newton(sweep)
                else:
                    for error, _ in self._iterations(sweep, min(STAGE_ITERATIONS, self.max_iter - 1 - self.n_iter)):
                        self._tell(sweep, error)
                        if error <= STAGE_ERROR * self.mass:
                            break
                    else:
                        if newton:
                            self._newton(sweep, STAGE_ERROR, STAGE_STEPS)
                    f, g = sweep.potentials()
        except StopIteration:
            status = "stopped"
        finally:
            if self.bar is not None:
                self.bar.close()
        return self._report(sweep, status)

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

    def _relaxed(self, sweep: LogSweep, relaxation: str | float, patience: float) -> str:
        """Over-relaxed iterations at the target regularisation; the status, "slow" if more than `patience` are due."""
        adaptive = Relaxation() if relaxation == "auto" else None
        watch = _Watch(self, sweep)
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

    def _newton(self, sweep: LogSweep, tol: float | None = None, max_steps: float = math.inf) -> str:
        """Truncated Newton steps down to a relative error of `tol`, by default what was asked; returns the status."""
        newton = TruncatedNewton(sweep, store=self._fits(4))
        watch = _Watch(self, sweep, patience=4) if tol is None else None
        tol = self.goal if tol is None else tol
        seen, steps = 0, 0
        while True:
            error = newton.error()
            self._tell(sweep, error, newton.products - seen)
            seen = newton.products
            if watch:
                status = watch.status(sweep, error, plain=True)
            else:
                status = "converged" if error <= tol * self.mass else None
            if status or self.n_iter >= self.max_iter or steps == max_steps:
                return status or "max_iter"
            newton.step(tol * self.mass, max(1, self.max_iter - self.n_iter))
            steps += 1

    def _anderson(self, sweep: LogSweep, memory: int) -> str:
        """Anderson-accelerated iterations at the target regularisation; returns the status."""
        acceleration = Anderson(memory)
        watch = _Watch(self, sweep)
        before = sweep.column_bits
        after, best = None, -math.inf
        while True:
            row_error, column_error = sweep.iterate()
            # the rows are exact half-way, whatever point the acceleration chose
            error = column_error if self.problem.balanced else row_error + column_error
            self._tell(sweep, error)
            status = watch.status(sweep, error, plain=True)
            if status or self.n_iter >= self.max_iter:
                return status or "max_iter"
            merit = sweep.dual(before) if self.problem.balanced else -error
            if after is not None and merit < best - 1e-12 * abs(best):
                acceleration.clear()
                before, after = after, None
            else:
                after, best = sweep.column_bits, merit
                before = acceleration.propose(before, after)
            sweep.column_bits = before

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

    def _report(self, sweep: LogSweep, status: str) -> TransportResult:
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


class _Watch:
    """Decides when the iterations at the target are over."""

    attempts = 3  #: times that a residual recomputed from the potentials may contradict the running one

    def __init__(self, solver: _Solver, sweep: LogSweep, patience: int = 100) -> None:
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


def progress_bar(total: int, name: str) -> Any:
    """A bar for so many iterations."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=name, unit="it")
