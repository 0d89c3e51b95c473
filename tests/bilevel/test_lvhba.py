import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

import ot_numba
from ot_numba.bilevel import (
    lvhba,
    project_affine,
    project_hyperplane,
    project_svm_margin,
    proximal_lagrangian_value,
    svm_hyperparameters,
)
from ot_numba.optimize import regularized_newton


class Toy:
    """Lower level: min y1'y1 / 2 - x'y1 + 1'y2 with 1'x + 1'y1 + 1'y2 = 0; two upper levels."""

    equality = True

    def __init__(self, n, vanishing):
        self.n, self.vanishing = n, vanishing

    def parts(self, y):
        return y[: self.n], y[self.n :]

    def upper(self, x, y):
        first, second = self.parts(y)
        if self.vanishing:
            return float((first - 2) @ (x - 1) + (second + 3) @ (second + 3))
        return 0.5 * float((x - second) @ (x - second) + (first - 1) @ (first - 1))

    def upper_grad(self, x, y):
        first, second = self.parts(y)
        if self.vanishing:
            return first - 2, np.concatenate([x - 1, 2 * (second + 3)])
        return x - second, np.concatenate([first - 1, second - x])

    def lower(self, x, y):
        first, second = self.parts(y)
        return float(0.5 * first @ first - x @ first + second.sum())

    def lower_grad(self, x, y):
        first, _ = self.parts(y)
        return -first, np.concatenate([first - x, np.ones(self.n)])

    def constraint(self, x, y):
        return np.array([x.sum() + y.sum()])

    def constraint_jac_t(self, x, y, lam):
        return np.full(self.n, lam[0]), np.full(2 * self.n, lam[0])

    def project(self, x, y):
        mean = (x.sum() + y.sum()) / (3 * self.n)
        return x - mean, y - mean


BIASED = {
    "lower_step": 0.2, "step": 0.05, "multiplier_step": 0.5, "prox": 2, "dual_prox": 2, "penalty_growth": 0.45,
}  # fmt: skip
UNBIASED = {
    "lower_step": 3e-2, "step": 5e-3, "multiplier_step": 2e-3, "prox": 10, "dual_prox": 1, "bound": 1, "lam": -1,
    "z": -1, "scale_constraints": False,
}  # fmt: skip


def relative(x, value):
    return float(np.linalg.norm(x - value) / (abs(value) * math.sqrt(x.size)))


@pytest.mark.parametrize("n", [100, 1000])
def test_biased_toy(n):
    errors = {}
    seen = lambda entry, x, y: errors.update({entry.n_iter: relative(x, -0.3)})  # noqa: E731
    result = lvhba(
        Toy(n, False), np.full(n, 10.0), np.full(2 * n, 10.0), max_iter=20_000, record_every=100, callback=seen,
        **BIASED,
    )  # fmt: skip
    for k, error in ((100, 1.9e-1), (1000, 2.3e-2), (3000, 1.4e-2), (10_000, 8.3e-3), (20_000, 6.1e-3)):
        assert errors[k] == pytest.approx(error, rel=0.03)
    assert result.lam == pytest.approx([-1], abs=2e-3)
    assert result.violation < 1e-9
    assert not result.lam_at_bound
    assert result.gap > 0


def test_default_steps_converge():
    result = lvhba(Toy(100, False), np.full(100, 10.0), np.full(200, 10.0), max_iter=20_000)
    assert relative(result.x, -0.3) < 1.7e-2


@pytest.mark.parametrize("n", [100, 1000])
def test_unbiased_toy(n):
    errors = {}
    seen = lambda entry, x, y: errors.update({entry.n_iter: relative(x, 1.0)})  # noqa: E731
    result = lvhba(  # the bound of the multiplier is its value, and no matter
        Toy(n, True), np.zeros(n), np.zeros(2 * n), max_iter=50_000, record_every=100, callback=seen,
        on_fail="ignore", **UNBIASED,
    )  # fmt: skip
    assert errors[1000] == pytest.approx(2.5e-1, rel=0.02)
    assert errors[10_000] == pytest.approx(2.4e-4, rel=0.02)
    assert errors[20_000] == pytest.approx(1.04e-6, rel=0.01)
    assert errors[20_100] < 1e-6
    assert errors[50_000] < 1e-11
    assert result.y[:n] == pytest.approx(np.full(n, 2.0), abs=1e-8)
    assert result.y[n:] == pytest.approx(np.full(n, -3.0), abs=1e-8)


def test_fixed_point_of_the_toy():
    # what moves the solution is the gradient of F over c alone
    n = 10
    x, y = np.full(n, -0.3), np.concatenate([np.full(n, 0.7), np.full(n, -0.4)])
    problem = Toy(n, False)
    start = {"lam": -1, "z": -1, "max_iter": 1, "step": 1.0, "scale_constraints": False, "multiplier_step": 1.0}
    result = lvhba(problem, x, y, penalty=1.0, **start)
    moved = np.concatenate([result.x - x, result.y - y])
    gradient = np.concatenate(problem.upper_grad(x, y))  # .1, -.3, -.1 in each entry
    np.testing.assert_allclose(moved, -(gradient - gradient.mean()), atol=1e-12)
    np.testing.assert_allclose(gradient[[0, n, 2 * n]], [0.1, -0.3, -0.1], atol=1e-12)
    np.testing.assert_allclose(result.theta, y, atol=1e-13)
    assert result.lam == pytest.approx([-1], abs=1e-13)


def test_published_constants_diverge():
    # simultaneous, unscaled steps of the size that was published: the multiplier swings between its bounds
    published = {"lower_step": 0.01, "step": 0.008, "multiplier_step": 0.02, "penalty": 0.025, "record_every": 100}
    errors = {}
    run = lambda **options: lvhba(  # noqa: E731
        Toy(100, False), np.full(100, 10.0), np.full(200, 10.0), on_fail="ignore",
        callback=lambda entry, x, y: errors.update({entry.n_iter: relative(x, -0.3)}), **published, **options,
    )  # fmt: skip
    result = run(scale_constraints=False, alternate=False, max_iter=6000)
    assert errors[100] < 0.3 < 10 < errors[1500] < 15
    assert max(errors.values()) > 150
    assert result.lam_at_bound
    assert abs(result.lam[0]) == 1000
    # scaled they do not, alternate or not
    for alternate in (True, False):
        errors.clear()
        result = run(alternate=alternate, max_iter=6000)
        assert max(errors.values()) < 0.65
        assert errors[6000] < 0.4
        assert result.lam == pytest.approx([-1], abs=0.05)


def proximal_case():
    return SimpleNamespace(
        lower=lambda x, y: 0.5 * float((y - x) @ (y - x)),
        lower_grad=lambda x, y: (x - y, y - x),
        constraint=lambda x, y: x + y - 1,
        constraint_jac_t=lambda x, y, lam: (lam, lam),
    )


def test_value_function_reference_case():
    found = proximal_lagrangian_value(proximal_case(), [1.0], [0.0], prox=1, dual_prox=1)
    assert found.converged
    assert found.value == pytest.approx(1 / 3, abs=1e-9)
    assert [found.theta[0], found.lam[0]] == pytest.approx([1 / 3] * 2, abs=1e-9)
    assert [g[0] for g in (found.grad_x, found.grad_y, found.grad_z)] == pytest.approx([1, -1 / 3, 1 / 3], abs=1e-9)


def test_value_function_gradient_by_differences():
    rng = np.random.default_rng(0)
    problem, n = Toy(3, False), 3
    at = [rng.standard_normal(n), rng.standard_normal(2 * n), rng.standard_normal(1)]
    options = {"prox": 2.0, "dual_prox": 0.5, "tol": 1e-12}
    found = proximal_lagrangian_value(problem, *at, **options)
    for k, grad in enumerate((found.grad_x, found.grad_y, found.grad_z)):
        for i in range(grad.size):
            values = []
            for s in (1e-5, -1e-5):
                moved = [v.copy() for v in at]
                moved[k][i] += s
                values.append(proximal_lagrangian_value(problem, *moved, **options).value)
            assert grad[i] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_value_function_without_constraints_is_the_moreau_envelope():
    problem = SimpleNamespace(lower=lambda x, y: 0.5 * float(y @ y), lower_grad=lambda x, y: (0 * x, y))
    found = proximal_lagrangian_value(problem, [0.0], [3.0], prox=2.0)
    assert found.value == pytest.approx(9 / (2 * 3), abs=1e-9)
    with pytest.warns(ot_numba.ConvergenceWarning, match="did not converge"):
        proximal_lagrangian_value(problem, [0.0], [3.0], max_iter=1)
    with pytest.raises(TypeError, match="lacks lower"):
        proximal_lagrangian_value(SimpleNamespace(), [0.0], [3.0])


def test_projections():
    rng = np.random.default_rng(0)
    w, a = rng.standard_normal(5), rng.standard_normal(5)
    p = project_hyperplane(w, a, 2.0)
    assert a @ p == pytest.approx(2.0, abs=1e-13)
    np.testing.assert_allclose(np.outer(p - w, a), np.outer(a, p - w), atol=1e-13)
    A, b = rng.standard_normal((3, 7)), rng.standard_normal(3)
    w = rng.standard_normal(7)
    p = project_affine(A, b)(w)
    np.testing.assert_allclose(A @ p, b, atol=1e-12)
    np.testing.assert_allclose(w - p, A.T @ np.linalg.lstsq(A.T, w - p, rcond=None)[0], atol=1e-12)
    with pytest.raises(ValueError, match="full row rank"):
        project_affine([[1.0, 1.0], [2.0, 2.0]], [1.0, 2.0])
    with pytest.raises(ValueError, match="a must not be 0"):
        project_hyperplane([1.0], [0.0], 1.0)


def test_margin_projection_reference_case():
    w, b, xi = project_svm_margin([0.2, -0.1], 0.1, [0.1, 0, 0.3], [[1, 0], [0, 1], [-1, -1]], [1, 1, -1])
    np.testing.assert_allclose(w, [0.475, 0.375], atol=1e-14)
    assert b == pytest.approx(0.325, abs=1e-14)
    np.testing.assert_allclose(xi, [0.2, 0.3, 0.475], atol=1e-14)


def test_margin_projection_optimality():
    rng = np.random.default_rng(1)
    for _ in range(200):
        n, d = rng.integers(1, 40), rng.integers(1, 6)
        Z, labels = rng.standard_normal((n, d)), np.where(rng.random(n) < 0.5, 1.0, -1.0)
        w0, b0, xi0 = 2 * rng.standard_normal(d), rng.standard_normal(), rng.standard_normal(n)
        w, b, xi = project_svm_margin(w0, b0, xi0, Z, labels)
        slack = xi - (1 - labels * (Z @ w + b))
        lam = xi - xi0  # the multipliers
        assert slack.min() > -1e-12
        assert lam.min() >= 0
        assert abs(lam * slack).max() < 1e-11
        np.testing.assert_allclose(w - w0, Z.T @ (labels * lam), atol=1e-11)
        assert b - b0 == pytest.approx(labels @ lam, abs=1e-11)


def moons(rng, n):
    t, labels = rng.uniform(0, np.pi, n), np.where(rng.random(n) < 0.5, 1.0, -1.0)
    x = np.where(labels > 0, np.cos(t), 1 - np.cos(t))
    y = np.where(labels > 0, np.sin(t), 0.5 - np.sin(t))
    return np.stack([x, y], axis=1) + 0.2 * rng.standard_normal((n, 2)), labels


def test_svm_derivatives():
    rng = np.random.default_rng(0)
    problem = svm_hyperparameters(*moons(rng, 12), *moons(rng, 9))
    x, y = rng.standard_normal(12), rng.standard_normal(15)
    lam = rng.standard_normal(12)
    checks = [
        (problem.upper, problem.upper_grad(x, y)),
        (problem.lower, problem.lower_grad(x, y)),
        (lambda x, y: float(lam @ problem.constraint(x, y)), problem.constraint_jac_t(x, y, lam)),
    ]
    for fun, (by_x, by_y) in checks:
        for i in range(12):
            e = 1e-6 * np.eye(12)[i]
            assert by_x[i] == pytest.approx((fun(x + e, y) - fun(x - e, y)) / 2e-6, abs=1e-7)
        for i in range(15):
            e = 1e-6 * np.eye(15)[i]
            assert by_y[i] == pytest.approx((fun(x, y + e) - fun(x, y - e)) / 2e-6, abs=2e-7)
    norms = [np.linalg.norm(problem.constraint_jac_t(x, y, np.eye(12)[i])[1]) for i in range(12)]
    np.testing.assert_allclose(problem.constraint_scales(x, y), norms, atol=1e-13)


def test_svm_learns_quickly():
    rng = np.random.default_rng(0)
    problem = svm_hyperparameters(*moons(rng, 300), *moons(rng, 150))
    test = moons(rng, 1000)
    x, y = problem.start()
    before = problem.upper(*problem.project(x, y))
    lvhba(problem, x, y, max_iter=3)
    began = time.process_time()
    result = lvhba(problem, x, y, max_iter=1000)
    assert time.process_time() - began < 1.0
    assert result.value < 0.97 * before
    assert result.violation < 1e-12
    assert problem.accuracy(result.y, *test) > 0.82
    # the log weights move by their gradient, multipliers stay >= 0, and z moves
    assert np.abs(result.x - x).max() > 1e-3
    assert result.lam.min() >= 0 <= result.z.min()
    assert result.z.max() > 0
    with pytest.raises(ValueError, match="w is 0"):
        problem.upper(x, np.zeros_like(y))
    cut = problem.lower_grad(np.full_like(x, 1e3), y)[0]
    np.testing.assert_array_equal(cut, problem.lower_grad(np.full_like(x, 50.0), y)[0])


def test_svm_beats_one_common_weight():
    rng = np.random.default_rng(1)
    (Z, labels), valid, test = (moons(rng, n) for n in (300, 150, 1000))
    problem = svm_hyperparameters(Z, labels, *valid)
    M, D = labels[:, None] * np.c_[Z, np.ones(300)], np.diag([1, 1, 1e-8])

    def fitted(log_weight):
        """Support vector machine with one weight."""
        weight = math.exp(log_weight)
        u = regularized_newton(
            lambda u: 0.5 * float(u @ D @ u) + 0.5 * weight * float((np.maximum(0, 1 - M @ u) ** 2).sum()),
            lambda u: D @ u - weight * M.T @ np.maximum(0, 1 - M @ u),
            lambda u: D + weight * (M * (M @ u < 1)[:, None]).T @ M,
            np.r_[Z.T @ labels / 300, 0.0],
            tol=1e-6,
        ).x
        return np.r_[u, np.maximum(0, 1 - M @ u)]

    x, y = problem.start()
    common = [fitted(log_weight) for log_weight in range(-8, 5)]
    losses = [problem.upper(x, point) / 150 for point in common]
    result = lvhba(problem, x, y, max_iter=1000, step=0.1, lower_step=0.1)
    assert result.value / 150 < 0.97 * min(losses)
    assert result.value / 150 == pytest.approx(0.0519, abs=1e-4)
    assert problem.accuracy(result.y, *test) > 0.85


def test_svm_does_not_depend_on_the_order_of_points():
    rng = np.random.default_rng(0)
    (Z, labels), valid = moons(rng, 60), moons(rng, 30)
    order = rng.permutation(60)
    first, second = svm_hyperparameters(Z, labels, *valid), svm_hyperparameters(Z[order], labels[order], *valid)
    weights = rng.uniform(-6, -4, 60)
    options = {"max_iter": 200}
    one = lvhba(first, weights, first.start()[1], **options)
    other = lvhba(second, weights[order], second.start()[1], **options)
    np.testing.assert_allclose(other.x, one.x[order], atol=1e-9)
    np.testing.assert_allclose(other.lam, one.lam[order], atol=1e-9)
    np.testing.assert_allclose(other.y[3:], one.y[3:][order], atol=1e-9)


def affine_problem():
    """f = |x - y|^2 / 2 with A y + H x = 0 and B x = 0; a nonconvex upper level."""
    rng = np.random.default_rng(0)
    n = 20
    A, H, B = rng.standard_normal((8, n)), rng.standard_normal((8, n)), rng.standard_normal((4, n))
    c, d = rng.standard_normal(n), rng.standard_normal(n)
    joint = np.block([[H, A], [B, np.zeros((4, n))]])
    onto = project_affine(joint, np.zeros(12))

    def project(x, y):
        both = onto(np.concatenate([x, y]))
        return both[:n], both[n:]

    def upper_grad(x, y):
        s = x + y
        shared, wave = 2 * s / (s @ s + 1), np.cos(c @ x + d @ y)
        return wave * c + shared, wave * d + shared

    return n, joint, SimpleNamespace(
        equality=True,
        upper=lambda x, y: float(np.sin(c @ x + d @ y) + np.log((x + y) @ (x + y) + 1)),
        upper_grad=upper_grad,
        lower=lambda x, y: 0.5 * float((x - y) @ (x - y)),
        lower_grad=lambda x, y: (x - y, y - x),
        constraint=lambda x, y: A @ y + H @ x,
        constraint_jac_t=lambda x, y, lam: (H.T @ lam, A.T @ lam),
        project=project,
    )


def test_affine_constraints():
    n, joint, problem = affine_problem()
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(n), rng.standard_normal(n)
    # not monotone in between, where x leaves a saddle point of the nonconvex F
    gaps = [lvhba(problem, x, y, max_iter=k).gap for k in (100, 300, 10_000, 20_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 1e-3 * gaps[0]
    result = lvhba(problem, x, y, max_iter=1000)
    assert np.abs(joint @ np.concatenate([result.x, result.y])).max() < 1e-10
    assert result.violation < 1e-10


def test_equalities_among_inequalities():
    # y = x up to y_0 = 1, y_1 <= 2 and y_2 <= 2: the first multiplier is negative, that of a slack constraint 0
    def project(x, y):
        return x, np.r_[1.0, np.minimum(y[1:], 2.0)]

    problem = SimpleNamespace(
        equality=np.array([True, False, False]),
        upper=lambda x, y: float((x - [3.0, 3.0, 1.0]) @ (x - [3.0, 3.0, 1.0])),
        upper_grad=lambda x, y: (2 * (x - [3.0, 3.0, 1.0]), 0 * y),
        lower=lambda x, y: 0.5 * float((x - y) @ (x - y)),
        lower_grad=lambda x, y: (x - y, y - x),
        constraint=lambda x, y: np.r_[1 - y[0], y[1:] - 2],
        constraint_jac_t=lambda x, y, lam: (0 * x, np.r_[-lam[0], lam[1:]]),
        project=project,
    )
    result = lvhba(problem, np.zeros(3), np.zeros(3), max_iter=20_000)
    np.testing.assert_allclose(result.x, [3, 3, 1], atol=1e-2)
    np.testing.assert_allclose(result.y, [1, 2, 1], atol=1e-2)
    np.testing.assert_allclose(result.lam, [-2, 1, 0], atol=2e-2)
    assert result.violation == 0


def test_multiplier_bound_is_reported():
    with pytest.warns(ot_numba.ConvergenceWarning, match="increase bound"):
        result = lvhba(Toy(10, False), np.zeros(10), np.zeros(20), bound=0.2, max_iter=3000)
    assert result.lam_at_bound
    assert result.lam == pytest.approx([-0.2])


def test_numbers_that_are_none_halve_the_steps():
    # f is not defined from 1.5 on, where one step of 1.6 leads and two of 0.8 do not
    problem = SimpleNamespace(
        upper=lambda x, y: float((y[0] - 1) ** 2),
        upper_grad=lambda x, y: (0 * x, 2 * (y - 1)),
        lower_grad=lambda x, y: (x - y, np.where(y < 1.5, y - x, np.nan)),
    )
    result = lvhba(problem, [1.0], [0.0], step=0.1, lower_step=1.6, max_iter=2000)
    assert {(entry.step, entry.lower_step) for entry in result.history} == {(0.05, 0.8)}
    assert result.x[0] == pytest.approx(1, abs=1e-3)
    with pytest.raises(FloatingPointError, match=r"diverged at iteration 2 with step=0\.05, lower_step=1\.6"):
        lvhba(problem, [1.0], [0.0], step=0.1, lower_step=3.2, max_iter=2000)


def test_divergence_halves_once_then_raises():
    problem = Toy(100, False)
    options = {"scale_constraints": False, "alternate": False, "bound": 1e300, "on_fail": "ignore"}
    with pytest.raises(FloatingPointError, match="diverged"):
        lvhba(problem, np.ones(100), np.ones(200), lower_step=5.0, max_iter=20_000, **options)


def test_tolerance_callback_and_bad_options():
    problem = SimpleNamespace(
        upper=lambda x, y: float((y[0] - 1) ** 2),
        upper_grad=lambda x, y: (0 * x, 2 * (y - 1)),
        lower_grad=lambda x, y: (x - y, y - x),
    )
    start = [0.0], [0.0]
    result = lvhba(problem, *start, step=0.1, lower_step=0.5, tol=1e-6, max_iter=10_000)
    assert result.converged
    assert result.residual <= 1e-6
    assert math.isnan(result.gap)
    with pytest.warns(ot_numba.ConvergenceWarning, match="not converged"):
        lvhba(problem, *start, tol=1e-9, max_iter=10)

    def stop(entry, x, y):
        raise StopIteration

    assert lvhba(problem, *start, callback=stop).status == "stopped"
    for name, value in (
        ("penalty_growth", 0.5), ("penalty_growth", 0.0), ("step", 0.0), ("bound", 0.0), ("prox", math.inf),
        ("n_inner", 0), ("on_fail", "no"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            lvhba(problem, *start, **{name: value})
    with pytest.raises(TypeError, match="lacks project"):
        lvhba(SimpleNamespace(constraint=lambda x, y: x, constraint_jac_t=lambda x, y, lam: (lam, lam)), *start)
