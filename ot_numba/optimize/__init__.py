"""Optimisers and linear solvers that the methods share."""

from .conjugate_gradient import CGResult, conjugate_gradient
from .factorization import factorize_laplacian, factorize_sparse

__all__ = ["CGResult", "conjugate_gradient", "factorize_laplacian", "factorize_sparse"]
