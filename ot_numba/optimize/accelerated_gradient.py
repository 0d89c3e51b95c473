"""Accelerated gradient descent for strongly convex functions, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arrays.namespaces import array_namespace
from ..arrays.validation import check_int, check_real

Array = Any
FORGOTTEN = 8.0  #: a chunk of steps lowers the bound of the value by the exponential of this


class CertifiedResult(NamedTuple):
    r"""Approximate minimiser of a strongly convex function.

    Attributes
    ----------
    x : array
        The point.
    grad : array
        The gradient there.
    grad_norm : float
        Its 2-norm; :math:`\|x - \hat x\| \le \|\nabla h(x)\| / \mu`.
    error_bound : float
        That bound.
    n_iter : int
        Gradients.
    status : str
        ``"converged"``, ``"floor"`` (the gradient falls no more: rounding, or constants or derivatives
        that do not hold),
        ``"max_iter"`` or ``"diverged"``.
    """

    x: Array
    grad: Array
    grad_norm: float
    error_bound: float
    n_iter: int
    status: str


def accelerated_gradient(
    grad: Callable[[Array], Array],
    x0: Array,
    *,
    mu: float,
    lipschitz: float,
    tol: float,
    max_iter: int = 100_000,
    momentum: bool = True,
) -> CertifiedResult:
    r"""Minimise a mu-strongly convex, L-smooth function by Nesterov's method with constant momentum.

    .. math::

        x_{k+1} = y_k - \tfrac1L \nabla h(y_k), \qquad
        y_{k+1} = x_{k+1} + \frac{\sqrt L - \sqrt\mu}{\sqrt L + \sqrt\mu} (x_{k+1} - x_k)

    and stop where :math:`\|\nabla h(y_k)\|_2 \le tol`; the point returned is that y.

    Parameters
    ----------
    grad : callable
        ``grad(x)`` returns the gradient, a new array of the shape of x.
    x0 : array
        Where to start, of any shape and array-API library.
    mu, lipschitz : float
        Moduli of strong convexity and smoothness, ``0 < mu <= lipschitz``.
    tol : float
        On the 2-norm of the gradient.
    max_iter : int
        Largest number of gradients.
    momentum : bool
        False for plain gradient descent, which takes about L / mu gradients where the other takes the root of it.

    Returns
    -------
    CertifiedResult
        Never an exception for a missed tolerance: the caller reports it, with what it means there.

    Raises
    ------
    ValueError
        If ``mu <= 0`` or ``lipschitz < mu``, or another number is out of range.

    Notes
    -----
    One gradient an iteration, three arrays of memory.

    References
    ----------
    Nesterov, "Introductory lectures on convex optimization", Springer, 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import accelerated_gradient
    >>> d = np.array([1.0, 10.0])
    >>> result = accelerated_gradient(lambda x: d * (x - 3), np.zeros(2), mu=1, lipschitz=10, tol=1e-9)
    >>> result.status, result.x.round(6).tolist()
    ('converged', [3.0, 3.0])
    """
    xp = array_namespace(x0)
    mu = check_real(mu, "mu", low=0, low_open=True, high=math.inf, high_open=True)
    lipschitz = check_real(lipschitz, "lipschitz", low=mu * (1 - 1e-12), high=math.inf, high_open=True)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    kappa = math.sqrt(max(1.0, lipschitz / mu))
    share = (kappa - 1) / (kappa + 1) if momentum else 0.0
    chunk = max(20, math.ceil(FORGOTTEN * (kappa if momentum else kappa * kappa)))
    x = y = x0
    best = last = math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        for n_iter in range(1, max_iter + 1):
            g = grad(y)
            norm = math.sqrt(float(xp.sum(g * g)))
            best = min(best, norm)
            if norm <= tol:
                status = "converged"
                break
            # a bound of the norm grows by less than that in any number of steps
            if not norm <= 1e6 * kappa * max(best, tol):
                status = "diverged"
                break
            if n_iter % chunk == 0:
                if not best < 0.5 * last and norm <= 4 * best:
                    status = "floor"
                    break
                last = best
            new = y - g / lipschitz
            y = new + share * (new - x)
            x = new
        else:
            status = "max_iter"
    return CertifiedResult(y, g, norm, norm / mu, n_iter, status)
