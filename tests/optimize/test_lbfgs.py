from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize

from ot_numba.arrays import to_numpy
from ot_numba.optimize import lbfgs
from ot_numba.optimize.lbfgs import _Pairs


def rosenbrock(x):
    return scipy.optimize.rosen(x), scipy.optimize.rosen_der(x)


def quadratic(condition, n=100):
    d = np.logspace(0, np.log10(condition), n)
    return lambda x: (0.5 * float((d * x * x).sum()), d * x)


def logistic(x):
    A = np.random.default_rng(0).standard_normal((50, 100))
    return np.logaddexp(0, x @ A).sum() + 0.005 * (x @ x), A @ (1 / (1 + np.exp(-(x @ A)))) + 0.01 * x


@pytest.mark.parametrize(
    ("fun", "x0"),
    [
        (rosenbrock, np.array([-1.2, 1.0])),
        (rosenbrock, np.tile([-1.2, 1.0], 5)),
        (rosenbrock, np.tile([-1.2, 1.0], 50)),
        (quadratic(1e1), np.ones(100)),
        (quadratic(1e4), np.ones(100)),
        (logistic, np.zeros(50)),
    ],
)
def test_as_few_evaluations_as_scipy(fun, x0):
    ours = lbfgs(fun, x0, tol=1e-6, max_iter=5000)
    options = {"maxcor": 20, "ftol": 0, "gtol": 1e-6 / len(x0), "maxiter": 5000, "maxfun": 20_000}
    theirs = scipy.optimize.minimize(fun, x0, jac=True, method="L-BFGS-B", options=options)
    assert ours.converged
    assert np.allclose(ours.x, theirs.x, rtol=0, atol=1e-5)
    assert ours.n_evaluations <= 1.2 * theirs.nfev


@pytest.mark.parametrize("memory", [1, 3, 20, 200])
def test_the_matrix_is_that_of_bfgs(memory):
    """On a quadratic, with exact products, H y = s for the newest pair whatever the memory."""
    fun = quadratic(1e3, 30)
    seen = []
    lbfgs(fun, np.ones(30), memory=memory, max_iter=40, callback=lambda state: seen.append(state.x))
    pairs = _Pairs(np, seen[0], memory)
    kept = [(v - u, fun(v)[1] - fun(u)[1]) for u, v in pairwise(seen)]
    for s, y in kept:
        pairs.push(s, y)
        pairs.direction(y)
    v = np.random.default_rng(0).standard_normal(30)
    H = np.eye(30)
    s, y = kept[-1]
    H *= (s @ y) / (y @ y)
    for s, y in kept[-memory:]:
        V = np.eye(30) - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    direction, slope = pairs.direction(v)
    assert np.allclose(direction, -H @ v, rtol=1e-6, atol=1e-6 * np.abs(H @ v).max())
    assert np.isclose(slope, direction @ v, rtol=1e-6)


def test_any_array_library(xp):
    d = xp.asarray(np.logspace(0, 2, 20))
    result = lbfgs(lambda x: (xp.sum(0.5 * d * x * x), d * x), xp.ones(20, dtype=xp.float64))
    assert result.converged
    assert isinstance(result.value, float)
    assert np.abs(to_numpy(result.x)).max() < 1e-6


def test_float32():
    d = np.logspace(0, 2, 20, dtype=np.float32)
    result = lbfgs(lambda x: (0.5 * float((d * x * x).sum()), d * x), np.ones(20, np.float32), tol=1e-4)
    assert result.converged
    assert result.x.dtype == np.float32


def test_kinks():
    """The sum of |x_i|, badly scaled: every coordinate ends at a kink."""
    scale = np.logspace(0, 2, 10)
    result = lbfgs(
        lambda x: (float((scale * np.abs(x)).sum()), scale * np.sign(x)),
        np.linspace(1, 2, 10),
        tol=1e-8,
        value_tol=0,
        max_iter=500,
    )
    assert result.value < 1e-6
    assert not result.converged or result.grad_norm == 0
    assert result.value == min(entry.value for entry in result.history)


def test_the_largest_of_linear_functions():
    """A polyhedral function, by L-BFGS from the outside and by a linear program."""
    rng = np.random.default_rng(0)
    A, c = rng.standard_normal((40, 8)), rng.random(40)

    def fun(x):
        i = int(np.argmax(A @ x + c))
        return float(A[i] @ x + c[i]), A[i].copy()

    result = lbfgs(fun, np.zeros(8), max_iter=2000, value_tol=0)
    lp = scipy.optimize.linprog(
        np.r_[np.zeros(8), 1], np.c_[A, -np.ones(40)], -c, bounds=[(None, None)] * 9, method="highs"
    )
    assert not result.converged
    assert lp.fun - 1e-12 <= result.value < lp.fun + 0.02 * (fun(np.zeros(8))[0] - lp.fun)


def test_no_descent_is_the_end():
    """A gradient that lies: the memory is forgotten, and then the search ends at the best point."""
    result = lbfgs(lambda x: (float((x * x).sum()), -2 * x), np.ones(3))
    assert result.status == "line_search"
    assert not result.converged
    assert result.n_iter == 0
    assert result.x.tolist() == [1, 1, 1]
    assert "no step lowers the value" in result.message


def test_steps_into_nothing_are_shortened():
    """-log x is inf below 0 and NaN there for its gradient."""

    def fun(x):
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.where(x > 0, x - np.log(x), np.nan).sum()), 1 - 1 / x

    result = lbfgs(fun, np.full(4, 1e-3), tol=1e-8, first_step=100.0)
    assert result.converged
    assert np.allclose(result.x, 1, rtol=0, atol=1e-7)


def test_start_at_the_minimum():
    result = lbfgs(quadratic(1, 5), np.zeros(5), tol=0)
    assert result.converged
    assert (result.n_iter, result.n_evaluations) == (0, 1)


def test_max_iter_and_history():
    seen = []
    result = lbfgs(rosenbrock, [-1.2, 1.0], max_iter=5, callback=seen.append)
    assert result.status == "max_iter"
    assert not result.converged
    assert [state.n_iter for state in seen] == [1, 2, 3, 4, 5]
    assert [tuple(state)[:4] for state in seen] == [tuple(entry) for entry in result.history[1:]]
    assert "not converged: max_iter is reached" in result.message
    assert "n_iter=5" in repr(result)


def test_callback_may_stop():
    def stop(state):
        if state.n_iter == 3:
            raise StopIteration

    result = lbfgs(rosenbrock, [-1.2, 1.0], callback=stop)
    assert result.status == "stopped"
    assert result.n_iter == 3


def test_a_value_that_stands_still():
    result = lbfgs(quadratic(1e6), np.ones(100), tol=0, value_tol=0.5)
    assert result.status == "stalled"
    assert result.n_iter < 1000


def test_inputs_are_not_modified():
    x0 = np.ones(10)
    x0.flags.writeable = False
    lbfgs(quadratic(10, 10), x0, max_iter=5)
    assert np.all(x0 == 1)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x0 must have 1 dimension\(s\), got shape \(2, 2\)"):
        lbfgs(rosenbrock, np.ones((2, 2)))
    with pytest.raises(ValueError, match="x0 has NaN"):
        lbfgs(rosenbrock, [np.nan, 1.0])
    with pytest.raises(ValueError, match="fun must be finite at x0, got the value inf"):
        lbfgs(lambda x: (np.inf, x), [1.0])
    for name, value in (("memory", 0), ("max_iter", 0), ("tol", -1), ("value_tol", -1), ("first_step", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            lbfgs(rosenbrock, [0.0, 0.0], **{name: value})


def test_euclidean_norm():
    scales = np.geomspace(1, 100, 50)
    fun = lambda x: (0.5 * float((scales * x * x).sum()), scales * x)  # noqa: E731
    first, second = (lbfgs(fun, np.ones(50), tol=1e-3, norm=norm) for norm in (1, 2))
    for result, order in ((first, 1), (second, 2)):
        assert result.converged
        assert result.grad_norm == pytest.approx(np.linalg.norm(result.grad, order), rel=1e-14)
        assert f"L{order} norm" in result.message
    assert second.n_iter < first.n_iter
    with pytest.raises(ValueError, match="norm must be 1 or 2, got 3"):
        lbfgs(fun, np.ones(50), norm=3)
