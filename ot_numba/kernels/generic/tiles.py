"""Reference for the passes over tiles of a plan (see `cpu.tiles`), which looks at every exponent."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from .. import generic
from ..contract import DENSE, SIDE, CostData, Tiles
from . import _cost_block, _exponents

Array = Any


def row_peaks(cost: CostData, G: Array) -> Array:
    """For every row the largest exponent, without F_i."""
    xp = array_namespace(G)
    n, _ = cost.shape
    return xp.max(_exponents(cost, xp.zeros((n,), dtype=G.dtype, device=device(G)), G, 0, n), axis=1)


def active_tiles(cost: CostData, F: Array, G: Array, row_thresholds: Array, column_thresholds: Array) -> Tiles:
    """Tiles that hold an exponent above the smallest threshold of its rows and columns."""
    xp = array_namespace(F)
    n, m = cost.shape
    z = _exponents(cost, F, G, 0, n)
    rows, columns = ([slice(lo, min(size, lo + SIDE)) for lo in range(0, size, SIDE)] for size in (n, m))
    active = [
        [xp.max(z[i, j]) > xp.minimum(xp.min(row_thresholds[i]), xp.min(column_thresholds[j])) for j in columns]
        for i in rows
    ]
    return Tiles.of(xp, xp.stack([xp.stack(line) for line in active]), (n, m))


def _inside(tiles: Tiles, n: int, m: int) -> Array:
    """Whether an entry is in an active tile, (n, m)."""
    xp = array_namespace(tiles.active)
    return xp.repeat(xp.repeat(tiles.active, SIDE, axis=0), SIDE, axis=1)[:n, :m]


def _restricted(cost: CostData, tiles: Tiles) -> CostData:
    """The cost with infinity outside of the tiles."""
    n, m = cost.shape
    xp = array_namespace(cost.x)
    c = _cost_block(cost, 0, n)
    return CostData(DENSE, xp.where(_inside(tiles, n, m), c, xp.full_like(c, xp.inf)), cost.y, 1.0)


def sinkhorn_rows(
    cost: CostData,
    tiles: Tiles,
    F: Array,
    G: Array,
    a: Array,
    offset: Array,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[float, Array]:
    """Update F in place; return the row error before and the column sums after."""
    return generic.sinkhorn_rows(_restricted(cost, tiles), F, G, a, offset, damping, relaxation)


def plan_pair(cost: CostData, tiles: Tiles, F: Array, G: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """``(t, P' (w t))`` for ``t = P v``, float64."""
    return generic.plan_pair(_restricted(cost, tiles), F, G, v, w)


def store_tiles(cost: CostData, tiles: Tiles, F: Array, G: Array) -> Array:
    """Entries of P, float32: tile rows one after the other, in each row by row the columns of its active tiles."""
    return generic.plan(_restricted(cost, tiles), F, G, dtype="float32")[_inside(tiles, *cost.shape)]


def stored_square(values: Array, tiles: Tiles, n: int, v: Array) -> Array:
    """``P' P v``, float64, from a float32 v."""
    xp = array_namespace(values)
    inside = _inside(tiles, n, v.shape[0])
    P = xp.zeros(inside.shape, dtype=values.dtype, device=device(values))
    P[inside] = values
    return xp.astype((P @ v) @ P, xp.float64)
