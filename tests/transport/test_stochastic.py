import functools
import importlib
import math

import array_api_strict
import numpy as np
import pytest

from ot_numba.arrays.warnings import ConvergenceError, ConvergenceWarning
from ot_numba.costs import CostMatrix, Grid, PointCloud
from ot_numba.kernels.contract import DENSE, DOT, CostData
from ot_numba.transport._sinkhorn import sinkhorn
from ot_numba.transport.semidual import semidual_value_and_grad
from ot_numba.transport.stochastic import semidual_stochastic

CPU = importlib.import_module("ot_numba.kernels.cpu.stochastic")
GENERIC = importlib.import_module("ot_numba.kernels.generic.stochastic")


@functools.cache
def problem(n=60, m=40, d=2, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, d)), 0.7 * rng.random((m, d)) + 0.3
    return PointCloud(x, y), rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(m, 2.0))


def centred(g, b):
    return g - g @ b / b.sum()


# ---- kernels


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", [DENSE, DOT])
@pytest.mark.parametrize("m", [1, 2, 3, 33, 1100])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_compiled_kernels_agree_with_the_reference(dtype, kind, m, batch_size):
    rng = np.random.default_rng(m)
    n = 7
    if kind == DENSE:
        data = CostData(DENSE, rng.random((n, m)).astype(dtype), np.empty((1, 1), dtype), 5.0)
    else:
        data = CostData(DOT, rng.random((n, 3)).astype(dtype), rng.random((3, m)).astype(dtype), 1.0)
    rows = rng.integers(0, n, 30 * batch_size)
    slots = rng.integers(0, 9, 30 * batch_size)
    b, weights = rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(9))
    offset = np.log2(b).astype(dtype)
    start = rng.normal(size=m)
    table = rng.dirichlet(np.ones(m), 9).astype(dtype)
    states = []
    for module in (CPU, GENERIC):
        G, mean = start.copy(), start.copy()
        module.averaged_sgd(data, rows, offset, b, G, mean, 2.0, 5, batch_size)
        H, T = start.copy(), table.copy()
        total = weights @ T
        module.sag(data, rows, slots, offset, b, weights, H, T, total, 0.5, batch_size)
        states.append((G, mean, H, T, total))
    assert not np.array_equal(states[0][0], start) or m == 1
    for ours, reference in zip(*states, strict=True):
        np.testing.assert_allclose(
            ours,
            reference,
            rtol=1e-10 if dtype == np.float64 else 1e-4,
            atol=1e-12 if dtype == np.float64 else 1e-5,
        )
    tol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(states[0][4], weights @ states[0][3], rtol=tol, atol=1e-15)


# ---- convergence to the optimum


@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_sag_reaches_the_optimum(regularizer, batch_size):
    C, a, b = problem()
    options = {"reg": 0.1, "regularizer": regularizer}
    exact = sinkhorn(C, a, b, tol=1e-13, on_fail="ignore", **options)
    result = semidual_stochastic(
        C, a, b, method="sag", batch_size=batch_size, tol=1e-11, max_iter=200_000, rng=0, **options
    )
    assert result.status == "converged"
    assert result.marginal_error <= 1e-11
    assert result.value == pytest.approx(exact.value, rel=1e-9)
    assert result.dual_value == pytest.approx(exact.value, rel=1e-9)
    assert result.linear_cost == pytest.approx(exact.linear_cost, rel=1e-9)
    np.testing.assert_allclose(result.g, exact.g, atol=1e-8)
    np.testing.assert_allclose(result.f, exact.f, atol=1e-8)
    np.testing.assert_allclose(result.plan, exact.plan, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_asgd_approaches_the_optimum(batch_size):
    C, a, b = problem()
    exact = sinkhorn(C, a, b, reg=0.1, tol=1e-12)
    errors, gaps = [], []
    for max_iter in (1_000, 100_000):
        result = semidual_stochastic(
            C, a, b, reg=0.1, batch_size=batch_size, tol=0, max_iter=max_iter, rng=1, on_fail="ignore"
        )
        errors.append(result.marginal_error)
        gaps.append(exact.value - result.dual_value)
        assert result.dual_value == pytest.approx(
            semidual_value_and_grad(result.g, C, a, b, reg=0.1)[0], rel=1e-10
        )
    assert 0 < gaps[1] < gaps[0] / 10
    assert gaps[1] < 1e-4 * exact.value
    assert errors[1] < errors[0] / 4
    assert errors[1] < 1e-2
    np.testing.assert_allclose(centred(result.g, b), centred(exact.g, b), atol=5e-3)


def test_weights_of_any_mass_give_the_same_potential():
    C, a, b = problem()
    options = {"reg": 0.1, "rng": 0, "tol": 0, "max_iter": 500, "on_fail": "ignore"}
    for method in ("asgd", "sag"):
        one = semidual_stochastic(C, a, b, method=method, **options)
        four = semidual_stochastic(C, 4 * a, 4 * b, method=method, **options)
        np.testing.assert_allclose(centred(four.g, b), centred(one.g, b), atol=1e-10)
        exact = sinkhorn(C, 4 * a, 4 * b, reg=0.1, tol=1e-12)
        assert four.dual_value <= exact.value + 1e-12
        assert four.marginal_error == pytest.approx(one.marginal_error, rel=1e-8)


def test_start_at_the_optimum_stays_there_and_a_shift_of_it_changes_nothing():
    C, a, b = problem()
    exact = sinkhorn(C, a, b, reg=0.1, tol=1e-13, on_fail="ignore")
    for init in (exact, exact.g, exact.g + 5, list(exact.g)):
        result = semidual_stochastic(
            C, a, b, reg=0.1, method="sag", init=init, tol=1e-10, rng=0, max_iter=100_000
        )
        assert result.value == pytest.approx(exact.value, rel=1e-10)
    cold = semidual_stochastic(C, a, b, reg=0.1, max_iter=50, tol=0, rng=0, lr=1e-3, on_fail="ignore")
    warm = semidual_stochastic(
        C, a, b, reg=0.1, max_iter=50, tol=0, rng=0, lr=1e-3, init=exact, on_fail="ignore"
    )
    assert warm.marginal_error < cold.marginal_error / 100
    entropy = sinkhorn(C, a, b, reg=0.1, tol=1e-13, regularizer="entropy", on_fail="ignore")
    same = semidual_stochastic(
        C,
        a,
        b,
        reg=0.1,
        max_iter=50,
        tol=0,
        rng=0,
        lr=1e-3,
        init=entropy,
        regularizer="entropy",
        on_fail="ignore",
    )
    np.testing.assert_allclose(same.plan, warm.plan, atol=1e-12)


def test_gradient_steps_are_the_formula():
    C, a, b = problem(5, 4)
    dense, reg, lr = C.to_dense(), 0.2, 0.3
    rows = np.searchsorted(a.cumsum() / a.cumsum()[-1], np.random.default_rng(3).random(6), side="right")
    g, mean = np.zeros(4), np.zeros(4)
    for t in range(1, 4):
        pi = b * np.exp((g - dense[rows[2 * t - 2 : 2 * t]]) / reg)
        pi /= pi.sum(axis=1, keepdims=True)
        g = g + lr / math.sqrt(t) * (b - pi.mean(axis=0))
        mean += (g - mean) / t
    result = semidual_stochastic(
        dense, a, b, reg=reg, lr=lr, batch_size=2, max_iter=3, rng=3, tol=0, on_fail="ignore"
    )
    np.testing.assert_allclose(centred(result.g, b), centred(mean, b), atol=1e-13)


# ---- inputs


@pytest.mark.parametrize("method", ["asgd", "sag"])
def test_all_costs_walk_the_same_path(method):
    grid = Grid((4, 5), (3, 4))
    nodes = [
        np.stack(np.meshgrid(*(np.linspace(0, 1, k) for k in shape), indexing="ij"), -1).reshape(-1, 2)
        for shape in ((4, 5), (3, 4))
    ]
    _, a, b = problem(20, 12)
    results = [
        semidual_stochastic(C, a, b, reg=0.2, method=method, max_iter=300, rng=5, tol=0, on_fail="ignore")
        for C in (grid.to_dense(), grid, PointCloud(*nodes), PointCloud(*nodes, "cityblock"))
    ]
    for other in results[1:3]:
        np.testing.assert_allclose(other.g, results[0].g, atol=1e-11)
        np.testing.assert_allclose(other.f, results[0].f, atol=1e-11)
        assert other.value == pytest.approx(results[0].value, rel=1e-10)
    dense = PointCloud(*nodes, "cityblock").to_dense()
    same = semidual_stochastic(
        dense, a, b, reg=0.2, method=method, max_iter=300, rng=5, tol=0, on_fail="ignore"
    )
    np.testing.assert_allclose(results[3].g, same.g, atol=1e-11)


@pytest.mark.parametrize("d", [2, 12])
def test_tiles_do_not_change_the_path(monkeypatch, d):
    from ot_numba.transport import stochastic

    C, a, b = problem(50, 30, d)
    options = {"reg": 0.3, "max_iter": 200, "rng": 5, "tol": 0, "batch_size": 2, "on_fail": "ignore"}
    whole = semidual_stochastic(C, a, b, **options)
    monkeypatch.setattr(stochastic, "TILE_ENTRIES", 30 * 7)
    monkeypatch.setattr(stochastic, "DRAWS", 7)
    np.testing.assert_allclose(semidual_stochastic(C, a, b, **options).g, whole.g, atol=1e-12)


@pytest.mark.parametrize("method", ["asgd", "sag"])
@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("cost", ["matrix", "grid"])
def test_points_without_weight(method, regularizer, cost):
    C = Grid((4, 5), (3, 4))
    C = C if cost == "grid" else C.to_dense()
    _, a, b = problem(20, 12)
    a, b = np.where(np.arange(20) % 4 == 1, 0, a), np.where(np.arange(12) == 3, 0, b)
    b = b * (a.sum() / b.sum())
    options = {"reg": 0.3, "regularizer": regularizer}
    exact = sinkhorn(CostMatrix(Grid((4, 5), (3, 4)).to_dense()), a, b, tol=1e-12, **options)
    result = semidual_stochastic(
        C, a, b, method=method, rng=0, max_iter=30_000, tol=1e-2 if method == "asgd" else 1e-10, **options
    )
    rel = 1e-3 if method == "asgd" else 1e-9
    assert result.dual_value == pytest.approx(exact.value, rel=rel)
    keep = b > 0
    np.testing.assert_allclose(result.g[keep], exact.g[keep], atol=0.02 if method == "asgd" else 1e-8)
    assert np.isneginf(result.g[~keep]).all() == (regularizer == "entropy")
    if regularizer == "kl":
        np.testing.assert_allclose(result.g, exact.g, atol=0.05 if method == "asgd" else 1e-8)
        np.testing.assert_allclose(result.f, exact.f, atol=0.05 if method == "asgd" else 1e-8)


def test_forbidden_pairs_get_no_mass():
    C, a, b = problem(10, 8)
    dense = C.to_dense()
    dense[0, :4] = np.inf
    exact = sinkhorn(dense, a, b, reg=0.3, tol=1e-12)
    result = semidual_stochastic(dense, a, b, reg=0.3, method="sag", tol=1e-10, rng=0)
    assert (result.plan[0, :4] == 0).all()
    np.testing.assert_allclose(result.plan, exact.plan, atol=1e-9)


def test_array_api_walks_the_same_path():
    C, a, b = problem(12, 9)
    for method in ("asgd", "sag"):
        options = {"reg": 0.2, "method": method, "max_iter": 60, "rng": 2, "tol": 0, "on_fail": "ignore"}
        here = semidual_stochastic(C.to_dense(), a, b, batch_size=2, **options)
        there = semidual_stochastic(
            *map(array_api_strict.asarray, (C.to_dense(), a, b)), batch_size=2, **options
        )
        assert array_api_strict.__name__ in type(there.g).__module__
        np.testing.assert_allclose(np.asarray(there.g), here.g, atol=1e-12)
        np.testing.assert_allclose(np.asarray(there.f), here.f, atol=1e-12)
        assert there.value == pytest.approx(here.value, rel=1e-11)
    y = array_api_strict.asarray([[0.0], [1.0]])
    result = semidual_stochastic(
        y,
        reg=0.5,
        sampler=lambda rng, size: array_api_strict.asarray(rng.random((size, 1))),
        max_iter=100,
        rng=0,
        tol=1,
    )
    assert array_api_strict.__name__ in type(result.g).__module__


@pytest.mark.parametrize("method", ["asgd", "sag"])
def test_float32_stays_float32(method):
    C, a, b = problem()
    narrow = PointCloud(C.x.astype(np.float32), C.y.astype(np.float32))
    weights = a.astype(np.float32), b.astype(np.float32)
    options = {"reg": 0.1, "method": method, "max_iter": 20_000, "rng": 0, "tol": 0, "on_fail": "ignore"}
    result = semidual_stochastic(narrow, *weights, **options)
    wide = semidual_stochastic(C, a, b, **options)
    assert result.f.dtype == result.g.dtype == np.float32
    np.testing.assert_allclose(result.g, wide.g, atol=2e-3 if method == "asgd" else 1e-5)


# ---- randomness


def test_same_seed_same_bits_other_seed_other_bits():
    C, a, b = problem()

    def sampler(rng, size):
        return rng.random((size, 2))

    for args, options in (
        ((C, a, b), {"method": "asgd"}),
        ((C, a, b), {"method": "sag"}),
        ((C.y, None, b), {"sampler": sampler}),
    ):
        run = functools.partial(
            semidual_stochastic, *args, reg=0.1, max_iter=400, tol=0, on_fail="ignore", **options
        )
        first = run(rng=7)
        assert np.array_equal(first.g, run(rng=7).g)
        assert np.array_equal(first.g, run(rng=np.random.default_rng(7)).g)
        assert not np.array_equal(first.g, run(rng=8).g)
        assert not np.array_equal(run().g, run().g)


# ---- continuous sources


def gaussian_value(m1, s1, m2, s2, reg):
    root = math.sqrt(4 * s1**2 * s2**2 + reg**2 / 4)
    return (
        (m1 - m2) ** 2
        + s1**2
        + s2**2
        - root
        + reg / 2 * (1 - math.log(reg))
        + reg / 2 * math.log(root + reg / 2)
    )


def gaussian_weights(x, mean, std):
    w = np.exp(-0.5 * ((x - mean) / std) ** 2)
    return w / w.sum()


def test_normal_source_approaches_the_closed_form():
    y = np.linspace(1.5 - 4 * 0.6, 1.5 + 4 * 0.6, 41)
    b = gaussian_weights(y, 1.5, 0.6)
    result = semidual_stochastic(
        y, None, b, reg=0.5, sampler=lambda rng, size: rng.normal(size=size), max_iter=200_000, rng=0
    )
    assert result.converged
    x = np.linspace(-9, 9, 801)
    exact = gaussian_value(0, 1, 1.5, 0.6, 0.5)
    assert exact == pytest.approx(2.9048158642, abs=1e-9)
    quadrature = semidual_value_and_grad(result.g, PointCloud(x, y), gaussian_weights(x, 0, 1), b, reg=0.5)
    assert exact - 2e-3 < quadrature[0] < exact + 1e-4  # of a 41-point target
    assert np.abs(quadrature[1]).sum() < 2e-2
    spread = result.f.std() / math.sqrt(len(result.f))
    assert abs(result.value - exact) < 5 * spread + 2e-3  # a Monte Carlo estimate
    # the entropic map between normal distributions is affine
    slope = (math.sqrt(4 * 0.6**2 + 0.25 / 4) - 0.25) / 2
    new = np.linspace(-1.5, 1.5, 7)
    np.testing.assert_allclose(result.map(new[:, None])[:, 0], 1.5 + slope * new, atol=0.03)


def test_sampler_over_a_finite_set_matches_the_finite_problem():
    C, _, b = problem(200, 20)
    exact = sinkhorn(C, None, b, reg=0.1, tol=1e-11)
    result = semidual_stochastic(
        C.y,
        None,
        b,
        reg=0.1,
        sampler=lambda rng, size: C.x[rng.integers(0, 200, size)],
        max_iter=100_000,
        rng=0,
    )
    np.testing.assert_allclose(centred(result.g, b), centred(exact.g, b), atol=0.02)
    value, grad = semidual_value_and_grad(result.g, C, None, b, reg=0.1)
    assert exact.value - 1e-4 < value <= exact.value + 1e-12
    assert np.abs(grad).sum() < 2e-2


def test_sampler_with_targets_of_no_weight():
    C, _, b = problem(200, 10)
    b = np.where(np.arange(10) == 4, 0, b)

    def sampler(rng, size):
        return C.x[rng.integers(0, 200, size)]

    options = {"reg": 0.2, "sampler": sampler, "max_iter": 1000, "tol": 1, "rng": 0}
    result = semidual_stochastic(C.y, None, b, **options)
    expected = semidual_stochastic(C.y[b > 0], None, b[b > 0], **options)
    np.testing.assert_allclose(result.g[b > 0], expected.g, atol=1e-12)
    assert np.isfinite(result.g[4])
    assert result.value == pytest.approx(expected.value, rel=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", 1.5])
def test_sampler_uses_the_metric(metric):
    C, _, b = problem(200, 10)
    C = PointCloud(C.x, C.y, metric)
    result = semidual_stochastic(
        C.y,
        None,
        2 * b,  # any mass
        reg=0.2,
        metric=metric,
        sampler=lambda rng, size: C.x[rng.integers(0, 200, size)],
        batch_size=16,
        max_iter=10_000,
        rng=0,
    )
    assert np.abs(semidual_value_and_grad(result.g, C, None, b, reg=0.2)[1]).sum() < 1e-2
    assert result.converged


# ---- control


def test_callback_sees_the_state_and_may_stop():
    C, a, b = problem()
    seen = []

    def callback(state):
        f, g = state.potentials()
        assert f.shape == (60,)
        assert state.marginal_error == pytest.approx(
            np.abs(semidual_value_and_grad(g, C, a, b, reg=0.1)[1]).sum(), rel=1e-8
        )
        seen.append(state.n_iter)
        if len(seen) == 3:
            raise StopIteration

    result = semidual_stochastic(C, a, b, reg=0.1, check_every=100, tol=0, callback=callback, rng=0)
    assert seen == [100, 200, 300]
    assert result.status == "stopped"
    assert result.n_iter == 300
    assert [entry.n_iter for entry in result.history] == seen
    assert result.history[-1].marginal_error == pytest.approx(result.marginal_error, rel=1e-6)


def test_checks_do_not_change_the_path():
    C, a, b = problem()
    options = {"reg": 0.1, "max_iter": 1000, "tol": 0, "rng": 0, "on_fail": "ignore"}
    for method in ("asgd", "sag"):
        first, second = (
            semidual_stochastic(C, a, b, method=method, check_every=k, **options) for k in (37, 1000)
        )
        assert np.array_equal(first.g, second.g)


def test_failure_is_reported_as_asked():
    C, a, b = problem()
    options = {"reg": 0.1, "max_iter": 2000, "tol": 1e-9, "rng": 0}
    with pytest.warns(
        ConvergenceWarning, match=r"marginal error .* after 2000 iterations .*tol=1e-09"
    ) as caught:
        result = semidual_stochastic(C, a, b, **options)
    assert caught[0].filename == __file__
    assert not result.converged
    assert result.status == "max_iter"
    assert "increase max_iter" in result.message
    with pytest.raises(ConvergenceError, match="not converged"):
        semidual_stochastic(C, a, b, on_fail="raise", **options)
    semidual_stochastic(C, a, b, on_fail="ignore", **options)


def test_tolerance_below_the_sampling_error_is_reported():
    result = semidual_stochastic(
        [[0.0], [1.0]], reg=0.5, sampler=lambda rng, size: rng.random((size, 1)), tol=1e-9, rng=0
    )
    assert result.status == "floor"
    assert result.converged
    assert "below the sampling error" in result.message
    assert result.problem.cost.shape == (10_000, 2)


def test_progress_bar(capsys):
    C, a, b = problem()
    semidual_stochastic(C, a, b, reg=0.1, max_iter=100, tol=2, rng=0, progress=True)
    assert "semidual_stochastic" in capsys.readouterr().err


def test_constant_cost_has_the_zero_potential():
    result = semidual_stochastic(np.ones((3, 2)), reg=0.1, rng=0, method="sag")
    np.testing.assert_allclose(result.plan, 1 / 6, atol=1e-3)
    result = semidual_stochastic(np.ones((3, 1)), reg=0.1, rng=0)
    assert result.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"reg": 0}, ValueError, "reg must be > 0"),
        ({"reg": -1.0}, ValueError, "reg must be > 0"),
        ({"regularizer": "l2"}, ValueError, "regularizer must be one of"),
        ({"method": "sgd"}, ValueError, "method must be one of 'asgd', 'sag'"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer"),
        ({"lr": 0}, ValueError, "lr must be > 0"),
        ({"lr": np.inf}, ValueError, "lr must be"),
        ({"tol": -1}, ValueError, "tol must be >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"check_every": 0}, ValueError, "check_every must be >= 1"),
        ({"rng": -1}, ValueError, "rng must be >= 0"),
        ({"rng": np.random.RandomState(0)}, TypeError, "rng must be None"),
        ({"on_fail": "shout"}, ValueError, "on_fail must be one of"),
        ({"metric": "euclidean"}, ValueError, "metric goes with sampler"),
        ({"init": np.zeros(3)}, ValueError, r"g must have shape \(40,\)"),
        ({"init": np.full(40, np.nan)}, ValueError, "g has NaN"),
        ({"a": np.ones(3)}, ValueError, r"a must have shape \(60,\)"),
        ({"a": np.full(60, np.nan)}, ValueError, "a has NaN"),
        ({"b": -np.ones(40)}, ValueError, "b must not be negative"),
        ({"b": np.ones(40)}, ValueError, "b to 40"),
        ({"C": np.full((60, 40), np.nan)}, ValueError, "C has NaN"),
    ],
)
def test_bad_input_is_named(options, error, match):
    C, a, b = problem()
    with pytest.raises(error, match=match):
        semidual_stochastic(**{"C": C, "a": a, "b": b, "reg": 0.1, **options})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"sampler": 3}, TypeError, "sampler must be callable"),
        ({"a": [0.5, 0.5]}, ValueError, "a must be None with sampler"),
        ({"method": "sag"}, ValueError, "'sag' needs a finite source"),
        ({"C": PointCloud([[0.0]])}, TypeError, "target points"),
        ({"C": [[np.inf], [0.0]]}, ValueError, "C has inf"),
        ({"metric": "best"}, ValueError, "metric must be one of"),
        ({"b": [1.0]}, ValueError, r"b must have shape \(2,\)"),
        ({"sampler": lambda rng, size: np.zeros((2, 1))}, ValueError, "must return 10000 points"),
        ({"sampler": lambda rng, size: np.full((size, 1), np.nan)}, ValueError, "sampler.* has NaN"),
        ({"sampler": lambda rng, size: np.zeros((size, 3))}, ValueError, "same dimension"),
    ],
)
def test_bad_samplers_are_named(options, error, match):
    given = {"C": [[0.0], [1.0]], "reg": 0.1, "sampler": lambda rng, size: rng.random((size, 1)), **options}
    with pytest.raises(error, match=match):
        semidual_stochastic(**given)
