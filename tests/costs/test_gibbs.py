"""Every method of the Gibbs kernel of every cost, against dense sums over the plan."""

import importlib

import array_api_strict
import numba
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import logsumexp

import ot_numba.costs.gibbs as gibbs_module
from ot_numba import CostMatrix, Grid, PointCloud, cost_scale
from ot_numba.arrays import to_numpy
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads


@numba.njit
def chebyshev(x, y):
    return np.abs(x - y).max()


POINTS = ["sqeuclidean", "far", "high", "euclidean", "cityblock", "cosine", 1.5, chebyshev]
COSTS = ["matrix", "forbidden", *POINTS, "grid"]
LIBRARIES = ["numpy", "array_api_strict"]


def softmin(C, g, b, reg):
    """``-reg log sum_j b_j exp((g_j - C_ij) / reg)``."""
    return -reg * logsumexp((g - C) / reg, b=b, axis=1)


class Problem:
    """A cost, its dense form in float64, weights and potentials, and what the plan must be."""

    def __init__(self, kind, xp, seed, n=11, m=13, dtype="float64", reg=0.3, size=0.2):
        self.xp, self.reg, self.dtype = xp, reg, dtype
        rng = np.random.default_rng(seed)
        if kind == "grid":
            axes = ([0.0, 0.3, 1.0, 0.1][: max(1, n % 5)], 3), ([0.2, 0.9], 2)
            as_arrays = [
                [xp.asarray(np.array(v), dtype=getattr(xp, dtype)) if isinstance(v, list) else v for v in side]
                for side in axes
            ]
            self.cost = Grid(*as_arrays, power=1.5)
            C = None
        elif kind in ("matrix", "forbidden"):
            C = rng.normal(size=(n, m)).astype(dtype)
            if kind == "forbidden":
                blocked = rng.random((n, m)) < 0.4
                blocked[np.arange(max(n, m)) % n, np.arange(max(n, m)) % m] = False
                C[blocked] = np.inf
            self.cost = CostMatrix(xp.asarray(C))
        else:
            d = 12 if kind == "high" else 2
            x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
            if kind == "far":
                x, y = np.round(x, 2) + 1024, np.round(y, 2) + 1024
            x, y = x.astype(dtype), y.astype(dtype)
            metric = "sqeuclidean" if kind in ("far", "high") else kind
            self.cost = PointCloud(xp.asarray(x), xp.asarray(y), metric)
        self.C = to_numpy(self.cost.to_dense()).astype(float)
        self.n, self.m = self.C.shape
        self.a, self.b = rng.dirichlet(np.ones(self.n)), rng.dirichlet(np.ones(self.m))
        self.f, self.g = size * rng.normal(size=self.n), size * rng.normal(size=self.m)
        self.a, self.b, self.f, self.g = (v.astype(dtype) for v in (self.a, self.b, self.f, self.g))
        self.f += softmin(self.C, self.g, self.b, reg)  # rows near their marginals
        self.rng = rng
        self.gibbs = self.cost.gibbs(reg)

    def of(self, v):
        return self.xp.asarray(np.array(v))

    @property
    def bits(self):
        return self.gibbs.fold(self.of(self.f), self.gibbs.row_offset(self.of(self.a))), self.gibbs.fold(
            self.of(self.g), self.gibbs.column_offset(self.of(self.b))
        )

    @property
    def log_plan(self):
        with np.errstate(divide="ignore"):
            logs = np.log(self.a.astype(float))[:, None] + np.log(self.b.astype(float))
        return logs + (self.f.astype(float)[:, None] + self.g - self.C) / self.reg

    @property
    def P(self):  # noqa: N802
        return np.exp(self.log_plan)

    def zero_weights(self):
        self.a[self.rng.integers(self.n)] = 0
        self.b[self.rng.integers(self.m)] = 0
        self.a[0] = self.b[-1] = 0.5


def check_everything(p):
    gibbs, (F, G), P = p.gibbs, p.bits, p.P
    # an exponent is a sum of terms of this size, each with a rounding error, and so are the logarithms
    size = sum(np.abs(v[np.isfinite(v)]).max() for v in (to_numpy(F), to_numpy(G), p.C / p.reg))
    tol = float(np.finfo(p.dtype).eps) * (40 + 6 * size)
    np.testing.assert_allclose(to_numpy(gibbs.plan(F, G)), P, rtol=tol, atol=1e-37)
    rows, columns, linear = gibbs.statistics(F, G)
    np.testing.assert_allclose(to_numpy(rows), P.sum(1), rtol=tol)
    np.testing.assert_allclose(to_numpy(columns), P.sum(0), rtol=tol, atol=1e-36)
    weighted = np.where(P > 0, np.where(P > 0, p.C, 0) * P, 0)
    assert linear == pytest.approx(weighted.sum(), rel=tol, abs=tol * np.abs(weighted).sum() + tol * P.sum())

    with np.errstate(divide="ignore"):
        along, across = softmin(p.C, p.g, p.b, p.reg), softmin(p.C.T, p.f, p.a, p.reg)
    np.testing.assert_allclose(to_numpy(gibbs.softmin_rows(p.of(p.g), p.of(p.b))), along, rtol=tol, atol=tol)
    np.testing.assert_allclose(to_numpy(gibbs.softmin_columns(p.of(p.f), p.of(p.a))), across, rtol=tol, atol=tol)

    V, U = p.rng.normal(size=(p.m, 3)).astype(p.dtype), p.rng.normal(size=(p.n, 2)).astype(p.dtype)
    PV, PTU = gibbs.products(F, G, p.of(V), p.of(U))
    assert (np.abs(to_numpy(PV) - P @ V) <= tol * (P @ np.abs(V)) + 1e-37).all()
    assert (np.abs(to_numpy(PTU) - P.T @ U) <= tol * (P.T @ np.abs(U)) + 1e-37).all()
    assert gibbs.products(F, G, p.of(V))[1] is None
    assert gibbs.products(F, G, None, p.of(U))[0] is None

    v, w = p.rng.normal(size=p.m), p.rng.normal(size=p.n)
    t, back = gibbs.pair(F, G, p.of(v), p.of(w))
    assert (np.abs(to_numpy(t) - P @ v) <= tol * (P @ np.abs(v)) + 1e-37).all()
    size = P.T @ (np.abs(w) * (P @ np.abs(v)))
    assert (np.abs(to_numpy(back) - P.T @ (w * (P @ v))) <= 2 * tol * size + 1e-37).all()

    e = p.log_plan / np.log(2)
    mass = to_numpy(gibbs.mass_histogram(F, G))
    assert mass.sum() == pytest.approx(P.sum(), rel=tol)
    k = min(3, p.m)
    kth = -np.sort(-e, axis=1)[:, k - 1]
    np.testing.assert_allclose(to_numpy(gibbs.row_kth_exponent(F, G, k)), kth, rtol=tol, atol=100 * tol)

    thresholds = np.full(p.n, np.median(e[np.isfinite(e)])) - 1.0
    if (np.abs(e - thresholds[:, None]) > 1e-3).all():
        data, indices, indptr = map(to_numpy, gibbs.csr(F, G, p.of(thresholds.astype(p.dtype))))
        keep = (e >= thresholds[:, None]) & (e >= np.finfo(p.dtype).minexp)
        np.testing.assert_array_equal(np.diff(indptr), keep.sum(axis=1))
        np.testing.assert_array_equal(indices, np.nonzero(keep)[1])
        np.testing.assert_allclose(data, P[keep], rtol=tol)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", COSTS)
@settings(max_examples=12)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 5, 11]),
    st.sampled_from([1, 3, 4, 17]),
    st.sampled_from([0.05, 0.3, 20.0]),
    st.sampled_from(["float64", "float32"]),
)
def test_against_dense_sums(library, kind, seed, n, m, reg, dtype):
    xp = importlib.import_module(library)
    if kind is chebyshev and library != "numpy":
        return
    check_everything(Problem(kind, xp, seed, n, m, dtype, reg, size=0.2 * min(1, reg)))


class OtherDevice:
    """The strict namespace, with arrays on a device that is not the default one and refuses to mix with it."""

    def __getattr__(self, name):
        return getattr(array_api_strict, name)

    def asarray(self, x, **options):
        return array_api_strict.asarray(x, device=array_api_strict.Device("device1"), **options)


@pytest.mark.parametrize("kind", COSTS)
def test_on_another_device(kind):
    if kind is chebyshev:
        pytest.skip("a user's metric needs NumPy")
    p = Problem(kind, OtherDevice(), 6)
    check_everything(p)
    F, G = p.bits
    p.gibbs.iterate(F, G, p.of(p.a), p.of(p.b), p.bits, (0.9, 0.8), 1.2)
    assert F.device == p.cost.device == array_api_strict.Device("device1")
    for scale in ("mean", "median", "max"):
        cost_scale(p.cost, scale)


@pytest.mark.parametrize("kind", COSTS)
def test_in_tiles(kind, monkeypatch):
    """Costs that are not handed over whole come in tiles of rows."""
    monkeypatch.setattr(gibbs_module, "TILE_ENTRIES", 30)
    check_everything(Problem(kind, np, 5, 17, 13))


@pytest.mark.parametrize("library", LIBRARIES)
def test_grid_with_zero_weights(library):
    p = Problem("grid", importlib.import_module(library), 3, 9, 4)
    p.zero_weights()
    check_everything(p)


def iterated(p, damping=(1.0, 1.0), relaxation=1.0):
    """One iteration in cost units, as the formulas say."""
    with np.errstate(divide="ignore"):
        f = damping[0] * softmin(p.C, p.g, p.b, p.reg)
        f = p.f + relaxation * (f - p.f)
        g = damping[1] * softmin(p.C.T, f, p.a, p.reg)
    return f, p.g + relaxation * (g - p.g)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("damping", [(1.0, 1.0), (0.7, 0.95)])
@pytest.mark.parametrize("relaxation", [1.0, 1.4])
def test_iterate(library, kind, damping, relaxation):
    if kind is chebyshev and library != "numpy":
        pytest.skip("a user's metric needs NumPy")
    p = Problem(kind, importlib.import_module(library), 8)
    offsets = p.gibbs.row_offset(p.of(p.a)), p.gibbs.column_offset(p.of(p.b))
    F, G = p.bits
    f, g = iterated(p, damping, relaxation)
    wanted = p.a * np.exp(-p.f * (1 / damping[0] - 1) / p.reg)
    row_error, column_error = p.gibbs.iterate(F, G, p.of(p.a), p.of(p.b), offsets, damping, relaxation)
    np.testing.assert_allclose(to_numpy(p.gibbs.unfold(F, offsets[0])), f, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(to_numpy(p.gibbs.unfold(G, offsets[1])), g, rtol=1e-9, atol=1e-11)
    assert row_error == pytest.approx(np.abs(p.P.sum(1) - wanted).sum(), rel=1e-9)
    p.f = f
    wanted = p.b * np.exp(-p.g * (1 / damping[1] - 1) / p.reg)
    assert column_error == pytest.approx(np.abs(p.P.sum(0) - wanted).sum(), rel=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", COSTS)
def test_rows(library, kind):
    if kind is chebyshev and library != "numpy":
        pytest.skip("a user's metric needs NumPy")
    p = Problem(kind, importlib.import_module(library), 8)
    offset = p.gibbs.row_offset(p.of(p.a))
    F, G = p.bits
    error, sums = p.gibbs.rows(F, G, p.of(p.a), p.of(p.b), (offset, p.gibbs.column_offset(p.of(p.b))))
    assert error == pytest.approx(np.abs(p.P.sum(1) - p.a).sum(), rel=1e-9)
    p.f = iterated(p)[0]
    np.testing.assert_allclose(to_numpy(p.gibbs.unfold(F, offset)), p.f, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(to_numpy(sums), p.P.sum(0), rtol=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_iterate_where_all_powers_underflow(library, kind, dtype):
    """From zero at a regularisation a millionth of the cost, one iteration gives what exact formulas give."""
    if kind is chebyshev and library != "numpy":
        pytest.skip("a user's metric needs NumPy")
    reg = 1e-5 if dtype == "float64" else 3e-4
    p = Problem(kind, importlib.import_module(library), 4, dtype=dtype, reg=reg, size=0.0)
    p.f, p.g = p.f - 10, p.g - 10  # no row, and then hardly any column, within the range of 2**x
    offsets = p.gibbs.row_offset(p.of(p.a)), p.gibbs.column_offset(p.of(p.b))
    F, G = p.bits
    p.gibbs.iterate(F, G, p.of(p.a), p.of(p.b), offsets)
    f, g = iterated(p)
    tol = 1e-9 if dtype == "float64" else 3e-4
    np.testing.assert_allclose(to_numpy(p.gibbs.unfold(F, offsets[0])), f, rtol=tol, atol=tol)
    np.testing.assert_allclose(to_numpy(p.gibbs.unfold(G, offsets[1])), g, rtol=tol, atol=tol)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_iterate_from_anywhere_is_finite(library, kind, dtype):
    """Unbalanced, from potentials far from their optimum: nothing overflows, and the limit is reached."""
    if kind is chebyshev and library != "numpy":
        pytest.skip("a user's metric needs NumPy")
    p = Problem(kind, importlib.import_module(library), 4, dtype=dtype, reg=1e-2, size=0.0)
    offsets = p.gibbs.row_offset(p.of(p.a)), p.gibbs.column_offset(p.of(p.b))
    p.f, p.g = p.f - 100, p.g - 100
    F, G = p.bits
    for _ in range(200):
        errors = p.gibbs.iterate(F, G, p.of(p.a), p.of(p.b), offsets, (0.8, 0.7))
        assert np.isfinite(errors).all()
    p.f, p.g = to_numpy(p.gibbs.unfold(F, offsets[0])), to_numpy(p.gibbs.unfold(G, offsets[1]))
    f, g = iterated(p, (0.8, 0.7))
    tol = 1e-9 if dtype == "float64" else 1e-3
    np.testing.assert_allclose(f, p.f, rtol=tol, atol=tol)
    np.testing.assert_allclose(g, p.g, rtol=tol, atol=tol)


def test_grid_iteration_with_zero_weights():
    p = Problem("grid", np, 3, 9, 4)
    p.zero_weights()
    offsets = p.gibbs.row_offset(p.a), p.gibbs.column_offset(p.b)
    F, G = p.bits
    row_error, column_error = p.gibbs.iterate(F, G, p.a, p.b, offsets, (0.9, 1.0), 1.3)
    assert np.isfinite([row_error, column_error]).all()
    f, g = iterated(p, (0.9, 1.0), 1.3)
    for bits, offset, weights, expected in ((F, offsets[0], p.a, f), (G, offsets[1], p.b, g)):
        kept = weights > 0
        np.testing.assert_allclose(p.gibbs.unfold(bits[kept], offset[kept]), expected[kept], rtol=1e-9, atol=1e-11)
        assert (bits[~kept] == -np.inf).all()


def test_grid_overflow_is_finite():
    p = Problem("grid", np, 3, 9, 4)
    F, G = p.bits
    offsets = F.copy(), G.copy()
    F += 5000
    errors = p.gibbs.iterate(F, G, p.a, p.b, offsets, (0.5, 1.0))
    assert np.isfinite(errors).all()
    assert errors[0] > 1e280
    assert np.isfinite(F).all()
    assert np.isfinite(G).all()


@pytest.mark.parametrize("kind", COSTS)
def test_nothing_is_written_to(kind):
    p = Problem(kind, np, 2)
    given = {key: value for key, value in vars(p.cost).items() if isinstance(value, np.ndarray)}
    before = {key: value.copy() for key, value in given.items()}
    F, G = p.bits
    states = F.copy(), G.copy()
    check_everything(p)
    p.gibbs.iterate(F.copy(), G.copy(), p.a, p.b, (F, G))
    np.testing.assert_array_equal(F, states[0])
    np.testing.assert_array_equal(G, states[1])
    for key, value in given.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("make", [lambda x: CostMatrix(np.abs(x)), lambda x: Grid((31, 31))])
def test_bits_do_not_depend_on_threads(make):
    cost = make(np.random.default_rng(0).normal(size=(901, 1200)))
    n, m = cost.shape
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            gibbs = cost.gibbs(0.2)
            a, b = np.full(n, 1 / n), np.full(m, 1 / m)
            F, G = gibbs.row_offset(a), gibbs.column_offset(b)
            errors = gibbs.iterate(F, G, a, b, (F.copy(), G.copy()))
            results.append([errors, F, G, *gibbs.statistics(F, G), *gibbs.products(F, G, b[:, None], a[:, None])])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for u, v in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(u, v)
