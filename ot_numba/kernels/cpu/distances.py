"""Costs between points that the kernels of the plan do not evaluate themselves."""

from __future__ import annotations

import numpy as np

from ..contract import CITYBLOCK
from .exponents import TILE
from .jit import helper, kernel
from .vecmath import exp2, log2


@helper
def _add_square(x0, y0, out):
    for j in range(out.shape[0]):
        t = x0 - y0[j]
        out[j] += t * t


@helper
def _add_absolute(x0, y0, out):
    for j in range(out.shape[0]):
        out[j] += abs(x0 - y0[j])


@helper
def _root(out):
    for j in range(out.shape[0]):
        out[j] = np.sqrt(out[j])


@helper
def _power(half_power, out):
    """log2(0) = -inf gives 0 for any power > 0."""
    for j in range(out.shape[0]):
        out[j] = exp2(half_power * log2(out[j]))


@kernel
def pairwise_cost(metric, x, y, half_power, lo, hi, block_rows, out):
    """Differences first, so that near points keep their digits; rows of the blocks lo..hi."""
    n, m = out.shape
    for i in range(lo * block_rows, min(n, hi * block_rows)):
        j0 = 0
        while j0 < m:
            j1 = min(m, j0 + TILE)
            row = out[i, j0:j1]
            row[:] = 0
            for p in range(x.shape[1]):
                if metric == CITYBLOCK:
                    _add_absolute(x[i, p], y[p, j0:j1], row)
                else:
                    _add_square(x[i, p], y[p, j0:j1], row)
            if metric != CITYBLOCK and half_power != 1:
                if half_power == 0.5:
                    _root(row)
                else:
                    _power(half_power, row)
            j0 = j1
