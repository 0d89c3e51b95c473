import math

import numpy as np
import pytest

import ot_numba
from ot_numba.bilevel import (
    elastic_net,
    entropic_ot_reg,
    hoag,
    hypergradient,
    logistic_ridge,
    maid,
    quadratic,
    tv_denoising,
)


def random_quadratic(rng, n=30, N=6, p=4):
    A1, A2 = rng.standard_normal((n, N)), rng.standard_normal((n, N))
    return quadratic(A1, rng.standard_normal(n), A2, rng.standard_normal((n, p)), rng.standard_normal(n))


def solution(problem, theta):
    return np.linalg.solve(problem.A2.T @ problem.A2, problem.A2.T @ (problem.b2 - problem.A3 @ theta))


def best_value(problem):
    """Least squares over theta."""
    slope = -np.linalg.solve(problem.A2.T @ problem.A2, problem.A2.T @ problem.A3)
    offset = solution(problem, np.zeros(problem.A3.shape[1]))
    r = np.linalg.lstsq(problem.A1 @ slope, problem.b1 - problem.A1 @ offset, rcond=None)[0]
    return problem.upper(offset + slope @ r, r)


def paper_quadratic():
    rng = np.random.default_rng(0)
    A1, A2, A3 = (rng.uniform(size=(1000, 10)) for _ in range(3))
    x1, x2, theta = (rng.uniform(size=10) for _ in range(3))
    b1 = A1 @ x1 + 0.01 * rng.standard_normal(1000)
    return quadratic(A1, b1, A2, A3, A2 @ x2 + A3 @ theta + 0.01 * rng.standard_normal(1000))


def test_certified_decrease_of_random_steps():
    rng, steps = np.random.default_rng(0), 0
    while steps < 1000:
        problem = random_quadratic(rng)
        thetas = []
        result = maid(
            problem, rng.standard_normal(4), accuracy=10.0 ** rng.uniform(-4, 1), max_iter=25, tol=0, on_fail="ignore",
            step=10.0 ** rng.uniform(-3, 0), callback=lambda entry, theta, x, seen=thetas: seen.append(theta),
        )  # fmt: skip
        values = [problem.upper(solution(problem, theta), theta) for theta in thetas]
        for entry, before, after in zip(result.history, values, values[1:], strict=False):
            assert after - before <= entry.certified_change + 1e-12 * before
            assert entry.certified_change <= -0.1 * entry.step * entry.grad_norm**2
            assert entry.error_bound <= 0.5 * entry.grad_norm
            steps += 1
    assert steps >= 1000


def test_descent_direction_is_true():
    problem = random_quadratic(np.random.default_rng(1))
    seen = []
    result = maid(problem, np.ones(4), accuracy=10.0, max_iter=20, on_fail="ignore",
                  callback=lambda entry, theta, x: seen.append(theta))  # fmt: skip
    for entry, theta in zip(result.history, seen, strict=True):
        exact = hypergradient(problem, theta, tol=1e-11).grad
        assert abs(entry.grad_norm - np.linalg.norm(exact)) <= entry.error_bound + 1e-9


def test_converges_to_the_least_squares_solution():
    problem = random_quadratic(np.random.default_rng(3))
    result = maid(problem, np.zeros(4), tol=1e-4, max_iter=3000, step=0.1)
    assert result.converged
    assert result.grad_norm <= 1e-4 >= result.error_bound
    assert result.value == pytest.approx(best_value(problem), rel=1e-6)
    counts = [(entry.n_gradients, entry.n_products) for entry in result.history]
    assert counts == sorted(counts)
    assert counts[-1] == (result.n_gradients, result.n_products)


def test_insensitive_to_the_first_accuracy():
    problem = paper_quadratic()
    best = best_value(problem)
    assert problem.lipschitz(None) / problem.mu(None) == pytest.approx(36.2, abs=0.05)
    assert problem.upper(solution(problem, np.ones(10)), None) == pytest.approx(5486.2, abs=0.05)
    assert best == pytest.approx(0.0524, abs=5e-5)
    options = {"max_gradients": 50_000, "max_iter": 10**6, "loosen": 1.25, "on_fail": "ignore"}
    ends = [maid(problem, np.ones(10), accuracy=eps, **options).theta for eps in (1e-1, 1e-3, 1e-5)]
    gaps = [problem.upper(solution(problem, theta), None) - best for theta in ends]
    assert max(gaps) < 5
    assert max(gaps) < 1.03 * min(gaps)
    for eps in (1e-1, 1e-3):
        fixed = maid(problem, np.ones(10), accuracy=eps, fixed_accuracy=True, **options)
        assert fixed.status == "line_search"
        assert fixed.n_iter <= 4
        assert fixed.value > 9 * max(gaps)


def test_loose_accuracy_is_no_convergence():
    # q = 0 and z = 0 are within the first accuracies: they say nothing
    problem = random_quadratic(np.random.default_rng(5))
    for check in (True, False):
        result = maid(problem, np.ones(4), accuracy=1e6, max_iter=3, check_descent=check, on_fail="ignore",
                      init=np.ones(6))  # fmt: skip
        assert result.n_iter == 3
        assert result.history[0].n_refinements > 5
        assert result.history[0].grad_norm > 0
    result = maid(problem, np.ones(4), accuracy=1e6, fixed_accuracy=True, on_fail="ignore")
    assert not result.converged
    assert result.status == "line_search"


class Worst:
    """h = x^2 - theta x, g = (x - 1)^2 / 2, solved as badly as asked for, on one side of the solution."""

    L_g, upper_convex = 1.0, True

    def __init__(self, side):
        self.side = side

    def lower_solve(self, theta, x0, tol, max_iter):
        return theta / 2 + self.side * 0.5 * tol * (1 - 1e-9), 1

    def exact(self, theta):
        return self.upper(theta / 2, theta)

    upper = staticmethod(lambda x, theta: 0.5 * float((x[0] - 1) ** 2))
    upper_grad = staticmethod(lambda x, theta: x - 1)
    lower_grad = staticmethod(lambda x, theta: 2 * x - theta)
    lower_hvp = staticmethod(lambda x, theta, v: 2 * v)
    lower_jac_t = staticmethod(lambda x, theta, q: -q)
    mu = lipschitz = staticmethod(lambda theta: 2.0)
    jac_norm = staticmethod(lambda x, theta: 1.0)
    L_Hinv = L_J = staticmethod(lambda theta: 0.0)


@pytest.mark.parametrize("check", [True, False])
def test_no_step_along_nothing(check):
    # x is exact, so that a step of length 0 would fulfil the test of decrease
    result = maid(Worst(0), 0.5, init=np.zeros(1), linear_accuracy=10.0, step=2.0, check_descent=check, tol=1e-4)
    assert result.converged
    assert result.theta == pytest.approx([2], abs=1e-3)
    assert result.history[0].n_refinements > 3


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("step", [0.5, 5.0, 50.0])
def test_line_search_uses_the_accuracy_of_each_value(side, step):
    # a loss from before the accuracy was tightened would pass steps far beyond the minimum
    problem, thetas = Worst(side), []
    result = maid(
        problem, 1.9, init=np.zeros(1), accuracy=0.5, step=step, max_iter=12, tol=1e-6, on_fail="ignore",
        callback=lambda entry, theta, x: thetas.append(theta),
    )  # fmt: skip
    assert result.history[0].n_refinements > 0
    values = [problem.exact(theta) for theta in thetas]
    for entry, before, after in zip(result.history, values, values[1:], strict=False):
        assert after - before <= entry.certified_change + 1e-15 <= -0.1 * entry.step * entry.grad_norm**2 + 2e-15
    assert values[-1] < 0.1 * values[0]


def test_momentum_is_in_use():
    # an accelerated method needs about the root of the gradients of the plain one
    rng = np.random.default_rng(0)
    A2 = np.diag(np.geomspace(1, 30, 20))
    problem = quadratic(np.eye(20), np.ones(20), A2, np.eye(20), rng.standard_normal(20))
    fast, slow = (hypergradient(problem, np.ones(20), tol=1e-8, solver=s).n_gradients for s in ("agd", "gd"))
    assert fast * 8 < slow


def test_nan_in_the_line_search_is_a_failed_step():
    class Broken:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def lower_grad(self, x, theta):
            grad = self.inner.lower_grad(x, theta)
            return grad * math.nan if np.linalg.norm(theta - 1) > 0.05 else grad

    problem = Broken(random_quadratic(np.random.default_rng(0)))
    result = maid(problem, np.ones(4), step=100.0, max_iter=2, max_backtracks=40, on_fail="ignore")
    assert result.n_iter > 0
    assert result.history[0].n_backtracks > 0
    with pytest.raises(ValueError, match="diverged"):
        maid(problem, 2 * np.ones(4))


def test_logistic_and_elastic_net_improve():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8))
    y = np.argmax(X[:, :3] + rng.standard_normal((60, 3)), axis=1)
    problem = logistic_ridge(X[:40], y[:40], X[40:], y[40:])
    result = maid(problem, np.full(problem.size, -2.0), step=10.0, max_iter=30, on_fail="ignore")
    assert result.certified
    assert result.value < result.history[0].value - 0.01
    w = rng.standard_normal(8) * (np.arange(8) < 3)
    t = X @ w + 0.3 * rng.standard_normal(60)
    problem = elastic_net(X[:40], t[:40], X[40:], t[40:])
    result = maid(problem, [-1.0, -1.0], step=1.0, max_iter=40, on_fail="ignore")
    assert result.value < 0.9 * result.history[0].value


def test_stops_and_reports():
    problem = random_quadratic(np.random.default_rng(0))
    with pytest.warns(ot_numba.ConvergenceWarning, match="increase max_iter"):
        assert maid(problem, np.ones(4), max_iter=1).status == "max_iter"
    with pytest.warns(ot_numba.ConvergenceWarning, match="increase max_gradients"):
        result = maid(problem, np.ones(4), max_gradients=30)
    assert result.status == "budget"
    assert result.n_gradients <= 35
    image = np.random.default_rng(0).random((8, 8))
    with pytest.warns(ot_numba.ConvergenceWarning, match="increase max_gradients"):  # a lower level as stiff as can be
        result = maid(tv_denoising(image, image), [5.0, -12.0], max_gradients=500)
    assert result.status == "budget"
    assert result.n_gradients <= 520
    cost = np.random.default_rng(0).random((5, 5))
    with pytest.warns(ot_numba.ConvergenceWarning, match="what rounding allows"):  # says next to nothing there
        assert maid(entropic_ot_reg(cost), [np.log(1e-6)], max_iter=5).status == "floor"
    with pytest.raises(ot_numba.ConvergenceError):
        maid(problem, np.ones(4), max_iter=0, on_fail="raise")
    seen = []

    def stop(entry, theta, x):
        seen.append(entry)
        if entry.n_iter == 2:
            raise StopIteration

    result = maid(problem, np.ones(4), callback=stop)
    assert result.status == "stopped"
    assert [entry.n_iter for entry in seen] == [0, 1, 2]
    assert result.history == seen


def test_start_is_not_modified_and_runs_repeat():
    problem = random_quadratic(np.random.default_rng(0))
    theta, init = np.ones(4), np.ones(6)
    theta.flags.writeable = init.flags.writeable = False
    runs = [maid(problem, theta, init=init, max_iter=10, on_fail="ignore") for _ in range(2)]
    assert np.array_equal(runs[0].theta, runs[1].theta)
    assert runs[0].history[:-1] == runs[1].history[:-1]


def test_continues_from_a_result():
    problem = random_quadratic(np.random.default_rng(0))
    first = maid(problem, np.zeros(4), tol=1e-4, max_iter=3000, step=0.1)
    again = maid(problem, first.theta, init=first, tol=1e-4, accuracy=first.accuracy)
    assert again.converged
    assert again.n_gradients < 0.2 * first.n_gradients


def test_bad_options():
    problem = random_quadratic(np.random.default_rng(0))
    for name, value in (
        ("decrease", 0.6), ("descent_share", 1.0), ("backtrack", 1.0), ("tighten", 0.0), ("step", 0.0),
        ("accuracy", 0.0), ("loosen", 0.9), ("max_backtracks", 0), ("on_fail", "no"), ("constants", "guess"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            maid(problem, np.ones(4), **{name: value})
    with pytest.raises(ValueError, match="bounds must be increasing"):
        hoag(problem, np.ones(4), bounds=(1, 0))
    with pytest.raises(ValueError, match="schedule"):
        hoag(problem, np.ones(4), schedule="linear")


@pytest.mark.parametrize("schedule", ["geometric", "quadratic", "cubic"])
def test_hoag(schedule):
    problem = random_quadratic(np.random.default_rng(3))
    result = hoag(problem, np.zeros(4), schedule=schedule, max_iter=300, tol=1e-3, on_fail="ignore")
    assert result.value < problem.upper(solution(problem, np.zeros(4)), None)
    assert result.value == pytest.approx(best_value(problem), rel=1e-2)
    scalar = hoag(Worst(1), 1.0, init=np.zeros(1), schedule=schedule, on_fail="ignore")
    assert scalar.theta == pytest.approx([2], abs=0.01)
    clipped = hoag(problem, np.zeros(4), bounds=(-0.01, 0.01), max_iter=20, on_fail="ignore")
    assert np.abs(clipped.theta).max() <= 0.01


@pytest.mark.parametrize("schedule", ["geometric", "quadratic", "cubic"])
@pytest.mark.parametrize("first", [1.0, 1e-3])
def test_hoag_obeys_its_rule(schedule, first):
    problem = random_quadratic(np.random.default_rng(3))
    history = hoag(problem, first * np.ones(4), schedule=schedule, max_iter=80, accuracy=0.5, on_fail="ignore").history
    steep = type("Steep", (), {"__getattr__": lambda self, name: getattr(problem, name)})()
    steep.upper = lambda x, theta: problem.upper(x, theta) ** 2  # rises by more than its gradient says
    history += hoag(steep, first * np.ones(4), schedule=schedule, max_iter=80, accuracy=0.5, on_fail="ignore").history
    kinds = set()
    for entry in history:
        k = entry.n_iter + 1
        if k == 1:
            L, old_value, shrink, old_eps = entry.grad_norm / 2, math.inf, 1.0, 0.5
        eps = 0.5 * shrink * {"geometric": 0.9 ** (k - 1), "quadratic": k**-2, "cubic": k**-3}[schedule]
        assert entry.accuracy <= eps
        assert entry.linear_accuracy <= eps
        d = entry.grad_norm / L
        if entry.n_iter == 80:
            continue
        if entry.value <= old_value + eps / 4 + 1.25 * old_eps * d - L * d * d:
            kind, L = "longer", 0.95 * L
        elif entry.value >= 1.2 * old_value:
            kind, L, shrink = "none", 2 * L, shrink / 2
        else:
            kind = "same"
        kinds.add(kind)
        assert entry.n_backtracks == (kind == "none")
        assert math.isnan(entry.step) if kind == "none" else entry.step == pytest.approx(1 / L, rel=1e-12)
        old_value, old_eps = entry.value, eps
    assert len(kinds) >= 2
