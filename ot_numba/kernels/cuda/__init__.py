"""CuPy backend: the kernel contract in CUDA C++, compiled on first use."""

from .distances import pairwise_cost
from .plans import (
    column_logsumexp,
    marginals,
    plan,
    plan_pair,
    products,
    row_logsumexp,
    sinkhorn_columns,
    sinkhorn_rows,
)
from .scalings import absorbed_columns, absorbed_pair, absorbed_rows
from .sparse import csr_plan, mass_histogram, row_kth_exponent

__all__ = [
    "absorbed_columns",
    "absorbed_pair",
    "absorbed_rows",
    "column_logsumexp",
    "csr_plan",
    "marginals",
    "mass_histogram",
    "pairwise_cost",
    "plan",
    "plan_pair",
    "products",
    "row_kth_exponent",
    "row_logsumexp",
    "sinkhorn_columns",
    "sinkhorn_rows",
]
