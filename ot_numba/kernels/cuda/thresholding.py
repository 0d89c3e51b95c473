"""Layers of sparse recovery on CuPy arrays: products of cuBLAS, and the reference code around them, not fused."""

from ..generic.thresholding import (
    accelerated_step,
    columns_of,
    keep_largest,
    lasso_values,
    masked_adjoint,
    product,
    proximal_step,
    residual_gradient,
    steps,
)

__all__ = [
    "accelerated_step",
    "columns_of",
    "keep_largest",
    "lasso_values",
    "masked_adjoint",
    "product",
    "proximal_step",
    "residual_gradient",
    "steps",
]
