"""Compiled loops over images: smoothed total variation, fused row by row.

A part of the rows is swept from top to bottom; what flows down out of a row is kept for the next one, and is
computed anew at the first row of a part, so that nothing depends on the parts. Loops touch few arrays each: LLVM
vectorises them only while there are few pairs whose overlap it must exclude at run time.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ..contract import least_smoothing
from .jit import helper, kernel
from .threads import run_blocks

#: Most accelerated steps that one pass over the images takes, and bytes of rows between them, for the cache.
_STEPS, _ROWS_BYTES = 16, 1 << 19


@intrinsic
def _rsqrt(context, q):
    """``1 / sqrt(q)`` for normal q > 0; in float64 by products only: a root and a division take twice as long."""

    def generate(context, builder, signature, arguments):
        (q,) = arguments
        options, kind = {"flags": ["contract"]}, q.type

        def constant(c):
            return ir.Constant(kind, c)

        if isinstance(kind, ir.FloatType):
            root = builder.call(builder.module.declare_intrinsic("llvm.sqrt", [kind]), [q])
            return builder.fdiv(constant(1.0), root)
        # within 3.5%: halves and negates the exponent
        half = builder.lshr(builder.bitcast(q, ir.IntType(64)), ir.Constant(ir.IntType(64), 1))
        r = builder.bitcast(builder.sub(ir.Constant(ir.IntType(64), 0x5FE6EB50C7B537A9), half), kind)
        for _ in range(2):  # each takes the relative error e to (35 / 8) e**4
            product = builder.fmul(builder.fmul(q, r, **options), r, **options)
            h = builder.fsub(constant(1.0), product, **options)
            p = constant(0.3125)
            for c in (0.375, 0.5):
                p = builder.fadd(constant(c), builder.fmul(h, p, **options), **options)
            r = builder.fadd(r, builder.fmul(r, builder.fmul(h, p, **options), **options), **options)
        return r

    return q(q), generate


@helper
def _extend(row, out):
    """`row` with its last entry once more: loops over all columns leave no rest where widths are powers of 2."""
    n = row.shape[0]
    for j in range(n):
        out[j] = row[j]
    out[n] = row[n - 1]


@helper
def _flux_rows(x, below, w, nu_sq, isotropic, px, py):
    """``w phi'`` of the differences to the right, from px[1] on, and down, of one row; the sums of ``w phi``."""
    n = w.shape[0]
    across, down = 0.0, 0.0
    if isotropic:
        for j in range(n):
            dx, dy = x[j + 1] - x[j], below[j] - x[j]
            q = dx * dx + dy * dy + nu_sq
            r = w[j] * _rsqrt(q)
            px[j + 1] = r * dx
            py[j] = r * dy
            across += np.float64(q * r)
        dy = below[n - 1] - x[n - 1]  # the last column has no neighbour: it counts as a difference down
        down = np.float64(w[n - 1] * np.sqrt(dy * dy + nu_sq))
        across -= down
    else:
        for j in range(n):
            dx, dy = x[j + 1] - x[j], below[j] - x[j]
            qx, qy = dx * dx + nu_sq, dy * dy + nu_sq
            rx, ry = w[j] * _rsqrt(qx), w[j] * _rsqrt(qy)
            px[j + 1] = rx * dx
            py[j] = ry * dy
            across += np.float64(qx * rx)
            down += np.float64(qy * ry)
        across -= np.float64(w[n - 1] * np.sqrt(nu_sq))
    return across, down


@helper
def _curved_rows(x, below, v, v_below, w, nu_sq, isotropic, r, along, px, py):
    """``w phi''`` of the differences of x, applied to those of v, of one row, as `_flux_rows`; r, along: scratch."""
    n = w.shape[0]
    if isotropic:
        for j in range(n):
            dx, dy, ax, ay = x[j + 1] - x[j], below[j] - x[j], v[j + 1] - v[j], v_below[j] - v[j]
            s = _rsqrt(dx * dx + dy * dy + nu_sq)
            r[j] = s
            along[j] = s * s * (dx * ax + dy * ay)
        for j in range(n):
            px[j + 1] = w[j] * r[j] * (v[j + 1] - v[j] - (x[j + 1] - x[j]) * along[j])
        for j in range(n):
            py[j] = w[j] * r[j] * (v_below[j] - v[j] - (below[j] - x[j]) * along[j])
    else:
        for j in range(n):
            dx = x[j + 1] - x[j]
            s = _rsqrt(dx * dx + nu_sq)
            px[j + 1] = w[j] * s * (nu_sq * s * s) * (v[j + 1] - v[j])
        for j in range(n):
            dy = below[j] - x[j]
            s = _rsqrt(dy * dy + nu_sq)
            py[j] = w[j] * s * (nu_sq * s * s) * (v_below[j] - v[j])


@helper
def _fidelity(x, y, px, py, above, out):
    """``out = x - y + D' p`` of one row; returns the sum of squares of it and of x - y."""
    norm_sq, distance_sq = 0.0, 0.0
    for j in range(y.shape[0]):
        e = x[j] - y[j]
        g = e + px[j] - px[j + 1] - py[j] + above[j]
        out[j] = g
        norm_sq += np.float64(g) * np.float64(g)
        distance_sq += np.float64(e) * np.float64(e)
    return norm_sq, distance_sq


@helper
def _identity(v, px, py, above, out):
    """``out = v + D' p`` of one row; returns <v, out>."""
    energy = 0.0
    for j in range(v.shape[0]):
        h = v[j] + px[j] - px[j + 1] - py[j] + above[j]
        out[j] = h
        energy += np.float64(v[j]) * np.float64(h)
    return energy


@helper
def _move(z, g, step, momentum, x, x_out, z_out):
    """``x_out = z - step g`` and ``z_out = x_out + momentum (x_out - x)`` of one row."""
    for j in range(x.shape[0]):
        new = z[j] - step * g[j]
        z_out[j] = new + momentum * (new - x[j])
        x_out[j] = new


@kernel
def _tv_gradient(x, y, w, nu, isotropic, height, out, sums, buffer, lo, hi):
    nu_sq = x.dtype.type(nu * nu)
    px, own = buffer[0], buffer[3]
    px[0] = 0
    for row in range(lo - 1 if lo % height else lo, hi):
        i = row % height
        has_below = i + 1 < height
        below = x[row + 1] if has_below else x[row]
        w_row = w[i if w.shape[0] > 1 else 0]
        py, above = buffer[1 + i % 2], buffer[2 - i % 2]
        if i == 0:
            above[:] = 0
        _extend(x[row], own)
        across, down = _flux_rows(own, below, w_row, nu_sq, isotropic, px, py)
        if row >= lo:
            norm_sq, distance_sq = _fidelity(own, y[row], px, py, above, out[row])
            sums[0, row] = 0.5 * distance_sq + across + (down if has_below else 0.0)
            sums[1, row] = norm_sq


@kernel
def _tv_steps(x, z, y, w, nu, isotropic, height, step, momentum, x_out, z_out, sums, buffer, lo, hi):
    """As many steps as `sums` has rows, for image rows lo:hi, in one pass over memory.

    Step s works s rows above step 0, on what the step before left in `buffer` (steps + 1, 9, > W): x and z of three
    rows each, two rows of flux down, and one across. Rows outside lo:hi that later steps look at are computed here as
    well.
    """
    real = x.dtype.type
    nu_sq, step, momentum = real(nu * nu), real(step), real(momentum)
    count, width = sums.shape[0], x.shape[1]
    buffer[:, 8, 0] = 0
    g, start = buffer[count, 0], buffer[count, 1]
    first, end = lo // height * height, (hi + height - 1) // height * height
    for front in range(max(first, lo - count), min(end, hi + count - 1) + count - 1):
        for s in range(count):
            row, ahead = front - s, count - 1 - s  # steps after this one
            # the row above the first is needed for its flux alone
            if row < max(first, lo - ahead - 1) or row >= min(end, hi + ahead):
                continue
            i = row % height
            below = row + 1 if i + 1 < height else row
            own = buffer[s]
            if s == 0:
                _extend(z[row], start)
                z_row, z_below, x_row = start, z[below], x[row]
            else:
                z_row, z_below, x_row = own[row % 3], own[below % 3], own[3 + row % 3][:width]
            px, py, above = own[8], own[6 + i % 2], own[7 - i % 2]
            if i == 0:
                above[:] = 0
            _flux_rows(z_row, z_below, w[i if w.shape[0] > 1 else 0], nu_sq, isotropic, px, py)
            if row < max(first, lo - ahead):
                continue
            norm_sq, _ = _fidelity(z_row, y[row], px, py, above, g)
            if lo <= row < hi:
                sums[s, row] = norm_sq
            if ahead == 0:
                _move(z_row, g, step, momentum, x_row, x_out[row], z_out[row])
            else:
                following = buffer[s + 1, row % 3]
                _move(z_row, g, step, momentum, x_row, buffer[s + 1, 3 + row % 3], following)
                following[width] = following[width - 1]


@kernel
def _tv_hvp(x, v, w, nu, isotropic, height, out, sums, buffer, lo, hi):
    nu_sq = x.dtype.type(nu * nu)
    px, r, along, x_row, v_row = buffer[0], buffer[3], buffer[4], buffer[5], buffer[6]
    px[0] = 0
    for row in range(lo - 1 if lo % height else lo, hi):
        i = row % height
        other = row + 1 if i + 1 < height else row
        py, above = buffer[1 + i % 2], buffer[2 - i % 2]
        if i == 0:
            above[:] = 0
        _extend(x[row], x_row)
        _extend(v[row], v_row)
        w_row = w[i if w.shape[0] > 1 else 0]
        _curved_rows(x_row, x[other], v_row, v[other], w_row, nu_sq, isotropic, r, along, px, py)
        if row >= lo:
            sums[row] = _identity(v[row], px, py, above, out[row])


@helper
def _sensitivity(x, below, q, q_below, nu_sq, isotropic, along, across):
    """``phi' . D q`` and ``nu d phi' / d nu . D q``, negative, added to two rows."""
    if isotropic:
        for j in range(below.shape[0]):
            dx, dy = x[j + 1] - x[j], below[j] - x[j]
            r = _rsqrt(dx * dx + dy * dy + nu_sq)
            a = (dx * (q[j + 1] - q[j]) + dy * (q_below[j] - q[j])) * r
            along[j] += a
            across[j] += nu_sq * r * r * a
    else:
        for j in range(below.shape[0]):
            dx, dy = x[j + 1] - x[j], below[j] - x[j]
            rx, ry = _rsqrt(dx * dx + nu_sq), _rsqrt(dy * dy + nu_sq)
            a, b = dx * (q[j + 1] - q[j]) * rx, dy * (q_below[j] - q[j]) * ry
            along[j] += a + b
            across[j] += nu_sq * (rx * rx * a + ry * ry * b)


@kernel
def _tv_jacobian_t(x, q, w, nu, isotropic, height, pixels, sums, buffer, lo, hi):
    nu_sq = x.dtype.type(nu * nu)
    along, across, x_row, q_row = buffer[0], buffer[1], buffer[2], buffer[3]
    for i in range(lo, hi):
        along[:] = 0
        across[:] = 0
        for row in range(i, x.shape[0], height):
            other = row + 1 if i + 1 < height else row
            _extend(x[row], x_row)
            _extend(q[row], q_row)
            _sensitivity(x_row, x[other], q_row, q[other], nu_sq, isotropic, along, across)
        w_row = w[i if w.shape[0] > 1 else 0]
        weight, smoothing = 0.0, 0.0
        for j in range(x.shape[1]):
            weight += np.float64(w_row[j] * along[j])
            smoothing -= np.float64(w_row[j] * across[j])
        sums[0, i], sums[1, i] = weight, smoothing
        if pixels.shape[0] > 0:
            out = pixels[i]
            for j in range(x.shape[1]):
                out[j] = w_row[j] * along[j]


def _rows(image: np.ndarray) -> np.ndarray:
    """All rows of a batch of images below each other."""
    return image.reshape(-1, image.shape[-1])


def positive(nu: float | np.ndarray, like: np.ndarray) -> float | np.ndarray:
    """Smoothing whose square is a normal number."""
    return np.maximum(nu, least_smoothing(np.finfo(like.dtype)))


def _weights(w: float | np.ndarray, like: np.ndarray) -> np.ndarray:
    """Weights as rows: (1, W) for one number, (H, W) else."""
    return w if isinstance(w, np.ndarray) and w.ndim == 2 else np.full((1, like.shape[-1]), w, like.dtype)


def _buffer(rows: int, like: np.ndarray) -> np.ndarray:
    """Rows a little longer than those of the images: powers of 2 apart they would evict each other from the cache."""
    return np.empty((rows, like.shape[-1] + 24), like.dtype)


def tv_gradient(
    x: np.ndarray, y: np.ndarray, w: float | np.ndarray, nu: float, isotropic: bool, out: np.ndarray
) -> tuple[float, float]:
    """Value and norm of the gradient, which is written to `out`."""
    height = x.shape[1]
    w, sums = _weights(w, x), np.empty((2, x.shape[0] * height))

    def task(lo: int, hi: int) -> None:
        buffer = _buffer(4, x)
        _tv_gradient(_rows(x), _rows(y), w, positive(nu, x), isotropic, height, _rows(out), sums, buffer, lo, hi)

    run_blocks(task, sums.shape[1], x.nbytes / 4)
    value, norm_sq = sums.sum(axis=1)
    return float(value), math.sqrt(norm_sq)


def tv_hvp(
    x: np.ndarray, v: np.ndarray, w: float | np.ndarray, nu: float, isotropic: bool, out: np.ndarray
) -> float:
    """Product of the Hessian at x with v, written to `out`; returns <v, H v>."""
    height = x.shape[1]
    w, sums = _weights(w, x), np.empty(x.shape[0] * height)

    def task(lo: int, hi: int) -> None:
        buffer = _buffer(7, x)
        _tv_hvp(_rows(x), _rows(v), w, positive(nu, x), isotropic, height, _rows(out), sums, buffer, lo, hi)

    run_blocks(task, sums.shape[0], x.nbytes / 4)
    return float(sums.sum())


def tv_jacobian_t(
    x: np.ndarray,
    q: np.ndarray,
    w: float | np.ndarray,
    nu: float,
    isotropic: bool,
    pixels: np.ndarray | None = None,
) -> tuple[float, float]:
    """<q, d grad / d log w> and <q, d grad / d log nu>; the former by pixel, summed over the batch, to `pixels`."""
    height, width = x.shape[1:]
    w, sums = _weights(w, x), np.empty((2, height))
    target = np.empty((0, width), x.dtype) if pixels is None else pixels

    def task(lo: int, hi: int) -> None:
        buffer = _buffer(4, x)
        _tv_jacobian_t(_rows(x), _rows(q), w, positive(nu, x), isotropic, height, target, sums, buffer, lo, hi)

    run_blocks(task, height, x.nbytes / 4)
    weight, smoothing = sums.sum(axis=1)
    return float(weight), float(smoothing)


def tv_steps(
    x: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    w: float | np.ndarray,
    nu: float,
    isotropic: bool,
    step: float,
    momentum: float,
    limit: float,
    count: int,
    scratch: np.ndarray,
) -> tuple[int, float]:
    """Accelerated gradient steps, x and z in place, until the gradient at z is at most `limit`."""
    height = x.shape[1]
    w, n_rows = _weights(w, x), x.shape[0] * height
    old, new = (_rows(x), _rows(z)), (_rows(scratch[0]), _rows(scratch[1]))
    given, most = old, min(_STEPS, max(2, _ROWS_BYTES // (9 * x.shape[2] * x.itemsize)))
    sums = np.empty((most, n_rows))

    def move(n: int) -> np.ndarray:
        """Take n steps from `old` to `new`; returns the norms of the gradients."""

        def task(lo: int, hi: int) -> None:
            buffer = _buffer(9 * (n + 1), x).reshape(n + 1, 9, -1)
            _tv_steps(
                *old, _rows(y), w, positive(nu, x), isotropic, height, float(step), float(momentum), *new, sums[:n],
                buffer, lo, hi,
            )  # fmt: skip

        run_blocks(task, n_rows, n * x.nbytes / 4)
        return np.sqrt(sums[:n].sum(axis=1))

    taken, norm, stopped = 0, 0.0, False
    while taken < count and not stopped:
        n = min(most, count - taken)
        norms = move(n)
        enough = np.flatnonzero(~(norms > limit))
        stopped = len(enough) > 0
        if stopped:
            n = int(enough[0]) + 1
            if n > 1:  # back to the point of the last gradient
                move(n - 1)
                old, new = new, old
            move(1)  # x alone
            new = (new[0], old[1])
        taken, norm = taken + n, float(norms[n - 1])
        old, new = new, old
    for target, source in zip(given, old, strict=True):
        if target is not source:
            run_blocks(lambda lo, hi, to=target, rows=source: np.copyto(to[lo:hi], rows[lo:hi]), n_rows, x.nbytes / 4)
    return taken, norm
