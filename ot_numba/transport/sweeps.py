"""Sinkhorn iterations on one problem at one regularisation, in the log domain or on an absorbed kernel."""

from __future__ import annotations

import math
from typing import Any

from ..arrays.namespaces import is_asynchronous, read_floats
from ..arrays.validation import dtype_name
from ..costs.gibbs import LOG2E, GibbsKernel
from .problem import Problem

Array = Any
#: Exponent below which an absorbed kernel is 0: far from what matters, and no product with a scaling is subnormal.
FLOOR = {"float64": -900.0, "float32": -90.0}
#: Scalings beyond 2**+-LIMIT are absorbed into the potentials.
LIMIT = {"float64": 60.0, "float32": 20.0}
#: Bits by which a potential may grow before exponents may leave the range of 2**x.
REACH = {"float64": 900.0, "float32": 90.0}


class LogSweep:
    """Potentials F, G in bits and the iterations on them; every exponential is evaluated anew."""

    def __init__(self, problem: Problem, gibbs: GibbsKernel, f: Array, g: Array, exact: int) -> None:
        """Start from f, g, after so many exact half steps (rows, columns), which no potential can make overflow."""
        self.problem, self.gibbs = problem, gibbs
        self.offsets = problem.offsets(gibbs)
        self.damping = problem.damping(gibbs.reg)
        self.F, self.G = problem.to_bits(f, g, gibbs)
        if exact == 0:
            return
        size = sum(read_floats(gibbs.xp.max(gibbs.xp.abs(v)) for v in (f, g)))
        if self._in_reach(size):
            if size:  # else the first iteration proper does the same
                LogSweep.iterate(self)
        else:
            self._make_rows_exact()
            self._center()
            if exact == 2:
                logs = gibbs.column_offset(problem.b) - gibbs.column_offset()
                self.G = self._transform(gibbs.column_logsumexp(self.F), logs, 1)

    def _in_reach(self, size: float) -> bool:
        """Whether no exponent of potentials of this size leaves the range of 2**x, so that an iteration is exact."""
        largest = max(map(abs, self.problem.cost.bounds())) + size
        return 2 * self.gibbs.k * largest <= REACH[dtype_name(self.F.dtype)]

    def _make_rows_exact(self) -> None:
        logs = self.gibbs.row_offset(self.problem.a) - self.gibbs.row_offset()
        self.F = self._transform(self.gibbs.row_logsumexp(self.G), logs, 0)

    def _transform(self, logsumexp: Array, logs: Array, side: int) -> Array:
        """Potential that gives its marginal the value that the optimality conditions ask for."""
        xp, damping = self.gibbs.xp, self.damping[side]
        positive = xp.isfinite(logs)
        offset = xp.where(positive, self.offsets[side], xp.zeros_like(logs))
        bits = offset + damping * (xp.where(positive, logs, xp.zeros_like(logs)) - logsumexp - offset)
        return xp.where(positive, bits, logs)

    def iterate(self, relaxation: float = 1.0) -> tuple[float, float]:
        """One iteration; the row error before it and the column error half-way, as `GibbsKernel.iterate` has them."""
        errors = self.gibbs.iterate(
            self.F, self.G, self.problem.a, self.problem.b, self.offsets, self.damping, relaxation
        )
        if not self.problem.balanced:
            t = self.gibbs.xp.astype(self.best_shift(self.F, self.G), self.F.dtype)
            self.F += t
            self.G -= t
        return errors

    def best_shift(self, F: Array, G: Array) -> Array:
        r"""Shift t of (f + t, g - t), in bits, that maximises the unbalanced dual: the slow mode at large rho."""
        first, second = self.problem.rho
        harmonic = 1 / (1 / first + 1 / second)
        return self.gibbs.k * harmonic * (self._log_mass(F, 0) - self._log_mass(G, 1))

    def _log_mass(self, bits: Array, side: int) -> Array:
        """``log sum_i a_i exp(-f_i / rho)``; what it is for rho = inf."""
        xp, rho = self.gibbs.xp, self.problem.rho[side]
        weights = xp.astype((self.problem.a, self.problem.b)[side], xp.float64)
        exponent = -self._dual(bits, side) / (self.gibbs.k * rho)
        exponent = xp.where(weights > 0, exponent, xp.full_like(exponent, -math.inf))
        top = xp.max(exponent)
        return top + xp.log(xp.sum(weights * xp.exp(exponent - top)))

    def bits(self) -> tuple[Array, Array]:
        """Potentials in bits."""
        return self.F, self.G

    @property
    def column_bits(self) -> Array:
        """Column potential in bits, of which an iteration is a function; a copy."""
        return self.gibbs.xp.asarray(self.G, copy=True)

    @column_bits.setter
    def column_bits(self, G: Array) -> None:
        self.G[...] = G

    def potentials(self) -> tuple[Array, Array]:
        """Potentials in cost units; where there is no weight, 0 in the KL form, -inf in the entropy form."""
        xp, out = self.gibbs.xp, []
        for bits, offset in zip(self.bits(), self.offsets, strict=True):
            placed = xp.isfinite(offset)
            zero = xp.zeros_like(bits)
            out.append(self.gibbs.unfold(xp.where(placed, bits, zero), xp.where(placed, offset, zero)))
        return out[0], out[1]

    def set_bits(self, F: Array, G: Array, growth: float = 0.0) -> None:
        """Go on from other potentials in bits; `growth` is how far G exceeds the one whose rows F makes exact."""
        self.F, self.G = (self.gibbs.xp.asarray(bits, copy=True) for bits in (F, G))
        if growth > REACH[dtype_name(G.dtype)]:
            self._make_rows_exact()

    def half_step(self) -> Array:
        """The row update alone; column sums of the plan, float64."""
        return self.gibbs.rows(self.F, self.G, self.problem.a, self.problem.b, self.offsets, self.damping)[1]

    @property
    def mass(self) -> float:
        """Mass that errors are relative to."""
        return self.problem.mass

    def row_target(self) -> Array:
        """Row marginal that the optimality conditions ask for."""
        return self._target(self.F, 0)

    def column_target(self) -> Array:
        """Column marginal that the optimality conditions ask for."""
        return self._target(self.G, 1)

    def _target(self, bits: Array, side: int) -> Array:
        xp, rho = self.gibbs.xp, self.problem.rho[side]
        weights = xp.astype((self.problem.a, self.problem.b)[side], xp.float64)
        if math.isinf(rho):
            return weights
        return weights * xp.exp(-self._dual(bits, side) / (self.gibbs.k * rho))

    def _dual(self, bits: Array, side: int) -> Array:
        """Potential times k, float64; 0 where the weight is 0."""
        xp = self.gibbs.xp
        positive = (self.problem.a, self.problem.b)[side] > 0
        offset = xp.where(positive, self.offsets[side], xp.zeros_like(bits))
        bits = xp.where(positive, bits, xp.zeros_like(bits))
        return xp.astype(bits, xp.float64) - xp.astype(offset, xp.float64)

    def dual(self, G: Array | None = None) -> float:
        """Dual objective over reg, up to a constant, at rows that are optimal for G (default: the current G)."""
        xp, total = self.gibbs.xp, 0.0
        F, current = self.bits()
        for side, bits in enumerate((F, current if G is None else G)):
            rho, weights = self.problem.rho[side], (self.problem.a, self.problem.b)[side]
            if math.isinf(rho):
                total += float(xp.sum(self._dual(bits, side) * xp.astype(weights, xp.float64))) / LOG2E
            else:
                total -= rho / self.gibbs.reg * float(xp.sum(self._target(bits, side)))
        return total - float(xp.sum(self._target(F, 0)))

    def maintain(self) -> None:
        """Keep the state in the range of the dtype; called every few iterations."""

    def refresh(self) -> None:
        """Take rounding errors out of the state, as far as it keeps any."""

    def _center(self) -> None:
        """Take out a constant (t, -t) that is so large that it costs digits."""
        if not self.problem.balanced:
            return
        xp = self.gibbs.xp
        f, g = self._dual(self.F, 0), self._dual(self.G, 1)
        t = float(xp.mean(g) - xp.mean(f)) / 2
        if abs(t) > 10 + float(xp.max(g) - xp.min(g)):
            self.F, self.G = self.F + t, self.G - t


class AbsorbedSweep(LogSweep):
    """Iterations on the stored ``K = 2**(F_i + G_j - k C_ij)`` with scalings p, q: two multiply-adds per entry."""

    def __init__(self, problem: Problem, gibbs: GibbsKernel, f: Array, g: Array, exact: int) -> None:
        super().__init__(problem, gibbs, f, g, exact)
        self.kernels = gibbs.kernels
        name = dtype_name(problem.cost.dtype)
        self._floor, self._limit = FLOOR[name], LIMIT[name]
        self.K: Array | None = None
        super().iterate()  # so that no row or column of the kernel is empty
        self._absorb()

    def _absorb(self) -> None:
        self._center()
        xp = self.gibbs.xp
        self.K = self.gibbs.plan(self.F, self.G, self._floor, out=self.K)
        self.p, self.q = xp.ones_like(self.F), xp.ones_like(self.G)
        self._save()
        self._bases = [
            None if damping == 1 else self._exp2((damping - 1) * self._dual(bits, side))
            for side, (damping, bits) in enumerate(zip(self.damping, (self.F, self.G), strict=True))
        ]

    def _save(self) -> None:
        xp = self.gibbs.xp
        self._saved = xp.asarray(self.p, copy=True), xp.asarray(self.q, copy=True)

    def _exp2(self, bits: Array) -> Array:
        xp = self.gibbs.xp
        return xp.astype(xp.exp(xp.astype(bits, xp.float64) / LOG2E), self.F.dtype)

    def iterate(self, relaxation: float = 1.0) -> tuple[float, float]:
        """One iteration; the row error before it and the column error half-way."""
        a, b = self.problem.a, self.problem.b
        row_error, columns = self.kernels.absorbed_rows(
            self.K, self.p, self.q, a, self._bases[0], self.damping[0], relaxation
        )
        column_error = self.kernels.absorbed_columns(columns, self.q, b, self._bases[1], self.damping[1], relaxation)
        # a device is not waited for: `maintain` will see
        if not is_asynchronous(self.gibbs.xp) and not math.isfinite(row_error + column_error):
            return self._recover()
        if not self.problem.balanced:  # a longer shift takes several iterations
            xp = self.gibbs.xp
            shift = xp.clip(self.best_shift(*self._bits()), -self._limit, self._limit)
            factor = xp.astype(xp.exp(shift / LOG2E), self.p.dtype)
            self.p *= factor
            self.q /= factor
        return row_error, column_error

    def _recover(self) -> tuple[float, float]:
        """A scaling left the range of the dtype: one iteration in the log domain from where all was well."""
        self.p, self.q = self._saved
        self._fold_in()
        errors = super().iterate()
        self._absorb()
        return errors

    def _fold_in(self) -> None:
        self.F, self.G = self.bits()

    def _extremes(self) -> tuple[float, float]:
        """Smallest and largest scaling; (0, 0) if one is none."""
        xp = self.gibbs.xp
        values = read_floats(extreme(v) for v in (self.p, self.q) for extreme in (xp.min, xp.max))
        return (min(values), max(values)) if all(0 < v < math.inf for v in values) else (0.0, 0.0)

    def bits(self) -> tuple[Array, Array]:
        """Potentials in bits; where all was well, if a scaling has left the range of the dtype since."""
        if not self._extremes()[0]:
            self.p, self.q = (self.gibbs.xp.asarray(scaling, copy=True) for scaling in self._saved)
        return self._bits()

    def _bits(self) -> tuple[Array, Array]:
        xp = self.gibbs.xp
        return (
            xp.astype(self.F + xp.log2(xp.astype(self.p, xp.float64)), self.F.dtype),
            xp.astype(self.G + xp.log2(xp.astype(self.q, xp.float64)), self.G.dtype),
        )

    @property
    def column_bits(self) -> Array:
        """Column potential in bits, of which an iteration is a function."""
        return self.bits()[1]

    @column_bits.setter
    def column_bits(self, G: Array) -> None:
        xp, finite = self.gibbs.xp, self.gibbs.xp.isfinite(G)
        zeros = xp.zeros_like(G)
        self.q[...] = self._exp2(xp.where(finite, G, zeros) - xp.where(finite, self.G, zeros))

    def maintain(self) -> None:
        """Absorb the scalings if they have grown."""
        low, high = self._extremes()
        if not low:
            self._recover()
        elif low < 2.0**-self._limit or high > 2.0**self._limit:
            self.refresh()
        else:
            self._save()

    def refresh(self) -> None:
        """Absorb the scalings, which evaluates the kernel anew."""
        self._fold_in()
        self._absorb()
