"""Learning of the regularisation strength of entropic optimal transport."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..arrays.namespaces import device_of
from ..arrays.validation import as_float_array
from ..costs.scale import cost_scale
from ..optimize.conjugate_gradient import jacobi
from ..transport import sinkhorn
from ..transport.problem import make_problem

Array = Any
LOG_LIMIT = 50.0
POWER_STEPS = 50  #: for the second singular value of the plan
SAFETY = 0.5  #: share of the curvature found there that is promised nearby
TILE_ENTRIES = 1 << 20
LARGEST_DIAMETER = 15.0  #: beyond it Birkhoff's bound says nothing: it grows like the exponential of a half of it


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
        self._upper = upper
        if upper is not None and not callable(upper):
            self._upper = as_float_array(upper, "upper", ndim=2, xp=xp, dtype=xp.float64, device=self.cost.device)
            if tuple(self._upper.shape) != (n, m):
                raise ValueError(f"upper must have shape {(n, m)}, got {tuple(self._upper.shape)}")
        self.start = xp.zeros(n + m, dtype=xp.float64, device=self.cost.device)
        self._solved: tuple[float, float, float, Any] | None = None
        self._cross = self._cross_differences()

    def _cross_differences(self) -> float:
        """Bound of the largest C_ij + C_kl - C_il - C_kj, at most twice too large; inf if there are infinite costs."""
        xp, (n, m) = self.xp, self.cost.shape
        step = max(1, TILE_ENTRIES // m)
        tiles = [(lo, min(n, lo + step)) for lo in range(0, n, step)]
        read = lambda lo, hi: xp.astype(self.cost.rows(lo, hi), xp.float64)  # noqa: E731
        mean = sum(xp.sum(read(*tile), axis=0) for tile in tiles) / n
        if not math.isfinite(float(xp.sum(mean))):
            return math.inf
        # a row differs from any other by no more than both do from the mean
        rest = (read(*tile) - mean for tile in tiles)
        return 2 * max(float(xp.max(xp.max(r, axis=1) - xp.min(r, axis=1))) for r in rest)

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
        """Tile by tile: strength, rows of the plan, exponents times reg, and costs."""
        xp = self.xp
        reg, gibbs, F, G = self._bits(x, theta)
        n, m = self.cost.shape
        step = max(1, TILE_ENTRIES // m)
        for lo in range(0, n, step):
            hi = min(n, lo + step)
            P = xp.astype(gibbs.kernels.plan(self.cost.tile_data(lo, hi, gibbs.k), F[lo:hi], G), xp.float64)
            C = xp.astype(self.cost.rows(lo, hi), xp.float64)
            yield reg, P, x[lo:hi, None] + x[None, n:] - C, C

    def plan(self, x: Array, theta: Any) -> Array:
        """Plan of the potentials x, (n, m), float64."""
        return self.xp.concat([P for _, P, _, _ in self._tiles(x, theta)], axis=0)

    def _evaluated(self, P: Array) -> tuple[float, Array]:
        """A callable upper level: value and derivative at a plan."""
        value, slope = self._upper(P)
        if tuple(getattr(slope, "shape", ())) != tuple(P.shape):
            raise ValueError(
                f"upper must return a value and an array of shape {tuple(P.shape)}, got one of shape "
                f"{tuple(getattr(slope, 'shape', ()))}"
            )
        return float(value), slope

    def _slopes(self, x: Array, theta: Any) -> Any:
        """Tile by tile: strength, rows of the plan, exponents times reg, and derivative of the upper level by them."""
        U = self._evaluated(self.plan(x, theta))[1] if callable(self._upper) else self._upper
        lo = 0
        for reg, P, S, C in self._tiles(x, theta):
            hi = lo + P.shape[0]
            yield reg, P, S, C if U is None else U[lo:hi, :]
            lo = hi

    def _jacobian(self, x: Array, theta: Any) -> Array:
        """Derivative of the gradient by the logarithm of the strength, (n + m,), in one pass."""
        xp, rows, columns = self.xp, [], 0.0
        for reg, P, S, _ in self._tiles(x, theta):
            W = P * S / reg
            rows.append(xp.sum(W, axis=1))
            columns = columns + xp.sum(W, axis=0)
        return -xp.concat([*rows, columns]) - self._gauge(x, self.reg(theta))

    def lower_jac_t(self, x: Array, theta: Any, q: Array) -> Array:
        """Product of q with the derivative of the gradient in the logarithm of the strength."""
        return self.xp.sum(self._jacobian(x, theta) * q, keepdims=True)

    def jac_norm(self, x: Array, theta: Any) -> float:
        """Norm of that derivative."""
        column = self._jacobian(x, theta)
        return math.sqrt(float(self.xp.sum(column * column)))

    def lower_preconditioner(self, x: Array, theta: Any) -> Callable[[Array], Array]:
        """Division by the diagonal of the Hessian."""
        reg, gibbs, F, G = self._bits(x, theta)
        r, c, _ = gibbs.statistics(F, G)
        return jacobi((self.xp.concat([r, c]) + 1 / self.weights.shape[0] ** 2) / reg)

    def upper(self, x: Array, theta: Any) -> float:
        """Value of the upper level at the plan."""
        if callable(self._upper):
            return self._evaluated(self.plan(x, theta))[0]
        return sum(float(self.xp.sum(P * U)) for _, P, _, U in self._slopes(x, theta))

    def upper_grad(self, x: Array, theta: Any) -> Array:
        """Its gradient in the potentials."""
        xp, rows, columns = self.xp, [], 0.0
        for reg, P, _, U in self._slopes(x, theta):
            W = P * U / reg
            rows.append(xp.sum(W, axis=1))
            columns = columns + xp.sum(W, axis=0)
        return xp.concat([*rows, columns])

    def upper_grad_theta(self, x: Array, theta: Any) -> Array:
        """Its derivative in the logarithm of the strength at fixed potentials."""
        xp = self.xp
        total = -sum(float(xp.sum(P * U * S)) / reg for reg, P, S, U in self._slopes(x, theta))
        return xp.asarray([total], dtype=xp.float64, device=device_of(x))

    def _solve(self, theta: Any, tol: float, init: Any, max_iter: int = 100_000) -> Any:
        return sinkhorn(
            self.cost, self.a, self.b, reg=self.reg(theta), tol=tol, max_iter=max_iter, init=init, on_fail="ignore"
        )

    def _local(self, theta: Any) -> tuple[float, float]:
        """Constants that hold near the solution: mu, and the Lipschitz constant of the gradient of the upper level."""
        reg, xp, n = self.reg(theta), self.xp, self.cost.shape[0]
        if self._solved is not None and self._solved[0] == reg:
            return self._solved[1:3]
        result = self._solve(theta, 1e-6, self._solved[3] if self._solved else None)
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
        self._solved = reg, mu, self._upper_bend(result, reg), (result.f, result.g)
        return self._solved[1:3]

    def _upper_bend(self, result: Any, reg: float) -> float:
        """Lipschitz constant of the gradient of the upper level in the potentials, for plans like the given one."""
        xp, most, curvature = self.xp, float(self.xp.max(self.weights)), 0.0
        if self._upper is None:
            steep = float(cost_scale(self.cost, "max"))
        elif callable(self._upper):
            n = self.cost.shape[0]
            P = xp.astype(result.plan, xp.float64)
            loose = self.weights[:n, None] * self.weights[None, n:] / xp.sum(self.weights[:n])
            slope, other = self._evaluated(P)[1], self._evaluated(loose)[1]
            steep = float(xp.max(xp.abs(slope)))
            distance = float(xp.sum((P - loose) ** 2))
            curvature = math.sqrt(float(xp.sum((slope - other) ** 2)) / distance) if distance > 0 else 0.0
        else:
            steep = float(xp.max(xp.abs(self._upper)))
        return 2 * most * (steep + most * curvature) / reg**2

    def L_g(self, theta: Any) -> float:  # noqa: N802
        """Lipschitz constant of the gradient of the upper level near the solution."""
        return self._local(theta)[1]

    def mu(self, theta: Any) -> float:
        """Half the smallest curvature at the solution, by the second singular value of the scaled plan."""
        return self._local(theta)[0]

    def lipschitz(self, theta: Any) -> float:
        """Twice the largest curvature at the solution."""
        return 4 * float(self.xp.max(self.weights)) / self.reg(theta) + 1 / self.reg(theta)

    def lower_solve(self, theta: Any, x0: Array | None, tol: float, max_iter: int = 100_000) -> tuple[Array, int]:
        """Potentials from Sinkhorn's algorithm, centred, and its iterations."""
        xp, n = self.xp, self.cost.shape[0]
        dtype = self.cost.dtype
        init = None if x0 is None else (xp.astype(x0[:n], dtype), xp.astype(x0[n:], dtype))
        mass = float(xp.sum(self.weights[:n]))
        result = self._solve(theta, max(tol / mass, 1e-15), init, max_iter)
        f, g = xp.astype(result.f, xp.float64), xp.astype(result.g, xp.float64)
        return self._centred(f, g), result.n_iter

    def _centred(self, f: Array, g: Array) -> Array:
        """Potentials one after the other, with sums that agree."""
        shift = float(self.xp.sum(f) - self.xp.sum(g)) / self.weights.shape[0]
        return self.xp.concat([f - shift, g + shift])

    def lower_error(self, x: Array, theta: Any) -> float | None:
        """Bound of the distance of x to the solution by Birkhoff's contraction; None where it says nothing.

        A half-step contracts the oscillation of errors by tanh(D / 4), and those of both potentials, one of them with
        its sign turned, lie in one interval around 0, the mean of all of them.
        """
        reg, gibbs, F, G = self._bits(x, theta)
        diameter = self._cross / reg
        if not diameter <= LARGEST_DIAMETER:
            return None
        xp, n = self.xp, self.cost.shape[0]
        r, _, _ = gibbs.statistics(F, G)
        first = self._centred(x[:n] - reg * xp.log(r / self.weights[:n]), x[n:])
        _, gibbs, F, G = self._bits(first, theta)
        step = reg * xp.log(gibbs.statistics(F, G)[1] / self.weights[n:])
        spread = float(xp.max(step) - xp.min(step)) * math.cosh(diameter / 4) ** 2
        moved = math.sqrt(float(xp.sum((first - x) ** 2)))
        return moved + 0.5 * spread * math.sqrt(self.weights.shape[0])


def entropic_ot_reg(C: Any, a: Any = None, b: Any = None, *, upper: Any = None) -> EntropicOTReg:
    r"""Learning of the regularisation strength of entropic transport, :math:`\theta = \log reg`.

    .. math::

        h(f, g, \theta) = reg \sum_{ij} P_{ij} - \langle a, f\rangle - \langle b, g\rangle, \qquad
        P_{ij} = a_i b_j\, e^{(f_i + g_j - C_{ij}) / reg}

    with a square added to h that fixes the constant which may go from f to g; the upper level is any function of P.

    Parameters
    ----------
    C : Cost or array_like of shape (n, m)
        Ground cost.
    a, b : array_like of shape (n,), (m,), optional
        Weights > 0 of one total; default uniform.
    upper : array_like of shape (n, m), or callable, optional
        What the plan is judged on: a cost U, for :math:`\langle U, P\rangle`, by default C; or a function that takes P
        (n, m), float64, and returns its value and its derivative by P (n, m).

    Returns
    -------
    EntropicOTReg
        A problem for `hypergradient` and `maid`, with x of shape (n + m,), the potentials one after the other;
        ``plan(x, theta)`` is their plan. mu and L_g are found at the solution of each theta and hold only near it:
        nothing is certified.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    The lower level is solved by `sinkhorn`. A Hessian product is one pass over the cost, as is each derivative; unless
    `upper` is a function the plan is only ever formed in tiles.

    With D the largest cross-difference :math:`C_{ij} + C_{kl} - C_{il} - C_{kj}` over reg, the distance to the exact
    potentials has Birkhoff's a-posteriori bound

    .. math:: \operatorname{osc}(g - g^*) \le \cosh^2(D / 4) \operatorname{osc}(g_+ - g)

    with :math:`g_+` one step of Sinkhorn's algorithm further, which is certain. It is in use up to D = 15; beyond,
    where it says nothing, the accuracy is the norm of the gradient over the local mu: a heuristic.

    References
    ----------
    Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NeurIPS 2013. Franklin, Lorenz, "On the
    scaling of multidimensional matrices", Linear Algebra and its Applications 114, 1989 (the contraction).

    Examples
    --------
    >>> import math
    >>> from ot_numba.bilevel import entropic_ot_reg, hypergradient
    >>> problem = entropic_ot_reg([[0, 1], [1, 0.5]], [0.4, 0.6], [0.5, 0.5])
    >>> result = hypergradient(problem, math.log(0.5), tol=1e-9)
    >>> round(result.value, 6), round(float(result.grad[0]), 6)
    (0.427124, 0.144455)

    The strength that a plan was made with:

    >>> import numpy as np
    >>> from ot_numba import maid, sinkhorn
    >>> C = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0.5]])
    >>> P = sinkhorn(C, reg=0.3, tol=1e-12).plan
    >>> problem = entropic_ot_reg(C, upper=lambda Q: (0.5 * float(((Q - P) ** 2).sum()), Q - P))
    >>> result = maid(problem, math.log(1.0), tol=1e-4, step=10.0)
    >>> round(math.exp(result.theta[0]), 2), result.certified
    (0.3, False)
    """
    return EntropicOTReg(C, a, b, upper=upper)
