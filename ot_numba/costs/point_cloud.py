"""Costs between two point clouds, evaluated where they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, is_numpy
from ..arrays.validation import as_float_array, check_choice, check_real, common_dtype
from ..kernels import CostData
from ..kernels.contract import CITYBLOCK, DENSE, DOT, POWER
from .base import Cost
from .matrix import as_kernel_input

Array = Any
METRICS = ("sqeuclidean", "euclidean", "cosine", "cityblock")
DIRECT_DIMENSION = 8  #: above it, inner products are worth a call of BLAS


class PointCloud(Cost):
    r"""The cost ``c(x_i, y_j)`` between two point clouds, never stored: O((n + m) d) memory.

    ==================  ====================================================
    metric              c(x, y)
    ==================  ====================================================
    ``"sqeuclidean"``   :math:`\|x - y\|_2^2`
    ``"euclidean"``     :math:`\|x - y\|_2`
    a number p > 0      :math:`\|x - y\|_2^p`
    ``"cityblock"``     :math:`\|x - y\|_1`
    ``"cosine"``        :math:`1 - \langle x, y\rangle / (\|x\|_2 \|y\|_2)`
    a compiled function ``metric(x_i, y_j) -> float``, NumPy arrays only
    ==================  ====================================================

    Parameters
    ----------
    x : array_like of shape (n, d) or (n,)
        Source points; 1-D is taken as n points on the line.
    y : array_like of shape (m, d) or (m,), optional
        Target points, default `x`.
    metric : str, float or callable, default "sqeuclidean"
        See above. A function must be compiled by ``numba.njit`` and take two 1-D arrays of length d.

    Raises
    ------
    ValueError
        If the points are empty, not finite, of different dimension, or zero under ``"cosine"``.
    TypeError
        If the arrays are of different libraries, or `metric` is a Python function that is not compiled.

    Notes
    -----
    The common mean of the clouds is subtracted first (no metric but the cosine and a user's function sees it), which
    keeps the expansion :math:`\|x\|^2 + \|y\|^2 - 2\langle x, y\rangle` accurate far from the origin. Time per
    evaluation of all pairs: O(n m d).

    Examples
    --------
    >>> import ot_numba
    >>> C = ot_numba.PointCloud([[0.0, 0.0], [1.0, 1.0]], [[1.0, 0.0]])
    >>> C.to_dense().tolist()
    [[1.0], [1.0]]
    """

    def __init__(self, x: Any, y: Any = None, metric: str | float | Callable = "sqeuclidean") -> None:
        xp = array_namespace(x, y)
        dtype = common_dtype(x, y)
        x = _as_points(x, "x", xp, dtype)
        y = x if y is None else _as_points(y, "y", xp, dtype)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
        self.x, self.y = x, y
        self.metric = _check_metric(metric, xp)
        self.xp, self.dtype, self.device = xp, dtype, device_of(x)
        self.shape = (x.shape[0], y.shape[0])
        self._prepare()

    def _prepare(self) -> None:
        """Shift or normalise the points; norms, in float64, of the points as rounded, so that c(x, x) = 0."""
        xp = self.xp
        self.direct = False
        self._norms: tuple[Array | None, Array | None] = (None, None)
        self._x, self._yt = self.x, self.y
        if callable(self.metric):
            return
        x, y = xp.astype(self.x, xp.float64), xp.astype(self.y, xp.float64)
        if self.metric == "cosine":
            x, y = _normalise(xp, x, "x"), _normalise(xp, y, "y")
        else:
            same = self.y is self.x
            total = xp.sum(x, axis=0) + (0 if same else xp.sum(y, axis=0))
            mean = total / (x.shape[0] + (0 if same else y.shape[0]))
            x, y = x - mean[None, :], y - mean[None, :]
        self._x = xp.astype(x, self.dtype)
        self._yt = xp.asarray(xp.astype(y, self.dtype).T, copy=True)
        if is_numpy(xp):
            self._yt = np.ascontiguousarray(self._yt)
        if self.metric in ("cosine", "sqeuclidean"):
            self.direct = x.shape[1] <= DIRECT_DIMENSION
            self._factor = 1.0 if self.metric == "cosine" else 2.0
            x, y = xp.astype(self._x, xp.float64), xp.astype(self._yt.T, xp.float64)
            if self.metric == "cosine":
                self._norms = (xp.ones_like(x[:, 0]), None)
            else:
                self._norms = (xp.sum(x * x, axis=1), xp.sum(y * y, axis=1))

    @property
    def _inner(self) -> bool:
        """Whether the cost is an inner product, up to terms of x and of y alone."""
        return self.metric in ("cosine", "sqeuclidean")

    def data(self, k: float) -> CostData:
        """The whole of ``k C`` as the kernels see it."""
        x = self.xp.astype(self.xp.astype(self._x, self.xp.float64) * (k * self._factor), self.dtype)
        return CostData(DOT, x, self._yt, 1.0)

    def tile_data(self, lo: int, hi: int, k: float) -> CostData:
        """``k C`` for a tile of rows, evaluated: by BLAS where the cost is an inner product."""
        if not self._inner:
            return super().tile_data(lo, hi, k)
        tile = self._x[lo:hi, :] @ self._yt
        return CostData(DENSE, tile, self.xp.empty((1, 1), dtype=self.dtype, device=self.device), -k * self._factor)

    def norms(self) -> tuple[Array | None, Array | None]:
        """Row and column terms that `data` leaves out of C."""
        return self._norms

    def rows(self, lo: int, hi: int) -> Array:
        """Dense rows ``lo:hi`` of C."""
        xp = self.xp
        if callable(self.metric):
            from ..kernels.cpu.user_metric import metric_rows

            return metric_rows(self.metric, self.x[lo:hi], self.y)
        if not self._inner:
            kind = CITYBLOCK if self.metric == "cityblock" else POWER
            power = self.metric if isinstance(self.metric, float) else 1.0
            return self.kernels.pairwise_cost(kind, self._x[lo:hi, :], self._yt, power)
        if self.metric == "sqeuclidean":
            return self.kernels.pairwise_cost(POWER, self._x[lo:hi, :], self._yt, 2.0)
        C = 1 - self._x[lo:hi, :] @ self._yt
        return xp.where(C > 0, C, xp.zeros_like(C))

    def subset(self, rows: Array | None, columns: Array | None) -> PointCloud:
        """The cost between selected points."""
        take = self.xp.take
        return PointCloud(
            self.x if rows is None else take(self.x, rows, axis=0),
            self.y if columns is None else take(self.y, columns, axis=0),
            self.metric,
        )

    @property
    def T(self) -> PointCloud:
        """The transposed cost."""
        return PointCloud(self.y, self.x, _swapped(self.metric) if callable(self.metric) else self.metric)

    def bounds(self) -> tuple[float, float]:
        """0 and a bound from the box around the points; for a user's function the extremes themselves (O(n m))."""
        xp = self.xp
        if callable(self.metric):
            step = max(1, (1 << 20) // self.shape[1])
            tiles = [self.rows(lo, min(self.shape[0], lo + step)) for lo in range(0, self.shape[0], step)]
            return min(float(t.min()) for t in tiles), max(float(t.max()) for t in tiles)
        if self.metric == "cosine":
            return 0.0, 2.0
        low = xp.minimum(xp.min(self._x, axis=0), xp.min(self._yt, axis=1))
        high = xp.maximum(xp.max(self._x, axis=0), xp.max(self._yt, axis=1))
        sides = xp.astype(high - low, xp.float64)
        if self.metric == "cityblock":
            return 0.0, float(xp.sum(sides))
        diagonal = math.sqrt(float(xp.sum(sides * sides)))
        return 0.0, diagonal ** {"sqeuclidean": 2.0, "euclidean": 1.0}.get(self.metric, self.metric)


def _as_points(x: Any, name: str, xp: Any, dtype: Any) -> Array:
    x = as_float_array(x, name, ndim=(1, 2), xp=xp, dtype=dtype)
    return as_kernel_input(xp, x[:, None] if x.ndim == 1 else x)


def _check_metric(metric: Any, xp: Any) -> Any:
    if isinstance(metric, str):
        return check_choice(metric, "metric", METRICS)
    if callable(metric):
        if not hasattr(metric, "py_func"):
            raise TypeError(f"metric must be compiled first: pass numba.njit(f), got the Python function {metric!r}")
        if not is_numpy(xp):
            raise TypeError(f"a function as metric needs NumPy arrays, got arrays of {xp.__name__}")
        return metric
    power = check_real(metric, "metric", low=0, low_open=True)
    return {2.0: "sqeuclidean", 1.0: "euclidean"}.get(power, power)


def _normalise(xp: Any, x: Array, name: str) -> Array:
    norms = xp.sqrt(xp.sum(x * x, axis=1))
    if not bool(xp.all(norms > 0)):
        raise ValueError(f"{name} has a zero vector at index {int(xp.argmin(norms))}: its cosine is not defined")
    return x / norms[:, None]


def _swapped(metric: Callable) -> Callable:
    from numba import njit

    return njit(lambda x, y: metric(y, x))
