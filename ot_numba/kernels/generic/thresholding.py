"""Reference for the layers of sparse recovery, in plain array-API code; see `contract`."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from ..contract import SOFT

Array = Any


def product(A: Array, Z: Array, out: Array) -> None:
    """``out = A Z`` in place."""
    out[...] = A @ Z


def columns_of(A: Array) -> None:
    """What serves `residual_gradient` where Z is sparse: nothing here."""


def residual_gradient(A: Array, Z: Array, Y: Array, R: Array, G: Array, columns: Array | None = None) -> None:
    """``R = A Z - Y`` and ``G = A' R`` in place."""
    R[...] = A @ Z - Y
    G[...] = A.T @ R


def proximal_step(
    kind: int,
    step: float,
    tau: float,
    momentum: float,
    X: Array,
    Z: Array,
    G: Array,
    signs: Array | None = None,
) -> Array:
    """Layer of X and Z in place; the sign of what it has made, and the product that tells when to restart."""
    xp = array_namespace(X)
    V = Z - step * G
    W = xp.where(xp.abs(V) <= tau, xp.zeros_like(V), V - tau * xp.sign(V) if kind == SOFT else V)  # a NaN passes
    if signs is not None:
        signs[...] = xp.astype(W > 0, xp.int8) - xp.astype(W < 0, xp.int8)
    if X is Z:
        product = xp.zeros((), dtype=xp.float64, device=device(X))
    else:
        product = xp.sum(xp.astype(Z - W, xp.float64) * xp.astype(W - X, xp.float64))
    Z[...] = W + momentum * (W - X) if momentum else W
    X[...] = W
    return product


def masked_adjoint(P: Array, signs: Array, G: Array) -> tuple[Array, Array]:
    """``(sum Q G, sum Q signs)`` where Q, which P becomes, is P where it may pass."""
    xp = array_namespace(P)
    P[...] = xp.where(signs != 0, P, xp.zeros_like(P))
    Q = xp.astype(P, xp.float64)
    return xp.sum(Q * xp.astype(G, xp.float64)), xp.sum(Q * xp.astype(signs, xp.float64))


def keep_largest(X: Array, k: int) -> None:
    """All but the k largest absolute values of every column become 0, in place; of equal ones the first stay."""
    xp = array_namespace(X)
    sizes = xp.where(xp.isnan(X), xp.full_like(X, xp.inf), xp.abs(X))
    order = xp.argsort(sizes, axis=0, descending=True, stable=True)
    ranks = xp.argsort(order, axis=0, stable=True)
    X[...] = xp.where(ranks < k, X, xp.zeros((), dtype=X.dtype, device=device(X)))
