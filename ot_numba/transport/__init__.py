"""Entropic optimal transport: what users call."""

from ._color_transfer import ColorTransferResult, color_transfer
from ._newton import regularization_path, sinkhorn_newton
from ._sinkhorn import sinkhorn
from ._solve import solve
from .divergence import DivergenceResult, sinkhorn_divergence, sinkhorn_divergence_cost
from .gradients import PlanVJP, plan_vjp, transport_gradients
from .path import NewtonProgress
from .result import TransportResult
from .rounding import RoundedPlan, marginal_error, round_plan
from .semidual import (
    dual_hessian_vector,
    dual_value_and_grad,
    semidual_hessian_vector,
    semidual_value_and_grad,
)
from .sparse_newton import sparse_hessian
from .stochastic import semidual_stochastic

__all__ = [
    "ColorTransferResult",
    "DivergenceResult",
    "NewtonProgress",
    "PlanVJP",
    "RoundedPlan",
    "TransportResult",
    "color_transfer",
    "dual_hessian_vector",
    "dual_value_and_grad",
    "marginal_error",
    "plan_vjp",
    "regularization_path",
    "round_plan",
    "semidual_hessian_vector",
    "semidual_stochastic",
    "semidual_value_and_grad",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_divergence_cost",
    "sinkhorn_newton",
    "solve",
    "sparse_hessian",
    "transport_gradients",
]
