"""One evaluation of the dual and the semi-dual of quadratic and k-sparse transport, one thread, against POT."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np

from . import problems, timing

#: The public functions check their input, what solvers evaluate in each iteration does not, and neither does POT's.
LIBRARIES = ("ot_numba", "ot_numba unchecked", "POT")
REGULARIZERS = ("l2", 1, 2, 4, 8)  #: a number is k of "ksparse"
INPUTS = ("random, g = 0", "points, g = 0", "points, g near the optimum")
REG = 1.0  #: of costs of at most 1 and weights 1 / n: a handful of entries in each row of the quadratic plan


def options(regularizer: str | int) -> dict:
    """How the package is asked for a regulariser."""
    sparse = {"regularizer": "ksparse", "k": regularizer}
    return {"reg": REG} | ({"regularizer": "l2"} if regularizer == "l2" else sparse)


def potentials(name: str, regularizer: str | int, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Potentials f, g: g as the name says, f the best one for it."""
    from scipy.optimize import minimize

    import ot_numba

    def negative(g: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = ot_numba.semidual_value_and_grad(g, C, **options(regularizer))
        return -value, -grad

    g = np.zeros(C.shape[1])
    if "optimum" in name:
        g = minimize(negative, g, jac=True, method="L-BFGS-B", options={"maxiter": 150, "maxcor": 20}).x
    return ot_numba.semidual_sparse_plan(g, C, **options(regularizer)).f, g


def prepare(library: str, function: str, regularizer: str | int, name: str, n: int) -> Callable[[], object]:
    """One evaluation as a function without arguments."""
    import ot_numba

    ot_numba.set_num_threads(1)
    C = problems.squares(n).C if "points" in name else np.random.default_rng(n).random((n, n))
    f, g = potentials(name, regularizer, C)
    cost, a = ot_numba.CostMatrix(C), np.full(n, 1 / n)
    if library == "ot_numba unchecked":
        from ot_numba.transport.sparse_duals import SparseDual

        dual = SparseDual(cost, a, a, REG, None if regularizer == "l2" else regularizer)
        return (lambda: dual.dual(f, g)) if function == "dual" else (lambda: dual.semidual(g))
    if library == "ot_numba":
        if function == "dual":
            return lambda: ot_numba.dual_value_and_grad(f, g, cost, **options(regularizer))
        return lambda: ot_numba.semidual_value_and_grad(g, cost, **options(regularizer))
    try:
        from ot import smooth
    except ImportError as error:
        raise NotImplementedError(f"{library} is left out: {error}") from error
    term = smooth.SquaredL2(REG) if regularizer == "l2" else smooth.SparsityConstrained(regularizer, REG)
    C = np.ascontiguousarray(C.T)  # it eliminates the potential of the columns

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # one of its functions prints a shape
            if function == "dual":
                smooth.dual_obj_grad(g, f, a, a, C, term)
            else:
                smooth.semi_dual_obj_grad(g, a, a, C, term)

    return run


class Evaluations:
    params = (list(LIBRARIES), ["semidual", "dual"], list(REGULARIZERS), list(INPUTS), [256, 1000, 4000])
    param_names = ("library", "function", "regularizer", "input", "n")
    timeout = 600

    def setup(self, *params: str | int) -> None:
        self.run = prepare(*params)

    def track_seconds(self, *params: str | int) -> float:
        self.run()
        repeat = max(1, 1000 // int(params[-1]))
        return timing.typical(lambda: timing.seconds(lambda: [self.run() for _ in range(repeat)]) / repeat, 5)

    track_seconds.unit = "seconds"
