"""Optimisers and linear solvers that the methods share."""

from .conjugate_gradient import CGResult, conjugate_gradient

__all__ = ["CGResult", "conjugate_gradient"]
