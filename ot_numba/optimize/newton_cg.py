"""Inexact Newton method for strongly convex functions, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace
from ..arrays.validation import check_int, check_real
from .accelerated_gradient import CertifiedResult
from .conjugate_gradient import conjugate_gradient

Array = Any
DECREASE = 1e-4  #: share of the decrease of the gradient that the linear model promises, which a step must bring
FORCING, SHARE = 0.5, 0.9  #: largest tolerance of the linear systems, and its size over the squared ratio of gradients
MAX_HALVINGS = 30


def newton_cg(
    grad: Callable[[Array], Array],
    hvp: Callable[[Array, Array], Array],
    x0: Array,
    *,
    mu: float,
    tol: float,
    max_iter: int = 100_000,
    preconditioner: Callable[[Array], Callable[[Array], Array]] | None = None,
) -> CertifiedResult:
    r"""Minimise a mu-strongly convex function by Newton's method with conjugate gradients.

    Steps :math:`x + t d` with :math:`\|H(x) d + \nabla h(x)\| \le \eta \|\nabla h(x)\|`, and t halved from 1 until

    .. math:: \|\nabla h(x + t d)\| \le (1 - 10^{-4}\, t\, (1 - \eta)) \|\nabla h(x)\| .

    :math:`\eta` is at most a half, and falls with the squared ratio of the last two norms. No values of h are needed,
    so that their rounding does not matter.

    Parameters
    ----------
    grad : callable
        ``grad(x)`` returns the gradient, a new array of the shape of x.
    hvp : callable
        ``hvp(x, v)`` returns the product of the Hessian at x with v.
    x0 : array
        Where to start, of any shape and array-API library.
    mu : float
        Modulus of strong convexity, > 0; only the bound of the error depends on it.
    tol : float
        On the 2-norm of the gradient.
    max_iter : int
        Largest number of gradients.
    preconditioner : callable, optional
        ``preconditioner(x)`` returns that of the systems at x, as `conjugate_gradient` takes it.

    Returns
    -------
    CertifiedResult
        Never an exception for a missed tolerance: the caller reports it, with what it means there.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Converges from everywhere, in the end faster than linearly. Nine arrays of memory.

    References
    ----------
    Eisenstat, Walker, "Choosing the forcing terms in an inexact Newton method", SIAM J. Sci. Comput. 17, 1996.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import newton_cg
    >>> result = newton_cg(lambda x: x + x**3 - 2, lambda x, v: (1 + 3 * x * x) * v, np.zeros(2), mu=1, tol=1e-9)
    >>> result.status, result.x.round(6).tolist()
    ('converged', [1.0, 1.0])
    """
    xp = array_namespace(x0)
    mu = check_real(mu, "mu", low=0, low_open=True, high=math.inf, high_open=True)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)

    def at(x: Array) -> tuple[Array, float]:
        g = grad(x)
        return g, math.sqrt(float(xp.sum(g * g)))

    x, forcing, n_iter, status = x0, FORCING, 1, "converged"
    with np.errstate(over="ignore", invalid="ignore"):
        g, norm = at(x)
        if not math.isfinite(norm):
            status = "diverged"
        while status == "converged" and norm > tol:
            # no system needs to be solved better than the tolerance asks for
            forcing = max(forcing, 0.5 * tol / norm)
            M = None if preconditioner is None else preconditioner(x)
            d = conjugate_gradient(lambda v, x=x: hvp(x, v), -g, tol=forcing, preconditioner=M).x
            t, taken = 1.0, False
            for _ in range(MAX_HALVINGS):
                if n_iter == max_iter:
                    status = "max_iter"
                    break
                new = x + t * d
                new_g, new_norm = at(new)
                n_iter += 1
                taken = new_norm <= (1 - DECREASE * t * (1 - forcing)) * norm
                if taken:
                    break
                t *= 0.5
            if taken:
                lowest = SHARE * forcing * forcing  # so that one lucky step does not ask for too much
                forcing = min(FORCING, max(SHARE * (new_norm / norm) ** 2, lowest if lowest > 0.1 else 0.0))
                x, g, norm = new, new_g, new_norm
            elif status == "converged":
                status = "floor"
    return CertifiedResult(x, g, norm, norm / mu, n_iter, status)
