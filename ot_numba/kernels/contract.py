"""The kernel contract: every backend offers these functions under these names.

State is kept in base 2.  With potentials F (n,), G (m,) in bits, the plan is

    P_ij = 2**e_ij,    e_ij = F_i + G_j - scale * c(x_i, y_j),

so that no kernel multiplies by log2(e) or adds weights inside a loop.  A cost is handed over as a `CostData`.
All functions return new arrays unless a row says "in place"; sums are returned in float64 whatever the dtype
of the state. Errors are numbers, or float64 arrays without dimensions on a device that nobody has to wait for.

==================  ==========================================================================================
name                what it returns
==================  ==========================================================================================
sinkhorn_rows       one row update of F (in place) and, from the same exponentials, the column sums of the
                    plan after it: ``(row_error, column_sums)``
sinkhorn_columns    the column update of G (in place) from those sums: ``column_error``
absorbed_rows       the same row update for a stored kernel K with scalings p (in place), q
absorbed_columns    the column update of q (in place) from the column sums
absorbed_pair       ``(t, K' (w t))`` for ``t = K v`` in one pass over K
plan_pair           ``(t, P' (w t))`` for ``t = P v`` in one pass
row_logsumexp       ``log2 sum_j 2**(G_j - scale c_ij)`` for a batch of G: (L, m) -> (L, n)
column_logsumexp    ``log2 sum_i 2**(F_i - scale c_ij)``: (n,) -> (m,)
marginals           ``(P 1, P' 1, sum_j P_ij e_ij)``
products            ``(P @ V, P.T @ U)`` in one pass
plan                P as a dense array (exactly zero below the smallest normal number)
pairwise_cost       dense costs between points, for a `metric` of this module
mass_histogram      mass of the entries of P by exponent, for the choice of a truncation threshold
csr_plan            entries of P with ``e_ij >= row_threshold_i`` as CSR arrays
row_kth_exponent    k-th largest exponent of every row
==================  ==========================================================================================

The module `topk` of every backend has the rows of quadratic and cardinality-constrained plans. There F and G are in
the units of the cost, ``s_ij = G_j - scale c_ij`` in the dtype of G, and all that follows in float64. Row i of the plan
maximises ``<F_i + s_i, t> - Omega(t)`` over ``t >= 0``, and the conjugate is that maximum. With ``x = F_i + s_i``:

==================  ==========================================================================================
delta = 0           ``t_j = max(x_j, 0) / reg`` for the k largest of the row, of equal ones those of lowest
                    index, else 0; the conjugate is ``reg / 2 sum_j t_j**2``
delta > 0           if at most k entries of x are positive, ``t_j = max(x_j, 0) / (reg + delta)`` and the
                    conjugate is ``(reg + delta) / 2 sum_j t_j**2``; else, with the level L > 0 that solves
                    ``sum_j min(max(x_j - L, 0) reg / delta, L) = k L``, the entry is full if ``(x_j - L) reg
                    / delta >= L``, with ``t_j = x_j / (reg + delta)``, and pooled if it is above L and not full,
                    with ``t_j = (x_j - L) / delta``, else 0. The conjugate is half the sum of ``reg + delta`` (full)
                    or ``delta`` (pooled) times ``t_j**2``, and of ``(k - number of full) L**2 / reg``
==================  ==========================================================================================

k is from 1 to m; where k = m, delta only adds to reg. -inf in F or G, or inf in C, makes an entry 0.

==================  ==========================================================================================
semidual_rows       F (n,), float64, for which row i sums to a_i, with the conjugates and column sums of the
                    plan there: ``(F, conjugates, column_sums)``. Where a_i is 0, or no entry of s is finite, F is
                    minus the largest entry of s and the row is 0. With reg = 0 (and k = 1, delta = 0) F is that
                    everywhere, all of a_i goes to the first of the largest entries, and the conjugate is 0.
                    Plan and conjugates are computed from scores less the largest of the row: the sums are
                    right to rounding even where ``reg a_i`` is below the rounding of F
semidual_plan_rows  that plan: ``(F, data, indices, indptr)``, entries as in `plan_rows`
dual_rows           ``(row_sums, conjugates, column_sums)`` for given F, float64, and G
plan_rows           the plan for given F, float64, and G: the entries that are > 0 as CSR arrays ``(data,
                    indices, indptr)``, rows in column order
project_simplex     projections of the rows of V on ``{t >= 0, sum t = z_i, at most k entries > 0}``, z (L,)
                    float64; of equal entries those of lowest index are kept
ksupport_norm_sq    squared k-support norms of rows, float64
==================  ==========================================================================================

Sparse recovery has a family of its own, the module ``thresholding`` of every backend. Signals are the columns of (n, B)
arrays, float32 or float64, measurements those of (m, B) arrays; all are C-contiguous. Layers are ``V = Z - step G`` and
``prox(V)``, with the proximal operators SOFT, ``sign(V) max(|V| - tau, 0)``, and HARD, V where ``|V| > tau``, else 0.
An entry with ``|V| = tau`` becomes 0, and NaN stays; V, and what is compared with tau, is rounded to the dtype of the
arrays.

==================  ==========================================================================================
name                what it returns
==================  ==========================================================================================
product             nothing; ``out = A Z`` in place, where A may be the transpose of a C-contiguous array
columns_of          what may serve as `columns` where Z is sparse, of the size of A; or None
residual_gradient   nothing; ``R = A Z - Y`` and ``G = A' R`` in place, for A (m, n)
proximal_step       nothing; for ``W = prox(V)``, in place, `signs` (int8, if given) is the sign of W, that is of V
                    where it passed, Z is ``W + momentum (W - X)`` and X is W. Without momentum X and Z may be the
                    same array
accelerated_step    nothing; the same with ``momentum = (theta - 1) / theta'`` of each signal, where ``theta' = (1 +
                    sqrt(1 + 4 theta**2)) / 2``, and theta (B,), float64, becomes theta'. Where ``sum (Z - W) (W -
                    X) > 0``, momentum is 0 and theta becomes 1. G may be overwritten
steps               nothing; so many layers as `step` and `tau`, (T,) float64 arrays on the host, have entries, each
                    with G at its Z: those of `accelerated_step` if theta is given, else of `proximal_step`, with
                    `momentum` (T,), if given. Without either X and Z are the same array. R and G belong to X,
                    on entry and again on exit
lasso_values        float64 (2, B): of each signal the objective ``||R||**2 / 2 + reg sum |X|`` and the duality gap
                    ``(1 + s**2) ||R||**2 / 2 + s sum R Y + reg sum |X|`` where s is reg / max |G|, at most 1; 0 if
                    that is below 0
masked_adjoint      ``(sum Q G, sum Q signs)`` for ``Q = P`` where signs != 0, else 0; P becomes Q in place
keep_largest        nothing; X in place, all but the k largest absolute values of every column becoming 0; of
                    equal ones the first rows are kept, and NaN counts as infinite
==================  ==========================================================================================

The module `stencils` of every backend has the lower levels of image denoising. Images are batches x (B, H, W), one
dtype, signals have H = 1; results of the size of an image go to the array `out`, all of it overwritten, which must not
overlap the input. Values, norms and inner products are Python floats, summed in float64, over the whole batch. In

    h(x) = 1/2 ||x - y||**2 + sum_ij w_ij phi(D x)_ij

D x are the differences to the right, x_i,j+1 - x_ij, and down, x_i+1,j - x_ij, left out where there is no neighbour.
For a pixel with both, phi is ``sqrt(dx**2 + nu**2) + sqrt(dy**2 + nu**2)``, isotropic ``sqrt(dx**2 + dy**2 + nu**2)``;
with one, it is the one root; with none, 0. The weight w is a number, or an (H, W) array of the dtype of x. Fields of
experts replace the sum by ``sum_k weights_k sum sqrt(u_k**2 + nus_k**2)`` with the valid correlations
``u_k[i, j] = sum filters[k, p, q] x[i + p, j + q]``; filters (K, kh, kw) are of the dtype of x, and weights, nus (K,)
float64. Where nu**2 is not a normal number of the dtype of x, nu counts as the least for which it is.

==================  ==========================================================================================
tv_gradient         ``(h(x), norm of the gradient)``; the gradient goes to `out`
tv_hvp              ``<v, H v>`` with the Hessian H at x; ``H v`` goes to `out`
tv_jacobian_t       ``<q, d grad / d log w>`` and ``<q, d grad / d log nu>``; with an (H, W) array `pixels` the
                    former is written there pixel by pixel, summed over the batch
tv_steps            for z with gradient g: ``x_new = z - step g``, ``z <- x_new + momentum (x_new - x)``, ``x <-
                    x_new``, in place, up to `count` >= 1 times; ``(steps, norm of the last g)``. Where that is not
                    above `limit` (or NaN) it was the last step, and z is left as it was; `scratch` is (2, B, H, W)
foe_gradient        as `tv_gradient`
foe_hvp             as `tv_hvp`
foe_jacobian_t      ``<q, d grad / d .>`` for log weights (K,), log nus (K,) and filters, float64
==================  ==========================================================================================
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from array_api_compat import device

#: Kinds of cost that the kernels evaluate themselves.
DENSE, DOT = range(2)

#: Metrics of `pairwise_cost`: ||x - y||_2 ** power, and ||x - y||_1.
POWER, CITYBLOCK = range(2)

#: Proximal operators of `thresholding`.
SOFT, HARD = range(2)

#: Rows and columns of a tile that the kernels of `cpu.tiles` and `generic.tiles` visit as a whole, or not at all.
SIDE = 16

#: Exponent range of `mass_histogram`: bins of 1/4 bit from 2**-HISTOGRAM_BITS to 2**0, lower entries in bin 0.
HISTOGRAM_BITS = 256
HISTOGRAM_BINS_PER_BIT = 4


def least_smoothing(info: Any) -> float:
    """Least nu of `stencils` whose square is a normal number, from the ``finfo`` of the dtype."""
    return 1.01 * math.sqrt(float(info.smallest_normal))


class CostData(NamedTuple):
    """A ground cost as the kernels see it: ``scale * c(x_i, y_j)`` for rows ``i < n`` and columns ``j < m``.

    ======  ===============================  =====================================================
    kind    x, y                             c
    ======  ===============================  =====================================================
    DENSE   x = C (n, m); y unused (1, 1)    C_ij
    DOT     x (n, d); y (d, m)               -<x_i, y_j> (norms live in the offsets of F and G)
    ======  ===============================  =====================================================
    """

    kind: int
    x: Any
    y: Any
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.x.shape[0], self.x.shape[1] if self.kind == DENSE else self.y.shape[1]


class Tiles(NamedTuple):
    """Which tiles of `SIDE` x `SIDE` entries of an (n, m) plan are visited; at the edges they are smaller.

    Attributes
    ----------
    active : array of bool, (rows of tiles, columns of tiles)
        Whether a tile is visited.
    starts : array of int64, (rows of tiles + 1,)
        Number of entries visited in the rows of tiles before each, the last for all of them.
    entries : int
        Number of entries visited.
    """

    active: Any
    starts: Any
    entries: int

    @classmethod
    def of(cls, xp: Any, active: Any, shape: tuple[int, int]) -> Tiles:
        """The tiles that are marked; all in a row of tiles without any, so that no row is lost."""
        active = active | ~xp.any(active, axis=1, keepdims=True)
        heights, widths = (_tile_sizes(xp, size, active) for size in shape)
        entries = heights * (xp.astype(active, xp.int64) @ widths)
        starts = xp.cumulative_sum(entries, include_initial=True)
        return cls(active, starts, int(starts[-1]))


def _tile_sizes(xp: Any, size: int, like: Any) -> Any:
    """Rows, or columns, of each tile along one side."""
    first = xp.arange(0, size, SIDE, dtype=xp.int64, device=device(like))
    return xp.where(first + SIDE < size, xp.full_like(first, SIDE), size - first)


KERNELS = (
    "sinkhorn_rows",
    "sinkhorn_columns",
    "absorbed_rows",
    "absorbed_columns",
    "absorbed_pair",
    "plan_pair",
    "row_logsumexp",
    "column_logsumexp",
    "marginals",
    "products",
    "plan",
    "pairwise_cost",
    "mass_histogram",
    "csr_plan",
    "row_kth_exponent",
)
