"""The front door: one call for every regularised transport problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..arrays.validation import check_choice
from ._quadratic import quadratic_ot
from ._sinkhorn import sinkhorn
from ._sparsity_constrained import sparsity_constrained_ot
from .problem import REGULARIZERS
from .result import TransportResult
from .solver import State
from .sparse_result import SparseTransportResult


def solve(
    C: Any,
    a: Any = None,
    b: Any = None,
    *,
    reg: float,
    regularizer: str = "kl",
    k: int | None = None,
    unbalanced: float | tuple[float, float] | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    init: TransportResult | SparseTransportResult | tuple[Any, Any] | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> TransportResult | SparseTransportResult:
    r"""Solve a regularised optimal transport problem with the method that suits it.

    .. math:: \min_{P \ge 0}\ \langle C, P\rangle + reg\, R(P) \quad\text{s.t.}\quad P 1 = a,\ P^\top 1 = b

    The regulariser decides the solver: ``"kl"`` and ``"entropy"`` go to `sinkhorn` with its automatic choices, good for
    loose and tight tolerances alike; ``"l2"`` goes to `quadratic_ot`, and ``"ksparse"`` to `sparsity_constrained_ot`,
    which counts the entries of columns. Call a solver by its own name for control over how it works.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost: an array, or a `PointCloud`, `Grid`, `CostMatrix`.
    a, b : array_like of shape (n,), (m,), optional
        Weights >= 0, default uniform with mass 1.
    reg : float
        Regularisation strength > 0, in the units of the cost (see `suggest_reg`); for ``"l2"`` and ``"ksparse"`` per
        mass.
    regularizer : {"kl", "entropy", "l2", "ksparse"}
        R: :math:`KL(P | a b^\top)`, :math:`\sum P (\log P - 1)`, :math:`\|P\|^2 / 2`, or the last for at most k
        positive entries in every column and infinite otherwise.
    k : int, optional
        Largest number of positive entries in a column, with ``"ksparse"`` only.
    unbalanced : float or pair of float, optional
        Strengths of the penalties that replace the marginal constraints, in the units of the cost; for ``"kl"`` and
        ``"entropy"`` only.
    tol : float
        On the L1 error of both marginals relative to the mass.
    max_iter, init, callback, progress, on_fail
        As in `sinkhorn`.

    Returns
    -------
    TransportResult or SparseTransportResult
        The second for ``"l2"`` and ``"ksparse"``.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    Time and memory are those of the solver.

    Examples
    --------
    >>> import ot_numba
    >>> result = ot_numba.solve([[0.0, 1.0], [1.0, 0.0]], reg=0.1)
    >>> result.plan.round(3).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    check_choice(regularizer, "regularizer", (*REGULARIZERS, "l2", "ksparse"))
    if (k is None) == (regularizer == "ksparse"):
        raise ValueError(f"k goes with regularizer='ksparse', got k={k!r} with {regularizer!r}")
    options = {
        "reg": reg, "tol": tol, "max_iter": max_iter, "init": init, "callback": callback, "progress": progress,
        "on_fail": on_fail,
    }  # fmt: skip
    if regularizer not in REGULARIZERS:
        if unbalanced is not None:
            raise ValueError(f"unbalanced goes with regularizer='kl' or 'entropy', got {regularizer!r}")
        return quadratic_ot(C, a, b, **options) if k is None else sparsity_constrained_ot(C, a, b, k=k, **options)
    return sinkhorn(C, a, b, regularizer=regularizer, unbalanced=unbalanced, **options)
