"""Where the mass of the plan lies, and its larger entries: see `sparse.cu`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..contract import DENSE, HISTOGRAM_BINS_PER_BIT, HISTOGRAM_BITS, CostData
from .loader import launch

Array = Any
WARPS = 8  #: in a block; each takes a row
CHUNK = 1024  #: columns that a warp adds to its histogram at a time
HISTOGRAM_WARPS = 4
MAX_BLOCKS = 528  #: of the histogram, four for each multiprocessor of the largest GPUs
KEYS = 40 << 10  #: bytes of shared memory in which a row waits for its selection
LARGEST_INDEX = np.iinfo(np.int32).max  #: beyond it, indices are 64-bit numbers


def _launch(
    name: str, cost: CostData, F: Array, G: Array, blocks: int, threads: int, *arguments: Any, shared: int = 0
) -> None:
    """Run a kernel on the exponents of a plan."""
    dtype, kind = F.dtype, "dense" if cost.kind == DENSE else "dot"
    n, m = cost.shape
    data = cost.x, cost.y, dtype.type(cost.scale), np.int64(cost.x.shape[1]), F, G, np.int64(n), np.int64(m)
    launch("sparse", f"{name}_{kind}_{dtype.name}", blocks, threads, (*data, *arguments), shared)


def mass_histogram(cost: CostData, F: Array, G: Array) -> Array:
    """Mass of the plan by exponent, in bins of ``1 / HISTOGRAM_BINS_PER_BIT`` bit; the last is >= 0."""
    import cupy

    n, m = cost.shape
    bins = HISTOGRAM_BITS * HISTOGRAM_BINS_PER_BIT + 1
    blocks = min(MAX_BLOCKS, math.ceil(n * math.ceil(m / CHUNK) / HISTOGRAM_WARPS))
    partial = cupy.empty((blocks, bins))
    shared = 8 * bins * HISTOGRAM_WARPS
    _launch("mass_histogram", cost, F, G, blocks, 32 * HISTOGRAM_WARPS, partial, shared=shared)
    return partial.sum(axis=0)


def csr_plan(
    cost: CostData, F: Array, G: Array, row_thresholds: Array, max_per_row: int | None = None
) -> tuple[Array, Array, Array]:
    """CSR arrays ``(data, indices, indptr)`` of the normal entries with ``e_ij >= row_thresholds_i``, column order."""
    import cupy

    n, m = cost.shape
    blocks = math.ceil(n / WARPS)
    counts, starts = cupy.empty(n, np.int64), cupy.zeros(n + 1, np.int64)
    most = np.int64(m if max_per_row is None else max_per_row)
    _launch("csr_count", cost, F, G, blocks, 32 * WARPS, row_thresholds, most, counts)
    starts[1:] = cupy.cumsum(counts)
    total = int(starts[-1])
    index = np.int64 if max(m, total) > LARGEST_INDEX else np.int32
    indices, data = cupy.empty(total, index), cupy.empty(total, F.dtype)
    if total:
        name = f"csr_fill_{index.__name__}"
        _launch(name, cost, F, G, blocks, 32 * WARPS, row_thresholds, starts, indices, data)
    return data, indices, starts.astype(index, copy=False)


def row_kth_exponent(cost: CostData, F: Array, G: Array, k: int) -> Array:
    """k-th largest exponent of every row."""
    import cupy

    n, m = cost.shape
    out = cupy.empty(n, F.dtype)
    size = m * F.dtype.itemsize
    stored = size <= KEYS
    shared = size if stored else 0
    _launch("row_kth", cost, F, G, n, 32 * WARPS, np.int64(k), np.int32(stored), out, shared=shared)
    return out
