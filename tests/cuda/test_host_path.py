"""The public functions on CuPy arrays: they agree with what NumPy arrays give, and stay on the device."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import scipy.sparse
from emulation import configure, counted

import ot_numba
from ot_numba import bilevel
from ot_numba.arrays import config
from ot_numba.kernels.cuda import loader
from ot_numba.optimize import conjugate_gradient, factorize_laplacian

N, M = 40, 50
TOL, RTOL = {"float64": 1e-9, "float32": 1e-5}, {"float64": 1e-6, "float32": 5e-4}


@pytest.fixture(autouse=True)
def unchecked():
    """Kernels have tests of their own; here it is what calls them."""
    with configure(checked=False):
        yield


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    points = {"x": rng.random((N, 3)), "y": rng.random((M, 3)), "z": rng.random((N, 24)), "w": rng.random((M, 24))}
    zero = np.where(np.arange(N) % 7 == 3, 0, rng.random(N))
    weights = {"a": rng.dirichlet(np.ones(N)), "b": rng.dirichlet(np.ones(M)), "a0": zero / zero.sum()}
    costs = {"C": rng.random((N, M)), "S": rng.random((N, N)), "f": 0.1 * rng.normal(size=N)}
    forbidden = np.where(rng.random((N, M)) < 0.2, np.inf, costs["C"])
    vectors = {"g": 0.1 * rng.normal(size=M), "u": rng.normal(size=N), "v": rng.normal(size=M), "V": rng.random((M, 2))}
    axes = {"s": np.linspace(0, 1, 6), "t": np.linspace(0, 1, 5)}
    return points | weights | costs | vectors | axes | {"I": forbidden, "D": rng.random((N, M))}


def of_result(result, **more):
    """What is compared of a result."""
    fields = ("value", "linear_cost", "dual_value", "f", "g")
    return {name: getattr(result, name) for name in fields} | {"plan": result.plan} | more


def tolerance(C):
    return TOL[str(C.dtype)]


def sinkhorn(C, *weights, reg=0.1, **options):
    return ot_numba.sinkhorn(C, *weights, reg=reg, **{"tol": tolerance(C), **options})


def solved(C, *weights, **options):
    return of_result(sinkhorn(C, *weights, **options))


def cloud(p, x="x", y="y", **options):
    return ot_numba.PointCloud(p[x], p[y], **options)


def from_rows(result, p):
    sums = result.marginals
    return {
        "rows": sums[0],
        "columns": sums[1],
        "apply": result.apply(p["v"]),
        "apply T": result.apply(p["u"], transpose=True),
        "apply many": result.apply(p["V"]),
        "project": result.project(p["V"]),
        "rounded": result.round().linear_cost,
        "rounded plan": result.round().plan,
    }


def sparse(result, **rule):
    P = result.sparse_plan(**rule)
    P = P if scipy.sparse.issparse(P) else P.get()
    return {"sparse": P.toarray()}


def stochastic(p, method, **options):
    result = ot_numba.semidual_stochastic(
        p["C"], p["a"], p["b"], reg=0.5, method=method, rng=0, max_iter=600, tol=1e-9, on_fail="ignore", **options
    )
    return {"f": result.f, "g": result.g}


SPARSE = {
    "none": {"regularizer": "none"},
    "l2": {"reg": 2.0, "regularizer": "l2"},
    "ksparse": {"reg": 2.0, "regularizer": "ksparse", "k": 3},
    "relaxed": {"reg": 2.0, "regularizer": "ksparse", "k": 3, "relax": 0.1},
}


def of_sparse_plan(plan):
    indices, values = plan.lists()
    P = plan.to_csr()
    return {
        "plan indices": indices, "plan values": values, "indptr": plan.indptr, "nnz": plan.nnz, "plan f": plan.f,
        "columns": P.toarray().sum(axis=0),
    }  # fmt: skip


def sparse_semidual(p, C, **options):
    arguments = p["g"], C, p["a"], p["b"]
    value, grad = ot_numba.semidual_value_and_grad(*arguments, **options)
    plan = ot_numba.semidual_sparse_plan(*arguments, **options)
    return {"value": value, "gradient": grad, **of_sparse_plan(plan)}


def sparse_dual(p, C, **options):
    arguments = p["f"] + 0.2, p["g"], C, p["a"], p["b"]
    value, grads = ot_numba.dual_value_and_grad(*arguments, **options)
    plan = ot_numba.dual_sparse_plan(*arguments, **options)
    return {"value": value, "grad f": grads[0], "grad g": grads[1], **of_sparse_plan(plan)}


def divergence(p, **options):
    result = ot_numba.sinkhorn_divergence(p["x"], p["y"], p["a"], p["b"], reg=0.1, tol=tolerance(p["x"]), **options)
    return {"value": result.value, **result.gradients()}


def images(p):
    rng = np.random.default_rng(1)
    like = p["x"]
    own = np if isinstance(like, np.ndarray) else ot_numba.arrays.array_namespace(like)
    source, target = (own.asarray(rng.random((12, 11, 3)) ** power) for power in (1, 2))
    result = ot_numba.color_transfer(source, target, n_colors=30, tol=1e-9)
    return {"image": result.image, "palette": result.source_palette, "again": result.transform(source[:2])}


def vjp(p):
    result = sinkhorn(cloud(p), p["a"], p["b"])
    found = ot_numba.plan_vjp(result, p["D"])
    return {name: getattr(found, name) for name in ("a", "b", "C") if getattr(found, name, None) is not None}


def of_sparse(result):
    """What is compared of a sparse plan."""
    return {name: getattr(result, name) for name in ("value", "dual_value", "f", "g", "plan")}


def recovered(result):
    """What is compared of a recovered signal; values are numbers that were read, in host arrays for batches."""
    return {"x": result.x, "value": float(np.sum(result.value))}


def unfolded(p):
    steps = [0.01, 0.02, 0.01]
    options = {"reg": 0.5, "loss": "objective"}
    found = ot_numba.unfolded_value_and_grad(p["C"], p["V"][:N], steps, **options)
    x = ot_numba.unfolded_forward(p["C"], p["u"], steps, reg=0.5)
    return {"x": x, "value": found.value} | {f"step {i}": float(v) for i, v in enumerate(found.steps)}


def unfolded_with_momentum(p, mode):
    """All numbers of the layers, and the loss that knows the signals."""
    A, Y, x_true = p["C"], p["V"][:N], p["V"]
    numbers = {"thresholds": [0.01, 0.02, 0.0, 0.01], "momentum": [0.1, 0.3, 0.2, 0.0], "prox": "hard"}
    steps = [0.01, 0.02, 0.01, 0.015]
    found = ot_numba.unfolded_value_and_grad(A, Y, steps, reg=0.5, loss="mse", x_true=x_true, mode=mode, **numbers)
    return {"value": found.value} | {f"steps {i}": float(v) for i, v in enumerate(found.steps)} | {
        f"momentum {i}": float(v) for i, v in enumerate(found.momentum)
    }


def trained(p, **options):
    """From a fixed set of signals, which stays on the device."""
    X = p["V"] * (p["V"] > 0.8)
    model = ot_numba.UnfoldedRecovery.fit(
        p["D"], (p["D"] @ X[:, [0, 1] * 8], X[:, [0, 1] * 8]), reg=0.1, n_layers=3, steps_per_layer=3, final_steps=4,
        batch_size=5, held_out=4, rng=0, **options,
    )  # fmt: skip
    numbers = {f"step {i}": float(v) for i, v in enumerate(model.steps)}
    return numbers | {"loss": model.held_out_loss, "x": model.apply(p["u"])}


FILTERS = [[[1.0, -1.0], [0.5, 0.0]], [[1.0, 0.0], [-1.0, 0.2]], [[0.3, -0.3], [-0.3, 0.3]]]


def denoised(p, solve, *arguments, weight=0.1, **options):
    found = solve(p["C"], *arguments, weight=weight, smoothing=0.05, tol=1e-2 * RTOL[str(p["C"].dtype)], **options)
    return {"x": found.x, "value": found.value}


def learned(p, make, theta=None, **options):
    """A hypergradient, and what three steps make of the parameters."""
    problem = make(p["C"], p["D"], **options)
    theta = problem.pack(problem.cosine_filters(), weight=0.1, smoothing=0.1) if theta is None else theta(p)
    found = bilevel.hypergradient(problem, theta, tol=1e-3)
    after = bilevel.maid(problem, theta, accuracy=1e-2, max_iter=3, on_fail="ignore")
    assert after.n_iter == 3
    return {"gradient": found.grad, "x": found.x, "value": found.value, "theta": after.theta, "learned": after.x}


def logarithms(p, *values):
    own = ot_numba.arrays.array_namespace(p["C"])
    return own.asarray(np.log(values))


CALLS = {
    "matrix": lambda p: solved(p["C"], p["a"], p["b"]),
    "uniform weights": lambda p: solved(p["C"]),
    "small reg": lambda p: solved(p["C"], p["a"], p["b"], reg=0.01),
    "stored kernel": lambda p: solved(p["C"], p["a"], p["b"], method="kernel", reg=0.2),
    "log domain": lambda p: solved(p["C"], p["a"], p["b"], method="log"),
    "entropy form": lambda p: solved(p["C"], p["a"], p["b"], regularizer="entropy"),
    "zero weights": lambda p: solved(p["C"], p["a0"], p["b"]),
    "forbidden pairs": lambda p: solved(p["I"], p["a"], p["b"], reg=0.3),
    "unbalanced": lambda p: solved(p["C"], p["a"], p["b"], unbalanced=1.0),
    "accelerated": lambda p: solved(p["C"], p["a"], p["b"], reg=0.03, anderson=4),
    "points": lambda p: solved(cloud(p), p["a"], p["b"]),
    "points in many dimensions": lambda p: solved(cloud(p, "z", "w"), p["a"], p["b"], reg=1.0),
    "euclidean": lambda p: solved(cloud(p, metric="euclidean"), p["a"], p["b"]),
    "cityblock": lambda p: solved(cloud(p, metric="cityblock"), p["a"], p["b"]),
    "cosine": lambda p: solved(cloud(p, metric="cosine"), p["a"], p["b"]),
    "grid": lambda p: solved(ot_numba.Grid((p["s"], p["t"]), (p["t"], p["s"]))),
    **{
        f"newton, {method}": lambda p, method=method: of_result(
            ot_numba.sinkhorn_newton(p["C"], p["a"], p["b"], reg=0.01, method=method, tol=1e-8, on_fail="ignore")
        )
        for method in ("auto", "sns", "semidual", "pcg", "sparse")
    },
    "solve": lambda p: of_result(ot_numba.solve(p["C"], p["a"], p["b"], reg=0.02, tol=tolerance(p["C"]))),
    "solve points": lambda p: of_result(ot_numba.solve(cloud(p), p["a"], p["b"], reg=0.02, tol=tolerance(p["C"]))),
    "products with the plan": lambda p: from_rows(sinkhorn(cloud(p), p["a"], p["b"]), p),
    "map": lambda p: {"map": sinkhorn(cloud(p), p["a"], p["b"]).map(p["y"][:7])},
    "sparse by mass": lambda p: sparse(sinkhorn(p["C"], p["a"], p["b"], reg=0.02), mass_tol=0.01),
    "sparse by rank": lambda p: sparse(sinkhorn(cloud(p), p["a"], p["b"], reg=0.02), top_k=3),
    "sparse by size": lambda p: sparse(sinkhorn(p["C"], p["a"], p["b"], reg=0.02), threshold=1e-3),
    "round": lambda p: {"plan": ot_numba.round_plan(p["D"], p["a"], p["b"])},
    "error": lambda p: {"error": ot_numba.marginal_error(p["D"], p["a"], p["b"])},
    "gradients": lambda p: ot_numba.transport_gradients(
        sinkhorn(cloud(p), p["a"], p["b"]), wrt=("a", "b", "x", "y", "C")
    ),
    "derivative of the plan": vjp,
    "divergence": divergence,
    "unbalanced divergence": lambda p: divergence(p, unbalanced=1.0),
    "divergence of costs": lambda p: {
        "value": ot_numba.sinkhorn_divergence_cost(
            p["S"] + p["S"].T, p["S"] + p["S"].T, p["S"] + p["S"].T, p["a"], p["a0"], reg=0.2
        ).value
    },
    "semi-dual": lambda p: dict(
        zip("vg", ot_numba.semidual_value_and_grad(p["g"], p["C"], p["a"], p["b"], reg=0.1), strict=True)
    ),
    "semi-dual Hessian": lambda p: {
        "Hv": ot_numba.semidual_hessian_vector(p["g"], p["v"], p["C"], p["a"], p["b"], reg=0.1)
    },
    "dual": lambda p: {
        "gradient": ot_numba.dual_value_and_grad(p["f"], p["g"], p["C"], p["a"], p["b"], reg=0.1)[1][0]
    },
    **{
        f"semi-dual and plan, {name}": lambda p, options=options: sparse_semidual(p, p["C"], **options)
        for name, options in SPARSE.items()
    },
    **{
        f"dual and plan, {name}": lambda p, options=options: sparse_dual(p, p["C"], **options)
        for name, options in SPARSE.items()
        if name != "none"
    },
    "semi-dual and plan of points": lambda p: sparse_semidual(p, cloud(p), **SPARSE["ksparse"]),
    "dual and plan of points": lambda p: sparse_dual(p, cloud(p), **SPARSE["relaxed"]),
    "semi-dual and plan, euclidean": lambda p: sparse_semidual(p, cloud(p, metric="euclidean"), **SPARSE["l2"]),
    "semi-dual and plan, forbidden pairs": lambda p: sparse_semidual(p, p["I"], **SPARSE["ksparse"]),
    "semi-dual and plan, zero weights": lambda p: sparse_semidual(p | {"a": p["a0"]}, p["C"], **SPARSE["relaxed"]),
    "projections": lambda p: {
        "simplex": ot_numba.project_simplex(p["V"], p["V"].sum(axis=0), axis=0),
        "one": ot_numba.project_simplex(p["v"]),
        "k largest": ot_numba.project_simplex_topk(p["D"], 3, 2.0),
        "norms": ot_numba.ksupport_norm_sq(p["D"], 4),
        "of columns": ot_numba.ksupport_norm_sq(p["D"], 2, axis=0),
    },
    "quadratic": lambda p: of_sparse(ot_numba.quadratic_ot(p["C"], p["a"], p["b"], reg=1.0, tol=tolerance(p["C"]))),
    "quadratic, points": lambda p: of_sparse(ot_numba.quadratic_ot(cloud(p), reg=3.0, tol=tolerance(p["C"]))),
    "k-sparse, relaxed": lambda p: of_sparse(ot_numba.sparsity_constrained_ot(p["C"], k=2, reg=3.0, relax=1.0)),
    "k-sparse": lambda p: of_sparse(ot_numba.sparsity_constrained_ot(p["C"], k=60, reg=10.0, solver="lbfgs")),
    "routing": lambda p: {"plan": ot_numba.route_tokens(p["C"], capacity=4, max_iter=3).plan},
    "lasso": lambda p: recovered(ot_numba.lasso(p["C"], p["u"], reg=2.0, tol=tolerance(p["C"]))),
    "fista": lambda p: recovered(ot_numba.fista(p["C"], p["V"][:N], reg=2.0, tol=tolerance(p["C"]))),
    "ista": lambda p: recovered(ot_numba.ista(p["C"], p["u"], reg=4.0, max_iter=20, on_fail="ignore")),
    "iht": lambda p: recovered(ot_numba.iht(p["C"], p["u"], k=2, max_iter=20, on_fail="ignore")),
    "iht, reg": lambda p: recovered(ot_numba.iht(p["C"], p["V"][:N], reg=0.02, max_iter=20, on_fail="ignore")),
    "iht, many signals": lambda p: recovered(ot_numba.iht(p["C"], p["V"][:N], k=5, max_iter=20, on_fail="ignore")),
    "unfolded": unfolded,
    "unfolded, hard": lambda p: unfolded_with_momentum(p, "reverse"),
    "unfolded, forward": lambda p: unfolded_with_momentum(p, "forward"),
    "trained": trained,
    "trained with signals": lambda p: trained(p, loss="mse", free_thresholds=True, train_momentum=True),
    "dual Hessian": lambda p: {
        "Hv": ot_numba.dual_hessian_vector(p["f"], p["g"], p["u"], p["v"], p["C"], p["a"], p["b"], reg=0.1)[1]
    },
    "averaged gradients": lambda p: stochastic(p, "asgd", batch_size=4),
    "stored gradients": lambda p: stochastic(p, "sag"),
    "scale": lambda p: {"scale": ot_numba.cost_scale(cloud(p)), "reg": ot_numba.suggest_reg(p["C"])},
    "colours": images,
    "denoising": lambda p: denoised(p, bilevel.denoise_tv),
    "denoising, weights": lambda p: denoised(p, bilevel.denoise_tv, weight=p["C"], isotropic=False),
    "denoising, signals": lambda p: denoised(p, bilevel.denoise_tv, batch=True),
    "denoising by filters": lambda p: denoised(p, bilevel.denoise_foe, FILTERS),
    "learning": lambda p: learned(p, bilevel.tv_denoising, lambda p: logarithms(p, 0.1, 0.05), isotropic=True),
    "learning, weights": lambda p: learned(
        p, bilevel.tv_denoising, lambda p: logarithms(p, *[0.1] * N * M, 0.05), per_pixel=True
    ),
    "learning of filters": lambda p: learned(p, bilevel.foe_denoising, n_filters=2, size=3),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("call", CALLS)
def test_same_as_numpy(cupy, data, call, dtype):
    """Numbers to the tolerance that was asked for, of the same dtypes, and every array on the device."""
    host = {name: v.astype(dtype) for name, v in data.items()}
    wanted = CALLS[call](host)
    found = CALLS[call]({name: cupy.asarray(v) for name, v in host.items()})
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        own = found[name]
        if isinstance(value, np.ndarray) and call.split()[0] != "sparse":
            assert isinstance(own, cupy.ndarray), name
            assert own.dtype == value.dtype, name
            own = own.get()
        elif not isinstance(value, np.ndarray):
            assert type(own) is type(value), name
        size = np.abs(value[np.isfinite(value)]).max() if isinstance(value, np.ndarray) else abs(value)
        np.testing.assert_allclose(own, value, rtol=RTOL[dtype], atol=RTOL[dtype] * size, err_msg=name)


def test_sparse_plans_are_those_of_cupy(cupy, data):
    from cupyx.scipy.sparse import csr_matrix

    result = sinkhorn(cupy.asarray(data["C"]), reg=0.05)
    P = result.sparse_plan(mass_tol=1e-3)
    assert isinstance(P, csr_matrix)
    assert P.shape == (N, M)
    assert isinstance(P.dropped_mass, float)
    assert 0 < P.dropped_mass <= 1e-3


def test_rows_of_sparse_plans_in_several_tiles(cupy, data, monkeypatch):
    for name in ("TILE_ENTRIES", "DEVICE_TILE_ENTRIES"):
        monkeypatch.setattr(importlib.import_module("ot_numba.costs.gibbs"), name, 500)
    test_same_as_numpy(cupy, data, "semi-dual and plan, euclidean", "float64")


def test_warm_start_and_callback(cupy, data):
    C, seen = cupy.asarray(data["C"]), []
    first = sinkhorn(C, reg=0.01, callback=seen.append)
    assert seen
    assert all(type(number) is float for state in seen for number in (state.reg, state.marginal_error))
    assert all(type(entry.marginal_error) is float for entry in first.history)
    again = sinkhorn(C, reg=0.01, init=first)
    assert again.n_iter <= first.n_iter
    assert isinstance(again.f, cupy.ndarray)


MIXED = {
    "weights": lambda p, h: ot_numba.sinkhorn(p["C"], h["a"], reg=0.1),
    "cost": lambda p, h: ot_numba.sinkhorn(h["C"], p["a"], p["b"], reg=0.1),
    "points": lambda p, h: ot_numba.PointCloud(p["x"], h["y"]),
    "solve": lambda p, h: ot_numba.solve(p["C"], h["a"], p["b"], reg=0.1),
    "divergence": lambda p, h: ot_numba.sinkhorn_divergence(p["x"], h["y"], reg=0.1),
    "round": lambda p, h: ot_numba.round_plan(p["D"], h["a"]),
    "initial potentials": lambda p, h: ot_numba.sinkhorn(p["C"], reg=0.1, init=(h["f"], h["g"])),
    "apply": lambda p, h: sinkhorn(p["C"]).apply(h["v"]),
    "map": lambda p, h: sinkhorn(cloud(p)).map(h["y"]),
    "semi-dual": lambda p, h: ot_numba.semidual_value_and_grad(h["g"], p["C"], reg=0.1),
    "gradient of a loss": lambda p, h: ot_numba.plan_vjp(sinkhorn(p["C"]), h["D"]),
    "colours": lambda p, h: ot_numba.color_transfer(p["x"].reshape(4, 10, 3), h["y"].reshape(5, 10, 3)),
}


@pytest.mark.parametrize("call", MIXED)
def test_arrays_of_two_libraries_are_refused_with_advice(cupy, data, call):
    moved = {name: cupy.asarray(v) for name, v in data.items()}
    with pytest.raises(TypeError, match=r"cupy and numpy.*cupy\.asarray\(x\).*cupy\.asnumpy\(x\)"):
        MIXED[call](moved, data)


def test_a_function_as_metric_needs_numpy_arrays(cupy, data):
    metric = numba.njit(lambda x, y: abs(x[0] - y[0]))
    with pytest.raises(TypeError, match="NumPy"):
        ot_numba.PointCloud(*(cupy.asarray(data[name]) for name in "xy"), metric=metric)


def test_lists_and_numbers_go_along(cupy):
    result = ot_numba.sinkhorn(cupy.asarray([[0.0, 1.0], [1.0, 0.0]]), [0.5, 0.5], [0.25, 0.75], reg=0.1)
    assert isinstance(result.f, cupy.ndarray)
    assert abs(result.linear_cost - 0.25) < 0.01


def test_config_names_the_gpu(cupy):
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert name in config._gpu()


# ---------------------------------------------------------------- what an iteration costs


@pytest.mark.parametrize("cupy", ["emulated"], indirect=True)
@pytest.mark.parametrize("method", ["log", "kernel"])
def test_iterations_wait_at_convergence_checks_only(cupy, data, method):
    C, a, b = (cupy.asarray(data[name]) for name in "Cab")
    found = []
    for count in (100, 300):
        with counted() as counts:
            result = sinkhorn(
                C, a, b, reg=0.003, tol=1e-13, max_iter=count, check_every=50, reg_schedule=None, relaxation=1.0,
                method=method, on_fail="ignore",
            )  # fmt: skip
        assert result.n_iter == count
        found.append(counts)
    few, many = found
    assert len(many.launches) >= len(few.launches) + 2 * 200
    checks = 200 / 50
    assert many.syncs - few.syncs <= 12 * checks
    assert many.to_device == few.to_device
    assert many.peak <= few.peak + 2000


# what an iteration launches; the host waits at checks only
RECOVERY = {
    "ista": (lambda *data, **more: ot_numba.ista(*data, reg=0.1, **more), ["proximal_step"]),
    "fista": (
        lambda *data, **more: ot_numba.fista(*data, reg=0.1, **more),
        ["restart_products", "update_momenta", "accelerated_step"],
    ),
    "fista without restart": (
        lambda *data, **more: ot_numba.fista(*data, reg=0.1, restart=False, **more),
        ["proximal_step"],
    ),
    "iht, reg": (lambda *data, **more: ot_numba.iht(*data, reg=1e-4, **more), ["proximal_step"]),
    "iht, k": (lambda *data, **more: ot_numba.iht(*data, k=9, **more), ["keep_largest"]),
}


@pytest.mark.parametrize("cupy", ["emulated"], indirect=True)
@pytest.mark.parametrize("signals", [1, 30])
@pytest.mark.parametrize("method", RECOVERY)
def test_recovery_waits_at_checks_only(cupy, data, method, signals):
    call, names = RECOVERY[method]
    A, Y = cupy.asarray(data["C"]), cupy.asarray(np.random.default_rng(0).normal(size=(N, signals)))
    found = []
    for count in (20, 60):
        with counted() as counts:
            result = call(A, Y, step=1e-3, tol=0, max_iter=count, check_every=100, on_fail="ignore")
        assert result.n_iter == count
        found.append(counts)
    few, many = found
    launched = [launch.name.removesuffix("_float64") for launch in many.launches]
    check = len(launched) - 60 * len(names)
    assert check == len(few.launches) - 20 * len(names)
    assert check % 2 == 0
    assert launched == [*launched[: check // 2], *names * 60, *launched[: check // 2]]
    assert launched[:2] == ["lasso_sums", "lasso_values"]
    assert many.syncs == few.syncs
    assert many.to_host == few.to_host
    assert many.to_device == few.to_device
    assert many.peak == few.peak


@pytest.mark.parametrize("cupy", ["emulated"], indirect=True)
def test_layers_wait_at_the_end_only(cupy, data):
    """A launch for a layer, two for its derivatives, whose numbers are read together."""
    A, Y = cupy.asarray(data["C"]), cupy.asarray(np.random.default_rng(0).normal(size=(N, 30)))
    found = []
    for count in (5, 25):
        with counted() as counts:
            ot_numba.unfolded_value_and_grad(A, Y, [1e-3] * count, reg=0.1)
        found.append(counts)
    few, many = found
    assert many.syncs == few.syncs
    layers, derivatives = many.launches[:25], many.launches[25:]
    assert {launch.name for launch in layers} == {"proximal_step_float64"}
    assert [launch.name for launch in derivatives] == ["masked_adjoint_float64", "sum_partials"] * 25


@pytest.mark.parametrize("cupy", ["emulated"], indirect=True)
@pytest.mark.parametrize(("solve", "filters", "waits"), [("denoise_tv", (), 0.1), ("denoise_foe", (FILTERS,), 1)])
def test_steps_of_denoising_are_launches(cupy, data, monkeypatch, solve, filters, waits):
    monkeypatch.setattr("ot_numba.kernels.cuda.tv.ONE_BLOCK", 0)
    y, found = cupy.asarray(data["C"]), []
    for count in (100, 300):
        with counted() as counts:
            result = getattr(bilevel, solve)(
                y, *filters, weight=1.0, smoothing=0.01, tol=0, max_iter=count, on_fail="ignore"
            )
        assert result.n_iter == count
        found.append(counts)
    few, many = found
    syncs = many.syncs - few.syncs
    assert syncs <= waits * 200
    assert len(many.launches) - len(few.launches) == 200 + (syncs if solve == "denoise_tv" else 0)
    assert many.to_device == few.to_device
    assert many.peak == few.peak


def iterate(matrix, right, **options):
    """Conjugate gradients with the diagonal, and the products that they take."""
    diagonal, products = abs(matrix).max(axis=0), []
    found = conjugate_gradient(
        lambda v: products.append(0) or matrix @ v, right, preconditioner=lambda r: r / diagonal, **options
    )
    return found, len(products)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "case", ["definite", "few iterations", "start", "identity", "indefinite", "negative", "nan", "zero"]
)
def test_conjugate_gradients_freeze_where_they_would_stop(cupy, case, dtype):
    """The host looks now and then only; it finds what a loop that looks each time has stopped at."""
    rng = np.random.default_rng(3)
    root = rng.standard_normal((40, 60)) * np.logspace(0, 1, 40)[:, None]
    matrices = {
        "identity": np.eye(40),
        "indefinite": np.diag(np.r_[np.ones(37), -1, -1, -1]),
        "negative": -np.eye(40),
        "nan": np.full((40, 40), np.nan),
    }
    matrix = matrices.get(case, root @ root.T).astype(dtype)
    right = (0 if case == "zero" else 1) * root[:, 0].astype(dtype)
    options = {"tol": {"float64": 1e-9, "float32": 1e-4}[dtype], "max_iter": 9 if case == "few iterations" else 1000}
    start = {"init": right} if case == "start" else {}
    want, _ = iterate(matrix, right, **start, **options)
    start = {name: cupy.asarray(v) for name, v in start.items()}
    found, products = iterate(cupy.asarray(matrix), cupy.asarray(right), **start, **options)
    assert found.converged is want.converged
    assert type(found.n_iter) is int
    assert abs(found.n_iter - want.n_iter) <= (0 if dtype == "float64" else 2)
    assert found.n_iter <= products - len(start) <= 1.25 * found.n_iter + 4
    assert found.x.dtype == dtype
    np.testing.assert_allclose(found.x.get(), want.x, rtol=0, atol=10 * options["tol"] * np.abs(want.x).max())
    if want.converged:
        assert found.residual <= options["tol"]
    else:
        assert found.residual == pytest.approx(want.residual, rel=1e-3)


@pytest.mark.parametrize("cupy", ["emulated"], indirect=True)
def test_conjugate_gradients_wait_ever_less(cupy):
    rng = np.random.default_rng(4)
    root = rng.standard_normal((300, 320))
    matrix, right = cupy.asarray(root @ root.T), cupy.asarray(root[:, 0])
    syncs = []
    for count in (10, 100, 1000):
        with counted() as counts:
            found, products = iterate(matrix, right, tol=0, max_iter=count)
        assert found.n_iter == products == count
        syncs.append(counts.syncs)
    assert syncs[0] <= 5
    assert max(syncs[1] - syncs[0], syncs[2] - syncs[1]) <= 12  # as many for each factor of 10


def test_factorised_laplacian(cupy):
    rng = np.random.default_rng(5)
    W, extra, r = rng.random((30, 20)), np.full(20, 1e-3), rng.standard_normal((2, 20))
    want = factorize_laplacian(W, extra)
    found = factorize_laplacian(cupy.asarray(W), cupy.asarray(extra))
    for right in r:
        np.testing.assert_allclose(found(cupy.asarray(right)).get(), want(right), rtol=1e-9)
    assert factorize_laplacian(cupy.asarray(W), cupy.asarray(-extra)) is None


def test_a_compiler_that_is_missing_is_named(emulated, monkeypatch):
    def get_function(self, name):
        raise RuntimeError("libnvrtc.so is not there")

    loader.function.cache_clear()
    monkeypatch.setattr(emulated.RawModule, "get_function", get_function)
    with pytest.raises(RuntimeError, match=r"libnvrtc.so is not there.*ot_numba\[cuda12\]"):
        ot_numba.sinkhorn(emulated.ones((3, 3)), reg=1.0)
    loader.function.cache_clear()


def test_example_on_either_library(emulated, monkeypatch, tmp_path, capsys):
    example = Path(__file__).resolve().parents[2] / "examples" / "gaussians_closed_form.py"
    tables = []
    for library in ("numpy", "cupy"):
        options = ["--array", library, "--points", "25", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [example.name, *options])
        runpy.run_path(str(example), run_name="__main__")
        tables.append([float(number) for number in re.findall(r"\d\.\d{10}", capsys.readouterr().out)])
    assert len(tables[0]) > 25
    assert np.allclose(*tables, rtol=0, atol=2e-10)


def test_benchmark_on_the_clock_of_the_device(emulated, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "asv_benchmarks"))
    cuda = importlib.import_module("benchmarks.cuda")
    monkeypatch.setattr(cuda.timing, "enough_iterations", lambda run: 40)  # so that it is not the noise that is timed
    suite = cuda.OnCard()
    for method in suite.params[0]:
        suite.setup(method, 20, "float32")
        assert suite.track_seconds_per_iteration(method, 20, "float32") > 0
