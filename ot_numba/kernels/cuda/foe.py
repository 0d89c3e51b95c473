"""Fields of experts: see `foe.cu`; filters too large for shared memory are left to the reference code."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..contract import least_smoothing
from ..generic import stencils as reference
from .loader import launch

Array = Any
REGIONS = (32, 64), (16, 64), (8, 64), (8, 256)  #: rows and columns of responses that a block may hold
HELD = 8  #: rows of them that a thread holds, as in the source
SHARED = 64 << 10  #: bytes of shared memory that a block can have on every GPU that is supported
MULTIPROCESSORS = 132  #: of the largest GPUs


class _Region(NamedTuple):
    """What a block holds: responses, and bytes of shared memory; and how many blocks, or turns of them, there are."""

    rows: int
    columns: int
    tiles: int
    threads: int
    shared: int


def _best(images: tuple[int, int, int], x: Array, filters: Array, parts: int, whole: bool) -> _Region | None:
    """The region that takes the least time, if any fits in shared memory beside `parts` parts of images.

    Tiles are whole regions of responses, or the pixels whose responses all lie in a region.
    """
    (batch, height, width), (kh, kw) = images, filters.shape[1:]
    found = {}
    for rows, columns in REGIONS:
        threads = rows // HELD * columns
        numbers = parts * (rows + kh - 1) * (columns + kw - 1) + 2 * kh * kw
        if whole:
            tile, extent = (rows, columns), (height - kh + 1, width - kw + 1)
            shared = threads // 32 * (kh * kw + 2) * 8
        else:
            tile, extent = (rows - kh + 1, columns - kw + 1), (height, width)
            numbers += rows * columns
            shared = 0
        shared += numbers * x.dtype.itemsize
        if min(tile) > 0 and shared <= SHARED:
            tiles = batch * math.prod(math.ceil(n / side) for n, side in zip(extent, tile, strict=True))
            time = tiles * rows * columns * max(1, MULTIPROCESSORS / max(1, tiles))
            found.setdefault(time, _Region(rows, columns, tiles, threads, shared))
    return found[min(found)] if found else None


class _Experts:
    """Images and filters as arguments, with the best region for them."""

    def __init__(
        self, x: Array, filters: Array, weights: Array, nus: Array, parts: int, whole: bool = False
    ) -> None:
        (batch, height, width), (count, kh, kw) = x.shape, filters.shape
        if kh == 1:  # which cannot tell images from rows of one image
            batch, height = 1, batch * height
        self.region = _best((batch, height, width), x, filters, parts, whole)
        if self.region is not None:
            shape = map(np.int32, (height, width, *self.region[:2]))
            least = np.float64(least_smoothing(np.finfo(x.dtype)))
            filters = filters, *map(np.int32, (count, kh, kw)), weights, nus, least
            self.arguments = x, *shape, *filters

    def launch(self, name: str, blocks: Any, *rest: Any) -> None:
        """Launch a kernel on the tiles, if there are any."""
        name, (*_, threads, shared) = f"{name}_{self.arguments[0].dtype.name}", self.region
        if self.region.tiles:
            launch("foe", name, blocks, threads, (*self.arguments, *rest), shared)

    def sums(self, name: str, *rest: Any) -> list[float]:
        """Launch a kernel that leaves two sums for each tile, and add them up."""
        import cupy

        partial = cupy.empty((2, self.region.tiles))
        self.launch(name, self.region.tiles, *rest, partial)
        return partial.get().sum(axis=1).tolist()


def foe_gradient(
    x: Array, y: Array, filters: Array, weights: Array, nus: Array, out: Array
) -> tuple[float, float]:
    """Value and norm of the gradient, which is written to `out`."""
    experts = _Experts(x, filters, weights, nus, 1)
    if experts.region is None:
        return reference.foe_gradient(x, y, filters, weights, nus, out)
    value, norm_sq = experts.sums("foe_gradient", y, out)
    return value, math.sqrt(norm_sq)


def foe_hvp(x: Array, v: Array, filters: Array, weights: Array, nus: Array, out: Array) -> float:
    """Product of the Hessian at x with v, written to `out`; returns <v, H v>."""
    experts = _Experts(x, filters, weights, nus, 2)
    if experts.region is None:
        return reference.foe_hvp(x, v, filters, weights, nus, out)
    return experts.sums("foe_hvp", v, out)[1]


def foe_jacobian_t(
    x: Array, q: Array, filters: Array, weights: Array, nus: Array
) -> tuple[Array, Array, Array]:
    """<q, d grad / d .> for log weights (K,), log smoothings (K,) and filters (K, kh, kw), float64."""
    import cupy

    experts = _Experts(x, filters, weights, nus, 2, whole=True)
    if experts.region is None:
        return reference.foe_jacobian_t(x, q, filters, weights, nus)
    (count, kh, kw), tiles = filters.shape, experts.region.tiles
    blocks = min(tiles, 2 * MULTIPROCESSORS)
    share = min(count, max(1, 2 * MULTIPROCESSORS // max(1, blocks)))  # blocks that share the filters of a tile
    partial = cupy.zeros((blocks, count, 2 + kh * kw))
    experts.launch("foe_jacobian_t", (blocks, share), q, np.int64(tiles), partial)
    total = partial.sum(axis=0)
    return total[:, 0], total[:, 1], total[:, 2:].reshape(filters.shape)
