"""Bilevel problems: least squares, multinomial logistic regression, the elastic net."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, to_numpy
from ..arrays.validation import as_float_array, check_real
from ..optimize.conjugate_gradient import jacobi
from ..optimize.objectives import log_softmax, one_hot

Array = Any
LOG_LIMIT = 50.0  #: largest size of a logarithm that counts
THIRD = 1.5 * 0.8**2.5  #: largest third derivative of sqrt(t**2 + 1)
SKEW = 2**1.5 / (6 * math.sqrt(3))  #: largest third derivative of log-sum-exp along a unit vector


def _extremes(A: Array) -> tuple[float, float]:
    """Smallest and largest eigenvalue of A'A."""
    A = to_numpy(A)
    values = np.linalg.svd(A, compute_uv=False) ** 2
    return float(values[-1]) if A.shape[0] >= A.shape[1] else 0.0, float(values[0])


def _matrix(A: Any, name: str, xp: Any) -> Array:
    return as_float_array(A, name, ndim=2, xp=xp, dtype=xp.float64)


def _vector(b: Any, name: str, size: int, xp: Any, like: Array) -> Array:
    b = as_float_array(b, name, ndim=1, xp=xp, dtype=xp.float64, device=device_of(like))
    if b.shape[0] != size:
        raise ValueError(f"{name} must have shape ({size},), got {tuple(b.shape)}")
    return b


class Quadratic:
    """Bilevel problem from `quadratic`."""

    upper_convex = True

    def __init__(self, A1: Any, b1: Any, A2: Any, A3: Any, b2: Any) -> None:
        self.xp = xp = array_namespace(A1, b1, A2, A3, b2)
        self.A1, self.A2, self.A3 = (_matrix(A, f"A{k}", xp) for k, A in ((1, A1), (2, A2), (3, A3)))
        self.b1 = _vector(b1, "b1", self.A1.shape[0], xp, self.A1)
        self.b2 = _vector(b2, "b2", self.A2.shape[0], xp, self.A2)
        if self.A1.shape[1] != self.A2.shape[1]:
            raise ValueError(f"A1 and A2 must have as many columns, got {self.A1.shape[1]} and {self.A2.shape[1]}")
        if self.A3.shape[0] != self.A2.shape[0]:
            raise ValueError(f"A2 and A3 must have as many rows, got {self.A2.shape[0]} and {self.A3.shape[0]}")
        self._mu, self._lipschitz = _extremes(self.A2)
        if not self._mu > 1e-14 * self._lipschitz:
            raise ValueError("A2 must have full column rank: the lower level is not strongly convex")
        # all that any product needs is of the size of x and theta
        self._H, self._J, self._c = self.A2.T @ self.A2, self.A2.T @ self.A3, self.A2.T @ self.b2
        self._jac_norm = math.sqrt(_extremes(self._J)[1])
        #: Lipschitz constant of the gradient of the upper level
        self.L_g = _extremes(self.A1)[1]
        #: where the lower level may start
        self.start = xp.zeros(self.A1.shape[1], dtype=xp.float64, device=device_of(self.A1))

    def upper(self, x: Array, theta: Array) -> float:
        """Half the squared residual of the first system."""
        r = self.A1 @ x - self.b1
        return 0.5 * float(self.xp.sum(r * r))

    def upper_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the upper level in x."""
        return self.A1.T @ (self.A1 @ x - self.b1)

    def lower(self, x: Array, theta: Array) -> float:
        """Half the squared residual of the second system."""
        r = self.A2 @ x + self.A3 @ theta - self.b2
        return 0.5 * float(self.xp.sum(r * r))

    def lower_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the lower level in x."""
        return self._H @ x + self._J @ theta - self._c

    def lower_hvp(self, x: Array, theta: Array, v: Array) -> Array:
        """Product with the Hessian A2'A2."""
        return self._H @ v

    def lower_preconditioner(self, x: Array, theta: Array) -> Callable[[Array], Array]:
        """Division by the diagonal of the Hessian."""
        return jacobi(self.xp.linalg.diagonal(self._H))

    def lower_jac_t(self, x: Array, theta: Array, q: Array) -> Array:
        """Product with A3'A2."""
        return self._J.T @ q

    def mu(self, theta: Array) -> float:
        """Smallest eigenvalue of A2'A2."""
        return self._mu

    def lipschitz(self, theta: Array) -> float:
        """Largest eigenvalue of A2'A2."""
        return self._lipschitz

    def jac_norm(self, x: Array, theta: Array) -> float:
        """Norm of A2'A3."""
        return self._jac_norm

    def L_Hinv(self, theta: Array) -> float:  # noqa: N802
        """0: the Hessian does not change."""
        return 0.0

    def L_J(self, theta: Array) -> float:  # noqa: N802
        """0: the mixed derivative does not change."""
        return 0.0


def quadratic(A1: Any, b1: Any, A2: Any, A3: Any, b2: Any) -> Quadratic:
    r"""Least squares on both levels.

    .. math:: g(x) = \tfrac12 \|A_1 x - b_1\|^2, \qquad h(x, \theta) = \tfrac12 \|A_2 x + A_3 \theta - b_2\|^2

    Parameters
    ----------
    A1, b1 : array_like of shape (k, N), (k,)
        Upper level.
    A2, A3, b2 : array_like of shape (n, N), (n, p), (n,)
        Lower level; A2 of full column rank.

    Returns
    -------
    Quadratic
        A problem for `maid`, `hoag` and `hypergradient`, all of whose constants are exact.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    A gradient of the lower level takes N (N + p) multiply-adds.

    Examples
    --------
    >>> from ot_numba.bilevel import quadratic
    >>> problem = quadratic([[1.0]], [1.0], [[2.0]], [[1.0]], [0.0])
    >>> problem.lower_grad([1.0], [3.0]).tolist()
    [10.0]
    """
    return Quadratic(A1, b1, A2, A3, b2)


class LogisticRidge:
    """Bilevel problem from `logistic_ridge`."""

    upper_convex = True

    def __init__(self, X: Any, y: Any, X_val: Any, y_val: Any, *, n_classes: int | None, per_weight: bool) -> None:
        self.xp = xp = array_namespace(X, y, X_val, y_val)
        self.X, self.X_val = _matrix(X, "X", xp), _matrix(X_val, "X_val", xp)
        if self.X.shape[1] != self.X_val.shape[1]:
            raise ValueError(f"X_val must have {self.X.shape[1]} columns, got {self.X_val.shape[1]}")
        self.Y = one_hot(xp, y, self.X, n_classes, "y")
        self.Y_val = one_hot(xp, y_val, self.X_val, self.Y.shape[1], "y_val")
        self.per_weight = bool(per_weight)
        #: shape of the weights
        self.shape = (self.X.shape[1], self.Y.shape[1])
        #: number of parameters
        self.size = self.shape[0] * self.shape[1] if per_weight else 1
        self.start = xp.zeros(self.shape, dtype=xp.float64, device=device_of(self.X))
        n = self.X.shape[0]
        self._curvature = _extremes(self.X)[1] / n
        row = float(xp.max(xp.sum(self.X * self.X, axis=1)))
        self._third = SKEW * math.sqrt(row) * self._curvature
        self.L_g = _extremes(self.X_val)[1] / (2 * self.X_val.shape[0])

    def strengths(self, theta: Array) -> Array:
        """Ridge of each weight, (d, k) or (1, 1)."""
        xp = self.xp
        theta = xp.reshape(xp.asarray(theta, dtype=xp.float64), (-1,))
        if theta.shape[0] != self.size:
            raise ValueError(f"theta must have {self.size} entries, got {theta.shape[0]}")
        return xp.reshape(xp.exp(xp.clip(theta, -LOG_LIMIT, LOG_LIMIT)), self.shape if self.per_weight else (1, 1))

    def _loss(self, X: Array, Y: Array, W: Array) -> float:
        return -float(self.xp.sum(Y * log_softmax(self.xp, X @ W)[0])) / X.shape[0]

    def _loss_grad(self, X: Array, Y: Array, W: Array) -> Array:
        return X.T @ (log_softmax(self.xp, X @ W)[1] - Y) / X.shape[0]

    def upper(self, x: Array, theta: Array) -> float:
        """Mean cross-entropy on the validation data."""
        return self._loss(self.X_val, self.Y_val, x)

    def upper_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the upper level in the weights."""
        return self._loss_grad(self.X_val, self.Y_val, x)

    def lower(self, x: Array, theta: Array) -> float:
        """Mean cross-entropy and ridge on the training data."""
        return self._loss(self.X, self.Y, x) + 0.5 * float(self.xp.sum(self.strengths(theta) * x * x))

    def lower_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the lower level in the weights."""
        return self._loss_grad(self.X, self.Y, x) + self.strengths(theta) * x

    def lower_hvp(self, x: Array, theta: Array, v: Array) -> Array:
        """Product with its Hessian."""
        xp = self.xp
        S = log_softmax(xp, self.X @ x)[1]
        U = S * (self.X @ v)
        U = U - S * xp.sum(U, axis=1, keepdims=True)
        return self.X.T @ U / self.X.shape[0] + self.strengths(theta) * v

    def lower_preconditioner(self, x: Array, theta: Array) -> Callable[[Array], Array]:
        """Division by the diagonal of the Hessian."""
        S = log_softmax(self.xp, self.X @ x)[1]
        return jacobi((self.X * self.X).T @ (S * (1 - S)) / self.X.shape[0] + self.strengths(theta))

    def lower_jac_t(self, x: Array, theta: Array, q: Array) -> Array:
        """Product of q with the derivative of the gradient in theta."""
        products = self.strengths(theta) * x * q
        return self.xp.reshape(products, (-1,)) if self.per_weight else self.xp.reshape(self.xp.sum(products), (1,))

    def mu(self, theta: Array) -> float:
        """Smallest ridge."""
        return float(self.xp.min(self.strengths(theta)))

    def lipschitz(self, theta: Array) -> float:
        """Half the largest eigenvalue of X'X / n, and the largest ridge."""
        return 0.5 * self._curvature + float(self.xp.max(self.strengths(theta)))

    def jac_norm(self, x: Array, theta: Array) -> float:
        """Largest entry of the diagonal J, or its norm where it is one column."""
        xp, column = self.xp, self.strengths(theta) * x
        return float(xp.max(xp.abs(column))) if self.per_weight else math.sqrt(float(xp.sum(column * column)))

    def L_J(self, theta: Array) -> float:  # noqa: N802
        """Largest ridge."""
        return float(self.xp.max(self.strengths(theta)))

    def L_Hinv(self, theta: Array) -> float:  # noqa: N802
        """Bound of the third derivative, over mu**2."""
        return self._third / self.mu(theta) ** 2


def logistic_ridge(
    X: Any, y: Any, X_val: Any, y_val: Any, *, n_classes: int | None = None, per_weight: bool = True
) -> LogisticRidge:
    r"""Learning of the ridges of multinomial logistic regression.

    .. math::

        h(W, \theta) = \frac1n \sum_i \mathrm{CE}(y_i, x_i^\top W) + \tfrac12 \sum_{jk} e^{\theta_{jk}} W_{jk}^2,
        \qquad g(W) = \text{mean cross-entropy on the validation data}

    Parameters
    ----------
    X, y : array_like of shape (n, d), (n,)
        Training data and labels 0 to k - 1.
    X_val, y_val : array_like of shape (m, d), (m,)
        Validation data and labels.
    n_classes : int, optional
        k, default one more than the largest label of y.
    per_weight : bool
        Whether every weight has a ridge of its own (theta has d k entries, row by row) or all have one.

    Returns
    -------
    LogisticRidge
        A problem for `maid`, `hoag` and `hypergradient`, with x of shape (d, k). mu is the smallest ridge, so that
        the bounds are certain; they are loose where that is small. A logarithm counts as 50 at most, in size.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    Two products of matrices for a gradient, three for a Hessian product.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import hypergradient, logistic_ridge
    >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> problem = logistic_ridge(X, [0, 1, 1], X, [0, 1, 1], per_weight=False)
    >>> result = hypergradient(problem, 0.0)
    >>> result.grad.shape, bool(result.grad[0] > 0)  # less ridge fits better
    ((1,), True)
    """
    return LogisticRidge(X, y, X_val, y_val, n_classes=n_classes, per_weight=per_weight)


class ElasticNet:
    """Bilevel problem from `elastic_net`."""

    upper_convex = True

    def __init__(self, X: Any, y: Any, X_val: Any, y_val: Any, *, smoothing: float) -> None:
        self.xp = xp = array_namespace(X, y, X_val, y_val)
        self.X, self.X_val = _matrix(X, "X", xp), _matrix(X_val, "X_val", xp)
        if self.X.shape[1] != self.X_val.shape[1]:
            raise ValueError(f"X_val must have {self.X.shape[1]} columns, got {self.X_val.shape[1]}")
        self.y = _vector(y, "y", self.X.shape[0], xp, self.X)
        self.y_val = _vector(y_val, "y_val", self.X_val.shape[0], xp, self.X)
        self.smoothing = check_real(smoothing, "smoothing", low=0, low_open=True, high=math.inf, high_open=True)
        low, high = _extremes(self.X)
        self._low, self._high = low / self.X.shape[0], high / self.X.shape[0]
        self.L_g = _extremes(self.X_val)[1] / self.X_val.shape[0]
        self.start = xp.zeros(self.X.shape[1], dtype=xp.float64, device=device_of(self.X))

    def strengths(self, theta: Array) -> tuple[float, float]:
        """Weights of the smoothed L1 norm and of the squared L2 norm."""
        if math.prod(theta.shape) != 2:
            raise ValueError(f"theta must have 2 entries, got {math.prod(theta.shape)}")
        first, second = (math.exp(min(max(float(theta[k]), -LOG_LIMIT), LOG_LIMIT)) for k in range(2))
        return first, second

    def _roots(self, x: Array) -> Array:
        return self.xp.sqrt(x * x + self.smoothing**2)

    def upper(self, x: Array, theta: Array) -> float:
        """Half the mean squared error on the validation data."""
        r = self.X_val @ x - self.y_val
        return 0.5 * float(self.xp.sum(r * r)) / r.shape[0]

    def upper_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the upper level in the weights."""
        return self.X_val.T @ (self.X_val @ x - self.y_val) / self.y_val.shape[0]

    def lower(self, x: Array, theta: Array) -> float:
        """Objective of the elastic net."""
        l1, l2 = self.strengths(theta)
        r = self.X @ x - self.y
        penalty = l1 * float(self.xp.sum(self._roots(x))) + 0.5 * l2 * float(self.xp.sum(x * x))
        return 0.5 * float(self.xp.sum(r * r)) / r.shape[0] + penalty

    def lower_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the lower level in the weights."""
        l1, l2 = self.strengths(theta)
        return self.X.T @ (self.X @ x - self.y) / self.y.shape[0] + l1 * x / self._roots(x) + l2 * x

    def _bend(self, x: Array, theta: Array) -> Array:
        """Second derivatives of the two penalties."""
        l1, l2 = self.strengths(theta)
        return l1 * self.smoothing**2 / self._roots(x) ** 3 + l2

    def lower_hvp(self, x: Array, theta: Array, v: Array) -> Array:
        """Product with its Hessian."""
        return self.X.T @ (self.X @ v) / self.y.shape[0] + self._bend(x, theta) * v

    def lower_preconditioner(self, x: Array, theta: Array) -> Callable[[Array], Array]:
        """Division by the diagonal of the Hessian."""
        squares = self.xp.sum(self.X * self.X, axis=0)
        return jacobi(squares / self.y.shape[0] + self._bend(x, theta))

    def lower_jac_t(self, x: Array, theta: Array, q: Array) -> Array:
        """Product of q with the derivative of the gradient in theta."""
        l1, l2 = self.strengths(theta)
        return self.xp.stack([l1 * self.xp.sum(q * x / self._roots(x)), l2 * self.xp.sum(q * x)])

    def mu(self, theta: Array) -> float:
        """Smallest eigenvalue of X'X / n, and the weight of the squared norm."""
        return self._low + self.strengths(theta)[1]

    def lipschitz(self, theta: Array) -> float:
        """Largest eigenvalue of X'X / n, and what the two penalties add."""
        l1, l2 = self.strengths(theta)
        return self._high + l1 / self.smoothing + l2

    def jac_norm(self, x: Array, theta: Array) -> float:
        """Norm of the two columns of J."""
        l1, l2 = self.strengths(theta)
        first, second = l1 * x / self._roots(x), l2 * x
        a, b, c = (float(self.xp.sum(u * v)) for u, v in ((first, first), (first, second), (second, second)))
        return math.sqrt(0.5 * (a + c) + math.hypot(0.5 * (a - c), b))

    def L_J(self, theta: Array) -> float:  # noqa: N802
        """Lipschitz constants of the two columns, together."""
        l1, l2 = self.strengths(theta)
        return math.hypot(l1 / self.smoothing, l2)

    def L_Hinv(self, theta: Array) -> float:  # noqa: N802
        """Largest third derivative, over mu**2."""
        return THIRD * self.strengths(theta)[0] / self.smoothing**2 / self.mu(theta) ** 2


def elastic_net(X: Any, y: Any, X_val: Any, y_val: Any, *, smoothing: float = 1e-2) -> ElasticNet:
    r"""Learning of the two strengths of a smoothed elastic net.

    .. math::

        h(w, \theta) = \frac{1}{2 n} \|X w - y\|^2 + e^{\theta_1} \sum_j \sqrt{w_j^2 + \nu^2}
        + \tfrac12 e^{\theta_2} \|w\|^2, \qquad g(w) = \frac{1}{2 m} \|X_{val} w - y_{val}\|^2

    Parameters
    ----------
    X, y : array_like of shape (n, d), (n,)
        Training data.
    X_val, y_val : array_like of shape (m, d), (m,)
        Validation data.
    smoothing : float
        nu > 0, in the units of w.

    Returns
    -------
    ElasticNet
        A problem for `maid`, `hoag` and `hypergradient`, with all constants; theta of shape (2,). A logarithm counts
        as 50 at most, in size.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    2 n d multiply-adds for a gradient.

    Examples
    --------
    >>> from ot_numba.bilevel import elastic_net, hypergradient
    >>> problem = elastic_net([[1, 0], [1, 1], [0, 2]], [1, 2, 1], [[1, -1], [2, 1]], [0, 3])
    >>> result = hypergradient(problem, [-50.0, -1.0], tol=1e-9)  # ridge regression
    >>> result.x.round(6).tolist(), round(float(result.grad[1]), 6)
    ([0.797555, 0.524678], 0.228156)
    """
    return ElasticNet(X, y, X_val, y_val, smoothing=smoothing)
