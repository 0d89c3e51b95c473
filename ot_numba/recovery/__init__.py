"""Sparse signal recovery: what users call."""

from .coordinate_descent import lasso
from .iterative import fista, iht, ista
from .objective import lasso_gap
from .result import RecoveryProgress, RecoveryResult, RecoveryState
from .thresholds import hard_threshold, soft_threshold

__all__ = [
    "RecoveryProgress",
    "RecoveryResult",
    "RecoveryState",
    "fista",
    "hard_threshold",
    "iht",
    "ista",
    "lasso",
    "lasso_gap",
    "soft_threshold",
]
