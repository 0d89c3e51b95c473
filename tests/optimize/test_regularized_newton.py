import math

import numpy as np
import pytest

import ot_numba
from ot_numba.optimize import (
    Diagonal,
    LogisticLoss,
    LogSumExp,
    PowerNorm,
    RankOne,
    SoftmaxLoss,
    gradient_descent,
    regularized_newton,
)


def rosenbrock(p):
    return PowerNorm(
        lambda x: np.array([1 - x[0], 10 * (x[1] - x[0] ** 2)]),
        lambda x: np.array([[-1.0, 0.0], [-20 * x[0], 10.0]]),
        p=p,
        curvature=lambda x, u: np.diag([-20 * u[1], 0.0]),
    )


def quartic():
    rng = np.random.RandomState(3124)
    A, b = rng.uniform(-1, 1, (100, 200)), rng.uniform(-1, 1, 100)
    return PowerNorm(lambda x: A @ x - b, lambda x: A, p=4), A.T @ A + 1e-8 * np.eye(200)


def dense(H, n):
    if isinstance(H, RankOne):
        return H.scale * np.outer(H.u, H.u)
    return H if isinstance(H, np.ndarray) else np.stack([H(e) for e in np.eye(n)], axis=1)


def differences(fun, x, h=1e-6):
    return np.stack([(fun(x + h * e) - fun(x - h * e)) / (2 * h) for e in np.eye(x.size)], axis=-1)


def lse_case():
    return LogSumExp([[1, 0], [-1, 0.5], [0, -1]], [0, 0.2, -0.1], smoothing=0.5), np.array([0.3, -0.2])


def test_logsumexp_reference_case():
    f, x = lse_case()
    assert f.value(x) == pytest.approx(0.6862792032658, abs=1e-13)
    np.testing.assert_allclose(f.grad(x), [0.38549002, -0.4236600133], atol=1e-9)
    np.testing.assert_allclose(f.hess(x), [[0.7791348756, 0.2502934274], [0.2502934274, 0.6028543929]], atol=1e-10)
    gn = [[1.0763399867, -0.0763399867], [-0.0763399867, 0.9618300067]]
    np.testing.assert_allclose(f.hess(x, "gauss-newton"), gn, atol=1e-10)
    step = regularized_newton(f.value, f.grad, f.hess, x, max_iter=1, on_fail="ignore")
    np.testing.assert_allclose(step.x, [-0.0662961558, 0.2383474967], atol=1e-10)
    gain, lam = f.value(x) - step.value, np.linalg.norm(f.grad(x))
    assert gain == pytest.approx(0.207473464665, abs=1e-12)
    assert step.grad_norm**2 / (8 * lam) == pytest.approx(0.002682408230, abs=1e-12)


def test_power_reference_case():
    f, x = rosenbrock(4), np.array([0.5, 0.5])
    assert f.value(x) == pytest.approx(10.5625, abs=1e-12)
    np.testing.assert_allclose(f.grad(x), [-165.75, 162.5], atol=1e-11)
    np.testing.assert_allclose(f.hess(x), [[1632, -1925], [-1925, 1900]], atol=1e-10)
    np.testing.assert_allclose(f.hess(x, "gauss-newton"), [[1957, -1925], [-1925, 1900]], atol=1e-10)


def test_rank_one_reference_case():
    g, B = np.array([1.0, 2.0, -1.0]), np.array([1.0, 2.0, 4.0])
    norm = math.sqrt(g @ (g / B))
    found = []

    def fun(x):
        found.append(x)
        return -len(found)

    regularized_newton(
        fun, lambda x: g, lambda x: RankOne(0.7, g), np.zeros(3), metric=B, radius=norm / 0.5, max_iter=1,
        on_fail="ignore",
    )  # fmt: skip
    np.testing.assert_allclose(found[1], [-0.3603603604, -0.3603603604, 0.0900900901], atol=1e-10)


@pytest.mark.parametrize("kind", ["logsumexp", "logistic", "softmax", "power3", "power4"])
def test_exact_hessians_by_differences(kind):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((12, 4))
    f = {
        "logsumexp": lambda: LogSumExp(A, rng.standard_normal(12), smoothing=0.7),
        "logistic": lambda: LogisticLoss(A, np.where(rng.random(12) < 0.5, 1, -1)),
        "softmax": lambda: SoftmaxLoss(A, rng.integers(0, 3, 12), 3),
        "power3": lambda: rosenbrock(3),
        "power4": lambda: rosenbrock(4),
    }[kind]()
    n = {"softmax": 12, "power3": 2, "power4": 2}.get(kind, 4)
    x = 0.5 * rng.standard_normal(n)
    np.testing.assert_allclose(f.grad(x), differences(f.value, x), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(dense(f.hess(x), n), differences(f.grad, x), rtol=1e-6, atol=1e-8)


def test_approximate_hessians():
    rng = np.random.default_rng(1)
    A, x = rng.standard_normal((12, 4)), rng.standard_normal(4)
    f = LogSumExp(A, rng.standard_normal(12), smoothing=0.7)
    g = f.grad(x)
    np.testing.assert_allclose(f.hess(x, "gauss-newton") - f.hess(x), np.outer(g, g) / 0.7, atol=1e-13)
    y = np.where(rng.random(12) < 0.5, 1, -1)
    f = LogisticLoss(A, y)
    terms = [LogisticLoss(A[i : i + 1], y[i : i + 1]).grad(x) for i in range(12)]
    np.testing.assert_allclose(f.hess(x, "fisher"), np.mean([np.outer(t, t) for t in terms], axis=0), atol=1e-13)
    labels, w = rng.integers(0, 3, 12), rng.standard_normal(12)
    f = SoftmaxLoss(A, labels, 3)
    terms = [SoftmaxLoss(A[i : i + 1], labels[i : i + 1], 3).grad(w) for i in range(12)]
    expected = np.mean([np.outer(t, t) for t in terms], axis=0)
    np.testing.assert_allclose(dense(f.hess(w, "fisher"), 12), expected, atol=1e-13)
    f = rosenbrock(4)
    x = np.array([0.3, -0.2])
    u, J = f.residuals(x), f.jacobian(x)
    np.testing.assert_allclose(dense(f.hess(x, "fisher"), 2), 2 * np.outer(J.T @ u, J.T @ u), atol=1e-10)


def test_power_where_the_residuals_vanish():
    f = rosenbrock(4)
    assert not dense(f.hess(np.ones(2)), 2).any()
    assert not f.grad(np.ones(2)).any()
    f = rosenbrock(2)
    np.testing.assert_allclose(f.hess(np.ones(2)), f.jacobian(np.ones(2)).T @ f.jacobian(np.ones(2)))


def test_steps_obey_radius_and_decrease():
    f, B = quartic()
    at = []
    result = regularized_newton(
        f.value, f.grad, lambda x: f.hess(x, "fisher"), np.ones(200), metric=B, max_iter=20, on_fail="ignore",
        callback=lambda entry, x: at.append((entry, x)),
    )  # fmt: skip
    old_x, old = np.ones(200), result.history[0]
    for entry, x in at:
        h = x - old_x
        assert math.sqrt(h @ B @ h) <= entry.radius * (1 + 1e-9)
        gain = old.value - entry.value
        assert gain >= entry.radius / 8 * entry.grad_norm**2 / old.grad_norm - 1e-15 * max(1, old.value)
        old_x, old = x, entry


def test_fisher_beats_exact_on_the_quartic():
    f, B = quartic()
    values = {}
    for approx in ("fisher", "exact"):
        result = regularized_newton(
            f.value, f.grad, lambda x, approx=approx: f.hess(x, approx), np.ones(200), metric=B, max_iter=20,
            on_fail="ignore",
        )  # fmt: skip
        values[approx] = [entry.value for entry in result.history]
    assert values["fisher"][20] < 1e-9 < 1e-5 < values["exact"][20]


@pytest.mark.parametrize("approx", ["exact", "gauss-newton"])
def test_rosenbrock(approx):
    f = rosenbrock(2)
    result = regularized_newton(
        f.value, f.grad, lambda x: f.hess(x, approx), [-2.0, 2.0], tol=1e-10, max_iter=60
    )
    assert result.converged
    np.testing.assert_allclose(result.x, [1, 1], atol=1e-8)
    assert result.n_iter <= 60


def test_forms_of_the_hessian_agree():
    rng = np.random.default_rng(2)
    A, y = rng.standard_normal((80, 6)), np.where(rng.random(80) < 0.5, 1, -1)
    f = LogisticLoss(A, y)
    full = regularized_newton(f.value, f.grad, f.hess, np.zeros(6), tol=1e-10)
    products = regularized_newton(f.value, f.grad, lambda x: f.hess(x).__matmul__, np.zeros(6), tol=1e-10)
    np.testing.assert_allclose(full.x, products.x, atol=1e-8)
    metrics = [np.full(6, 2.0), np.diag(np.full(6, 2.0))]
    runs = [regularized_newton(f.value, f.grad, f.hess, np.zeros(6), metric=B, tol=1e-9) for B in metrics]
    np.testing.assert_allclose(runs[0].x, runs[1].x, atol=1e-12)
    d = np.array([1.0, 10.0, 100.0])
    diagonal = regularized_newton(
        lambda x: 0.5 * float(d @ (x * x)), lambda x: d * x, lambda x: Diagonal(d), np.ones(3), tol=1e-9
    )
    assert diagonal.n_iter < 15
    W = SoftmaxLoss(A, rng.integers(0, 3, 80), 3)
    soft = regularized_newton(W.value, W.grad, W.hess, np.zeros(18), tol=1e-7)
    assert soft.converged
    assert np.abs(W.grad(soft.x)).max() < 1e-7


def test_convergence_is_fast_where_the_error_vanishes():
    rng = np.random.RandomState(3124)
    A = rng.uniform(-1, 1, (200, 200))
    pi = np.exp(rng.uniform(-1, 1, 200))
    A = A - (pi / pi.sum()) @ A  # the gradient is 0 where the softmax is pi
    f = LogSumExp(A, -np.log(pi), smoothing=1.0)
    B = A.T @ A + 1e-9 * np.eye(200)
    options = {"metric": B, "tol": 1e-7, "max_iter": 200}
    exact = regularized_newton(f.value, f.grad, f.hess, np.ones(200), **options)
    gn = regularized_newton(f.value, f.grad, lambda x: f.hess(x, "gauss-newton"), np.ones(200), **options)
    assert exact.n_iter <= 40
    assert gn.n_iter <= 90
    plain = gradient_descent(f.value, f.grad, np.ones(200), tol=1e-7, max_iter=200)
    assert not plain.converged


def test_indefinite_hessians_shorten_the_step():
    fun, grad = (lambda x: float((x**4 - x**2).sum())), (lambda x: 4 * x**3 - 2 * x)
    hess = lambda x: np.diag(12 * x**2 - 2)  # noqa: E731
    for form in (hess, lambda x: hess(x).__matmul__, lambda x: Diagonal(12 * x**2 - 2)):
        result = regularized_newton(fun, grad, form, [0.1, -0.05], tol=1e-9)
        np.testing.assert_allclose(np.abs(result.x), math.sqrt(0.5), atol=1e-8)


def test_stops_and_reports():
    f, x = lse_case()
    zero = regularized_newton(lambda x: 1.0, lambda x: 0 * x, f.hess, x)
    assert (zero.status, zero.n_iter) == ("converged", 0)
    with pytest.warns(ot_numba.ConvergenceWarning, match="increase max_iter"):
        regularized_newton(f.value, f.grad, f.hess, x, max_iter=1)
    with pytest.raises(ot_numba.ConvergenceError):
        regularized_newton(f.value, f.grad, f.hess, x, max_iter=1, on_fail="raise")
    with pytest.warns(ot_numba.ConvergenceWarning, match="check grad and hess"):
        result = regularized_newton(f.value, lambda x: -f.grad(x), f.hess, x)
    assert result.status == "stalled"
    with pytest.raises(ValueError, match="fun must be finite"):
        regularized_newton(lambda x: math.nan, f.grad, f.hess, x)
    for name, value in (("radius", 0.0), ("tol", -1.0), ("max_iter", 0), ("max_search", 0), ("on_fail", "no")):
        with pytest.raises(ValueError, match=name):
            regularized_newton(f.value, f.grad, f.hess, x, **{name: value})
    for metric, match in ((np.ones(3), "shape"), (-np.ones(2), "positive"), (-np.eye(2), "positive definite")):
        with pytest.raises(ValueError, match=match):
            regularized_newton(f.value, f.grad, f.hess, x, metric=metric)

    def stop(entry, x):
        raise StopIteration

    assert regularized_newton(f.value, f.grad, f.hess, x, callback=stop).status == "stopped"
    assert gradient_descent(f.value, f.grad, x, callback=stop).status == "stopped"


def test_values_that_are_no_numbers_shorten_the_step():
    fun = lambda x: float(x[0] - math.log(x[0])) if x[0] > 0 else math.nan  # noqa: E731
    result = regularized_newton(fun, lambda x: 1 - 1 / x, lambda x: (1 / x**2)[:, None], [1e-3], radius=1e3)
    assert result.x[0] == pytest.approx(1, abs=1e-7)


def test_array_libraries(xp):
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((40, 5)), np.where(rng.random(40) < 0.5, 1.0, -1.0)
    f, same = LogisticLoss(xp.asarray(A), xp.asarray(y)), LogisticLoss(A, y)
    for B in (None, np.full(5, 2.0), 2 * np.eye(5)):
        metric = None if B is None else xp.asarray(B)
        result = regularized_newton(f.value, f.grad, f.hess, xp.zeros(5), metric=metric)
        expected = regularized_newton(same.value, same.grad, same.hess, np.zeros(5), metric=B)
        np.testing.assert_allclose(np.asarray(result.x), expected.x, atol=1e-9)
    result = gradient_descent(f.value, f.grad, xp.zeros(5))
    np.testing.assert_allclose(np.asarray(result.x), expected.x, atol=1e-6)
