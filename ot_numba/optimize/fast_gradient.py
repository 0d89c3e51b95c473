"""Accelerated gradient descent for convex functions, whose step is found by doubling and halving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL
from .gradient_descent import MAX_DOUBLINGS
from .regularized_newton import ROUNDING, RegularizedNewtonProgress, RegularizedNewtonResult, metric_of, reached

Array = Any


def fast_gradient(
    fun: Callable[[Array], float],
    grad: Callable[[Array], Array],
    x0: Any,
    *,
    metric: Any = None,
    lipschitz: float = 1.0,
    tol: float = 1e-8,
    max_iter: int = 1000,
    callback: Callable[[RegularizedNewtonProgress, Array], None] | None = None,
    on_fail: str = "warn",
) -> RegularizedNewtonResult:
    r"""Minimise a smooth convex function by Nesterov's fast gradient method.

    .. math::

        y = \frac{A x + a v}{A + a}, \qquad x_+ = y - \tfrac1L B^{-1} \nabla f(y), \qquad
        v_+ = v - a B^{-1} \nabla f(y), \qquad A_+ = A + a = L a^2

    with the smallest L of ``L0 2**k`` for which Armijo's rule
    :math:`f(x_+) \le f(y) - \frac{1}{2 L} \|\nabla f(y)\|_*^2` holds; L is halved after every step. The gap of f falls
    like 1 / k**2. For strongly convex f of known constants see `accelerated_gradient`.

    Parameters
    ----------
    fun, grad, x0, metric, callback, on_fail
        As in `regularized_newton`.
    lipschitz : float
        First L.
    tol : float
        On the norm of the gradient at y, which then is the point returned.
    max_iter : int
        Largest number of iterations.

    Returns
    -------
    RegularizedNewtonResult
        Whose history has the values at x and the norms at y.

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
    About two gradients and four values an iteration, as y depends on L.

    References
    ----------
    Nesterov, "Gradient methods for minimizing composite functions", Mathematical Programming 140, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import fast_gradient
    >>> d = np.geomspace(1, 1e3, 20)
    >>> result = fast_gradient(lambda x: 0.5 * float(d @ (x * x)), lambda x: d * x, np.ones(20), tol=0.1)
    >>> result.converged, result.n_iter < 300
    (True, True)
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    xp = array_namespace(x0)
    x = v = as_float_array(x0, "x0", ndim=1, xp=xp)
    L = check_real(lipschitz, "lipschitz", low=0, low_open=True, high=math.inf, high_open=True)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    B = metric_of(xp, metric, x)
    g, value = grad(x), float(fun(x))
    norm = B.dual(g)[1]
    history = [RegularizedNewtonProgress(0, value, norm, math.nan, 0, 1)]
    status, n_evaluations, A = "max_iter", 1, 0.0
    for n_iter in range(1, max_iter + 1):
        if norm <= tol:
            break
        for _ in range(MAX_DOUBLINGS):
            a = (1 + math.sqrt(1 + 4 * A * L)) / (2 * L)
            with np.errstate(over="ignore", invalid="ignore"):
                y = (A * x + a * v) / (A + a)
                at_y, g = float(fun(y)), grad(y)
                step, norm = B.dual(g)
                new = y - step / L
                value_new = float(fun(new))
            n_evaluations += 2
            if norm <= tol or at_y - value_new >= norm * norm / (2 * L) - ROUNDING * max(1.0, abs(at_y)):
                break
            L *= 2
        else:
            status = "stalled"
            break
        if norm <= tol:
            x, value = y, at_y
        else:
            x, value, v, A = new, value_new, v - a * step, A + a
        history.append(RegularizedNewtonProgress(n_iter, value, norm, norm / L, 0, n_evaluations))
        L /= 2
        if callback is not None:
            try:
                callback(history[-1], x)
            except StopIteration:
                status = "stopped"
                break
    if norm > tol:
        g = grad(x)
        norm = B.dual(g)[1]
    return reached("fast_gradient", x, value, g, norm, tol, status, history, (0, n_evaluations), on_fail)
