"""A checked entropic transport problem, and how its potentials, weights and units map to those of the solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..arrays.namespaces import array_namespace
from ..arrays.validation import as_float_array, check_balanced, check_choice, check_real, check_weights
from ..costs import Cost, GibbsKernel, Grid, as_cost

Array = Any
REGULARIZERS = ("kl", "entropy")


@dataclass(frozen=True)
class Problem:
    """min <C, P> + reg R(P) + rho_1 KL(P 1 | a) + rho_2 KL(P' 1 | b); rho = inf is a hard constraint.

    R(P) = KL(P | a b') or sum P (log P - 1).
    """

    cost: Cost
    a: Array
    b: Array
    reg: float
    regularizer: str
    rho: tuple[float, float]
    ordered: bool = False  #: whether `restricted` is in the order in which passes over the cost are cheapest
    stored: bool = False  #: whether a kernel will be stored, for a grid too

    @property
    def xp(self) -> Any:
        """Array namespace of the data."""
        return self.cost.xp

    @property
    def balanced(self) -> bool:
        """Whether both marginals are hard constraints."""
        return math.isinf(self.rho[0]) and math.isinf(self.rho[1])

    @property
    def dampings(self) -> tuple[float, float]:
        """Rho / (rho + reg) for each side."""
        return self.damping(self.reg)

    def damping(self, reg: float) -> tuple[float, float]:
        """The same at another regularisation."""
        first, second = (1.0 if math.isinf(rho) else rho / (rho + reg) for rho in self.rho)
        return first, second

    @cached_property
    def masses(self) -> tuple[float, float]:
        """Total weights."""
        return _total(self.xp, self.a), _total(self.xp, self.b)

    @property
    def mass(self) -> float:
        """Mass that marginal errors are relative to."""
        return max(self.masses)

    @cached_property
    def support(self) -> tuple[Array | None, Array | None]:
        """Indices of the positive weights of each side; None for all in order (or if the cost handles zeros itself)."""
        if isinstance(self.cost, Grid) and not self.stored:
            return None, None
        kept = _positive(self.xp, self.a), _positive(self.xp, self.b)
        if not self.ordered:
            return kept
        order = self.cost.subset(*kept).neighbour_order(self.reg)
        pairs = zip(kept, order, strict=True)
        first, second = (old if new is None else new if old is None else self.xp.take(old, new) for old, new in pairs)
        return first, second

    @cached_property
    def restricted(self) -> Problem:
        """The problem on the positive weights."""
        rows, columns = self.support
        if rows is None and columns is None:
            return self
        take = self.xp.take
        return Problem(
            self.cost.subset(rows, columns),
            self.a if rows is None else take(self.a, rows),
            self.b if columns is None else take(self.b, columns),
            self.reg,
            self.regularizer,
            self.rho,
        )

    def restrict(self, f: Array, g: Array) -> tuple[Array, Array]:
        """Potentials on the positive weights."""
        rows, columns = self.support
        take = self.xp.take
        return f if rows is None else take(f, rows), g if columns is None else take(g, columns)

    def in_order(self, f: Array, g: Array) -> tuple[Array, Array]:
        """Potentials of `restricted`, in the order of the points."""
        take, argsort = self.xp.take, self.xp.argsort
        first, second = (
            v if index is None or not self.ordered else take(v, argsort(index))
            for v, index in zip((f, g), self.support, strict=True)
        )
        return first, second

    def extend(self, f: Array, g: Array) -> tuple[Array, Array]:
        """Potentials everywhere.

        In the KL form those of points without weight are the smoothed c-transforms of the others, else -inf.
        """
        xp = self.xp
        whole: list[Array] = []
        for side, (support, potential, weights) in enumerate(
            zip(self.support, (f, g), (self.a, self.b), strict=True)
        ):
            positive = weights > 0
            missing = xp.nonzero(~positive)[0]
            if support is None and not missing.shape[0]:
                whole.append(potential)
                continue
            kept = xp.nonzero(positive)[0] if support is None else support
            values = xp.take(potential, kept) if support is None else potential
            if self.regularizer == "kl" and missing.shape[0]:
                others = self.dampings[side] * self._transform(side, missing, (g, f)[side])
            else:
                others = xp.full(missing.shape, -math.inf, dtype=values.dtype, device=self.cost.device)
            # a gather: assigning to an array of indices is no part of the array-API standard
            whole.append(xp.take(xp.concat([values, others]), xp.argsort(xp.concat([kept, missing]))))
        return whole[0], whole[1]

    def _transform(self, side: int, points: Array, other: Array) -> Array:
        """Smoothed c-transform of a potential on the positive weights, at some points of the other side."""
        inner = self.restricted
        if isinstance(self.cost, Grid) and not self.stored:
            gibbs = self.cost.gibbs(self.reg)
            whole = gibbs.softmin_columns(other, self.a) if side else gibbs.softmin_rows(other, self.b)
            return self.xp.take(whole, points)
        rows, columns = self.support
        if side:
            return self.cost.subset(rows, points).gibbs(self.reg).softmin_columns(other, inner.a)
        return self.cost.subset(points, columns).gibbs(self.reg).softmin_rows(other, inner.b)

    def offsets(self, gibbs: GibbsKernel) -> tuple[Array, Array]:
        """Potentials f = 0, g = 0 in bits: the logarithms of a, b in the KL form, none in the entropy form."""
        if self.regularizer == "entropy":
            return gibbs.row_offset(), gibbs.column_offset()
        return gibbs.row_offset(self.a), gibbs.column_offset(self.b)

    def to_bits(self, f: Array, g: Array, gibbs: GibbsKernel) -> tuple[Array, Array]:
        """Potentials in bits, as the kernels take them."""
        rows, columns = self.offsets(gibbs)
        return gibbs.fold(f, rows), gibbs.fold(g, columns)

    @property
    def reference_mass(self) -> float:
        """Mass of the measure that the regulariser compares the plan with (0: the entropy form has no such term)."""
        return self.masses[0] * self.masses[1] if self.regularizer == "kl" else 0.0


def make_problem(
    C: Any,
    a: Any,
    b: Any,
    *,
    reg: Any,
    regularizer: str = "kl",
    unbalanced: Any = None,
    ordered: bool = False,
    stored: bool = False,
) -> Problem:
    """Check the arguments that all entropic solvers share."""
    cost = as_cost(C)
    array_namespace(*(v for v in (cost_sample(cost), a, b) if v is not None))
    n, m = cost.shape
    reg = check_real(reg, "reg", low=0, low_open=True, high=math.inf, high_open=True)
    check_choice(regularizer, "regularizer", REGULARIZERS)
    like = cost_sample(cost)
    a, b = check_weights(a, "a", n, like=like), check_weights(b, "b", m, like=like)
    rho = check_unbalanced(unbalanced)
    b = b if any(map(math.isfinite, rho)) else check_balanced(a, b)
    problem = Problem(cost, a, b, reg, regularizer, rho, ordered, stored)
    _refuse_forbidden(problem)
    return problem


def cost_sample(cost: Cost) -> Array:
    """An array with the library, device and dtype of the cost."""
    return cost.xp.empty((0,), dtype=cost.dtype, device=cost.device)


def check_unbalanced(unbalanced: Any) -> tuple[float, float]:
    """Strengths of the marginal penalties, inf for a hard constraint."""
    if unbalanced is None:
        return math.inf, math.inf
    pair = unbalanced if isinstance(unbalanced, (tuple, list)) else (unbalanced, unbalanced)
    if len(pair) != 2:
        raise ValueError(f"unbalanced must be a number or a pair of numbers, got {unbalanced!r}")
    first, second = (
        math.inf if value is None else check_real(value, "unbalanced", low=0, low_open=True) for value in pair
    )
    return first, second


def check_potentials(f: Any, g: Any, problem: Problem) -> tuple[Array, Array]:
    """Potentials from a user, as arrays like the cost's; -inf is allowed where the weight is 0."""
    like = cost_sample(problem.cost)
    out = []
    for name, value, weights in (("f", f, problem.a), ("g", g, problem.b)):
        array_namespace(like, value)
        potential = as_float_array(
            problem.xp.where(weights > 0, value, problem.xp.zeros_like(weights)) if hasattr(value, "shape")
            and tuple(value.shape) == tuple(weights.shape) else value,
            name, ndim=1, xp=problem.xp, dtype=problem.cost.dtype, device=problem.cost.device,
        )  # fmt: skip
        if potential.shape != weights.shape:
            raise ValueError(f"{name} must have shape {tuple(weights.shape)}, got {tuple(potential.shape)}")
        out.append(potential)
    return out[0], out[1]


def check_pair(init: Any, earlier: str) -> tuple[Any, Any]:
    """Potentials that a user passed as `init`, where it is not an earlier result."""
    if not isinstance(init, (tuple, list)) or len(init) != 2:
        raise TypeError(f"init must be {earlier} or a pair (f, g), got {type(init).__name__}")
    return init[0], init[1]


def check_vectors(v: Any, name: str, problem: Problem, size: int) -> Array:
    """One vector with so many entries, or several as columns, like the cost."""
    cost = problem.cost
    array_namespace(cost_sample(cost), v)
    v = as_float_array(v, name, ndim=(1, 2), xp=cost.xp, dtype=cost.dtype, device=cost.device)
    if v.shape[0] != size:
        raise ValueError(f"{name} must have {size} rows, got shape {tuple(v.shape)}")
    return v


def _total(xp: Any, weights: Array) -> float:
    return float(xp.sum(xp.astype(weights, xp.float64)))


def _positive(xp: Any, weights: Array) -> Array | None:
    positive = weights > 0
    return None if bool(xp.all(positive)) else xp.nonzero(positive)[0]


def _refuse_forbidden(problem: Problem) -> None:
    """Raise if a point with mass has no finite cost to any point with mass."""
    if problem.cost.finite:
        return
    xp, inner = problem.xp, problem.restricted
    finite = xp.isfinite(inner.cost.to_dense())
    for name, axis, original in (("row", 1, problem.support[0]), ("column", 0, problem.support[1])):
        reachable = xp.any(finite, axis=axis)
        if not bool(xp.all(reachable)):
            index = int(xp.argmin(xp.astype(reachable, xp.int64)))
            index = index if original is None else int(original[index])
            raise ValueError(f"C has only infinite costs in {name} {index}, whose weight is positive")
