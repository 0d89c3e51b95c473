"""Denoising by total variation: derivatives, constants, certificates, and learning of its parameters."""

import math

import array_api_strict
import numpy as np
import pytest

from ot_numba.arrays.namespaces import to_numpy
from ot_numba.arrays.warnings import ConvergenceError, ConvergenceWarning
from ot_numba.bilevel import check_problem, denoise_tv, hypergradient, maid, tv_denoising
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads

THETA = np.log([0.2, 0.5])
SHAPES = {"line": ((7,), False), "image": ((4, 5), False), "lines": ((3, 6), True), "images": ((2, 4, 3), True)}
each_shape = pytest.mark.parametrize("shape", list(SHAPES))
each_form = pytest.mark.parametrize(
    ("isotropic", "per_pixel"), [(False, False), (True, False), (False, True), (True, True)]
)


def build(shape, isotropic=False, per_pixel=False, seed=0):
    """A problem, parameters and three arrays like its images."""
    rng = np.random.default_rng(seed)
    shape, batch = SHAPES[shape]
    y, x_true, *more = rng.normal(size=(5, *shape))
    problem = tv_denoising(y, x_true, isotropic=isotropic, per_pixel=per_pixel, batch=batch)
    return problem, 0.3 * rng.normal(size=problem.size) - 1, more


def central(function, t, h=1e-4):
    near, far = (function(t + s * h) - function(t - s * h) for s in (1, 2))
    return (8 * near - far) / (12 * h)


def dense(problem, theta, x):
    """Hessian and derivative of the gradient in theta, as matrices."""
    basis = np.eye(x.size).reshape(-1, *x.shape)
    H = np.stack([problem.lower_hvp(x, theta, e).ravel() for e in basis])
    return H, np.stack([problem.lower_jac_t(x, theta, e) for e in basis])


def test_case_on_a_line():
    x, y = [0, 1, 3, 2.5], [0.5, 1, 2, 2]
    for isotropic in (False, True):
        problem = tv_denoising(y, x, isotropic=isotropic)
        assert problem.lower(x, THETA) == pytest.approx(1.5273387165490546, rel=1e-15)
        expected = (-0.6788854382, -0.0151430618, 1.3354498563, 0.3585786438)
        np.testing.assert_allclose(problem.lower_grad(x, THETA), expected, atol=6e-11)
        expected = (1.0715541753, -1.0801142562, 0.579270759, -0.0707106781)
        np.testing.assert_allclose(problem.lower_hvp(x, THETA, [1, -1, 0.5, 0]), expected, atol=6e-11)
        _, J = dense(problem, THETA, np.asarray(x, float))
        expected = (-0.1788854382, -0.0151430618, 0.3354498563, -0.1414213562)
        np.testing.assert_allclose(J[:, 0], expected, atol=6e-11)
        expected = (0.0357770876, -0.0243636465, -0.0821241193, 0.0707106781)
        np.testing.assert_allclose(J[:, 1], expected, atol=6e-11)
        assert problem.lipschitz(THETA) == pytest.approx(1 + 0.4 * 4 * math.sin(3 * math.pi / 8) ** 2)


@each_shape
@each_form
def test_derivatives(shape, isotropic, per_pixel):
    problem, theta, (x, v, q) = build(shape, isotropic, per_pixel)
    moved = central(lambda t: problem.lower(x + t * v, theta), 0)
    assert (problem.lower_grad(x, theta) * v).sum() == pytest.approx(moved, rel=1e-9)
    moved = central(lambda t: problem.lower_grad(x + t * v, theta), 0)
    np.testing.assert_allclose(problem.lower_hvp(x, theta, v), moved, atol=1e-9)
    moved = [central(lambda t, e=e: problem.lower_grad(x, theta + t * e), 0) for e in np.eye(problem.size)]
    np.testing.assert_allclose(problem.lower_jac_t(x, theta, q), [(m * q).sum() for m in moved], atol=1e-8)
    moved = central(lambda t: problem.upper(x + t * v, theta), 0)
    assert (problem.upper_grad(x, theta) * v).sum() == pytest.approx(moved, rel=1e-9)


@each_shape
@each_form
def test_constants(shape, isotropic, per_pixel):
    """Each bounds what it says, at places where it is nearly reached, and not by far more."""
    problem, theta, (x, v, _) = build(shape, isotropic, per_pixel)
    rng = np.random.default_rng(1)
    found = {"lipschitz": 0.0, "L_J": 0.0, "L_Hinv": 0.0, "jac_norm": 0.0}
    for size in (0.0, 0.1, 0.5, 2.0):
        for _ in range(4):
            x, v = size * rng.normal(size=x.shape), rng.normal(size=x.shape)
            v *= 1e-4 / np.linalg.norm(v)
            (H, J), (H2, J2) = dense(problem, theta, x), dense(problem, theta, x + v)
            values = np.linalg.eigvalsh(H)
            assert values[0] >= problem.mu(theta) - 1e-12
            found["lipschitz"] = max(found["lipschitz"], values[-1])
            found["L_J"] = max(found["L_J"], np.linalg.norm(J2 - J, 2) / 1e-4)
            inverses = np.linalg.norm(np.linalg.inv(H2) - np.linalg.inv(H), 2)
            found["L_Hinv"] = max(found["L_Hinv"], inverses / 1e-4)
            norm = np.linalg.norm(J, 2)
            if per_pixel:
                assert norm <= problem.jac_norm(x, theta)
            else:
                assert problem.jac_norm(x, theta) == pytest.approx(norm, rel=1e-9)
    for name in ("lipschitz", "L_J", "L_Hinv"):
        assert found[name] <= getattr(problem, name)(theta) * (1 + 1e-9)
    assert found["lipschitz"] > (0.3 if per_pixel else 0.999) * problem.lipschitz(theta)


def test_spec_constants():
    problem = tv_denoising(np.zeros((400, 400)), np.zeros((400, 400)))
    for constant, expected in (
        (problem.lipschitz, 1 + 0.2 * 8 / 0.5),
        (problem.L_J, math.sqrt(2) * 0.2 * 8 / 0.5),
        (problem.L_Hinv, 0.8587 * math.sqrt(2) * 0.2 * 8 / 0.25),
    ):
        assert constant(THETA) == pytest.approx(expected, rel=1e-4)
    assert problem.mu(THETA) == 1


def test_a_batch_is_a_mean_over_its_images():
    problem, theta, (x, v, q) = build("images")
    parts = [tv_denoising(problem.y[b], problem.x_true[b]) for b in range(2)]
    assert problem.upper(x) == pytest.approx(np.mean([p.upper(x[b]) for b, p in enumerate(parts)]), rel=1e-14)
    assert problem.L_g == 0.5
    for b, part in enumerate(parts):
        np.testing.assert_allclose(problem.lower_grad(x, theta)[b], part.lower_grad(x[b], theta), rtol=1e-14)
        np.testing.assert_allclose(problem.lower_hvp(x, theta, v)[b], part.lower_hvp(x[b], theta, v[b]), rtol=1e-14)
    total = sum(p.lower_jac_t(x[b], theta, q[b]) for b, p in enumerate(parts))
    np.testing.assert_allclose(problem.lower_jac_t(x, theta, q), total, rtol=1e-13)


def test_lower_solve():
    problem, theta, (x, *_) = build("image", isotropic=True)
    for start in (None, x):
        for tol in (1e-2, 1e-10):
            solution, n_iter = problem.lower_solve(theta, start, tol)
            assert np.linalg.norm(problem.lower_grad(solution, theta)) <= tol * (1 + 1e-6)
            assert n_iter > 0
    assert problem.lower_solve(theta, solution, 1e-9)[1] == 1


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_certificate(isotropic, dtype):
    rng = np.random.default_rng(0)
    y = np.kron(rng.random((4, 4)), np.ones((8, 8))) + 0.1 * rng.normal(size=(32, 32))
    y = y.astype(dtype)
    exact = denoise_tv(y.astype(float), weight=0.1, smoothing=0.01, isotropic=isotropic, tol=1e-12)
    assert exact.status == "converged"
    for tol in (1e-1, 1e-3, 1e-5):
        result = denoise_tv(y, weight=0.1, smoothing=0.01, isotropic=isotropic, tol=tol)
        assert result.converged
        assert result.x.dtype == dtype
        assert result.error_bound <= tol * y.std() * (1 + 1e-5) or result.status == "floor"
        distance = np.sqrt(np.mean((result.x - exact.x) ** 2))
        assert distance <= result.error_bound * (1 + 1e-3) + (0 if dtype == "float64" else 1e-6)
        rounding = 4 * np.finfo(dtype).eps * exact.value
        assert -rounding <= result.value - exact.value <= result.gap_bound + rounding
    assert denoise_tv(y, weight=0.1, smoothing=0.01, isotropic=isotropic, init=exact.x).n_iter == 1


def test_rounding_floor():
    y = np.random.default_rng(0).random((20, 20))
    result = denoise_tv(y, weight=0.1, smoothing=0.01, tol=0)
    assert result.status == "floor"
    assert result.converged
    assert "rounding" in result.message
    assert result.error_bound < 1e-13
    assert result.n_iter < 2000


def test_not_converged():
    y = np.random.default_rng(0).random((20, 20))
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        result = denoise_tv(y, weight=1, smoothing=1e-4, max_iter=20)
    assert not result.converged
    assert result.status == "max_iter"
    assert result.n_iter == 20
    with pytest.raises(ConvergenceError, match="not converged"):
        denoise_tv(y, weight=1, smoothing=1e-4, max_iter=20, on_fail="raise")
    denoise_tv(y, weight=1, smoothing=1e-4, max_iter=20, on_fail="ignore")


def test_limits_of_the_weight():
    y = np.random.default_rng(0).random((9, 11))
    np.testing.assert_array_equal(denoise_tv(y, weight=0, smoothing=0.1).x, y)
    flat = denoise_tv(y, weight=1e3, smoothing=10, tol=1e-8)
    np.testing.assert_allclose(flat.x, y.mean(), atol=2e-2)
    np.testing.assert_allclose(flat.x.mean(), y.mean(), rtol=1e-7)
    weights = np.full(y.shape, 0.2)
    np.testing.assert_array_equal(
        denoise_tv(y, weight=weights, smoothing=0.1).x, denoise_tv(y, weight=0.2, smoothing=0.1).x
    )
    weights[:, 5:] = 0
    np.testing.assert_allclose(denoise_tv(y, weight=weights, smoothing=0.1).x[:, 6:], y[:, 6:], atol=1e-15)


def test_symmetries():
    y = np.random.default_rng(0).random((9, 11))
    options = {"weight": 0.1, "smoothing": 0.05, "isotropic": False, "tol": 1e-9}
    x = denoise_tv(y, **options).x
    for move in (np.transpose, np.flipud, np.fliplr):
        np.testing.assert_allclose(denoise_tv(move(y), **options).x, move(x), atol=1e-8)
    np.testing.assert_allclose(denoise_tv(y + 3, **options).x, x + 3, atol=1e-8)
    options |= {"weight": 0.2, "smoothing": 0.1}
    np.testing.assert_allclose(denoise_tv(2 * y, **options).x, 2 * x, atol=1e-8)


@pytest.mark.parametrize(
    "y",
    [
        [3.0],
        [[1, 2], [3, 5]],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24.0).reshape(6, 4)[::2],
        np.arange(6, dtype=">f8"),
        np.zeros((3, 3)),
    ],
)
def test_kinds_of_input(y):
    before = np.array(y, copy=True)
    result = denoise_tv(y, weight=0.1, smoothing=0.1)
    assert result.converged
    assert result.x.dtype == np.float64
    plain = np.array(y, dtype=float)
    plain.setflags(write=False)
    np.testing.assert_array_equal(result.x, denoise_tv(plain, weight=0.1, smoothing=0.1).x)
    np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"y": [1.0, np.nan]}, ValueError, "y has NaN"),
        ({"y": 1.0}, ValueError, "y must have 1 or 2"),
        ({"y": [1e200, 0.0]}, ValueError, "y has entries of size 1e.*overflow"),
        ({"y": [1e-200, 0.0]}, ValueError, "y has entries of size 1e-200.*underflow"),
        ({"weight": 1e300}, ValueError, "weight has entries of size 1e.*overflow"),
        ({"smoothing": 1e300}, ValueError, "smoothing has entries of size 1e.*overflow"),
        ({"smoothing": 1e-300}, ValueError, "smoothing has entries of size 1e-300.*underflow"),
        ({"weight": -1}, ValueError, "weight must be >= 0"),
        ({"weight": [1.0, 1.0, 1.0]}, ValueError, r"shape \(2,\)"),
        ({"weight": [1.0, -1.0]}, ValueError, "weight must not be negative"),
        ({"smoothing": 0}, ValueError, "smoothing must be > 0"),
        ({"tol": -1}, ValueError, "tol must be >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"init": [1.0]}, ValueError, "init must have the shape of y"),
        ({"on_fail": "no"}, ValueError, "on_fail"),
    ],
)
def test_bad_input(change, error, match):
    with pytest.raises(error, match=match):
        denoise_tv(**{"y": [1.0, 2.0], "weight": 0.1, "smoothing": 0.1} | change)


def test_bad_problems():
    with pytest.raises(ValueError, match="x_true must have the shape of y"):
        tv_denoising([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="theta must have 2 entries, got 3"):
        tv_denoising([1.0, 2.0], [1.0, 1.0]).lower_grad([1.0, 2.0], np.zeros(3))


def test_extreme_logarithms_are_cut():
    problem = tv_denoising([1.0, 2.0], [1.0, 1.0])
    for theta in ([1e4, 0.0], [0.0, -1e4], [-1e4, 1e4]):
        assert np.isfinite(problem.lower_grad([1.0, 2.0], theta)).all()
        assert math.isfinite(problem.lipschitz(theta))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", ["auto", "agd", "gd", "lbfgs", "newton-cg"])
def test_solvers_of_both_levels(dtype, solver):
    problem, theta, _ = build("images", isotropic=True)
    exact = hypergradient(problem, theta, tol=1e-11)
    problem = tv_denoising(problem.y.astype(dtype), problem.x_true.astype(dtype), isotropic=True, batch=True)
    for linear in ("cg", "minres"):
        found = hypergradient(problem, theta, tol=1e-3, solver=solver, linear=linear)
        assert found.converged
        assert found.x.dtype == found.q.dtype == dtype
        assert np.linalg.norm(found.grad - exact.grad) <= found.error_bound + exact.error_bound
        options = {"solver": solver, "linear": linear, "on_fail": "ignore"}
        result = maid(problem, theta, accuracy=1e-2, step=0.1, max_iter=3, **options)
        assert result.value < result.history[0].value


@pytest.mark.parametrize("per_pixel", [False, True])
def test_other_libraries(per_pixel):
    problem, theta, (x, v, _) = build("images", True, per_pixel)
    asarray = array_api_strict.asarray
    other = tv_denoising(
        asarray(problem.y), asarray(problem.x_true), isotropic=True, per_pixel=per_pixel, batch=True
    )
    for call in (
        lambda p, x, v, t: p.lower_grad(x, t),
        lambda p, x, v, t: p.lower_hvp(x, t, v),
        lambda p, x, v, t: p.lower_jac_t(x, t, v),
        lambda p, x, v, t: p.upper_grad(x, t),
        lambda p, x, v, t: np.asarray([p.upper(x), p.lower(x, t), p.jac_norm(x, t), p.lipschitz(t), p.L_Hinv(t)]),
        lambda p, x, v, t: p.lower_solve(t, x, 1e-10)[0],
    ):
        expected = call(problem, x, v, theta)
        found = to_numpy(call(other, *(asarray(a) for a in (x, v, theta))))
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)
    weight = float(np.exp(theta[0]))
    result = denoise_tv(asarray(problem.y), weight=weight, smoothing=0.3, batch=True)
    expected = denoise_tv(problem.y, weight=weight, smoothing=0.3, batch=True)
    np.testing.assert_allclose(to_numpy(result.x), expected.x, rtol=1e-9)


def test_same_bits_from_any_number_of_threads():
    y = np.random.default_rng(0).random((600, 700))
    before, found = get_num_threads(), []
    try:
        for n in (1, 2, 5):
            set_num_threads(n)
            found.append(denoise_tv(y, weight=0.1, smoothing=0.05))
    finally:
        set_num_threads(before)
    for other in found[1:]:
        np.testing.assert_array_equal(other.x, found[0].x)
        assert (other.value, other.gradient_norm, other.n_iter) == (
            found[0].value, found[0].gradient_norm, found[0].n_iter,
        )  # fmt: skip


@pytest.mark.parametrize("isotropic", [True])
def test_against_scikit_image(isotropic):
    """Its Chambolle iterations minimise the total variation itself, to which a small smoothing comes close."""
    restoration = pytest.importorskip("skimage.restoration")
    rng = np.random.default_rng(0)
    y = np.kron(rng.random((3, 3)), np.ones((10, 10))) + 0.1 * rng.normal(size=(30, 30))
    weight = 0.15
    theirs = restoration.denoise_tv_chambolle(y, weight=weight, eps=1e-12, max_num_iter=20_000)
    ours = denoise_tv(y, weight=weight, smoothing=1e-4, tol=1e-6, max_iter=100_000)
    # the smoothing adds at most w nu a pixel to the objective, which is 1-strongly convex
    assert np.sqrt(np.mean((ours.x - theirs) ** 2)) < math.sqrt(2 * weight * 1e-4)


@each_shape
@each_form
def test_checked_and_certified(shape, isotropic, per_pixel):
    """Constants survive the package's own check, and the bound of a hypergradient holds."""
    problem, theta, (x, *_) = build(shape, isotropic, per_pixel)
    report = check_problem(problem, theta, x, rng=0)
    assert report.ok, report
    exact = hypergradient(problem, theta, tol=1e-11)
    for accuracy in (0.3, 1e-2, 1e-4):
        found = hypergradient(problem, theta, init=x, tol=accuracy)
        assert found.certified
        assert np.linalg.norm(found.grad - exact.grad) <= found.error_bound + exact.error_bound


def phantom():
    """Rectangles of four levels, and a noisy picture of them with a PSNR of about 20.3 dB."""
    x_true = np.full((32, 32), 0.2)
    x_true[4:20, 6:18] = 0.8
    x_true[14:28, 16:29] = 0.55
    x_true[22:30, 3:11] = 1.0
    return x_true, x_true + 0.1 * np.random.default_rng(0).normal(size=x_true.shape)


def psnr(x, x_true):
    return -10 * math.log10(np.mean((x - x_true) ** 2))


def test_learned_parameters_do_not_depend_on_the_first_accuracy():
    x_true, y = phantom()
    problem = tv_denoising(y, x_true)
    found, losses = [], []
    options = {"init": np.zeros_like(y), "max_gradients": 20_000, "on_fail": "ignore"}
    for accuracy in (1e-1, 1e-3, 1e-5):
        result = maid(problem, [-5.0, -5.0], accuracy=accuracy, **options)
        found.append(psnr(problem.lower_solve(result.theta, None, 1e-9)[0], x_true))
        losses.append(result.value)
    assert psnr(y, x_true) == pytest.approx(20.24, abs=0.01)
    assert max(found) - min(found) < 0.02
    assert found == pytest.approx([30.375] * 3, abs=0.02)
    assert max(losses) < 1.004 * min(losses)
    none, stalled = (maid(problem, [-5.0, -5.0], accuracy=eps, fixed_accuracy=True, **options) for eps in (1e-1, 1e-3))
    assert (none.status, none.n_iter) == (stalled.status, 0) == ("line_search", 0)
    assert psnr(none.x, x_true) == pytest.approx(21.5, abs=0.05)
    assert stalled.value > 1.08 * max(losses)
