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
NAMES = (
    "product", "columns_of", "residual_gradient", "proximal_step", "accelerated_step", "steps", "lasso_values",
    "masked_adjoint", "keep_largest",
)  # fmt: skip
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
        module.proximal_step(kind, 0.3, 0.4, momentum, x, z, G, signs)
        results.append((x, z, signs))
    (x, z, signs), reference = results
    V = Z - X.dtype.type(0.3) * G
    clear = np.abs(np.abs(V) - 0.4) > 1e-5
    equal_to_rounding(x[clear], reference[0][clear], 8)
    equal_to_rounding(z[clear], reference[1][clear], 16)
    np.testing.assert_array_equal(signs, np.sign(x))
    for module, expected in ((CPU, x), (GENERIC, reference[0])):
        plain = Z.copy()
        module.proximal_step(kind, 0.3, 0.4, 0.0, plain, plain, G)
        np.testing.assert_array_equal(plain, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [SOFT, HARD])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1024, 1), (1025, 17), (2001, 40)])
def test_accelerated_step_agrees_with_the_reference(dtype, kind, shape):
    X, Z, G = arrays(1, shape, shape, shape, dtype=dtype)
    Z[:, ::2] = X[:, ::2]  # as after a restart: not again
    X[:, 1::2], Z[:, 1::2], G[:, 1::2] = 0, 5 + np.abs(Z[:, 1::2]), np.abs(G[:, 1::2])  # turns back
    thetas = 1 + np.random.default_rng(0).random(shape[1]) * np.arange(shape[1])
    results = []
    for module in (CPU, GENERIC):
        x, z, theta = X.copy(), Z.copy(), thetas.copy()
        module.accelerated_step(kind, 0.3, 0.4, theta, x, z, G.copy())
        results.append((x, z, theta))
    for ours, reference in zip(*results, strict=True):
        equal_to_rounding(ours, reference, 32)
    (x, z, theta), W = results[0], results[0][0]
    restarted = ((Z - W) * (W - X)).sum(axis=0) > 0
    np.testing.assert_array_equal(restarted, np.arange(shape[1]) % 2 == 1)
    np.testing.assert_array_equal(theta == 1, restarted)
    np.testing.assert_array_equal(z[:, restarted], x[:, restarted])
    following = (1 + np.sqrt(1 + 4 * thetas**2)) / 2
    by_hand = W + np.where(restarted, 0, (thetas - 1) / following) * (W - X)
    equal_to_rounding(z, by_hand.astype(dtype), 32)


@settings(max_examples=60)
@given(
    m=st.integers(1, 30), n=st.integers(1, 40), size=st.integers(1, 6), count=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES), kind=st.sampled_from([SOFT, HARD]), seed=st.integers(0, 99),
    way=st.sampled_from(["plain", "momentum", "theta"]), density=st.sampled_from([0.0, 0.1, 0.5]),
    part=st.sampled_from([0.0, 0.11, 0.47]), with_columns=st.booleans(), few=st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_steps_are_the_layers(m, n, size, count, dtype, kind, seed, way, density, part, with_columns, few):
    A, X, Y, Z = arrays(seed, (m, n), (n, size), (m, size), (n, size), dtype=dtype)
    X *= np.random.default_rng(seed).random(X.shape) < density
    Z = X if way == "plain" else X + Z * (np.random.default_rng(seed + 1).random(X.shape) < density)
    norm = np.linalg.norm(A.astype(float), 2) ** 2
    step = np.linspace(0.5, 1.5, count) / norm
    reg = part * float(np.abs(A.T @ Y).max())
    tau = step * reg if kind == SOFT else np.sqrt(1.93 * step * reg**2 / norm)
    momentum = np.linspace(-0.2, 0.9, count) if way == "momentum" else None
    thetas = np.linspace(1, 5, size) if way == "theta" else None
    results = []
    for module, floats in ((CPU, dtype), (GENERIC, "float64")):
        a, y, x = A.astype(floats), Y.astype(floats), X.astype(floats)
        z = x if way == "plain" else Z.astype(floats)
        r = a @ x - y
        g, theta = a.T @ r, None if thetas is None else thetas.copy()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CPU, "FEW", few)
            columns = module.columns_of(a) if with_columns else None
            module.steps(kind, step, tau, a, y, x, z, r, g, momentum, theta, columns)
        results.append((x, z, r, g, theta))
    ours, reference = results
    if kind == SOFT or np.array_equal(ours[0] != 0, reference[0] != 0):  # rounding decides at |v| = tau
        eps = np.finfo(dtype).eps * 200 * count
        scale = max(1.0, np.abs(reference[1]).max(), np.abs(Y).max())
        if way != "theta" or np.allclose(ours[4], reference[4]):  # and when a signal at rest restarts
            for found, expected, size_ in zip(ours, reference, (1, 1, norm**0.5, norm, 1), strict=True):
                if expected is not None:
                    np.testing.assert_allclose(found, expected, rtol=0, atol=eps * scale * max(size_, 1))
    x, _, r, g, _ = ours
    np.testing.assert_allclose(r, A @ x - Y, atol=100 * np.finfo(dtype).eps * (1 + norm**0.5 * np.abs(x).sum()))
    np.testing.assert_allclose(g, A.T @ r, atol=100 * np.finfo(dtype).eps * (1 + norm**0.5 * np.abs(r).sum()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [SOFT, HARD])
@pytest.mark.parametrize("size", [1, 3])
def test_entries_that_only_just_move(dtype, kind, size):
    u = np.array([[2.0], [-1.0], [2.0]]) / 3  # columns in one direction: gradients change as much as they can
    a = np.concatenate([[0.4], np.linspace(0.1, 0.3, 59), [0.505, 0.51, 0.6]])
    A, Y = (u * a).astype(dtype), u.repeat(size, axis=1).astype(dtype)
    step, tau = np.array([0.1]), np.array([0.1])
    results = []
    for module in (CPU, GENERIC):
        X, R, G = np.zeros((63, size), dtype), -Y, -A.T @ Y
        Z = X.copy()
        Z[0] = -2.5  # the residual becomes -2 u: gradients -2 a, of which three are beyond tau / step
        module.steps(kind, step, tau, A, Y, X, Z, R, G, np.zeros(1), None, module.columns_of(A))
        results.append(X)
    assert np.count_nonzero(results[1]) == 4 * size
    equal_to_rounding(*results, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 4, 3), (40, 1025, 17)])
def test_lasso_values(dtype, shape):
    m, n, size = shape
    X, Y, R, G = arrays(5, (n, size), (m, size), (m, size), (n, size), dtype=dtype)
    G[:, ::2] *= 1e-3  # so that these are feasible
    x, y, r, g = (V.astype(float) for V in (X, Y, R, G))
    theta = -r * np.minimum(1, 0.1 / np.abs(g).max(axis=0))
    penalty = 0.1 * np.abs(x).sum(axis=0)
    primal, dual = 0.5 * (r**2).sum(axis=0) + penalty, 0.5 * (y**2).sum(axis=0) - 0.5 * ((y - theta) ** 2).sum(axis=0)
    for module in (CPU, GENERIC):
        found = module.lasso_values(0.1, X, Y, R, G)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [primal, np.maximum(primal - dual, 0)], rtol=1e-11)
        np.testing.assert_allclose(module.lasso_values(0.0, X, Y, R, G)[0], primal - penalty, rtol=1e-12)
        at_zero = module.lasso_values(0.1, 0 * X, Y, -Y, 0 * G)
        np.testing.assert_array_equal(at_zero[1], 0)


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
            CPU.proximal_step(SOFT, 0.1, 0.2, 0.5, x, z, P, None)
            CPU.keep_largest(kept, 9)
            theta, u, v = np.linspace(1, 9, 700), np.where(np.arange(700) % 3, few, P), P[::-1].copy()
            CPU.accelerated_step(SOFT, 0.1, 0.2, theta, u, v, P.copy())
            layers = [np.where(np.arange(700) % 3, few, P), T.copy(), S.copy(), theta.copy()]
            CPU.steps(
                SOFT, np.full(3, 1e-4), np.full(3, 1e-2), A, S, layers[0], layers[0].copy(), layers[2], layers[1],
                None, layers[3], CPU.columns_of(A),
            )  # fmt: skip
            results.append([R, G, S, T, x, z, q, np.array(CPU.masked_adjoint(q, signs, P)), kept, theta, u, v, *layers])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)
