"""Exponents and powers of a block of rows, for both kinds of cost: the one place where a cost meets a kernel.

The inner loops have one output and few inputs each: LLVM vectorises a loop only if it can check cheaply that its
arrays do not overlap.  Column tiles keep what the passes over one block of rows share in the first-level cache.
"""

from __future__ import annotations

from .jit import helper
from .vecmath import exp2_fast

ROWS = 4  #: rows in a block
TILE = 1024  #: columns per tile


@helper
def _dense_exponents(C, scale, f, G, out):
    for j in range(out.shape[0]):
        out[j] = (f + G[j]) - scale * C[j]


@helper
def _constant(f, G, out):
    for j in range(out.shape[0]):
        out[j] = f + G[j]


@helper
def _add_product(x0, y0, out):
    for j in range(out.shape[0]):
        out[j] += x0 * y0[j]


@helper
def fill_exponents(x, y, scale, i, rows, j0, j1, F, G, out):
    """``out[q, j0:j1] = F[i + q] + G[j0:j1] - scale * c(x_{i+q}, y_{j0:j1})`` for q < rows."""
    g = G[j0:j1]
    for q in range(rows):
        row = out[q, j0:j1]
        if y is None:
            _dense_exponents(x[i + q, j0:j1], scale, F[i + q], g, row)
        else:
            _constant(F[i + q], g, row)
            for p in range(x.shape[1]):
                _add_product(x[i + q, p], y[p, j0:j1], row)


@helper
def _dense_powers(C, scale, f, G, out):
    s = G.dtype.type(0)
    for j in range(out.shape[0]):
        e = exp2_fast((f + G[j]) - scale * C[j])
        out[j] = e
        s += e
    return s


@helper
def _dot2_powers(x0, x1, y0, y1, f, G, out):
    s = G.dtype.type(0)
    for j in range(out.shape[0]):
        e = exp2_fast((f + G[j]) + (x0 * y0[j] + x1 * y1[j]))
        out[j] = e
        s += e
    return s


@helper
def _dot3_powers(x0, x1, x2, y0, y1, y2, f, G, out):
    s = G.dtype.type(0)
    for j in range(out.shape[0]):
        e = exp2_fast((f + G[j]) + (x0 * y0[j] + (x1 * y1[j] + x2 * y2[j])))
        out[j] = e
        s += e
    return s


@helper
def _exponentiate(z):
    s = z.dtype.type(0)
    for j in range(z.shape[0]):
        e = exp2_fast(z[j])
        z[j] = e
        s += e
    return s


@helper
def fill_powers(x, y, scale, i, rows, F, G, out, sums):
    """``out[q] = 2**exponents`` of rows ``i + q``, q < rows, and their sums in float64."""
    d = x.shape[1]
    for q in range(rows):
        sums[q] = 0.0
    j0 = 0
    while j0 < G.shape[0]:
        j1 = min(G.shape[0], j0 + TILE)
        g = G[j0:j1]
        for q in range(rows):
            f = F[i + q]
            row = out[q, j0:j1]
            if y is None:
                s = _dense_powers(x[i + q, j0:j1], scale, f, g, row)
            elif d == 2:
                s = _dot2_powers(x[i + q, 0], x[i + q, 1], y[0, j0:j1], y[1, j0:j1], f, g, row)
            elif d == 3:
                s = _dot3_powers(
                    x[i + q, 0], x[i + q, 1], x[i + q, 2], y[0, j0:j1], y[1, j0:j1], y[2, j0:j1], f, g, row
                )
            else:
                _constant(f, g, row)
                for p in range(d):
                    _add_product(x[i + q, p], y[p, j0:j1], row)
                s = _exponentiate(row)
            sums[q] += s
        j0 = j1


@helper
def sum_powers(z, shift):
    """Sum of ``2**(z - shift)``; z is left as it is."""
    s = z.dtype.type(0)
    for j in range(z.shape[0]):
        s += exp2_fast(z[j] - shift)
    return s


@helper(fastmath={"contract", "reassoc", "nsz", "nnan"})
def maximum(z):
    """Largest entry; without NaN, which lets the loop vectorise."""
    top = z[0]
    for j in range(z.shape[0]):
        top = z[j] if z[j] > top else top
    return top


@helper
def add_rows(column, z, w0, w1, w2, w3):
    """``column += w0 z[0] + w1 z[1] + w2 z[2] + w3 z[3]``."""
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for j in range(column.shape[0]):
        column[j] += (w0 * z0[j] + w1 * z1[j]) + (w2 * z2[j] + w3 * z3[j])


@helper
def add_row(column, z, w):
    """``column += w z``."""
    for j in range(column.shape[0]):
        column[j] += w * z[j]


@helper
def dot_rows(k0, k1, k2, k3, v):
    """Inner products of four rows with v, which is loaded once for all."""
    s0 = s1 = s2 = s3 = k0.dtype.type(0)
    for j in range(v.shape[0]):
        t = v[j]
        s0 += k0[j] * t
        s1 += k1[j] * t
        s2 += k2[j] * t
        s3 += k3[j] * t
    return s0, s1, s2, s3


@helper
def dot_row(k, v):
    """Inner product of a row with v."""
    s = k.dtype.type(0)
    for j in range(v.shape[0]):
        s += k[j] * v[j]
    return s
