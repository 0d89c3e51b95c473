import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings, strategies as st

import ot_numba
from ot_numba import ConvergenceError, ConvergenceWarning, quadratic_ot
from ot_numba.arrays import to_numpy
from ot_numba.transport import semismooth

R3 = [[0.8, 0.8, 0.5], [0.3, 0.1, 0.4], [0.4, 0, 0], [1, 0.7, 0.2]]
A, B = [0.1, 0.2, 0.3, 0.4], [0.2, 0.35, 0.45]


def problem(n, m, seed=0, kind="uniform"):
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(m, 2.0))
    if kind == "uniform":
        C = rng.random((n, m))
    elif kind == "points":
        C = ((rng.random((n, 1, 2)) - rng.random((1, m, 2))) ** 2).sum(-1)
    else:  # ties everywhere
        C = np.abs(rng.integers(5, size=(n, 1)) - rng.integers(5, size=(1, m))).astype(float)
    return C, a, b


def certify(result, C, a, b, reg, tol):
    """The plan from the potentials alone, its marginals, and a gap of 0: nothing is taken on trust."""
    f, g = np.asarray(result.f, float), np.asarray(result.g, float)
    P = np.maximum(f[:, None] + g - C, 0) / reg
    error = np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum()
    assert error <= tol
    assert np.allclose(result.plan, P, rtol=0, atol=tol)
    dual = f @ a + g @ b - reg / 2 * (P * P).sum()
    assert np.isclose(result.dual_value, dual, rtol=1e-9, atol=1e-12)
    assert np.isclose(result.value, (C * P).sum() + reg / 2 * (P * P).sum(), rtol=0, atol=10 * tol * np.abs(C).max())


def test_small_reference():
    result = quadratic_ot(R3, A, B, reg=1.0)
    assert np.isclose(result.value, 0.3255, rtol=0, atol=1e-9)
    expected = [[0.08, 0, 0.02], [0.1, 0.1, 0], [0.02, 0.22, 0.06], [0, 0.03, 0.37]]
    assert np.allclose(result.plan, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["uniform", "points", "ties"])
@pytest.mark.parametrize("reg", [100.0, 1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("shape", [(40, 40), (30, 55), (55, 30)])
def test_to_high_accuracy(kind, reg, shape):
    C, a, b = problem(*shape, kind=kind)
    result = quadratic_ot(C, a, b, reg=reg, tol=1e-10)
    assert result.converged
    certify(result, C, a, b, reg, 2e-10)
    assert abs(result.gap) < 1e-9


def test_against_the_interior_point_solution():
    """A QP solved by SLSQP."""
    C, a, b = problem(4, 5)
    rows, columns = np.kron(np.eye(4), np.ones(5)), np.kron(np.ones(4), np.eye(5))
    reference = scipy.optimize.minimize(
        lambda p: C.ravel() @ p + 0.15 * p @ p, np.outer(a, b).ravel(), jac=lambda p: C.ravel() + 0.3 * p,
        bounds=[(0, None)] * 20,
        constraints={"type": "eq", "fun": lambda p: np.r_[rows @ p - a, columns[1:] @ p - b[1:]]},
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert np.isclose(quadratic_ot(C, a, b, reg=0.3).value, reference.fun, rtol=0, atol=1e-8)


def test_against_regot():
    regot = pytest.importorskip("regot")
    C, a, b = problem(30, 40, kind="points")
    theirs = np.asarray(regot.qrot_grssn(np.asfortranarray(C), a, b, 0.1, tol=1e-11, max_iter=2000).plan)
    assert np.allclose(quadratic_ot(C, a, b, reg=0.1).plan, theirs, rtol=0, atol=1e-9)


def test_small_reg_is_the_linear_program():
    C, a, b = problem(20, 25)
    rows, columns = np.kron(np.eye(20), np.ones(25)), np.kron(np.ones(20), np.eye(25))
    lp = scipy.optimize.linprog(C.ravel(), A_eq=np.r_[rows, columns], b_eq=np.r_[a, b], method="highs").fun
    result = quadratic_ot(C, a, b, reg=1e-4)
    assert lp - 1e-9 <= result.linear_cost <= lp + 1e-4
    assert result.dual_value <= lp + 1e-4 / 2


def test_large_reg_is_the_flat_plan():
    C, a, b = problem(6, 8)
    a, b = np.full(6, 1 / 6), np.full(8, 1 / 8)
    assert np.allclose(quadratic_ot(C, a, b, reg=1e6).plan, 1 / 48, rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.floats(-2, 2))
def test_weak_duality_and_certificate(seed, n, m, power):
    C, a, b = problem(n, m, seed)
    reg = 10.0**power
    result = quadratic_ot(C, a, b, reg=reg, tol=1e-9)
    certify(result, C, a, b, reg, 2e-9)
    P = np.outer(a, b)  # any plan with the marginals
    assert result.dual_value <= (C * P).sum() + reg / 2 * (P * P).sum() + 1e-12


def test_invariances():
    C, a, b = problem(15, 20)
    result = quadratic_ot(C, a, b, reg=0.1, tol=1e-11)
    order = np.random.default_rng(0).permutation(15)
    assert np.allclose(quadratic_ot(C[order], a[order], b, reg=0.1, tol=1e-11).plan, result.plan[order], atol=1e-10)
    assert np.allclose(quadratic_ot(C.T, b, a, reg=0.1, tol=1e-11).plan, result.plan.T, atol=1e-10)
    assert np.allclose(quadratic_ot(C + 5, a, b, reg=0.1, tol=1e-11).plan, result.plan, atol=1e-10)
    assert np.allclose(quadratic_ot(3 * C, a, b, reg=0.3, tol=1e-11).plan, result.plan, atol=1e-10)
    assert np.allclose(quadratic_ot(C, 7 * a, 7 * b, reg=0.1 / 7, tol=1e-11).plan, 7 * result.plan, atol=1e-9)


def test_zero_weights():
    C, a, b = problem(10, 12)
    a[[0, 4]], b[[3, 11]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    result = quadratic_ot(C, a, b, reg=0.1)
    inner = quadratic_ot(C[np.ix_(a > 0, b > 0)], a[a > 0], b[b > 0], reg=0.1)
    assert np.allclose(result.plan[np.ix_(a > 0, b > 0)], inner.plan, rtol=0, atol=1e-12)
    assert not result.plan[[0, 4]].any()
    assert not result.plan[:, [3, 11]].any()
    assert np.isneginf(result.f[[0, 4]]).all()
    assert np.isneginf(result.g[[3, 11]]).all()
    assert np.isfinite(result.value)
    assert quadratic_ot(C, a, b, reg=0.1, init=result).n_iter == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_one_point(shape):
    C, a, b = problem(*shape)
    result = quadratic_ot(C, a, b, reg=0.5)
    assert result.converged
    assert np.allclose(result.plan, np.outer(a, b), rtol=0, atol=1e-9)


def test_forbidden_pairs():
    C, a, b = problem(8, 8)
    a = b = np.full(8, 1 / 8)
    C[np.triu_indices(8, 1)] = np.inf
    result = quadratic_ot(C, a, b, reg=0.1)
    assert np.allclose(result.plan, np.eye(8) / 8, rtol=0, atol=1e-8)
    assert np.isfinite(result.value)


def test_forbidden_pairs_that_leave_no_plan():
    C = np.array([[1, np.inf, np.inf], [1, np.inf, np.inf], [1, 1, 1]])
    with pytest.warns(ConvergenceWarning, match="the forbidden pairs leave no plan with these marginals"):
        result = quadratic_ot(C, reg=1.0)
    assert result.status == "infeasible"
    assert result.n_iter < 200


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_costs_beyond_the_accuracy_of_the_dtype(offset):
    C, a, b = problem(20, 20)
    result = quadratic_ot(C + offset, a, b, reg=1e-9 if offset == 0 else 0.1, tol=1e-12, on_fail="ignore")
    assert result.status == "floor"
    assert "take off a constant" in result.message
    assert result.marginal_error < 1e-4


def test_weights_of_all_magnitudes():
    rng = np.random.default_rng(0)
    a, b = (10.0 ** -rng.uniform(0, 12, n) for n in (30, 40))
    result = quadratic_ot(rng.random((30, 40)), a / a.sum(), b / b.sum(), reg=0.1)
    assert result.converged


def test_equal_costs_and_repeated_points():
    assert np.allclose(quadratic_ot(np.ones((5, 4)), reg=1e-3).plan, 1 / 20, rtol=0, atol=1e-12)
    rng = np.random.default_rng(0)
    x, y = np.repeat(rng.random((5, 2)), 6, axis=0), np.repeat(rng.random((4, 2)), 8, axis=0)
    assert quadratic_ot(ot_numba.PointCloud(x, y), reg=0.01).converged


def test_kinds_of_input(xp):
    C, a, b = problem(12, 9)
    expected = quadratic_ot(C, a, b, reg=0.2)
    result = quadratic_ot(xp.asarray(C), xp.asarray(a), xp.asarray(b), reg=0.2)
    assert np.allclose(to_numpy(result.plan), expected.plan, rtol=0, atol=1e-9)
    assert np.allclose(result.sparse_plan().toarray(), expected.plan, rtol=0, atol=1e-9)
    v = xp.asarray(np.arange(9.0))
    assert np.allclose(to_numpy(result.apply(v)), expected.plan @ np.arange(9.0))
    assert result.f.dtype == xp.float64


def test_layouts_and_read_only():
    C, a, b = problem(12, 9)
    expected = quadratic_ot(C, a, b, reg=0.2).plan
    strided = np.zeros((24, 18))
    strided[::2, ::2] = C
    readonly = C.copy()
    readonly.flags.writeable = False
    for other in (np.asfortranarray(C), strided[::2, ::2], readonly, C.astype(">f8")):
        assert np.array_equal(quadratic_ot(other, a, b, reg=0.2).plan, expected)
    assert np.allclose(quadratic_ot(C.tolist(), a.tolist(), b.tolist(), reg=0.2).plan, expected, atol=1e-12)


def test_integers():
    result = quadratic_ot([[0, 1], [1, 0]], [1, 1], [1, 1], reg=1)
    assert result.plan.tolist() == [[1, 0], [0, 1]]


def test_float32():
    C, a, b = problem(40, 30)
    C, a, b = (v.astype(np.float32) for v in (C, a, b))
    result = quadratic_ot(C, a, b, reg=0.1, tol=1e-5)
    assert result.converged
    assert result.plan.dtype == result.f.dtype == np.float32
    floor = quadratic_ot(C, a, b, reg=0.1, tol=1e-12)
    assert floor.converged
    assert "rounding floor" in floor.message
    assert floor.marginal_error < 240 * 2.0**-24
    stuck = quadratic_ot(1e4 + C, a, b, reg=0.1, tol=1e-12, on_fail="ignore")
    assert not stuck.converged
    assert stuck.status == "floor"


def test_point_cloud():
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 2)), rng.random((30, 2))
    cloud = ot_numba.PointCloud(x, y)
    result = quadratic_ot(cloud, reg=0.1)
    expected = quadratic_ot(cloud.to_dense(), reg=0.1)
    assert np.allclose(result.plan, expected.plan, rtol=0, atol=1e-9)
    assert np.isclose(result.linear_cost, expected.linear_cost)
    assert np.allclose(result.project(), expected.plan @ y * 20, rtol=0, atol=1e-7)


def test_warm_start_and_schedule():
    C, a, b = problem(60, 60)
    first = quadratic_ot(C, a, b, reg=0.1)
    assert quadratic_ot(C, a, b, reg=0.1, init=first).n_iter == 0
    assert quadratic_ot(C, a, b, reg=0.1, init=(first.f, first.g)).n_iter == 0
    near = quadratic_ot(C, a, b, reg=0.09, init=first)
    assert near.converged
    assert near.n_iter < first.n_iter
    for schedule in (None, [], [3.0, 0.5]):
        other = quadratic_ot(C, a, b, reg=0.1, reg_schedule=schedule)
        assert np.allclose(other.plan, first.plan, rtol=0, atol=1e-8)


def test_history_and_callback():
    C, a, b = problem(30, 30)
    states = []

    def watch(state):
        states.append((state, state.potentials()))
        if state.n_iter == 6:
            raise StopIteration

    result = quadratic_ot(C, a, b, reg=1e-3, callback=watch)
    assert result.status == "stopped"
    assert not result.converged
    assert [entry.n_iter for entry in result.history] == [1, 2, 3, 4, 5, 6]
    assert [state.marginal_error for state, _ in states] == [entry.marginal_error for entry in result.history]
    assert states[0][1][0].shape == (30,)
    whole = quadratic_ot(C, a, b, reg=1e-3)
    regs = [entry.reg for entry in whole.history]
    assert regs == sorted(regs, reverse=True)
    assert regs[-1] == 1e-3
    assert whole.history[-1].n_evaluations <= whole.n_evaluations


def test_not_converged():
    C, a, b = problem(30, 30)
    with pytest.warns(ConvergenceWarning, match="not converged .max_iter is reached.: marginal error"):
        result = quadratic_ot(C, a, b, reg=1e-3, max_iter=3)
    assert result.status == "max_iter"
    assert result.n_iter == 3
    P = result.plan
    assert np.isclose(result.marginal_error, np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum())
    with pytest.raises(ConvergenceError):
        quadratic_ot(C, a, b, reg=1e-3, max_iter=3, on_fail="raise")


def test_rounding_floor():
    C, a, b = problem(30, 30)
    result = quadratic_ot(C, a, b, reg=0.01, tol=0, on_fail="ignore", max_iter=500)
    assert result.marginal_error < 1e-13
    assert result.n_iter < 100


def test_deterministic_whatever_the_threads():
    C, a, b = problem(700, 720, kind="points")
    found = []
    before = ot_numba.get_num_threads()
    try:
        for threads in (1, 2):
            ot_numba.set_num_threads(threads)
            found.append(quadratic_ot(C, a, b, reg=1.0, tol=1e-6).plan)
    finally:
        ot_numba.set_num_threads(before)
    assert np.array_equal(*found)


def test_the_newton_system_is_the_hessian():
    """Minus the derivative of the gradient, where the set of positive entries is locally constant."""
    C, a, b = problem(12, 9)
    cost = ot_numba.CostMatrix(C)
    from ot_numba.transport.sparse_duals import SparseDual

    newton = semismooth.SemismoothNewton(SparseDual(cost, a, b, 0.3), np.zeros(9))
    for _ in range(3):
        newton.step()
    newton.width = 0.0
    H = np.linalg.inv(np.stack([newton._factorize(np.full(9, 1e-6))(e) for e in np.eye(9)])) / 0.3
    G, h = newton.G, 1e-7
    for j in range(9):
        step = h * np.eye(9)[j]
        difference = (newton.dual.semidual(G - step)[1] - newton.dual.semidual(G + step)[1]) / (2 * h)
        assert np.allclose(H[:, j], difference, rtol=0, atol=1e-4)


def test_gradients_of_the_value():
    """By the envelope theorem: f and g up to a shift, the plan, half its squared norm."""
    C, a, b = problem(6, 7)
    base, h = quadratic_ot(C, a, b, reg=0.5, tol=1e-12), 1e-5

    def value(C=C, a=a, b=b, reg=0.5):
        return quadratic_ot(C, a, b, reg=reg, tol=1e-12).value

    E = np.zeros_like(C)
    E[2, 3] = h
    assert np.isclose((value(C + E) - value(C - E)) / (2 * h), base.plan[2, 3], rtol=0, atol=1e-7)
    d = np.array([1, -1, 0, 0, 0, 0.0]) * h
    assert np.isclose((value(a=a + d) - value(a=a - d)) / (2 * h), base.f[0] - base.f[1], rtol=0, atol=1e-6)
    assert np.isclose((value(reg=0.5 + h) - value(reg=0.5 - h)) / (2 * h), (base.plan**2).sum() / 2, rtol=0, atol=1e-7)


def test_inputs_are_not_modified():
    C, a, b = problem(8, 6)
    kept = C.copy(), a.copy(), b.copy()
    quadratic_ot(C, a, b, reg=0.1)
    assert all(np.array_equal(u, v) for u, v in zip((C, a, b), kept, strict=True))


def test_bad_input():
    C, a, b = problem(4, 5)
    with pytest.raises(ValueError, match="reg must be > 0"):
        quadratic_ot(C, a, b, reg=0)
    with pytest.raises(ValueError, match="C has NaN"):
        quadratic_ot(C * np.nan, a, b, reg=1)
    with pytest.raises(ValueError, match="a must not be negative"):
        quadratic_ot(C, -a, b, reg=1)
    with pytest.raises(ValueError, match="a sums to"):
        quadratic_ot(C, 2 * a, b, reg=1)
    with pytest.raises(ValueError, match=r"b must have shape \(5,\)"):
        quadratic_ot(C, a, a, reg=1)
    with pytest.raises(ValueError, match="on_fail must be one of"):
        quadratic_ot(C, a, b, reg=1, on_fail="shout")
    with pytest.raises(TypeError, match="callback must be a function"):
        quadratic_ot(C, a, b, reg=1, callback=3)
    with pytest.raises(TypeError, match="init must be an earlier result or a pair"):
        quadratic_ot(C, a, b, reg=1, init=3)
    with pytest.raises(ValueError, match="f must have shape"):
        quadratic_ot(C, a, b, reg=1, init=(b, b))
    with pytest.raises(ValueError, match="reg_schedule must decrease"):
        quadratic_ot(C, a, b, reg=1, reg_schedule=[2, 3])
    with pytest.raises(ValueError, match="reg_schedule must be one of"):
        quadratic_ot(C, a, b, reg=1, reg_schedule="slow")
    with pytest.raises(TypeError, match="reg_schedule must be 'auto', None or a sequence"):
        quadratic_ot(C, a, b, reg=1, reg_schedule=3)
    with pytest.raises(ValueError, match="tol must be >= 0"):
        quadratic_ot(C, a, b, reg=1, tol=-1)
    with pytest.raises(ValueError, match="row 0"):
        quadratic_ot(np.where(np.arange(4)[:, None] == 0, np.inf, C), a, b, reg=1)


def test_solve_forwards():
    C, a, b = problem(6, 7)
    expected = quadratic_ot(C, a, b, reg=0.2).plan
    assert np.allclose(ot_numba.solve(C, a, b, reg=0.2, regularizer="l2").plan, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="unbalanced goes with regularizer='kl' or 'entropy'"):
        ot_numba.solve(C, a, b, reg=0.2, regularizer="l2", unbalanced=1.0)
    with pytest.raises(ValueError, match="k goes with regularizer='ksparse'"):
        ot_numba.solve(C, a, b, reg=0.2, regularizer="l2", k=2)


def test_repr_and_views():
    C, a, b = problem(6, 7)
    result = quadratic_ot(C, a, b, reg=0.2)
    assert "SparseTransportResult(6 x 7" in repr(result)
    with pytest.raises(ValueError, match="read-only"):
        result.plan[0, 0] = 1
    P = result.sparse_plan()
    P.data[:] = 0
    assert result.plan.sum() > 0
    assert result.sparse_plan().sum() > 0
    with pytest.raises(ValueError, match="v must have 7 rows"):
        result.apply(np.ones(6))
    with pytest.raises(ValueError, match="y must be given"):
        result.project()
    assert np.allclose(result.apply(np.ones((6, 2)), transpose=True), np.stack([b, b], axis=1), rtol=0, atol=1e-8)
