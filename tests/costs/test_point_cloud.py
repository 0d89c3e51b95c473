"""PointCloud: every metric against SciPy, far from the origin, and on inputs of every kind."""

import subprocess
import sys

import array_api_strict
import numba
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist

from ot_numba import PointCloud
from ot_numba.arrays import to_numpy
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads

METRICS = ["sqeuclidean", "euclidean", "cityblock", "cosine", 1.5, 0.5, 3]


def reference(x, y, metric):
    """Costs by SciPy, in float64."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    return cdist(x, y, metric) if isinstance(metric, str) else cdist(x, y) ** metric


def clouds(n=23, m=17, d=2, seed=0, dtype="float64", offset=1.0):
    rng = np.random.default_rng(seed)
    return (offset + rng.normal(size=(n, d))).astype(dtype), (offset + rng.normal(size=(m, d))).astype(dtype)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 2, 3, 5, 9, 64])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_against_scipy(xp, metric, d, dtype):
    x, y = clouds(d=d, dtype=dtype)
    cost = PointCloud(xp.asarray(x), xp.asarray(y), metric)
    expected = reference(x, y, metric)
    dense = to_numpy(cost.to_dense())
    assert cost.shape == (23, 17)
    assert dense.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(dense, expected, rtol=20 * eps, atol=d * 20 * eps)
    np.testing.assert_allclose(to_numpy(cost.rows(3, 9)), dense[3:9], rtol=4 * eps, atol=4 * eps)
    low, high = cost.bounds()
    assert low <= dense.min()
    assert dense.max() <= high * (1 + 4 * eps)

    rows, columns = xp.asarray([4, 0, 4]), xp.asarray([1, 16])
    part = to_numpy(cost.subset(rows, columns).to_dense())
    np.testing.assert_allclose(part, expected[[4, 0, 4]][:, [1, 16]], rtol=20 * eps, atol=d * 20 * eps)
    transposed = to_numpy(cost.T.to_dense())
    assert cost.T.shape == (17, 23)
    np.testing.assert_allclose(transposed, expected.T, rtol=20 * eps, atol=d * 20 * eps)
    v = np.random.default_rng(1).normal(size=(17, 2))
    out = cost.apply(xp.asarray(v))
    assert out.dtype == xp.float64
    error = np.abs(to_numpy(out) - expected @ v)
    assert (error <= 30 * eps * ((expected + d) @ np.abs(v))).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 2, 9])
def test_one_cloud(xp, metric, d):
    x, _ = clouds(d=d)
    cost = PointCloud(xp.asarray(x), metric=metric)
    dense = to_numpy(cost.to_dense())
    assert cost.shape == (23, 23)
    np.testing.assert_allclose(dense, reference(x, x, metric), rtol=1e-13, atol=1e-14)
    if metric != "cosine":  # rounds 1 - <x, x>
        assert (np.diag(dense) == 0).all()
        np.testing.assert_array_equal(dense, dense.T)
        np.testing.assert_array_equal(to_numpy(PointCloud(xp.asarray(x), xp.asarray(x), metric).to_dense()), dense)
    assert (dense >= 0).all()


@pytest.mark.parametrize("metric", ["sqeuclidean", "cityblock"])
def test_points_on_the_line(metric):
    x, y = np.array([0.0, 1.0, 3.0]), [2.0, 5.0]
    cost = PointCloud(x, y, metric)
    assert cost.shape == (3, 2)
    assert cost.x.shape == (3, 1)
    np.testing.assert_array_equal(cost.to_dense(), reference(x[:, None], np.array(y)[:, None], metric))


@pytest.mark.parametrize("d", [1, 2, 3, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 5e-5)])
def test_accurate_far_from_the_origin(d, dtype, tolerance):
    """Offset 1e3: what the kernels see loses nothing but the rounding of the input itself."""
    rng = np.random.default_rng(0)
    x, y = (1000 + rng.random((n, d)) for n in (40, 30))
    x, y = (np.ldexp(np.round(np.ldexp(v, 12)), -12).astype(dtype) for v in (x, y))  # exact in float32
    expected = reference(x, y, "sqeuclidean")
    cost = PointCloud(x, y)
    np.testing.assert_allclose(cost.to_dense(), expected, rtol=tolerance / 10, atol=tolerance / 10)
    gibbs = cost.gibbs(0.3)
    F, G = gibbs.row_offset(), gibbs.column_offset()
    np.testing.assert_allclose(gibbs.plan(F, G), np.exp(-expected / 0.3), rtol=d * tolerance)
    np.testing.assert_allclose(
        gibbs.row_logsumexp(G) + F, np.log2(np.exp(-expected / 0.3).sum(axis=1)), atol=d * tolerance
    )


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(METRICS),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e5, 1e30]),
    st.booleans(),
)
@settings(max_examples=60)
def test_scale_of_the_points(seed, n, m, d, metric, size, shift):
    """No metric loses its accuracy at any scale, nor by a shift of the size of the cloud."""
    rng = np.random.default_rng(seed)
    x, y = (size * (shift + rng.normal(size=(k, d))) for k in (n, m))
    dense = PointCloud(x, y, metric).to_dense()
    expected = reference(x, y, metric)
    typical = reference(x - x.mean(0) + size, x - x.mean(0), metric).max() if metric != "cosine" else 1.0
    np.testing.assert_allclose(dense, expected, rtol=1e-11, atol=1e-13 * typical)


@numba.njit
def chebyshev(x, y):
    return np.abs(x - y).max()


@numba.njit
def lopsided(x, y):
    """Not symmetric, may be negative, forbids some pairs."""
    return np.inf if x[0] > y[0] + 1 else (x * x).sum() - y[0]


@numba.njit
def differ(x, y):
    return x[0] != y[0]


def test_user_metric():
    x, y = clouds(d=3)
    cost = PointCloud(x, y, chebyshev)
    expected = cdist(x, y, "chebyshev")
    np.testing.assert_array_equal(cost.to_dense(), expected)
    np.testing.assert_array_equal(cost.T.to_dense(), expected.T)
    assert cost.bounds() == (expected.min(), expected.max())
    assert PointCloud(x.astype("float32"), y.astype("float32"), chebyshev).to_dense().dtype == np.float32
    np.testing.assert_array_equal(PointCloud(x, metric=differ).to_dense(), 1.0 - np.eye(23))


def test_user_metric_that_is_not_symmetric():
    x, y = clouds(d=2, offset=0.0)
    cost = PointCloud(x, y, lopsided)
    expected = np.array([[lopsided(u, v) for v in y] for u in x])
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(cost.to_dense(), expected)
    np.testing.assert_array_equal(cost.T.to_dense(), expected.T)
    np.testing.assert_array_equal(cost.T.T.to_dense(), expected)
    np.testing.assert_array_equal(cost.T.rows(2, 5), expected.T[2:5])
    rows, columns = np.array([3, 0]), np.array([1, 1, 2])
    np.testing.assert_array_equal(cost.subset(rows, columns).to_dense(), expected[rows][:, columns])
    np.testing.assert_array_equal(cost.T.subset(columns, rows).to_dense(), expected[rows][:, columns].T)
    finite = expected[np.isfinite(expected)]
    assert cost.bounds() == (finite.min(), finite.max())


@numba.njit
def returns_nan(x, y):
    return np.sqrt(x[0] - y[0])


@numba.njit
def returns_a_pair(x, y):
    return x[0], y[0]


@numba.njit
def wants_matrices(x, y):
    return (x @ y).trace()


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (lambda x, y: 0.0, TypeError, "metric must be compiled first: pass numba.njit"),
        (np.linalg.norm, TypeError, "metric must be compiled first"),
        (wants_matrices, TypeError, "metric does not compile"),
        (returns_a_pair, TypeError, "metric must return a real number"),
        ("manhattan", ValueError, "metric must be one of 'sqeuclidean'"),
        (0, ValueError, "metric must be > 0"),
        (-1.0, ValueError, "metric must be > 0"),
        (np.nan, ValueError, "metric must be a number"),
        (np.inf, ValueError, "metric must be > 0 and < inf"),
        (True, TypeError, "metric must be a real number"),
        (None, TypeError, "metric must be a real number"),
        (2j, TypeError, "metric must be a real number"),
    ],
)
def test_metric_refused(metric, error, message):
    with pytest.raises(error, match=message):
        PointCloud(np.ones((2, 2)), metric=metric)


def test_user_metric_that_returns_nan():
    with pytest.raises(ValueError, match="metric returned NaN or -inf"):
        PointCloud([1.0, 2.0], metric=returns_nan).to_dense()


def test_user_metric_needs_numpy():
    with pytest.raises(TypeError, match="needs NumPy arrays, got arrays of array_api_strict"):
        PointCloud(array_api_strict.ones((2, 2)), metric=chebyshev)


def test_numbers_that_have_names():
    x, _ = clouds()
    assert PointCloud(x, metric=2).metric == "sqeuclidean"
    assert PointCloud(x, metric=np.float32(1)).metric == "euclidean"
    assert PointCloud(x, metric=2).direct


def test_cosine():
    tiny, huge = np.array([[3e-200, 4e-200]]), np.array([[4e200, -3e200], [6e200, 8e200]])
    np.testing.assert_allclose(PointCloud(tiny, huge, "cosine").to_dense(), [[1.0, 0.0]], atol=1e-15)
    assert PointCloud([[1.0, 2.0]], [[-1.0, -2.0]], "cosine").bounds() == (0.0, 2.0)
    with pytest.raises(ValueError, match="y has a zero vector at index 1"):
        PointCloud(huge, [[1.0, 0.0], [0.0, 0.0]], "cosine")


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", chebyshev])
@pytest.mark.parametrize(
    "change",
    [
        np.ndarray.tolist,
        np.asfortranarray,
        read_only,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(int),
        lambda x: x.astype("uint8"),
    ],
)
def test_accepted(metric, change):
    x, y = np.arange(12.0).reshape(4, 3), np.arange(6.0).reshape(2, 3) ** 2
    before = x.copy(), y.copy()
    cost = PointCloud(change(x), change(y), metric)
    assert cost.dtype == np.float64
    np.testing.assert_array_equal(cost.to_dense(), PointCloud(x, y, metric).to_dense())
    cost.gibbs(1.0).statistics(np.zeros(4), np.zeros(2))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_dtype():
    x = np.ones((2, 2), "float32")
    assert PointCloud(x).dtype == np.float32
    assert PointCloud(x, [[1, 2]]).dtype == np.float32
    assert PointCloud(x, np.ones((1, 2))).dtype == np.float64
    assert PointCloud(x.astype("float16")).dtype == np.float32
    assert PointCloud([[1, 2]], x).dtype == np.float32


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[0.0, np.nan]], ValueError, "{} has NaN"),
        ([[0.0, np.inf]], ValueError, "{} has inf"),
        ([[0.0, -np.inf]], ValueError, "{} has -inf"),
        (np.zeros((0, 2)), ValueError, "{} is empty"),
        (np.zeros((2, 0)), ValueError, "{} is empty"),
        (np.zeros((2, 2, 2)), ValueError, "{} must have 1 or 2 dimension"),
        (1.0, ValueError, "{} must have 1 or 2 dimension"),
        ([[1.0], [1.0, 2.0]], ValueError, "{} cannot be made an array"),
        (np.ones((2, 2), complex), TypeError, "{} must hold real numbers"),
        ([["a", "b"]], TypeError, "{} must hold real numbers"),
        (scipy.sparse.csr_array(np.eye(2)), TypeError, "{}: sparse"),
        (np.ma.masked_array(np.eye(2)), TypeError, "{}: masked"),
        (array_api_strict.ones((2, 2)), TypeError, "mix arrays of array_api_strict and numpy"),
    ],
)
def test_refused(name, value, error, message):
    points = {"x": np.ones((3, 2)), "y": np.ones((4, 2)), name: value}
    with pytest.raises(error, match=message.format(name)):
        PointCloud(**points)


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match="x and y must have the same dimension, got 2 and 3"):
        PointCloud(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="got 1 and 2"):
        PointCloud(np.ones(2), np.ones((2, 2)))


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", 5.0])
def test_overflow_is_refused(metric):
    with pytest.raises(ValueError, match=r"x and y hold coordinates up to 1e\+308: metric .* overflows"):
        PointCloud([[1e308, 0.0]], [[-1e308, 0.0]], metric)
    if metric != "cityblock":
        with pytest.raises(ValueError, match="overflows"):
            PointCloud(np.full((2, 2), 1e20, "float32"), metric=metric)
    assert np.isfinite(PointCloud(np.full((2, 2), 1e5, "float32"), metric=metric).to_dense()).all()


@pytest.mark.parametrize("metric", [*METRICS, chebyshev])
def test_bits_do_not_depend_on_threads(metric):
    x, y = clouds(901, 1200, 3)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            cost = PointCloud(x, y, metric)
            gibbs = cost.gibbs(0.5)
            F, G = np.zeros(901), np.zeros(1200)
            results.append([cost.to_dense(), cost.apply(y[:, 0]), *gibbs.statistics(F, G), gibbs.row_logsumexp(G)])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for u, v in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(u, v)


MEMORY = """
import resource, sys
import numpy as np
from ot_numba import PointCloud, cost_scale
n, metric, d = int(sys.argv[3]), sys.argv[1], int(sys.argv[2])
metric = float(metric) if metric[0].isdigit() else metric
rng = np.random.default_rng(0)
def work(n):
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d))
    cost = PointCloud(x, y, metric)
    gibbs = cost.gibbs(1.0)
    a = np.full(n, 1 / n)
    F, G = gibbs.row_offset(a), gibbs.column_offset(a)
    offsets = F.copy(), G.copy()
    gibbs.iterate(F, G, a, a, offsets)
    gibbs.statistics(F, G); gibbs.softmin_rows(a, a); gibbs.softmin_columns(a, a)
    gibbs.products(F, G, y[:, :1], x[:, :1]); gibbs.row_kth_exponent(F, G, 3); cost.bounds(); cost.apply(a)
    gibbs.csr(F, G, np.full(n, -20.0), 2); gibbs.mass_histogram(F, G); cost_scale(cost); cost.T.rows(0, 2)
work(2000)  # compiled code, and everything that does not grow
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(n)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize(
    ("metric", "d", "n"), [("sqeuclidean", 2, 20000), ("sqeuclidean", 16, 10000), ("euclidean", 2, 10000)]
)
def test_memory_stays_linear(metric, d, n):
    """Everything but the dense plan and cost in less than 64 MB, where these take 3.2 and 0.8 GB each."""
    command = [sys.executable, "-c", MEMORY, metric, str(d), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64
