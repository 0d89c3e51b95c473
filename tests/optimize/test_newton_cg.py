import math

import numpy as np
import pytest

from ot_numba.optimize import accelerated_gradient, newton_cg


def bent(scales, seed=0):
    """Gradient and Hessian products of ``x'Ax/2 + sum cosh(x) - b'x``, which is 1-strongly convex."""
    n = len(scales)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    A, b = (Q * scales) @ Q.T, 10 * np.random.default_rng(1).standard_normal(n)
    return (lambda x: A @ x + np.sinh(x) - b), (lambda x, v: A @ v + np.cosh(x) * v), np.diag(A)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_error_is_within_its_bound(tol):
    grad, hvp, _ = bent(np.geomspace(0.1, 100, 30))
    exact = newton_cg(grad, hvp, np.zeros(30), mu=1, tol=1e-12).x
    result = newton_cg(grad, hvp, np.zeros(30), mu=1, tol=tol)
    assert result.status == "converged"
    assert result.grad_norm == pytest.approx(np.linalg.norm(grad(result.x)), rel=1e-13)
    assert result.grad_norm <= tol
    assert np.linalg.norm(result.x - exact) <= result.error_bound + 1e-12


def test_converges_from_afar_and_fast_in_the_end():
    grad, hvp, _ = bent(np.geomspace(0.1, 100, 30))
    norms = []

    def seen(x):
        g = grad(x)
        norms.append(np.linalg.norm(g))
        return g

    far = np.full(30, 25.0)  # where the gradient is e**25
    result = newton_cg(seen, hvp, far, mu=1, tol=1e-11)
    assert result.status == "converged"
    assert result.n_iter == len(norms) < 60
    assert norms[-1] < 1e-4 * norms[-2]
    plain = accelerated_gradient(grad, np.zeros(30), mu=1, lipschitz=2000, tol=1e-9)
    assert 5 * newton_cg(grad, hvp, np.zeros(30), mu=1, tol=1e-9).n_iter < plain.n_iter


def test_full_steps_that_are_too_long_are_halved():
    # a full step from 3 of a function that is nearly linear there leads far beyond the minimum, to a larger gradient
    grad, hvp = (lambda x: np.arctan(x) + 1e-3 * x), (lambda x, v: v / (1 + x * x) + 1e-3 * v)
    assert abs(grad(np.asarray(3 - grad(3.0) / hvp(3.0, 1.0)))) > abs(grad(3.0))
    result = newton_cg(grad, hvp, np.array([3.0]), mu=1e-3, tol=1e-12)
    assert result.status == "converged"
    assert abs(result.x[0]) < 1e-8


def test_preconditioner():
    grad, hvp, _ = bent(np.ones(40))
    scales = np.geomspace(1, 1e3, 40)
    counts = []

    def products(x, v):
        counts[-1] += 1
        return scales * hvp(x, scales * v)

    for M in (None, lambda x: lambda r: r / scales**2):
        counts.append(0)
        assert newton_cg(lambda x: scales * grad(scales * x), products, np.zeros(40), mu=1, tol=1e-6,
                         preconditioner=M).status == "converged"  # fmt: skip
    assert 2 * counts[1] < counts[0]


def test_floor_limit_and_bad_numbers():
    grad, hvp, _ = bent(np.geomspace(0.1, 100, 30))
    at_floor = newton_cg(grad, hvp, np.zeros(30), mu=1, tol=0)
    assert at_floor.status in ("floor", "converged")
    assert at_floor.grad_norm < 1e-11
    limited = newton_cg(grad, hvp, np.full(30, 25.0), mu=1, tol=1e-9, max_iter=3)
    assert (limited.status, limited.n_iter) == ("max_iter", 3)
    assert newton_cg(grad, lambda x, v: -hvp(x, v), np.zeros(30), mu=1, tol=1e-9).status == "floor"
    assert newton_cg(lambda x: x * math.nan, hvp, np.zeros(30), mu=1, tol=1e-9).status == "diverged"
    for name, options in (("mu", {"mu": 0.0}), ("tol", {"tol": -1.0}), ("max_iter", {"max_iter": 0})):
        with pytest.raises(ValueError, match=name):
            newton_cg(grad, hvp, np.zeros(30), **({"mu": 1.0, "tol": 1e-6} | options))


def test_any_shape_and_library(xp):
    target = xp.reshape(xp.arange(6, dtype=xp.float64), (2, 3))
    result = newton_cg(
        lambda x: (x - target) + (x - target) ** 3, lambda x, v: v + 3 * (x - target) ** 2 * v, xp.zeros((2, 3)),
        mu=1, tol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(np.asarray(result.x), np.arange(6).reshape(2, 3), atol=1e-12)
