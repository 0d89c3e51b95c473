import importlib
import inspect

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ot_numba.arrays import get_num_threads, set_num_threads
from ot_numba.kernels.contract import HARD, SOFT

CPU = importlib.import_module("ot_numba.kernels.cpu.thresholding")
GENERIC = importlib.import_module("ot_numba.kernels.generic.thresholding")
NAMES = ("product", "columns_of", "residual_gradient", "proximal_step", "masked_adjoint", "keep_largest")
DTYPES = ("float64", "float32")


def arrays(seed, *shapes, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def equal_to_rounding(ours, reference, size=1.0):
    eps = np.finfo(reference.dtype).eps
    np.testing.assert_allclose(ours, reference, rtol=0, atol=8 * eps * size)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_same(name):
    ours, reference = ([*inspect.signature(getattr(module, name)).parameters.values()] for module in (CPU, GENERIC))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in reference]


@settings(max_examples=40)
@given(
    m=st.integers(1, 40), n=st.integers(1, 40), size=st.integers(1, 40), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99), way=st.sampled_from(["BLAS", "fused", "sparse"]),
)  # fmt: skip
def test_residual_gradient(m, n, size, dtype, seed, way):
    A, Z, Y = arrays(seed, (m, n), (n, size), (m, size), dtype=dtype)
    Z[np.random.default_rng(seed).random(Z.shape) < 0.7] = 0
    R, G = np.full((m, size), np.nan, dtype), np.full((n, size), np.nan, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CPU, "FUSED_FROM", 0 if way == "fused" else 1 << 40)
        patch.setattr(CPU, "SPARSE", (2.0, 2.0))
        patch.setattr(CPU, "SPARSE_FROM", 0)
        CPU.residual_gradient(A, Z, Y, R, G, CPU.columns_of(A) if way == "sparse" else None)
    wide = A.astype("longdouble")
    exact = wide @ Z - Y
    eps = np.finfo(dtype).eps
    assert (np.abs(R - exact) <= 2 * (n + 2) * eps * (np.abs(wide) @ np.abs(Z) + np.abs(Y))).all()
    reach = np.abs(wide).T @ (np.abs(wide) @ np.abs(Z) + np.abs(Y))
    assert (np.abs(G - wide.T @ exact) <= 2 * (n + m + 4) * eps * reach).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "size"), [(1, 1, 1), (40, 60, 109), (40, 60, 1000), (60, 40, 3001), (300, 200, 50)])
def test_product(m, n, size, dtype):
    A, Z = arrays(m, (m, n), (n, size), dtype=dtype)
    out, other = np.full((m, size), np.nan, dtype), np.full((m, size), np.nan, dtype)
    CPU.product(A, Z, out)
    CPU.product(np.ascontiguousarray(A.T).T, Z, other)
    for found in (out, other):
        np.testing.assert_allclose(found, A @ Z, rtol=0, atol=50 * np.finfo(dtype).eps * n**0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [SOFT, HARD])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1024, 1), (1025, 17), (40_001, 1)])
def test_proximal_step_agrees_with_the_reference(dtype, kind, momentum, shape):
    X, Z, G = arrays(1, shape, shape, shape, dtype=dtype)
    results = []
    for module in (CPU, GENERIC):
        x, z, signs = X.copy(), Z.copy(), np.full(shape, 5, np.int8)
        product = module.proximal_step(kind, 0.3, 0.4, momentum, x, z, G, signs)
        results.append((x, z, signs, product))
    (x, z, signs, product), reference = results
    V = Z - X.dtype.type(0.3) * G
    clear = np.abs(np.abs(V) - 0.4) > 1e-5
    equal_to_rounding(x[clear], reference[0][clear], 8)
    equal_to_rounding(z[clear], reference[1][clear], 16)
    np.testing.assert_array_equal(signs, np.sign(x))
    assert product == pytest.approx(float(reference[3]), rel=1e-6 if dtype == "float32" else 1e-12, abs=1e-6)
    plain = Z.copy()
    assert CPU.proximal_step(kind, 0.3, 0.4, 0.0, plain, plain, G) == 0
    np.testing.assert_array_equal(plain, x)
    again = Z.copy()
    assert GENERIC.proximal_step(kind, 0.3, 0.4, 0.0, again, again, G) == 0
    np.testing.assert_array_equal(again, reference[0])


@pytest.mark.parametrize("module", [CPU, GENERIC])
def test_ties_nan_and_infinity(module):
    Z = np.array([[1.0], [-1.0], [np.nan], [np.inf], [-np.inf], [1.5], [-0.0]])
    G = np.zeros_like(Z)
    for kind, last in ((SOFT, 0.5), (HARD, 1.5)):
        X, signs = Z.copy(), np.empty(Z.shape, np.int8)
        module.proximal_step(kind, 1.0, 1.0, 0.0, X, X, G, signs)
        np.testing.assert_array_equal(X[:, 0], [0, 0, np.nan, np.inf, -np.inf, last, 0])
        np.testing.assert_array_equal(signs[:, 0], [0, 0, 0, 1, -1, 1, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 4), (1025, 17), (40_001, 1)])
def test_masked_adjoint_agrees_with_the_reference(dtype, shape):
    P, G = arrays(2, shape, shape, dtype=dtype)
    signs = np.random.default_rng(3).integers(-1, 2, shape).astype(np.int8)
    ours, reference = P.copy(), P.copy()
    sums, expected = CPU.masked_adjoint(ours, signs, G), GENERIC.masked_adjoint(reference, signs, G)
    np.testing.assert_array_equal(ours, reference)
    np.testing.assert_array_equal(ours, P * (signs != 0))
    assert sums == pytest.approx([float(v) for v in expected], rel=1e-10, abs=1e-10)


@settings(max_examples=60)
@given(n=st.integers(1, 12), size=st.integers(1, 4), seed=st.integers(0, 999), data=st.data())
def test_keep_largest(n, size, seed, data):
    k = data.draw(st.integers(1, n))
    X = np.random.default_rng(seed).integers(-3, 4, (n, size)).astype(float)  # with ties
    ours, reference = X.copy(), array_api_strict.asarray(X, copy=True)
    CPU.keep_largest(ours, k)
    GENERIC.keep_largest(reference, k)
    np.testing.assert_array_equal(ours, np.asarray(reference))
    for b in range(size):
        kept = sorted(range(n), key=lambda i: -abs(X[i, b]))[:k]  # stable: of equal ones the first
        np.testing.assert_array_equal(ours[:, b], np.where(np.isin(np.arange(n), kept), X[:, b], 0))


@pytest.mark.parametrize("module", [CPU, GENERIC])
def test_keep_largest_keeps_nan(module):
    X = np.array([[1.0], [np.nan], [-np.inf], [3.0]])
    module.keep_largest(X, 2)
    np.testing.assert_array_equal(X[:, 0], [0, np.nan, -np.inf, 0])


def test_bits_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(CPU, "FUSED_FROM", 0)
    A, Z, Y, P = arrays(4, (801, 1003), (1003, 1), (801, 1), (1003, 700))
    signs = np.sign(P).astype(np.int8)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            R, G = np.empty_like(Y), np.empty_like(Z)
            CPU.residual_gradient(A, Z, Y, R, G)
            few, S, T = np.where(np.abs(P) > 2, P, 0), np.empty((801, 700)), np.empty_like(P)
            CPU.residual_gradient(A, few, np.zeros_like(S), S, T, CPU.columns_of(A))
            x, z, q, kept = P.copy(), P[::-1].copy(), P.copy(), P.copy()
            product = CPU.proximal_step(SOFT, 0.1, 0.2, 0.5, x, z, P, None)
            CPU.keep_largest(kept, 9)
            results.append([R, G, S, T, x, z, np.array(product), q, np.array(CPU.masked_adjoint(q, signs, P)), kept])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)
