"""What a bilevel problem has to offer."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

Array = Any


class NotStronglyConvexError(ValueError):
    """The lower level curves less than the problem says, so that no error bound holds."""


@runtime_checkable
class BilevelProblem(Protocol):
    r"""Problem :math:`\min_\theta g(\hat x(\theta), \theta)` with :math:`\hat x(\theta) = \arg\min_x h(x, \theta)`.

    h, the lower level, is twice continuously differentiable, mu-strongly convex and L-smooth in x; g, the upper level,
    is L_g-smooth in x. x is an array of any shape with N entries, theta of shape (p,). Any object with these methods
    will do; `check_problem` compares all of them with finite differences.

    Besides those below, a problem may have

    =========================================  ======================================================================
    ``upper_grad_theta(x, theta) -> (p,)``     derivative of g in theta, where it depends on it directly
    ``L_g_theta``                              Lipschitz constant of that derivative in x
    ``upper_convex``                           True if g is convex in x, which tightens its bounds
    ``lower(x, theta) -> float``               value of h, for `check_problem` only
    ``jac_norm(x, theta) -> float``            spectral norm of :math:`J = \partial_\theta \nabla_x h`, or a bound
    ``L_Hinv(theta) -> float``                 Lipschitz constant in x of the inverse Hessian
    ``L_J(theta) -> float``                    Lipschitz constant in x of J
    ``lower_error(x, theta)``                  bound of the distance of x to the solution that takes the place of
                                               :math:`\|\nabla_x h\| / \mu`; None where there is none
    ``lower_solve(theta, x0, tol, max_iter)``  solver of its own: a point with :math:`\|\nabla_x h\| \le tol`, or that
                                               after `max_iter` gradients, and how many it took
    ``lower_preconditioner(x, theta)``         function ``r -> M r`` with a symmetric positive definite M close to the
                                               inverse Hessian at x, for ``linear="pcg"``
    ``start``                                  array x to start from
    ``certified``                              False if mu or another constant holds only locally
    =========================================  ======================================================================

    With ``jac_norm``, ``L_Hinv`` and ``L_J`` the bounds of the error of a hypergradient are certain.

    Attributes
    ----------
    L_g : float, or callable of theta
        Lipschitz constant in x of the gradient of the upper level.
    """

    L_g: Any

    def upper(self, x: Array, theta: Array) -> float:
        """Value of g."""

    def upper_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of g in x, of the shape of x."""

    def lower_grad(self, x: Array, theta: Array) -> Array:
        """Gradient of h in x, of the shape of x."""

    def lower_hvp(self, x: Array, theta: Array, v: Array) -> Array:
        """Hessian of h in x times v."""

    def lower_jac_t(self, x: Array, theta: Array, q: Array) -> Array:
        r"""Product :math:`J^\top q`, of shape (p,)."""

    def mu(self, theta: Array) -> float:
        """Modulus of strong convexity of h in x."""

    def lipschitz(self, theta: Array) -> float:
        """Lipschitz constant L of the gradient of h in x."""


def upper_smoothness(problem: Any, theta: Array) -> float:
    """L_g at theta."""
    return float(problem.L_g(theta) if callable(problem.L_g) else problem.L_g)
