"""What a TransportResult gives: products, maps, dense and sparse plans."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings, strategies as st

from ot_numba import CostMatrix, Grid, PointCloud, sinkhorn
from ot_numba.arrays import to_numpy


def clouds(seed, n=12, m=9, d=2):
    rng = np.random.default_rng(seed)
    return rng.random((n, d)), rng.random((m, d)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))


KINDS = ["dense", "points", "points 12", "euclidean", "grid"]


def solved(kind, xp=np, dtype="float64", **options):
    """A converged result and its cost as an array."""
    x, y, a, b = clouds(0, d=12 if kind == "points 12" else 2)
    x, y, a, b = (xp.asarray(v.astype(dtype)) for v in (x, y, a, b))
    cost = {
        "dense": lambda: CostMatrix(PointCloud(x, y).to_dense()),
        "points": lambda: PointCloud(x, y),
        "points 12": lambda: PointCloud(x, y),
        "euclidean": lambda: PointCloud(x, y, "euclidean"),
        "grid": lambda: Grid([x[:4, 0], x[:3, 1]], [y[:3, 0], y[:3, 1]]),
    }[kind]()
    options = {"reg": 0.1, "tol": 1e-10 if dtype == "float64" else 1e-5} | options
    return sinkhorn(cost, a, b, **options), to_numpy(cost.to_dense())


@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("kind", KINDS)
def test_plan_and_products(xp, kind, regularizer):
    result, C = solved(kind, xp, regularizer=regularizer)
    a, b = to_numpy(result.problem.a), to_numpy(result.problem.b)
    reference = np.outer(a, b) if regularizer == "kl" else 1.0
    P = reference * np.exp((to_numpy(result.f)[:, None] + to_numpy(result.g) - C) / 0.1)
    assert np.allclose(to_numpy(result.plan), P, rtol=1e-9, atol=0)
    r, c = map(to_numpy, result.marginals)
    assert np.allclose(r, P.sum(1), rtol=1e-10)
    assert np.allclose(c, P.sum(0), rtol=1e-10)
    assert abs(np.abs(r - a).sum() + np.abs(c - b).sum() - result.marginal_error) < 1e-13
    assert abs((P * C).sum() - result.linear_cost) < 1e-10
    entropy = P * np.log(P / reference) - P
    value = (P * C).sum() + 0.1 * (entropy.sum() + (1 if regularizer == "kl" else 0))
    assert abs(value - result.value) < 1e-10
    V, u = np.random.default_rng(1).normal(size=(9, 3)), np.arange(12.0)
    assert np.allclose(to_numpy(result.apply(xp.asarray(V))), P @ V, rtol=1e-9, atol=1e-12)
    assert np.allclose(to_numpy(result.apply(xp.asarray(u), transpose=True)), P.T @ u, rtol=1e-9, atol=1e-12)
    assert np.allclose(to_numpy(result.project(xp.asarray(V))), P @ V / P.sum(1)[:, None], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_plan(xp, kind, dtype):
    result, _ = solved(kind, xp, dtype)
    P = to_numpy(result.plan).astype(float)
    for k in (1, 4, 20):
        S = result.sparse_plan(top_k=k)
        assert scipy.sparse.issparse(S)
        assert S.format == "csr"
        kept = np.sort(P, axis=1)[:, ::-1][:, : min(k, 9)]
        assert np.allclose(
            np.sort(S.toarray(), axis=1)[:, ::-1][:, : min(k, 9)], kept, rtol=1e-4 if dtype == "float32" else 1e-9
        )
        assert S.nnz == kept.size
    S = result.sparse_plan(threshold=0.01)
    assert np.allclose(S.toarray(), np.where(P >= 0.01, P, 0), rtol=1e-4 if dtype == "float32" else 1e-9)
    assert abs(S.dropped_mass - P[P < 0.01].sum()) < (1e-5 if dtype == "float32" else 1e-12)
    assert S.dtype == dtype


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), mass_tol=st.floats(0, 0.5), reg=st.sampled_from([0.5, 0.05, 0.005]))
def test_mass_tol_bounds_what_is_dropped(seed, mass_tol, reg):
    x, y, a, b = clouds(seed, 20, 15)
    result = sinkhorn(PointCloud(x, y), 2 * a, 2 * b, reg=reg, tol=1e-8)
    S = result.sparse_plan(mass_tol=mass_tol)
    assert S.dropped_mass <= mass_tol * 2 + 1e-12
    assert abs(S.sum() + S.dropped_mass - result.plan.sum()) < 1e-12
    dropped = np.sort(result.plan[S.toarray() == 0])
    assert dropped.size == 0 or S.data.size == 0 or dropped[-1] <= S.data.min() * (1 + 1e-12)


def test_map_at_the_sources_is_the_projection():
    x, y, a, b = clouds(3)
    result = sinkhorn(PointCloud(x, y), a, b, reg=0.05, tol=1e-12)
    assert np.allclose(result.map(x), result.project(), rtol=0, atol=1e-10)
    assert np.allclose(result.map(x, y[:, 0]), result.project(y[:, 0]), rtol=0, atol=1e-10)
    new = np.random.default_rng(0).random((5, 2)) + 3  # far from the old mean
    weights = b * np.exp((result.g - ((new[:, None] - y) ** 2).sum(-1)) / 0.05)
    assert np.allclose(result.map(new), weights @ y / weights.sum(1, keepdims=True), rtol=1e-9)


def test_points_without_weight_have_a_map():
    x, y, a, b = clouds(4)
    a[2] = b[1] = 0
    result = sinkhorn(PointCloud(x, y), a / a.sum(), b / b.sum(), reg=0.05, tol=1e-10)
    assert np.isfinite(result.f).all()
    assert not result.plan[2].any()
    assert not result.plan[:, 1].any()
    assert np.allclose(result.project()[2], result.map(x[2:3])[0], rtol=0, atol=1e-9)


def test_result_is_frozen_and_short_in_print():
    result, _ = solved("dense")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.value = 0.0
    with pytest.raises(ValueError, match="read-only"):
        result.plan[0, 0] = 1
    assert len(repr(result)) < 200
    assert "converged" in repr(result)


def test_bad_input():
    result, _ = solved("dense")
    with pytest.raises(ValueError, match="v must have 9 rows, got shape"):
        result.apply(np.ones(8))
    with pytest.raises(ValueError, match="v has NaN"):
        result.apply(np.full(9, np.nan))
    with pytest.raises(ValueError, match="y must be given"):
        result.project()
    with pytest.raises(TypeError, match="map needs the cost of a PointCloud, got a CostMatrix"):
        result.map(np.ones((1, 2)))
    with pytest.raises(ValueError, match="takes one of mass_tol, top_k, threshold, got mass_tol and top_k"):
        result.sparse_plan(mass_tol=0.1, top_k=2)
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        result.sparse_plan(top_k=0)
    with pytest.raises(ValueError, match=r"mass_tol must be .* got 2"):
        result.sparse_plan(mass_tol=2)
    points, _ = solved("points")
    with pytest.raises(ValueError, match="new_points must have dimension 2, got 3"):
        points.map(np.ones((1, 3)))
