"""The dual and semi-dual as functions: values, gradients, and, with entropy, Hessian-vector products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.validation import check_choice, dtype_name
from ..costs.gibbs import GibbsKernel
from .objective import pair
from .problem import REGULARIZERS, Problem, check_potentials, check_unbalanced, check_vectors, make_problem
from .sparse_duals import SPARSE_REGULARIZERS, check_cardinality, make_sparse_dual, refuse_no_regularization

Array = Any
#: Sums of powers of 2 above 2**LIMIT leave the range of the compiled exponentials.
LIMIT = {"float64": 1000.0, "float32": 110.0}


def semidual_value_and_grad(
    g: Any,
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float | None = None,
    regularizer: str = "kl",
    k: int | None = None,
    relax: float = 0.0,
) -> tuple[float, Array]:
    r"""Semi-dual objective of regularised transport and its gradient.

    .. math::

        h(g) = \langle g, b\rangle - reg \sum_i a_i \log \sum_j b_j \exp\frac{g_j - C_{ij}}{reg}
        - reg\,(M - M^2), \qquad \nabla h(g) = b - \sum_i a_i \pi_i

    where :math:`\pi_i` is the softmax of :math:`\log b + (g - C_i)/reg`, and the last term, with the mass
    :math:`M = \sum a = \sum b`, vanishes for probability weights. It is concave, and what remains of the dual
    after maximising over f; its maximum is the value of the problem, :math:`\min \langle C, P\rangle +
    reg\,KL(P | a b^\top)`. With ``regularizer="entropy"`` it is

    .. math::

        h(g) = \langle g, b\rangle - reg \sum_i a_i \log \sum_j \exp\frac{g_j - C_{ij}}{reg}
        + reg\, (\langle a, \log a\rangle - M)

    with the maximum :math:`\min \langle C, P\rangle + reg \sum P (\log P - 1)`; its g is that of the KL form
    plus :math:`reg \log b`.

    With ``"l2"``, ``"ksparse"`` and ``"none"`` it is

    .. math::

        h(g) = \langle g, b\rangle - \sum_i \max_{t \ge 0,\ \sum_j t_j = a_i} \big(\langle g - C_i, t\rangle -
        \Omega(t)\big), \qquad \nabla h(g) = b - P^\top 1

    where the rows of P are the maximisers t, for :math:`\Omega(t) = \tfrac{reg}{2} \|t\|^2`, for the same with at
    most k positive entries (infinite for more), and for :math:`\Omega = 0`. The last two have kinks, where the gradient
    is that of the plan in which the entries of lowest index come first among equal ones. The maximum is that of the
    convex hull: :math:`\min \langle C, P\rangle + \sum_i \Omega^{**}(P_i)`, with half reg times the squared
    k-support norm as :math:`\Omega^{**}` for ``"ksparse"``. `relax` > 0 adds :math:`\tfrac{relax\, reg}{2} \|t\|^2`
    to that, which makes h smooth.

    Parameters
    ----------
    g : array_like of shape (m,)
        Column potential, in the units of the cost. Where b is 0 it does not matter, and may be ``-inf``.
    C : Cost or array_like of shape (n, m)
        Ground cost.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0 of any one total; default uniform.
    reg : float
        Regularisation strength > 0, in the units of the cost; of the cost per mass for ``"l2"`` and ``"ksparse"``.
        ``"none"`` does not use it.
    regularizer : {"kl", "entropy", "l2", "ksparse", "none"}, default "kl"
        Form of the potential, see above.
    k : int, optional
        Largest number of positive entries in a row of the plan, >= 1; with ``"ksparse"`` only. From m on it is
        ``"l2"``.
    relax : float, default 0
        See above, >= 0; with ``"ksparse"`` only. 0.1 is a good value.

    Returns
    -------
    value : float
        In the units of the cost times mass.
    grad : array of shape (m,)
        In the dtype of the cost; it sums to 0, and is 0 where b is.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is NaN, a weight is negative, the totals of a and b differ, reg <=
        0, a row of positive weight has only infinite costs, or k is missing, < 1 or out of place.
    TypeError
        If the arrays are of different libraries, or no real numbers.

    Notes
    -----
    Two passes over the cost, one for ``"l2"``, ``"ksparse"`` and ``"none"``, O(n m d) time for points of dimension d;
    O(n + m) memory beyond the cost. `semidual_sparse_plan` gives the plan; for at most k entries in each column
    transpose the problem.

    References
    ----------
    Genevay, Cuturi, Peyré, Bach, "Stochastic optimization for large-scale optimal
    transport", NeurIPS 2016, arXiv 1605.08527. Blondel, Seguy, Rolet, "Smooth and sparse optimal transport", AISTATS
    2018, arXiv 1710.06276. Liu, Puigcerver, Blondel, "Sparsity-constrained optimal transport", ICLR 2023, arXiv
    2209.15466.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 1.0], [1.0, 0.0]]
    >>> value, grad = ot_numba.semidual_value_and_grad([0.1, 0.0], C, reg=0.5)
    >>> round(value, 6), grad.round(6).tolist()
    (0.282058, [-0.02105, 0.02105])
    >>> round(ot_numba.sinkhorn(C, reg=0.5).value, 6)
    0.28311
    >>> value, grad = ot_numba.semidual_value_and_grad([0.1, 0.0], C, reg=0.5, regularizer="l2")
    >>> round(value, 6), grad.tolist()
    (0.125, [0.0, 0.0])
    """
    check_choice(regularizer, "regularizer", (*REGULARIZERS, *SPARSE_REGULARIZERS))
    if regularizer in SPARSE_REGULARIZERS:
        problem, dual = make_sparse_dual(C, a, b, reg=reg, regularizer=regularizer, k=k, relax=relax)
        _, g = check_potentials(problem.xp.zeros_like(problem.a), g, problem)
        value, grad, _ = dual.semidual(g)
        return value, problem.xp.astype(grad, problem.cost.dtype)
    check_cardinality(regularizer, k, relax)
    problem, gibbs, g = _semidual_problem(g, C, a, b, reg, regularizer)
    F, G, f = rows_solved(problem, gibbs, g)
    value = pair(problem.xp, f, problem.a) + pair(problem.xp, g, problem.b)
    value -= problem.reg * (problem.masses[0] - problem.reference_mass)
    if problem.regularizer == "entropy":
        value += problem.reg * pair(problem.xp, log_weights(problem.xp, problem.a, 0.0), problem.a)
    return value, _residual(problem, problem.b, problem.b, column_sums(gibbs, F, G))


def semidual_hessian_vector(
    g: Any, v: Any, C: Any, a: Any = None, b: Any = None, *, reg: float, regularizer: str = "kl"
) -> Array:
    r"""Hessian of the semi-dual objective times a vector.

    .. math::

        \nabla^2 h(g)\, v = -\frac{1}{reg} \Big(\operatorname{diag}(c) - \pi^\top \operatorname{diag}(a)\,
        \pi\Big) v, \qquad c = \pi^\top a

    with the rows :math:`\pi_i` of `semidual_value_and_grad`. Negative semi-definite; the constant vector is
    in its kernel; its norm is at most ``mass / (2 reg)``.

    Parameters
    ----------
    g : array_like of shape (m,)
        Where the Hessian is taken.
    v : array_like of shape (m,) or (m, p)
        Vector, or p of them as columns.
    C, a, b, reg, regularizer
        As in `semidual_value_and_grad`.

    Returns
    -------
    array of the shape of v
        In the dtype of the cost.

    Raises
    ------
    ValueError, TypeError
        As in `semidual_value_and_grad`.

    Notes
    -----
    Three passes over the cost, O(n m (d + p)) time; O((n + m) p) memory beyond the cost.

    References
    ----------
    Cuturi, Peyré, "A smoothed dual approach for variational Wasserstein problems", SIAM
    Journal on Imaging Sciences 9(1), 2016.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 1.0], [1.0, 0.0]]
    >>> ot_numba.semidual_hessian_vector([0.0, 0.0], [1.0, -1.0], C, reg=0.5).round(6).tolist()
    [-0.419974, 0.419974]
    """
    _refuse_hessian(regularizer)
    problem, gibbs, g = _semidual_problem(g, C, a, b, reg, regularizer)
    xp, a = problem.xp, problem.a
    v = check_vectors(v, "v", problem, problem.cost.shape[1])
    V = _columns(v)
    F, G, _ = rows_solved(problem, gibbs, g)
    PV, c = gibbs.products(F, G, V=V, U=xp.ones_like(F)[:, None])
    positive = (a > 0)[:, None]
    means = xp.where(positive, PV / xp.astype(xp.where(a > 0, a, xp.ones_like(a)), xp.float64)[:, None], 0.0)
    _, spread = gibbs.products(F, G, U=xp.astype(means, problem.cost.dtype))
    return _as_given((spread - c * xp.astype(V, xp.float64)) / problem.reg, v, problem)


def dual_value_and_grad(
    f: Any,
    g: Any,
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "kl",
    unbalanced: float | tuple[float | None, float | None] | None = None,
    k: int | None = None,
    relax: float = 0.0,
) -> tuple[float, tuple[Array, Array]]:
    r"""Dual objective of regularised transport and its gradient.

    .. math::

        D(f, g) = \langle f, a\rangle + \langle g, b\rangle
        - reg \Big(\sum_{ij} P_{ij} - \sum_i a_i \sum_j b_j\Big),
        \qquad P_{ij} = a_i b_j \exp\frac{f_i + g_j - C_{ij}}{reg}

    with the gradient :math:`(a - P 1,\ b - P^\top 1)`. It is concave; its maximum is :math:`\min \langle C,
    P\rangle + reg\,KL(P | a b^\top)`. An unbalanced side with the penalty :math:`\rho\,KL(P 1 | a)` has
    :math:`-\rho \langle a, e^{-f/\rho} - 1\rangle` in place of :math:`\langle f, a\rangle`, and :math:`a
    e^{-f/\rho}` in place of a in the gradient.

    With ``regularizer="entropy"`` the plan is :math:`P_{ij} = \exp((f_i + g_j - C_{ij})/reg)`, the sums of a
    and b drop out of the objective, and its maximum is that of the problem with :math:`reg \sum P (\log P -
    1)` in place of the KL term. Balanced, its potentials are those of the KL form plus :math:`reg \log a` and
    :math:`reg \log b`.

    With ``"l2"`` and ``"ksparse"`` it is

    .. math::

        D(f, g) = \langle f, a\rangle + \langle g, b\rangle - \frac{1}{2\, reg} \sum_{ij \in S} \max(f_i + g_j -
        C_{ij}, 0)^2, \qquad P_{ij} = \max(f_i + g_j - C_{ij}, 0) / reg \ \text{on } S, \text{ else } 0

    where S is all pairs, and the k pairs of each row with the largest :math:`g_j - C_{ij}`, of equal ones those of
    lowest index. Maximised over f it is the semi-dual (see `semidual_value_and_grad`, also for `relax`).

    Parameters
    ----------
    f, g : array_like of shape (n,), (m,)
        Potentials, in the units of the cost. Where a weight is 0 its potential does not matter, and may be
        ``-inf``.
    C : Cost or array_like of shape (n, m)
        Ground cost.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0 of one total, of any two if unbalanced; default uniform.
    reg : float
        Regularisation strength > 0, in the units of the cost; of the cost per mass for ``"l2"`` and ``"ksparse"``.
    regularizer : {"kl", "entropy", "l2", "ksparse"}, default "kl"
        Form of the potentials, see above.
    unbalanced : float or pair, optional
        Strengths rho of the marginal penalties, in the units of the cost; one number for both sides; None or
        inf makes a side a hard constraint. With ``"kl"`` and ``"entropy"`` only.
    k, relax : optional
        As in `semidual_value_and_grad`; with ``"ksparse"`` only.

    Returns
    -------
    value : float
        In the units of the cost times mass; ``-inf`` where a plan is beyond the range of float64.
    grad : tuple of two arrays of shape (n,), (m,)
        Derivatives by f and g, in the dtype of the cost.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is NaN, a weight is negative, the totals of a and b differ
        (balanced), reg <= 0, a point of positive weight has only infinite costs, k is missing, < 1 or out of place,
        or the penalties are.
    TypeError
        If the arrays are of different libraries, or no real numbers.

    Notes
    -----
    Two passes over the cost, one for ``"l2"`` and ``"ksparse"``, O(n m d) time; O(n + m) memory beyond the cost.
    `dual_sparse_plan` gives the plan.

    References
    ----------
    Séjourné, Feydy, Vialard, Trouvé, Peyré, "Sinkhorn divergences for unbalanced
    optimal transport", arXiv 1910.12958.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 1.0], [1.0, 0.0]]
    >>> value, (grad_f, grad_g) = ot_numba.dual_value_and_grad([0.5, 0.0], [0.0, 0.0], C, reg=0.5)
    >>> round(value, 6), grad_f.round(6).tolist(), grad_g.round(6).tolist()
    (0.222313, [-0.27154, 0.216166], [-0.213404, 0.15803])
    """
    check_choice(regularizer, "regularizer", (*REGULARIZERS, *SPARSE_REGULARIZERS))
    if regularizer in SPARSE_REGULARIZERS:
        refuse_no_regularization(regularizer)
        if any(map(math.isfinite, check_unbalanced(unbalanced))):
            raise ValueError(f"unbalanced goes with regularizer='kl' or 'entropy', got {regularizer!r}")
        problem, dual = make_sparse_dual(C, a, b, reg=reg, regularizer=regularizer, k=k, relax=relax)
        f, g = check_potentials(f, g, problem)
        value, *grads = dual.dual(f, g)
        grad_f, grad_g = (problem.xp.astype(grad, problem.cost.dtype) for grad in grads)
        return value, (grad_f, grad_g)
    check_cardinality(regularizer, k, relax)
    problem, gibbs, f, g, F, G = _dual_problem(f, g, C, a, b, reg, regularizer, unbalanced)
    xp = problem.xp
    with np.errstate(over="ignore"):  # an infinite mass is an answer
        row_bits = _row_bits(gibbs, F, G)
        rows = _power2(xp, row_bits)
        if float(xp.max(row_bits)) < _limit(problem):
            columns = column_sums(gibbs, F, G)
        else:
            columns = _power2(xp, xp.astype(G, xp.float64) + xp.astype(gibbs.column_logsumexp(F), xp.float64))
        term_a, target_a = _marginal_term(xp, f, problem.a, problem.rho[0])
        term_b, target_b = _marginal_term(xp, g, problem.b, problem.rho[1])
        value = term_a + term_b - problem.reg * (float(xp.sum(rows)) - problem.reference_mass)
        return value, (
            _residual(problem, problem.a, target_a, rows),
            _residual(problem, problem.b, target_b, columns),
        )


def dual_hessian_vector(
    f: Any,
    g: Any,
    u: Any,
    v: Any,
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "kl",
    unbalanced: float | tuple[float | None, float | None] | None = None,
) -> tuple[Array, Array]:
    r"""Hessian of the dual objective times a vector.

    .. math::

        \nabla^2 D(f, g) \begin{pmatrix} u \\ v \end{pmatrix} = -\frac{1}{reg}
        \begin{pmatrix} \operatorname{diag}(P 1) & P \\ P^\top & \operatorname{diag}(P^\top 1) \end{pmatrix}
        \begin{pmatrix} u \\ v \end{pmatrix}

    An unbalanced side adds :math:`-\operatorname{diag}(a e^{-f/\rho}) / \rho` to its diagonal block. Negative
    semi-definite; balanced, it vanishes on (1, -1).

    Parameters
    ----------
    f, g : array_like of shape (n,), (m,)
        Where the Hessian is taken.
    u, v : array_like of shape (n,), (m,), or (n, p), (m, p)
        Vector, or p of them as columns.
    C, a, b, reg, regularizer, unbalanced
        As in `dual_value_and_grad`.

    Returns
    -------
    hu, hv : array of the shapes of u, v
        In the dtype of the cost.

    Raises
    ------
    ValueError
        As in `dual_value_and_grad`; and where the plan at (f, g) is beyond the range of the dtype.
    TypeError
        As in `dual_value_and_grad`.

    Notes
    -----
    Two passes over the cost, O(n m (d + p)) time; O((n + m) p) memory beyond the cost.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 1.0], [1.0, 0.0]]
    >>> hu, hv = ot_numba.dual_hessian_vector([0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [-1.0, -1.0], C, reg=0.5)
    >>> hu.tolist(), hv.tolist()
    ([0.0, 0.0], [0.0, 0.0])
    """
    _refuse_hessian(regularizer)
    problem, gibbs, f, g, F, G = _dual_problem(f, g, C, a, b, reg, regularizer, unbalanced)
    xp = problem.xp
    u, v = (
        check_vectors(w, name, problem, n)
        for w, name, n in zip((u, v), "uv", problem.cost.shape, strict=True)
    )
    if u.shape[1:] != v.shape[1:]:
        raise ValueError(
            f"u and v must hold as many vectors, got shapes {tuple(u.shape)} and {tuple(v.shape)}"
        )
    if not float(xp.max(_row_bits(gibbs, F, G))) < _limit(problem):
        raise ValueError("f and g are too large: the plan there is beyond the range of the dtype of the cost")
    U, V = _columns(u), _columns(v)
    ones_u, ones_v = xp.ones_like(F)[:, None], xp.ones_like(G)[:, None]
    PV, PTU = gibbs.products(F, G, V=xp.concat([ones_v, V], axis=1), U=xp.concat([ones_u, U], axis=1))
    out = []
    with np.errstate(over="ignore"):
        for given, W, products, potential, weights, rho in (
            (u, U, PV, f, problem.a, problem.rho[0]),
            (v, V, PTU, g, problem.b, problem.rho[1]),
        ):
            diagonal = products[:, 0] / problem.reg
            if not math.isinf(rho):
                diagonal = diagonal + _marginal_term(xp, potential, weights, rho)[1] / rho
            out.append(
                _as_given(
                    -(diagonal[:, None] * xp.astype(W, xp.float64)) - products[:, 1:] / problem.reg,
                    given,
                    problem,
                )
            )
    return out[0], out[1]


def log_weights(xp: Any, weights: Array, missing: float) -> Array:
    """``log w`` in float64, `missing` where the weight is 0."""
    positive = weights > 0
    logs = xp.log(xp.astype(xp.where(positive, weights, xp.ones_like(weights)), xp.float64))
    return xp.where(positive, logs, missing)


def _refuse_hessian(regularizer: str) -> None:
    """Raise for regularisers whose objective has no second derivative everywhere."""
    if regularizer in SPARSE_REGULARIZERS:
        raise ValueError(
            f"regularizer must be 'kl' or 'entropy', got {regularizer!r}: its gradient has kinks, so no Hessian"
        )


def _semidual_problem(
    g: Any, C: Any, a: Any, b: Any, reg: Any, regularizer: str
) -> tuple[Problem, GibbsKernel, Array]:
    """Checked problem, its kernel, and g."""
    problem = make_problem(C, a, b, reg=reg, regularizer=regularizer)
    _, g = check_potentials(problem.xp.zeros_like(problem.a), g, problem)
    return problem, problem.cost.gibbs(problem.reg), g


def _dual_problem(
    f: Any, g: Any, C: Any, a: Any, b: Any, reg: Any, regularizer: str, unbalanced: Any
) -> tuple[Problem, GibbsKernel, Array, Array, Array, Array]:
    """Checked problem, its kernel, and the potentials in cost units and in bits."""
    problem = make_problem(C, a, b, reg=reg, regularizer=regularizer, unbalanced=unbalanced)
    f, g = check_potentials(f, g, problem)
    gibbs = problem.cost.gibbs(problem.reg)
    return problem, gibbs, f, g, *_bits(problem, gibbs, f, g)


def _bits(problem: Problem, gibbs: GibbsKernel, f: Array, g: Array) -> tuple[Array, Array]:
    """Potentials in bits, -inf without weight."""
    xp = problem.xp
    F, G = problem.to_bits(f, g, gibbs)
    return (
        xp.where(problem.a > 0, F, xp.full_like(F, -math.inf)),
        xp.where(problem.b > 0, G, xp.full_like(G, -math.inf)),
    )


def rows_solved(problem: Problem, gibbs: GibbsKernel, g: Array) -> tuple[Array, Array, Array]:
    """F, G in bits of the plan with row sums a, and f in cost units (entropy form: less ``reg log a``)."""
    xp, a = problem.xp, problem.a
    _, G = _bits(problem, gibbs, xp.zeros_like(a), g)
    lse = gibbs.row_logsumexp(G)
    F = xp.where(a > 0, log_weights(xp, a, 0.0) / math.log(2) - xp.astype(lse, xp.float64), -math.inf)
    return xp.astype(F, problem.cost.dtype), G, gibbs.unfold(-lse, gibbs.row_offset())


def _row_bits(gibbs: GibbsKernel, F: Array, G: Array) -> Array:
    """Logarithm to base 2 of the row sums of the plan, float64."""
    xp = gibbs.xp
    return xp.astype(F, xp.float64) + xp.astype(gibbs.row_logsumexp(G), xp.float64)


def column_sums(gibbs: GibbsKernel, F: Array, G: Array) -> Array:
    """Column sums of the plan, float64; its row sums must be in range."""
    return gibbs.products(F, G, U=gibbs.xp.ones_like(F)[:, None])[1][:, 0]


def _residual(problem: Problem, weights: Array, target: Array, sums: Array) -> Array:
    """``target - sums``: -inf where the sum is infinite, exactly 0 where there is no weight."""
    xp = problem.xp
    finite = xp.isfinite(sums)
    difference = xp.where(finite, xp.astype(target, xp.float64), 0.0) - sums
    return xp.astype(xp.where(weights > 0, difference, 0.0), problem.cost.dtype)


def _marginal_term(xp: Any, potential: Array, weights: Array, rho: float) -> tuple[float, Array]:
    """What one side adds to the dual, and its derivative; potentials without weight are 0."""
    weights64 = xp.astype(weights, xp.float64)
    if math.isinf(rho):
        return pair(xp, potential, weights), weights64
    exponent = -xp.astype(potential, xp.float64) / rho
    return -rho * float(xp.sum(weights64 * xp.expm1(exponent))), weights64 * xp.exp(exponent)


def _power2(xp: Any, bits: Array) -> Array:
    return xp.exp(bits * math.log(2))


def _limit(problem: Problem) -> float:
    return LIMIT[dtype_name(problem.cost.dtype)]


def _columns(v: Array) -> Array:
    return v[:, None] if v.ndim == 1 else v


def _as_given(columns: Array, v: Array, problem: Problem) -> Array:
    """Columns in the shape of v and the dtype of the cost."""
    out = problem.xp.astype(columns, problem.cost.dtype)
    return out[:, 0] if v.ndim == 1 else out
