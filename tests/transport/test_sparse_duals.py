import itertools

import array_api_strict
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings, strategies as st

from ot_numba.costs import CostMatrix, Grid, PointCloud
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads
from ot_numba.transport.projections import ksupport_norm_sq
from ot_numba.transport.semidual import dual_value_and_grad, semidual_value_and_grad
from ot_numba.transport.sparse_duals import SparseDual, dual_sparse_plan, semidual_sparse_plan

# Rows here are the columns of the papers: at most k positive entries in each row.
R3 = np.array([[0.8, 0.3, 0.4, 1.0], [0.8, 0.1, 0.0, 0.7], [0.5, 0.4, 0.0, 0.2]])
R4 = np.array([[0.2, 0.4, 0.4, 0.6], [0.6, 0.3, 0.4, 0.4], [1.0, 0.2, 0.8, 0.0]])
ROWS, COLUMNS = np.array([0.2, 0.35, 0.45]), np.array([0.1, 0.2, 0.3, 0.4])


def problem(n=7, m=9, seed=0, mass=1.0):
    rng = np.random.default_rng(seed)
    a, b = mass * rng.dirichlet(np.full(n, 2.0)), mass * rng.dirichlet(np.full(m, 2.0))
    return rng.random((n, m)), a, b, 0.2 * rng.normal(size=n), 0.2 * rng.normal(size=m)


def row_optimum(s, k, mass, reg):
    """Largest <s, t> - reg / 2 |t|^2 of mass `mass` over all supports of at most k entries, and its t."""
    best = -np.inf, None
    for size in range(1, min(k, len(s)) + 1):
        for support in map(list, itertools.combinations(range(len(s)), size)):
            t = np.zeros(len(s))
            t[support] = (s[support] - (s[support].sum() - reg * mass) / size) / reg
            if t.min() >= 0 and s @ t - reg / 2 * t @ t > best[0] + 1e-15:
                best = s @ t - reg / 2 * t @ t, t
    return best


def dense(plan):
    return plan.to_csr().toarray()


def maximise(C, a, b, **options):
    """Maximiser of the semi-dual by L-BFGS."""

    def negative(g):
        value, grad = semidual_value_and_grad(g, C, a, b, **options)
        return -value, -grad

    settings = {"maxiter": 5000, "maxfun": 20000, "ftol": 0, "gtol": 1e-13, "maxcor": 20}
    return scipy.optimize.minimize(negative, np.zeros(len(b)), jac=True, method="L-BFGS-B", options=settings).x


# ---------------------------------------------------------------- reference cases


@pytest.mark.parametrize("k", [2, None])
def test_reference_problem_without_gap(k):
    options = {"reg": 1.0, "regularizer": "l2" if k is None else "ksparse", "k": k}
    if k is None:
        expected = [[0.08, 0.1, 0.02, 0], [0, 0.1, 0.22, 0.03], [0.02, 0, 0.06, 0.37]]
        g = maximise(R3, ROWS, COLUMNS, **options)
        value = 0.3255
    else:
        expected = [[0.1, 0.1, 0, 0], [0, 0.1, 0.25, 0], [0, 0, 0.05, 0.4]]
        g = np.array([0, -0.5, -0.45, 0.1])
        value = 0.3275
    found, grad = semidual_value_and_grad(g, R3, ROWS, COLUMNS, **options)
    assert found == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(grad, 0, atol=1e-7 if k is None else 1e-15)
    plan = semidual_sparse_plan(g, R3, ROWS, COLUMNS, **options)
    np.testing.assert_allclose(dense(plan), expected, atol=1e-7 if k is None else 1e-15)
    if k is not None:
        np.testing.assert_allclose(plan.f, [0.9, 0.7, 0.5], atol=1e-15)
    value, grads = dual_value_and_grad(plan.f, g, R3, ROWS, COLUMNS, **options)
    assert value == pytest.approx(found, abs=1e-15)
    np.testing.assert_allclose(grads[0], 0, atol=1e-15)
    np.testing.assert_allclose(grads[1], grad, atol=1e-15)


def least_sparse(C, a, b, k, reg):
    """Optimum over plans with at most k positive entries in a row: a quadratic program for every support."""
    n, m = C.shape
    rows = [list(itertools.combinations(range(m), k))] * n
    A = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    best = np.inf
    for support in itertools.product(*rows):
        kept = np.zeros((n, m), bool)
        for i, columns in enumerate(support):
            kept[i, list(columns)] = True
        if not kept.any(axis=0).all():
            continue
        # active sets: the least-norm solutions on all sub-supports, kept if they are feasible
        free = np.flatnonzero(kept)
        for size in range(m, len(free) + 1):
            for sub in map(list, itertools.combinations(free, size)):
                q = len(sub)
                K = np.block([[reg * np.eye(q), A[:, sub].T], [A[:, sub], np.zeros((n + m, n + m))]])
                t = (np.linalg.pinv(K) @ np.concatenate([-C.ravel()[sub], a, b]))[:q]
                if t.min() >= -1e-12 and np.abs(A[:, sub] @ t - np.concatenate([a, b])).max() < 1e-10:
                    best = min(best, C.ravel()[sub] @ t + reg / 2 * t @ t)
    return best


@pytest.mark.slow
@pytest.mark.parametrize(("C", "semidual", "primal"), [(R3, 0.3275, 0.3275), (R4, 0.316875, 0.3175)])
def test_least_over_all_sparse_plans_is_not_below_the_semidual(C, semidual, primal):
    assert least_sparse(C, ROWS, COLUMNS, 2, 1.0) == pytest.approx(primal, abs=1e-9)
    options = {"reg": 1.0, "regularizer": "ksparse", "k": 2}
    best, _ = semidual_value_and_grad(maximise(C, ROWS, COLUMNS, **options), C, ROWS, COLUMNS, **options)
    assert semidual - 2e-3 < best <= semidual + 1e-14


def test_reference_problem_with_a_gap():
    """The relaxation approaches the maximum from above, at plans that have the marginals."""
    for relax, width in ((1e-1, 1e-1), (1e-2, 1e-2), (1e-3, 1e-3)):
        options = {"reg": 1.0, "regularizer": "ksparse", "k": 2, "relax": relax}
        g = maximise(R4, ROWS, COLUMNS, **options)
        value, grad = semidual_value_and_grad(g, R4, ROWS, COLUMNS, **options)
        assert 0.316875 <= value <= 0.316875 + width
        assert np.abs(grad).sum() < 1e-6
        del options["relax"]
        assert semidual_value_and_grad(g, R4, ROWS, COLUMNS, **options)[0] <= 0.316875 + 1e-14
        assert np.abs(semidual_value_and_grad(g, R4, ROWS, COLUMNS, **options)[1]).sum() > 1e-3


def test_one_entry_per_row_is_the_linear_problem():
    C, a, b, _, _ = problem(8, 6, seed=3)
    n, m = C.shape
    A = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    lp = scipy.optimize.linprog(C.ravel(), A_eq=A, b_eq=np.concatenate([a, b]), method="highs")
    g = lp.eqlin.marginals[n:]
    for reg in (0.01, 1.0, 50.0):
        value, _ = semidual_value_and_grad(g, C, a, b, reg=reg, regularizer="ksparse", k=1)
        assert value == pytest.approx(lp.fun + reg / 2 * a @ a, rel=1e-13)
    value, grad = semidual_value_and_grad(g, C, a, b, regularizer="none")
    assert value == pytest.approx(lp.fun, rel=1e-13)
    rng = np.random.default_rng(0)
    for other in g + 0.1 * rng.normal(size=(20, m)):  # concave, with this supergradient
        assert semidual_value_and_grad(other, C, a, b, regularizer="none")[0] <= lp.fun + 1e-14
        value, grad = semidual_value_and_grad(other, C, a, b, regularizer="none")
        assert lp.fun <= value + grad @ (g - other) + 1e-14


@pytest.mark.slow
def test_published_kind_of_colour_problem():
    """Values of the semi-dual after L-BFGS, for points drawn like colours."""
    rng = np.random.default_rng(0)
    X = rng.beta(2, 2, (256, 3))
    Y = np.clip(rng.beta(2, 5, (256, 3)) * [1, 0.8, 1.2], 0, 1)
    a, b = rng.dirichlet(2 * np.ones(256)), rng.dirichlet(2 * np.ones(256))
    C = PointCloud(Y, X)  # at most k sources for each target
    for k, value, share in ((16, 0.19663851, 0.01077), (None, 0.19663851, 0.01077)):
        options = {"reg": 1.0, "regularizer": "l2" if k is None else "ksparse", "k": k}
        g = maximise(C, b, a, **options)
        found, grad = semidual_value_and_grad(g, C, b, a, **options)
        assert found == pytest.approx(value, abs=1e-8)
        assert (grad**2).sum() < 1e-11
        plan = semidual_sparse_plan(g, C, b, a, **options)
        assert plan.nnz / 256**2 == pytest.approx(share, abs=1e-4)
        assert plan.lists()[0].shape[1] == 11


# ---------------------------------------------------------------- the functions


@pytest.mark.parametrize("k", [1, 2, 3, 9, 20])
@pytest.mark.parametrize("reg", [0.05, 1.0, 30.0])
def test_values_and_plans_are_those_of_all_supports(k, reg):
    C, a, b, f, g = problem(mass=2.0)
    if k >= 9 and reg > 1:
        C, b, g = C[:, :6], 2 * b[:6] / b[:6].sum(), g[:6]
    a = np.where(np.arange(7) == 3, 0, a)
    b = b * (a.sum() / b.sum())
    options = {"reg": reg, "regularizer": "ksparse", "k": k}
    rows = [row_optimum(g - C[i], k, a[i], reg) for i in range(7)]
    P = np.stack([t if t is not None else 0 * g for _, t in rows])
    value, grad = semidual_value_and_grad(g, C, a, b, **options)
    assert value == pytest.approx(g @ b - sum(v for v, _ in rows if np.isfinite(v)), rel=1e-13)
    np.testing.assert_allclose(grad, b - P.sum(0), atol=1e-14)
    plan = semidual_sparse_plan(g, C, a, b, **options)
    np.testing.assert_allclose(dense(plan), P, atol=1e-14)
    x = np.where(a > 0, f, -np.inf)[:, None] + g - C
    kept = np.argsort(np.argsort(-x, axis=1, kind="stable"), axis=1) < k
    T = np.where(kept, np.maximum(x, 0), 0) / reg
    value, grads = dual_value_and_grad(f, g, C, a, b, **options)
    assert value == pytest.approx(f @ a + g @ b - reg / 2 * (T**2).sum(), rel=1e-13)
    np.testing.assert_allclose(grads[0], np.where(a > 0, a - T.sum(1), 0), atol=1e-14)
    np.testing.assert_allclose(grads[1], b - T.sum(0), atol=1e-14)
    np.testing.assert_allclose(dense(dual_sparse_plan(f, g, C, a, b, **options)), T, atol=1e-14)


@pytest.mark.parametrize("relax", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_semidual_is_the_maximum_of_the_dual_over_f(k, relax):
    C, a, b, _, g = problem()
    options = {"reg": 0.7, "regularizer": "ksparse", "k": k, "relax": relax}
    value, grad = semidual_value_and_grad(g, C, a, b, **options)
    f = semidual_sparse_plan(g, C, a, b, **options).f
    best, grads = dual_value_and_grad(f, g, C, a, b, **options)
    assert best == pytest.approx(value, abs=1e-14)
    np.testing.assert_allclose(grads[0], 0, atol=1e-14)
    np.testing.assert_allclose(grads[1], grad, atol=1e-14)
    for other in f + 0.3 * np.random.default_rng(0).normal(size=(30, len(f))):
        assert dual_value_and_grad(other, g, C, a, b, **options)[0] <= value + 1e-14


@pytest.mark.parametrize(
    "options",
    [{"regularizer": "none"}, {"regularizer": "l2"}]
    + [{"regularizer": "ksparse", "k": k, "relax": relax} for k in (1, 2, 5) for relax in (0.0, 0.1)],
)
def test_gradients_match_differences(options):
    C, a, b, f, g = problem(seed=5)
    reg, step = 0.3, 1e-6

    def slope(function, x):
        return [(function(x + d) - function(x - d)) / (2 * step) for d in step * np.eye(len(x))]

    options = {"reg": reg, **options}
    _, grad = semidual_value_and_grad(g, C, a, b, **options)
    expected = slope(lambda x: semidual_value_and_grad(x, C, a, b, **options)[0], g)
    np.testing.assert_allclose(grad, expected, atol=2e-8)
    if options["regularizer"] != "none":
        _, (grad_f, grad_g) = dual_value_and_grad(f + 0.5, g, C, a, b, **options)
        by_f = slope(lambda x: dual_value_and_grad(x, g, C, a, b, **options)[0], f + 0.5)
        by_g = slope(lambda y: dual_value_and_grad(f + 0.5, y, C, a, b, **options)[0], g)
        np.testing.assert_allclose(grad_f, by_f, atol=2e-8)
        np.testing.assert_allclose(grad_g, by_g, atol=2e-8)
    # by the weights, the cost and reg, at fixed g: f, the plan, and half its square norm
    plan = semidual_sparse_plan(g, C, a, b, **options)
    shift = np.eye(len(a)) - 1 / len(a)
    by_a = [
        (semidual_value_and_grad(g, C, a + d, b, **options)[0] - semidual_value_and_grad(g, C, a - d, b, **options)[0])
        / (2 * step)
        for d in step * shift
    ]
    np.testing.assert_allclose(by_a, shift @ plan.f, atol=2e-8)
    direction = np.random.default_rng(1).normal(size=C.shape)
    by_cost = [semidual_value_and_grad(g, C + t * direction, a, b, **options)[0] for t in (step, -step)]
    assert (by_cost[0] - by_cost[1]) / (2 * step) == pytest.approx((dense(plan) * direction).sum(), abs=2e-8)
    if options["regularizer"] == "l2" or options.get("relax") == 0:
        by_reg = [semidual_value_and_grad(g, C, a, b, **{**options, "reg": reg + t})[0] for t in (step, -step)]
        assert (by_reg[0] - by_reg[1]) / (2 * step) == pytest.approx((plan.values**2).sum() / 2, abs=2e-8)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_relaxed_maximum_has_the_value_of_its_plan(k):
    """At the maximum of the relaxed semi-dual both marginals hold, and the primal objective is the dual's."""
    C, a, b, _, _ = problem(12, 10, seed=2)
    options = {"reg": 1.0, "regularizer": "ksparse", "k": k, "relax": 0.1}
    g = maximise(C, a, b, **options)
    value, grad = semidual_value_and_grad(g, C, a, b, **options)
    assert np.abs(grad).sum() < 1e-6
    P = dense(semidual_sparse_plan(g, C, a, b, **options))
    np.testing.assert_allclose(P.sum(1), a, atol=1e-15)
    np.testing.assert_allclose(P.sum(0), b - grad, atol=1e-15)
    primal = (C * P).sum() + ksupport_norm_sq(P, k).sum() / 2 + 0.05 * (P**2).sum()
    assert primal == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("regularizer", ["l2", "ksparse"])
def test_tiny_regularisation_approaches_none(regularizer):
    C, a, b, _, g = problem(seed=1)
    expected = semidual_value_and_grad(g, C, a, b, regularizer="none")
    for reg in (1e-12, 1e-300):
        options = {"reg": reg, "regularizer": regularizer, "k": 3 if regularizer == "ksparse" else None}
        value, grad = semidual_value_and_grad(g, C, a, b, **options)
        assert value == pytest.approx(expected[0], abs=1e-11)
        np.testing.assert_allclose(grad, expected[1], atol=1e-15)
        np.testing.assert_allclose(dense(semidual_sparse_plan(g, C, a, b, **options)).sum(1), a, rtol=1e-14)


def test_k_from_m_on_is_quadratic():
    C, a, b, f, g = problem()
    expected = semidual_value_and_grad(g, C, a, b, reg=0.5, regularizer="l2")
    for k in (9, 10, 10**9):
        options = {"reg": 0.5, "regularizer": "ksparse", "k": k}
        found = semidual_value_and_grad(g, C, a, b, **options)
        assert found[0] == expected[0]
        assert np.array_equal(found[1], expected[1])
        value, _ = dual_value_and_grad(f, g, C, a, b, **options)
        assert value == dual_value_and_grad(f, g, C, a, b, reg=0.5, regularizer="l2")[0]


def test_value_falls_with_k():
    C, a, b, _, g = problem()
    values = [semidual_value_and_grad(g, C, a, b, reg=0.5, regularizer="ksparse", k=k)[0] for k in range(1, 10)]
    assert (np.diff(values) <= 1e-15).all()


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    "options", [{"regularizer": "l2"}, {"regularizer": "ksparse", "k": 3}, {"regularizer": "none"}]
)
@pytest.mark.parametrize("d", [2, 12])
def test_all_costs_agree(options, d, monkeypatch):
    from ot_numba.costs import gibbs

    grid = Grid((4, 5), (3, 4))
    nodes = [
        np.stack(np.meshgrid(*(np.linspace(0, 1, k) for k in shape), indexing="ij"), -1).reshape(-1, 2)
        for shape in ((4, 5), (3, 4))
    ]
    rng = np.random.default_rng(0)
    a, b, f, g = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(12)), *(0.1 * rng.normal(size=k) for k in (20, 12))
    pad = np.zeros((1, d - 2))
    cloud = PointCloud(*(np.hstack([v, np.repeat(pad, len(v), 0)]) for v in nodes))
    dense_cost = grid.to_dense()
    options = {"reg": 2.0, **options}

    def everything(C):
        yield from semidual_value_and_grad(g, C, a, b, **options)
        plan = semidual_sparse_plan(g, C, a, b, **options)
        yield from (plan.f, dense(plan))
        if options["regularizer"] != "none":
            value, grads = dual_value_and_grad(f, g, C, a, b, **options)
            yield from (value, *grads, dense(dual_sparse_plan(f, g, C, a, b, **options)))

    expected = list(everything(dense_cost))
    for tile in (gibbs.TILE_ENTRIES, 36):
        monkeypatch.setattr(gibbs, "TILE_ENTRIES", tile)
        for C in (grid, cloud, PointCloud(*nodes, metric=2.0)):
            for found, wanted in zip(everything(C), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-13)
    euclidean = PointCloud(*nodes, metric="euclidean")
    for found, wanted in zip(everything(euclidean), everything(euclidean.to_dense()), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-13)


@pytest.mark.parametrize("options", [{"regularizer": "l2"}, {"regularizer": "ksparse", "k": 2, "relax": 0.1}])
def test_points_without_weight_take_no_part(options):
    C, a, b, f, g = problem()
    a, b = np.where(np.arange(7) == 2, 0, a), np.where(np.arange(9) % 4 == 1, 0, b)
    a, b = a / a.sum(), b / b.sum()
    rows, columns = a > 0, b > 0
    small = C[np.ix_(rows, columns)], a[rows], b[columns]
    options = {"reg": 0.5, **options}
    g = np.where(columns, g, -np.inf)
    f = np.where(rows, f, -np.inf)
    value, grad = semidual_value_and_grad(g, C, a, b, **options)
    expected = semidual_value_and_grad(g[columns], *small, **options)
    assert value == pytest.approx(expected[0], rel=1e-14)
    np.testing.assert_allclose(grad[columns], expected[1], atol=1e-15)
    assert (grad[~columns] == 0).all()
    plan = semidual_sparse_plan(g, C, a, b, **options)
    assert np.isfinite(plan.f).all()
    assert dense(plan)[~rows].sum() == dense(plan)[:, ~columns].sum() == 0
    value, (grad_f, grad_g) = dual_value_and_grad(f, g, C, a, b, **options)
    expected = dual_value_and_grad(f[rows], g[columns], *small, **options)
    assert value == pytest.approx(expected[0], rel=1e-14)
    np.testing.assert_allclose(grad_f[rows], expected[1][0], atol=1e-15)
    np.testing.assert_allclose(grad_g[columns], expected[1][1], atol=1e-15)
    assert (grad_f[~rows] == 0).all()
    plan = dual_sparse_plan(f, g, C, a, b, **options)
    assert dense(plan)[~rows].sum() == dense(plan)[:, ~columns].sum() == 0


def test_forbidden_pairs_get_no_mass():
    C, a, b, f, g = problem()
    C[1, :8] = C[4, ::2] = np.inf
    for options in ({"regularizer": "l2"}, {"regularizer": "ksparse", "k": 3}, {"regularizer": "none"}):
        value, _ = semidual_value_and_grad(g, C, a, b, reg=5.0, **options)
        assert np.isfinite(value)
        P = dense(semidual_sparse_plan(g, C, a, b, reg=5.0, **options))
        np.testing.assert_allclose(P.sum(1), a, rtol=1e-13)
        assert P[~np.isfinite(C)].sum() == 0
    assert dense(dual_sparse_plan(f, g, C, a, b, reg=5.0))[~np.isfinite(C)].sum() == 0
    with pytest.raises(ValueError, match="row 1"):
        semidual_value_and_grad(g, np.where(np.arange(7)[:, None] == 1, np.inf, C), a, b, reg=1, regularizer="l2")


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("regularizer", ["none", "l2", "ksparse"])
def test_one_row_or_column(shape, regularizer):
    rng = np.random.default_rng(0)
    C, g = rng.random(shape), rng.normal(size=shape[1])
    options = {"reg": 0.4, "regularizer": regularizer, "k": 2 if regularizer == "ksparse" else None}
    value, grad = semidual_value_and_grad(g, C, **options)
    a, reg = np.full(shape[0], 1 / shape[0]), 0.4
    if regularizer == "none":
        expected = g.mean() - a @ (g - C).max(1)
    else:
        k = options["k"] or 5
        expected = g.mean() - sum(row_optimum(g - c, k, w, reg)[0] for c, w in zip(C, a, strict=True))
    assert value == pytest.approx(expected, abs=1e-15)
    plan = semidual_sparse_plan(g, C, **options)
    np.testing.assert_allclose(dense(plan).sum(1), a, rtol=1e-14)
    np.testing.assert_allclose(1 / shape[1] - dense(plan).sum(0), grad, atol=1e-15)


@pytest.mark.parametrize("k", [1, 3, None])
def test_float32_stays_float32(k):
    C, a, b, f, g = problem(20, 30)
    narrow = [v.astype(np.float32) for v in (g, C, a, b)]
    options = {"reg": 1.0, "regularizer": "l2" if k is None else "ksparse", "k": k}
    value, grad = semidual_value_and_grad(*narrow, **options)
    wide = semidual_value_and_grad(*(v.astype(float) for v in narrow), **options)
    assert isinstance(value, float)
    assert grad.dtype == np.float32
    assert value == pytest.approx(wide[0], abs=1e-6)
    np.testing.assert_allclose(grad, wide[1], atol=1e-6)
    plan = semidual_sparse_plan(*narrow, **options)
    assert plan.f.dtype == plan.g.dtype == plan.values.dtype == np.float32
    np.testing.assert_allclose(dense(plan).sum(1, dtype=float), narrow[2], atol=1e-6)
    _, grads = dual_value_and_grad(f.astype(np.float32), *narrow, **options)
    assert grads[0].dtype == grads[1].dtype == np.float32


def test_any_layout_and_inputs_are_not_modified():
    C, a, b, f, g = problem()
    options = {"reg": 0.5, "regularizer": "ksparse", "k": 2}
    expected = semidual_value_and_grad(g, C, a, b, **options)
    big = np.zeros((14, 18))
    big[::2, ::2] = C
    frozen = C.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(C), big[::2, ::2], frozen, C.astype(">f8"), C.tolist(), CostMatrix(C)):
        value, grad = semidual_value_and_grad(g, same, a, b, **options)
        assert value == expected[0]
        assert np.array_equal(grad, expected[1])
    before = [v.copy() for v in (C, a, b, f, g)]
    dual_value_and_grad(f, g, C, a, b, **options)
    semidual_sparse_plan(g, C, a, b, **options)
    for old, new in zip(before, (C, a, b, f, g), strict=True):
        np.testing.assert_array_equal(old, new)


def test_array_api_arrays_agree():
    C, a, b, f, g = problem()
    there = [array_api_strict.asarray(v) for v in (f, g, C, a, b)]
    for options in (
        {"regularizer": "none"}, {"regularizer": "l2"}, {"regularizer": "ksparse", "k": 2, "relax": 0.1},
    ):  # fmt: skip
        options = {"reg": 0.5, **options}
        value, grad = semidual_value_and_grad(*there[1:], **options)
        expected = semidual_value_and_grad(g, C, a, b, **options)
        assert value == pytest.approx(expected[0], rel=1e-13)
        np.testing.assert_allclose(np.asarray(grad), expected[1], atol=1e-14)
        plan, ours = semidual_sparse_plan(*there[1:], **options), semidual_sparse_plan(g, C, a, b, **options)
        assert array_api_strict.__name__ in type(plan.values).__module__
        np.testing.assert_allclose(dense(plan), dense(ours), atol=1e-14)
        np.testing.assert_array_equal(np.asarray(plan.lists()[0]), ours.lists()[0])
        if options["regularizer"] != "none":
            value, grads = dual_value_and_grad(*there, **options)
            expected = dual_value_and_grad(f, g, C, a, b, **options)
            assert value == pytest.approx(expected[0], rel=1e-13)
            np.testing.assert_allclose(np.asarray(grads[0]), expected[1][0], atol=1e-14)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.sampled_from([0, 0.1]))
def test_shifts_and_permutations(seed, n, m, k, relax):
    C, a, b, _, g = problem(n, m, seed)
    options = {"reg": 0.5, "regularizer": "ksparse", "k": k, "relax": relax}
    value, grad = semidual_value_and_grad(g, C, a, b, **options)
    assert semidual_value_and_grad(g + 0.7, C, a, b, **options)[0] == pytest.approx(value, abs=1e-13)
    assert semidual_value_and_grad(g, C + 0.7, a, b, **options)[0] == pytest.approx(value + 0.7, abs=1e-13)
    rows, columns = (np.random.default_rng(seed).permutation(size) for size in (n, m))
    other = semidual_value_and_grad(g[columns], C[rows][:, columns], a[rows], b[columns], **options)
    assert other[0] == pytest.approx(value, abs=1e-13)
    np.testing.assert_allclose(other[1], grad[columns], atol=1e-13)
    scaled = semidual_value_and_grad(4 * g, 4 * C, a, b, **{**options, "reg": 2.0})
    assert scaled[0] == pytest.approx(4 * value, abs=1e-13)


def test_threads_do_not_change_the_bits():
    rng = np.random.default_rng(0)
    before, results = get_num_threads(), []
    C = PointCloud(rng.random((1100, 12)), rng.random((1000, 12)))
    g = 0.1 * rng.normal(size=1000)
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            value, grad = semidual_value_and_grad(g, C, reg=30.0, regularizer="ksparse", k=4)
            plan = semidual_sparse_plan(g, C, reg=30.0)
            results.append((value, *grad, *plan.f, *plan.values, *plan.indices))
    finally:
        set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_no_array_of_the_size_of_the_plan():
    import tracemalloc

    rng = np.random.default_rng(5)
    points = PointCloud(rng.random((3000, 2)), rng.random((2500, 2)))
    g = np.zeros(2500)
    options = {"reg": 1.0, "regularizer": "ksparse", "k": 3}
    semidual_sparse_plan(g, points, **options)
    tracemalloc.start()
    semidual_value_and_grad(g, points, **options)
    semidual_sparse_plan(g, points, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 2500 * 8 / 10


# ---------------------------------------------------------------- plans


def test_plan_as_lists_and_as_csr():
    C, a, b, f, g = problem()
    plan = semidual_sparse_plan(g, C, a, b, reg=2.0)
    csr = plan.to_csr()
    assert isinstance(csr, scipy.sparse.csr_array)
    assert csr.has_canonical_format
    assert csr.dropped_mass == 0
    assert repr(plan) == f"SparsePlan(7 x 9, nnz={plan.nnz})"
    indices, values = plan.lists()
    rebuilt = np.zeros((7, 10))
    np.put_along_axis(rebuilt, indices, values, axis=1)  # column -1 takes the padding
    np.testing.assert_array_equal(rebuilt[:, :9], csr.toarray())
    assert (values[indices < 0] == 0).all()
    empty = dual_sparse_plan(f - 10, g, C, a, b, reg=2.0)
    assert empty.nnz == 0
    assert empty.lists()[0].shape == (7, 0)


def test_no_regularisation_takes_the_nearest():
    C, a, b, _, g = problem()
    plan = semidual_sparse_plan(g, C, a, b, regularizer="none")
    np.testing.assert_array_equal(plan.indices, (g - C).argmax(1))
    np.testing.assert_array_equal(plan.values, a)
    np.testing.assert_array_equal(plan.f, -(g - C).max(1))
    assert semidual_value_and_grad(g, C, a, b, regularizer="none")[0] == pytest.approx(
        g @ b - a @ (g - C).max(1), rel=1e-14
    )


def test_of_equal_entries_the_first_are_kept():
    plan = semidual_sparse_plan(np.zeros(5), np.zeros((2, 5)), reg=1.0, regularizer="ksparse", k=2)
    np.testing.assert_array_equal(plan.lists()[0], [[0, 1], [0, 1]])
    np.testing.assert_array_equal(plan.lists()[1], np.full((2, 2), 0.25))


# ---------------------------------------------------------------- other packages


def test_agreement_with_pot():
    smooth = pytest.importorskip("ot").smooth
    C, a, b, f, g = problem(30, 40)
    # its rows are our columns: the sums along the columns of its cost are eliminated
    for k, theirs in ((None, smooth.SquaredL2(0.5)), (3, smooth.SparsityConstrained(3, 0.5))):
        options = {"reg": 0.5, "regularizer": "l2" if k is None else "ksparse", "k": k}
        value, grad = semidual_value_and_grad(g, C, a, b, **options)
        expected, expected_grad = smooth.semi_dual_obj_grad(g, b, a, C.T.copy(), theirs)
        assert value == pytest.approx(float(expected), rel=1e-13)
        np.testing.assert_allclose(grad, np.ravel(expected_grad), atol=1e-14)
        value, grads = dual_value_and_grad(f + 0.3, g, C, a, b, **options)
        expected, expected_g, expected_f = smooth.dual_obj_grad(g, f + 0.3, b, a, C.T.copy(), theirs)
        assert value == pytest.approx(float(np.ravel(expected)[0]), rel=1e-13)
        np.testing.assert_allclose(grads[0], np.ravel(expected_f), atol=1e-14)
        np.testing.assert_allclose(grads[1], np.ravel(expected_g), atol=1e-14)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"regularizer": "ksparse"}, ValueError, "k must be given with regularizer='ksparse'"),
        ({"regularizer": "ksparse", "k": 0}, ValueError, "k must be >= 1, got 0"),
        ({"regularizer": "ksparse", "k": 1.5}, TypeError, "k must be an integer, got 1.5"),
        ({"regularizer": "l2", "k": 2}, ValueError, "k goes with regularizer='ksparse', got k=2 with 'l2'"),
        ({"regularizer": "l2", "relax": 0.1}, ValueError, "relax goes with regularizer='ksparse'"),
        ({"regularizer": "ksparse", "k": 2, "relax": -1}, ValueError, "relax must be >= 0"),
        ({"regularizer": "ksparse", "k": 2, "relax": np.inf}, ValueError, "relax must be"),
        ({"reg": 0.0}, ValueError, "reg must be > 0"),
        ({"reg": None}, TypeError, "reg must be a real number"),
        ({"g": np.zeros(4)}, ValueError, r"g must have shape \(9,\)"),
        ({"g": np.full(9, np.nan)}, ValueError, "g has NaN"),
        ({"a": -np.ones(7)}, ValueError, "a must not be negative"),
        ({"b": np.ones(9)}, ValueError, "b to 9"),
        ({"C": np.full((7, 9), np.nan)}, ValueError, "C has NaN"),
        ({"g": array_api_strict.zeros(9)}, TypeError, "array_api_strict and numpy"),
    ],
)
def test_bad_input_is_named(change, error, match):
    C, a, b, f, g = problem()
    given = {"g": g, "C": C, "a": a, "b": b, "reg": 0.1, "regularizer": "l2", **change}
    for function in (semidual_value_and_grad, semidual_sparse_plan):
        with pytest.raises(error, match=match):
            function(**given)
    for function in (dual_value_and_grad, dual_sparse_plan):
        with pytest.raises(error, match=match):
            function(f, **given)


def test_what_has_no_dual_is_refused():
    C, a, b, f, g = problem()
    for function in (dual_value_and_grad, dual_sparse_plan):
        with pytest.raises(ValueError, match="'none' has a semi-dual only"):
            function(f, g, C, a, b, reg=1.0, regularizer="none")
    for regularizer in ("l2", "ksparse"):
        with pytest.raises(ValueError, match="unbalanced goes with regularizer='kl' or 'entropy'"):
            dual_value_and_grad(f, g, C, a, b, reg=1.0, regularizer=regularizer, k=1, unbalanced=1.0)
    for function in (semidual_sparse_plan, semidual_value_and_grad):
        with pytest.raises(ValueError, match="regularizer must be one of"):
            function(g, C, a, b, reg=1.0, regularizer="lp")
    with pytest.raises(ValueError, match="regularizer must be one of 'none', 'l2', 'ksparse', got 'kl'"):
        semidual_sparse_plan(g, C, a, b, reg=1.0, regularizer="kl")


def test_class_takes_any_k():
    C, a, b, f, g = problem()
    for k in (None, 9, 50):
        dual = SparseDual(CostMatrix(C), a, b, 0.5, k)
        _, grad, f = dual.semidual(g)
        indptr, indices, values, again = dual.plan_from_semidual(g)
        assert np.array_equal(f, again)
        assert len(values) == len(indices) == indptr[-1]
        np.testing.assert_allclose(np.bincount(indices, values, minlength=9), b - grad, atol=1e-15)
