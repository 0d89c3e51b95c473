"""Every kernel of every backend against sums in extended precision, and the backends against each other.

Tolerances are bounds on rounding errors, entry by entry: half a dozen operations on exponents, whose errors become
relative errors of the powers, and sums of positive terms in any order.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, replace
from types import ModuleType

import array_api_strict
import numpy as np
import pytest
from hypothesis import assume, currently_in_test_context, given, settings, strategies as st

import ot_numba.kernels
from ot_numba.arrays.namespaces import to_numpy
from ot_numba.kernels import CostData, contract, cpu, generic
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads


class OtherDevice:
    """The strict namespace, with arrays on a device that is not the default one and refuses to mix with it."""

    def __getattr__(self, name):
        return getattr(array_api_strict, name)

    def asarray(self, x):
        return array_api_strict.asarray(x, device=array_api_strict.Device("device1"))


BACKENDS = {"cpu": (cpu, np), "generic": (generic, np), "strict": (generic, OtherDevice())}
LN2 = np.log(np.longdouble(2))
LOWEST = {"float64": -1022, "float32": -126}
TINY = {"float64": 1e-289, "float32": 1e-29}
wide = np.longdouble


# ---------------------------------------------------------------- one problem, for every kernel


@dataclass
class Case:
    """Inputs of all kernels, as NumPy arrays; a kernel takes what it needs."""

    kind: int
    x: np.ndarray
    y: np.ndarray
    scale: float
    F: np.ndarray
    G: np.ndarray
    a: np.ndarray
    b: np.ndarray
    offsets: tuple[np.ndarray, np.ndarray]
    damping: float
    relaxation: float
    rng_seed: int
    block_entries: int = generic.BLOCK_ENTRIES

    def __post_init__(self):
        self.n, self.m = self.F.size, self.G.size
        self.dtype = self.F.dtype
        self.eps = float(np.finfo(self.dtype).eps)
        self.lowest = LOWEST[self.dtype.name]
        self.tiny = TINY[self.dtype.name]
        F, G, x, y = (v.astype(wide) for v in (self.F, self.G, self.x, self.y))
        scale = wide(self.dtype.type(self.scale))
        if self.kind == contract.DENSE:
            bits, size, terms = -scale * x, np.abs(scale * np.where(np.isinf(x), 0, x)), 1
        else:
            bits, size, terms = scale * (x @ y), np.abs(scale) * (np.abs(x) @ np.abs(y)), x.shape[1]
        #: c without F and G, all exponents, and how far rounding may move one
        self.bits = bits
        with np.errstate(invalid="ignore"):
            self.e = F[:, None] + G + bits
        finite = np.where(np.isfinite(F), np.abs(F), 0)[:, None] + np.where(np.isfinite(G), np.abs(G), 0)
        self.slack = (terms + 4) * self.eps * (finite + size)
        self.P = np.exp2(self.e)
        #: relative error of an entry of P
        reach = np.abs(np.where(np.isfinite(self.e), self.e, 0))
        self.relative = LN2 * self.slack + 4 * self.eps + 2e-16 * reach

    def rng(self):
        return np.random.default_rng(self.rng_seed)

    def floor(self, axis):
        """What entries that underflow may add to a sum along an axis."""
        return self.P.shape[axis] * wide(2) ** (self.lowest + 1)

    def sum_error(self, axis):
        """Error of a sum of P along an axis."""
        total = self.P.sum(axis)
        return (self.relative * self.P).sum(axis) + self.P.shape[axis] * self.eps * total + self.floor(axis)


def build(
    seed,
    n,
    m,
    kind=contract.DENSE,
    d=2,
    dtype="float64",
    spread=1.0,
    level=0.0,
    forbidden=0.0,
    gone=0.0,
    damping=1.0,
    relaxation=1.0,
    block_entries=generic.BLOCK_ENTRIES,
):
    """Case whose exponents span about `spread` bits and have row maxima near `level`."""
    rng = np.random.default_rng(seed)
    if kind == contract.DENSE:
        x = rng.normal(size=(n, m))
        mask = rng.random((n, m)) < forbidden
        mask[np.arange(max(n, m)) % n, np.arange(max(n, m)) % m] = False
        x[mask] = np.inf
        y, scale = np.empty((1, 1)), spread
        bits = -scale * x
    else:
        x, y, scale = spread * rng.normal(size=(n, d)), rng.normal(size=(d, m)), 1.0
        bits = x @ y
    G = spread * rng.normal(size=m)
    hidden = rng.random(m) < gone
    hidden[rng.integers(m)] = False
    G[hidden] = -np.inf
    top = (G + bits).max(axis=1)
    F = np.where(np.isfinite(top), level - top, 0) + rng.normal(size=n)
    a, b = 10 ** rng.uniform(-4, 0, n), 10 ** rng.uniform(-4, 0, m)
    offsets = F + rng.normal(size=n), np.where(hidden, 0, G) + rng.normal(size=m)
    x, y, F, G, a, b = (v.astype(dtype) for v in (x, y, F, G, a, b))
    offsets = offsets[0].astype(dtype), offsets[1].astype(dtype)
    return Case(kind, x, y, scale, F, G, a, b, offsets, damping, relaxation, seed, block_entries)


LEVELS = {"float64": [0.0, -600.0, 500.0], "float32": [0.0, -60.0, 50.0]}
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 13, 31, 61, 101])


@st.composite
def cases(draw, levels=LEVELS, gone=True):
    kind = draw(st.sampled_from([contract.DENSE, contract.DOT]))
    dtype = draw(st.sampled_from(["float64", "float32"]))
    return build(
        draw(st.integers(0, 2**32 - 1)),
        draw(SIZES),
        draw(SIZES),
        kind,
        draw(st.sampled_from([1, 2, 3, 5])) if kind == contract.DOT else 2,
        dtype,
        draw(st.sampled_from([1e-6, 1e-3, 1.0, 30.0, 3000.0])),
        draw(st.sampled_from(levels[dtype])),
        draw(st.sampled_from([0.0, 0.4])) if kind == contract.DENSE else 0.0,
        draw(st.sampled_from([0.0, 0.4])) if gone else 0.0,
        draw(st.sampled_from([1.0, 0.8, 0.3])),
        draw(st.sampled_from([1.0, 1.5, 0.7])),
        draw(st.sampled_from([1, 30, generic.BLOCK_ENTRIES])),
    )


class Calls:
    """A backend: each method calls the kernel of its name with what a case holds, and returns NumPy arrays."""

    def __init__(self, module: ModuleType, xp: ModuleType) -> None:
        self.module, self.xp = module, xp

    def of(self, *arrays):
        return [None if v is None else self.xp.asarray(np.array(v)) for v in arrays]

    def cost(self, c):
        return CostData(c.kind, *self.of(c.x, c.y), c.scale)

    def state(self, c):
        return self.cost(c), *self.of(c.F, c.G)

    def run(self, name, c, **options):
        before = generic.BLOCK_ENTRIES
        generic.BLOCK_ENTRIES = c.block_entries
        try:
            out = getattr(self, name)(c, **options)
        finally:
            generic.BLOCK_ENTRIES = before
        return [v if v is None or isinstance(v, float) else to_numpy(v) for v in out]

    def sinkhorn_rows(self, c):
        cost, F, G = self.state(c)
        a, offset = self.of(c.a, c.offsets[0])
        return *self.module.sinkhorn_rows(cost, F, G, a, offset, c.damping, c.relaxation), F

    def sinkhorn_columns(self, c):
        sums, b, G, offset = self.of(column_sums(c), c.b, no_infinity(c.G), c.offsets[1])
        return self.module.sinkhorn_columns(sums, b, G, offset, c.damping, c.relaxation), G

    def absorbed_rows(self, c):
        K, p, q, base, a = self.of(*stored(c), c.a)
        base = None if c.damping == 1 else base
        return *self.module.absorbed_rows(K, p, q, a, base, c.damping, c.relaxation), p

    def absorbed_columns(self, c):
        K, p, _, base = stored(c)
        sums, p, base, a = self.of(K.astype(float).sum(axis=1), p, base, c.a)
        base = None if c.damping == 1 else base
        return self.module.absorbed_columns(sums, p, a, base, c.damping, c.relaxation), p

    def absorbed_pair(self, c):
        K, p, q, _ = self.of(*stored(c))
        return self.module.absorbed_pair(K, q, p)

    def plan_pair(self, c):
        return self.module.plan_pair(*self.state(c), *self.of(*(v[:, 0].astype(float) for v in factors(c))))

    def row_logsumexp(self, c):
        return (self.module.row_logsumexp(self.cost(c), self.of(lines(c))[0]),)

    def column_logsumexp(self, c):
        return (self.module.column_logsumexp(self.cost(c), self.of(c.F)[0]),)

    def marginals(self, c):
        return self.module.marginals(*self.state(c))

    def products(self, c, left=True, right=True):
        V, U = self.of(*factors(c))
        return self.module.products(*self.state(c), V if right else None, U if left else None)

    def plan(self, c, floor=None, dtype=None):
        return (self.module.plan(*self.state(c), floor, dtype),)

    def pairwise_cost(self, c, metric=contract.POWER, power=1.0):
        x, y = self.of(*points(c))
        return (self.module.pairwise_cost(metric, x, y, power),)

    def mass_histogram(self, c):
        return (self.module.mass_histogram(*self.state(c)),)

    def csr_plan(self, c, rank=1, max_per_row=None):
        thresholds = self.of(row_thresholds(c, rank).astype(c.dtype))[0]
        return self.module.csr_plan(*self.state(c), thresholds, max_per_row)

    def row_kth_exponent(self, c, k=1):
        return (self.module.row_kth_exponent(*self.state(c), k),)


def no_infinity(v):
    return np.where(np.isfinite(v), v, 0).astype(v.dtype)


def column_sums(c):
    """Column sums in and out of the range in which they are believed."""
    size = 300 if c.dtype == np.float64 else 35
    return np.where(c.rng().random(c.m) < 0.1, 0, 10 ** c.rng().uniform(-size, size, c.m))


def stored(c):
    """A kernel matrix, scalings of its rows and columns, and a base."""
    rng, size = c.rng(), 100 if c.dtype == np.float64 else 5
    K, p, q, base = (10 ** rng.uniform(-size, size / 10, shape) for shape in ((c.n, c.m), c.n, c.m, c.n))
    return tuple(v.astype(c.dtype) for v in (K, 10 * p**0.1, 10 * q**0.1, base**0.1))


def factors(c):
    return c.rng().normal(size=(c.m, 3)).astype(c.dtype), c.rng().normal(size=(c.n, 2)).astype(c.dtype)


def lines(c):
    """A batch of column potentials; the last has no mass at all."""
    return np.stack([c.G, no_infinity(c.G) + 5000, np.full_like(c.G, -np.inf)])


def points(c):
    """Points (n, d) and (d, m), some of them equal."""
    rng, d = c.rng(), c.x.shape[1] if c.kind == contract.DOT else 3
    x, y = 3 + rng.normal(size=(c.n, d)), 3 + rng.normal(size=(d, c.m))
    y[:, 0] = x[0]
    return x.astype(c.dtype), y.astype(c.dtype)


def row_thresholds(c, rank):
    """Thresholds midway between the exponents of that rank and the next; rank 0 keeps what is normal."""
    e = -np.sort(-c.e, axis=1)
    if rank == 0:
        return np.full(c.n, -np.inf)
    after = e[:, rank] if rank < c.m else e[:, -1] - 2
    after = np.where(np.isfinite(after), after, e[:, rank - 1] - 2)
    return (e[:, rank - 1] + after) / 2


def close(actual, expected, error):
    """Whether |actual - expected| <= error, where infinities must be the same."""
    actual, expected = np.asarray(actual).astype(wide), np.asarray(expected).astype(wide)
    finite = np.isfinite(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual[finite]).all()
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    excess = (np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0)) - error)[finite]
    assert (excess <= 0).all(), f"off by {excess.max():.3g} more than {np.max(error):.3g}"


def require(condition):
    """Leave out a drawn case; a case written down must not need it."""
    if currently_in_test_context():
        assume(condition)
    else:
        assert condition


# ---------------------------------------------------------------- what each kernel must return


def target(c, potential, weights, offset):
    if c.damping == 1:
        return weights.astype(wide)
    return weights.astype(wide) * np.exp2((offset.astype(wide) - potential) * (1 / wide(c.damping) - 1))


def updated(c, old, sums, weights, offset, lost, bounded=False):
    relaxation = np.where(lost, 1, wide(c.relaxation))
    old, offset = old.astype(wide), offset.astype(wide)
    ratio = np.log2(weights.astype(wide) / sums)
    step = relaxation * (offset + wide(c.damping) * (old - offset + ratio) - old)
    reach = {"float64": 900, "float32": 90}[c.dtype.name]
    bound = np.minimum(reach - np.log2(sums), reach + 30)
    return old + np.where((step > 16) & (bounded | ~lost), np.minimum(step, bound), step)


def check_sinkhorn_rows(calls, c):
    offset = c.offsets[0]
    require(np.isfinite(c.e.max(axis=1)).all())
    sums = c.P.sum(axis=1)
    require(not ((sums > c.tiny / 2) & (sums < c.tiny * 2) | (sums * c.tiny > 0.5) & (sums * c.tiny < 2)).any())
    lost = (sums < c.tiny) | (sums > 1 / c.tiny)
    wanted = target(c, c.F, c.a, offset)
    expected = updated(c, c.F, sums, c.a, offset, lost)
    error, columns, F = calls.run("sinkhorn_rows", c)
    assert F.dtype == c.dtype
    assert columns.dtype == np.float64

    # F: the error of log2(sum), then half a dozen operations on numbers of this size
    top = np.where(lost, np.abs(c.e.max(axis=1)), 0)
    size = np.abs(c.F) + np.abs(offset) + np.abs(expected) + np.abs(np.log2(sums)) + top
    slack = c.slack.max(axis=1) + (c.m + 4) * c.eps + 8 * c.eps * size + 8 * c.eps * top
    close(F, expected, 2 * slack)

    # the column sums go with F as stored
    moved = c.e + (F.astype(wide) - c.F)[:, None]
    P = np.exp2(moved)
    relative = c.relative + LN2 * (c.eps * (4 * np.abs(c.F) + 4 * top + np.abs(F)))[:, None] + 1e-15
    close(columns, P.sum(0), (relative * P).sum(0) + (c.n + 8) * c.eps * P.sum(0) + fuzz(c, F, lost))

    if (sums < 2.0**100).all():
        each = c.sum_error(1) + wanted * (8 * c.eps + 1e-15 * (1 + np.abs(offset - c.F) * 10))
        close(error, np.abs(sums - wanted).sum(), each.sum() + c.n * c.eps * wanted.sum())
    else:
        assert error > 2.0**95


def fuzz(c, F, lost):
    """What entries that underflow may add to a column: 2**lowest times the weight of their row."""
    weights = np.where(lost, c.m, np.exp2(np.minimum(F.astype(wide) - c.F, 16000)))
    return 4 * (weights * wide(2) ** c.lowest).sum() + c.n * wide(2) ** (c.lowest + 1)


def check_sinkhorn_columns(calls, c):
    sums, G, offset = column_sums(c), no_infinity(c.G), c.offsets[1]
    believed = np.clip(sums, c.tiny, 1 / c.tiny)
    wanted = target(c, G, c.b, offset)
    expected = updated(c, G, believed, c.b, offset, believed != sums, bounded=True)
    error, new = calls.run("sinkhorn_columns", c)
    assert new.dtype == c.dtype
    size = np.abs(G) + np.abs(offset) + np.abs(expected) + np.abs(np.log2(believed))
    close(new, expected, c.eps * np.abs(expected) + 20 * 2.3e-16 * size)
    scale = (sums + wanted).sum()
    close(error, np.abs(sums - wanted).sum(), scale * 1e-15 * (c.m + 10 + 10 * np.abs(offset - G).max()))


def check_absorbed(calls, c, name):
    K, p, q, base = (v.astype(wide) for v in stored(c))
    a, damping, relaxation = c.a.astype(wide), wide(c.damping), wide(c.relaxation)
    base = np.ones_like(p) if c.damping == 1 else base
    inner = K @ q if name == "absorbed_rows" else stored(c)[0].astype(float).sum(axis=1).astype(wide)
    wanted = a * (base / p ** (1 - damping)) ** (1 / damping)
    expected = p ** (1 - relaxation) * (base * (a / inner) ** damping) ** relaxation
    error, *columns, new = calls.run(name, c)
    assert new.dtype == c.dtype
    summing = c.m * c.eps if name == "absorbed_rows" else 0
    logs = np.abs(np.log2(a / inner)) + np.abs(np.log2(p)) + np.abs(np.log2(base))
    close(new, expected, expected * (2 * summing + 4 * c.eps + 1e-15 * (10 + logs / damping)))
    each = p * inner * (summing + 4 * c.eps) + wanted * (4 * c.eps + 1e-15 * (10 + 10 * logs / damping))
    close(error, np.abs(p * inner - wanted).sum(), each.sum() + c.n * 2e-16 * (p * inner + wanted).sum())
    if columns:
        assert columns[0].dtype == np.float64
        total = new.astype(wide) @ K
        close(columns[0], total, (c.n + 4) * c.eps * total)


def check_absorbed_rows(calls, c):
    check_absorbed(calls, c, "absorbed_rows")


def check_absorbed_columns(calls, c):
    check_absorbed(calls, c, "absorbed_columns")


def check_absorbed_pair(calls, c):
    K, p, q, _ = (v.astype(wide) for v in stored(c))
    t, columns = calls.run("absorbed_pair", c)
    close(t, K @ q, (c.m + 2) * c.eps * (K @ q))
    total = (p * (K @ q)) @ K
    close(columns, total, (c.n + c.m + 8) * c.eps * total)


def check_plan_pair(calls, c):
    v, w = (u[:, 0].astype(wide) for u in factors(c))
    t, columns = calls.run("plan_pair", c)
    assert t.dtype == columns.dtype == np.float64
    floor = wide(2) ** (c.lowest + 1)
    error = (c.relative * c.P + floor) @ np.abs(v) + c.m * c.eps * (c.P @ np.abs(v))
    close(t, c.P @ v, error)
    reach = np.abs(w) * (c.P @ np.abs(v))
    total = (np.abs(w) * error) @ (c.P + floor) + reach @ (c.relative * c.P + floor)
    close(columns, (w * (c.P @ v)) @ c.P, total + (c.n + 8) * c.eps * (reach @ c.P) + c.n * floor)


def log_sums(bits, axis):
    top = bits.max(axis=axis, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.squeeze(shift, axis) + np.log2(np.exp2(bits - shift).sum(axis=axis))


def check_row_logsumexp(calls, c):
    (out,) = calls.run("row_logsumexp", c)
    assert out.dtype == c.dtype
    G = lines(c).astype(wide)
    for line in range(3):
        expected = log_sums(G[line] + c.bits, 1)
        size = np.abs(no_infinity(expected)) + 5000
        close(out[line], expected, 2 * c.slack.max(axis=1) + c.eps * (c.m + 4 + 20 * size))


def check_column_logsumexp(calls, c):
    (out,) = calls.run("column_logsumexp", c)
    assert out.dtype == c.dtype
    expected = log_sums(c.F.astype(wide)[:, None] + c.bits, 0)
    slack = c.slack.max(axis=0) + c.eps * (c.n + 4 + 10 * np.abs(no_infinity(expected)))
    close(out, expected, 2 * slack)


def check_marginals(calls, c):
    rows, columns, entropies = calls.run("marginals", c)
    assert rows.dtype == columns.dtype == entropies.dtype == np.float64
    close(rows, c.P.sum(1), c.sum_error(1))
    close(columns, c.P.sum(0), c.sum_error(0))
    e = no_infinity(c.e)
    each = c.P * (np.abs(e) * (c.relative + (c.m + 4) * c.eps) + c.slack)
    close(entropies, (c.P * e).sum(1), each.sum(1) - c.lowest * 2 * c.floor(1))


def check_products(calls, c):
    V, U = (v.astype(wide) for v in factors(c))
    PV, PTU = calls.run("products", c)
    assert PV.dtype == PTU.dtype == np.float64
    error = c.relative * c.P + (max(c.n, c.m) + 4) * c.eps * c.P + wide(2) ** (c.lowest + 1)
    close(PV, c.P @ V, error @ np.abs(V))
    close(PTU, c.P.T @ U, error.T @ np.abs(U))
    np.testing.assert_array_equal(calls.run("products", c, left=False)[0], PV)
    np.testing.assert_array_equal(calls.run("products", c, right=False)[1], PTU)
    assert calls.run("products", c, left=False)[1] is None
    assert calls.run("products", c, right=False)[0] is None


def check_plan(calls, c):
    for floor, dtype in ((None, None), (-20.0, None), (None, "float32")):
        if dtype and c.e.max() > 127:
            continue
        (out,) = calls.run("plan", c, floor=floor, dtype=dtype)
        assert out.dtype == (dtype or c.dtype)
        lowest = LOWEST[out.dtype.name] if floor is None else floor
        clear = (np.abs(c.e - lowest) > c.slack + 8 * c.eps) & (c.e < -LOWEST[out.dtype.name])
        kept = c.e > lowest
        error = (c.relative + 4 * float(np.finfo(out.dtype).eps)) * c.P
        close(out[clear & kept], c.P[clear & kept], error[clear & kept])
        assert (out[clear & ~kept] == 0).all()


def check_pairwise_cost(calls, c):
    x, y = (v.astype(wide) for v in points(c))
    difference = np.abs(x[:, :, None] - y)
    d = x.shape[1]
    (out,) = calls.run("pairwise_cost", c, metric=contract.CITYBLOCK)
    assert out.dtype == c.dtype
    close(out, difference.sum(axis=1), (d + 2) * c.eps * difference.sum(axis=1))
    squares = (difference**2).sum(axis=1)
    logs = np.abs(np.log2(np.where(squares > 0, squares, 1)))
    for power in (2.0, 1.0, 0.5, 1.5, 3.0) if c.n * c.m < 1e5 else (1.5,):
        (out,) = calls.run("pairwise_cost", c, power=power)
        expected = squares ** wide(power / 2)
        close(out, expected, expected * c.eps * (power * (d + 3) + 8 + power * logs))
        assert out[0, 0] == 0


def check_mass_histogram(calls, c):
    (mass,) = calls.run("mass_histogram", c)
    bins, last = contract.HISTOGRAM_BINS_PER_BIT, contract.HISTOGRAM_BINS_PER_BIT * contract.HISTOGRAM_BITS
    assert mass.shape == (last + 1,)
    assert (mass >= 0).all()
    edges = np.append(np.arange(1 - last, 1) / bins, np.inf)
    order = [np.sort((c.e + sign * c.slack).ravel()) for sign in (1, -1)]
    total = np.cumsum(mass.astype(wide))
    for e, side in zip(order, (1, -1), strict=True):
        below = np.append(0, np.cumsum(np.exp2(e)))[np.searchsorted(e, edges)]
        error = below * (4 * c.eps + 1e-15 * c.n * c.m + 2e-13) + c.n * c.m * wide(2) ** (c.lowest + 1)
        assert (side * (total - below) >= -error - 2 * LN2 * c.slack.max() * below).all()


def check_csr_plan(calls, c):
    for rank, most in ((1, None), (0, None), (2, 1), (c.m, None)):
        rank = min(rank, c.m)
        limit = np.maximum(row_thresholds(c, rank).astype(c.dtype), c.lowest)[:, None]
        near = (np.abs(c.e - limit) <= c.slack) & np.isfinite(c.e)
        keep = (c.e >= limit) & (np.cumsum(c.e >= limit, axis=1) <= (c.m if most is None else most))
        if near.any():
            continue
        data, indices, indptr = calls.run("csr_plan", c, rank=rank, max_per_row=most)
        assert data.dtype == c.dtype
        np.testing.assert_array_equal(indptr, np.append(0, np.cumsum(keep.sum(axis=1))))
        np.testing.assert_array_equal(indices, np.nonzero(keep)[1])
        close(data, c.P[keep], (c.relative * c.P)[keep])


def check_row_kth_exponent(calls, c):
    for k in {1, min(2, c.m), c.m}:
        (out,) = calls.run("row_kth_exponent", c, k=k)
        assert out.dtype == c.dtype
        close(out, -np.sort(-c.e, axis=1)[:, k - 1], c.slack.max(axis=1))


CHECKS = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_") and name != "check_absorbed"
}

# ---------------------------------------------------------------- the tests


def backend_modules():
    for info in pkgutil.iter_modules(ot_numba.kernels.__path__):
        if info.ispkg:
            yield importlib.import_module(f"ot_numba.kernels.{info.name}")


def test_every_kernel_is_checked():
    assert set(CHECKS) == set(contract.KERNELS)


@pytest.mark.parametrize("name", contract.KERNELS)
def test_signature_is_the_same_in_every_backend(name):
    modules = list(backend_modules())
    assert {cpu, generic} <= set(modules)

    def parameters(module):
        return [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]

    for module in modules:
        assert parameters(module) == parameters(generic), module.__name__


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", contract.KERNELS)
@settings(max_examples=15)
@given(c=cases())
def test_kernel(backend, name, c):
    CHECKS[name](Calls(*BACKENDS[backend]), c)


ROWS_BELOW_AND_ABOVE = {"float64": [-5000.0, -1100.0], "float32": [-5000.0, -140.0]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["sinkhorn_rows", "marginals", "plan", "column_logsumexp", "row_kth_exponent"])
@settings(max_examples=8)
@given(c=cases(levels=ROWS_BELOW_AND_ABOVE))
def test_all_exponents_underflow(backend, name, c):
    CHECKS[name](Calls(*BACKENDS[backend]), c)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", [contract.DENSE, contract.DOT])
def test_row_update_brings_rows_back_that_overflow(backend, dtype, kind):
    """All exponents of a row in the range in which its sum shows that it overflows."""
    c = build(3, 9, 14, kind, 3, dtype, spread=2.0, level=3000.0 if dtype == "float64" else 350.0)
    check_sinkhorn_rows(Calls(*BACKENDS[backend]), c)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_overflow_saturates_where_potentials_may_be_anything(backend, dtype):
    calls = Calls(*BACKENDS[backend])
    c = build(4, 6, 5, contract.DOT, 2, dtype, level=9000.0)
    highest = 0.99 * 2.0 ** (960 if dtype == "float64" else 127)
    rows, columns, entropies = calls.run("marginals", c)
    assert (rows >= highest).all()
    assert (columns >= highest).all()
    assert (entropies >= highest).all()
    assert calls.run("mass_histogram", c)[0][-1] >= highest
    assert (calls.run("csr_plan", c, rank=0)[0] >= highest).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_any_path_stays_finite(backend):
    calls = Calls(*BACKENDS[backend])
    c = build(5, 6, 4)
    c = replace(c, x=np.where(np.arange(6)[:, None] == 2, np.inf, c.x))
    _, columns, F = calls.run("sinkhorn_rows", c)
    assert F[2] == c.F[2]
    close(columns, np.delete(np.exp2(c.e + (F - c.F)[:, None]), 2, axis=0).sum(0), 1e-12)


LARGE = {"n": 701, "m": 1031}  # primes; more than one block of rows and one tile of columns


@pytest.fixture(scope="module")
def large():
    return {
        (kind, dtype): build(7, **LARGE, kind=kind, d=d, dtype=dtype, spread=6.0, damping=0.9, relaxation=1.2)
        for kind, d in ((contract.DENSE, 1), (contract.DOT, 5))
        for dtype in ("float64", "float32")
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", [contract.DENSE, contract.DOT])
@pytest.mark.parametrize("name", contract.KERNELS)
def test_kernel_on_several_blocks_and_tiles(name, kind, dtype, large):
    c = large[kind, dtype]
    assert c.n * c.m > 2 * cpu.BLOCK_ENTRIES
    assert c.m > cpu.plans.TILE
    CHECKS[name](Calls(cpu, np), c)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", contract.KERNELS)
def test_bits_do_not_depend_on_threads(name, dtype, large):
    before = get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            results.append([Calls(cpu, np).run(name, large[kind, dtype]) for kind in (contract.DENSE, contract.DOT)])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            for u, v in zip(first, second, strict=True):
                np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize(
    "name", sorted({*contract.KERNELS} - {"mass_histogram"})
)  # rounding decides at edges
@settings(max_examples=8)
@given(c=cases())
def test_generic_and_cpu_agree(name, c):
    """In float64, where no rounding excuses a difference in which entries or bins are hit."""
    require(c.dtype == np.float64)
    require(c.slack.max() < 1e-10)
    results = [Calls(module, np).run(name, c) for module in (cpu, generic)]
    for u, v in zip(*results, strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", contract.KERNELS)
def test_inputs_are_not_written_to(name):
    """Except for the state that a row of the contract calls in place."""
    c = build(11, 13, 17, damping=0.9)
    calls = Calls(cpu, np)
    written = {"sinkhorn_rows": ["F"], "sinkhorn_columns": ["G"], "absorbed_rows": ["p"], "absorbed_columns": ["q"]}
    function, seen = getattr(cpu, name), {}

    def spy(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
        arrays = {k: v for k, v in bound.items() if isinstance(v, np.ndarray)}
        arrays |= {"x": bound["cost"].x, "y": bound["cost"].y} if "cost" in bound else {}
        seen.update({k: (v, v.copy()) for k, v in arrays.items()})
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, name, spy)
        calls.run(name, c)
    assert seen
    for key, (after, before) in seen.items():
        assert np.array_equal(after, before) != (key in written.get(name, [])), key


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", [contract.DENSE, contract.DOT])
@pytest.mark.parametrize("shape", [(1, 600_011), (600_011, 1), (2, 300_007)])
@pytest.mark.parametrize("name", ["sinkhorn_rows", "marginals", "column_logsumexp", "csr_plan"])
def test_one_long_row_or_column(name, shape, kind, dtype):
    CHECKS[name](Calls(cpu, np), build(2, *shape, kind, 2, dtype, spread=6.0))


def test_sizes_do_not_overflow_integers():
    """Blocks of problems far beyond 2**32 entries, without making one."""
    count, rows = cpu._blocks(10**9, 10**9)
    assert 1 <= count <= cpu.MAX_BLOCKS
    assert (count - 1) * rows < 10**9 <= count * rows
    assert cpu._blocks(1, 10**9) == (1, 4)
    assert cpu._blocks(10**9, 1)[1] % 4 == 0
