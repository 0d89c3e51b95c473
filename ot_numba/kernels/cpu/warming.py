"""Compiling ahead: each family of kernels once, with the types that the solvers call it with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..contract import DENSE, DOT, POWER, SOFT, CostData
from . import (
    absorbed_columns,
    absorbed_pair,
    absorbed_rows,
    column_logsumexp,
    csr_plan,
    laplacian,
    lasso,
    mass_histogram,
    pairwise_cost,
    plan,
    plan_pair,
    plans,
    products,
    row_kth_exponent,
    row_logsumexp,
    sinkhorn_columns,
    sinkhorn_rows,
    stencils,
    stochastic,
    thresholding,
    tiles,
    topk,
)


def _costs(dtype: str) -> tuple[CostData, CostData]:
    """Points and a stored cost, 8 x 8."""
    x = np.zeros((8, 2), dtype)
    return CostData(DOT, x, np.ascontiguousarray(x.T), 1.0), CostData(DENSE, np.zeros((8, 8), dtype), x, 1.0)


def _sinkhorn(dtype: str) -> None:
    w = np.full(8, 0.125, dtype)
    points, stored = _costs(dtype)
    pairwise_cost(POWER, points.x, points.y)
    for cost in (points, stored):
        F, G = np.log2(w), np.zeros(8, dtype)
        _, column = sinkhorn_rows(cost, F, G, w, F.copy())
        K = plan(cost, F, G)
        plan(cost, F, G, dtype="float32")
        plan_pair(cost, F, G, w.astype(float), w.astype(float))
        row_logsumexp(cost, G[None])
        column_logsumexp(cost, F)
        products(cost, F, G, points.x, points.x)
        mass_histogram(cost, F, G)
        csr_plan(cost, F, G, row_kth_exponent(cost, F, G, 1))
    sinkhorn_columns(column, w, G, G.copy())
    _, column = absorbed_rows(K, np.ones(8, dtype), np.ones(8, dtype), w)
    absorbed_columns(column, np.ones(8, dtype), w)
    absorbed_pair(K, w, w)
    active = tiles.active_tiles(points, F, G, F + tiles.row_peaks(points, G), G)
    tiles.sinkhorn_rows(points, active, F, G, w, F.copy())
    tiles.plan_pair(points, active, F, G, w.astype(float), w)
    tiles.stored_square(tiles.store_tiles(points, active, F, G), active, 8, w.astype("float32"))


def _quadratic(dtype: str) -> None:
    G, a = np.zeros(8, dtype), np.full(8, 0.125, dtype)
    for cost in _costs(dtype):
        F, *_ = topk.semidual_rows(cost, G, a, 1.0, 8, 0.0)
        topk.dual_rows(cost, F, G, 1.0, 8, 0.0)
        topk.semidual_plan_rows(cost, G, a, 1.0, 8, 0.0)
        data, indices, indptr = topk.plan_rows(cost, F, G, 1.0, 8, 0.0)
    topk.project_simplex(np.zeros((8, 8), dtype), np.ones(8), 8)
    topk.ksupport_norm_sq(np.ones((8, 8), dtype), 8)
    laplacian.laplacian(indptr, indices, data, np.ones(8))


def _stochastic(dtype: str) -> None:
    offset, rows, b = np.zeros(8, dtype), np.arange(2), np.full(8, 0.125)
    for cost in _costs(dtype):
        stochastic.averaged_sgd(cost, rows, offset, b, np.zeros(8), np.zeros(8), 1.0, 0, 1)
        stochastic.sag(cost, rows, rows, offset, b, b, np.zeros(8), np.zeros((8, 8), dtype), np.zeros(8), 1.0, 1)


def _recovery(dtype: str) -> None:
    A = np.eye(8, dtype=dtype)
    Y, X = np.ones((8, 1), dtype), np.zeros((8, 1), dtype)
    R, G = -Y, -Y
    numbers, columns = np.ones(1), thresholding.columns_of(A)
    thresholding.steps(SOFT, numbers, numbers, A, Y, X, X, R, G, None, None, columns)
    thresholding.proximal_step(SOFT, 1.0, 1.0, 0.0, X, X, G)
    thresholding.accelerated_step(SOFT, 1.0, 1.0, np.ones(1), X, X.copy(), G)
    thresholding.lasso_values(1.0, X, Y, R, G)
    thresholding.masked_adjoint(X, np.zeros((8, 1), np.int8), G)
    partial = np.empty((1, 8), dtype)
    thresholding._sparse_product(columns.values, X, 0, 1, partial)  # these are left out where A is as small
    thresholding._residual_gradient(A, X[:, 0], Y[:, 0], 0, 1, 8, R[:, 0], partial)
    plans.sum_blocks(partial, G[:, 0])
    place = np.arange(8, dtype=np.int32)
    for matrix in (lasso.Columns(A), lasso.Columns(np.ones((1, 8), dtype), place, np.arange(9, dtype=np.int32))):
        y, x = np.full(8, 2, dtype), np.zeros(8, dtype)
        r = y.copy()
        squares, inner = lasso.squares_and_products(matrix, y)
        lasso.coordinate_descent(*matrix, y, np.arange(8), squares, 1.0, x, r, 0.0, 1)
        lasso.newton(*matrix, np.arange(8), 1.0, x, r)
        lasso.update_products(matrix, r, 1.0, 1.0, squares, inner, np.zeros(8))
        lasso.residual(*matrix, y, x, r, y.copy())
        lasso.statistics(x, y, r, inner)


def _denoising(dtype: str) -> None:
    x, out, q = np.zeros((1, 8, 8), dtype), np.empty((1, 8, 8), dtype), np.ones((1, 8, 8), dtype)
    tv = 1.0, 1.0, True
    stencils.tv_gradient(x, q, *tv, out)
    stencils.tv_hvp(x, q, *tv, out)
    stencils.tv_jacobian_t(x, q, *tv)
    stencils.tv_steps(x, x.copy(), q, *tv, 0.1, 0.1, 0.0, 1, np.empty((2, 1, 8, 8), dtype))
    experts = np.ones((1, 2, 2), dtype), np.ones(1), np.ones(1)
    stencils.foe_gradient(x, q, *experts, out)
    stencils.foe_hvp(x, q, *experts, out)
    stencils.foe_jacobian_t(x, q, *experts)


FAMILIES: dict[str, Callable[[str], None]] = {
    "sinkhorn": _sinkhorn,
    "quadratic": _quadratic,
    "stochastic": _stochastic,
    "recovery": _recovery,
    "denoising": _denoising,
}
