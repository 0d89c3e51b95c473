"""Rows of quadratic and cardinality-constrained plans."""

from ..generic.topk import dual_rows, ksupport_norm_sq, plan_rows, project_simplex, semidual_rows

__all__ = ["dual_rows", "ksupport_norm_sq", "plan_rows", "project_simplex", "semidual_rows"]
