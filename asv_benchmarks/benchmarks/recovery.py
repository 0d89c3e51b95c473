"""Sparse recovery: the LASSO against its peers to the same duality gap, and layers against NumPy. All on one thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from . import timing

GAP = 1e-6  #: relative to the objective at 0, and truly reached
SEED = 1
LIMIT = 5.0  #: seconds for the search for a tolerance


def gaussian(m: int, n: int, part: float, dtype: str, seed: int = SEED) -> tuple[np.ndarray, np.ndarray, float]:
    """A Gaussian design in Fortran order, noisy measurements of m / 8 nonzeros, and reg as a part of the largest."""
    rng = np.random.default_rng([seed, m, n])
    A = np.asfortranarray((rng.normal(size=(m, n)) / np.sqrt(m)).astype(dtype))
    x = np.zeros(n)
    x[rng.choice(n, m // 8, replace=False)] = rng.normal(size=m // 8)
    y = (A @ x + 0.1 * np.sqrt(1 / 8) * rng.normal(size=m)).astype(dtype)
    return A, y, part * float(np.abs(A.T @ y).max())


def relative_gap(A: np.ndarray, y: np.ndarray, reg: float, x: np.ndarray) -> float:
    """Duality gap as a part of half the energy of y, in float64."""
    A, y, x = A.astype(float), y.astype(float), np.asarray(x, float)
    r = y - A @ x
    theta = r / max(1.0, np.abs(A.T @ r).max() / reg)
    primal, dual = 0.5 * r @ r + reg * np.abs(x).sum(), 0.5 * y @ y - 0.5 * (y - theta) @ (y - theta)
    return (primal - dual) / (0.5 * y @ y)


Solver = Callable[[float], np.ndarray]


def _ot_numba(A: np.ndarray, y: np.ndarray, reg: float) -> Solver:
    import ot_numba

    return lambda tol: ot_numba.lasso(A, y, reg=reg, tol=tol, on_fail="ignore").x


def _ot_numba_fista(A: np.ndarray, y: np.ndarray, reg: float) -> Solver:
    import ot_numba

    rows = np.ascontiguousarray(A)
    return lambda tol: ot_numba.fista(rows, y, reg=reg, tol=tol, max_iter=20_000, on_fail="ignore").x


def _celer(A: np.ndarray, y: np.ndarray, reg: float) -> Solver:
    from celer import celer_path

    options = {"alphas": [reg / len(y)], "max_iter": 50, "max_epochs": 2000}
    return lambda tol: celer_path(A, y, "lasso", tol=tol, **options)[1][:, 0]


def _skglm(A: np.ndarray, y: np.ndarray, reg: float) -> Solver:
    from skglm.datafits import Quadratic
    from skglm.penalties import L1
    from skglm.solvers import AndersonCD
    from skglm.utils.jit_compilation import compiled_clone

    narrow = A.dtype == np.float32
    parts = [compiled_clone(part, to_float32=narrow) for part in (Quadratic(), L1(reg / len(y)))]
    options = {"fit_intercept": False, "max_iter": 50, "max_epochs": 2000}

    def run(tol: float) -> np.ndarray:
        start = np.zeros(A.shape[1], A.dtype), np.zeros(A.shape[0], A.dtype)
        return AndersonCD(tol=tol, **options).solve(A, y, *parts, *start)[0]

    return run


def _sklearn(A: np.ndarray, y: np.ndarray, reg: float) -> Solver:
    from sklearn.linear_model import Lasso

    options = {"fit_intercept": False, "max_iter": 100_000}
    return lambda tol: Lasso(alpha=reg / len(y), tol=tol, **options).fit(A, y).coef_


LIBRARIES = {
    "ot_numba lasso": _ot_numba,
    "ot_numba fista": _ot_numba_fista,
    "celer": _celer,
    "skglm": _skglm,
    "scikit-learn": _sklearn,
}


class Lasso:
    """Seconds to the gap, with the loosest tolerance that reaches it; not a number where none does."""

    params = (list(LIBRARIES), [(256, 1024), (1024, 4096)], [1 / 10, 1 / 20, 1 / 100], ["float64", "float32"])
    param_names = ("library", "shape", "reg", "dtype")
    timeout = 600

    def setup(self, library: str, shape: tuple[int, int], reg: float, dtype: str) -> None:
        import ot_numba

        ot_numba.set_num_threads(1)
        if library in ("ot_numba fista", "scikit-learn") and (shape[0] > 256 or dtype == "float32"):
            raise NotImplementedError("seconds for each")
        self.input = gaussian(*shape, reg, dtype)
        try:
            self.run = LIBRARIES[library](*self.input)
        except ImportError as error:
            raise NotImplementedError(f"{library} is left out: {error}") from error

    def track_seconds(self, library: str, shape: tuple[int, int], reg: float, dtype: str) -> float:
        self.run(0.1)  # compiles
        tol = GAP if library.startswith("ot_numba") else 1e3 * GAP
        start = time.process_time()
        while relative_gap(*self.input, self.run(tol)) > 1.01 * GAP:
            tol *= 0.5
            if tol < 1e-5 * GAP or time.process_time() - start > LIMIT:
                return math.nan
        return timing.typical(lambda: timing.seconds(lambda: self.run(tol)), 7)

    track_seconds.unit = "seconds"


class Path:
    """Seconds for a path of 50 values of reg from the largest to 1 / 100 of it, each from the solution before."""

    params = (["ot_numba lasso", "celer", "scikit-learn"], [(256, 1024), (1024, 4096)])
    param_names = ("library", "shape")
    timeout = 600

    def setup(self, library: str, shape: tuple[int, int]) -> None:
        A, y, top = gaussian(*shape, 1.0, "float64")
        regs = top * np.geomspace(1, 0.01, 50)
        if library == "ot_numba lasso":
            import ot_numba

            ot_numba.set_num_threads(1)

            def run() -> None:
                init = None
                for reg in regs:
                    init = ot_numba.lasso(A, y, reg=reg, tol=GAP, init=init)
        else:
            try:
                if library == "celer":
                    from celer import celer_path as path

                    options = {"pb": "lasso"}
                else:
                    from sklearn.linear_model import lasso_path as path

                    options = {}
            except ImportError as error:
                raise NotImplementedError(f"{library} is left out: {error}") from error

            def run() -> None:
                path(A, y, alphas=regs / len(y), tol=GAP, **options)

        self.run = run
        run()

    def track_seconds(self, library: str, shape: tuple[int, int]) -> float:
        return timing.typical(lambda: timing.seconds(self.run))

    track_seconds.unit = "seconds"


class Layer:
    """Seconds for a layer of ISTA of B signals, a tenth of them nonzero, by the kernels and by plain NumPy."""

    params = (["kernels", "NumPy"], [(40, 60), (512, 256), (256, 1024), (1024, 4096)], [1, 64], ["float64", "float32"])
    param_names = ("library", "shape", "signals", "dtype")
    count = 20  #: layers of a call

    def setup(self, library: str, shape: tuple[int, int], signals: int, dtype: str) -> None:
        import ot_numba
        from ot_numba.recovery.unfolded import make_layers, make_schedule

        ot_numba.set_num_threads(1)
        rng = np.random.default_rng(SEED)
        A = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(dtype)
        X = rng.normal(size=(shape[1], signals)) * (rng.random((shape[1], signals)) < 0.1)
        X = X.astype(dtype)
        step, tau = A.dtype.type(1e-6), A.dtype.type(1e-5)  # so that they stay what they are
        layers, self.X, _ = make_layers(A, A @ X, X, self.count)
        schedule = make_schedule(1e-6, 10.0, "soft", n_layers=self.count)
        Y = layers.Y

        def kernels() -> None:
            for _ in layers.run(schedule, self.X):
                pass

        def plain() -> None:
            for _ in range(self.count):
                V = self.X - step * (A.T @ (A @ self.X - Y))
                self.X = np.sign(V) * np.maximum(np.abs(V) - tau, 0)

        self.run = kernels if library == "kernels" else plain
        self.run()

    def track_seconds(self, library: str, shape: tuple[int, int], signals: int, dtype: str) -> float:
        return timing.typical(lambda: timing.seconds(self.run), 25) / self.count

    track_seconds.unit = "seconds"


class Training:
    """Seconds to train 15 layers for 40 measurements of 60 unknowns."""

    params = (["soft", "hard"], ["objective", "mse"], ["float64", "float32"])
    param_names = ("prox", "loss", "dtype")
    timeout = 300

    def setup(self, prox: str, loss: str, dtype: str) -> None:
        rng = np.random.default_rng(SEED)
        self.A = (rng.normal(size=(40, 60)) / np.sqrt(40)).astype(dtype)
        self.fit(prox, loss, 1)

    def fit(self, prox: str, loss: str, n_layers: int) -> None:
        import ot_numba

        def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
            x = (rng.normal(size=(60, size)) * (rng.random((60, size)) < 0.1)).astype(self.A.dtype)
            return self.A @ x + self.A.dtype.type(0.1) * rng.normal(size=(40, size)).astype(self.A.dtype), x

        options = {"reg": 0.1 if prox == "soft" else 0.05, "prox": prox, "loss": loss, "rng": 0}
        ot_numba.UnfoldedRecovery.fit(self.A, draw, n_layers=n_layers, **options)

    def track_seconds(self, prox: str, loss: str, dtype: str) -> float:
        return timing.typical(lambda: timing.seconds(lambda: self.fit(prox, loss, 15)))

    track_seconds.unit = "seconds"
