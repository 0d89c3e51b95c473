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


def values_of(f, approx, x0, **options):
    result = regularized_newton(
        f.value, f.grad, lambda x: f.hess(x, approx), x0, on_fail="ignore", **({"tol": 0} | options)
    )
    return [entry.value for entry in result.history], result


def test_published_quartic():
    f, B = quartic()
    for approx, expected in (("fisher", (1.8e6, 25.5, 3.0e-11)), ("exact", (2.1e6, 2.3e3, 3.6e-4))):
        values, _ = values_of(f, approx, np.ones(200), metric=B, max_iter=20)
        assert [values[k] for k in (5, 10, 20)] == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(("approx", "iterations"), [("exact", 53), ("gauss-newton", 51)])
def test_published_rosenbrock(approx, iterations):
    values, result = values_of(rosenbrock(2), approx, [-2.0, 2.0], max_iter=iterations + 1)
    assert values[iterations] < 4e-21
    assert result.value < 1e-30  # it converges at least quadratically in the end
    np.testing.assert_allclose(result.x, [1, 1], atol=1e-12)
    values, _ = values_of(rosenbrock(5), approx, [-2.0, 2.0], max_iter=68)
    assert values[68] <= 1e-14 < values[66]


def chebyshev(d, p):
    i = np.arange(1, d)

    def jacobian(x):
        J = np.eye(d)
        J[0, 0], J[i, i - 1] = -0.5, -4 * x[:-1]
        return J

    return PowerNorm(
        lambda x: np.r_[(1 - x[0]) / 2, x[1:] - 2 * x[:-1] ** 2 + 1], jacobian, p=p,
        curvature=lambda x, u: np.diag(np.r_[-4 * u[1:], 0.0]),
    )  # fmt: skip


@pytest.mark.parametrize(("approx", "expected"), [("gauss-newton", (6e-9, 6e-27)), ("exact", (4e-8, 4e-24))])
def test_published_chebyshev(approx, expected):
    values, _ = values_of(chebyshev(60, 4), approx, np.random.RandomState(3124).rand(60), max_iter=50)
    assert [values[k] for k in (20, 50)] == pytest.approx(expected, rel=0.1)


def shifted_logsumexp(n=200):
    """Of random slopes, shifted so that the minimum is at 0; and its metric."""
    rng = np.random.RandomState(3124)
    A, b = rng.uniform(-1, 1, (n, n)).T, rng.uniform(-1, 1, n)
    pi = np.exp(-b)
    A = A - (pi / pi.sum()) @ A
    return LogSumExp(A, b, smoothing=1.0), A.T @ A + 1e-10 * np.eye(n)


def test_published_logsumexp():
    f, B = shifted_logsumexp()
    best = f.value(np.zeros(200))
    for approx, k, solves, gap in (("exact", 18, 30, 3e-10), ("gauss-newton", 30, 54, 2e-9)):
        values, result = values_of(f, approx, np.ones(200), metric=B, max_iter=k)
        assert values[k] - best <= gap
        assert result.n_solves <= solves
    plain = gradient_descent(f.value, f.grad, np.ones(200), metric=B, tol=0, max_iter=50, on_fail="ignore")
    assert plain.value - best == pytest.approx(3.5e-3, rel=0.03)


@pytest.mark.parametrize("noise", [0.6, 0.0])
def test_fisher_does_not_pay_for_logistic_regression(noise):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((500, 20))
    y = np.where(A @ rng.standard_normal(20) + noise * rng.standard_normal(500) > 0, 1, -1)
    f = LogisticLoss(A, y)
    exact, _ = values_of(f, "exact", np.zeros(20), max_iter=27)
    fisher, _ = values_of(f, "fisher", np.zeros(20), max_iter=400)
    if noise:  # the loss does not vanish, and no more does the error of the Fisher matrix
        assert exact[12] - exact[-1] < 4e-12
        assert fisher[40] - exact[-1] > 1e-7
    else:  # the classes can be separated, and it still does not
        assert exact[27] < 4.5e-9
        assert fisher[400] > 1e-4


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


def test_indefinite_hessians_shorten_the_step():
    fun, grad = (lambda x: float((x**4 - x**2).sum())), (lambda x: 4 * x**3 - 2 * x)
    hess = lambda x: np.diag(12 * x**2 - 2)  # noqa: E731
    for form in (hess, lambda x: hess(x).__matmul__, lambda x: Diagonal(12 * x**2 - 2)):
        result = regularized_newton(fun, grad, form, [0.1, -0.05], tol=1e-9)
        np.testing.assert_allclose(np.abs(result.x), math.sqrt(0.5), atol=1e-8)


def test_every_trial_is_a_step_of_its_own_system():
    # where H + lam B is not positive definite there is none, neither that of another radius
    fun, grad = (lambda x: float((x**4 - x**2).sum())), (lambda x: 4 * x**3 - 2 * x)
    hess = lambda x: np.diag(12 * x**2 - 2)  # noqa: E731
    trials, at = [], [np.array([0.1, -0.05])]
    result = regularized_newton(
        lambda x: trials.append((at[-1], x)) or fun(x), grad, hess, at[0], tol=1e-9,
        callback=lambda entry, x: at.append(x),
    )  # fmt: skip
    assert result.n_solves > result.n_evaluations - 1  # there were such radii
    for old, new in trials[1:]:
        g, step = grad(old), new - old
        rest = -g - hess(old) @ step  # lam times the step
        lam = (rest @ step) / (step @ step)
        assert lam > -hess(old).min()
        np.testing.assert_allclose(rest, lam * step, atol=1e-12)
        power = math.log2(np.linalg.norm(g) / lam)
        assert np.abs(step).max() < 1e-4 or power == pytest.approx(round(power), abs=1e-6)


def test_rounding_of_the_value_does_not_shorten_steps():
    f, x = lse_case()
    result = regularized_newton(lambda x: f.value(x) + 100, f.grad, f.hess, x, tol=1e-14, max_iter=30)
    assert result.converged
    assert result.n_solves <= result.n_iter + 3


def test_singular_metrics_are_lifted(xp):
    f, same = quartic()
    A = same - 1e-8 * np.eye(200)  # of rank 100
    values, result = values_of(f, "fisher", np.ones(200), metric=A, max_iter=20)
    assert values[20] < 1e-7
    g = LogisticLoss(xp.asarray([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), xp.asarray([1.0, -1.0, -1.0]))
    for metric in (np.diag([1.0, 0.0]), np.array([1.0, 0.0])):
        result = regularized_newton(g.value, g.grad, g.hess, xp.zeros(2), metric=xp.asarray(metric), max_iter=3,
                                    on_fail="ignore")  # fmt: skip
        assert math.isfinite(result.grad_norm)
        expected = float(g.grad(result.x)[0]) ** 2 + float(g.grad(result.x)[1]) ** 2 / 0.5e-8
        assert result.grad_norm**2 == pytest.approx(expected, rel=1e-6)


def test_radius_underflow():
    f, x = lse_case()
    values = iter([f.value(x)])
    result = regularized_newton(
        lambda x: next(values, math.nan), f.grad, f.hess, x, max_search=10**4, on_fail="ignore"
    )
    assert result.status == "stalled"
    assert 900 < result.n_solves < 1100  # halvings of 1 until 1e-300
    np.testing.assert_array_equal(result.x, x)


def test_stops_and_reports():
    f, x = lse_case()
    zero = regularized_newton(lambda x: 1.0, lambda x: 0 * x, f.hess, x)
    assert (zero.status, zero.n_iter) == ("converged", 0)
    with pytest.warns(ot_numba.ConvergenceWarning, match="increase max_iter"):
        regularized_newton(f.value, f.grad, f.hess, x, max_iter=1)
    with pytest.raises(ot_numba.ConvergenceError):
        regularized_newton(f.value, f.grad, f.hess, x, max_iter=1, on_fail="raise")
    with pytest.warns(ot_numba.ConvergenceWarning, match="check the derivatives"):
        result = regularized_newton(f.value, lambda x: -f.grad(x), f.hess, x)
    assert result.status == "stalled"
    np.testing.assert_array_equal(result.x, x)  # no trial that failed is taken
    assert result.n_solves == 40
    with pytest.raises(ValueError, match="fun must be finite"):
        regularized_newton(lambda x: math.nan, f.grad, f.hess, x)
    for name, value in (("radius", 0.0), ("tol", -1.0), ("max_iter", 0), ("max_search", 0), ("on_fail", "no")):
        with pytest.raises(ValueError, match=name):
            regularized_newton(f.value, f.grad, f.hess, x, **{name: value})
    for metric, match in ((np.ones(3), "shape"), (-np.ones(2), "positive"), (-np.eye(2), "positive semi-definite")):
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
