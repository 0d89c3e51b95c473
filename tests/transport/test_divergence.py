import warnings

import numpy as np
import pytest
from hypothesis import given, strategies as st

from ot_numba.arrays import ConvergenceError, ConvergenceWarning, to_numpy
from ot_numba.costs import CostMatrix, Grid, PointCloud
from ot_numba.transport import sinkhorn
from ot_numba.transport.divergence import (
    DivergenceResult,
    sinkhorn_divergence,
    sinkhorn_divergence_cost,
    sinkhorn_symmetric,
)
from ot_numba.transport.problem import make_problem

METRICS = ["sqeuclidean", "euclidean", 1.5, "cityblock", "cosine"]
REG = 0.2


def exact(x, y, a=None, b=None, reg=REG, **options):
    """Solution to the last digits."""
    return sinkhorn_divergence(x, y, a, b, reg=reg, tol=1e-15, method="log", on_fail="ignore", **options)


def random_measures(seed=0, n=6, m=5, d=2):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, d)), rng.random((m, d)) + 0.3
    return x, y, rng.dirichlet(np.full(n, 3.0)), rng.dirichlet(np.full(m, 3.0))


def derivative(function, v, h=2e-4):
    """Central differences of fourth order by every entry of v."""
    v = np.asarray(v, float)
    out = np.zeros_like(v)
    for index in np.ndindex(v.shape):
        e = np.zeros_like(v)
        e[index] = h
        out[index] = (8 * (function(v + e) - function(v - e)) - function(v + 2 * e) + function(v - 2 * e)) / (12 * h)
    return out


def gaussian(mean, sigma):
    """A normal law on 401 points over 9 standard deviations to each side."""
    t = np.linspace(-9, 9, 401)
    w = np.exp(-(t**2) / 2)
    return mean + sigma * t, w / w.sum()


# ---- values


def gaussian_transport(m1, s1, m2, s2, reg):
    """Closed form of the KL-regularised cost between normal laws."""
    D = np.sqrt(4 * s1**2 * s2**2 + reg**2 / 4)
    return (m1 - m2) ** 2 + s1**2 + s2**2 - D + reg / 2 * (1 - np.log(reg)) + reg / 2 * np.log(D + reg / 2)


def test_gaussians():
    """R3 of the specification."""
    (x, a), (y, b) = gaussian(0, 1), gaussian(1.5, 0.6)
    S = sinkhorn_divergence(x, y, a, b, reg=0.5, tol=1e-11)
    assert S.converged
    assert S.value == pytest.approx(2.4066554611, abs=1e-10)
    assert S.xy.value == pytest.approx(2.9048158642, abs=1e-10)
    assert S.xx.value == pytest.approx(0.6121783399, abs=1e-10)
    assert S.yy.value == pytest.approx(0.3841424661, abs=1e-10)


@pytest.mark.parametrize("reg", [0.1, 2.0, 20.0])
def test_gaussians_at_any_reg(reg):
    (x, a), (y, b) = gaussian(0, 1), gaussian(1.5, 0.6)
    S = sinkhorn_divergence(x, y, a, b, reg=reg, tol=1e-11)
    want = gaussian_transport(0, 1, 1.5, 0.6, reg)
    want -= (gaussian_transport(0, 1, 0, 1, reg) + gaussian_transport(0, 0.6, 0, 0.6, reg)) / 2
    assert S.value == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("unbalanced", [None, 0.7])
@pytest.mark.parametrize("metric", METRICS)
def test_definition(xp, metric, unbalanced):
    """From three ordinary problems."""
    x, y, a, b = random_measures()
    if unbalanced:
        b = 1.7 * b

    def cost(x, y, a, b):
        options = {"reg": REG, "tol": 1e-14, "unbalanced": unbalanced, "method": "log", "on_fail": "ignore"}
        return sinkhorn(PointCloud(x, y, metric), a, b, **options).value

    want = cost(x, y, a, b) - cost(x, x, a, a) / 2 - cost(y, y, b, b) / 2 + REG / 2 * (a.sum() - b.sum()) ** 2
    arrays = [xp.asarray(v) for v in (x, y, a, b)]
    S = sinkhorn_divergence(*arrays, reg=REG, metric=metric, unbalanced=unbalanced, tol=1e-12)
    assert S.value == pytest.approx(want, abs=1e-11)
    for result in (S.xy, S.xx, S.yy):
        assert result.value == pytest.approx(result.dual_value, abs=1e-11)
    assert np.array_equal(to_numpy(S.xx.f), to_numpy(S.xx.g))


def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    x, y, a, b = random_measures(1, 20, 15)
    S = exact(x, y, a, b)
    costs = []
    for u, v, p, q in ((x, y, a, b), (x, x, a, a), (y, y, b, b)):
        P = ot.sinkhorn(p, q, ot.dist(u, v), REG, method="sinkhorn_log", numItermax=100_000, stopThr=1e-14)
        costs.append((P * ot.dist(u, v)).sum() + REG * (P * np.log(P / (p[:, None] * q))).sum())
    assert S.value == pytest.approx(costs[0] - costs[1] / 2 - costs[2] / 2, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reg", [1e-4, 1e-2, 1.0, 100.0])
def test_no_distance_to_itself(metric, reg):
    x, _, a, _ = random_measures(2, 30)
    order = np.random.default_rng(0).permutation(30)
    S = sinkhorn_divergence(x, x[order], a, a[order], reg=reg, metric=metric, tol=1e-11)
    assert abs(S.value) <= 1e-13 * max(1.0, reg)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    metric=st.sampled_from(["sqeuclidean", "euclidean", "cityblock", 1.3]),
    reg=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    unbalanced=st.sampled_from([None, 0.5]),
)
def test_positive_symmetric_and_invariant(seed, n, m, metric, reg, unbalanced):
    x, y, a, b = random_measures(seed, n, m)
    if unbalanced:
        b = 0.6 * b
    options = {"reg": reg, "metric": metric, "unbalanced": unbalanced, "method": "log", "tol": 1e-9}
    S = sinkhorn_divergence(x, y, a, b, **options).value
    assert S > 0
    assert sinkhorn_divergence(y, x, b, a, **options).value == pytest.approx(S, abs=1e-12, rel=1e-9)
    rows, columns = (np.random.default_rng(seed).permutation(k) for k in (n, m))
    moved = sinkhorn_divergence(x[rows] + 7, y[columns] + 7, a[rows], b[columns], **options).value
    assert moved == pytest.approx(S, abs=1e-12, rel=1e-9)


def test_splitting_a_point_changes_nothing():
    x, y, a, b = random_measures()
    twice = np.concatenate([x, x[:1]])
    halves = np.concatenate([a, a[:1] / 2])
    halves[0] /= 2
    assert exact(twice, y, halves, b).value == pytest.approx(exact(x, y, a, b).value, abs=1e-13)


def test_limits():
    x, y, a, b = random_measures()
    C = PointCloud(x, y).to_dense()
    far = exact(x, y, a, b, reg=1e5).value
    energy = a @ C @ b - a @ PointCloud(x).to_dense() @ a / 2 - b @ PointCloud(y).to_dense() @ b / 2
    assert far == pytest.approx(energy, rel=1e-4)
    near = sinkhorn_divergence(x, y, a, b, reg=1e-3, tol=1e-6).value
    assert near == pytest.approx(sinkhorn(C, a, b, reg=1e-3, tol=1e-6).round().linear_cost, abs=5e-3)


def test_error_of_the_value_is_of_second_order():
    x, y, a, b = random_measures(3, 40, 30)
    want = exact(x, y, a, b).value
    rough = sinkhorn_divergence(x, y, a, b, reg=REG, tol=1e-4, method="log")
    assert rough.marginal_error > 1e-7
    assert abs(rough.value - want) <= rough.marginal_error**2 * 10


def test_points_without_weight(xp):
    x, y, a, b = random_measures()
    a[1], b[0] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    S = sinkhorn_divergence(*(xp.asarray(v) for v in (x, y, a, b)), reg=REG, tol=1e-13)
    kept = sinkhorn_divergence(x[a > 0], y[b > 0], a[a > 0], b[b > 0], reg=REG, tol=1e-13)
    assert S.value == pytest.approx(kept.value, abs=1e-13)
    g = S.gradients()
    assert np.abs(to_numpy(g["x"])[1]).max() <= 1e-300
    assert np.all(np.isfinite(to_numpy(g["a"])))


def test_one_dimension_and_one_point():
    assert sinkhorn_divergence([0.0], [3.0], reg=1.0).value == pytest.approx(9, abs=1e-12)
    assert sinkhorn_divergence([1, 2], [4, 5], reg=0.01).value == pytest.approx(9, abs=1e-10)


@pytest.mark.parametrize("metric", METRICS)
def test_float32(xp, metric):
    x, y, *_ = (v.astype(np.float32) for v in random_measures(4, 40, 30))
    want = sinkhorn_divergence(*(v.astype(float) for v in (x, y)), reg=REG, metric=metric, tol=1e-9)
    S = sinkhorn_divergence(xp.asarray(x), xp.asarray(y), reg=REG, metric=metric, tol=1e-5)
    assert S.converged
    assert S.value == pytest.approx(want.value, abs=1e-5)
    g = S.gradients()
    for name, reference in want.gradients().items():
        assert g[name].dtype == xp.float32
        assert np.allclose(to_numpy(g[name]), reference, rtol=0, atol=1e-4)


# ---- gradients


@pytest.mark.parametrize("unbalanced", [None, 0.7])
@pytest.mark.parametrize("metric", [*METRICS, 3.0])
def test_gradients(xp, metric, unbalanced):
    x, y, a, b = random_measures()
    if unbalanced:
        a, b = 0.8 * a, 1.7 * b
    options = {"metric": metric, "unbalanced": unbalanced}

    def value(x=x, y=y, a=a, b=b):
        return exact(x, y, a, b, **options).value

    S = exact(*(xp.asarray(v) for v in (x, y, a, b)), **options)
    g = {name: to_numpy(v) for name, v in S.gradients().items()}
    assert np.allclose(g["x"], derivative(lambda v: value(x=v), x), rtol=0, atol=1e-8)
    assert np.allclose(g["y"], derivative(lambda v: value(y=v), y), rtol=0, atol=1e-8)
    if unbalanced:
        assert np.allclose(g["a"], derivative(lambda v: value(a=v), a), rtol=0, atol=1e-8)
        assert np.allclose(g["b"], derivative(lambda v: value(b=v), b), rtol=0, atol=1e-8)
    else:
        assert np.allclose(g["a"], to_numpy(S.xy.f) - to_numpy(S.xx.f), rtol=0, atol=1e-15)
        da = a * np.random.default_rng(0).standard_normal(6)
        db = b * da.sum()
        slope = derivative(lambda t: value(a=a + t * da, b=b + t * db), 0.0)
        assert np.isclose(da @ g["a"] + db @ g["b"], slope, rtol=0, atol=1e-8)


def test_equal_measures_are_stationary():
    x, _, a, _ = random_measures(5, 20)
    g = exact(x, x.copy(), a, a).gradients()
    for gradient in g.values():
        assert np.abs(gradient).max() <= 1e-12


def test_gradient_flow_reaches_the_target_with_warm_starts():
    x, y, _, _ = random_measures(6, 20, 20)
    S, first, iterations = None, None, []
    for _ in range(60):
        S = sinkhorn_divergence(x, y, reg=0.05, init=S, tol=1e-6)
        first = S.value if first is None else first
        iterations.append(S.n_iter)
        x = x - 20 * 0.5 * S.gradients("x")["x"]
    assert S.value < 1e-3 * first
    assert np.mean(iterations[-5:]) < iterations[0]


def test_gradients_refuse():
    x, y, *_ = random_measures()
    with pytest.raises(ValueError, match="wrt must be one of 'a', 'b', 'x', 'y', got 'C'"):
        exact(x, y).gradients("C")
    C = Grid((2, 2))
    with pytest.raises(ValueError, match="needs the cost of a PointCloud"):
        sinkhorn_divergence_cost(C, C, C, reg=1.0).gradients("x")


# ---- the symmetric problem


@pytest.mark.parametrize("metric", [*METRICS, 4.0])
@pytest.mark.parametrize("reg", [1e-6, 1e-3, 0.1, 10.0])
def test_symmetric_iterations_do_not_depend_on_reg(metric, reg):
    x, _, a, _ = random_measures(7, 200)
    result = sinkhorn_symmetric(make_problem(PointCloud(x, metric=metric), a, a, reg=reg), tol=1e-9, max_iter=1000)
    assert result.converged
    assert result.n_iter <= 20


def test_symmetric_potentials_are_those_of_the_ordinary_problem():
    x, _, a, _ = random_measures(8, 50)
    for unbalanced in (None, 0.3):
        problem = make_problem(PointCloud(x), a, a, reg=REG, unbalanced=unbalanced)
        result = sinkhorn_symmetric(problem, tol=1e-13, max_iter=1000)
        want = sinkhorn(PointCloud(x), a, a, reg=REG, unbalanced=unbalanced, tol=1e-13, method="log")
        assert np.allclose(result.f, want.f, rtol=0, atol=1e-12)
        assert result.value == pytest.approx(want.value, abs=1e-13)


@pytest.mark.parametrize("unbalanced", [None, 1.0])
def test_costs_that_are_not_symmetric_are_refused(unbalanced):
    C = np.array([[0.0, 1.0], [3.0, 0.0]])
    with pytest.raises(ValueError, match="C_yy must be symmetric"):
        sinkhorn_divergence_cost(C, C + C.T, C, reg=1.0, unbalanced=unbalanced)


# ---- costs


def test_costs_and_points_agree():
    x, y, a, b = random_measures()
    want = exact(x, y, a, b)
    C = [CostMatrix(PointCloud(u, v).to_dense()) for u, v in ((x, y), (x, x), (y, y))]
    S = sinkhorn_divergence_cost(*C, a, b, reg=REG, tol=1e-13)
    assert S.value == pytest.approx(want.value, abs=1e-12)
    arrays = sinkhorn_divergence_cost(*(c.to_dense() for c in C), a, b, reg=REG, tol=1e-13)
    assert arrays.value == S.value


@pytest.mark.parametrize("zeros", [0, 4])
def test_images_on_a_grid(zeros):
    rng = np.random.default_rng(0)
    C = Grid((4, 5))
    a, b = rng.random((2, 20))
    a[:zeros] = 0
    a, b = a / a.sum(), b / b.sum()
    S = sinkhorn_divergence_cost(C, C, C, a, b, reg=0.05, tol=1e-12)
    D = C.to_dense()
    assert S.value == pytest.approx(sinkhorn_divergence_cost(D, D, D, a, b, reg=0.05, tol=1e-12).value, abs=1e-12)
    assert S.gradients("a")["a"].shape == (20,)


# ---- use


def test_repeatable_and_nothing_modified():
    x, y, a, b = random_measures(9, 300, 200)
    before = [v.copy() for v in (x, y, a, b)]
    first, second = (sinkhorn_divergence(x, y, a, b, reg=REG) for _ in range(2))
    assert first.value == second.value
    assert np.array_equal(first.gradients("x")["x"], second.gradients("x")["x"])
    for old, new in zip(before, (x, y, a, b), strict=True):
        assert np.array_equal(old, new)


def test_warm_start():
    x, y, a, b = random_measures(10, 60, 50)
    a[0] = 0
    a /= a.sum()
    cold = sinkhorn_divergence(x, y, a, b, reg=0.05, tol=1e-10)
    warm = sinkhorn_divergence(x, y, a, b, reg=0.05, tol=1e-9, init=cold)
    assert warm.n_iter <= 10 < cold.n_iter
    assert warm.value == pytest.approx(cold.value, abs=1e-12)


def test_repr_is_short():
    x, y, *_ = random_measures()
    assert "DivergenceResult(6 x 5, value=" in repr(exact(x, y))


def test_failure_is_reported():
    x, y, *_ = random_measures(0, 40, 30)
    with pytest.warns(ConvergenceWarning, match=r"OT\(xy\): not converged: marginal error .*; OT\(xx\): not") as caught:
        S = sinkhorn_divergence(x, y, reg=0.01, max_iter=1)
    assert caught[0].filename == __file__
    assert not S.converged
    with pytest.raises(ConvergenceError, match="not converged"):
        sinkhorn_divergence(x, y, reg=0.01, max_iter=1, on_fail="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(sinkhorn_divergence(x, y, reg=0.01, max_iter=1, on_fail="ignore"), DivergenceResult)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[np.nan, 0.0]]}, ValueError, "x has NaN"),
        ({"y": [[1.0, 2.0, 3.0]]}, ValueError, "same dimension"),
        ({"a": [0.5]}, ValueError, r"a must have shape \(6,\), got \(1,\)"),
        ({"a": [1.0] * 6}, ValueError, "a sums to 6.0 but b to 1.0"),
        ({"b": [-1.0, 2.0, 0, 0, 0]}, ValueError, r"b must not be negative, got b\[0\] = -1.0"),
        ({"reg": 0}, ValueError, "reg must be > 0"),
        ({"reg": "0.1"}, TypeError, "reg must be a real number"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of"),
        ({"unbalanced": -1.0}, ValueError, "unbalanced must be > 0, got -1"),
        ({"unbalanced": (1.0, 2.0)}, ValueError, r"unbalanced must be one number for both marginals, got \(1.0, 2.0\)"),
        ({"method": "fast"}, ValueError, "method must be one of"),
        ({"tol": -1.0}, ValueError, "tol must be >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"on_fail": "stop"}, ValueError, "on_fail must be one of"),
        ({"init": (1.0, 2.0)}, TypeError, "init must be a DivergenceResult, got tuple"),
    ],
)
def test_refuses(change, error, message):
    x, y, *_ = random_measures()
    with pytest.raises(error, match=message):
        sinkhorn_divergence(**{"x": x, "y": y, "a": None, "b": None, "reg": REG, **change})


def test_refuses_an_init_of_another_size():
    x, y, *_ = random_measures()
    init = exact(x, y)
    with pytest.raises(ValueError, match=r"f must have shape \(7,\), got \(6,\)"):
        sinkhorn_divergence(np.ones((7, 2)), y, reg=1.0, init=init)


def test_costs_must_fit():
    C = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"C_yy must have shape \(3, 3\), got \(2, 2\)"):
        sinkhorn_divergence_cost(C, np.zeros((2, 2)), np.zeros((2, 2)), reg=1.0)
    with pytest.raises(TypeError, match="C_xx must have the dtype of C_xy"):
        sinkhorn_divergence_cost(C, np.zeros((2, 2), np.float32), np.zeros((3, 3)), reg=1.0)
