"""The scale of a cost, and a regularisation that suits it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.namespaces import is_numpy
from ..arrays.validation import check_choice, check_real
from .base import Cost
from .matrix import CostMatrix

Array = Any
SAMPLE = 1024  #: rows and columns of the sub-matrix from which a median is taken


def as_cost(C: Any) -> Cost:
    """Return `C` as a cost object: itself if it is one, else a `CostMatrix` around the array.

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
        Statistic of the entries. The median is exact up to 1024 x 1024 entries; above, it is the median of a sub-matrix
        of 1024 rows and columns at equal steps of the index, so the same input gives the same number.

    Returns
    -------
    float
        The statistic, >= 0 for a non-negative cost.

    Raises
    ------
    ValueError
        If `scale` is not one of the names, or no entry is finite.

    Notes
    -----
    Mean and maximum take O(n m) time and evaluate the cost in tiles of rows: no n x m array is formed.

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
        rows, columns = _steps(cost, n), _steps(cost, m)
        block = cost.subset(rows, columns).to_dense() if cost.direct else _sampled(cost, rows, columns)
        return _median(xp, block)
    total, count, top = 0.0, 0, -float("inf")
    step = max(1, (1 << 20) // m)
    for lo in range(0, n, step):
        tile = cost.rows(lo, min(n, lo + step))
        finite = xp.isfinite(tile)
        kept = xp.where(finite, xp.astype(tile, xp.float64), xp.zeros(1, dtype=xp.float64, device=cost.device))
        total += float(xp.sum(kept))
        count += int(xp.sum(xp.astype(finite, xp.int64)))
        top = max(top, float(xp.max(xp.where(finite, tile, xp.full_like(tile, -float("inf"))))))
    if count == 0:
        raise ValueError("C must have at least one finite entry, got only inf")
    return top if scale == "max" else total / count


def suggest_reg(C: Any, share: float = 0.05, *, scale: str = "median") -> float:
    r"""A regularisation strength that suits a cost: ``share * cost_scale(C, scale)``.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        The ground cost.
    share : float, default 0.05
        Share of the scale: 0.05 gives a smooth plan in tens of iterations, 0.005 one close to the unregularised
        optimum in hundreds.
    scale : {"median", "mean", "max"}
        Statistic of the entries, see `cost_scale`.

    Returns
    -------
    float
        `reg` > 0, in the units of the cost.

    Raises
    ------
    ValueError
        If share <= 0, or the scale of the cost is not positive (a constant zero cost has none).

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.suggest_reg([[0.0, 1.0], [1.0, 0.0]], 0.1, scale="max")
    0.1
    """
    share = check_real(share, "share", low=0, low_open=True)
    size = cost_scale(C, scale)
    if not size > 0:
        raise ValueError(f"the {scale} of C must be positive to derive reg from it, got {size:g}; pass reg yourself")
    return share * size


def _steps(cost: Cost, size: int) -> Array:
    """At most SAMPLE indices at equal steps."""
    index = np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).round().astype(np.int64))
    return cost.xp.asarray(index, device=cost.device)


def _sampled(cost: Cost, rows: Array, columns: Array) -> Array:
    return cost.xp.concat(
        [cost.xp.take(cost.rows(int(i), int(i) + 1), columns, axis=1) for i in rows]
    )


def _median(xp: Any, block: Array) -> float:
    values = xp.reshape(block, (-1,))
    values = values[xp.isfinite(values)]
    if values.shape[0] == 0:
        raise ValueError("C must have at least one finite entry, got only inf")
    if is_numpy(xp):
        return float(np.median(values))
    values = xp.sort(values)
    middle = values.shape[0] // 2
    return float((values[middle] + values[-1 - middle if values.shape[0] % 2 == 0 else middle]) / 2)
