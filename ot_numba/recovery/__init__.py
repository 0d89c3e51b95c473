"""Sparse signal recovery: what users call."""

from .coordinate_descent import lasso
from .iterative import fista, iht, ista
from .objective import lasso_gap
from .result import RecoveryProgress, RecoveryResult, RecoveryState
from .thresholds import hard_threshold, soft_threshold
from .training import TrainingProgress, UnfoldedRecovery
from .unfolded import UnfoldedGradient, unfolded_forward, unfolded_trajectory, unfolded_value_and_grad

__all__ = [
    "RecoveryProgress",
    "RecoveryResult",
    "RecoveryState",
    "TrainingProgress",
    "UnfoldedGradient",
    "UnfoldedRecovery",
    "fista",
    "hard_threshold",
    "iht",
    "ista",
    "lasso",
    "lasso_gap",
    "soft_threshold",
    "unfolded_forward",
    "unfolded_trajectory",
    "unfolded_value_and_grad",
]
