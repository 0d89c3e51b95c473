import numpy as np
import pytest
import scipy.sparse

from ot_numba.optimize import factorization, factorize_rows


@pytest.fixture(params=["dense", "sparse", "product"])
def way(request, monkeypatch):
    monkeypatch.setattr(factorization, "SMALL", 1 if request.param == "sparse" else 10**9)
    monkeypatch.setattr(factorization, "MULTIPLY", 0.0 if request.param == "product" else 1e9)
    monkeypatch.setattr(factorization, "EDGES", 1e9)
    monkeypatch.setattr(factorization, "PAIRS", 1e9)
    return request.param


def rows_of(rng, n, m, dtype="int64"):
    P = scipy.sparse.random_array((n, m), density=0.2, rng=rng, format="lil")
    P[np.arange(n), rng.integers(m, size=n)] = 0.5
    P = P.tocsr()
    P.sort_indices()
    return P.indptr.astype(dtype), P.indices.astype(dtype), P.data


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_solves_with_the_laplacian_of_the_rows(way, dtype):
    rng = np.random.default_rng(0)
    n, m = 30, 20
    indptr, indices, weights = rows_of(rng, n, m, dtype)
    extra = rng.random(m)
    S = scipy.sparse.csr_array((weights, indices, indptr), shape=(n, m)).toarray()
    W = S / np.sqrt(S.sum(1))[:, None]
    L = np.diag((W.T @ W).sum(1)) - W.T @ W + np.diag(extra)
    r = rng.standard_normal(m)
    before = weights.copy()
    rtol = 1e-5 if way == "product" else 1e-10  # its entries are in float32
    assert np.allclose(factorize_rows(indptr, indices, weights, extra)(r), np.linalg.solve(L, r), rtol=rtol, atol=0)
    assert np.array_equal(weights, before)


def test_weak_links_keep_their_relative_accuracy(way):
    """Two pairs joined by an edge of 1e-8: the flow through it is that of the edge."""
    indptr, indices = np.array([0, 2, 4, 6]), np.array([0, 1, 2, 3, 1, 2])
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1e-8])
    solve = factorize_rows(indptr, indices, weights, np.array([1e-30, 0, 0, 1e-30]) + 1e-25)
    d = solve(np.array([1.0, 0, 0, -1.0]))
    assert np.isclose(d[1] - d[2], 1e8, rtol=1e-6)


def test_what_is_not_positive_definite_is_an_error(monkeypatch):
    monkeypatch.setattr(factorization, "SMALL", 10**9)
    with pytest.raises(ArithmeticError, match="not positive definite"):
        factorize_rows(np.array([0, 2]), np.array([0, 1]), np.ones(2), np.array([-1.0, -1.0]))
