"""Compiled assembly of the Laplacian of a graph given by sparse rows."""

from __future__ import annotations

import numpy as np

from .jit import kernel


@kernel
def _add_rows(indptr, indices, weights, L):
    for i in range(indptr.shape[0] - 1):
        lo, hi = indptr[i], indptr[i + 1]
        total = 0.0
        for p in range(lo, hi):
            total += weights[p]
        for p in range(lo, hi):
            j, scaled = indices[p], weights[p] / total
            degree = 0.0
            for q in range(p + 1, hi):
                edge = scaled * weights[q]
                L[j, indices[q]] -= edge
                L[indices[q], indices[q]] += edge
                degree += edge
            L[j, j] += degree


def laplacian(indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Upper triangle of ``diag(extra)`` plus the Laplacian with edges ``w_ij w_il / sum(w_i)`` for every row i.

    Columns are in order in each row of the CSR arrays; what is below the diagonal is 0.
    """
    L = np.zeros((extra.shape[0], extra.shape[0]))
    np.einsum("jj->j", L)[:] = extra
    _add_rows(indptr.astype(np.int64), indices.astype(np.int64), weights.astype(float), L)
    return L
