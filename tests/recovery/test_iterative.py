import warnings

import array_api_strict
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings, strategies as st

import ot_numba
from ot_numba import (
    ConvergenceError,
    ConvergenceWarning,
    fista,
    hard_threshold,
    iht,
    ista,
    lasso,
    lasso_gap,
    soft_threshold,
)  # fmt: skip

CONVEX = {"ista": ista, "fista": fista, "lasso": lasso}
SOLVERS = {**CONVEX, "iht": iht}


def problem(m=30, n=50, size=None, seed=0, dtype="float64", noise=0.05):
    rng = np.random.default_rng(seed)
    shape = (n,) if size is None else (n, size)
    A = rng.normal(size=(m, n)) / np.sqrt(m)
    x = rng.normal(size=shape) * (rng.random(shape) < 0.1)
    y = A @ x
    y += noise * rng.normal(size=y.shape)
    return A.astype(dtype), y.astype(dtype)


def objective(A, y, x, reg, p=1):
    return 0.5 * ((y - A @ x) ** 2).sum(axis=0) + reg * (np.abs(x).sum(axis=0) if p else (x != 0).sum(axis=0))


# ---- thresholds


@given(st.floats(-1e300, 1e300), st.floats(0, 1e300))
def test_thresholds_of_numbers(v, tau):
    assert soft_threshold([v], tau)[0] == pytest.approx(np.sign(v) * max(abs(v) - tau, 0), rel=1e-12)
    assert hard_threshold([v], tau)[0] == (v if abs(v) > tau else 0)


def test_thresholds_broadcast_and_check(xp):
    v = xp.asarray([[1.0, -2.0], [3.0, -4.0]], dtype=xp.float32)
    for function in (soft_threshold, hard_threshold):
        out = function(v, xp.asarray([[1.0], [np.inf]], dtype=xp.float32))
        assert out.dtype == xp.float32
        assert np.asarray(out)[1].tolist() == [0, 0]
        assert function(v, 2.0).shape == (2, 2)
        with pytest.raises(ValueError, match="tau must not be negative, got -1"):
            function(v, -1.0)
        with pytest.raises(ValueError, match="v has NaN"):
            function([np.nan], 1.0)
        with pytest.raises(TypeError, match="real numbers"):
            function([1j], 1.0)


# ---- the LASSO


@pytest.mark.parametrize("solver", CONVEX.values())
@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize("part", [0.5, 0.1])
def test_solutions_of_the_lasso(solver, size, part):
    A, y = problem(size=size)
    reg = part * np.abs(A.T @ y).max()
    result = solver(A, y, reg=reg, tol=1e-12, max_iter=100_000)
    assert result.status == "converged"
    assert result.residual <= 1e-12
    assert result.x.shape == ((50,) if size is None else (50, size))
    np.testing.assert_allclose(result.value, objective(A, y, result.x, reg), rtol=1e-13)
    np.testing.assert_allclose(result.gap, lasso_gap(A, y, result.x, reg=reg), atol=1e-14)
    c = A.T @ (y - A @ result.x)  # the conditions of optimality
    on = result.x != 0
    np.testing.assert_allclose(c[on], reg * np.sign(result.x[on]), atol=2e-5 * reg)
    assert np.abs(c).max() <= reg * (1 + 2e-5)


@pytest.mark.parametrize("solver", CONVEX.values())
def test_scikit_learn_agrees(solver):
    linear_model = pytest.importorskip("sklearn.linear_model")
    A, y = problem(40, 60)
    reg = 0.1 * np.abs(A.T @ y).max()
    expected = linear_model.Lasso(alpha=reg / 40, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(A, y).coef_
    np.testing.assert_allclose(solver(A, y, reg=reg, tol=1e-14, max_iter=100_000).x, expected, atol=1e-6)


@pytest.mark.parametrize("library", ["celer", "skglm"])
def test_peers_agree(library):
    peer = pytest.importorskip(library)
    A, y = problem(40, 60)
    reg = 0.1 * np.abs(A.T @ y).max()
    expected = peer.Lasso(alpha=reg / 40, fit_intercept=False, tol=1e-12).fit(np.asfortranarray(A), y).coef_
    np.testing.assert_allclose(lasso(A, y, reg=reg, tol=1e-14).x, expected, atol=1e-6)


@pytest.mark.parametrize("solver", CONVEX.values())
def test_large_reg_gives_zero_at_once(solver):
    A, y = problem()
    result = solver(A, y, reg=np.abs(A.T @ y).max() * (1 + 1e-12))
    assert (result.x == 0).all()
    assert (result.n_iter, result.gap) == (0, 0)
    assert solver(A, np.zeros(30), reg=1.0).gap == 0


@settings(max_examples=40)
@given(
    m=st.integers(1, 12), n=st.integers(1, 15), size=st.integers(1, 3), seed=st.integers(0, 999),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e5, 1e12]), level=st.sampled_from([1e-9, 1.0, 1e6]),
    part=st.floats(0.02, 1.5),
)  # fmt: skip
def test_any_shape_and_scale(m, n, size, seed, scale, level, part):
    rng = np.random.default_rng(seed)
    A, y = scale * rng.normal(size=(m, n)), level * rng.normal(size=(m, size))
    reg = part * np.abs(A.T @ y).max()
    result = lasso(A, y, reg=reg, tol=1e-8)
    assert result.converged
    other = fista(A, y, reg=reg, tol=1e-8, max_iter=200_000, init=result)
    assert other.n_iter == 0
    energy = 0.5 * (y**2).sum(axis=0)
    slow = fista(A, y, reg=reg, tol=1e-4, max_iter=2000, on_fail="ignore")
    assert (np.asarray(result.value) <= slow.value + 1e-8 * energy).all()
    assert (np.asarray(result.value) >= slow.value - (slow.gap + 1e-13) * energy).all()


def test_gap_bounds_the_distance_to_the_optimum():
    A, y = problem()
    best = lasso(A, y, reg=0.1, tol=1e-15, on_fail="ignore").value
    rng = np.random.default_rng(1)
    for size in (0, 0.01, 0.1, 1):
        x = size * rng.normal(size=50)
        excess = (objective(A, y, x, 0.1) - best) / (0.5 * y @ y)
        assert -1e-14 <= excess <= lasso_gap(A, y, x, reg=0.1) + 1e-14


def test_ista_lowers_the_objective_in_every_iteration():
    A, y = problem(size=3)
    result = ista(A, y, reg=0.05, check_every=1, max_iter=200, tol=0, on_fail="ignore")
    values = np.array([entry.value for entry in result.history])
    assert len(values) == 201
    assert (np.diff(values) <= 1e-15).all()
    assert values[-1] == pytest.approx(np.mean(result.value), rel=1e-14)


def test_iterations_are_the_formula():
    A, y = problem()
    step, x, z, theta = 0.15, np.zeros(50), np.zeros(50), 1.0
    u = np.zeros(50)
    for _ in range(20):
        u = soft_threshold(u - step * A.T @ (A @ u - y), step * 0.1)
        new = soft_threshold(z - step * A.T @ (A @ z - y), step * 0.1)
        following = (1 + np.sqrt(1 + 4 * theta**2)) / 2
        z, x, theta = new + (theta - 1) / following * (new - x), new, following
    options = {"reg": 0.1, "step": step, "max_iter": 20, "tol": 0, "on_fail": "ignore"}
    np.testing.assert_allclose(ista(A, y, **options).x, u, atol=1e-14)
    np.testing.assert_allclose(fista(A, y, restart=False, **options).x, x, atol=1e-14)
    h = np.zeros(50)
    kept = np.zeros(50)
    for _ in range(20):
        h = hard_threshold(h - step * A.T @ (A @ h - y), np.sqrt(2 * step * 0.1))
        kept = kept - step * A.T @ (A @ kept - y)
        kept[np.argsort(-np.abs(kept))[4:]] = 0
    np.testing.assert_allclose(iht(A, y, **options).x, h, atol=1e-14)
    del options["reg"]
    np.testing.assert_allclose(iht(A, y, k=4, **options).x, kept, atol=1e-14)


def test_restart_saves_iterations():
    A, y = problem(60, 40, noise=0.5)
    counts = [fista(A, y, reg=0.01, tol=1e-12, max_iter=100_000, restart=r).n_iter for r in (True, False)]
    assert counts[0] < 0.7 * counts[1]
    assert fista(A, y, reg=0.01, tol=1e-9).n_iter < ista(A, y, reg=0.01, tol=1e-9, max_iter=100_000).n_iter / 2


@pytest.mark.parametrize("name", SOLVERS)
def test_start_at_the_solution_stays_there(name):
    A, y = problem(size=2)
    solver = SOLVERS[name]
    first = solver(A, y, reg=0.1, tol=1e-10, max_iter=100_000)
    for init in (first, first.x, first.x.tolist()):
        again = solver(A, y, reg=0.1, tol=1e-10, init=init)
        assert again.n_iter == 0
        np.testing.assert_array_equal(again.x, first.x)
    shared = solver(A, y[:, :1].repeat(2, axis=1), reg=0.1, tol=1e-10, init=first.x[:, 0])
    assert shared.n_iter == 0
    assert first.x is not again.x


def test_path_by_warm_starts():
    A, y = problem(100, 300, noise=0.2)
    top = np.abs(A.T @ y).max()
    warm, cold, init = 0, 0, None
    for part in np.geomspace(0.9, 0.02, 20):
        init = lasso(A, y, reg=part * top, init=init)
        fresh = lasso(A, y, reg=part * top)
        assert init.converged
        assert init.value == pytest.approx(fresh.value, abs=2e-6 * 0.5 * y @ y)
        warm, cold = warm + init.n_iter, cold + fresh.n_iter
    assert warm < cold


@pytest.mark.parametrize("form", [np.asfortranarray, scipy.sparse.csc_array])
def test_nearly_dependent_columns_and_small_reg(form):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(60, 150))
    for j in range(1, 150):
        A[:, j] = 0.97 * A[:, j - 1] + 0.25 * A[:, j]
    y = A[:, ::30].sum(axis=1) + rng.normal(size=60)
    top = np.abs(A.T @ y).max()
    for part in (1e-1, 1e-3, 1e-5):
        result = lasso(form(A), y, reg=part * top, tol=1e-9, max_iter=20_000)
        assert result.converged
        assert lasso_gap(A, y, result.x, reg=part * top) <= 1e-9 * (1 + 1e-3)
    scaled = lasso(form(A * 10.0 ** rng.uniform(-3, 3, 150)), y, reg=top, tol=1e-9)
    assert scaled.converged


def test_more_nonzeros_than_measurements_at_the_start():
    A, y = problem(20, 60)
    init = np.random.default_rng(0).normal(size=60)
    for reg in (1e-1, 1e-4):
        result = lasso(A, y, reg=reg, tol=1e-10, init=init)
        assert result.converged
        assert (result.x != 0).sum() <= 20 or result.gap <= 1e-10


# ---- hard thresholding


def test_iht_fixed_points():
    A, y = problem(size=4)
    result = iht(A, y, reg=0.05, tol=1e-10, max_iter=100_000)
    assert result.converged
    assert np.isnan(result.gap).all()
    np.testing.assert_allclose(result.value, objective(A, y, result.x, 0.05, 0), rtol=1e-13)
    assert (np.abs(A.T @ (A @ result.x - y))[result.x != 0] < 1e-6).all()  # least squares on the support
    values = [e.value for e in iht(A, y, reg=0.05, tol=0, max_iter=100, check_every=1, on_fail="ignore").history]
    assert (np.diff(values) <= 1e-14).all()
    free = iht(A, y, reg=0.0, tol=1e-9, max_iter=100_000)
    np.testing.assert_allclose(A.T @ (A @ free.x - y), 0, atol=1e-6)


def test_iht_keeps_k():
    A, y = problem(60, 80, size=3, noise=0.01)
    result = iht(A, y, k=5, tol=1e-10, max_iter=100_000)
    assert ((result.x != 0).sum(axis=0) <= 5).all()
    np.testing.assert_allclose(result.value, objective(A, y, result.x, 0.0), rtol=1e-13)
    ties = iht(np.eye(4), [1.0, -1.0, 1.0, 1.0], k=2, step=1.0)
    assert ties.x.tolist() == [1, -1, 0, 0]
    with pytest.raises(ValueError, match="k must be at most 80, the number of unknowns, got 81"):
        iht(A, y, k=81)
    for options in ({}, {"reg": 1.0, "k": 1}):
        with pytest.raises(ValueError, match="either reg or k"):
            iht(A, y, **options)


def test_iht_finds_a_sparse_signal():
    rng = np.random.default_rng(5)
    A = rng.normal(size=(100, 200)) / 10
    x = np.zeros(200)
    x[[3, 50, 120]] = [2.0, -1.5, 1.0]
    np.testing.assert_allclose(iht(A, A @ x, k=3, tol=1e-12, max_iter=100_000).x, x, atol=1e-8)


# ---- trouble


@pytest.mark.parametrize("name", ["ista", "fista", "iht"])
@pytest.mark.parametrize("factor", [2.5, 1e3, 1e200])
def test_a_step_that_is_too_long_is_reported(name, factor):
    A, y = problem(size=2)
    step = factor / np.linalg.norm(A, 2) ** 2
    with pytest.warns(ConvergenceWarning, match="diverged .* step=.* is too long"):
        result = SOLVERS[name](A, y, reg=1e-3, step=step, max_iter=5000)
    assert result.status == "diverged"
    assert not result.converged
    assert np.isfinite(result.x).all()
    assert np.isfinite(result.value).all()
    assert np.mean(result.value) <= min(entry.value for entry in result.history) + 1e-12
    with pytest.raises(ConvergenceError):
        SOLVERS[name](A, y, reg=1e-3, step=step, max_iter=5000, on_fail="raise")


@pytest.mark.parametrize("name", SOLVERS)
def test_a_missed_tolerance_is_reported(name):
    A, y = problem()
    solve = lambda **options: SOLVERS[name](A, y, reg=1e-4, tol=1e-13, max_iter=3, **options)  # noqa: E731
    with pytest.warns(ConvergenceWarning, match="not converged: .* increase max_iter"):
        result = solve()
    assert result.status == "max_iter"
    with pytest.raises(ConvergenceError):
        solve(on_fail="raise")
    assert not solve(on_fail="ignore").converged
    with pytest.raises(ValueError, match="on_fail must be one of"):
        solve(on_fail="print")


@pytest.mark.parametrize("solver", CONVEX.values())
def test_the_rounding_floor_is_reported(solver):
    A, y = problem(dtype="float32", noise=0.3)
    with pytest.warns(ConvergenceWarning, match="below what rounding allows"):
        result = solver(A, y, reg=0.01, tol=1e-14, max_iter=1_000_000)
    assert result.status == "floor"
    assert 1e-14 < result.gap < 1e-5
    assert result.x.dtype == np.float32


@pytest.mark.parametrize("name", SOLVERS)
def test_callback_sees_progress_and_may_stop(name):
    A, y = problem(size=2)
    seen = []

    def callback(state):
        seen.append(state.residual)
        if len(seen) == 2:
            raise StopIteration

    result = SOLVERS[name](A, y, reg=1e-3, tol=1e-12, callback=callback)
    assert result.status == "stopped"
    assert len(seen) == 2
    assert result.x.shape == (50, 2)
    assert result.residual == pytest.approx(max(np.max(result.gap), 0) if name != "iht" else result.residual)


@pytest.mark.parametrize("name", SOLVERS)
def test_progress_bar(name, capsys):
    A, y = problem()
    SOLVERS[name](A, y, reg=0.1, progress=True, max_iter=100_000)
    assert name in capsys.readouterr().err


BAD = [
    ({"reg": 0.0}, ValueError, "reg must be > 0"),
    ({"reg": np.nan}, ValueError, "reg must be a number"),
    ({"reg": np.inf}, ValueError, "reg must be > 0 and < inf"),
    ({"tol": -1.0}, ValueError, "tol must be >= 0"),
    ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
    ({"y": np.ones(3)}, ValueError, r"y must have 30 rows as A has, got shape \(3,\)"),
    ({"y": np.full(30, np.nan)}, ValueError, "y has NaN"),
    ({"A": np.full((30, 50), np.nan)}, ValueError, "A has NaN"),
    ({"A": np.full((50, 30), np.inf).T}, ValueError, "A has inf"),
    ({"A": np.ones(30)}, ValueError, "A must have 2 dimension"),
    ({"A": np.ones((30, 0))}, ValueError, "A is empty"),
    ({"A": np.ones((30, 50), complex)}, TypeError, "A must hold real numbers, got dtype complex128"),
    ({"A": scipy.sparse.csr_array(np.ones((30, 50), complex))}, TypeError, "A must hold real numbers"),
    ({"A": scipy.sparse.csr_array(np.full((30, 50), np.nan))}, ValueError, "A has NaN"),
    ({"A": scipy.sparse.linalg.aslinearoperator(np.ones((30, 50), complex))}, TypeError, "A must hold real numbers"),
    ({"y": np.ones(30, complex)}, TypeError, "y must hold real numbers"),
    ({"init": np.ones(49)}, ValueError, r"init must have shape \(50,\) or \(50, 1\)"),
    ({"init": np.ones((50, 2))}, ValueError, "init must have shape"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
@pytest.mark.parametrize("solver", CONVEX.values())
def test_bad_arguments(solver, change, error, message):
    A, y = problem()
    arguments = {"A": A, "y": y, "reg": 0.1} | change
    with pytest.raises(error, match=message):
        solver(arguments.pop("A"), arguments.pop("y"), **arguments)


def test_bad_steps():
    A, y = problem()
    for step in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="step must be > 0"):
            ista(A, y, reg=0.1, step=step)


# ---- matrices


def matrices(A):
    return {
        "list": A.tolist(),
        "Fortran": np.asfortranarray(A),
        "strided": np.repeat(np.repeat(A, 2, axis=0), 3, axis=1)[::2, ::3],
        "CSR": scipy.sparse.csr_array(A),
        "CSC": scipy.sparse.csc_matrix(A),
        "COO, entries in parts": scipy.sparse.coo_array(
            (np.r_[A.ravel() / 4, 0.75 * A.ravel()], tuple(np.tile(np.indices(A.shape).reshape(2, -1), 2))), A.shape
        ),
        "operator": scipy.sparse.linalg.aslinearoperator(A),
        "pair": (lambda v: A @ v, lambda u: A.T @ u),
        "big-endian": A.astype(">f8"),
    }


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", matrices(np.eye(2)))
@pytest.mark.parametrize("size", [None, 3])
def test_kinds_of_matrices(name, kind, size):
    A, y = problem(size=size)
    A = np.where(np.random.default_rng(8).random(A.shape) < 0.7, A, 0)
    options = {"reg": 0.1, "tol": 1e-12, "max_iter": 100_000}
    expected = SOLVERS[name](A, y, **options)
    result = SOLVERS[name](matrices(A)[kind], y, **options)
    np.testing.assert_allclose(result.x, expected.x, atol=1e-6)
    np.testing.assert_allclose(result.value, expected.value, rtol=1e-9)
    if name != "iht":
        np.testing.assert_allclose(lasso_gap(matrices(A)[kind], y, result.x, reg=0.1), result.gap, atol=1e-14)


@pytest.mark.parametrize("name", SOLVERS)
def test_other_libraries(name):
    A, y = problem(size=2)
    options = {"reg": 0.1, "tol": 1e-9, "max_iter": 50_000}
    here = SOLVERS[name](A, y, **options)
    there = SOLVERS[name](array_api_strict.asarray(A), array_api_strict.asarray(y), **options)
    assert array_api_strict.__name__ in type(there.x).__module__
    np.testing.assert_allclose(np.asarray(there.x), here.x, atol=1e-3)
    np.testing.assert_allclose(there.value, here.value, rtol=1e-7)
    assert iht(array_api_strict.asarray(A), array_api_strict.asarray(y), k=3, max_iter=50_000).converged


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, scipy.sparse.csc_array])
def test_float32_stays_float32_and_inputs_stay(name, form):
    A, y = problem(size=2, dtype="float32")
    matrix, init = form(A), np.ones((50, 2), "float32")
    for v in (A, y, init, matrix.data if scipy.sparse.issparse(matrix) else matrix):
        v.flags.writeable = False
    result = SOLVERS[name](matrix, y, reg=0.1, tol=1e-4, init=init)
    assert result.x.dtype == np.float32
    assert result.converged
    wide = SOLVERS[name](A.astype(float), y.astype(float), reg=0.1, tol=1e-4, init=init)
    np.testing.assert_allclose(result.value, wide.value, rtol=1e-3)
    assert np.asarray(result.value).dtype == np.float64


@pytest.mark.parametrize("name", SOLVERS)
def test_one_row_one_column_and_empty_columns(name):
    solver = SOLVERS[name]
    assert solver([[2.0]], [3.0], reg=1.0, tol=1e-12).x.tolist() == pytest.approx([1.25 if name != "iht" else 1.5])
    assert solver([[1.0, 0.0, -1.0]], [3.0], reg=1.0, tol=1e-12, max_iter=100_000).converged
    A, y = problem()
    A[:, 7] = 0
    for matrix in (A, scipy.sparse.csc_array(A)):
        result = solver(matrix, y, reg=0.1, init=np.ones(50), max_iter=100_000)
        assert result.converged
        assert result.x[7] == (name == "iht")  # which sees no reason to move an entry beyond its threshold
    zero = solver(np.zeros((3, 4)), np.ones(3), reg=1.0, init=np.ones(4), max_iter=100_000)
    assert (zero.x == 0).all()


@pytest.mark.parametrize("solver", CONVEX.values())
def test_equal_columns(solver):
    A, y = problem()
    twice = np.concatenate([A, A], axis=1)
    result = solver(twice, y, reg=0.1, tol=1e-10, max_iter=100_000)
    assert result.value == pytest.approx(lasso(A, y, reg=0.1, tol=1e-12).value, rel=1e-8)


@pytest.mark.parametrize("solver", CONVEX.values())
def test_signals_do_not_change_each_other(solver):
    A, y = problem(size=5)
    together = solver(A, y, reg=0.1, tol=1e-11, max_iter=100_000)
    for b in range(5):
        alone = solver(A, y[:, b], reg=0.1, tol=1e-11, max_iter=100_000)
        np.testing.assert_allclose(together.x[:, b], alone.x, atol=1e-4)
        assert together.value[b] == pytest.approx(alone.value, rel=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_same_bits_on_any_number_of_threads(name):
    A, y = problem(700, 900, size=2)
    before = ot_numba.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            ot_numba.set_num_threads(threads)
            results.append(SOLVERS[name](A, y[:, 0], reg=0.3, max_iter=30, on_fail="ignore").x)
    finally:
        ot_numba.set_num_threads(before)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("solver", [ista, fista])
@pytest.mark.parametrize("library", [np, array_api_strict])
def test_signals_that_have_converged_stay_as_they_are(solver, library):
    A, y = problem(size=5)
    y[:, 3] = 0
    path, options = [], {"reg": 0.1, "tol": 1e-7, "max_iter": 50_000}
    result = solver(*map(library.asarray, (A, y)), callback=lambda state: path.append(np.array(state.x)), **options)
    arrived = np.array([lasso_gap(A, y, x, reg=0.1) <= 1e-7 for x in path])
    first = arrived.argmax(axis=0)
    assert first[3] == 0
    assert len(set(first)) >= 4
    assert arrived[-1].all()
    for b in range(5):
        for x in (*path[first[b] :], np.asarray(result.x)):
            np.testing.assert_array_equal(x[:, b], path[first[b]][:, b])
    np.testing.assert_allclose(result.value, objective(A, y, np.asarray(result.x), 0.1), rtol=1e-12)
    np.testing.assert_allclose(result.gap, lasso_gap(A, y, np.asarray(result.x), reg=0.1), atol=1e-14)


def test_signals_at_rest_survive_the_divergence_of_others():
    A, y = problem(size=3)
    y[:, 1] = 0
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = ista(A, y, reg=1e-3, step=2.5 / np.linalg.norm(A, 2) ** 2, max_iter=5000)
    assert (result.x[:, 1] == 0).all()
    np.testing.assert_allclose(result.value, objective(A, y, result.x, 1e-3), rtol=1e-12)


def test_wrong_products_are_named():
    with pytest.raises(ValueError, match=r"A @ x must have shape \(3, 1\), got \(2, 1\)"):
        ista((lambda v: v[:2], lambda u: np.ones(4)), np.ones(3), reg=0.1)
    with pytest.raises(ValueError, match="rmatvec must return an array with one dimension"):
        ista((lambda v: v, lambda u: np.ones((4, 1))), np.ones(3), reg=0.1)
    with pytest.raises(TypeError, match=r"A @ x must be real"):
        ista((lambda v: v + 0j, lambda u: u), np.ones(3), reg=0.1)


def test_the_estimated_norm_is_an_upper_bound():
    from ot_numba.recovery.operators import make_operator

    for m, n in ((1, 1), (5, 3), (40, 60), (300, 200)):
        A, y = problem(m, n)
        exact = np.linalg.norm(A, 2) ** 2
        estimate = make_operator(A, y)[0].squared_norm()
        assert exact * (1 - 1e-9) <= estimate <= exact * (1 + 1e-2)
        for scale in (1e-140, 1e140):
            assert make_operator(scale * A, y)[0].squared_norm() == pytest.approx(estimate * scale**2, rel=1e-9)
    assert make_operator(np.zeros((3, 2)), np.ones(3))[0].squared_norm() == 0


@pytest.mark.parametrize("solve", [ista, fista, lasso])
def test_units_do_not_matter(solve):
    A, y = problem(20, 40)
    reg = 0.1 * float(np.abs(A.T @ y).max())
    expected = solve(A, y, reg=reg).x
    for scale in (1e-140, 1e140):
        np.testing.assert_allclose(solve(scale * A, scale * y, reg=scale**2 * reg).x, expected, rtol=1e-6)


def test_matrices_that_overflow_are_refused():
    with pytest.raises(ValueError, match="A has entries whose squares"):
        ista(np.full((3, 4), 1e160), np.ones(3), reg=1.0)


def test_no_warning_of_numpy_escapes():
    A, y = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ista(A, y, reg=0.1, step=1e150, on_fail="ignore")
        iht(A, y, k=3, step=1e300, on_fail="ignore")
        lasso(A, y, reg=1e-300, max_iter=5, on_fail="ignore")
