"""A stored cost."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, c_ordered, device_of, is_numpy
from ..arrays.validation import as_float_array
from ..kernels import CostData
from ..kernels.contract import DENSE
from .base import Cost

Array = Any


class _Memory:
    """The memory of a read-only array, declared writable, for code that does not write."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        self._owner = array


def as_kernel_input(xp: Any, x: Array) -> Array:
    """The same array for a kernel: NumPy arrays flagged read-only would make it compile its loops again."""
    return np.asarray(_Memory(x)) if is_numpy(xp) and not x.flags.writeable and x.size else x


class CostMatrix(Cost):
    r"""A ground cost stored as a dense array.

    Parameters
    ----------
    C : array_like of shape (n, m)
        Costs, any real numbers in one unit; ``+inf`` forbids a pair. float32 stays float32, float16 becomes
        it, everything else becomes float64. Not copied if it is already a C-contiguous float array in native
        byte order; never written to.

    Attributes
    ----------
    C : array of shape (n, m)
        The costs, to be read only: it may be the array that was passed.

    Raises
    ------
    ValueError
        If C is not 2-D, is empty, holds NaN or ``-inf``, or has no finite entry.
    TypeError
        If C is complex, sparse, masked or no array of numbers.

    Notes
    -----
    A Sinkhorn iteration reads C once: 8 n m bytes of memory traffic in float64. Construction takes one pass
    over C (two where it has infinities) and no memory unless C must be converted.

    Examples
    --------
    >>> import ot_numba
    >>> C = ot_numba.CostMatrix([[0.0, 1.0], [1.0, 0.0]])
    >>> C.shape
    (2, 2)
    >>> C.bounds()
    (0.0, 1.0)
    >>> C.apply([1.0, 2.0]).tolist()
    [2.0, 1.0]
    """

    has_transpose = False

    def __init__(self, C: Any) -> None:
        C = as_float_array(C, "C", ndim=2, allow_inf=True)
        self.xp = array_namespace(C)
        self._hold(as_kernel_input(self.xp, C))
        if math.isinf(self._lowest):
            raise ValueError("C must have at least one finite entry, got only inf")

    def _hold(self, C: Array) -> None:
        self.C = C
        self.shape = (C.shape[0], C.shape[1])
        self.dtype = C.dtype
        self.device = device_of(C)

    def _like(self, C: Array) -> CostMatrix:
        """Another cost from entries of this one, which need no second check."""
        other = object.__new__(CostMatrix)
        other.xp = self.xp
        other._hold(c_ordered(C))
        return other

    @cached_property
    def finite(self) -> bool:
        """Whether no pair is forbidden."""
        return math.isfinite(self._highest)

    @cached_property
    def _lowest(self) -> float:
        return float(self.xp.min(self.C))

    @cached_property
    def _highest(self) -> float:
        return float(self.xp.max(self.C))

    def data(self, k: float) -> CostData:
        """The whole of ``k C`` as the kernels see it."""
        return CostData(DENSE, self.C, self.xp.empty((1, 1), dtype=self.dtype, device=self.device), k)

    def rows(self, lo: int, hi: int) -> Array:
        """Dense rows ``lo:hi`` of C: a view, to be read only."""
        return self.C[lo:hi, :]

    def to_dense(self) -> Array:
        """The cost as a new (n, m) array."""
        return self.xp.asarray(self.C, copy=True)

    def subset(self, rows: Array | None, columns: Array | None) -> CostMatrix:
        """The cost between selected rows and columns (index arrays; None keeps all): a copy, or itself."""
        C = self.C if rows is None else self.xp.take(self.C, rows, axis=0)
        C = C if columns is None else self.xp.take(C, columns, axis=1)
        return self if C is self.C else self._like(C)

    @property
    def T(self) -> CostMatrix:  # noqa: N802
        """The transposed cost; a copy."""
        return self._like(self.C.T)

    def apply(self, v: Array) -> Array:
        """``C @ v`` for v (m,) or (m, p), in float64; ValueError if a pair is forbidden."""
        if not self.finite:
            raise ValueError("C has infinite entries (forbidden pairs): C @ v is not defined")
        return super().apply(v)

    def bounds(self) -> tuple[float, float]:
        """Smallest and largest finite entry; inf in a subset without any."""
        return self._lowest, self._highest if self.finite else self._highest_finite

    @cached_property
    def _highest_finite(self) -> float:
        xp = self.xp
        n, m = self.shape
        step = max(1, (1 << 20) // m)
        tiles = (self.C[lo : min(n, lo + step), :] for lo in range(0, n, step))
        return max(float(xp.max(xp.where(xp.isfinite(t), t, xp.full_like(t, self._lowest)))) for t in tiles)
