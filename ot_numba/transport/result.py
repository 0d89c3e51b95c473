"""The result of an entropic transport problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arrays.namespaces import array_namespace, is_numpy, to_numpy
from ..arrays.validation import as_float_array, check_int, check_real
from ..costs import Grid, PointCloud
from ..costs.gibbs import GibbsKernel
from ..kernels.contract import HISTOGRAM_BINS_PER_BIT, HISTOGRAM_BITS
from .objective import objectives
from .problem import Problem, check_vectors

if TYPE_CHECKING:
    import scipy.sparse

    from .rounding import RoundedPlan

Array = Any


class Progress(NamedTuple):
    """One entry of a history: iterations so far, the regularisation at work, and the residual."""

    n_iter: int
    reg: float
    marginal_error: float


@dataclass(frozen=True, repr=False)
class TransportResult:
    r"""Solution of an entropic transport problem; the plan is evaluated only on demand.

    With the KL form, :math:`P_{ij} = a_i b_j \exp((f_i + g_j - C_{ij})/reg)`; with the entropy form,
    :math:`P_{ij} = \exp((f_i + g_j - C_{ij})/reg)`.

    Attributes
    ----------
    value : float
        Objective at the plan: :math:`\langle C, P\rangle + reg\,KL(P | a b^\top)` (KL form) or
        :math:`\langle C, P\rangle + reg \sum P (\log P - 1)` (entropy form), plus the marginal penalties if unbalanced.
        In the units of the cost times mass.
    linear_cost : float
        :math:`\langle C, P\rangle`.
    dual_value : float
        Dual objective at (f, g): a lower bound of the optimal value.
    gap : float
        ``value - dual_value``. The plan of unconverged potentials misses its marginals, so in balanced problems the
        gap has the size of the marginal error and either sign.
    f, g : array of shape (n,), (m,)
        Dual potentials, in the units of the cost. Balanced: shifted so that :math:`\langle f, a\rangle = \langle g,
        b\rangle` in the KL form. Points without weight have the potential of the smoothed c-transform (KL form) or
        ``-inf`` (entropy form).
    marginal_error : float
        :math:`(\|P 1 - a\|_1 + \|P^\top 1 - b\|_1) / mass`, recomputed from f and g at the end. Unbalanced: a and b are
        replaced by the marginals that the optimality conditions ask for, :math:`a e^{-f/\rho_1}`,
        :math:`b e^{-g/\rho_2}`.
    n_iter : int
        Iterations, those of the schedule and Newton steps included.
    converged : bool
        Whether ``marginal_error`` is at most the tolerance (or the rounding floor, if the message says so).
    status : str
        ``"converged"``, ``"max_iter"``, ``"floor"`` (stuck at the rounding floor) or ``"stopped"`` (by the callback).
    message : str
        What happened, with numbers, and what to change.
    history : list of Progress
        ``(n_iter, reg, marginal_error)`` every `check_every` iterations; `NewtonProgress` from solvers that take
        Newton steps.
    """

    value: float
    linear_cost: float
    dual_value: float
    f: Array
    g: Array
    marginal_error: float
    n_iter: int
    converged: bool
    status: str
    message: str
    history: list[Progress]
    problem: Problem = field(repr=False)

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        n, m = self.problem.cost.shape
        return (
            f"TransportResult({n} x {m}, value={self.value:.6g}, linear_cost={self.linear_cost:.6g}, "
            f"marginal_error={self.marginal_error:.1e}, n_iter={self.n_iter}, status={self.status!r})"
        )

    @property
    def gap(self) -> float:
        """``value - dual_value``."""
        return self.value - self.dual_value

    @property
    def reg(self) -> float:
        """Regularisation strength."""
        return self.problem.reg

    @cached_property
    def plan(self) -> Array:
        """The plan as a dense (n, m) array; O(n m) memory, so for small problems."""
        P = self.gibbs.plan(*self.bits)
        if is_numpy(self.problem.xp):
            P.flags.writeable = False
        return P

    @cached_property
    def marginals(self) -> tuple[Array, Array]:
        """Row and column sums of the plan, float64."""
        r, c, _ = self.gibbs.statistics(*self.bits)
        return r, c

    def apply(self, v: Any, *, transpose: bool = False) -> Array:
        r"""Product :math:`P v`, or :math:`P^\top v`, without forming the plan.

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

        Notes
        -----
        O(n m (d + p)) time; O((n + m) p) memory.

        Examples
        --------
        >>> import ot_numba
        >>> result = ot_numba.sinkhorn([[0.0, 1.0], [1.0, 0.0]], reg=0.1)
        >>> result.apply([1.0, 1.0]).tolist()
        [0.5, 0.5]
        """
        size = self.problem.cost.shape[0 if transpose else 1]
        v = check_vectors(v, "v", self.problem, size)
        V = v[:, None] if v.ndim == 1 else v
        forward, backward = self.gibbs.products(*self.bits, **({"U": V} if transpose else {"V": V}))
        out = self.problem.xp.astype(backward if transpose else forward, self.problem.cost.dtype)
        return out[:, 0] if v.ndim == 1 else out

    def project(self, y: Any = None) -> Array:
        r"""Barycentric projection: the mean target of every source point, :math:`(P y)_i / (P 1)_i`.

        Parameters
        ----------
        y : array_like of shape (m, p) or (m,), optional
            Positions, colours or any values of the target points. Default: the target points of the cost.

        Returns
        -------
        array of shape (n, p) or (n,)
            Also for source points without weight, which get the value of the map there.

        Raises
        ------
        ValueError
            If `y` is missing and the cost has no points, or does not fit.

        References
        ----------
        Peyré, Cuturi, "Computational Optimal Transport", remark 4.11, 2019.

        Examples
        --------
        >>> import ot_numba
        >>> C = ot_numba.PointCloud([[0.0], [1.0]], [[0.1], [1.1]])
        >>> ot_numba.sinkhorn(C, reg=0.01).project().round(3).tolist()
        [[0.1], [1.1]]
        """
        y = self._target_points("y") if y is None else check_vectors(y, "y", self.problem, self.problem.cost.shape[1])
        return self._conditional_mean(self.gibbs, y)

    def map(self, new_points: Any, y: Any = None) -> Array:
        r"""Entropic map at points that were not in the problem.

        .. math:: T(x) = \frac{\sum_j b_j e^{(g_j - c(x, y_j))/reg} y_j}{\sum_j b_j e^{(g_j - c(x, y_j))/reg}}

        Parameters
        ----------
        new_points : array_like of shape (k, d)
            Points in the space of the source points; a single point is a row.
        y : array_like of shape (m, p) or (m,), optional
            Values of the target points, default the target points themselves.

        Returns
        -------
        array of shape (k, p) or (k,)
            Equal to `project` at the source points of a converged problem.

        Raises
        ------
        TypeError
            If the cost is not a `PointCloud`: only points can be mapped.

        References
        ----------
        Pooladian, Niles-Weed, "Entropic estimation of optimal transport maps", arXiv 2109.12004.

        Notes
        -----
        O(k m d) time, O((k + m) d) memory.

        Examples
        --------
        >>> import ot_numba
        >>> C = ot_numba.PointCloud([[0.0], [1.0]], [[0.1], [1.1]])
        >>> ot_numba.sinkhorn(C, reg=0.01).map([[0.0]]).round(3).tolist()
        [[0.1]]
        """
        cost = self.problem.cost
        if not isinstance(cost, PointCloud):
            raise TypeError(f"map needs the cost of a PointCloud, got a {type(cost).__name__}")
        array_namespace(cost.x, new_points)
        x = as_float_array(
            new_points, "new_points", ndim=2, xp=self.problem.xp, dtype=cost.dtype, device=cost.device
        )
        if x.shape[1] != cost.x.shape[1]:
            raise ValueError(f"new_points must have dimension {cost.x.shape[1]}, got {x.shape[1]}")
        y = cost.y if y is None else check_vectors(y, "y", self.problem, cost.shape[1])
        return self._conditional_mean(PointCloud(x, cost.y, cost.metric).gibbs(self.reg), y)

    def sparse_plan(
        self,
        *,
        mass_tol: float | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> scipy.sparse.csr_array:
        r"""The plan as a CSR matrix, entries too small to matter left out, never formed densely.

        Exactly one rule, default ``mass_tol=1e-6``.

        Parameters
        ----------
        mass_tol : float, optional
            Drop the smallest entries of the plan while their sum is at most ``mass_tol`` times the mass.
        top_k : int, optional
            Keep the k largest entries of every row.
        threshold : float, optional
            Keep the entries that are at least this large.

        Returns
        -------
        scipy.sparse.csr_array of shape (n, m)
            For CuPy arrays a `cupyx.scipy.sparse.csr_matrix`. With one more attribute, ``dropped_mass``: the mass of
            what was left out, computed from the row sums of the whole plan. Kept entries are unchanged.

        Raises
        ------
        ValueError
            If more than one rule is given, or a value is out of range.

        Notes
        -----
        Three passes over the plan, O(n m d) time; memory O(n + m + kept entries). The threshold for `mass_tol` is taken
        from a histogram of quarter bits, so a little less than `mass_tol` may be dropped.

        Examples
        --------
        >>> import ot_numba
        >>> result = ot_numba.sinkhorn([[0.0, 1.0], [1.0, 0.0]], reg=0.05)
        >>> P = result.sparse_plan(top_k=1)
        >>> P.nnz, bool(P.dropped_mass < 1e-8)
        (2, True)
        """
        rules = {"mass_tol": mass_tol, "top_k": top_k, "threshold": threshold}
        given = [name for name, value in rules.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"sparse_plan takes one of mass_tol, top_k, threshold, got {' and '.join(given)}")
        xp, (n, m) = self.problem.xp, self.problem.cost.shape
        F, G = self.bits
        limit, k = None, None
        if top_k is not None:
            k = check_int(top_k, "top_k", low=1)
            thresholds = self.gibbs.row_kth_exponent(F, G, min(k, m))
        else:
            if threshold is not None:
                threshold = check_real(threshold, "threshold", low=0, low_open=True)
                limit = math.log2(threshold)
            else:
                mass_tol = check_real(1e-6 if mass_tol is None else mass_tol, "mass_tol", low=0, high=1)
                limit = self._exponent_limit(mass_tol)
            thresholds = xp.full((n,), limit, dtype=F.dtype, device=self.problem.cost.device)
        data, indices, indptr = self.gibbs.csr(F, G, thresholds, k)
        return _as_csr(xp, data, indices, indptr, (n, m), float(xp.sum(self.marginals[0])))

    def _exponent_limit(self, mass_tol: float) -> float:
        """Exponent below which at most `mass_tol` of the mass lies."""
        histogram = to_numpy(self.gibbs.mass_histogram(*self.bits))
        below = histogram.cumsum()
        kept = int((below <= mass_tol * below[-1]).sum())
        return kept / HISTOGRAM_BINS_PER_BIT - HISTOGRAM_BITS if kept else -math.inf

    def round(self) -> RoundedPlan:
        """A plan with exactly the marginals a and b, close to this one: its cost bounds the LP optimum.

        Returns
        -------
        RoundedPlan
            The factors of ``diag(x) P diag(y) + row_deficit column_deficit' / sum(row_deficit)``, its
            `linear_cost`, and products with it.

        Raises
        ------
        ValueError
            If the problem is unbalanced: its plan need not have the marginals a and b.

        Notes
        -----
        Four passes over the plan or the cost, O(n m d) time; O(n + m) memory. `round_plan` does the same for
        an array and names the paper.

        Examples
        --------
        >>> import ot_numba
        >>> result = ot_numba.sinkhorn([[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5], [0.3, 0.7], reg=0.05)
        >>> round(result.round().linear_cost, 6)  # the unregularised optimum is 0.2
        0.2
        """
        from .rounding import round_result

        return round_result(self)

    @cached_property
    def gibbs(self) -> GibbsKernel:
        """The Gibbs kernel of the cost."""
        return self.problem.cost.gibbs(self.reg)

    @cached_property
    def bits(self) -> tuple[Array, Array]:
        """Potentials in bits, as the operations of `gibbs` take them."""
        return self.problem.to_bits(self.f, self.g, self.gibbs)

    def _conditional_mean(self, gibbs: GibbsKernel, y: Array) -> Array:
        """Mean of y under softmax_j(log b_j + (g_j - C_ij) / reg), for every row of the kernel."""
        xp = self.problem.xp
        weights = self.problem.b if self.problem.regularizer == "kl" else None
        G = gibbs.fold(self.g, gibbs.column_offset(weights))
        Y = y[:, None] if y.ndim == 1 else y
        means, _ = gibbs.products(-gibbs.row_logsumexp(G), G, V=Y)
        means = xp.astype(means, self.problem.cost.dtype)
        return means[:, 0] if y.ndim == 1 else means

    def _target_points(self, name: str) -> Array:
        cost = self.problem.cost
        if isinstance(cost, PointCloud):
            return cost.y
        if isinstance(cost, Grid):
            axes = self.problem.xp.meshgrid(*cost.y, indexing="ij")
            return self.problem.xp.stack([self.problem.xp.reshape(axis, (-1,)) for axis in axes], axis=1)
        raise ValueError(f"{name} must be given: a {type(cost).__name__} has no target points")


def make_result(
    problem: Problem, f: Array, g: Array, r: Array, c: Array, **numbers: Any
) -> TransportResult:
    """Result for potentials on the positive weights and the marginals of their plan; `numbers` are its other fields."""
    value, dual_value = objectives(problem.restricted, f, g, r, c)
    f, g = problem.extend(f, g)
    return TransportResult(value=value, dual_value=dual_value, f=f, g=g, problem=problem, **numbers)


def _as_csr(xp: Any, data: Array, indices: Array, indptr: Array, shape: tuple[int, int], mass: float) -> Any:
    """CSR container of the array's library, with the mass that was left out."""
    if "cupy" in xp.__name__:
        from cupyx.scipy.sparse import csr_matrix as container
    else:
        from scipy.sparse import csr_array as container

        data, indices, indptr = map(to_numpy, (data, indices, indptr))
    matrix = container((data, indices, indptr), shape=shape)
    matrix.dropped_mass = max(0.0, mass - float(data.sum(dtype="float64")))
    return matrix
