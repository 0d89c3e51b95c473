"""Compiled layers of sparse recovery; see `contract`.

Large products are BLAS's, except for one signal, where a pass over A serves both. The elementwise work goes by pieces
that stay in the first-level cache, in loops with one output each, which vectorise.
"""

from __future__ import annotations

import math

import numpy as np

from ..contract import SOFT
from .exponents import ROWS, add_row, add_rows, dot_row, dot_rows
from .jit import helper, kernel
from .plans import sum_blocks
from .threads import run_blocks

PIECE = 1024  #: entries that loops treat one after the other
BLOCK_PIECES = 16  #: pieces that go to a thread together
FUSED_FROM = 1 << 23  #: bytes of A too many for a cache to hold them for a second pass
SERIAL = 1 << 18  #: multiplications up to which BLAS libraries do not wake, and then wait for, threads of their own
LEAST_WIDTH = 32  #: columns of a product that is worth a call
SPARSE = 0.25, 0.1  #: part of the entries up to which A Z goes by the nonzeros: of one signal, and of several
SPARSE_FROM = 1 << 15  #: entries of A for which that pays
SIGNALS = 16  #: signals that are looked through together for their nonzeros
BLOCKS = 16  #: blocks of rows of A, at most


@kernel
def _residual_gradient(A, z, y, lo, hi, block_rows, r, partial):
    m = A.shape[0]
    for block in range(lo, hi):
        g = partial[block]
        g[:] = 0
        i, end = block * block_rows, min(m, (block + 1) * block_rows)
        while i + ROWS <= end:
            s0, s1, s2, s3 = dot_rows(A[i], A[i + 1], A[i + 2], A[i + 3], z)
            s0, s1, s2, s3 = s0 - y[i], s1 - y[i + 1], s2 - y[i + 2], s3 - y[i + 3]
            r[i], r[i + 1], r[i + 2], r[i + 3] = s0, s1, s2, s3
            add_rows(g, A[i : i + ROWS], s0, s1, s2, s3)
            i += ROWS
        for k in range(i, end):
            r[k] = dot_row(A[k], z) - y[k]
            add_row(g, A[k], r[k])


def product(A: np.ndarray, Z: np.ndarray, out: np.ndarray) -> None:
    """``out = A Z`` in place."""
    count = math.ceil(A.size * Z.shape[1] / SERIAL)
    width = math.ceil(Z.shape[1] / count)
    if count == 1 or width < LEAST_WIDTH:
        np.matmul(A, Z, out=out)
        return

    def task(lo: int, hi: int) -> None:
        for block in range(lo, hi):
            columns = slice(block * width, (block + 1) * width)
            np.matmul(A, Z[:, columns], out=out[:, columns])

    run_blocks(task, count, A.size * Z.shape[1] / 16)


@helper
def _add_columns(out, c0, c1, c2, c3, w0, w1, w2, w3):
    for i in range(out.shape[0]):
        out[i] += (w0 * c0[i] + w1 * c1[i]) + (w2 * c2[i] + w3 * c3[i])


@kernel
def _sparse_product(columns, Z, lo, hi, out):
    """``out = (A Z)'`` by the nonzeros of some signals, for the columns of A one after the other."""
    n, size = Z.shape
    places, counts = np.empty((SIGNALS, n + 1), np.int32), np.empty(SIGNALS, np.int64)
    for group in range(lo, hi):
        first = group * SIGNALS
        width = min(SIGNALS, size - first)
        counts[:] = 0
        for j in range(n):
            for q in range(width):
                places[q, counts[q]] = j
                counts[q] += Z[j, first + q] != 0
        for q in range(width):
            row, z, here, i = out[first + q], Z[:, first + q], places[q], 0
            row[:] = 0
            while i + 4 <= counts[q]:
                j0, j1, j2, j3 = here[i], here[i + 1], here[i + 2], here[i + 3]
                _add_columns(
                    row, columns[j0], columns[j1], columns[j2], columns[j3], z[j0], z[j1], z[j2], z[j3]
                )
                i += 4
            for k in range(i, counts[q]):
                add_row(row, columns[here[k]], z[here[k]])


def columns_of(A: np.ndarray) -> np.ndarray:
    """What serves `residual_gradient` where Z is sparse: the transpose of A, C-contiguous."""
    return np.ascontiguousarray(A.T)


def residual_gradient(
    A: np.ndarray, Z: np.ndarray, Y: np.ndarray, R: np.ndarray, G: np.ndarray, columns: np.ndarray | None = None
) -> None:
    """``R = A Z - Y`` and ``G = A' R`` in place."""
    m, n = A.shape
    size = Z.shape[1]
    if columns is not None and A.size >= SPARSE_FROM:
        nonzeros = np.count_nonzero(Z)
        if nonzeros < SPARSE[size > 1] * Z.size:
            out = np.empty((size, m), A.dtype)
            run_blocks(
                lambda lo, hi: _sparse_product(columns, Z, lo, hi, out), math.ceil(size / SIGNALS), nonzeros * m
            )
            np.subtract(out.T, Y, out=R)
            product(A.T, R, G)
            return
    if size > 1 or A.nbytes < FUSED_FROM:
        product(A, Z, R)
        np.subtract(R, Y, out=R)
        product(A.T, R, G)
        return
    rows = ROWS * math.ceil(m / (BLOCKS * ROWS))
    count = math.ceil(m / rows)
    partial = np.empty((count, n), A.dtype)
    arguments = A, Z[:, 0], Y[:, 0]

    def task(lo: int, hi: int) -> None:
        _residual_gradient(*arguments, lo, hi, rows, R[:, 0], partial)

    run_blocks(task, count, A.size)
    sum_blocks(partial, G[:, 0])


@helper
def _soft(z, g, step, tau, w):
    for i in range(w.shape[0]):
        v = z[i] - step * g[i]
        c = v if v < tau else tau
        w[i] = v - (c if c > -tau else -tau)


@helper
def _hard(z, g, step, tau, w):
    zero = w.dtype.type(0)
    for i in range(w.shape[0]):
        v = z[i] - step * g[i]
        w[i] = zero if abs(v) <= tau else v


@helper
def _sign(w, signs):
    for i in range(w.shape[0]):
        signs[i] = np.int8(w[i] > 0) - np.int8(w[i] < 0)


@helper
def _restart_product(z, w, x):
    s = 0.0
    for i in range(w.shape[0]):
        s += np.float64(z[i] - w[i]) * np.float64(w[i] - x[i])
    return s


@helper
def _extrapolate(w, x, momentum, z):
    for i in range(w.shape[0]):
        z[i] = w[i] + momentum * (w[i] - x[i])


@kernel
def _proximal_step(soft, step, tau, momentum, x, z, g, signs, lo, hi, products):
    buffer = np.empty(PIECE, x.dtype)
    for block in range(lo, hi):
        total = 0.0
        for piece in range(block * BLOCK_PIECES, (block + 1) * BLOCK_PIECES):
            i, j = piece * PIECE, min(x.shape[0], (piece + 1) * PIECE)
            if i >= j:
                break
            w = buffer[: j - i]
            start = x[i:j] if z is None else z[i:j]
            if soft:
                _soft(start, g[i:j], step, tau, w)
            else:
                _hard(start, g[i:j], step, tau, w)
            if signs is not None:
                _sign(w, signs[i:j])
            if z is not None:
                total += _restart_product(z[i:j], w, x[i:j])
                if momentum != 0:
                    _extrapolate(w, x[i:j], momentum, z[i:j])
                else:
                    z[i:j] = w
            x[i:j] = w
        products[block] = total


def proximal_step(
    kind: int,
    step: float,
    tau: float,
    momentum: float,
    X: np.ndarray,
    Z: np.ndarray,
    G: np.ndarray,
    signs: np.ndarray | None = None,
) -> float:
    """Layer of X and Z in place; the sign of what it has made, and the product that tells when to restart."""
    number = X.dtype.type
    numbers = kind == SOFT, number(step), number(tau), number(momentum)
    z = None if X is Z else Z.reshape(-1)
    arrays = X.reshape(-1), z, G.reshape(-1), None if signs is None else signs.reshape(-1)
    count = math.ceil(X.size / (PIECE * BLOCK_PIECES))
    products = np.empty(count)
    run_blocks(lambda lo, hi: _proximal_step(*numbers, *arrays, lo, hi, products), count, X.size)
    return float(products.sum())


@helper
def _mask(p, signs):
    zero = p.dtype.type(0)
    for i in range(p.shape[0]):
        p[i] = p[i] if signs[i] != 0 else zero


@helper
def _product(p, q):
    s = 0.0
    for i in range(p.shape[0]):
        s += np.float64(p[i]) * np.float64(q[i])
    return s


@kernel
def _masked_adjoint(p, signs, g, lo, hi, sums):
    for block in range(lo, hi):
        s = t = 0.0
        for piece in range(block * BLOCK_PIECES, (block + 1) * BLOCK_PIECES):
            i, j = piece * PIECE, min(p.shape[0], (piece + 1) * PIECE)
            if i >= j:
                break
            _mask(p[i:j], signs[i:j])
            s += _product(p[i:j], g[i:j])
            t += _product(p[i:j], signs[i:j])
        sums[0, block], sums[1, block] = s, t


def masked_adjoint(P: np.ndarray, signs: np.ndarray, G: np.ndarray) -> tuple[float, float]:
    """``(sum Q G, sum Q signs)`` where Q, which P becomes, is P where it may pass."""
    arrays = P.reshape(-1), signs.reshape(-1), G.reshape(-1)
    count = math.ceil(P.size / (PIECE * BLOCK_PIECES))
    sums = np.empty((2, count))
    run_blocks(lambda lo, hi: _masked_adjoint(*arrays, lo, hi, sums), count, P.size)
    return float(sums[0].sum()), float(sums[1].sum())


def keep_largest(X: np.ndarray, k: int) -> None:
    """All but the k largest absolute values of every column become 0, in place; of equal ones the first stay."""
    if k < X.shape[0]:
        sizes = np.abs(X)
        sizes[np.isnan(sizes)] = np.inf
        least = -np.partition(-sizes, k - 1, axis=0)[k - 1]
        larger, equal = sizes > least, sizes == least
        X[~(larger | (equal & (np.cumsum(equal, axis=0) <= k - larger.sum(axis=0))))] = 0
