"""Grid: its entries, and one-dimensional passes against dense sums."""

import itertools

import array_api_strict
import numpy as np
import pytest
import scipy.sparse

from ot_numba import Grid
from ot_numba.arrays import to_numpy
from ot_numba.costs import CostMatrix

GRIDS = [
    ((5,), None),
    ((1,), None),
    ((1, 4, 1), None),
    ((3, 4), None),
    ((2, 3, 4), None),
    (([0.0, 0.3, 2.0],), ([1.0, -1.0],)),
    ((3, [5.0, -1.0]), ([0.1, 0.9, 0.2, 0.4], 1)),
    ((2, [0.0, 0.5], 3), ([0.2], 2, [0.1, 0.7])),
]


def dense_cost(x, y, power):
    """Costs between nodes in C order, pair by pair."""

    def nodes(axes):
        axes = [np.linspace(0, 1, axis) if isinstance(axis, int) else axis for axis in axes]
        return np.array(list(itertools.product(*axes)))

    difference = nodes(x)[:, None, :] - nodes(x if y is None else y)
    return (np.abs(difference) ** power).sum(axis=-1)


@pytest.mark.parametrize(("x", "y"), GRIDS)
@pytest.mark.parametrize("power", [1, 2, 1.5, 0.5])
def test_entries(x, y, power):
    grid = Grid(x, y, power=power)
    expected = dense_cost(x, y, power)
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid.to_dense(), expected, rtol=1e-14, atol=1e-15)
    lo = grid.shape[0] // 2
    np.testing.assert_array_equal(grid.rows(lo, lo + 1), grid.to_dense()[lo : lo + 1])
    np.testing.assert_array_equal(grid.T.to_dense(), grid.to_dense().T)
    low, high = grid.bounds()
    assert low == pytest.approx(expected.min(), rel=1e-14, abs=1e-15)
    assert high == pytest.approx(expected.max(), rel=1e-14)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(expected.shape[0], size=4), rng.integers(expected.shape[1], size=3)
    for r, c in ((rows, columns), (rows, None), (None, columns)):
        part = grid.subset(r, c)
        assert isinstance(part, CostMatrix)
        kept = expected if r is None else expected[r]
        np.testing.assert_allclose(part.to_dense(), kept if c is None else kept[:, c], rtol=1e-14, atol=1e-15)
    assert grid.subset(None, None) is grid
    for v in (rng.normal(size=expected.shape[1]), rng.normal(size=(expected.shape[1], 2))):
        np.testing.assert_allclose(grid.apply(v), expected @ v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_axes_as_arrays(xp, dtype):
    u, v = np.array([0.0, 1.0, 3.0]), np.array([2.0, 0.5])
    options = {"dtype": getattr(xp, dtype)}
    grid = Grid([xp.asarray(u, **options), 2], (xp.asarray(v, **options), [0.5, 0.25, 1.0]))
    assert grid.dtype == getattr(xp, dtype)
    assert grid.xp is xp
    assert grid.shape == (6, 6)
    expected = dense_cost((u, 2), (v, [0.5, 0.25, 1.0]), 2)
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(to_numpy(grid.to_dense()), expected, rtol=tolerance)
    np.testing.assert_allclose(to_numpy(grid.T.to_dense()), expected.T, rtol=tolerance)
    w = np.arange(6.0)
    np.testing.assert_allclose(to_numpy(grid.apply(xp.asarray(w))), expected @ w, rtol=tolerance)
    part = grid.subset(xp.asarray([5, 0]), xp.asarray([1]))
    np.testing.assert_allclose(to_numpy(part.to_dense()), expected[[5, 0]][:, [1]], rtol=tolerance)


@pytest.mark.parametrize(
    "axis",
    [
        [0, 1, 3],
        np.array([0, 1, 3]),
        np.array([0, 1, 3], "float16"),
        np.array([0, 0, 1, 1, 3, 3], float)[::2],
        np.array([0, 1, 3], ">f8"),
        np.array([0, 1, 3], np.longdouble),
    ],
)
def test_accepted(axis):
    before = np.array(axis)
    grid = Grid([axis, 2])
    np.testing.assert_array_equal(grid.to_dense(), dense_cost((np.array([0.0, 1, 3]), 2), None, 2))
    np.testing.assert_array_equal(axis, before)
    grid.gibbs(1.0).statistics(np.zeros(6, grid.dtype), np.zeros(6, grid.dtype))
    np.testing.assert_array_equal(axis, before)


def test_read_only_axis():
    axis = np.array([0.0, 1.0])
    axis.flags.writeable = False
    assert Grid([axis]).to_dense().tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": 5}, TypeError, "x must be a sequence of axes, or of numbers of nodes, got 5"),
        ({"x": np.ones(3)}, TypeError, "x must be a sequence of axes"),
        ({"x": ()}, TypeError, "x must be a sequence of axes"),
        ({"x": "ab"}, TypeError, "x must be a sequence of axes"),
        ({"x": (2,), "y": 3}, TypeError, "y must be a sequence of axes"),
        ({"x": (2, 0)}, ValueError, r"x\[1\] must be >= 1, got 0"),
        ({"x": (2,), "y": (-1,)}, ValueError, r"y\[0\] must be >= 1, got -1"),
        ({"x": (2, 2), "y": (2,)}, ValueError, "x and y must have as many axes, got 2 and 1"),
        ({"x": ([],)}, ValueError, r"x\[0\] is empty"),
        ({"x": ([0.0, np.nan],)}, ValueError, r"x\[0\] has NaN"),
        ({"x": (2,), "y": ([np.inf],)}, ValueError, r"y\[0\] has inf"),
        ({"x": ([[0.0]],)}, ValueError, r"x\[0\] must have 1 dimension"),
        ({"x": (2.5,)}, ValueError, r"x\[0\] must have 1 dimension"),
        ({"x": (True,)}, ValueError, r"x\[0\] must have 1 dimension"),
        ({"x": ([1j],)}, TypeError, r"x\[0\] must hold real numbers"),
        ({"x": ("ab",)}, TypeError, r"x\[0\]"),
        ({"x": (scipy.sparse.eye_array(2),)}, TypeError, r"x\[0\]: sparse"),
        ({"x": (np.ones(2), array_api_strict.ones(2))}, TypeError, "mix arrays of"),
        ({"x": (2,), "power": 0}, ValueError, "power must be > 0 and < inf, got 0"),
        ({"x": (2,), "power": np.inf}, ValueError, "power must be > 0 and < inf"),
        ({"x": (2,), "power": np.nan}, ValueError, "power must be a number"),
        ({"x": (2,), "power": "2"}, TypeError, "power must be a real number"),
        ({"x": ([-1e200, 1e200],)}, ValueError, "axis 0 reaches 1e[+]200: the cost overflows for power=2"),
        ({"x": (2, np.array([0, 1e30], "float32"))}, ValueError, "axis 1 reaches 1e[+]30"),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        Grid(**options)


def test_apply_refuses():
    with pytest.raises(ValueError, match="v must have one row for each of 4 targets"):
        Grid((2, 2)).apply(np.ones(3))
