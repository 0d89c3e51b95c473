"""Gradients of the upper level by the hyperparameters, inexact and with a bound of their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays.namespaces import array_namespace, device_of
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from ..optimize.accelerated_gradient import accelerated_gradient
from ..optimize.conjugate_gradient import conjugate_gradient
from ..optimize.lbfgs import lbfgs
from ..optimize.minres import minres
from ..optimize.newton_cg import newton_cg
from .problem import BilevelProblem, NotStronglyConvexError, upper_smoothness

Array = Any
SOLVERS = ("auto", "agd", "gd", "lbfgs", "newton-cg")
LINEAR = ("cg", "minres", "pcg")
POWER_STEPS = 10  #: of an estimate of the norm of J
MAX_TIGHTENINGS = 10  #: of a tolerance, until the problem's own bound of the error is small enough


def hypergradient_error_bound(
    accuracy: float,
    linear_accuracy: float,
    *,
    mu: float,
    L_g: float,
    jac_norm: float,
    upper_grad_norm: float,
    L_Hinv: float = 0.0,
    L_J: float = 0.0,
    L_g_theta: float = 0.0,
) -> float:
    r"""Bound of the error of a hypergradient from an inexact solution and an inexact linear system.

    .. math::

        \omega = c\,\varepsilon + \frac{\|J\|}{\mu} \delta + \frac{L_J L_g}{\mu} \varepsilon^2, \qquad
        c = \frac{L_g \|J\|}{\mu} + L_{H^{-1}} \|\nabla g\| \|J\| + \frac{L_J \|\nabla g\|}{\mu} + L_{g, \theta}

    Parameters
    ----------
    accuracy : float
        :math:`\varepsilon \ge \|\tilde x - \hat x\|`, for instance :math:`\|\nabla_x h(\tilde x)\| / \mu`.
    linear_accuracy : float
        :math:`\delta \ge \|H(\tilde x) q - \nabla g(\tilde x)\|`.
    mu : float
        Modulus of strong convexity of the lower level.
    L_g : float
        Lipschitz constant of the gradient of the upper level.
    jac_norm, upper_grad_norm : float
        Norms of J and of the gradient of g, at the inexact solution.
    L_Hinv, L_J : float
        Lipschitz constants in x of the inverse Hessian and of J.
    L_g_theta : float
        That of the direct derivative of g in theta.

    Returns
    -------
    float
        The bound, in the units of g per unit of theta.

    Raises
    ------
    ValueError
        If a number is negative, or mu is not positive.

    References
    ----------
    Salehi, Mukherjee, Roberts, Ehrhardt, "An adaptively inexact first-order method for bilevel optimization with
    application to hyperparameter learning", SIAM J. Math. Data Sci., 2025, arXiv 2308.10098.

    Examples
    --------
    >>> from ot_numba.bilevel import hypergradient_error_bound
    >>> round(hypergradient_error_bound(0.2, 0.0, mu=2, L_g=1, jac_norm=1, upper_grad_norm=0.7), 12)
    0.1
    """
    mu = check_real(mu, "mu", low=0, low_open=True)
    numbers = {
        "accuracy": accuracy, "linear_accuracy": linear_accuracy, "L_g": L_g, "jac_norm": jac_norm,
        "upper_grad_norm": upper_grad_norm, "L_Hinv": L_Hinv, "L_J": L_J, "L_g_theta": L_g_theta,
    }  # fmt: skip
    eps, delta, L_g, J, b, L_Hinv, L_J, direct = (check_real(v, k, low=0) for k, v in numbers.items())
    c = L_g * J / mu + L_Hinv * b * J + L_J * b / mu + direct
    return c * eps + J / mu * delta + L_J * L_g / mu * eps * eps


class Solved(NamedTuple):
    """Point of the lower level, with the bound of its distance to the solution."""

    x: Array
    grad_norm: float
    accuracy: float
    status: str


class Gradient(NamedTuple):
    """Inexact hypergradient."""

    z: Array
    norm: float
    q: Array
    bound: float
    linear_accuracy: float


@dataclass(frozen=True, repr=False)
class Hypergradient:
    r"""Inexact hypergradient, with a bound of its error.

    Attributes
    ----------
    grad : array of shape (p,)
        :math:`-J^\top q + \nabla_\theta g`.
    error_bound : float
        Bound of the 2-norm of its error (see `hypergradient_error_bound`).
    certified : bool
        Whether that bound is certain. False if the problem lacks one of its constants, which then is estimated, or
        says that one holds only locally.
    value : float
        Upper level at x.
    x, q : array
        Inexact solutions of the lower level and of :math:`H q = \nabla g`, of the shape of x.
    accuracy, linear_accuracy : float
        Bounds of :math:`\|x - \hat x\|` and :math:`\|H q - \nabla g\|` that were reached.
    n_gradients, n_products : int
        Gradients of the lower level and products with its Hessian.
    converged : bool
        Whether both accuracies are those asked for.
    status, message : str
        ``"converged"``, ``"floor"`` (rounding, or constants that do not hold) or ``"max_iter"``; and the same with
        numbers.
    """

    grad: Array
    error_bound: float
    certified: bool
    value: float
    x: Array
    q: Array
    accuracy: float
    linear_accuracy: float
    n_gradients: int
    n_products: int
    converged: bool
    status: str
    message: str

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        return (
            f"Hypergradient(value={self.value:.6g}, error_bound={self.error_bound:.1e}, certified={self.certified}, "
            f"accuracy={self.accuracy:.1e}, n_gradients={self.n_gradients}, n_products={self.n_products}, "
            f"status={self.status!r})"
        )


class Run:
    """A problem, with counts of what was spent on it and running estimates of the constants that it lacks."""

    def __init__(
        self, problem: BilevelProblem, theta: Any, init: Any, solver: str, linear: str, max_lower: int, constants: str
    ) -> None:
        missing = [name for name in METHODS if not callable(getattr(problem, name, None))]
        missing += [] if hasattr(problem, "L_g") else ["L_g"]
        if missing:
            raise TypeError(f"problem lacks {', '.join(missing)}: see BilevelProblem")
        self.problem, self.solver, self.linear, self.max_lower = problem, solver, linear, max_lower
        start, q = read_init(problem, init)
        self.xp = xp = array_namespace(start)
        self.start = as_float_array(start, "init", xp=xp)
        self.q = xp.zeros_like(self.start) if q is None else as_float_array(q, "init", xp=xp)
        self.theta = read_theta(theta, self.start, xp)
        self.n_gradients = self.n_products = 0
        self.budget = math.inf
        self.given = {name: constants == "given" and hasattr(problem, name) for name in OPTIONAL}
        direct = hasattr(problem, "upper_grad_theta")
        self.certified = (
            all(self.given.values())
            and getattr(problem, "certified", True)
            and (not direct or hasattr(problem, "L_g_theta"))
        )
        self.estimates = dict.fromkeys(OPTIONAL, 0.0)
        self.last: Array | None = None
        self._check_start()

    def _check_start(self) -> None:
        mu, lipschitz = self.constants(self.theta)
        check_real(upper_smoothness(self.problem, self.theta), "problem.L_g", low=0)
        if not 0 < mu < math.inf:
            raise ValueError(f"problem.mu(theta) must be > 0 and finite, got {mu}")
        if not mu * (1 - 1e-12) <= lipschitz < math.inf:
            raise ValueError(f"problem.lipschitz(theta) must be finite and >= mu = {mu}, got {lipschitz}")

    def constants(self, theta: Array) -> tuple[float, float]:
        """Moduli of strong convexity and of smoothness."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(self.problem.mu(theta)), float(self.problem.lipschitz(theta))

    def norm(self, v: Array) -> float:
        """2-norm."""
        return math.sqrt(float(self.xp.sum(v * v, dtype=self.xp.float64)))

    @property
    def spent(self) -> bool:
        """Whether the budget of gradients is used up."""
        return self.n_gradients >= self.budget

    def lower_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of the lower level, counted."""
        self.n_gradients += 1
        return self.problem.lower_grad(x, theta)

    def solve(self, theta: Array, x: Array, accuracy: float) -> Solved | None:
        """Point at most `accuracy` from the solution, if it can be had; None where the problem is not defined."""
        mu, lipschitz = self.constants(theta)
        if not (0 < mu < math.inf and mu * (1 - 1e-12) <= lipschitz < math.inf):
            return None
        limit = mu * accuracy
        for _ in range(MAX_TIGHTENINGS):
            found = self._descend(theta, x, limit, mu, lipschitz)
            if found is None:
                return None
            x, norm, status = found
            error = self._error(x, theta, norm / mu)
            if error <= accuracy or status != "converged":
                break
            limit *= 0.5 * accuracy / error  # where the problem's bound is above that of mu
        return Solved(x, norm, error, status)

    def _error(self, x: Array, theta: Array, by_mu: float) -> float:
        """Bound of the distance to the solution: that of the problem if it has one, else that of mu."""
        error = self.problem.lower_error(x, theta) if hasattr(self.problem, "lower_error") else None
        return by_mu if error is None else error

    def _descend(
        self, theta: Array, x: Array, limit: float, mu: float, lipschitz: float
    ) -> tuple[Array, float, str] | None:
        """Point with a gradient of norm `limit`, that norm and a status; None if it diverges."""
        own = getattr(self.problem, "lower_solve", None)
        left = int(max(1, min(self.max_lower, self.budget - self.n_gradients)))
        if self.solver == "auto" and own is not None:
            x, count = own(theta, x, limit, left)
            self.n_gradients += count
            norm = self.norm(self.lower_grad(x, theta))
            status = "converged" if norm <= limit else "max_iter" if count >= left else "floor"
        elif self.solver == "lbfgs":
            shape = x.shape

            def both(flat: Array) -> tuple[float, Array]:
                point = self.xp.reshape(flat, shape)
                grad = self.lower_grad(point, theta)
                return float(self.problem.lower(point, theta)), self.xp.reshape(grad, (-1,))

            found = lbfgs(both, self.xp.reshape(x, (-1,)), tol=limit, max_iter=left, value_tol=0.0, norm=2)
            x, norm = self.xp.reshape(found.x, shape), found.grad_norm
            status = found.status if found.status in ("converged", "max_iter") else "floor"
        elif self.solver == "newton-cg":
            found = newton_cg(
                lambda y: self.lower_grad(y, theta), lambda y, v: self.product(y, theta, v, mu), x, mu=mu, tol=limit,
                max_iter=left, preconditioner=self._preconditioner(theta),
            )  # fmt: skip
            x, norm, status = found.x, found.grad_norm, found.status
        else:
            found = accelerated_gradient(
                lambda y: self.lower_grad(y, theta), x, mu=mu, lipschitz=lipschitz, tol=limit, max_iter=left,
                momentum=self.solver != "gd",
            )  # fmt: skip
            x, norm, status = found.x, found.grad_norm, found.status
        if not math.isfinite(norm) or status == "diverged":
            return None
        return x, norm, status

    def gradient(self, theta: Array, at: Solved, linear_accuracy: float) -> Gradient:
        """Hypergradient from a point, by a linear solver that starts from the last solution."""
        xp, problem, x = self.xp, self.problem, at.x
        mu, _ = self.constants(theta)
        b = problem.upper_grad(x, theta)
        size = self.norm(b)
        if size == 0:
            q, linear = xp.zeros_like(x), 0.0
        else:
            start = self.q if self.norm(self.q) > 0 else None
            matvec, options = lambda v: self.product(x, theta, v, mu), {"init": start, "tol": linear_accuracy / size}
            if self.linear == "minres":
                found = minres(matvec, b, **options)
            else:
                precondition = self._preconditioner(theta)
                M = None if precondition is None else precondition(x)
                found = conjugate_gradient(matvec, b, preconditioner=M, **options)
            q = found.x
            # that of the recurrence may be better than the truth
            linear = self.norm(b - self.product(x, theta, q, mu)) if found.n_iter or start is not None else size
        self.q = q
        z = -xp.reshape(problem.lower_jac_t(x, theta, q), (-1,))
        if hasattr(problem, "upper_grad_theta"):
            z = z + xp.reshape(problem.upper_grad_theta(x, theta), (-1,))
        if tuple(z.shape) != tuple(theta.shape):
            raise ValueError(f"problem.lower_jac_t must return shape {tuple(theta.shape)}, got {tuple(z.shape)}")
        if not theta.shape[0]:  # nothing to be wrong about
            return Gradient(z, 0.0, q, 0.0, linear)
        limits = self._limits(theta, x, b, size, q, mu)
        bound = hypergradient_error_bound(
            at.accuracy,
            linear,
            mu=mu,
            L_g=upper_smoothness(problem, theta),
            upper_grad_norm=size,
            L_g_theta=getattr(problem, "L_g_theta", 0.0),
            **limits,
        )
        return Gradient(z, self.norm(z), q, bound, linear)

    def _preconditioner(self, theta: Array) -> Callable[[Array], Callable[[Array], Array]] | None:
        """Of the systems at a point, if there shall be one."""
        return (lambda x: self.problem.lower_preconditioner(x, theta)) if self.linear == "pcg" else None

    def product(self, x: Array, theta: Array, v: Array, mu: float) -> Array:
        """Product with the Hessian, counted; raises where it curves less than mu."""
        self.n_products += 1
        Hv = self.problem.lower_hvp(x, theta, v)
        square = float(self.xp.sum(v * v, dtype=self.xp.float64))
        curvature = float(self.xp.sum(v * Hv, dtype=self.xp.float64))
        slack = 1e-3 * mu * square + 1e-12 * math.sqrt(square) * self.norm(Hv)
        if square > 0 and not curvature >= mu * square - slack:
            raise NotStronglyConvexError(
                f"the lower level has a curvature of {curvature / square:.3g} where problem.mu(theta) promises "
                f"{mu:.3g}: it is not strongly convex, mu is too large, or lower_hvp is wrong (see check_problem)"
            )
        return Hv

    def _limits(self, theta: Array, x: Array, b: Array, size: float, q: Array, mu: float) -> dict[str, float]:
        """The three constants of the bound, given or estimated."""
        problem, estimates = self.problem, self.estimates
        if not (self.given["L_J"] and self.given["L_Hinv"]):
            self._estimate(theta, x, size, q, mu)
        return {
            "jac_norm": float(problem.jac_norm(x, theta)) if self.given["jac_norm"] else self._jac_norm(x, theta),
            "L_Hinv": float(problem.L_Hinv(theta)) if self.given["L_Hinv"] else estimates["L_Hinv"],
            "L_J": float(problem.L_J(theta)) if self.given["L_J"] else estimates["L_J"],
        }

    def _estimate(self, theta: Array, x: Array, size: float, q: Array, mu: float) -> None:
        """Running maxima of difference quotients between the last two points."""
        old, self.last = self.start if self.last is None else self.last, x
        distance, length, estimates = self.norm(x - old), self.norm(q), self.estimates
        if not (distance > 1e-12 * self.norm(x) and length > 0):
            return
        if not self.given["L_J"]:
            change = self.problem.lower_jac_t(x, theta, q) - self.problem.lower_jac_t(old, theta, q)
            estimates["L_J"] = max(estimates["L_J"], self.norm(change) / (length * distance))
        if not self.given["L_Hinv"]:
            self.n_products += 2
            change = self.problem.lower_hvp(x, theta, q) - self.problem.lower_hvp(old, theta, q)
            estimates["L_Hinv"] = max(estimates["L_Hinv"], self.norm(change) / (mu * size * distance))

    def _jac_norm(self, x: Array, theta: Array) -> float:
        """Estimate of the norm of J, by power steps with differences of the gradient for J v."""
        xp = self.xp
        v = 1 + 0.1 * xp.arange(theta.shape[0], dtype=theta.dtype, device=device_of(theta)) / theta.shape[0]
        value = 0.0
        for _ in range(POWER_STEPS):
            length = self.norm(v)
            if not length > 0:
                break
            v = v / length
            h = 1e-5
            column = (self.lower_grad(x, theta + h * v) - self.lower_grad(x, theta - h * v)) / (2 * h)
            value = max(value, self.norm(column))
            v = xp.reshape(self.problem.lower_jac_t(x, theta, column), (-1,))
        return value


METHODS = ("upper", "upper_grad", "lower_grad", "lower_hvp", "lower_jac_t", "mu", "lipschitz")
OPTIONAL = ("jac_norm", "L_Hinv", "L_J")


def read_theta(theta: Any, like: Array, xp: Any) -> Array:
    """Hyperparameters as a float64 vector, which may be empty."""
    if not len(theta) if isinstance(theta, (list, tuple)) else tuple(getattr(theta, "shape", ())) == (0,):
        return xp.zeros(0, dtype=xp.float64, device=device_of(like))
    theta = as_float_array(theta, "theta", ndim=(0, 1), xp=xp, dtype=xp.float64, device=device_of(like))
    return xp.reshape(theta, (-1,))


def read_init(problem: Any, init: Any) -> tuple[Any, Any]:
    """Points x and q to start from."""
    if init is None:
        if getattr(problem, "start", None) is not None:
            return problem.start, None
        raise ValueError("init must be given: problem has no attribute `start`")
    if hasattr(init, "x") and hasattr(init, "q"):
        return init.x, init.q
    if isinstance(init, tuple):
        if len(init) != 2:
            raise ValueError(f"init must be x, a pair (x, q), or a result, got a tuple of {len(init)}")
        return init
    return init, None


def hypergradient(
    problem: BilevelProblem,
    theta: Any,
    *,
    init: Any = None,
    tol: float = 1e-6,
    linear_tol: float | None = None,
    solver: str = "auto",
    linear: str = "cg",
    constants: str = "given",
    max_iter: int = 100_000,
    on_fail: str = "warn",
) -> Hypergradient:
    r"""Gradient of :math:`f(\theta) = g(\hat x(\theta), \theta)`, inexact and with a bound of its error.

    .. math:: \nabla f \approx -J(x)^\top q + \nabla_\theta g(x, \theta), \qquad H(x)\, q \approx \nabla_x g(x)

    with x the inexact minimiser of the lower level, and H, J its second derivatives there.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    theta : array_like of shape (p,), or number
        Hyperparameters; p may be 0.
    init : array, pair (x, q), Hypergradient or BilevelResult, optional
        Where the two solvers start; default ``problem.start`` and 0.
    tol : float
        On the distance of x to the minimiser, certified by :math:`\|\nabla_x h\| \le \mu\, tol`.
    linear_tol : float, optional
        On :math:`\|H q - \nabla g\|`, default `tol`.
    solver : {"auto", "agd", "gd", "lbfgs", "newton-cg"}
        Of the lower level: that of the problem if it has one, else the accelerated gradient method; accelerated or
        plain gradient descent; L-BFGS, for which the problem needs ``lower``; or an inexact Newton method, whose
        Hessian products count. All end with a gradient that certifies `tol`.
    linear : {"cg", "minres", "pcg"}
        Of the linear system: conjugate gradients; MINRES, whose residual never grows; or conjugate gradients
        preconditioned by the problem's ``lower_preconditioner`` (as are then those of Newton's method).
    constants : {"given", "estimate"}
        Whether to use the constants ``jac_norm``, ``L_Hinv`` and ``L_J`` of the problem. Those that it lacks are
        always estimated.
    max_iter : int
        Largest number of gradients of the lower level.
    on_fail : {"warn", "raise", "ignore"}
        What to do if an accuracy is not reached.

    Returns
    -------
    Hypergradient

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    NotStronglyConvexError
        If the lower level curves less than ``problem.mu(theta)``.
    ConvergenceError
        If an accuracy is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If an accuracy is not reached and ``on_fail="warn"``.

    Notes
    -----
    About :math:`\sqrt{L / \mu}` gradients and as many Hessian products for each factor e of accuracy; ten arrays of
    the size of x. The bound is for the accuracies reached, which may be better than those asked for.

    References
    ----------
    Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016. Salehi, Mukherjee, Roberts,
    Ehrhardt, arXiv 2308.10098.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import hypergradient, quadratic
    >>> problem = quadratic(np.eye(1), np.ones(1), np.eye(1), np.eye(1), np.zeros(1))  # x = -theta, target 1
    >>> result = hypergradient(problem, [3.0])
    >>> result.grad.round(6).tolist(), result.certified
    ([4.0], True)
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    run = make_run(problem, theta, init, solver, linear, max_iter, constants)
    tol = check_real(tol, "tol", low=0, low_open=True)
    linear_tol = tol if linear_tol is None else check_real(linear_tol, "linear_tol", low=0, low_open=True)
    at = run.solve(run.theta, run.start, tol)
    if at is None:
        raise ValueError(f"the lower level diverged at theta={run.theta}: see check_problem for lower_grad, lipschitz")
    found = run.gradient(run.theta, at, linear_tol)
    converged = at.accuracy <= tol and found.linear_accuracy <= linear_tol
    status = "converged" if converged else at.status if at.status != "converged" else "floor"
    message = (
        f"{'' if converged else 'not '}converged ({status}): accuracy {at.accuracy:.1e} of x, tol={tol:g}, and "
        f"{found.linear_accuracy:.1e} of q, linear_tol={linear_tol:g}, after {run.n_gradients} gradients and "
        f"{run.n_products} products"
    )
    if not converged:
        advice = "increase max_iter" if status == "max_iter" else "increase tol, or check_problem(problem, theta, x)"
        report_failure(f"hypergradient {message}; {advice}", on_fail)
    return Hypergradient(
        found.z, found.bound, run.certified, float(problem.upper(at.x, run.theta)), at.x, found.q, at.accuracy,
        found.linear_accuracy, run.n_gradients, run.n_products, converged, status, message,
    )  # fmt: skip


def make_run(problem: Any, theta: Any, init: Any, solver: str, linear: str, max_iter: int, constants: str) -> Run:
    """A run, of checked options."""
    check_choice(solver, "solver", SOLVERS)
    check_choice(linear, "linear", LINEAR)
    check_choice(constants, "constants", ("given", "estimate"))
    if solver == "lbfgs" and not callable(getattr(problem, "lower", None)):
        raise ValueError("solver='lbfgs' needs problem.lower, the value of the lower level")
    if linear == "pcg" and not callable(getattr(problem, "lower_preconditioner", None)):
        raise ValueError("linear='pcg' needs problem.lower_preconditioner (see BilevelProblem)")
    return Run(problem, theta, init, solver, linear, check_int(max_iter, "max_iter", low=1), constants)
