"""Proximal-gradient iterations: ISTA, FISTA with restart, iterative hard thresholding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import to_numpy
from ..arrays.progress import progress_bar
from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from ..kernels.contract import HARD, SOFT
from .objective import column_sums, gap_units, signals
from .operators import Operator, make_operator
from .result import RecoveryProgress, RecoveryResult, RecoveryState

Array = Any
Callback = Callable[[RecoveryState], None] | None
STALL = 50  #: checks without a better residual, near the resolution of the dtype, that mean the rounding floor
GROWTH = 10.0  #: an objective so many times that of the start, or of 0, has left for infinity


def ista(
    A: Any,
    y: Any,
    *,
    reg: float,
    step: float | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    check_every: int = 10,
    init: RecoveryResult | Any = None,
    callback: Callback = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> RecoveryResult:
    r"""LASSO by iterative soft thresholding (ISTA).

    Minimises :math:`\tfrac12\|y - A x\|^2 + reg\,\|x\|_1` by

    .. math:: x \leftarrow soft\big(x - step\, A^\top (A x - y);\ step\, reg\big)

    Every iteration lowers the objective where :math:`step \le 1/\|A\|_2^2`, and converges below twice that.

    Parameters
    ----------
    A : array_like of shape (m, n), sparse matrix, LinearOperator, or pair of callables
        Measurement matrix. Sparse: of SciPy, or of CuPy with `y` on the device. A LinearOperator offers ``matmat``,
        ``rmatmat`` and ``shape``. A pair (matvec, rmatvec) computes :math:`A v` from v (n,) and :math:`A^\top u` from
        u (m,). Real.
    y : array_like of shape (m,) or (m, B)
        Measurements, a column per signal.
    reg : float
        Regularisation strength, > 0, in the units of :math:`A^\top y`: from :math:`\|A^\top y\|_\infty` upwards the
        solution is 0.
    step : float, optional
        Step size; by default 1 over an estimate of :math:`\|A\|_2^2` from above.
    tol : float
        On the largest duality gap of a signal, relative to :math:`\tfrac12\|y\|^2`.
    max_iter : int
        Number of iterations, at most.
    check_every : int
        Iterations between two evaluations of the gap.
    init : RecoveryResult or array_like of shape (n,) or (n, B), optional
        Where to start; 0 by default.
    callback : callable, optional
        ``callback(state)`` at every check with a `RecoveryState`; may raise StopIteration.
    progress : bool
        Whether to show a progress bar.
    on_fail : {"warn", "raise", "ignore"}
        What to do where `tol` is not reached.

    Returns
    -------
    RecoveryResult
        Of the last iterate; of the best one that was checked where the iteration diverged.

    Raises
    ------
    ValueError, TypeError
        For bad options, shapes that do not fit, entries that are not finite, or complex data.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached, or `step` is so long that the iterates diverge, and ``on_fail="warn"``.

    Notes
    -----
    An iteration takes a product with A and one with its transpose (2 m n B multiplications), a check the time of an
    elementwise pass. Of a NumPy array only those columns are taken whose entry of x is not 0 or may become so before
    the next check, which the gradient at the last one bounds; where these are many, products are those of BLAS, of all
    such signals together. A signal that has reached `tol` stays as it is. Memory beyond the input: O((m + n) B), and a
    transposed copy of a NumPy array. On CuPy arrays an iteration is two products by cuBLAS, a subtraction and one
    kernel, and the host waits at the checks only. `fista` needs far fewer iterations, `lasso` is faster where the
    columns of A can be read.

    References
    ----------
    Daubechies, Defrise, De Mol, "An iterative thresholding algorithm for linear inverse problems with a sparsity
    constraint", Communications on Pure and Applied Mathematics 57, 2004.

    Examples
    --------
    >>> import ot_numba
    >>> result = ot_numba.ista([[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0], reg=1.0)
    >>> result.x.tolist(), result.converged
    ([0.75, 0.0], True)
    """
    return _solve(
        A, y, "ista", reg=_positive(reg), k=None, step=step,
        tol=tol, max_iter=max_iter, check_every=check_every, init=init, callback=callback, progress=progress,
        on_fail=on_fail,
    )  # fmt: skip


def fista(
    A: Any,
    y: Any,
    *,
    reg: float,
    step: float | None = None,
    restart: bool = True,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    check_every: int = 10,
    init: RecoveryResult | Any = None,
    callback: Callback = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> RecoveryResult:
    r"""LASSO by accelerated iterative soft thresholding (FISTA) with restart.

    Minimises :math:`\tfrac12\|y - A x\|^2 + reg\,\|x\|_1` by

    .. math::

        x_{t+1} = soft\big(z_t - step\, A^\top (A z_t - y);\ step\, reg\big), \qquad
        z_{t+1} = x_{t+1} + \tfrac{\theta_t - 1}{\theta_{t+1}} (x_{t+1} - x_t), \qquad
        \theta_{t+1} = \tfrac12 \big(1 + \sqrt{1 + 4 \theta_t^2}\big)

    With `restart` the momentum of a signal starts anew whenever :math:`\langle z_t - x_{t+1}, x_{t+1} - x_t\rangle >
    0`.

    Parameters
    ----------
    A, y, reg, step, tol, max_iter, check_every, init, callback, progress, on_fail
        As in `ista`; a `step` above :math:`1/\|A\|_2^2` may diverge.
    restart : bool, default True
        Whether to restart the momentum.

    Returns
    -------
    RecoveryResult
        Of the last iterate; of the best one that was checked where the iteration diverged.

    Raises
    ------
    ValueError, TypeError
        For bad options, shapes that do not fit, entries that are not finite, or complex data.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached, or `step` is so long that the iterates diverge, and ``on_fail="warn"``.

    Notes
    -----
    As `ista`, with an array (n, B) more, and checks that take the time of an iteration. On CuPy arrays `restart` takes
    three kernels, not one; what it looks at stays on the device.

    References
    ----------
    Beck, Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", SIAM Journal on
    Imaging Sciences 2, 2009. O'Donoghue, Candès, "Adaptive restart for accelerated gradient schemes", Foundations of
    Computational Mathematics 15, 2015.

    Examples
    --------
    >>> import ot_numba
    >>> result = ot_numba.fista([[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0], reg=1.0, tol=1e-12)
    >>> result.x.tolist(), result.converged
    ([0.75, 0.0], True)
    """
    return _solve(
        A, y, "fista", reg=_positive(reg), k=None, step=step,
        tol=tol, max_iter=max_iter, check_every=check_every, init=init, callback=callback, progress=progress,
        on_fail=on_fail, restart=bool(restart),
    )  # fmt: skip


def iht(
    A: Any,
    y: Any,
    *,
    reg: float | None = None,
    k: int | None = None,
    step: float | None = None,
    tol: float = 1e-8,
    max_iter: int = 10_000,
    check_every: int = 10,
    init: RecoveryResult | Any = None,
    callback: Callback = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> RecoveryResult:
    r"""Sparse recovery by iterative hard thresholding, with an l0 penalty or at most k nonzeros.

    Looks for a local minimum of :math:`\tfrac12\|y - A x\|^2 + reg\,\|x\|_0`, or with `k` of :math:`\tfrac12\|y - A
    x\|^2` where :math:`\|x\|_0 \le k`, by

    .. math:: x \leftarrow H\big(x - step\, A^\top (A x - y)\big)

    where H sets to 0 all entries of size up to :math:`\sqrt{2\, reg\, step}`, or all but the k largest of every signal
    (of equal ones the first are kept).

    Parameters
    ----------
    A, y, step, max_iter, check_every, init, callback, progress, on_fail
        As in `ista`.
    reg : float, optional
        Price of a nonzero, >= 0, in the units of :math:`\|y\|^2`. Either this or `k`.
    k : int, optional
        Number of nonzeros to keep.
    tol : float
        On the largest relative change :math:`\|x - x^+\| / \|x\|` of a signal by the next iteration.

    Returns
    -------
    RecoveryResult
        With a `gap` that is not a number: the problem is not convex, and the minimum depends on `init` and `step`.

    Raises
    ------
    ValueError, TypeError
        For bad options, both or neither of `reg` and `k`, shapes that do not fit, entries that are not finite, or
        complex data.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached, or `step` is so long that the iterates diverge, and ``on_fail="warn"``.

    Notes
    -----
    Time and memory as `ista`; with `k` an iteration also finds the k largest of every signal, by passes over x.

    References
    ----------
    Blumensath, Davies, "Iterative thresholding for sparse approximations", Journal of Fourier Analysis and
    Applications 14, 2008; "Iterative hard thresholding for compressed sensing", Applied and Computational Harmonic
    Analysis 27, 2009.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.iht([[1.0, 0.0], [0.0, 1.0]], [2.0, 1.0], k=1).x.tolist()
    [2.0, 0.0]
    >>> ot_numba.iht([[1.0, 0.0], [0.0, 1.0]], [2.0, 1.0], reg=0.1).value
    0.2
    """
    if (reg is None) == (k is None):
        raise ValueError(f"pass either reg or k, got reg={reg!r} and k={k!r}")
    if k is None:
        reg = check_real(reg, "reg", low=0, high=math.inf, high_open=True)
    else:
        k = check_int(k, "k", low=1)
    return _solve(
        A, y, "iht", reg=reg, k=k, step=step, tol=tol, max_iter=max_iter, check_every=check_every, init=init,
        callback=callback, progress=progress, on_fail=on_fail,
    )  # fmt: skip


def _positive(reg: Any) -> float:
    return check_real(reg, "reg", low=0, low_open=True, high=math.inf, high_open=True)


def _solve(
    A: Any, y: Any, method: str, *, reg: float | None, k: int | None, step: float | None, tol: float, max_iter: int,
    check_every: int, init: Any, callback: Callback, progress: bool, on_fail: str, restart: bool = False,
) -> RecoveryResult:  # fmt: skip
    """Check the options, run, report."""
    check_choice(on_fail, "on_fail", ON_FAIL)
    tol, max_iter = check_real(tol, "tol", low=0), check_int(max_iter, "max_iter", low=1)
    check_every = check_int(check_every, "check_every", low=1)
    if step is not None:
        step = check_real(step, "step", low=0, low_open=True, high=math.inf, high_open=True)
    operator, Y, squeeze = make_operator(A, y)
    if k is not None and k > operator.shape[1]:
        raise ValueError(f"k must be at most {operator.shape[1]}, the number of unknowns, got {k}")
    X = start(operator, init, Y.shape[1])
    if step is None:
        norm = operator.squared_norm()
        step = 1 / norm if norm > 0 else 1.0
    operator.expect_sparse()
    run = _Run(operator, Y, X, method, reg, k, step, restart)
    status = run.iterate(tol, max_iter, check_every, callback, progress)
    result = run.report(status, tol, squeeze)
    if not result.converged and status != "stopped":
        report_failure(result.message, on_fail)
    return result


def start(operator: Operator, init: Any, count: int) -> Array:
    """Where to start, an array (n, B) of its own."""
    X = operator.empty(operator.shape[1], count)
    if init is not None:
        X[...] = signals(init.x if isinstance(init, RecoveryResult) else init, "init", X, operator.xp)
    return X


class _Run:
    """All `signals`, with their `value`, `gap` and `residual`; and those that are still at work, its columns `here`."""

    def __init__(
        self, operator: Operator, Y: Array, X: Array, method: str, reg: float | None, k: int | None, step: float,
        restart: bool,
    ) -> None:  # fmt: skip
        self.operator, self.method, self.signals, self.measurements = operator, method, X, Y
        self.reg, self.k, self.step = reg, k, step
        self.kind = HARD if method == "iht" else SOFT
        self.tau = 0.0 if k is not None else math.sqrt(2 * reg * step) if method == "iht" else step * reg
        self.numbers = np.empty(0), np.empty(0)  # steps and thresholds of the iterations between two checks
        self.theta: Any = 1.0
        if restart:
            self.theta = self._array(np.ones(Y.shape[1]))
        self.units = gap_units(operator.xp, Y)
        self.value, self.gap, self.residual = (np.full(Y.shape[1], math.nan) for _ in range(3))
        self.n_iter = 0
        self.history: list[RecoveryProgress] = []
        self.least = (math.inf, 0)  # residual, and when it was met
        self._work_on(X, np.arange(Y.shape[1]))
        self.best: tuple[float, Array, np.ndarray] = (math.inf, X, self.here)

    def _array(self, values: np.ndarray) -> Array:
        """Numbers of the host beside the data."""
        operator = self.operator
        return operator.xp.asarray(values, **({} if operator.device == "cpu" else {"device": operator.device}))

    def _take(self, V: Array, columns: np.ndarray) -> Array:
        return self.operator.xp.take(V, self._array(columns), axis=V.ndim - 1)

    def _work_on(self, X: Array, here: np.ndarray) -> None:
        """Go on from X, signals number `here`."""
        Y = self.measurements
        self.here, self.X = here, X
        self.Y = Y if len(here) == Y.shape[1] else self._take(Y, here)
        self.Z = self.operator.xp.asarray(X, copy=True) if self.method == "fista" else X
        self.R, self.G = self.operator.empty(*self.Y.shape), self.operator.empty(*X.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # of diverging iterates
            self.operator.residual_gradient(X, self.Y, self.R, self.G)

    def _rest(self, tol: float) -> None:
        """Leave signals that have reached the tolerance as they are."""
        going = ~(self.residual <= tol)[self.here]
        if going.all():
            return
        self.collect()
        keep = np.flatnonzero(going)
        plain = self.Z is self.X
        self.X, self.Y, self.R, self.G = (self._take(V, keep) for V in (self.X, self.Y, self.R, self.G))
        self.Z = self.X if plain else self._take(self.Z, keep)
        if not isinstance(self.theta, float):
            self.theta = self._take(self.theta, keep)
        self.here = self.here[keep]

    def collect(self) -> Array:
        """All signals (n, B), as they are now."""
        if self.X is not self.signals:
            xp, count = self.operator.xp, len(self.value)
            places, at_work = np.zeros(count, np.int64), np.zeros(count, bool)
            places[self.here], at_work[self.here] = np.arange(len(self.here)), True
            self.signals[...] = xp.where(self._array(at_work), self._take(self.X, places), self.signals)
        return self.signals

    def advance(self, count: int) -> None:
        """So many iterations."""
        operator, step = self.operator, self.step
        with np.errstate(over="ignore", invalid="ignore"):
            if self.k is not None:
                for _ in range(count):
                    self.X -= step * self.G
                    operator.kernels.keep_largest(self.X, self.k)
                    operator.residual_gradient(self.X, self.Y, self.R, self.G)
            else:
                momentum = theta = None
                if self.method == "fista" and isinstance(self.theta, float):
                    momentum = np.array([self._next_momentum() for _ in range(count)])
                elif self.method == "fista":
                    theta = self.theta
                if len(self.numbers[0]) != count:
                    self.numbers = np.full(count, step), np.full(count, self.tau)
                operator.steps(self.kind, *self.numbers, self.Y, self.X, self.Z, self.R, self.G, momentum, theta)
        self.n_iter += count

    def _next_momentum(self) -> float:
        before, self.theta = self.theta, 0.5 * (1 + math.sqrt(1 + 4 * self.theta**2))
        return (before - 1) / self.theta

    def measure(self) -> None:
        """Objective, gap and residual of the signals at work."""
        xp, X = self.operator.xp, self.X
        with np.errstate(over="ignore", invalid="ignore"):
            penalty = 0.0 if self.method == "iht" else self.reg
            value, gap = to_numpy(self.operator.kernels.lasso_values(penalty, X, self.Y, self.R, self.G))
            if self.method != "iht":
                gap /= self.units[self.here]
                self.value[self.here], self.gap[self.here], self.residual[self.here] = value, gap, gap
                return
            following = xp.asarray(X, copy=True)
            if self.k is None:
                value = value + self.reg * column_sums(xp, xp.astype(X != 0, xp.float64))
                self.operator.kernels.proximal_step(HARD, self.step, self.tau, 0.0, following, following, self.G)
            else:
                following -= self.step * self.G
                self.operator.kernels.keep_largest(following, self.k)
            moved, size = (column_sums(xp, xp.astype(v, xp.float64) ** 2) for v in (following - X, X))
            self.value[self.here] = value
            self.residual[self.here] = np.sqrt(moved / np.where(size > 0, size, 1.0))

    def iterate(self, tol: float, max_iter: int, check_every: int, callback: Callback, progress: bool) -> str:
        """Iterate until something stops it; returns what."""
        bar = progress_bar(max_iter, self.method) if progress else None
        limit = None
        try:
            while True:
                self.measure()
                total, worst = float(self.value.sum()) / len(self.value), float(self.residual.max())
                if limit is None:
                    limit = GROWTH * max(total, float(self.units.mean()))
                if not total <= limit:
                    return "diverged"
                self.history.append(RecoveryProgress(self.n_iter, total, worst))
                if total <= self.best[0]:
                    self.best = total, self.operator.xp.asarray(self.X, copy=True), self.here
                if callback is not None:
                    try:
                        callback(RecoveryState(self.n_iter, total, worst, self.collect()))
                    except StopIteration:
                        return "stopped"
                if worst <= tol:
                    return "converged"
                if self._stalls(worst):
                    return "floor"
                if self.n_iter >= max_iter:
                    return "max_iter"
                self._rest(tol)
                count = min(check_every, max_iter - self.n_iter)
                self.advance(count)
                if bar is not None:
                    bar.update(count)
        finally:
            if bar is not None:
                bar.close()

    def _stalls(self, worst: float) -> bool:
        if worst < self.least[0]:
            self.least = worst, len(self.history)
        near = 100 * float(self.operator.xp.finfo(self.X.dtype).eps)
        return worst <= near and len(self.history) - self.least[1] >= STALL

    def report(self, status: str, tol: float, squeeze: bool) -> RecoveryResult:
        """The result; everything in it belongs to the x that is returned."""
        if status == "diverged":
            self._work_on(*self.best[1:])
            self.measure()
        x, worst = self.collect(), float(self.residual.max())
        converged = worst <= tol
        return RecoveryResult(
            x=x[:, 0] if squeeze else x,
            value=float(self.value[0]) if squeeze else self.value,
            gap=float(self.gap[0]) if squeeze else self.gap,
            residual=worst,
            n_iter=self.n_iter,
            converged=converged and status != "diverged",
            status=status,
            message=self._message(status, worst, tol),
            history=self.history,
        )

    def _message(self, status: str, worst: float, tol: float) -> str:
        what = "relative change" if self.method == "iht" else "relative duality gap"
        reached = f"{what} {worst:.2e} after {self.n_iter} iterations"
        if status == "diverged":
            return (
                f"diverged within {self.n_iter} iterations: step={self.step:.3g} is too long, "
                f"pass step=None or less than 1 / ||A||^2; x is the best iterate, {what} {worst:.2e}"
            )
        if status == "floor":
            return f"not converged: {reached}, tol={tol:.3g} is below what rounding allows; increase tol or use float64"
        if status == "max_iter":
            return f"not converged: {reached}, tol={tol:.3g}; {self._outlook()}increase max_iter or tol{self._advice()}"
        return f"{'stopped by the callback' if status == 'stopped' else 'converged'}: {reached}, tol={tol:.3g}"

    def _advice(self) -> str:
        return {"ista": ", or use fista or lasso", "fista": ", or use lasso", "iht": ""}[self.method]

    def _outlook(self) -> str:
        """What the history says about the rate."""
        if len(self.history) < 2 or not self.history[-2].residual > self.history[-1].residual > 0:
            return ""
        before, after = self.history[-2], self.history[-1]
        rate = (after.residual / before.residual) ** (1 / (after.n_iter - before.n_iter))
        return f"it last fell by a factor {rate:.4f} per iteration; "
