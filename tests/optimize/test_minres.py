import numpy as np
import pytest

from ot_numba.arrays import to_numpy
from ot_numba.optimize import conjugate_gradient, minres


def symmetric(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return (Q * values) @ Q.T


@pytest.mark.parametrize("values", [np.geomspace(1, 100, 30), np.linspace(-1, 2, 30)])
def test_solves(xp, values):
    A, b = xp.asarray(symmetric(values)), xp.asarray(np.random.default_rng(1).standard_normal(30))
    result = minres(lambda v: A @ v, b, tol=1e-9)
    assert result.converged
    residual = np.linalg.norm(to_numpy(A @ result.x) - to_numpy(b)) / np.linalg.norm(to_numpy(b))
    assert residual == pytest.approx(result.residual, abs=1e-12)
    assert residual <= 1e-9


@pytest.mark.parametrize("values", [np.geomspace(1, 1e3, 25), np.linspace(-1, 2, 25)])
def test_iterates_have_the_smallest_residuals(values):
    A, b = symmetric(values), np.random.default_rng(1).standard_normal(25)
    basis, last = b[:, None], np.inf
    for k in range(1, 9):
        result = minres(lambda v: A @ v, b, tol=0, max_iter=k)
        smallest = np.linalg.norm(b - A @ basis @ np.linalg.lstsq(A @ basis, b, rcond=None)[0]) / np.linalg.norm(b)
        assert result.residual == pytest.approx(smallest, rel=1e-6)
        assert result.residual <= last
        basis, last = np.linalg.qr(np.c_[basis, A @ basis[:, -1]])[0], result.residual
        assert result.n_iter == k


def test_residuals_are_below_those_of_conjugate_gradients():
    A, b = symmetric(np.geomspace(1, 1e4, 60)), np.random.default_rng(1).standard_normal(60)
    counts = {}
    for solve in (minres, conjugate_gradient):
        for k in (5, 15, 30):
            counts[solve, k] = solve(lambda v: A @ v, b, tol=0, max_iter=k).residual
    assert all(counts[minres, k] < counts[conjugate_gradient, k] for k in (5, 15, 30))


def test_singular_but_consistent():
    A = symmetric(np.r_[np.zeros(3), np.linspace(1, 2, 9)])
    b = A @ np.random.default_rng(0).standard_normal(12)
    result = minres(lambda v: A @ v, b)
    assert result.converged
    np.testing.assert_allclose(A @ result.x, b, atol=1e-9)
    assert not minres(lambda v: 0 * v, np.ones(3)).converged


def test_starts_shapes_and_zero(xp):
    A = symmetric(np.linspace(1, 4, 12))
    x = np.random.default_rng(0).standard_normal((3, 4))
    b, A = xp.asarray((A @ x.ravel()).reshape(3, 4)), xp.asarray(A)
    apply = lambda v: xp.reshape(A @ xp.reshape(v, (-1,)), (3, 4))  # noqa: E731
    start = xp.asarray(x)
    assert minres(apply, b, init=start, tol=1e-12).n_iter == 0
    np.testing.assert_allclose(to_numpy(minres(apply, b, init=xp.ones((3, 4))).x), x, atol=1e-9)
    np.testing.assert_array_equal(to_numpy(start), x)
    zero = minres(apply, 0 * b)
    assert (zero.converged, zero.residual, zero.n_iter) == (True, 0, 0)


def test_float32(xp):
    A = xp.asarray(symmetric(np.linspace(1, 4, 12)).astype(np.float32))
    b = xp.asarray(np.ones(12, np.float32))
    result = minres(lambda v: A @ v, b, tol=1e-5)
    assert result.converged
    assert result.x.dtype == xp.float32


def test_missed_tolerance_and_bad_input():
    result = minres(lambda v: np.geomspace(1, 1e6, 20) * v, np.ones(20), max_iter=4)
    assert not result.converged
    assert result.n_iter == 4
    with pytest.raises(ValueError, match="tol must be >= 0, got -1"):
        minres(lambda v: v, np.ones(2), tol=-1)
    with pytest.raises(ValueError, match="max_iter must be >= 1, got 0"):
        minres(lambda v: v, np.ones(2), max_iter=0)
