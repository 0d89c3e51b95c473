"""Optimisers and linear solvers that the methods share."""

from .accelerated_gradient import CertifiedResult, accelerated_gradient
from .adam import adam
from .conjugate_gradient import CGResult, conjugate_gradient, jacobi
from .cubic_newton import cubic_newton
from .factorization import factorize_laplacian, factorize_rows, factorize_sparse
from .fast_gradient import fast_gradient
from .gradient_descent import gradient_descent
from .lbfgs import lbfgs
from .minres import minres
from .newton_cg import newton_cg
from .objectives import LogisticLoss, LogSumExp, PowerNorm, SoftmaxLoss
from .regularized_newton import (
    Diagonal,
    RankOne,
    RegularizedNewtonProgress,
    RegularizedNewtonResult,
    regularized_newton,
)
from .result import OptimizeProgress, OptimizeResult, OptimizeState
from .super_newton import super_newton

__all__ = [
    "CGResult",
    "CertifiedResult",
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
    "cubic_newton",
    "factorize_laplacian",
    "factorize_rows",
    "factorize_sparse",
    "fast_gradient",
    "gradient_descent",
    "jacobi",
    "lbfgs",
    "minres",
    "newton_cg",
    "regularized_newton",
    "super_newton",
]
