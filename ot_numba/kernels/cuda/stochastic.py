"""Stochastic semi-dual methods, a batch of rows of the cost in each step: see `stochastic.cu`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..contract import DENSE, CostData
from .loader import launch

Array = Any
ONE_BLOCK = 1 << 15  #: samples times columns of a step up to which one block is faster than several launches
LOOP_STEPS = 1024  #: steps of one launch, which other work on the device may have to wait for
LOOP_WARPS = 16
WARPS = 1056  #: that a step keeps busy, eight for each multiprocessor of the largest GPUs
PIECE = 1024  #: least number of columns for which a row is split between warps


def _run(
    method: str, cost: CostData, rows: Array, offset: Array, b: Array, G: Array, step: float, size: int, state: tuple
) -> None:
    """All steps of a method, in place."""
    import cupy

    m, dtype = G.shape[0], offset.dtype
    kind = f"{'dense' if cost.kind == DENSE else 'dot'}_{dtype.name}"
    one_block = size * m <= ONE_BLOCK
    warps, piece = (LOOP_WARPS, 32) if one_block else (WARPS, PIECE)
    splits = min(math.ceil(m / piece), math.ceil(warps / size))
    width = 32 * math.ceil(m / (32 * splits))
    data = cost.x, cost.y, dtype.type(cost.scale), np.int64(cost.x.shape[1]), np.int64(m), offset
    tops, sums = cupy.empty(size * splits, dtype), cupy.empty(size * splits)
    peaks, shares = cupy.empty(size, dtype), cupy.empty(size)
    batch = rows, np.int64(size), np.int64(splits), np.int64(width), tops, sums, peaks, shares
    arguments = *data, *batch, b, G, np.float64(step), *state
    steps = rows.shape[0] // size
    if one_block:
        for lo in range(0, steps, LOOP_STEPS):
            hi = min(steps, lo + LOOP_STEPS)
            launch("stochastic", f"{method}_loop_{kind}", 1, 32 * LOOP_WARPS, (*arguments, np.int64(lo), np.int64(hi)))
        return
    for t in map(np.int64, range(steps)):
        launch("stochastic", f"softmax_parts_{kind}", math.ceil(size * splits / 8), 256, (*data, *batch, G, t))
        launch("stochastic", f"softmax_norms_{dtype.name}", math.ceil(size / 256), 256, batch)
        launch("stochastic", f"{method}_move_{kind}", math.ceil(m / 256), 256, (*arguments, t))


def averaged_sgd(
    cost: CostData,
    rows: Array,
    offset: Array,
    b: Array,
    G: Array,
    mean: Array,
    step: float,
    start: int,
    batch_size: int,
) -> None:
    """Steps ``G += step / sqrt(t) (b - mean of p over a batch of rows)`` and their running mean, in place.

    t = start + 1, start + 2, ...; `rows` holds the samples, batch after batch.
    """
    _run("averaged_sgd", cost, rows, offset, b, G, step, batch_size, (mean, np.int64(start)))


def sag(
    cost: CostData,
    rows: Array,
    slots: Array,
    offset: Array,
    b: Array,
    weights: Array,
    G: Array,
    table: Array,
    total: Array,
    step: float,
    batch_size: int,
) -> None:
    """Steps ``G += step (b - total)``, ``total = weights @ table``, after renewing a batch of the table.

    All in place; sample q is row ``rows[q]`` of the cost and ``slots[q]`` of the table.
    """
    _run("sag", cost, rows, offset, b, G, step, batch_size, (slots, weights, table, total))
