"""Newton's method with cubic regularisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import device_of, to_numpy
from ..arrays.validation import check_real
from .regularized_newton import Metric, RegularizedNewtonProgress, RegularizedNewtonResult, descend

Array = Any
BISECTIONS = 200  #: at most, for the length of a step; far fewer until the bracket is two neighbouring numbers


def cubic_newton(
    fun: Callable[[Array], float],
    grad: Callable[[Array], Array],
    hess: Callable[[Array], Array],
    x0: Any,
    *,
    constant: float = 1.0,
    metric: Any = None,
    tol: float = 1e-8,
    max_iter: int = 1000,
    max_search: int = 40,
    callback: Callable[[RegularizedNewtonProgress, Array], None] | None = None,
    on_fail: str = "warn",
) -> RegularizedNewtonResult:
    r"""Minimise a smooth function by cubically regularised Newton steps; a rival of `regularized_newton`.

    .. math::

        x_+ = x + \arg\min_h \Bigl\{\langle \nabla f(x), h\rangle + \tfrac12 \langle H(x) h, h\rangle
        + \tfrac M6 \|h\|_B^3\Bigr\}

    M is doubled until f(x_+) is at most f(x) plus that minimum, and halved after every step. H may be indefinite.

    Parameters
    ----------
    fun, grad, x0, metric, tol, max_iter, max_search, callback, on_fail
        As in `regularized_newton`.
    hess : callable
        ``hess(x)`` returns the matrix H as an array (n, n).
    constant : float
        First M, an estimate of the Lipschitz constant of the Hessian.

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
    The eigenvalues of H, about 10 n**3 operations, serve all M of an iteration.

    References
    ----------
    Nesterov, Polyak, "Cubic regularization of Newton method and its global performance", Mathematical Programming
    108, 2006.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import cubic_newton
    >>> result = cubic_newton(lambda x: float((x**4).sum()), lambda x: 4 * x**3, lambda x: np.diag(12 * x**2),
    ...                       np.ones(3))
    >>> result.converged, result.n_iter < 30
    (True, True)
    """
    constant = check_real(constant, "constant", low=0, low_open=True, high=math.inf, high_open=True)
    return descend(
        "cubic_newton", fun, grad, hess, x0, _Cubic(constant), metric=metric, tol=tol, max_iter=max_iter,
        max_search=max_search, callback=callback, on_fail=on_fail,
    )  # fmt: skip


class _Cubic:
    """Rule of `cubic_newton`."""

    def __init__(self, constant: float) -> None:
        self.constant = constant
        self.H: Array | None = None

    def step(self, H: Array, B: Metric, g: Array, natural: Array, norm: float, tol: float) -> tuple[Array, float]:
        if H is not self.H:  # a new iteration
            if not hasattr(H, "shape"):
                raise TypeError("hess of cubic_newton must return an array")
            self.H, self.half = H, B.half()
            self.values, self.vectors = B.xp.linalg.eigh(self.half.both(H))
            self.slopes = to_numpy(self.vectors.T @ self.half.inverse(g))
        values = to_numpy(self.values)
        h, lam = _smallest(values, self.slopes, self.constant)
        size = math.sqrt(float(h @ h))
        self.model = float(self.slopes @ h + 0.5 * values @ (h * h)) + self.constant / 6 * size**3
        h = B.xp.asarray(h, dtype=g.dtype, device=device_of(g))
        return self.half.inverse_t(self.vectors @ h), lam

    def accepts(self, gain: float, slack: float, slope: float, norm_new: float, lam: float) -> bool:
        return gain + slack >= -self.model

    def fail(self) -> None:
        self.constant *= 2

    def succeed(self) -> None:
        self.constant /= 2


def _smallest(values: np.ndarray, slopes: np.ndarray, M: float) -> tuple[np.ndarray, float]:
    """Minimiser of ``slopes'h + values'h**2 / 2 + M |h|**3 / 6``, for values in order, and ``M |h| / 2``.

    It is ``h = -slopes / (values + s)`` with s = M |h| / 2 and at least -values[0].
    """
    def length(s: float) -> float:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            h = np.where(slopes == 0, 0.0, slopes / (values + s))
        return math.sqrt(float(h @ h))

    norm, lowest = math.sqrt(float(slopes @ slopes)), float(values[0])
    low = max(0.0, -lowest)
    # |h| <= norm / (lowest + s)
    high = -0.5 * lowest + math.hypot(0.5 * lowest, math.sqrt(0.5 * M * norm))
    if lowest < 0 and length(low) <= 2 * low / M:
        # no slope along the most negative curvature: a step along it does the rest
        h = np.where(values + low > 0, -slopes / np.where(values + low > 0, values + low, 1.0), 0.0)
        h[0] = math.sqrt(max(0.0, (2 * low / M) ** 2 - float(h @ h)))
        return h, low
    for _ in range(BISECTIONS):
        s = 0.5 * (low + high)
        if not low < s < high:
            break
        low, high = (s, high) if length(s) > 2 * s / M else (low, s)
    return -slopes / (values + high), high
