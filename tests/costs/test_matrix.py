"""CostMatrix, and what every cost inherits."""

import array_api_strict
import numpy as np
import pytest
import scipy.sparse

import ot_numba
from ot_numba import CostMatrix
from ot_numba.arrays import to_numpy

C = np.array([[0.0, 2.0, 5.0], [3.0, -1.0, 4.0]])


def test_attributes(xp):
    cost = CostMatrix(xp.asarray(C))
    assert cost.shape == (2, 3)
    assert cost.xp is xp
    assert cost.dtype == xp.float64
    assert cost.bounds() == (-1.0, 5.0)
    assert cost.finite
    np.testing.assert_array_equal(to_numpy(cost.to_dense()), C)
    np.testing.assert_array_equal(to_numpy(cost.rows(1, 2)), C[1:])


def strided(x):
    return np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (C.tolist(), "float64"),
        (tuple(map(tuple, C)), "float64"),
        (C.astype(int), "float64"),
        (C > 1, "float64"),
        (np.asfortranarray(C), "float64"),
        (strided(C), "float64"),
        (C[::-1, ::-1], "float64"),
        (C.astype(">f8"), "float64"),
        (read_only(C), "float64"),
        (C.astype(np.longdouble), "float64"),
        (C.astype("float32"), "float32"),
        (read_only(C.astype("float32")), "float32"),
        (C.astype("float16"), "float32"),
        (np.broadcast_to(C[0], (4, 3)), "float64"),
        (C[:1, :1], "float64"),
    ],
)
def test_accepted(given, dtype):
    cost = CostMatrix(given)
    expected = np.asarray(given).astype(dtype)
    assert cost.dtype == dtype
    np.testing.assert_array_equal(cost.to_dense(), expected)
    assert cost.C.flags.c_contiguous
    assert cost.C.dtype.isnative
    n, m = expected.shape
    P = cost.gibbs(1.0).plan(np.zeros(n, dtype), np.zeros(m, dtype))
    np.testing.assert_allclose(P, np.exp(-expected.astype(float)), rtol=1e-5)


def test_not_copied_and_not_written_to():
    x = C.copy()
    cost = CostMatrix(x)
    assert np.shares_memory(cost.C, x)
    dense = cost.to_dense()
    dense[:] = 7
    cost.T.C[:] = 7
    cost.subset(np.array([0]), None).C[:] = 7
    np.testing.assert_array_equal(x, C)


def test_read_only_memory_is_not_handed_out():
    x = read_only(C)
    dense = CostMatrix(x).to_dense()
    assert not np.shares_memory(dense, x)
    assert dense.flags.writeable


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.array([[0.0, np.nan]]), ValueError, "C has NaN"),
        (np.array([[0.0, -np.inf]]), ValueError, "C has -inf"),
        (np.full((2, 2), np.inf), ValueError, "C must have at least one finite entry"),
        (np.zeros(3), ValueError, "C must have 2 dimension"),
        (np.zeros((2, 2, 2)), ValueError, "C must have 2 dimension"),
        (3.0, ValueError, "C must have 2 dimension"),
        (np.zeros((0, 3)), ValueError, "C is empty"),
        ([[]], ValueError, "C is empty"),
        ([[1.0], [1.0, 2.0]], ValueError, "C cannot be made an array"),
        (C.astype(complex), TypeError, "C must hold real numbers"),
        ([["a", "b"]], TypeError, "C must hold real numbers"),
        (np.array([[None]]), TypeError, "C must hold real numbers"),
        (None, TypeError, "C must hold real numbers"),
        ("cost", TypeError, "C"),
        (scipy.sparse.csr_array(C), TypeError, "C: sparse"),
        (np.ma.masked_array(C), TypeError, "C: masked"),
        (np.matrix(C), TypeError, r"C: numpy\.matrix"),
    ],
)
def test_refused(given, error, message):
    with pytest.raises(error, match=message):
        CostMatrix(given)


def test_infinite_costs(xp):
    x = C.copy()
    x[0, 1] = x[1, 0] = np.inf
    cost = CostMatrix(xp.asarray(x))
    assert not cost.finite
    assert cost.bounds() == (-1.0, 5.0)
    with pytest.raises(ValueError, match="forbidden"):
        cost.apply(xp.ones(3))
    empty = cost.subset(xp.asarray([0]), xp.asarray([1]))  # a subset may have no finite entry
    assert empty.bounds() == (np.inf, np.inf)


def test_subset_and_transpose(xp):
    cost = CostMatrix(xp.asarray(C))
    rows, columns = xp.asarray([1, 1]), xp.asarray([2, 0])
    np.testing.assert_array_equal(to_numpy(cost.subset(rows, columns).to_dense()), C[[1, 1]][:, [2, 0]])
    np.testing.assert_array_equal(to_numpy(cost.subset(rows, None).to_dense()), C[[1, 1]])
    np.testing.assert_array_equal(to_numpy(cost.subset(None, columns).to_dense()), C[:, [2, 0]])
    assert cost.subset(None, None) is cost
    assert cost.T.shape == (3, 2)
    np.testing.assert_array_equal(to_numpy(cost.T.to_dense()), C.T)
    np.testing.assert_array_equal(to_numpy(cost.T.T.to_dense()), C)


def test_apply(xp):
    cost = CostMatrix(xp.asarray(C, dtype=xp.float32))
    v = np.arange(6.0).reshape(3, 2) - 2
    for given in (xp.asarray(v), xp.asarray(v, dtype=xp.float32)):
        out = cost.apply(given)
        assert out.dtype == xp.float64
        np.testing.assert_allclose(to_numpy(out), C @ v, rtol=1e-6)
    assert to_numpy(cost.apply([1, 0, 1])).tolist() == [5.0, 7.0]


@pytest.mark.parametrize(
    ("v", "error"),
    [
        (np.ones(2), ValueError),
        (np.ones((3, 1, 1)), ValueError),
        ([1.0, np.nan, 0.0], ValueError),
        (np.ones(3, complex), TypeError),
        (array_api_strict.ones(3), TypeError),
    ],
)
def test_apply_refuses(v, error):
    with pytest.raises(error, match=r"^v "):
        CostMatrix(C).apply(v)


def test_apply_in_tiles(monkeypatch):
    monkeypatch.setattr(ot_numba.costs.base, "TILE_ENTRIES", 4)
    x = np.arange(35.0).reshape(7, 5)
    np.testing.assert_allclose(CostMatrix(x).apply(np.arange(5.0)), x @ np.arange(5.0), rtol=1e-14)
