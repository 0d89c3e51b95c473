"""Descent on hyperparameters with accuracies that adapt themselves, and the baseline with schedules."""

from __future__ import annotations

import math
from typing import Any

from ..arrays.progress import progress_bar
from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL
from .hypergradient import Run, Solved, make_run
from .problem import BilevelProblem, upper_smoothness
from .result import BilevelProgress, BilevelResult, Callback, finish

Array = Any
FLOOR = 1e-14  #: smallest accuracy that is asked for
SCHEDULES = ("geometric", "quadratic", "cubic")


def maid(
    problem: BilevelProblem,
    theta: Any,
    *,
    init: Any = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    max_gradients: int | None = None,
    accuracy: float = 0.1,
    linear_accuracy: float | None = None,
    step: float = 1e-2,
    backtrack: float = 0.5,
    step_growth: float = 10 / 9,
    tighten: float = 0.5,
    loosen: float = 1.05,
    descent_share: float = 0.5,
    decrease: float = 0.1,
    max_backtracks: int = 10,
    max_refinements: int = 50,
    check_descent: bool = True,
    fixed_accuracy: bool = False,
    solver: str = "auto",
    linear: str = "cg",
    constants: str = "given",
    max_lower_iter: int = 100_000,
    callback: Callback | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> BilevelResult:
    r"""Learn hyperparameters by the method of adaptive inexact descent.

    Gradient descent on :math:`f(\theta) = g(\hat x(\theta), \theta)` where :math:`\hat x` and :math:`\nabla f` are
    only known up to bounds. Lower level and linear system are solved to accuracies :math:`\varepsilon, \delta`, which
    are tightened until the error bound :math:`\omega` of the hypergradient z is at most
    :math:`(1 - \eta) \|z\|`, so that -z is a direction of descent. A step a is taken if

    .. math::

        g(x') + \|\nabla g(x')\| \varepsilon' + \tfrac{L_g}{2} \varepsilon'^2
        \le g(x) - \|\nabla g(x)\| \varepsilon - \tfrac{L_g}{2} \varepsilon^2 - \lambda a \|z\|^2

    with the points x, x' of the lower level before and after it (the last term of the right side is left out for
    convex g). This implies :math:`f(\theta - a z) \le f(\theta) - \lambda a \|z\|^2` for the exact f. If no step is
    found the accuracies are tightened; after one they are loosened.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    theta : array_like of shape (p,), or number
        Where to start. If p is 0 that is the end, too.
    init : array, pair (x, q), Hypergradient or BilevelResult, optional
        Where the solvers of the lower level and of the linear system start; default ``problem.start`` and 0.
    tol : float
        On the norm of the hypergradient and on the bound of its error, both.
    max_iter : int
        Largest number of steps.
    max_gradients : int, optional
        Largest number of gradients of the lower level.
    accuracy, linear_accuracy : float
        First :math:`\varepsilon` (in the units of x) and :math:`\delta` (in those of the gradient of g, default
        `accuracy`).
    step : float
        First step that is tried.
    backtrack, step_growth : float
        Factors of the step after a failure, and after a success.
    tighten, loosen : float
        Factors of the accuracies where they do not suffice, and after a step.
    descent_share, decrease : float
        :math:`\eta` and :math:`\lambda`, ``0 < decrease < descent_share < 1``.
    max_backtracks, max_refinements : int
        Largest number of steps tried with one accuracy (one more after each tightening), and of tightenings in an
        iteration.
    check_descent : bool
        False leaves out the test of the direction; a step is still only taken if it is certain to lower f, but one
        need not exist. The bound is loose (thousands of times the error), so that with the test accuracies end far
        smaller than they must be: without it fewer gradients are needed, and there is no certificate of descent.
    fixed_accuracy : bool
        Never change the accuracies; for comparison.
    solver, linear, constants
        As in `hypergradient`.
    max_lower_iter : int
        Largest number of gradients of one solve of the lower level.
    callback : callable, optional
        ``callback(progress, theta, x)`` for every iterate, with a `BilevelProgress`; may raise StopIteration.
    progress : bool
        Show a progress bar.
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached. The status ``"floor"`` (accuracies at the limit of rounding) is not
        reported if the norm reached it and the bound, which is loose, is at most 1e4 times as large.

    Returns
    -------
    BilevelResult

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    NotStronglyConvexError
        If the lower level curves less than ``problem.mu(theta)``.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached and ``on_fail="warn"``.

    Notes
    -----
    All solves start from the last ones. Memory: about twelve arrays of the size of x. The certificate of a step rests
    on mu and L_g alone; that of the direction on ``jac_norm``, ``L_Hinv`` and ``L_J`` too.

    References
    ----------
    Salehi, Mukherjee, Roberts, Ehrhardt, "An adaptively inexact first-order method for bilevel optimization with
    application to hyperparameter learning", SIAM J. Math. Data Sci., 2025, arXiv 2308.10098.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import maid, quadratic
    >>> problem = quadratic(np.eye(1), np.ones(1), np.eye(1), np.eye(1), np.zeros(1))  # x = -theta, target 1
    >>> result = maid(problem, [3.0], step=0.2)
    >>> result.converged, result.theta.round(5).tolist()
    (True, [-1.0])
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    run = make_run(problem, theta, init, solver, linear, max_lower_iter, constants)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=0)
    run.budget = math.inf if max_gradients is None else check_int(max_gradients, "max_gradients", low=1)
    eps = check_real(accuracy, "accuracy", low=FLOOR, high=math.inf, high_open=True)
    delta = eps if linear_accuracy is None else check_real(linear_accuracy, "linear_accuracy", low=FLOOR)
    alpha = check_real(step, "step", low=0, low_open=True, high=math.inf, high_open=True)
    inside = {"low": 0, "low_open": True, "high": 1, "high_open": True}
    backtrack = check_real(backtrack, "backtrack", **inside)
    tighten = check_real(tighten, "tighten", **inside)
    step_growth = check_real(step_growth, "step_growth", low=1)
    loosen = check_real(loosen, "loosen", low=1)
    descent_share = check_real(descent_share, "descent_share", **inside)
    decrease = check_real(decrease, "decrease", low=0, low_open=True, high=descent_share, high_open=True)
    max_backtracks = check_int(max_backtracks, "max_backtracks", low=1)
    max_refinements = check_int(max_refinements, "max_refinements", low=0)

    bar = progress_bar(max_iter, "maid") if progress else None
    theta = run.theta
    at = _start(run, theta, eps)
    history: list[BilevelProgress] = []
    status, n_iter = "max_iter", 0
    try:
        while True:
            refinements = backtracks = 0
            tried, new, taken, change = max_backtracks, None, math.nan, math.nan
            while True:
                found = run.gradient(theta, at, delta)
                done = found.norm <= tol and found.bound <= tol
                # z = 0 only says that nothing was solved yet
                sure = found.norm > 0 and (not check_descent or found.bound <= (1 - descent_share) * found.norm)
                if done or n_iter == max_iter or run.spent:
                    status = "converged" if done else status if n_iter == max_iter else "budget"
                    break
                if sure or (fixed_accuracy and found.norm > 0):
                    low = _bounds(run, at, theta)[0]
                    for i in range(tried):
                        taken = alpha * backtrack**i
                        ahead = run.solve(theta - taken * found.z, at.x, eps)
                        if ahead is not None:
                            change = _bounds(run, ahead, theta - taken * found.z)[1] - low
                            if change + decrease * taken * found.norm**2 <= 0:
                                new = ahead
                                break
                        backtracks += 1
                        if run.spent:
                            break
                    if new is not None:
                        break
                    tried += 1
                if run.spent:
                    status = "budget"
                    break
                if fixed_accuracy or refinements == max_refinements:
                    status = "line_search"
                    break
                if eps <= FLOOR and delta <= FLOOR:
                    status = "floor"
                    break
                refinements += 1
                eps, delta = max(FLOOR, tighten * eps), max(FLOOR, tighten * delta)
                tighter = run.solve(theta, at.x, eps)
                if tighter is None:
                    raise ValueError(f"the lower level diverged at theta={theta}: see check_problem")
                stuck = tighter.status == "floor" and at.status == "floor"
                at = tighter
                if stuck and found.linear_accuracy > delta:
                    status = "floor"
                    break
            moved = new is not None
            history.append(
                BilevelProgress(
                    n_iter, float(problem.upper(at.x, theta)), found.norm, found.bound, at.accuracy,
                    found.linear_accuracy, taken if moved else math.nan, change if moved else math.nan, refinements,
                    backtracks, run.n_gradients, run.n_products,
                )
            )
            if _stopped(callback, history[-1], theta, at.x):
                status = "stopped"
                break
            if not moved:
                break
            theta, at, n_iter = theta - taken * found.z, new, n_iter + 1
            alpha = step_growth * taken
            if not fixed_accuracy:
                eps, delta = loosen * eps, loosen * delta
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return finish("maid", run, theta, at, found, tol, status, history, on_fail)


def _stopped(callback: Callback | None, entry: BilevelProgress, theta: Array, x: Array) -> bool:
    """Whether the callback wants to stop."""
    if callback is None:
        return False
    try:
        callback(entry, theta, x)
    except StopIteration:
        return True
    return False


def _start(run: Run, theta: Array, accuracy: float) -> Solved:
    """First solution of the lower level."""
    at = run.solve(theta, run.start, accuracy)
    if at is None:
        raise ValueError(f"the lower level diverged at theta={theta}: see check_problem for lower_grad and lipschitz")
    return at


def _bounds(run: Run, at: Solved, theta: Array) -> tuple[float, float]:
    """Bounds of the exact upper level, from a point and its accuracy."""
    value = float(run.problem.upper(at.x, theta))
    slope = run.norm(run.problem.upper_grad(at.x, theta)) * at.accuracy
    bend = 0.5 * upper_smoothness(run.problem, theta) * at.accuracy**2
    return value - slope - (0.0 if getattr(run.problem, "upper_convex", False) else bend), value + slope + bend


def hoag(
    problem: BilevelProblem,
    theta: Any,
    *,
    init: Any = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    max_gradients: int | None = None,
    accuracy: float = 0.1,
    schedule: str = "geometric",
    factor: float = 0.9,
    bounds: tuple[float, float] = (-12.0, 12.0),
    solver: str = "auto",
    linear: str = "cg",
    max_lower_iter: int = 100_000,
    callback: Callback | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> BilevelResult:
    r"""Learn hyperparameters with accuracies from a schedule; fast at first, but nothing is certain.

    Steps of 1/L with :math:`\varepsilon_k = \varepsilon_0 c^k` (``"geometric"``), :math:`\varepsilon_0 / k^2`
    (``"quadratic"``) or :math:`\varepsilon_0 / k^3` (``"cubic"``). With :math:`g_k` the upper level before a step and
    :math:`d = \|z\| / L` its length: if :math:`g_k \le g_{k-1} + \varepsilon_k / 4 + \tfrac54 \varepsilon_{k-1} d -
    L d^2`, L is multiplied by 0.95; if :math:`g_k \ge 1.2\, g_{k-1}`, L is doubled, the accuracy halved for good, and
    no step is taken.

    Parameters
    ----------
    problem, theta, init, tol, max_iter, max_gradients, solver, linear, max_lower_iter, callback, progress, on_fail
        As in `maid`.
    accuracy : float
        :math:`\varepsilon_0`, of both solvers.
    schedule : {"geometric", "quadratic", "cubic"}
        How it falls.
    factor : float
        c of the geometric schedule.
    bounds : pair of float
        Interval that every entry of theta is clipped to.

    Returns
    -------
    BilevelResult
        Its value may be larger than at the start: see the history.

    Raises
    ------
    ValueError, TypeError, NotStronglyConvexError, ConvergenceError
        As in `maid`.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached and ``on_fail="warn"``.

    Notes
    -----
    One solve of the lower level and one linear system a step.

    References
    ----------
    Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import hoag, quadratic
    >>> problem = quadratic(np.eye(1), np.ones(1), np.eye(1), np.eye(1), np.zeros(1))
    >>> hoag(problem, [3.0]).theta.round(4).tolist()
    [-1.0]
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    check_choice(schedule, "schedule", SCHEDULES)
    run = make_run(problem, theta, init, solver, linear, max_lower_iter, "given")
    xp = run.xp
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=0)
    run.budget = math.inf if max_gradients is None else check_int(max_gradients, "max_gradients", low=1)
    first = check_real(accuracy, "accuracy", low=1e-12, high=math.inf, high_open=True)
    factor = check_real(factor, "factor", low=0, low_open=True, high=1, high_open=True)
    low, high = check_real(bounds[0], "bounds[0]"), check_real(bounds[1], "bounds[1]")
    if not low < high:
        raise ValueError(f"bounds must be increasing, got {bounds}")

    bar = progress_bar(max_iter, "hoag") if progress else None
    theta = xp.clip(run.theta, low, high)
    history: list[BilevelProgress] = []
    status, old_value, old_eps, L, shrink = "max_iter", math.inf, first, math.nan, 1.0
    at = Solved(run.start, math.inf, math.inf, "start")
    try:
        for n_iter in range(max_iter + 1):
            k = n_iter + 1
            falls = {"geometric": factor**n_iter, "quadratic": k**-2.0, "cubic": k**-3.0}[schedule]
            eps = max(1e-12, first * shrink * falls)
            solved = run.solve(theta, at.x, eps)
            if solved is None:
                raise ValueError(f"the lower level diverged at theta={theta}: see check_problem")
            at = solved
            found = run.gradient(theta, at, eps)
            value = float(problem.upper(at.x, theta))
            if math.isnan(L):
                L = found.norm / math.sqrt(theta.shape[0]) if found.norm > 1e-3 else 1.0
            done = found.norm <= tol and found.bound <= tol
            last = done or n_iter == max_iter or run.spent
            length = found.norm / L
            falls_enough = value <= old_value + 0.25 * eps + 1.25 * old_eps * length - L * length**2
            refused = not falls_enough and value >= 1.2 * old_value and not last
            if not last:
                L *= 0.95 if falls_enough else 2.0 if refused else 1.0
            history.append(
                BilevelProgress(
                    n_iter, value, found.norm, found.bound, at.accuracy, found.linear_accuracy,
                    math.nan if last or refused else 1 / L, math.nan, 0, int(refused), run.n_gradients,
                    run.n_products,
                )
            )
            if _stopped(callback, history[-1], theta, at.x):
                status = "stopped"
                break
            if last:
                status = "converged" if done else "max_iter" if n_iter == max_iter else "budget"
                break
            if refused:
                shrink *= 0.5
            else:
                theta = xp.clip(theta - found.z / L, low, high)
            old_value, old_eps = value, eps
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return finish("hoag", run, theta, at, found, tol, status, history, on_fail)
