"""Learning of the weights of the slacks of a support vector machine."""

from __future__ import annotations

from typing import Any

from ..arrays.namespaces import array_namespace, device_of
from ..arrays.validation import as_float_array
from .projections import project_margin

Array = Any
LOG_LIMIT = 50.0  #: largest size of a logarithm that counts
SLOPE, LEAK = 5.0, 0.01  #: steepness of the loss, and what is left of its slope on the right side


class SVMHyperparameters:
    """Constrained bilevel problem from `svm_hyperparameters`."""

    def __init__(self, Z: Any, labels: Any, Z_val: Any, labels_val: Any) -> None:
        self.xp = xp = array_namespace(Z, labels, Z_val, labels_val)
        self._train, self.M = _signed(xp, Z, labels, "Z", "labels")
        self._val, self.M_val = _signed(xp, Z_val, labels_val, "Z_val", "labels_val")
        if self.M.shape[1] != self.M_val.shape[1]:
            raise ValueError(f"Z_val must have {self.M.shape[1] - 1} columns, got {self.M_val.shape[1] - 1}")
        self.n, self.d = self.M.shape[0], self.M.shape[1] - 1

    def start(self, weight: float = -5.0) -> tuple[Array, Array]:
        """Log weights x, all of one value, and y for the classifier along the means of the classes."""
        xp = self.xp
        w = xp.mean(self.M[:, : self.d], axis=0)
        zeros = xp.zeros(self.n + 1, dtype=xp.float64, device=device_of(self.M))
        return xp.full_like(zeros[1:], weight), xp.concat([w, zeros])

    def split(self, y: Array) -> tuple[Array, Array, Array]:
        """Normal w (d,), offset b (1,) and slacks xi (n,)."""
        return y[: self.d], y[self.d : self.d + 1], y[self.d + 1 :]

    def _margins(self, y: Array) -> tuple[Array, Array, Any]:
        w = y[: self.d]
        square = self.xp.sum(w * w)
        if not float(square) > 0:
            raise ValueError("w is 0: its margins are not defined")
        size = self.xp.sqrt(square)
        return w, (self.M_val @ y[: self.d + 1]) / size, size

    def _leaky(self, s: Array) -> tuple[Array, Array, Array]:
        """Loss, its derivative, and the sigmoid."""
        xp = self.xp
        sigmoid = 0.5 * (1 - xp.tanh(0.5 * SLOPE * s))
        raw = 2 * sigmoid - 1
        slope = xp.where(raw > 0, xp.ones_like(raw), xp.full_like(raw, LEAK))
        return slope * raw, -2 * SLOPE * sigmoid * (1 - sigmoid) * slope, sigmoid

    def upper(self, x: Array, y: Array) -> float:
        """Loss of the validation data, summed."""
        return float(self.xp.sum(self._leaky(self._margins(y)[1])[0]))

    def upper_grad(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Its gradients in the log weights (0) and in y."""
        xp = self.xp
        w, s, size = self._margins(y)
        dq = self._leaky(s)[1]
        by_u = self.M_val.T @ (dq / size)
        by_w = by_u[: self.d] - xp.sum(dq * s) * w / (size * size)
        return xp.zeros_like(x), xp.concat([by_w, by_u[self.d :], xp.zeros_like(x)])

    def accuracy(self, y: Array, Z: Any, labels: Any) -> float:
        """Share of points on the right side."""
        _, M = _signed(self.xp, Z, labels, "Z", "labels")
        return float(self.xp.mean(self.xp.astype(M @ y[: self.d + 1] > 0, self.xp.float64)))

    def _weights(self, x: Array) -> Array:
        return self.xp.exp(self.xp.clip(x, -LOG_LIMIT, LOG_LIMIT))

    def lower(self, x: Array, y: Array) -> float:
        """Objective of the support vector machine with squared slacks."""
        w, _, xi = self.split(y)
        return 0.5 * float(self.xp.sum(w * w)) + 0.5 * float(self.xp.sum(self._weights(x) * xi * xi))

    def lower_grad(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Its gradients in the log weights and in y."""
        w, b, xi = self.split(y)
        by_xi = self._weights(x) * xi
        return 0.5 * by_xi * xi, self.xp.concat([w, self.xp.zeros_like(b), by_xi])

    def constraint(self, x: Array, y: Array) -> Array:
        """``1 - xi - l (z'w + b)``."""
        return 1 - y[self.d + 1 :] - self.M @ y[: self.d + 1]

    def constraint_jac_t(self, x: Array, y: Array, lam: Array) -> tuple[Array, Array]:
        """Products of lam with its derivatives in the log weights (0) and in y."""
        return self.xp.zeros_like(x), self.xp.concat([-(self.M.T @ lam), -lam])

    def constraint_scales(self, x: Array, y: Array) -> Array:
        """Norms of the gradients of the constraints."""
        return self.xp.sqrt(1 + self.xp.sum(self.M * self.M, axis=1))

    def project(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Projection onto the margin constraints."""
        u, xi = project_margin(self.xp, y[: self.d + 1], y[self.d + 1 :], self.M)
        return x, self.xp.concat([u, xi])


def _signed(xp: Any, Z: Any, labels: Any, name: str, labels_name: str) -> tuple[Array, Array]:
    """Points, and their rows ``l (z, 1)``."""
    Z = as_float_array(Z, name, ndim=2, xp=xp, dtype=xp.float64)
    labels = as_float_array(labels, labels_name, ndim=1, xp=xp, dtype=xp.float64, device=device_of(Z))
    if labels.shape[0] != Z.shape[0] or not bool(xp.all(labels * labels == 1)):
        raise ValueError(f"{labels_name} must hold {Z.shape[0]} labels -1 or 1")
    return Z, labels[:, None] * xp.concat([Z, xp.ones_like(Z[:, :1])], axis=1)


def svm_hyperparameters(Z: Any, labels: Any, Z_val: Any, labels_val: Any) -> SVMHyperparameters:
    r"""Learning of one weight for each slack of a support vector machine.

    Lower level, with :math:`y = (w, b, \xi)`:

    .. math::

        \min \tfrac12 \|w\|^2 + \tfrac12 \sum_i e^{x_i} \xi_i^2 \quad\text{s.t.}\quad
        \xi_i \ge 1 - l_i (z_i^\top w + b)

    Upper level: :math:`F = \sum_j \varphi(2 \sigma(-5 s_j) - 1)` with the signed distances
    :math:`s_j = l_j (z_j^\top w + b) / \|w\|` of the validation data, and :math:`\varphi(t) = t` for t > 0, t / 100
    else.

    Parameters
    ----------
    Z, labels : array_like of shape (n, d), (n,)
        Training data and labels -1 or 1.
    Z_val, labels_val : array_like of shape (m, d), (m,)
        Validation data and labels.

    Returns
    -------
    SVMHyperparameters
        A problem for `lvhba`; ``start()`` gives x (n,) and y (d + 1 + n,) to start from. It raises ValueError where w
        becomes 0.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    n d multiply-adds a gradient, n (d + 1)**2 a step of the projection.

    References
    ----------
    Yao, Yu, Zeng, Zhang, arXiv 2401.16164.

    Examples
    --------
    >>> from ot_numba.bilevel import lvhba, svm_hyperparameters
    >>> problem = svm_hyperparameters([[0.0], [1.0], [3.0]], [-1, -1, 1], [[0.5], [2.5]], [-1, 1])
    >>> x, y = problem.start()
    >>> result = lvhba(problem, x, y, max_iter=200)
    >>> result.violation < 1e-12, problem.accuracy(result.y, [[0.0], [4.0]], [-1, 1])
    (True, 1.0)
    """
    return SVMHyperparameters(Z, labels, Z_val, labels_val)
