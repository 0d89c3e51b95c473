"""Smooth functions with their Hessians, exact and approximate, for `regularized_newton`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.namespaces import array_namespace
from ..arrays.validation import as_float_array, check_choice, check_real
from .regularized_newton import RankOne

Array = Any


def _sigmoid(xp: Any, t: Array) -> Array:
    small = xp.exp(-xp.abs(t))
    return xp.where(t >= 0, 1 / (1 + small), small / (1 + small))


class LogSumExp:
    r"""Smoothed maximum :math:`f(x) = s \log \sum_i \exp((a_i^\top x - b_i) / s)`.

    With :math:`\pi` the softmax of the terms, the Hessian is :math:`(A^\top \operatorname{diag}(\pi) A - g g^\top)/s`
    (``"exact"``), and ``"gauss-newton"`` leaves out :math:`g g^\top`, which vanishes at a minimum.

    Parameters
    ----------
    A : array_like of shape (m, n)
        Slopes.
    b : array_like of shape (m,)
        Offsets.
    smoothing : float
        s > 0, in the units of b.

    Examples
    --------
    >>> from ot_numba.optimize import LogSumExp
    >>> f = LogSumExp([[1, 0], [-1, 0.5], [0, -1]], [0, 0.2, -0.1], smoothing=0.5)
    >>> round(f.value([0.3, -0.2]), 9)
    0.686279203
    """

    def __init__(self, A: Any, b: Any, *, smoothing: float) -> None:
        self.xp = array_namespace(A, b)
        self.A = as_float_array(A, "A", ndim=2, xp=self.xp)
        self.b = as_float_array(b, "b", ndim=1, xp=self.xp, dtype=self.A.dtype)
        self.smoothing = check_real(smoothing, "smoothing", low=0, low_open=True)
        if self.b.shape[0] != self.A.shape[0]:
            raise ValueError(f"b must have shape ({self.A.shape[0]},), got {tuple(self.b.shape)}")

    def _terms(self, x: Array) -> tuple[float, Array]:
        xp = self.xp
        z = (self.A @ xp.asarray(x, dtype=self.A.dtype) - self.b) / self.smoothing
        top = float(xp.max(z))
        e = xp.exp(z - top)
        total = float(xp.sum(e))
        return self.smoothing * (top + math.log(total)), e / total

    def value(self, x: Array) -> float:
        """Value at x (n,)."""
        return self._terms(x)[0]

    def grad(self, x: Array) -> Array:
        """Gradient at x, (n,)."""
        return self.A.T @ self._terms(x)[1]

    def hess(self, x: Array, approx: str = "exact") -> Array:
        """Hessian at x, (n, n): ``"exact"`` or ``"gauss-newton"``."""
        check_choice(approx, "approx", ("exact", "gauss-newton"))
        pi = self._terms(x)[1]
        H = self.A.T @ (pi[:, None] * self.A) / self.smoothing
        if approx == "exact":
            g = self.A.T @ pi
            H = H - g[:, None] * g[None, :] / self.smoothing
        return H


class LogisticLoss:
    r"""Logistic loss :math:`f(x) = \frac1m \sum_i \log(1 + \exp(-y_i a_i^\top x))`.

    With :math:`s_i = \sigma(-y_i a_i^\top x)` the Hessian is :math:`A^\top \operatorname{diag}(w) A / m` with weights
    s (1 - s) (``"exact"``) or s**2 (``"fisher"``, the mean square of the gradients of the terms). The latter is close
    to it only where the classes are nearly separable, and need not speed up a method even there.

    Parameters
    ----------
    A : array_like of shape (m, n)
        Features.
    y : array_like of shape (m,)
        Labels, -1 or 1.

    Examples
    --------
    >>> from ot_numba.optimize import LogisticLoss
    >>> round(LogisticLoss([[1.0], [2.0]], [1, -1]).value([0.0]), 6)
    0.693147
    """

    def __init__(self, A: Any, y: Any) -> None:
        self.xp = array_namespace(A, y)
        self.A = as_float_array(A, "A", ndim=2, xp=self.xp)
        y = as_float_array(y, "y", ndim=1, xp=self.xp, dtype=self.A.dtype)
        if y.shape[0] != self.A.shape[0] or not bool(self.xp.all(y * y == 1)):
            raise ValueError(f"y must hold {self.A.shape[0]} labels -1 or 1")
        self.signed = y[:, None] * self.A

    def value(self, x: Array) -> float:
        """Value at x (n,)."""
        xp = self.xp
        t = -(self.signed @ xp.asarray(x, dtype=self.A.dtype))
        return float(xp.mean(xp.log1p(xp.exp(-xp.abs(t))) + xp.where(t > 0, t, xp.zeros_like(t))))

    def _residuals(self, x: Array) -> Array:
        return _sigmoid(self.xp, -(self.signed @ self.xp.asarray(x, dtype=self.A.dtype)))

    def grad(self, x: Array) -> Array:
        """Gradient at x, (n,)."""
        return -(self.signed.T @ self._residuals(x)) / self.A.shape[0]

    def hess(self, x: Array, approx: str = "exact") -> Array:
        """Hessian at x, (n, n): ``"exact"`` or ``"fisher"``."""
        check_choice(approx, "approx", ("exact", "fisher"))
        s = self._residuals(x)
        weights = s * (1 - s) if approx == "exact" else s * s
        return self.A.T @ (weights[:, None] * self.A) / self.A.shape[0]


class SoftmaxLoss:
    r"""Cross-entropy of softmax regression, :math:`f(W) = -\frac1m \sum_i \log p_{i y_i}`, p = softmax(A W).

    Its Hessian-vector products, which never form the matrix, take
    :math:`\operatorname{diag}(p) - p p^\top` for each row (``"exact"``, the same as Gauss-Newton) or
    :math:`(p - e_y)(p - e_y)^\top` (``"fisher"``).

    Parameters
    ----------
    A : array_like of shape (m, n)
        Features.
    labels : array_like of shape (m,)
        Classes 0 to k - 1.
    n_classes : int, optional
        k, default one more than the largest label.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import SoftmaxLoss
    >>> f = SoftmaxLoss([[1.0], [2.0]], [0, 1])
    >>> round(f.value(np.zeros(2)), 6)
    0.693147
    """

    def __init__(self, A: Any, labels: Any, n_classes: int | None = None) -> None:
        self.xp = xp = array_namespace(A, labels)
        self.A = as_float_array(A, "A", ndim=2, xp=xp)
        self.Y = one_hot(xp, labels, self.A, n_classes, "labels")

    def _softmax(self, w: Array) -> tuple[Array, Array]:
        xp = self.xp
        z = self.A @ xp.reshape(xp.asarray(w, dtype=self.A.dtype), (self.A.shape[1], self.Y.shape[1]))
        return log_softmax(xp, z)

    def value(self, w: Array) -> float:
        """Value at w (n k,), the rows of W one after the other."""
        return -float(self.xp.sum(self.Y * self._softmax(w)[0])) / self.A.shape[0]

    def grad(self, w: Array) -> Array:
        """Gradient at w, (n k,)."""
        return self.xp.reshape(self.A.T @ (self._softmax(w)[1] - self.Y), (-1,)) / self.A.shape[0]

    def hess(self, w: Array, approx: str = "exact") -> Callable[[Array], Array]:
        """Hessian at w, as the function ``v -> H v``."""
        check_choice(approx, "approx", ("exact", "fisher"))
        xp, m, p = self.xp, self.A.shape[0], self._softmax(w)[1]
        e = p - self.Y

        def product(v: Array) -> Array:
            U = self.A @ xp.reshape(v, (self.A.shape[1], p.shape[1]))
            if approx == "exact":
                U = p * U
                U = U - p * xp.sum(U, axis=1, keepdims=True)
            else:
                U = e * xp.sum(e * U, axis=1, keepdims=True)
            return xp.reshape(self.A.T @ U, (-1,)) / m

        return product


def log_softmax(xp: Any, z: Array) -> tuple[Array, Array]:
    """Logarithm of the softmax of each row, and the softmax."""
    z = z - xp.max(z, axis=1, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=1, keepdims=True)
    return z - xp.log(total), e / total


def one_hot(xp: Any, labels: Any, like: Array, n_classes: int | None, name: str) -> Array:
    """Labels 0 to k - 1 as rows of the unit matrix."""
    given = as_float_array(labels, name, ndim=1, xp=xp, dtype=like.dtype)
    if given.shape[0] != like.shape[0]:
        raise ValueError(f"{name} must have shape ({like.shape[0]},), got {tuple(given.shape)}")
    k = int(float(xp.max(given))) + 1 if n_classes is None else n_classes
    if float(xp.min(given)) < 0 or float(xp.max(given)) >= k or not bool(xp.all(given == xp.floor(given))):
        raise ValueError(f"{name} must be integers from 0 to {k - 1}")
    return xp.astype(given[:, None] == xp.arange(k, dtype=like.dtype)[None, :], like.dtype)


class PowerNorm:
    r"""Power of the norm of residuals, :math:`f(x) = \frac1p \|u(x)\|_2^p`.

    Its Hessian is

    .. math::

        \|u\|^{p-2} \Bigl(J^\top J + \sum_i u_i \nabla^2 u_i\Bigr) + (p-2) \|u\|^{p-4} J^\top u\, u^\top J

    (``"exact"``). ``"gauss-newton"`` leaves out the second derivatives of u, and ``"fisher"`` keeps only the last
    term, of rank one.

    Parameters
    ----------
    residuals, jacobian : callable
        ``residuals(x)`` returns u (m,), ``jacobian(x)`` its derivative J (m, n).
    p : float
        Power, at least 2.
    curvature : callable, optional
        ``curvature(x, u)`` returns :math:`\sum_i u_i \nabla^2 u_i`, (n, n); without it u counts as affine.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import PowerNorm
    >>> f = PowerNorm(lambda x: np.array([1 - x[0], 10 * (x[1] - x[0] ** 2)]),
    ...               lambda x: np.array([[-1.0, 0.0], [-20 * x[0], 10.0]]), p=4)
    >>> f.value(np.array([0.5, 0.5])), f.grad(np.array([0.5, 0.5])).round(9).tolist()
    (10.5625, [-165.75, 162.5])
    """

    def __init__(
        self,
        residuals: Callable[[Array], Array],
        jacobian: Callable[[Array], Array],
        *,
        p: float,
        curvature: Callable[[Array, Array], Array] | None = None,
    ) -> None:
        self.residuals, self.jacobian, self.curvature = residuals, jacobian, curvature
        self.p = check_real(p, "p", low=2)

    def value(self, x: Array) -> float:
        """Value at x (n,)."""
        u = self.residuals(x)
        return float(array_namespace(u).sum(u * u)) ** (self.p / 2) / self.p

    def _parts(self, x: Array) -> tuple[Array, Array, Array, float]:
        u, J = self.residuals(x), self.jacobian(x)
        return u, J, J.T @ u, math.sqrt(float(array_namespace(u).sum(u * u)))

    def grad(self, x: Array) -> Array:
        """Gradient at x, (n,)."""
        _, _, Ju, size = self._parts(x)
        return size ** (self.p - 2) * Ju

    def hess(self, x: Array, approx: str = "exact") -> Array | RankOne:
        """Hessian at x: an array (n, n), or `RankOne` for ``"fisher"``."""
        check_choice(approx, "approx", ("exact", "gauss-newton", "fisher"))
        u, J, Ju, size = self._parts(x)
        # scale Ju Ju' is the last term; it vanishes with u, as |Ju| <= |J| |u|
        scale = (self.p - 2) * size ** (self.p - 4) if size > 0 else 0.0
        if approx == "fisher":
            return RankOne(scale, Ju)
        H = J.T @ J
        if approx == "exact" and self.curvature is not None:
            H = H + self.curvature(x, u)
        return size ** (self.p - 2) * H + scale * Ju[:, None] * Ju[None, :]
