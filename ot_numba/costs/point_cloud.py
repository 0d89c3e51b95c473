"""Costs between two point clouds, evaluated where they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, is_numpy, library_name, namespace_of
from ..arrays.validation import as_float_array, check_choice, check_real, common_dtype
from ..kernels import CostData
from ..kernels.contract import CITYBLOCK, DENSE, DOT, POWER
from .base import Cost
from .gibbs import LOG2E, GibbsKernel
from .matrix import as_kernel_input
from .screening import LARGEST_SHARE, ScreenedGibbsKernel, expected_share, neighbour_order

Array = Any
METRICS = ("sqeuclidean", "euclidean", "cosine", "cityblock")
DIRECT_DIMENSION = 8  #: above it, inner products are worth a call of BLAS


class PointCloud(Cost):
    r"""The cost ``c(x_i, y_j)`` between two point clouds, never stored: O((n + m) d) memory.

    ==================  =======================================================
    metric              c(x, y)
    ==================  =======================================================
    ``"sqeuclidean"``   :math:`\|x - y\|_2^2`
    ``"euclidean"``     :math:`\|x - y\|_2`
    a number p > 0      :math:`\|x - y\|_2^p`
    ``"cityblock"``     :math:`\|x - y\|_1`
    ``"cosine"``        :math:`1 - \langle x, y\rangle / (\|x\|_2 \|y\|_2)`
    a function          ``metric(x_i, y_j)``, NumPy arrays only
    ==================  =======================================================

    Parameters
    ----------
    x : array_like of shape (n, d) or (n,)
        Source points; 1-D is taken as n points on the line. float32 stays float32, float16 becomes it,
        everything else becomes float64. Never written to; not copied if already as wanted.
    y : array_like of shape (m, d) or (m,), optional
        Target points, default `x`.
    metric : str, float or callable, default "sqeuclidean"
        See above. A function must be compiled by ``numba.njit``, take two 1-D arrays of length d and return a
        number; ``+inf`` forbids the pair.

    Attributes
    ----------
    x, y : array of shape (n, d), (m, d)
        The points, to be read only: they may be the arrays that were passed.
    metric : str, float or callable
        As given; 2 and 1 are stored as ``"sqeuclidean"`` and ``"euclidean"``.

    Raises
    ------
    ValueError
        If the points are empty, not finite, of different dimension, so large that the cost overflows, or zero
        under ``"cosine"``; if `metric` is an unknown name, or a number not in (0, inf); later, where the cost
        is evaluated, if a function returns NaN or ``-inf``.
    TypeError
        If the arrays are of different libraries, complex, sparse or no numbers; if `metric` is a function
        that is not compiled, does not compile for such points, or returns no number.

    Notes
    -----
    The common mean of the clouds is subtracted first, except for the cosine and a user's function; this keeps
    the expansion :math:`\|x\|^2 + \|y\|^2 - 2\langle x, y\rangle` accurate far from the origin. One
    evaluation of all pairs takes O(n m d) time; it is made inside the kernels for ``"sqeuclidean"`` and
    ``"cosine"`` up to d = 8, else in tiles of rows.

    Examples
    --------
    >>> import ot_numba
    >>> C = ot_numba.PointCloud([[0.0, 0.0], [1.0, 1.0]], [[1.0, 0.0]])
    >>> C.shape
    (2, 1)
    >>> C.to_dense().tolist()
    [[1.0], [1.0]]
    """

    def __init__(self, x: Any, y: Any = None, metric: str | float | Callable = "sqeuclidean") -> None:
        spaces = namespace_of(x, "x"), namespace_of(y, "y")
        xp, dtype = array_namespace(x, y), common_dtype(x, y)
        device = device_of(y if spaces[0] is None and spaces[1] is not None else x)
        x = _as_points(x, "x", xp, dtype, device)
        y = x if y is None else _as_points(y, "y", xp, dtype, device)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
        self._hold(x, y, _check_metric(metric, x, y, xp))

    def _hold(self, x: Array, y: Array, metric: Any, swapped: bool = False) -> None:
        self.x, self.y, self.metric, self._swapped = x, y, metric, swapped
        self.xp, self.dtype, self.device = array_namespace(x), x.dtype, device_of(x)
        self.shape = (x.shape[0], y.shape[0])
        self.direct = False
        self._norms: tuple[Array | None, Array | None] = (None, None)
        if not callable(metric):
            self._prepare()

    def _like(self, x: Array, y: Array, swapped: bool) -> PointCloud:
        """The same metric between points of this cloud, which need no second check."""
        other = object.__new__(PointCloud)
        other._hold(x, y, self.metric, swapped)
        return other

    def _prepare(self) -> None:
        """Shift or normalise the points; norms, in float64, of the points as rounded, so that c(x, x) = 0."""
        xp = self.xp
        x, y = xp.astype(self.x, xp.float64), xp.astype(self.y, xp.float64)
        if self.metric == "cosine":
            x, y = _normalise(xp, x, "x"), _normalise(xp, y, "y")
        else:
            self._refuse_overflow()
            same = self.y is self.x
            total = xp.sum(x, axis=0) + (0 if same else xp.sum(y, axis=0))
            mean = total / (x.shape[0] + (0 if same else y.shape[0]))
            x, y = x - mean[None, :], y - mean[None, :]
        self._x = xp.astype(x, self.dtype)
        self._yt = xp.empty((y.shape[1], y.shape[0]), dtype=self.dtype, device=self.device)
        self._yt[...] = xp.astype(y.T, self.dtype)
        if self._inner:
            self.direct = x.shape[1] <= DIRECT_DIMENSION
            self._factor = 1.0 if self.metric == "cosine" else 2.0
            x, y = xp.astype(self._x, xp.float64), xp.astype(self._yt.T, xp.float64)
            if self.metric == "cosine":
                self._norms = (xp.ones_like(x[:, 0]), None)
            else:
                self._norms = (xp.sum(x * x, axis=1), xp.sum(y * y, axis=1))

    def _refuse_overflow(self) -> None:
        """Raise if a cost, or a sum on the way to it, may be beyond the range of the dtype."""
        xp, d = self.xp, self.x.shape[1]
        size = max(float(xp.max(xp.abs(points))) for points in (self.x, self.y))
        # sums of squares come first where a power below 2 is taken of them
        l1 = self.metric == "cityblock"
        diameter, power = (2 * size * d, 1.0) if l1 else (2 * size * d**0.5, max(self._power, 2.0))
        most = math.log2(float(xp.finfo(self.dtype).max))
        if size > 0 and max(power * math.log2(diameter), math.log2(size * sum(self.shape))) >= most:
            raise ValueError(f"x and y hold coordinates up to {size:.3g}: metric {self.metric!r} overflows")

    @property
    def _power(self) -> float:
        return {"sqeuclidean": 2.0, "euclidean": 1.0, "cityblock": 1.0}.get(self.metric, self.metric)

    @property
    def _inner(self) -> bool:
        """Whether the cost is an inner product, up to terms of x and of y alone."""
        return self.metric in ("cosine", "sqeuclidean")

    def data(self, k: float) -> CostData:
        """The whole of ``k C`` as the kernels see it; for `direct` costs, without `norms`."""
        x = self.xp.astype(self.xp.astype(self._x, self.xp.float64) * (k * self._factor), self.dtype)
        return CostData(DOT, x, self._yt, 1.0)

    def tile_data(self, lo: int, hi: int, k: float) -> CostData:
        """``k C`` for a tile of rows, evaluated: by BLAS where the cost is an inner product."""
        if not self._inner:
            return super().tile_data(lo, hi, k)
        tile = self._x[lo:hi, :] @ self._yt
        unused = self.xp.empty((1, 1), dtype=self.dtype, device=self.device)
        return CostData(DENSE, tile, unused, -k * self._factor)

    def norms(self) -> tuple[Array | None, Array | None]:
        """Row and column terms that `data` leaves out of C, float64; None where there are none."""
        return self._norms

    def gibbs(self, reg: float) -> GibbsKernel:
        """The Gibbs kernel ``exp(-C / reg)`` as an operator, a `ScreenedGibbsKernel` where that pays."""
        kind = ScreenedGibbsKernel if self._share(reg, ordered=False) <= LARGEST_SHARE else GibbsKernel
        return kind(self, reg)

    def neighbour_order(self, reg: float) -> tuple[Array | None, Array | None]:
        """Orders that put neighbours next to each other, if the plan at `reg` couples few enough points."""
        if self._share(reg, ordered=True) > LARGEST_SHARE:
            return None, None
        return neighbour_order(self._x), neighbour_order(self._yt.T)

    def _share(self, reg: float, *, ordered: bool) -> float:
        """Share of the plan that a screened pass would visit."""
        if not (self._inner and is_numpy(self.xp)):
            return 1.0
        return expected_share(self._x, self._yt.T, LOG2E * self._factor / (2 * reg), ordered=ordered)

    def rows(self, lo: int, hi: int) -> Array:
        """Dense rows ``lo:hi`` of C, a new array; O((hi - lo) m d) time."""
        xp = self.xp
        if callable(self.metric):
            from ..kernels.cpu.user_metric import metric_rows

            if self._swapped:
                return np.ascontiguousarray(metric_rows(self.metric, self.y, self.x[lo:hi]).T)
            return metric_rows(self.metric, self.x[lo:hi], self.y)
        x = self._x[lo:hi, :]
        if self.metric == "cosine":
            C = 1 - x @ self._yt
            return xp.where(C > 0, C, xp.zeros_like(C))
        kind = CITYBLOCK if self.metric == "cityblock" else POWER
        return self.kernels.pairwise_cost(kind, x, self._yt, self._power)

    def subset(self, rows: Array | None, columns: Array | None) -> PointCloud:
        """The cost between selected points (index arrays; None keeps all)."""
        take = self.xp.take
        x = self.x if rows is None else take(self.x, rows, axis=0)
        y = self.y if columns is None else take(self.y, columns, axis=0)
        return self._like(x, y, self._swapped)

    @property
    def T(self) -> PointCloud:  # noqa: N802
        """The transposed cost."""
        return self._like(self.y, self.x, callable(self.metric) and not self._swapped)

    def bounds(self) -> tuple[float, float]:
        """0 and a bound from the box around the points; for a user's function the extremes (O(n m) time)."""
        return self._bounds

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        xp = self.xp
        if callable(self.metric):
            step = max(1, (1 << 20) // self.shape[1])
            low, high = math.inf, -math.inf
            for lo in range(0, self.shape[0], step):
                tile = self.rows(lo, min(self.shape[0], lo + step))
                low = min(low, float(tile.min()))
                high = max(high, float(tile.max(where=np.isfinite(tile), initial=-math.inf)))
            return low, high if math.isfinite(low) else low
        if self.metric == "cosine":
            return 0.0, 2.0
        low = xp.minimum(xp.min(self._x, axis=0), xp.min(self._yt, axis=1))
        high = xp.maximum(xp.max(self._x, axis=0), xp.max(self._yt, axis=1))
        sides = xp.astype(high, xp.float64) - xp.astype(low, xp.float64)
        if self.metric == "cityblock":
            return 0.0, float(xp.sum(sides))
        return 0.0, float(xp.sum(sides * sides)) ** (0.5 * self._power)


def _as_points(x: Any, name: str, xp: Any, dtype: Any, device: Any) -> Array:
    x = as_float_array(x, name, ndim=(1, 2), xp=xp, dtype=dtype, device=device)
    return as_kernel_input(xp, x[:, None] if x.ndim == 1 else x)


def _check_metric(metric: Any, x: Array, y: Array, xp: Any) -> Any:
    if isinstance(metric, str):
        return check_choice(metric, "metric", METRICS)
    if callable(metric):
        if not hasattr(metric, "py_func"):
            raise TypeError(f"metric must be compiled first: pass numba.njit(f), got {metric!r}")
        if not is_numpy(xp):
            raise TypeError(f"a function as metric needs NumPy arrays, got arrays of {library_name(xp)}")
        from numba.core.errors import NumbaError

        try:
            value = metric(x[0], y[0])
        except NumbaError as error:
            raise TypeError(f"metric does not compile for two 1-D arrays of {x.dtype}: {error}") from error
        if not isinstance(value, Real):
            raise TypeError(f"metric must return a real number, got {value!r}")
        return metric
    power = check_real(metric, "metric", low=0, high=math.inf, low_open=True, high_open=True)
    return {2.0: "sqeuclidean", 1.0: "euclidean"}.get(power, power)


def _normalise(xp: Any, x: Array, name: str) -> Array:
    largest = xp.max(xp.abs(x), axis=1)
    if not bool(xp.all(largest > 0)):
        raise ValueError(f"{name} has a zero vector at index {int(xp.argmin(largest))}: it has no cosine")
    x = x / largest[:, None]  # so that no square under- or overflows
    return x / xp.sqrt(xp.sum(x * x, axis=1))[:, None]
