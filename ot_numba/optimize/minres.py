"""MINRES for symmetric systems, definite or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.namespaces import array_namespace, read_floats
from ..arrays.validation import check_int, check_real
from .conjugate_gradient import CGResult

Array = Any


def minres(
    matvec: Callable[[Array], Array],
    b: Array,
    *,
    init: Array | None = None,
    tol: float = 1e-10,
    max_iter: int | None = None,
) -> CGResult:
    r"""Solve :math:`A x = b` for a symmetric A by the method of minimal residuals.

    Of all points of the Krylov space that the products with A have reached, the iterate is the one with the smallest
    :math:`\|b - A x\|_2`, which therefore never grows; that of conjugate gradients does. A may be indefinite, and
    singular if b is in its range.

    Parameters
    ----------
    matvec : callable
        ``matvec(v)`` returns :math:`A v`.
    b : array
        Right-hand side, of any shape and array-API library.
    init : array, optional
        Where to start, of the shape of b, default 0.
    tol : float
        On :math:`\|b - A x\|_2 / \|b\|_2`.
    max_iter : int, optional
        Largest number of iterations, default 10 times the number of entries of b.

    Returns
    -------
    CGResult
        Never an exception for a missed tolerance: the caller reports it, with what it means there.

    Raises
    ------
    ValueError
        If `tol` is negative or `max_iter` is below 1.

    Notes
    -----
    One product with A an iteration, seven vectors of memory; two numbers are read from the device at once.

    References
    ----------
    Paige, Saunders, "Solution of sparse indefinite systems of linear equations", SIAM J. Numer. Anal. 12, 1975.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import minres
    >>> A = np.array([[2.0, 1.0], [1.0, -3.0]])
    >>> result = minres(lambda v: A @ v, np.array([3.0, -2.0]))
    >>> result.x.round(12).tolist(), result.n_iter
    ([1.0, 1.0], 2)
    """
    xp = array_namespace(b)
    tol = check_real(tol, "tol", low=0)
    max_iter = 10 * math.prod(b.shape) if max_iter is None else check_int(max_iter, "max_iter", low=1)
    x = xp.zeros_like(b) if init is None else xp.asarray(init, copy=True)
    r = b if init is None else b - matvec(x)
    size, beta = (math.sqrt(square) for square in read_floats([xp.sum(b * b), xp.sum(r * r)]))
    # A V = V T with a tridiagonal T, whose QR factorisation by rotations (c, s) goes along; W = V R^-1
    left = beta  # what the last rotation leaves of the residual
    old_v = w = old_w = xp.zeros_like(b)
    v, n_iter, c, s, old_c, old_s = r, 0, 1.0, 0.0, 1.0, 0.0
    while abs(left) > tol * size and n_iter < max_iter:
        v = v / beta
        new_v = matvec(v)
        alpha = xp.sum(v * new_v)
        new_v = new_v - alpha * v - beta * old_v
        alpha, square = read_floats([alpha, xp.sum(new_v * new_v)])
        new_beta = math.sqrt(square)
        above, corner = s * alpha + old_c * c * beta, c * alpha - old_c * s * beta
        diagonal = math.hypot(corner, new_beta)
        if not 0 < diagonal < math.inf:  # b is not in the range of A, or nothing is finite
            break
        w, old_w = (v - old_s * beta * old_w - above * w) / diagonal, w
        c, s, old_c, old_s = corner / diagonal, new_beta / diagonal, c, s
        x = x + c * left * w
        left *= -s
        old_v, v, beta = v, new_v, new_beta
        n_iter += 1
    return CGResult(x, abs(left) / size if size else abs(left), n_iter, abs(left) <= tol * size)
