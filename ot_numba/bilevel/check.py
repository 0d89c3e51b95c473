"""Comparison of the derivatives and constants of a bilevel problem with finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..arrays.namespaces import array_namespace, device_of
from ..arrays.validation import as_float_array, check_real, check_rng
from .hypergradient import METHODS, read_theta
from .problem import BilevelProblem, upper_smoothness

Array = Any
STEP = 1e-5  #: of central differences, relative to the point
DIRECTIONS = 3


@dataclass(frozen=True, repr=False)
class ProblemReport:
    """What `check_problem` found.

    Attributes
    ----------
    ok : bool
        Whether nothing failed.
    errors : dict of str to float
        Largest relative error of each derivative, by the name of its method.
    failures : tuple of str
        What is wrong, one sentence each.
    """

    ok: bool
    errors: dict[str, float]
    failures: tuple[str, ...]

    def __repr__(self) -> str:
        """One line for each thing that was checked, and for each that failed."""
        lines = [f"{name:18} relative error {error:.1e}" for name, error in self.errors.items()]
        return "\n".join([*lines, *(f"FAILED: {text}" for text in self.failures), "ok" if self.ok else "not ok"])


def check_problem(
    problem: BilevelProblem, theta: Any, x: Any, *, rng: Any = None, tol: float = 1e-5
) -> ProblemReport:
    r"""Compare the derivatives of a problem with central differences, and its constants with what is seen.

    Random directions u, v of x and t of theta are compared as in

    .. math::

        \langle H u, v\rangle \approx \Bigl\langle \frac{\nabla h(x + s u) - \nabla h(x - s u)}{2 s}, v\Bigr\rangle,
        \qquad \langle J^\top u, t\rangle \approx
        \Bigl\langle u, \frac{\nabla h(x, \theta + s t) - \nabla h(x, \theta - s t)}{2 s}\Bigr\rangle

    and the curvature :math:`\langle u, H u\rangle / \|u\|^2` with mu and L.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    theta : array_like of shape (p,), or number
        Hyperparameters at which to look.
    x : array_like
        Point of the lower level at which to look; not a stationary one of either level.
    rng : Generator, int or None
        Source of the directions.
    tol : float
        Largest relative error of a derivative. Differences of float64 functions are right to about 1e-9.

    Returns
    -------
    ProblemReport
        Whose repr says what is wrong; nothing is raised for a wrong derivative.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    About 20 gradients and 10 values. A constant that passes may still be wrong: only random directions were seen.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import check_problem, quadratic
    >>> problem = quadratic(np.eye(2), np.ones(2), np.eye(2), np.eye(2), np.zeros(2))
    >>> check_problem(problem, [1.0, 2.0], [0.5, -1.0], rng=0).ok
    True
    """
    rng = check_rng(rng)
    tol = check_real(tol, "tol", low=0, low_open=True)
    xp = array_namespace(x)
    x = as_float_array(x, "x", xp=xp, dtype=xp.float64)
    theta = read_theta(theta, x, xp)
    missing = [name for name in METHODS if not callable(getattr(problem, name, None))]
    if missing or not hasattr(problem, "L_g"):
        raise TypeError(f"problem lacks {', '.join(missing or ['L_g'])}: see BilevelProblem")
    return _Check(problem, xp, theta, x, rng, tol).report()


class _Check:
    """One comparison."""

    def __init__(self, problem: Any, xp: Any, theta: Array, x: Array, rng: Any, tol: float) -> None:
        self.problem, self.xp, self.theta, self.x, self.rng, self.tol = problem, xp, theta, x, rng, tol
        self.errors: dict[str, float] = {}
        self.failures: list[str] = []

    def direction(self, like: Array) -> Array:
        d = self.rng.standard_normal(tuple(like.shape))
        return self.xp.asarray(d / math.sqrt((d * d).sum()), dtype=like.dtype, device=device_of(like))

    def dot(self, u: Array, v: Array) -> float:
        return float(self.xp.sum(u * v))

    def compare(self, name: str, given: float, seen: float, scale: float) -> None:
        error = abs(given - seen) / max(scale, abs(seen), 1e-300)
        error = error if math.isfinite(error) else math.inf
        self.errors[name] = max(self.errors.get(name, 0.0), error)
        if error > self.tol and not any(text.startswith(name + " ") for text in self.failures):
            self.failures.append(f"{name} gives {given:.6g} along a random direction, finite differences {seen:.6g}")

    def shape(self, name: str, value: Array, like: Array) -> bool:
        if tuple(value.shape) == tuple(like.shape):
            return True
        self.errors[name] = math.inf
        self.failures.append(f"{name} has shape {tuple(value.shape)} instead of {tuple(like.shape)}")
        return False

    def report(self) -> ProblemReport:
        problem, theta, x = self.problem, self.theta, self.x
        sx = STEP * max(1.0, math.sqrt(self.dot(x, x)))
        st = STEP
        mu, lipschitz = float(problem.mu(theta)), float(problem.lipschitz(theta))
        if not 0 < mu <= lipschitz * (1 + 1e-12) < math.inf:
            self.failures.append(f"mu and lipschitz must fulfil 0 < mu <= L, got {mu:.6g} and {lipschitz:.6g}")
        upper, lower = problem.upper_grad(x, theta), problem.lower_grad(x, theta)
        shapes = [self.shape("upper_grad", upper, x), self.shape("lower_grad", lower, x)]
        if all(shapes):
            for _ in range(DIRECTIONS):
                self.along(upper, lower, sx, st, mu, lipschitz)
        return ProblemReport(not self.failures, self.errors, tuple(self.failures))

    def along(self, upper: Array, lower: Array, sx: float, st: float, mu: float, lipschitz: float) -> None:
        """Compare along new directions."""
        problem, theta, x = self.problem, self.theta, self.x
        u, v, t = self.direction(x), self.direction(x), self.direction(theta)

        def slope(fun: Any, first: bool) -> Any:
            if first:
                return (fun(x + sx * u, theta) - fun(x - sx * u, theta)) / (2 * sx)
            return (fun(x, theta + st * t) - fun(x, theta - st * t)) / (2 * st)

        size = math.sqrt(self.dot(upper, upper) / math.prod(x.shape))
        self.compare("upper_grad", self.dot(upper, u), slope(problem.upper, True), size)
        direct = problem.upper_grad_theta(x, theta) if hasattr(problem, "upper_grad_theta") else None
        if direct is None or self.shape("upper_grad_theta", direct, theta):
            given = 0.0 if direct is None else self.dot(direct, t)
            scale = abs(float(problem.upper(x, theta))) if direct is None else math.sqrt(self.dot(direct, direct))
            self.compare("upper_grad_theta", given, slope(problem.upper, False), scale)
        if hasattr(problem, "lower"):
            size = math.sqrt(self.dot(lower, lower) / math.prod(x.shape))
            self.compare("lower_grad", self.dot(lower, u), slope(problem.lower, True), size)
        Hu = problem.lower_hvp(x, theta, u)
        if self.shape("lower_hvp", Hu, x):
            seen = slope(problem.lower_grad, True)
            scale = math.sqrt(self.dot(seen, seen) / math.prod(x.shape))
            self.compare("lower_hvp", self.dot(Hu, v), self.dot(seen, v), scale)
            self.compare("symmetry of lower_hvp", self.dot(Hu, v), self.dot(problem.lower_hvp(x, theta, v), u), scale)
            curvature = self.dot(seen, u)
            if curvature < mu * (1 - 1e-4) - self.tol * scale:
                self.fail("mu", f"is {mu:.6g}, but the lower level has a curvature of {curvature:.6g}")
            if curvature > lipschitz * (1 + 1e-4) + self.tol * scale:
                self.fail("lipschitz", f"is {lipschitz:.6g}, but the lower level has a curvature of {curvature:.6g}")
        change = slope(problem.upper_grad, True)
        rate = math.sqrt(self.dot(change, change))
        bound = upper_smoothness(problem, theta)
        if rate > bound * (1 + 1e-4) + self.tol:
            self.fail("L_g", f"is {bound:.6g}, but the gradient of g changes by {rate:.6g}")
        Jq = problem.lower_jac_t(x, theta, u)
        if self.shape("lower_jac_t", Jq, theta):
            seen = slope(problem.lower_grad, False)
            size = math.sqrt(self.dot(Jq, Jq))
            self.compare("lower_jac_t", self.dot(Jq, t), self.dot(seen, u), size)
            if hasattr(problem, "jac_norm"):
                norm = max(size, math.sqrt(self.dot(seen, seen)))
                bound = float(problem.jac_norm(x, theta))
                if norm > bound * (1 + 1e-6) + self.tol * norm:
                    self.fail("jac_norm", f"is {bound:.6g}, but J stretches a unit vector to {norm:.6g}")

    def fail(self, name: str, text: str) -> None:
        if not any(other.startswith(name + " ") for other in self.failures):
            self.failures.append(f"{name} {text}")
