"""Optimisers and linear solvers that the methods share."""

from .accelerated_gradient import AcceleratedGradientResult, accelerated_gradient
from .adam import adam
from .conjugate_gradient import CGResult, conjugate_gradient
from .factorization import factorize_laplacian, factorize_rows, factorize_sparse
from .gradient_descent import gradient_descent
from .lbfgs import lbfgs
from .objectives import LogisticLoss, LogSumExp, PowerNorm, SoftmaxLoss
from .regularized_newton import (
    Diagonal,
    RankOne,
    RegularizedNewtonProgress,
    RegularizedNewtonResult,
    regularized_newton,
)
from .result import OptimizeProgress, OptimizeResult, OptimizeState

__all__ = [
    "AcceleratedGradientResult",
    "CGResult",
    "Diagonal",
    "LogSumExp",
    "LogisticLoss",
    "OptimizeProgress",
    "OptimizeResult",
    "OptimizeState",
    "PowerNorm",
    "RankOne",
    "RegularizedNewtonProgress",
    "RegularizedNewtonResult",
    "SoftmaxLoss",
    "accelerated_gradient",
    "adam",
    "conjugate_gradient",
    "factorize_laplacian",
    "factorize_rows",
    "factorize_sparse",
    "gradient_descent",
    "lbfgs",
    "regularized_newton",
]
