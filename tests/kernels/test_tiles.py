"""Passes over tiles against the reference, which looks at every exponent."""

import importlib
import inspect

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ot_numba.arrays.namespaces import to_numpy
from ot_numba.kernels.contract import DOT, SIDE, CostData, Tiles
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads

CPU = importlib.import_module("ot_numba.kernels.cpu.tiles")
GENERIC = importlib.import_module("ot_numba.kernels.generic.tiles")
NAMES = ("row_peaks", "active_tiles", "sinkhorn_rows", "plan_pair", "store_tiles", "stored_square")
SIZES = st.sampled_from([1, 2, 15, 16, 17, 50, 64, 65, 130])


def build(seed, n, m, d, dtype="float64", spread=30.0, clusters=4):
    """Points in clusters next to each other, with potentials that make exponents of about 0 at most in each row."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, d))
    x, y = (
        centres[np.sort(rng.integers(clusters, size=size))] + 0.1 * rng.normal(size=(size, d)) for size in (n, m)
    )
    x *= spread
    G = -0.5 * spread * (y**2).sum(1) + rng.normal(size=m)
    F = -(x @ y.T + G).max(1) + rng.normal(size=n)
    x, y, F, G = (v.astype(dtype) for v in (x, np.ascontiguousarray(y.T), F, G))
    return CostData(DOT, x, y, 1.0), F, G


cases = st.builds(
    build,
    st.integers(0, 2**32 - 1),
    SIZES,
    SIZES,
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["float64", "float32"]),
    st.sampled_from([1.0, 30.0, 1000.0]),
)


def exponents(cost, F, G):
    return F[:, None].astype(float) + G + cost.x.astype(float) @ cost.y.astype(float)


def rounding(cost, F, G):
    """Bound of the error of an exponent."""
    size = np.abs(cost.x).astype(float) @ np.abs(cost.y).astype(float)
    return 8 * np.finfo(F.dtype).eps * float(np.max(size) + np.abs(F).max() + np.abs(G).max())


def some_tiles(seed, n, m, share=0.4):
    rng = np.random.default_rng(seed)
    return Tiles.of(np, rng.random((-(-n // SIDE), -(-m // SIDE))) < share, (n, m))


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_same(name):
    def parameters(module):
        return [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]

    assert parameters(CPU) == parameters(GENERIC)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (16, 16), (17, 40), (33, 15)])
def test_tiles_count_their_entries(n, m):
    tiles = some_tiles(n, n, m)
    assert tiles.active.any(axis=1).all()
    inside = np.repeat(np.repeat(tiles.active, SIDE, axis=0), SIDE, axis=1)[:n, :m]
    assert tiles.entries == inside.sum()
    ends = np.arange(0, n + SIDE, SIDE)[: len(tiles.starts)]
    np.testing.assert_array_equal(tiles.starts, [inside[:end].sum() for end in ends])


@given(case=cases)
@settings(max_examples=60)
def test_row_peaks_are_exponents_of_their_rows(case):
    cost, F, G = case
    z = exponents(cost, np.zeros_like(F), G)
    slack = rounding(cost, F, G)
    peaks = CPU.row_peaks(cost, G)
    assert peaks.dtype == F.dtype
    assert (np.abs(z - peaks[:, None]).min(axis=1) <= slack).all()
    np.testing.assert_allclose(GENERIC.row_peaks(cost, G), z.max(axis=1), rtol=0, atol=slack)


@given(case=cases, bits=st.sampled_from([5.0, 60.0, 500.0]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_no_tile_that_counts_is_left_out(case, bits, seed):
    cost, F, G = case
    rng = np.random.default_rng(seed)
    thresholds = [(-bits * rng.random(v.size)).astype(v.dtype) for v in (F, G)]
    slack = F.dtype.type(rounding(cost, F, G))
    needed = GENERIC.active_tiles(cost, F, G, *(t + slack for t in thresholds))
    found = CPU.active_tiles(cost, F, G, *thresholds)
    lonely = ~(GENERIC.active_tiles(cost, F, G, *(t - slack for t in thresholds)).active).all(axis=1)
    assert (found.active | ~needed.active)[lonely].all()
    assert found.active.any(axis=1).all()


def test_minus_infinity_makes_no_nan():
    cost, F, G = build(1, 40, 70, 2)
    F[3], G[5:30] = -np.inf, -np.inf
    thresholds = F - 60, G - 60
    needed = GENERIC.active_tiles(cost, F, G, *thresholds)
    assert (CPU.active_tiles(cost, F, G, *thresholds).active | ~needed.active).all()
    assert np.isfinite(CPU.row_peaks(cost, G)).all()


def test_far_tiles_are_left_out():
    cost, F, G = build(0, 640, 640, 2, spread=3000.0, clusters=8)
    tiles = CPU.active_tiles(cost, F, G, np.full(640, -60.0), np.full(640, -60.0))
    assert tiles.entries < 0.5 * 640**2


def calls(cost, F, G, tiles, seed):
    """Every pass by name, as a function of the module: what it returns, as arrays."""
    rng = np.random.default_rng(seed)
    n, m = F.size, G.size
    a, offset = rng.random(n) + 0.1, F + rng.normal(size=n)
    a, offset = a.astype(F.dtype), offset.astype(F.dtype)
    v, w = rng.normal(size=m), rng.normal(size=n)

    def sinkhorn_rows(module, damping=1.0, relaxation=1.0):
        new = F.copy()
        error, sums = module.sinkhorn_rows(cost, tiles, new, G, a, offset, damping, relaxation)
        return np.array([error]), sums, new

    def stored_square(module):
        values = module.store_tiles(cost, tiles, F, G)
        assert values.dtype == np.float32
        return values, module.stored_square(values, tiles, n, v.astype("f"))

    return {
        "sinkhorn_rows": sinkhorn_rows,
        "damped": lambda module: sinkhorn_rows(module, 0.7, 1.3),
        "plan_pair": lambda module: module.plan_pair(cost, tiles, F, G, v, w),
        "stored_square": stored_square,
    }


@given(case=cases, seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=60)
def test_passes_agree_with_the_reference(case, seed, share):
    cost, F, G = case
    tiles = some_tiles(seed, F.size, G.size, share)
    slack = rounding(cost, F, G) + 50 * np.finfo(F.dtype).eps * G.size
    for name, call in calls(cost, F, G, tiles, seed).items():
        relative = max(slack, 1e-5) if name == "stored_square" else slack
        for u, v in zip(call(CPU), call(GENERIC), strict=True):
            scale = np.abs(v).max(initial=0) + (F.size if name == "plan_pair" else 1)
            if relative < 0.01:
                np.testing.assert_allclose(u, v, rtol=8 * relative, atol=8 * relative * scale, err_msg=name)


@pytest.mark.parametrize("shift", [-3000.0, 3000.0])
def test_rows_out_of_range_are_brought_back(shift):
    cost, F, G = build(4, 37, 90, 2)
    tiles = some_tiles(4, 37, 90)
    F[::3] += shift
    a, offset = np.full(37, 1 / 37), np.zeros(37)
    results = []
    for module in (CPU, GENERIC):
        new = F.copy()
        _, sums = module.sinkhorn_rows(cost, tiles, new, G, a, offset)
        results.append((new, sums))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-9)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-9)
    assert results[0][1].sum() == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bits_do_not_depend_on_threads(dtype):
    n, m = 1701, 1031
    cost, F, G = build(7, n, m, 2, dtype)
    tiles = some_tiles(7, n, m, 0.6)
    assert tiles.entries > 4 * CPU.BLOCK_ENTRIES
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            results.append([call(CPU) for call in calls(cost, F, G, tiles, 7).values()])
            results[-1].append((CPU.row_peaks(cost, G), CPU.active_tiles(cost, F, G, F - 30, G - 30).active))
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            for u, v in zip(first, second, strict=True):
                np.testing.assert_array_equal(u, v)


def test_reference_runs_on_the_array_standard():
    xp = array_api_strict
    cost, F, G = build(3, 33, 40, 2)
    strict = CostData(DOT, xp.asarray(cost.x), xp.asarray(cost.y), 1.0)
    sF, sG = xp.asarray(F), xp.asarray(G)
    thresholds = F - 20, G - 20
    expected = GENERIC.active_tiles(cost, F, G, *thresholds)
    tiles = GENERIC.active_tiles(strict, sF, sG, *map(xp.asarray, thresholds))
    np.testing.assert_array_equal(to_numpy(tiles.active), expected.active)
    np.testing.assert_array_equal(to_numpy(tiles.starts), expected.starts)
    values = GENERIC.store_tiles(strict, tiles, sF, sG)
    square = GENERIC.stored_square(values, tiles, 33, xp.asarray(np.ones(40, "f")))
    np.testing.assert_allclose(
        to_numpy(square),
        GENERIC.stored_square(GENERIC.store_tiles(cost, expected, F, G), expected, 33, np.ones(40, "f")),
        rtol=1e-5,
    )
