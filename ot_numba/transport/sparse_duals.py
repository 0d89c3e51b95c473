"""Dual and semi-dual of quadratic and cardinality-constrained transport, evaluated row by row, and their plans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arrays.namespaces import array_namespace, device_of
from ..arrays.validation import check_choice, check_int, check_real
from ..costs import Cost, GibbsKernel
from ..costs.gibbs import LOG2E
from ..kernels import kernels_for
from .problem import Problem, check_potentials, make_problem
from .result import _as_csr

if TYPE_CHECKING:
    import scipy.sparse

Array = Any
SPARSE_REGULARIZERS = ("none", "l2", "ksparse")


@dataclass(frozen=True, repr=False)
class SparsePlan:
    r"""A transport plan by its positive entries, and the potentials that it belongs to.

    Attributes
    ----------
    indptr : integer array of shape (n + 1,)
        The entries of row i are those from ``indptr[i]`` to ``indptr[i + 1]``.
    indices : integer array of shape (nnz,)
        Their columns, in order within each row.
    values : array of shape (nnz,)
        Their masses, > 0, in the dtype of the cost.
    shape : tuple of int
        ``(n, m)``.
    f, g : array of shape (n,), (m,)
        Potentials, in the units of the cost.

    Examples
    --------
    >>> import ot_numba
    >>> plan = ot_numba.semidual_sparse_plan([0.0, 0.0], [[0.0, 0.1], [0.7, 0.0]], reg=0.5)
    >>> plan
    SparsePlan(2 x 2, nnz=3)
    >>> indices, values = plan.lists()
    >>> indices.tolist(), values.round(6).tolist()
    ([[0, 1], [1, -1]], [[0.35, 0.15], [0.5, 0.0]])
    >>> plan.to_csr().sum(axis=0).round(6).tolist()
    [0.35, 0.65]
    """

    indptr: Array
    indices: Array
    values: Array
    shape: tuple[int, int]
    f: Array
    g: Array

    def __repr__(self) -> str:
        return f"SparsePlan({self.shape[0]} x {self.shape[1]}, nnz={self.nnz})"

    @property
    def nnz(self) -> int:
        """Number of positive entries."""
        return int(self.values.shape[0])

    def to_csr(self) -> scipy.sparse.csr_array:
        """The plan as a ``scipy.sparse.csr_array``; for CuPy arrays a ``cupyx.scipy.sparse.csr_matrix``."""
        xp = array_namespace(self.values)
        mass = float(xp.sum(xp.astype(self.values, xp.float64)))
        return _as_csr(xp, self.values, self.indices, self.indptr, self.shape, mass)

    def lists(self) -> tuple[Array, Array]:
        """The plan as lists of equal length.

        Returns
        -------
        indices : integer array of shape (n, width)
            Columns of the entries of each row, in order, then -1; the width is the largest number of entries of a row.
        values : array of shape (n, width)
            Their masses, then 0.
        """
        xp = array_namespace(self.values)
        first, last = self.indptr[:-1, None], self.indptr[1:, None]
        width = int(xp.max(last - first))
        position = first + xp.arange(width, dtype=self.indptr.dtype, device=device_of(self.indptr))[None, :]
        inside = position < last
        chosen = xp.reshape(xp.where(inside, position, xp.zeros_like(position)), (-1,))
        indices, values = (
            xp.where(inside, xp.reshape(xp.take(v, chosen), inside.shape), missing)
            for v, missing in ((self.indices, -1), (self.values, 0))
        )
        return indices, values


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
        self._rows, self._columns = (
            _Side(self.xp, weights, norms) for weights, norms in zip((a, b), cost.norms(), strict=True)
        )

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
        G = self.xp.astype(self._columns.fold(g), self.cost.dtype)
        arguments = self.reg, self.k, self.delta
        F, conjugates, sums = self._collect(
            self.kernels.semidual_rows(data, G, self.a[lo:hi], *arguments)
            for lo, hi, data in self._tiled._tiles()
        )
        f = self._rows.unfold(F)
        return self._value(f, g, conjugates), self._columns.residual(sums), f

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
        F, G = self._rows.fold(f), self.xp.astype(self._columns.fold(g), self.cost.dtype)
        arguments = self.reg, self.k, self.delta
        rows, conjugates, sums = self._collect(
            self.kernels.dual_rows(data, F[lo:hi], G, *arguments) for lo, hi, data in self._tiled._tiles()
        )
        return self._value(f, g, conjugates), self._rows.residual(rows), self._columns.residual(sums)

    def plan_from_semidual(self, g: Array) -> tuple[Array, Array, Array, Array]:
        """CSR arrays ``(indptr, indices, values)`` of the plan whose rows sum to a, and f as in `semidual`."""
        G = self.xp.astype(self._columns.fold(g), self.cost.dtype)
        arguments = self.reg, self.k, self.delta
        parts = [
            self.kernels.semidual_plan_rows(data, G, self.a[lo:hi], *arguments)
            for lo, hi, data in self._tiled._tiles()
        ]
        F = self.xp.concat([part[0] for part in parts])
        return *self._joined([part[1:] for part in parts]), self._rows.unfold(F)

    def plan_from_dual(self, f: Array, g: Array) -> tuple[Array, Array, Array]:
        """CSR arrays ``(indptr, indices, values)`` of the plan of f and g, columns in order."""
        F, G = self._rows.fold(f), self.xp.astype(self._columns.fold(g), self.cost.dtype)
        arguments = self.reg, self.k, self.delta
        parts = [
            self.kernels.plan_rows(data, F[lo:hi], G, *arguments) for lo, hi, data in self._tiled._tiles()
        ]
        return self._joined(parts)

    def _joined(self, parts: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
        """CSR arrays of all tiles as those of one matrix."""
        xp = self.xp
        if len(parts) == 1:
            data, indices, indptr = parts[0]
            return indptr, indices, data
        pointers, total = [xp.astype(parts[0][2][:1], xp.int64)], 0
        for _, indices, indptr in parts:
            pointers.append(xp.astype(indptr[1:], xp.int64) + total)
            total += indices.shape[0]
        indices = xp.concat([part[1] for part in parts])
        indptr = xp.concat(pointers)
        if total <= xp.iinfo(indices.dtype).max:
            indptr = xp.astype(indptr, indices.dtype)
        return indptr, indices, xp.concat([part[0] for part in parts])

    def _collect(self, parts: Any) -> tuple[Array, Array, Array]:
        """Row results of all tiles one after the other, column sums added."""
        firsts, seconds, sums = [], [], None
        for first, second, columns in parts:
            firsts.append(first)
            seconds.append(second)
            sums = columns if sums is None else sums + columns
        return self.xp.concat(firsts), self.xp.concat(seconds), sums

    def _value(self, f: Array, g: Array, conjugates: Array) -> float:
        return self._rows.pair(f) + self._columns.pair(g) - float(self.xp.sum(conjugates))


class _Side:
    """Weights of one side, and the terms of its points that the cost leaves out of its entries."""

    def __init__(self, xp: Any, weights: Array, norms: Array | None) -> None:
        self.xp, self.norms = xp, norms
        self.weights = xp.astype(weights, xp.float64)
        self.positive = None if bool(xp.all(weights > 0)) else weights > 0

    def _masked(self, x: Array, missing: float) -> Array:
        """``x`` where there is weight, else `missing`."""
        return x if self.positive is None else self.xp.where(self.positive, x, missing)

    def fold(self, potential: Array) -> Array:
        """Potential for the kernels, float64: -inf without weight."""
        out = self.xp.astype(potential, self.xp.float64)
        return self._masked(out if self.norms is None else out - self.norms, -math.inf)

    def unfold(self, potential: Array) -> Array:
        """Potential from the kernels in the units of the cost."""
        return potential if self.norms is None else potential + self.norms

    def pair(self, potential: Array) -> float:
        """<potential, weights>; what has no weight does not count."""
        xp = self.xp
        return float(xp.sum(self._masked(xp.astype(potential, xp.float64), 0.0) * self.weights))

    def residual(self, sums: Array) -> Array:
        """Weights less sums, 0 where there is no weight."""
        return self._masked(self.weights - sums, 0.0)


def semidual_sparse_plan(
    g: Any,
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float | None = None,
    regularizer: str = "l2",
    k: int | None = None,
    relax: float = 0.0,
) -> SparsePlan:
    r"""Sparse plan at a point of the semi-dual: each row is the best one for the column potential.

    .. math::

        P_i = \operatorname{argmax}_{t \ge 0,\ \sum_j t_j = a_i} \langle g - C_i, t\rangle - \Omega(t)

    with :math:`\Omega(t) = \tfrac{reg}{2} \|t\|^2` (``"l2"``), the same for at most k positive entries and infinite
    for more (``"ksparse"``), or 0 (``"none"``). The rows sum to a; the columns sum to b less the gradient of
    `semidual_value_and_grad`, so to b at a maximiser where the gradient exists. With ``"ksparse"`` and small k the
    maximum often is at a kink, where the columns miss b, and no plan with k positive entries per row and both marginals
    may exist. `relax` > 0 adds :math:`\tfrac{relax\, reg}{2} \|t\|^2` to the convex hull of the k-sparse
    :math:`\Omega`, which makes the semi-dual smooth, and its plan meet both marginals at the maximum, for a few
    rows with more than k entries.

    Parameters
    ----------
    g : array_like of shape (m,)
        Column potential, in the units of the cost. Where b is 0 it does not matter, and may be ``-inf``.
    C : Cost or array_like of shape (n, m)
        Ground cost.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0 of any one total; default uniform.
    reg : float
        Regularisation strength > 0, in the units of the cost per mass. ``"none"`` does not use it.
    regularizer : {"none", "l2", "ksparse"}, default "l2"
        See above.
    k : int
        Largest number of positive entries in a row, >= 1; with ``"ksparse"`` only. From m on it is ``"l2"``.
    relax : float, default 0
        See above, >= 0; with ``"ksparse"`` only. 0.1 is a good value.

    Returns
    -------
    SparsePlan
        CSR arrays, f and g. Of equal entries those of lowest index are kept.

    Raises
    ------
    ValueError, TypeError
        As `semidual_value_and_grad`.

    Notes
    -----
    Two passes over the cost, O(n m d) time; O(n + m + nnz) memory beyond it. For at most k entries in each column
    transpose the problem: ``semidual_sparse_plan(f, C.T, b, a, ...)``.

    References
    ----------
    Liu, Puigcerver, Blondel, "Sparsity-constrained optimal transport", ICLR 2023, arXiv 2209.15466. The relaxation
    by `relax` is not from there.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 0.1, 1.0], [0.8, 0.2, 0.1]]
    >>> plan = ot_numba.semidual_sparse_plan([0.0, 0.0, 0.0], C, reg=0.5, regularizer="ksparse", k=2)
    >>> plan.to_csr().toarray().round(6).tolist()
    [[0.35, 0.15, 0.0], [0.0, 0.15, 0.35]]
    >>> indices, values = plan.lists()
    >>> indices.tolist()
    [[0, 1], [1, 2]]
    """
    problem, dual = make_sparse_dual(C, a, b, reg=reg, regularizer=regularizer, k=k, relax=relax)
    _, g = check_potentials(problem.xp.zeros_like(problem.a), g, problem)
    indptr, indices, values, f = dual.plan_from_semidual(g)
    f = problem.xp.astype(f, problem.cost.dtype)
    return SparsePlan(indptr, indices, values, problem.cost.shape, f, g)


def dual_sparse_plan(
    f: Any,
    g: Any,
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "l2",
    k: int | None = None,
    relax: float = 0.0,
) -> SparsePlan:
    r"""Sparse plan of a pair of dual potentials.

    .. math::

        P_i = \operatorname{argmax}_{t \ge 0} \langle f_i + g - C_i, t\rangle - \Omega(t)

    which is :math:`P_{ij} = \max(f_i + g_j - C_{ij}, 0) / reg` for ``"l2"``, and the same for the k largest entries of
    each row and 0 for the others for ``"ksparse"``. Its marginals are a and b less the gradients of
    `dual_value_and_grad`.

    Parameters
    ----------
    f, g : array_like of shape (n,), (m,)
        Potentials, in the units of the cost. Where a weight is 0 its potential does not matter, and may be ``-inf``.
    C : Cost or array_like of shape (n, m)
        Ground cost.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0 of any one total; default uniform. Only where they are 0 matters.
    reg : float
        Regularisation strength > 0, in the units of the cost per mass.
    regularizer : {"l2", "ksparse"}, default "l2"
        See above.
    k : int
        Largest number of positive entries in a row, >= 1; with ``"ksparse"`` only. From m on it is ``"l2"``.
    relax : float, default 0
        As in `semidual_sparse_plan`.

    Returns
    -------
    SparsePlan
        CSR arrays, f and g. Of equal entries those of lowest index are kept.

    Raises
    ------
    ValueError, TypeError
        As `dual_value_and_grad`.

    Notes
    -----
    Two passes over the cost, O(n m d) time; O(n + m + nnz) memory beyond it.

    References
    ----------
    Blondel, Seguy, Rolet, "Smooth and sparse optimal transport", AISTATS 2018, arXiv 1710.06276. Liu, Puigcerver,
    Blondel, "Sparsity-constrained optimal transport", ICLR 2023, arXiv 2209.15466.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 1.0], [1.0, 0.0]]
    >>> ot_numba.dual_sparse_plan([0.25, 0.25], [0.0, 0.0], C, reg=0.5).to_csr().toarray().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    refuse_no_regularization(regularizer)
    problem, dual = make_sparse_dual(C, a, b, reg=reg, regularizer=regularizer, k=k, relax=relax)
    f, g = check_potentials(f, g, problem)
    return SparsePlan(*dual.plan_from_dual(f, g), problem.cost.shape, f, g)


def make_sparse_dual(
    C: Any, a: Any, b: Any, *, reg: Any, regularizer: str, k: Any = None, relax: Any = 0.0
) -> tuple[Problem, SparseDual]:
    """Checked data, and the (semi-)dual of one of `SPARSE_REGULARIZERS`."""
    check_choice(regularizer, "regularizer", SPARSE_REGULARIZERS)
    k, relax = check_cardinality(regularizer, k, relax)
    if regularizer == "none":
        problem = make_problem(C, a, b, reg=1.0 if reg is None else reg)
        return problem, SparseDual(problem.cost, problem.a, problem.b, 0.0, 1)
    problem = make_problem(C, a, b, reg=reg)
    return problem, SparseDual(problem.cost, problem.a, problem.b, problem.reg, k, relax)


def check_cardinality(regularizer: str, k: Any, relax: Any) -> tuple[int | None, float]:
    """Limit on the positive entries of a row and its relaxation, which go with "ksparse" alone."""
    relax = check_real(relax, "relax", low=0, high=math.inf, high_open=True)
    if regularizer == "ksparse":
        if k is None:
            raise ValueError("k must be given with regularizer='ksparse'")
        return check_int(k, "k", low=1), relax
    if k is not None or relax > 0:
        name, value = ("k", k) if k is not None else ("relax", relax)
        raise ValueError(f"{name} goes with regularizer='ksparse', got {name}={value!r} with {regularizer!r}")
    return None, 0.0


def refuse_no_regularization(regularizer: str) -> None:
    """Raise where a function of both potentials is asked for that is not finite, or not smooth, anywhere of use."""
    if regularizer == "none":
        raise ValueError("regularizer='none' has a semi-dual only: its dual is infinite where f_i + g_j > C_ij")
