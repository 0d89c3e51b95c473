"""Layers of sparse recovery: every backend against their definition, on numbers for which all arithmetic is exact."""

import importlib
import inspect
import itertools

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ot_numba.arrays.namespaces import read_floats, to_numpy
from ot_numba.kernels.contract import HARD, SOFT

CPU = importlib.import_module("ot_numba.kernels.cpu.thresholding")
GENERIC = importlib.import_module("ot_numba.kernels.generic.thresholding")
NAMES = ("product", "columns_of", "residual_gradient", "proximal_step", "masked_adjoint", "keep_largest")
BACKENDS = {
    "cpu": (CPU, np.array),
    "generic": (GENERIC, np.array),
    "strict": (GENERIC, lambda x: array_api_strict.asarray(x, copy=True)),
}  # more are added where these checks are run with them
SIZES = st.sampled_from([1, 2, 3, 7, 31, 32, 33, 100, 257])
STEP, TAU, MOMENTUM = 0.25, 0.375, 0.5
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


def check_layer(backend, n, size, dtype, seed=0, special=False):
    """All ways of taking a layer, with many entries at the threshold; some without a meaning if `special`."""
    kernels, asarray = BACKENDS[backend]
    X, Z, G = eighths(seed, *[(n, size)] * 3, dtype=dtype)
    if special:
        rng = np.random.default_rng(seed)
        for V in (X, Z, G):
            V[rng.random(V.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, -0.0])
    for kind, momentum, pair, signing in itertools.product((SOFT, HARD), (0.0, MOMENTUM), (False, True), (False, True)):
        if momentum and not pair:
            continue
        x, g = asarray(X), asarray(G)
        z = asarray(Z) if pair else x
        signs = asarray(np.full((n, size), 5, np.int8)) if signing else None
        with np.errstate(invalid="ignore"):
            product = kernels.proximal_step(kind, STEP, TAU, momentum, x, z, g, signs)
            V = (Z if pair else X) - X.dtype.type(STEP) * G
            W = np.where(np.abs(V) <= TAU, 0, V - TAU * np.sign(V) if kind == SOFT else V).astype(dtype)
            np.testing.assert_array_equal(to_numpy(x), W)
            if pair:
                np.testing.assert_array_equal(to_numpy(z), W + momentum * (W - X) if momentum else W)
            if signing:
                np.testing.assert_array_equal(to_numpy(signs), np.nan_to_num(np.sign(W)))
            expected = np.sum((Z - W).astype(float) * (W - X).astype(float)) if pair else 0.0
        np.testing.assert_array_equal(read_floats([product]), [expected])


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
@given(special=st.booleans(), **drawn)
def test_layers(backend, n, size, dtype, seed, special):
    check_layer(backend, n, size, dtype, seed, special)
    check_adjoint(backend, n, size, dtype, seed, special)


@each_backend
@settings(max_examples=40)
@given(kind=st.sampled_from(list(COLUMNS)), k=st.integers(1, 300), **drawn)
def test_keep_largest(backend, n, size, k, dtype, kind, seed):
    check_largest(backend, n, size, min(k, n), dtype, kind, seed)


def test_signatures_are_the_same():
    cuda = importlib.import_module("ot_numba.kernels.cuda.thresholding")
    for name in NAMES:
        cpu, gpu, generic = (
            [(p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
            for module in (CPU, cuda, GENERIC)
        )
        assert cpu == gpu == generic
