"""Plans that are evaluated on the fly: see `plans.cu`. Numbers of blocks and threads depend on the sizes alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..contract import DENSE, CostData
from .loader import launch

Array = Any
BLOCKS = 264  #: blocks of most threads that own partial column sums: two for each multiprocessor of the largest GPUs
THREADS = 256  #: of a block, at most
DENSE_THREADS = 512  #: the same where the cost is dense, which leaves registers free
PRODUCTS_THREADS = 128  #: the same in `products`, which takes many registers
BYTES = 32  #: a thread works on so many bytes of numbers at a time: as many rows as these hold
MAX_PARTIALS = 1 << 29  #: bytes that partial column sums may take
FACTORS = 4  #: columns of V, and of U, in one pass of `products`
LIFT = {"float32": 4096.0, "float64": 1.0}  #: what U is multiplied by on the device
MANY_FACTORS = 16  #: columns beyond which strips of the plan are stored and multiplied
STRIP_ENTRIES = 1 << 22
ROWS = 8  #: rows of a block come in this number, so that partial column sums take an eighth of the costs at most
SUM_COLUMNS, SUM_THREADS = 32, 1024  #: columns summed by one block


@functools.cache
def _shared(device: int) -> int:
    """Bytes of shared memory for powers that wait: a multiprocessor has room for two blocks. It shows in no bit."""
    import cupy

    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"] // 2 - (3 << 10)


def _threads(m: int, most: int = THREADS) -> int:
    """Threads of a block that walks rows of m entries: one for 8 entries, if there may be as many."""
    return next(threads for threads in (32, 64, 128, 256, 512) if m <= 8 * threads or threads == most)


def _row_blocks(n: int, m: int, threads: int, most: int, itemsize: int) -> tuple[int, int]:
    """Number of blocks and rows in each: a few, but for few and long rows, where most of a GPU were idle."""
    blocks = max(1, min(BLOCKS * min(4, most // threads), MAX_PARTIALS // (m * itemsize)))
    step = 1 if threads == most and n < ROWS * BLOCKS // 4 else ROWS
    rows = step * math.ceil(n / (step * blocks))
    return math.ceil(n / rows), rows


def _cost(cost: CostData) -> tuple[str, tuple, int]:
    """Kind of the cost as kernels are named, their first arguments, and the bytes that points take in shared memory."""
    n, m = cost.shape
    d = cost.x.shape[1]
    kind = "dense" if cost.kind == DENSE else f"dot{d}" if d in (2, 3) else "dots"
    arguments = cost.x, cost.y, cost.x.dtype.type(cost.scale), np.int32(d), np.int64(n), np.int32(m)
    return kind, arguments, BYTES * d if kind == "dots" else 0


def _walk(name: str, cost: CostData, arguments: tuple, waiting: bool, width: int = 1) -> tuple[Array, ...]:
    """Run a kernel whose blocks own ranges of rows; returns their partial column sums (blocks, width * m).

    Of `waiting` powers, as many are kept as there is room for. The row update, which has errors, returns those as well.
    """
    import cupy

    m = cost.shape[1]
    dtype = cost.x.dtype
    kind, head, points = _cost(cost)
    most = PRODUCTS_THREADS if name == "products" else DENSE_THREADS if kind == "dense" else THREADS
    threads = _threads(m, most)
    blocks, rows = _row_blocks(cost.shape[0], m * max(1, width), threads, most, dtype.itemsize)
    stored = max(0, min(m, (_shared(cupy.cuda.Device().id) - points) // BYTES)) if waiting else 0
    partial = cupy.empty((blocks, max(1, width * m)), dtype)
    errors = (cupy.empty(blocks),) if name == "sinkhorn_rows" else ()
    arguments = *head, *arguments, np.int64(rows), *((np.int32(stored),) if waiting else ()), partial, *errors
    launch("plans", f"{name}_{kind}_{dtype.name}", blocks, threads, arguments, points + BYTES * stored)
    return partial, *errors


def _sum_columns(partial: Array, out: Array, factor: float = 1.0) -> Array:
    """Sums over the blocks, in fixed order, times `factor` into `out`."""
    blocks, width = partial.shape
    arguments = partial, np.int32(blocks), np.int64(width), np.float64(factor), out
    launch("plans", f"sum_columns_{partial.dtype.name}", math.ceil(width / SUM_COLUMNS), SUM_THREADS, arguments)
    return out


def sinkhorn_rows(
    cost: CostData,
    F: Array,
    G: Array,
    a: Array,
    offset: Array,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[Array, Array]:
    """Update F in place; return the row error before, a 0-d array on the device, and the column sums after."""
    import cupy

    arguments = F, G, a, offset, np.float64(damping), np.float64(relaxation)
    partial, errors = _walk("sinkhorn_rows", cost, arguments, True)
    blocks, m = partial.shape
    column_sums, error = cupy.empty(m), cupy.empty(())
    arguments = partial, np.int32(blocks), np.int64(m), errors, column_sums, error
    launch("plans", f"sum_both_{F.dtype.name}", math.ceil(m / SUM_COLUMNS) + 1, SUM_THREADS, arguments)
    return error, column_sums


def sinkhorn_columns(
    column_sums: Array, b: Array, G: Array, offset: Array, damping: float = 1.0, relaxation: float = 1.0
) -> Array:
    """Update G in place from the column sums of the plan; return their error, a 0-d array on the device."""
    import cupy

    m = G.shape[0]
    blocks = 1 if m <= 4 * THREADS else min(BLOCKS // 2, math.ceil(m / THREADS))
    errors = cupy.empty(blocks)
    arguments = column_sums, b, G, offset, np.int32(m), np.float64(damping), np.float64(relaxation), errors
    launch("plans", f"sinkhorn_columns_{G.dtype.name}", blocks, THREADS, arguments)
    error = errors if blocks == 1 else cupy.empty(())
    if blocks > 1:
        launch("plans", "sum_errors", 1, SUM_THREADS, (errors, np.int32(blocks), error))
    return error.reshape(())


def plan_pair(cost: CostData, F: Array, G: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """``(t, P' (w t))`` for ``t = P v``, float64."""
    import cupy

    v, w = (u.astype(np.float64, copy=False) for u in (v, w))
    t = cupy.empty(F.shape[0])
    (partial,) = _walk("plan_pair", cost, (F, G, v, w, t), True)
    return t, _sum_columns(partial, cupy.empty(G.shape[0]))


def marginals(cost: CostData, F: Array, G: Array) -> tuple[Array, Array, Array]:
    """Row sums, column sums and ``sum_j P_ij e_ij`` of the plan, float64."""
    import cupy

    n, m = cost.shape
    row_sums, entropies = cupy.empty(n), cupy.empty(n)
    (partial,) = _walk("marginals", cost, (F, G, row_sums, entropies), False)
    return row_sums, _sum_columns(partial, cupy.empty(m)), entropies


def products(
    cost: CostData, F: Array, G: Array, V: Array | None = None, U: Array | None = None
) -> tuple[Array | None, Array | None]:
    """``(P @ V, P.T @ U)`` for V (m, p), U (n, q); None where no factor is given.

    A pass over the costs takes 4 columns of V and of U. For more than 16, strips of 2^22 entries of the plan are stored
    and multiplied by cuBLAS.
    """
    import cupy

    n, m = cost.shape
    p, q = (0 if factor is None else factor.shape[1] for factor in (V, U))
    if p + q > MANY_FACTORS:
        return _strip_products(cost, F, G, V, U)
    unused = cupy.empty((1, 1), F.dtype)
    VT, UT = (None if factor is None else cupy.ascontiguousarray(factor.T, F.dtype) for factor in (V, U))
    PVT, PTUT = cupy.empty((p, n)), cupy.empty((q, m))
    for c in range(0, max(p, q), FACTORS):
        v, u = min(max(p - c, 0), FACTORS), min(max(q - c, 0), FACTORS)
        factors = VT[c : c + v] if v else unused, UT[c : c + u] if u else unused
        out = PVT[c : c + v] if v else cupy.empty(1)
        arguments = F, G, *factors, np.int32(v), np.int32(u), out
        (partial,) = _walk("products", cost, arguments, False, u)
        if u:
            _sum_columns(partial, PTUT[c : c + u], 1 / LIFT[F.dtype.name])
    return None if V is None else PVT.T, None if U is None else PTUT.T


def _strip_products(
    cost: CostData, F: Array, G: Array, V: Array | None, U: Array | None
) -> tuple[Array | None, Array | None]:
    import cupy

    n, m = cost.shape
    dtype = F.dtype
    V, U = (None if factor is None else factor.astype(dtype, copy=False) for factor in (V, U))
    PV = None if V is None else cupy.empty((n, V.shape[1]))
    PTU = None if U is None else cupy.zeros((m, U.shape[1]))
    rows = max(1, STRIP_ENTRIES // m)
    for lo in range(0, n, rows):
        strip = slice(lo, min(n, lo + rows))
        P = plan(cost._replace(x=cost.x[strip]), F[strip], G)
        if V is not None:
            PV[strip] = P @ V
        if U is not None:
            PTU += P.T @ U[strip]
    return PV, PTU


def plan(
    cost: CostData,
    F: Array,
    G: Array,
    floor: float | None = None,
    dtype: str | None = None,
    out: Array | None = None,
) -> Array:
    """Dense plan; entries with an exponent not above `floor` (default: the smallest normal number's) are exactly 0."""
    import cupy

    n, m = cost.shape
    out = cupy.empty((n, m), dtype or F.dtype) if out is None else out
    floor = np.finfo(out.dtype).minexp if floor is None else floor
    kind, head, points = _cost(cost)
    group = BYTES // F.dtype.itemsize
    threads = min(THREADS, 32 * math.ceil(m / 32))
    grid = math.ceil(n / group), min(math.ceil(m / threads), 65535)
    arguments = *head, F, G, F.dtype.type(floor), out
    launch("plans", f"plan_{kind}_{F.dtype.name}_{out.dtype.name}", grid, threads, arguments, points)
    return out


def _combine(tops: Array, sums: Array, out: Array) -> Array:
    """Logarithms of sums of which `tops` and `sums` (parts, ...) hold parts."""
    parts, count = tops.shape[0], out.size
    arguments = tops, sums, np.int32(parts), np.int64(count), out
    launch("plans", f"combine_{out.dtype.name}", math.ceil(count / THREADS), THREADS, arguments)
    return out


def row_logsumexp(cost: CostData, G: Array) -> Array:
    """``out[l, i] = log2 sum_j 2**(G[l, j] - scale c_ij)``."""
    import cupy

    n, m = cost.shape
    lines = G.shape[0]
    G, dtype = cupy.ascontiguousarray(G), G.dtype
    kind, head, points = _cost(cost)
    groups = lines * math.ceil(n * dtype.itemsize / BYTES)
    parts = max(1, min(math.ceil(2 * BLOCKS / groups), m // (8 * THREADS), 65535))
    columns = math.ceil(m / parts)
    parts = math.ceil(m / columns)
    tops, sums = cupy.empty((parts, lines, n), dtype), cupy.empty((parts, lines, n) if parts > 1 else 1)
    arguments = *head, G, np.int64(lines), np.int64(columns), tops, sums
    launch("plans", f"row_logsumexp_{kind}_{dtype.name}", (groups, parts), _threads(columns), arguments, points)
    return tops[0] if parts == 1 else _combine(tops, sums, cupy.empty((lines, n), dtype))


def column_logsumexp(cost: CostData, F: Array) -> Array:
    """``log2 sum_i 2**(F_i - scale c_ij)``."""
    import cupy

    if cost.kind != DENSE:
        x, y = cupy.ascontiguousarray(cost.y.T), cupy.ascontiguousarray(cost.x.T)
        return row_logsumexp(cost._replace(x=x, y=y), F[None])[0]
    n, m = cost.shape
    dtype = F.dtype
    threads = min(THREADS // 2, 32 * math.ceil(m / 32))
    blocks = math.ceil(m / threads)
    parts = max(1, min(math.ceil(8 * BLOCKS / blocks), n // BYTES, 65535))
    rows = math.ceil(n / parts)
    parts = math.ceil(n / rows)
    tops, sums = cupy.empty((parts, m), dtype), cupy.empty((parts, m) if parts > 1 else 1)
    arguments = cost.x, dtype.type(cost.scale), np.int64(n), np.int32(m), F, np.int64(rows), tops, sums
    launch("plans", f"column_logsumexp_dense_{dtype.name}", (blocks, parts), threads, arguments)
    return tops[0] if parts == 1 else _combine(tops, sums, cupy.empty(m, dtype))
