"""Factorisations of symmetric positive definite matrices, dense and sparse, and of weighted graph Laplacians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, is_numpy, library_name

Array = Any
Solve = Callable[[Array], Array]
#: A sparse factorisation may pay from so many columns on, with fewer pairs of entries and edges than these per column.
SMALL, PAIRS, EDGES = 400, 100.0, 30.0
MULTIPLY = 0.04  #: share of the pairs of entries of full rows from which on a dense product is faster, in float32


def factorize_laplacian(W: Array, extra: Array) -> Solve | None:
    """``r -> S^-1 r`` for the graph with edge weights ``W' W``; None if rounding leaves S not positive definite.

    ``S = diag(d + extra) - offdiagonal(W' W)`` with d the sums of what is off the diagonal, so that nothing cancels
    and every edge counts with its relative accuracy. The products are in the precision of W, the rest in float64. NumPy
    arrays take n m^2 + m^3 / 3 operations once, CuPy's n m^2 more, and both 2 m^2 for each solve;
    other arrays are solved anew each time, as the array-API standard has no triangular solves.
    """
    xp = array_namespace(W)
    m = W.shape[1]
    if is_numpy(xp):
        return _factorize_on_host(W, extra)
    S = -xp.astype(xp.matrix_transpose(W) @ W, xp.float64)
    index = xp.arange(m, device=W.device)
    diagonal = index[:, None] == index[None, :]
    S = xp.where(diagonal, xp.zeros_like(S), S)
    S = xp.where(diagonal, (extra - xp.sum(S, axis=1))[:, None], S)
    if library_name(xp) == "cupy":
        return _factorize_on_gpu(S)
    return lambda r: xp.linalg.solve(S, r[:, None])[:, 0]


def _factorize_on_host(W: Array, extra: Array) -> Solve | None:
    from scipy.linalg import blas, lapack

    rank_update = blas.ssyrk if W.dtype == "float32" else blas.dsyrk
    S = rank_update(-1.0, W.T, lower=1).astype(float)  # the upper triangle is 0
    entries = S.reshape(-1, order="A")[:: W.shape[1] + 1]
    entries[:] = 0
    entries[:] = extra - S.sum(axis=0) - S.sum(axis=1)
    factor, info = lapack.dpotrf(S, lower=1, clean=0, overwrite_a=1)
    return None if info else lambda r: lapack.dpotrs(factor, r, lower=1)[0]


def _factorize_on_gpu(S: Array) -> Solve | None:
    from cupy.linalg import cholesky
    from cupyx import errstate
    from cupyx.scipy.linalg import solve_triangular
    from numpy.linalg import LinAlgError

    try:
        with errstate(linalg="raise"):  # it says nothing otherwise
            upper = cholesky(S).T  # in Fortran's order, which the solves do not have to copy
    except LinAlgError:
        return None
    return lambda r: solve_triangular(upper, solve_triangular(upper, r, trans="T"))


def factorize_sparse(S: Any) -> Solve:
    """``r -> S^-1 r`` for a sparse symmetric positive definite S of SciPy, by SuperLU with pivots on the diagonal."""
    from scipy.sparse.linalg import splu

    options = {"SymmetricMode": True}
    return splu(S.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options).solve


def factorize_rows(indptr: Array, indices: Array, weights: Array, extra: Array) -> Solve:
    """``r -> (L + diag(extra))^-1 r`` for the Laplacian L with edges ``w_ij w_il / sum(w_i)`` for every row i.

    The rows are CSR arrays of NumPy, columns in order. The diagonal is summed from the edges: nothing cancels before
    the factorisation. A graph of few edges is factorised as a sparse matrix.
    """
    counts, m = np.diff(indptr), len(extra)
    pairs = float(counts @ counts)
    sparse = m >= SMALL and pairs < PAIRS * m
    if sparse or pairs > MULTIPLY * len(counts) * m * m:
        from scipy.sparse import csr_array

        sums = np.repeat(np.add.reduceat(weights, indptr[:-1]), counts)
        W = csr_array((weights / np.sqrt(sums), indices, indptr), shape=(len(counts), m))
        if sparse:
            L = -(W.T @ W).tocsc()
            if L.nnz < EDGES * m:
                L.setdiag(0)
                L.setdiag(extra - L.sum(axis=0))
                return factorize_sparse(L)
        else:
            solve = factorize_laplacian(W.astype(np.float32).toarray(), extra)
            if solve is not None:
                return solve
    from scipy.linalg import lapack

    from ..kernels.cpu.laplacian import laplacian

    factor, info = lapack.dpotrf(laplacian(indptr, indices, weights, extra).T, lower=1, clean=0, overwrite_a=1)
    if info:
        raise ArithmeticError(f"the Laplacian plus extra is not positive definite: {info}")
    return lambda r: lapack.dpotrs(factor, r, lower=1)[0]
