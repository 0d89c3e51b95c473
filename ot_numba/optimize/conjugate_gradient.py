"""Conjugate gradients for symmetric positive semi-definite systems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..arrays.namespaces import array_namespace, is_asynchronous, read_floats
from ..arrays.validation import check_int, check_real

Array = Any
FEWEST, SHARE = 4, 4  #: iterations, and their share of those so far, between two looks at what a device computes


class CGResult(NamedTuple):
    r"""Solution of a linear system.

    Attributes
    ----------
    x : array like the right-hand side
        The last iterate: of all, that with the smallest energy :math:`x^\top A x / 2 - b^\top x`
        (`conjugate_gradient`), or with the smallest residual (`minres`).
    residual : float
        ``||b - A x|| / ||b||``, from the recurrence of the residual (0 if b = 0).
    n_iter : int
        Products with A that led to x.
    converged : bool
        Whether the residual is at most the tolerance.
    """

    x: Array
    residual: float
    n_iter: int
    converged: bool


def conjugate_gradient(
    matvec: Callable[[Array], Array],
    b: Array,
    *,
    preconditioner: Callable[[Array], Array] | None = None,
    init: Array | None = None,
    tol: float = 1e-10,
    max_iter: int | None = None,
) -> CGResult:
    r"""Solve :math:`A x = b` for a symmetric positive semi-definite A by preconditioned conjugate gradients.

    If A is singular, b must be in its range.

    Parameters
    ----------
    matvec : callable
        ``matvec(v)`` returns :math:`A v`.
    b : array
        Right-hand side, of any shape and array-API library.
    preconditioner : callable, optional
        ``preconditioner(r)`` returns :math:`M r` for a symmetric positive definite M close to the inverse of
        A, for instance that of `jacobi`.
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
    One product with A an iteration, and four vectors of memory. Stops early if rounding has made a search
    direction useless (:math:`p^\top A p \le 0`).

    On a GPU no number is waited for but after every quarter more iterations: those that follow the last, at most a
    quarter and 4 more, leave x as it is.

    References
    ----------
    Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. NBS 49, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import conjugate_gradient
    >>> A = np.array([[2.0, 1.0], [1.0, 3.0]])
    >>> result = conjugate_gradient(lambda v: A @ v, np.array([3.0, 4.0]))
    >>> result.x.round(12).tolist(), result.n_iter
    ([1.0, 1.0], 2)
    """
    xp = array_namespace(b)
    tol = check_real(tol, "tol", low=0)
    max_iter = 10 * math.prod(b.shape) if max_iter is None else check_int(max_iter, "max_iter", low=1)
    apply = preconditioner or (lambda r: r)
    wait = not is_asynchronous(xp)
    number, root = (float, math.sqrt) if wait else (lambda v: v, xp.sqrt)
    x = xp.zeros_like(b) if init is None else xp.asarray(init, copy=True)
    r = xp.asarray(b, copy=True) if init is None else b - matvec(x)
    size, norm = (root(number(_dot(xp, v, v))) for v in (b, r))
    limit = tol * size
    p, old, n_iter, going, look = None, 1.0, 0, True, 0
    for done in range(max_iter):
        going = going & (norm > limit)
        if done >= look:
            if not going:
                break
            look = done + (1 if wait else max(FEWEST, done // SHARE))
        z = apply(r)
        new = number(_dot(xp, r, z))
        p = z if p is None else z + (new / old) * p
        Ap = matvec(p)
        n_iter = n_iter + going
        curvature = number(_dot(xp, p, Ap))
        going = going & (curvature > 0)
        if wait and not going:
            break
        step = new / curvature
        moved = x + step * p, r - step * Ap
        x, r = moved if wait else (xp.where(going, new_v, v) for new_v, v in zip(moved, (x, r), strict=True))
        old, norm = new, root(number(_dot(xp, r, r)))
    size, limit, norm, n_iter = read_floats([size, limit, norm, n_iter])
    return CGResult(x, norm / size if size else norm, int(n_iter), norm <= limit)


def jacobi(diagonal: Array) -> Callable[[Array], Array]:
    """Preconditioner ``r -> r / diagonal`` of a matrix with this diagonal > 0.

    Raises
    ------
    ValueError
        If an entry is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import conjugate_gradient, jacobi
    >>> A = np.diag([1.0, 100.0, 1e4])
    >>> conjugate_gradient(lambda v: A @ v, np.ones(3), preconditioner=jacobi(np.diag(A))).n_iter
    1
    """
    lowest = float(array_namespace(diagonal).min(diagonal))
    if not lowest > 0:
        raise ValueError(f"diagonal must be positive, got {lowest}")
    return lambda r: r / diagonal


def _dot(xp: Any, u: Array, v: Array) -> Array:
    """<u, v>, in an order that does not depend on the number of threads."""
    return xp.sum(u * v)
