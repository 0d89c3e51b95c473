"""Newton's method with approximate Hessians, regularised by the norm of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, is_numpy
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from .conjugate_gradient import conjugate_gradient

Array = Any
ROUNDING = 4e-16  #: of the value, relative: no decrease below it can be asked for
SMALLEST = 1e-300  #: radius
LIFT, SINGULAR = 1e-8, 1e-14  #: of the mean diagonal of a metric, added to it if a squared pivot is no more than this
CG_TOL = 1e-2


class Diagonal(NamedTuple):
    """The matrix ``diag(d)``."""

    d: Array


class RankOne(NamedTuple):
    """The matrix ``scale u u'``."""

    scale: float
    u: Array


class RegularizedNewtonProgress(NamedTuple):
    """One entry of a history: iterations, value, dual norm of the gradient, radius, and counts so far.

    The radius is that of the step that led there: the norm of the gradient before it, over the multiple of the metric
    that was added to the Hessian.
    """

    n_iter: int
    value: float
    grad_norm: float
    radius: float
    n_solves: int
    n_evaluations: int


@dataclass(frozen=True, repr=False)
class RegularizedNewtonResult:
    r"""Where a minimiser ended.

    Attributes
    ----------
    x, grad : array of shape (n,)
        The last point and the gradient there.
    value, grad_norm : float
        The function and :math:`\|\nabla f\|_*` there.
    n_iter, n_solves, n_evaluations : int
        Iterations, linear systems and evaluations of the function.
    converged : bool
        Whether `grad_norm` is at most the tolerance.
    status : str
        ``"converged"``, ``"max_iter"``, ``"stalled"`` (no step lowers the value as it should) or ``"stopped"`` (by the
        callback).
    message : str
        The same with numbers.
    history : list of RegularizedNewtonProgress
        One entry for each iteration, and for the start.
    """

    x: Array
    grad: Array
    value: float
    grad_norm: float
    n_iter: int
    n_solves: int
    n_evaluations: int
    converged: bool
    status: str
    message: str
    history: list[RegularizedNewtonProgress]

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        return (
            f"RegularizedNewtonResult(value={self.value:.6g}, grad_norm={self.grad_norm:.1e}, n_iter={self.n_iter}, "
            f"n_solves={self.n_solves}, status={self.status!r})"
        )


def reached(
    name: str, x: Array, value: float, g: Array, norm: float, tol: float, status: str, history: list,
    counts: tuple[int, int], on_fail: str,
) -> RegularizedNewtonResult:  # fmt: skip
    """Result at the last point, reported if it missed its tolerance."""
    n_iter, converged = history[-1].n_iter, norm <= tol
    status = "converged" if converged and status != "stopped" else status
    message = (
        f"{'' if converged else 'not '}converged ({status}): gradient of norm {norm:.2e}, tol={tol:.3g}, after "
        f"{n_iter} iterations"
    )
    if not converged and status != "stopped":
        advice = "increase max_iter" if status == "max_iter" else "check the derivatives, or increase tol"
        report_failure(f"{name}: {message}; {advice}", on_fail)
    return RegularizedNewtonResult(
        x, g, value, norm, n_iter, *counts, converged, status, message, history
    )


def regularized_newton(
    fun: Callable[[Array], float],
    grad: Callable[[Array], Array],
    hess: Callable[[Array], Any],
    x0: Any,
    *,
    metric: Any = None,
    radius: float = 1.0,
    radius_min: float = 1e-9,
    tol: float = 1e-8,
    max_iter: int = 1000,
    max_search: int = 40,
    callback: Callable[[RegularizedNewtonProgress, Array], None] | None = None,
    on_fail: str = "warn",
) -> RegularizedNewtonResult:
    r"""Minimise a smooth function with any approximation of its Hessian.

    .. math:: x_+ = x - \Bigl(H(x) + \frac{\|\nabla f(x)\|_*}{r} B\Bigr)^{-1} \nabla f(x)

    with the metric B, :math:`\|g\|_* = \sqrt{g^\top B^{-1} g}` and a radius r, which bounds the step,
    :math:`\|x_+ - x\|_B \le r` (for H >= 0). r is halved until, with :math:`\lambda = \|\nabla f(x)\|_* / r`,

    .. math:: f(x) - f(x_+) \ge \|\nabla f(x_+)\|_*^2 / (8 \lambda)

    (less the rounding of f), and doubled after every step. No constant of the function is needed.

    Parameters
    ----------
    fun, grad : callable
        ``fun(x)`` returns the value, ``grad(x)`` the gradient (n,). Values that are no numbers, or inf, shorten the
        step.
    hess : callable
        ``hess(x)`` returns the matrix H as an array (n, n), as `Diagonal`, as `RankOne`, or as a function
        ``v -> H v``; a matrix is factorised (Cholesky) for every radius, a function goes to conjugate gradients. Where
        H + lambda B is not positive definite the radius is halved.
    x0 : array_like of shape (n,)
        Where to start.
    metric : array of shape (n,) or (n, n), optional
        B, positive definite; a vector is its diagonal; default the identity. A full B does not go with `Diagonal`. To a
        singular B 1e-8 of its mean diagonal is added.
    radius, radius_min : float
        First radius, and the smallest that an iteration starts with.
    tol : float
        On :math:`\|\nabla f(x)\|_*`.
    max_iter, max_search : int
        Largest numbers of iterations, and of radii in one.
    callback : callable, optional
        ``callback(progress, x)`` after every iteration; may raise StopIteration.
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached.

    Returns
    -------
    RegularizedNewtonResult

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
    An iteration takes one Hessian, and for each of its radii (1.5 to 2 on average) a linear system, a value and a
    gradient. An H whose error vanishes with the gradient (Gauss-Newton for residuals that become 0, the rank-one term
    of ``|u|**p``) keeps the speed of Newton's method; a constant error costs that of a first-order method.

    References
    ----------
    Semenov, Jaggi, Doikov, "Gradient-normalized smoothness for optimization with approximate Hessians", ICLR 2026,
    arXiv 2506.13710.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.optimize import regularized_newton
    >>> result = regularized_newton(lambda x: float((x**4).sum()), lambda x: 4 * x**3, lambda x: np.diag(12 * x**2),
    ...                             np.ones(3))
    >>> result.converged, result.n_iter < 20
    (True, True)
    """
    r = check_real(radius, "radius", low=0, low_open=True, high=math.inf, high_open=True)
    radius_min = check_real(radius_min, "radius_min", low=0)
    return descend(
        "regularized_newton", fun, grad, hess, x0, _Radius(r, radius_min), metric=metric, tol=tol, max_iter=max_iter,
        max_search=max_search, callback=callback, on_fail=on_fail,
    )  # fmt: skip


class _Radius:
    """Rule of `regularized_newton`: what regularises a step, and when it is good enough."""

    def __init__(self, radius: float, radius_min: float) -> None:
        self.radius, self.radius_min = radius, radius_min

    def step(self, H: Any, B: Metric, g: Array, natural: Array, norm: float, tol: float) -> tuple[Array | None, float]:
        """Step, None where H and what is added to it is not positive definite, and the multiple of B that is added."""
        lam = norm / self.radius if self.radius > SMALLEST else math.inf
        return newton_step(H, B, lam, g, natural, tol), lam

    def accepts(self, gain: float, slack: float, slope: float, norm_new: float, lam: float) -> bool:
        """Whether the gain, up to rounding, or the slope at the end of the step is what it should be."""
        return gain + slack >= norm_new * norm_new / (8 * lam)

    def fail(self) -> None:
        """Shorten the next step."""
        self.radius /= 2

    def succeed(self) -> None:
        """Lengthen the next step."""
        self.radius = max(2 * self.radius, self.radius_min)


def descend(
    name: str,
    fun: Callable[[Array], float],
    grad: Callable[[Array], Array],
    hess: Callable[[Array], Any],
    x0: Any,
    rule: Any,
    *,
    metric: Any,
    tol: float,
    max_iter: int,
    max_search: int,
    callback: Callable[[RegularizedNewtonProgress, Array], None] | None,
    on_fail: str,
) -> RegularizedNewtonResult:
    """Regularised Newton steps, each of which a rule regularises and accepts (see `_Radius`)."""
    check_choice(on_fail, "on_fail", ON_FAIL)
    xp = array_namespace(x0)
    x = as_float_array(x0, "x0", ndim=1, xp=xp)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    max_search = check_int(max_search, "max_search", low=1)
    B = metric_of(xp, metric, x)

    value, g = float(fun(x)), grad(x)
    natural, norm = B.dual(g)
    first = norm
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise ValueError(f"fun must be finite at x0, got the value {value} and a gradient of norm {norm}")
    history = [RegularizedNewtonProgress(0, value, norm, math.nan, 0, 1)]
    status, n_solves, n_evaluations = "max_iter", 0, 1
    for n_iter in range(1, max_iter + 1):
        if norm <= tol:
            break
        H = hess(x)
        slack, taken = ROUNDING * max(1.0, abs(value)), False
        for _ in range(max_search):
            n_solves += 1
            step, lam = rule.step(H, B, g, natural, norm, min(CG_TOL, math.sqrt(norm / first)))
            if not math.isfinite(lam):
                break
            if step is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    new = x + step
                    value_new = float(fun(new))
                n_evaluations += 1
                if value_new <= value + slack:
                    g_new = grad(new)
                    natural_new, norm_new = B.dual(g_new)
                    taken = rule.accepts(value - value_new, slack, float(xp.sum(step * g_new)), norm_new, lam)
                    if taken:
                        break
            rule.fail()
        if not taken:
            status = "stalled"
            break
        x, value, g, natural, norm = new, value_new, g_new, natural_new, norm_new
        history.append(
            RegularizedNewtonProgress(n_iter, value, norm, history[-1].grad_norm / lam, n_solves, n_evaluations)
        )
        rule.succeed()
        if callback is not None:
            try:
                callback(history[-1], x)
            except StopIteration:
                status = "stopped"
                break
    return reached(name, x, value, g, norm, tol, status, history, (n_solves, n_evaluations), on_fail)


class Metric:
    """The matrix B: the identity, a diagonal, or a full matrix."""

    def __init__(self, xp: Any, B: Array | None) -> None:
        self.xp, self.B = xp, B
        self.solve = None
        if B is not None and B.ndim == 2:
            self.solve = _factorized(xp, B, SINGULAR)
            if self.solve is None:
                lift = LIFT * float(xp.mean(xp.linalg.diagonal(B)))
                self.B = B + lift * xp.eye(B.shape[0], dtype=B.dtype, device=device_of(B))
                self.solve = _factorized(xp, self.B) if lift > 0 else None
            if self.solve is None:
                raise ValueError("metric must be positive semi-definite, and not 0")
        elif B is not None and not float(xp.min(B)) > 0:
            if not float(xp.min(B)) == 0 < float(xp.max(B)):
                raise ValueError(f"metric must be positive, got {float(xp.min(B))}")
            self.B = B + LIFT * float(xp.mean(B))

    def inverse(self, g: Array) -> Array:
        """``B^-1 g``."""
        if self.B is None:
            return g
        return g / self.B if self.solve is None else self.solve(g)

    def dual(self, g: Array) -> tuple[Array, float]:
        """``B^-1 g``, and the dual norm of g."""
        natural = self.inverse(g)
        square = float(self.xp.sum(g * natural))
        return natural, math.sqrt(square) if square > 0 else square and math.nan

    def times(self, v: Array) -> Array:
        """``B v``."""
        if self.B is None:
            return v
        return self.B * v if self.B.ndim == 1 else self.B @ v

    def half(self) -> _Half:
        """The square root by whose inverse the metric becomes the identity."""
        return _Half(self.xp, self.B)

    def added(self, H: Array, lam: float) -> Array:
        """``H + lam B`` for a matrix H."""
        xp = self.xp
        if self.B is not None and self.B.ndim == 2:
            return H + lam * self.B
        diagonal = xp.ones_like(H[:, 0]) if self.B is None else self.B
        return H + lam * xp.eye(H.shape[0], dtype=H.dtype) * diagonal[:, None]


class _Half:
    """A matrix L with ``L L' = B``."""

    def __init__(self, xp: Any, B: Array | None) -> None:
        self.xp = xp
        self.root = None if B is None else xp.sqrt(B) if B.ndim == 1 else xp.linalg.cholesky(B)

    def inverse(self, V: Array) -> Array:
        """``L^-1 V`` for a vector or a matrix."""
        return self._divided(self.root, V)

    def inverse_t(self, V: Array) -> Array:
        """``L'^-1 V``."""
        return self._divided(self.root if self.root is None or self.root.ndim == 1 else self.root.T, V)

    def both(self, H: Array) -> Array:
        """``L^-1 H L'^-1`` for a symmetric H."""
        return self.inverse(self.inverse(H).T)

    def _divided(self, root: Array | None, V: Array) -> Array:
        if root is None:
            return V
        if root.ndim == 1:
            return V / (root if V.ndim == 1 else root[:, None])
        solved = self.xp.linalg.solve(root, V if V.ndim == 2 else V[:, None])
        return solved if V.ndim == 2 else solved[:, 0]


def metric_of(xp: Any, metric: Any, x: Array) -> Metric:
    """The checked metric of a space."""
    if metric is None:
        return Metric(xp, None)
    B = as_float_array(metric, "metric", ndim=(1, 2), xp=xp)
    if tuple(B.shape) not in ((x.shape[0],), (x.shape[0], x.shape[0])):
        raise ValueError(f"metric must have shape ({x.shape[0]},) or twice that, got {tuple(B.shape)}")
    return Metric(xp, B)


def _factorized(xp: Any, S: Array, least: float = 0.0) -> Callable[[Array], Array] | None:
    """``r -> S^-1 r``; None if S is not positive definite, or a squared pivot at most `least` times the largest."""
    def singular(factor: Array) -> bool:
        pivots = xp.linalg.diagonal(factor) ** 2
        return bool(xp.min(pivots) <= least * xp.max(pivots))

    if not is_numpy(xp):
        try:
            factor = xp.linalg.cholesky(S)
        except Exception:  # each library has its own
            return None
        if not bool(xp.all(xp.isfinite(factor))) or singular(factor):
            return None
        return lambda r: xp.linalg.solve(S, r[:, None])[:, 0]
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    try:
        factor = cho_factor(S, lower=True, check_finite=False)
    except LinAlgError:
        return None
    if singular(factor[0]):
        return None
    return lambda r: cho_solve(factor, r, check_finite=False)


def newton_step(H: Any, B: Metric, lam: float, g: Array, natural: Array, tol: float) -> Array | None:
    """``-(H + lam B)^-1 g``; None if that matrix is not positive definite, or lam not finite."""
    xp = B.xp
    if not math.isfinite(lam):
        return None
    if isinstance(H, RankOne):
        w = natural if H.u is g else B.inverse(H.u)
        bottom = lam + H.scale * float(xp.sum(H.u * w))
        if not bottom > 0:
            return None
        return w * (H.scale * float(xp.sum(w * g)) / (lam * bottom)) - natural / lam
    if isinstance(H, Diagonal):
        if B.B is not None and B.B.ndim == 2:
            raise ValueError("a Diagonal Hessian needs a metric of shape (n,)")
        d = H.d + lam * (1.0 if B.B is None else B.B)
        return -g / d if float(xp.min(d)) > 0 else None
    if callable(H):
        solution = conjugate_gradient(lambda v: H(v) + lam * B.times(v), -g, tol=tol)
        # it ends early where the curvature is not positive
        broken = not solution.converged and solution.n_iter < 10 * g.shape[0]
        return None if broken or not math.isfinite(solution.residual) else solution.x
    solve = _factorized(xp, B.added(H, lam))
    return None if solve is None else -solve(g)
