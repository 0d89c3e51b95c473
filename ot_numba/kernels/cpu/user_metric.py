"""A user's compiled function as a ground cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .jit import kernel
from .threads import run_blocks


@lru_cache(maxsize=64)
def _loop(metric: Callable) -> Callable:
    @kernel(cache=False)
    def fill(x, y, lo, hi, out):
        for i in range(lo, hi):
            for j in range(y.shape[0]):
                out[i, j] = metric(x[i], y[j])

    return fill


def metric_rows(metric: Callable, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``out[i, j] = metric(x[i], y[j])`` for x (n, d), y (m, d)."""
    out = np.empty((x.shape[0], y.shape[0]), x.dtype)
    fill = _loop(metric)
    run_blocks(lambda lo, hi: fill(x, y, lo, hi, out), x.shape[0], out.size)
    if not np.isfinite(out).all() and (np.isnan(out).any() or np.isneginf(out).any()):
        raise ValueError("metric returned NaN or -inf for some pair of points")
    return out
