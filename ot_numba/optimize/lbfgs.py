"""The limited-memory BFGS method."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, read_floats, to_numpy
from ..arrays.validation import as_float_array, check_int, check_real
from .result import OptimizeProgress, OptimizeResult, OptimizeState, describe

Array = Any
DECREASE, CURVATURE = 1e-4, 0.9  #: constants of Wolfe's conditions
TRIALS = 20  #: points that a line search may try
KINK_TRIALS = 3  #: of them, after one that lies beyond a minimum and may be taken where the slope jumps
MARGIN = 0.1  #: share of the bracket that the next point keeps from its ends
FLATTEST = 1e-10  #: smallest cosine between s and y of a pair that is kept
PATIENCE = 10  #: iterations over which the value must change


def lbfgs(
    fun: Callable[[Array], tuple[Any, Array]],
    x0: Array,
    *,
    memory: int = 20,
    tol: float = 1e-6,
    max_iter: int = 1000,
    value_tol: float = 1e-15,
    first_step: float = 1.0,
    norm: int = 1,
    callback: Callable[[OptimizeState], None] | None = None,
) -> OptimizeResult:
    r"""Minimise a function by the limited-memory BFGS method.

    Steps :math:`x + t d` with :math:`d = -H \nabla`, where H is the BFGS matrix of the last differences
    :math:`s = \Delta x,\ y = \Delta \nabla`, and t fulfils Wolfe's conditions

    .. math::

        F(x + t d) \le F(x) + 10^{-4}\, t\, \langle \nabla, d\rangle, \qquad
        |\langle \nabla_+, d\rangle| \le 0.9\, |\langle \nabla, d\rangle| .

    A function with kinks need not have such points. There a step that fulfils the second condition without the modulus
    is taken, or else any with the first; where none is found the memory is forgotten once, and then the search ends
    with the best point.

    Parameters
    ----------
    fun : callable
        ``fun(x)`` returns the value (a number or an array without dimensions) and the gradient, or any subgradient,
        as an array like x. It must return new arrays. Values that are no numbers, or inf, shorten the step.
    x0 : array_like of shape (n,)
        Where to start; of any array-API library, float32 or float64.
    memory : int
        Number of differences that are kept.
    tol : float
        On the norm of the gradient.
    max_iter : int
        Largest number of iterations.
    value_tol : float
        The search ends where ten iterations have lowered the value by less than this share of it.
    first_step : float
        Length :math:`\|x_1 - x_0\|_2` of the first step that is tried.
    norm : {1, 2}
        Which norm of the gradient that is, :math:`\|\nabla\|_1` or :math:`\|\nabla\|_2`.
    callback : callable, optional
        ``callback(state)`` after every iteration with an `OptimizeState`; may raise StopIteration.

    Returns
    -------
    OptimizeResult
        Never an exception for a missed tolerance: the caller reports it, with what it means there.

    Raises
    ------
    ValueError, TypeError
        For bad options, or where the start is no vector of finite numbers or has no finite value.

    Notes
    -----
    ``(2 memory + 6) n`` numbers. An iteration takes 8 `memory` n multiply-adds beside its evaluations, usually one;
    three groups of numbers are read from the device. Sums are in float64, in an order that does not depend on threads.

    References
    ----------
    Nocedal, Wright, "Numerical Optimization", 2nd ed., chapters 3 and 7, Springer 2006. Byrd, Nocedal, Schnabel,
    "Representations of quasi-Newton matrices", Mathematical Programming 63, 1994 (the form of H). Lewis, Overton,
    "Nonsmooth optimization via quasi-Newton methods", Mathematical Programming 141, 2013 (kinks).

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import lbfgs
    >>> result = lbfgs(lambda x: (float(((x - 3) ** 2).sum()), 2 * (x - 3)), np.zeros(4))
    >>> result.converged, result.x.round(6).tolist()
    (True, [3.0, 3.0, 3.0, 3.0])
    """
    xp = array_namespace(x0)
    x = as_float_array(x0, "x0", ndim=1, xp=xp)
    memory = check_int(memory, "memory", low=1)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    value_tol = check_real(value_tol, "value_tol", low=0)
    first_step = check_real(first_step, "first_step", low=0, low_open=True, high=math.inf, high_open=True)
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 or 2, got {norm!r}")

    line = _Line(xp, fun, norm)
    at = line.start(x)
    if not math.isfinite(at.value) or not math.isfinite(at.norm):
        raise ValueError(f"fun must be finite at x0, got the value {at.value} and a gradient of norm {at.norm}")
    pairs = _Pairs(xp, x, memory)
    history = [OptimizeProgress(0, 1, at.value, at.norm)]
    status, n_iter, fresh = "max_iter", 0, True
    while at.norm > tol and n_iter < max_iter:
        direction, slope = pairs.direction(at.grad)
        if not slope < 0:
            status = "line_search"
            break
        first = 1.0 if pairs.order else (pairs.length or first_step) / math.sqrt(-slope)
        new = line.search(at, direction, slope, first)
        if new is None:
            if fresh:
                status = "line_search"
                break
            pairs.forget()
            fresh = True
            continue
        n_iter += 1
        pairs.push(new.x - at.x, new.grad - at.grad)
        at, fresh = new, False
        history.append(OptimizeProgress(n_iter, line.n_evaluations, at.value, at.norm))
        if callback is not None:
            try:
                callback(OptimizeState(*history[-1], at.x))
            except StopIteration:
                status = "stopped"
                break
        if n_iter >= PATIENCE and history[-1 - PATIENCE].value - at.value <= value_tol * abs(at.value):
            status = "stalled"
            break
    converged = at.norm <= tol
    if converged and status != "stopped":
        status = "converged"
    return OptimizeResult(
        x=at.x,
        value=at.value,
        grad=at.grad,
        grad_norm=at.norm,
        n_iter=n_iter,
        n_evaluations=line.n_evaluations,
        converged=converged,
        status=status,
        message=describe(status, at.norm, tol, n_iter, line.n_evaluations, norm),
        history=history,
    )


class _Point(NamedTuple):
    """A point, with the numbers of a line search."""

    t: float
    x: Array
    value: float
    grad: Array
    slope: float
    norm: float


class _Line:
    """The function along a ray."""

    def __init__(self, xp: Any, fun: Callable[[Array], tuple[Any, Array]], norm: int) -> None:
        self.xp, self.fun, self.norm = xp, fun, norm
        self.n_evaluations = 0

    def start(self, x: Array) -> _Point:
        return self._evaluate(0.0, x, None)

    def _evaluate(self, t: float, x: Array, direction: Array | None) -> _Point:
        xp = self.xp
        value, grad = self.fun(x)
        self.n_evaluations += 1
        slope = 0.0 if direction is None else xp.sum(grad * direction, dtype=xp.float64)
        terms = xp.abs(grad) if self.norm == 1 else grad * grad
        value, slope, norm = read_floats([value, slope, xp.sum(terms, dtype=xp.float64)])
        return _Point(t, x, value, grad, slope, norm if self.norm == 1 else math.sqrt(norm))

    def search(self, at: _Point, direction: Array, slope: float, t: float) -> _Point | None:
        """A point that fulfils Wolfe's conditions, or as many of them as can be; None if there is no descent.

        Between `left` and `right` there is one that fulfils both, if the slope is continuous.
        """
        left, right, beyond = at._replace(t=0.0, slope=slope), None, None
        drowned = 4e-16 * abs(at.value)
        width, since, shortest = math.inf, 0, 1e-3 * t
        for _ in range(TRIALS):
            new = self._evaluate(t, at.x + t * direction, direction)
            finite = math.isfinite(new.value) and math.isfinite(new.norm)
            gain = at.value - new.value
            # where rounding hides the gain, the slope says whether a parabola would have it
            enough = finite and (
                gain >= -DECREASE * t * slope
                or (t >= shortest and gain >= -drowned and new.slope <= (2 * DECREASE - 1) * slope)
            )
            if not enough:
                right = new
            elif new.slope < CURVATURE * slope:
                left = new
            elif new.slope <= -CURVATURE * slope:
                return new
            else:
                right = beyond = new
            since += beyond is not None
            if since > KINK_TRIALS:
                break
            if right is None:
                t *= min(10.0, max(2.0, _minimum(at._replace(t=0.0, slope=slope), new) / t))
                continue
            span = right.t - left.t
            if span <= 1e-14 * right.t:
                break
            t = _minimum(left, right) if math.isfinite(right.value) and span <= 0.66 * width else math.nan
            t = t if math.isfinite(t) else 0.5 * (left.t + right.t)
            t = min(max(t, left.t + MARGIN * span), right.t - MARGIN * span)
            width = span
        if beyond is not None:
            return beyond
        return left if left.t > 0 else None


def _minimum(u: _Point, v: _Point) -> float:
    """Where the cubic through the values and slopes of two points has its minimum; inf if nowhere."""
    h = v.t - u.t
    d1 = u.slope + v.slope - 3 * (v.value - u.value) / h
    square = d1 * d1 - u.slope * v.slope
    if not square >= 0:
        return math.inf
    d2 = math.sqrt(square)
    down = v.slope - u.slope + 2 * d2
    return v.t - h * (v.slope + d2 - d1) / down if down != 0 else math.inf


class _Pairs:
    """The last differences s of points and y of gradients, and the BFGS matrix H that they define.

    With the columns S, Y, the oldest first, R the upper triangle of S'Y and D its diagonal, p = R^-1 S'v and
    scale = <s, y> / <y, y> of the newest, ``H v = scale (v - Y p) + S R^-T (D p - scale Y'(v - Y p))``.
    """

    def __init__(self, xp: Any, x: Array, size: int) -> None:
        self.xp, self.size = xp, size
        self.rows = xp.zeros((2 * size, x.shape[0]), dtype=x.dtype, device=device_of(x))  # s, and below them y
        self.SY, self.YY = np.zeros((size, size)), np.zeros((size, size))
        self.order: list[int] = []  # places of the pairs, the oldest first
        self.pending: Array | None = None
        self.length: float | None = None  #: of the last s

    def forget(self) -> None:
        self.order, self.pending = [], None

    def push(self, s: Array, y: Array) -> None:
        """Take a pair; its products are read with those of the next direction."""
        self.place = self.order[0] if len(self.order) == self.size else next(
            place for place in range(self.size) if place not in self.order
        )
        self.rows[self.place, :], self.rows[self.size + self.place, :] = s, y
        self.pending = s, y

    def direction(self, grad: Array) -> tuple[Array, float]:
        """``-H grad``, and its slope."""
        xp, size = self.xp, self.size
        vectors = [grad, *(self.pending or ())]
        read = to_numpy(xp.stack([xp.sum(self.rows * v, axis=1, dtype=xp.float64) for v in vectors]))
        square = read_floats([xp.sum(grad * grad, dtype=xp.float64)])[0]
        if self.pending:
            place, self.pending = self.place, None
            self.length = math.sqrt(read[1, place])
            if place in self.order:
                self.order.remove(place)
            if read[2, place] > FLATTEST * self.length * math.sqrt(read[2, size + place]):
                self.SY[:, place], self.SY[place, :] = read[2, :size], read[1, size:]
                self.YY[:, place] = self.YY[place, :] = read[2, size:]
                self.order.append(place)
        if not self.order:
            return -grad, -square
        kept = np.array(self.order)
        R, YY = self.SY[np.ix_(kept, kept)], self.YY[np.ix_(kept, kept)]
        D, Sg, Yg = np.diag(R), read[0, kept], read[0, size + kept]
        scale = float(D[-1] / YY[-1, -1])
        p = _back_substituted(R[::-1, ::-1], Sg[::-1])[::-1]
        rest = Yg - (YY * p).sum(axis=1)
        u = _back_substituted(R.T, D * p - scale * rest)
        weights = np.zeros(2 * size)
        weights[kept], weights[size + kept] = -u, scale * p
        column = xp.asarray(weights, dtype=grad.dtype, device=device_of(grad))[:, None]
        slope = -scale * max(square - float((p * (Yg + rest)).sum()), 0.0) - float((D * p * p).sum())
        return xp.sum(self.rows * column, axis=0) - scale * grad, slope


def _back_substituted(L: np.ndarray, r: np.ndarray) -> np.ndarray:
    """``L^-1 r`` for the lower triangle of a small matrix, in an order that does not depend on threads."""
    x: list[float] = []
    for row, value in zip(L.tolist(), r.tolist(), strict=True):
        x.append((value - sum(map(mul, row, x))) / row[len(x)])
    return np.array(x)
