"""Every CUDA kernel under the checks of the contract, on the emulated device or on a real one.

On the emulated device each load and store is checked, and each test runs the threads in an order of its own.
"""

import functools
import importlib.util
import itertools
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from emulation import KernelError, compiler, configure, counted

from ot_numba.arrays.namespaces import to_numpy
from ot_numba.kernels import CostData, contract, cuda
from ot_numba.kernels.cuda import loader


def _checks_of(name):
    """A module of checks of the kernels, which are here run with one more backend."""
    path = Path(__file__).parents[1] / "kernels" / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_checks", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks, topk_checks = map(_checks_of, ("contract", "topk"))
stencil_checks = _checks_of("stencils")

# dense; few coordinates, which are held in registers; many, which are multiplied as matrices
COSTS = {"dense": (contract.DENSE, 1), "points": (contract.DOT, 3), "long points": (contract.DOT, 40)}
ITERATED = ("sinkhorn_rows", "sinkhorn_columns", "absorbed_rows", "absorbed_columns", "absorbed_pair", "plan_pair")
WITHOUT_COST = ("sinkhorn_columns", "absorbed_rows", "absorbed_columns", "absorbed_pair")
SCHEDULES = (
    {"order": "forward"},
    {"order": "reverse"},
    {"order": "random", "seed": 1},
    {"order": "random", "seed": 2, "preempt": 30},
)

SELECTION = loader.selection
each_kernel = pytest.mark.parametrize("name", contract.KERNELS)
each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


@pytest.fixture
def calls(cupy):
    checks.BACKENDS["cuda"] = (cuda, cupy)
    return checks.Calls(cuda, cupy)


@pytest.fixture(scope="module", autouse=True)
def whole_modules():
    """Compile a family at once: nearly all of its kernels are called here, in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "selection", lambda *_: ())
        yield


def costs_of(name):
    return ("dense",) if name in WITHOUT_COST else tuple(COSTS)


def case(cost, n, m, dtype, seed=7, **options):
    kind, d = COSTS[cost]
    return checks.build(seed, n, m, kind, d, dtype, **{"spread": 6.0, "damping": 0.9, "relaxation": 1.2, **options})


# ---------------------------------------------------------------- the contract

# one row, one column, both sides of warps and tiles, and rows for each way of holding them
SIZES = [(1, 1), (1, 33), (31, 1), (2, 31), (33, 32), (32, 65), (65, 127), (7, 129), (129, 17), (7, 513), (257, 9)]
LONG = [(3, 1025), (2, 1700), (1, 4100), (1, 8500), (300, 3)]


@each_dtype
@each_kernel
def test_sizes_around_warps_and_tiles(calls, name, dtype):
    for index, (n, m) in enumerate(SIZES):
        for cost in costs_of(name):
            with configure(seed=index):
                checks.CHECKS[name](calls, case(cost, n, m, dtype))


@each_dtype
@each_kernel
def test_long_rows_and_columns(calls, name, dtype):
    for n, m in LONG:
        for cost in costs_of(name)[:2]:
            checks.CHECKS[name](calls, case(cost, n, m, dtype))


# limits that only large problems reach, brought within reach of small ones
LARGE = {
    "plans": {"BLOCKS": 2},
    "scalings": {"MAX_BLOCKS": 2},
    "sparse": {"MAX_BLOCKS": 2, "KEYS": 1000, "LARGEST_INDEX": 10},
    "stochastic": {"ONE_BLOCK": 1, "LOOP_STEPS": 2, "PIECE": 50},
    "topk": {"SHORT": 20, "ALL_WARPS": 16, "SCRATCH": 3000, "STORED": 500, "LARGEST_INDEX": 10},
    "thresholding": {"BLOCKS": 40, "BLOCK_ENTRIES": 8, "GROUPS": 2, "LONG": 300, "PIECE": 200},
    "tv": {"WARPS": 40, "BLOCK_WARPS": 1, "ONE_BLOCK": 0, "MOST_ROWS": 3, "FEWEST": 3},
    "foe": {"MULTIPROCESSORS": 1},
}


def make_small(patch, **limits):
    for family, constants in (LARGE | limits).items():
        module = importlib.import_module(f"ot_numba.kernels.cuda.{family}")
        for name, value in constants.items():
            assert hasattr(module, name)
            patch.setattr(module, name, value)


@each_dtype
@each_kernel
def test_large_problems(calls, name, dtype, monkeypatch):
    """Blocks that own several groups of rows, rows in several pieces."""
    make_small(monkeypatch)
    for n, m in [(33, 65), (70, 129), (11, 1700)]:
        for cost in costs_of(name)[: 2 if m > 1000 else 3]:
            checks.CHECKS[name](calls, case(cost, n, m, dtype))


@each_dtype
def test_strips_of_the_plan(calls, dtype, monkeypatch):
    """For many columns of V, strips of the plan are stored and multiplied."""
    make_small(monkeypatch, plans={"MANY_FACTORS": 1, "STRIP_ENTRIES": 500})
    for cost in COSTS:
        checks.CHECKS["products"](calls, case(cost, 33, 65, dtype))


@pytest.mark.parametrize("d", [1, 2, 4, 5, 8, 9, 16, 17, 33])
@each_dtype
@pytest.mark.parametrize("name", [name for name in contract.KERNELS if name not in WITHOUT_COST])
def test_numbers_of_coordinates(calls, name, dtype, d):
    checks.CHECKS[name](calls, checks.build(d, 35, 66, contract.DOT, d, dtype, spread=3.0))


@pytest.mark.usefixtures("calls")
@each_kernel
def test_drawn_cases(name):
    checks.test_kernel("cuda", name)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["sinkhorn_rows", "marginals", "plan", "column_logsumexp", "row_kth_exponent"])
def test_all_exponents_underflow(name):
    checks.test_all_exponents_underflow("cuda", name)


@pytest.mark.usefixtures("calls")
@each_dtype
@pytest.mark.parametrize("kind", [contract.DENSE, contract.DOT])
def test_row_update_brings_rows_back_that_overflow(dtype, kind):
    checks.test_row_update_brings_rows_back_that_overflow("cuda", dtype, kind)


@pytest.mark.usefixtures("calls")
@each_dtype
def test_overflow_saturates_where_potentials_may_be_anything(dtype):
    checks.test_overflow_saturates_where_potentials_may_be_anything("cuda", dtype)


@pytest.mark.usefixtures("calls")
def test_a_row_without_any_path_stays_finite():
    checks.test_a_row_without_any_path_stays_finite("cuda")


@each_dtype
@each_kernel
def test_forbidden_pairs_and_points_without_mass(calls, name, dtype):
    for cost in costs_of(name):
        forbidden = 0.4 if cost == "dense" else 0.0
        checks.CHECKS[name](calls, case(cost, 34, 70, dtype, gone=0.4, forbidden=forbidden, damping=1.0))


# ---------------------------------------------------------------- the same bits, whatever runs first


@each_dtype
@each_kernel
def test_bits_do_not_depend_on_the_order(calls, name, dtype):
    for cost in costs_of(name):
        c, results = case(cost, 67, 141, dtype), []
        for schedule in SCHEDULES:
            with configure(**schedule):
                results.append(calls.run(name, c))
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(first, second)


# ---------------------------------------------------------------- what costs time and memory


on_the_emulated_device = pytest.mark.parametrize("cupy", ["emulated"], indirect=True)


@on_the_emulated_device
@each_dtype
@pytest.mark.parametrize("name", ITERATED)
def test_iterations_wait_for_nothing(calls, name, dtype):
    """Nothing is waited for or moved, no memory is kept, and what is taken meanwhile is far less than n x m."""
    n, m = 6000, 260
    for cost in costs_of(name)[:2]:
        c, found = case(cost, n, m, dtype), []
        function = getattr(cuda, name)

        def watched(*args, function=function, found=found):
            with counted() as counts:
                out = function(*args)
            found.append((counts, sum(array.nbytes for array in (out if isinstance(out, tuple) else (out,)))))
            return out

        with pytest.MonkeyPatch.context() as patch, configure(checked=False):
            patch.setattr(loader, "selection", SELECTION)
            patch.setattr(cuda, name, watched)
            for _ in range(2):
                calls.run(name, c)
        for counts, size in found:
            assert (counts.syncs, counts.to_host, counts.to_device) == (0, 0, 0)
            assert counts.live == size
            assert counts.peak - size < n * m * c.F.itemsize / 4
        assert found[0][0].launches == found[1][0].launches


# a batch of three; counting first; for each digit of a radix selection
PASSES = {"row_logsumexp": 3, "csr_plan": 2, "row_kth_exponent": {"float64": 17, "float32": 9}}


@on_the_emulated_device
@each_dtype
@pytest.mark.parametrize(
    "name", sorted({*contract.KERNELS} - {"sinkhorn_columns", "absorbed_columns", "pairwise_cost"})
)
def test_costs_are_read_once(calls, name, dtype):
    """By all threads together."""
    n, m = 96, 201
    c = case("dense", n, m, dtype, relaxation=1.0)
    with counted() as counts:
        calls.run(name, c)
    read = sum(t.read for launch in counts.launches for t in launch.traffic if t.size == c.x.nbytes and not t.written)
    passes = PASSES.get(name, 1)
    assert 0 < read / c.x.nbytes <= (passes if isinstance(passes, int) else passes[dtype])


# ---------------------------------------------------------------- stochastic methods


def check_stochastic(cupy, cost, dtype, m, batch_size):
    from ot_numba.kernels.cuda import stochastic as ours
    from ot_numba.kernels.generic import stochastic as reference

    n, steps, (kind, d) = 7, 6, COSTS[cost]
    rng = np.random.default_rng(m)
    shapes = ((n, m), (1, 1)) if kind == contract.DENSE else ((n, d), (d, m))
    x, y = (rng.random(shape).astype(dtype) for shape in shapes)
    rows, slots = rng.integers(0, n, steps * batch_size), rng.integers(0, 9, steps * batch_size)
    b, weights, start = rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(9)), rng.normal(size=m)
    table = rng.dirichlet(np.ones(m), 9).astype(dtype)
    offset = np.log2(b).astype(dtype)
    states = []
    for module, move in ((ours, lambda v: cupy.asarray(v.copy())), (reference, np.copy)):
        data = CostData(kind, move(x), move(y), 5.0 if kind == contract.DENSE else 1.0)
        G, mean, H, T, total = map(move, (start, start, start, table, weights @ table))
        module.averaged_sgd(data, move(rows), move(offset), move(b), G, mean, 2.0, 5, batch_size)
        module.sag(data, move(rows), move(slots), move(offset), move(b), move(weights), H, T, total, 0.5, batch_size)
        states.append([to_numpy(v) for v in (G, mean, H, T, total)])
    assert m == 1 or not np.array_equal(states[0][0], start)
    rtol, atol = (1e-10, 1e-12) if dtype == "float64" else (1e-4, 1e-5)
    for found, wanted in zip(*states, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


@each_dtype
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("m", "batch_size"), [(1, 1), (3, 2), (33, 1), (129, 3), (1100, 1)])
def test_stochastic_steps(cupy, cost, dtype, m, batch_size):
    check_stochastic(cupy, cost, dtype, m, batch_size)


@each_dtype
@pytest.mark.parametrize("cost", COSTS)
def test_stochastic_steps_of_large_problems(cupy, cost, dtype, monkeypatch):
    make_small(monkeypatch)
    for m, batch_size in ((33, 2), (300, 3)):
        check_stochastic(cupy, cost, dtype, m, batch_size)


# ---------------------------------------------------------------- rows of sparse plans


@pytest.fixture
def topk(cupy):
    topk_checks.BACKENDS["cuda"] = (importlib.import_module("ot_numba.kernels.cuda.topk"), cupy.asarray)
    return topk_checks


ROWS = [(1, 1), (3, 2), (5, 33), (3, 129), (2, 257), (2, 1025)]
LIMITS = [
    {"k": 1},
    {"k": 3, "gone": 0.5},
    {"k": 40, "ties": True, "reg": 20.0},
    {"k": 3, "reg": 20.0},
    {"k": 3, "delta": 0.1},
    {"k": 2, "delta": 1.0},
    {"k": 10**6, "reg": 20.0},
]


def check_topk(topk, n, m, dtype):
    for index, options in enumerate(LIMITS):
        for dot in (False, True):
            with configure(seed=index):
                topk.check_agreement("cuda", topk.Case(m, n, m, dot=dot, dtype=dtype, **options))
        topk.check_row_operations("cuda", m, n, m, options["k"], dtype, "ties" in options)


@each_dtype
@pytest.mark.parametrize(("n", "m"), ROWS)
def test_topk_sizes(topk, dtype, n, m):
    check_topk(topk, n, m, dtype)


@each_dtype
def test_topk_of_large_problems(topk, dtype, monkeypatch):
    make_small(monkeypatch)
    for n, m in ((7, 33), (5, 130), (3, 1100)):
        check_topk(topk, n, m, dtype)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_topk_among_all_supports(topk, k):
    for reg in (0.05, 5.0):
        topk.test_all_supports("cuda", k, reg)


def test_topk_references(topk):
    topk.test_reference_conjugates("cuda")
    topk.test_reference_relaxation("cuda")
    topk.test_no_regularisation_takes_the_first_largest_entry("cuda")
    topk.test_rows_without_a_finite_entry("cuda")
    for k, delta in itertools.product((1, 2, 4), (0.01, 0.3, 3.0)):
        topk.test_relaxation_is_the_least_over_all_pools("cuda", k, delta)


@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_topk_of_equal_entries(topk, k, monkeypatch):
    topk.test_of_equal_entries_the_first_are_kept("cuda", k)
    make_small(monkeypatch)
    topk.test_of_equal_entries_the_first_are_kept("cuda", k)


@pytest.mark.parametrize(("k", "delta"), [(1, 0.0), (3, 0.0), (40, 0.0), (3, 0.1)])
@pytest.mark.parametrize("reg", [1e-14, 1e-3, 1.0])
def test_topk_plan_of_the_semidual(topk, k, delta, reg):
    for dot in (False, True):
        topk.test_plan_of_the_semidual("cuda", dot, k, delta, reg)


@pytest.mark.usefixtures("topk")
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    "name", ["test_backends_agree", "test_rows_of_the_semidual_have_their_mass", "test_row_operations_agree"]
)
def test_topk_drawn_cases(name, small, monkeypatch):
    if small:
        make_small(monkeypatch)
    getattr(topk_checks, name)("cuda")


@each_dtype
@pytest.mark.parametrize("options", LIMITS)
def test_topk_bits_do_not_depend_on_the_order(topk, dtype, options, monkeypatch):
    module, asarray = topk.BACKENDS["cuda"]
    for small, m in ((False, 70), (True, 300)):
        c, results = topk.Case(5, 6, m, dtype=dtype, **options), []
        if small:
            make_small(monkeypatch)
        for schedule in SCHEDULES:
            with configure(**schedule):
                found = [v for name in topk.NAMES[:4] for v in c.run("cuda", name)]
                found.append(module.project_simplex(asarray(np.abs(c.s)), asarray(c.a.astype(float)), c.k).get())
                results.append([*found, module.ksupport_norm_sq(asarray(c.s.astype(dtype)), c.k).get()])
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(first, second)


@on_the_emulated_device
@pytest.mark.parametrize("k", [3, 10**6])
def test_topk_waits_for_nothing_and_reads_costs_once(topk, k):
    c = topk.Case(0, 60, 200, k=k)
    c.F[:] = -c.s.max(axis=1)  # rows without weight are not even read
    c.a[:] = 1.0
    module, asarray = topk.BACKENDS["cuda"]
    data = CostData(c.kind, asarray(c.x), asarray(c.y), c.scale)
    a, F, G = map(asarray, (c.a, c.F, c.G))
    outs = []
    for function, first, second in ((module.semidual_rows, G, a), (module.dual_rows, F, G)):
        with counted() as counts:
            outs.append(function(data, first, second, c.reg, c.k, 0.0))
        assert (counts.syncs, counts.to_host, counts.to_device) == (0, 0, 0)
        assert counts.live == sum(v.nbytes for v in outs[-1])
        read = [t.read for launch in counts.launches for t in launch.traffic if t.size == c.x.nbytes and not t.written]
        assert read == [c.x.nbytes]


# ---------------------------------------------------------------- layers of sparse recovery

thresholding_checks = _checks_of("thresholding")
SIGNALS = [(1, 1), (2, 1), (31, 1), (33, 3), (255, 1), (257, 1), (1025, 1), (8, 65), (129, 8), (300, 17), (3, 270)]


@pytest.fixture
def thresholding(cupy):
    thresholding_checks.BACKENDS["cuda"] = (importlib.import_module("ot_numba.kernels.cuda.thresholding"), cupy.asarray)
    return thresholding_checks


def check_layers(thresholding, n, size, dtype):
    for index, special in enumerate((False, True)):
        with configure(seed=index):
            thresholding.check_layer("cuda", n, size, dtype, index, special)
            thresholding.check_accelerated_layer("cuda", n, size, dtype, index, special)
            thresholding.check_adjoint("cuda", n, size, dtype, index, special)
            thresholding.check_values("cuda", n // 2 + 1, n, size, dtype, index, special)


def check_columns(thresholding, n, size, dtype):
    for index, (kind, k) in enumerate(itertools.product(thresholding.COLUMNS, {max(1, n // 3), max(1, n - 1)})):
        with configure(seed=index):
            thresholding.check_largest("cuda", n, size, k, dtype, kind, index)


@each_dtype
@pytest.mark.parametrize(("n", "size"), SIGNALS)
def test_thresholding_sizes(thresholding, dtype, n, size):
    thresholding.check_products("cuda", 5, n, size, dtype)
    thresholding.check_steps("cuda", 5, n, size, dtype)
    thresholding.check_values("cuda", n, 3, size, dtype)
    check_layers(thresholding, n, size, dtype)
    check_columns(thresholding, n, size, dtype)


@each_dtype
def test_thresholding_of_large_problems(thresholding, dtype, monkeypatch):
    make_small(monkeypatch)
    for n, size in ((33, 17), (1100, 1), (333, 17)):
        check_layers(thresholding, n, size, dtype)
        check_columns(thresholding, n, size, dtype)


@pytest.mark.parametrize("n", [70_000, 140_000])
def test_thresholding_of_long_columns(thresholding, n):
    """In one block and in several, with places of three digits; and more partial sums than threads add up."""
    with configure(checked=False):
        thresholding.check_adjoint("cuda", 2 * n, 1, "float64")
        thresholding.check_accelerated_layer("cuda", 4 * n, 1, "float32")
        thresholding.check_values("cuda", n, 4 * n, 1, "float32")
        for kind, k in (("normal", 1000), ("equal", n - 5)):
            thresholding.check_largest("cuda", n, 1, k, "float32", kind)


def test_thresholding_of_nothing(thresholding):
    for n, size in ((0, 3), (3, 0)):
        thresholding.check_layer("cuda", n, size, "float64")
        thresholding.check_accelerated_layer("cuda", n, size, "float64")
        thresholding.check_steps("cuda", 2, n, size, "float64")
        thresholding.check_values("cuda", 2, n, size, "float64")
        thresholding.check_largest("cuda", n, size, 1, "float64", "normal")
        kernels, asarray = thresholding.BACKENDS["cuda"]
        P, signs = asarray(np.zeros((n, size))), asarray(np.zeros((n, size), np.int8))
        assert kernels.masked_adjoint(P, signs, P.copy()) == (0, 0)


@each_dtype
@pytest.mark.parametrize("small", [False, True])
def test_thresholding_bits_do_not_depend_on_the_order(thresholding, dtype, small, monkeypatch):
    kernels, asarray = thresholding.BACKENDS["cuda"]
    rng, results = np.random.default_rng(5), []
    X, Z, G = (rng.normal(size=(301, 7)).astype(dtype) for _ in range(3))
    signs = np.sign(np.where(np.abs(G) > 0.5, G, 0)).astype(np.int8)
    if small:
        make_small(monkeypatch)
    for schedule in SCHEDULES:
        with configure(**schedule):
            x, z, p, kept, u, v = map(asarray, (X, Z, X, X, X, Z))
            theta = asarray(np.linspace(1, 9, 7))
            kernels.proximal_step(contract.SOFT, 0.3, 0.4, 0.7, x, z, asarray(G))
            kernels.accelerated_step(contract.SOFT, 0.3, 0.4, theta, u, v, asarray(G))
            numbers = kernels.masked_adjoint(p, asarray(signs), asarray(G))
            values = kernels.lasso_values(0.4, u, z, x, v)
            kernels.keep_largest(kept, 100)
        results.append([v.get() for v in (x, z, p, kept, u, v, theta, values, *numbers)])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@on_the_emulated_device
@each_dtype
def test_thresholding_goes_once_through_its_arrays(thresholding, dtype):
    """In each launch, and those that join partial sums are small; no wait, no memory of the size of an array."""
    kernels, asarray = thresholding.BACKENDS["cuda"]
    X, Z, G, P = (asarray(np.ones((330, 50), dtype)) for _ in range(4))
    points, gradients, Y, R = (asarray(np.ones((50, 50), dtype)) for _ in range(4))
    signs, theta = asarray(np.ones(X.shape, np.int8)), asarray(np.ones(50))
    size, measured = X.nbytes, R.nbytes
    read, written, both, signs_read = (size, 0), (0, signs.nbytes), (size, size), (signs.nbytes, 0)
    step = contract.SOFT, 0.5, 0.1
    for call, names, expected in (
        (lambda: kernels.proximal_step(*step, 0.0, X, X, G), ["proximal_step"], [[both, read]]),
        (lambda: kernels.proximal_step(*step, 0.0, X, Z, G), ["proximal_step"], [[(0, size), both, read]]),
        (lambda: kernels.proximal_step(*step, 0.5, X, Z, G, signs), ["proximal_step"], [[both, both, read, written]]),
        (
            lambda: kernels.accelerated_step(*step, theta, X, Z, G),
            ["restart_products", "update_momenta", "accelerated_step"],
            [[read] * 3, [], [both, both, read]],
        ),
        (
            lambda: kernels.lasso_values(0.5, X, Y, R, G),
            ["lasso_sums", "lasso_values"],
            [[read, (measured, 0), (measured, 0), read], []],
        ),
        (
            lambda: kernels.masked_adjoint(P, signs, G),
            ["masked_adjoint", "sum_partials"],
            [[both, signs_read, read], []],
        ),
    ):
        with counted() as counts:
            call()
        assert (counts.syncs, counts.to_host, counts.to_device) == (0, 0, 0)
        assert counts.peak < size / 3
        assert [launch.name.removesuffix(f"_{dtype}") for launch in counts.launches] == names
        for launch, wanted in zip(counts.launches, expected, strict=True):
            arrays = [t for t in launch.traffic if t.size in (size, signs.nbytes, measured)]
            assert [(t.read, t.written) for t in arrays] == wanted
    for call, launches in (
        (lambda: kernels.keep_largest(X, 20), [f"keep_largest_{dtype}"]),
        (lambda: kernels.residual_gradient(P, points, G, Z, gradients), []),
    ):
        with counted() as counts:
            call()
        assert (counts.syncs, counts.to_host, counts.to_device, counts.peak) == (0, 0, 0, 0)
        assert [launch.name for launch in counts.launches] == launches


# ---------------------------------------------------------------- images


@pytest.fixture
def stencils(cupy):
    stencil_checks.BACKENDS["cuda"] = (importlib.import_module("ot_numba.kernels.cuda.stencils"), cupy.asarray)
    return stencil_checks


# one pixel, and both sides of strips of columns and of the rows that a warp goes down at a time
IMAGES = [(1, 1, 1), (2, 1, 33), (1, 5, 1), (1, 4, 2), (3, 3, 31), (1, 5, 32), (2, 9, 33), (1, 8, 63), (1, 7, 64)]
IMAGES += [(2, 130, 2)]  # in large problems more tasks than warps, and more blocks than a block has threads
# and of filters, groups of their rows, what a thread holds, and tiles
FILTERS = [
    ((1, 1, 1), (1, 1)), ((3, 1, 70), (1, 4)), ((1, 9, 1), (2, 1)), ((2, 6, 63), (3, 2)), ((1, 14, 68), (4, 3)),
    ((2, 31, 61), (5, 5)), ((1, 27, 59), (7, 7)), ((1, 40, 20), (8, 9)), ((1, 20, 30), (9, 8)), ((1, 20, 21), (18, 19)),
    ((1, 1, 300), (1, 99)),
]  # fmt: skip


def check_tv(stencils, dtype, images=IMAGES):
    for index, shape in enumerate(images):
        for isotropic, per_pixel in itertools.product((False, True), repeat=2):
            drawn = stencils.Case(index, shape, dtype, isotropic, per_pixel)
            with configure(seed=index):
                for name in stencils.NAMES[:4]:
                    stencils.check_tv("cuda", drawn, name)


def check_foe(stencils, dtype, filters=FILTERS):
    for index, (shape, size) in enumerate(filters):
        drawn = stencils.FoeCase(index, shape, dtype, 1 + index % 3, size)
        with configure(seed=index):
            for name in stencils.NAMES[4:]:
                stencils.check_foe("cuda", drawn, name)


@each_dtype
@pytest.mark.parametrize("check", [check_tv, check_foe])
def test_stencil_sizes(stencils, check, dtype):
    check(stencils, dtype)


@each_dtype
@pytest.mark.parametrize("check", [check_tv, check_foe])
def test_stencils_of_large_problems(stencils, check, dtype, monkeypatch):
    make_small(monkeypatch)
    check(stencils, dtype)


def test_stencils_of_nothing(stencils):
    for name in stencils.NAMES:
        drawn = (stencils.Case if name.startswith("tv") else stencils.FoeCase)(0, (0, 4, 5))
        for value in drawn.run("cuda", name):
            assert name == "tv_steps" or not value.any()


def test_stencil_derivatives(stencils):
    stencils.test_tv_case_on_a_line("cuda")
    for isotropic, per_pixel in itertools.product((False, True), repeat=2):
        stencils.test_tv_derivatives("cuda", isotropic, (2, 4, 5), per_pixel)
    stencils.test_foe_derivatives("cuda", (2, 5, 4), (2, 3))


@each_dtype
def test_hardly_any_smoothing(stencils, dtype):
    for name in stencils.NAMES[:4]:
        stencils.test_hardly_any_smoothing("cuda", dtype, name)
    drawn = stencils.FoeCase(7, (1, 9, 9), dtype)
    drawn.nus[:] = 1e-200
    drawn.x[:, :6] = 0.5
    drawn.filters -= drawn.filters.mean(axis=(1, 2), keepdims=True)
    for name in stencils.NAMES[4:]:
        for found in drawn.run("cuda", name):
            assert np.isfinite(found).all()


STEPPING = {"one block": {}, "one block, in turn": {"LOOP_STEPS": 2}, "blocks": LARGE["tv"]}


def check_steps(stencils):
    for count in (1, 2, 5, 40):
        stencils.test_steps_are_accelerated_gradient("cuda", count)
    for limit in (1e9, 0.5):
        stencils.test_steps_stop_at_the_limit("cuda", limit)


@pytest.mark.parametrize("stepping", STEPPING)
def test_steps_of_total_variation(stencils, stepping, monkeypatch):
    make_small(monkeypatch, tv=STEPPING[stepping])
    check_steps(stencils)


def test_filters_that_do_not_fit(stencils, monkeypatch):
    make_small(monkeypatch, foe={"SHARED": 1000})
    check_foe(stencils, "float64", FILTERS[:4])


@each_dtype
def test_stencil_bits_do_not_depend_on_the_order(stencils, dtype, monkeypatch):
    make_small(monkeypatch)
    for name in stencils.NAMES:
        shape = (2, 33, 70)
        drawn = (stencils.Case if name.startswith("tv") else stencils.FoeCase)(4, shape, dtype)
        results = []
        for schedule in SCHEDULES:
            with configure(**schedule):
                results.append(drawn.run("cuda", name))
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(first, second)


@on_the_emulated_device
@pytest.mark.parametrize("name", [name for name in stencil_checks.NAMES if name != "tv_steps"])
def test_stencils_take_one_launch_and_one_wait(cupy, stencils, name, monkeypatch):
    """Data is read once and results are written once; neither responses nor differences are stored."""
    make_small(monkeypatch, tv={"WARPS": 16})
    drawn = (stencils.Case if name.startswith("tv") else stencils.FoeCase)(0, (2, 130, 100))
    x, v = cupy.asarray(drawn.x), cupy.asarray(drawn.v)
    out = cupy.empty_like(x)
    if name.startswith("tv"):
        form = (drawn.w, drawn.nu, drawn.isotropic)
    else:
        form = tuple(cupy.asarray(a) for a in (drawn.filters, drawn.weights, drawn.nus))
    with counted() as counts:
        result = getattr(stencils.BACKENDS["cuda"][0], name)(x, v, *form, *(() if "jacobian" in name else (out,)))
    assert len(counts.launches) == 1
    assert counts.syncs == (0 if name == "foe_jacobian_t" else 1)
    assert counts.to_device == 0
    assert counts.to_host < x.nbytes / 20
    assert counts.peak < x.nbytes / 4
    assert counts.live == sum(v.nbytes for v in result) if name == "foe_jacobian_t" else counts.live == 0
    used = [t for t in counts.launches[0].traffic if t.read or t.written]
    first, second, *rest = (t for t in used if t.size == x.nbytes)
    assert first.read < 3.1 * x.nbytes  # neighbours and edges of strips and tiles, which a GPU finds in its caches
    if name.endswith("gradient"):
        assert second.read == x.nbytes
    assert [t.written for t in rest] == ([] if "jacobian" in name else [x.nbytes])


@on_the_emulated_device
def test_steps_wait_ever_less(cupy, stencils, monkeypatch):
    drawn = stencils.Case(3, (1, 12, 40))
    arrays = (drawn.x, drawn.v, drawn.y, np.empty((2, *drawn.x.shape)))

    def run(count, limit=0.0):
        x, z, y, scratch = map(cupy.asarray, arrays)
        with counted() as counts, configure(checked=False):
            taken, _ = stencils.BACKENDS["cuda"][0].tv_steps(
                x, z, y, drawn.w, drawn.nu, False, 0.05, 0.6, limit, count, scratch
            )
        assert counts.to_device == 0
        assert counts.peak < x.nbytes / 4
        return taken, len(counts.launches), counts.syncs

    assert run(1000) == (1000, 1, 1)
    make_small(monkeypatch, tv={"ONE_BLOCK": 0, "BLOCK_WARPS": 2})
    waits = []
    for count in (10, 100, 1000):
        taken, launches, syncs = run(count)
        assert (taken, launches) == (count, count + syncs)  # one for each step, and one before each look
        waits.append(syncs)
    assert waits[0] <= 2
    assert max(waits[1] - waits[0], waits[2] - waits[1]) <= 11  # as many for each factor of 10
    taken, launches, syncs = run(1000, 0.05)
    assert 20 < taken < 500
    assert launches - syncs <= 1.25 * taken + 8


# ---------------------------------------------------------------- the checks notice what is broken

FILES = sorted(path.name for path in loader.FOLDER.glob("*.cu*"))
BARRIER = re.compile(r"__sync(threads|warp)\(\);")
# a comparison with a number that is known at run time only; not the smaller of two, which is the same for <=
BOUND = re.compile(
    r"(?<![<\w.])(?!return)(?P<left>\w[\w.+\[\] ]*) < (?P<right>[a-z][\w.]*)"
    r"(?! \? (?:[\w +]*\+ )?(?P=left) : (?P=right))(?=[;) ])"
)
EQUIVALENT = (
    "for (i64 first = 0; first < d; first += DEPTH) {",  # a last tile of no depth
    "for (i64 i = lo; i < hi; i += R) {",  # of no row
    "for (i64 j = 0; j < cost.m; j += 32 * AT_ONCE) {",  # exponents beyond the last column are -inf, here and below
    "for (i64 j = 0; j < cost.m && position < stop; j += 32 * AT_ONCE) {",
    "for (i64 first = warp * 32 * AT_ONCE; first < cost.m; first += 32 * WARPS * AT_ONCE) {",
    "const bool mine = j < cost.m && (all || key >> shift >> 8 == found >> shift >> 8);",  # one more of the least key
    "const bool mine = c < count && (all || key >> shift >> 8 == found >> shift >> 8);",
    "if (j + 32 * u < m) s[u] = fma(-scale, x[i * m + column[u]], s[u]);",  # the last column once more, here and below
    "for (int u = 0; u < AT_ONCE; ++u) s[u] = j + 32 * u < m ? s[u] : -infinity(T());",
    "for (int first = 0; first < count; first += chunk) {",  # a last chunk of no entry, here and below
    "for (int first = 32 * (threadIdx.x / 32); first < count; first += blockDim.x) {",
    "for (int first = AT_ONCE * (threadIdx.x / 32 * 32); first < cost.m; first += AT_ONCE * blockDim.x) {",
    "for (i64 start = first(); start < hi; start += AT_ONCE * rows()) {",  # entries of none
    "level = next > low && next < high ? next : 0.5 * (low + high);",  # an end is the root, or found out
    "f = last || (next > low && next < high) || high == infinity(double()) ? next : 0.5 * (low + high);",
)


def _mutants():
    """Sources without one of their barriers, or with a bound one too far: some of them, all if ALL_MUTANTS is set."""
    barriers, bounds = (1, 1) if os.environ.get("ALL_MUTANTS") else (4, 8)
    for file in FILES:
        text = (loader.FOLDER / file).read_text(encoding="utf-8")
        for found in [*list(BARRIER.finditer(text))[::barriers], *list(BOUND.finditer(text))[::bounds]]:
            start = text.rfind("\n", 0, found.start()) + 1
            line = text[start : text.find("\n", start)].strip()
            if line.startswith("//") or line in EQUIVALENT:
                continue
            change = "" if found[0].startswith("__sync") else found[0].replace(" < ", " <= ")
            number = text.count("\n", 0, found.start()) + 1
            yield pytest.param(
                file, text[: found.start()] + change + text[found.end() :], id=f"{file}:{number}:{found[0].strip()}"
            )


def _quick_checks(cupy, family):
    """What notices a mutant, the quickest first."""
    calls = checks.Calls(cuda, cupy)
    module = importlib.import_module(f"ot_numba.kernels.cuda.{family}")
    names = [name for name in contract.KERNELS if hasattr(module, name)]
    long = [(11, 1700), (1, 4100), (1, 8500)] if family in ("plans", "scalings") else [(3, 1100)]
    for n, m in [(33, 65), (66, 129), (7, 513), *long]:
        for name in names:
            for cost in costs_of(name):
                yield functools.partial(checks.CHECKS[name], calls, case(cost, n, m, "float64"))
    for cost in costs_of("sinkhorn_rows") if family == "plans" else ():
        for level in (3000.0, -1100.0):  # rows that overflow, or underflow, and are brought back
            c = case(cost, 33, 65, "float64", spread=2.0, level=level)
            yield functools.partial(checks.CHECKS["sinkhorn_rows"], calls, c)
    for m, batch_size in ((33, 2), (129, 3), (1100, 1)) if family == "stochastic" else ():
        for cost in COSTS:
            yield functools.partial(check_stochastic, cupy, cost, "float64", m, batch_size)
    if family == "topk":
        topk_checks.BACKENDS["cuda"] = (module, cupy.asarray)
        for n, m in ((7, 33), (5, 130), (3, 1100)):
            yield functools.partial(check_topk, topk_checks, n, m, "float64")
        for k in (1, 50):
            yield functools.partial(topk_checks.test_of_equal_entries_the_first_are_kept, "cuda", k)
        yield functools.partial(topk_checks.test_reference_relaxation, "cuda")
    if family == "thresholding":
        thresholding_checks.BACKENDS["cuda"] = (module, cupy.asarray)
        for n, size in ((33, 17), (129, 8), (1100, 1), (333, 17), (9, 70)):
            yield functools.partial(check_layers, thresholding_checks, n, size, "float64")
            yield functools.partial(check_columns, thresholding_checks, n, size, "float64")
        for check in (thresholding_checks.check_adjoint, thresholding_checks.check_accelerated_layer):
            yield functools.partial(check, "cuda", 300_000, 1, "float64")
    if family in ("tv", "foe"):
        stencil_checks.BACKENDS["cuda"] = (importlib.import_module("ot_numba.kernels.cuda.stencils"), cupy.asarray)
        yield functools.partial({"tv": check_tv, "foe": check_foe}[family], stencil_checks, "float64")
    if family == "tv":
        yield functools.partial(check_steps, stencil_checks)


def _double_precision(source, kernel):
    """Options for all operations at once, for one kind of cost and one dtype, which compiles sooner."""
    operations = sorted(set(re.findall(r"defined\((ONLY_\w+)\)", source)))
    kind = next((number for word, number in loader.KINDS.items() if f"_{word}_" in kernel), loader.KINDS["dense"])
    choice = ["ONLY", *operations, f"ONLY_KIND={kind}", "ONLY_BYTES=8"]
    return tuple(f"-D{word}" for word in choice) if operations else ()


def _check_all(cupy, family):
    with configure(max_accesses=200_000), pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        for check in _quick_checks(cupy, family):
            check()
        patch.undo()
        for check in _quick_checks(cupy, family):
            check()


@pytest.mark.slow
@on_the_emulated_device
@pytest.mark.parametrize(("file", "text"), list(_mutants()))
def test_broken_kernels_are_noticed(cupy, file, text, monkeypatch):
    family = file.removesuffix(".cu") if file.endswith(".cu") else "plans"
    texts = {name: (loader.FOLDER / name).read_text(encoding="utf-8") for name in ("common.cuh", f"{family}.cu")}
    texts[file] = text
    broken = "\n".join(f'#line 1 "{name}"\n{lines}' for name, lines in texts.items())
    monkeypatch.setattr(compiler, "CHECKED", ("-O0", *compiler.CHECKED[1:]))  # compiles sooner
    monkeypatch.setattr(loader, "source", lambda _: broken)
    monkeypatch.setattr(loader, "selection", lambda _, kernel: _double_precision(broken, kernel))
    loader.module.cache_clear()
    loader.function.cache_clear()
    try:
        with pytest.raises((KernelError, AssertionError)):
            _check_all(cupy, family)
    finally:
        loader.module.cache_clear()
        loader.function.cache_clear()
