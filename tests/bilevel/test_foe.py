"""Denoising by fields of experts: derivatives, constants, certificates, and equality with total variation."""

import math

import array_api_strict
import numpy as np
import pytest

from ot_numba.arrays.namespaces import to_numpy
from ot_numba.arrays.warnings import ConvergenceWarning
from ot_numba.bilevel import (
    check_problem,
    denoise_foe,
    denoise_tv,
    foe_denoising,
    hoag,
    hypergradient,
    maid,
    tv_denoising,
)
from ot_numba.bilevel.foe import symbol_bound

SHAPES = {"line": ((8,), False), "image": ((5, 6), False), "lines": ((2, 6), True), "images": ((2, 4, 5), True)}
each_shape = pytest.mark.parametrize("shape", list(SHAPES))
STEPS = np.asarray([[[-1.0, 1.0], [0.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]]])


def build(shape, seed=0, n_filters=2, size=3):
    """A problem, parameters and three arrays like its images."""
    rng = np.random.default_rng(seed)
    shape, batch = SHAPES[shape]
    y, x_true, *more = rng.normal(size=(5, *shape))
    problem = foe_denoising(y, x_true, n_filters=n_filters, size=size, batch=batch)
    theta = np.concatenate([0.3 * rng.normal(size=1 + 2 * n_filters) - 0.5, rng.normal(size=problem.size)])
    return problem, theta[: problem.size], more


def central(function, t, h=1e-4):
    near, far = (function(t + s * h) - function(t - s * h) for s in (1, 2))
    return (8 * near - far) / (12 * h)


def dense(problem, theta, x):
    """Hessian and derivative of the gradient in theta, as matrices."""
    basis = np.eye(x.size).reshape(-1, *x.shape)
    H = np.stack([problem.lower_hvp(x, theta, e).ravel() for e in basis])
    return H, np.stack([problem.lower_jac_t(x, theta, e) for e in basis])


@each_shape
def test_derivatives(shape):
    problem, theta, (x, v, q) = build(shape)
    moved = central(lambda t: problem.lower(x + t * v, theta), 0)
    assert (problem.lower_grad(x, theta) * v).sum() == pytest.approx(moved, rel=1e-7)
    moved = central(lambda t: problem.lower_grad(x + t * v, theta), 0)
    np.testing.assert_allclose(problem.lower_hvp(x, theta, v), moved, atol=1e-7)
    moved = [central(lambda t, e=e: problem.lower_grad(x, theta + t * e), 0) for e in np.eye(problem.size)]
    np.testing.assert_allclose(problem.lower_jac_t(x, theta, q), [(m * q).sum() for m in moved], atol=1e-7)
    moved = central(lambda t: problem.upper(x + t * v, theta), 0)
    assert (problem.upper_grad(x, theta) * v).sum() == pytest.approx(moved, rel=1e-9)


@each_shape
def test_constants(shape):
    problem, theta, (x, v, _) = build(shape)
    rng = np.random.default_rng(1)
    largest = 0.0
    for size in (0.0, 0.1, 0.5, 1.0):
        for _ in range(4):
            x, v = size * rng.normal(size=x.shape), rng.normal(size=x.shape)
            x *= min(1, 1.9 * np.linalg.norm(problem.y) / max(np.linalg.norm(x), 1e-9))
            v *= 1e-4 / np.linalg.norm(v)
            (H, J), (H2, J2) = dense(problem, theta, x), dense(problem, theta, x + v)
            values = np.linalg.eigvalsh(H)
            assert values[0] >= 1 - 1e-12
            largest = max(largest, values[-1])
            assert np.linalg.norm(J2 - J, 2) <= 1e-4 * problem.L_J(theta)
            assert np.linalg.norm(np.linalg.inv(H2) - np.linalg.inv(H), 2) <= 1e-4 * problem.L_Hinv(theta)
            assert np.linalg.norm(J, 2) <= problem.jac_norm(x, theta) * (1 + 1e-9)
    assert 0.3 * problem.lipschitz(theta) < largest <= problem.lipschitz(theta) * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 4), (2, 3, 3), (1, 5, 2)])
def test_symbol_bound(shape):
    rng = np.random.default_rng(0)
    filters, factors = rng.normal(size=shape), rng.uniform(0.1, 1, shape[0])
    fine = np.abs(np.fft.fft2(filters, (1009, 1013))) ** 2
    exact = np.tensordot(factors, fine, 1).max()
    assert exact * (1 - 1e-14) <= symbol_bound(filters, factors) <= 1.02 * exact


@pytest.mark.parametrize("batch", [False, True])
def test_differences_are_total_variation(batch):
    """With filters of 2 x 2 that are differences, inside the last row and column."""
    rng = np.random.default_rng(2)
    y, x, v = rng.normal(size=(3, 2, 6, 7) if batch else (3, 6, 7))
    foe = foe_denoising(y, y, n_filters=2, size=2, batch=batch)
    tv = tv_denoising(y, y, per_pixel=True, batch=batch)
    weights = np.full((6, 7), -50.0)
    weights[:-1, :-1] = math.log(0.3)
    theta = np.concatenate([weights.ravel(), [math.log(0.2)]])
    other = foe.pack(STEPS, weight=0.3, smoothing=0.2)
    np.testing.assert_allclose(foe.lower_grad(x, other), tv.lower_grad(x, theta), rtol=0, atol=1e-13)
    np.testing.assert_allclose(foe.lower_hvp(x, other, v), tv.lower_hvp(x, theta, v), rtol=0, atol=1e-13)
    by_foe, by_tv = foe.lower_jac_t(x, other, v), tv.lower_jac_t(x, theta, v)
    assert by_foe[0] == pytest.approx(by_tv[:-1].sum(), rel=1e-11)
    assert by_foe[3:5].sum() == pytest.approx(by_tv[-1], rel=1e-11)


def test_signals_equal_total_variation():
    y = np.random.default_rng(0).normal(size=30)
    ours = denoise_foe(y, [[-1.0, 1.0]], weight=0.3, smoothing=0.1, tol=1e-10)
    theirs = denoise_tv(y, weight=0.3, smoothing=0.1, tol=1e-10)
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-9)
    assert ours.value == pytest.approx(theirs.value, rel=1e-12)


def test_lower_solve():
    problem, theta, (x, *_) = build("images")
    for start in (None, x):
        solution, _ = problem.lower_solve(theta, start, 1e-9)
        assert np.linalg.norm(problem.lower_grad(solution, theta)) <= 1e-9 * (1 + 1e-6)
    assert np.linalg.norm(solution) <= np.linalg.norm(problem.y)
    assert problem.lower_solve(theta, solution, 1e-8)[1] == 1


@each_shape
def test_checked_and_certified(shape):
    problem, theta, (x, *_) = build(shape)
    report = check_problem(problem, theta, x, rng=0)
    assert report.ok, report
    exact = hypergradient(problem, theta, tol=1e-11)
    for accuracy in (0.3, 1e-2, 1e-4):
        found = hypergradient(problem, theta, init=x, tol=accuracy)
        assert found.certified
        assert np.linalg.norm(found.grad - exact.grad) <= found.error_bound + exact.error_bound


def test_learning_lowers_the_loss():
    rng = np.random.default_rng(0)
    clean = np.kron(rng.random((2, 4, 4)), np.ones((5, 5)))
    noisy = clean + 0.1 * rng.normal(size=clean.shape)
    problem = foe_denoising(noisy, clean, n_filters=3, size=2, batch=True)
    theta = problem.pack(problem.cosine_filters(), weight=0.02, smoothing=0.05)
    result = maid(problem, theta, check_descent=False, max_gradients=3000, on_fail="ignore")
    values = [entry.value for entry in result.history]
    assert values[-1] < 0.7 * values[0]
    start, end = (problem.upper(problem.lower_solve(t, None, 1e-8)[0]) for t in (theta, result.theta))
    assert end < 0.7 * start


@pytest.mark.parametrize("schedule", ["geometric", "quadratic", "cubic"])
def test_schedules_lose_what_maid_keeps(schedule):
    """From the weights and smoothings that the paper starts with."""
    rng = np.random.default_rng(0)
    clean = np.kron(rng.random((2, 4, 4)), np.ones((5, 5)))
    problem = foe_denoising(clean + 0.1 * rng.normal(size=clean.shape), clean, n_filters=3, size=2, batch=True)
    theta = problem.pack(problem.cosine_filters(), weight=math.exp(-3), smoothing=math.exp(-3.5))
    learned = maid(problem, theta, max_gradients=1000, on_fail="ignore")
    values = [entry.value for entry in learned.history]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.95 * values[0]
    other = hoag(problem, theta, schedule=schedule, max_gradients=1000, on_fail="ignore")
    assert max(entry.value for entry in other.history) > 10 * values[0]
    assert other.value > values[0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_certificate(dtype):
    y = np.random.default_rng(0).random((17, 20)).astype(dtype)
    options = {"weight": [0.1, 0.2], "smoothing": [0.05, 0.1]}
    exact = denoise_foe(y.astype(float), STEPS, tol=1e-12, **options)
    for tol in (1e-1, 1e-3):
        result = denoise_foe(y, STEPS.astype(dtype), tol=tol, **options)
        assert result.status == "converged"
        assert result.x.dtype == dtype
        assert result.error_bound <= tol * y.std() * (1 + 1e-5)
        assert np.sqrt(np.mean((result.x - exact.x) ** 2)) <= result.error_bound * (1 + 1e-3)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        assert not denoise_foe(y, STEPS, max_iter=3, **options).converged
    assert denoise_foe(y, STEPS, tol=0, **options).status == "floor"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"filters": [[1.0, -1.0, 0.0, 0.0]]}, "do not fit"),
        ({"filters": [1.0, -1.0]}, "filters must have 2"),
        ({"weight": [-1.0]}, "weight must not be negative"),
        ({"weight": [1.0, 1.0]}, r"weight must be a number or have shape \(1,\)"),
        ({"smoothing": 0.0}, "smoothing must be > 0"),
        ({"weight": 1e300}, "weight has entries of size 1e.*overflow"),
        ({"smoothing": 1e-300}, "smoothing has entries of size 1e-300.*underflow"),
        ({"y": [1.0, np.inf, 1.0]}, "y has inf"),
    ],
)
def test_bad_input(change, match):
    with pytest.raises(ValueError, match=match):
        denoise_foe(**{"y": [1.0, 2.0, 0.0], "filters": [[1.0, -1.0]], "weight": 0.1, "smoothing": 0.1} | change)


def test_bad_problems():
    y = np.zeros((4, 5))
    with pytest.raises(ValueError, match="size must be at most"):
        foe_denoising(y, y, size=5)
    with pytest.raises(ValueError, match="size must be >= 2"):
        foe_denoising(y, y, size=1)
    with pytest.raises(ValueError, match="n_filters must be >= 1"):
        foe_denoising(y, y, n_filters=0)
    with pytest.raises(ValueError, match="there are only 8 cosines"):
        foe_denoising(y, y, n_filters=9).cosine_filters()


def test_cosines_are_orthonormal():
    filters = foe_denoising(np.zeros((6, 7)), np.zeros((6, 7)), n_filters=24, size=5).cosine_filters()
    flat = filters.reshape(24, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(24), atol=1e-14)
    np.testing.assert_allclose(flat.sum(axis=1), 0, atol=1e-14)


def test_pack_and_read():
    problem, _, (x, *_) = build("image")
    filters, weight, smoothing = problem.cosine_filters(), [0.2, 0.3], [0.01, 0.02]
    read = problem.read(problem.pack(filters, weight=weight, smoothing=smoothing))
    for found, expected in zip(read, (filters, weight, smoothing), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert np.isfinite(problem.lower_grad(x, np.full(problem.size, 1e4))).all()


def test_other_libraries():
    problem, theta, (x, v, _) = build("images")
    asarray = array_api_strict.asarray
    other = foe_denoising(asarray(problem.y), asarray(problem.x_true), n_filters=2, size=3, batch=True)
    for call in (
        lambda p, x, v, t: p.lower_grad(x, t),
        lambda p, x, v, t: p.lower_hvp(x, t, v),
        lambda p, x, v, t: p.lower_jac_t(x, t, v),
        lambda p, x, v, t: np.asarray([p.lower(x, t), p.jac_norm(x, t), p.lipschitz(t), p.L_J(t)]),
        lambda p, x, v, t: p.lower_solve(t, x, 1e-10)[0],
    ):
        expected = call(problem, x, v, theta)
        found = to_numpy(call(other, *(asarray(a) for a in (x, v, theta))))
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)
    expected = denoise_foe(problem.y, STEPS, weight=0.1, smoothing=0.3, batch=True)
    result = denoise_foe(asarray(problem.y), asarray(STEPS), weight=0.1, smoothing=0.3, batch=True)
    np.testing.assert_allclose(to_numpy(result.x), expected.x, rtol=1e-9)
