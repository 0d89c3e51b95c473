"""The LASSO by coordinate descent on working sets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.namespaces import array_namespace, is_numpy
from ..arrays.progress import progress_bar
from ..arrays.validation import as_float_array, check_choice, check_int, check_real, common_dtype
from ..arrays.warnings import ON_FAIL, report_failure
from .iterative import Callback, fista
from .objective import signals
from .operators import checked_sparse, is_functions, is_sparse
from .result import RecoveryProgress, RecoveryResult, RecoveryState

if TYPE_CHECKING:
    from ..kernels.cpu.lasso import Columns

Array = Any
FIRST = 0.25  #: size of the first working set, as a part of the number of measurements
INNER = 0.1  #: part of the gap to which a working set is solved
LEAST = 0.3  #: the same, of the gap that is asked for in the end
ROUND = 60  #: epochs after which Newton's method is tried
NEWTON_MOST = 512  #: nonzeros for which it is tried
STALL = 3  #: rounds, or working sets, without a smaller gap or objective that mean the rounding floor


def lasso(
    A: Any,
    y: Any,
    *,
    reg: float,
    tol: float = 1e-6,
    max_iter: int = 100_000,
    init: RecoveryResult | Any = None,
    callback: Callback = None,
    progress: bool = False,
    on_fail: str = "warn",
) -> RecoveryResult:
    r"""LASSO by coordinate descent on working sets, with extrapolation.

    Minimises :math:`\tfrac12\|y - A x\|^2 + reg\,\|x\|_1`. Columns are taken into a working set, best first by
    :math:`|a_j^\top r|`; coordinate descent on it is sped up by Anderson extrapolation, which also extrapolates the
    dual point, and where that does not do it in 60 epochs by Newton steps on up to 512 nonzeros; then the duality gap
    of the whole problem decides whether to go on. Inner products with the other columns are evaluated again only where
    :math:`|a_j^\top r|` may have reached `reg` since the last time, by how far the residual r has moved.

    Parameters
    ----------
    A : array_like of shape (m, n), or SciPy sparse matrix
        Measurement matrix, real. Fastest in Fortran order (no copy) or CSC form. A LinearOperator, a pair (matvec,
        rmatvec), and arrays of libraries other than NumPy are solved by `fista`, to the same gap.
    y : array_like of shape (m,) or (m, B)
        Measurements, a column per signal, solved one after the other.
    reg : float
        Regularisation strength, > 0, in the units of :math:`A^\top y`: from :math:`\|A^\top y\|_\infty` upwards the
        solution is 0.
    tol : float
        On the largest duality gap of a signal, relative to :math:`\tfrac12\|y\|^2`.
    max_iter : int
        Number of epochs of coordinate descent for a signal, at most.
    init : RecoveryResult or array_like of shape (n,) or (n, B), optional
        Where to start, say the solution at the last `reg` of a path; 0 by default.
    callback : callable, optional
        ``callback(state)`` after every working set with a `RecoveryState` of one signal, x (n,); may raise
        StopIteration.
    progress : bool
        Whether to show a progress bar over the signals.
    on_fail : {"warn", "raise", "ignore"}
        What to do where `tol` is not reached.

    Returns
    -------
    RecoveryResult
        Its `n_iter` is the total number of epochs; its history that of all signals in turn.

    Raises
    ------
    ValueError, TypeError
        For bad options, shapes that do not fit, entries that are not finite, or complex data.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached and ``on_fail="warn"``.

    Notes
    -----
    An epoch takes 2 m multiplications per column of the working set that is not at 0, a working set at most one pass
    over A. Memory beyond the input: O(n) and a few times (m + columns of the working set), and a copy of A where its
    columns are not contiguous.

    References
    ----------
    Massias, Vaiter, Gramfort, Salmon, "Dual extrapolation for sparse generalized linear models", JMLR 21, 2020, arXiv
    1907.05830. Bertrand, Massias, "Anderson acceleration of coordinate descent", AISTATS 2021, arXiv 2011.10065.

    Examples
    --------
    >>> import ot_numba
    >>> result = ot_numba.lasso([[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0], reg=1.0)
    >>> result.x.tolist(), result.value, result.gap
    ([0.75, 0.0], 1.375, 0.0)
    """
    reg = check_real(reg, "reg", low=0, low_open=True, high=math.inf, high_open=True)
    tol, max_iter = check_real(tol, "tol", low=0), check_int(max_iter, "max_iter", low=1)
    check_choice(on_fail, "on_fail", ON_FAIL)
    if not _has_columns(A, y):
        return fista(
            A, y, reg=reg, tol=tol, max_iter=max_iter, init=init, callback=callback, progress=progress, on_fail=on_fail
        )
    columns, Y, squeeze = _columns(A, y)
    X = np.zeros((len(Y), columns.count), Y.dtype)
    if init is not None:
        X[...] = signals(init.x if isinstance(init, RecoveryResult) else init, "init", X.T, np).T
    bar = progress_bar(len(Y), "lasso") if progress else None
    solved: list[_Signal] = []
    try:
        for y_b, x_b in zip(Y, X, strict=True):
            signal = _Signal(columns, y_b, x_b, reg)
            if not np.isfinite(signal.squares).all():  # the cheapest way to see whether A is finite
                as_float_array(A.data if is_sparse(A) else A, "A")
                raise ValueError("A has entries whose squares are beyond the range of float64: rescale it")
            stopped = bool(solved) and solved[-1].status == "stopped"
            signal.solve(tol, 0 if stopped else max_iter, None if stopped else callback)
            signal.status = "stopped" if stopped else signal.status
            solved.append(signal)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return _report(solved, X, tol, squeeze, on_fail)


def _has_columns(A: Any, y: Any) -> bool:
    """Whether A is in the memory of the host, where its columns can be read."""
    if is_functions(A):
        return False
    return is_numpy(array_namespace(A.data if is_sparse(A) else A, y))


def _columns(A: Any, y: Any) -> tuple[Columns, np.ndarray, bool]:
    """A by its columns, the measurements (B, m), and whether there was one signal without an axis for it."""
    from ..kernels.cpu.lasso import Columns

    if is_sparse(A):
        A = checked_sparse(A)
        dtype = common_dtype(A.data, y)
        columns, m = Columns(A.data[None].astype(dtype, copy=False), A.indices, A.indptr), A.shape[0]
    else:
        dtype = common_dtype(A, y)
        if not (_is_plain(A) and A.dtype == dtype):
            A = as_float_array(A, "A", ndim=2, dtype=dtype)
        columns, m = Columns(np.ascontiguousarray(A.T)), A.shape[0]
    Y = as_float_array(y, "y", ndim=(1, 2), dtype=dtype)
    if Y.shape[0] != m:
        raise ValueError(f"y must have {m} rows as A has, got shape {Y.shape}")
    return columns, Y[None] if Y.ndim == 1 else np.ascontiguousarray(Y.T), Y.ndim == 1


def _is_plain(A: Any) -> bool:
    """Whether the transpose of A is ready for the kernels, but for a check of its entries."""
    return type(A) is np.ndarray and A.ndim == 2 and A.size > 0 and A.flags.f_contiguous and A.flags.aligned


class _Signal:
    """One signal x, solved in place, with what is known of it."""

    def __init__(self, columns: Columns, y: np.ndarray, x: np.ndarray, reg: float) -> None:
        from ..kernels.cpu import lasso

        self.kernels, self.columns, self.y, self.x, self.reg = lasso, columns, y, x, reg
        self.squares, self.products = lasso.squares_and_products(columns, y)
        self.slack = np.zeros_like(self.squares)
        self.r, self.seen = y.copy(), y.copy()
        self.unit, self.eps = 0.5 * _square_sum(y) or 1.0, float(np.finfo(y.dtype).eps)
        self.n_iter = 0
        self.history: list[RecoveryProgress] = []

    def measure(self) -> None:
        """Residual, products, objective and gap of x."""
        moved = self.kernels.residual(*self.columns, self.y, self.x, self.r, self.seen)
        if moved:
            self.kernels.update_products(
                self.columns, self.r, self.reg, moved, self.squares, self.products, self.slack
            )
        top, squares, cross, norm, self.support = self.kernels.statistics(self.x, self.y, self.r, self.products)
        share = self.reg / max(self.reg, top)
        self.value = 0.5 * squares + self.reg * norm
        self.excess = 0.5 * (1 + share**2) * squares - share * cross + self.reg * norm
        self.gap = max(self.excess, 0.0) / self.unit

    def solve(self, tol: float, max_iter: int, callback: Callback) -> None:
        """Iterate; `status` says how it ended."""
        self.x[self.squares == 0] = 0
        size, best, lowest, since = math.ceil(FIRST * len(self.y)), math.inf, math.inf, 0
        while True:
            self.measure()
            self.history.append(RecoveryProgress(self.n_iter, self.value, self.gap))
            if callback is not None:
                try:
                    callback(RecoveryState(self.n_iter, self.value, self.gap, self.x))
                except StopIteration:
                    self.status = "stopped"
                    return
            since = 0 if self.gap < best or self.value < (1 - self.eps) * lowest else since + 1
            best, lowest = min(best, self.gap), min(lowest, self.value)
            if self.gap <= tol or self.n_iter >= max_iter or since >= STALL:
                self.status = "converged" if self.gap <= tol else "floor" if since >= STALL else "max_iter"
                return
            size = max(size, 2 * self.support)
            target = max(INNER * self.excess, LEAST * tol * self.unit)
            if since:  # rounding, or a working set that was too small
                size, target = 2 * size, 0.0
            self._descend(self._most_promising(size), target, max_iter)

    def _descend(self, working: np.ndarray, target: float, max_iter: int) -> None:
        """Lower the gap on a working set; epochs in rounds, with a Newton step after each that has not done it."""
        best, lowest, since = math.inf, math.inf, 0
        while True:
            epochs, gap, value = self.kernels.coordinate_descent(
                *self.columns, self.y, working, self.squares, self.reg, self.x, self.r, target,
                min(ROUND, max_iter - self.n_iter),
            )  # fmt: skip
            self.n_iter += epochs
            since = 0 if gap < best or value < (1 - self.eps) * lowest else since + 1
            best, lowest = min(best, gap), min(lowest, value)
            if gap <= target or self.n_iter >= max_iter or since >= STALL:
                return
            places = working[self.x[working] != 0]
            if len(places) <= NEWTON_MOST:
                before = self.x[places], self.r.copy()
                self.kernels.newton(*self.columns, places.copy(), self.reg, self.x, self.r)
                if not 0.5 * _square_sum(self.r) + self.reg * float(np.abs(self.x).sum(dtype=float)) < value:
                    self.x[places], self.r[:] = before

    def _most_promising(self, size: int) -> np.ndarray:
        """Columns of nonzeros, and those of the largest products, and as large ones; in order, which memory likes."""
        if size >= len(self.x):
            return np.arange(len(self.x))
        keys = np.abs(self.products)
        keys[self.x != 0] = np.inf
        return np.flatnonzero(keys >= np.partition(keys, -size)[-size])


def _square_sum(v: np.ndarray) -> float:
    return float(np.square(v, dtype=float).sum())


def _report(solved: list[_Signal], X: np.ndarray, tol: float, squeeze: bool, on_fail: str) -> RecoveryResult:
    worst = max(solved, key=lambda signal: signal.gap)
    n_iter = sum(signal.n_iter for signal in solved)
    converged = worst.gap <= tol
    status = "stopped" if solved[-1].status == "stopped" else worst.status
    reached = f"relative duality gap {worst.gap:.2e} after {n_iter} epochs of coordinate descent"
    message = {
        "converged": f"converged: {reached}, tol={tol:.3g}",
        "stopped": f"stopped by the callback: {reached}, tol={tol:.3g}",
        "max_iter": f"not converged: {reached}, tol={tol:.3g}; increase max_iter, tol or reg",
        "floor": f"not converged: {reached}, tol={tol:.3g} is below what rounding allows; increase tol or use float64",
    }[status]
    result = RecoveryResult(
        x=X[0] if squeeze else np.ascontiguousarray(X.T),
        value=solved[0].value if squeeze else np.array([signal.value for signal in solved]),
        gap=solved[0].gap if squeeze else np.array([signal.gap for signal in solved]),
        residual=worst.gap,
        n_iter=n_iter,
        converged=converged,
        status=status,
        message=message,
        history=[entry for signal in solved for entry in signal.history],
    )
    if not converged and status != "stopped":
        report_failure(message, on_fail)
    return result
