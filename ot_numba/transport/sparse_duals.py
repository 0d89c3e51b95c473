"""Dual and semi-dual of quadratic and cardinality-constrained transport, evaluated row by row, and their plans."""

from __future__ import annotations

import math
from typing import Any

from ..costs import Cost, GibbsKernel
from ..costs.gibbs import LOG2E
from ..kernels import kernels_for
from .objective import pair

Array = Any


class SparseDual:
    r"""(Semi-)dual of :math:`\min \langle C, P\rangle + \sum_i \Omega(P_i)` over plans with marginals a and b.

    .. math::

        \Omega(t) = \tfrac{reg}{2} \|t\|^2 \ \text{if at most k entries of } t \ge 0 \text{ are positive, else }
        \infty

    and with `relax` the convex function :math:`\Omega^{**} + \tfrac{relax\, reg}{2} \|\cdot\|^2`, whose conjugate is
    smooth. Points without weight have potential -inf and take no part.

    Parameters
    ----------
    cost : Cost
        Ground cost (n, m).
    a, b : array of shape (n,), (m,)
        Weights of equal totals.
    reg : float
        Regularisation strength, in the units of the cost per mass. 0 with ``k=1``: no regularisation, for which only
        the semi-dual is defined.
    k : int, optional
        Largest number of positive entries in a row of the plan; None, or any number from m on, is no limit.
    relax : float
        See above.
    """

    def __init__(
        self, cost: Cost, a: Array, b: Array, reg: float, k: int | None = None, relax: float = 0.0
    ) -> None:
        self.cost, self.a, self.b, self.reg = cost, a, b, reg
        self.xp = cost.xp
        m = cost.shape[1]
        self.k = m if k is None else min(k, m)
        self.delta = relax * reg
        self.kernels = kernels_for(cost.xp, "topk")
        self._tiled = GibbsKernel(cost, LOG2E)  # at k = 1: its exponents are in the units of the cost
        self._row_norms = -self.xp.astype(self._tiled.row_offset(), self.xp.float64)
        self._column_offset = self._tiled.column_offset()

    def semidual(self, g: Array) -> tuple[float, Array, Array]:
        r"""Value, gradient, and the f that maximises the dual for this g.

        Parameters
        ----------
        g : array of shape (m,)
            Column potential, in the units of the cost.

        Returns
        -------
        value : float
            :math:`\langle f, a\rangle + \langle g, b\rangle - \sum_i \Omega^*(f_i + g - C_i)`.
        grad : array of shape (m,)
            b minus the column sums of the plan, float64; 0 where b is.
        f : array of shape (n,)
            Row potential, float64; in rows without weight the limit for small ones.
        """
        G = self._columns(g)
        arguments = self.reg, self.k, self.delta
        F, conjugates, sums = self._collect(
            self.kernels.semidual_rows(data, G, self.a[lo:hi], *arguments)
            for lo, hi, data in self._tiled._tiles()
        )
        f = F + self._row_norms
        return self._value(f, g, conjugates), self._residual(self.b, sums), f

    def dual(self, f: Array, g: Array) -> tuple[float, Array, Array]:
        r"""Value :math:`\langle f, a\rangle + \langle g, b\rangle - \sum_i \Omega^*(f_i + g - C_i)` and gradients.

        Parameters
        ----------
        f, g : array of shape (n,), (m,)
            Potentials, in the units of the cost.

        Returns
        -------
        value : float
        grad_f, grad_g : array of shape (n,), (m,)
            Weights minus sums of the plan, float64; 0 where there is no weight.
        """
        F, G = self._rows(f), self._columns(g)
        arguments = self.reg, self.k, self.delta
        rows, conjugates, sums = self._collect(
            self.kernels.dual_rows(data, F[lo:hi], G, *arguments) for lo, hi, data in self._tiled._tiles()
        )
        return self._value(f, g, conjugates), self._residual(self.a, rows), self._residual(self.b, sums)

    def plan_from_semidual(self, g: Array) -> tuple[Array, Array, Array, Array]:
        """CSR arrays ``(indptr, indices, values)`` of the plan whose rows sum to a, and f as in `semidual`."""
        xp = self.xp
        _, _, f = self.semidual(g)
        if self.reg > 0:
            return *self.plan_from_dual(f, g), f
        # the largest entry of every row, whatever it is: f is minus that entry
        F = xp.where(self.a > 0, f + xp.abs(f) + 1.0, -math.inf)
        indptr, indices, _ = self._plan(F, self._columns(g), 1.0)
        return indptr, indices, self.a[self.a > 0], f

    def plan_from_dual(self, f: Array, g: Array) -> tuple[Array, Array, Array]:
        """CSR arrays ``(indptr, indices, values)`` of the plan of f and g, columns in order."""
        return self._plan(self._rows(f), self._columns(g), self.reg)

    def _plan(self, F: Array, G: Array, reg: float) -> tuple[Array, Array, Array]:
        xp = self.xp
        parts = [
            self.kernels.plan_rows(data, F[lo:hi], G, reg, self.k, self.delta)
            for lo, hi, data in self._tiled._tiles()
        ]
        if len(parts) == 1:
            data, indices, indptr = parts[0]
            return indptr, indices, data
        pointers, total = [xp.astype(parts[0][2][:1], xp.int64)], 0
        for _, indices, indptr in parts:
            pointers.append(xp.astype(indptr[1:], xp.int64) + total)
            total += indices.shape[0]
        return xp.concat(pointers), xp.concat([part[1] for part in parts]), xp.concat([part[0] for part in parts])

    def _collect(self, parts: Any) -> tuple[Array, Array, Array]:
        """Row results of all tiles one after the other, column sums added."""
        firsts, seconds, sums = [], [], None
        for first, second, columns in parts:
            firsts.append(first)
            seconds.append(second)
            sums = columns if sums is None else sums + columns
        return self.xp.concat(firsts), self.xp.concat(seconds), sums

    def _rows(self, f: Array) -> Array:
        """F for the kernels: float64, without what the cost leaves out, -inf without weight."""
        F = self.xp.astype(f, self.xp.float64) - self._row_norms
        return self.xp.where(self.a > 0, F, -math.inf)

    def _columns(self, g: Array) -> Array:
        """G for the kernels: in the dtype of the cost, -inf without weight."""
        G = self._tiled.fold(g, self._column_offset)
        return self.xp.where(self.b > 0, G, self.xp.full_like(G, -math.inf))

    def _value(self, f: Array, g: Array, conjugates: Array) -> float:
        return pair(self.xp, f, self.a) + pair(self.xp, g, self.b) - float(self.xp.sum(conjugates))

    def _residual(self, weights: Array, sums: Array) -> Array:
        xp = self.xp
        return xp.where(weights > 0, xp.astype(weights, xp.float64) - sums, xp.zeros_like(sums))
