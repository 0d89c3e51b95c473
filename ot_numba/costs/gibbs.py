"""The Gibbs kernel ``exp(-C / reg)``, never formed: what a solver does with a cost at one regularisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..arrays.namespaces import is_asynchronous
from ..arrays.validation import dtype_name
from ..kernels import CostData, kernels_for

if TYPE_CHECKING:
    from .base import Cost

Array = Any
LOG2E = math.log2(math.e)
LOST = {"float64": 1e-289, "float32": 1e-29}  #: column sums below are at the end of the range of 2**x
#: Entries of a cost tile that is evaluated on the fly: in a cache, or as much as keeps a GPU busy.
TILE_ENTRIES, DEVICE_TILE_ENTRIES = 1 << 19, 1 << 23
LOOK_EVERY = 10  #: iterations between looks at what column sums are lost, where a look means waiting for the device


class GibbsKernel:
    """Operations on plans ``P = 2**(F_i + G_j - k C_ij)``, ``k = log2(e) / reg``, for one cost and one `reg`.

    F and G are the potentials in bits, with the weights and whatever the cost folds away inside:
    ``F = row_offset(a) + k f``, ``G = column_offset(b) + k g``.

    Parameters
    ----------
    cost : Cost
        Ground cost.
    reg : float
        Regularisation strength, in the units of the cost.
    """

    screened = False  #: whether passes leave out what is negligible, which makes them cheaper than stored kernels

    def __init__(self, cost: Cost, reg: float) -> None:
        self.cost = cost
        self.reg = reg
        self.k = LOG2E / reg
        self.xp = cost.xp
        self.kernels = kernels_for(cost.xp)
        self._look_every = LOOK_EVERY if is_asynchronous(cost.xp) else 1
        self._n_iter = 0
        self._data: CostData | None = None
        self._transpose: GibbsKernel | None = None
        n, m = cost.shape
        entries = DEVICE_TILE_ENTRIES if is_asynchronous(cost.xp) else TILE_ENTRIES
        self._tile_rows = n if cost.direct else max(1, entries // m)
        row_norms, column_norms = cost.norms()
        self._row_norms = None if row_norms is None else self.k * row_norms
        self._column_norms = None if column_norms is None else self.k * column_norms

    def _tiles(self) -> Iterator[tuple[int, int, CostData]]:
        """Row ranges that cover the cost, with the data of each."""
        n = self.cost.shape[0]
        if self.cost.direct:
            if self._data is None:
                self._data = self.cost.data(self.k)
            yield 0, n, self._data
            return
        for lo in range(0, n, self._tile_rows):
            hi = min(n, lo + self._tile_rows)
            yield lo, hi, self.cost.tile_data(lo, hi, self.k)

    def _offset(self, weights: Array | None, norms: Array | None, size: int) -> Array:
        xp, dtype = self.xp, self.cost.dtype
        if weights is None:
            logs = xp.zeros(size, dtype=xp.float64, device=self.cost.device)
        else:
            positive = weights > 0
            logs = xp.log2(xp.astype(xp.where(positive, weights, xp.ones_like(weights)), xp.float64))
            logs = xp.where(positive, logs, xp.full_like(logs, -math.inf))
        return xp.astype(logs if norms is None else logs - norms, dtype)

    def row_offset(self, a: Array | None = None) -> Array:
        """F of the potential f = 0: ``log2 a`` less what the cost folds away."""
        return self._offset(a, self._row_norms, self.cost.shape[0])

    def column_offset(self, b: Array | None = None) -> Array:
        """G of the potential g = 0."""
        return self._offset(b, self._column_norms, self.cost.shape[1])

    def fold(self, potential: Array, offset: Array) -> Array:
        """Potential in cost units -> potential in bits."""
        xp = self.xp
        bits = xp.astype(offset, xp.float64) + self.k * xp.astype(potential, xp.float64)
        return xp.astype(bits, self.cost.dtype)

    def unfold(self, bits: Array, offset: Array) -> Array:
        """Potential in bits -> potential in cost units."""
        xp = self.xp
        return xp.astype((xp.astype(bits, xp.float64) - xp.astype(offset, xp.float64)) / self.k, self.cost.dtype)

    def iterate(
        self,
        F: Array,
        G: Array,
        a: Array,
        b: Array,
        offsets: tuple[Array, Array],
        damping: tuple[float, float] = (1.0, 1.0),
        relaxation: float = 1.0,
    ) -> tuple[float, float]:
        """One Sinkhorn iteration in place, each exponential evaluated once; the marginal errors met on the way.

        The errors are numbers, or arrays without dimensions where the device has not come to them yet.
        """
        row_error, column_sums = self.rows(F, G, a, b, offsets, damping, relaxation)
        column_error = self.kernels.sinkhorn_columns(column_sums, b, G, offsets[1], damping[1], relaxation)
        look = self._n_iter % self._look_every == 0
        self._n_iter += 1
        if look and float(self.xp.min(column_sums)) < LOST[dtype_name(self.cost.dtype)]:
            self._update_exactly(F, G, b, offsets[1], damping[1], column_sums)
        return row_error, column_error

    def _update_exactly(
        self, F: Array, G: Array, b: Array, offset: Array, damping: float, column_sums: Array
    ) -> None:
        """Column update, in place, of the columns whose sums are below the range of the kernels."""
        xp = self.xp
        lse = xp.astype(self.column_logsumexp(F), xp.float64)
        lost = (column_sums < LOST[dtype_name(self.cost.dtype)]) & xp.isfinite(lse)
        offset = xp.astype(offset, xp.float64)
        bits = offset + damping * (xp.log2(xp.astype(b, xp.float64)) - lse - offset)
        bits = xp.where(bits + lse < 90, bits, 90 - lse)  # no sum out of the range of the kernels
        G[...] = xp.where(lost, xp.astype(bits, G.dtype), G)

    def rows(
        self,
        F: Array,
        G: Array,
        a: Array,
        b: Array,
        offsets: tuple[Array, Array],
        damping: tuple[float, float] = (1.0, 1.0),
        relaxation: float = 1.0,
    ) -> tuple[float, Array]:
        """The row half of an iteration, in place: the row error before it and the column sums after."""
        row_error, column_sums = 0.0, None
        arguments = damping[0], relaxation
        for lo, hi, data in self._tiles():
            error, sums = self.kernels.sinkhorn_rows(data, F[lo:hi], G, a[lo:hi], offsets[0][lo:hi], *arguments)
            row_error += error
            column_sums = sums if column_sums is None else column_sums + sums
        return row_error, column_sums

    def pair(self, F: Array, G: Array, v: Array, w: Array) -> tuple[Array, Array]:
        """``(t, P' (w t))`` for ``t = P v``, float64."""
        parts, column_sums = [], None
        for lo, hi, data in self._tiles():
            t, sums = self.kernels.plan_pair(data, F[lo:hi], G, v, w[lo:hi])
            parts.append(t)
            column_sums = sums if column_sums is None else column_sums + sums
        return (parts[0] if len(parts) == 1 else self.xp.concat(parts)), column_sums

    def row_logsumexp(self, G: Array) -> Array:
        """``log2 sum_j 2**(G_j - k C_ij)`` without what the cost folds into F."""
        parts = [self.kernels.row_logsumexp(data, G[None, :])[0, :] for _, _, data in self._tiles()]
        return parts[0] if len(parts) == 1 else self.xp.concat(parts)

    def column_logsumexp(self, F: Array) -> Array:
        """``log2 sum_i 2**(F_i - k C_ij)`` without what the cost folds into G."""
        if self.cost.has_transpose:
            if self._transpose is None:
                self._transpose = self.cost.T.gibbs(self.reg)
            return self._transpose.row_logsumexp(F)
        total = None
        for lo, hi, data in self._tiles():
            part = self.kernels.column_logsumexp(data, F[lo:hi])
            total = part if total is None else LOG2E * self.xp.logaddexp(total / LOG2E, part / LOG2E)
        return total

    def softmin_rows(self, g: Array, b: Array) -> Array:
        """``f_i = -reg log sum_j b_j exp((g_j - C_ij) / reg)``: the c-transform of g, smoothed."""
        lse = self.row_logsumexp(self.fold(g, self.column_offset(b)))
        return -self.unfold(lse, -self.row_offset())

    def softmin_columns(self, f: Array, a: Array) -> Array:
        """``g_j = -reg log sum_i a_i exp((f_i - C_ij) / reg)``."""
        lse = self.column_logsumexp(self.fold(f, self.row_offset(a)))
        return -self.unfold(lse, -self.column_offset())

    def statistics(self, F: Array, G: Array) -> tuple[Array, Array, float]:
        """Row sums, column sums and ``<C, P>``, float64, in one pass."""
        xp = self.xp
        rows, column_sums, entropy = [], None, 0.0
        for lo, hi, data in self._tiles():
            r, c, h = self.kernels.marginals(data, F[lo:hi], G)
            rows.append(r)
            column_sums = c if column_sums is None else column_sums + c
            entropy += float(xp.sum(h))
        row_sums = rows[0] if len(rows) == 1 else xp.concat(rows)
        # k C_ij = F_i + G_j - e_ij, plus what the cost folded into F and G
        weighted = self._pair(F - self.row_offset(), row_sums) + self._pair(G - self.column_offset(), column_sums)
        return row_sums, column_sums, (weighted - entropy) / self.k

    def _pair(self, potential: Array, sums: Array) -> float:
        """<potential, sums> in float64 with 0 * inf = 0."""
        xp = self.xp
        potential = xp.astype(potential, xp.float64)
        return float(xp.sum(sums * xp.where(xp.isfinite(potential), potential, xp.zeros_like(potential))))

    def products(
        self, F: Array, G: Array, V: Array | None = None, U: Array | None = None
    ) -> tuple[Array | None, Array | None]:
        """``(P @ V, P.T @ U)`` for V (m, p) and U (n, q)."""
        forward, backward = [], None
        for lo, hi, data in self._tiles():
            PV, PTU = self.kernels.products(data, F[lo:hi], G, V, None if U is None else U[lo:hi, ...])
            forward.append(PV)
            if PTU is not None:
                backward = PTU if backward is None else backward + PTU
        if V is None:
            return None, backward
        return (forward[0] if len(forward) == 1 else self.xp.concat(forward)), backward

    def plan(
        self,
        F: Array,
        G: Array,
        floor: float | None = None,
        dtype: str | None = None,
        out: Array | None = None,
    ) -> Array:
        """Dense plan, zero where the exponent is not above `floor` bits (default: the smallest normal number's)."""
        if out is None:
            kind = self.cost.dtype if dtype is None else getattr(self.xp, dtype)
            out = self.xp.empty(self.cost.shape, dtype=kind, device=self.cost.device)
        for lo, hi, data in self._tiles():
            self.kernels.plan(data, F[lo:hi], G, floor, out=out[lo:hi, :])
        return out

    def mass_histogram(self, F: Array, G: Array) -> Array:
        """Mass of the plan by exponent (see the kernel of this name)."""
        return sum(self.kernels.mass_histogram(data, F[lo:hi], G) for lo, hi, data in self._tiles())

    def row_kth_exponent(self, F: Array, G: Array, k: int) -> Array:
        """k-th largest exponent of every row."""
        return self.xp.concat(
            [self.kernels.row_kth_exponent(data, F[lo:hi], G, k) for lo, hi, data in self._tiles()]
        )

    def csr(
        self, F: Array, G: Array, row_thresholds: Array, max_per_row: int | None = None
    ) -> tuple[Array, Array, Array]:
        """CSR arrays ``(data, indices, indptr)`` of the entries whose exponent reaches the row's threshold."""
        xp = self.xp
        parts = [
            self.kernels.csr_plan(data, F[lo:hi], G, row_thresholds[lo:hi], max_per_row)
            for lo, hi, data in self._tiles()
        ]
        if len(parts) == 1:
            return parts[0]
        pointers, total = [parts[0][2][:1]], 0
        for _, indices, indptr in parts:
            pointers.append(xp.astype(indptr[1:], xp.int64) + total)
            total += indices.shape[0]
        return (
            xp.concat([part[0] for part in parts]),
            xp.concat([part[1] for part in parts]),
            xp.concat([xp.astype(pointer, xp.int64) for pointer in pointers]),
        )
