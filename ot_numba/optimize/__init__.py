"""Optimisers and linear solvers that the methods share."""

from .adam import adam
from .conjugate_gradient import CGResult, conjugate_gradient
from .factorization import factorize_laplacian, factorize_sparse
from .lbfgs import lbfgs
from .result import OptimizeProgress, OptimizeResult, OptimizeState

__all__ = [
    "CGResult",
    "OptimizeProgress",
    "OptimizeResult",
    "OptimizeState",
    "adam",
    "conjugate_gradient",
    "factorize_laplacian",
    "factorize_sparse",
    "lbfgs",
]
