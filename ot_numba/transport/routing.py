"""Load-balanced routing of tokens to experts by sparse transport."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, to_numpy
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..costs import CostMatrix
from ..optimize import adam, lbfgs
from .sparse_duals import SparseDual

Array = Any
MODES = ("experts_choose", "tokens_choose")
SOLVERS = ("adam", "lbfgs")


@dataclass(frozen=True, repr=False)
class RoutingResult:
    """Which tokens go to which experts.

    Attributes
    ----------
    plan : array of shape (..., T, E)
        Transport plan: of total mass T, rows for tokens. Its positive entries decide the dispatch.
    capacity : int
        Tokens that an expert takes at most (``"experts_choose"``), or experts of a token (``"tokens_choose"``).
    coverage : float
        Share of the tokens that at least one expert takes.
    load : integer array of shape (..., E)
        Tokens of each expert.
    marginal_error : float
        L1 error of the plan's marginals relative to the mass, the largest of all groups. It need not be small.
    potentials : array of shape (..., T) or (..., E)
        Potentials of the tokens (``"experts_choose"``), or of the experts, that the solver found.
    n_iter : int
        Iterations, the most of any group.
    """

    plan: Array
    capacity: int
    coverage: float
    load: Array
    marginal_error: float
    potentials: Array
    n_iter: int
    scores: Array = field(repr=False)

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        return (
            f"RoutingResult({tuple(self.plan.shape)}, capacity={self.capacity}, coverage={self.coverage:.3f}, "
            f"marginal_error={self.marginal_error:.1e}, n_iter={self.n_iter})"
        )

    @property
    def dispatch(self) -> Array:
        """Whether an expert takes a token, bool of shape (..., T, E)."""
        return self.plan > 0

    @property
    def combine(self) -> Array:
        """Weights of the experts' answers: the scores where there is a dispatch, else 0; (..., T, E)."""
        xp = array_namespace(self.scores)
        return xp.where(self.dispatch, self.scores, xp.zeros_like(self.scores))


def route_tokens(
    scores: Any,
    capacity: int | None = None,
    *,
    capacity_factor: float = 1.0,
    multiple_of: int = 4,
    mode: str = "experts_choose",
    reg: float = 1.0,
    solver: str = "adam",
    learning_rate: float = 1e-2,
    tol: float = 0.0,
    max_iter: int = 20,
) -> RoutingResult:
    r"""Dispatch tokens to experts by sparsity-constrained transport with the cost ``-scores``.

    .. math::

        \min_{P \ge 0}\ -\langle S, P\rangle + \tfrac{reg}{2} \|P\|_2^2 \quad\text{s.t.}\quad P 1 = 1,\
        P^\top 1 = \tfrac{T}{E} 1

    with at most `capacity` entries in every column (experts choose), or in every row (tokens choose). The limit and the
    sums of the limited side hold exactly; those of the other side as far as the iterations got, and as the limit lets
    them, which is what leaves tokens without an expert.

    Parameters
    ----------
    scores : array_like of shape (T, E) or (G, T, E)
        Affinities of T tokens and E experts, such as softmax gates; G groups are routed independently.
    capacity : int, optional
        The limit. Default for experts: :math:`\lceil T\, capacity\_factor / E\rceil`, rounded up to `multiple_of`; for
        tokens: 1. One that exceeds the number of tokens, or experts, is that number.
    capacity_factor : float
        See `capacity`.
    multiple_of : int
        See `capacity`.
    mode : {"experts_choose", "tokens_choose"}
        Which side has the limit.
    reg : float
        Regularisation strength > 0, in the units of the scores.
    solver : {"adam", "lbfgs"}
        A fixed number of cheap steps on all groups at once; or `optimize.lbfgs`, which covers more tokens.
    learning_rate : float
        Of Adam, in the units of the scores.
    tol : float
        On the L1 error of the marginals relative to the mass; a group that has reached it stops.
    max_iter : int
        Largest number of iterations; for ``"lbfgs"`` a few hundred.

    Returns
    -------
    RoutingResult
        Never a warning for marginals that are missed: the limit makes that the rule.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    O(G T E) time for an iteration, and for the memory of the plan.

    References
    ----------
    Liu, Puigcerver, Blondel, "Sparsity-constrained optimal transport", ICLR 2023, arXiv 2209.15466, section 6.

    Examples
    --------
    >>> import numpy as np, ot_numba
    >>> rng = np.random.default_rng(0)
    >>> scores = rng.random((64, 4))
    >>> result = ot_numba.route_tokens(scores / scores.sum(axis=1, keepdims=True), capacity_factor=1.25)
    >>> result.capacity, result.load.tolist(), bool(result.coverage > 0.9)
    (20, [20, 20, 20, 20], True)
    """
    xp = array_namespace(scores)
    scores = as_float_array(scores, "scores", ndim=(2, 3), xp=xp)
    check_choice(mode, "mode", MODES)
    check_choice(solver, "solver", SOLVERS)
    positive = {"low": 0, "low_open": True, "high": math.inf, "high_open": True}
    reg = check_real(reg, "reg", **positive)
    capacity_factor = check_real(capacity_factor, "capacity_factor", **positive)
    learning_rate = check_real(learning_rate, "learning_rate", **positive)
    multiple_of = check_int(multiple_of, "multiple_of", low=1)
    tol, max_iter = check_real(tol, "tol", low=0), check_int(max_iter, "max_iter", low=1)
    tokens, experts = scores.shape[-2], scores.shape[-1]
    by_experts = mode == "experts_choose"
    if capacity is not None:
        capacity = check_int(capacity, "capacity", low=1)
    elif by_experts:
        capacity = multiple_of * math.ceil(math.ceil(tokens * capacity_factor / experts) / multiple_of)
    else:
        capacity = 1
    capacity = min(capacity, tokens if by_experts else experts)

    groups = xp.reshape(scores, (-1, tokens, experts))
    duals = [_dual(xp, -groups[i, :, :], by_experts, reg, capacity) for i in range(groups.shape[0])]
    size = tokens if by_experts else experts
    start = xp.zeros((len(duals), size), dtype=xp.float64, device=device_of(scores))

    def negative(dual: SparseDual, x: Array) -> tuple[float, Array]:
        value, grad, _ = dual.semidual(x)
        return -value, -grad

    def all_groups(x: Array) -> tuple[Array, Array]:
        found = [negative(dual, x[i, :]) for i, dual in enumerate(duals)]
        return xp.asarray([value for value, _ in found], device=device_of(x)), xp.stack([grad for _, grad in found])

    options = {"tol": tol * tokens, "max_iter": max_iter}
    if solver == "adam":
        found = adam(all_groups, start, learning_rate=learning_rate, **options)
        x, n_iter = found.x, found.n_iter
    else:
        ends = [lbfgs(lambda v, dual=dual: negative(dual, v), start[i, :], **options) for i, dual in enumerate(duals)]
        x, n_iter = xp.stack([end.x for end in ends]), max(end.n_iter for end in ends)
    plans = [_dense(dual, x[i, :], by_experts) for i, dual in enumerate(duals)]
    plan = np.stack(plans)
    errors = np.abs(plan.sum(axis=2) - 1).sum(axis=1) + np.abs(plan.sum(axis=1) - tokens / experts).sum(axis=1)

    def shaped(v: np.ndarray) -> Array:
        return xp.asarray(v[0] if scores.ndim == 2 else v, device=device_of(scores))

    return RoutingResult(
        plan=shaped(plan),
        capacity=capacity,
        coverage=float((plan > 0).any(axis=2).mean()),
        load=shaped((plan > 0).sum(axis=1)),
        marginal_error=float(errors.max()) / tokens,
        potentials=x[0, :] if scores.ndim == 2 else x,
        n_iter=n_iter,
        scores=scores,
    )


def _dual(xp: Any, C: Array, by_experts: bool, reg: float, capacity: int) -> SparseDual:
    """Semi-dual of one group, whose rows are the side with the limit."""
    cost = CostMatrix(C)
    tokens, experts = cost.shape
    like = {"dtype": cost.dtype, "device": cost.device}
    a, b = xp.ones((tokens,), **like), xp.full((experts,), tokens / experts, **like)
    if by_experts:
        return SparseDual(cost.T, b, a, reg, capacity)
    return SparseDual(cost, a, b, reg, capacity)


def _dense(dual: SparseDual, x: Array, by_experts: bool) -> np.ndarray:
    """Plan of one group, on the host."""
    indptr, indices, values, _ = dual.plan_from_semidual(x)
    indptr, indices, values = map(to_numpy, (indptr, indices, values))
    plan = np.zeros(dual.cost.shape, values.dtype)
    plan[np.repeat(np.arange(plan.shape[0]), np.diff(indptr)), indices] = values
    return plan.T if by_experts else plan
