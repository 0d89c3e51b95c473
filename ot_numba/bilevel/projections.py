"""Projections onto the constraints of bilevel problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..arrays.namespaces import array_namespace, device_of, is_numpy
from ..arrays.validation import as_float_array

Array = Any
MAX_NEWTON = 50


def project_hyperplane(w: Any, a: Any, b: float) -> Array:
    r"""Nearest point of a hyperplane, :math:`w - a \frac{\langle a, w\rangle - b}{\|a\|^2}`.

    Parameters
    ----------
    w, a : array_like of shape (n,)
        Point and normal.
    b : float
        Offset.

    Returns
    -------
    array of shape (n,)

    Raises
    ------
    ValueError
        If shapes differ, or a is 0.

    Examples
    --------
    >>> from ot_numba.bilevel import project_hyperplane
    >>> project_hyperplane([1.0, 1.0], [1.0, 0.0], 3.0).tolist()
    [3.0, 1.0]
    """
    xp = array_namespace(w, a)
    w = as_float_array(w, "w", ndim=1, xp=xp)
    a = as_float_array(a, "a", ndim=1, xp=xp, dtype=w.dtype, device=device_of(w))
    if tuple(a.shape) != tuple(w.shape):
        raise ValueError(f"a must have shape {tuple(w.shape)}, got {tuple(a.shape)}")
    square = float(xp.sum(a * a))
    if not square > 0:
        raise ValueError("a must not be 0")
    return w - a * ((float(xp.sum(a * w)) - b) / square)


def project_affine(A: Any, b: Any) -> Callable[[Array], Array]:
    r"""Projection onto :math:`\{w : A w = b\}`, as a function ``w -> w - A' (A A')^-1 (A w - b)``.

    Parameters
    ----------
    A : array_like of shape (p, n)
        Of full row rank.
    b : array_like of shape (p,)
        Right-hand side.

    Returns
    -------
    callable
        Takes and returns an array (n,). The Cholesky factor of A A' is computed once.

    Raises
    ------
    ValueError
        If shapes do not fit, or A has not full row rank.

    Notes
    -----
    p**2 (n + p / 3) multiply-adds at first, 2 p n + p**2 for a projection.

    Examples
    --------
    >>> from ot_numba.bilevel import project_affine
    >>> project_affine([[1.0, 0.0]], [3.0])([1.0, 1.0]).tolist()
    [3.0, 1.0]
    """
    xp = array_namespace(A, b)
    A = as_float_array(A, "A", ndim=2, xp=xp, dtype=xp.float64)
    b = as_float_array(b, "b", ndim=1, xp=xp, dtype=xp.float64, device=device_of(A))
    if b.shape[0] != A.shape[0]:
        raise ValueError(f"b must have shape ({A.shape[0]},), got {tuple(b.shape)}")
    values = xp.linalg.svdvals(A) if A.shape[0] <= A.shape[1] else None
    if values is None or not float(xp.min(values)) > 1e-12 * float(xp.max(values)):
        raise ValueError("A must have full row rank: leave out equations that follow from the others")
    gram = A @ A.T
    if is_numpy(xp):
        from scipy.linalg import cho_factor, cho_solve

        factor = cho_factor(gram, lower=True)

        def solve(r: Array) -> Array:
            return cho_solve(factor, r)

    else:
        inverse = xp.linalg.inv(gram)

        def solve(r: Array) -> Array:
            return inverse @ r

    def project(w: Any) -> Array:
        w = xp.asarray(w, dtype=xp.float64)
        return w - A.T @ solve(A @ w - b)

    return project


def project_svm_margin(w: Any, b: Any, xi: Any, Z: Any, labels: Any) -> tuple[Array, float, Array]:
    r"""Nearest point of :math:`\{(w, b, \xi) : \xi_i \ge 1 - l_i (z_i^\top w + b)\}`.

    With :math:`u = (w, b)` and the rows :math:`m_i = l_i (z_i, 1)` of M, :math:`\xi = \max(\xi_0, 1 - M u)` where u
    minimises :math:`\tfrac12 \|u - u_0\|^2 + \tfrac12 \|(1 - \xi_0 - M u)_+\|^2`, by a semismooth Newton method.

    Parameters
    ----------
    w : array_like of shape (d,)
        Normal.
    b : float
        Offset.
    xi : array_like of shape (n,)
        Slacks; they may be negative.
    Z : array_like of shape (n, d)
        Points.
    labels : array_like of shape (n,)
        l, -1 or 1.

    Returns
    -------
    w, b, xi : array of shape (d,), float, array of shape (n,)

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    One to four steps as a rule, of n (d + 1)**2 multiply-adds.

    Examples
    --------
    >>> from ot_numba.bilevel import project_svm_margin
    >>> w, b, xi = project_svm_margin([0.2, -0.1], 0.1, [0.1, 0, 0.3], [[1, 0], [0, 1], [-1, -1]], [1, 1, -1])
    >>> w.round(3).tolist(), round(b, 3), xi.round(3).tolist()
    ([0.475, 0.375], 0.325, [0.2, 0.3, 0.475])
    """
    xp = array_namespace(w, xi, Z, labels)
    Z = as_float_array(Z, "Z", ndim=2, xp=xp, dtype=xp.float64)
    n, d = Z.shape
    vectors = []
    for name, value, size in (("w", w, d), ("xi", xi, n), ("labels", labels, n)):
        v = as_float_array(value, name, ndim=1, xp=xp, dtype=xp.float64, device=device_of(Z))
        if v.shape[0] != size:
            raise ValueError(f"{name} must have shape ({size},), got {tuple(v.shape)}")
        vectors.append(v)
    w, xi, labels = vectors
    M = labels[:, None] * xp.concat([Z, xp.ones_like(Z[:, :1])], axis=1)
    u = xp.concat([w, xp.asarray([float(b)], dtype=xp.float64, device=device_of(Z))])
    u, xi = project_margin(xp, u, xi, M)
    return u[:d], float(u[d]), xi


def project_margin(xp: Any, u0: Array, xi0: Array, M: Array) -> tuple[Array, Array]:
    r"""Nearest point of :math:`\{(u, \xi) : \xi \ge 1 - M u\}`."""
    eye = xp.eye(u0.shape[0], dtype=u0.dtype, device=device_of(u0))
    zero = xp.zeros_like(xi0)
    room = 1 - xi0

    def state(u: Array) -> tuple[Array, float]:
        s = xp.maximum(room - M @ u, zero)
        v = u - u0
        return s, 0.5 * float(v @ v) + 0.5 * float(s @ s)

    u = u0
    s, value = state(u)
    for _ in range(MAX_NEWTON):
        active = M * xp.astype(s > 0, M.dtype)[:, None]
        grad = u - u0 - M.T @ s
        step = xp.linalg.solve(eye + active.T @ M, grad[:, None])[:, 0]
        slope, t = float(step @ grad), 1.0
        while True:
            new = u - t * step
            s_new, value_new = state(new)
            if value_new <= value - 1e-4 * t * slope or t < 1e-6:
                break
            t /= 2
        # the function is quadratic as long as the same slacks are positive, and one step minimises that
        same = bool(xp.all((s_new > 0) == (s > 0)))
        if t < 1e-6:  # rounding hides the decrease
            break
        u, s, value = new, s_new, value_new
        if same and t == 1:
            break
    # of the equal points max(xi0, 1 - M u) the sum loses no digits
    return u, xi0 + s
