"""Screened passes against whole ones."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ot_numba.costs import GibbsKernel, PointCloud, screening
from ot_numba.costs.screening import ScreenedGibbsKernel, expected_share, neighbour_order
from ot_numba.transport._sinkhorn import sinkhorn
from ot_numba.transport.problem import make_problem


@contextlib.contextmanager
def always():
    """Screening however large the share is that is visited."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "LARGEST_SHARE", 2.0)
        patch.setattr(PointCloud, "_share", lambda cloud, reg, ordered: 0.0)
        yield


@contextlib.contextmanager
def whole():
    """No screening anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PointCloud, "_share", lambda cloud, reg, ordered: 1.0)
        yield


def clouds(seed, n, m, d, dtype="float64", clusters=1, distance=0.0, copies=0.0):
    """Two clouds, of clusters at a distance, with a share of points that are copies of others."""
    rng = np.random.default_rng(seed)
    centres = distance * rng.normal(size=(clusters, d))
    out = []
    for size in (n, m):
        x = centres[rng.integers(clusters, size=size)] + rng.normal(size=(size, d))
        same = rng.random(size) < copies
        x[same] = x[rng.integers(size, size=same.sum())]
        out.append(x[neighbour_order(x)].astype(dtype))
    return PointCloud(*out)


# ---------------------------------------------------------------- order and rule


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 1000])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_order_is_a_permutation_into_small_boxes(n, d):
    x = np.random.default_rng(n).random((n, d))
    order = neighbour_order(x)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n == 1000:
        boxes = [np.ptp(x[order[lo : lo + 16]], axis=0).max() for lo in range(0, n, 16)]
        assert np.median(boxes) < 2.5 * (16 / n) ** (1 / d)


def test_order_of_equal_points():
    np.testing.assert_array_equal(np.sort(neighbour_order(np.zeros((100, 2)))), np.arange(100))


def test_order_of_the_line_is_sorted_but_within_leaves():
    x = np.random.default_rng(0).random((640, 1))
    tops = x[neighbour_order(x), 0].reshape(-1, 16)
    assert (tops.max(axis=1)[:-1] <= tops.min(axis=1)[1:]).all()


def test_rule():
    rng = np.random.default_rng(0)
    x = rng.random((1000, 2))
    ordered = x[neighbour_order(x)]

    def kind(x, reg, **options):
        return type(PointCloud(x, **options).gibbs(reg))

    assert kind(ordered, 1e-4) is ScreenedGibbsKernel
    assert kind(ordered.astype("float32"), 1e-4) is ScreenedGibbsKernel
    assert kind(x, 1e-4) is GibbsKernel  # in no order
    assert kind(ordered, 1.0) is GibbsKernel  # large reg
    assert kind(ordered[:400], 1e-4) is GibbsKernel  # small
    assert kind(ordered, 1e-4, metric="cityblock") is GibbsKernel
    high = rng.random((1000, 4))
    assert kind(high[neighbour_order(high)], 1e-4) is GibbsKernel
    assert PointCloud(x).neighbour_order(1.0) == (None, None)
    assert PointCloud(x, metric="euclidean").neighbour_order(1e-4) == (None, None)
    np.testing.assert_array_equal(x[PointCloud(x).neighbour_order(1e-4)[0]], ordered)


def test_points_that_are_all_the_same_are_not_screened():
    x = np.zeros((1000, 2))
    assert expected_share(x, x, 1.0, ordered=True) == 1
    assert type(PointCloud(x).gibbs(1e-3)) is GibbsKernel


def test_problem_is_ordered_on_request_only():
    rng = np.random.default_rng(2)
    x, a = rng.random((1000, 2)), rng.random(1000)
    a[::7] = 0
    cloud, inner = PointCloud(x), {}
    for ordered in (False, True):
        problem = make_problem(cloud, a / a.sum(), None, reg=1e-4, ordered=ordered)
        inner[ordered] = problem.restricted
        rows, _ = problem.support
        np.testing.assert_array_equal(problem.restricted.a, (a / a.sum())[rows])
        np.testing.assert_array_equal(problem.restricted.cost.x, x[rows])
        f, g = problem.in_order(problem.restricted.a, problem.restricted.b)
        np.testing.assert_array_equal(f, (a / a.sum())[a > 0])
        assert g.shape == (1000,)
    assert not np.array_equal(inner[True].cost.x, inner[False].cost.x)


# ---------------------------------------------------------------- passes


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.sampled_from([(100, 100), (257, 90), (33, 310), (5, 70)]),
    d=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from(["float64", "float32"]),
    reg=st.sampled_from([0.3, 0.01, 0.0005]),
    clusters=st.sampled_from([1, 4]),
    distance=st.sampled_from([3.0, 30.0]),
    copies=st.sampled_from([0.0, 0.5]),
    jump=st.sampled_from([0.1, 5.0, 100.0]),
    weights=st.sampled_from([0.0, 5.0]),
    form=st.sampled_from([(1.0, 1.0), (1.0, 1.6), (0.6, 1.0)]),
)
@settings(max_examples=150)
def test_passes_are_those_of_the_whole_plan(
    seed, sizes, d, dtype, reg, clusters, distance, copies, jump, weights, form
):
    """From any potentials, with any jumps between passes."""
    if dtype == "float32":  # a row that rises far takes what is below the range of float32 with it, screened or not
        jump = min(jump, 5.0)
    cloud = clouds(seed, *sizes, d, dtype, clusters, distance, copies)
    rng = np.random.default_rng(seed)
    a, b = ((np.exp(weights * rng.normal(size=size)) / size).astype(dtype) for size in sizes)
    reg *= float(np.square(cloud.x).mean())
    screened, plain = ScreenedGibbsKernel(cloud, reg), GibbsKernel(cloud, reg)
    offsets = plain.row_offset(a), plain.column_offset(b)
    F, G = plain.row_logsumexp(offsets[1]) * -1 + offsets[0] - plain.row_offset(), offsets[1].copy()
    damping, relaxation = form
    eps = np.finfo(dtype).eps
    reach = cloud.bounds()[1] / reg * 1.5 + 40 * weights
    for step in range(6):
        if step in (2, 3, 5):
            G += (jump * rng.normal(size=G.size)).astype(dtype)
        if step == 3:
            F += (jump * rng.normal(size=F.size)).astype(dtype)
        states = []
        for kernel in (screened, plain):
            f, g = F.copy(), G.copy()
            with always():
                errors = kernel.iterate(f, g, a, b, offsets, (damping, damping), relaxation)
            states.append((f, g, errors))
        size = float(np.abs(F).max() + np.abs(G).max() + reach)
        for u, v in zip(states[0][:2], states[1][:2], strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=40 * eps * size)
        if dtype == "float64":
            np.testing.assert_allclose(states[0][2], states[1][2], rtol=1e-13 * size, atol=1e-13 * size)
        F, G = states[1][:2]


def settled(n=600, seed=0, d=1, reg=2e-3, b=None):
    """A screened kernel, with potentials whose rows are exact, and weights."""
    cloud = clouds(seed, n, n, d)
    screened = ScreenedGibbsKernel(cloud, reg)
    a = np.full(n, 1 / n)
    b = a if b is None else b
    F, G = screened.row_offset(a), screened.column_offset(b)
    F = screened.row_offset(a) - screened.row_offset() - screened.row_logsumexp(G)
    for _ in range(30):
        GibbsKernel.iterate(screened, F, G, a, b, (F, G))
    return screened, F, G, a, b


def test_passes_leave_most_out(monkeypatch):
    screened, F, G, a, b = settled()
    seen, original = [], screened.tiled.sinkhorn_rows

    def spy(data, tiles, *rest):
        seen.append(tiles)
        return original(data, tiles, *rest)

    monkeypatch.setattr(screened.tiled, "sinkhorn_rows", spy)
    for _ in range(4):
        screened.iterate(F, G, a, b, (F, G))
    assert len(seen) == 4
    assert max(tiles.entries for tiles in seen) < 0.4 * 600**2
    assert seen[3] is seen[2]  # the potentials hardly move: tiles are kept


def test_columns_that_lost_their_mass_are_not_lost():
    """A column that hardly any row reaches any more gets its exact sum."""
    screened, F, G, a, b = settled()
    G[17] -= 300
    sums = []
    for kernel in (screened, GibbsKernel(screened.cost, screened.reg)):
        f = F.copy()
        with always():
            sums.append(kernel.rows(f, G, a, b, (F, G))[1])
    assert sums[1][17] < 1e-60
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-12)


def test_large_share_takes_whole_passes():
    cloud = clouds(0, 200, 200, 2)
    screened, plain = ScreenedGibbsKernel(cloud, 10.0), GibbsKernel(cloud, 10.0)
    a = np.full(200, 1 / 200)
    states = []
    for kernel in (screened, plain):
        F, G = kernel.row_offset(a), kernel.column_offset(a)
        for _ in range(12):
            kernel.iterate(F, G, a, a, (F, G))
        states.append((F, G))
    np.testing.assert_array_equal(states[0], states[1])


@pytest.mark.parametrize("stored", [True, False])
def test_square(stored, monkeypatch):
    b = np.random.default_rng(0).dirichlet(np.full(600, 0.3)) + 1e-9
    screened, F, G, _, b = settled(b=b / b.sum())
    if not stored:
        monkeypatch.setattr(screening, "STORED_BYTES", 0)
    P = screened.plan(F, G)
    tiles = screened.tiles(F, G, P.sum(1), P.sum(0))
    assert tiles.entries < 0.3 * 600**2
    product = screened.square(F, G, tiles)
    for v in (np.ones(600), np.random.default_rng(1).normal(size=600)):
        exact, size = P.T @ (P @ v), P.T @ (P @ np.abs(v))
        assert (np.abs(product(v) - exact) <= 3e-6 * size).all()


# ---------------------------------------------------------------- solutions


@pytest.mark.parametrize(
    ("d", "dtype", "share", "tol"),
    [(1, "float64", 1e-3, 1e-9), (2, "float64", 2e-3, 1e-9), (3, "float64", 1e-3, 1e-7), (2, "float32", 2e-3, 2e-5)],
)
def test_solution_is_the_same(d, dtype, share, tol):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(700, d)).astype(dtype), (0.8 * rng.normal(size=(600, d)) + 0.5).astype(dtype)
    x[50:60] = x[40:50]
    a, b = rng.random(700), rng.random(600)
    a[::9], b[5] = 0, 0
    a, b = (a / a.sum()).astype(dtype), (b / b.sum()).astype(dtype)
    cloud = PointCloud(x, y)
    reg = share * cloud.bounds()[1] / 8
    with always():
        result = sinkhorn(cloud, a, b, reg=reg, tol=tol)
    with whole():
        expected = sinkhorn(cloud, a, b, reg=reg, tol=tol)
    assert result.converged
    assert expected.converged
    P = result.plan.astype(float)
    assert np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum() <= (1.1 if dtype == "float64" else 2) * tol
    assert result.value == pytest.approx(expected.value, rel=10 * tol)
    np.testing.assert_allclose(P, expected.plan, atol=1e3 * tol * P.max())
    assert np.isfinite(result.f).all()
    assert np.isfinite(result.g).all()


def test_unbalanced_and_relaxed():
    rng = np.random.default_rng(0)
    cloud = PointCloud(rng.normal(size=(600, 2)), rng.normal(size=(600, 2)) + 0.3)
    for options in ({"unbalanced": 1.0}, {"method": "log", "relaxation": 1.3, "max_iter": 300, "tol": 1e-4}):
        options = {"reg": 0.01, "tol": 1e-7, "on_fail": "ignore", **options}
        with always():
            result = sinkhorn(cloud, **options)
        with whole():
            expected = sinkhorn(cloud, **options)
        assert result.n_iter == pytest.approx(expected.n_iter, abs=3)
        np.testing.assert_allclose(result.plan.sum(0), expected.plan.sum(0), atol=1e-6)


def test_callback_and_start_are_in_the_order_of_the_points():
    rng = np.random.default_rng(5)
    cloud = PointCloud(rng.random((700, 2)), rng.random((600, 2)))
    seen = []
    result = sinkhorn(cloud, reg=1e-3, tol=1e-6, callback=lambda state: seen.append(state.potentials()))
    f, g = seen[-1]
    f, g = f - f.mean() + result.f.mean(), g - g.mean() + result.g.mean()
    np.testing.assert_allclose(f, result.f, atol=0.03)
    np.testing.assert_allclose(g, result.g, atol=0.03)
    again = sinkhorn(cloud, reg=1e-3, tol=1e-6, init=result)
    assert again.n_iter < 15


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_large_clouds(d):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4000, d)), 0.7 * rng.normal(size=(4000, d)) + 0.5
    cloud = PointCloud(x, y)
    result = sinkhorn(cloud, reg=0.005 * cloud.bounds()[1] / 10, tol=1e-9)
    assert result.converged
    assert result.marginal_error < 1e-9
