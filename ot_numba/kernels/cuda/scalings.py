"""Scalings of a stored kernel: see `scalings.cu`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .loader import launch

Array = Any
MAX_BLOCKS = 264  #: two for each multiprocessor of the largest GPUs
ROWS = 8  #: rows of a block come in this number, so that partial column sums take an eighth of the kernel at most
NARROW = 512  #: columns that a warp holds in registers


@functools.cache
def _shared_memory(device: int) -> int:
    """Bytes that rows and column sums may take: half of what a multiprocessor has, where a block can get it."""
    import cupy

    return min(96 << 10, cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]) - 1024


def _variant(m: int, itemsize: int) -> tuple[str, int, int]:
    """Kernel for rows of m entries: its name, threads in a block, bytes of shared memory."""
    import cupy

    if m <= NARROW:
        return "narrow", 256, 0
    most = _shared_memory(cupy.cuda.Device().id)
    for name, held in (("four", 5), ("single", 2), ("reread", 1)):
        if held * m * itemsize <= most:
            return name, 512, held * m * itemsize
    return "long", 512, 0


def _sum(partial: Array, errors: Array) -> tuple[Array, Array]:
    """Sums over the blocks: of the columns (blocks, m), and of the errors."""
    import cupy

    blocks, m = partial.shape
    column_sums, error = cupy.empty(m), cupy.empty(())
    arguments = partial, errors, np.int32(blocks), np.int64(m), column_sums, error
    launch("scalings", f"sum_partials_{partial.dtype.name}", math.ceil(m / 32), 256, arguments)
    return column_sums, error


def _one_pass(operation: str, K: Array, v: Array, arguments: tuple) -> tuple[Array, Array]:
    """Run `operation` over the rows of K; the column sums, and the sum of the errors."""
    import cupy

    n, m = K.shape
    name, threads, shared = _variant(m, K.dtype.itemsize)
    rows = ROWS * math.ceil(n / (ROWS * min(MAX_BLOCKS, max(1, n // ROWS))))
    blocks = math.ceil(n / rows)
    partial, errors = cupy.empty((blocks, m), K.dtype), cupy.empty(blocks)
    arguments = K, v, np.int64(n), np.int64(m), np.int64(rows), *arguments, partial, errors
    launch("scalings", f"{operation}_{name}_{K.dtype.name}", blocks, threads, arguments, shared)
    return _sum(partial, errors)


def absorbed_rows(
    K: Array,
    p: Array,
    q: Array,
    a: Array,
    base: Array | None = None,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[Array, Array]:
    """Update the scaling p in place; return the row error before, on the device, and ``K' p``."""
    base = a if base is None else base
    column_sums, error = _one_pass("absorbed_rows", K, q, (p, a, base, np.float64(damping), np.float64(relaxation)))
    return error, column_sums


def absorbed_columns(
    column_sums: Array,
    q: Array,
    b: Array,
    base: Array | None = None,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> Array:
    """Update the scaling q in place; return the column error before, on the device."""
    import cupy

    m = q.shape[0]
    blocks = math.ceil(m / 256)
    errors = cupy.empty(blocks)
    base = b if base is None else base
    arguments = column_sums, np.int64(m), q, b, base, np.float64(damping), np.float64(relaxation), errors
    launch("scalings", f"absorbed_columns_{q.dtype.name}", blocks, 256, arguments)
    return _sum(errors.reshape(-1, 1), errors)[1]


def absorbed_pair(K: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """``(t, K' (w t))`` for ``t = K v``."""
    import cupy

    t = cupy.empty(K.shape[0], K.dtype)
    return t, _one_pass("absorbed_pair", K, v, (t, w))[0]
