"""Entropic optimal transport: what users call."""

from ._sinkhorn import sinkhorn
from ._solve import solve
from .result import TransportResult
from .semidual import (
    dual_hessian_vector,
    dual_value_and_grad,
    semidual_hessian_vector,
    semidual_value_and_grad,
)
from .stochastic import semidual_stochastic

__all__ = [
    "TransportResult",
    "dual_hessian_vector",
    "dual_value_and_grad",
    "semidual_hessian_vector",
    "semidual_stochastic",
    "semidual_value_and_grad",
    "sinkhorn",
    "solve",
]
