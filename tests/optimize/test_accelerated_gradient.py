import numpy as np
import pytest

from ot_numba.optimize import accelerated_gradient


def quadratic(n=30, kappa=100.0):
    d = np.geomspace(1, kappa, n)
    return d, lambda x: d * (x - 1)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_error_is_within_its_bound(tol):
    _, grad = quadratic()
    result = accelerated_gradient(grad, np.zeros(30), mu=1, lipschitz=100, tol=tol)
    assert result.status == "converged"
    assert result.grad_norm == pytest.approx(np.linalg.norm(grad(result.x)), rel=1e-13)
    assert result.grad_norm <= tol
    assert np.linalg.norm(result.x - 1) <= result.error_bound == result.grad_norm


def test_momentum_takes_the_root_of_the_steps():
    _, grad = quadratic(kappa=1000.0)
    fast, slow = (
        accelerated_gradient(grad, np.zeros(30), mu=1, lipschitz=1000, tol=1e-8, momentum=m) for m in (True, False)
    )
    assert fast.n_iter * 8 < slow.n_iter
    assert slow.status == "converged"


def test_floor_limit_and_divergence():
    _, grad = quadratic()
    at_floor = accelerated_gradient(grad, np.zeros(30), mu=1, lipschitz=100, tol=0, max_iter=10**6)
    assert at_floor.status in ("floor", "converged")  # the gradient may be 0 in all digits
    assert at_floor.grad_norm < 1e-12
    noise = np.random.default_rng(0)
    noisy = accelerated_gradient(
        lambda x: grad(x) + 1e-6 * noise.standard_normal(30), np.zeros(30), mu=1, lipschitz=100, tol=1e-9
    )
    assert noisy.status == "floor"
    assert noisy.n_iter < 5000
    assert accelerated_gradient(grad, np.zeros(30), mu=1, lipschitz=100, tol=1e-9, max_iter=7).n_iter == 7
    wrong = accelerated_gradient(lambda x: -grad(x), np.zeros(30), mu=1, lipschitz=100, tol=1e-9)
    assert wrong.status == "diverged"
    short = accelerated_gradient(grad, np.zeros(30), mu=1, lipschitz=10, tol=1e-9)
    assert short.status == "diverged"


def test_any_shape_and_library(xp):
    target = xp.reshape(xp.arange(6, dtype=xp.float64), (2, 3))
    result = accelerated_gradient(lambda x: 2 * (x - target), xp.zeros((2, 3)), mu=2, lipschitz=2, tol=1e-12)
    np.testing.assert_allclose(np.asarray(result.x), np.arange(6).reshape(2, 3), atol=1e-12)
    assert result.n_iter == 2


def test_bad_constants():
    for name, options in (("mu", {"mu": 0.0}), ("lipschitz", {"lipschitz": 0.5}), ("max_iter", {"max_iter": 0})):
        with pytest.raises(ValueError, match=name):
            accelerated_gradient(lambda x: x, np.zeros(2), **({"mu": 1.0, "lipschitz": 1.0, "tol": 1e-6} | options))
