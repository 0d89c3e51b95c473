"""Transport plans with at most k positive entries in every column, or row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import to_numpy
from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from ..optimize import OptimizeState, adam, lbfgs
from ._quadratic import Run
from .semismooth import SemismoothNewton
from .solver import State
from .sparse_result import SparseModel, SparseReport, SparseTransportResult

Array = Any
FORMULATIONS = ("semidual", "dual")
SOLVERS = ("auto", "newton", "lbfgs", "adam")
STATUS = {"line_search": "kink", "converged": "floor"}  #: of an optimiser; a plan with errors is no convergence
FIRST_RELAXATION, STAGE_RATIO, STAGE_ERROR = 2.0, 4.0, 1e-2  #: of the automatic path: at least; factor; what ends one
POLISH_STEPS, NEAR = 50, 1e-2  #: Newton steps after L-BFGS, from such a marginal error on
ADVICE = (
    "for small k the maximum is a kink, where no plan of the model has both marginals: use relax=0.1, "
    "a larger k, or take the plan as it is"
)


def sparsity_constrained_ot(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    k: int,
    reg: float = 1.0,
    axis: int = 0,
    formulation: str = "semidual",
    solver: str = "auto",
    relax: float = 0.0,
    repair: str | None = None,
    learning_rate: float | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    init: SparseTransportResult | tuple[Any, Any] | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> SparseTransportResult:
    r"""Optimal transport with at most k positive entries in every column of the plan, or every row.

    .. math::

        \min_{P \ge 0}\ \langle C, P\rangle + \sum_j \Omega(P_j) \quad\text{s.t.}\quad P 1 = a,\ P^\top 1 = b, \qquad
        \Omega(t) = \tfrac{reg}{2} \|t\|^2 \ \text{if}\ \|t\|_0 \le k,\ \infty \ \text{otherwise}

    The problem is not convex. What is maximised is its dual, in the form with one potential eliminated (columns,
    ``axis=0``: :math:`h(f) = \langle f, a\rangle - \sum_j \Omega^*_{b_j}(f - C_j)`) or in both: a concave function,
    which is the dual of the convex problem with :math:`\Omega^{**} = \tfrac{reg}{2} \|\cdot\|_{(k)}^2` (the k-support
    norm), a relaxation. Its maximum is a lower bound of the optimal value.

    **What the plan fulfils.** For k at least the largest number of entries in a column of the quadratic plan
    (`quadratic_ot`) that plan is the solution. For smaller k the maximum usually is a kink, the plan read off there is
    not unique, and the one that has k entries per column misses the row marginals (by 5% to 50% of the mass for k from
    4 down to 1). That is the model, not the solver; a plan with k entries per column and both marginals need not exist,
    and to find one is NP-hard. There are three answers:

    ``relax=0``
        The plan has at most k entries in every column, and the exact column sums (``formulation="semidual"``). The
        error of the rows is reported. Right for routing, where columns have a capacity.
    ``relax=0.1``
        :math:`\Omega^{**} + \tfrac{relax\, reg}{2} \|\cdot\|^2` takes the place of :math:`\Omega`. The dual becomes
        smooth, and the plan has both marginals, to `tol`, but more than k entries in some columns. The objective that
        is reported is the relaxed one. (Not from the paper.)
    ``repair="support"``
        The plan of least :math:`\langle C, P\rangle` with both marginals, exactly, whose entries are among the k
        largest of each column of the plan found, by linear programming; so it has at most k in every column. Where
        there is none the plan is left as it is, `repaired` is False and the message says so. Use it with `relax`.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost, as in `sinkhorn`. ``inf`` forbids a pair.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0, default uniform with mass 1. Their sums must agree (1e-8 relative; float32 1e-5).
    k : int
        Largest number of positive entries, >= 1. One that limits nothing gives quadratic transport; k = 1 has the
        dual value of unregularised transport plus :math:`\tfrac{reg}{2} \|b\|^2`.
    reg : float
        Regularisation strength > 0, in the units of the cost per mass.
    axis : {0, 1}
        Entries are counted in columns (0) or in rows (1).
    formulation : {"semidual", "dual"}
        Maximise over one potential, or over both: cheaper, but neither marginal is exact.
    solver : {"auto", "newton", "lbfgs", "adam"}
        ``"newton"``: the semi-smooth Newton method of `quadratic_ot`, from strong relaxations to `relax` by factors of
        4 unless there is an `init`; for a semi-dual that is smooth, that is with `relax` or where k is no limit.
        ``"lbfgs"``: `optimize.lbfgs`, ended by a few Newton steps where the limit is not met. ``"adam"``: `max_iter`
        steps of `optimize.adam`. ``"auto"``: the first of these that applies.
    relax : float
        See above; relative to `reg`.
    repair : {None, "support"}
        See above.
    learning_rate : float, optional
        Of Adam; default 1e-2 times the range of the cost.
    tol : float
        On the L1 error of both marginals relative to the mass; raised to the rounding floor as in `quadratic_ot`.
    max_iter : int
        Largest number of iterations.
    init : SparseTransportResult or (f, g), optional
        Potentials to start from, as those at a larger k or another `reg`.
    callback : callable, optional
        ``callback(state)`` after every iteration, with the `State` of `sinkhorn`; may raise StopIteration.
    progress : bool
        Whether to show a progress bar (tqdm).
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached: `ConvergenceWarning`, `ConvergenceError` or nothing.

    Returns
    -------
    SparseTransportResult

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached, or no plan with k entries per column can have the marginals because k m is below the
        number of rows with weight, and ``on_fail="warn"``.

    Notes
    -----
    One pass over the cost for an evaluation, O(n m) time; O(n + m) numbers beyond the cost, of a stored
    cost a transposed copy for ``axis=0``; Newton's method in addition what `quadratic_ot` takes. Evaluations needed by
    L-BFGS grow as k falls, a hundred for large k, thousands for k <= 4 without `relax`, where the ascent from 0 gets
    stuck at kinks up to 1% below the maximum. For the bound to 1e-5, in less time, solve with ``relax=1e-3`` first and
    pass the result as `init`. The gradients of the value are: :math:`f, g` by a and b (up to a constant), the plan by
    C, and :math:`\|P\|^2 / 2` by reg, where the dual is smooth; at a kink those of the relaxed plan.

    References
    ----------
    Liu, Puigcerver, Blondel, "Sparsity-constrained optimal transport", ICLR 2023, arXiv 2209.15466.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.8, 0.8, 0.5], [0.3, 0.1, 0.4], [0.4, 0.0, 0.0], [1.0, 0.7, 0.2]]
    >>> result = ot_numba.sparsity_constrained_ot(C, [0.1, 0.2, 0.3, 0.4], [0.2, 0.35, 0.45], k=2)
    >>> result.converged, round(result.value, 6), result.plan.round(3).tolist()
    (True, 0.3275, [[0.1, 0.0, 0.0], [0.1, 0.1, 0.0], [0.0, 0.25, 0.05], [0.0, 0.0, 0.4]])
    """
    k = check_int(k, "k", low=1)
    check_choice(formulation, "formulation", FORMULATIONS)
    check_choice(solver, "solver", SOLVERS)
    check_choice(repair, "repair", (None, "support"))
    check_choice(on_fail, "on_fail", ON_FAIL)
    relax = check_real(relax, "relax", low=0, high=math.inf, high_open=True)
    if check_int(axis, "axis") not in (0, 1):
        raise ValueError(f"axis must be 0 (columns) or 1 (rows), got {axis}")
    if learning_rate is not None:
        if solver != "adam":
            raise ValueError(f"learning_rate goes with solver='adam', got learning_rate={learning_rate!r}")
        learning_rate = check_real(learning_rate, "learning_rate", low=0, low_open=True, high=math.inf, high_open=True)
    model = SparseModel.of(C, a, b, reg=reg, k=k, relax=relax, axis=axis)
    applies = formulation == "semidual" and (relax > 0 or model.k is None)
    if solver == "newton" and not applies:
        raise ValueError("solver='newton' is for formulation='semidual' with relax > 0 or a k that is no limit")
    if solver == "auto":
        solver = "newton" if applies else "lbfgs"
    run = Run("sparsity_constrained_ot", model, tol=tol, max_iter=max_iter, callback=callback, progress=progress)
    start = model.start(init)
    try:
        if solver == "newton":
            relaxations = [] if init is not None or model.k is None else _relaxations(relax)
            newton, status = run.follow([(model.problem.reg, r) for r in relaxations], STAGE_ERROR, start[1])
            G, dual_value = newton.G, newton.value
            *plan, F = newton.dual.plan_from_semidual(G)
        else:
            status, (F, G), dual_value, plan = _ascend(run, formulation, solver, learning_rate, start)
    finally:
        run.close()
    report = SparseReport(model, F, G, plan)
    polished = None
    if status not in ("stopped", "converged") and solver == "lbfgs" and formulation == "semidual":
        polished = _polish(run, report)
    if polished is not None:
        report, dual_value = polished
    notes = []
    if repair:
        notes.append(_repair(report, k))
    rows, columns = model.native.cost.shape
    infeasible = rows * k < columns
    if infeasible:
        notes.append(
            f"primal infeasible, relaxation returned: {k} entries in each of {rows} "
            f"{('columns', 'rows')[axis]} cannot reach {columns} {('rows', 'columns')[axis]}"
        )
    result = run.report(report, dual_value, STATUS.get(status, status), ADVICE if not relax else MORE, notes)
    if infeasible or not (result.converged or result.status == "stopped"):
        report_failure(result.message, on_fail)
    return result


MORE = "increase max_iter, relax or tol"


def _relaxations(relax: float) -> list[float]:
    """Stronger relaxations to pass on the way to one."""
    stages = max(0, math.ceil(math.log(FIRST_RELAXATION / relax, STAGE_RATIO))) + 1 if relax < FIRST_RELAXATION else 0
    return [relax * STAGE_RATIO**i for i in range(stages - 1, 0, -1)]


def _ascend(
    run: Run, formulation: str, solver: str, learning_rate: float | None, start: tuple[Array, Array]
) -> tuple[str, tuple[Array, Array], float, tuple[Array, Array, Array]]:
    """Maximise the (semi-)dual; the optimiser's status, potentials, the value there, and CSR arrays of the plan."""
    model = run.model
    dual, xp, inner = model.dual(), model.native.xp, model.native
    rows, reg = inner.cost.shape[0], inner.reg
    low, high = inner.cost.bounds()
    scale = (high - low) or 1.0

    def semidual(x: Array) -> tuple[float, Array]:
        value, grad, _ = dual.semidual(x)
        return -value, -grad

    def both(x: Array) -> tuple[float, Array]:
        value, *grads = dual.dual(x[:rows], x[rows:])
        return -value, -xp.concat(grads)

    def potentials(x: Array) -> tuple[Array, Array]:
        return (x[:rows], x[rows:]) if formulation == "dual" else (dual.semidual(x)[2], x)

    def tell(state: OptimizeState) -> None:
        run.n_evaluations = state.n_evaluations
        run.tell(reg, model.relax, -state.value, state.grad_norm / model.mass, lambda: potentials(state.x))

    fun, x = (both, xp.concat(list(start))) if formulation == "dual" else (semidual, start[1])
    options = {"tol": run.tol * model.mass, "max_iter": run.max_iter, "callback": tell}
    if solver == "lbfgs":
        found = lbfgs(fun, x, first_step=0.1 * scale * math.sqrt(x.shape[0]), **options)
    else:
        found = adam(fun, x, learning_rate=1e-2 * scale if learning_rate is None else learning_rate, **options)
    run.n_evaluations = found.n_evaluations
    if formulation == "dual":
        F, G = potentials(found.x)
        plan = dual.plan_from_dual(F, G)
    else:
        G = found.x
        *plan, F = dual.plan_from_semidual(G)
        run.n_evaluations += 1
    return found.status, (F, G), -found.value, tuple(plan)


def _polish(run: Run, report: SparseReport) -> tuple[SparseReport, float] | None:
    """Newton steps of quadratic transport, whose plan is the solution if its rows have at most k entries."""
    model = report.model
    if model.relax > 0 or (model.k is not None and sum(report.errors()) > NEAR):
        return None
    loose = SparseModel(model.problem, None, model.relax, model.axis)
    newton = SemismoothNewton(loose.dual(), report.G)
    for _ in range(POLISH_STEPS):
        if newton.error() <= run.tol * model.mass or newton.stuck:
            break
        newton.step()
        run.n_iter += 1
    run.n_evaluations += newton.n_evaluations
    polished = SparseReport(model, newton.F, newton.G, newton.dual.plan_from_dual(newton.F, newton.G))
    fits = model.k is None or polished.counts().max() <= model.k
    return (polished, newton.value) if fits and sum(polished.errors()) < sum(report.errors()) else None


def _repair(report: SparseReport, k: int) -> str:
    """Give the plan exact marginals on the k largest entries of its rows, if that can be; what was done."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    P, inner = report.P, report.model.native
    row = np.repeat(np.arange(P.shape[0]), np.diff(P.indptr))
    order = np.lexsort((P.indices, -P.data, row))
    kept = np.sort(order[np.arange(len(order)) - P.indptr[row] < k])
    row, column = row[kept], P.indices[kept]
    costs = np.concatenate([
        to_numpy(inner.cost.rows(i, i + 1))[0, column[row == i]].astype(float) for i in range(P.shape[0])
    ])
    n, m = P.shape
    entries = np.arange(len(row))
    ones = np.ones(2 * len(row))
    A = csr_array((ones, (np.concatenate([row, n + column]), np.tile(entries, 2))), shape=(n + m, len(row)))
    right = np.concatenate([to_numpy(inner.a), to_numpy(inner.b)]).astype(float)
    found = linprog(costs, A_eq=A, b_eq=right, method="highs")
    if found.x is None:
        return "repair='support' found no plan with the marginals on this support"
    positive = found.x > 0
    report.P = csr_array(
        (found.x[positive].astype(P.dtype), (row[positive], column[positive])), shape=P.shape
    )
    report.repaired = True
    return "the plan was repaired on its support"
