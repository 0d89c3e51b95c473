"""Entropic optimal transport: what users call."""

from ._color_transfer import ColorTransferResult, color_transfer
from ._newton import regularization_path, sinkhorn_newton
from ._quadratic import quadratic_ot
from ._sinkhorn import sinkhorn
from ._solve import solve
from ._sparsity_constrained import sparsity_constrained_ot
from .divergence import DivergenceResult, sinkhorn_divergence, sinkhorn_divergence_cost
from .gradients import PlanVJP, plan_vjp, transport_gradients
from .path import NewtonProgress
from .projections import ksupport_norm_sq, project_simplex, project_simplex_topk
from .result import TransportResult
from .rounding import RoundedPlan, marginal_error, round_plan
from .routing import RoutingResult, route_tokens
from .semidual import (
    dual_hessian_vector,
    dual_value_and_grad,
    semidual_hessian_vector,
    semidual_value_and_grad,
)
from .sparse_duals import SparsePlan, dual_sparse_plan, semidual_sparse_plan
from .sparse_newton import sparse_hessian
from .sparse_result import SparseProgress, SparseTransportResult
from .stochastic import semidual_stochastic

__all__ = [
    "ColorTransferResult",
    "DivergenceResult",
    "NewtonProgress",
    "PlanVJP",
    "RoundedPlan",
    "RoutingResult",
    "SparsePlan",
    "SparseProgress",
    "SparseTransportResult",
    "TransportResult",
    "color_transfer",
    "dual_hessian_vector",
    "dual_sparse_plan",
    "dual_value_and_grad",
    "ksupport_norm_sq",
    "marginal_error",
    "plan_vjp",
    "project_simplex",
    "project_simplex_topk",
    "quadratic_ot",
    "regularization_path",
    "round_plan",
    "route_tokens",
    "semidual_hessian_vector",
    "semidual_sparse_plan",
    "semidual_stochastic",
    "semidual_value_and_grad",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_divergence_cost",
    "sinkhorn_newton",
    "solve",
    "sparse_hessian",
    "sparsity_constrained_ot",
    "transport_gradients",
]
