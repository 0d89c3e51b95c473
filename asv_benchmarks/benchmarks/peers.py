"""One adapter per library: ``prepare(name, problem)`` gives ``run(max_iter, tol)``, which returns an answer.

An answer is a plan, potentials f, g with ``P = exp((f + g - C) / reg)``, or None where the library gives neither.
With ``tol=0`` exactly `max_iter` iterations are done, plain Sinkhorn from zero potentials; with ``tol > 0`` the
library stops by its own rule, and what it reached is for `problems.residual` to say. Where that rule is on an L2
norm, `tol` is divided by sqrt(n).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .problems import Problem

Run = Callable[[int, float], Any]


def prepare(name: str, problem: Problem) -> Run:
    """Set a library up for a problem; NotImplementedError (asv's word for "skip") if it is absent or cannot."""
    adapter, options = ADAPTERS[name]
    try:
        return adapter(problem, **options)
    except ImportError as error:
        raise NotImplementedError(f"{name} is left out: {error}") from error


def _ot_numba(
    problem: Problem, method: str = "auto", online: bool = False
) -> Run:
    import ot_numba

    C = ot_numba.PointCloud(problem.x, problem.y) if online else problem.C
    log_a, log_b = problem.reg * np.log(problem.a), problem.reg * np.log(problem.b)

    def run(max_iter: int, tol: float) -> Any:
        options = {} if tol else {"method": method, "reg_schedule": None, "relaxation": 1}
        result = ot_numba.sinkhorn(
            C, problem.a, problem.b, reg=problem.reg, tol=tol, max_iter=max_iter, on_fail="ignore", **options
        )
        return result.f + log_a, result.g + log_b

    return run


def _ot_numba_newton(problem: Problem, method: str = "auto") -> Run:
    import ot_numba

    log_a, log_b = problem.reg * np.log(problem.a), problem.reg * np.log(problem.b)

    def run(max_iter: int, tol: float) -> Any:
        options = {} if tol else {"reg_schedule": None, "n_sinkhorn": 0}
        result = ot_numba.sinkhorn_newton(
            problem.C, problem.a, problem.b, reg=problem.reg, method=method, tol=tol, max_iter=max_iter,
            on_fail="ignore", **options,
        )  # fmt: skip
        return result.f + log_a, result.g + log_b

    return run


def _pot(problem: Problem, method: str) -> Run:
    import ot

    def run(max_iter: int, tol: float) -> Any:
        options = {"numItermax": max_iter, "stopThr": tol / len(problem.b) ** 0.5, "warn": False}
        return ot.sinkhorn(problem.a, problem.b, problem.C, problem.reg, method=method, **options)

    return run


def _pot_lazy(problem: Problem) -> Run:
    import ot

    def run(max_iter: int, tol: float) -> Any:
        f, g = ot.bregman.empirical_sinkhorn(
            problem.x, problem.y, problem.reg, problem.a, problem.b, numIterMax=max_iter, stopThr=tol,
            isLazy=True, batchSize=500, warn=False,
        )  # fmt: skip
        return f * problem.reg, g * problem.reg

    return run


def _ott(problem: Problem, lse: bool = True, online: bool = False, momentum: bool = False) -> Run:
    import jax
    from jax.interpreters import batching

    jax.config.update("jax_enable_x64", True)
    from ott.geometry.geometry import Geometry
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.acceleration import Momentum
    from ott.solvers.linear.sinkhorn import Sinkhorn

    if online and not hasattr(batching, "is_vmappable"):
        raise NotImplementedError("OTT-JAX does not run in batches under this version of JAX")
    data = (problem.x, problem.y) if online else (problem.C,)
    data, a, b = jax.device_put((data, problem.a, problem.b))
    compiled = {}

    def compile_for(max_iter: int, tol: float) -> Callable:
        solver = Sinkhorn(
            lse_mode=lse,
            threshold=tol or -1.0,
            inner_iterations=10 if tol else max_iter,
            min_iterations=0 if tol else max_iter,
            max_iterations=max_iter,
            momentum=Momentum(start=20) if momentum else None,
        )

        def solve(*data):
            if online:
                geometry = PointCloud(*data, epsilon=problem.reg, batch_size=512)
            else:
                geometry = Geometry(cost_matrix=data[0], epsilon=problem.reg)
            out = solver(LinearProblem(geometry, a, b))
            return out.f, out.g

        return jax.jit(solve).lower(*data).compile()

    def run(max_iter: int, tol: float) -> Any:
        if (max_iter, tol) not in compiled:
            compiled[max_iter, tol] = compile_for(max_iter, tol)
        return tuple(np.asarray(v) for v in compiled[max_iter, tol](*data))

    return run


def _geomloss(problem: Problem, backend: str) -> Run:
    """Annealing steps, which is what this library iterates: a softmin of either side in each, as in Sinkhorn."""
    import torch

    torch.set_num_threads(1)
    if backend == "online":
        import pykeops  # noqa: F401
    from geomloss import SamplesLoss

    a, b, x, y = (torch.from_numpy(v) for v in (problem.a, problem.b, problem.x, problem.y))
    blur = (problem.reg / 2) ** 0.5  # its cost is half the squared distance

    def run(max_iter: int, tol: float) -> None:
        if tol:
            raise NotImplementedError("GeomLoss has no stopping rule")
        diameter = blur * 2.0 ** (max_iter - 0.5)  # a schedule of max_iter steps, and two more
        options = {"blur": blur, "diameter": diameter, "scaling": 0.5, "debias": False, "backend": backend}
        SamplesLoss("sinkhorn", p=2, **options)(a, x, b, y)

    return run


def _regot(problem: Problem, solver: str, **options: float) -> Run:
    import regot

    if problem.C.dtype != np.float64:
        raise NotImplementedError("regot works in float64 only")
    solve = getattr(regot, f"sinkhorn_{solver}")
    C = np.asfortranarray(problem.C)

    def run(max_iter: int, tol: float) -> Any:
        tol /= len(problem.b) ** 0.5
        return np.asarray(solve(C, problem.a, problem.b, problem.reg, tol=tol, max_iter=max_iter, **options).plan)

    return run


ADAPTERS: dict[str, tuple[Callable, dict]] = {
    "ot_numba": (_ot_numba, {}),
    "ot_numba log": (_ot_numba, {"method": "log"}),
    "ot_numba kernel": (_ot_numba, {"method": "kernel"}),
    "ot_numba online": (_ot_numba, {"method": "log", "online": True}),
    "ot_numba newton": (_ot_numba_newton, {}),
    "POT sinkhorn": (_pot, {"method": "sinkhorn"}),
    "POT sinkhorn_log": (_pot, {"method": "sinkhorn_log"}),
    "POT lazy": (_pot_lazy, {}),
    "OTT-JAX log": (_ott, {}),
    "OTT-JAX momentum": (_ott, {"momentum": True}),
    "OTT-JAX scaling": (_ott, {"lse": False}),
    "OTT-JAX online": (_ott, {"online": True}),
    "GeomLoss dense": (_geomloss, {"backend": "tensorized"}),
    "GeomLoss KeOps": (_geomloss, {"backend": "online"}),
    **{
        f"regot {s}": (_regot, {"solver": s})
        for s in ("bcd", "lbfgs_dual", "newton", "sparse_newton", "ssns", "splr")
    },
    "regot splr whole": (_regot, {"solver": "splr", "density": 1.0}),
}
DENSE = (
    "ot_numba log", "ot_numba kernel", "POT sinkhorn", "POT sinkhorn_log", "OTT-JAX log", "OTT-JAX scaling",
    "GeomLoss dense", "regot bcd",
)  # fmt: skip
OURS = ("ot_numba", "ot_numba online")
ONLINE = ("ot_numba online", "POT lazy", "OTT-JAX online", "GeomLoss KeOps")
SOLVERS = (
    *OURS, "POT sinkhorn", "OTT-JAX log", "OTT-JAX momentum", "regot lbfgs_dual", "regot newton", "regot ssns",
)  # fmt: skip
NEWTON = (
    "ot_numba newton", "ot_numba",
    *(f"regot {s}" for s in ("newton", "sparse_newton", "ssns", "splr", "lbfgs_dual")),
)  # fmt: skip
