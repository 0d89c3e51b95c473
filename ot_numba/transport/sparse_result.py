"""Quadratic and cardinality-constrained transport problems, and their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..arrays.namespaces import device_of, is_numpy, library_name, to_numpy
from ..costs import PointCloud
from ..costs.gibbs import TILE_ENTRIES
from .objective import pair
from .problem import Problem, check_pair, check_potentials, check_vectors, make_problem
from .projections import ksupport_norm_sq
from .sparse_duals import SparseDual

if TYPE_CHECKING:
    import scipy.sparse

Array = Any


class SparseProgress(NamedTuple):
    """One entry of a history.

    Iterations and evaluations of the (semi-)dual so far, the regularisation and the relaxation at work, the dual value
    of that problem, and the residual relative to the mass.
    """

    n_iter: int
    n_evaluations: int
    reg: float
    relax: float
    dual_value: float
    marginal_error: float


@dataclass(frozen=True)
class SparseModel:
    """min <C, P> + sum over slices of Omega; slices are the rows of P (axis 1) or its columns (axis 0).

    Solvers work on `native`, where slices are rows and no weight is 0.
    """

    problem: Problem
    k: int | None
    relax: float
    axis: int

    @classmethod
    def of(cls, C: Any, a: Any, b: Any, *, reg: Any, k: int | None, relax: float, axis: int) -> SparseModel:
        """Checked data; a `k` that limits nothing is None."""
        problem = make_problem(C, a, b, reg=reg, regularizer="entropy")  # potentials without weight are -inf
        size = problem.restricted.cost.shape[axis]
        return cls(problem, None if k is not None and k >= size else k, relax, axis)

    @cached_property
    def native(self) -> Problem:
        """The problem on the positive weights, its slices as rows."""
        inner = self.problem.restricted
        if self.axis == 1:
            return inner
        return Problem(inner.cost.T, inner.b, inner.a, inner.reg, inner.regularizer, inner.rho)

    @property
    def mass(self) -> float:
        """Total weight."""
        return self.problem.masses[0]

    def dual(self, reg: float | None = None, relax: float | None = None) -> SparseDual:
        """Its (semi-)dual, at another regularisation or relaxation if need be."""
        inner = self.native
        reg, relax = inner.reg if reg is None else reg, self.relax if relax is None else relax
        return SparseDual(inner.cost, inner.a, inner.b, reg, self.k, relax)

    def start(self, init: Any) -> tuple[Array, Array]:
        """Potentials of `native` in float64: 0, those of a result, or a pair (f, g)."""
        problem, xp = self.problem, self.problem.xp
        if init is None:
            f, g = xp.zeros_like(problem.a), xp.zeros_like(problem.b)
        else:
            f, g = (init.f, init.g) if hasattr(init, "f") else check_pair(init, "an earlier result")
            f, g = check_potentials(f, g, problem)
        f, g = (xp.astype(v, xp.float64) for v in problem.restrict(f, g))
        return (f, g) if self.axis == 1 else (g, f)

    def orient(self, F: Array, G: Array) -> tuple[Array, Array]:
        """Potentials f, g of the positive weights from those of the rows and the columns of `native`."""
        return (F, G) if self.axis == 1 else (G, F)


@dataclass(frozen=True, repr=False)
class SparseTransportResult:
    r"""Solution of a quadratic or cardinality-constrained transport problem; its plan is stored as a sparse matrix.

    With :math:`P_s` the slices of the plan (its columns for ``axis=0``, its rows for ``axis=1``), the problem is

    .. math:: \min_{P \ge 0}\ \langle C, P\rangle + \sum_s \Omega(P_s) \quad\text{s.t.}\quad P 1 = a,\ P^\top 1 = b

    Attributes
    ----------
    value : float
        Objective at the plan, with the squared k-support norm in place of the squared norm for slices that have more
        than k entries (see `sparsity_constrained_ot`). In the units of the cost times mass.
    linear_cost : float
        :math:`\langle C, P\rangle`.
    dual_value : float
        (Semi-)dual objective at (f, g): a lower bound of the objective of every plan with the marginals a and b.
    gap : float
        ``value - dual_value``. Of either sign where the plan misses its marginals.
    f, g : array of shape (n,), (m,)
        Dual potentials, in the units of the cost, shifted so that :math:`\langle f, a\rangle = \langle g, b\rangle`;
        ``-inf`` without weight.
    row_error, column_error : float
        :math:`\|P 1 - a\|_1` and :math:`\|P^\top 1 - b\|_1`, relative to the mass, of the plan that is returned.
    marginal_error : float
        Their sum.
    largest_count : int
        Largest number of positive entries in a slice.
    n_iter, n_evaluations : int
        Iterations, and evaluations of the (semi-)dual.
    converged : bool
        Whether ``marginal_error`` is at most the tolerance.
    status : str
        ``"converged"``, ``"max_iter"``, ``"kink"`` (no ascent was found, as at a maximum without a gradient),
        ``"stalled"`` (the dual value no longer changed), ``"floor"`` (rounding), ``"infeasible"`` (forbidden pairs
        leave no plan) or ``"stopped"`` (by the callback).
    message : str
        What happened, with numbers, and what to change.
    history : list of SparseProgress
        One entry for each iteration.
    repaired : bool
        Whether the plan was replaced by one with exact marginals on its support.
    k : int or None
        Largest number of positive entries in a slice that was asked for; None if that is no limit.
    relax : float
        Strength of the relaxation, relative to `reg`.
    axis : int
        Which slices: 0 columns, 1 rows.
    """

    value: float
    linear_cost: float
    dual_value: float
    f: Array
    g: Array
    row_error: float
    column_error: float
    largest_count: int
    n_iter: int
    n_evaluations: int
    converged: bool
    status: str
    message: str
    history: list[SparseProgress]
    repaired: bool
    k: int | None
    relax: float
    axis: int
    problem: Problem = field(repr=False)
    csr: Any = field(repr=False)

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        n, m = self.problem.cost.shape
        return (
            f"SparseTransportResult({n} x {m}, k={self.k}, value={self.value:.6g}, dual_value={self.dual_value:.6g}, "
            f"marginal_error={self.marginal_error:.1e}, nnz={self.nnz}, n_iter={self.n_iter}, status={self.status!r})"
        )

    @property
    def gap(self) -> float:
        """``value - dual_value``."""
        return self.value - self.dual_value

    @property
    def reg(self) -> float:
        """Regularisation strength."""
        return self.problem.reg

    @property
    def marginal_error(self) -> float:
        """L1 error of both marginals, relative to the mass."""
        return self.row_error + self.column_error

    @property
    def nnz(self) -> int:
        """Number of positive entries of the plan."""
        return int(self.csr.nnz)

    @cached_property
    def plan(self) -> Array:
        """The plan as a dense (n, m) array; O(n m) memory."""
        P = self.csr.toarray()
        xp = self.problem.xp
        if is_numpy(xp):
            P.flags.writeable = False
            return P
        return xp.asarray(P, device=self.problem.cost.device)

    def sparse_plan(self) -> scipy.sparse.csr_array:
        """The plan as a CSR matrix: of SciPy, or of CuPy for its arrays.

        Returns
        -------
        scipy.sparse.csr_array of shape (n, m)
            A copy, in the dtype of the cost; its columns are in order.

        Examples
        --------
        >>> import ot_numba
        >>> ot_numba.quadratic_ot([[0.0, 1.0], [1.0, 0.0]], reg=0.1).sparse_plan().toarray().tolist()
        [[0.5, 0.0], [0.0, 0.5]]
        """
        if library_name(self.problem.xp) == "cupy":
            from cupyx.scipy.sparse import csr_matrix

            return csr_matrix(self.csr)
        return self.csr.copy()

    def apply(self, v: Any, *, transpose: bool = False) -> Array:
        r"""Product :math:`P v`, or :math:`P^\top v`.

        Parameters
        ----------
        v : array_like of shape (m,) or (m, p); (n,) or (n, p) if `transpose`
            What to transport.
        transpose : bool, default False
            Whether to multiply by the transposed plan.

        Returns
        -------
        array of shape (n,) or (n, p); (m,) or (m, p) if `transpose`
            In the dtype of the cost.

        Raises
        ------
        ValueError
            If the shape does not fit or an entry is not finite.

        Examples
        --------
        >>> import ot_numba
        >>> ot_numba.quadratic_ot([[0.0, 1.0], [1.0, 0.0]], reg=0.1).apply([1.0, 3.0]).tolist()
        [0.5, 1.5]
        """
        v = check_vectors(v, "v", self.problem, self.problem.cost.shape[0 if transpose else 1])
        P = self.csr.T if transpose else self.csr
        return self.problem.xp.asarray(P @ to_numpy(v), device=self.problem.cost.device)

    def project(self, y: Any = None) -> Array:
        r"""Barycentric projection: the mean target of every source point, :math:`(P y)_i / (P 1)_i`.

        Parameters
        ----------
        y : array_like of shape (m, p) or (m,), optional
            Values of the target points; default: the points of the cost.

        Returns
        -------
        array of shape (n, p) or (n,)
            NaN for source points that the plan gives no mass.

        Raises
        ------
        ValueError
            If `y` is missing and the cost has no points, or does not fit.

        Examples
        --------
        >>> import ot_numba
        >>> C = ot_numba.PointCloud([[0.0], [1.0]], [[0.1], [1.1]])
        >>> ot_numba.quadratic_ot(C, reg=0.01).project().tolist()
        [[0.1], [1.1]]
        """
        cost = self.problem.cost
        if y is None and not isinstance(cost, PointCloud):
            raise ValueError(f"y must be given: a {type(cost).__name__} has no target points")
        y = to_numpy(cost.y if y is None else check_vectors(y, "y", self.problem, cost.shape[1]))
        sums = self.csr.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            out = ((self.csr @ y).T / sums).T.astype(self.csr.dtype)
        return self.problem.xp.asarray(out, device=cost.device)


class SparseReport:
    """What a solver found, in the orientation of `native`, and how good it is."""

    def __init__(self, model: SparseModel, F: Array, G: Array, plan: tuple[Array, Array, Array]) -> None:
        from scipy.sparse import csr_array

        self.model, self.F, self.G = model, F, G
        indptr, indices, values = map(to_numpy, plan)
        self.P = csr_array((values, indices, indptr), shape=model.native.cost.shape)
        self.repaired = False

    def errors(self) -> tuple[float, float]:
        """L1 errors of the rows and of the columns, relative to the mass."""
        inner = self.model.native
        first, second = (
            float(np.abs(self.P.sum(axis=axis, dtype=float) - to_numpy(weights)).sum()) / self.model.mass
            for axis, weights in ((1, inner.a), (0, inner.b))
        )
        return first, second

    def counts(self) -> np.ndarray:
        """Positive entries of each row."""
        return np.diff(self.P.indptr)

    def result(self, dual_value: float, **numbers: Any) -> SparseTransportResult:
        """The result in the orientation of the user; `numbers` are its other fields."""
        model, problem = self.model, self.model.problem
        xp, inner = problem.xp, model.native
        linear_cost = _linear_cost(inner, self.P)
        errors = self.errors() if model.axis == 1 else self.errors()[::-1]
        shift = (pair(xp, self.F, inner.a) - pair(xp, self.G, inner.b)) / (2 * model.mass)
        potentials = (xp.astype(v, inner.cost.dtype) for v in (self.F - shift, self.G + shift))
        f, g = problem.extend(*model.orient(*potentials))
        return SparseTransportResult(
            value=linear_cost + self._penalty(),
            linear_cost=linear_cost,
            dual_value=dual_value,
            f=f,
            g=g,
            row_error=errors[0],
            column_error=errors[1],
            largest_count=int(self.counts().max()),
            repaired=self.repaired,
            k=model.k,
            relax=model.relax,
            axis=model.axis,
            problem=problem,
            csr=_embedded(self.P if model.axis == 1 else self.P.T, problem),
            **numbers,
        )

    def _penalty(self) -> float:
        """Sum of Omega over the rows."""
        model, reg = self.model, self.model.problem.reg
        values = self.P.data.astype(float)
        squares = float((values * values).sum())
        counts = self.counts()
        if model.k is None or counts.max() <= model.k:
            norms = squares
        else:
            padded = np.zeros((len(counts), counts.max()))
            padded[np.arange(counts.max()) < counts[:, None]] = values
            norms = float(np.sum(ksupport_norm_sq(padded, model.k)))
        return reg / 2 * (norms + model.relax * squares)


def _linear_cost(problem: Problem, P: Any) -> float:
    """<C, P> for a sparse P of SciPy."""
    xp, (n, m) = problem.xp, problem.cost.shape
    total, step = 0.0, max(1, TILE_ENTRIES // m)
    for lo in range(0, n, step):
        hi = min(n, lo + step)
        tile = P[lo:hi]
        where = np.repeat(np.arange(hi - lo), np.diff(tile.indptr)) * m + tile.indices
        costs = xp.reshape(problem.cost.rows(lo, hi), (-1,))
        costs = to_numpy(xp.take(costs, xp.asarray(where, device=device_of(costs))))
        total += float((costs.astype(float) * tile.data).sum())
    return total


def _embedded(P: Any, problem: Problem) -> Any:
    """The plan between all points, as CSR, from that of those with weight."""
    from scipy.sparse import coo_array

    P = P.tocoo()
    row, column = P.coords
    rows, columns = (None if support is None else to_numpy(support) for support in problem.support)
    row, column = row if rows is None else rows[row], column if columns is None else columns[column]
    out = coo_array((P.data, (row, column)), shape=problem.cost.shape).tocsr()
    out.sort_indices()
    return out
