"""What the minimisers return, and what their callbacks see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any


class OptimizeProgress(NamedTuple):
    """One entry of a history: iterations and evaluations so far, the value, and the norm of the gradient."""

    n_iter: int
    n_evaluations: int
    value: float
    grad_norm: float


class OptimizeState(NamedTuple):
    """What a callback sees: an entry of the history, and the point (not to be written to)."""

    n_iter: int
    n_evaluations: int
    value: float
    grad_norm: float
    x: Array


@dataclass(frozen=True, repr=False)
class OptimizeResult:
    r"""Where a minimiser ended.

    Attributes
    ----------
    x : array of shape (..., n)
        The best point of `lbfgs`, the last one of `adam`.
    value : float, or array of shape (...)
        The function there; an array, in the batches of `adam`.
    grad : array of shape (..., n)
        Its (sub)gradient there.
    grad_norm : float
        :math:`\|\nabla\|_1` there, over the last axis; the largest of a batch. (Or the other norm, if `lbfgs` was asked
        for it.)
    n_iter, n_evaluations : int
        Iterations, and evaluations of the function.
    converged : bool
        Whether `grad_norm` is at most the tolerance.
    status : str
        ``"converged"``, ``"max_iter"``, ``"stalled"`` (the value no longer changes), ``"line_search"`` (no descent was
        found: a kink, or rounding) or ``"stopped"`` (by the callback).
    message : str
        The same with numbers.
    history : list of OptimizeProgress
        One entry for each iteration, and for the start.
    """

    x: Array
    value: Any
    grad: Array
    grad_norm: float
    n_iter: int
    n_evaluations: int
    converged: bool
    status: str
    message: str
    history: list[OptimizeProgress]

    def __repr__(self) -> str:
        """Short form: the numbers, not the arrays."""
        value = f"{self.value:.6g}" if isinstance(self.value, float) else f"<{tuple(self.value.shape)} values>"
        return (
            f"OptimizeResult(value={value}, grad_norm={self.grad_norm:.1e}, n_iter={self.n_iter}, "
            f"n_evaluations={self.n_evaluations}, status={self.status!r})"
        )


def describe(status: str, grad_norm: float, tol: float, n_iter: int, n_evaluations: int, norm: int = 1) -> str:
    """Message of a result."""
    reached = f"gradient of L{norm} norm {grad_norm:.2e} after {n_iter} iterations and {n_evaluations} evaluations"
    if status == "converged":
        return f"converged: {reached}, tol={tol:.3g}"
    if status == "stopped":
        return f"stopped by the callback: {reached}"
    reason = {
        "max_iter": "max_iter is reached",
        "stalled": "the value no longer changes",
        "line_search": "no step lowers the value, as at a kink or at the rounding floor",
    }[status]
    return f"not converged: {reason}, with a {reached}, tol={tol:.3g}"
