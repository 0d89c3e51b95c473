"""What a solver may ask of a ground cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ..arrays.validation import as_float_array
from ..kernels import CostData, kernels_for
from .gibbs import TILE_ENTRIES, GibbsKernel

Array = Any


class Cost(ABC):
    """A ground cost ``C_ij`` between n sources and m targets.

    Every solver takes any cost object, or a plain (n, m) array, which it wraps in a `CostMatrix`.

    Attributes
    ----------
    shape : tuple of int
        ``(n, m)``.
    dtype : dtype
        float32 or float64: the precision the solver works in.
    xp : module
        Array namespace of the data.
    device : object
        Their device, as the library names it.
    direct : bool
        Whether the kernels evaluate the cost themselves; otherwise they are handed dense tiles of rows.
    has_transpose : bool
        Whether the transposed cost is as cheap as this one.

    Notes
    -----
    A cost of your own needs `data`, `rows`, `subset`, `T` and `bounds`; see the source of `CostMatrix` for the least.

    Examples
    --------
    >>> import ot_numba
    >>> C = ot_numba.PointCloud([0.0, 1.0, 3.0])
    >>> isinstance(C, ot_numba.costs.Cost)
    True
    >>> C.T.shape, C.bounds()
    ((3, 3), (0.0, 9.0))
    """

    shape: tuple[int, int]
    dtype: Any
    xp: Any
    device: Any
    direct: bool = True
    has_transpose: bool = True
    finite: bool = True  #: whether no pair is forbidden

    @abstractmethod
    def data(self, k: float) -> CostData:
        """The whole of ``k C`` as the kernels see it."""

    @abstractmethod
    def rows(self, lo: int, hi: int) -> Array:
        """Dense rows ``lo:hi`` of C."""

    @abstractmethod
    def subset(self, rows: Array | None, columns: Array | None) -> Cost:
        """The cost between selected rows and columns (index arrays; None keeps all)."""

    @property
    @abstractmethod
    def T(self) -> Cost:  # noqa: N802
        """The transposed cost."""

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Numbers below and above every finite entry, cheaply; exact for a stored cost."""

    def tile_data(self, lo: int, hi: int, k: float) -> CostData:
        """``k C`` for a tile of rows, evaluated."""
        tile = self.rows(lo, hi)
        return CostData(0, tile, self.xp.empty((1, 1), dtype=self.dtype, device=self.device), k)

    def norms(self) -> tuple[Array | None, Array | None]:
        """Row and column terms that `data` leaves out of C, to be folded into the potentials (float64)."""
        return None, None

    def neighbour_order(self, reg: float) -> tuple[Array | None, Array | None]:
        """Orders of the rows and columns in which passes at this `reg` are cheaper; None keeps theirs."""
        return None, None

    def gibbs(self, reg: float) -> GibbsKernel:
        """The Gibbs kernel ``exp(-C / reg)`` as an operator."""
        return GibbsKernel(self, reg)

    @property
    def kernels(self) -> Any:
        """Kernel backend for the data of this cost."""
        return kernels_for(self.xp)

    def to_dense(self) -> Array:
        """The cost as an (n, m) array; O(n m) memory."""
        return self.rows(0, self.shape[0])

    def apply(self, v: Array) -> Array:
        """The product ``C @ v``.

        Parameters
        ----------
        v : array_like of shape (m,) or (m, p)
            One vector, or p of them.

        Returns
        -------
        array of shape (n,) or (n, p)
            float64.

        Raises
        ------
        ValueError, TypeError
            If `v` is of another shape, not finite or no numbers; if a `CostMatrix` forbids a pair.

        Notes
        -----
        O(n m p) time (a `Grid`: O((n + m) p)); O((n + m) p) memory beyond one tile of rows.

        Examples
        --------
        >>> import ot_numba
        >>> ot_numba.PointCloud([0.0, 1.0], [2.0]).apply([0.5]).tolist()
        [2.0, 0.5]
        """
        xp = self.xp
        n, m = self.shape
        v = self._vectors(v)
        step = max(1, TILE_ENTRIES // m)
        parts = [
            xp.astype(self.rows(lo, min(n, lo + step)), xp.float64) @ v for lo in range(0, n, step)
        ]
        return xp.concat(parts)

    def _vectors(self, v: Any) -> Array:
        """One vector (m,), or several as columns (m, p), in float64."""
        v = as_float_array(v, "v", ndim=(1, 2), xp=self.xp, dtype=self.xp.float64, device=self.device)
        if v.shape[0] != self.shape[1]:
            raise ValueError(f"v must have one row for each of {self.shape[1]} targets, got {tuple(v.shape)}")
        return v
