"""Entropic transport to high accuracy: Newton's method along a path of regularisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..arrays.validation import check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from ..costs import as_cost
from .path import PATH_RATIO, SWEEPS, PathSolver, extrapolated
from .problem import make_problem
from .result import TransportResult
from .solver import State, automatic_schedule, check_schedule, check_start
from .truncated_newton import GLOBALIZATIONS

Array = Any
METHODS = ("auto", "sns", "semidual", "pcg", "sparse")
SNS_SWEEPS = 20


def sinkhorn_newton(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "kl",
    method: str = "auto",
    unbalanced: float | tuple[float, float] | None = None,
    reg_schedule: str | Iterable[float] | None = "auto",
    globalization: str = "line_search",
    n_sinkhorn: int | None = None,
    density: float | None = None,
    tol: float = 1e-9,
    max_iter: int = 1000,
    init: TransportResult | tuple[Any, Any] | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> TransportResult:
    r"""Entropic optimal transport to high accuracy, where Sinkhorn's algorithm needs thousands of iterations.

    .. math::

        \min_{P \ge 0}\ \langle C, P\rangle + reg\, R(P) \quad\text{s.t.}\quad P 1 = a,\ P^\top 1 = b,

    the problem of `sinkhorn`, by Newton's method on the semi-dual

    .. math:: h(g) = \max_f D(f, g),\qquad -reg\,\nabla^2 h = diag(c) - P^\top diag(1/a) P,\qquad c = P^\top 1,

    whose Hessian is the Laplacian of a weighted graph, at decreasing regularisations: each starts from the
    extrapolation of the last two, with a few iterations of Sinkhorn's. No step can overflow, and the rows of every plan
    are exact.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost, as in `sinkhorn`.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0, default uniform with mass 1.
    reg : float
        Regularisation strength > 0, in the units of the cost.
    regularizer : {"kl", "entropy"}
        Form of R, as in `sinkhorn`.
    method : {"auto", "sns", "semidual", "pcg", "sparse"}
        How Newton's systems are solved. ``"semidual"``: by Cholesky factorisations, n m^2 + m^3 / 3 operations each.
        ``"pcg"``: by conjugate gradients with a diagonal preconditioner, each product in one pass; for a cost that is
        evaluated on the fly nothing of size n x m is stored. It takes thousands of products where the plan is nearly an
        assignment or far from unique. ``"sparse"``: by conjugate gradients preconditioned with
        the factorised Laplacian of the plan's largest entries, so many that no part loses its links. ``"auto"``: by
        conjugate gradients until elimination is cheaper, from there on by elimination (up to 4096 columns).
        ``"sns"``: Sinkhorn-Newton-Sparse as published, for comparison: `n_sinkhorn` iterations, then Newton steps on
        the dual with a thresholded Hessian. It follows no path, so it takes long where those iterations leave it far
        from the solution.
    unbalanced : float or pair of float, optional
        Strengths of the marginal penalties, as in `sinkhorn`.
    reg_schedule : "auto", None or sequence of float
        Decreasing regularisations to pass on the way to `reg`. ``"auto"``: from a quarter of the range of the cost, by
        factors of 4; none with an `init`, where the range is below 100 `reg`, or for ``"sns"``.
    globalization : {"line_search", "gradient_regularization"}
        What makes Newton's method converge from afar: a diagonal that bounds the step and a line search; or the metric
        of the column sums, times the norm of the gradient over a radius that is doubled after each step and halved
        until a step gains enough. The first is the more robust: the second can stall at a small `reg` where the
        unregularised plan is far from unique. Not for ``"sns"``.
    n_sinkhorn : int, optional
        Sinkhorn iterations before the Newton steps: of ``"sns"``, default 20; of others, at most so many in each stage,
        default 2.
    density : float, optional
        Share of the n m entries of the plan in the sparse Hessian of ``"sns"``, default 8 / max(n, m): the paper's
        2 / n, taken of all (2n)^2 entries of the Hessian. Where that is not good enough it is doubled, and the message
        says so.
    tol : float
        On the L1 error of both marginals relative to the mass. A smaller one than the rounding floor is treated as in
        `sinkhorn`.
    max_iter : int
        Largest number of iterations, Sinkhorn's and Newton's together.
    init : TransportResult or (f, g), optional
        Potentials to start from, in the units of the cost and the form of `regularizer`.
    callback : callable, optional
        ``callback(state)`` after every iteration, with the `State` of `sinkhorn`; may raise StopIteration.
    progress : bool
        Whether to show a progress bar (tqdm).
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached: `ConvergenceWarning`, `ConvergenceError` or nothing.

    Returns
    -------
    TransportResult
        Its `history` holds a `NewtonProgress` for every iteration.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached and ``on_fail="warn"``.

    Notes
    -----
    Usually 10 to 50 Newton steps. Memory beyond the cost: n m numbers of float32 for a stored cost, and m^2 for
    elimination. float32 costs are solved to float32's floor, about 1e-6, not to `tol`.

    A step d solves :math:`(S + diag(|\nabla|) / t) d = \nabla` with the Laplacian S, whose diagonal is rebuilt from
    what is off it. S being an M-matrix, :math:`\|d\|_\infty \le t`: parts of the plan that hardly exchange mass with
    the rest need no separate treatment.

    References
    ----------
    Tang et al., "Accelerating Sinkhorn algorithm with sparse Newton iterations", ICLR 2024, arXiv 2401.12253.
    Cuturi, Peyré, "A smoothed dual approach for variational Wasserstein problems", SIAM J. Imaging Sci. 9(1), 2016.
    Semenov, Jaggi, Doikov, "Gradient-normalized smoothness for optimization with approximate Hessians", ICLR 2026,
    arXiv 2506.13710 (the second globalisation).

    Examples
    --------
    >>> import numpy as np, ot_numba
    >>> C = np.random.default_rng(0).random((100, 100))
    >>> result = ot_numba.sinkhorn_newton(C, reg=1e-4)
    >>> result.converged, bool(abs(result.gap) < 1e-8)
    (True, True)
    """
    check_choice(method, "method", METHODS)
    check_choice(globalization, "globalization", GLOBALIZATIONS)
    check_choice(on_fail, "on_fail", ON_FAIL)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, got {callback!r}")
    for name, value in (("density", density), ("globalization", globalization)):
        default = None if name == "density" else "line_search"
        if value != default and (method == "sns") == (name == "globalization"):
            other = "is for" if name == "density" else "is not for"
            raise ValueError(f"{name} {other} method='sns', got {name}={value!r} and method={method!r}")
    problem = make_problem(C, a, b, reg=reg, regularizer=regularizer, unbalanced=unbalanced, ordered=True)
    if n_sinkhorn is None:
        n_sinkhorn = SNS_SWEEPS if method == "sns" else SWEEPS
    if density is not None:
        density = check_real(density, "density", low=0, high=1, low_open=True)
    cold = init is None and method != "sns"
    schedule = check_schedule(
        reg_schedule, problem.reg, lambda: automatic_schedule(problem, PATH_RATIO) if cold else []
    )
    solver = PathSolver(
        problem,
        name="sinkhorn_newton",
        method=method,
        globalization=globalization,
        n_sinkhorn=check_int(n_sinkhorn, "n_sinkhorn", low=0),
        density=density,
        tol=check_real(tol, "tol", low=0),
        max_iter=check_int(max_iter, "max_iter", low=1),
        check_every=1,
        callback=callback,
        progress=progress,
    )
    result = solver.follow(schedule, check_start(init, problem))
    if not result.converged and result.status != "stopped":
        report_failure(result.message, on_fail)
    return result


def regularization_path(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    regs: Iterable[float],
    init: TransportResult | tuple[Any, Any] | None = None,
    **options: Any,
) -> list[TransportResult]:
    r"""Solutions of one entropic transport problem at several regularisations, each started from those before.

    Parameters
    ----------
    C, a, b
        The problem, as in `sinkhorn_newton`.
    regs : sequence of float
        Regularisations > 0, in any order: they are passed from the largest to the smallest, with the potentials of the
        last two extrapolated linearly in `reg`.
    init : TransportResult or (f, g), optional
        Potentials to start the largest from.
    **options
        Other options of `sinkhorn_newton`, the same for all; with ``method="sns"`` it is taken for each.

    Returns
    -------
    list of TransportResult
        In the order of `regs`. Those that did not converge warn (or raise) one by one, as `on_fail` says.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    The first solve passes its own automatic schedule; a large step from one to the next passes factors of 4 in between.

    Examples
    --------
    >>> import ot_numba
    >>> path = ot_numba.regularization_path([[0.0, 1.0], [1.0, 0.3]], regs=[1.0, 0.1, 0.01])
    >>> [round(result.linear_cost, 4) for result in path]
    [0.4045, 0.1502, 0.15]
    """
    if isinstance(regs, (str, bytes)) or not isinstance(regs, Iterable):
        raise TypeError(f"regs must be a sequence of numbers, got {regs!r}")
    values = [check_real(reg, "regs", low=0, low_open=True, high=math.inf, high_open=True) for reg in regs]
    if not values:
        raise ValueError("regs must hold at least one number, got none")
    if "reg" in options:
        raise TypeError("regularization_path takes regs, not reg")
    cost = as_cost(C)
    schedule = options.pop("reg_schedule", "auto")
    found: dict[float, TransportResult] = {}
    previous: list[TransportResult] = []
    for reg in sorted(set(values), reverse=True):
        start, stages = init, schedule
        if previous:
            start = extrapolated([(r.reg, r.f, r.g) for r in previous[-2:]], reg, previous[-1].problem.xp)
            gap = math.ceil(math.log(previous[-1].reg / reg, PATH_RATIO) - 1e-9) if isinstance(schedule, str) else 0
            stages = [previous[-1].reg * (reg / previous[-1].reg) ** (i / gap) for i in range(1, gap)]
        found[reg] = sinkhorn_newton(cost, a, b, reg=reg, init=start, reg_schedule=stages, **options)
        previous.append(found[reg])
    return [found[reg] for reg in values]
