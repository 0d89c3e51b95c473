import functools

import array_api_strict
import numpy as np
import pytest

from ot_numba.costs import CostMatrix, Grid, PointCloud
from ot_numba.transport._sinkhorn import sinkhorn
from ot_numba.transport.semidual import (
    dual_hessian_vector,
    dual_value_and_grad,
    semidual_hessian_vector,
    semidual_value_and_grad,
)

FORMS = ("kl", "entropy")
PENALTIES = (None, 0.7, (None, 0.4), (1.2, np.inf), (0.3, 2.0))


@functools.cache
def problem(n=6, m=5, mass=1.0, seed=0):
    rng = np.random.default_rng(seed)
    a, b = mass * rng.dirichlet(np.full(n, 2.0)), mass * rng.dirichlet(np.full(m, 2.0))
    return rng.random((n, m)), a, b, 0.3 * rng.normal(size=n), 0.3 * rng.normal(size=m)


def central(function, x, step=1e-3):
    """Gradient or Jacobian by central differences of order six."""
    columns = []
    for e in np.eye(len(x)):
        d = sum(
            w * (np.asarray(function(x + k * step * e)) - np.asarray(function(x - k * step * e)))
            for k, w in ((1, 45), (2, -9), (3, 1))
        )
        columns.append(d / (60 * step))
    return np.stack(columns, axis=-1)


def dense_plan(f, g, C, a, b, reg, form):
    P = np.exp((f[:, None] + g - C) / reg)
    return P * np.outer(a, b) if form == "kl" else P


def dense_dual(f, g, C, a, b, reg, form, rho=(np.inf, np.inf)):
    P = dense_plan(f, g, C, a, b, reg, form)
    value = -reg * (P.sum() - (a.sum() * b.sum() if form == "kl" else 0))
    for potential, w, r in ((f, a, rho[0]), (g, b, rho[1])):
        value += potential @ w if np.isinf(r) else -r * (w @ (np.exp(-potential / r) - 1))
    return value


def dense_semidual(g, C, a, b, reg, form):
    z = (g - C) / reg + (np.log(b) if form == "kl" else 0)
    top = z.max(axis=1)
    lse = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    f = -reg * lse + (0 if form == "kl" else reg * np.log(a))
    pi = np.exp(z - lse[:, None])
    return dense_dual(f, g, C, a, b, reg, form), b - a @ pi


def pair_of(unbalanced):
    first, second = unbalanced if isinstance(unbalanced, tuple) else (unbalanced, unbalanced)
    return np.inf if first is None else first, np.inf if second is None else second


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mass", [1.0, 3.0])
def test_semidual_is_its_formula(form, mass):
    C, a, b, _, g = problem(mass=mass)
    value, grad = semidual_value_and_grad(g, C, a, b, reg=0.1, regularizer=form)
    expected = dense_semidual(g, C, a, b, 0.1, form)
    assert value == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(grad, expected[1], atol=1e-14 * mass)
    assert abs(grad.sum()) < 1e-14 * mass


def test_semidual_of_probabilities_is_the_textbook_formula():
    C, a, b, _, g = problem()
    value, _ = semidual_value_and_grad(g, C, a, b, reg=0.2)
    assert value == pytest.approx(g @ b - 0.2 * a @ np.log(np.exp((g - C) / 0.2) @ b), rel=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reg", [0.05, 1.0])
def test_semidual_gradient_and_hessian_match_differences(form, reg):
    C, a, b, _, g = problem()
    options = {"reg": reg, "regularizer": form}
    _, grad = semidual_value_and_grad(g, C, a, b, **options)
    np.testing.assert_allclose(
        grad, central(lambda x: semidual_value_and_grad(x, C, a, b, **options)[0], g), atol=1e-10
    )
    H = semidual_hessian_vector(g, np.eye(5), C, a, b, **options)
    np.testing.assert_allclose(
        H, central(lambda x: semidual_value_and_grad(x, C, a, b, **options)[1], g), atol=1e-8
    )
    np.testing.assert_allclose(H, H.T, atol=1e-13)
    assert np.linalg.eigvalsh(H).max() < 1e-13
    assert np.abs(H).sum() > 0
    assert np.linalg.norm(H, 2) <= 1 / (2 * reg)
    np.testing.assert_allclose(
        semidual_hessian_vector(g, np.arange(5.0), C, a, b, **options), H @ np.arange(5.0), atol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unbalanced", PENALTIES)
def test_dual_is_its_formula_and_derivatives_match_differences(form, unbalanced):
    C, a, b, f, g = problem()
    if unbalanced is not None:
        a = 1.3 * a
    reg, n = 0.4, len(f)
    options = {"reg": reg, "regularizer": form, "unbalanced": unbalanced}

    def dual(x):
        return dual_value_and_grad(x[:n], x[n:], C, a, b, **options)

    x = np.concatenate([f, g])
    value, (grad_f, grad_g) = dual(x)
    assert value == pytest.approx(dense_dual(f, g, C, a, b, reg, form, pair_of(unbalanced)), rel=1e-13)
    np.testing.assert_allclose(
        np.concatenate([grad_f, grad_g]), central(lambda x: dual(x)[0], x), rtol=1e-9, atol=1e-9
    )
    rng = np.random.default_rng(1)
    uv = rng.normal(size=(len(x), 2))
    hu, hv = dual_hessian_vector(f, g, uv[:n], uv[n:], C, a, b, **options)
    jacobian = central(lambda x: np.concatenate(dual(x)[1]), x)
    np.testing.assert_allclose(np.concatenate([hu, hv]), jacobian @ uv, rtol=1e-8, atol=1e-8)
    one = dual_hessian_vector(f, g, uv[:n, 1], uv[n:, 1], C, a, b, **options)
    np.testing.assert_allclose(one[0], hu[:, 1], rtol=1e-14)
    np.testing.assert_allclose(one[1], hv[:, 1], rtol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_semidual_is_the_maximum_of_the_dual_over_f(form):
    C, a, b, _, g = problem(mass=2.0)
    options = {"reg": 0.2, "regularizer": form}
    z = (g - C) / 0.2 + (np.log(b) if form == "kl" else 0)
    f = -0.2 * np.log(np.exp(z).sum(axis=1)) + (0 if form == "kl" else 0.2 * np.log(a))
    value, (grad_f, grad_g) = dual_value_and_grad(f, g, C, a, b, **options)
    expected, grad = semidual_value_and_grad(g, C, a, b, **options)
    assert value == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(grad_f, 0, atol=1e-14)
    np.testing.assert_allclose(grad_g, grad, atol=1e-14)


@pytest.mark.parametrize("unbalanced", [None, 0.7, (None, 0.4)])
@pytest.mark.parametrize("form", FORMS)
def test_maximum_is_at_the_potentials_of_sinkhorn_and_equals_its_value(form, unbalanced):
    C, a, b, _, _ = problem(mass=2.0)
    options = {"reg": 0.1, "regularizer": form}
    result = sinkhorn(C, a, b, tol=1e-13, on_fail="ignore", unbalanced=unbalanced, **options)
    value, grads = dual_value_and_grad(result.f, result.g, C, a, b, unbalanced=unbalanced, **options)
    assert value == pytest.approx(result.value, rel=1e-11)
    for grad in grads:
        np.testing.assert_allclose(grad, 0, atol=1e-12)
    if unbalanced is None:
        value, grad = semidual_value_and_grad(result.g, C, a, b, **options)
        assert value == pytest.approx(result.value, rel=1e-11)
        np.testing.assert_allclose(grad, 0, atol=1e-12)


def test_entropy_form_is_the_kl_form_at_converted_potentials():
    C, a, b, f, g = problem(mass=1.5)
    reg, mass = 0.2, 1.5
    F, G = f + reg * np.log(a), g + reg * np.log(b)
    constant = reg * (a @ np.log(a) + b @ np.log(b) - mass**2)
    kl, entropy = (
        semidual_value_and_grad(g, C, a, b, reg=reg),
        semidual_value_and_grad(G, C, a, b, reg=reg, regularizer="entropy"),
    )
    assert entropy[0] == pytest.approx(kl[0] + constant, rel=1e-12)
    np.testing.assert_allclose(entropy[1], kl[1], atol=1e-14)
    kl = dual_value_and_grad(f, g, C, a, b, reg=reg)
    entropy = dual_value_and_grad(F, G, C, a, b, reg=reg, regularizer="entropy")
    assert entropy[0] == pytest.approx(kl[0] + constant, rel=1e-12)
    np.testing.assert_allclose(entropy[1][0], kl[1][0], atol=1e-14)


def test_verified_case_of_two_points():
    C, a, b = [[0, 1], [2, 0.5]], [0.3, 0.7], [0.6, 0.4]
    value, grad = semidual_value_and_grad([0.4207500775, -0.5355155550], C, a, b, reg=1)
    assert value == pytest.approx(0.9660279116, abs=1e-10)
    np.testing.assert_allclose(grad, 0, atol=1e-10)


def test_verified_unbalanced_case_of_one_point():
    reg, rho = 0.3, 0.9
    P = 0.5351363580
    f, g = -rho * np.log(P / 1.2), -rho * np.log(P / 0.5)
    value, grads = dual_value_and_grad([f], [g], [[0.7]], [1.2], [0.5], reg=reg, unbalanced=rho)
    assert value == pytest.approx(0.5862136482, abs=1e-10)
    np.testing.assert_allclose(grads, 0, atol=1e-9)


def test_shift_invariance():
    C, a, b, f, g = problem()
    value, grad = semidual_value_and_grad(g, C, a, b, reg=0.1)
    shifted = semidual_value_and_grad(g + 7, C, a, b, reg=0.1)
    assert shifted[0] == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(shifted[1], grad, atol=1e-13)
    hu, hv = dual_hessian_vector(f, g, np.ones(6), -np.ones(5), C, a, b, reg=0.1)
    scale = dual_value_and_grad(f, g, C, a, b, reg=0.1)[1][0].max() / 0.1
    np.testing.assert_allclose(np.concatenate([hu, hv]), 0, atol=1e-12 * max(scale, 1))


@pytest.mark.parametrize("form", FORMS)
def test_points_without_weight_do_not_matter(form):
    C, a, b, f, g = problem(8, 7)
    a, b = np.where(np.arange(8) % 3 == 0, 0, a), np.where(np.arange(7) == 2, 0, b)
    b *= a.sum() / b.sum()
    keep_i, keep_j = a > 0, b > 0
    small = C[np.ix_(keep_i, keep_j)], a[keep_i], b[keep_j]
    options = {"reg": 0.1, "regularizer": form}
    h, g_inf = np.where(keep_i, f, -np.inf), np.where(keep_j, g, -np.inf)
    blocked = C.copy()
    blocked[0], blocked[:, 2] = np.inf, np.inf
    for cost, ff, gg in ((C, f, g), (C, h, g_inf), (blocked, f, g)):
        value, grad = semidual_value_and_grad(gg, cost, a, b, **options)
        expected = semidual_value_and_grad(g[keep_j], *small, **options)
        assert value == pytest.approx(expected[0], rel=1e-13)
        np.testing.assert_allclose(grad[keep_j], expected[1], atol=1e-14)
        assert (grad[~keep_j] == 0).all()
        v = np.arange(7.0)
        Hv = semidual_hessian_vector(gg, v, cost, a, b, **options)
        np.testing.assert_allclose(
            Hv[keep_j], semidual_hessian_vector(g[keep_j], v[keep_j], *small, **options), atol=1e-12
        )
        np.testing.assert_allclose(Hv[~keep_j], 0, atol=1e-300)
        for unbalanced in (None, 0.5):
            value, grads = dual_value_and_grad(ff, gg, cost, a, b, unbalanced=unbalanced, **options)
            expected = dual_value_and_grad(f[keep_i], g[keep_j], *small, unbalanced=unbalanced, **options)
            assert value == pytest.approx(expected[0], rel=1e-12)
            np.testing.assert_allclose(grads[0][keep_i], expected[1][0], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(grads[1][keep_j], expected[1][1], rtol=1e-12, atol=1e-14)
            assert (grads[0][~keep_i] == 0).all()
            assert (grads[1][~keep_j] == 0).all()


@pytest.mark.parametrize("weights", ["positive", "zeros"])
@pytest.mark.parametrize("form", FORMS)
def test_grid_points_and_matrix_agree(form, weights):
    grid = Grid((4, 5), (3, 4))
    nodes_x = np.stack(np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 5), indexing="ij"), -1).reshape(
        -1, 2
    )
    nodes_y = np.stack(np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 4), indexing="ij"), -1).reshape(
        -1, 2
    )
    costs = [CostMatrix(grid.to_dense()), grid, PointCloud(nodes_x, nodes_y)]
    _, a, b, f, g = problem(20, 12)
    if weights == "zeros":
        a, b = np.where(np.arange(20) % 4 == 1, 0, a), np.where(np.arange(12) == 3, 0, b)
        b *= a.sum() / b.sum()
    rng = np.random.default_rng(2)
    u, v = rng.normal(size=20), rng.normal(size=12)
    options = {"reg": 0.3, "regularizer": form}
    results = []
    for C in costs:
        value, grad = semidual_value_and_grad(g, C, a, b, **options)
        dual, grads = dual_value_and_grad(f, g, C, a, b, unbalanced=(0.5, None), **options)
        results.append(
            [
                np.array([value, dual]),
                grad,
                *grads,
                semidual_hessian_vector(g, v, C, a, b, **options),
                *dual_hessian_vector(f, g, u, v, C, a, b, unbalanced=(0.5, None), **options),
            ]
        )
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine", "cityblock", 1.5])
@pytest.mark.parametrize("d", [2, 11])
def test_every_metric_agrees_with_its_matrix(metric, d):
    rng = np.random.default_rng(3)
    points = PointCloud(1 + rng.random((30, d)), 1 + rng.random((20, d)), metric)
    dense = points.to_dense()
    g, v = 0.1 * rng.normal(size=20), rng.normal(size=20)
    value, grad = semidual_value_and_grad(g, points, reg=0.1)
    expected = semidual_value_and_grad(g, dense, reg=0.1)
    assert value == pytest.approx(expected[0], rel=1e-11)
    np.testing.assert_allclose(grad, expected[1], atol=1e-13)
    np.testing.assert_allclose(
        semidual_hessian_vector(g, v, points, reg=0.1),
        semidual_hessian_vector(g, v, dense, reg=0.1),
        atol=1e-11,
    )


@pytest.mark.parametrize("form", FORMS)
def test_array_api_gives_the_same(form):
    C, a, b, f, g = problem()
    rng = np.random.default_rng(4)
    here = {"C": C, "a": a, "b": b, "f": f, "g": g, "u": rng.normal(size=6), "v": rng.normal(size=5)}
    there = {name: array_api_strict.asarray(value) for name, value in here.items()}
    options = {"reg": 0.2, "regularizer": form}
    for function, names, more in (
        (semidual_value_and_grad, "gCab", {}),
        (semidual_hessian_vector, "gvCab", {}),
        (dual_value_and_grad, "fgCab", {"unbalanced": (0.7, None)}),
        (dual_hessian_vector, "fguvCab", {"unbalanced": (0.7, None)}),
    ):
        expected = flatten(function(*(here[name] for name in names), **options, **more))
        got = flatten(function(*(there[name] for name in names), **options, **more))
        for p, q in zip(got, expected, strict=True):
            assert isinstance(p, float) or array_api_strict.__name__ in type(p).__module__
            np.testing.assert_allclose(np.asarray(p), q, rtol=1e-11, atol=1e-13)


def flatten(x):
    return [leaf for part in x for leaf in flatten(part)] if isinstance(x, tuple) else [x]


def test_float32_stays_float32():
    C, a, b, f, g = (x.astype(np.float32) for x in problem(30, 20))
    wide = [x.astype(np.float64) for x in (C, a, b, f, g)]
    value, grad = semidual_value_and_grad(g, C, a, b, reg=0.1)
    expected = semidual_value_and_grad(wide[4], *wide[:3], reg=0.1)
    assert isinstance(value, float)
    assert grad.dtype == np.float32
    assert value == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(grad, expected[1], atol=2e-7)
    H = semidual_hessian_vector(g, np.eye(20, dtype=np.float32), C, a, b, reg=0.1)
    assert H.dtype == np.float32
    np.testing.assert_allclose(H, semidual_hessian_vector(wide[4], np.eye(20), *wide[:3], reg=0.1), atol=5e-6)
    _, grads = dual_value_and_grad(f, g, C, a, b, reg=0.1, unbalanced=1.0)
    assert {x.dtype for x in grads} == {np.dtype(np.float32)}
    hu, hv = dual_hessian_vector(f, g, f, g, C, a, b, reg=0.1)
    assert hu.dtype == hv.dtype == np.float32


@pytest.mark.parametrize("reg", [1e-6, 1e-3, 1e6])
def test_semidual_at_extreme_regularisation(reg):
    C, a, b, _, g = problem()
    value, grad = semidual_value_and_grad(g, C, a, b, reg=reg)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    if reg == 1e-6:  # the c-transform of the unregularised problem
        nearest = (g - C).argmax(axis=1)
        assert value == pytest.approx(g @ b + a @ (C - g).min(axis=1), abs=1e-4)
        np.testing.assert_allclose(grad, b - np.bincount(nearest, a, 5), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dual_beyond_the_range_is_minus_infinity_and_never_nan(dtype):
    C, a, b, f, g = (x.astype(dtype) for x in problem())
    value, grads = dual_value_and_grad(f + 1, g, C, a, b, reg=1e-4)
    assert value == -np.inf
    assert all(np.isneginf(x).any() and not np.isnan(x).any() for x in grads)
    with pytest.raises(ValueError, match="f and g are too large"):
        dual_hessian_vector(f + 1, g, f, g, C, a, b, reg=1e-4)
    value, grads = dual_value_and_grad(f - 100, g, C, a, b, reg=1e-4)
    np.testing.assert_allclose(grads[0], a, rtol=1e-6)
    value, grads = dual_value_and_grad(f - 1, g - 1, C, a, b, reg=0.1, unbalanced=1e-4)
    assert value == -np.inf
    assert not np.isnan(np.concatenate(grads)).any()


def test_float32_between_its_range_and_that_of_its_sums():
    C, a, b, f, g = problem()
    narrow = [x.astype(np.float32) for x in (f + 3, g, C, a, b)]  # exponents around 3 log2(e) / 0.02 = 216
    value, grads = dual_value_and_grad(*narrow, reg=0.02)
    wide = [x.astype(np.float64) for x in narrow]
    wide[4] *= wide[3].sum() / wide[4].sum()
    expected = dual_value_and_grad(*wide, reg=0.02)
    assert np.isfinite(value)
    assert value == pytest.approx(expected[0], rel=1e-4)
    assert np.isneginf(grads[0]).all()


def test_sums_do_not_depend_on_memory_layout_and_input_stays_as_it_was():
    C, a, b, f, g = problem()
    before = [x.copy() for x in (C, a, b, f, g)]
    expected = flatten(dual_value_and_grad(f, g, C, a, b, reg=0.1))
    frozen = [np.asfortranarray(C), a[::-1][::-1], b, f.astype(">f8"), g.copy()]
    for x in frozen:
        x.flags.writeable = False
    got = flatten(dual_value_and_grad(frozen[3], frozen[4], *frozen[:3], reg=0.1))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(before, (C, a, b, f, g), strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_array_of_the_size_of_the_plan():
    import tracemalloc

    rng = np.random.default_rng(5)
    points = PointCloud(rng.random((3000, 2)), rng.random((2500, 2)))
    g, v = np.zeros(2500), rng.normal(size=2500)
    semidual_hessian_vector(g, v, points, reg=0.1)
    tracemalloc.start()
    semidual_value_and_grad(g, points, reg=0.1)
    semidual_hessian_vector(g, v, points, reg=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 2500 * 8 / 10


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"g": [0, np.nan, 0, 0, 0]}, ValueError, "g has NaN"),
        ({"g": [0, np.inf, 0, 0, 0]}, ValueError, "g has inf"),
        ({"g": np.zeros(4)}, ValueError, r"g must have shape \(5,\)"),
        ({"g": np.zeros((5, 1))}, ValueError, "g must have 1 dimension"),
        ({"g": "zero"}, TypeError, "g"),
        ({"C": [[0.0, np.nan]]}, ValueError, "C has NaN"),
        ({"a": np.full(5, 0.2)}, ValueError, r"a must have shape \(6,\)"),
        ({"b": [1, -1, 0, 1, 0]}, ValueError, "b must not be negative"),
        ({"b": np.ones(5)}, ValueError, "a sums to .* but b to 5.0"),
        ({"reg": 0}, ValueError, "reg must be > 0"),
        ({"reg": -1}, ValueError, "reg must be > 0"),
        ({"reg": np.nan}, ValueError, "reg must be a number"),
        ({"reg": np.inf}, ValueError, "reg must be"),
        ({"regularizer": "L2"}, ValueError, "regularizer must be one of .*'kl', .*'ksparse'"),
        ({"k": 2}, ValueError, "k goes with regularizer='ksparse'"),
        ({"regularizer": "entropy", "relax": 0.1}, ValueError, "relax goes with regularizer='ksparse'"),
        ({"g": array_api_strict.zeros(5)}, TypeError, "array_api_strict and numpy"),
    ],
)
def test_bad_input_is_named(change, error, match):
    C, a, b, f, g = problem()
    given = {"g": g, "C": C, "a": a, "b": b, "reg": 0.1, **change}
    with pytest.raises(error, match=match):
        semidual_value_and_grad(**given)
    with pytest.raises(error, match=match):
        dual_value_and_grad(f, **given)


def test_bad_vectors_and_penalties_are_named():
    C, a, b, f, g = problem()
    with pytest.raises(ValueError, match="v must have 5 rows"):
        semidual_hessian_vector(g, f, C, a, b, reg=0.1)
    with pytest.raises(ValueError, match="u has NaN"):
        dual_hessian_vector(f, g, np.nan * f, g, C, a, b, reg=0.1)
    with pytest.raises(ValueError, match="as many vectors"):
        dual_hessian_vector(f, g, np.ones((6, 2)), np.ones((5, 3)), C, a, b, reg=0.1)
    for regularizer in ("none", "l2", "ksparse"):
        with pytest.raises(ValueError, match=r"must be 'kl' or 'entropy', got .* no Hessian"):
            semidual_hessian_vector(g, g, C, a, b, reg=0.1, regularizer=regularizer)
        with pytest.raises(ValueError, match=r"must be 'kl' or 'entropy', got .* no Hessian"):
            dual_hessian_vector(f, g, f, g, C, a, b, reg=0.1, regularizer=regularizer)
    with pytest.raises(ValueError, match="unbalanced must be > 0"):
        dual_value_and_grad(f, g, C, a, b, reg=0.1, unbalanced=0)
    with pytest.raises(ValueError, match="row 1"):
        semidual_value_and_grad(g, np.where(np.arange(6)[:, None] == 1, np.inf, C), a, b, reg=0.1)
