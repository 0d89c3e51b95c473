"""Rows of quadratic and cardinality-constrained plans: every backend against all supports, and against each other."""

import importlib
import inspect
import itertools

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ot_numba.arrays.namespaces import to_numpy
from ot_numba.kernels.contract import DENSE, DOT, CostData
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads

CPU = importlib.import_module("ot_numba.kernels.cpu.topk")
GENERIC = importlib.import_module("ot_numba.kernels.generic.topk")
NAMES = ("semidual_rows", "dual_rows", "semidual_plan_rows", "plan_rows", "project_simplex", "ksupport_norm_sq")
BACKENDS = {"cpu": (CPU, np.asarray), "generic": (GENERIC, np.asarray), "strict": (GENERIC, array_api_strict.asarray)}
each_backend = pytest.mark.parametrize("backend", list(BACKENDS))
compiled = pytest.mark.parametrize("backend", ["cpu"])  # others are added where these checks are run with them
SIZES = st.sampled_from([1, 2, 3, 7, 31, 32, 33, 64, 100, 1025])


class Case:
    """A cost, potentials and row masses as NumPy arrays, and the same for a backend."""

    def __init__(self, seed, n, m, dot=False, dtype="float64", reg=0.5, k=2, delta=0.0, ties=False, gone=0.0):
        rng = np.random.default_rng(seed)
        if dot:
            x, y = rng.normal(size=(n, 3)), np.ascontiguousarray(rng.normal(size=(m, 3)).T)
        else:
            x, y = rng.normal(size=(n, m)), np.empty((1, 1))
            x = np.round(2 * x) / 2 if ties else x
            hidden = rng.random((n, m)) < gone
            hidden[:, rng.integers(m)] = False
            x[hidden] = np.inf
        G = np.where(rng.random(m) < 0.5, 0.0, 0.5) if ties else 0.3 * rng.normal(size=m)
        a = np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0.01, 2.0, n))
        self.kind, self.scale = (DOT if dot else DENSE), 1.0 if dot else 0.5 if not ties else 1.0
        self.x, self.y, self.G, self.a = (v.astype(dtype) for v in (x, y, G, a))
        self.reg, self.k, self.delta = reg, min(k, m), delta
        c = -(self.x.astype(float) @ self.y.astype(float)) if dot else self.scale * self.x.astype(float)
        self.s = self.G.astype(float) - c
        self.F = -self.s.max(axis=1) + rng.uniform(-0.5, 1.0, n)
        self.F[a == 0] = -np.inf
        #: how far rounding may move a score
        size = np.abs(self.x).astype(float) @ np.abs(self.y) if dot else np.where(np.isinf(c), 0, abs(c))
        self.eps = 8 * np.finfo(dtype).eps * float((size + np.abs(self.G)).max() + np.abs(self.F[a > 0]).max(initial=0))

    def run(self, backend, name):
        kernels, asarray = BACKENDS[backend]
        data = CostData(self.kind, asarray(self.x), asarray(self.y), self.scale)
        potentials = {
            "semidual_rows": lambda: (asarray(self.G), asarray(self.a)),
            "semidual_plan_rows": lambda: (asarray(self.G), asarray(self.a)),
            "dual_rows": lambda: (asarray(self.F), asarray(self.G)),
            "plan_rows": lambda: (asarray(self.F), asarray(self.G)),
        }[name]()
        out = getattr(kernels, name)(data, *potentials, self.reg, self.k, self.delta)
        return tuple(to_numpy(v) for v in out)

    def plan(self, backend, name="plan_rows"):
        data, indices, indptr = self.run(backend, name)[-3:]
        P = np.zeros(self.s.shape)
        for i in range(len(P)):
            row = slice(indptr[i], indptr[i + 1])
            assert (np.diff(indices[row]) > 0).all()
            P[i, indices[row]] = data[row]
        return P


def cases(**fixed):
    drawn = {
        "seed": st.integers(0, 2**32 - 1),
        "n": st.sampled_from([1, 2, 5, 9]),
        "m": SIZES,
        "dot": st.booleans(),
        "dtype": st.sampled_from(["float64", "float32"]),
        "reg": st.sampled_from([0.01, 0.5, 20.0]),
        "k": st.sampled_from([1, 2, 3, 8, 40, 10**6]),
        "delta": st.sampled_from([0.0, 0.0, 0.02, 1.0]),
        "ties": st.booleans(),
        "gone": st.sampled_from([0.0, 0.5]),
    }
    return st.builds(Case, **{**drawn, **{name: st.just(value) for name, value in fixed.items()}})


# ---------------------------------------------------------------- against all supports


def best_supports(s, k, mass, reg):
    """Largest <s, t> - reg / 2 |t|^2 over all supports of at most k entries, and its t; mass None: any mass."""
    best = 0.0 if mass is None else -np.inf, np.zeros(len(s))
    for size in range(1, k + 1):
        for support in map(list, itertools.combinations(range(len(s)), size)):
            tau = 0.0 if mass is None else (s[support].sum() - reg * mass) / size
            t = np.zeros(len(s))
            t[support] = (s[support] - tau) / reg
            if (t[support] > 0).all():
                value = s @ t - reg / 2 * t @ t
                best = (value, t) if value > best[0] + 1e-15 else best
    return best


@each_backend
@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("reg", [0.05, 0.5, 5.0])
def test_all_supports(backend, k, reg):
    for seed in range(5):
        case = Case(seed, 4, 6, k=k, reg=reg)
        F, conjugates, sums = case.run(backend, "semidual_rows")
        total = np.zeros(6)
        for i, s in enumerate(case.s):
            if case.a[i] == 0:
                assert F[i] == pytest.approx(-s.max(), rel=1e-15)
                assert conjugates[i] == 0
                continue
            value, t = best_supports(s, k, case.a[i], reg)
            assert conjugates[i] - F[i] * case.a[i] == pytest.approx(value, abs=1e-14)
            total += t
        np.testing.assert_allclose(sums, total, atol=1e-13)
        rows, conjugates, sums = case.run(backend, "dual_rows")
        expected = [
            best_supports(s + F, k, None, reg) if np.isfinite(F) else (0.0, np.zeros(6))
            for s, F in zip(case.s, case.F, strict=True)
        ]
        plan = np.stack([t for _, t in expected])
        np.testing.assert_allclose(conjugates, [value for value, _ in expected], atol=1e-13)
        np.testing.assert_allclose(rows, plan.sum(1), atol=1e-13)
        np.testing.assert_allclose(sums, plan.sum(0), atol=1e-13)
        np.testing.assert_allclose(case.plan(backend), plan, atol=1e-13)


@each_backend
def test_reference_conjugates(backend):
    kernels, asarray = BACKENDS[backend]
    s = np.array([1.0, 0.6, 0.3, -0.5])
    data = CostData(DENSE, asarray(-s[None, :]), asarray(np.empty((1, 1))), 1.0)
    G, zero = asarray(np.zeros(4)), asarray(np.zeros(1))
    for k, conjugate in enumerate((1.0, 1.36, 1.45, 1.45), start=1):
        assert float(kernels.dual_rows(data, zero, G, 0.5, k, 0.0)[1][0]) == pytest.approx(conjugate, rel=1e-15)
        for mass, value, f, plan in (
            (2.0, 1.0, 0.0, [2, 0, 0, 0]) if k == 1 else (2.0, 1.18, -0.3, [1.4, 0.6, 0, 0]),
            (0.8, 0.64, -0.6, [0.8, 0, 0, 0]),
        ):
            out = kernels.semidual_rows(data, G, asarray(np.array([mass])), 0.5, k, 0.0)
            F, conjugates, sums = map(to_numpy, out)
            assert F[0] == pytest.approx(f, abs=1e-15)
            assert conjugates[0] - F[0] * mass == pytest.approx(value, rel=1e-15)
            np.testing.assert_allclose(sums, plan, atol=1e-15)
    data_2 = kernels.plan_rows(data, zero, G, 0.5, 2, 0.0)[0]
    np.testing.assert_allclose(to_numpy(data_2), [2, 1.2], rtol=1e-15)


@each_backend
def test_reference_relaxation(backend):
    kernels, asarray = BACKENDS[backend]
    data = CostData(DENSE, asarray(-np.array([[1, 0.9, 0.85, -0.5]])), asarray(np.empty((1, 1))), 1.0)
    out = kernels.semidual_rows(data, asarray(np.zeros(4)), asarray(np.array([0.8])), 0.5, 2, 0.25)
    F, conjugates, sums = map(to_numpy, out)
    assert conjugates[0] - F[0] * 0.8 == pytest.approx(0.644545455, abs=1e-9)
    np.testing.assert_allclose(sums, [0.454545455, 0.272727273, 0.072727273, 0], atol=1e-9)
    at_the_edge = CostData(DENSE, asarray(-np.array([[2.0, 1.0]])), asarray(np.empty((1, 1))), 1.0)  # full, or pooled
    out = kernels.dual_rows(at_the_edge, asarray(np.zeros(1)), asarray(np.zeros(2)), 1.0, 1, 1.0)
    assert [to_numpy(v).tolist() for v in out] == [[1.0], [1.0], [1.0, 0.0]]


def relaxed_conjugate(x, k, reg, delta):
    """``min_z topk sum [z]_+^2 / (2 reg) + |x - z|^2 / (2 delta)`` over the pools of the sorted entries."""
    order = np.argsort(-x, kind="stable")
    u = np.maximum(x[order], 0)
    z = u.copy()
    z[:k] *= reg / (reg + delta)
    best = np.inf
    for p in range(k + 1):
        for q in range(k, len(u) + 1):
            w = z.copy()
            if p < k < q:
                w[p:q] = u[p:q].sum() / delta / ((k - p) / reg + (q - p) / delta)
            top = np.sort(w)[::-1][:k]
            best = min(best, (top**2).sum() / (2 * reg) + ((u - w) ** 2).sum() / (2 * delta))
    return best


@each_backend
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("delta", [0.01, 0.3, 3.0])
def test_relaxation_is_the_least_over_all_pools(backend, k, delta):
    for seed in range(4):
        case = Case(seed, 5, 8, k=k, reg=0.5, delta=delta, ties=seed == 3)
        rows, conjugates, _ = case.run(backend, "dual_rows")
        plan = case.plan(backend)
        np.testing.assert_allclose(plan.sum(1), rows, atol=1e-13)
        F, solved, sums = case.run(backend, "semidual_rows")
        for i in np.flatnonzero(case.a):
            assert conjugates[i] == pytest.approx(relaxed_conjugate(case.s[i] + case.F[i], k, 0.5, delta), abs=1e-13)
            assert solved[i] == pytest.approx(relaxed_conjugate(case.s[i] + F[i], k, 0.5, delta), abs=1e-13)
        case.F = np.where(case.a > 0, F, -np.inf)
        rows, again, columns = case.run(backend, "dual_rows")
        np.testing.assert_allclose(rows, case.a, atol=1e-13)
        np.testing.assert_allclose(again, solved, atol=1e-13)
        np.testing.assert_allclose(columns, sums, atol=1e-13)


# ---------------------------------------------------------------- backends against each other


def gap(s, k):
    """How far the k-th entry of each row lies above the next: below rounding, either may be chosen."""
    return np.inf if k >= s.shape[1] else -np.diff(-np.sort(-s, axis=1)[:, k - 1 : k + 1], axis=1).max(initial=-np.inf)


def check_agreement(backend, case):
    delta_slope = case.reg + case.delta if case.delta == 0 or case.k >= case.s.shape[1] else min(case.reg, case.delta)
    noise = case.eps / delta_slope
    for name in ("semidual_rows", "dual_rows"):
        ours, theirs = case.run(backend, name), case.run("generic", name)
        scale = float(case.a.max()) + float(np.abs(theirs[0][np.isfinite(theirs[0])]).max(initial=0))
        np.testing.assert_allclose(ours[0], theirs[0], atol=len(case.G) * (noise + case.eps) + 1e-14 * scale)
        bound = scale * len(case.G) * (noise + case.eps) * case.reg + len(case.G) * noise * scale
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12, atol=bound)
        if case.kind == DENSE or case.k >= case.s.shape[1]:  # else rounding may choose another of two equal entries
            np.testing.assert_allclose(ours[2], theirs[2], atol=len(case.a) * len(case.G) * noise + 1e-13 * scale)
    if case.kind == DENSE:
        for name in ("plan_rows", "semidual_plan_rows"):
            plan = case.plan("generic", name)
            np.testing.assert_allclose(case.plan(backend, name), plan, atol=8 * noise, rtol=1e-6)


@compiled
@given(case=cases())
def test_backends_agree(backend, case):
    check_agreement(backend, case)


@compiled
@settings(max_examples=30)
@given(case=cases(dtype="float64"))
def test_rows_of_the_semidual_have_their_mass(backend, case):
    F, conjugates, sums = case.run(backend, "semidual_rows")
    case.F = np.where(case.a > 0, F, -np.inf)
    rows, again, columns = case.run(backend, "dual_rows")
    noise = len(case.G) * case.eps / min(case.reg, case.delta or case.reg)
    np.testing.assert_allclose(rows, case.a, atol=noise, rtol=1e-12)
    np.testing.assert_allclose(again, conjugates, atol=noise * float(case.a.max()) * case.reg, rtol=1e-12)
    np.testing.assert_allclose(columns, sums, atol=len(case.a) * noise, rtol=1e-12)
    plan = case.plan(backend)
    np.testing.assert_allclose(plan.sum(1), rows, rtol=1e-13, atol=1e-16)
    if case.delta == 0:
        assert (plan > 0).sum(1).max() <= case.k


@each_backend
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize(("k", "delta"), [(1, 0.0), (3, 0.0), (40, 0.0), (3, 0.1)])
@pytest.mark.parametrize("reg", [1e-14, 1e-3, 1.0])
def test_plan_of_the_semidual(backend, dot, k, delta, reg):
    """Its rows have their mass to rounding, however small reg is; its columns are those that the value comes with."""
    case = Case(3, 9, 40, dot=dot, k=k, reg=reg, delta=delta * reg)
    F, _, sums = case.run(backend, "semidual_rows")
    plan = case.plan(backend, "semidual_plan_rows")
    np.testing.assert_array_equal(case.run(backend, "semidual_plan_rows")[0], F)
    np.testing.assert_allclose(plan.sum(1), case.a, rtol=1e-14)
    np.testing.assert_allclose(plan.sum(0), sums, rtol=1e-14, atol=1e-15)
    case.F = np.where(case.a > 0, F, -np.inf)
    np.testing.assert_allclose(case.plan(backend), plan, atol=1e-14 + case.eps / (reg * (delta or 1.0)))


@each_backend
@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_of_equal_entries_the_first_are_kept(backend, k):
    case = Case(0, 1, 70, k=k)
    case.x[:], case.G[:], case.F[:] = 0.0, 1.0, -0.5
    case.G[3] = 0.25
    plan = case.plan(backend)
    assert np.flatnonzero(plan[0]).tolist() == [j for j in range(70) if j != 3][:k]
    case.G[[40, 60]] = 2.0
    expected = sorted(([40, 60] + [j for j in range(70) if j not in (3, 40, 60)])[:k])
    assert np.flatnonzero(case.plan(backend)[0]).tolist() == expected


@each_backend
def test_no_regularisation_takes_the_first_largest_entry(backend):
    case = Case(1, 6, 40, k=1, reg=0.0, ties=True)
    F, conjugates, sums = case.run(backend, "semidual_rows")
    np.testing.assert_array_equal(F, -case.s.max(1))
    np.testing.assert_array_equal(conjugates, 0)
    np.testing.assert_allclose(sums, np.bincount(case.s.argmax(1), case.a, minlength=40), rtol=1e-14)
    _, data, indices, _ = case.run(backend, "semidual_plan_rows")
    np.testing.assert_array_equal(data, case.a[case.a > 0])
    np.testing.assert_array_equal(indices, case.s.argmax(1)[case.a > 0])


@each_backend
def test_rows_without_a_finite_entry(backend):
    case = Case(0, 2, 5, k=2)
    case.x[0] = np.inf
    case.a[:] = 1.0
    F, conjugates, sums = case.run(backend, "semidual_rows")
    assert F[0] == np.inf
    assert conjugates[0] == 0
    assert sums.sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 4, 1000])
@pytest.mark.parametrize("delta", [0.0, 0.05])
@pytest.mark.parametrize("dot", [False, True])
def test_threads_do_not_change_the_bits(k, delta, dot):
    case = Case(0, 900, 1000, dot=dot, k=k, reg=0.2, delta=delta)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            results.append([case.run("cpu", name) for name in NAMES[:4]])
    finally:
        set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            for u, v in zip(first, second, strict=True):
                assert np.array_equal(u, v)


# ---------------------------------------------------------------- projections and norms of rows


def check_row_operations(backend, seed, n, m, k, dtype, ties):
    rng = np.random.default_rng(seed)
    k = min(k, m)
    V = rng.normal(size=(n, m))
    V = (np.round(V) if ties else V).astype(dtype)
    z = np.where(rng.random(n) < 0.2, 0.0, 10 ** rng.uniform(-3, 3, n))
    kernels, asarray = BACKENDS[backend]
    ours = to_numpy(kernels.project_simplex(asarray(V), asarray(z), k))
    theirs = GENERIC.project_simplex(V, z, k)
    assert ours.dtype == theirs.dtype == dtype
    np.testing.assert_allclose(ours, theirs, rtol=4 * np.finfo(dtype).eps, atol=1e-13 * float(z.max()) + 1e-14)
    assert ((ours > 0).sum(1) <= k).all()
    np.testing.assert_allclose(ours.sum(1, dtype=float), z, rtol=m * np.finfo(dtype).eps)
    norms = to_numpy(kernels.ksupport_norm_sq(asarray(V), k))
    np.testing.assert_allclose(norms, GENERIC.ksupport_norm_sq(V, k), rtol=1e-12)


@compiled
@given(
    seed=st.integers(0, 2**32 - 1), n=st.sampled_from([1, 3, 20]), m=SIZES, k=st.sampled_from([1, 2, 5, 40, 10**6]),
    dtype=st.sampled_from(["float64", "float32"]), ties=st.booleans(),
)  # fmt: skip
def test_row_operations_agree(backend, seed, n, m, k, dtype, ties):
    check_row_operations(backend, seed, n, m, k, dtype, ties)


def test_signatures_are_the_same():
    cuda = importlib.import_module("ot_numba.kernels.cuda.topk")
    for name in NAMES:
        functions = (getattr(module, name) for module in (CPU, cuda, GENERIC))
        cpu, gpu, generic = (list(inspect.signature(function).parameters) for function in functions)
        assert cpu == gpu == generic
