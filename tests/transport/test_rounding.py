import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from ot_numba.arrays import to_numpy
from ot_numba.costs import CostMatrix, Grid, PointCloud
from ot_numba.transport import sinkhorn
from ot_numba.transport.rounding import marginal_error, round_plan


def lp_value(C, a, b):
    """Unregularised optimum."""
    n, m = C.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    solution = linprog(
        C.ravel(), A_eq=np.vstack([rows, columns])[:-1], b_eq=np.concatenate([a, b])[:-1], method="highs"
    )
    assert solution.status == 0
    return solution.fun


def random_problem(seed, n=7, m=6):
    rng = np.random.default_rng(seed)
    return rng.random((n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))


def loose(C, a=None, b=None, reg=0.05, **options):
    """A result that is far from converged."""
    return sinkhorn(C, a, b, reg=reg, reg_schedule=None, max_iter=2, relaxation=1.0, on_fail="ignore", **options)


# ---- marginal_error


def test_marginal_error_of_an_array(xp):
    P = xp.asarray([[0.2, 0.1], [0.1, 0.7]])
    assert marginal_error(P, [0.4, 0.6], [0.35, 0.65]) == pytest.approx(0.5, abs=1e-15)
    assert marginal_error(2 * P, [0.8, 1.2], [0.7, 1.3]) == pytest.approx(0.5, abs=1e-15)


def test_marginal_error_defaults_to_uniform():
    assert marginal_error(np.full((4, 5), 0.05)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("container", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, scipy.sparse.csc_array])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_marginal_error_of_a_sparse_plan(container, dtype):
    dense = np.array([[3, 0, 1], [0, 0, 2]], dtype)
    sparse = container(dense)
    assert marginal_error(sparse, [4, 1], [3, 1, 2]) == marginal_error(dense, [4, 1], [3, 1, 2]) > 0


def test_marginal_error_of_a_result_is_streamed_and_agrees(xp):
    C, a, b = random_problem(0)
    result = loose(xp.asarray(C), xp.asarray(a), xp.asarray(b))
    error = marginal_error(result)
    assert "plan" not in result.__dict__
    assert error == pytest.approx(result.marginal_error, rel=1e-9)
    assert error == pytest.approx(marginal_error(result.plan, xp.asarray(a), xp.asarray(b)), rel=1e-9)
    assert marginal_error(result, xp.asarray(a[::-1].copy())) > error


def test_marginal_error_of_an_unbalanced_result_compares_with_the_weights():
    result = sinkhorn([[1.0]], [1.0], [1.0], reg=0.1, unbalanced=1.0, tol=1e-12)
    assert marginal_error(result) == pytest.approx(2 * (1 - result.plan[0, 0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0],), r"P must have 2 dimension\(s\), got shape \(2,\)"),
        (([[1.0, np.nan]],), "P has NaN"),
        (([[1.0, 2.0]], [1.0, 1.0]), r"a must have shape \(1,\), got \(2,\)"),
        (([[1.0, 2.0]], [1.0], [-1.0, 2.0]), r"b must not be negative, got b\[0\] = -1"),
        ((scipy.sparse.csr_array([[np.nan, 1.0]]),), "P has entries that are not finite"),
    ],
)
def test_marginal_error_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        marginal_error(*arguments)


# ---- round_plan


def test_reference_case(xp):
    """R4 of the specification."""
    P = xp.asarray([[0.2, 0.1], [0.1, 0.7]])
    out = to_numpy(round_plan(P, [0.4, 0.6], [0.35, 0.65]))
    assert np.allclose(out, [[0.275, 0.125], [0.075, 0.525]], rtol=0, atol=1e-15)
    assert np.abs(out - to_numpy(P)).sum() == pytest.approx(0.3, abs=1e-15)


weights = st.floats(0, 1, allow_subnormal=False) | st.just(0.0)


@given(data=st.data(), n=st.integers(1, 6), m=st.integers(1, 6), mass=st.sampled_from([1.0, 1e-6, 300.0]))
def test_any_matrix_gets_exact_marginals_by_a_small_move(data, n, m, mass):
    P = data.draw(arrays(float, (n, m), elements=weights))
    a, b = (data.draw(arrays(float, (k,), elements=weights).filter(lambda w: w.sum() > 1e-3)) for k in (n, m))
    a, b = mass * a / a.sum(), mass * b / b.sum()
    before = P.copy()
    out = round_plan(P, a, b)
    assert np.array_equal(P, before)
    assert np.all(out >= 0)
    assert np.abs(out.sum(1) - a).sum() + np.abs(out.sum(0) - b).sum() <= 1e-13 * mass
    moved = np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum()
    assert np.abs(out - P).sum() <= 2 * moved + 1e-13 * mass


def test_exact_plans_do_not_move():
    a, b = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    P = a[:, None] * b
    assert np.array_equal(round_plan(P, a, b), P)


def test_zero_matrix_becomes_the_product():
    a, b = np.array([0.25, 0.75]), np.array([0.5, 0.3, 0.2])
    assert np.allclose(round_plan(np.zeros((2, 3)), a, b), a[:, None] * b, rtol=1e-15)


def test_next_to_nothing_becomes_the_product():
    tiny = np.full((1, 1), np.finfo(float).tiny)
    assert np.array_equal(round_plan(tiny, [300.0], [300.0]), [[300.0]])


def test_round_plan_float32_and_odd_memory():
    rng = np.random.default_rng(0)
    P = rng.random((40, 30)).astype(np.float32) / 1200
    P.flags.writeable = False
    out = round_plan(P)
    assert out.dtype == np.float32
    assert marginal_error(out) <= 1e-6
    assert np.allclose(round_plan(np.asfortranarray(P)), out, rtol=1e-6)
    assert np.allclose(round_plan(P[::2, ::-1]), round_plan(P[::2, ::-1].copy()), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, -2.0]],), "P must not be negative, got an entry -2"),
        (([[1.0, np.inf]],), "P has inf"),
        (([1.0],), "P must have 2 dimension"),
        (([[1.0, 2.0]], [1.0], [1.0, 1.0]), "a sums to 1.0 but b to 2.0"),
        (([[1.0, 2.0]], [1.0], [1.0]), r"b must have shape \(2,\)"),
    ],
)
def test_round_plan_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        round_plan(*arguments)


def test_round_plan_refuses_sparse_plans():
    with pytest.raises(TypeError, match="sparse"):
        round_plan(scipy.sparse.csr_array(np.eye(2)))


# ---- TransportResult.round


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("regularizer", ["kl", "entropy"])
def test_streamed_rounding_is_the_dense_one(xp, seed, regularizer):
    C, a, b = random_problem(seed)
    a[0], b[2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    result = loose(xp.asarray(C), xp.asarray(a), xp.asarray(b), regularizer=regularizer)
    rounded = result.round()
    assert "plan" not in result.__dict__
    dense = to_numpy(round_plan(result.plan, xp.asarray(a), xp.asarray(b)))
    P = to_numpy(rounded.plan)
    assert np.allclose(P, dense, rtol=0, atol=1e-14)
    assert rounded.linear_cost == pytest.approx((C * dense).sum(), rel=1e-12)
    assert marginal_error(rounded.plan, xp.asarray(a), xp.asarray(b)) <= 1e-13
    scaled = to_numpy(rounded.row_scaling)[:, None] * to_numpy(result.plan) * to_numpy(rounded.column_scaling)
    missing = to_numpy(rounded.row_deficit)
    rank_one = missing[:, None] * to_numpy(rounded.column_deficit) / missing.sum()
    assert np.allclose(scaled + rank_one, P, rtol=0, atol=1e-14)
    v, u = np.linspace(-1, 1, 6), np.random.default_rng(seed).random((7, 3))
    assert np.allclose(to_numpy(rounded.apply(xp.asarray(v))), P @ v, rtol=0, atol=1e-14)
    assert np.allclose(to_numpy(rounded.apply(xp.asarray(u), transpose=True)), P.T @ u, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_cost_is_a_certified_bound_of_the_unregularised_optimum(seed):
    C, a, b = random_problem(seed)
    exact = lp_value(C, a, b)
    costs = []
    for reg in (0.3, 0.03, 0.003):
        result = sinkhorn(C, a, b, reg=reg, tol=1e-3)
        costs.append(result.round().linear_cost)
        assert costs[-1] >= exact - 1e-12
        # the plan alone may cost less than the optimum: it misses its marginals
        assert costs[-1] <= result.linear_cost + 2 * result.marginal_error * C.max()
    assert costs[-1] <= exact + 0.003 * np.log(42) + 2e-3


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine", "cityblock", 3.0])
def test_points(metric):
    rng = np.random.default_rng(0)
    C = PointCloud(rng.random((30, 3)) + 10, rng.random((20, 3)) + 10, metric)
    result = loose(C, reg=0.1 * C.bounds()[1])
    rounded = result.round()
    dense = round_plan(result.plan)
    assert rounded.linear_cost == pytest.approx((C.to_dense() * dense).sum(), rel=1e-10)


def test_grid():
    rng = np.random.default_rng(0)
    C = Grid((4, 5))
    a, b = rng.dirichlet(np.ones(20), 2)
    result = loose(C, a, b)
    dense = round_plan(result.plan, a, b)
    assert result.round().linear_cost == pytest.approx((C.to_dense() * dense).sum(), rel=1e-10)


def test_forbidden_pairs():
    C = np.array([[0.0, np.inf], [1.0, 0.5]])
    a, b = np.array([0.3, 0.7]), np.array([0.5, 0.5])
    result = sinkhorn(C, a, b, reg=0.1, tol=1e-14)
    assert np.isfinite(result.round().linear_cost) or result.round().plan[0, 1] > 0
    far = loose(CostMatrix(C), a, b, reg=0.001)
    cost = far.round().linear_cost
    assert cost == np.inf if far.round().plan[0, 1] > 0 else cost >= 0.45 - 1e-12


def test_round_float32():
    C, a, b = (v.astype(np.float32) for v in random_problem(0, 60, 50))
    rounded = loose(C, a, b).round()
    assert rounded.plan.dtype == np.float32
    assert rounded.apply(np.ones(50, np.float32)).dtype == np.float32
    assert marginal_error(rounded.plan, a, b) <= 3e-6


def test_round_refuses_unbalanced_results():
    result = sinkhorn([[1.0, 0.0]], reg=0.1, unbalanced=1.0)
    with pytest.raises(ValueError, match="balanced"):
        result.round()


def test_apply_refuses():
    rounded = sinkhorn([[0.0, 1.0], [1.0, 0.0]], reg=1.0).round()
    with pytest.raises(ValueError, match="v must have 2 rows, got shape"):
        rounded.apply([1.0, 2.0, 3.0])
