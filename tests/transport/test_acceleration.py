"""Over-relaxation and Anderson acceleration, alone and in the solver."""

import array_api_strict
import numpy as np
import pytest

from ot_numba import sinkhorn
from ot_numba.arrays import to_numpy
from ot_numba.transport.acceleration import LONGEST, Anderson, Relaxation


def cloud_problem(n=300, m=225):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(n, 2)), 0.7 * rng.uniform(size=(m, 2)) + 0.3
    a, b = rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(m, 2.0))
    C = ((x[:, None] - y) ** 2).sum(-1)
    return C / C.max(), a, b


def contraction(rates):
    """A linear fixed-point map on centred vectors, its solution at 0."""
    n = len(rates) + 1
    basis = np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(0).normal(size=(n, n - 1))])[0]
    return basis @ np.diag([1.0, *rates]) @ basis.T


@pytest.mark.parametrize("method", ["log", "kernel"])
@pytest.mark.parametrize(("reg", "plain", "five", "ten"), [(0.01, 159, 38, 23), (0.003, 495, 100, 48)])
def test_iterations_of_the_published_table(method, reg, plain, five, ten):
    C, a, b = cloud_problem()
    options = {"reg": reg, "method": method, "reg_schedule": None, "tol": 1e-9}
    assert sinkhorn(C, a, b, relaxation=1.0, **options).n_iter <= plain + 3
    assert sinkhorn(C, a, b, anderson=5, **options).n_iter <= 1.1 * five
    assert sinkhorn(C, a, b, anderson=10, **options).n_iter <= 1.1 * ten
    assert sinkhorn(C, a, b, **options).n_iter < 0.6 * plain


def test_relaxation_finds_the_best_factor():
    C = np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.4, 0.2])
    best = 1.1267030970
    plain = sinkhorn(C, a, b, reg=0.25, tol=1e-12, relaxation=1.0, method="log")
    relaxed = sinkhorn(C, a, b, reg=0.25, tol=1e-12, relaxation=best, method="log")
    assert relaxed.n_iter < 0.7 * plain.n_iter
    adaptive = Relaxation()
    for k in range(40):  # plain Sinkhorn contracts by s^2 per iteration
        adaptive.observe(0.9**k)
        if adaptive.factor > 1:
            break
    assert adaptive.factor == pytest.approx(2 / (1 + 0.1**0.5), abs=1e-9)


def test_relaxation_steps_back_from_a_growing_error():
    adaptive = Relaxation()
    adaptive.factor = 1.9
    for k in range(40):
        adaptive.observe(1.2**k)
    assert 1 < adaptive.factor < 1.9


def test_relaxation_ignores_errors_of_zero_and_noise():
    adaptive = Relaxation()
    for error in [0.0] * 30 + [1.0, 1e-3] * 30:
        adaptive.observe(error)
        assert 1 <= adaptive.factor <= Relaxation.largest


@pytest.mark.parametrize("xp", [np, array_api_strict])
@pytest.mark.parametrize("memory", [2, 4, 8])
def test_anderson_solves_a_linear_map(memory, xp):
    rates = np.linspace(0.3, 0.97, 4)
    A = contraction(rates)
    g = np.random.default_rng(1).normal(size=5)
    g -= g.mean()
    acceleration, start = Anderson(memory), np.linalg.norm(g)
    errors = []
    for _ in range(25):
        after = A @ g
        errors.append(np.linalg.norm(after - after.mean()))
        g = to_numpy(acceleration.propose(xp.asarray(g), xp.asarray(after)))
    assert errors[-1] < (1e-8 if memory >= 4 else 1e-2) * start
    assert errors[-1] < 0.1 * start * 0.97**25


def test_anderson_takes_the_plain_step_where_all_residuals_are_alike():
    """Far from the solution the potentials travel at a constant speed: a mean of past points would go back."""
    acceleration, g = Anderson(5), np.zeros(3)
    for _ in range(10):
        after = g + np.array([1.0, -1.0, 0.0])
        g = acceleration.propose(g, after)
        assert np.allclose(g, after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_anderson_never_jumps(dtype):
    rng = np.random.default_rng(0)
    acceleration = Anderson(5)
    g = np.zeros(4, dtype)
    for _ in range(50):
        after = (g + 100 * rng.normal(size=4)).astype(dtype)
        new = acceleration.propose(g, after)
        assert new.dtype == dtype
        assert np.abs(new - after).max() <= LONGEST[dtype] * (1 + 1e-6)
        g = after


def test_anderson_leaves_points_without_weight_alone():
    acceleration = Anderson(3)
    g = np.array([0.0, -np.inf, 1.0, 2.0])
    rng = np.random.default_rng(0)
    for _ in range(6):
        after = np.where(np.isfinite(g), 0.5 * np.where(np.isfinite(g), g, 0) + rng.normal(size=4), g)
        g = acceleration.propose(g, after)
        assert g[1] == -np.inf
        assert np.isfinite(g[[0, 2, 3]]).all()


def test_anderson_at_a_fixed_point():
    acceleration, g = Anderson(5), np.arange(4.0)
    for _ in range(8):
        assert np.array_equal(acceleration.propose(g, g.copy()), g)


@pytest.mark.parametrize("method", ["log", "kernel"])
def test_anderson_on_a_hard_problem(method):
    C = np.random.default_rng(1).random((100, 100))
    result = sinkhorn(C, reg=1e-3, method=method, anderson=8)
    assert result.converged
    assert (
        3 * result.n_iter
        < sinkhorn(C, reg=1e-3, method=method, relaxation=1.0, max_iter=50_000, on_fail="ignore").n_iter
    )
