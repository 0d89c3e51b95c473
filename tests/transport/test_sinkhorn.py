"""Every option of `sinkhorn` with every other, problems that are hard, and what it says when it fails."""

import dataclasses
import functools
import itertools
import pickle
import warnings

import array_api_strict
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings, strategies as st
from scipy.special import logsumexp

import ot_numba
from ot_numba import ConvergenceError, ConvergenceWarning, Grid, PointCloud, sinkhorn, solve
from ot_numba.arrays import to_numpy

INF = np.inf


def random_problem(seed=0, n=12, m=9, concentration=2.0):
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.full(n, concentration)), rng.dirichlet(np.full(m, concentration))
    return rng.random((n, m)), a, b


def pair_of(unbalanced):
    """Strengths of both penalties, inf for a constraint."""
    pair = unbalanced if isinstance(unbalanced, tuple) else (unbalanced, unbalanced)
    return [INF if rho is None else rho for rho in pair]


def targets(f, g, a, b, unbalanced):
    """Marginals that the optimality conditions ask for."""
    return [
        w if rho == INF else w * np.exp(-u / rho) for u, w, rho in zip((f, g), (a, b), pair_of(unbalanced), strict=True)
    ]


def residual(P, f, g, a, b, unbalanced=None):
    """The marginal error of a dense plan, in extended precision."""
    P, (r, c) = np.asarray(P, np.longdouble), targets(f, g, a, b, unbalanced)
    return float(np.abs(P.sum(1) - r).sum() + np.abs(P.sum(0) - c).sum()) / max(a.sum(), b.sum())


def reference(C, a, b, reg, unbalanced=None, regularizer="kl"):
    """Potentials and plan by the textbook iteration in the log domain, the constant shift of the dual optimised."""
    log_a, log_b = np.log(a), np.log(b)
    row, column = (log_a, log_b) if regularizer == "kl" else (0 * log_a, 0 * log_b)
    rho = pair_of(unbalanced)
    first, second = (1.0 if r == INF else r / (r + reg) for r in rho)
    f, g = np.zeros_like(a), np.zeros_like(b)
    for _ in range(20_000):
        f = first * reg * (log_a - row - logsumexp(column + (g - C) / reg, axis=1))
        g = second * reg * (log_b - column - logsumexp(row[:, None] + (f[:, None] - C) / reg, axis=0))
        if min(rho) < INF:
            terms = [
                np.log(w.sum()) if r == INF else logsumexp(np.log(w) - u / r)
                for u, w, r in zip((f, g), (a, b), rho, strict=True)
            ]
            shift = (terms[0] - terms[1]) / (1 / rho[0] + 1 / rho[1])
            f, g = f + shift, g - shift
        P = np.exp(row[:, None] + column + (f[:, None] + g - C) / reg)
        if residual(P, f, g, a, b, unbalanced) < 1e-12:
            return f, g, P
    raise AssertionError("the reference did not converge")


# ---- every option with every other


def make_cost(kind, dtype, n=12, m=9):
    rng = np.random.default_rng(1)
    if kind == "dense":
        return rng.random((n, m)).astype(dtype)
    if kind == "grid":
        return Grid([np.linspace(0, 1, k, dtype=dtype) for k in (4, 3)], [np.linspace(0, 1, 3, dtype=dtype)] * 2)
    d, metric = {"plane": (2, "sqeuclidean"), "high-dimensional": (12, "sqeuclidean"), "euclidean": (3, "euclidean")}[
        kind
    ]
    scale = 0.4 if d == 12 else 1.0
    return PointCloud(*((scale * rng.random((k, d))).astype(dtype) for k in (n, m)), metric)


@functools.cache
def reference_case(kind, dtype, unbalanced, regularizer, reg=0.05):
    """Cost, weights and the solution in float64, of what is left of the data in this dtype."""
    cost = make_cost(kind, dtype)
    _, a, b = random_problem(2)
    a = a.astype(dtype)
    b = (b if unbalanced is None else 1.3 * b).astype(dtype)
    C = np.asarray(cost if kind == "dense" else cost.to_dense(), np.float64)
    A, B = a.astype(float), b.astype(float)
    B = B * A.sum() / B.sum() if unbalanced is None else B
    return cost, a, b, reference(C, A, B, reg, unbalanced, regularizer)


@pytest.mark.parametrize("unbalanced", [None, 0.3, (0.5, None), (None, 0.2), (50.0, 2.0)], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["dense", "plane", "high-dimensional", "euclidean", "grid"])
def test_every_option(kind, dtype, unbalanced):
    tol, close = (1e-9, 1e-7) if dtype == "float64" else (1e-4, 5e-3)
    for regularizer in ("kl", "entropy"):
        cost, a, b, (f, g, P) = reference_case(kind, dtype, unbalanced, regularizer)
        starts = [(None, None), ("auto", None), ([0.2, 0.1], None), (None, (1.05 * f + 0.01, 0.97 * g))]
        if regularizer == "kl":
            starts.append((None, (0 * f, 100 + 0 * g)))
        speeds = [("auto", 0), (1.0, 0), (1.5, 0), ("auto", 5)]
        for method, (relaxation, anderson), (schedule, init) in itertools.product(
            ("auto", "log", "kernel"), speeds, starts
        ):
            options = {"method": method, "relaxation": relaxation, "anderson": anderson, "reg_schedule": schedule}
            start = None if init is None else tuple(u.astype(dtype) for u in init)
            result = sinkhorn(
                cost,
                a,
                b,
                reg=0.05,
                regularizer=regularizer,
                unbalanced=unbalanced,
                init=start,
                tol=tol,
                on_fail="ignore",
                **options,
            )
            assert result.converged, (regularizer, options, init, result.message)
            assert np.abs(result.plan - P).sum() <= close * P.sum(), (regularizer, options, init)
            assert abs(result.gap) < 20 * tol, (regularizer, options, init, result.gap)
            assert result.f.dtype == result.plan.dtype == dtype


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize("kind", ["dense", "plane", "euclidean", "grid"])
def test_other_array_libraries(kind, method):
    xp = array_api_strict
    for unbalanced, anderson in ((None, 0), (0.3, 0), (None, 5)):
        cost, a, b, (_, _, P) = reference_case(kind, "float64", unbalanced, "kl")
        if kind == "dense":
            ours = xp.asarray(cost)
        elif kind == "grid":
            ours = Grid([xp.asarray(axis) for axis in cost.x], [xp.asarray(axis) for axis in cost.y])
        else:
            ours = PointCloud(xp.asarray(cost.x), xp.asarray(cost.y), cost.metric)
        result = sinkhorn(
            ours,
            xp.asarray(a),
            xp.asarray(b),
            reg=0.05,
            unbalanced=unbalanced,
            method=method,
            anderson=anderson,
            tol=1e-9,
        )
        assert result.f.__array_namespace__().__name__ == "array_api_strict"
        assert np.abs(to_numpy(result.plan) - P).sum() < 1e-7 * P.sum()


def test_solve_is_sinkhorn_by_default():
    C, a, b = random_problem()
    for options in ({}, {"regularizer": "entropy"}, {"unbalanced": 0.4}):
        one, other = solve(C, a, b, reg=0.02, **options), sinkhorn(C, a, b, reg=0.02, **options)
        assert np.array_equal(one.f, other.f)
        assert np.array_equal(one.g, other.g)
        assert one.message == other.message


def test_unbalanced_infinite_is_balanced():
    C, a, b = random_problem()
    balanced = sinkhorn(C, a, b, reg=0.1, tol=1e-10)
    for unbalanced in (INF, (INF, None), (None, None)):
        assert np.array_equal(sinkhorn(C, a, b, reg=0.1, tol=1e-10, unbalanced=unbalanced).f, balanced.f)


def test_unbalanced_shift_keeps_large_penalties_fast():
    C, a, b = random_problem(3, 100, 100)
    iterations = [
        sinkhorn(C, a, 1.1 * b, reg=0.05, unbalanced=rho, tol=1e-9, method="log", relaxation=1.0).n_iter
        for rho in (1, 10, 1e3, 1e6)
    ]
    assert max(iterations[1:]) < 2 * sinkhorn(C, a, b, reg=0.05, tol=1e-9, method="log", relaxation=1.0).n_iter


# ---- hard problems


def image_problem(side):
    """Two blurred images under the L1 distance: many plans are nearly as good."""
    rng = np.random.default_rng(0)
    p = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / (side - 1)
    weights = []
    for _ in range(2):
        w = sum(np.exp(-((p - rng.random(2)) ** 2).sum(1) / (2 * rng.uniform(0.05, 0.2) ** 2)) for _ in range(3))
        weights.append(0.99 * w / w.sum() + 0.01 / w.size)
    return np.abs(p[:, None] - p).sum(-1) / 2, *weights


def line_problem(n):
    """Gaussian weights down to 1e-12 on a line."""
    t = 5 * np.arange(n) / (n - 1)
    a, b = np.exp(-t), np.exp(-((t - 1) ** 2) / 0.08) + 1.6 * np.exp(-((t - 3) ** 2) / 0.5) + 1e-12
    return (t[:, None] - t) ** 2 / 25, a / a.sum(), b / b.sum()


HARD = {
    "uniform": lambda: (np.random.default_rng(1).random((100, 100)), None, None),
    "weights": lambda: random_problem(4, 120, 90),
    "image": lambda: image_problem(11),
    "line": lambda: line_problem(120),
}


@pytest.mark.parametrize("reg", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("family", HARD)
def test_tiny_reg_by_default(family, reg):
    C, a, b = HARD[family]()
    for options in ({}, {"regularizer": "entropy"}, {"reg_schedule": None}):
        if "reg_schedule" in options and reg < 1e-3:
            continue  # a poor start, which may take more than 10 000 iterations
        result = sinkhorn(C, a, b, reg=reg, **options)
        assert result.status == "converged"
        assert result.marginal_error <= 1e-6
        assert np.isfinite(result.plan).all()


@pytest.mark.parametrize("concentration", [1.0, 20.0, 1e6])
@pytest.mark.parametrize("shape", [(3, 3), (6, 6), (6, 8), (20, 20), (20, 33)])
def test_tiny_reg_on_small_and_nearly_degenerate_problems(shape, concentration):
    for seed in range(5):
        assert sinkhorn(*random_problem(seed, *shape, concentration), reg=1e-5).converged


@pytest.mark.parametrize("unbalanced", [0.3, (None, 0.5)], ids=str)
@pytest.mark.parametrize("family", ["weights", "image", "line"])
def test_tiny_reg_unbalanced(family, unbalanced):
    C, a, b = HARD[family]()
    for reg in (1e-3, 1e-4):
        result = sinkhorn(C, a, 1.2 * b, reg=reg, unbalanced=unbalanced)
        assert result.converged
        assert abs(result.gap) < 1e-6


@pytest.mark.parametrize("reg", [1e-3, 1e-5])
@pytest.mark.parametrize("family", HARD)
@pytest.mark.parametrize(
    "options",
    [
        {"method": "log"},
        {"method": "kernel"},
        {"method": "log", "relaxation": 1.0},
        {"method": "kernel", "relaxation": 1.97},
        {"method": "log", "anderson": 5},
        {"method": "kernel", "anderson": 8},
        {"method": "kernel", "reg_schedule": None},
        {"method": "log", "reg_schedule": [1.0]},
        {"method": "kernel", "reg_schedule": [1e3, 1.0]},
        {"reg_schedule": [1.0]},
    ],
    ids=str,
)
def test_no_method_breaks_at_tiny_reg(family, reg, options):
    """It may need more iterations than it gets, but every number is what it is said to be."""
    C, a, b = HARD[family]()
    for dtype in ("float64", "float32"):
        C, a, b = (None if v is None else v.astype(dtype) for v in (C, a, b))
        result = sinkhorn(C, a, b, reg=reg, max_iter=300, on_fail="ignore", **options)
        n, m = C.shape
        a64 = np.full(n, 1 / n) if a is None else a.astype(float)
        b64 = np.full(m, 1 / m) if b is None else b.astype(float) * a64.sum() / b.astype(float).sum()
        f, g = result.f.astype(float), result.g.astype(float)
        P = np.exp(np.log(a64)[:, None] + np.log(b64) + (f[:, None] + g - C.astype(float)) / reg)
        error = residual(P, f, g, a64, b64)
        assert np.isfinite([result.value, result.linear_cost, result.dual_value, error]).all()
        rounding = 1e-10 if dtype == "float64" else 2e-7 / reg
        assert abs(result.marginal_error - error) <= rounding * (1 + error)
        assert result.n_iter <= 315  # a Newton step that has begun is finished
        assert result.converged == (result.status == "converged")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_huge_reg(method, dtype):
    C, a, b = (v.astype(dtype) for v in random_problem())
    for options in ({}, {"anderson": 5}, {"unbalanced": 1e3}):
        result = sinkhorn(C, a, b, reg=1e3, method=method, **options)
        assert result.converged
        assert np.allclose(result.plan, a[:, None] * b, rtol=5e-3, atol=0)


@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("reg", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_one_row_or_column(shape, reg, regularizer):
    C, a, b = random_problem(0, *shape)
    for method in ("auto", "log", "kernel"):
        result = sinkhorn(C, 2 * a, 2 * b, reg=reg, regularizer=regularizer, method=method, tol=1e-11)
        assert np.allclose(result.plan, 2 * a[:, None] * b, rtol=1e-10, atol=0)
        assert abs(result.linear_cost - 2 * a @ C @ b) < 1e-9


def test_very_unequal_sizes():
    C, a, b = random_problem(0, 3, 5000)
    for reg in (1.0, 1e-4):
        for transposed in (False, True):
            problem = (C.T, b, a) if transposed else (C, a, b)
            result = sinkhorn(*problem, reg=reg)
            assert result.converged
            assert residual(result.plan, result.f, result.g, *problem[1:]) <= 1.01e-6


def test_duplicated_points_share_their_mass():
    rng = np.random.default_rng(0)
    x, y = rng.random((7, 2)), rng.random((5, 2))
    a, b = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(5))
    once = sinkhorn(PointCloud(x, y), a, b, reg=0.01, tol=1e-11).plan
    twice = sinkhorn(PointCloud(np.repeat(x, 2, 0), y), np.repeat(a / 2, 2), b, reg=0.01, tol=1e-11).plan
    assert np.allclose(twice[::2] + twice[1::2], once, rtol=0, atol=1e-9)
    assert np.allclose(twice[::2], twice[1::2], rtol=0, atol=1e-12)
    same = sinkhorn(PointCloud(np.ones((4, 2)), np.ones((3, 2))), reg=0.1)
    assert np.allclose(same.plan, 1 / 12, rtol=1e-6)


@pytest.mark.parametrize(
    "C", [np.zeros((6, 9)), np.full((6, 9), 5.0), np.full((6, 9), -1e6)], ids=["zero", "five", "offset"]
)
@pytest.mark.parametrize("reg", [1e-3, 1.0, 1e3])
def test_constant_cost(C, reg):
    _, a, b = random_problem(0, 6)
    for dtype, method in itertools.product(("float64", "float32"), ("auto", "log", "kernel")):
        if dtype == "float32" and abs(C[0, 0]) > 10 * reg:
            continue
        for anderson in (0, 5):
            if method == "auto" and anderson:
                continue
            result = sinkhorn(
                C.astype(dtype), a.astype(dtype), b.astype(dtype), reg=reg, method=method, anderson=anderson, tol=1e-5
            )
            assert np.allclose(result.plan, a[:, None] * b, rtol=1e-4, atol=1e-6)
            assert abs(result.linear_cost - C[0, 0]) <= 1e-3 * abs(C[0, 0]) + 1e-6 * reg


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_large_offset_of_the_cost(offset):
    C, a, b = random_problem()
    expected = sinkhorn(C, a, b, reg=0.01, tol=1e-9)
    result = sinkhorn(C + offset, a, b, reg=0.01, tol=1e-7)
    assert np.allclose(result.plan, expected.plan, rtol=0, atol=1e-5)
    assert abs(result.value - offset - expected.value) < abs(offset) * 1e-7
    assert abs(result.dual_value - offset - expected.value) < 1e-6
    # at the rounding floor it says so, instead of iterating on
    tiny = sinkhorn(C + offset, a, b, reg=1e-7, tol=1e-12, on_fail="ignore")
    assert tiny.status in ("floor", "converged")
    assert "floor" in tiny.message
    assert tiny.n_iter < 10_000


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_units_of_mass(factor, dtype):
    if dtype == "float32":
        factor = factor ** (1 / 3)
    C, a, b = random_problem(0, 30, 40)
    tol = 1e-8 if dtype == "float64" else 1e-4
    for reg in (0.1, 1e-3 if dtype == "float64" else 1e-2):
        for method in ("auto", "log", "kernel"):
            scaled = [(factor * w).astype(dtype) for w in (a, b)]
            result = sinkhorn(C.astype(dtype), *scaled, reg=reg, method=method, tol=tol)
            expected = sinkhorn(C.astype(dtype), a.astype(dtype), b.astype(dtype), reg=reg, method=method, tol=tol)
            assert np.abs(result.plan / factor - expected.plan).sum() < 1e4 * tol


def test_tiny_weights():
    C, a, b = random_problem()
    a[[0, 5]] = 1e-200, 1e-300
    b[3] = 1e-250
    a, b = a / a.sum(), b / b.sum()
    for method, reg in itertools.product(("auto", "log", "kernel"), (1.0, 0.01, 1e-3)):
        result = sinkhorn(C, a, b, reg=reg, method=method)
        assert result.converged
        assert np.isfinite(result.f).all()
        assert np.isfinite(result.g).all()
        assert np.allclose(result.plan[[0]].sum(1), a[0], rtol=1e-5, atol=0)


# ---- zero weights


def zero_cases():
    _, a, b = random_problem(5)
    a0, b0 = a.copy(), b.copy()
    a0[[0, 7]] = 0
    b0[[2, 8]] = 0
    yield from ((a0 / a0.sum(), b), (a, b0 / b0.sum()), (a0 / a0.sum(), b0 / b0.sum()))
    yield np.eye(12)[3], np.eye(9)[4]


@pytest.mark.parametrize("unbalanced", [None, 0.4, (None, 0.3)], ids=str)
@pytest.mark.parametrize("kind", ["dense", "plane", "high-dimensional", "euclidean", "grid"])
def test_zero_weights(kind, unbalanced):
    cost = make_cost(kind, "float64")
    C = cost if kind == "dense" else cost.to_dense()
    for (a, b), regularizer in itertools.product(zero_cases(), ("kl", "entropy")):
        rows, columns = a > 0, b > 0
        f, g, P = reference(C[rows][:, columns], a[rows], b[columns], 0.05, unbalanced, regularizer)
        for method, anderson in itertools.product(("auto", "log", "kernel"), (0, 5)):
            result = sinkhorn(
                cost,
                a,
                b,
                reg=0.05,
                regularizer=regularizer,
                unbalanced=unbalanced,
                method=method,
                anderson=anderson,
                tol=1e-9,
            )
            assert np.abs(result.plan[np.ix_(rows, columns)] - P).sum() < 1e-7
            assert result.plan[~rows].sum() + result.plan[:, ~columns].sum() == 0
            if regularizer == "entropy":
                assert (result.f[~rows] == -INF).all()
                assert (result.g[~columns] == -INF).all()
            else:
                # the conditional plan is defined without weight, too: what the point would do with its first grain
                scale = [1 if rho == INF else rho / (rho + 0.05) for rho in pair_of(unbalanced)]
                soft = -0.05 * scale[0] * logsumexp((g - C[~rows][:, columns]) / 0.05, axis=1, b=b[columns])
                shift = (result.f[rows] - f)[0] if unbalanced is None else 0
                assert np.allclose(result.f[~rows], soft + shift, rtol=0, atol=1e-6)
                soft = (
                    -0.05 * scale[1] * logsumexp((f[:, None] - C[rows][:, ~columns]) / 0.05, axis=0, b=a[rows][:, None])
                )
                assert np.allclose(result.g[~columns], soft - shift, rtol=0, atol=1e-6)


# ---- forbidden pairs


def band(n, width=2):
    C = np.random.default_rng(0).random((n, n))
    i = np.arange(n)
    C[np.abs(i[:, None] - i) > width] = INF
    return C


def blocks():
    C = np.random.default_rng(0).random((6, 8))
    C[:3, 4:] = C[3:, :4] = INF
    return C


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("C", [band(30), blocks()], ids=["band", "blocks"])
def test_forbidden_pairs(C, dtype):
    for reg in (1.0, 0.1, 1e-3):
        result = sinkhorn(C.astype(dtype), reg=reg, tol=1e-6 if dtype == "float64" else 1e-3)
        assert result.converged
        assert (result.plan[np.isinf(C)] == 0).all()
        allowed = np.isfinite(C)
        assert abs(result.linear_cost - (result.plan[allowed] * C[allowed]).sum()) < 1e-6


def test_forbidden_pairs_of_a_reference():
    C = blocks()
    a, b = np.full(6, 1 / 6), np.full(8, 1 / 8)
    expected = [
        sinkhorn(C[:3, :4], a[:3], b[:4], reg=0.05, tol=1e-11),
        sinkhorn(C[3:, 4:], a[3:], b[4:], reg=0.05, tol=1e-11),
    ]
    for method in ("auto", "log", "kernel"):
        P = sinkhorn(C, a, b, reg=0.05, method=method, tol=1e-10).plan
        assert np.allclose(P[:3, :4], expected[0].plan, rtol=0, atol=1e-9)
        assert np.allclose(P[3:, 4:], expected[1].plan, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize("reg", [0.1, 1e-5])
def test_no_feasible_plan(method, reg, dtype):
    a = np.array([0.3, 0.3, 0.3, 0.03, 0.03, 0.04])
    for anderson in (0, 5):
        with pytest.warns(ConvergenceWarning, match="marginal error"):
            result = sinkhorn(
                blocks().astype(dtype), a.astype(dtype), reg=reg, method=method, anderson=anderson, max_iter=500
            )
        assert not result.converged
        assert result.marginal_error > 0.1
        if dtype == "float64":
            assert result.marginal_error < 3
        assert np.isfinite(result.plan).all()
        assert np.isfinite(result.f).all()
        assert np.isfinite(result.g).all()
        assert np.isfinite([result.value, result.dual_value, result.linear_cost]).all()


def test_rows_and_columns_without_a_finite_cost():
    C = np.random.default_rng(0).random((4, 5))
    C[2] = INF
    with pytest.raises(ValueError, match="row 2"):
        sinkhorn(C, reg=0.1)
    with pytest.raises(ValueError, match="column 2"):
        sinkhorn(C.T, reg=0.1)
    weights = np.array([0.2, 0.3, 0.0, 0.5])
    assert sinkhorn(C, weights, reg=0.1).converged  # nothing has to leave row 2
    C = np.zeros((3, 3))
    C[1, :2] = INF
    with pytest.raises(ValueError, match="row 1"):
        sinkhorn(C, None, [0.5, 0.5, 0.0], reg=0.1)  # its only target has no mass


# ---- what it says


def slow_problem():
    return random_problem(0, 40, 40)


SLOW = {"reg": 1e-3, "method": "log", "relaxation": 1.0, "tol": 1e-8}


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize("max_iter", [1, 2, 5, 30])
def test_too_few_iterations(method, max_iter):
    C, a, b = slow_problem()
    for anderson in (0, 5):
        with pytest.warns(ConvergenceWarning) as caught:
            result = sinkhorn(C, a, b, reg=1e-4, max_iter=max_iter, method=method, anderson=anderson)
        assert caught[0].filename == __file__
        assert str(caught[0].message) == result.message
        assert f"{result.marginal_error:.2e} after {result.n_iter} iterations" in result.message
        assert "tol=1e-06" in result.message
        assert "max_iter" in result.message
        assert (result.converged, result.status) == (False, "max_iter")
        assert max_iter <= result.n_iter <= max_iter + 15  # a Newton step that has begun is finished
        assert residual(result.plan, result.f, result.g, a, b) == pytest.approx(result.marginal_error, abs=1e-11)


def test_message_tells_the_rate():
    C, a, b = slow_problem()
    result = sinkhorn(C, a, b, max_iter=400, on_fail="ignore", reg_schedule=None, **SLOW)
    words = result.message.split()
    rate, more = float(words[words.index("by") + 1]), int(words[words.index("about") + 1])
    assert 0.5 < rate < 1
    longer = sinkhorn(C, a, b, max_iter=400 + 3 * more, reg_schedule=None, **SLOW)
    assert 400 + more / 3 < longer.n_iter
    tail = [entry.marginal_error for entry in longer.history[20:40]]
    assert (tail[-1] / tail[0]) ** (1 / 190) == pytest.approx(rate, abs=0.02)


def test_on_fail():
    C, a, b = slow_problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = sinkhorn(C, a, b, max_iter=20, on_fail="ignore", **SLOW)
    with pytest.raises(ConvergenceError) as caught:
        sinkhorn(C, a, b, max_iter=20, on_fail="raise", **SLOW)
    assert str(caught.value) == result.message
    with pytest.raises(ConvergenceError):
        solve(C, a, b, reg=1e-4, max_iter=5, on_fail="raise")
    assert sinkhorn(C, a, b, reg=1.0, on_fail="raise").converged


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_tol_below_the_floor(method, dtype):
    C, a, b = (v.astype(dtype) for v in random_problem())
    floor = 12 * float(np.finfo(dtype).eps)
    result = sinkhorn(C, a, b, reg=0.1, tol=0.0, method=method, on_fail="ignore")
    assert result.status in ("converged", "floor")
    assert "tol=0 is below the rounding floor, " in result.message
    assert result.marginal_error < 20 * floor
    assert result.n_iter < 500


def test_float32_at_its_floor_says_what_to_do():
    C, a, b = (v.astype("float32") for v in line_problem(100))
    with pytest.warns(ConvergenceWarning, match="use float64, a larger reg or a larger tol"):
        result = sinkhorn(C, a, b, reg=1e-4)
    assert result.status == "floor"
    assert "rounding floor" in result.message
    assert result.marginal_error < 1e-3


@pytest.mark.parametrize("n", [5, 30, 300])
@pytest.mark.parametrize("cost", ["points", "dense", "uniform"])
def test_float32_converges_where_rounding_allows(n, cost):
    """Without a warning at the default tolerance up to 100 reg; beyond, stuck no higher than rounding explains."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 2)).astype("float32"), rng.normal(0.5, 1, (n, 2)).astype("float32")
    C = rng.random((n, n), dtype="float32") if cost == "uniform" else ((x[:, None] - y) ** 2).sum(-1)
    norms = (x.astype(float) ** 2).sum(1).mean() + (y.astype(float) ** 2).sum(1).mean() if cost == "points" else 0
    for ratio in (10, 100, 1000, 10_000):
        reg = float(C.max()) / ratio
        result = sinkhorn(PointCloud(x, y) if cost == "points" else C, reg=reg, on_fail="ignore")
        assert result.status in ("converged", "floor")
        assert result.converged or ratio > 100
        size = np.abs(result.f).mean() + np.abs(result.g).mean() + norms  # in units of reg, as below
        assert result.marginal_error <= 4 * 6e-8 * (size / reg + 2 * np.log(n)) + 1.5e-6


@pytest.mark.parametrize("method", ["log", "kernel"])
@pytest.mark.parametrize("relaxation", [1.0, "auto"])
def test_slow_convergence_is_no_floor(method, relaxation):
    """A rate near 1 in float32 far above the floor."""
    C = np.random.default_rng(1).random((150, 150)).astype("float32")
    result = sinkhorn(C, reg=1e-3, method=method, relaxation=relaxation, tol=4e-5)
    assert result.converged


def test_warm_rows_hide_no_column_errors():
    """The start makes the rows exact, whatever the columns are."""
    C, a, b = random_problem()
    solution = sinkhorn(C, a, b, reg=0.01, tol=1e-10)
    init = 1.05 * solution.f + 0.01, 0.97 * solution.g
    options = {"reg": 0.01, "init": init, "reg_schedule": None, "check_every": 1}
    for method in ("log", "kernel", "auto"):
        result = sinkhorn(C, a, b, method=method, relaxation=1.0, tol=1e-6, **options)
        assert result.converged
        first = sinkhorn(C, a, b, method=method, max_iter=1, on_fail="ignore", **options).history[0]
        assert first.marginal_error > 1e-4


def test_history():
    C, a, b = slow_problem()
    for every in (1, 7, 10):
        result = sinkhorn(C, a, b, reg=1e-3, check_every=every, method="kernel")
        counts = [entry.n_iter for entry in result.history]
        assert counts in [list(range(every, end, every)) for end in (result.n_iter, result.n_iter + 1)]
        regs = [entry.reg for entry in result.history]
        assert regs == sorted(regs, reverse=True)
        assert regs[-1] == 1e-3
        assert regs[0] > 1e-3
        assert all(entry.marginal_error >= 0 for entry in result.history)
    errors = [e.marginal_error for e in sinkhorn(C, a, b, check_every=1, reg_schedule=None, **SLOW).history]
    assert errors == sorted(errors, reverse=True)  # plain Sinkhorn is monotone in L1
    assert errors[-1] <= 1e-8


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_callback_sees_the_state(method):
    C, a, b = slow_problem()
    a[3], b[5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    states = []

    def callback(state):
        f, g = state.potentials()
        states.append((state.n_iter, state.reg, state.marginal_error))
        assert f.shape == g.shape == (39,)
        assert np.isfinite(f).all()
        assert np.isfinite(g).all()
        f[:] = g[:] = np.nan  # copies: no harm done

    result = sinkhorn(C, a, b, reg=1e-3, method=method, callback=callback, check_every=5)
    assert result.converged
    assert states == [tuple(entry)[:3] for entry in result.history]


def test_callback_potentials_are_in_the_order_of_the_points():
    rng = np.random.default_rng(0)
    x, y = rng.random((3000, 2)), rng.random((2500, 2))
    seen = []
    result = sinkhorn(
        PointCloud(x, y), reg=1e-4, tol=1e-3, callback=lambda state: seen.append(state.potentials()), check_every=1
    )
    f, g = seen[-1]
    shift = np.median(result.f - f)
    assert np.abs(result.f - f - shift).max() < 1e-2
    assert np.abs(result.g - g + shift).max() < 1e-2
    assert np.corrcoef(result.f, f)[0, 1] > 0.999


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize("calls", [1, 3, 12])
@pytest.mark.parametrize("reg", [1e-2, 1e-5])
def test_callback_stops(method, calls, reg):
    C, a, b = slow_problem()
    count = 0

    def callback(state):
        nonlocal count
        count += 1
        if count == calls:
            raise StopIteration

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = sinkhorn(C, a, b, reg=reg, tol=1e-12, method=method, callback=callback, check_every=1, on_fail="raise")
    assert count == calls
    assert (result.status, result.converged) == ("stopped", False)
    assert result.message.startswith("stopped by the callback")
    assert result.reg == reg
    # whatever the regularisation at which it stopped, the plan is that of the target
    assert result.marginal_error < 2.5
    assert residual(result.plan, result.f, result.g, a, b) == pytest.approx(result.marginal_error, abs=1e-10)


def test_callback_errors_come_through():
    C, a, b = slow_problem()

    def callback(state):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sinkhorn(C, a, b, reg=1e-3, callback=callback, progress=True)


def test_progress(capsys):
    C, a, b = slow_problem()
    result = sinkhorn(C, a, b, reg=1e-3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sinkhorn" in captured.err
    assert "marginal error" in captured.err
    sinkhorn(C, a, b, reg=1e-3)
    assert capsys.readouterr() == ("", "")
    assert result.converged


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    reg=st.floats(-4, 2).map(lambda t: 10**t),
    unbalanced=st.sampled_from([None, 0.5, (None, 2.0), (0.1, 10.0)]),
    regularizer=st.sampled_from(["kl", "entropy"]),
    method=st.sampled_from(["auto", "log", "kernel"]),
    max_iter=st.sampled_from([1, 3, 20, 10_000]),
)
def test_what_is_reported_is_what_is_returned(seed, n, m, reg, unbalanced, regularizer, method, max_iter):
    """Residual, values and gap recomputed from f, g in extended precision, converged or not."""
    C, a, b = random_problem(seed, n, m)
    result = sinkhorn(
        C,
        a,
        b,
        reg=reg,
        unbalanced=unbalanced,
        regularizer=regularizer,
        method=method,
        max_iter=max_iter,
        on_fail="ignore",
    )
    f, g = result.f.astype(np.longdouble), result.g.astype(np.longdouble)
    log_base = np.log(a.astype(np.longdouble))[:, None] + np.log(b.astype(np.longdouble))
    log_base = log_base if regularizer == "kl" else 0 * log_base
    log_P = log_base + (f[:, None] + g - C) / reg
    P = np.exp(log_P)
    noise = 1e-12 * (1 + P.sum()) * (1 + np.abs(f).max() + np.abs(g).max()) * (1 + 1 / reg)
    assert abs(result.marginal_error - residual(P, result.f, result.g, a, b, unbalanced)) < noise
    assert abs(result.linear_cost - (C * P).sum()) < noise * 2
    relative = P * (log_P - log_base) - P + (np.exp(log_base) if regularizer == "kl" else 0)
    value, dual = (
        (C * P).sum() + reg * relative.sum(),
        -reg * (P.sum() - (np.exp(log_base).sum() if regularizer == "kl" else 0)),
    )
    for sums, u, w, rho in zip((P.sum(1), P.sum(0)), (f, g), (a, b), pair_of(unbalanced), strict=True):
        if rho == INF:
            dual += u @ w
        else:
            value += rho * (sums * np.log(sums / w) - sums + w).sum()
            dual -= rho * (w * np.expm1(-u / rho)).sum()
    size = (1 + reg) * (1 + np.abs(f).max() + np.abs(g).max())
    assert abs(result.value - value) < noise * size
    assert abs(result.dual_value - dual) < noise * size
    assert result.gap == result.value - result.dual_value
    if result.converged:
        assert abs(result.gap) < 1e-5 * size
    if max(pair_of(unbalanced)) < INF:
        assert result.gap > -noise * size  # weak duality: then every plan is feasible


# ---- warm starts


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_warm_start(method):
    C, a, b = slow_problem()
    options = {"method": method, "tol": 1e-8}
    cold = sinkhorn(C, a, b, reg=5e-3, **options)
    again = sinkhorn(C, a, b, reg=5e-3, init=cold, **options)
    assert again.converged
    assert again.n_iter <= 3
    assert np.allclose(again.plan, cold.plan, rtol=0, atol=1e-7)
    near = sinkhorn(C, a, b, reg=4e-3, init=cold, **options)
    assert near.converged
    assert near.n_iter < sinkhorn(C, a, b, reg=4e-3, **options).n_iter
    pair = sinkhorn(C, a, b, reg=4e-3, init=(cold.f, cold.g), **options)
    assert np.array_equal(pair.f, near.f)
    listed = sinkhorn(C, a, b, reg=4e-3, init=[cold.f.tolist(), cold.g.tolist()], **options)
    assert np.array_equal(listed.f, near.f)
    far = sinkhorn(C, a, b, reg=1.0, init=cold, **options)
    assert np.allclose(far.plan, sinkhorn(C, a, b, reg=1.0, **options).plan, rtol=0, atol=1e-7)
    unbalanced = sinkhorn(C, a, b, reg=5e-3, unbalanced=1.0, init=cold, **options)
    assert unbalanced.converged


@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
def test_warm_start_with_zero_weights(regularizer):
    for a, b in zero_cases():
        C = make_cost("dense", "float64")
        cold = sinkhorn(C, a, b, reg=0.05, regularizer=regularizer, tol=1e-9)
        again = sinkhorn(C, a, b, reg=0.05, regularizer=regularizer, tol=1e-9, init=cold)
        assert again.n_iter <= 3
        # the result knows potentials where there is no weight: in the KL form they start the full problem
    if regularizer == "kl":
        a, b = next(zero_cases())
        cold = sinkhorn(C, a, b, reg=0.05, tol=1e-9)
        full = np.full(12, 1 / 12)
        assert sinkhorn(C, full, b, reg=0.05, tol=1e-9, init=cold).converged


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_any_start_will_do(method, size):
    C, a, b = random_problem()
    expected = sinkhorn(C, a, b, reg=0.05, tol=1e-9).plan
    rng = np.random.default_rng(0)
    init = size * rng.normal(size=12), size * rng.normal(size=9)
    result = sinkhorn(C, a, b, reg=0.05, tol=1e-7, init=init, method=method, max_iter=100_000)
    assert np.allclose(result.plan, expected, rtol=0, atol=1e-5)


def test_bad_starts():
    C, a, b = random_problem()
    f, g = np.zeros(12), np.zeros(9)
    with pytest.raises(ValueError, match="f must have shape"):
        sinkhorn(C, a, b, reg=0.1, init=(g, f))
    with pytest.raises(ValueError, match="g must have shape"):
        sinkhorn(C, a, b, reg=0.1, init=(f, f))
    with pytest.raises(ValueError, match="NaN"):
        sinkhorn(C, a, b, reg=0.1, init=(f * np.nan, g))
    with pytest.raises(ValueError, match="inf"):
        sinkhorn(C, a, b, reg=0.1, init=(f, g - INF))
    for init in ("warm", 3.0, f, {"f": f, "g": g}, (f, g, f), (f,)):
        with pytest.raises(TypeError, match="init must be"):
            sinkhorn(C, a, b, reg=0.1, init=init)
    with pytest.raises(ValueError, match="shape"):
        sinkhorn(C, a, b, reg=0.1, init=sinkhorn(C.T, b, a, reg=0.1))
    with pytest.raises(TypeError):
        sinkhorn(C, a, b, reg=0.1, init=(array_api_strict.asarray(f), g))


# ---- bad and unusual input


@pytest.mark.parametrize("call", [sinkhorn, solve])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"C": np.full((12, 9), np.nan)}, ValueError, "C has NaN"),
        ({"C": -np.full((12, 9), INF)}, ValueError, "C has -inf"),
        ({"C": np.full((12, 9), INF)}, ValueError, "C must have at least one finite entry"),
        ({"C": np.zeros((3, 4, 5))}, ValueError, "C must have 2"),
        ({"C": np.zeros(12)}, ValueError, "C must have 2"),
        ({"C": np.zeros((0, 9))}, ValueError, "C is empty"),
        ({"C": [[1.0, 2.0], [3.0]]}, ValueError, "C cannot be made an array"),
        ({"C": "cost"}, TypeError, "C"),
        ({"C": None}, TypeError, "C"),
        ({"C": np.zeros((12, 9)) * 1j}, TypeError, "C must hold real numbers"),
        ({"C": scipy.sparse.csr_array(np.ones((12, 9)))}, TypeError, "sparse"),
        ({"C": np.ma.masked_array(np.ones((12, 9)))}, TypeError, "masked"),
        ({"C": np.zeros((12, 9), object)}, TypeError, "C must hold real numbers"),
        ({"a": np.full(12, np.nan)}, ValueError, "a has NaN"),
        ({"a": np.full(12, INF)}, ValueError, "a has inf"),
        ({"b": np.r_[1.1, np.zeros(7), -0.1]}, ValueError, r"b must not be negative, got b\[8\] = -0.1"),
        ({"a": np.zeros(12)}, ValueError, "a sums to 0"),
        ({"a": np.full(11, 1 / 11)}, ValueError, r"a must have shape \(12,\), got \(11,\)"),
        ({"b": np.full((9, 1), 1 / 9)}, ValueError, "b must have 1 dimension"),
        ({"a": 2 * np.full(12, 1 / 12)}, ValueError, r"a sums to 2\.0.* but b to 1\.0|a sums to 1\.99.* but b to "),
        ({"a": scipy.sparse.csr_array(np.ones((1, 12)))}, TypeError, "sparse"),
        ({"a": array_api_strict.ones(12)}, TypeError, "array_api_strict"),
        ({"reg": 0}, ValueError, "reg must be > 0"),
        ({"reg": -1.0}, ValueError, "reg must be > 0.*-1.0"),
        ({"reg": np.nan}, ValueError, "reg must be a number, got nan"),
        ({"reg": INF}, ValueError, "reg must be"),
        ({"reg": "0.1"}, TypeError, "reg must be a real number"),
        ({"reg": True}, TypeError, "reg must be a real number"),
        ({"reg": [0.1, 0.2]}, TypeError, "reg must be a real number"),
        ({"reg": None}, TypeError, "reg must be a real number"),
        ({"reg": 0.1j}, TypeError, "reg must be a real number"),
        ({"regularizer": "KL"}, ValueError, "regularizer must be one of .*'KL'"),
        ({"regularizer": None}, ValueError, "regularizer must be one of"),
        ({"unbalanced": 0}, ValueError, "unbalanced must be > 0"),
        ({"unbalanced": -1}, ValueError, "unbalanced must be > 0"),
        ({"unbalanced": np.nan}, ValueError, "unbalanced must be a number"),
        ({"unbalanced": (1.0, 2.0, 3.0)}, ValueError, "unbalanced must be a number or a pair"),
        ({"unbalanced": "yes"}, TypeError, "unbalanced must be a real number"),
        ({"unbalanced": True}, TypeError, "unbalanced must be a real number"),
        ({"tol": -1e-6}, ValueError, "tol must be >= 0"),
        ({"tol": np.nan}, ValueError, "tol must be a number"),
        ({"tol": None}, TypeError, "tol must be a real number"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"max_iter": 100.0}, TypeError, "max_iter must be an integer"),
        ({"max_iter": True}, TypeError, "max_iter must be an integer"),
        ({"on_fail": "print"}, ValueError, "on_fail must be one of"),
        ({"callback": "print"}, TypeError, "callback"),
    ],
)
def test_bad_input(call, change, error, match):
    C, a, b = random_problem()
    arguments = {"C": C, "a": a, "b": b, "reg": 0.1} | change
    with pytest.raises(error, match=match):
        call(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"method": "fast"}, ValueError, "method must be one of"),
        ({"method": None}, ValueError, "method must be one of"),
        ({"relaxation": 0.5}, ValueError, "relaxation must be >= 1 and < 2, got 0.5"),
        ({"relaxation": 2.0}, ValueError, "relaxation must be"),
        ({"relaxation": "fast"}, TypeError, "relaxation must be"),
        ({"relaxation": 1.5, "anderson": 5}, ValueError, "anderson replaces over-relaxation"),
        ({"anderson": -1}, ValueError, "anderson must be >= 0"),
        ({"anderson": 2.0}, TypeError, "anderson must be an integer"),
        ({"anderson": True}, TypeError, "anderson must be an integer"),
        ({"check_every": 0}, ValueError, "check_every must be >= 1"),
        ({"check_every": 1.0}, TypeError, "check_every must be an integer"),
        ({"reg_schedule": "fast"}, ValueError, "reg_schedule must be one of"),
        ({"reg_schedule": [0.5, 0.7]}, ValueError, "reg_schedule must decrease"),
        ({"reg_schedule": [0.5, 0.01]}, ValueError, "reg_schedule must be >= 0.1"),
        ({"reg_schedule": [0.5, np.nan]}, ValueError, "reg_schedule must be a number"),
        ({"reg_schedule": ["a"]}, TypeError, "reg_schedule must be a real number"),
        ({"reg_schedule": 3.0}, TypeError, "reg_schedule"),
        ({"reg_schedule": [INF, 1.0]}, ValueError, "reg_schedule must be"),
    ],
)
def test_bad_options(change, error, match):
    C, a, b = random_problem()
    with pytest.raises(error, match=match):
        sinkhorn(C, a, b, **({"reg": 0.1} | change))


def test_schedules():
    C, a, b = random_problem()
    expected = sinkhorn(C, a, b, reg=0.05, tol=1e-10).plan
    for schedule in ([], [0.05], [1.0, 0.5, 0.05], (0.3,), np.array([0.4, 0.2]), iter([0.2]), [0.2, 0.2]):
        result = sinkhorn(C, a, b, reg=0.05, reg_schedule=schedule, tol=1e-10)
        assert np.allclose(result.plan, expected, rtol=0, atol=1e-8)
        assert result.history[-1].reg == 0.05


def as_variant(kind, v):
    if kind == "list":
        return v.tolist()
    if kind == "fortran":
        return np.asfortranarray(v)
    if kind == "strided":
        return np.repeat(v, 2, axis=-1)[..., ::2]
    if kind == "reversed":
        return v[::-1].copy()[::-1]
    if kind == "big-endian":
        return v.astype(">f8")
    if kind == "read-only":
        v = v.copy()
        v.flags.writeable = False
        return v
    if kind == "unaligned":
        raw = np.zeros(v.nbytes + 1, np.uint8)
        out = raw[1:].view(v.dtype).reshape(v.shape)
        out[...] = v
        return out
    return v.astype(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "list",
        "fortran",
        "strided",
        "reversed",
        "big-endian",
        "read-only",
        "unaligned",
        "float16",
        "float32",
        "longdouble",
    ],
)
def test_any_layout_and_float(kind):
    C, a, b = random_problem()
    C = np.round(16 * C) / 16  # exact in half precision, as the weights are
    a, b = np.r_[6.0, 1.0, 2.0, np.full(9, 3.0)], np.full(9, 4.0)
    narrow = kind in ("float16", "float32")
    expected = sinkhorn(C, a, b, reg=0.1, tol=1e-5 if narrow else 1e-10)
    inputs = [as_variant(kind, v) for v in (C, a, b)]
    before = [pickle.dumps(v) for v in inputs]
    result = sinkhorn(*inputs, reg=0.1, tol=1e-5 if narrow else 1e-10)
    assert [pickle.dumps(v) for v in inputs] == before
    assert result.f.dtype == ("float32" if narrow else "float64")
    if narrow:
        assert np.allclose(result.plan, expected.plan, rtol=0, atol=1e-3)
    else:
        assert np.array_equal(result.f, expected.f)
        assert np.array_equal(result.g, expected.g)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integers_become_float64(dtype):
    C = (3 * np.random.default_rng(0).random((6, 6))).astype(dtype)
    a, b = np.array([1, 0, 1, 1, 1, 1]).astype(dtype), np.array([1, 1, 1, 0, 1, 1]).astype(dtype)
    result = sinkhorn(C, a, b, reg=0.7)
    assert result.f.dtype == "float64"
    assert np.array_equal(result.plan, sinkhorn(C.astype(float), a.astype(float), b.astype(float), reg=0.7).plan)


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
def test_inputs_are_not_modified(method):
    C, a, b = random_problem()
    a[0] = 0
    a /= a.sum()
    init = np.zeros(12), np.zeros(9)
    inputs = C, a, b, *init
    before = [v.copy() for v in inputs]
    for unbalanced in (None, 1.0):
        sinkhorn(C, a, b, reg=0.05, init=init, method=method, unbalanced=unbalanced)
        sinkhorn(PointCloud(C, C[:9]), a, b, reg=0.05, init=init, method=method, unbalanced=unbalanced)
    assert all(map(np.array_equal, inputs, before))


def test_same_input_same_bits():
    C, a, b = slow_problem()
    for options in ({}, {"method": "log"}, {"method": "kernel"}, {"anderson": 5}, {"unbalanced": 0.5}):
        one, other = (sinkhorn(C, a, b, reg=1e-3, **options) for _ in range(2))
        assert np.array_equal(one.f, other.f)
        assert one.value == other.value


def test_masses_that_agree_up_to_rounding_are_accepted():
    C, a, b = random_problem()
    result = sinkhorn(C, a, b * (1 + 5e-9), reg=0.1, tol=1e-10)
    assert result.converged
    assert abs(result.plan.sum() - a.sum()) < 1e-12
    with pytest.raises(ValueError, match="a sums to"):
        sinkhorn(C, a, b * (1 + 1e-7), reg=0.1)
    single = [v.astype("float32") for v in (C, a, b)]
    assert sinkhorn(single[0], single[1], single[2] * np.float32(1 + 5e-6), reg=0.1, tol=1e-5).converged


def test_result_is_frozen():
    C, a, b = random_problem()
    result = sinkhorn(C, a, b, reg=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.value = 0.0
    assert isinstance(result, ot_numba.TransportResult)
