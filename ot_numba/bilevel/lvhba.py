"""Bilevel problems whose lower level is constrained, by a proximal Lagrangian value function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..arrays.namespaces import array_namespace, device_of
from ..arrays.progress import progress_bar
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure

Array = Any
LARGEST = 1e290  #: sum of squares, NaN being above it, that still counts as finite


class ConstrainedProblem(Protocol):
    r"""Problem :math:`\min F(x, y)` with :math:`y \in \arg\min_{y'} \{f(x, y') : g(x, y') \le 0\}`.

    x has shape (n,), y shape (m,), and g shape (p,); f and g are convex in y. Any object with these methods will do.
    Besides them it may have ``equality`` (an array of p bools, or one bool: entries of g that must be 0),
    ``project_lower(y)`` (the projection onto a set Y that y must be in), ``project_upper(x)`` (only for problems
    without constraints, whose x must be in a set), and ``lower(x, y)``, the value of f, without which values and gaps
    are nan. Without ``constraint`` there are no constraints, and ``constraint_jac_t`` and ``project`` may be missing.
    """

    def upper(self, x: Array, y: Array) -> float:
        """Value of F."""

    def upper_grad(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Gradients of F in x and in y."""

    def lower_grad(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Gradients of f in x and in y."""

    def constraint(self, x: Array, y: Array) -> Array:
        """Value of g, (p,)."""

    def constraint_jac_t(self, x: Array, y: Array, lam: Array) -> tuple[Array, Array]:
        """Products of lam (p,) with the derivatives of g in x and in y."""

    def project(self, x: Array, y: Array) -> tuple[Array, Array]:
        r"""Projection onto :math:`\{(x, y) : g(x, y) \le 0\}`."""


class ProximalLagrangianValue(NamedTuple):
    """Value function, its gradient, and the saddle point.

    Attributes
    ----------
    value : float
        v(x, y, z).
    grad_x, grad_y, grad_z : array
        Its gradients.
    theta, lam : array
        The saddle point.
    residual : float
        Norm of a step of the saddle point's equations.
    n_iter : int
        Steps.
    converged : bool
        Whether the residual is at most the tolerance.
    """

    value: float
    grad_x: Array
    grad_y: Array
    grad_z: Array
    theta: Array
    lam: Array
    residual: float
    n_iter: int
    converged: bool


class LVHBAProgress(NamedTuple):
    """One entry of a history: iterations, F, norm of the scaled step, weight of the penalty, and the three steps."""

    n_iter: int
    value: float
    residual: float
    penalty: float
    step: float
    lower_step: float
    multiplier_step: float


@dataclass(frozen=True, repr=False)
class LVHBAResult:
    r"""Where the method ended.

    Attributes
    ----------
    x, y : array of shape (n,), (m,)
        The point, which fulfils the constraints.
    theta : array of shape (m,)
        Proximal point of the lower level.
    lam, z : array of shape (p,)
        Multipliers, and the point that they are kept close to.
    value : float
        F(x, y).
    gap : float
        :math:`f(x, y) - v(x, y, z)` with v at (theta, lam), nan if the problem has no ``lower``.
    violation : float
        Largest violation of a constraint.
    lam_at_bound : bool
        Whether a multiplier ended at its bound, and may be cut.
    residual : float
        Norm of the last scaled step.
    n_iter : int
        Iterations.
    converged : bool
        Whether the residual is at most the tolerance.
    status, message : str
        ``"converged"``, ``"max_iter"`` or ``"stopped"``; and the same with numbers.
    history : list of LVHBAProgress
        Every `record_every`-th iteration, and the last.
    """

    x: Array
    y: Array
    theta: Array
    lam: Array
    z: Array
    value: float
    gap: float
    violation: float
    lam_at_bound: bool
    residual: float
    n_iter: int
    converged: bool
    status: str
    message: str
    history: list[LVHBAProgress]

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        return (
            f"LVHBAResult(value={self.value:.6g}, gap={self.gap:.1e}, violation={self.violation:.1e}, "
            f"residual={self.residual:.1e}, n_iter={self.n_iter}, status={self.status!r})"
        )


class _Constraints:
    """The constraints, scaled to gradients in y of about 1; g(x, y) of shape (0,) if there are none."""

    def __init__(self, problem: Any, x: Array, y: Array, bound: float, scale: bool) -> None:
        self.problem, self.xp = problem, array_namespace(x, y)
        xp, device = self.xp, device_of(y)
        self.any = callable(getattr(problem, "constraint", None))
        value = problem.constraint(x, y) if self.any else xp.zeros(0, dtype=y.dtype, device=device)
        self.p = value.shape[0]
        self.scale = xp.ones_like(value)
        if self.any and scale:
            self.scale = self._norms(x, y, value)
        equal = getattr(problem, "equality", False)
        equal = xp.zeros(self.p, dtype=xp.bool, device=device) | (
            equal if isinstance(equal, bool) else xp.asarray(equal, device=device)
        )
        self.high = bound * self.scale
        self.low = xp.where(equal, -self.high, xp.zeros_like(self.high))
        self.equal = equal

    def _norms(self, x: Array, y: Array, value: Array) -> Array:
        """Norms of the gradients in y of the constraints, 1 where they vanish.

        Of p products only those with unit vectors tell; a problem may know them.
        """
        xp = self.xp
        if hasattr(self.problem, "constraint_scales"):
            norms = self.problem.constraint_scales(x, y)
        else:
            index = xp.arange(self.p, device=device_of(y))
            found = []
            for i in range(self.p):
                column = self.problem.constraint_jac_t(x, y, xp.astype(index == i, value.dtype))[1]
                found.append(xp.sqrt(xp.sum(column * column)))
            norms = xp.stack(found)
        return xp.where(norms > 0, norms, xp.ones_like(norms))

    def value(self, x: Array, y: Array) -> Array:
        """Scaled values."""
        return self.problem.constraint(x, y) / self.scale

    def jac_t(self, x: Array, y: Array, lam: Array) -> tuple[Array, Array] | tuple[float, float]:
        """Products with the scaled derivatives."""
        return self.problem.constraint_jac_t(x, y, lam / self.scale) if self.any else (0.0, 0.0)

    def clip(self, lam: Array) -> Array:
        """Projection of multipliers."""
        return self.xp.minimum(self.xp.maximum(lam, self.low), self.high)

    def project(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Joint projection."""
        if self.any:
            return self.problem.project(x, y)
        upper, lower = getattr(self.problem, "project_upper", None), getattr(self.problem, "project_lower", None)
        return (x if upper is None else upper(x)), (y if lower is None else lower(y))

    def violation(self, x: Array, y: Array) -> float:
        """Largest violation, unscaled."""
        if not self.any:
            return 0.0
        xp, g = self.xp, self.problem.constraint(x, y)
        return max(0.0, float(xp.max(xp.where(self.equal, xp.abs(g), g))))


def _vectors(x: Any, y: Any) -> tuple[Any, Array, Array]:
    xp = array_namespace(x, y)
    x = as_float_array(x, "x", ndim=1, xp=xp, dtype=xp.float64)
    return xp, x, as_float_array(y, "y", ndim=1, xp=xp, dtype=xp.float64, device=device_of(x))


def proximal_lagrangian_value(
    problem: ConstrainedProblem,
    x: Any,
    y: Any,
    z: Any = 0.0,
    *,
    prox: float = 10.0,
    dual_prox: float = 10.0,
    bound: float = 1e3,
    tol: float = 1e-10,
    max_iter: int = 20_000,
    on_fail: str = "warn",
) -> ProximalLagrangianValue:
    r"""Proximal Lagrangian value function, with its gradient.

    .. math::

        v(x, y, z) = \min_{\theta \in Y} \max_{\lambda \in Z} f(x, \theta) + \langle\lambda, g(x, \theta)\rangle
        + \frac{\|\theta - y\|^2}{2 \gamma_1} - \frac{\|\lambda - z\|^2}{2 \gamma_2}

    with Z = [0, r] for inequalities and [-r, r] for equalities. For f and g convex in y it is smooth, with gradient
    :math:`(\nabla_x f + J_x^\top \lambda,\ (y - \theta)/\gamma_1,\ (\lambda - z)/\gamma_2)` at the saddle point.

    Parameters
    ----------
    problem : ConstrainedProblem
        The problem, with ``lower``.
    x, y : array_like of shape (n,), (m,)
        Where to evaluate.
    z : array_like of shape (p,), or number
        Where to evaluate.
    prox, dual_prox : float
        gamma_1 and gamma_2, > 0.
    bound : float
        r, of the multipliers.
    tol : float
        On the norm of the residual of the saddle point's equations.
    max_iter : int
        Largest number of extragradient steps.
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached.

    Returns
    -------
    ProximalLagrangianValue

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
    For checks and diagnostics: `lvhba` never solves for the saddle point. Extragradient steps whose length adapts.

    References
    ----------
    Yao, Yu, Zeng, Zhang, "Constrained bi-level optimization: proximal Lagrangian value function approach and
    Hessian-free algorithm", ICLR 2024, arXiv 2401.16164.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from ot_numba.bilevel import proximal_lagrangian_value
    >>> problem = SimpleNamespace(
    ...     lower=lambda x, y: 0.5 * float((y - x) @ (y - x)), lower_grad=lambda x, y: (x - y, y - x),
    ...     constraint=lambda x, y: x + y - 1, constraint_jac_t=lambda x, y, lam: (lam, lam))
    >>> found = proximal_lagrangian_value(problem, [1.0], [0.0], prox=1.0, dual_prox=1.0)
    >>> round(found.value, 6), found.grad_x.round(6).tolist()
    (0.333333, [1.0])
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    xp, x, y = _vectors(x, y)
    prox = check_real(prox, "prox", low=0, low_open=True)
    dual_prox = check_real(dual_prox, "dual_prox", low=0, low_open=True)
    bound = check_real(bound, "bound", low=0, low_open=True)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    if not callable(getattr(problem, "lower", None)):
        raise TypeError("problem lacks lower, the value of f")
    constraints = _Constraints(problem, x, y, bound, False)
    project = getattr(problem, "project_lower", None) or (lambda point: point)
    z = xp.zeros_like(constraints.scale) + xp.asarray(z, dtype=y.dtype, device=device_of(y))

    def field(theta: Array, lam: Array) -> tuple[Array, Array]:
        by_theta = problem.lower_grad(x, theta)[1] + constraints.jac_t(x, theta, lam)[1] + (theta - y) / prox
        by_lam = (lam - z) / dual_prox
        return by_theta, by_lam - constraints.value(x, theta) if constraints.any else by_lam

    theta, lam, step = project(y), constraints.clip(z), 1.0
    converged = False
    for n_iter in range(1, max_iter + 1):  # noqa: B007 -- it is the count
        d_theta, d_lam = field(theta, lam)
        residual = math.hypot(
            _norm(xp, theta - project(theta - d_theta)), _norm(xp, lam - constraints.clip(lam - d_lam))
        )
        converged = residual <= tol
        if converged:
            break
        while True:
            mid = project(theta - step * d_theta), constraints.clip(lam - step * d_lam)
            e_theta, e_lam = field(*mid)
            change = math.hypot(_norm(xp, e_theta - d_theta), _norm(xp, e_lam - d_lam))
            moved = math.hypot(_norm(xp, mid[0] - theta), _norm(xp, mid[1] - lam))
            if step * change <= 0.9 * moved or step < 1e-14:
                break
            step *= 0.6
        theta, lam = project(theta - step * e_theta), constraints.clip(lam - step * e_lam)
        step *= 1.1
    if not converged:
        report_failure(
            f"proximal_lagrangian_value did not converge: residual {residual:.1e}, tol={tol:g}, after {n_iter} steps; "
            "increase max_iter, or decrease prox or dual_prox",
            on_fail,
        )
    value = float(problem.lower(x, theta)) + _norm(xp, theta - y) ** 2 / (2 * prox)
    value -= _norm(xp, lam - z) ** 2 / (2 * dual_prox)
    if constraints.any:
        value += float(xp.sum(lam * problem.constraint(x, theta)))
    grad_x = problem.lower_grad(x, theta)[0] + constraints.jac_t(x, theta, lam)[0]
    return ProximalLagrangianValue(
        value, grad_x, (y - theta) / prox, (lam - z) / dual_prox, theta, lam, residual, n_iter, converged
    )


def _norm(xp: Any, v: Array) -> float:
    return math.sqrt(float(xp.sum(v * v)))


def lvhba(
    problem: ConstrainedProblem,
    x: Any,
    y: Any,
    *,
    step: float = 1e-2,
    lower_step: float = 5e-2,
    multiplier_step: float = 1e-2,
    prox: float = 10.0,
    dual_prox: float = 10.0,
    penalty: float = 1.0,
    penalty_growth: float = 0.3,
    bound: float = 1e3,
    lam: Any = 0.0,
    z: Any = 0.0,
    theta: Any = None,
    scale_constraints: bool = True,
    alternate: bool = True,
    n_inner: int = 1,
    max_iter: int = 5000,
    tol: float = 0.0,
    record_every: int = 50,
    callback: Callable[[LVHBAProgress, Array, Array], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> LVHBAResult:
    r"""Solve a constrained bilevel problem in a single loop with gradients and projections only.

    With :math:`\theta, \lambda` one step of gradient descent and ascent away from the saddle point of the proximal
    Lagrangian (see `proximal_lagrangian_value`), and :math:`c_k = c_0 (k+1)^p`, steps

    .. math::

        (x, y) \leftarrow \mathrm{Proj}_{g \le 0}\bigl((x, y) - \alpha \nabla (F / c_k + f - v)\bigr), \qquad
        z \leftarrow \mathrm{Proj}(z + \beta (\lambda - z) / \gamma_2)

    Only convexity of f and g in y is needed. The limit is approached as 1 / c_k, unless the gradient of F vanishes
    there: a small step is no sign of a small error.

    Parameters
    ----------
    problem : ConstrainedProblem
        The problem.
    x, y : array_like of shape (n,), (m,)
        Where to start; projected.
    step, lower_step, multiplier_step : float
        Steps alpha of (x, y), eta of theta and lambda, and beta of z.
    prox, dual_prox : float
        gamma_1 and gamma_2; the latter of the scaled constraints.
    penalty, penalty_growth : float
        c_0 > 0 and p, ``0 < p < 1/2``.
    bound : float
        Largest size r of a multiplier.
    lam, z : array_like of shape (p,), or number
        Where the multipliers start, those of the constraints as given.
    theta : array_like of shape (m,), optional
        Where the proximal point starts, default y.
    scale_constraints : bool
        Divide every constraint by the norm of its gradient in y at the start, so that one set of steps does for
        every size. Multipliers are given back unscaled.
    alternate : bool
        Whether the step of lambda is taken at the new theta; simultaneous steps need to be much smaller.
    n_inner : int
        Steps of theta and lambda in an iteration.
    max_iter : int
        Number of iterations.
    tol : float
        On the norm of the steps, each over its length. 0: all iterations are made, and there is no tolerance to miss.
    record_every : int
        Iterations from one entry of the history to the next.
    callback : callable, optional
        ``callback(progress, x, y)`` with every entry; may raise StopIteration.
    progress : bool
        Show a progress bar.
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` > 0 is not reached, or a multiplier ends at its bound.

    Returns
    -------
    LVHBAResult

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    FloatingPointError
        If numbers overflow even with steps of half the length.
    ConvergenceError
        If `tol` > 0 is not reached, or a multiplier ends at its bound, and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        In these cases, with ``on_fail="warn"``.

    Notes
    -----
    Where numbers overflow or are none, it starts again once with `step` and `lower_step` of half the length.

    An iteration takes a gradient of F, two of f, one value and two products of g, and a projection. For a saddle with
    coupling :math:`K = \|J_y\|`, simultaneous steps are stable for about :math:`\eta < 2 \mu / (\mu^2 + K^2)`,
    :math:`\mu = \min 1/\gamma`. There is no guarantee if f is not convex in y.

    References
    ----------
    Yao, Yu, Zeng, Zhang, "Constrained bi-level optimization: proximal Lagrangian value function approach and
    Hessian-free algorithm", ICLR 2024, arXiv 2401.16164.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from ot_numba.bilevel import lvhba
    >>> problem = SimpleNamespace(  # lower level: y = x
    ...     upper=lambda x, y: float((y[0] - 1) ** 2), upper_grad=lambda x, y: (0 * x, 2 * (y - 1)),
    ...     lower_grad=lambda x, y: (x - y, y - x))
    >>> lvhba(problem, [0.0], [0.0], step=0.1, lower_step=0.5, max_iter=2000).x.round(3).tolist()
    [1.0]
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    xp, x, y = _vectors(x, y)
    positive = {"low": 0, "low_open": True, "high": math.inf, "high_open": True}
    step = check_real(step, "step", **positive)
    lower_step = check_real(lower_step, "lower_step", **positive)
    multiplier_step = check_real(multiplier_step, "multiplier_step", **positive)
    prox = check_real(prox, "prox", **positive)
    dual_prox = check_real(dual_prox, "dual_prox", **positive)
    penalty = check_real(penalty, "penalty", **positive)
    growth = check_real(penalty_growth, "penalty_growth", low=0, low_open=True, high=0.5, high_open=True)
    bound = check_real(bound, "bound", low=0, low_open=True)
    n_inner = check_int(n_inner, "n_inner", low=1)
    max_iter = check_int(max_iter, "max_iter", low=1)
    record_every = check_int(record_every, "record_every", low=1)
    tol = check_real(tol, "tol", low=0)
    constraints = _Constraints(problem, x, y, bound, scale_constraints)
    if constraints.any and not callable(getattr(problem, "project", None)):
        raise TypeError("problem lacks project, the projection onto the constraints")
    project_lower = getattr(problem, "project_lower", None) or (lambda point: point)
    scale = constraints.scale
    lam, z = (
        constraints.clip(scale * xp.asarray(value, dtype=y.dtype, device=device_of(y))) for value in (lam, z)
    )
    x, y = constraints.project(x, y)
    theta = project_lower(y if theta is None else xp.asarray(theta, dtype=y.dtype, device=device_of(y)))

    bar = progress_bar(max_iter, "lvhba") if progress else None
    history: list[LVHBAProgress] = []
    status, halved, n_iter, start = "max_iter", False, 0, (x, y, theta, lam, z)
    try:
        while n_iter < max_iter:
            c = penalty * (n_iter + 1) ** growth
            with np.errstate(over="ignore", invalid="ignore"):
                th, la = theta, lam
                for _ in range(n_inner):
                    d = problem.lower_grad(x, th)[1] + constraints.jac_t(x, th, la)[1] + (th - y) / prox
                    new_th = project_lower(th - lower_step * d)
                    if constraints.any:
                        d = (la - z) / dual_prox - constraints.value(x, new_th if alternate else th)
                        la = constraints.clip(la - lower_step * d)
                    th = new_th
                Fx, Fy = problem.upper_grad(x, y)
                fx, fy = problem.lower_grad(x, y)
                d_x = Fx / c + fx - problem.lower_grad(x, th)[0] - constraints.jac_t(x, th, la)[0]
                d_y = Fy / c + fy - (y - th) / prox
                new_x, new_y = x - step * d_x, y - step * d_y
                finite = sum(float(xp.sum(v * v)) for v in (new_x, new_y, th, la)) < LARGEST
            if not finite:
                if halved:
                    raise FloatingPointError(
                        f"lvhba diverged at iteration {n_iter} with step={step:g}, lower_step={lower_step:g}: use "
                        "smaller ones, scale_constraints=True and alternate=True"
                    )
                halved, step, lower_step = True, step / 2, lower_step / 2
                x, y, theta, lam, z = start  # all that came later may have grown
                continue
            new_x, new_y = constraints.project(new_x, new_y)
            new_z = constraints.clip(z + multiplier_step * (la - z) / dual_prox)
            n_iter += 1
            shown = n_iter % record_every == 0 or n_iter == max_iter
            if shown or tol > 0:
                residual = (
                    math.hypot(_norm(xp, new_x - x), _norm(xp, new_y - y)) / step
                    + (_norm(xp, th - theta) + _norm(xp, la - lam)) / lower_step
                    + _norm(xp, new_z - z) / multiplier_step
                )
            x, y, theta, lam, z = new_x, new_y, th, la, new_z
            done = tol > 0 and residual <= tol
            if shown or done:
                history.append(
                    LVHBAProgress(
                        n_iter, float(problem.upper(x, y)), residual, c, step, lower_step, multiplier_step
                    )
                )
                if callback is not None:
                    try:
                        callback(history[-1], x, y)
                    except StopIteration:
                        status = "stopped"
                        break
            if done:
                status = "converged"
                break
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return _finish(problem, constraints, x, y, theta, lam, z, prox, dual_prox, tol, status, history, on_fail)


def _finish(
    problem: Any,
    constraints: _Constraints,
    x: Array,
    y: Array,
    theta: Array,
    lam: Array,
    z: Array,
    prox: float,
    dual_prox: float,
    tol: float,
    status: str,
    history: list[LVHBAProgress],
    on_fail: str,
) -> LVHBAResult:
    """Result, reported if something is amiss."""
    xp = constraints.xp
    n_iter, residual = history[-1].n_iter, history[-1].residual
    violation = constraints.violation(x, y)
    at_bound = constraints.any and bool(xp.any(xp.abs(lam) >= constraints.high))
    gap = math.nan
    if callable(getattr(problem, "lower", None)):
        gap = float(problem.lower(x, y)) - float(problem.lower(x, theta)) - _norm(xp, theta - y) ** 2 / (2 * prox)
        if constraints.any:
            gap += _norm(xp, lam - z) ** 2 / (2 * dual_prox) - float(xp.sum(lam * constraints.value(x, theta)))
    message = f"{status}: scaled step {residual:.2e} after {n_iter} iterations, largest violation {violation:.1e}"
    if status == "max_iter" and tol > 0:
        report_failure(f"lvhba not converged, {message}, tol={tol:g}; increase max_iter or tol", on_fail)
    if at_bound:
        report_failure("lvhba: a multiplier ended at its bound and may be cut; increase bound", on_fail)
    return LVHBAResult(
        x, y, theta, lam / constraints.scale, z / constraints.scale, float(problem.upper(x, y)), gap, violation,
        at_bound, residual, n_iter, status == "converged", status, message, history,
    )  # fmt: skip
