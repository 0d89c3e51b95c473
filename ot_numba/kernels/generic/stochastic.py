"""Reference for the stochastic semi-dual methods, in plain array-API code.

With the potential g in bits, G = k g, a sample i has the weights ``p_j ~ 2**(offset_j + G_j - scale c_ij)``.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

from ..contract import CostData
from . import _cost_block, _exp2

Array = Any


def _softmax(cost: CostData, rows: Array, shifted: Array) -> Array:
    """Weights p of a batch of rows, float64."""
    xp = array_namespace(shifted)
    batch = CostData(cost.kind, xp.take(cost.x, rows, axis=0), cost.y, cost.scale)
    z = shifted[None, :] - _cost_block(batch, 0, rows.shape[0])
    p = _exp2(xp, z - xp.max(z, axis=1, keepdims=True))
    return p / xp.sum(p, axis=1, keepdims=True)


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
    xp = array_namespace(G)
    for t in range(rows.shape[0] // batch_size):
        p = _softmax(cost, rows[t * batch_size : (t + 1) * batch_size], xp.astype(G + offset, offset.dtype))
        G += step / math.sqrt(start + t + 1) * (b - xp.mean(p, axis=0))
        mean += (G - mean) / (start + t + 1)


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
    xp = array_namespace(G)
    for t in range(rows.shape[0] // batch_size):
        batch = slice(t * batch_size, (t + 1) * batch_size)
        p = xp.astype(_softmax(cost, rows[batch], xp.astype(G + offset, offset.dtype)), table.dtype)
        for q in range(batch_size):
            slot = int(slots[batch.start + q])
            total += weights[slot] * (xp.astype(p[q, :], xp.float64) - xp.astype(table[slot, :], xp.float64))
            table[slot, :] = p[q, :]
        G += step * (b - total)
