"""Learning of the regularisation strength of entropic optimal transport."""

from __future__ import annotations

import math
from typing import Any

from ..arrays.namespaces import device_of
from ..arrays.validation import as_float_array
from ..costs.scale import cost_scale
from ..transport import sinkhorn
from ..transport.problem import make_problem

Array = Any
LOG_LIMIT = 50.0
POWER_STEPS = 50  #: for the second singular value of the plan
SAFETY = 0.5  #: share of the curvature found there that is promised nearby
TILE_ENTRIES = 1 << 20


class EntropicOTReg:
    """Bilevel problem from `entropic_ot_reg`."""

    certified = False

    def __init__(self, C: Any, a: Any, b: Any, *, upper: Any) -> None:
        first = make_problem(C, a, b, reg=1.0, regularizer="kl", unbalanced=None)
        self.cost, self.a, self.b, self.xp = first.cost, first.a, first.b, first.xp
        xp = self.xp
        if min(float(xp.min(self.a)), float(xp.min(self.b))) <= 0:
            raise ValueError("a and b must be positive: leave points without weight out")
        n, m = self.cost.shape
        self.weights = xp.astype(xp.concat([self.a, self.b]), xp.float64)
        self.U = None
        if upper is not None:
            self.U = as_float_array(upper, "upper", ndim=2, xp=xp, dtype=xp.float64, device=self.cost.device)
            if tuple(self.U.shape) != (n, m):
                raise ValueError(f"upper must have shape {(n, m)}, got {tuple(self.U.shape)}")
        self.start = xp.zeros(n + m, dtype=xp.float64, device=self.cost.device)
        self._solved: tuple[float, float, Any] | None = None
        size = float(xp.max(xp.abs(self.U))) if self.U is not None else float(cost_scale(self.cost, "max"))
        reg = float(cost_scale(self.cost, "mean")) or 1.0
        #: of the gradient of the upper level at a strength of the mean cost; no constant holds everywhere
        self.L_g = 2 * size * float(xp.max(self.weights)) / reg**2

    def reg(self, theta: Any) -> float:
        """Strength."""
        if math.prod(getattr(theta, "shape", ())) != 1:
            raise ValueError(f"theta must have 1 entry, got {math.prod(theta.shape)}")
        t = float(theta[0] if getattr(theta, "ndim", 0) else theta)
        return math.exp(min(max(t, -LOG_LIMIT), LOG_LIMIT))

    def _bits(self, x: Array, theta: Any) -> tuple[float, Any, Array, Array]:
        """Strength, kernel, and potentials in bits."""
        reg, n = self.reg(theta), self.cost.shape[0]
        problem = make_problem(self.cost, self.a, self.b, reg=reg, regularizer="kl", unbalanced=None)
        gibbs = self.cost.gibbs(problem.reg)
        dtype = self.cost.dtype
        F, G = problem.to_bits(self.xp.astype(x[:n], dtype), self.xp.astype(x[n:], dtype), gibbs)
        return reg, gibbs, F, G

    def _gauge(self, x: Array, reg: float) -> Array:
        """Gradient of a square that fixes the constant which may go from one potential to the other."""
        xp, n = self.xp, self.cost.shape[0]
        size = x.shape[0]
        # of the curvature of a typical entry, so that it neither bends most nor least
        shift = float(xp.sum(x[:n]) - xp.sum(x[n:])) / (size * size * reg)
        ones = xp.ones_like(x)
        return shift * xp.concat([ones[:n], -ones[n:]])

    def lower(self, x: Array, theta: Any) -> float:
        """Negative dual objective, with the square of the gauge."""
        xp = self.xp
        reg, gibbs, F, G = self._bits(x, theta)
        mass = float(xp.sum(gibbs.statistics(F, G)[0]))
        return reg * mass - float(xp.sum(self.weights * x)) + 0.5 * float(xp.sum(self._gauge(x, reg) * x))

    def lower_grad(self, x: Array, theta: Any) -> Array:
        """Marginal residuals."""
        reg, gibbs, F, G = self._bits(x, theta)
        r, c, _ = gibbs.statistics(F, G)
        return self.xp.concat([r, c]) - self.weights + self._gauge(x, reg)

    def lower_hvp(self, x: Array, theta: Any, v: Array) -> Array:
        """Product with the Hessian, in one pass."""
        xp, n = self.xp, self.cost.shape[0]
        reg, gibbs, F, G = self._bits(x, theta)
        ones, dtype = xp.ones_like(v), self.cost.dtype
        PV, PTU = gibbs.products(
            F, G,
            V=xp.astype(xp.stack([ones[n:], v[n:]], axis=1), dtype),
            U=xp.astype(xp.stack([ones[:n], v[:n]], axis=1), dtype),
        )  # fmt: skip
        diagonal = xp.concat([PV[:, 0], PTU[:, 0]])
        return (diagonal * v + xp.concat([PV[:, 1], PTU[:, 1]])) / reg + self._gauge(v, reg)

    def _tiles(self, x: Array, theta: Any) -> Any:
        """Strength, and tile by tile its rows with plan, costs, exponents times reg and upper derivative."""
        xp = self.xp
        reg, gibbs, F, G = self._bits(x, theta)
        n, m = self.cost.shape
        step = max(1, TILE_ENTRIES // m)
        for lo in range(0, n, step):
            hi = min(n, lo + step)
            P = xp.astype(gibbs.kernels.plan(self.cost.tile_data(lo, hi, gibbs.k), F[lo:hi], G), xp.float64)
            C = xp.astype(self.cost.rows(lo, hi), xp.float64)
            S = x[lo:hi, None] + x[None, n:] - C
            yield reg, P, S, C if self.U is None else self.U[lo:hi, :]

    def lower_jac_t(self, x: Array, theta: Any, q: Array) -> Array:
        """Product of q with the derivative of the gradient in the logarithm of the strength, in one pass."""
        xp, n = self.xp, self.cost.shape[0]
        total, lo = 0.0, 0
        for reg, P, S, _ in self._tiles(x, theta):
            hi = lo + P.shape[0]
            PS = P * S
            total -= float(xp.sum(PS * (q[lo:hi, None] + q[None, n:]))) / reg
            lo = hi
        total -= float(xp.sum(self._gauge(x, self.reg(theta)) * q))
        return xp.asarray([total], dtype=xp.float64, device=device_of(x))

    def upper(self, x: Array, theta: Any) -> float:
        """Cost of the plan."""
        return sum(float(self.xp.sum(P * U)) for _, P, _, U in self._tiles(x, theta))

    def upper_grad(self, x: Array, theta: Any) -> Array:
        """Its gradient in the potentials."""
        xp, rows, columns = self.xp, [], 0.0
        for reg, P, _, U in self._tiles(x, theta):
            W = P * U / reg
            rows.append(xp.sum(W, axis=1))
            columns = columns + xp.sum(W, axis=0)
        return xp.concat([*rows, columns])

    def upper_grad_theta(self, x: Array, theta: Any) -> Array:
        """Its derivative in the logarithm of the strength at fixed potentials."""
        xp = self.xp
        total = -sum(float(xp.sum(P * U * S)) / reg for reg, P, S, U in self._tiles(x, theta))
        return xp.asarray([total], dtype=xp.float64, device=device_of(x))

    def _solve(self, theta: Any, tol: float, init: Any) -> Any:
        return sinkhorn(
            self.cost, self.a, self.b, reg=self.reg(theta), tol=tol, max_iter=100_000, init=init, on_fail="ignore"
        )

    def _local(self, theta: Any) -> float:
        """Smallest curvature at the solution, by the second singular value of the scaled plan."""
        reg, xp, n = self.reg(theta), self.xp, self.cost.shape[0]
        if self._solved is not None and self._solved[0] == reg:
            return self._solved[1]
        result = self._solve(theta, 1e-6, self._solved[2] if self._solved else None)
        F, G = result.bits
        b, a = self.weights[n:], self.weights[:n]
        v = xp.arange(b.shape[0], dtype=xp.float64, device=device_of(b)) + 1.0
        square, dtype = 0.0, self.cost.dtype
        for _ in range(POWER_STEPS):
            v = v - xp.sum(b * v) / xp.sum(b)
            length = math.sqrt(float(xp.sum(b * v * v)))
            if not length > 0:
                break
            v = v / length
            Pv, _ = result.gibbs.products(F, G, V=xp.astype(v, dtype)[:, None])
            w = xp.astype(Pv[:, 0], xp.float64) / a
            square = float(xp.sum(a * w * w))
            _, back = result.gibbs.products(F, G, U=xp.astype(w, dtype)[:, None])
            v = xp.astype(back[:, 0], xp.float64) / b
        lowest = float(xp.min(self.weights))
        gap = max(1e-12, 1 - math.sqrt(min(1.0, square)))
        # the curvature of the gauge is that of a square over all entries
        mu = SAFETY * min(lowest * gap, 1.0 / self.weights.shape[0]) / reg
        self._solved = reg, mu, (result.f, result.g)
        return mu

    def mu(self, theta: Any) -> float:
        """Half the smallest curvature at the solution."""
        return self._local(theta)

    def lipschitz(self, theta: Any) -> float:
        """Twice the largest curvature at the solution."""
        return 4 * float(self.xp.max(self.weights)) / self.reg(theta) + 1 / self.reg(theta)

    def lower_solve(self, theta: Any, x0: Array | None, tol: float) -> tuple[Array, int]:
        """Potentials from Sinkhorn's algorithm, centred, and its iterations."""
        xp, n = self.xp, self.cost.shape[0]
        dtype = self.cost.dtype
        init = None if x0 is None else (xp.astype(x0[:n], dtype), xp.astype(x0[n:], dtype))
        mass = float(xp.sum(self.weights[:n]))
        result = self._solve(theta, max(tol / mass, 1e-15), init)
        f, g = xp.astype(result.f, xp.float64), xp.astype(result.g, xp.float64)
        shift = float(xp.sum(f) - xp.sum(g)) / self.weights.shape[0]
        return xp.concat([f - shift, g + shift]), result.n_iter


def entropic_ot_reg(C: Any, a: Any = None, b: Any = None, *, upper: Any = None) -> EntropicOTReg:
    r"""Learning of the regularisation strength of entropic transport, :math:`\theta = \log reg`.

    .. math::

        h(f, g, \theta) = reg \sum_{ij} P_{ij} - \langle a, f\rangle - \langle b, g\rangle, \qquad
        P_{ij} = a_i b_j\, e^{(f_i + g_j - C_{ij}) / reg}, \qquad U(P) = \langle U, P\rangle

    with a square added to h that fixes the constant which may go from f to g.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost.
    a, b : array_like of shape (n,), (m,), optional
        Weights > 0 of one total; default uniform.
    upper : array_like of shape (n, m), optional
        U, the cost on which the plan is judged; default C.

    Returns
    -------
    EntropicOTReg
        A problem for `hypergradient` and `maid`, with x of shape (n + m,), the potentials one after the other. mu is
        found at the solution of each theta and holds only near it: bounds are not certified.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    The lower level is solved by `sinkhorn`. A Hessian product is one pass over the cost, as is each derivative; the
    plan is only ever formed in tiles.

    References
    ----------
    Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NeurIPS 2013.

    Examples
    --------
    >>> import math
    >>> from ot_numba.bilevel import entropic_ot_reg, hypergradient
    >>> problem = entropic_ot_reg([[0, 1], [1, 0.5]], [0.4, 0.6], [0.5, 0.5])
    >>> result = hypergradient(problem, math.log(0.5), tol=1e-9)
    >>> round(result.value, 6), round(float(result.grad[0]), 6)
    (0.427124, 0.144455)
    """
    return EntropicOTReg(C, a, b, upper=upper)
