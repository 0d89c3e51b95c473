"""Compiled loops of the stochastic semi-dual methods: one row of the cost per sample, one update per batch.

With the potential g in bits, G = k g, a sample i has the weights ``p_j ~ 2**(offset_j + G_j - scale c_ij)``.
"""

from __future__ import annotations

import numpy as np

from ..contract import CostData
from . import _arguments
from .exponents import add_row, fill_exponents
from .jit import helper, kernel
from .vecmath import exp2_fast


@helper
def _add_offset(G, offset, shifted):
    for j in range(G.shape[0]):
        shifted[j] = G[j] + offset[j]


@helper
def _larger(z, size, out):
    """``out[j] = max(z[j], z[j + size])`` for j < size."""
    for j in range(size):
        out[j] = z[j] if z[j] > z[j + size] else z[j + size]


@helper
def _maximum(z, scratch):
    """Largest entry, by halving: a step is 1.2 to 1.4 times as fast as with a running maximum in several lanes."""
    size = z.shape[0]
    top = z[size - 1]
    if size > 1:
        size //= 2
        _larger(z, size, scratch)
        while size > 1:
            top = scratch[size - 1] if scratch[size - 1] > top else top
            size //= 2
            _larger(scratch, size, scratch)
        top = scratch[0] if scratch[0] > top else top
    return top


@helper
def _exponentiate(z, top):
    s = z.dtype.type(0)
    for j in range(z.shape[0]):
        e = exp2_fast(z[j] - top)
        z[j] = e
        s += e
    return s


@helper
def _ascend(G, b, p, step, weight):
    for j in range(G.shape[0]):
        G[j] += step * (b[j] - weight * p[j])


@helper
def _average(mean, G, share):
    for j in range(G.shape[0]):
        mean[j] += share * (G[j] - mean[j])


@helper
def _replace(old, z, weight, share, total):
    """``old <- weight z`` and ``total += share (new - old)``, with new as it is stored."""
    for j in range(total.shape[0]):
        new = old.dtype.type(weight * z[j])
        total[j] += share * (np.float64(new) - old[j])
        old[j] = new


@kernel
def _averaged_sgd(
    x, y, scale, rows, offset, b, G, mean, step, start, batch_size, zero, shifted, z, scratch, p
):
    m = G.shape[0]
    row = z[0]
    for t in range(rows.shape[0] // batch_size):
        _add_offset(G, offset, shifted)
        rate = step / np.sqrt(start + t + 1.0)
        if batch_size > 1:
            p[:] = 0.0
        for q in range(t * batch_size, (t + 1) * batch_size):
            i = rows[q]
            fill_exponents(x[i : i + 1], y, scale, 0, 1, 0, m, zero, shifted, z)
            s = np.float64(_exponentiate(row, _maximum(row, scratch)))
            if batch_size > 1:
                add_row(p, row, 1.0 / (s * batch_size))
            else:
                _ascend(G, b, row, rate, 1.0 / s)
        if batch_size > 1:
            _ascend(G, b, p, rate, 1.0)
        _average(mean, G, 1.0 / (start + t + 1.0))


@kernel
def _sag(
    x,
    y,
    scale,
    rows,
    slots,
    offset,
    b,
    weights,
    G,
    table,
    total,
    step,
    batch_size,
    zero,
    shifted,
    z,
    scratch,
):
    m = G.shape[0]
    row = z[0]
    for t in range(rows.shape[0] // batch_size):
        _add_offset(G, offset, shifted)
        for q in range(t * batch_size, (t + 1) * batch_size):
            i = rows[q]
            fill_exponents(x[i : i + 1], y, scale, 0, 1, 0, m, zero, shifted, z)
            s = np.float64(_exponentiate(row, _maximum(row, scratch)))
            _replace(table[slots[q]], row, 1.0 / s, weights[slots[q]], total)
        _ascend(G, b, total, step, 1.0)


def _buffers(offset: np.ndarray) -> tuple[np.ndarray, ...]:
    m, dtype = offset.shape[0], offset.dtype
    return np.zeros(1, dtype), np.empty(m, dtype), np.empty((1, m), dtype), np.empty(m, dtype)


def averaged_sgd(
    cost: CostData,
    rows: np.ndarray,
    offset: np.ndarray,
    b: np.ndarray,
    G: np.ndarray,
    mean: np.ndarray,
    step: float,
    start: int,
    batch_size: int,
) -> None:
    """Steps ``G += step / sqrt(t) (b - mean of p over a batch of rows)`` and their running mean, in place.

    t = start + 1, start + 2, ...; `rows` holds the samples, batch after batch.
    """
    arguments = _arguments(cost)
    _averaged_sgd(
        *arguments,
        rows,
        offset,
        b,
        G,
        mean,
        step,
        start,
        batch_size,
        *_buffers(offset),
        np.empty(len(G)),
    )


def sag(
    cost: CostData,
    rows: np.ndarray,
    slots: np.ndarray,
    offset: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray,
    G: np.ndarray,
    table: np.ndarray,
    total: np.ndarray,
    step: float,
    batch_size: int,
) -> None:
    """Steps ``G += step (b - total)``, ``total = weights @ table``, after renewing a batch of the table.

    All in place; sample q is row ``rows[q]`` of the cost and ``slots[q]`` of the table.
    """
    arguments = _arguments(cost)
    buffers = _buffers(offset)
    _sag(*arguments, rows, slots, offset, b, weights, G, table, total, step, batch_size, *buffers)
