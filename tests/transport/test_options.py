"""Every option of the solver with every other, what it says when it fails, and bad input."""

import itertools
import warnings

import numba
import numpy as np
import pytest
import scipy.sparse

from ot_numba import ConvergenceError, ConvergenceWarning, Grid, PointCloud, sinkhorn, solve

RNG = np.random.default_rng(0)
X, Y = RNG.random((11, 2)), RNG.random((8, 2))
A, B = RNG.dirichlet(np.ones(11)), RNG.dirichlet(np.ones(8))
C = ((X[:, None] - Y) ** 2).sum(-1)


@numba.njit
def largest_difference(x, y):
    return np.abs(x - y).max()


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize("unbalanced", [None, 0.5])
def test_a_metric_of_the_user_is_a_cost_like_any_other(method, unbalanced):
    options = {"reg": 0.05, "method": method, "unbalanced": unbalanced, "tol": 1e-10}
    dense = np.abs(X[:, None] - Y).max(-1)
    result = sinkhorn(PointCloud(X, Y, largest_difference), A, B, **options)
    expected = sinkhorn(dense, A, B, **options)
    assert result.converged
    assert result.value == pytest.approx(expected.value, rel=1e-9)
    assert np.allclose(result.plan, expected.plan, rtol=0, atol=1e-10)


@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("unbalanced", [None, 0.5, (2.0, None), (None, 0.3)], ids=str)
@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_options_agree(method, unbalanced, regularizer):
    problem = {"reg": 0.03, "unbalanced": unbalanced, "regularizer": regularizer, "tol": 1e-11}
    expected = sinkhorn(C, A, B, method="log", relaxation=1.0, reg_schedule=None, **problem)
    grid = sinkhorn(PointCloud(X, Y), A, B, method=method, **problem)
    assert np.allclose(grid.plan, expected.plan, rtol=0, atol=1e-10)
    for acceleration, schedule, start in itertools.product(
        [{}, {"relaxation": 1.3}, {"anderson": 4}], [None, "auto", [0.5, 0.1]], [None, (expected.f, expected.g)]
    ):
        result = sinkhorn(C, A, B, method=method, reg_schedule=schedule, init=start, **acceleration, **problem)
        assert result.converged
        assert np.allclose(result.plan, expected.plan, rtol=0, atol=1e-10)
        assert np.allclose(result.value, expected.value, rtol=0, atol=1e-10)


def test_warm_start_is_shorter():
    first = solve(C, A, B, reg=0.01, tol=1e-9)
    assert solve(C, A, B, reg=0.01, tol=1e-9, init=first).n_iter < first.n_iter / 2
    assert solve(C, A, B, reg=0.009, tol=1e-9, init=first).converged


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_max_iter_is_reported(method):
    with pytest.warns(ConvergenceWarning, match=r"marginal error \d.* after \d+ iterations, tol=1e-12") as record:
        result = sinkhorn(C, A, B, reg=0.01, tol=1e-12, max_iter=8, method=method)
    assert len(record) == 1
    assert not result.converged
    assert result.status == "max_iter"
    assert np.isfinite(result.plan).all()
    error = np.abs(result.plan.sum(1) - A).sum() + np.abs(result.plan.sum(0) - B).sum()
    assert abs(error - result.marginal_error) < 1e-14
    with pytest.raises(ConvergenceError, match="not converged"):
        sinkhorn(C, A, B, reg=0.01, tol=1e-12, max_iter=8, method=method, on_fail="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn(C, A, B, reg=0.01, tol=1e-12, max_iter=8, method=method, on_fail="ignore")


def test_tolerance_below_the_floor_is_raised_and_said():
    result = sinkhorn(C.astype("float32"), reg=0.01, tol=1e-12)
    assert result.converged
    assert "tol=1e-12 is below the rounding floor" in result.message
    assert result.f.dtype == np.float32
    assert result.plan.dtype == np.float32


def test_callback(capsys):
    seen = []

    def callback(state):
        f, g = state.potentials()
        assert f.shape == (11,)
        assert g.shape == (8,)
        seen.append((state.n_iter, state.reg, state.marginal_error))
        if len(seen) == 3:
            raise StopIteration

    result = sinkhorn(C, A, B, reg=0.01, method="log", relaxation=1.0, check_every=5, callback=callback, progress=True)
    assert result.status == "stopped"
    assert len(result.history) == 3
    assert [entry.n_iter for entry in result.history] == [n for n, _, _ in seen]
    assert "sinkhorn" in capsys.readouterr().err


def test_forbidden_pairs():
    D = C.copy()
    D[0, 1:] = np.inf
    D[3:6, 0] = np.inf
    a = np.r_[B[0] / 2, np.full(10, (1 - B[0] / 2) / 10)]
    result = solve(D, a, B, reg=0.05, tol=1e-9)
    assert result.converged
    assert not result.plan[np.isinf(D)].any()
    D[2] = np.inf
    with pytest.raises(ValueError, match="only infinite costs in row 2"):
        solve(D, a, B, reg=0.05)


def test_masses_that_forbidden_pairs_cannot_carry():
    D = np.array([[0.0, np.inf], [np.inf, 0.0]])
    with pytest.warns(ConvergenceWarning):
        result = solve(D, [0.5, 0.5], [0.3, 0.7], reg=0.1, max_iter=200)
    assert not result.converged
    assert np.isfinite(result.plan).all()
    assert result.marginal_error > 0.1


@pytest.mark.parametrize(
    "cost",
    [np.zeros((3, 4)), np.full((3, 4), 7.0), np.ones((1, 1)), np.ones((1, 5)), np.ones((5, 1)), C + 1e6, -C, C * 1e-12],
    ids=["zero", "constant", "1x1", "1xm", "nx1", "offset", "negative", "small"],
)
def test_degenerate_costs(cost):
    reg = 0.1 if np.ptp(cost) == 0 else 0.1 * np.ptp(cost)
    for method in ("auto", "log", "kernel"):
        result = sinkhorn(cost, reg=reg, method=method)
        assert result.converged
        assert np.isfinite(result.value)


@pytest.mark.parametrize("dtype", ["float16", ">f8", "int64", "bool"])
def test_other_layouts(dtype):
    cost = (C * 8).astype(dtype)
    expected = sinkhorn(np.ascontiguousarray(cost, "f4" if dtype == "float16" else "f8"), reg=1.0, tol=1e-5).plan
    wide = np.zeros((22, 16), dtype)
    wide[::2, ::2] = cost
    frozen = cost.copy()
    frozen.flags.writeable = False
    for other in (cost, np.asfortranarray(cost), wide[::2, ::2], frozen, cost.tolist()):
        assert np.allclose(sinkhorn(other, reg=1.0, tol=1e-5).plan, expected, rtol=0, atol=1e-5)


def test_nothing_is_modified():
    cost, a, b = C.copy(), A.copy(), B.copy()
    sinkhorn(cost, a, b, reg=0.05)
    assert np.array_equal(cost, C)
    assert np.array_equal(a, A)
    assert np.array_equal(b, B)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "C has NaN", {"C": np.where(C > 0.5, np.nan, C)}),
        (ValueError, "C has -inf", {"C": np.where(C > 0.5, -np.inf, C)}),
        (ValueError, "C must", {"C": C.ravel()}),
        (ValueError, "C", {"C": np.empty((0, 3))}),
        (TypeError, "C", {"C": C * 1j}),
        (TypeError, "C", {"C": scipy.sparse.csr_array(C)}),
        (TypeError, "C", {"C": "cost"}),
        (ValueError, "a must have shape", {"a": B}),
        (ValueError, "a", {"a": np.r_[-0.1, A[1:]]}),
        (ValueError, "b", {"b": np.zeros(8)}),
        (ValueError, "b has NaN", {"b": np.r_[np.nan, B[1:]]}),
        (ValueError, r"unbalanced", {"b": 2 * B}),
        (ValueError, "reg must be > 0", {"reg": 0.0}),
        (ValueError, "reg", {"reg": -1.0}),
        (ValueError, "reg", {"reg": np.nan}),
        (ValueError, "reg", {"reg": np.inf}),
        (TypeError, "reg", {"reg": "0.1"}),
        (TypeError, "reg", {"reg": True}),
        (ValueError, "regularizer must be one of 'kl', 'entropy', got 'l2'", {"regularizer": "l2"}),
        (ValueError, "method must be one of", {"method": "fast"}),
        (ValueError, "unbalanced", {"unbalanced": (1.0, 2.0, 3.0)}),
        (ValueError, "unbalanced", {"unbalanced": 0.0}),
        (ValueError, "reg_schedule", {"reg_schedule": [0.1, 0.2]}),
        (ValueError, "reg_schedule", {"reg_schedule": "slow"}),
        (ValueError, "relaxation", {"relaxation": 2.0}),
        (ValueError, "anderson", {"anderson": -1}),
        (ValueError, "anderson replaces", {"anderson": 3, "relaxation": 1.5}),
        (ValueError, "tol", {"tol": -1.0}),
        (ValueError, "max_iter", {"max_iter": 0}),
        (TypeError, "max_iter", {"max_iter": 1.5}),
        (ValueError, "check_every", {"check_every": 0}),
        (ValueError, "f must have shape", {"init": (B, B)}),
        (TypeError, "init", {"init": 3}),
        (ValueError, "on_fail", {"on_fail": "shout"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(error, match, arguments):
    with pytest.raises(error, match=match):
        sinkhorn(**({"C": C, "a": A, "b": B, "reg": 0.05} | arguments))


def test_grid_takes_images():
    image = np.random.default_rng(0).random((6, 5))
    image[0] = 0
    result = solve(Grid((6, 5)), image.ravel() / image.sum(), np.full(30, 1 / 30), reg=0.01, tol=1e-9)
    assert result.converged
    assert np.isfinite(result.f).all()
