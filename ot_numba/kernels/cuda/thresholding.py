"""Layers of sparse recovery on CuPy arrays: products of cuBLAS, and the reference code around them, not fused."""

from ..generic.thresholding import (
    columns_of,
    keep_largest,
    masked_adjoint,
    product,
    proximal_step,
    residual_gradient,
)

__all__ = ["columns_of", "keep_largest", "masked_adjoint", "product", "proximal_step", "residual_gradient"]
