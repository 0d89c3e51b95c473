"""Stochastic maximisation of the entropic semi-dual: one row, or one sample of the source, at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, to_numpy
from ..arrays.progress import progress_bar
from ..arrays.validation import (
    as_float_array,
    check_choice,
    check_int,
    check_real,
    check_rng,
    check_weights,
    common_dtype,
)
from ..arrays.warnings import ON_FAIL, report_failure
from ..costs import Cost, PointCloud
from ..costs.gibbs import TILE_ENTRIES
from ..kernels import CostData, kernels_for
from .objective import marginal_residual, pair
from .problem import Problem, check_potentials, make_problem
from .result import Progress, TransportResult, make_result
from .semidual import column_sums, log_weights, rows_solved
from .solver import State

Array = Any
METHODS = ("asgd", "sag")
DRAWS = 1 << 16  #: samples drawn at a time
PASSES = 10  #: passes over the source between two evaluations of the residual
HELD_OUT = (10_000, 100_000)  #: least and largest number of samples that stand for a continuous source


def semidual_stochastic(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "kl",
    method: str = "asgd",
    sampler: Callable[[np.random.Generator, int], Any] | None = None,
    metric: str | float | Callable | None = None,
    batch_size: int = 1,
    lr: float | None = None,
    tol: float = 1e-2,
    max_iter: int = 100_000,
    check_every: int | None = None,
    rng: np.random.Generator | int | None = None,
    init: TransportResult | Any = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> TransportResult:
    r"""Entropic optimal transport by stochastic ascent on the semi-dual; the source may be continuous.

    Maximises

    .. math::

        h(g) = \mathbb{E}_{x \sim a} \Big[\langle g, b\rangle - reg \log \sum_j b_j \exp\frac{g_j - c(x,
        y_j)}{reg}\Big]

    (see `semidual_value_and_grad`) from samples x of the source, or rows of the cost, whose gradient is
    :math:`b - \pi(x)` with the softmax :math:`\pi(x)_j \propto b_j e^{(g_j - c(x, y_j))/reg}`:

    ``"asgd"``
        :math:`g_t = g_{t-1} + lr\, t^{-1/2} (b - \pi(x_t))` with :math:`x_t \sim a`; the result is the mean
        of the :math:`g_t`. The error falls like :math:`t^{-1/2}`.
    ``"sag"``
        :math:`g_t = g_{t-1} + lr\, (b - \sum_i a_i \pi^{(i)})`, where :math:`\pi^{(i)}` is what the softmax
        of row i was when it was last drawn, uniformly. Linear convergence; finite sources only, and n x m
        numbers are stored.

    For a stored or an evaluated cost of moderate size `sinkhorn` is faster. This is for sources that are only
    known by samples, and for n too large for one pass.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost. With `sampler`: the target points, of shape (m, d) or (m,).
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0 of one total; default uniform. With `sampler`, only b.
    reg : float
        Regularisation strength > 0, in the units of the cost.
    regularizer : {"kl", "entropy"}, default "kl"
        Form of the potentials and of the value that are returned; the iterations are the same.
    method : {"asgd", "sag"}
        See above.
    sampler : callable, optional
        ``sampler(rng, size)`` returns `size` independent points of the source, of shape (size, d), drawn with
        the `numpy.random.Generator` that it is given.
    metric : str, float or callable, default "sqeuclidean"
        Cost between a sample and a target point, as in `PointCloud`; with `sampler` only.
    batch_size : int
        Samples per iteration.
    lr : float, optional
        Step, in the units of the cost. Default for ``"asgd"``: :math:`\sqrt{m\, reg\, R}`, with the range R
        of the cost: between the step for the curvature of h, about ``reg m``, and the way to go, about R (a
        heuristic). Default for ``"sag"``: :math:`2\, reg\, \min(1, batch\_size / (n \max a))` with a of mass
        1, one over a bound of the curvature of a batch.
    tol : float
        On the L1 error of both marginals relative to the mass. With `sampler`, no residual below the sampling
        error of its estimate can be seen, which is below :math:`\sum_j \sqrt{b_j (1 - b_j) / N} +
        \sqrt{2 \log(100) / N}` with a chance of 99% (b of mass 1). A result between `tol` and that has status
        ``"floor"`` and counts as converged.
    max_iter : int
        Largest number of iterations.
    check_every : int, optional
        Iterations between evaluations of the residual (two passes over the cost), history entries and calls
        of `callback`. Default: 10 passes over the source.
    rng : Generator, int or None
        Source of the samples; an int makes the result repeatable to the last bit.
    init : TransportResult or array_like of shape (m,), optional
        Column potential g to start from, in the form of `regularizer`; default 0 in the KL form.
    callback : callable, optional
        ``callback(state)`` with the `State` of `sinkhorn`; may raise StopIteration to end with status
        ``"stopped"``.
    progress : bool
        Whether to show a progress bar (tqdm).
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached.

    Returns
    -------
    TransportResult
        Its f is exact for its g, so that the rows of the plan are. With `sampler` it describes the transport
        of N samples held out for the purpose, ``result.problem.cost.x``, to the targets: its value, residual
        and f are estimates; g, and ``result.map``, hold for the whole source. N is 100 m, at least 10 000,
        at most 100 000.

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
    Time per sample: O(m d) and m exponentials. Memory beyond the input: O(m), for costs that are
    not evaluated row by row (grids, other metrics, d > 8, samplers) a tile of at most 2^19 numbers or one
    batch; ``"sag"``: n m numbers. The updates are kept in float64 whatever the dtype.

    References
    ----------
    Genevay, Cuturi, Peyré, Bach, "Stochastic optimization for large-scale optimal
    transport", NeurIPS 2016, arXiv 1605.08527. Schmidt, Le Roux, Bach, "Minimizing finite sums with the
    stochastic average gradient", Mathematical Programming 162, 2017.

    Examples
    --------
    >>> import numpy as np, ot_numba
    >>> C = [[0.0, 1.0], [2.0, 0.5]]
    >>> a, b = [0.3, 0.7], [0.6, 0.4]
    >>> result = ot_numba.semidual_stochastic(C, a, b, reg=1.0, method="sag", tol=1e-9, rng=0)
    >>> result.converged, round(result.value, 8)
    (True, 0.96602791)

    From a normal distribution to two points:

    >>> def sampler(rng, size):
    ...     return rng.normal(size=(size, 1))
    >>> result = ot_numba.semidual_stochastic([[-1.0], [1.0]], reg=0.5, sampler=sampler, rng=0)
    >>> bool(abs(result.g[1] - result.g[0]) < 0.1)
    True
    """
    check_choice(method, "method", METHODS)
    check_choice(on_fail, "on_fail", ON_FAIL)
    batch_size = check_int(batch_size, "batch_size", low=1)
    rng = check_rng(rng)
    form = {"reg": reg, "regularizer": regularizer}
    if sampler is None:
        if metric is not None:
            raise ValueError(f"metric goes with sampler, a cost has its own: got metric={metric!r}")
        problem, draw_points = make_problem(C, a, b, **form), None
    else:
        if method == "sag":
            raise ValueError("method='sag' needs a finite source: with sampler use 'asgd'")
        problem, draw_points = _sampled_problem(C, a, b, sampler, metric, rng, form)
    run = _Run(
        problem,
        draw_points,
        rng,
        method,
        batch_size,
        lr=lr if lr is None else check_real(lr, "lr", low=0, low_open=True, high=math.inf, high_open=True),
        tol=check_real(tol, "tol", low=0),
        max_iter=check_int(max_iter, "max_iter", low=1),
        check_every=check_every if check_every is None else check_int(check_every, "check_every", low=1),
        init=init,
    )
    result = run.solve(callback, progress)
    if not result.converged and result.status != "stopped":
        report_failure(result.message, on_fail)
    return result


def _sampled_problem(
    y: Any, a: Any, b: Any, sampler: Any, metric: Any, rng: np.random.Generator, form: dict[str, Any]
) -> tuple[Problem, Callable[[int], PointCloud]]:
    """Problem between held-out samples and the targets, and what draws the cost of more samples."""
    if not callable(sampler):
        raise TypeError(
            f"sampler must be callable, sampler(rng, size) -> points, got {type(sampler).__name__}"
        )
    if a is not None:
        raise ValueError("a must be None with sampler: the samples have equal weights")
    if isinstance(y, Cost):
        raise TypeError(f"with sampler the first argument is the target points, got a {type(y).__name__}")
    xp = array_namespace(y, b)
    y = as_float_array(y, "C", ndim=(1, 2), xp=xp, dtype=common_dtype(y))
    b = check_weights(b, "b", y.shape[0], like=y)

    def draw(size: int) -> PointCloud:
        points = sampler(rng, size)
        array_namespace(y, points)
        points = as_float_array(points, "sampler(rng, size)", ndim=(1, 2), xp=xp, dtype=y.dtype)
        if points.shape[0] != size:
            raise ValueError(
                f"sampler(rng, {size}) must return {size} points, got shape {tuple(points.shape)}"
            )
        return PointCloud(points, y, "sqeuclidean" if metric is None else metric)

    cost = draw(min(max(100 * y.shape[0], HELD_OUT[0]), HELD_OUT[1]))
    total = float(xp.sum(b, dtype=xp.float64))
    a = xp.full((cost.shape[0],), total / cost.shape[0], dtype=y.dtype, device=cost.device)
    return make_problem(cost, a, b, **form), draw


class _Run:
    """One run: batches of rows, and the state that they move."""

    def __init__(
        self,
        problem: Problem,
        draw_points: Callable[[int], PointCloud] | None,
        rng: np.random.Generator,
        method: str,
        batch_size: int,
        *,
        lr: float | None,
        tol: float,
        max_iter: int,
        check_every: int | None,
        init: Any,
    ) -> None:
        self.problem, self.inner = problem, problem.restricted
        self.draw_points, self.rng, self.method, self.batch_size = draw_points, rng, method, batch_size
        self.max_iter = max_iter
        cost, xp = self.inner.cost, problem.xp
        n, m = cost.shape
        self.check_every = check_every or math.ceil(PASSES * n / batch_size)
        self.gibbs = cost.gibbs(problem.reg)
        self.kernels = kernels_for(xp, "stochastic")
        a, b = (xp.astype(w, xp.float64) / problem.masses[0] for w in (self.inner.a, self.inner.b))
        self.weights, self.b = a, b
        self.asked, self.floor = tol, 0.0
        if draw_points is not None:
            # L1 error of a sample mean in the simplex: its expectation, and its deviation (McDiarmid)
            self.floor = float(xp.sum(xp.sqrt(b * (1 - b) / n))) + math.sqrt(2 * math.log(100) / n)
        self.tol = max(tol, self.floor)
        self.step = self.gibbs.k * (self._default_lr() if lr is None else lr)
        self.G = self.gibbs.k * self._start(init)
        if method == "asgd":
            self.mean = xp.zeros_like(self.G)
        else:
            self.table = xp.zeros((n, m), dtype=cost.dtype, device=cost.device)
            self.table[...] = xp.astype(b, cost.dtype)[None, :]
            self.total = xp.astype(self.table[0, :], xp.float64)
        chances = to_numpy(a if method == "asgd" else xp.astype(a > 0, xp.float64)).cumsum()
        self.cumulative = chances / chances[-1]
        self.prepared = self._prepare(cost) if draw_points is None and cost.direct else None
        rows = DRAWS if self.prepared else max(1, TILE_ENTRIES // m)
        self.chunk = max(1, rows // batch_size)
        self.n_iter = 0
        self.history: list[Progress] = []

    def _default_lr(self) -> float:
        xp, reg = self.problem.xp, self.problem.reg
        if self.method == "sag":
            heaviest = self.inner.cost.shape[0] * float(xp.max(self.weights))
            return 2 * reg * min(1.0, self.batch_size / heaviest)
        low, high = self.inner.cost.bounds()
        targets = int(xp.sum(xp.astype(self.b > 0, xp.int64)))
        return math.sqrt(targets * reg * max(high - low, reg))

    def _start(self, init: Any) -> Array:
        """Column potential in cost units and the KL form, float64."""
        inner, xp = self.inner, self.problem.xp
        if init is None:
            return xp.zeros_like(self.b)
        g = init.g if isinstance(init, TransportResult) else init
        f = xp.zeros_like(self.problem.a)
        _, g = self.problem.restrict(*check_potentials(f, g, self.problem))
        g = xp.astype(g, xp.float64)
        return g if inner.regularizer == "kl" else g - inner.reg * log_weights(xp, inner.b, 0.0)

    def _prepare(self, cost: Cost) -> tuple[CostData, Array]:
        """A cost as the kernels see it, with the offset of the columns."""
        gibbs = cost.gibbs(self.problem.reg)
        data = cost.data(gibbs.k) if cost.direct else cost.tile_data(0, cost.shape[0], gibbs.k)
        return data, gibbs.column_offset(self.inner.b)

    def _draw(self, count: int) -> tuple[CostData, Array, Array, Array]:
        """Data that hold `count` samples, their rows in them and in the problem, and the column offset."""
        xp = self.problem.xp
        if self.draw_points is not None:
            data, offset = self._prepare(self.draw_points(count).subset(None, self.problem.support[1]))
            rows = xp.asarray(np.arange(count), device=self.inner.cost.device)
            return data, rows, rows, offset
        drawn = np.searchsorted(self.cumulative, self.rng.random(count), side="right")
        slots = xp.asarray(drawn, device=self.inner.cost.device)
        if self.prepared:
            data, offset = self.prepared
            return data, slots, slots, offset
        data, offset = self._prepare(self.inner.cost.subset(slots, None))
        return data, xp.asarray(np.arange(count), device=self.inner.cost.device), slots, offset

    def _advance(self, count: int) -> None:
        data, rows, slots, offset = self._draw(count * self.batch_size)
        if self.method == "asgd":
            self.kernels.averaged_sgd(
                data, rows, offset, self.b, self.G, self.mean, self.step, self.n_iter, self.batch_size
            )
        else:
            self.kernels.sag(
                data, rows, slots, offset, self.b, self.weights, self.G, self.table, self.total, self.step,
                self.batch_size,
            )  # fmt: skip
        self.n_iter += count

    def solve(self, callback: Callable[[State], None] | None, progress: bool) -> TransportResult:
        """Iterate, and report."""
        status, bar = "max_iter", progress_bar(self.max_iter, "semidual_stochastic") if progress else None
        try:
            while self.n_iter < self.max_iter and status == "max_iter":
                stop = min(self.max_iter, self.n_iter + self.check_every)
                while self.n_iter < stop:
                    count = min(self.chunk, stop - self.n_iter)
                    self._advance(count)
                    if bar is not None:
                        bar.update(count)
                error = self._residual()
                self.history.append(Progress(self.n_iter, self.problem.reg, error))
                if error <= self.asked:
                    status = "converged"
                if callback is not None:
                    try:
                        callback(State(self.n_iter, self.problem.reg, error, self._settle))
                    except StopIteration:
                        status = "stopped"
        finally:
            if bar is not None:
                bar.close()
        return self._report(status)

    def _potential(self) -> Array:
        """Column potential in the form of the problem and the dtype of the cost."""
        inner, xp = self.inner, self.problem.xp
        g = (self.mean if self.method == "asgd" else self.G) / self.gibbs.k
        if inner.regularizer == "entropy":
            g = g + inner.reg * log_weights(xp, inner.b, -math.inf)
        return xp.astype(g, inner.cost.dtype)

    def _residual(self) -> float:
        """L1 error of the columns of the plan whose rows are exact, relative to the mass."""
        xp, inner = self.problem.xp, self.inner
        F, G, _ = rows_solved(inner, self.gibbs, self._potential())
        return float(xp.sum(xp.abs(column_sums(self.gibbs, F, G) / self.problem.masses[0] - self.b)))

    def _settle(self) -> tuple[Array, Array]:
        """Potentials as they will be returned, on the positive weights."""
        inner, xp = self.inner, self.problem.xp
        g = self._potential()
        _, _, f = rows_solved(inner, self.gibbs, g)
        if inner.regularizer == "entropy":
            f = xp.astype(f + inner.reg * log_weights(xp, inner.a, -math.inf), inner.cost.dtype)
        shift = (pair(xp, f, inner.a) - pair(xp, g, inner.b)) / (2 * self.problem.masses[0])
        return f - shift, g + shift

    def _report(self, status: str) -> TransportResult:
        """Recompute everything from the potentials that are returned."""
        problem, inner = self.problem, self.inner
        f, g = self._settle()
        r, c, linear_cost = self.gibbs.statistics(*inner.to_bits(f, g, self.gibbs))
        error = marginal_residual(inner, f, g, r, c)
        converged = error <= self.tol
        if status != "stopped":
            status = "max_iter" if not converged else "converged" if error <= self.asked else "floor"
        return make_result(
            problem,
            f,
            g,
            r,
            c,
            linear_cost=linear_cost,
            marginal_error=error,
            n_iter=self.n_iter,
            converged=converged,
            status=status,
            message=self._message(status, error),
            history=self.history,
        )

    def _message(self, status: str, error: float) -> str:
        reached = f"marginal error {error:.2e} after {self.n_iter} iterations of {self.batch_size} sample(s)"
        raised = ""
        if self.asked < self.floor:
            raised = f" (tol={self.asked:g} is below the sampling error of the estimate, {self.floor:.1e})"
        if status == "stopped":
            return f"stopped by the callback: {reached}"
        if status == "max_iter":
            return (
                f"not converged: {reached}, tol={self.tol:.3g}{raised}; {self._outlook(error)}"
                f"increase max_iter or reg, or change lr={self.step / self.gibbs.k:.3g}"
            )
        return f"converged: {reached}, tol={self.tol:.3g}{raised}"

    def _outlook(self, error: float) -> str:
        """What the history says about the rate."""
        if len(self.history) < 2 or not self.history[-2].marginal_error > error > 0:
            return ""
        before, after = self.history[-2], self.history[-1]
        order = math.log(before.marginal_error / error) / math.log(after.n_iter / before.n_iter)
        return f"the error last fell like n_iter**-{order:.2g}; "
