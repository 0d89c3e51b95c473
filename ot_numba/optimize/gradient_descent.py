"""Gradient descent with Armijo's rule, in a metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL
from .regularized_newton import RegularizedNewtonProgress, RegularizedNewtonResult, metric_of, reached

Array = Any
MAX_DOUBLINGS = 40


def gradient_descent(
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
    r"""Minimise a smooth function by gradient descent whose step is found by doubling and halving.

    Steps :math:`x - B^{-1} \nabla f(x) / L` with the smallest L of ``L0 2**k`` for which Armijo's rule

    .. math:: f(x_+) \le f(x) - \frac{1}{2 L} \|\nabla f(x)\|_*^2

    holds; L is halved after every step.

    Parameters
    ----------
    fun, grad, x0, metric, tol, max_iter, callback, on_fail
        As in `regularized_newton`.
    lipschitz : float
        First L.

    Returns
    -------
    RegularizedNewtonResult
        Whose ``radius`` has :math:`\|\nabla f\|_* / L`, the length of the step.

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
    One gradient and about two values an iteration.

    References
    ----------
    Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives", Pacific Journal of
    Mathematics 16, 1966.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import gradient_descent
    >>> result = gradient_descent(lambda x: float(x @ x), lambda x: 2 * x, np.ones(3))
    >>> result.converged
    True
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    xp = array_namespace(x0)
    x = as_float_array(x0, "x0", ndim=1, xp=xp)
    L = check_real(lipschitz, "lipschitz", low=0, low_open=True, high=math.inf, high_open=True)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    B = metric_of(xp, metric, x)
    value, g = float(fun(x)), grad(x)
    step, norm = B.dual(g)
    history = [RegularizedNewtonProgress(0, value, norm, math.nan, 0, 1)]
    status, n_evaluations = "max_iter", 1
    for n_iter in range(1, max_iter + 1):
        if norm <= tol:
            break
        for _ in range(MAX_DOUBLINGS):
            with np.errstate(over="ignore", invalid="ignore"):
                new = x - step / L
                value_new = float(fun(new))
            n_evaluations += 1
            if value - value_new >= norm * norm / (2 * L) - 4e-16 * max(1.0, abs(value)):
                break
            L *= 2
        else:
            status = "stalled"
            break
        x, value, g, length = new, value_new, grad(new), norm / L
        step, norm = B.dual(g)
        history.append(RegularizedNewtonProgress(n_iter, value, norm, length, 0, n_evaluations))
        L /= 2
        if callback is not None:
            try:
                callback(history[-1], x)
            except StopIteration:
                status = "stopped"
                break
    return reached("gradient_descent", x, value, g, norm, tol, status, history, (0, n_evaluations), on_fail)
