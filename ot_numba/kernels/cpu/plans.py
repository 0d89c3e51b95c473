"""Compiled loops over the plan ``P_ij = 2**(F_i + G_j - scale c_ij)``.

Every kernel walks blocks ``lo <= block < hi`` of `block_rows` rows; each block writes its own rows and its own
row of partial column sums, so the bits of a result do not depend on which thread ran which block.
"""

from __future__ import annotations

import numpy as np

from .exponents import (
    ROWS,
    TILE,
    add_row,
    add_rows,
    dot_row,
    dot_rows,
    fill_exponents,
    fill_powers,
    maximum,
    sum_powers,
)
from .jit import helper, kernel
from .vecmath import exp2_fast, log2


@helper
def update(F, offset, log_ratio, damping, relaxation):
    """Relaxed and damped potential: damping = rho / (rho + reg), 1 when the marginal is a hard constraint."""
    return F + relaxation * (offset + damping * (F - offset + log_ratio) - F)


@helper
def marginal_target(potential, weight, offset, damping):
    """Marginal that the optimality conditions ask for: ``weight * exp(-f / rho)``, or `weight` itself."""
    if damping == 1.0:
        return np.float64(weight)
    return weight * exp2_fast(min((np.float64(offset) - potential) * (1.0 / damping - 1.0), 960.0))


@helper
def bounded(old, new, s, reach):
    """Potential `new`, or one nearer to `old` where it would take its sum s, or a weight, out of the range of exp2."""
    return new if new - old <= 16.0 else old + min(new - old, reach - log2(s), reach + 30.0)


@helper
def update_rows(x, y, scale, i, rows, F, G, a, offset, damping, relaxation, buffer, sums, weights, relax):
    """Update of a block of rows of F; returns their L1 error before it.

    Their powers before it, or after a shift that brings them into range, are left in `buffer`, what takes those to the
    powers after it in `weights`.
    """
    tiny, reach = (1e-289, 900.0) if F.itemsize == 8 else (1e-29, 90.0)
    error = 0.0
    for attempt in range(2):
        fill_powers(x, y, scale, i, rows, F, G, buffer, sums)
        lost = False
        for q in range(rows):
            if attempt == 0:
                wanted = marginal_target(F[i + q], a[i + q], offset[i + q], damping)
                relax[q] = relaxation
                if sums[q] > tiny and sums[q] < 1.0 / tiny:
                    error += abs(sums[q] - wanted)
                else:  # outside the range of exp2: bring the largest exponent to 0
                    fill_exponents(x, y, scale, i + q, 1, 0, G.shape[0], F, G, buffer)
                    top = maximum(buffer[0, : G.shape[0]])
                    error += 1.0 / tiny if top > 0 else wanted
                    F[i + q] -= top if np.isfinite(top) else F.dtype.type(0)
                    relax[q] = 1.0 if np.isfinite(top) else 0.0  # no path: the potential stays
                    lost = True
        if not lost:
            break
    for q in range(rows):
        old = np.float64(F[i + q])
        ratio = log2(np.float64(a[i + q]) / sums[q])
        new = update(old, np.float64(offset[i + q]), ratio, damping, relax[q])
        F[i + q] = bounded(old, new, sums[q], reach)
        weights[q] = exp2_fast(np.float64(F[i + q]) - old)
    return error


@kernel
def sinkhorn_rows(
    x, y, scale, F, G, a, offset, damping, relaxation, lo, hi, block_rows, columns, errors, buffer
):
    """Row update of F, column sums of the updated plan, L1 error of the rows before it."""
    n = F.shape[0]
    sums, relax, weights = np.empty(ROWS, np.float64), np.empty(ROWS, np.float64), np.zeros(ROWS, F.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        error = 0.0
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            error += update_rows(
                x, y, scale, i, rows, F, G, a, offset, damping, relaxation, buffer, sums, weights, relax
            )
            if rows == ROWS:
                add_rows(column, buffer, weights[0], weights[1], weights[2], weights[3])
            else:
                for q in range(rows):
                    add_row(column, buffer[q], weights[q])
            i += rows
        errors[block] = error


@kernel
def sinkhorn_columns(column, b, G, offset, damping, relaxation):
    """Column update of G from the column sums of the plan; returns their L1 error."""
    tiny, reach = (1e-289, 900.0) if G.itemsize == 8 else (1e-29, 90.0)
    error = 0.0
    for j in range(G.shape[0]):
        s = column[j]
        old = np.float64(G[j])
        error += abs(s - marginal_target(old, b[j], offset[j], damping))
        lost = not (s > tiny and s < 1.0 / tiny)  # outside the range of exp2: the next iterations pull it in
        s = min(max(s, tiny), 1.0 / tiny) if lost else s
        ratio = log2(np.float64(b[j]) / s)
        new = update(old, np.float64(offset[j]), ratio, damping, 1.0 if lost else relaxation)
        G[j] = bounded(old, new, s, reach)
    return error


@kernel
def sum_blocks(partial, out):
    """Sum partial column sums (blocks, m) in the order of the blocks."""
    out[:] = 0
    for block in range(partial.shape[0]):
        row = partial[block]
        for j in range(out.shape[0]):
            out[j] += row[j]


@helper
def scale(p, weights, base, i, s, damping, relaxation):
    """Update one scaling against ``s = (K q)_i``; returns the error of its marginal before."""
    old, weight = np.float64(p[i]), np.float64(weights[i])
    target = weight
    if damping != 1.0:
        target *= exp2_fast((log2(np.float64(base[i])) - (1.0 - damping) * log2(old)) / damping)
    if damping == 1.0 and relaxation == 1.0:
        p[i] = weight / s
    else:
        new = damping * log2(weight / s)
        if damping != 1.0:
            new += log2(np.float64(base[i]))
        p[i] = exp2_fast(relaxation * new + (1.0 - relaxation) * log2(old))
    return abs(old * s - target)


@kernel
def absorbed_rows(K, p, q, a, base, damping, relaxation, lo, hi, block_rows, columns, errors):
    """Row scaling ``p <- p**(1 - relaxation) (base (a / K q)**damping)**relaxation``; K' p from the same pass."""
    n = K.shape[0]
    sums = np.empty(ROWS, K.dtype)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        error = 0.0
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            if rows == ROWS:
                sums[0], sums[1], sums[2], sums[3] = dot_rows(K[i], K[i + 1], K[i + 2], K[i + 3], q)
            else:
                for r in range(rows):
                    sums[r] = dot_row(K[i + r], q)
            for r in range(rows):
                error += scale(p, a, base, i + r, sums[r], damping, relaxation)
            if rows == ROWS:
                add_rows(column, K[i : i + ROWS], p[i], p[i + 1], p[i + 2], p[i + 3])
            else:
                for r in range(i, i + rows):
                    add_row(column, K[r], p[r])
            i += rows
        errors[block] = error


@kernel
def absorbed_columns(column, q, b, base, damping, relaxation):
    """Column scaling from ``K' p``, as in `absorbed_rows`; returns the error before."""
    error = 0.0
    for j in range(q.shape[0]):
        error += scale(q, b, base, j, column[j], damping, relaxation)
    return error


@kernel
def absorbed_pair(K, v, w, lo, hi, block_rows, t, columns):
    """``t = K v`` and partial ``K' (w t)`` from one pass over K."""
    n = K.shape[0]
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            if rows == ROWS:
                s0, s1, s2, s3 = dot_rows(K[i], K[i + 1], K[i + 2], K[i + 3], v)
                t[i], t[i + 1], t[i + 2], t[i + 3] = s0, s1, s2, s3
                add_rows(column, K[i : i + ROWS], w[i] * s0, w[i + 1] * s1, w[i + 2] * s2, w[i + 3] * s3)
            else:
                for r in range(i, i + rows):
                    s0 = dot_row(K[r], v)
                    t[r] = s0
                    add_row(column, K[r], w[r] * s0)
            i += rows


@kernel
def plan_pair(x, y, scale, F, G, v, w, lo, hi, block_rows, t, columns, buffer):
    """``t = P v`` and partial ``P' (w t)``, every exponential evaluated once."""
    n, m = F.shape[0], G.shape[0]
    sums = np.empty(ROWS, np.float64)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            fill_powers(x, y, scale, i, rows, F, G, buffer, sums)
            for q in range(rows):
                row = buffer[q]
                s = 0.0
                for j in range(m):
                    s += row[j] * v[j]
                t[i + q] = s
                add_row(column, row, F.dtype.type(w[i + q] * s))
            i += rows


@helper
def _powers_and_entropy(z, lowest, highest):
    """Replace exponents by powers, in place; returns ``sum 2**z`` and ``sum 2**z z``."""
    s = 0.0
    h = 0.0
    for j in range(z.shape[0]):
        t = z[j]
        t = t if t > lowest else lowest
        t = t if t < highest else highest
        e = exp2_fast(t)
        z[j] = e
        s += e
        h += e * t
    return s, h


@kernel
def marginals(x, y, scale, F, G, lowest, highest, lo, hi, block_rows, sums, entropies, columns, buffer):
    """Row sums, partial column sums and ``sum_j P_ij e_ij`` of the plan."""
    n, m = F.shape[0], G.shape[0]
    one = F.dtype.type(1)
    for block in range(lo, hi):
        column = columns[block]
        column[:] = 0
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            sums[i : i + rows] = 0
            entropies[i : i + rows] = 0
            j0 = 0
            while j0 < m:
                j1 = min(m, j0 + TILE)
                fill_exponents(x, y, scale, i, rows, j0, j1, F, G, buffer)
                for q in range(rows):
                    s, h = _powers_and_entropy(buffer[q, j0:j1], lowest, highest)
                    sums[i + q] += s
                    entropies[i + q] += h
                j0 = j1
            if rows == ROWS:
                add_rows(column, buffer, one, one, one, one)
            else:
                for q in range(rows):
                    add_row(column, buffer[q], one)
            i += rows


@kernel
def products(x, y, scale, F, G, VT, UT, lo, hi, block_rows, PV, PUT, buffer):
    """``P @ V`` (rows of this block) and partial ``(P.T @ U).T``; V and U come transposed."""
    n, m = F.shape[0], G.shape[0]
    sums = np.empty(ROWS, np.float64)
    for block in range(lo, hi):
        PUT[block] = 0
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            fill_powers(x, y, scale, i, rows, F, G, buffer, sums)
            for q in range(rows):
                row = buffer[q]
                for c in range(VT.shape[0]):
                    v = VT[c]
                    s = 0.0
                    for j in range(m):
                        s += row[j] * v[j]
                    PV[i + q, c] = s
                for c in range(UT.shape[0]):
                    add_row(PUT[block, c], row, UT[c, i + q])
            i += rows


@kernel
def row_logsumexp(x, y, scale, G, lo, hi, block_rows, zero, out, buffer):
    """``out[l, i] = log2 sum_j 2**(G[l, j] - scale c_ij)``; -inf where every term is 0."""
    n, m = out.shape[1], G.shape[1]
    for block in range(lo, hi):
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            for line in range(G.shape[0]):
                j0 = 0
                while j0 < m:
                    j1 = min(m, j0 + TILE)
                    fill_exponents(x, y, scale, i, rows, j0, j1, zero, G[line], buffer)
                    j0 = j1
                for q in range(rows):
                    row = buffer[q]
                    top = maximum(row)
                    out[line, i + q] = top if np.isinf(top) else top + log2(np.float64(sum_powers(row, top)))
            i += rows


@kernel
def column_maximum(x, y, scale, F, zero, lo, hi, block_rows, columns, buffer):
    """Partial ``max_i (F_i - scale c_ij)``."""
    n, m = F.shape[0], zero.shape[0]
    for block in range(lo, hi):
        column = columns[block]
        column[:] = -np.inf
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            j0 = 0
            while j0 < m:
                j1 = min(m, j0 + TILE)
                fill_exponents(x, y, scale, i, rows, j0, j1, F, zero, buffer)
                for q in range(rows):
                    row = buffer[q]
                    for j in range(j0, j1):
                        column[j] = row[j] if row[j] > column[j] else column[j]
                j0 = j1
            i += rows


@kernel
def plan(x, y, scale, F, G, smallest, lo, hi, block_rows, out, buffer):
    """The plan, zero where an entry is not above `smallest`."""
    n, m = out.shape
    nothing = out.dtype.type(0)
    sums = np.empty(ROWS, np.float64)
    for block in range(lo, hi):
        end = min(n, (block + 1) * block_rows)
        i = block * block_rows
        while i < end:
            rows = min(ROWS, end - i)
            fill_powers(x, y, scale, i, rows, F, G, buffer, sums)
            for q in range(rows):
                row, target = buffer[q], out[i + q]
                for j in range(m):
                    target[j] = row[j] if row[j] > smallest else nothing
            i += rows


@kernel
def mass_histogram(x, y, scale, F, G, lo, hi, block_rows, bins_per_bit, histogram, buffer):
    """Partial mass of the plan by exponent; the last bin holds exponents >= 0, the first everything very small."""
    n, m = F.shape[0], G.shape[0]
    last = histogram.shape[1] - 1
    for block in range(lo, hi):
        mass = histogram[block]
        mass[:] = 0
        end = min(n, (block + 1) * block_rows)
        for i in range(block * block_rows, end):
            row = buffer[0]
            j0 = 0
            while j0 < m:
                j1 = min(m, j0 + TILE)
                fill_exponents(x, y, scale, i, 1, j0, j1, F, G, buffer)
                for j in range(j0, j1):
                    z = np.float64(row[j])
                    position = last + np.floor(min(max(z, -1e6), 0.0) * bins_per_bit)
                    mass[np.int64(max(position, 0.0))] += exp2_fast(min(z, 1023.0))
                j0 = j1


@kernel
def count_above(x, y, scale, F, G, thresholds, lo, hi, block_rows, counts, buffer):
    """Number of exponents >= the row's threshold, subnormal entries left out."""
    n, m = F.shape[0], G.shape[0]
    lowest = F.dtype.type(-1022 if F.itemsize == 8 else -126)
    for block in range(lo, hi):
        end = min(n, (block + 1) * block_rows)
        for i in range(block * block_rows, end):
            row = buffer[0]
            fill_exponents(x, y, scale, i, 1, 0, m, F, G, buffer)
            limit = max(thresholds[i], lowest)
            count = 0
            for j in range(m):
                count += 1 if row[j] >= limit else 0
            counts[i] = count


@kernel
def fill_csr(x, y, scale, F, G, thresholds, lo, hi, block_rows, indptr, indices, data, buffer):
    """Entries whose exponent reaches the row's threshold, rows in place given by `indptr`."""
    n, m = F.shape[0], G.shape[0]
    lowest, highest = F.dtype.type(-1022 if F.itemsize == 8 else -126), F.dtype.type(1023 if F.itemsize == 8 else 127)
    for block in range(lo, hi):
        end = min(n, (block + 1) * block_rows)
        for i in range(block * block_rows, end):
            row = buffer[0]
            fill_exponents(x, y, scale, i, 1, 0, m, F, G, buffer)
            limit = max(thresholds[i], lowest)
            position, stop = indptr[i], indptr[i + 1]
            for j in range(m):
                if row[j] >= limit and position < stop:
                    indices[position] = j
                    data[position] = exp2_fast(min(row[j], highest))
                    position += 1


@helper
def _select(z, k):
    """k-th largest entry, k >= 1, by Hoare's selection; reorders z."""
    left, right, position = 0, z.shape[0] - 1, k - 1
    while left < right:
        pivot = z[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while z[i] > pivot:
                i += 1
            while z[j] < pivot:
                j -= 1
            if i <= j:
                z[i], z[j] = z[j], z[i]
                i += 1
                j -= 1
        if position <= j:
            right = j
        elif position >= i:
            left = i
        else:
            break
    return z[position]


@kernel
def row_kth_exponent(x, y, scale, F, G, k, lo, hi, block_rows, out, buffer):
    """k-th largest exponent of every row."""
    n, m = F.shape[0], G.shape[0]
    for block in range(lo, hi):
        end = min(n, (block + 1) * block_rows)
        for i in range(block * block_rows, end):
            fill_exponents(x, y, scale, i, 1, 0, m, F, G, buffer)
            out[i] = _select(buffer[0], k)
