"""Newton steps with a thresholded Hessian of the dual."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.namespaces import is_numpy, to_numpy
from ..arrays.validation import check_real
from ..costs.gibbs import LOG2E
from ..optimize import conjugate_gradient
from .objective import marginal_target
from .result import TransportResult
from .sweeps import LogSweep

if TYPE_CHECKING:
    import scipy.sparse

Array = Any
PER_ROW = 8  #: entries that a row of the plan keeps on average, by default: the paper's 2/n of the Hessian's (2n)^2
SHORTEST = 2.0**-20  #: step length at which a direction is given up
LARGEST_MOVE = 300.0  #: nats by which an exponent may grow in one step
POOR = 0.5  #: relative residual of the whole system, and ratio of errors, that ask for a denser Hessian


def sparse_hessian(
    result: TransportResult, *, density: float | None = None, mass_tol: float | None = None
) -> scipy.sparse.csr_array:
    r"""Hessian of the negative dual objective with the small entries of the plan left out.

    .. math::

        H = \frac{1}{reg} \begin{pmatrix} \operatorname{diag}(P 1) & P \\ P^\top & \operatorname{diag}(P^\top 1)
        \end{pmatrix}

    by (f, g), in the units of mass over cost; an unbalanced side adds :math:`a e^{-f/\rho} / \rho` to its diagonal. The
    diagonal is that of the whole plan, so what is returned is positive semi-definite, and definite where something was
    dropped from every row and column.

    Parameters
    ----------
    result : TransportResult
        Where the Hessian is taken.
    density : float, optional
        Share of the n m entries of the plan that is kept, in (0, 1]: the ``ceil(density * n * m)`` largest, and those
        equal to the smallest of them.
    mass_tol : float, optional
        Drop the smallest entries while their sum is at most this share of the mass. Default, if neither is given: 1e-6.

    Returns
    -------
    scipy.sparse.csr_array of shape (n + m, n + m)
        float64, with two more attributes: ``dropped_mass``, the mass of the entries left out, and ``dropped_norm``, a
        bound of the spectral norm of the error of H: with the dropped part E of the plan,
        :math:`\|E\|_2 / reg \le \sqrt{\|E\|_1 \|E\|_\infty} / reg`, computed from row and column sums.

    Raises
    ------
    ValueError
        If both rules are given, or a value is out of range.

    Notes
    -----
    O(n m) time; `density` takes n m numbers of memory for the choice of the threshold, `mass_tol` those kept.

    References
    ----------
    Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying, "Accelerating Sinkhorn algorithm with sparse
    Newton iterations", ICLR 2024, arXiv 2401.12253.

    Examples
    --------
    >>> import ot_numba
    >>> result = ot_numba.sinkhorn([[0.0, 1.0], [1.0, 0.0]], reg=0.1)
    >>> H = ot_numba.sparse_hessian(result, density=0.5)
    >>> H.nnz, bool(0 < H.dropped_norm < 1e-3)
    (8, True)
    """
    if density is not None and mass_tol is not None:
        raise ValueError("sparse_hessian takes one of density and mass_tol, got both")
    xp, (n, m) = result.problem.xp, result.problem.cost.shape
    if density is not None:
        density = check_real(density, "density", low=0, high=1, low_open=True)
        P = result.gibbs.plan(*result.bits)
        least = _order_statistic(xp, P, math.ceil(density * n * m))
        kept = result.sparse_plan(threshold=least) if least > 0 else result.sparse_plan(mass_tol=0)
    else:
        kept = result.sparse_plan(mass_tol=mass_tol)
    kept = _on_host(kept)
    r, c = (to_numpy(sums) for sums in result.marginals)
    problem, diagonals = result.problem, []
    sides = zip((r, c), (result.f, result.g), (problem.a, problem.b), problem.rho, strict=True)
    for sums, potential, weights, rho in sides:
        extra = 0.0 if math.isinf(rho) else to_numpy(marginal_target(xp, weights, potential, rho)) * (result.reg / rho)
        diagonals.append((sums + extra) / result.reg)
    H = _hessian(kept / result.reg, *diagonals)
    drops = [max(0.0, float((sums - kept.sum(axis=axis)).max())) for axis, sums in ((1, r), (0, c))]
    H.dropped_mass = max(0.0, float(r.sum() - kept.sum()))
    H.dropped_norm = math.sqrt(drops[0] * drops[1]) / result.reg
    return H


def _on_host(matrix: Any) -> Any:
    """The same as float64 CSR of SciPy."""
    from scipy.sparse import csr_array

    matrix = matrix.get() if hasattr(matrix, "get") else matrix
    return csr_array(matrix, dtype=float)


def _hessian(P: Any, rows: Array, columns: Array) -> Any:
    """``[[diag(rows), P], [P', diag(columns)]]`` as CSR."""
    from scipy.sparse import block_array, csr_array, diags_array

    return csr_array(block_array([[diags_array(rows), P], [P.T, diags_array(columns)]], format="csr"))


def _order_statistic(xp: Any, P: Array, count: int) -> float:
    """Entry with that many at least as large, itself included."""
    flat = xp.reshape(P, (-1,))
    index = flat.shape[0] - count
    if is_numpy(xp):
        return float(np.partition(flat, index)[index])
    return float(xp.sort(flat)[index])


class SparseNewton:
    """Newton's method on the dual, its Hessian thresholded: a step after the Sinkhorn stage of the published algorithm.

    Parameters
    ----------
    sweep : LogSweep
        Where to start.
    density : float
        Share of the entries of the plan that the Hessian keeps. Doubled whenever a step leaves more than half of the
        error, and its direction more than half of the residual of the whole system; also after one without any ascent.
    tol : float
        Relative residual of conjugate gradients.
    """

    kind = "sns"

    def __init__(self, sweep: LogSweep, *, density: float, tol: float) -> None:
        self.sweep, self.density, self.tol = sweep, density, tol
        self.problem, self.xp = sweep.problem, sweep.gibbs.xp
        self.passes = self.failures = 0
        self._P: Array | None = None
        self._look()

    def _look(self) -> None:
        """Plan and gradient at the potentials."""
        xp, sweep = self.xp, self.sweep
        self._P = sweep.gibbs.plan(*sweep.bits(), out=self._P)
        self.passes += 1
        self._sums = tuple(xp.sum(self._P, axis=axis, dtype=xp.float64) for axis in (1, 0))
        targets = sweep.row_target(), sweep.column_target()
        self._gradient = tuple(target - sums for target, sums in zip(targets, self._sums, strict=True))

    def error(self) -> float:
        """L1 error of both marginals."""
        return sum(float(self.xp.sum(self.xp.abs(part))) for part in self._gradient)

    def step(self, _: float) -> None:
        """One step, halved until the dual grows; a Sinkhorn iteration if it never does.

        What error is wanted, as `TruncatedNewton.step` is told, does not matter: systems are solved to `tol` always.
        """
        xp, sweep, error = self.xp, self.sweep, self.error()
        direction = self._direction()
        slope = sum(float(xp.sum(part * d)) for part, d in zip(self._gradient, direction, strict=True))
        F, G = (xp.asarray(bits, copy=True) for bits in sweep.bits())
        growth = sum(float(xp.max(d)) for d in direction)
        length = min(1.0, 2.0 ** math.floor(math.log2(LARGEST_MOVE / growth))) if growth > LARGEST_MOVE else 1.0
        merit, poor = self._merit(), self._residual(direction) > POOR
        drowned = 1e-12 * (abs(merit) + sweep.mass)
        while slope > 0 and length >= SHORTEST:
            steps = (xp.astype(length * LOG2E * d, F.dtype) for d in direction)
            sweep.set_bits(*(bits + step for bits, step in zip((F, G), steps, strict=True)))
            self._look()
            if self._merit() > merit or (length * slope < drowned and self.error() < error):
                break
            length /= 2
        else:
            sweep.set_bits(F, G)
            sweep.iterate()
            self._look()
            self.passes += 1
            length = 0.0
        if length == 0 or (poor and self.error() > POOR * error):
            self.failures += 1
            self.density = min(1.0, 2 * self.density)

    def _merit(self) -> float:
        """Dual objective over reg, up to a constant."""
        xp, sweep = self.xp, self.sweep
        total = -float(xp.sum(self._sums[0]))
        for side, bits in enumerate(sweep.bits()):
            rho, weights = self.problem.rho[side], (self.problem.a, self.problem.b)[side]
            if math.isinf(rho):
                total += float(xp.sum(sweep._dual(bits, side) * xp.astype(weights, xp.float64))) / LOG2E
            else:
                total -= rho / sweep.gibbs.reg * float(xp.sum(sweep._target(bits, side)))
        return total

    def _diagonals(self) -> tuple[Array, Array]:
        """Diagonal of the Hessian, times reg."""
        reg, targets = self.sweep.gibbs.reg, (self.sweep.row_target(), self.sweep.column_target())
        first, second = (
            sums + (0.0 if math.isinf(rho) else reg / rho) * target
            for sums, target, rho in zip(self._sums, targets, self.problem.rho, strict=True)
        )
        return first, second

    def _direction(self) -> tuple[Array, Array]:
        """Solution of the thresholded system."""
        from scipy.sparse import csr_array

        xp, (n, m) = self.xp, self.problem.cost.shape
        least = max(_order_statistic(xp, self._P, math.ceil(self.density * n * m)), 1e-300)
        P = to_numpy(self._P)
        kept = least <= P
        indptr = kept.sum(axis=1).cumsum()
        sparse = csr_array((P[kept].astype(float), kept.nonzero()[1], [0, *indptr.tolist()]), shape=(n, m))
        diagonals = [to_numpy(diagonal) for diagonal in self._diagonals()]
        H = _hessian(sparse, *diagonals)
        diagonal = H.diagonal()
        diagonal[diagonal <= 0] = 1.0
        right = np.concatenate([to_numpy(part) for part in self._gradient])
        found = conjugate_gradient(
            lambda v: H @ v, right, preconditioner=lambda v: v / diagonal, tol=self.tol, max_iter=2 * (n + m)
        )
        device = self.problem.cost.device
        f, g = (xp.asarray(part, device=device) for part in (found.x[:n], found.x[n:]))
        return f, g

    def _residual(self, direction: tuple[Array, Array]) -> float:
        """Relative residual of the system with the whole Hessian."""
        xp, (df, dg), (first, second) = self.xp, direction, self._diagonals()
        P = self._P
        rows = first * df + P @ xp.astype(dg, P.dtype) - self._gradient[0]
        columns = second * dg + xp.astype(df, P.dtype) @ P - self._gradient[1]
        total = sum(float(xp.sum(part * part)) for part in self._gradient)
        return math.sqrt((float(xp.sum(rows * rows)) + float(xp.sum(columns * columns))) / total) if total else 0.0
