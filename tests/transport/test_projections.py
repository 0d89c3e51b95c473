import itertools

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, strategies as st

from ot_numba.transport.projections import ksupport_norm_sq, project_simplex, project_simplex_topk

FUNCTIONS = (project_simplex, lambda v, *args, **options: project_simplex_topk(v, 2, *args, **options))


def nearest(v, k, z):
    """Nearest point of the simplex with at most k positive entries, over all supports."""
    best, out = np.inf, None
    for size in range(1, min(k, len(v)) + 1):
        for support in map(list, itertools.combinations(range(len(v)), size)):
            t = np.zeros(len(v))
            t[support] = v[support] + (z - v[support].sum()) / size
            distance = ((t - v) ** 2).sum()
            if t.min() >= 0 and distance < best - 1e-15:
                best, out = distance, t
    return out


@pytest.mark.parametrize("k", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("z", [0.01, 1.0, 30.0])
def test_projection_is_nearest_over_all_supports(k, z, xp):
    for v in np.random.default_rng(0).normal(size=(5, 6)):
        out = np.asarray(project_simplex_topk(xp.asarray(v), k, z))
        np.testing.assert_allclose(out, nearest(v, k, z), atol=1e-14 * z + 1e-15)
    np.testing.assert_allclose(np.asarray(project_simplex(xp.asarray(v), z)), nearest(v, 6, z), atol=1e-14 * z + 1e-15)


def test_projection_of_large_numbers_keeps_its_sum():
    v = 1e12 + np.array([0.0, 0.25, 0.5])
    assert project_simplex(v).tolist() == pytest.approx([1 / 12, 1 / 3, 7 / 12], rel=1e-15)


def test_projection_agrees_with_pot():
    ot = pytest.importorskip("ot")
    V = np.random.default_rng(1).normal(size=(40, 7))
    z = np.random.default_rng(2).uniform(0.1, 4, 7)
    np.testing.assert_allclose(project_simplex(V, z, axis=0), ot.smooth.projection_simplex(V, z, axis=0), atol=1e-14)
    theirs = ot.utils.projection_sparse_simplex(V.copy(), 3, z, axis=0)
    np.testing.assert_allclose(project_simplex_topk(V, 3, z, axis=0), theirs, atol=1e-14)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_every_axis(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    v = np.random.default_rng(0).normal(size=shape)
    z = np.random.default_rng(1).uniform(0, 2, np.delete(shape, axis))
    for function in FUNCTIONS:
        out = function(v, z, axis=axis)
        assert out.shape == v.shape
        np.testing.assert_allclose(out.sum(axis=axis), z, atol=1e-14)
        lines = np.moveaxis(v, axis, -1).reshape(-1, shape[axis])
        single = [function(line, size) for line, size in zip(lines, z.reshape(-1), strict=True)]
        np.testing.assert_array_equal(np.moveaxis(out, axis, -1).reshape(lines.shape), single)
    norms = ksupport_norm_sq(v, 2, axis=axis)
    assert norms.shape == z.shape
    np.testing.assert_allclose(norms.reshape(-1), [ksupport_norm_sq(line, 2) for line in lines], rtol=1e-14)


def test_of_equal_entries_the_first_are_kept(xp):
    out = np.asarray(project_simplex_topk(xp.asarray([1.0, 2.0, 2.0, 2.0, 0.0]), 2))
    np.testing.assert_array_equal(out, [0, 0.5, 0.5, 0, 0])
    out = np.asarray(project_simplex_topk(xp.zeros((3, 100)), 3, 1.5))
    np.testing.assert_array_equal(out, np.tile(np.where(np.arange(100) < 3, 0.5, 0), (3, 1)))


def test_edges():
    assert project_simplex([5.0]).tolist() == [1.0]
    assert project_simplex([1, 2, 3], 0).tolist() == [0, 0, 0]
    assert project_simplex_topk([1, 2, 3], 1, 1e-300).tolist() == [0, 0, 1e-300]
    v = np.random.default_rng(0).normal(size=50).astype(np.float32)
    assert project_simplex(v).dtype == np.float32
    assert abs(project_simplex(v).sum(dtype=float) - 1) < 1e-6
    strict = project_simplex(array_api_strict.asarray(v), array_api_strict.asarray(2.0))
    assert strict.dtype == array_api_strict.float32
    frozen = np.asfortranarray(np.random.default_rng(0).normal(size=(6, 8)))[::2, ::-1]
    frozen.flags.writeable = False
    before = frozen.copy()
    np.testing.assert_array_equal(project_simplex(frozen), project_simplex(before))
    np.testing.assert_array_equal(frozen, before)


# ---------------------------------------------------------------- k-support norm


def test_reference_norms(xp):
    t = xp.asarray([0.5, 0.3, 0.15, 0.05])
    for k, square in ((1, 1.0), (2, 0.5), (4, 0.365), (7, 0.365)):
        assert float(ksupport_norm_sq(t, k)) == pytest.approx(square, rel=1e-14)
    assert float(ksupport_norm_sq(-t, 2)) == pytest.approx(0.5, rel=1e-14)
    assert float(ksupport_norm_sq(0 * t, 2)) == 0


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_norm_is_dual_to_the_norm_of_the_largest_entries(k):
    """``|t|_ksp = max <t, s> / |k largest of s|``: bounded by it for any s, and attained at the gradient."""
    rng = np.random.default_rng(0)
    for t in rng.normal(size=(20, 8)):
        norm = float(ksupport_norm_sq(t, k)) ** 0.5
        for s in rng.normal(size=(50, 8)):
            assert t @ s <= norm * np.linalg.norm(np.sort(np.abs(s))[::-1][:k]) + 1e-12
        step = 1e-6
        s = np.array([float(ksupport_norm_sq(t + d, k) - ksupport_norm_sq(t - d, k)) for d in step * np.eye(8)])
        s /= 4 * step
        assert t @ s == pytest.approx(norm * np.linalg.norm(np.sort(np.abs(s))[::-1][:k]), rel=1e-6)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"v": [1.0, np.nan]}, ValueError, "v has NaN"),
        ({"v": [1.0, -np.inf]}, ValueError, "v has -inf"),
        ({"v": []}, ValueError, "v is empty"),
        ({"v": ["a"]}, TypeError, "v must hold real numbers"),
        ({"z": -1.0}, ValueError, "z must be >= 0"),
        ({"z": np.inf}, ValueError, "z must be"),
        ({"z": [1.0, -2.0]}, ValueError, "z must be >= 0"),
        ({"z": [1.0, 2.0, 3.0]}, ValueError, r"z must be a number or have shape \(2,\)"),
        ({"z": array_api_strict.ones(2)}, TypeError, "array_api_strict and numpy"),
        ({"axis": 2}, ValueError, "axis must be one of the 2 of v, got 2"),
        ({"axis": 0.0}, TypeError, "axis must be an integer"),
    ],
)
def test_bad_input_is_named(function, change, error, match):
    given = {"v": np.ones((2, 3)), "z": 1.0, "axis": -1, **change}
    with pytest.raises(error, match=match):
        function(given["v"], given["z"], axis=given["axis"])


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_k_is_named(k, error):
    with pytest.raises(error, match="k must be"):
        project_simplex_topk([1.0, 2.0], k)
    with pytest.raises(error, match="k must be"):
        ksupport_norm_sq([1.0, 2.0], k)
