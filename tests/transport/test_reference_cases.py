"""Entropic transport against closed forms, published digits and other solvers."""

import warnings

import numpy as np
import ot
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import logsumexp

from ot_numba import Grid, PointCloud, sinkhorn, solve
from ot_numba.arrays import to_numpy

C2 = [[0.0, 1.0], [2.0, 0.5]]
C3 = [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]


def random_problem(seed, n=9, m=7):
    rng = np.random.default_rng(seed)
    return rng.random((n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))


def plain_sinkhorn(C, a, b, reg, n_iter=20_000, rho=np.inf):
    """Potentials of the KL form by the textbook iteration in the log domain."""
    damping = 1.0 if np.isinf(rho) else rho / (rho + reg)
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(n_iter):
        f = -damping * reg * logsumexp((g - C) / reg + np.log(b), axis=1)
        new = -damping * reg * logsumexp((f[:, None] - C) / reg + np.log(a)[:, None], axis=0)
        if np.abs(new - g).max() < 1e-15:
            break
        g = new
    return f, g


@pytest.mark.parametrize("method", ["auto", "log", "kernel"])
@pytest.mark.parametrize(
    ("reg", "P11", "linear", "value", "f", "g"),
    [
        (1.0, 0.2741586431, 0.8646033922, 0.9660279116, 1.3254058388, [0.4207500775, -0.5355155550]),
        (0.1, 0.299999999994, None, 0.8194975994, 1.9152702140, [0.0510825624, -1.3796027196]),
    ],
)
def test_two_by_two_closed_form(xp, method, reg, P11, linear, value, f, g):
    result = sinkhorn(
        xp.asarray(C2),
        xp.asarray([0.3, 0.7]),
        xp.asarray([0.6, 0.4]),
        reg=reg,
        tol=1e-14,
        method=method,
        on_fail="ignore",
    )
    assert abs(float(result.plan[0, 0]) - P11) < 1e-10
    assert abs(result.value - value) < 1e-10
    if linear is not None:
        assert abs(result.linear_cost - linear) < 1e-10
    shift = float(result.f[0])
    assert abs(float(result.f[1]) - shift - f) < 1e-9
    assert np.allclose(to_numpy(result.g) + shift, g, rtol=0, atol=1e-9)


def test_three_by_three():
    result = sinkhorn(
        C3, [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], reg=0.25, regularizer="entropy", tol=1e-14, on_fail="ignore"
    )
    g = (result.g - result.g[2]) / 0.25
    assert np.allclose(g, [7.3080816199, 4.0002240405, 0], rtol=0, atol=1e-9)
    assert np.allclose(
        (result.f + result.g[2]) / 0.25, [-8.9181897839, -5.6102204769, -1.6097733936], rtol=0, atol=1e-9
    )
    assert abs(result.linear_cost - 0.5004021808) < 1e-10
    assert abs(result.value + 0.25 - 0.0629328669) < 1e-10  # there without the -P of sum P (log P - 1)
    kl = sinkhorn(C3, [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], reg=0.25, tol=1e-14, on_fail="ignore")
    assert abs(kl.value - 0.5840761624) < 1e-10
    assert np.allclose(kl.plan[0], [0.1998659946, 0.0001339605, 4.49e-8], rtol=0, atol=5e-11)
    assert np.allclose(kl.plan, result.plan, rtol=0, atol=1e-13)


def test_unbalanced_one_by_one():
    result = sinkhorn([[0.7]], [1.2], [0.5], reg=0.3, unbalanced=0.9, tol=1e-12)
    assert abs(result.plan[0, 0] - 0.5351363580) < 1e-10
    assert abs(result.value - 0.5862136482) < 1e-10
    assert abs(result.gap) < 1e-12


@pytest.mark.parametrize(
    ("m1", "s1", "m2", "s2", "reg", "value"),
    [
        (0, 1, 1.5, 0.6, 0.5, 2.9048158642),
        (0, 1, 0, 1, 0.5, 0.6121783399),
        (0, 0.6, 0, 0.6, 0.5, 0.3841424661),
        (0, 1, 1.5, 0.6, 2, 3.2956105782),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "points", "grid"])
def test_gaussians(m1, s1, m2, s2, reg, value, kind):
    x, y = (np.linspace(m - 9 * s, m + 9 * s, 401) for m, s in ((m1, s1), (m2, s2)))
    a, b = np.exp(-(((x - m1) / s1) ** 2) / 2), np.exp(-(((y - m2) / s2) ** 2) / 2)
    C = {"dense": (x[:, None] - y) ** 2, "points": PointCloud(x, y), "grid": Grid([x], [y])}[kind]
    result = sinkhorn(C, a / a.sum(), b / b.sum(), reg=reg, tol=1e-12)
    assert abs(result.value - value) < 2e-10
    assert abs(result.dual_value - value) < 2e-10


@pytest.mark.parametrize("rho", [np.inf, 0.5, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_potentials_of_the_textbook_iteration(seed, rho):
    C, a, b = random_problem(seed)
    f, g = plain_sinkhorn(C, a, b, 0.1, rho=rho)
    result = sinkhorn(C, a, b, reg=0.1, tol=1e-13, unbalanced=None if np.isinf(rho) else rho, on_fail="ignore")
    shift = result.f[0] - f[0] if np.isinf(rho) else 0
    assert np.allclose(result.f - shift, f, rtol=0, atol=1e-9)
    assert np.allclose(result.g + shift, g, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_pot_agrees(seed):
    C, a, b = random_problem(seed, 30, 20)
    ours = sinkhorn(C, a, b, reg=0.05, tol=1e-12).plan
    theirs = ot.sinkhorn(a, b, C, 0.05, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000)
    assert np.allclose(ours, theirs, rtol=0, atol=1e-11)
    ours = sinkhorn(C, a, 1.5 * b, reg=0.05, unbalanced=0.4, tol=1e-12).plan
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a, 1.5 * b, C, 0.05, 0.4, reg_type="kl", stopThr=1e-14, numItermax=100_000
    )
    assert np.allclose(ours, theirs, rtol=0, atol=1e-9)


def test_small_reg_is_the_linear_program():
    C, a, b = random_problem(5)
    n, m = C.shape
    equalities = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])[:-1]
    exact = linprog(C.ravel(), A_eq=equalities, b_eq=np.concatenate([a, b])[:-1], method="highs").fun
    assert abs(solve(C, a, b, reg=1e-4, tol=1e-9).linear_cost - exact) < 1e-4
    C = np.random.default_rng(0).random((40, 40))
    rows, columns = linear_sum_assignment(C)
    result = solve(C, reg=1e-4, tol=1e-8)
    assert abs(result.linear_cost - C[rows, columns].mean()) < 1e-4
    assert np.array_equal(result.plan.argmax(axis=1), columns)


def test_large_reg_is_the_product_of_the_weights():
    C, a, b = random_problem(6)
    result = solve(C, a, b, reg=1e6, tol=1e-12)
    assert np.allclose(result.plan, a[:, None] * b, rtol=1e-5, atol=0)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    reg=st.floats(-3, 1).map(lambda t: 10**t),
    factor=st.floats(-3, 3).map(lambda t: 10**t),
    regularizer=st.sampled_from(["kl", "entropy"]),
)
def test_invariances(seed, reg, factor, regularizer):
    C, a, b = random_problem(seed, 8, 6)
    rng = np.random.default_rng(seed)
    options = {"tol": 1e-10, "regularizer": regularizer}
    result = sinkhorn(C, a, b, reg=reg, **options)
    assert result.converged
    P = result.plan
    assert P.min() >= 0
    assert np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum() <= 1.0001e-10 + 1e-14
    assert abs(result.gap) < 1e-8
    # weak duality: any potentials bound the optimum from below
    f, g = result.f + 0.1 * reg * rng.normal(size=8), result.g + 0.1 * reg * rng.normal(size=6)
    reference = np.outer(a, b) if regularizer == "kl" else np.ones_like(C)
    plan = reference * np.exp((f[:, None] + g - C) / reg)
    dual = f @ a + g @ b - reg * (plan.sum() - (1 if regularizer == "kl" else 0))
    assert dual <= result.dual_value + 1e-9
    # permutations, shifts of the cost, units, transposition, mass
    p, q = rng.permutation(8), rng.permutation(6)
    assert np.allclose(sinkhorn(C[p][:, q], a[p], b[q], reg=reg, **options).plan, P[p][:, q], rtol=0, atol=1e-9)
    u, v = rng.normal(size=8), rng.normal(size=6)
    shifted = sinkhorn(C + u[:, None] + v, a, b, reg=reg, **options)
    assert np.allclose(shifted.plan, P, rtol=0, atol=1e-9)
    assert abs(shifted.value - result.value - u @ a - v @ b) < 1e-8
    scaled = sinkhorn(factor * C, a, b, reg=factor * reg, **options)
    assert np.allclose(scaled.plan, P, rtol=0, atol=1e-9)
    assert np.allclose(sinkhorn(C.T, b, a, reg=reg, **options).plan, P.T, rtol=0, atol=1e-9)
    assert np.allclose(sinkhorn(C, 3 * a, 3 * b, reg=reg, **options).plan, 3 * P, rtol=0, atol=1e-8)


def families(n):
    """Name, weights, cost: the kinds of problem that high accuracy is hard for."""
    rng = np.random.default_rng(1)
    uniform = np.full(n, 1 / n)
    yield "uniform", uniform, uniform, rng.random((n, n))
    x = rng.random((n, 2))
    yield (
        "points",
        rng.dirichlet(np.full(n, 2.0)),
        rng.dirichlet(np.full(n, 2.0)),
        ((x[:, None] - 0.7 * x - 0.3) ** 2).sum(-1),
    )
    t = 5 * np.arange(n) / (n - 1)
    a, b = np.exp(-t), np.exp(-((t - 1) ** 2) / 0.08) + 1.6 * np.exp(-((t - 3) ** 2) / 0.5) + 1e-12
    yield "line", a / a.sum(), b / b.sum(), (t[:, None] - t) ** 2


@pytest.mark.parametrize("share", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("family", list(families(200)), ids=lambda family: family[0])
def test_tiny_reg(family, share):
    _, a, b, C = family
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        result = solve(C, a, b, reg=share * (C.max() - C.min()))
    assert result.converged
    assert result.marginal_error <= 1e-6
    assert np.isfinite(result.f).all()
    assert np.isfinite(result.g).all()
