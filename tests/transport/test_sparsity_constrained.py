import itertools
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings, strategies as st

import ot_numba
from ot_numba import ConvergenceError, ConvergenceWarning, quadratic_ot, sparsity_constrained_ot
from ot_numba.arrays import to_numpy
from ot_numba.transport.semismooth import SemismoothNewton
from ot_numba.transport.sparse_duals import SparseDual

A, B = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.35, 0.45])
NO_GAP = np.array([[0.8, 0.8, 0.5], [0.3, 0.1, 0.4], [0.4, 0, 0], [1, 0.7, 0.2]])
GAP = np.array([[0.2, 0.6, 1], [0.4, 0.3, 0.2], [0.4, 0.4, 0.8], [0.6, 0.4, 0]])


def problem(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, m)), rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(m, 2.0))


def colours():
    """256 colours against 256 others, with random weights."""
    rng = np.random.default_rng(0)
    X = rng.beta(2, 2, (256, 3))
    Y = np.clip(rng.beta(2, 5, (256, 3)) * [1, 0.8, 1.2], 0, 1)
    a, b = rng.dirichlet(2 * np.ones(256)), rng.dirichlet(2 * np.ones(256))
    return ((X[:, None] - Y) ** 2).sum(-1), a, b


def linear_program(C, a, b):
    """Optimal value and dual potentials of unregularised transport."""
    n, m = C.shape
    equalities = np.r_[np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))]
    found = scipy.optimize.linprog(C.ravel(), A_eq=equalities, b_eq=np.r_[a, b], method="highs")
    return found.fun, found.eqlin.marginals[:n], found.eqlin.marginals[n:]


def least_on_supports(C, a, b, reg, k):
    """The optimal value by all supports of columns: quadratic programs."""
    n, m = C.shape
    best = np.inf
    for chosen in itertools.product(itertools.combinations(range(n), k), repeat=m):
        open_pairs = np.full(C.shape, np.inf)
        for j, rows in enumerate(chosen):
            open_pairs[list(rows), j] = C[list(rows), j]
        if np.isinf(open_pairs).all(axis=1).any():
            continue
        found = quadratic_ot(open_pairs, a, b, reg=reg, on_fail="ignore", max_iter=100, tol=1e-9)
        if found.converged:
            best = min(best, found.value)
    return best


def test_reference_without_a_gap():
    result = sparsity_constrained_ot(NO_GAP, A, B, k=2, tol=1e-9)
    assert result.converged
    assert np.isclose(result.dual_value, 0.3275, rtol=0, atol=1e-9)
    assert np.isclose(result.value, 0.3275, rtol=0, atol=1e-9)
    plan = [[0.1, 0, 0], [0.1, 0.1, 0], [0, 0.25, 0.05], [0, 0, 0.4]]
    assert np.allclose(result.plan, plan, rtol=0, atol=1e-9)
    assert np.allclose(result.f - result.f[0], [0, -0.5, -0.45, 0.1], rtol=0, atol=1e-8)
    assert np.allclose(result.g + result.f[0], [0.9, 0.7, 0.5], rtol=0, atol=1e-8)
    assert np.isclose(least_on_supports(NO_GAP, A, B, 1.0, 2), 0.3275, rtol=0, atol=1e-8)


def test_reference_with_a_gap():
    with pytest.warns(ConvergenceWarning, match="for small k the maximum is a kink"):
        result = sparsity_constrained_ot(GAP, A, B, k=2)
    assert np.isclose(result.dual_value, 0.316875, rtol=0, atol=1e-7)
    assert result.column_error < 1e-14
    assert result.row_error > 1e-2
    assert result.largest_count == 2
    assert result.status in ("kink", "stalled")
    assert np.isclose(least_on_supports(GAP, A, B, 1.0, 2), 0.3175, rtol=0, atol=1e-8)


def test_one_entry_is_the_linear_program():
    """At the potentials of the LP the dual is its value and (reg / 2) |b|^2: nothing is larger."""
    for seed in range(3):
        C, a, b = problem(12, 10, seed)
        lp, f, g = linear_program(C, a, b)
        expected = lp + 0.3 / 2 * (b @ b)
        there = sparsity_constrained_ot(C, a, b, k=1, reg=0.3, init=(f, g), max_iter=1, on_fail="ignore")
        assert np.isclose(there.dual_value, expected, rtol=0, atol=1e-12)
        found = sparsity_constrained_ot(C, a, b, k=1, reg=0.3, on_fail="ignore")
        assert expected - 1e-2 * expected <= found.dual_value <= expected + 1e-12
        assert found.largest_count == 1


def test_weak_relaxations_lead_to_the_bound():
    """The maximum of the strict dual, much closer than ascent from 0 gets, in fewer evaluations."""
    C, a, b = problem(64, 64, 1)
    bound = linear_program(C, a, b)[0] + (b @ b) / 2
    direct = sparsity_constrained_ot(C, a, b, k=1, on_fail="ignore")
    relaxed = sparsity_constrained_ot(C, a, b, k=1, relax=1e-3)
    found = sparsity_constrained_ot(C, a, b, k=1, init=relaxed, max_iter=100, on_fail="ignore")
    assert bound - 1e-4 * bound <= found.dual_value <= bound + 1e-12
    assert found.dual_value > direct.dual_value
    assert relaxed.n_evaluations + found.n_evaluations < direct.n_evaluations


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("k", [6, 7, 100])
def test_a_limit_that_limits_nothing_is_quadratic(axis, k):
    C, a, b = problem(6, 6)
    result = sparsity_constrained_ot(C, a, b, k=k, reg=0.2, axis=axis, tol=1e-10)
    expected = quadratic_ot(C, a, b, reg=0.2, tol=1e-11)
    assert result.converged
    assert result.k is None
    assert np.allclose(result.plan, expected.plan, rtol=0, atol=1e-9)
    assert np.isclose(result.value, expected.value, rtol=0, atol=1e-9)


def test_a_limit_that_is_not_met_is_quadratic():
    C, a, b = colours()
    expected = quadratic_ot(C.T, b, a, reg=1.0, tol=1e-12).sparse_plan().T
    most = np.diff(expected.tocsc().indptr).max()
    result = sparsity_constrained_ot(C, a, b, k=int(most), tol=1e-11)
    assert result.converged
    assert abs(result.sparse_plan() - expected).max() < 1e-10
    assert abs(result.gap) < 1e-9


@pytest.mark.parametrize(
    ("k", "S", "cost", "error", "share"),
    [
        (1, 0.1976, 1.0023, 2.6e-3, 0.00391),
        (2, 0.1968, 1.0067, 5.0e-4, 0.00694),
        (4, 0.1967, 1.0010, 3.4e-5, 0.0098),
        (8, 0.19664, 1.0009, 6e-7, 0.0107),  # one tie is left at the maximum; broken either way: 2.2e-8 or 5.5e-7
        (16, 0.19663851, 1.00095, 0, 0.01077),
        (256, 0.19663851, 1.00095, 0, 0.01077),
    ],
)
def test_colour_table(k, S, cost, error, share):
    """Published settings, digits of the dual value where it stops. At a kink (k <= 8) plans are not unique."""
    C, a, b = colours()
    result = sparsity_constrained_ot(C, a, b, k=k, max_iter=500, tol=1e-8, on_fail="ignore")
    digits = len(str(S)) - 2
    assert np.isclose(result.dual_value, S, rtol=0, atol=0.51 * 10.0**-digits)
    squared = ((result.plan.sum(axis=1) - a) ** 2).sum()
    assert result.column_error < 1e-13
    ratio = result.linear_cost / 0.19520288
    density = result.nnz / 256**2
    if k <= 4:
        assert 0.5 * error <= squared <= 2 * error
        assert abs(ratio - cost) < 0.025
        assert abs(density - share) < 1e-4
    else:
        assert squared <= max(error, 1e-11)
        assert abs(ratio - cost) < 2e-4
        assert abs(density - share) < 5e-5
    assert result.largest_count == (k if k <= 8 else 11)


@pytest.mark.slow
def test_colour_linear_program():
    C, a, b = colours()
    eye, ones = scipy.sparse.eye_array(256), np.ones((1, 256))
    equalities = scipy.sparse.vstack([scipy.sparse.kron(eye, ones), scipy.sparse.kron(ones, eye)])
    lp = scipy.optimize.linprog(C.ravel(), A_eq=equalities.tocsr(), b_eq=np.r_[a, b], method="highs").fun
    assert np.isclose(lp, 0.19520288, rtol=0, atol=1e-8)
    for k in (1, 2, 8):
        result = sparsity_constrained_ot(C, a, b, k=k, relax=0.1)
        assert lp - 1e-6 <= result.linear_cost <= 1.02 * lp


@pytest.mark.parametrize("relax", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_relaxed_plans_have_both_marginals(k, relax):
    C, a, b = colours()
    result = sparsity_constrained_ot(C, a, b, k=k, relax=relax)
    P = result.plan
    assert result.converged
    assert np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum() <= 1e-6
    assert abs(result.gap) < 1e-5
    strict = sparsity_constrained_ot(C, a, b, k=k, init=result, max_iter=20, on_fail="ignore")
    assert strict.dual_value <= result.dual_value + 1e-9


@pytest.mark.parametrize("k", [1, 2, 5])
def test_newton_and_lbfgs_agree(k):
    for seed in range(3):
        C, a, b = problem(12, 15, seed)
        options = {"k": k, "reg": 0.3, "relax": 0.3, "max_iter": 4000}
        newton = sparsity_constrained_ot(C, a, b, tol=1e-12, **options)
        other = sparsity_constrained_ot(C, a, b, solver="lbfgs", tol=1e-7, **options)
        assert newton.converged
        assert other.converged
        assert newton.n_evaluations < other.n_evaluations
        assert np.isclose(newton.dual_value, other.dual_value, rtol=0, atol=1e-8)
        assert np.allclose(newton.plan, other.plan, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("k", "relax"), [(1, 1.0), (2, 0.1), (3, 1.0), (3, 0.01)])
def test_newton_systems_of_the_relaxed_model(k, relax):
    """Minus the derivative of the gradient, where it has one."""
    C, a, b = problem(14, 9, 1)
    dual = SparseDual(ot_numba.CostMatrix(C), a, b, 0.3, k, relax)
    newton = SemismoothNewton(dual, np.random.default_rng(0).random(9) * 0.2)
    for _ in range(4):
        newton.step()
    newton.width, G, h = 0.0, newton.G, 1e-7
    units = np.eye(9)
    H = np.linalg.inv(np.stack([newton._factorize(np.full(9, 1e-6))(e) for e in units])) / newton.reg
    numeric = np.stack([(dual.semidual(G - h * e)[1] - dual.semidual(G + h * e)[1]) / (2 * h) for e in units], axis=1)
    assert np.abs(numeric).max() > 1
    assert np.allclose(H, numeric, rtol=0, atol=1e-5 * np.abs(numeric).max())


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.sampled_from([0.1, 1.0]))
def test_relaxed_random_problems(seed, n, m, k, reg):
    C, a, b = problem(n, m, seed)
    result = sparsity_constrained_ot(C, a, b, k=k, reg=reg, relax=0.1, max_iter=5000, on_fail="ignore")
    P = result.plan
    assert np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum() <= 1e-6
    assert result.converged
    assert abs(result.gap) <= 1e-5


def test_published_relaxed_rows():
    """32 points, k = 1: the row errors of three strengths are met, and the objective lies above the strict bound."""
    C, a, b = problem(32, 32)
    strict = linear_program(C, a, b)[0] + (b @ b) / 2
    for relax in (1.0, 0.1):
        result = sparsity_constrained_ot(C, a, b, k=1, relax=relax)
        assert result.row_error < 1e-6
        assert result.dual_value > strict - 1e-9
    assert result.dual_value < strict + 0.1


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_weak_duality(seed, n, m, k, relaxed):
    """No plan with the marginals and k entries in each column lies below the dual value, anywhere on the way."""
    C, a, b = problem(n, m, seed)
    rng = np.random.default_rng(seed)
    P = np.zeros((n, m))
    for j in range(m):
        chosen = rng.choice(n, min(k, n), replace=False)
        P[chosen, j] = rng.dirichlet(np.ones(len(chosen))) * b[j]
    a = P.sum(1)  # some rows may have no weight
    relax = 0.1 if relaxed else 0.0
    primal = (C * P).sum() + 0.7 / 2 * (1 + relax) * (P * P).sum()
    for formulation in ("semidual", "dual"):
        result = sparsity_constrained_ot(
            C, a, b, k=k, reg=0.7, relax=relax, formulation=formulation, max_iter=50, on_fail="ignore"
        )
        assert all(entry.dual_value <= primal + 1e-12 for entry in result.history if entry.relax == relax)
        assert result.dual_value <= primal + 1e-12


def test_the_dual_value_falls_with_k():
    C, a, b = problem(15, 15)
    values = [
        sparsity_constrained_ot(C, a, b, k=k, max_iter=3000, on_fail="ignore").dual_value for k in (1, 2, 3, 5, 15)
    ]
    assert all(v >= w - 1e-3 * v for v, w in itertools.pairwise(values))


def test_axes():
    C, a, b = problem(7, 9)
    columns = sparsity_constrained_ot(C, a, b, k=2, on_fail="ignore", max_iter=100)
    rows = sparsity_constrained_ot(C.T, b, a, k=2, axis=1, on_fail="ignore", max_iter=100)
    assert np.array_equal(columns.plan, rows.plan.T)
    assert np.array_equal(columns.f, rows.g)
    assert columns.dual_value == rows.dual_value
    assert columns.row_error == rows.column_error
    assert (columns.plan > 0).sum(axis=0).max() == 2
    assert np.allclose(columns.plan.sum(0), b, rtol=0, atol=1e-14)


def test_formulations_have_one_value():
    C, a, b = problem(10, 12)
    options = {"k": 5, "reg": 0.5, "tol": 1e-7, "max_iter": 3000}
    one = sparsity_constrained_ot(C, a, b, **options)
    both = sparsity_constrained_ot(C, a, b, formulation="dual", **options)
    assert np.isclose(one.dual_value, both.dual_value, rtol=0, atol=1e-7)
    assert np.allclose(one.plan, both.plan, rtol=0, atol=1e-5)


def test_adam():
    C, a, b = problem(10, 12)
    result = sparsity_constrained_ot(C, a, b, k=3, solver="adam", max_iter=2000, on_fail="ignore")
    best = sparsity_constrained_ot(C, a, b, k=3, relax=0, on_fail="ignore", max_iter=2000)
    assert result.n_iter == 2000 or result.converged
    assert 0.98 * best.dual_value <= result.dual_value <= best.dual_value * (1 + 1e-3)
    slow = sparsity_constrained_ot(
        C, a, b, k=3, solver="adam", learning_rate=1e-5, max_iter=5, on_fail="ignore"
    )
    assert slow.dual_value < result.dual_value


def test_repair():
    C, a, b = colours()
    result = sparsity_constrained_ot(C, a, b, k=8, relax=0.1, repair="support")
    assert result.repaired
    assert result.converged
    assert result.marginal_error < 1e-12
    P = result.plan
    assert (P > 0).sum(axis=0).max() <= 8
    assert np.isclose(result.linear_cost, (C * P).sum())
    assert np.isclose(result.value, (C * P).sum() + 0.55 * (P * P).sum())
    strict = sparsity_constrained_ot(C, a, b, k=8, on_fail="ignore")
    assert result.value >= strict.dual_value
    assert "repaired" in result.message
    unrepaired = sparsity_constrained_ot(C, a, b, k=2, relax=0.1, repair="support")
    assert not unrepaired.repaired
    assert "found no plan" in unrepaired.message
    assert unrepaired.marginal_error <= 1e-6


def test_repair_is_the_best_on_its_support():
    result = sparsity_constrained_ot(GAP, A, B, k=2, relax=1.0, repair="support", tol=1e-8)
    assert result.repaired == (result.largest_count <= 2)


def test_too_few_entries():
    C, a, b = problem(9, 3)
    with pytest.warns(ConvergenceWarning, match="primal infeasible, .* 2 entries in each of 3 columns cannot reach 9"):
        result = sparsity_constrained_ot(C, a, b, k=2, relax=0.1, max_iter=5000)
    assert result.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsity_constrained_ot(C, a, b, k=2, relax=0.1, max_iter=5000, on_fail="ignore")
        sparsity_constrained_ot(C, a, b, k=3, relax=0.1, max_iter=5000)


def test_zero_weights():
    C, a, b = problem(8, 9)
    a[[1, 7]], b[[0, 4]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    options = {"k": 3, "relax": 0.1}
    result = sparsity_constrained_ot(C, a, b, **options)
    inner = sparsity_constrained_ot(C[np.ix_(a > 0, b > 0)], a[a > 0], b[b > 0], **options)
    assert np.allclose(result.plan[np.ix_(a > 0, b > 0)], inner.plan, rtol=0, atol=1e-12)
    assert result.plan.sum() == pytest.approx(1)
    assert np.isneginf(result.f[[1, 7]]).all()
    again = sparsity_constrained_ot(C, a, b, init=result, **options)
    assert again.n_iter == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_one_point(shape, axis):
    C, a, b = problem(*shape)
    result = sparsity_constrained_ot(C, a, b, k=6, axis=axis)
    assert result.converged
    assert np.allclose(result.plan, np.outer(a, b), rtol=0, atol=1e-6)


def test_ties_take_the_first():
    result = sparsity_constrained_ot(np.zeros((4, 4)), k=2, max_iter=1, on_fail="ignore")
    again = sparsity_constrained_ot(np.zeros((4, 4)), k=2, max_iter=1, on_fail="ignore")
    assert np.array_equal(result.plan, again.plan)
    assert result.largest_count <= 2


def test_warm_starts_and_paths():
    C, a, b = colours()
    cold = sparsity_constrained_ot(C, a, b, k=4, relax=0.1)
    near = sparsity_constrained_ot(C, a, b, k=8, relax=0.1)
    warm = sparsity_constrained_ot(C, a, b, k=4, relax=0.1, init=near)
    assert warm.n_evaluations < cold.n_evaluations
    assert np.isclose(warm.dual_value, cold.dual_value, rtol=0, atol=1e-7)
    other = sparsity_constrained_ot(C, a, b, k=8, relax=0.1, reg=0.8, init=near)
    assert other.n_evaluations < near.n_evaluations


def test_kinds_of_input(xp):
    C, a, b = problem(7, 6)
    options = {"k": 2, "relax": 0.1, "tol": 1e-8}
    expected = sparsity_constrained_ot(C, a, b, **options)
    result = sparsity_constrained_ot(xp.asarray(C), xp.asarray(a), xp.asarray(b), **options)
    assert np.allclose(to_numpy(result.plan), expected.plan, rtol=0, atol=1e-6)
    assert np.isclose(result.value, expected.value)


def test_layouts_float32_and_clouds():
    C, a, b = problem(7, 6)
    expected = sparsity_constrained_ot(C, a, b, k=2, relax=0.1).plan
    assert np.array_equal(sparsity_constrained_ot(np.asfortranarray(C), a, b, k=2, relax=0.1).plan, expected)
    single = sparsity_constrained_ot(*(v.astype("f4") for v in (C, a, b)), k=2, relax=0.1, tol=1e-5)
    assert single.plan.dtype == np.float32
    assert single.converged
    assert np.allclose(single.plan, expected, rtol=0, atol=1e-4)
    rng = np.random.default_rng(0)
    cloud = ot_numba.PointCloud(rng.random((9, 2)), rng.random((8, 2)))
    one, other = (sparsity_constrained_ot(c, k=3, relax=0.1) for c in (cloud, cloud.to_dense()))
    assert np.allclose(one.plan, other.plan, rtol=0, atol=1e-6)


def test_callback_and_history():
    C, a, b = problem(20, 20)
    seen = []

    def stop(state):
        seen.append(state)
        if state.n_iter == 4:
            raise StopIteration

    result = sparsity_constrained_ot(C, a, b, k=2, callback=stop)
    assert result.status == "stopped"
    assert len(result.history) == 4
    f, g = seen[-1].potentials()
    assert f.shape == g.shape == (20,)
    assert np.isclose(seen[-1].marginal_error, result.history[-1].marginal_error)


def test_not_converged():
    C, a, b = problem(20, 20)
    with pytest.warns(ConvergenceWarning, match=r"max_iter is reached.*increase max_iter, relax or tol"):
        sparsity_constrained_ot(C, a, b, k=3, relax=0.1, max_iter=3)
    with pytest.raises(ConvergenceError):
        sparsity_constrained_ot(C, a, b, k=3, max_iter=3, on_fail="raise")


def test_solve_forwards():
    C, a, b = problem(6, 7)
    result = ot_numba.solve(C, a, b, reg=1.0, regularizer="ksparse", k=2, on_fail="ignore")
    expected = sparsity_constrained_ot(C, a, b, reg=1.0, k=2, on_fail="ignore", max_iter=10_000)
    assert np.array_equal(result.plan, expected.plan)
    with pytest.raises(ValueError, match="k goes with regularizer='ksparse', got k=None"):
        ot_numba.solve(C, a, b, reg=1.0, regularizer="ksparse")


def test_inputs_are_not_modified():
    C, a, b = problem(8, 6)
    kept = C.copy(), a.copy(), b.copy()
    for array in (C, a, b):
        array.flags.writeable = False
    sparsity_constrained_ot(C, a, b, k=2, relax=0.1)
    assert all(np.array_equal(u, v) for u, v in zip((C, a, b), kept, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be >= 1, got 0"),
        ({"k": 1.5}, TypeError, "k must be an integer"),
        ({"reg": 0}, ValueError, "reg must be > 0"),
        ({"relax": -1}, ValueError, "relax must be >= 0"),
        ({"axis": 2}, ValueError, "axis must be 0"),
        ({"axis": "rows"}, TypeError, "axis must be an integer"),
        ({"formulation": "primal"}, ValueError, "formulation must be one of"),
        ({"solver": "sgd"}, ValueError, "solver must be one of"),
        ({"solver": "newton"}, ValueError, "solver='newton' is for formulation='semidual' with relax > 0"),
        ({"repair": "round"}, ValueError, "repair must be one of"),
        ({"learning_rate": 0.1}, ValueError, "learning_rate goes with solver='adam'"),
        ({"solver": "adam", "learning_rate": 0}, ValueError, "learning_rate must be > 0"),
        ({"init": 3}, TypeError, "init must be an earlier result or a pair"),
        ({"callback": 3}, TypeError, "callback must be a function"),
        ({"tol": -1}, ValueError, "tol must be >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"on_fail": "cry"}, ValueError, "on_fail must be one of"),
    ],
)
def test_bad_options(options, error, message):
    C, a, b = problem(4, 5)
    with pytest.raises(error, match=message):
        sparsity_constrained_ot(C, a, b, **{"k": 2, **options})


def test_bad_data():
    C, a, b = problem(4, 5)
    for name, bad in (("C", (C * np.nan, a, b)), ("a", (C, -a, b)), ("a sums", (C, 2 * a, b)), ("b", (C, a, a))):
        with pytest.raises(ValueError, match=name):
            sparsity_constrained_ot(*bad, k=2)
