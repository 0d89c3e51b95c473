"""What a search for hyperparameters returns, and says where it missed its tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arrays.warnings import report_failure

if TYPE_CHECKING:
    from .hypergradient import Gradient, Run, Solved

Array = Any
LOOSE = 1e4  #: factor by which the bound of an error may exceed it: at the rounding floor no more can be had


class BilevelProgress(NamedTuple):
    """One entry of a history, for one iterate theta.

    Iterations; upper level; norm of the hypergradient and bound of its error; accuracies of x and q reached; step that
    was taken, with the bound of the change of f that it is certain to make (nan if none); how often the accuracies
    were tightened and the step cut; and counts so far.
    """

    n_iter: int
    value: float
    grad_norm: float
    error_bound: float
    accuracy: float
    linear_accuracy: float
    step: float
    certified_change: float
    n_refinements: int
    n_backtracks: int
    n_gradients: int
    n_products: int


@dataclass(frozen=True, repr=False)
class BilevelResult:
    r"""Where a search for hyperparameters ended.

    Attributes
    ----------
    theta : array of shape (p,)
        Hyperparameters.
    x, q : array
        Inexact solutions of the lower level and of :math:`H q = \nabla g` there.
    value : float
        Upper level at x.
    grad : array of shape (p,)
        Inexact hypergradient there.
    grad_norm, error_bound : float
        Its 2-norm, and the bound of that of its error.
    certified : bool
        Whether that bound is certain (see `Hypergradient`).
    accuracy : float
        Bound of :math:`\|x - \hat x\|`.
    n_iter, n_gradients, n_products : int
        Steps, gradients of the lower level, and products with its Hessian.
    converged : bool
        Whether `grad_norm` and `error_bound` are at most tol.
    status, message : str
        ``"converged"``, ``"floor"`` (accuracies as good as rounding allows), ``"line_search"`` (no step is certain to
        lower f at the accuracy allowed), ``"max_iter"``, ``"budget"`` or ``"stopped"``; and the same with numbers.
    history : list of BilevelProgress
        One entry for each iterate.
    """

    theta: Array
    x: Array
    q: Array
    value: float
    grad: Array
    grad_norm: float
    error_bound: float
    certified: bool
    accuracy: float
    n_iter: int
    n_gradients: int
    n_products: int
    converged: bool
    status: str
    message: str
    history: list[BilevelProgress]

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        return (
            f"BilevelResult(value={self.value:.6g}, grad_norm={self.grad_norm:.1e}, error_bound="
            f"{self.error_bound:.1e}, n_iter={self.n_iter}, n_gradients={self.n_gradients}, status={self.status!r})"
        )


ADVICE = {
    "floor": "the accuracy is what rounding allows; loosen tol or pass check_descent=False",
    "line_search": "no step is certain to lower the upper level: tighten accuracy, or fixed_accuracy=False",
    "max_iter": "increase max_iter",
    "budget": "increase max_gradients",
}


def finish(
    name: str,
    run: Run,
    theta: Array,
    at: Solved,
    found: Gradient,
    tol: float,
    status: str,
    history: list[BilevelProgress],
    on_fail: str,
) -> BilevelResult:
    """Result of a search, reported if it missed its tolerance."""
    converged = found.norm <= tol and found.bound <= tol
    status = "converged" if converged and status != "stopped" else status
    message = (
        f"{'' if converged else 'not '}converged ({status}): hypergradient of norm {found.norm:.2e} up to "
        f"{found.bound:.1e}, tol={tol:g}, after {history[-1].n_iter} steps, {run.n_gradients} gradients and "
        f"{run.n_products} products"
    )
    attained = status == "floor" and found.norm <= tol and found.bound <= LOOSE * tol
    if not (converged or attained or status == "stopped"):
        report_failure(f"{name} {message}; {ADVICE[status]}", on_fail)
    return BilevelResult(
        theta, at.x, found.q, float(run.problem.upper(at.x, theta)), found.z, found.norm, found.bound, run.certified,
        at.accuracy, history[-1].n_iter, run.n_gradients, run.n_products, converged, status, message, history,
    )  # fmt: skip


Callback = Callable[[BilevelProgress, Array, Array], None]
