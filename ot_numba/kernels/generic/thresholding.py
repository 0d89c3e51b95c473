"""Reference for the layers of sparse recovery, in plain array-API code; see `contract`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device

from ..contract import SOFT

Array = Any


def product(A: Array, Z: Array, out: Array) -> None:
    """``out = A Z`` in place."""
    out[...] = A @ Z


def columns_of(A: Array) -> None:
    """What serves `residual_gradient` and `steps` where Z is sparse: nothing here."""


def residual_gradient(A: Array, Z: Array, Y: Array, R: Array, G: Array, columns: Any = None) -> None:
    """``R = A Z - Y`` and ``G = A' R`` in place."""
    R[...] = A @ Z - Y
    G[...] = A.T @ R


def _prox(kind: int, V: Array, tau: float) -> Array:
    xp = array_namespace(V)
    passing = V - tau * xp.sign(V) if kind == SOFT else V
    return xp.where(xp.abs(V) <= tau, xp.zeros_like(V), passing)  # a NaN passes


def proximal_step(
    kind: int,
    step: float,
    tau: float,
    momentum: float,
    X: Array,
    Z: Array,
    G: Array,
    signs: Array | None = None,
) -> None:
    """Layer of X and Z in place, and the sign of what it has made."""
    xp = array_namespace(X)
    W = _prox(kind, Z - step * G, tau)
    if signs is not None:
        signs[...] = xp.astype(W > 0, xp.int8) - xp.astype(W < 0, xp.int8)
    Z[...] = W + momentum * (W - X) if momentum else W
    X[...] = W


def accelerated_step(kind: int, step: float, tau: float, theta: Array, X: Array, Z: Array, G: Array) -> None:
    """The same with the momentum of FISTA for each signal, which restarts by itself; theta in place."""
    xp = array_namespace(X)
    W = _prox(kind, Z - step * G, tau)
    moved, following = W - X, (1 + xp.sqrt(1 + 4 * theta**2)) / 2
    products = xp.sum(xp.astype(Z - W, xp.float64) * xp.astype(moved, xp.float64), axis=0)
    momentum = xp.where(products > 0, xp.zeros_like(theta), (theta - 1) / following)
    theta[...] = xp.where(products > 0, xp.ones_like(theta), following)
    Z[...] = W + xp.astype(momentum, X.dtype) * moved
    X[...] = W


def steps(
    kind: int,
    step: Array,
    tau: Array,
    A: Array,
    Y: Array,
    X: Array,
    Z: Array,
    R: Array,
    G: Array,
    momentum: Array | None = None,
    theta: Array | None = None,
    columns: Any = None,
) -> None:
    """Layers one after the other, X and Z in place, from R and G of the old X to those of the new one."""
    repeat_steps(
        lambda V: residual_gradient(A, V, Y, R, G), proximal_step, accelerated_step, kind, step, tau, X, Z, G, momentum,
        theta,
    )  # fmt: skip


def repeat_steps(
    gradient: Callable[[Array], None],
    proximal_step: Callable[..., None],
    accelerated_step: Callable[..., None],
    kind: int,
    step: Array,
    tau: Array,
    X: Array,
    Z: Array,
    G: Array,
    momentum: Array | None,
    theta: Array | None,
) -> None:
    """What `steps` does, by the kernels of any backend and a function that evaluates R and G at a point."""
    for t in range(len(step)):
        if t or Z is not X:
            gradient(Z)
        if theta is None:
            proximal_step(kind, float(step[t]), float(tau[t]), 0.0 if momentum is None else float(momentum[t]), X, Z, G)
        else:
            accelerated_step(kind, float(step[t]), float(tau[t]), theta, X, Z, G)
    gradient(X)


def lasso_values(reg: float, X: Array, Y: Array, R: Array, G: Array) -> Array:
    """Objective and duality gap of the LASSO of every column; float64 (2, B)."""
    xp = array_namespace(X)
    wide = xp.astype(R, xp.float64)
    norms = xp.sum(xp.abs(X), axis=0, dtype=xp.float64)
    squares, cross = (xp.sum(wide * V, axis=0) for V in (wide, xp.astype(Y, xp.float64)))
    top = xp.astype(xp.max(xp.abs(G), axis=0), xp.float64)
    share = xp.where(top > reg, reg / xp.where(top > reg, top, xp.ones_like(top)), xp.ones_like(top))
    gap = 0.5 * (1 + share**2) * squares + share * cross + reg * norms
    return xp.stack([0.5 * squares + reg * norms, xp.where(gap < 0, xp.zeros_like(gap), gap)])


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
