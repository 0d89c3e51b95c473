"""Rivals of the gradient-regularised method: the super-universal and the cubic Newton method, the fast gradient."""

import math

import numpy as np
import pytest

import ot_numba
from ot_numba.optimize import (
    LogisticLoss,
    PowerNorm,
    cubic_newton,
    fast_gradient,
    gradient_descent,
    regularized_newton,
    super_newton,
)
from ot_numba.optimize.cubic_newton import _smallest

ALL = [super_newton, cubic_newton]


def logistic(xp=np, n=5):
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((40, n)), np.where(rng.random(40) < 0.5, 1.0, -1.0)
    return LogisticLoss(xp.asarray(A), xp.asarray(y))


def chain(n=40, p=3):
    D = np.eye(n) - np.eye(n, k=1)
    return PowerNorm(lambda x: D @ x - 1, lambda x: D, p=p)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("metric", [None, np.linspace(1, 3, 5), np.diag(np.linspace(1, 3, 5)) + 0.1])
def test_converges_to_the_minimum(xp, method, metric):
    f = logistic(xp)
    B = None if metric is None else xp.asarray(metric)
    result = method(f.value, f.grad, f.hess, xp.zeros(5), metric=B, tol=1e-10)
    assert result.converged
    assert result.n_iter < 25
    assert float(xp.max(xp.abs(f.grad(result.x)))) < 1e-9
    expected = regularized_newton(logistic().value, logistic().grad, logistic().hess, np.zeros(5), tol=1e-10)
    np.testing.assert_allclose(np.asarray(result.x), expected.x, atol=1e-7)


def test_super_newton_obeys_its_rule():
    f, at = chain(), [np.zeros(40)]
    result = super_newton(f.value, f.grad, f.hess, at[0], tol=1e-6, callback=lambda entry, x: at.append(x))
    assert result.converged
    for entry, before, x, after in zip(result.history[1:], result.history, at, at[1:], strict=False):
        lam = before.grad_norm / entry.radius
        M = lam / before.grad_norm ** (2 / 3)
        assert math.log(M, 4) == pytest.approx(round(math.log(M, 4)), abs=1e-6)
        np.testing.assert_allclose((f.hess(x) + lam * np.eye(40)) @ (after - x), -f.grad(x), atol=1e-9)
        assert f.grad(after) @ (x - after) >= entry.grad_norm**2 / (4 * lam)


def rosenbrock():
    return PowerNorm(
        lambda x: np.array([1 - x[0], 10 * (x[1] - x[0] ** 2)]),
        lambda x: np.array([[-1.0, 0.0], [-20 * x[0], 10.0]]),
        p=2,
        curvature=lambda x, u: np.diag([-20 * u[1], 0.0]),
    )


@pytest.mark.parametrize(
    ("f", "start", "constant"), [(chain(), np.zeros(40), 1e-3), (rosenbrock(), np.array([-2.0, 2.0]), 1.0)]
)
def test_cubic_newton_obeys_its_rule(f, start, constant):
    n, at = start.size, [start]
    B = np.diag(np.linspace(1, 2, n))
    B[0, 1] = B[1, 0] = 0.5
    result = cubic_newton(
        f.value, f.grad, f.hess, start, metric=B, constant=constant, tol=1e-4, callback=lambda entry, x: at.append(x)
    )
    assert result.converged
    for entry, before, x, after in zip(result.history[1:], result.history, at, at[1:], strict=False):
        h, lam = after - x, before.grad_norm / entry.radius
        length = math.sqrt(h @ B @ h)
        M = 2 * lam / length
        np.testing.assert_allclose((f.hess(x) + lam * B) @ h, -f.grad(x), atol=1e-7)
        assert math.log2(M / constant) == pytest.approx(round(math.log2(M / constant)), abs=1e-5)
        model = f.grad(x) @ h + 0.5 * h @ f.hess(x) @ h + M / 6 * length**3
        assert entry.value - before.value <= model + 1e-14


def test_cubic_steps_are_minima():
    rng = np.random.default_rng(0)
    for trial in range(60):
        values, slopes = np.sort(rng.standard_normal(6)), rng.standard_normal(6)
        if trial % 3 == 0:  # the hard case: no slope along the most negative curvature
            slopes[0], slopes = 0.0, slopes * 0.1
        M = 10.0 ** rng.uniform(-1, 1)
        model = lambda h: slopes @ h + 0.5 * values @ (h * h) + M / 6 * np.linalg.norm(h) ** 3  # noqa: B023, E731
        h, lam = _smallest(values, slopes, M)
        assert lam == pytest.approx(0.5 * M * np.linalg.norm(h), rel=1e-9)
        assert values[0] + lam >= -1e-12
        np.testing.assert_allclose((values + lam) * h, -slopes, atol=1e-9)
        others = [model(h + size * rng.standard_normal(6)) for size in (1e-3, 0.1, 1.0) for _ in range(50)]
        assert model(h) <= min(others) + 1e-12


def test_saddle_points_are_left():
    fun, grad = (lambda x: float((x**4 - x**2).sum())), (lambda x: 4 * x**3 - 2 * x)
    result = cubic_newton(fun, grad, lambda x: np.diag(12 * x**2 - 2), [0.1, 0.0])
    np.testing.assert_allclose(np.abs(result.x), math.sqrt(0.5), atol=1e-8)


def test_fast_gradient_is_faster():
    f = chain(60, p=2)
    options = {"lipschitz": 4.0, "tol": 0, "max_iter": 300, "on_fail": "ignore"}
    fast, slow = (method(f.value, f.grad, np.zeros(60), **options) for method in (fast_gradient, gradient_descent))
    assert fast.value < 0.1 * slow.value
    # its gap is at most 2 L |x0 - x*|**2 / k**2
    R = np.linalg.norm(np.linalg.solve(f.jacobian(None), np.ones(60)))
    for entry in fast.history[1:]:
        assert entry.value <= 2 * 8 * R**2 / entry.n_iter**2


def test_fast_gradient_ends_where_the_gradient_is_small(xp):
    f = logistic(xp)
    for metric in (None, xp.full(5, 2.0)):
        result = fast_gradient(f.value, f.grad, xp.zeros(5), metric=metric, tol=1e-6)
        assert result.converged
        size = float(xp.sum(f.grad(result.x) ** 2) / (1 if metric is None else 2)) ** 0.5
        assert result.grad_norm == pytest.approx(size, rel=1e-12)
        assert result.value == f.value(result.x)
    short = fast_gradient(f.value, f.grad, xp.zeros(5), max_iter=3, on_fail="ignore")
    assert short.value == f.value(short.x)
    assert short.grad_norm == pytest.approx(float(xp.sum(f.grad(short.x) ** 2)) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("method", [super_newton, cubic_newton, fast_gradient, gradient_descent])
def test_stops_and_reports(method):
    f = logistic()
    args = (f.value, f.grad) + ((f.hess,) if method in ALL else ())
    with pytest.warns(ot_numba.ConvergenceWarning, match=f"{method.__name__}: not converged .*increase max_iter"):
        assert method(*args, np.zeros(5), max_iter=1).status == "max_iter"
    with pytest.raises(ot_numba.ConvergenceError):
        method(*args, np.zeros(5), max_iter=1, on_fail="raise")
    wrong = (f.value, lambda x: -f.grad(x), *args[2:])
    status = method(*wrong, np.zeros(5), max_iter=20, on_fail="ignore").status
    assert status == ("max_iter" if method is super_newton else "stalled")  # it ends in steps too small to tell

    def stop(entry, x):
        raise StopIteration

    assert method(*args, np.zeros(5), callback=stop).status == "stopped"
    with pytest.raises(ValueError, match="tol must be >= 0"):
        method(*args, np.zeros(5), tol=-1)


def test_bad_options():
    f = logistic()
    for method, name, value in ((super_newton, "power", 1.5), (super_newton, "constant", 0.0),
                                (cubic_newton, "constant", 0.0)):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            method(f.value, f.grad, f.hess, np.zeros(5), **{name: value})
    with pytest.raises(TypeError, match="must return an array"):
        cubic_newton(f.value, f.grad, lambda x: f.hess(x).__matmul__, np.zeros(5))
    with pytest.raises(ValueError, match="lipschitz"):
        fast_gradient(f.value, f.grad, np.zeros(5), lipschitz=0.0)
