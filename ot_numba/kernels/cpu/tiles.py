"""Passes over the tiles of a plan that matter, where points near each other have near indices.

Contract of this module (and of its twin in `generic`), for a cost of kind DOT in at most three dimensions, with
exponents ``e_ij = F_i + G_j + <x_i, y_j>`` cut into tiles of `SIDE` x `SIDE` entries:

==============  ==============================================================================================
row_peaks       for every row an exponent of it without F_i, near the largest: a lower bound of ``log2 sum``
active_tiles    the tiles, as `Tiles`, that hold an exponent above a threshold of its row or column; a tile more
                does no harm. At least one in every row of tiles
sinkhorn_rows   as the kernel of that name, over the tiles
plan_pair       as the kernel of that name, over the tiles
store_tiles     the entries of P in the tiles, float32, packed
stored_square   ``P' P v`` for what `store_tiles` returned
==============  ==============================================================================================

A tile I x J is judged without visiting its entries: with x = c + u and y = c' + v around the centres of the boxes
that hold its points, ``<x, y> = <c, y> + <u, c'> + <u, v>``, of which the last term is at most ``<h, h'>`` for half
sides h, h' of the boxes. So ``max_j (G_j + <c, y_j>) + max_i (F_i + <u_i, c'>) + <h, h'>`` bounds its exponents,
at SIDE + SIDE terms instead of SIDE**2.

The columns of the active tiles in a row of tiles are gathered first, so that the inner loops are those of `plans`.
"""

from __future__ import annotations

import numpy as np

from ..contract import SIDE, CostData, Tiles
from . import BLOCK_ENTRIES, MAX_BLOCKS, _sum_blocks
from .exponents import ROWS, add_row, add_rows, fill_powers, maximum
from .jit import helper, kernel
from .plans import update_rows
from .threads import run_blocks

SAMPLING = 4  #: of so many columns one is looked at in the search for the peak of a row
WIDE = 64  #: columns among which it is taken then
SCAN = 32
DIMENSION = 3


@helper(fastmath={"contract", "reassoc", "nsz", "nnan"})
def _raise(z0, z1, z2, f, y0, y1, y2, G, top):
    """``top = max(top, f + G + z0 y0 + z1 y1 + z2 y2)``; without NaN, which lets the loop vectorise."""
    for j in range(top.shape[0]):
        t = (f + G[j]) + (z0 * y0[j] + (z1 * y1[j] + z2 * y2[j]))
        top[j] = t if t > top[j] else top[j]


@helper
def _box(x, lo, hi, centre, half):
    """Centre and half sides of the box around points lo..hi."""
    for p in range(x.shape[1]):
        low = high = x[lo, p]
        for i in range(lo + 1, hi):
            low = min(low, x[i, p])
            high = max(high, x[i, p])
        centre[p] = (low + high) / 2
        half[p] = max(high - centre[p], centre[p] - low)


@helper
def _linear(z0, z1, z2, y0, y1, y2, G, out):
    """``out = G + z0 y0 + z1 y1 + z2 y2``."""
    for j in range(out.shape[0]):
        out[j] = G[j] + (z0 * y0[j] + (z1 * y1[j] + z2 * y2[j]))


@helper
def _position(z, top):
    """Index of the largest entry `top`."""
    lo = 0
    while lo + SCAN < z.shape[0] and maximum(z[lo : lo + SCAN]) < top:
        lo += SCAN
    while lo + 1 < z.shape[0] and z[lo] < top:
        lo += 1
    return lo


@kernel
def _row_peaks(x, lines, line_G, centres, y, G, lo, hi, block_tiles, out):
    n, m = x.shape[0], G.shape[0]
    zero, lowest = x.dtype.type(0), x.dtype.type(-np.inf)
    centre, half, u = np.zeros(DIMENSION, x.dtype), np.zeros(DIMENSION, x.dtype), np.zeros(DIMENSION, x.dtype)
    columns, z, t = np.empty(centres.shape[1], x.dtype), np.empty(centres.shape[1], x.dtype), np.empty(WIDE, x.dtype)
    for tile in range(lo * block_tiles, min(hi * block_tiles, (n + SIDE - 1) // SIDE)):
        i0, i1 = tile * SIDE, min(n, (tile + 1) * SIDE)
        _box(x, i0, i1, centre, half)
        columns[:] = lowest
        for q in range(lines.shape[1]):
            _raise(centre[0], centre[1], centre[2], zero, lines[0, q], lines[1, q], lines[2, q], line_G[q], columns)
        for i in range(i0, i1):
            for p in range(x.shape[1]):
                u[p] = x[i, p] - centre[p]
            _linear(u[0], u[1], u[2], centres[0], centres[1], centres[2], columns, z)
            j0 = _position(z, maximum(z)) * WIDE
            j1 = min(m, j0 + WIDE)
            for p in range(x.shape[1]):
                u[p] = x[i, p]
            _linear(u[0], u[1], u[2], y[0, j0:j1], y[1, j0:j1], y[2, j0:j1], G[j0:j1], t[: j1 - j0])
            out[i] = maximum(t[: j1 - j0])


@kernel
def _active_tiles(x, F, lines, line_G, centres, halves, thresholds, column_thresholds, lo, hi, block_tiles, active):
    n = x.shape[0]
    size = centres.shape[1]
    zero = x.dtype.type(0)
    centre, half, u = np.zeros(DIMENSION, x.dtype), np.zeros(DIMENSION, x.dtype), np.zeros(DIMENSION, x.dtype)
    columns, rows, nothing = np.empty(size, x.dtype), np.empty(size, x.dtype), np.zeros(size, x.dtype)
    for tile in range(lo * block_tiles, min(hi * block_tiles, active.shape[0])):
        i0, i1 = tile * SIDE, min(n, (tile + 1) * SIDE)
        _box(x, i0, i1, centre, half)
        columns[:] = -np.inf
        rows[:] = -np.inf
        for q in range(SIDE):
            _raise(centre[0], centre[1], centre[2], zero, lines[0, q], lines[1, q], lines[2, q], line_G[q], columns)
        threshold = thresholds[i0]
        for i in range(i0, i1):
            for p in range(x.shape[1]):
                u[p] = x[i, p] - centre[p]
            _raise(u[0], u[1], u[2], F[i], centres[0], centres[1], centres[2], nothing, rows)
            threshold = min(threshold, thresholds[i])
        row = active[tile]
        h0, h1, h2 = half[0], half[1], half[2]
        for j in range(size):
            bound = (columns[j] + rows[j]) + (h0 * halves[0, j] + h1 * halves[1, j] + h2 * halves[2, j])
            row[j] = bound > min(threshold, column_thresholds[j])


@helper
def _pack(active, values, out):
    """Values of the active columns, side by side; returns their number."""
    size, m = active.shape[0], values.shape[0]
    position = 0
    j = 0
    while j < size:
        if not active[j]:
            j += 1
            continue
        start = j
        while j < size and active[j]:
            j += 1
        part = values[start * SIDE : min(m, j * SIDE)]
        target = out[position : position + part.shape[0]]
        for i in range(part.shape[0]):
            target[i] = part[i]
        position += part.shape[0]
    return position


@helper
def _add_unpacked(active, packed, out):
    """``out += packed`` at the active columns."""
    size, m = active.shape[0], out.shape[0]
    position = 0
    j = 0
    while j < size:
        if not active[j]:
            j += 1
            continue
        start = j
        while j < size and active[j]:
            j += 1
        target = out[start * SIDE : min(m, j * SIDE)]
        part = packed[position : position + target.shape[0]]
        for i in range(target.shape[0]):
            target[i] += part[i]
        position += target.shape[0]


@helper
def _pack_points(active, width, y, out):
    """The active columns of y (d, m) as a contiguous (d, width) array inside `out`."""
    packed = out[: y.shape[0] * width].reshape((y.shape[0], width))
    for p in range(y.shape[0]):
        _pack(active, y[p], packed[p])
    return packed


@kernel
def _sinkhorn_rows(
    x, y, F, G, a, offset, damping, relaxation, active, starts, lo, hi, block_tiles, columns, errors, buffer, work
):
    n, m = F.shape[0], G.shape[0]
    one = F.dtype.type(1)
    sums, relax, weights = np.empty(ROWS, np.float64), np.empty(ROWS, np.float64), np.zeros(ROWS, F.dtype)
    g_buffer, column_buffer = np.empty(m, F.dtype), np.empty(m, F.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        error = 0.0
        for tile in range(block * block_tiles, min((block + 1) * block_tiles, active.shape[0])):
            i, end = tile * SIDE, min(n, (tile + 1) * SIDE)
            width = (starts[tile + 1] - starts[tile]) // (end - i)
            ys = _pack_points(active[tile], width, y, work)
            _pack(active[tile], G, g_buffer)
            g, packed = g_buffer[:width], column_buffer[:width]
            packed[:] = 0
            while i < end:
                rows = min(ROWS, end - i)
                error += update_rows(
                    x, ys, one, i, rows, F, g, a, offset, damping, relaxation, buffer, sums, weights, relax
                )
                if rows == ROWS:
                    add_rows(packed, buffer, weights[0], weights[1], weights[2], weights[3])
                else:
                    for q in range(rows):
                        add_row(packed, buffer[q], weights[q])
                i += rows
            _add_unpacked(active[tile], packed, column)
        errors[block] = error


@kernel
def _plan_pair(x, y, F, G, v, w, active, starts, lo, hi, block_tiles, t, columns, buffer, work):
    n, m = F.shape[0], G.shape[0]
    one = F.dtype.type(1)
    sums = np.empty(ROWS, np.float64)
    g_buffer, column_buffer, v_buffer = np.empty(m, F.dtype), np.empty(m, F.dtype), np.empty(m, v.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        for tile in range(block * block_tiles, min((block + 1) * block_tiles, active.shape[0])):
            i, end = tile * SIDE, min(n, (tile + 1) * SIDE)
            width = (starts[tile + 1] - starts[tile]) // (end - i)
            ys = _pack_points(active[tile], width, y, work)
            _pack(active[tile], G, g_buffer)
            _pack(active[tile], v, v_buffer)
            packed = column_buffer[:width]
            packed[:] = 0
            while i < end:
                rows = min(ROWS, end - i)
                fill_powers(x, ys, one, i, rows, F, g_buffer[:width], buffer, sums)
                for q in range(rows):
                    row = buffer[q]
                    s = 0.0
                    for j in range(width):
                        s += row[j] * v_buffer[j]
                    t[i + q] = s
                    add_row(packed, row, F.dtype.type(w[i + q] * s))
                i += rows
            _add_unpacked(active[tile], packed, column)


@kernel
def _store_tiles(x, y, F, G, active, starts, lo, hi, block_tiles, values, buffer, work):
    n = F.shape[0]
    one = F.dtype.type(1)
    sums = np.empty(ROWS, np.float64)
    g_buffer = np.empty(G.shape[0], F.dtype)
    for tile in range(lo * block_tiles, min(hi * block_tiles, active.shape[0])):
        i, end = tile * SIDE, min(n, (tile + 1) * SIDE)
        width = (starts[tile + 1] - starts[tile]) // (end - i)
        ys = _pack_points(active[tile], width, y, work)
        _pack(active[tile], G, g_buffer)
        position = starts[tile]
        while i < end:
            rows = min(ROWS, end - i)
            fill_powers(x, ys, one, i, rows, F, g_buffer[:width], buffer, sums)
            for q in range(rows):
                row, target = buffer[q], values[position : position + width]
                for j in range(width):
                    target[j] = row[j]
                position += width
            i += rows


@kernel
def _stored_square(values, v, n, active, starts, lo, hi, block_tiles, columns):
    m = v.shape[0]
    v_buffer, column_buffer = np.empty(m, values.dtype), np.empty(m, values.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        for tile in range(block * block_tiles, min((block + 1) * block_tiles, active.shape[0])):
            i0, end = tile * SIDE, min(n, (tile + 1) * SIDE)
            width = (starts[tile + 1] - starts[tile]) // (end - i0)
            P = values[starts[tile] : starts[tile + 1]].reshape((end - i0, width))
            _pack(active[tile], v, v_buffer)
            z, packed = v_buffer[:width], column_buffer[:width]
            packed[:] = 0
            i = i0
            while i < end:
                rows = min(ROWS, end - i)
                if rows == ROWS:
                    r = i - i0
                    p0, p1, p2, p3 = P[r], P[r + 1], P[r + 2], P[r + 3]
                    s0 = s1 = s2 = s3 = values.dtype.type(0)
                    for j in range(width):
                        e = z[j]
                        s0 += p0[j] * e
                        s1 += p1[j] * e
                        s2 += p2[j] * e
                        s3 += p3[j] * e
                    add_rows(packed, P[r : r + ROWS], s0, s1, s2, s3)
                else:
                    for q in range(i, i + rows):
                        p0 = P[q - i0]
                        s0 = values.dtype.type(0)
                        for j in range(width):
                            s0 += p0[j] * z[j]
                        add_row(packed, p0, s0)
                i += rows
            _add_unpacked(active[tile], packed, column)


def _blocks(tiles: int, entries: int) -> tuple[int, int]:
    """Number of blocks and rows of tiles in each: a function of what is to be done, not of the threads."""
    count = max(1, min(MAX_BLOCKS, tiles, entries // BLOCK_ENTRIES))
    size = -(-tiles // count)
    return -(-tiles // size), size


def _padded(y: np.ndarray, width: int) -> np.ndarray:
    """Points (d, m) as (3, tiles, width); the last is repeated where a tile is short."""
    out = np.zeros((DIMENSION, -(-y.shape[1] // width) * width), y.dtype)
    out[: y.shape[0], : y.shape[1]] = y
    out[: y.shape[0], y.shape[1] :] = y[:, -1:]
    return out.reshape(DIMENSION, -1, width)


def _lines(y: np.ndarray, G: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Every so many columns of padded tiles y, and their G, as rows over the tiles; -inf where a tile is short."""
    g = np.full(y.shape[1:], -np.inf, G.dtype)
    g.reshape(-1)[: G.size] = G
    return np.ascontiguousarray(y[:, :, ::step].transpose(0, 2, 1)), np.ascontiguousarray(g[:, ::step].T)


def _boxes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and half sides of the boxes around the points of padded tiles."""
    low, high = y.min(axis=2), y.max(axis=2)
    centres = (low + high) / 2
    return centres, np.maximum(high - centres, centres - low)


def row_peaks(cost: CostData, G: np.ndarray) -> np.ndarray:
    """For every row some exponent near the largest, without F_i."""
    n, m = cost.shape
    y = _padded(cost.y, WIDE)
    out = np.empty(n, G.dtype)
    arguments = *_lines(y, G, SAMPLING), _boxes(y)[0], y.reshape(DIMENSION, -1), G
    work = n * m // WIDE * 2
    count, size = _blocks(-(-n // SIDE), work)

    def task(lo: int, hi: int) -> None:
        _row_peaks(cost.x, *arguments, lo, hi, size, out)

    run_blocks(task, count, work)
    return out


def active_tiles(
    cost: CostData, F: np.ndarray, G: np.ndarray, row_thresholds: np.ndarray, column_thresholds: np.ndarray
) -> Tiles:
    """Tiles that may hold an exponent above the smallest threshold of its rows and columns."""
    n, m = cost.shape
    y = _padded(cost.y, SIDE)
    column_thresholds = np.minimum.reduceat(column_thresholds, np.arange(0, m, SIDE))
    arguments = F, *_lines(y, G, 1), *_boxes(y), row_thresholds, column_thresholds
    active = np.empty((-(-n // SIDE), y.shape[1]), np.bool_)
    work = n * m // SIDE
    count, size = _blocks(active.shape[0], work)

    def task(lo: int, hi: int) -> None:
        _active_tiles(cost.x, *arguments, lo, hi, size, active)

    run_blocks(task, count, work)
    return Tiles.of(np, active, (n, m))


def sinkhorn_rows(
    cost: CostData,
    tiles: Tiles,
    F: np.ndarray,
    G: np.ndarray,
    a: np.ndarray,
    offset: np.ndarray,
    damping: float = 1.0,
    relaxation: float = 1.0,
) -> tuple[float, np.ndarray]:
    """Update F in place; return the row error before and the column sums after."""
    m = G.shape[0]
    count, size = _blocks(tiles.active.shape[0], tiles.entries)
    columns, errors = np.empty((count, m), F.dtype), np.empty(count)

    def task(lo: int, hi: int) -> None:
        _sinkhorn_rows(
            cost.x, cost.y, F, G, a, offset, damping, relaxation, tiles.active, tiles.starts, lo, hi, size,
            columns, errors, np.empty((ROWS, m), F.dtype), np.empty(cost.y.size, F.dtype),
        )  # fmt: skip

    run_blocks(task, count, tiles.entries)
    return float(errors.sum()), _sum_blocks(columns)


def plan_pair(
    cost: CostData, tiles: Tiles, F: np.ndarray, G: np.ndarray, v: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``(t, P' (w t))`` for ``t = P v``, float64."""
    n, m = F.shape[0], G.shape[0]
    count, size = _blocks(tiles.active.shape[0], tiles.entries)
    columns, t = np.empty((count, m), F.dtype), np.empty(n)

    def task(lo: int, hi: int) -> None:
        _plan_pair(
            cost.x, cost.y, F, G, v, w, tiles.active, tiles.starts, lo, hi, size, t, columns,
            np.empty((ROWS, m), F.dtype), np.empty(cost.y.size, F.dtype),
        )  # fmt: skip

    run_blocks(task, count, tiles.entries)
    return t, _sum_blocks(columns)


def store_tiles(cost: CostData, tiles: Tiles, F: np.ndarray, G: np.ndarray) -> np.ndarray:
    """Entries of P, float32: tile rows one after the other, in each row by row the columns of its active tiles."""
    m = G.shape[0]
    values = np.empty(tiles.entries, np.float32)
    count, size = _blocks(tiles.active.shape[0], tiles.entries)

    def task(lo: int, hi: int) -> None:
        _store_tiles(
            cost.x, cost.y, F, G, tiles.active, tiles.starts, lo, hi, size, values,
            np.empty((ROWS, m), F.dtype), np.empty(cost.y.size, F.dtype),
        )  # fmt: skip

    run_blocks(task, count, tiles.entries)
    return values


def stored_square(values: np.ndarray, tiles: Tiles, n: int, v: np.ndarray) -> np.ndarray:
    """``P' P v``, float64, from a float32 v."""
    count, size = _blocks(tiles.active.shape[0], tiles.entries)
    columns = np.empty((count, v.shape[0]), values.dtype)

    def task(lo: int, hi: int) -> None:
        _stored_square(values, v, n, tiles.active, tiles.starts, lo, hi, size, columns)

    run_blocks(task, count, tiles.entries)
    return _sum_blocks(columns)
