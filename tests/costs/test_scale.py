"""as_cost, cost_scale, suggest_reg."""

import math

import numba
import numpy as np
import pytest
import scipy.sparse

import ot_numba
from ot_numba import CostMatrix, Grid, PointCloud, as_cost, cost_scale, suggest_reg


@numba.njit
def l1(x, y):
    return np.abs(x - y).sum()


def some_costs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(31, 2)), rng.normal(size=(20, 2))
    return [
        CostMatrix(rng.normal(size=(31, 20))),
        PointCloud(x, y),
        PointCloud(x, y, "cosine"),
        PointCloud(x, y, 1.5),
        PointCloud(x, y, l1),
        PointCloud(rng.normal(size=(31, 12))),
        Grid((4, 5), ([0.0, 2.0, 3.0], [1.0])),
    ]


def test_as_cost():
    cost = CostMatrix([[1.0]])
    assert as_cost(cost) is cost
    assert isinstance(as_cost([[1.0, 2.0]]), CostMatrix)
    with pytest.raises(TypeError, match="C: sparse"):
        as_cost(scipy.sparse.eye_array(2))


@pytest.mark.parametrize("cost", some_costs())
@pytest.mark.parametrize(("scale", "statistic"), [("mean", np.mean), ("median", np.median), ("max", np.max)])
def test_cost_scale(cost, scale, statistic):
    assert math.isclose(cost_scale(cost, scale), statistic(cost.to_dense()), rel_tol=1e-13, abs_tol=1e-13)


@pytest.mark.parametrize("scale", ["mean", "median", "max"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (1, 1)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_same_in_every_library(xp, scale, shape, dtype):
    C = np.random.default_rng(1).normal(size=shape).astype(dtype)
    expected = {"mean": np.mean, "median": np.median, "max": np.max}[scale](C.astype(float))
    assert math.isclose(cost_scale(xp.asarray(C), scale), expected, rel_tol=1e-6)


def test_infinite_costs_do_not_count():
    C = np.arange(12.0).reshape(3, 4)
    C[C % 3 == 0] = np.inf
    finite = C[np.isfinite(C)]
    assert cost_scale(C, "mean") == finite.mean()
    assert cost_scale(C) == np.median(finite)
    assert cost_scale(C, "max") == finite.max()


def test_median_of_a_large_cost_is_that_of_a_sample():
    x = np.random.default_rng(0).random(3000)
    cost = PointCloud(x)
    index = np.linspace(0, 2999, 1024).round().astype(int)
    assert cost_scale(cost) == cost_scale(cost) == np.median(cost.subset(index, index).to_dense())
    assert math.isclose(cost_scale(cost), np.median(cost.to_dense()), rel_tol=0.05)
    assert cost_scale(PointCloud(x, x[:1])) == np.median(PointCloud(x[index], x[:1]).to_dense())
    sparse = np.full((2000, 2000), np.inf)
    sparse[1, 1] = 1.0
    with pytest.raises(ValueError, match="only inf among the 1024 x 1024 entries"):
        cost_scale(sparse)
    assert cost_scale(sparse, "mean") == 1.0


def test_grids_are_not_evaluated():
    """The mean and the largest of 1.6e13 entries."""
    grid = Grid((2000, 2000))
    axis = np.subtract.outer(np.linspace(0, 1, 2000), np.linspace(0, 1, 2000)) ** 2
    assert math.isclose(cost_scale(grid, "mean"), 2 * axis.mean(), rel_tol=1e-13)
    assert cost_scale(grid, "max") == 2.0
    assert 0.2 < cost_scale(grid) < 0.4


def test_in_tiles(monkeypatch):
    cost = PointCloud(np.random.default_rng(0).normal(size=(3000, 1)), metric="euclidean")
    dense = cost.to_dense()
    assert math.isclose(cost_scale(cost, "mean"), dense.mean(), rel_tol=1e-13)
    assert cost_scale(cost, "max") == dense.max()


def test_suggest_reg():
    C = [[0.0, 1.0], [3.0, 2.0]]
    assert suggest_reg(C) == 0.05 * 1.5
    assert suggest_reg(C, 0.1, scale="max") == pytest.approx(0.3, rel=1e-15)
    assert suggest_reg(CostMatrix(C), scale="mean") == 0.05 * 1.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"C": [[np.nan]]}, ValueError, "C has NaN"),
        ({"C": [[np.inf]]}, ValueError, "C must have at least one finite"),
        ({"C": [1.0]}, ValueError, "C must have 2 dimension"),
        ({"C": np.zeros((0, 2))}, ValueError, "C is empty"),
        ({"C": [[1j]]}, TypeError, "C must hold real"),
        ({"C": "cost"}, TypeError, "C"),
        ({"C": [[1.0]], "scale": "min"}, ValueError, "scale must be one of 'mean', 'median', 'max', got 'min'"),
        ({"C": [[1.0]], "scale": None}, ValueError, "scale must be one of"),
    ],
)
@pytest.mark.parametrize("function", [cost_scale, suggest_reg])
def test_refused(function, options, error, message):
    with pytest.raises(error, match=message):
        function(**options)


@pytest.mark.parametrize(
    ("C", "share", "error", "message"),
    [
        ([[1.0]], 0, ValueError, "share must be > 0 and < inf, got 0"),
        ([[1.0]], -1, ValueError, "share must be > 0"),
        ([[1.0]], np.inf, ValueError, "share must be > 0 and < inf"),
        ([[1.0]], np.nan, ValueError, "share must be a number"),
        ([[1.0]], "a", TypeError, "share must be a real number"),
        ([[0.0, 0.0]], 0.1, ValueError, "the median of C must be positive"),
        ([[-1.0, -2.0]], 0.1, ValueError, "the median of C must be positive"),
    ],
)
def test_suggest_reg_refuses(C, share, error, message):
    with pytest.raises(error, match=message):
        suggest_reg(C, share)


def test_public():
    assert {"as_cost", "cost_scale", "suggest_reg"} <= set(ot_numba.__all__)
