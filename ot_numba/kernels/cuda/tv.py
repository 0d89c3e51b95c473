"""Smoothed total variation: see `tv.cu`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..contract import least_smoothing
from .loader import launch

Array = Any
STRIP = 31  #: columns of a strip, as in the source
WARPS = 4224  #: at work at a time, 32 for each multiprocessor of the largest GPUs
BLOCK_WARPS, LOOP_WARPS = 8, 32  #: of a block, and of one that takes all steps
ONE_BLOCK = 1 << 14  #: pixels up to which one block takes steps faster than launches follow each other
LOOP_STEPS = 1024  #: of one launch, which other work on the device may have to wait for
MOST_ROWS = 64  #: that a warp goes down at a time
FEWEST, SHARE = 8, 4  #: the host looks after so many steps, and then after 1 / SHARE of those so far


class _Images:
    """Images with their penalty as arguments, shared out among about `warps` warps, and the number of blocks."""

    def __init__(self, x: Array, images: int, w: float | Array, nu: float, isotropic: bool, warps: int) -> None:
        height, width = x.shape[1:]
        strips = max(1, math.ceil((width - 1) / STRIP))
        groups = max(1, warps // max(1, images * strips))
        rows = min(MOST_ROWS, math.ceil(height / groups))
        tasks = images * strips * math.ceil(height / rows)
        self.blocks = min(WARPS // BLOCK_WARPS, math.ceil(tasks / BLOCK_WARPS))
        number, per_pixel = x.dtype.type, hasattr(w, "shape") and len(w.shape) == 2
        shape = np.int64(images), *map(np.int32, (height, width, strips, rows))
        weights = (w, np.int32(1), number(0)) if per_pixel else (x, np.int32(0), number(w))
        nu = max(float(nu), least_smoothing(np.finfo(x.dtype)))
        self.arguments = *shape, *weights, number(nu * nu), np.int32(isotropic)

    def sums(self, name: str, x: Array, *rest: Any) -> list[float]:
        """Launch a kernel that leaves two sums for each block, and add them up."""
        import cupy

        partial = cupy.empty((2, self.blocks))
        if self.blocks:
            arguments = x, *self.arguments, *rest, partial
            launch("tv", f"{name}_{x.dtype.name}", self.blocks, 32 * BLOCK_WARPS, arguments)
        return partial.get().sum(axis=1).tolist()


def tv_gradient(
    x: Array, y: Array, w: float | Array, nu: float, isotropic: bool, out: Array
) -> tuple[float, float]:
    """Value and norm of the gradient, which is written to `out`."""
    images = _Images(x, x.shape[0], w, nu, isotropic, WARPS)
    value, norm_sq = images.sums("tv_gradient", x, y, out)
    return value, math.sqrt(norm_sq)


def tv_hvp(x: Array, v: Array, w: float | Array, nu: float, isotropic: bool, out: Array) -> float:
    """Product of the Hessian at x with v, written to `out`; returns <v, H v>."""
    return _Images(x, x.shape[0], w, nu, isotropic, WARPS).sums("tv_hvp", x, v, out)[0]


def tv_jacobian_t(
    x: Array, q: Array, w: float | Array, nu: float, isotropic: bool, pixels: Array | None = None
) -> tuple[float, float]:
    """<q, d grad / d log w> and <q, d grad / d log nu>; the former by pixel, summed over the batch, to `pixels`."""
    import cupy

    out = cupy.empty((1, 1), x.dtype) if pixels is None else pixels
    images = _Images(x, 1, w, nu, isotropic, WARPS)
    by_pixel = np.int32(pixels is not None)
    weight, smoothing = images.sums("tv_jacobian_t", x, q, np.int64(x.shape[0]), by_pixel, out)
    return weight, smoothing


def tv_steps(
    x: Array,
    z: Array,
    y: Array,
    w: float | Array,
    nu: float,
    isotropic: bool,
    step: float,
    momentum: float,
    limit: float,
    count: int,
    scratch: Array,
) -> tuple[int, float]:
    """Accelerated gradient steps, x and z in place, until the gradient at z is at most `limit`."""
    import cupy

    one_block, number = x.size <= ONE_BLOCK, x.dtype.type
    images = _Images(y, y.shape[0], w, nu, isotropic, LOOP_WARPS if one_block else WARPS)
    blocks, warps, most = (1, LOOP_WARPS, LOOP_STEPS) if one_block else (images.blocks, BLOCK_WARPS, 1)
    # steps of even number lead from the first pair to the second, those of odd number back
    pairs = (x, z), (scratch[0], scratch[1])
    norms, found = [cupy.empty(blocks), cupy.empty(blocks)], cupy.empty(2)
    numbers = number(step), number(momentum), np.float64(limit)

    def run(first: int, last: int, blocks_now: int) -> None:
        (x_old, z_old), after = pairs[first % 2], pairs[1 - first % 2]
        now = *numbers, np.int64(first), np.int64(last), np.int32(blocks)
        arguments = x_old, *images.arguments, y, z_old, *after, *now, *norms, found
        launch("tv", f"tv_steps_{x.dtype.name}", blocks_now, 32 * warps, arguments)

    done, look = 0, FEWEST
    while True:
        last = min(count, done + most)
        run(done, last, blocks)
        done = last
        norms.reverse()
        if done < min(look, count):
            continue
        if blocks > 1:
            run(done, done, 1)  # adds up the last norm
        taken, norm = found.get().tolist()
        if done == count or not norm > limit:
            break
        look = done + max(FEWEST, done // SHARE)
    taken, enough = int(taken), not norm > limit
    for k, moves in ((0, taken), (1, taken - enough)):
        if moves % 2:
            pairs[0][k][...] = pairs[1][k]
    return taken, norm
