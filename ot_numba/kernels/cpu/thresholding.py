"""Compiled layers of sparse recovery; see `contract`.

Large products are BLAS's, except for one signal, where a pass over A serves both. The elementwise work goes by pieces
that stay in the first-level cache, in loops with one output each, which vectorise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..contract import SOFT
from ..generic.thresholding import repeat_steps
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
STRIPE, STRIPE_ROWS = 64, 8  #: columns, and rows, that are transposed together
FEW = 0.25  #: part of the entries up to which `steps` treats one of several signals by itself
REACH = 2.0  #: how much further than at hand a residual may move before a list of entries is made anew
RENEWED = 0.5  #: part of the columns from which all of them are evaluated

#: What `steps` knows of a signal: R and G belong to its Z, or to another point; what else it asks for.
KNOWN, FAR, RESIDUAL, GRADIENT = range(4)


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
    _in_parts(lambda part: np.matmul(A, Z[:, part], out=out[:, part]), Z.shape[1], A.size)


def _row_product(Z: np.ndarray, M: np.ndarray) -> np.ndarray:
    """``Z M``."""
    out = np.empty((len(Z), M.shape[1]), M.dtype)
    _in_parts(lambda part: np.matmul(Z[part], M, out=out[part]), len(Z), M.size)
    return out


def _in_parts(multiply: Callable[[slice], object], size: int, work: int) -> None:
    """Multiply a matrix of so many entries with vectors, some at a time, unless these would be too few."""
    count = math.ceil(work * size / SERIAL)
    width = math.ceil(size / count)
    if count == 1 or width < LEAST_WIDTH:
        multiply(slice(None))
        return

    def task(lo: int, hi: int) -> None:
        for block in range(lo, hi):
            multiply(slice(block * width, (block + 1) * width))

    run_blocks(task, count, work * size / 16)


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


class Columns(NamedTuple):
    """What serves `residual_gradient` and `steps` where Z is sparse."""

    values: np.ndarray  #: the transpose of A, C-contiguous
    norms: np.ndarray  #: float64 (n,)


@helper
def _square_sum(v):
    s = 0.0
    for i in range(v.shape[0]):
        s += np.float64(v[i]) * np.float64(v[i])
    return s


@kernel
def _transpose(A, lo, hi, values, norms):
    """Columns of A by blocks, from few rows at a time: many, a power of 2 apart, drive each other out of the cache."""
    m, n = A.shape
    for block in range(lo, hi):
        first, end = block * STRIPE, min(n, (block + 1) * STRIPE)
        for i0 in range(0, m, STRIPE_ROWS):
            i1 = min(m, i0 + STRIPE_ROWS)
            for j in range(first, end):
                for i in range(i0, i1):
                    values[j, i] = A[i, j]
        for j in range(first, end):
            norms[j] = np.sqrt(_square_sum(values[j]))


def columns_of(A: np.ndarray) -> Columns:
    """What serves `residual_gradient` and `steps` where Z is sparse."""
    columns = Columns(np.empty(A.shape[::-1], A.dtype), np.empty(A.shape[1]))
    run_blocks(lambda lo, hi: _transpose(A, lo, hi, *columns), math.ceil(A.shape[1] / STRIPE), A.size)
    return columns


def residual_gradient(
    A: np.ndarray, Z: np.ndarray, Y: np.ndarray, R: np.ndarray, G: np.ndarray, columns: Columns | None = None
) -> None:
    """``R = A Z - Y`` and ``G = A' R`` in place."""
    m, n = A.shape
    size = Z.shape[1]
    if columns is not None and A.size >= SPARSE_FROM:
        nonzeros = np.count_nonzero(Z)
        if nonzeros < SPARSE[size > 1] * Z.size:
            out = np.empty((size, m), A.dtype)
            run_blocks(
                lambda lo, hi: _sparse_product(columns.values, Z, lo, hi, out), math.ceil(size / SIGNALS), nonzeros * m
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
def copy(v, out):
    """``out[:] = v``, for whose error message Numba compiles two seconds."""
    for i in range(v.shape[0]):
        out[i] = v[i]


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
def _extrapolate(w, x, momentum, z):
    for i in range(w.shape[0]):
        z[i] = w[i] + momentum * (w[i] - x[i])


@kernel
def _proximal_step(soft, step, tau, momentum, x, z, g, signs, lo, hi):
    buffer = np.empty(PIECE, x.dtype)
    for piece in range(lo * BLOCK_PIECES, hi * BLOCK_PIECES):
        i, j = piece * PIECE, min(x.shape[0], (piece + 1) * PIECE)
        if i >= j:
            break
        w = buffer[: j - i]
        if soft:
            _soft(z[i:j], g[i:j], step, tau, w)
        else:
            _hard(z[i:j], g[i:j], step, tau, w)
        if signs.shape[0]:
            _sign(w, signs[i:j])
        if momentum != 0:
            _extrapolate(w, x[i:j], momentum, z[i:j])
        else:
            copy(w, z[i:j])
        copy(w, x[i:j])


def proximal_step(
    kind: int,
    step: float,
    tau: float,
    momentum: float,
    X: np.ndarray,
    Z: np.ndarray,
    G: np.ndarray,
    signs: np.ndarray | None = None,
) -> None:
    """Layer of X and Z in place, and the sign of what it has made."""
    number = X.dtype.type
    numbers = kind == SOFT, number(step), number(tau), number(momentum)
    signs = np.empty(0, np.int8) if signs is None else signs.reshape(-1)
    arrays = X.reshape(-1), Z.reshape(-1), G.reshape(-1), signs
    run_blocks(
        lambda lo, hi: _proximal_step(*numbers, *arrays, lo, hi), math.ceil(X.size / (PIECE * BLOCK_PIECES)), X.size
    )


@helper
def _add_restart_products(z, w, x, sums):
    for b in range(w.shape[0]):
        sums[b] += np.float64(z[b] - w[b]) * np.float64(w[b] - x[b])


@kernel
def _proximal_points(soft, step, tau, X, Z, G, rows, lo, hi, products):
    """``W = prox(V)`` in place of G, and by blocks of rows the products that tell when to restart."""
    buffer = np.empty(X.shape[1], X.dtype)
    for block in range(lo, hi):
        products[block] = 0
        for i in range(block * rows, min(X.shape[0], (block + 1) * rows)):
            if soft:
                _soft(Z[i], G[i], step, tau, buffer)
            else:
                _hard(Z[i], G[i], step, tau, buffer)
            _add_restart_products(Z[i], buffer, X[i], products[block])
            copy(buffer, G[i])


@helper
def _extrapolate_all(w, x, momentum, z):
    for b in range(w.shape[0]):
        z[b] = w[b] + momentum[b] * (w[b] - x[b])


@kernel
def _move(W, momentum, X, Z, rows, lo, hi):
    for i in range(lo * rows, min(X.shape[0], hi * rows)):
        _extrapolate_all(W[i], X[i], momentum, Z[i])
        copy(W[i], X[i])


def accelerated_step(
    kind: int, step: float, tau: float, theta: np.ndarray, X: np.ndarray, Z: np.ndarray, G: np.ndarray
) -> None:
    """The same with the momentum of FISTA for each signal, which restarts by itself; theta in place."""
    number, (n, size) = X.dtype.type, X.shape
    numbers = kind == SOFT, number(step), number(tau)
    rows = math.ceil(PIECE * BLOCK_PIECES / size)
    products = np.empty((math.ceil(n / rows), size))
    run_blocks(lambda lo, hi: _proximal_points(*numbers, X, Z, G, rows, lo, hi, products), len(products), X.size)
    following = 0.5 * (1 + np.sqrt(1 + 4 * theta**2))
    restarts = products.sum(axis=0) > 0
    momentum = np.where(restarts, 0, (theta - 1) / following).astype(X.dtype)
    theta[:] = np.where(restarts, 1, following)
    run_blocks(lambda lo, hi: _move(G, momentum, X, Z, rows, lo, hi), len(products), X.size)


@kernel
def _residual(columns, places, count, z, y, out):
    """``out = A z - y`` by columns at the places where z is not 0."""
    for i in range(y.shape[0]):
        out[i] = -y[i]
    i = 0
    while i + 4 <= count:
        j0, j1, j2, j3 = places[i], places[i + 1], places[i + 2], places[i + 3]
        _add_columns(out, columns[j0], columns[j1], columns[j2], columns[j3], z[j0], z[j1], z[j2], z[j3])
        i += 4
    for k in range(i, count):
        add_row(out, columns[places[k]], z[places[k]])


@kernel
def _products_at(columns, places, count, r, out):
    """Inner products of r with some columns."""
    k = 0
    while k + 4 <= count:
        j0, j1, j2, j3 = places[k], places[k + 1], places[k + 2], places[k + 3]
        out[k], out[k + 1], out[k + 2], out[k + 3] = dot_rows(columns[j0], columns[j1], columns[j2], columns[j3], r)
        k += 4
    for q in range(k, count):
        out[q] = dot_row(columns[places[q]], r)


@helper
def _nonzeros(z, most, places):
    """Places of the nonzeros, until there are more than `most`."""
    count = 0
    for j in range(z.shape[0]):
        places[count] = j
        count += z[j] != 0
        if count > most:
            break
    return count


@kernel
def _movable(x, z, g, norms, moved, limit, places):
    """Entries that a layer may change, where the residual is so far from that of the gradient g."""
    count = 0
    for j in range(z.shape[0]):
        places[count] = j
        count += x[j] != 0 or z[j] != 0 or not abs(g[j]) + norms[j] * moved < limit
    return count


@helper
def _distance(u, v):
    s = 0.0
    for i in range(u.shape[0]):
        d = np.float64(u[i] - v[i])
        s += d * d
    return np.sqrt(s)


@helper
def _restart_product(z, w, x):
    s = 0.0
    for j in range(w.shape[0]):
        s += np.float64(z[j] - w[j]) * np.float64(w[j] - x[j])
    return s


@kernel
def _steps(soft, steps, taus, betas, restarts, most, columns, norms, Y, X, Z, R, G, theta, done, state, here, lo, hi):
    """Layers of some signals, the rows of X (B, n), from number `done` on; columns (n, m) are those of A.

    An entry that is 0 stays so while the gradient there is below tau / step, and that it is can be told without it
    from the gradient G at another point: by Cauchy and Schwarz it has changed by no more than the norm of the column
    times the distance of the residuals. Only the other entries are looked at. Their list is made for a distance a
    little larger than that at hand, to serve for more layers. Where they, or the nonzeros, are more than `most` of n, a
    signal comes to a halt, and its `state` says what it asks for at its Z: R and G, or G alone. With `most` = 1 none
    does.
    """
    n, m = columns.shape
    real, limit, most, waits = X.dtype.type, np.inf, int(most * n), most < 1
    for t in range(steps.shape[0]):
        limit = min(limit, taus[t] / steps[t])
    r, g, w = np.empty(m, X.dtype), np.empty(n, X.dtype), np.empty(n, X.dtype)
    places, nonzeros, everything = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.arange(n, dtype=np.int32)
    for b in here[lo:hi]:
        x, z, y, r0, g0 = X[b], Z[b], Y[b], R[b], G[b]
        count, size, reach, known = -1, 0, -1.0, state[b] == KNOWN
        while done[b] < steps.shape[0]:
            t = done[b]
            step, tau = real(steps[t]), real(taus[t])
            if known:
                if soft:
                    _soft(z, g0, step, tau, w)
                else:
                    _hard(z, g0, step, tau, w)
                product = _restart_product(z, w, x) if restarts else 0.0
            else:
                if count < 0:
                    count = _nonzeros(z, most, nonzeros)
                if waits and count > most:
                    state[b] = RESIDUAL
                    break
                _residual(columns, nonzeros, count, z, y, r)
                moved = _distance(r, r0)
                if not moved <= reach:
                    reach = REACH * moved
                    size = _movable(x, z, g0, norms, reach, limit, places)
                    if size > (most if waits else RENEWED * n):
                        copy(r, r0)
                        if waits:
                            state[b] = GRADIENT
                            break
                        _products_at(columns, everything, n, r, g0)
                        known = True
                        continue
                _products_at(columns, places, size, r, g)
                product = 0.0
                for k in range(size):
                    j = places[k]
                    v = z[j] - step * g[k]
                    if soft:
                        c = v if v < tau else tau
                        w[k] = v - (c if c > -tau else -tau)
                    else:
                        w[k] = real(0) if abs(v) <= tau else v
                    product += np.float64(z[j] - w[k]) * np.float64(w[k] - x[j])
            beta = real(betas[t])
            if restarts:
                following = 0.5 * (1 + np.sqrt(1 + 4 * theta[b] ** 2))
                beta = real(0 if product > 0 else (theta[b] - 1) / following)
                theta[b] = 1 if product > 0 else following
            if known:
                if beta != 0:
                    _extrapolate(w, x, beta, z)
                else:
                    copy(w, z)
                copy(w, x)
                known, count, reach = False, -1, -1.0
            else:
                count = 0
                for k in range(size):
                    j = places[k]
                    v = w[k] + beta * (w[k] - x[j]) if beta != 0 else w[k]
                    z[j] = v
                    x[j] = w[k]
                    nonzeros[count] = j
                    count += v != 0
            done[b] += 1
        if not waits:
            _residual(columns, nonzeros, _nonzeros(x, n, nonzeros), x, y, r0)
            _products_at(columns, everything, n, r0, g0)


def steps(
    kind: int,
    step: np.ndarray,
    tau: np.ndarray,
    A: np.ndarray,
    Y: np.ndarray,
    X: np.ndarray,
    Z: np.ndarray,
    R: np.ndarray,
    G: np.ndarray,
    momentum: np.ndarray | None = None,
    theta: np.ndarray | None = None,
    columns: Columns | None = None,
) -> None:
    """Layers one after the other, X and Z in place, from R and G of the old X to those of the new one."""
    if columns is None and X.shape[1] == 1 and A.nbytes >= FUSED_FROM:  # a pass over A for each layer: no better
        repeat_steps(
            lambda V: residual_gradient(A, V, Y, R, G), proximal_step, accelerated_step, kind, step, tau, X, Z, G,
            momentum, theta,
        )  # fmt: skip
        return
    columns = columns_of(A) if columns is None else columns
    size, plain = X.shape[1], Z is X
    y, x, r, g = (np.ascontiguousarray(V.T) for V in (Y, X, R, G))  # of one signal the arrays themselves
    z = x if plain else np.ascontiguousarray(Z.T)
    betas, thetas = np.zeros(len(step)) if momentum is None else momentum, np.ones(size) if theta is None else theta
    arguments = (
        kind == SOFT, step, tau, betas, theta is not None, FEW if size > 1 else 1.0, *columns, y, x, z, r, g, thetas,
        np.zeros(size, np.int64), np.full(size, KNOWN if plain else FAR),
    )  # fmt: skip
    done, state = arguments[-2:]
    here = np.arange(size)
    while len(here):
        run_blocks(lambda lo, hi: _steps(*arguments, here, lo, hi), len(here), A.size * len(here) / 8)  # noqa: B023
        if size == 1:
            return
        here = here[done[here] < len(step)]
        if len(here):
            blind = here[state[here] == RESIDUAL]
            if len(blind):
                r[blind] = _row_product(z[blind], columns.values) - y[blind]
            g[here] = _row_product(r[here], A)
            state[here] = KNOWN
    X[...] = x.T
    Z[...] = z.T
    residual_gradient(A, X, Y, R, G, columns)


@helper
def _add_products(u, v, sums):
    for b in range(u.shape[0]):
        sums[b] += np.float64(u[b]) * np.float64(v[b])


@helper
def _add_sizes(x, sums):
    for b in range(x.shape[0]):
        sums[b] += np.float64(abs(x[b]))


@helper
def _raise_to(x, tops):
    for b in range(x.shape[0]):
        v = np.float64(abs(x[b]))
        tops[b] = tops[b] if v <= tops[b] or tops[b] != tops[b] else v  # a NaN stays


@kernel
def _lasso_values(reg, X, Y, R, G, out):
    size = X.shape[1]
    squares, cross, norms, tops = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size)
    for i in range(R.shape[0]):
        _add_products(R[i], R[i], squares)
        _add_products(R[i], Y[i], cross)
    for i in range(X.shape[0]):
        _add_sizes(X[i], norms)
        _raise_to(G[i], tops)
    for b in range(size):
        share = reg / tops[b] if tops[b] > reg else 1.0
        gap = 0.5 * (1 + share * share) * squares[b] + share * cross[b] + reg * norms[b]
        out[0, b] = 0.5 * squares[b] + reg * norms[b]
        out[1, b] = 0.0 if gap < 0 else gap


def lasso_values(reg: float, X: np.ndarray, Y: np.ndarray, R: np.ndarray, G: np.ndarray) -> np.ndarray:
    """Objective and duality gap of the LASSO of every column; float64 (2, B)."""
    out = np.empty((2, X.shape[1]))
    _lasso_values(float(reg), X, Y, R, G, out)
    return out


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
