"""Derivatives of the optimal value and of the plan by the data of the problem."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..arrays.namespaces import array_namespace, device_of
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL, report_failure
from ..costs import PointCloud
from ..costs.gibbs import TILE_ENTRIES
from ..optimize import CGResult, conjugate_gradient, factorize_laplacian
from .objective import pair
from .problem import Problem
from .result import TransportResult

Array = Any
WRT = ("a", "b", "C", "x", "y", "reg")
SOLVERS = ("cholesky", "cg")
#: Largest marginal error of a plan to be differentiated.
MAX_MARGINAL_ERROR = 1e-4
RIDGE = 1e-16  #: of a column's diagonal in the Schur complement: no weaker link can carry a potential
TINY = 1e-280  #: column sum that is as good as none


def transport_gradients(result: TransportResult, wrt: str | Iterable[str] = ("a", "b")) -> dict[str, Any]:
    r"""Gradients of the optimal value by the data of the problem, from the envelope theorem.

    With the optimal potentials and plan, the mass :math:`M = \sum a = \sum b`, and c the metric:

    ========  ==============================================================================================
    wrt       balanced, KL form
    ========  ==============================================================================================
    ``"a"``   :math:`f + reg\,(M - 1)`
    ``"b"``   :math:`g + reg\,(M - 1)`
    ``"C"``   P
    ``"x"``   :math:`\sum_j P_{ij} \nabla_1 c(x_i, y_j)`
    ``"y"``   :math:`\sum_i P_{ij} \nabla_2 c(x_i, y_j)`
    ``"reg"`` :math:`KL(P | a b^\top)`
    ========  ==============================================================================================

    In the entropy form the constants of the first two lines fall away, and the last is :math:`\sum P (\log P
    - 1)`. With the penalty :math:`\rho\,KL(P 1 | a)` the first line is :math:`-\rho\,(e^{-f/\rho} - 1) -
    reg\,(e^{-f/\rho} - \sum b)`, without its last term in the entropy form.

    Parameters
    ----------
    result : TransportResult
        A solved problem. The gradients are exact at convergence, and off by the order of its
        `marginal_error`.
    wrt : str or iterable of str, default ("a", "b")
        Which ones: any of ``"a"``, ``"b"``, ``"C"``, ``"x"``, ``"y"``, ``"reg"``. The points of a
        `PointCloud` are two arguments even where y was left to default to x: the derivative by the shared
        points is the sum of both.

    Returns
    -------
    dict
        From the name to an array of the shape and dtype of that argument, or a float for ``"reg"``. The
        gradients by the weights of a balanced problem hold for changes that keep the two masses equal, and
        are defined up to a constant (t, -t): they are those of the potentials with :math:`\langle f, a\rangle
        = \langle g, b\rangle`. In the entropy form they are ``-inf`` where the weight is 0.

    Raises
    ------
    ValueError
        If a name is unknown or does not apply: ``"x"`` and ``"y"`` need the cost of a `PointCloud` with a
        metric that is not a user's function.

    Notes
    -----
    ``"C"`` takes O(n m) memory, all others O((n + m) d) and a tile of the plan; each O(n m d) time at most.
    Where points coincide, a distance has no derivative and the pair counts 0.

    References
    ----------
    Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré, "Interpolating between optimal transport and MMD using
    Sinkhorn divergences", AISTATS 2019.

    Examples
    --------
    >>> import ot_numba
    >>> C = ot_numba.PointCloud([[0.0], [1.0]], [[2.0], [3.0]])
    >>> result = ot_numba.sinkhorn(C, reg=0.1, tol=1e-12)
    >>> grads = ot_numba.transport_gradients(result, ("x", "reg"))
    >>> grads["x"].round(3).tolist(), round(grads["reg"], 3)
    ([[-2.0], [-2.0]], 0.693)
    """
    names = [wrt] if isinstance(wrt, str) else list(wrt)
    for name in names:
        check_choice(name, "wrt", WRT)
    problem = result.problem
    gradients: dict[str, Any] = {}
    if "a" in names:
        gradients["a"] = _by_weights(problem, result.f, problem.rho[0], problem.masses[1])
    if "b" in names:
        gradients["b"] = _by_weights(problem, result.g, problem.rho[1], problem.masses[0])
    if "C" in names:
        gradients["C"] = result.plan
    if "x" in names or "y" in names:
        pair = _by_points(result, names)
        gradients.update((name, pair["xy".index(name)]) for name in ("x", "y") if name in names)
    if "reg" in names:
        gradients["reg"] = _by_reg(result)
    return {name: gradients[name] for name in names}


def _by_weights(problem: Problem, potential: Array, rho: float, other_mass: float) -> Array:
    """Derivative of the value by the weights of one side."""
    xp = problem.xp
    f = xp.astype(potential, xp.float64)
    relative = xp.zeros_like(f) if math.isinf(rho) else xp.expm1(-f / rho)  # P 1 / a - 1 at the optimum
    gradient = f if math.isinf(rho) else -rho * relative
    if problem.regularizer == "kl":
        gradient = gradient - problem.reg * (relative + 1 - other_mass)
    return xp.astype(gradient, problem.cost.dtype)


def _by_reg(result: TransportResult) -> float:
    """The regulariser at the plan."""
    problem, xp = result.problem, result.problem.xp
    total = -result.linear_cost
    for sums, potential, weights in zip(result.marginals, (result.f, result.g), (problem.a, problem.b), strict=True):
        product = xp.where(weights > 0, xp.astype(potential, xp.float64), xp.zeros_like(sums)) * sums
        total += float(xp.sum(product))
    return total / problem.reg - float(xp.sum(result.marginals[0])) + problem.reference_mass


def _by_points(result: TransportResult, names: list[str]) -> tuple[Array, Array]:
    """Derivatives of the value by the points of both sides."""
    cost, xp = result.problem.cost, result.problem.xp
    if not isinstance(cost, PointCloud) or callable(cost.metric):
        given = "a metric that is a function" if isinstance(cost, PointCloud) else f"a {type(cost).__name__}"
        asked = " and ".join(repr(name) for name in "xy" if name in names)
        raise ValueError(f"wrt={asked} needs the cost of a PointCloud with a metric known by name, got {given}")
    x, y = xp.astype(cost.x, xp.float64), xp.astype(cost.y, xp.float64)
    if cost.metric == "cosine":
        pair = _cosine(result, x, y)
    else:
        centre = xp.mean(y, axis=0)[None, :]  # a small difference of large products elsewhere
        x, y = x - centre, y - centre
        pair = _sqeuclidean(result, x, y) if cost.metric == "sqeuclidean" else _by_tiles(result, x, y)
    return xp.astype(pair[0], cost.dtype), xp.astype(pair[1], cost.dtype)


def _products(result: TransportResult, x: Array, y: Array) -> tuple[Array, Array]:
    """``P y`` and ``P' x``."""
    xp, dtype = result.problem.xp, result.problem.cost.dtype
    return result.gibbs.products(*result.bits, V=xp.astype(y, dtype), U=xp.astype(x, dtype))


def _sqeuclidean(result: TransportResult, x: Array, y: Array) -> tuple[Array, Array]:
    r, c = result.marginals
    Py, Px = _products(result, x, y)
    return 2 * (r[:, None] * x - Py), 2 * (c[:, None] * y - Px)


def _cosine(result: TransportResult, x: Array, y: Array) -> tuple[Array, Array]:
    """The cost 1 - <u, v> for the unit vectors u, v of x, y."""
    xp = result.problem.xp
    norms = [xp.sqrt(xp.sum(z * z, axis=1, keepdims=True)) for z in (x, y)]
    u, v = x / norms[0], y / norms[1]
    out = []
    for unit, mean, norm in zip((u, v), _products(result, u, v), norms, strict=True):
        out.append((unit * xp.sum(unit * mean, axis=1, keepdims=True) - mean) / norm)
    return out[0], out[1]


def _by_tiles(result: TransportResult, x: Array, y: Array) -> tuple[Array, Array]:
    """Powers of the Euclidean distance, and the L1 distance."""
    cost, gibbs, xp = result.problem.cost, result.gibbs, result.problem.xp
    F, G = result.bits
    n, m = cost.shape
    step = max(1, TILE_ENTRIES // m)
    by_x, by_y = [], xp.zeros_like(y)
    for lo in range(0, n, step):
        hi = min(n, lo + step)
        data = cost.tile_data(lo, hi, gibbs.k)
        P = xp.astype(gibbs.kernels.plan(data, F[lo:hi], G), xp.float64)
        part = x[lo:hi, :]
        if cost.metric == "cityblock":
            columns = []
            for d in range(x.shape[1]):
                signed = P * xp.sign(part[:, d][:, None] - y[:, d][None, :])
                columns.append(xp.sum(signed, axis=1))
                by_y[:, d] -= xp.sum(signed, axis=0)
            by_x.append(xp.stack(columns, axis=1))
        else:
            power = 1.0 if cost.metric == "euclidean" else cost.metric
            C = xp.astype(data.x, xp.float64)
            P = xp.where(C > 0, P, xp.zeros_like(P))
            C = xp.where(C > 0, C, xp.ones_like(C))
            weights = P / C if power == 1 else power * P * C ** ((power - 2) / power)
            by_x.append(xp.sum(weights, axis=1)[:, None] * part - weights @ y)
            by_y += xp.sum(weights, axis=0)[:, None] * y - weights.T @ part
    return xp.concat(by_x), by_y


class PlanVJP(NamedTuple):
    """Derivatives of a function of the plan.

    Attributes
    ----------
    C : array of shape (n, m)
        By the cost.
    a, b : array of shape (n,), (m,)
        By the weights; balanced: for changes that keep the two masses equal, with ``<a, .> = <b, .>``.
    reg : float
        By the regularisation strength.
    """

    C: Array
    a: Array
    b: Array
    reg: float


def plan_vjp(
    result: TransportResult,
    G: Any,
    *,
    solver: str = "cholesky",
    tol: float = 1e-10,
    max_iter: int | None = None,
    on_fail: str = "warn",
) -> PlanVJP:
    r"""Derivatives of a function L of the plan by the data of the problem.

    They come from the given :math:`G = \partial L/\partial P`.

    Implicit differentiation of the optimality conditions: with :math:`W = G \circ P`, solve

    .. math::

        \begin{pmatrix} \operatorname{diag}(r) & P \\ P^\top & \operatorname{diag}(c) \end{pmatrix}
        \begin{pmatrix} l \\ m \end{pmatrix} = \begin{pmatrix} W 1 \\ W^\top 1 \end{pmatrix}, \qquad
        r = P 1\,(1 + reg/\rho_1),\ c = P^\top 1\,(1 + reg/\rho_2)

    (:math:`\rho = \infty` for a hard constraint). Then :math:`\partial L/\partial C = -(W - P \circ (l 1^\top
    + 1 m^\top))/reg`; balanced, :math:`\partial L/\partial a = l` and :math:`\partial L/\partial b = m`; and
    :math:`\partial L/\partial reg = \langle \partial L/\partial C,\ f 1^\top + 1 g^\top - C\rangle / reg`.

    Parameters
    ----------
    result : TransportResult
        A solved problem with a `marginal_error` of at most 1e-4. The derivatives are those of the problem
        whose marginals the plan has, so they are off by about the marginal error over the spectral gap of the
        plan: ask the solver for a small tol.
    G : array_like of shape (n, m)
        Derivative of L by the plan.
    solver : {"cholesky", "cg"}
        How to solve the Schur complement on the smaller side: by a factorisation, its diagonal rebuilt from
        sums of off-diagonal entries so that nothing cancels, or by conjugate gradients with diagonal
        preconditioning, for sides of many thousands.
    tol : float
        Of ``"cg"``, on the relative residual.
    max_iter : int, optional
        Of ``"cg"``, default 10 times the smaller side.
    on_fail : {"warn", "raise", "ignore"}
        What to do if ``"cg"`` does not reach `tol`.

    Returns
    -------
    PlanVJP
        In the dtype of the cost; computed in float64.

    Raises
    ------
    ValueError
        If the shape of G does not fit, an option is unknown, or the marginal error is too large.
    ConvergenceError
        If `tol` is missed and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is missed and ``on_fail="warn"``.

    Notes
    -----
    Memory: about 4 n m float64 numbers, and the square of the smaller side for ``"cholesky"``. Time with k =
    min(n, m): O(n m k + k^3), or O(n m) an iteration. In the entropy form of an unbalanced problem, the
    derivative by a weight that is 0 is infinite.

    Rounding adds about 1e-16 max|G| P / reg to the derivative by C, however ill-conditioned the system. At a small
    `reg` a plan can fall into blocks that exchange less mass than its marginal error, as one of uniform weights
    does. The derivatives by C and `reg` do not suffer from that, but those by the weights then hold only for changes
    that keep the mass of every block: differences between blocks are lost in rounding.

    References
    ----------
    Cuturi, Teboul, Niles-Weed, Vert, "Supervised quantile normalization for low rank matrix factorization",
    ICML 2020. Eisenberger, Toker, Leal-Taixé, Bernard, Cremers, "A unified framework for implicit Sinkhorn
    differentiation", CVPR 2022.

    Examples
    --------
    >>> import ot_numba
    >>> C = [[0.0, 1.0], [1.0, 0.0]]
    >>> result = ot_numba.sinkhorn(C, reg=0.5, tol=1e-12)
    >>> G = [[1.0, 0.0], [0.0, 0.0]]  # L = P_11
    >>> ot_numba.plan_vjp(result, G).C.round(6).tolist()
    [[-0.052497, 0.052497], [0.052497, -0.052497]]
    """
    problem, xp = result.problem, result.problem.xp
    check_choice(solver, "solver", SOLVERS)
    check_choice(on_fail, "on_fail", ON_FAIL)
    tol = check_real(tol, "tol", low=0)
    max_iter = None if max_iter is None else check_int(max_iter, "max_iter", low=1)
    array_namespace(result.f, G)
    G = as_float_array(G, "G", ndim=2, xp=xp, dtype=xp.float64, device=problem.cost.device)
    if tuple(G.shape) != tuple(problem.cost.shape):
        raise ValueError(f"G must have shape {tuple(problem.cost.shape)}, got {tuple(G.shape)}")
    if not result.marginal_error <= MAX_MARGINAL_ERROR:
        raise ValueError(
            f"result has marginal error {result.marginal_error:.1e}, above {MAX_MARGINAL_ERROR:g}: the plan "
            "of potentials that are not optimal has no such derivative; solve with a smaller tol"
        )
    P = xp.astype(result.plan, xp.float64)
    W = G * P
    sides = [0, 1] if P.shape[0] >= P.shape[1] else [1, 0]
    extra = [0.0 if math.isinf(rho) else problem.reg / rho for rho in problem.rho]
    system = _Optimality(xp, P if sides[0] == 0 else P.T, [extra[side] for side in sides], problem.balanced)
    sums = xp.sum(W, axis=1), xp.sum(W, axis=0)
    right = system.reduce(sums[sides[0]], sums[sides[1]])
    if solver == "cholesky":
        second = system.solve(right)
    else:
        solution = system.iterate(right, tol, max_iter)
        second = solution.x
        if not solution.converged:
            report_failure(
                f"conjugate gradients reached a relative residual of {solution.residual:.1e} in "
                f"{solution.n_iter} iterations, tol={tol:g}; use solver='cholesky', a larger reg, or a "
                "larger tol or max_iter",
                on_fail,
            )
    both = system.expand(sums[sides[0]], second), second
    row, column = both[sides[0]], both[sides[1]]
    by_cost = (P * (row[:, None] + column[None, :]) - W) / problem.reg
    by_reg = _regularisation_vjp(result, by_cost)
    by_weights = [
        _weights_vjp(result, G, side, (row, column)[side], (row, column)[1 - side], extra[side]) for side in (0, 1)
    ]
    if problem.balanced:
        shift = pair(xp, by_weights[0], problem.a) - pair(xp, by_weights[1], problem.b)
        shift /= 2 * problem.masses[0]
        by_weights = [by_weights[0] - shift, by_weights[1] + shift]
    dtype = problem.cost.dtype
    return PlanVJP(xp.astype(by_cost, dtype), *(xp.astype(w, dtype) for w in by_weights), by_reg)


class _Optimality:
    """The system ``[diag(r), P; P', diag(c)]`` by its Schur complement on the columns.

    r = P 1 (1 + s1) and c = P' 1 (1 + s2), with s = reg / rho, 0 for a hard constraint. Unknowns of empty
    rows and columns are 0: their diagonal entry is taken as 1.
    """

    def __init__(self, xp: Any, P: Array, extra: list[float], balanced: bool) -> None:
        self.xp, self.P, self.extra, self.balanced = xp, P, extra, balanced
        r, self.c = xp.sum(P, axis=1), xp.sum(P, axis=0)
        self.r = xp.where(r > 0, r * (1 + extra[0]), xp.ones_like(r))

    def reduce(self, u: Array, w: Array) -> Array:
        """Right-hand side of the Schur complement."""
        return w - self.P.T @ (u / self.r)

    def expand(self, u: Array, m: Array) -> Array:
        """First unknown from the second."""
        return (u - self.P @ m) / self.r

    def solve(self, right: Array) -> Array:
        """Second unknown, by factorisation."""
        xp, c, (first, second) = self.xp, self.c, self.extra
        W = self.P / xp.sqrt(self.r)[:, None]
        # row sums of W' W are c / (1 + s1), so that the diagonal is a sum of positive terms
        added = c * (second + first / (1 + first))
        if self.balanced:  # (1, -1) is in the kernel: the heaviest column gets 0
            index = xp.arange(c.shape[0], device=device_of(c))
            added = xp.where(index == xp.argmax(c), c, added)
        solve, ridge = None, RIDGE
        while solve is None:  # a sum of the rest alone where a part of the plan has no link that rounding leaves
            solve = factorize_laplacian(W, added + ridge * xp.where(c > TINY, c, xp.full_like(c, TINY)))
            ridge *= 100
        return solve(right)

    def iterate(self, right: Array, tol: float, max_iter: int | None) -> CGResult:
        """Second unknown, without forming the Schur complement."""
        xp, P, r = self.xp, self.P, self.r
        c = self.c * (1 + self.extra[1])
        diagonal = c - xp.sum(P * (P / r[:, None]), axis=0)
        # rounding may leave nothing of a column that one row fills
        diagonal = xp.where(diagonal > 1e-15 * c, diagonal, c)
        diagonal = xp.where(c > 0, diagonal, xp.ones_like(c))
        return conjugate_gradient(
            lambda m: c * m - P.T @ ((P @ m) / r),
            right,
            preconditioner=lambda residual: residual / diagonal,
            tol=tol,
            max_iter=max_iter,
        )


def _regularisation_vjp(result: TransportResult, by_cost: Array) -> float:
    """``<dL/dC, f + g - C> / reg``, without the pairs that have no mass."""
    problem, xp = result.problem, result.problem.xp
    total = 0.0
    for axis, potential in ((1, result.f), (0, result.g)):
        sums = xp.sum(by_cost, axis=axis)
        total += float(xp.sum(xp.where(sums == 0, xp.zeros_like(sums), xp.astype(potential, xp.float64)) * sums))
    n, m = problem.cost.shape
    step = max(1, TILE_ENTRIES // m)
    for lo in range(0, n, step):
        hi = min(n, lo + step)
        part, C = by_cost[lo:hi, :], xp.astype(problem.cost.rows(lo, hi), xp.float64)
        total -= float(xp.sum(xp.where(part == 0, xp.zeros_like(part), C) * part))
    return total / problem.reg


def _weights_vjp(result: TransportResult, G: Array, side: int, own: Array, other: Array, extra: float) -> Array:
    """Derivative by the weights of one side, from the unknowns of both."""
    problem, xp, gibbs = result.problem, result.problem.xp, result.gibbs
    weights, potential, rho = (problem.a, problem.b)[side], (result.f, result.g)[side], problem.rho[side]
    empty = weights == 0
    if bool(xp.any(empty)):
        # l_i = sum_j pi_ij (G_ij - m_j) / (1 + s1) has a limit: pi = P / P 1 does not depend on a
        F, G_bits = result.bits
        if side == 0:
            pi = gibbs.plan(-gibbs.row_logsumexp(G_bits), G_bits)
            limit = xp.sum(xp.astype(pi, xp.float64) * (G - other[None, :]), axis=1)
        else:
            pi = gibbs.plan(F, -gibbs.column_logsumexp(F))
            limit = xp.sum(xp.astype(pi, xp.float64) * (G - other[:, None]), axis=0)
        own = xp.where(empty, limit / (1 + extra), own)
    if math.isinf(rho):
        return own
    ratio = xp.exp(-xp.astype(potential, xp.float64) / rho)  # P 1 / a at the optimum
    return own * ratio * (1 + extra if problem.regularizer == "kl" else 1.0)
