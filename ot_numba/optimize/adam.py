"""Adam: gradient steps with a length for each coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.namespaces import array_namespace, read_floats
from ..arrays.validation import as_float_array, check_int, check_real
from .result import OptimizeProgress, OptimizeResult, OptimizeState, describe

Array = Any


def adam(
    fun: Callable[[Array], tuple[Any, Array]],
    x0: Array,
    *,
    learning_rate: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    floor: float = 1e-8,
    tol: float = 0.0,
    max_iter: int = 1000,
    callback: Callable[[OptimizeState], None] | None = None,
) -> OptimizeResult:
    r"""Minimise one function, or a batch of functions, by Adam.

    .. math::

        m_t = \beta_1 m_{t-1} + (1 - \beta_1) \nabla_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) \nabla_t^2, \qquad
        x_t = x_{t-1} - learning\_rate\, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + floor}

    Parameters
    ----------
    fun : callable
        ``fun(x)`` returns the value and the gradient, or any subgradient, as an array like x. For a batch the value
        is an array of the shape of the leading axes.
    x0 : array_like of shape (..., n)
        Where to start; of any array-API library, float32 or float64. The leading axes are independent problems.
    learning_rate : float
        Length of a step in each coordinate, about, in the units of x.
    betas : pair of float
        Weights of the past, in [0, 1).
    floor : float
        Added to the denominator.
    tol : float
        On :math:`\|\nabla\|_1` over the last axis. A problem of a batch that has reached it stays where it is. With
        ``tol=0``, the default, no number is read before the end unless there is a `callback`.
    max_iter : int
        Number of steps, at most.
    callback : callable, optional
        ``callback(state)`` after every iteration with an `OptimizeState` (of a batch: the sum of the values, and the
        largest norm); may raise StopIteration.

    Returns
    -------
    OptimizeResult
        The last point, with the function evaluated there: one evaluation more than there are steps.

    Raises
    ------
    ValueError, TypeError
        For bad options, or where the start holds no finite numbers.

    Notes
    -----
    Two arrays of the size of x beside it.

    References
    ----------
    Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, arXiv 1412.6980.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import adam
    >>> def fun(x):
    ...     return ((x - 1) ** 2).sum(axis=-1), 2 * (x - 1)
    >>> adam(fun, np.zeros((2, 3)), learning_rate=0.1, max_iter=500, tol=1e-6).x.round(4).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    xp = array_namespace(x0)
    x = as_float_array(x0, "x0", xp=xp)
    if x.ndim == 0:
        raise ValueError("x0 must have at least one dimension, got a number")
    positive = {"low": 0, "low_open": True, "high": math.inf, "high_open": True}
    learning_rate, floor = check_real(learning_rate, "learning_rate", **positive), check_real(floor, "floor", low=0)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
    first, second = (check_real(beta, "betas", low=0, high=1, high_open=True) for beta in betas)
    tol, max_iter = check_real(tol, "tol", low=0), check_int(max_iter, "max_iter", low=1)

    reads = tol > 0 or callback is not None
    mean, square = xp.zeros_like(x), xp.zeros_like(x)
    numbers: list[Any] = []
    status, n_iter = "max_iter", 0
    while True:
        value, grad = fun(x)
        norms = xp.sum(xp.abs(grad), axis=-1, dtype=xp.float64)
        total = xp.sum(value, dtype=xp.float64) if hasattr(value, "shape") and value.shape else value
        numbers += read_floats([total, xp.max(norms)]) if reads else [total, xp.max(norms)]
        if callback is not None and n_iter:
            try:
                callback(OptimizeState(n_iter, n_iter + 1, *numbers[-2:], x))
            except StopIteration:
                status = "stopped"
                break
        if (reads and numbers[-1] <= tol) or n_iter == max_iter:
            break
        n_iter += 1
        mean = first * mean + (1 - first) * grad
        square = second * square + (1 - second) * grad * grad
        step = learning_rate / (1 - first**n_iter) * mean / (xp.sqrt(square / (1 - second**n_iter)) + floor)
        x = x - (xp.where((norms > tol)[..., None], step, xp.zeros_like(step)) if tol else step)
    numbers = read_floats(numbers)
    norm = numbers[-1]
    converged = norm <= tol
    if converged and status != "stopped":
        status = "converged"
    history = [OptimizeProgress(i, i + 1, *numbers[2 * i : 2 * i + 2]) for i in range(n_iter + 1)]
    return OptimizeResult(
        x=x,
        value=value if x.ndim > 1 else numbers[-2],
        grad=grad,
        grad_norm=norm,
        n_iter=n_iter,
        n_evaluations=n_iter + 1,
        converged=converged,
        status=status,
        message=describe(status, norm, tol, n_iter, n_iter + 1),
        history=history,
    )
