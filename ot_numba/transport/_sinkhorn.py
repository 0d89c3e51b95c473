"""Sinkhorn's algorithm in its stable forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from .acceleration import Anderson
from .path import PATH_RATIO, PathSolver
from .problem import make_problem
from .result import TransportResult
from .solver import Solver, State, Watch, automatic_schedule, check_schedule, check_start
from .sweeps import AbsorbedSweep, LogSweep

Array = Any
METHODS = ("auto", "log", "kernel")
STAGE_RATIO = 2.0
STAGE_ITERATIONS = 5
STAGE_ERROR = 0.05  #: relative marginal error that ends a stage early


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
        stable at any `reg`. ``"auto"`` follows the path of `sinkhorn_newton`: a few iterations and Newton steps on the
        semi-dual at each regularisation, started from the extrapolation of the last two; where the range of the cost
        is at most 100 `reg`, plain iterations (on the kernel beside a stored cost, if it fits a quarter of the physical
        memory) as long as their rate predicts that few are left. With `relaxation` or `anderson` it is ``"kernel"`` if
        that fits (256 MB beside a cost that is evaluated on the fly), ``"log"`` otherwise.
    unbalanced : float or pair of float, optional
        Strengths :math:`\rho_1, \rho_2 > 0` of the marginal penalties, in the units of the cost; ``inf`` or None in a
        pair keeps that marginal a constraint. The constant shift of the potentials, the slow mode at large rho, is
        optimised exactly in every iteration.
    reg_schedule : "auto", None or sequence of float
        Decreasing regularisations to pass on the way to `reg`. ``"auto"``: from a quarter of the range of the cost, by
        factors of 4 (2 with up to five iterations each, if Newton steps are not wanted); none if there is an `init` or
        the range is below 100 `reg`.
    relaxation : "auto" or float
        Over-relaxation factor in [1, 2); ``"auto"`` estimates the best one from the observed rate, for methods
        ``"log"`` and ``"kernel"``.
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
        Largest number of iterations, those of the schedule and Newton steps included.
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
    input: O(n + m) (log) or n m numbers (kernel); ``"auto"``: n m numbers of float32 where they fit as above, else
    O(n + m), and m^2 numbers of float64 where Newton's systems are solved by elimination (up to 4096 columns). Between
    points in at most three dimensions (squared Euclidean or cosine), at a `reg` so small that most of the plan is
    negligible, only the tiles of the plan that count are visited, and stored, with the same sums up to rounding.

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
    follow = method == "auto" and relaxation == "auto" and not anderson
    ratio = PATH_RATIO if follow else STAGE_RATIO
    schedule = check_schedule(
        reg_schedule, problem.reg, lambda: automatic_schedule(problem, ratio) if init is None else []
    )
    start = check_start(init, problem)
    options = {
        "tol": check_real(tol, "tol", low=0),
        "max_iter": check_int(max_iter, "max_iter", low=1),
        "check_every": check_int(check_every, "check_every", low=1),
        "callback": callback,
        "progress": progress,
    }
    if follow:
        result = PathSolver(problem, **options).follow(schedule, start)
    else:
        solver = SweepSolver(problem, advice="increase max_iter or reg, or try anderson=5", **options)
        result = solver.run(schedule, start, method, relaxation, anderson)
    if not result.converged and result.status != "stopped":
        report_failure(result.message, on_fail)
    return result


class SweepSolver(Solver):
    """One run: the stages of the schedule, then the iterations at the target."""

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
                if last:
                    status = self._anderson(sweep, anderson) if anderson else self.relaxed(sweep, relaxation, math.inf)
                    continue
                for error, _ in self._iterations(sweep, min(STAGE_ITERATIONS, self.max_iter - 1 - self.n_iter)):
                    self._tell(sweep, error)
                    if error <= STAGE_ERROR * self.mass:
                        break
                f, g = sweep.potentials()
        except StopIteration:
            status = "stopped"
        finally:
            if self.bar is not None:
                self.bar.close()
        return self.report(sweep, status)

    def _anderson(self, sweep: LogSweep, memory: int) -> str:
        """Anderson-accelerated iterations at the target regularisation; returns the status."""
        acceleration = Anderson(memory)
        watch = Watch(self, sweep)
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
