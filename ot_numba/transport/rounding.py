"""Plans with exact marginals, and how far a plan is from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..arrays.namespaces import array_namespace
from ..arrays.validation import as_float_array, check_balanced, check_weights
from ..costs import Cost
from ..costs.gibbs import TILE_ENTRIES
from .problem import check_vectors
from .result import TransportResult

Array = Any


def marginal_error(P: Any, a: Any = None, b: Any = None) -> float:
    r"""L1 error of both marginals of a plan, relative to the mass.

    .. math:: \frac{\|P 1 - a\|_1 + \|P^\top 1 - b\|_1}{\max(\sum_i a_i, \sum_j b_j)}

    Parameters
    ----------
    P : array_like of shape (n, m), SciPy sparse array, or TransportResult
        The plan. That of a result is not formed.
    a, b : array_like of shape (n,), (m,), optional
        The marginals wanted, >= 0; default those of the problem for a result, else uniform with mass 1.

    Returns
    -------
    float
        0 for exact marginals. For the result of a balanced problem it is its `marginal_error`; for an
        unbalanced one it is not, as that is the error of the optimality conditions.

    Raises
    ------
    ValueError
        If P is not 2-D or not finite, or a shape does not fit, or a weight is negative.
    TypeError
        If the arrays are of different libraries.

    Notes
    -----
    Sums are taken in float64. One pass over P, O(n + m) memory.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.marginal_error([[0.5, 0.0], [0.0, 0.25]])
    0.5
    """
    if isinstance(P, TransportResult):
        sums = P.marginals
        a, b = P.problem.a if a is None else a, P.problem.b if b is None else b
        like = P.problem.a
    elif hasattr(P, "tocsr"):
        if P.ndim != 2:
            raise ValueError(f"P must have 2 dimension(s), got shape {tuple(P.shape)}")
        # a product is an array whatever the container; the sum of a sparse matrix is a numpy.matrix
        P = P.tocsr().astype("float64")
        xp = array_namespace(P.data)
        sums = P @ xp.ones(P.shape[1]), P.T @ xp.ones(P.shape[0])
        like = sums[0]
        if not math.isfinite(float(xp.sum(like))):
            raise ValueError("P has entries that are not finite")
    else:
        P = _as_plan(P, a, b)
        xp = array_namespace(P)
        sums = _sums(xp, P, 1), _sums(xp, P, 0)
        like = P
    array_namespace(like, a, b)
    xp = array_namespace(like)
    total, mass = 0.0, 0.0
    for name, s, w in zip("ab", sums, (a, b), strict=True):
        weights = xp.astype(check_weights(w, name, s.shape[0], like=like), xp.float64)
        total += float(xp.sum(xp.abs(s - weights)))
        mass = max(mass, float(xp.sum(weights)))
    return total / mass


def round_plan(P: Any, a: Any = None, b: Any = None) -> Array:
    r"""The plan with exactly the marginals a and b that Altschuler, Weed and Rigollet's rounding makes of P.

    .. math::

        P' = \operatorname{diag}(x)\, P \operatorname{diag}(y) + \frac{e_a e_b^\top}{\|e_a\|_1}, \qquad
        x = \min(1, a / P 1),

    with y the same for the columns of :math:`\operatorname{diag}(x) P`, and :math:`e_a, e_b \ge 0` what then
    is missing. It moves little mass: :math:`\|P' - P\|_1 \le 2 (\|P 1 - a\|_1 + \|P^\top 1 - b\|_1)`.

    Parameters
    ----------
    P : array_like of shape (n, m)
        Any matrix >= 0, of any total mass; rows and columns of zeros are fine. Never modified.
    a, b : array_like of shape (n,), (m,), optional
        The marginals, >= 0, of one total; default uniform with mass 1.

    Returns
    -------
    array of shape (n, m)
        In the dtype of P; the marginals are exact to its rounding.

    Raises
    ------
    ValueError
        If P is not 2-D, not finite or has a negative entry; if a shape does not fit, a weight is negative, or
        the totals of a and b differ.
    TypeError
        If the arrays are of different libraries; sparse arrays are refused, since the rounded plan is dense.

    See Also
    --------
    TransportResult.round : The same without any (n, m) array.

    Notes
    -----
    O(n m) time and memory.

    References
    ----------
    Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for optimal transport via Sinkhorn
    iteration", NeurIPS 2017, algorithm 2.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.round_plan([[0.2, 0.1], [0.1, 0.7]], [0.4, 0.6], [0.35, 0.65]).round(6).tolist()
    [[0.275, 0.125], [0.075, 0.525]]
    """
    P = _as_plan(P, a, b)
    xp = array_namespace(P)
    if float(xp.min(P)) < 0:
        raise ValueError(f"P must not be negative, got an entry {float(xp.min(P)):g}")
    n, m = P.shape
    a = check_weights(a, "a", n, like=P)
    b = check_balanced(a, check_weights(b, "b", m, like=P))
    x = _scaling(xp, a, _sums(xp, P, 1))
    scaled = P * xp.astype(x, P.dtype)[:, None]
    y = _scaling(xp, b, _sums(xp, scaled, 0))
    scaled = scaled * xp.astype(y, P.dtype)[None, :]
    row_deficit = _deficit(xp, a, _sums(xp, scaled, 1))
    column_deficit = _deficit(xp, b, _sums(xp, scaled, 0))
    missing = float(xp.sum(row_deficit))
    if missing > 0:
        left = xp.astype(row_deficit / missing, P.dtype)
        scaled += left[:, None] * xp.astype(column_deficit, P.dtype)[None, :]
    return scaled


@dataclass(frozen=True, repr=False)
class RoundedPlan:
    r"""A plan with exact marginals, in factors.

    .. math:: \operatorname{diag}(x)\, P \operatorname{diag}(y) + \frac{e_a e_b^\top}{\|e_a\|_1}

    Attributes
    ----------
    row_scaling, column_scaling : array of shape (n,), (m,)
        x and y, in [0, 1], float64.
    row_deficit, column_deficit : array of shape (n,), (m,)
        :math:`e_a` and :math:`e_b`, >= 0, float64: the mass that the scaled plan lacks.
    linear_cost : float
        Cost of the rounded plan, an upper bound of the unregularised optimum (to the rounding of the dtype of
        the cost); ``inf`` if it puts mass on a forbidden pair.
    """

    row_scaling: Array
    column_scaling: Array
    row_deficit: Array
    column_deficit: Array
    linear_cost: float
    result: TransportResult = field(repr=False)

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        n, m = self.result.problem.cost.shape
        missing = float(self.result.problem.xp.sum(self.row_deficit))
        return f"RoundedPlan({n} x {m}, linear_cost={self.linear_cost:.6g}, mass moved={missing:.1e})"

    @cached_property
    def plan(self) -> Array:
        """The rounded plan as a dense (n, m) array in the dtype of the cost; O(n m) memory."""
        result, xp = self.result, self.result.problem.xp
        P = result.gibbs.plan(*self._bits)
        left, right = (xp.astype(part, P.dtype) for part in self._rank_one)
        P += left[:, None] * right[None, :]
        return P

    def apply(self, v: Any, *, transpose: bool = False) -> Array:
        r"""Product of the rounded plan, or of its transpose, with v.

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
        >>> result.round().apply([1.0, 1.0]).tolist()
        [0.5, 0.5]
        """
        result = self.result
        xp = result.problem.xp
        v = check_vectors(v, "v", result.problem, result.problem.cost.shape[0 if transpose else 1])
        V = v[:, None] if v.ndim == 1 else v
        forward, backward = result.gibbs.products(*self._bits, **({"U": V} if transpose else {"V": V}))
        left, right = self._rank_one[::-1] if transpose else self._rank_one
        out = (backward if transpose else forward) + left[:, None] * (right @ xp.astype(V, xp.float64))[None, :]
        out = xp.astype(out, result.problem.cost.dtype)
        return out[:, 0] if v.ndim == 1 else out

    @cached_property
    def _bits(self) -> tuple[Array, Array]:
        """Potentials in bits of the scaled plan."""
        F, G = self.result.bits
        xp = self.result.problem.xp
        return _scaled_bits(xp, F, self.row_scaling), _scaled_bits(xp, G, self.column_scaling)

    @cached_property
    def _rank_one(self) -> tuple[Array, Array]:
        """Factors of the mass added."""
        missing = float(self.result.problem.xp.sum(self.row_deficit))
        return self.row_deficit / (missing or 1.0), self.column_deficit


def round_result(result: TransportResult) -> RoundedPlan:
    """Round the plan of a balanced result without forming it; see `TransportResult.round`."""
    problem, gibbs = result.problem, result.gibbs
    if not problem.balanced:
        raise ValueError(
            "result must be that of a balanced problem: an unbalanced plan need not have the marginals a, b"
        )
    xp = problem.xp
    F, G = result.bits
    x = _scaling(xp, problem.a, result.marginals[0])
    F = _scaled_bits(xp, F, x)
    y = _scaling(xp, problem.b, gibbs.statistics(F, G)[1])
    rows, columns, linear_cost = gibbs.statistics(F, _scaled_bits(xp, G, y))
    row_deficit, column_deficit = _deficit(xp, problem.a, rows), _deficit(xp, problem.b, columns)
    missing = float(xp.sum(row_deficit))
    if missing > 0:
        linear_cost += _bilinear(problem.cost, row_deficit, column_deficit) / missing
    return RoundedPlan(x, y, row_deficit, column_deficit, linear_cost, result)


def _as_plan(P: Any, a: Any, b: Any) -> Array:
    """P as a float array of the library that the arguments share."""
    xp = array_namespace(P, a, b)
    return as_float_array(P, "P", ndim=2, xp=xp)


def _sums(xp: Any, P: Array, axis: int) -> Array:
    return xp.sum(P, axis=axis, dtype=xp.float64)


def _scaling(xp: Any, weights: Array, sums: Array) -> Array:
    """``min(1, weights / sums)``; 1 where the sum is 0."""
    weights, one = xp.astype(weights, xp.float64), xp.ones_like(sums)
    smaller = weights < sums  # no other quotient is taken: it might overflow
    return xp.where(smaller, weights, one) / xp.where(smaller, sums, one)


def _deficit(xp: Any, weights: Array, sums: Array) -> Array:
    """What the sums lack, without the negative parts that are rounding."""
    missing = xp.astype(weights, xp.float64) - sums
    return xp.where(missing > 0, missing, xp.zeros_like(missing))


def _scaled_bits(xp: Any, bits: Array, scaling: Array) -> Array:
    """Potential in bits of a plan whose rows are scaled."""
    zero = scaling == 0
    logs = xp.where(zero, xp.full_like(scaling, -math.inf), xp.log2(xp.where(zero, xp.ones_like(scaling), scaling)))
    return xp.astype(xp.astype(bits, xp.float64) + logs, bits.dtype)


def _bilinear(cost: Cost, u: Array, v: Array) -> float:
    """``u' C v`` for u, v >= 0, with 0 * inf = 0."""
    xp = cost.xp
    if getattr(cost, "finite", True):
        return float(xp.sum(u * cost.apply(v)))
    n, m = cost.shape
    step, total = max(1, TILE_ENTRIES // m), 0.0
    for lo in range(0, n, step):
        hi = min(n, lo + step)
        tile = cost.rows(lo, hi)
        weights = u[lo:hi, None] * v[None, :]
        product = xp.where(weights > 0, tile, xp.zeros_like(tile)) * weights
        total += float(xp.sum(product))
    return total
