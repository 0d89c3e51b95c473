"""Objectives and duality gaps of sparse recovery."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.namespaces import device_of, to_numpy
from ..arrays.validation import as_float_array, check_real
from .operators import make_operator

Array = Any


def gap_units(xp: Any, Y: Array) -> np.ndarray:
    """What gaps are divided by: the objective at 0 of every column, half the energy of Y; 1 where that is 0."""
    energy = column_sums(xp, xp.astype(Y, xp.float64) ** 2)
    return np.where(energy > 0, 0.5 * energy, 1.0)


def column_sums(xp: Any, X: Array) -> np.ndarray:
    """Sums of the columns, float64, on the host."""
    return to_numpy(xp.sum(X, axis=0, dtype=xp.float64))


def lasso_gap(A: Any, y: Any, x: Any, *, reg: float) -> Any:
    r"""Duality gap of the LASSO at a point, relative to the objective at 0.

    .. math::

        \frac{\tfrac12\|r\|^2 + reg\,\|x\|_1 - \tfrac12\|y\|^2 + \tfrac12\|y - s r\|^2}{\tfrac12\|y\|^2},
        \qquad r = y - A x, \quad s = \min\Big(1, \frac{reg}{\|A^\top r\|_\infty}\Big)

    The point :math:`s r` is feasible for the dual problem, so the objective at x exceeds its minimum by no more than
    this part of :math:`\tfrac12\|y\|^2`.

    Parameters
    ----------
    A : array_like of shape (m, n), SciPy sparse matrix, LinearOperator, or pair (matvec, rmatvec)
        Measurement matrix, as in `ista`.
    y : array_like of shape (m,) or (m, B)
        Measurements, a column per signal.
    x : array_like of shape (n,) or (n, B)
        Signals.
    reg : float
        Regularisation strength, > 0, in the units of :math:`A^\top y`.

    Returns
    -------
    float, or array of shape (B,)
        Of every signal; never negative. Of y = 0 the gap itself.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not fit, entries that are not finite, complex data, or ``reg <= 0``.

    Notes
    -----
    One product with A and one with its transpose; memory O((m + n) B).

    References
    ----------
    Kim, Koh, Lustig, Boyd, Gorinevsky, "An interior-point method for large-scale l1-regularized least squares", IEEE
    Journal of Selected Topics in Signal Processing 1, 2007.

    Examples
    --------
    >>> import ot_numba
    >>> A, y = [[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0]
    >>> ot_numba.lasso_gap(A, y, [0.75, 0.0], reg=1.0), ot_numba.lasso_gap(A, y, [0.0, 0.0], reg=1.0)
    (0.0, 0.5625)
    """
    reg = check_real(reg, "reg", low=0, low_open=True)
    operator, Y, squeeze = make_operator(A, y)
    R, G = operator.empty(*Y.shape), operator.empty(operator.shape[1], Y.shape[1])
    X = signals(x, "x", G, operator.xp)
    operator.residual_gradient(X, Y, R, G)
    gaps = to_numpy(operator.kernels.lasso_values(reg, X, Y, R, G))[1] / gap_units(operator.xp, Y)
    return float(gaps[0]) if squeeze else gaps


def signals(x: Any, name: str, like: Array, xp: Any) -> Array:
    """Signals as columns of the shape, dtype and device of an array (n, B), checked; one may stand for all."""
    n, count = like.shape
    x = as_float_array(x, name, ndim=(1, 2), xp=xp, dtype=like.dtype, device=device_of(like))
    X = x[:, None] if x.ndim == 1 else x
    if X.shape[0] != n or X.shape[1] not in (1, count):
        raise ValueError(f"{name} must have shape ({n},) or ({n}, {count}), got {tuple(x.shape)}")
    return X if X.shape[1] == count else xp.repeat(X, count, axis=1)
