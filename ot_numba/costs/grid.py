"""Separable costs on regular grids: one-dimensional passes instead of n x m."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, namespace_of
from ..arrays.validation import as_float_array, check_real, common_dtype
from ..kernels import CostData
from ..kernels.contract import DENSE
from .base import Cost
from .gibbs import LOG2E, GibbsKernel
from .matrix import CostMatrix

Array = Any


class Grid(Cost):
    r"""The cost :math:`c(x, y) = \sum_k |x_k - y_k|^p` between the nodes of two grids, never stored.

    A node is a multi-index; measures are flattened in C order, ``image.ravel()``.

    Parameters
    ----------
    x : sequence of array_like, or sequence of int
        Coordinates of the source grid along each axis, in any order. An integer gives the number of nodes,
        equally spaced on [0, 1] (a single one stands at 0). Never written to.
    y : sequence of array_like, or sequence of int, optional
        Target grid, default `x`. It must have as many axes.
    power : float, default 2
        p > 0.

    Attributes
    ----------
    x, y : list of array
        Coordinates along each axis.
    row_grid, column_grid : tuple of int
        Numbers of nodes along each axis of the source and the target grid.
    axis_costs : list of array
        :math:`|x_k - y_k|^p` along each axis.

    Raises
    ------
    ValueError
        If an axis is empty or not finite, if the numbers of axes differ, if `power` is not in (0, inf), or if
        the cost overflows.
    TypeError
        If `x` or `y` is not a list or tuple, or an axis is complex, sparse or no numbers.

    Notes
    -----
    With n_k nodes along axis k and n in all, one Sinkhorn iteration takes O(n \sum_k n_k) time, instead of
    O(n^2), and O(n) memory; all in the log domain, so that zero weights and any `reg` are fine. Dense and
    sparse plans are evaluated in tiles of rows and take O(n^2) time.

    References
    ----------
    Solomon et al., "Convolutional Wasserstein distances", ACM Transactions on Graphics 34(4), 2015.

    Examples
    --------
    >>> import ot_numba
    >>> C = ot_numba.Grid((2, 3))
    >>> C.shape
    (6, 6)
    >>> C.to_dense()[0].tolist()
    [0.0, 0.25, 1.0, 1.0, 1.25, 2.0]
    """

    direct = False

    def __init__(self, x: Any, y: Any = None, power: float = 2.0) -> None:
        self.power = check_real(power, "power", low=0, high=math.inf, low_open=True, high_open=True)
        axes_x = _as_axes(x, "x")
        axes_y = axes_x if y is None else _as_axes(y, "y")
        if len(axes_x) != len(axes_y):
            raise ValueError(f"x and y must have as many axes, got {len(axes_x)} and {len(axes_y)}")
        self.xp = array_namespace(*axes_x, *axes_y)
        self.dtype = common_dtype(*axes_x, *axes_y)
        given = [axis for axis in (*axes_x, *axes_y) if namespace_of(axis) is not None]
        self.device = device_of(given[0] if given else axes_x[0])
        options = {"ndim": 1, "xp": self.xp, "dtype": self.dtype, "device": self.device}
        self.x = [as_float_array(axis, f"x[{k}]", **options) for k, axis in enumerate(axes_x)]
        self.y = [as_float_array(axis, f"y[{k}]", **options) for k, axis in enumerate(axes_y)]
        self.row_grid = tuple(axis.shape[0] for axis in self.x)
        self.column_grid = tuple(axis.shape[0] for axis in self.y)
        self.shape = (math.prod(self.row_grid), math.prod(self.column_grid))
        self.axis_costs = self._axis_costs()

    def _axis_costs(self) -> list[Array]:
        xp, costs = self.xp, []
        room = math.log2(float(xp.finfo(self.dtype).max) / len(self.x))
        for k, (u, v) in enumerate(zip(self.x, self.y, strict=True)):
            u, v = xp.astype(u, xp.float64), xp.astype(v, xp.float64)
            reach = max(float(xp.max(xp.abs(u))), float(xp.max(xp.abs(v))))
            if reach > 0 and self.power * (1 + math.log2(reach)) >= room:
                raise ValueError(f"axis {k} reaches {reach:.3g}: the cost overflows for power={self.power:g}")
            costs.append(xp.astype(xp.abs(u[:, None] - v[None, :]) ** self.power, self.dtype))
        return costs

    def data(self, k: float) -> CostData:
        """The whole of ``k C``, stored: O(n m) memory."""
        return self.tile_data(0, self.shape[0], k)

    def rows(self, lo: int, hi: int) -> Array:
        """Dense rows ``lo:hi`` of C, a new array."""
        return self._block(self.xp.arange(lo, hi, device=self.device), None)

    def _block(self, rows: Array | None, columns: Array | None) -> Array:
        """Dense entries of selected rows and columns (None keeps all)."""
        xp = self.xp
        rows = xp.arange(self.shape[0], device=self.device) if rows is None else rows
        strides = self.shape[0], self.shape[1]
        total = 0.0
        for k, cost in enumerate(self.axis_costs):
            strides = strides[0] // self.row_grid[k], strides[1] // self.column_grid[k]
            block = xp.take(cost, (rows // strides[0]) % self.row_grid[k], axis=0)
            if columns is None:
                ones = [1] * len(self.column_grid)
                ones[k] = self.column_grid[k]
                block = xp.reshape(block, (rows.shape[0], *ones))
            else:
                block = xp.take(block, (columns // strides[1]) % self.column_grid[k], axis=1)
            total = total + block
        return xp.reshape(total, (rows.shape[0], -1))

    def subset(self, rows: Array | None, columns: Array | None) -> Cost:
        """The cost between selected nodes, stored: O(n m) memory; the grid itself if nothing is selected."""
        return self if rows is None and columns is None else CostMatrix(self._block(rows, columns))

    @property
    def T(self) -> Grid:  # noqa: N802
        """The transposed cost."""
        return Grid(self.y, self.x, self.power)

    def bounds(self) -> tuple[float, float]:
        """Smallest and largest entry."""
        xp = self.xp
        return sum(float(xp.min(c)) for c in self.axis_costs), sum(float(xp.max(c)) for c in self.axis_costs)

    def gibbs(self, reg: float) -> GridGibbsKernel:
        """The Gibbs kernel ``exp(-C / reg)``, a Kronecker product."""
        return GridGibbsKernel(self, reg)

    def apply(self, v: Array) -> Array:
        """``C @ v`` for v (m,) or (m, p), float64: a sum over the axes, in O((n + m) p) time and memory."""
        xp = self.xp
        v = self._vectors(v)
        columns = xp.reshape(xp.astype(v, xp.float64), (*self.column_grid, -1))
        total = xp.zeros((*self.row_grid, columns.shape[-1]), dtype=xp.float64, device=self.device)
        dims = len(self.row_grid)
        for k, cost in enumerate(self.axis_costs):
            summed = xp.sum(columns, axis=tuple(i for i in range(dims) if i != k))
            shape = [1] * (dims + 1)
            shape[k], shape[-1] = cost.shape[0], columns.shape[-1]
            total = total + xp.reshape(xp.astype(cost, xp.float64) @ summed, tuple(shape))
        return xp.reshape(total, (self.shape[0], *v.shape[1:]))


class GridGibbsKernel(GibbsKernel):
    """The Gibbs kernel of a grid: a log-sum-exp along each axis in turn."""

    cost: Grid

    def _contract(self, potential: Array, matrices: list[Array], shape: tuple[int, ...]) -> Array:
        """``log2 sum_j 2**(potential_j - k sum_d matrices_d[i_d, j_d])``, axis by axis; inf forbids."""
        xp = self.xp
        z = xp.reshape(potential, shape)
        unused = xp.empty((1, 1), dtype=self.cost.dtype, device=self.cost.device)
        for axis, matrix in enumerate(matrices):
            z = xp.moveaxis(z, axis, -1)
            lines = xp.asarray(xp.reshape(z, (-1, z.shape[-1])), copy=True)
            out = self.kernels.row_logsumexp(CostData(DENSE, matrix, unused, self.k), lines)
            z = xp.moveaxis(xp.reshape(out, (*z.shape[:-1], matrix.shape[0])), -1, axis)
        return xp.reshape(z, (-1,))

    def row_logsumexp(self, G: Array) -> Array:
        """``log2 sum_j 2**(G_j - k C_ij)``."""
        return self._contract(G, self.cost.axis_costs, self.cost.column_grid)

    def column_logsumexp(self, F: Array) -> Array:
        """``log2 sum_i 2**(F_i - k C_ij)``."""
        return self._contract(F, self._transposed, self.cost.row_grid)

    @property
    def _transposed(self) -> list[Array]:
        if self._transposed_costs is None:
            self._transposed_costs = self.cost.T.axis_costs
        return self._transposed_costs

    _transposed_costs: list[Array] | None = None

    def _half_step(
        self, potential: Array, lse: Array, weights: Array, offset: Array, damping: float, relaxation: float
    ) -> float:
        """Update one potential in place from the log-sum-exp over the other; returns the error before."""
        xp = self.xp
        lse, old = xp.astype(lse, xp.float64), xp.astype(potential, xp.float64)
        offset = xp.astype(offset, xp.float64)
        positive = weights > 0
        start = xp.where(positive, offset, xp.zeros_like(offset))
        dual = xp.where(positive, old - start, xp.zeros_like(old))  # k f
        target = xp.astype(weights, xp.float64)
        if damping != 1:
            target = target * _exp2(xp, -dual * (1 / damping - 1))
        error = float(xp.sum(xp.abs(_exp2(xp, old + lse) - target)))
        logs = xp.log2(xp.where(positive, xp.astype(weights, xp.float64), xp.ones_like(offset)))
        moved = start + dual + relaxation * (damping * (logs - lse - start) - dual)
        potential[...] = xp.astype(xp.where(positive, moved, xp.full_like(moved, -math.inf)), potential.dtype)
        return error

    def iterate(
        self,
        F: Array,
        G: Array,
        a: Array,
        b: Array,
        offsets: tuple[Array, Array],
        damping: tuple[float, float] = (1.0, 1.0),
        relaxation: float = 1.0,
    ) -> tuple[float, float]:
        """One Sinkhorn iteration in place; the marginal errors met on the way."""
        row_error = self._half_step(F, self.row_logsumexp(G), a, offsets[0], damping[0], relaxation)
        return row_error, self._half_step(G, self.column_logsumexp(F), b, offsets[1], damping[1], relaxation)

    def rows(
        self,
        F: Array,
        G: Array,
        a: Array,
        b: Array,
        offsets: tuple[Array, Array],
        damping: tuple[float, float] = (1.0, 1.0),
        relaxation: float = 1.0,
    ) -> tuple[float, Array]:
        """The row half of an iteration, in place: the row error before it and the column sums after."""
        error = self._half_step(F, self.row_logsumexp(G), a, offsets[0], damping[0], relaxation)
        return error, self._exp2_sum(G, self.column_logsumexp(F))

    def pair(self, F: Array, G: Array, v: Array, w: Array) -> tuple[Array, Array]:
        """``(t, P' (w t))`` for ``t = P v``, float64."""
        t = self.products(F, G, V=v[:, None])[0][:, 0]
        return t, self.products(F, G, U=(w * t)[:, None])[1][:, 0]

    def _exp2_sum(self, F: Array, lse: Array) -> Array:
        xp = self.xp
        return _exp2(xp, xp.astype(F, xp.float64) + xp.astype(lse, xp.float64))

    def statistics(self, F: Array, G: Array) -> tuple[Array, Array, float]:
        """Row sums, column sums and ``<C, P>``, float64."""
        xp = self.xp
        row_sums = self._exp2_sum(F, self.row_logsumexp(G))
        column_sums = self._exp2_sum(G, self.column_logsumexp(F))
        total = 0.0
        for axis, cost in enumerate(self.cost.axis_costs):
            # cost * 2**(-k cost) = 2**(-k (cost - log2(cost) / k)): the same pass with a weighted matrix
            positive = cost > 0
            logs = xp.log2(xp.astype(xp.where(positive, cost, xp.ones_like(cost)), xp.float64))
            weighted = xp.where(positive, cost - logs / self.k, xp.full_like(logs, math.inf))
            matrices = list(self.cost.axis_costs)
            matrices[axis] = xp.astype(weighted, self.cost.dtype)
            lse = self._contract(G, matrices, self.cost.column_grid)
            total += float(xp.sum(self._exp2_sum(F, lse)))
        return row_sums, column_sums, total

    def products(
        self, F: Array, G: Array, V: Array | None = None, U: Array | None = None
    ) -> tuple[Array | None, Array | None]:
        """``(P @ V, P.T @ U)``; the positive and the negative part of each column pass in the log domain."""
        return (
            None if V is None else self._product(F, G, V, self.row_logsumexp),
            None if U is None else self._product(G, F, U, self.column_logsumexp),
        )

    def _product(self, outer: Array, inner: Array, V: Array, logsumexp: Any) -> Array:
        xp = self.xp
        columns = []
        for c in range(V.shape[1]):
            v = xp.astype(V[:, c], xp.float64)
            column = 0.0
            for sign in (1, -1):
                part = sign * v
                positive = part > 0
                if bool(xp.any(positive)):
                    logs = xp.log2(xp.where(positive, part, xp.ones_like(part)))
                    logs = xp.where(positive, logs, xp.full_like(logs, -math.inf))
                    lse = logsumexp(xp.astype(inner + logs, inner.dtype))
                    column = column + sign * self._exp2_sum(outer, lse)
            columns.append(column + xp.zeros(outer.shape[0], dtype=xp.float64, device=self.cost.device))
        return xp.stack(columns, axis=1)


def _exp2(xp: Any, bits: Array) -> Array:
    """``2**min(bits, 960)`` for float64 bits, so that no sum overflows."""
    return xp.exp(xp.where(bits < 960, bits, xp.full_like(bits, 960)) / LOG2E)


def _as_axes(axes: Any, name: str) -> list[Any]:
    if not isinstance(axes, (list, tuple)) or not axes:
        raise TypeError(f"{name} must be a sequence of axes, or of numbers of nodes, got {axes!r}")
    out = []
    for k, axis in enumerate(axes):
        if isinstance(axis, (int, np.integer)) and not isinstance(axis, bool):
            if axis < 1:
                raise ValueError(f"{name}[{k}] must be >= 1, got {axis}")
            out.append(np.linspace(0.0, 1.0, int(axis)).tolist())  # a list goes with any library
        else:
            namespace_of(axis, f"{name}[{k}]")
            out.append(axis)
    return out
