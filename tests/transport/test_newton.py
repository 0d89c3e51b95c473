"""`sinkhorn_newton`: the reference cases, hard problems to 1e-9 by every method, and what it says when it fails."""

import importlib
import math
import time
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog

import ot_numba
from ot_numba import (
    ConvergenceError,
    ConvergenceWarning,
    Grid,
    PointCloud,
    regularization_path,
    semidual_hessian_vector,
    semidual_value_and_grad,
    sinkhorn,
    sinkhorn_newton,
    sparse_hessian,
)
from ot_numba.arrays import to_numpy

INF = np.inf
METHODS = ("auto", "sns", "semidual", "pcg", "sparse")
PATHS = ("auto", "semidual", "pcg", "sparse")


def family(name, n, seed=100):
    """Cost (largest entry 1) and weights: what solvers of this kind are usually tested on."""
    rng = np.random.default_rng([seed, n])
    if name == "uniform":
        C, a, b = rng.random((n, n)), np.ones(n), np.ones(n)
    elif name == "points":
        x, y = rng.random((n, 2)), 0.3 + 0.7 * rng.random((n, 2))
        C, (a, b) = ((x[:, None] - y) ** 2).sum(-1), rng.dirichlet(np.full(n, 2.0), 2)
    elif name == "line":
        t = np.linspace(0, 5, n)
        a = np.exp(-t)
        b = np.exp(-((t - 1) ** 2) / 0.08) + 1.6 * np.exp(-((t - 3) ** 2) / 0.5) + 1e-12
        C = (t[:, None] - t) ** 2
    else:
        side = math.isqrt(n)
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * 2), -1).reshape(-1, 2)
        a, b = (
            0.99 * image / image.sum() + 0.01 / len(grid)
            for image in (
                sum(np.exp(-((grid - rng.random(2)) ** 2).sum(1) / 0.02) for _ in range(3)) for _ in range(2)
            )
        )
        C = np.abs(grid[:, None] - grid).sum(-1)
    return C / C.max(), a / a.sum(), b / b.sum()


def residual(result, C, a, b):
    """The marginal error in extended precision, from the potentials."""
    exponent = (np.asarray(result.f, np.longdouble)[:, None] + result.g - C) / result.reg
    P = a[:, None] * b * np.exp(exponent)
    return float(np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum()) / a.sum()


# ---- reference cases


R1 = {
    "C": np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]),
    "a": np.array([0.2, 0.3, 0.5]),
    "b": np.array([0.4, 0.4, 0.2]),
    "reg": 0.25,
}


def test_r1_semidual():
    """Value, gradient and Hessian at v = 0; the spec minimises ``J(v) = sum a LSE(v - C / reg) - <b, v>``."""
    entropy = float((R1["a"] * np.log(R1["a"])).sum())
    value, gradient = semidual_value_and_grad(np.zeros(3), **R1, regularizer="entropy")
    assert value == pytest.approx(-0.25 * (0.0237284017 - entropy + 1), abs=1e-10)
    np.testing.assert_allclose(gradient, [0.1981967346, 0.0980148525, -0.2962115871], atol=1e-10)
    S = -0.25 * semidual_hessian_vector(np.zeros(3), np.eye(3), **R1, regularizer="entropy")
    np.testing.assert_allclose(
        [*S[0], S[1, 1], S[1, 2], S[2, 2]],
        [0.0089663537, -0.0086463983, -0.0003199554, 0.0225863427, -0.0139399444, 0.0142598998],
        atol=1e-10,
    )
    direction = np.linalg.pinv(S) @ gradient
    np.testing.assert_allclose(direction, [21.01779163, -0.36258257, -20.65520906], atol=1e-8)


@pytest.mark.parametrize("globalization", ["line_search", "gradient_regularization"])
@pytest.mark.parametrize("method", METHODS)
def test_r1_solution(method, globalization):
    if method == "sns" and globalization != "line_search":
        pytest.skip("not an option of this method")
    result = sinkhorn_newton(**R1, regularizer="entropy", method=method, globalization=globalization, tol=1e-12)
    v = result.g / 0.25
    np.testing.assert_allclose(v - v[2], [7.3080816199, 4.0002240405, 0], atol=1e-9)
    np.testing.assert_allclose(
        result.f / 0.25 + v[2], [-8.9181897839, -5.6102204769, -1.6097733936], atol=1e-9
    )
    P = [
        [0.1998659946, 0.0001339605, 4.49e-8],
        [0.1000446336, 0.1998883264, 6.704e-5],
        [0.1000893718, 0.1999777131, 0.199932915],
    ]
    np.testing.assert_allclose(result.plan, P, atol=5e-11)
    assert result.linear_cost == pytest.approx(0.5004021808, abs=1e-10)
    assert result.value == pytest.approx(0.0629328669 - 0.25, abs=1e-10)  # its form is sum P log P
    kl = sinkhorn_newton(**R1, method=method, globalization=globalization, tol=1e-12)
    assert kl.value == pytest.approx(0.5840761624, abs=1e-10)
    assert abs(kl.gap) < 1e-12
    scaled = kl.plan / np.sqrt(np.outer(R1["a"], R1["b"]))
    np.testing.assert_allclose(np.linalg.svd(scaled)[1], [1, 0.6318501935, 0.407727], atol=1e-7)


def test_r2_schur_complement():
    """The dual's Newton step from exact rows is, in g, that of the semi-dual."""
    C, a, b = family("points", 30)
    result = sinkhorn(C, a, b, reg=0.02, max_iter=3, reg_schedule=None, method="log", on_fail="ignore")
    g = result.g - 0.001 * np.sin(np.arange(30))
    f = -0.02 * np.log(np.exp((g - C) / 0.02) @ b)
    _, gradient = semidual_value_and_grad(g, C, a, b, reg=0.02)
    S = -semidual_hessian_vector(g, np.eye(30), C, a, b, reg=0.02)
    P = a[:, None] * b * np.exp((f[:, None] + g - C) / 0.02)
    H = np.block([[np.diag(P.sum(1)), P], [P.T, np.diag(P.sum(0))]]) / 0.02
    step = np.linalg.pinv(H) @ np.concatenate([np.zeros(30), gradient])
    schur = np.linalg.pinv(S) @ gradient
    np.testing.assert_allclose(step[30:] - step[30:].mean(), schur - schur.mean(), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_r3_random_assignment():
    """Sinkhorn-Newton-Sparse on the paper's random assignment: 29 iterations there, 20 of them Sinkhorn's."""
    C = np.random.default_rng(0).uniform(size=(500, 500))
    for per_row, most in ((None, 10), (6, 10), (10, 8)):
        density = per_row and per_row / 500
        result = sinkhorn_newton(C, reg=1 / 1200, method="sns", density=density, tol=1e-12)
        assert result.converged
        assert result.n_iter <= 20 + most
        assert "density" not in result.message
    sparse = sinkhorn_newton(C, reg=1 / 1200, method="sns", density=2 / 500, tol=1e-12)
    assert sparse.converged
    assert "density was raised from 0.004" in sparse.message


# ---- every method


@pytest.mark.parametrize("unbalanced", [None, 0.3, (0.5, None), (50.0, 2.0)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_sinkhorn(method, unbalanced):
    rng = np.random.default_rng(1)
    for n, m in ((12, 9), (9, 12)):
        C, a, b = rng.random((n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
        for regularizer in ("kl", "entropy"):
            options = {"reg": 0.02, "regularizer": regularizer, "unbalanced": unbalanced, "tol": 1e-11}
            ours = sinkhorn_newton(C, a, b, method=method, **options)
            other = sinkhorn(C, a, b, method="log", max_iter=100_000, **options)
            assert ours.converged
            np.testing.assert_allclose(ours.plan, other.plan, atol=1e-9)
            np.testing.assert_allclose(ours.f, other.f, atol=1e-8)
            assert abs(ours.gap) < 1e-9


@pytest.mark.parametrize("kind", ["plane", "space", "euclidean", "grid"])
def test_costs(kind):
    rng = np.random.default_rng(2)
    if kind == "grid":
        cost = Grid([np.linspace(0, 1, k) for k in (8, 7)])
    else:
        d, metric = {"plane": (2, "sqeuclidean"), "space": (12, "sqeuclidean"), "euclidean": (3, "euclidean")}[kind]
        cost = PointCloud(rng.random((60, d)), rng.random((50, d)), metric)
    n, m = cost.shape
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    dense = sinkhorn_newton(cost.to_dense(), a, b, reg=0.002)
    for method in METHODS:
        result = sinkhorn_newton(cost, a, b, reg=0.002, method=method, on_fail="ignore")
        if method == "sns" and not result.converged:
            continue
        assert result.converged, (method, result.message)
        np.testing.assert_allclose(result.plan, dense.plan, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_other_array_libraries(method):
    xp = array_api_strict
    C, a, b = family("points", 25)
    reference = sinkhorn_newton(C, a, b, reg=0.01)
    result = sinkhorn_newton(*(xp.asarray(v) for v in (C, a, b)), reg=0.01, method=method)
    assert result.f.__array_namespace__().__name__ == "array_api_strict"
    np.testing.assert_allclose(to_numpy(result.plan), reference.plan, atol=1e-8)


@pytest.mark.parametrize("reg", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("name", ["uniform", "points", "line", "images"])
def test_families(name, reg):
    C, a, b = family(name, 144)
    for method in ("auto", "semidual", "sparse"):
        result = sinkhorn_newton(C, a, b, reg=reg, method=method)
        assert result.converged, (method, result.message)
        assert residual(result, C, a, b) <= 1.5e-9
        assert abs(result.gap) < 1e-8
        assert result.n_iter < 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "globalization"),
    [*((method, "line_search") for method in PATHS), ("semidual", "gradient_regularization")],
)
@pytest.mark.parametrize("name", ["uniform", "points", "line", "images"])
def test_families_at_full_size(name, method, globalization):
    C, a, b = family(name, 484, seed=101)
    for reg in (1e-3, 1e-4, 1e-5):
        if method == "pcg" and name in ("uniform", "images") and reg < 1e-3:
            continue  # tens of thousands of products: what the other methods are for
        if globalization == "gradient_regularization" and name == "images" and reg < 1e-3:
            continue  # stalls where the optimal plan is far from unique, as the docstring says
        result = sinkhorn_newton(C, a, b, reg=reg, method=method, globalization=globalization)
        assert result.converged, (reg, result.message)
        assert residual(result, C, a, b) <= 1.5e-9


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("shape", [(15, 90), (90, 15), (1, 40), (40, 2)], ids=str)
def test_rectangular(shape, method):
    rng = np.random.default_rng(4)
    n, m = shape
    C, a, b = rng.random(shape), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    for reg in (1e-3, 1e-5):
        result = sinkhorn_newton(C, a, b, reg=reg, method=method)
        other = sinkhorn_newton(C.T, b, a, reg=reg, method=method)
        assert result.converged
        assert other.converged
        assert residual(result, C, a, b) <= 1.5e-9
        np.testing.assert_allclose(result.plan, other.plan.T, atol=1e-6)
        assert abs(result.gap) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 101])
def test_no_failure_over_random_problems(seed, monkeypatch):
    """Those of the benchmark: costs, points in 2 to 64 dimensions, weights and shapes of many kinds."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "asv_benchmarks"))
    mixed = importlib.import_module("benchmarks.newton").mixed
    for index in range(200):
        problem = mixed(index, seed)
        result = sinkhorn_newton(problem.C, problem.a, problem.b, reg=problem.reg, on_fail="ignore")
        assert result.converged, (index, result.message)
        assert residual(result, problem.C, problem.a, problem.b) <= 1.5e-9, index
        assert result.n_iter < 200, index


# ---- hard and degenerate problems


@pytest.mark.parametrize("method", METHODS)
def test_zero_weights(method):
    C, a, b = family("points", 40)
    a[[0, 7]] = 0
    b[[3, 39]] = 0
    a, b = a / a.sum(), b / b.sum()
    rows, columns = a > 0, b > 0
    result = sinkhorn_newton(C, a, b, reg=0.005, method=method)
    inner = sinkhorn_newton(C[np.ix_(rows, columns)], a[rows], b[columns], reg=0.005)
    assert result.converged
    np.testing.assert_allclose(result.plan[np.ix_(rows, columns)], inner.plan, atol=1e-9)
    assert (result.plan[~rows] == 0).all()
    assert (result.plan[:, ~columns] == 0).all()
    assert np.isfinite(result.f).all()


@pytest.mark.parametrize("method", METHODS)
def test_infinite_costs(method):
    C, _, _ = family("uniform", 30)
    C = np.where(np.abs(np.arange(30)[:, None] - np.arange(30)) > 8, INF, C)
    for reg in (0.01,) if method == "sns" else (0.01, 1e-4):
        result = sinkhorn_newton(C, reg=reg, method=method)
        assert result.converged
        assert (result.plan[np.isinf(C)] == 0).all()
        np.testing.assert_allclose(result.plan.sum(0), 1 / 30, atol=1e-9)


@pytest.mark.parametrize("reg", [1e-3, 1e-5])
@pytest.mark.parametrize("method", PATHS)
def test_degenerate_costs(method, reg):
    """Costs of four values and equal weights: many optimal plans, and ties everywhere."""
    C = np.random.default_rng(5).integers(0, 4, (40, 40)) / 3
    result = sinkhorn_newton(C, reg=reg, method=method)
    assert result.converged
    assert residual(result, C, np.full(40, 1 / 40), np.full(40, 1 / 40)) <= 1.5e-9
    assert result.linear_cost == pytest.approx(C[linear_sum_assignment(C)].mean(), abs=1e-8)
    limit = sinkhorn_newton(C, reg=0.02)  # of all optimal plans, that of largest entropy
    np.testing.assert_allclose(result.plan, limit.plan, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_disconnected_supports(method):
    """Blocks that may not exchange mass: each is a problem of its own."""
    C, a, b = family("points", 40)
    C[:15, 20:], C[15:, :20] = INF, INF
    b[:20] *= a[:15].sum() / b[:20].sum()
    b[20:] *= a[15:].sum() / b[20:].sum()
    result = sinkhorn_newton(C, a, b, reg=0.003, method=method)
    block = sinkhorn_newton(C[:15, :20], a[:15], b[:20], reg=0.003)
    assert result.converged
    np.testing.assert_allclose(result.plan[:15, :20], block.plan, atol=1e-8)


def test_disconnected_and_impossible():
    C = np.array([[0.0, 1.0, INF, INF], [1.0, 0.0, INF, INF], [INF, INF, 0.0, 1.0], [INF, INF, 1.0, 0.0]])
    result = sinkhorn_newton(C, [0.3, 0.3, 0.2, 0.2], [0.2, 0.2, 0.3, 0.3], reg=0.1, on_fail="ignore", max_iter=200)
    assert not result.converged
    assert np.isfinite(result.marginal_error)


@pytest.mark.parametrize("method", METHODS)
def test_duplicate_columns_and_rows(method):
    C, a, b = family("points", 20)
    C, a, b = np.tile(C, (2, 3)), np.tile(a, 2) / 2, np.tile(b, 3) / 3
    result = sinkhorn_newton(C, a, b, reg=0.002, method=method)
    assert result.converged
    np.testing.assert_allclose(result.plan[:20, :20], result.plan[20:, 40:], atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_small(shape, method):
    n, m = shape
    C = np.arange(float(n * m)).reshape(n, m)
    a, b = np.arange(1.0, n + 1), np.arange(1.0, m + 1)
    a, b = a / a.sum(), b / b.sum()
    result = sinkhorn_newton(C, a, b, reg=0.1, method=method)
    assert result.converged
    if 1 in shape:
        np.testing.assert_allclose(result.plan, np.outer(a, b), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_constant_cost(method):
    result = sinkhorn_newton(np.full((6, 4), 3.0), reg=1e-3, method=method)
    np.testing.assert_allclose(result.plan, 1 / 24, atol=1e-12)


@pytest.mark.parametrize(("name", "shape"), [("points", (24, 24)), ("images", (25, 25)), ("uniform", (18, 30))])
def test_limit_is_the_linear_program(name, shape):
    n, m = shape
    C, a, b = family(name, max(shape))
    C = C[:n]
    if n != m:
        a, b = np.random.default_rng(6).dirichlet(np.ones(n)), np.r_[np.zeros(3), np.full(m - 3, 1 / (m - 3))]
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    exact = linprog(C.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, b])).fun
    for reg in (1e-3, 1e-4, 1e-5, 1e-6):
        result = sinkhorn_newton(C, a, b, reg=reg)
        assert result.converged
        assert exact - 1e-8 <= result.linear_cost <= exact + reg * math.log(n * m)


def test_limit_is_the_assignment():
    C, _, _ = family("uniform", 100)
    best = C[linear_sum_assignment(C)].mean()
    assert sinkhorn_newton(C, reg=1e-5).linear_cost == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_float32(method):
    """float32 costs are solved to float32's floor; a tol below it is met only as far as that."""
    C, a, b = (v.astype(np.float32) for v in family("points", 64))
    result = sinkhorn_newton(C, a, b, reg=0.01, tol=1e-4, method=method)
    assert result.converged
    assert result.f.dtype == result.plan.dtype == np.float32
    exact = sinkhorn_newton(C.astype(float), a.astype(float), (b * (a.sum() / b.sum())).astype(float), reg=0.01)
    assert np.abs(result.plan - exact.plan).sum() < 1e-3
    floor = sinkhorn_newton(C, a, b, reg=0.01, method=method, on_fail="ignore")
    assert floor.marginal_error < 1e-5
    assert "below the rounding floor" in floor.message
    assert floor.n_iter < 200


def test_rounding_floor_of_float64():
    C, a, b = family("points", 64)
    result = sinkhorn_newton(C, a, b, reg=1e-3, tol=0, on_fail="ignore")
    assert result.marginal_error < 1e-12
    assert result.n_iter < 150
    assert "below the rounding floor" in result.message


@pytest.mark.parametrize("mass", [1e-6, 1.0, 1e6])
def test_scales(mass):
    """Units of mass and cost are the caller's."""
    C, a, b = family("points", 40)
    one = sinkhorn_newton(C, a, b, reg=1e-3, regularizer="entropy")
    other = sinkhorn_newton(1e4 * C, mass * a, mass * b, reg=10.0, regularizer="entropy")
    assert other.converged
    np.testing.assert_allclose(other.plan / mass, one.plan, atol=1e-8)


def test_cost_shift():
    C, a, b = family("images", 64)
    one, other = (sinkhorn_newton(D, a, b, reg=1e-3) for D in (C, C - 7 + np.arange(64.0)[:, None]))
    np.testing.assert_allclose(one.plan, other.plan, atol=1e-8)


def test_inputs_are_not_modified_and_order_does_not_matter():
    C, a, b = family("points", 30)
    before = C.copy(), a.copy(), b.copy()
    one = sinkhorn_newton(C, a, b, reg=0.01)
    for v, old in zip((C, a, b), before, strict=True):
        assert np.array_equal(v, old)
        v.flags.writeable = False
    assert np.array_equal(sinkhorn_newton(np.asfortranarray(C), a, b, reg=0.01).f, one.f)
    assert np.array_equal(sinkhorn_newton(C, a, b, reg=0.01).f, one.f)


# ---- starts, paths, histories


def test_warm_start():
    C, a, b = family("points", 100)
    cold = sinkhorn_newton(C, a, b, reg=1e-3)
    again = sinkhorn_newton(C, a, b, reg=1e-3, init=cold)
    near = sinkhorn_newton(C, a, b, reg=0.9e-3, init=(cold.f, cold.g))
    assert again.n_iter <= 1
    assert near.converged
    assert near.n_iter < cold.n_iter / 2
    for start in ((100 * np.sin(np.arange(100)), np.zeros(100)), (np.zeros(100), 50 * np.cos(np.arange(100.0)))):
        far = sinkhorn_newton(C, a, b, reg=1e-3, init=start)
        assert far.converged
        np.testing.assert_allclose(far.plan, cold.plan, atol=1e-8)


def test_regularization_path():
    C, a, b = family("images", 100)
    regs = [1e-4, 0.1, 1e-2, 1e-3, 1e-2]
    path = regularization_path(C, a, b, regs=regs, tol=1e-12)
    assert [result.reg for result in path] == regs
    assert all(result.converged for result in path)
    alone = [sinkhorn_newton(C, a, b, reg=reg, tol=1e-12).n_iter for reg in regs]
    assert sum(result.n_iter for result in path) < 0.8 * sum(alone)
    costs = [path[i].linear_cost for i in (0, 3, 2, 1)]  # the first two: the unregularised optimum, up to their errors
    assert (np.diff(costs) > -1e-12).all()
    assert costs[1] < costs[2] < costs[3]
    for result in path:
        np.testing.assert_allclose(result.plan, sinkhorn_newton(C, a, b, reg=result.reg).plan, atol=1e-7)
    zero = np.where(np.arange(100) < 5, 0, a)
    for regularizer in ("kl", "entropy"):
        zeros = regularization_path(C, zero / zero.sum(), b, regs=[0.1, 0.02], regularizer=regularizer)
        assert all(result.converged for result in zeros)


@pytest.mark.parametrize(
    ("regs", "error"), [("0.1", TypeError), (0.1, TypeError), ([], ValueError), ([0.1, -1], ValueError)]
)
def test_regularization_path_bad_regs(regs, error):
    with pytest.raises(error, match="regs"):
        regularization_path([[0.0, 1.0], [1.0, 0.0]], regs=regs)
    with pytest.raises(TypeError, match="regs"):
        regularization_path([[0.0, 1.0], [1.0, 0.0]], regs=[1.0], reg=0.1)


def test_history():
    C, a, b = family("uniform", 150)
    result = sinkhorn_newton(C, a, b, reg=1e-4)
    assert len(result.history) == result.n_iter
    assert [entry.n_iter for entry in result.history] == list(range(1, result.n_iter + 1))
    regs = [entry.reg for entry in result.history]
    assert regs == sorted(regs, reverse=True)
    assert result.history[-1].reg == 1e-4
    assert result.history[-1].marginal_error <= 1e-9
    assert {entry.method for entry in result.history} == {"sinkhorn", "cg", "direct"}
    passes = [entry.n_passes for entry in result.history]
    assert passes == sorted(passes)
    assert passes[-1] < 5 * result.n_iter
    for method in ("sns", "semidual"):
        last = sinkhorn_newton(C, a, b, reg=5e-3, method=method).history[-1].method
        assert last == {"sns": "sns", "semidual": "direct"}[method]


def test_callback_stops_and_sees_potentials():
    C, a, b = family("points", 50)
    seen = []

    def callback(state):
        seen.append((state.n_iter, state.reg, state.marginal_error))
        f, g = state.potentials()
        assert f.shape == g.shape == (50,)
        if len(seen) == 7:
            raise StopIteration

    result = sinkhorn_newton(C, a, b, reg=1e-3, callback=callback)
    assert result.status == "stopped"
    assert result.n_iter == len(seen) == 7
    assert not result.converged


def test_max_iter_is_a_bound():
    C, a, b = family("images", 100)
    for max_iter in (1, 2, 5, 20):
        with pytest.warns(ConvergenceWarning, match="max_iter"):
            result = sinkhorn_newton(C, a, b, reg=1e-4, max_iter=max_iter)
        assert result.n_iter <= max_iter
        assert result.status == "max_iter"
        assert np.isfinite(result.f).all()
    with pytest.raises(ConvergenceError, match="not converged"):
        sinkhorn_newton(C, a, b, reg=1e-4, max_iter=3, on_fail="raise")


def test_sns_never_diverges():
    """Where it starts far from the solution it may stall, but says so, and gets no worse."""
    C, a, b = family("images", 100)
    result = sinkhorn_newton(C, a, b, reg=1e-3, method="sns", n_sinkhorn=1, max_iter=40, on_fail="ignore")
    errors = [entry.marginal_error for entry in result.history]
    assert np.isfinite(errors).all()
    assert max(errors) == errors[0] <= 4  # each marginal is wrong by at most twice the mass
    assert "sparse Hessian was not good enough" in result.message


@pytest.mark.parametrize("reg", [1e-4, 1e-2, 1.0])
def test_solve_and_sinkhorn_take_the_same_path(reg):
    C, a, b = family("points", 50)
    expected = sinkhorn_newton(C, a, b, reg=reg)
    for solve in (ot_numba.solve, sinkhorn):
        result = solve(C, a, b, reg=reg, tol=1e-9)
        assert result.n_iter == expected.n_iter
        assert np.array_equal(result.f, expected.f)
        assert np.array_equal(result.g, expected.g)


@pytest.mark.slow
def test_auto_chooses_well():
    """Close to the fastest way to solve Newton's systems, whichever that is."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    ratios = []
    for kind in ("uniform", "points", "line", "images"):
        C, a, b = family(kind, 300)
        for reg in (1e-2, 1e-3, 1e-4):
            hopeless = ("pcg",) if kind in ("uniform", "images") and reg < 1e-3 else ()
            times = {}
            for method in {"auto", "semidual", "pcg", "sparse"}.difference(hopeless):
                runs = []
                for _ in range(3):
                    with threadpoolctl.threadpool_limits(1):
                        start = time.process_time()
                        sinkhorn_newton(C, a, b, reg=reg, method=method, on_fail="ignore")
                        runs.append(time.process_time() - start)
                times[method] = min(runs)
            ratios.append(times["auto"] / min(times.values()))
    assert max(ratios) <= 2.0, ratios
    assert np.exp(np.mean(np.log(ratios))) <= 1.25, ratios


# ---- the sparse Hessian


def test_sparse_hessian_is_the_hessian_where_nothing_is_dropped():
    C, a, b = family("points", 20)
    for unbalanced in (None, (0.3, 2.0)):
        result = sinkhorn_newton(C, a, 1.2 * b if unbalanced else b, reg=0.05, unbalanced=unbalanced)
        H = sparse_hessian(result, density=1)
        rng = np.random.default_rng(0)
        u, v = rng.normal(size=(2, 20))
        hu, hv = ot_numba.dual_hessian_vector(
            result.f, result.g, u, v, C, a, 1.2 * b if unbalanced else b, reg=0.05, unbalanced=unbalanced
        )
        np.testing.assert_allclose(-(H @ np.concatenate([u, v])), np.concatenate([hu, hv]), rtol=1e-9, atol=1e-12)
        assert H.dropped_mass <= 1e-15
        assert H.dropped_norm <= 1e-13


@pytest.mark.parametrize("rule", [{"density": 0.1}, {"density": 0.01}, {"mass_tol": 1e-3}, {}], ids=str)
def test_sparse_hessian_bound(rule):
    C, a, b = family("points", 50)
    result = sinkhorn_newton(C, a, b, reg=0.01)
    whole, H = sparse_hessian(result, density=1.0), sparse_hessian(result, **rule)
    error = np.linalg.norm((whole - H).toarray(), 2)
    assert error <= H.dropped_norm * (1 + 1e-9) + 1e-14
    assert H.dropped_norm <= 20 * error + 1e-12
    assert np.linalg.eigvalsh(H.toarray()).min() > -1e-12
    if "density" in rule:
        assert H.nnz == 100 + 2 * math.ceil(rule["density"] * 2500)
    else:
        assert 0 < H.dropped_mass <= rule.get("mass_tol", 1e-6)


def test_sparse_hessian_bad_input():
    result = sinkhorn_newton([[0.0, 1.0], [1.0, 0.0]], reg=0.1)
    with pytest.raises(ValueError, match="density and mass_tol"):
        sparse_hessian(result, density=0.1, mass_tol=0.1)
    for density in (0, -1, 1.5, np.nan):
        with pytest.raises(ValueError, match="density"):
            sparse_hessian(result, density=density)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "newton"}, ValueError, "method"),
        ({"globalization": "none"}, ValueError, "globalization"),
        ({"method": "sns", "globalization": "gradient_regularization"}, ValueError, "globalization"),
        ({"density": 0.1}, ValueError, "density"),
        ({"method": "sns", "density": 2.0}, ValueError, "density"),
        ({"n_sinkhorn": -1}, ValueError, "n_sinkhorn"),
        ({"tol": -1}, ValueError, "tol"),
        ({"max_iter": 0}, ValueError, "max_iter"),
        ({"reg": 0}, ValueError, "reg"),
        ({"reg": np.nan}, ValueError, "reg"),
        ({"reg_schedule": [0.1, 0.2]}, ValueError, "reg_schedule"),
        ({"callback": 3}, TypeError, "callback"),
        ({"on_fail": "no"}, ValueError, "on_fail"),
        ({"init": 3}, TypeError, "init"),
        ({"a": [1.0, -1.0]}, ValueError, "a"),
        ({"b": [0.5, 0.5, 0.5]}, ValueError, "b"),
    ],
)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        sinkhorn_newton([[0.0, 1.0], [1.0, 0.0]], **{"reg": 0.1, **options})


# ---- other solvers


@pytest.mark.parametrize("reg", [1e-2, 1e-3])
@pytest.mark.parametrize("name", ["uniform", "points", "line", "images"])
def test_agrees_with_regot(name, reg):
    regot = pytest.importorskip("regot")
    C, a, b = family(name, 100)
    for solver in (regot.sinkhorn_ssns, regot.sinkhorn_splr):
        other = np.asarray(solver(np.asfortranarray(C), a, b, reg, tol=1e-11, max_iter=300).plan)
        if ot_numba.marginal_error(other, a, b) < 1e-10:  # not where it does not converge itself
            np.testing.assert_allclose(sinkhorn_newton(C, a, b, reg=reg, tol=1e-11).plan, other, atol=1e-9)
