import numpy as np
import pytest

from ot_numba.arrays import to_numpy
from ot_numba.optimize import conjugate_gradient, jacobi


@pytest.fixture
def system(xp):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((30, 40))
    A = root @ root.T * np.logspace(0, 2, 30) * np.logspace(0, 2, 30)[:, None]
    return xp.asarray(A), xp.asarray(rng.standard_normal(30))


def test_solves(xp, system):
    A, b = system
    result = conjugate_gradient(lambda v: A @ v, b, tol=1e-9, max_iter=2000)
    assert result.converged
    assert result.residual <= 1e-9
    x = to_numpy(result.x)
    assert np.linalg.norm(to_numpy(A) @ x - to_numpy(b)) <= 1e-8 * np.linalg.norm(to_numpy(b))


def test_the_diagonal_preconditions(xp, system):
    A, b = system
    diagonal = xp.linalg.diagonal(A)
    plain = conjugate_gradient(lambda v: A @ v, b, tol=1e-9, max_iter=2000)
    scaled = conjugate_gradient(lambda v: A @ v, b, preconditioner=lambda r: r / diagonal, tol=1e-9)
    assert scaled.converged
    assert scaled.n_iter < plain.n_iter / 2
    assert np.allclose(to_numpy(A @ scaled.x), to_numpy(b), rtol=0, atol=1e-7)


def test_singular_but_consistent(xp):
    rng = np.random.default_rng(1)
    weights = rng.random((12, 12))
    weights += weights.T
    laplacian = xp.asarray(np.diag(weights.sum(1)) - weights)
    b = rng.standard_normal(12)
    b = xp.asarray(b - b.mean())
    result = conjugate_gradient(lambda v: laplacian @ v, b)
    assert result.converged
    assert np.allclose(to_numpy(laplacian @ result.x), to_numpy(b), rtol=0, atol=1e-9)


def test_exact_start_and_zero(xp, system):
    A, b = system
    x = xp.asarray(np.linalg.solve(to_numpy(A), to_numpy(b)))
    assert conjugate_gradient(lambda v: A @ v, b, init=x, tol=1e-6).n_iter == 0
    zero = conjugate_gradient(lambda v: A @ v, xp.zeros_like(b))
    assert zero.converged
    assert zero.residual == 0
    assert not np.any(to_numpy(zero.x))


def test_missed_tolerance_gives_the_last_iterate(system):
    A, b = system
    result = conjugate_gradient(lambda v: A @ v, b, max_iter=3)
    assert not result.converged
    assert result.n_iter == 3
    r = to_numpy(b) - to_numpy(A) @ to_numpy(result.x)
    assert np.isclose(result.residual, np.linalg.norm(r) / np.linalg.norm(to_numpy(b)))


def test_inputs_are_not_modified(system):
    A, b = system
    before, start = to_numpy(b).copy(), b * 0 + 1
    conjugate_gradient(lambda v: A @ v, b, init=start, max_iter=5)
    assert np.array_equal(to_numpy(b), before)
    assert np.all(to_numpy(start) == 1)


def test_float32(xp):
    A = xp.asarray(np.array([[2.0, 1.0], [1.0, 3.0]], np.float32))
    result = conjugate_gradient(lambda v: A @ v, xp.asarray(np.array([3.0, 4.0], np.float32)), tol=1e-6)
    assert result.converged
    assert result.x.dtype == xp.float32
    assert np.allclose(to_numpy(result.x), [1, 1], rtol=0, atol=1e-6)


def test_not_positive_semidefinite_stops():
    result = conjugate_gradient(lambda v: -v, np.ones(3))
    assert not result.converged
    assert result.n_iter == 1


def test_bad_input():
    with pytest.raises(ValueError, match="tol must be >= 0, got -1"):
        conjugate_gradient(lambda v: v, np.ones(2), tol=-1)
    with pytest.raises(ValueError, match="max_iter must be >= 1, got 0"):
        conjugate_gradient(lambda v: v, np.ones(2), max_iter=0)


def test_jacobi(xp):
    diagonal = xp.asarray(np.array([1.0, 4.0]))
    assert to_numpy(jacobi(diagonal)(xp.asarray(np.array([3.0, 4.0])))).tolist() == [3, 1]
    with pytest.raises(ValueError, match=r"diagonal must be positive, got -4\.0"):
        jacobi(-diagonal)
