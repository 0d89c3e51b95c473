"""Newton's method regularised by a power of the norm of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.validation import check_real
from .regularized_newton import (
    Metric,
    RegularizedNewtonProgress,
    RegularizedNewtonResult,
    descend,
    newton_step,
)

Array = Any


def super_newton(
    fun: Callable[[Array], float],
    grad: Callable[[Array], Array],
    hess: Callable[[Array], Any],
    x0: Any,
    *,
    power: float = 2 / 3,
    constant: float = 1.0,
    metric: Any = None,
    tol: float = 1e-8,
    max_iter: int = 1000,
    max_search: int = 40,
    callback: Callable[[RegularizedNewtonProgress, Array], None] | None = None,
    on_fail: str = "warn",
) -> RegularizedNewtonResult:
    r"""Minimise a smooth function by the super-universal Newton method; a rival of `regularized_newton`.

    .. math:: x_+ = x - (H(x) + \lambda B)^{-1} \nabla f(x), \qquad \lambda = M \|\nabla f(x)\|_*^\alpha

    M is multiplied by 4 until

    .. math:: \langle \nabla f(x_+), x - x_+\rangle \ge \|\nabla f(x_+)\|_*^2 / (4 \lambda)

    and f does not rise, and divided by 4 after every step.

    Parameters
    ----------
    fun, grad, hess, x0, metric, tol, max_iter, max_search, callback, on_fail
        As in `regularized_newton`.
    power : float
        alpha, from 2/3 (for a Hessian that is Lipschitz continuous) to 1 (for one that is bounded); 2/3 does for both.
    constant : float
        First M.

    Returns
    -------
    RegularizedNewtonResult

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
    Cost as of `regularized_newton`. The theory is for convex f and its exact Hessian.

    References
    ----------
    Doikov, Mishchenko, Nesterov, "Super-universal regularized Newton method", SIAM J. Optim. 34, 2024,
    arXiv 2208.05888.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import super_newton
    >>> result = super_newton(lambda x: float((x**4).sum()), lambda x: 4 * x**3, lambda x: np.diag(12 * x**2),
    ...                       np.ones(3))
    >>> result.converged, result.n_iter < 30
    (True, True)
    """
    power = check_real(power, "power", low=0, high=1)
    constant = check_real(constant, "constant", low=0, low_open=True, high=math.inf, high_open=True)
    return descend(
        "super_newton", fun, grad, hess, x0, _Power(power, constant), metric=metric, tol=tol, max_iter=max_iter,
        max_search=max_search, callback=callback, on_fail=on_fail,
    )  # fmt: skip


class _Power:
    """Rule of `super_newton`."""

    def __init__(self, power: float, constant: float) -> None:
        self.power, self.constant = power, constant

    def step(self, H: Any, B: Metric, g: Array, natural: Array, norm: float, tol: float) -> tuple[Array | None, float]:
        lam = self.constant * norm**self.power
        return newton_step(H, B, lam, g, natural, tol), lam

    def accepts(self, gain: float, slack: float, slope: float, norm_new: float, lam: float) -> bool:
        return -slope >= norm_new * norm_new / (4 * lam)

    def fail(self) -> None:
        self.constant *= 4

    def succeed(self) -> None:
        self.constant /= 4
