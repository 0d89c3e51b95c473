"""The scale of a cost, and a regularisation that suits it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.namespaces import is_numpy
from ..arrays.validation import check_choice, check_real
from .base import Cost
from .grid import Grid
from .matrix import CostMatrix

Array = Any
SAMPLE = 1024  #: rows and columns of the sub-matrix from which a median is taken


def as_cost(C: Any) -> Cost:
    """Return `C` as a cost object: itself if it is one, else a `CostMatrix` around the array.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        The ground cost.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError, TypeError
        As `CostMatrix`.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.as_cost([[0.0, 1.0]]).shape
    (1, 2)
    """
    return C if isinstance(C, Cost) else CostMatrix(C)


def cost_scale(C: Any, scale: str = "median") -> float:
    r"""A typical size of the entries of a cost, in its units.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        The ground cost. Infinite entries (forbidden pairs) do not count.
    scale : {"mean", "median", "max"}, default "median"
        Statistic of the entries. The median is exact up to 1024 x 1024 entries; above, it is the median of a
        sub-matrix of 1024 rows and columns at equal steps of the index, so the same input gives the same
        number.

    Returns
    -------
    float
        The statistic, >= 0 for a non-negative cost.

    Raises
    ------
    ValueError
        If `scale` is not one of the names, or no entry (or none of those that the median looks at) is finite.
    TypeError
        As `CostMatrix`.

    Notes
    -----
    Mean and maximum evaluate the cost in tiles of rows, in O(n m) time, those of a `Grid` axis by axis; no
    n x m array is formed.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.cost_scale([[0.0, 1.0], [3.0, 0.0]], "max")
    3.0
    """
    check_choice(scale, "scale", ("mean", "median", "max"))
    cost = as_cost(C)
    n, m = cost.shape
    xp = cost.xp
    if scale == "median":
        block = cost.subset(*(None if size <= SAMPLE else _steps(cost, size) for size in (n, m)))
        return _median(xp, block.rows(0, block.shape[0]))
    if isinstance(cost, Grid):
        if scale == "max":
            return cost.bounds()[1]
        return sum(float(xp.mean(xp.astype(axis, xp.float64))) for axis in cost.axis_costs)
    total, count, top = 0.0, 0, -math.inf
    step = max(1, (1 << 20) // m)
    for lo in range(0, n, step):
        tile = cost.rows(lo, min(n, lo + step))
        finite = xp.isfinite(tile)
        kept = xp.astype(xp.where(finite, tile, xp.zeros_like(tile)), xp.float64)
        total += float(xp.sum(kept))
        count += int(xp.sum(xp.astype(finite, xp.int64)))
        top = max(top, float(xp.max(xp.where(finite, tile, xp.full_like(tile, -math.inf)))))
    return top if scale == "max" else total / count


def suggest_reg(C: Any, share: float = 0.05, *, scale: str = "median") -> float:
    r"""A regularisation strength that suits a cost: ``share * cost_scale(C, scale)``.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        The ground cost.
    share : float, default 0.05
        Share of the scale, > 0: 0.05 gives a smooth plan in tens of iterations, 0.005 one close to the
        unregularised optimum in hundreds.
    scale : {"median", "mean", "max"}, default "median"
        Statistic of the entries, see `cost_scale`.

    Returns
    -------
    float
        `reg` > 0, in the units of the cost.

    Raises
    ------
    ValueError
        If `share` is not positive and finite, or the scale of the cost is not positive (a constant zero cost
        has none), and as `cost_scale`.
    TypeError
        As `cost_scale`.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.suggest_reg([[0.0, 1.0], [1.0, 0.0]], 0.1, scale="max")
    0.1
    """
    share = check_real(share, "share", low=0, high=math.inf, low_open=True, high_open=True)
    size = cost_scale(C, scale)
    if not size > 0:
        raise ValueError(f"the {scale} of C must be positive to derive reg from it, got {size:g}; pass reg=")
    return share * size


def _steps(cost: Cost, size: int) -> Array:
    """At most SAMPLE indices at equal steps."""
    index = np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).round().astype(np.int64))
    return cost.xp.asarray(index, device=cost.device)


def _median(xp: Any, block: Array) -> float:
    values = xp.reshape(block, (-1,))
    values = values[xp.isfinite(values)]
    if values.shape[0] == 0:
        raise ValueError(f"C has only inf among the {SAMPLE} x {SAMPLE} entries its median is taken from")
    if is_numpy(xp):
        return float(np.median(values))
    values = xp.sort(values)
    middle = values.shape[0] // 2
    return float((values[middle] + values[-1 - middle if values.shape[0] % 2 == 0 else middle]) / 2)
