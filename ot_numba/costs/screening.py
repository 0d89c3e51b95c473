"""The Gibbs kernel of points in few dimensions at a small `reg`, where most of a plan is negligible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import CostData, kernels_for
from ..kernels.contract import DOT, SIDE, Tiles
from .gibbs import GibbsKernel

Array = Any
DIMENSION = 3  #: largest dimension in which neighbours are few
SMALLEST = 1 << 18  #: entries of a plan below which its passes take no time
LARGEST = 1 << 36  #: entries of a plan above which a map of its tiles takes too much memory
#: Bits below the largest exponents of its row and its column at which an entry is lost in the rounding of their sums.
BITS = {"float64": 60.0, "float32": 36.0}
MARGIN = 6.0  #: bits that potentials may move before tiles are chosen anew
COLUMN_MARGIN = 8.0  #: bits that a column sum may be below what is asked for
STORED_BITS = 30.0  #: as BITS, of a plan that is stored in float32
LARGEST_SHARE = 0.5  #: share of the plan above which a pass over all of it is as fast
PAUSE = 8  #: passes over the whole plan before its share is looked at again
STORED_BYTES = 1 << 28  #: largest part of a plan that is stored


class ScreenedGibbsKernel(GibbsKernel):
    """A `GibbsKernel` whose passes leave out the tiles of the plan in which no entry counts.

    A tile of 16 x 16 entries is left out where all are below ``2**-BITS`` times the sum of their row and of their
    column, by a bound that holds for any potentials. Sums are therefore those of a whole pass up to rounding. It pays
    where points near each other have near indices: see `neighbour_order`.
    """

    screened = True

    def __init__(self, cost: Any, reg: float) -> None:
        super().__init__(cost, reg)
        self.tiled = kernels_for(self.xp, "tiles")
        self._data = data = cost.data(self.k)
        self._swapped = CostData(DOT, np.ascontiguousarray(data.y.T), np.ascontiguousarray(data.x.T), data.scale)
        self._bits = BITS[data.x.dtype.name]
        self._pause = 0
        self._settled: tuple[Array, Array] | None = None  # potentials whose rows are exact
        self._tiles_there: Tiles | None = None

    def _are_few(self, tiles: Tiles) -> bool:
        n, m = self.cost.shape
        return tiles.entries <= LARGEST_SHARE * n * m

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
        arguments = a, b, offsets, damping, relaxation
        if self._pause > 0:
            self._pause -= 1
            return super().rows(F, G, *arguments)
        expected = self._expected(G, b, offsets[1], damping[1])
        plain = damping[0] == relaxation == 1
        near = plain and self._settled is not None and _spread(G - self._settled[1]) <= MARGIN
        ours = a, offsets[0], damping[0], relaxation
        tiles = self._settled_tiles(a, expected) if near else self._predicted_tiles(F, G, expected, *ours)
        if not self._are_few(tiles):
            self._pause, self._settled = PAUSE, None
            return super().rows(F, G, *arguments)
        before = F.copy()
        error, column_sums = self.tiled.sinkhorn_rows(self._data, tiles, F, G, *ours)
        if (column_sums < expected * 2.0**-COLUMN_MARGIN).any():  # too much may have been left out of these columns
            F[...] = before
            error, column_sums = super().rows(F, G, *arguments)
        if plain and not near:
            self._settled, self._tiles_there = (F.copy(), G.copy()), None
        return error, column_sums

    def _expected(self, G: Array, b: Array, offset: Array, damping: float) -> Array:
        """What column sums are compared with: errors far below it do not matter."""
        if damping == 1:
            return b
        bits = np.minimum((offset.astype(float) - G) * (1 / damping - 1), 960.0)  # so that no sum overflows
        return b * np.exp2(bits)

    def tiles(
        self, F: Array, G: Array, row_sums: Array, column_sums: Array, bits: float = STORED_BITS
    ) -> Tiles:
        """Tiles with an entry above ``2**-bits`` times a sum of its rows and columns."""
        thresholds = (_log2(sums, F.dtype) - bits for sums in (row_sums, column_sums))
        return self.tiled.active_tiles(self._data, F, G, *thresholds)

    def _settled_tiles(self, a: Array, expected: Array) -> Tiles:
        """Tiles that count near potentials whose rows are exact.

        If G rises by r_j from there, F falls by at least min r and no exponent rises by more than max r - min r.
        """
        if self._tiles_there is None:
            self._tiles_there = self.tiles(*self._settled, a, expected, self._bits + MARGIN)
        return self._tiles_there

    def _predicted_tiles(
        self, F: Array, G: Array, expected: Array, a: Array, offset: Array, damping: float, relaxation: float
    ) -> Tiles:
        """Tiles that count after the update of F, a peak of each row in place of its sum: no row can end higher."""
        peaks = self.tiled.row_peaks(self._data, G)
        step = damping * (_log2(a, F.dtype) - peaks - offset) + offset - F
        after = F + np.where(np.isfinite(step), np.maximum(step, relaxation * step), 0)
        thresholds = after + peaks - self._bits, _log2(expected, F.dtype) - self._bits
        return self.tiled.active_tiles(self._data, after, G, *thresholds)

    def square(self, F: Array, G: Array, tiles: Tiles) -> Callable[[Array], Array]:
        """``v -> P' P v`` over some tiles in about single precision: they are stored, or evaluated if too many."""
        xp = self.xp
        if 4 * tiles.entries > STORED_BYTES:
            ones = xp.ones_like(F)
            return lambda v: self.tiled.plan_pair(self._data, tiles, F, G, v, ones)[1]
        values = self.tiled.store_tiles(self._data, tiles, F, G)
        return lambda v: self.tiled.stored_square(values, tiles, F.shape[0], xp.astype(v, xp.float32))


def _spread(v: np.ndarray) -> float:
    return float(v.max() - v.min())


def _log2(v: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log2(v).astype(dtype)


def expected_share(x: np.ndarray, y: np.ndarray, k: float, *, ordered: bool) -> float:
    """Share of the plan of ``k |x - y|**2`` (bits) that a screened pass would visit: 1 where screening cannot pay.

    An entry that counts is at most ``sqrt(bits / k)`` from the transport map. The size of the tiles adds to the bits;
    `ordered` takes them as small. The points are taken as spread evenly.
    """
    (n, d), m = x.shape, y.shape[0]
    if not SMALLEST <= n * m <= LARGEST or d > DIMENSION:
        return 1.0
    slack = MARGIN if ordered else MARGIN + k * float(_mean_box(x) @ _mean_box(y)) / 2
    reach = math.sqrt((BITS[x.dtype.name] + slack) / k)
    extent = math.sqrt(12) * np.maximum(x.std(axis=0), y.std(axis=0))
    return float(np.prod(np.minimum(1.0, 2 * reach / np.maximum(extent, reach))))


def _mean_box(points: np.ndarray) -> np.ndarray:
    """Mean sides of the boxes around each `SIDE` points."""
    starts = np.arange(0, points.shape[0], SIDE)
    return (np.maximum.reduceat(points, starts, axis=0) - np.minimum.reduceat(points, starts, axis=0)).mean(axis=0)


def neighbour_order(points: np.ndarray) -> np.ndarray:
    """Permutation that puts points near each other next to each other.

    Halves are cut off along the longest side of the box around the points, in multiples of `SIDE` points, until
    `SIDE` are left: leaves of a k-d tree. O(n log n) time.
    """
    order = np.arange(points.shape[0])
    pending = [(0, order.size)]
    while pending:
        lo, hi = pending.pop()
        if hi - lo <= SIDE:
            continue
        part = order[lo:hi]
        z = points[part]
        z = z[:, np.argmax(z.max(axis=0) - z.min(axis=0))]
        half = -(-(hi - lo) // (2 * SIDE)) * SIDE
        order[lo:hi] = part[np.argpartition(z, half - 1)]
        pending += [(lo, lo + half), (lo + half, hi)]
    return order
