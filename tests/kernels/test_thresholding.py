"""Layers of sparse recovery: every backend against their definition, on numbers for which all arithmetic is exact."""

import importlib
import inspect
import itertools

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ot_numba.arrays import get_num_threads, set_num_threads
from ot_numba.arrays.namespaces import read_floats, to_numpy
from ot_numba.kernels.contract import HARD, SOFT

CPU = importlib.import_module("ot_numba.kernels.cpu.thresholding")
GENERIC = importlib.import_module("ot_numba.kernels.generic.thresholding")
NAMES = (
    "product", "columns_of", "residual_gradient", "proximal_step", "accelerated_step", "steps", "lasso_values",
    "masked_adjoint", "keep_largest",
)  # fmt: skip
BACKENDS = {
    "cpu": (CPU, np.array),
    "generic": (GENERIC, np.array),
    "strict": (GENERIC, lambda x: array_api_strict.asarray(x, copy=True)),
}  # more are added where these checks are run with them
SIZES = st.sampled_from([1, 2, 3, 7, 31, 32, 33, 100, 257])
STEP, TAU, MOMENTUM = 0.25, 0.375, 0.5
THETAS = 0.0, 2.0**60, 1.0, 3.75  #: the momentum is -1, 1, 0 and another number
each_backend = pytest.mark.parametrize("backend", list(BACKENDS))
drawn = {"n": SIZES, "size": st.sampled_from([1, 2, 9, 40]), "dtype": st.sampled_from(["float64", "float32"])}
drawn["seed"] = st.integers(0, 99)


def eighths(seed, *shapes, dtype):
    rng = np.random.default_rng(seed)
    return [(rng.integers(-8, 9, shape) / 8).astype(dtype) for shape in shapes]


def check_products(backend, m, n, size, dtype, seed=0):
    kernels, asarray = BACKENDS[backend]
    A, Z, Y = eighths(seed, (m, n), (n, size), (m, size), dtype=dtype)
    matrix, R, G = asarray(A), asarray(np.full_like(Y, np.nan)), asarray(np.full_like(Z, np.nan))
    kernels.residual_gradient(matrix, asarray(Z), asarray(Y), R, G, kernels.columns_of(matrix))
    np.testing.assert_array_equal(to_numpy(R), A @ Z - Y)
    np.testing.assert_array_equal(to_numpy(G), A.T @ (A @ Z - Y))
    kernels.product(matrix, asarray(Z), R)
    kernels.product(matrix.T, R, G)
    np.testing.assert_array_equal(to_numpy(R), A @ Z)
    np.testing.assert_array_equal(to_numpy(G), A.T @ (A @ Z))


def spoil(seed, *arrays):
    """Put numbers without a meaning among the others."""
    rng = np.random.default_rng(seed)
    for V in arrays:
        V[rng.random(V.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, -0.0])


def prox(kind, V):
    return np.where(np.abs(V) <= TAU, 0, V - TAU * np.sign(V) if kind == SOFT else V).astype(V.dtype)


def check_layer(backend, n, size, dtype, seed=0, special=False):
    """All ways of taking a layer, with many entries at the threshold; some without a meaning if `special`."""
    kernels, asarray = BACKENDS[backend]
    X, Z, G = eighths(seed, *[(n, size)] * 3, dtype=dtype)
    if special:
        spoil(seed, X, Z, G)
    for kind, momentum, pair, signing in itertools.product((SOFT, HARD), (0.0, MOMENTUM), (False, True), (False, True)):
        if momentum and not pair:
            continue
        x, g = asarray(X), asarray(G)
        z = asarray(Z) if pair else x
        signs = asarray(np.full((n, size), 5, np.int8)) if signing else None
        with np.errstate(invalid="ignore"):
            kernels.proximal_step(kind, STEP, TAU, momentum, x, z, g, signs)
            W = prox(kind, (Z if pair else X) - X.dtype.type(STEP) * G)
            np.testing.assert_array_equal(to_numpy(x), W)
            if pair:
                np.testing.assert_array_equal(to_numpy(z), W + momentum * (W - X) if momentum else W)
            if signing:
                np.testing.assert_array_equal(to_numpy(signs), np.nan_to_num(np.sign(W)))


def accelerated(kind, theta, X, Z, G):
    """X, Z and theta after a layer with the momentum of each signal."""
    W = prox(kind, Z - X.dtype.type(STEP) * G)
    restarts = np.sum((Z - W).astype(float) * (W - X).astype(float), axis=0) > 0
    following = (1 + np.sqrt(1 + 4 * theta**2)) / 2
    momentum = np.where(restarts, 0, (theta - 1) / following).astype(X.dtype)
    return W, W + momentum * (W - X), np.where(restarts, 1, following)


def check_accelerated_layer(backend, n, size, dtype, seed=0, special=False):
    """Signals that restart, that do not, and for which it hangs on nothing."""
    kernels, asarray = BACKENDS[backend]
    X, Z, G = eighths(seed, *[(n, size)] * 3, dtype=dtype)
    X[:, seed % 5 :: 5], Z[:, seed % 5 :: 5] = 0, 3  # turns back
    for V in (X, Z, G):
        V[:, (seed + 1) % 5 :: 5] = 0
    if special:
        spoil(seed, *(V[:, ::3] for V in (X, Z, G)))
    start = np.resize(np.roll(THETAS, seed), size)
    for kind in (SOFT, HARD):
        x, z, theta = map(asarray, (X, Z, start))
        with np.errstate(invalid="ignore"):
            kernels.accelerated_step(kind, STEP, TAU, theta, x, z, asarray(G))
            wanted = accelerated(kind, start, X, Z, G)
        np.testing.assert_array_equal(to_numpy(x), wanted[0])
        np.testing.assert_allclose(to_numpy(z), wanted[1], rtol=0, atol=16 * np.finfo(dtype).eps)
        np.testing.assert_allclose(to_numpy(theta), wanted[2], rtol=1e-15, atol=0)


def check_steps(backend, m, n, size, dtype, seed=0):
    """Layers for which all arithmetic stays exact: columns of A, at most two of which meet, have one entry."""
    kernels, asarray = BACKENDS[backend]
    X, Z, Y = eighths(seed, (n, size), (n, size), (m, size), dtype=dtype)
    A = np.zeros((m, n), dtype)
    places = np.arange(min(n, 2 * m))
    A[places % m, places] = np.random.default_rng(seed).choice([-1, 1], len(places))
    start = np.resize(np.roll(THETAS[:2], seed), size)
    for kind, way in itertools.product((SOFT, HARD), ("plain", "momentum", "theta")):
        count = 2 if way == "theta" else 3  # then the momentum is no longer exact
        momentum = np.resize([MOMENTUM, 0.0, -0.25], count) if way == "momentum" else None
        matrix, y, x, r, g = map(asarray, (A, Y, X, A @ X - Y, A.T @ (A @ X - Y)))
        z, theta = x if way == "plain" else asarray(Z), asarray(start) if way == "theta" else None
        numbers = np.full(count, STEP), np.full(count, TAU)
        kernels.steps(kind, *numbers, matrix, y, x, z, r, g, momentum, theta, kernels.columns_of(matrix))
        W, V, thetas = X, X if way == "plain" else Z, start
        for t in range(count):
            G = A.T @ (A @ V - Y)
            if way == "theta":
                W, V, thetas = accelerated(kind, thetas, W, V, G)
            else:
                before, W = W, prox(kind, V - X.dtype.type(STEP) * G)
                V = W if momentum is None else W + X.dtype.type(momentum[t]) * (W - before)
        R = A @ W - Y
        for found, wanted in ((x, W), (z, V), (r, R), (g, A.T @ R)):
            np.testing.assert_array_equal(to_numpy(found), wanted)
        if way == "theta":
            np.testing.assert_allclose(to_numpy(theta), thetas, rtol=1e-15, atol=0)


def check_values(backend, m, n, size, dtype, seed=0, special=False):
    """Signals that are feasible or not, and some whose gap would be below 0."""
    kernels, asarray = BACKENDS[backend]
    X, Y, R, G = eighths(seed, (n, size), (m, size), (m, size), (n, size), dtype=dtype)
    X[:, ::4], Y[:, ::4] = 0, -2 * R[:, ::4]
    G[:, 1::3] /= 4
    if special:
        spoil(seed, *(V[:, ::2] for V in (X, Y, R, G)))
        G[seed % n, ::3] = np.nan
    with np.errstate(invalid="ignore"):
        squares, cross = (np.sum(R.astype(float) * V, axis=0) for V in (R, Y))
        norms, top = np.sum(np.abs(X), axis=0, dtype=float), np.max(np.abs(G), axis=0, initial=0).astype(float)
        for reg in (TAU, 0.0, 100.0):
            found = kernels.lasso_values(reg, *map(asarray, (X, Y, R, G)))
            share = np.where(top > reg, reg / np.where(top > 0, top, 1), 1)
            value, gap = 0.5 * squares + reg * norms, 0.5 * (1 + share**2) * squares + share * cross + reg * norms
            ours = to_numpy(found)
            assert ours.dtype == np.float64
            np.testing.assert_array_equal(ours[0], value)
            np.testing.assert_allclose(ours[1], np.where(gap < 0, 0, gap), rtol=0, atol=1e-14 * (m + n) * (1 + reg))


def check_adjoint(backend, n, size, dtype, seed=0, special=False):
    kernels, asarray = BACKENDS[backend]
    P, G = eighths(seed, *[(n, size)] * 2, dtype=dtype)
    signs = np.random.default_rng(seed).integers(-1, 2, (n, size)).astype(np.int8)
    if special:
        P[signs == 0], G[0, 0] = np.nan, np.inf
    ours, Q = asarray(P), np.where(signs != 0, P, 0)
    with np.errstate(invalid="ignore"):
        sums = kernels.masked_adjoint(ours, asarray(signs), asarray(G))
        np.testing.assert_array_equal(to_numpy(ours), Q)
        np.testing.assert_array_equal(read_floats(sums), [np.sum(Q.astype(float) * G), np.sum(Q.astype(float) * signs)])


COLUMNS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "near": lambda rng, shape: 1 + rng.integers(0, 400, shape) * 2.0**-20,  # leading digits that tell nothing
    "ties": lambda rng, shape: rng.integers(-2, 3, shape) / 2,
    "equal": lambda _, shape: np.full(shape, -0.25),
    "special": lambda rng, shape: rng.choice([np.nan, np.inf, -np.inf, 3.0, -3.0, -0.0, 1e-40], shape),
}


def check_largest(backend, n, size, k, dtype, kind, seed=0):
    kernels, asarray = BACKENDS[backend]
    X = COLUMNS[kind](np.random.default_rng(seed), (n, size)).astype(dtype)
    ours = asarray(X)
    kernels.keep_largest(ours, k)
    order = np.argsort(-np.where(np.isnan(X), np.inf, np.abs(X)), axis=0, stable=True)
    expected = np.zeros_like(X)
    np.put_along_axis(expected, order[:k], np.take_along_axis(X, order[:k], axis=0), axis=0)
    np.testing.assert_array_equal(to_numpy(ours), expected)


@each_backend
@settings(max_examples=20)
@given(m=SIZES, **drawn)
def test_products(backend, m, n, size, dtype, seed):
    check_products(backend, m, n, size, dtype, seed)


@each_backend
@settings(max_examples=20)
@given(m=SIZES, special=st.booleans(), **drawn)
def test_layers(backend, m, n, size, dtype, seed, special):
    check_layer(backend, n, size, dtype, seed, special)
    check_accelerated_layer(backend, n, size, dtype, seed, special)
    check_adjoint(backend, n, size, dtype, seed, special)
    check_values(backend, m, n, size, dtype, seed, special)


@each_backend
@settings(max_examples=20)
@given(m=SIZES, **drawn)
def test_steps(backend, m, n, size, dtype, seed):
    check_steps(backend, m, n, size, dtype, seed)


@each_backend
@settings(max_examples=40)
@given(kind=st.sampled_from(list(COLUMNS)), k=st.integers(1, 300), **drawn)
def test_keep_largest(backend, n, size, k, dtype, kind, seed):
    check_largest(backend, n, size, min(k, n), dtype, kind, seed)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_same(name):
    cuda = importlib.import_module("ot_numba.kernels.cuda.thresholding")
    cpu, gpu, generic = (
        [(p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (CPU, cuda, GENERIC)
    )
    assert cpu == gpu == generic


# ---------------------------------------------------------------- of the CPU: blocks, and ways to a product

each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


def normals(seed, *shapes, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


@each_dtype
@pytest.mark.parametrize("shape", [(1024, 1), (1025, 17), (2001, 40), (40_001, 1)])
def test_layers_of_several_blocks(dtype, shape):
    for special in (False, True):
        check_layer("cpu", *shape, dtype, special=special)
        check_accelerated_layer("cpu", *shape, dtype, special=special)
        check_adjoint("cpu", *shape, dtype, special=special)


@settings(max_examples=40)
@given(
    m=st.integers(1, 40), n=st.integers(1, 40), size=st.integers(1, 40), dtype=st.sampled_from(["float64", "float32"]),
    seed=st.integers(0, 99), way=st.sampled_from(["BLAS", "fused", "sparse"]),
)  # fmt: skip
def test_ways_to_the_gradient(m, n, size, dtype, seed, way):
    A, Z, Y = normals(seed, (m, n), (n, size), (m, size), dtype=dtype)
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


@each_dtype
@pytest.mark.parametrize(("m", "n", "size"), [(1, 1, 1), (40, 60, 109), (40, 60, 1000), (60, 40, 3001), (300, 200, 50)])
def test_products_of_several_blocks(m, n, size, dtype):
    A, Z = normals(m, (m, n), (n, size), dtype=dtype)
    out, other = np.full((m, size), np.nan, dtype), np.full((m, size), np.nan, dtype)
    CPU.product(A, Z, out)
    CPU.product(np.ascontiguousarray(A.T).T, Z, other)
    for found in (out, other):
        np.testing.assert_allclose(found, A @ Z, rtol=0, atol=50 * np.finfo(dtype).eps * n**0.5)


@settings(max_examples=60)
@given(
    m=st.integers(1, 30), n=st.integers(1, 40), size=st.integers(1, 6), count=st.integers(1, 12),
    dtype=st.sampled_from(["float64", "float32"]), kind=st.sampled_from([SOFT, HARD]), seed=st.integers(0, 99),
    way=st.sampled_from(["plain", "momentum", "theta"]), density=st.sampled_from([0.0, 0.1, 0.5]),
    part=st.sampled_from([0.0, 0.11, 0.47]), with_columns=st.booleans(), few=st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_steps_of_some_entries(m, n, size, count, dtype, kind, seed, way, density, part, with_columns, few):
    A, X, Y, Z = normals(seed, (m, n), (n, size), (m, size), (n, size), dtype=dtype)
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


@each_dtype
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
    np.testing.assert_allclose(*results, rtol=0, atol=64 * np.finfo(dtype).eps)


def test_bits_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(CPU, "FUSED_FROM", 0)
    A, Z, Y, P = normals(4, (801, 1003), (1003, 1), (801, 1), (1003, 700))
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
