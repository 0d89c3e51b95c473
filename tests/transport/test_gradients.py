import warnings

import numpy as np
import pytest
from numba import njit

from ot_numba.arrays import ConvergenceError, ConvergenceWarning, to_numpy
from ot_numba.costs import Grid, PointCloud
from ot_numba.transport import sinkhorn, sinkhorn_newton
from ot_numba.transport.gradients import plan_vjp, transport_gradients

REG = 0.2
METRICS = ["sqeuclidean", "euclidean", 1.5, 3.0, "cityblock", "cosine"]
PENALTIES = [None, 0.7, (0.7, 1.3), (None, 0.5), (0.5, None)]


def derivative(function, v, h=2e-4):
    """Central differences of fourth order by every entry of v."""
    v = np.asarray(v, float)
    out = np.zeros_like(v)
    for index in np.ndindex(v.shape):
        e = np.zeros_like(v)
        e[index] = h
        out[index] = (8 * (function(v + e) - function(v - e)) - function(v + 2 * e) + function(v - 2 * e)) / (12 * h)
    return out


def exact(C, a, b, reg=REG, **options):
    """Solution to the last digits."""
    return sinkhorn(C, a, b, reg=reg, tol=1e-15, method="log", on_fail="ignore", **options)


def random_problem(seed=0, n=6, m=5, mass=1.0):
    rng = np.random.default_rng(seed)
    a, b = mass * rng.dirichlet(np.full(n, 3.0)), mass * rng.dirichlet(np.full(m, 3.0))
    return rng.random((n, m)), a, b


def balanced_directions(a, b, seed=1):
    """Changes of both weights that keep the masses equal, some of which change the mass."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        da, db = a * rng.standard_normal(a.size), b * rng.standard_normal(b.size)
        yield da, db * 1 + b / b.sum() * (da.sum() - db.sum())


# ---- the value


@pytest.mark.parametrize("mass", [1.0, 2.5])
@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("unbalanced", PENALTIES)
def test_value_by_weights_cost_and_reg(unbalanced, regularizer, mass):
    C, a, b = random_problem(mass=mass)
    options = {"regularizer": regularizer, "unbalanced": unbalanced}

    def value(C=C, a=a, b=b, reg=REG):
        return exact(C, a, b, float(reg), **options).dual_value

    g = transport_gradients(exact(C, a, b, **options), ("a", "b", "C", "reg"))
    assert np.allclose(g["C"], derivative(lambda v: value(C=v), C), rtol=0, atol=1e-8)
    assert np.isclose(g["reg"], derivative(lambda v: value(reg=v), REG), rtol=0, atol=1e-8)
    if unbalanced is None:
        for da, db in balanced_directions(a, b):
            slope = derivative(lambda t, da=da, db=db: value(a=a + t * da, b=b + t * db), 0.0)
            assert np.isclose(da @ g["a"] + db @ g["b"], slope, rtol=0, atol=1e-8)
        assert a @ g["a"] == pytest.approx(b @ g["b"], abs=1e-12)
    else:
        assert np.allclose(g["a"], derivative(lambda v: value(a=v), a), rtol=0, atol=1e-8)
        assert np.allclose(g["b"], derivative(lambda v: value(b=v), b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("unbalanced", [None, 0.7])
def test_value_by_weights_that_are_zero(unbalanced):
    """The KL form is smooth up to the boundary: one-sided differences there."""
    C, a, b = random_problem()
    a[1], b[3] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    g = transport_gradients(exact(C, a, b, unbalanced=unbalanced))
    da, db, h = np.zeros(6), np.zeros(5), 1e-4
    da[1] = db[3] = h
    if unbalanced is None:
        da[0] -= h
        db[0] -= h
    values = [exact(C, a + k * da, b + k * db, unbalanced=unbalanced).dual_value for k in range(4)]
    slope = (-11 * values[0] + 18 * values[1] - 9 * values[2] + 2 * values[3]) / 6
    assert np.isclose(da @ g["a"] + db @ g["b"], slope, rtol=0, atol=1e-7 * h)


def test_balanced_gradients_of_probabilities_are_the_potentials(xp):
    C, a, b = random_problem()
    result = exact(xp.asarray(C), xp.asarray(a), xp.asarray(b))
    g = transport_gradients(result)
    assert np.allclose(to_numpy(g["a"]), to_numpy(result.f), rtol=0, atol=1e-15)
    assert np.allclose(to_numpy(g["b"]), to_numpy(result.g), rtol=0, atol=1e-15)


def test_by_reg_is_the_divergence_of_the_plan_from_the_product():
    C, a, b = random_problem()
    result = exact(C, a, b)
    P = result.plan
    assert transport_gradients(result, "reg")["reg"] == pytest.approx((P * np.log(P / (a[:, None] * b))).sum())


@pytest.mark.parametrize("unbalanced", [None, 0.7])
@pytest.mark.parametrize("metric", METRICS)
def test_value_by_points(xp, metric, unbalanced):
    rng = np.random.default_rng(2)
    x, y = rng.random((6, 2)), rng.random((5, 2)) + 0.3
    _, a, b = random_problem()

    def value(x, y):
        return exact(PointCloud(x, y, metric), a, b, unbalanced=unbalanced).dual_value

    cost = PointCloud(xp.asarray(x), xp.asarray(y), metric)
    g = transport_gradients(exact(cost, xp.asarray(a), xp.asarray(b), unbalanced=unbalanced), ("x", "y"))
    assert np.allclose(to_numpy(g["x"]), derivative(lambda v: value(v, y), x), rtol=0, atol=1e-8)
    assert np.allclose(to_numpy(g["y"]), derivative(lambda v: value(x, v), y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("metric", METRICS)
def test_shared_points_are_two_arguments(metric):
    x = np.random.default_rng(3).random((6, 2))
    _, a, _ = random_problem()
    b = a[::-1].copy()
    g = transport_gradients(exact(PointCloud(x, metric=metric), a, b), ("x", "y"))
    apart = transport_gradients(exact(PointCloud(x, x.copy(), metric), a, b), ("x", "y"))
    assert np.allclose(g["x"], apart["x"], rtol=0, atol=1e-12)
    assert np.allclose(g["y"], apart["y"], rtol=0, atol=1e-12)
    if metric != "cosine":  # moving all points changes nothing
        assert np.allclose((g["x"] + g["y"]).sum(0), 0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "m"), [(900, 700), (3, 1100), (1100, 3)])
def test_tiles_add_up(metric, n, m):
    rng = np.random.default_rng(4)
    x, y = rng.random((n, 3)), rng.random((m, 3)) + 0.2
    result = sinkhorn(PointCloud(x, y, metric), reg=0.5)
    g = transport_gradients(result, ("x", "y"))
    P, d = result.plan, x[:, None] - y
    if metric == "cityblock":
        slope = np.sign(d)
    elif metric == "cosine":
        u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        slope = -(v[None] - u[:, None] * (u @ v.T)[:, :, None]) / np.linalg.norm(x, axis=1)[:, None, None]
    else:
        p = {"sqeuclidean": 2.0, "euclidean": 1.0}.get(metric, metric)
        slope = p * d * np.linalg.norm(d, axis=2)[:, :, None] ** (p - 2)
    assert np.allclose(g["x"], np.einsum("ij,ijd->id", P, slope), rtol=0, atol=1e-14)
    if metric != "cosine":
        assert np.allclose(g["y"], -np.einsum("ij,ijd->jd", P, slope), rtol=0, atol=1e-13)


@pytest.mark.parametrize("metric", ["euclidean", 0.5, 1.5, "cityblock"])
def test_coincident_points_count_zero(metric):
    x = np.array([[0.0, 0.0], [1.0, 0.0]])
    result = exact(PointCloud(x, x.copy(), metric), None, None)
    g = transport_gradients(result, "x")["x"]
    power = {"euclidean": 1.0, "cityblock": 1.0}.get(metric, metric)
    P = result.plan
    assert np.allclose(g, [[-power * P[0, 1], 0], [power * P[1, 0], 0]], rtol=0, atol=1e-12)


def test_far_from_the_origin():
    rng = np.random.default_rng(5)
    x, y = rng.random((20, 3)), rng.random((30, 3))
    near = transport_gradients(sinkhorn(PointCloud(x, y), reg=REG, tol=1e-12), "x")["x"]
    far = transport_gradients(sinkhorn(PointCloud(x + 1e4, y + 1e4), reg=REG, tol=1e-12), "x")["x"]
    assert np.allclose(near, far, rtol=0, atol=1e-11)


@pytest.mark.parametrize("metric", METRICS)
def test_float32_stays(xp, metric):
    rng = np.random.default_rng(6)
    x, y = rng.random((12, 2)) + 1, rng.random((9, 2)) + 1
    want = transport_gradients(sinkhorn(PointCloud(x, y, metric), reg=REG), ("a", "x", "y", "C", "reg"))
    x, y = (xp.asarray(v.astype(np.float32)) for v in (x, y))
    g = transport_gradients(sinkhorn(PointCloud(x, y, metric), reg=REG, tol=1e-5), ("a", "x", "y", "C", "reg"))
    assert list(g) == ["a", "x", "y", "C", "reg"]
    for name in ("a", "x", "y", "C"):
        assert g[name].dtype == xp.float32
        assert np.allclose(to_numpy(g[name]), want[name], rtol=0, atol=3e-5)
    assert g["reg"] == pytest.approx(want["reg"], abs=1e-4)


def test_entropy_form_without_weight():
    C, a, b = random_problem()
    a[0] = 0
    a /= a.sum()
    g = transport_gradients(exact(C, a, b, regularizer="entropy"))
    assert g["a"][0] == -np.inf
    assert np.all(np.isfinite(g["a"][1:]))
    g = transport_gradients(exact(C, a, b, regularizer="entropy", unbalanced=1.0), ("a", "b", "reg"))
    assert g["a"][0] == -np.inf
    assert np.isfinite(g["reg"])


def test_gradients_refuse():
    C, a, b = random_problem()
    result = exact(C, a, b)
    with pytest.raises(ValueError, match="wrt must be one of 'a', 'b', 'C', 'x', 'y', 'reg', got 'z'"):
        transport_gradients(result, ("a", "z"))
    with pytest.raises(ValueError, match=r"wrt='x' and 'y' needs the cost of a PointCloud .* a CostMatrix"):
        transport_gradients(result, ("x", "y"))
    with pytest.raises(ValueError, match=r"wrt='y' needs the cost of a PointCloud .* a Grid"):
        transport_gradients(sinkhorn(Grid((2, 2)), reg=1.0), "y")
    metric = njit(lambda x, y: abs(x[0] - y[0]))
    with pytest.raises(ValueError, match=r"wrt='x' .* a metric that is a function"):
        transport_gradients(sinkhorn(PointCloud([[0.0], [1.0]], metric=metric), reg=1.0), "x")


# ---- the plan


@pytest.mark.parametrize("shape", [(6, 5), (4, 6)])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
@pytest.mark.parametrize("unbalanced", PENALTIES)
def test_vjp(unbalanced, regularizer, solver, shape):
    C, a, b = random_problem(0, *shape, mass=1.3)
    G = np.random.default_rng(7).standard_normal(shape)
    options = {"regularizer": regularizer, "unbalanced": unbalanced}

    def loss(C=C, a=a, b=b, reg=REG):
        return (G * exact(C, a, b, float(reg), **options).plan).sum()

    got = plan_vjp(exact(C, a, b, **options), G, solver=solver, tol=1e-13)
    assert np.allclose(got.C, derivative(lambda v: loss(C=v), C), rtol=0, atol=1e-8)
    assert np.isclose(got.reg, derivative(lambda v: loss(reg=v), REG), rtol=0, atol=1e-8)
    if unbalanced is None:
        for da, db in balanced_directions(a, b):
            slope = derivative(lambda t, da=da, db=db: loss(a=a + t * da, b=b + t * db), 0.0)
            assert np.isclose(da @ got.a + db @ got.b, slope, rtol=0, atol=1e-8)
        assert a @ got.a == pytest.approx(b @ got.b, abs=1e-12)
    else:
        assert np.allclose(got.a, derivative(lambda v: loss(a=v), a), rtol=0, atol=1e-8)
        assert np.allclose(got.b, derivative(lambda v: loss(b=v), b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("unbalanced", [None, 0.7])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_vjp_by_weights_that_are_zero(solver, unbalanced):
    C, a, b = random_problem()
    a[1], b[3] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    G = np.random.default_rng(7).standard_normal(C.shape)
    got = plan_vjp(exact(C, a, b, unbalanced=unbalanced), G, solver=solver, tol=1e-13)
    da, db, h = np.zeros(6), np.zeros(5), 1e-4
    da[1], db[3] = h, 2 * h
    if unbalanced is None:
        da[0] -= h
        db[0] -= 2 * h
    values = [(G * exact(C, a + k * da, b + k * db, unbalanced=unbalanced).plan).sum() for k in range(4)]
    slope = (-11 * values[0] + 18 * values[1] - 9 * values[2] + 2 * values[3]) / 6
    assert np.isclose(da @ got.a + db @ got.b, slope, rtol=0, atol=1e-6 * h)
    assert np.all(got.C[1] == 0)
    assert np.all(got.C[:, 3] == 0)


def test_vjp_of_a_separable_function_is_known(xp):
    """L = <u, P 1> + <w, P' 1> depends on the weights alone."""
    C, a, b = random_problem()
    u, w = np.random.default_rng(8).standard_normal(6), np.random.default_rng(9).standard_normal(5)
    result = exact(xp.asarray(C), xp.asarray(a), xp.asarray(b))
    got = plan_vjp(result, xp.asarray(u[:, None] + w))
    assert np.allclose(to_numpy(got.C), 0, rtol=0, atol=1e-13)
    assert got.reg == pytest.approx(0, abs=1e-12)
    shift = (u @ a - w @ b) / 2
    assert np.allclose(to_numpy(got.a), u - shift, rtol=0, atol=1e-12)
    assert np.allclose(to_numpy(got.b), w + shift, rtol=0, atol=1e-12)


def test_vjp_of_the_linear_cost_agrees_with_the_value():
    """OT = <C, P> + reg R: two ways to the same derivative by C."""
    C, a, b = random_problem()
    result = exact(C, a, b)
    P = result.plan
    G = C + REG * (np.log(P / (a[:, None] * b)))
    got = plan_vjp(result, G)
    assert np.allclose(got.C, 0, rtol=0, atol=1e-12)
    assert np.allclose(got.a - result.f, 0, rtol=0, atol=1e-12)


def test_vjp_scaling_of_cost_and_reg():
    C, a, b = random_problem()
    G = np.random.default_rng(7).standard_normal(C.shape)
    got = plan_vjp(exact(C, a, b), G)
    assert got.reg == pytest.approx(-(got.C * C).sum() / REG, rel=1e-10)
    assert np.allclose(got.C.sum(0), 0, rtol=0, atol=1e-12)
    assert np.allclose(got.C.sum(1), 0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reg", [0.02, 1e-3, 1e-4])
def test_vjp_at_small_reg_keeps_its_digits(reg):
    """Against the same system in extended precision."""
    mpmath = pytest.importorskip("mpmath")
    C, a, b = random_problem(1)
    result = sinkhorn_newton(C, a, b, reg=reg, tol=1e-15, on_fail="ignore")
    G = np.random.default_rng(7).standard_normal(C.shape)
    P = result.plan
    with mpmath.workdps(60):
        rows = [mpmath.fsum(map(mpmath.mpf, row)) for row in P]
        columns = [mpmath.fsum(map(mpmath.mpf, column)) for column in P.T]
        K = mpmath.matrix(11, 11)
        right = mpmath.matrix(11, 1)
        for i in range(6):
            K[i, i] = rows[i]
            for j in range(5):
                K[i, 6 + j] = K[6 + j, i] = mpmath.mpf(P[i, j])
                right[i] += mpmath.mpf(G[i, j]) * mpmath.mpf(P[i, j])
                right[6 + j] += mpmath.mpf(G[i, j]) * mpmath.mpf(P[i, j])
        for j in range(5):
            K[6 + j, 6 + j] = columns[j]
        solution = mpmath.lu_solve(K[:10, :10], right[:10, :])
        left = np.array([float(v) for v in solution] + [0.0])
    weight_shift = (left[:6] @ P.sum(1) - left[6:] @ P.sum(0)) / 2
    got = plan_vjp(result, G)
    with mpmath.workdps(60):
        want = [
            [P[i, j] * (solution[i] + (solution[6 + j] if j < 4 else 0) - G[i, j]) for j in range(5)] for i in range(6)
        ]
    want = np.array(want, float) / reg
    assert np.allclose(got.C, want, rtol=0, atol=1e-10 * np.abs(want).max() + 1e-15 / reg)
    assert np.allclose(got.a, left[:6] - weight_shift, rtol=0, atol=1e-10 * np.abs(left).max())
    assert np.allclose(got.b, left[6:] + weight_shift, rtol=0, atol=1e-10 * np.abs(left).max())


@pytest.mark.parametrize("unbalanced", [None, 0.5, (0.5, None)], ids=str)
@pytest.mark.parametrize("reg", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", ["uniform", "points", "line", "L1"])
def test_vjp_and_gradients_at_the_accuracy_of_newton(name, reg, unbalanced):
    """Against differences of solutions by Newton's method, to what is left of their digits."""
    rng = np.random.default_rng(0)
    t, x = np.linspace(0, 1, 25), np.stack(np.divmod(np.arange(25), 5), axis=1) / 8
    C = {
        "uniform": rng.random((25, 25)),
        "points": ((rng.random((25, 1, 2)) - 0.7 * rng.random((25, 2))) ** 2).sum(-1),
        "line": (t[:, None] - t) ** 2,
        "L1": np.abs(x[:, None] - x).sum(-1),
    }[name]
    a, b = rng.dirichlet(np.full(25, 2.0), 2) * [[1.0], [1.0 if unbalanced is None else 1.2]]
    G, D = rng.standard_normal((2, *C.shape))
    da, db = a * rng.standard_normal(25), b * rng.standard_normal(25)
    if unbalanced is None:
        da, db = da - a * da.sum(), db - b * db.sum()

    def solution(cost=0.0, weights=0.0, more=0.0, init=None):
        return sinkhorn_newton(
            C + cost * D, a + weights * da, b + weights * db, reg=reg + more, unbalanced=unbalanced, tol=1e-12,
            init=init, on_fail="ignore",
        )  # fmt: skip

    result = solution()
    vjp, gradients = plan_vjp(result, G), transport_gradients(result, ("a", "b", "C", "reg"))
    for what, h, by_loss, by_value in (
        ("cost", 0.01 * reg, (vjp.C * D).sum(), (gradients["C"] * D).sum()),
        ("weights", 1e-5, da @ vjp.a + db @ vjp.b, da @ gradients["a"] + db @ gradients["b"]),
        ("more", 0.01 * reg, vjp.reg, gradients["reg"]),
    ):
        shifted = [solution(**{what: k * h}, init=result) for k in (1, -1, 2, -2)]
        losses, values = ([f(r) for r in shifted] for f in (lambda r: (G * r.plan).sum(), lambda r: r.dual_value))
        for found, (one, minus_one, two, minus_two), rtol in ((by_loss, losses, 1e-6), (by_value, values, 1e-7)):
            slope = (8 * (one - minus_one) - (two - minus_two)) / (12 * h)
            assert abs(found - slope) <= rtol * (1 + abs(slope)), (what, found, slope)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_vjp_of_a_plan_in_blocks(solver):
    """What weak or missing links leave open does not matter to the derivatives by C and reg."""
    C = np.array([[0.0, 1.0], [1.0, 0.0]])
    G = np.array([[1.0, 2.0], [3.0, 4.0]])
    for reg in (0.03, 0.01, 1e-3, 1e-4):
        got = plan_vjp(sinkhorn(C, reg=reg), G, solver=solver, on_fail="ignore")
        weak = np.exp(-1 / reg) / 4 / reg
        assert np.allclose(got.C, 0, rtol=0, atol=2 * weak + 1e-16 / reg)
    rng = np.random.default_rng(1)
    C = np.full((9, 8), np.inf)
    C[:4, :5], C[4:, 5:] = rng.random((4, 5)), rng.random((5, 3))
    a, b = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(8))
    b[:5] *= a[:4].sum() / b[:5].sum()
    b[5:] *= a[4:].sum() / b[5:].sum()
    G = rng.standard_normal(C.shape)
    for reg in (0.1, 0.02, 1e-3):
        got = plan_vjp(sinkhorn_newton(C, a, b, reg=reg, tol=1e-13), G, solver=solver, on_fail="ignore")
        for rows, columns in ((slice(4), slice(5)), (slice(4, None), slice(5, None))):
            part = sinkhorn_newton(C[rows, columns], a[rows], b[columns], reg=reg, tol=1e-13)
            alone = plan_vjp(part, G[rows, columns])
            assert np.allclose(got.C[rows, columns], alone.C, rtol=0, atol=1e-8 * np.abs(alone.C).max() + 1e-15 / reg)
            own = got.a[rows]
            assert np.allclose(own - own.mean(), alone.a - alone.a.mean(), rtol=0, atol=1e-7)


def test_vjp_one_column_and_one_row():
    for shape in ((3, 1), (1, 3), (1, 1)):
        got = plan_vjp(sinkhorn(np.ones(shape), reg=1.0), np.ones(shape))
        assert np.allclose(got.C, 0, rtol=0, atol=1e-15)


def test_vjp_float32(xp):
    C, a, b = random_problem()
    G = np.random.default_rng(7).standard_normal(C.shape)
    want = plan_vjp(exact(C, a, b), G)
    C, a, b = (xp.asarray(v.astype(np.float32)) for v in (C, a, b))
    got = plan_vjp(sinkhorn(C, a, b, reg=REG), xp.asarray(G))
    for mine, reference in zip(got[:3], want[:3], strict=True):
        assert mine.dtype == xp.float32
        assert np.allclose(to_numpy(mine), reference, rtol=0, atol=2e-4)
    assert got.reg == pytest.approx(want.reg, abs=1e-3)


def test_vjp_points_and_grids_and_forbidden_pairs():
    rng = np.random.default_rng(0)
    for C in (PointCloud(rng.random((8, 2)), rng.random((6, 2)), "euclidean"), Grid((2, 3))):
        G = rng.standard_normal(C.shape)
        dense = plan_vjp(exact(C.to_dense(), None, None), G)
        got = plan_vjp(exact(C, None, None), G)
        assert np.allclose(got.C, dense.C, rtol=0, atol=1e-11)
        assert got.reg == pytest.approx(dense.reg, abs=1e-10)
    C = rng.random((4, 4))
    C[0, 1] = np.inf
    got = plan_vjp(exact(C, None, None), rng.standard_normal((4, 4)))
    assert got.C[0, 1] == 0
    assert np.all(np.isfinite(got.C))
    assert np.isfinite(got.reg)


def test_vjp_reports_a_missed_tolerance():
    C, a, b = random_problem(0, 40, 30)
    result = sinkhorn(C, a, b, reg=0.02)
    G = np.random.default_rng(7).standard_normal(C.shape)
    with pytest.warns(ConvergenceWarning, match="relative residual .* in 2 iterations, tol=1e-10") as caught:
        plan_vjp(result, G, solver="cg", max_iter=2)
    assert caught[0].filename == __file__
    with pytest.raises(ConvergenceError, match="relative residual"):
        plan_vjp(result, G, solver="cg", max_iter=2, on_fail="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_vjp(result, G, solver="cg", max_iter=2, on_fail="ignore")


def test_vjp_refuses():
    C, a, b = random_problem()
    result = exact(C, a, b)
    G = np.ones(C.shape)
    with pytest.raises(ValueError, match=r"G must have shape \(6, 5\), got \(5, 6\)"):
        plan_vjp(result, G.T)
    with pytest.raises(ValueError, match="G has NaN"):
        plan_vjp(result, G * np.nan)
    with pytest.raises(ValueError, match="solver must be one of 'cholesky', 'cg', got 'lu'"):
        plan_vjp(result, G, solver="lu")
    with pytest.raises(ValueError, match="on_fail must be one of"):
        plan_vjp(result, G, on_fail="stop")
    with pytest.raises(ValueError, match="tol must be >= 0"):
        plan_vjp(result, G, tol=-1.0)
    with pytest.raises(TypeError, match="max_iter must be an integer"):
        plan_vjp(result, G, max_iter=1.5)
    far = sinkhorn(C, a, b, reg=1e-3, reg_schedule=None, max_iter=1, on_fail="ignore")
    with pytest.raises(ValueError, match=r"result has marginal error .*, above 0.0001"):
        plan_vjp(far, G)


def test_nothing_is_modified():
    C, a, b = random_problem()
    result = exact(C, a, b)
    G = np.random.default_rng(7).standard_normal(C.shape)
    before = [v.copy() for v in (C, a, b, G, result.f, result.g, result.plan)]
    transport_gradients(result, ("a", "b", "C", "reg"))
    plan_vjp(result, G)
    for old, new in zip(before, (C, a, b, G, result.f, result.g, result.plan), strict=True):
        assert np.array_equal(old, new)
