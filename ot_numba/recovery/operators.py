"""What the methods ask of a measurement matrix: products, its size, its norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, namespace_of, read_floats
from ..arrays.validation import as_float_array, common_dtype
from ..kernels import kernels_for
from ..kernels.generic.thresholding import repeat_steps

Array = Any
SPARSE = ("scipy.sparse", "cupyx.scipy.sparse")
LANCZOS_STEPS = 60  #: products with A' A, at most, that the estimate of its norm takes
LANCZOS_CHECK = 5  #: products between two looks at the estimate
LANCZOS_DOUBT = 3e-3  #: part of the estimate by which it may be too large


class Operator:
    """A matrix (m, n) with real entries; `forward` and `adjoint` take blocks of columns."""

    shape: tuple[int, int]

    def __init__(self, y: Array) -> None:
        self.xp, self.dtype, self.device = array_namespace(y), y.dtype, device_of(y)
        self.kernels = kernels_for(self.xp, "thresholding")

    def forward(self, X: Array) -> Array:
        """``A X``, (m, B)."""
        raise NotImplementedError

    def adjoint(self, R: Array) -> Array:
        """``A' R``, (n, B)."""
        raise NotImplementedError

    def residual_gradient(self, Z: Array, Y: Array, R: Array, G: Array) -> None:
        """``R = A Z - Y`` and ``G = A' R`` in place."""
        R[...] = self.forward(Z) - Y
        G[...] = self.adjoint(R)

    def steps(
        self, kind: int, step: np.ndarray, tau: np.ndarray, Y: Array, X: Array, Z: Array, R: Array, G: Array,
        momentum: np.ndarray | None = None, theta: Array | None = None,
    ) -> None:  # fmt: skip
        """The kernel `steps`: layers of X and Z in place, from R and G of the old X to those of the new one."""
        repeat_steps(
            lambda V: self.residual_gradient(V, Y, R, G), self.kernels.proximal_step, self.kernels.accelerated_step,
            kind, step, tau, X, Z, G, momentum, theta,
        )  # fmt: skip

    def expect_sparse(self) -> None:
        """Prepare for many gradients at sparse points."""

    def empty(self, *shape: int) -> Array:
        """An array beside the data."""
        device = {} if self.device == "cpu" else {"device": self.device}
        return self.xp.zeros(shape, dtype=self.dtype, **device)

    @np.errstate(over="ignore", invalid="ignore")  # of numbers that are then refused
    def squared_norm(self) -> float:
        r"""Estimate of :math:`\|A\|_2^2` from above by Lanczos' method: the Ritz value and its residual."""
        xp, n = self.xp, self.shape[1]
        start = np.random.default_rng(0).standard_normal((n, 1))
        v = xp.asarray(start / np.linalg.norm(start), dtype=self.dtype, device=self.device)
        before, beta = xp.zeros_like(v), 0.0
        diagonal: list[float] = []
        offs: list[float] = []
        for _ in range(min(n, LANCZOS_STEPS)):
            w = self.adjoint(self.forward(v))
            (alpha,) = read_floats([xp.sum(w * v, dtype=xp.float64)])
            w = w - alpha * v - beta * before
            diagonal.append(alpha)
            beta = self._norm(w)
            if not math.isfinite(alpha + beta):
                raise ValueError("A has entries whose squares, summed, overflow: rescale it")
            offs.append(beta)
            last = len(diagonal) == min(n, LANCZOS_STEPS) or not beta > 0
            if last or len(diagonal) % LANCZOS_CHECK == 0:
                values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(offs[:-1], 1) + np.diag(offs[:-1], -1))
                doubt = beta * abs(vectors[-1, -1])
                if last or not doubt > LANCZOS_DOUBT * values[-1]:
                    break
            before, v = v, w / beta
        return float(values[-1] + doubt)

    def _norm(self, w: Array) -> float:
        """Of a vector whose squares may overflow, or vanish."""
        xp = self.xp
        size = xp.max(xp.abs(w))
        unit = w / xp.where(size > 0, size, xp.ones_like(size))
        square, size = read_floats([xp.sum(unit * unit, dtype=xp.float64), size])
        return size * math.sqrt(square)


class DenseOperator(Operator):
    """An array of any library, C-contiguous."""

    def __init__(self, A: Array, y: Array) -> None:
        super().__init__(y)
        self.A, self.shape = A, tuple(A.shape)
        self.columns: Array = None

    def forward(self, X: Array) -> Array:
        """``A X``."""
        return self.A @ X

    def adjoint(self, R: Array) -> Array:
        """``A' R``."""
        return self.A.T @ R

    def residual_gradient(self, Z: Array, Y: Array, R: Array, G: Array) -> None:
        """``R = A Z - Y`` and ``G = A' R`` in place."""
        self.kernels.residual_gradient(self.A, Z, Y, R, G, self.columns)

    def steps(
        self, kind: int, step: np.ndarray, tau: np.ndarray, Y: Array, X: Array, Z: Array, R: Array, G: Array,
        momentum: np.ndarray | None = None, theta: Array | None = None,
    ) -> None:  # fmt: skip
        """The kernel `steps`."""
        self.kernels.steps(kind, step, tau, self.A, Y, X, Z, R, G, momentum, theta, self.columns)

    def expect_sparse(self) -> None:
        """Prepare for many gradients at sparse points."""
        self.columns = self.kernels.columns_of(self.A)


class SparseOperator(DenseOperator):
    """A sparse matrix or array of SciPy or CuPy, in CSC form."""

    residual_gradient, steps, expect_sparse = Operator.residual_gradient, Operator.steps, Operator.expect_sparse

    def __init__(self, A: Any, y: Array) -> None:
        super().__init__(A, y)
        self.transposed = A.T

    def adjoint(self, R: Array) -> Array:
        """``A' R``."""
        return self.transposed @ R


class LinearOperator(Operator):
    """Products by functions: those of a SciPy LinearOperator, or a pair (matvec, rmatvec)."""

    def __init__(self, forward: Callable, adjoint: Callable, shape: tuple[int, int], y: Array) -> None:
        super().__init__(y)
        self._forward, self._adjoint, self.shape = forward, adjoint, shape

    def forward(self, X: Array) -> Array:
        """``A X``."""
        return self._checked(self._forward(X), "A @ x", (self.shape[0], X.shape[1]))

    def adjoint(self, R: Array) -> Array:
        """``A' R``."""
        return self._checked(self._adjoint(R), "A.T @ r", (self.shape[1], R.shape[1]))

    def _checked(self, out: Array, name: str, shape: tuple[int, int]) -> Array:
        if tuple(out.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(out.shape)}")
        if "complex" in str(out.dtype):
            raise TypeError(f"{name} must be real, got dtype {out.dtype}")
        return self.xp.astype(out, self.dtype, copy=False)


def is_sparse(A: Any) -> bool:
    """Whether A is a sparse matrix or array of SciPy or CuPy."""
    return any(cls.__module__.startswith(SPARSE) for cls in type(A).__mro__) and hasattr(A, "tocsc")


def is_functions(A: Any) -> bool:
    """Whether A is known by its products only: a pair of callables, or a LinearOperator."""
    if isinstance(A, tuple):
        return len(A) == 2 and all(map(callable, A))
    return hasattr(A, "matmat") and hasattr(A, "rmatmat")


def make_operator(A: Any, y: Any) -> tuple[Operator, Array, bool]:
    """The operator, the measurements as columns (m, B), and whether there was one signal without an axis for it."""
    functions, sparse = is_functions(A), is_sparse(A)
    dense = not functions and not sparse
    if sparse:
        A = checked_sparse(A)
    data = A if dense else A.data if sparse else None
    xp, dtype = array_namespace(data, y), common_dtype(data, y)
    if dense:
        A = as_float_array(A, "A", ndim=2, xp=xp, dtype=dtype, device=_device(y))
    y = as_float_array(y, "y", ndim=(1, 2), xp=xp, dtype=dtype, device=device_of(A) if dense else _device(y))
    squeeze = y.ndim == 1
    Y = y[:, None] if squeeze else y
    if functions and isinstance(A, tuple):
        matvec, rmatvec = A
        shape = (Y.shape[0], _length(rmatvec(Y[:, 0])))
        operator = LinearOperator(_by_columns(xp, matvec), _by_columns(xp, rmatvec), shape, y)
    elif functions:
        if np.dtype(A.dtype or float).kind == "c":
            raise TypeError(f"A must hold real numbers, got dtype {A.dtype}")
        operator = LinearOperator(A.matmat, A.rmatmat, tuple(A.shape), y)
    else:
        operator = DenseOperator(A, y) if dense else SparseOperator(A.astype(dtype), y)
    if operator.shape[0] != Y.shape[0]:
        raise ValueError(f"y must have {operator.shape[0]} rows as A has, got shape {tuple(y.shape)}")
    return operator, Y, squeeze


def checked_sparse(A: Any) -> Any:
    """A sparse matrix in CSC form, with finite real entries and no entry twice."""
    if A.ndim != 2:
        raise ValueError(f"A must have 2 dimension(s), got shape {tuple(A.shape)}")
    A = A.tocsc()
    if not A.has_canonical_format:
        A = A.copy()
        A.sum_duplicates()
    if A.nnz:
        as_float_array(A.data, "A")
    if 0 in A.shape:
        raise ValueError(f"A is empty: shape {tuple(A.shape)}")
    return A


def _device(x: Any) -> Any:
    """Device of an array; None of a list, which goes anywhere."""
    return None if namespace_of(x) is None else device_of(x)


def _length(v: Any) -> int:
    if getattr(v, "ndim", None) != 1:
        raise ValueError(f"rmatvec must return an array with one dimension, got {type(v).__name__}")
    return v.shape[0]


def _by_columns(xp: Any, function: Callable) -> Callable:
    """A function of vectors as one of blocks of columns."""
    return lambda X: xp.stack([function(X[:, b]) for b in range(X.shape[1])], axis=1)
