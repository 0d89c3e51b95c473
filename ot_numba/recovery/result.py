"""What the solvers return, and what their callbacks see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Array = Any


class RecoveryProgress(NamedTuple):
    """One entry of a history: iterations so far, the mean objective of the signals, and the largest residual."""

    n_iter: int
    value: float
    residual: float


class RecoveryState(NamedTuple):
    """What a callback sees: the same, and the iterates (n, B), not to be written to."""

    n_iter: int
    value: float
    residual: float
    x: Array


@dataclass(frozen=True)
class RecoveryResult:
    r"""Sparse signals, and how well they are known.

    Attributes
    ----------
    x : array of shape (n,) or (n, B)
        The signals, in the dtype and on the device of the data.
    value : float, or NumPy array of shape (B,)
        Objective of each signal, :math:`\tfrac12\|y - A x\|^2 + reg\,\|x\|_1` or :math:`\dots + reg\,\|x\|_0` (with
        ``k``, without a penalty); float64.
    gap : float, or array of shape (B,)
        Duality gap of the l1 problem relative to :math:`\tfrac12\|y\|^2`: the objective exceeds its minimum by no more
        than this part of its value at 0. Not a number for l0 problems, which have none.
    residual : float
        What was compared with `tol`: the largest gap; for l0 problems the largest :math:`\|x - x^+\| / \|x\|` between a
        signal and what the next iteration makes of it.
    n_iter : int
        Iterations; of `lasso`, epochs of coordinate descent.
    converged : bool
        Whether `residual`, recomputed from x, is at most `tol`.
    status : str
        ``"converged"``, ``"max_iter"``, ``"stopped"`` (by the callback), ``"diverged"`` (x is the best iterate seen),
        or ``"floor"`` (rounding forbids a smaller gap).
    message : str
        What happened, with numbers, and what to change.
    history : list of RecoveryProgress
        ``(n_iter, value, residual)`` at every check.
    """

    x: Array = field(repr=False)
    value: Any
    gap: Any
    residual: float
    n_iter: int
    converged: bool
    status: str
    message: str
    history: list[RecoveryProgress] = field(repr=False)
