"""Sparse recovery: the LASSO against its peers to the same gap, iterations against NumPy. All on one thread."""

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


def signals(m: int, n: int, count: int, dtype: str) -> tuple[np.ndarray, np.ndarray, float, float]:
    """A Gaussian design in C order, noisy measurements of signals with m / 8 nonzeros, reg, and the longest step."""
    rng = np.random.default_rng([SEED, m, n, count])
    A = rng.normal(size=(m, n)) / np.sqrt(m)
    X = np.zeros((n, count))
    for b in range(count):
        X[rng.choice(n, m // 8, replace=False), b] = rng.normal(size=m // 8)
    Y = A @ X + 0.1 * np.sqrt(1 / 8) * rng.normal(size=(m, count))
    reg = 0.1 * float(np.abs(A.T @ Y).max(axis=0).mean())
    return A.astype(dtype), Y.astype(dtype), reg, float(np.linalg.norm(A, 2) ** -2)


def plain_iterations(
    A: np.ndarray, Y: np.ndarray, reg: float, step: float, count: int, accelerated: bool, check_every: int
) -> np.ndarray:
    """ISTA or FISTA as one writes it in NumPy with arrays made ahead, and the gap at every check."""
    number, theta = A.dtype.type, 1.0
    step, tau = number(step), number(step * reg)
    X, R = np.zeros((A.shape[1], Y.shape[1]), A.dtype), np.empty_like(Y)
    Z, G, W = X.copy(), np.empty_like(X), np.empty_like(X)
    for t in range(count):
        if check_every and t % check_every == 0:
            np.matmul(A, X, out=R)
            np.subtract(R, Y, out=R)
            np.matmul(A.T, R, out=G)
            share = np.minimum(1, reg / np.abs(G).max(axis=0))
            squares, cross = (R * R).sum(axis=0), (R * Y).sum(axis=0)
            0.5 * (1 + share**2) * squares + share * cross + reg * np.abs(X).sum(axis=0)
        if accelerated or not check_every or t % check_every:  # else they are known
            np.matmul(A, Z if accelerated else X, out=R)
            np.subtract(R, Y, out=R)
            np.matmul(A.T, R, out=G)
        np.multiply(G, step, out=G)
        np.subtract(Z if accelerated else X, G, out=G)
        np.clip(G, -tau, tau, out=W)
        np.subtract(G, W, out=W)
        if accelerated:
            following = 0.5 * (1 + math.sqrt(1 + 4 * theta**2))
            np.subtract(W, X, out=Z)
            np.multiply(Z, number((theta - 1) / following), out=Z)
            np.add(Z, W, out=Z)
            theta = following
        X, W = W, X
    return X


SHAPES = [(32, 64), (64, 256), (128, 512), (256, 1024), (512, 2048), (1024, 4096)]


class Iterations:
    """Seconds for an iteration, checks included, on the way from 0 to a gap of 1e-4, against plain NumPy."""

    params = (["ot_numba", "NumPy"], ["ista", "fista"], SHAPES, [1, 64], ["float64", "float32"])
    param_names = ("library", "method", "shape", "signals", "dtype")
    timeout = 300

    def setup(self, library: str, method: str, shape: tuple[int, int], signals_: int, dtype: str) -> None:
        import ot_numba

        if signals_ > 1 and shape[0] > 512:
            raise NotImplementedError("seconds for each")
        ot_numba.set_num_threads(1)
        A, Y, reg, step = signals(*shape, signals_, dtype)
        solve, options = getattr(ot_numba, method), {"reg": reg, "step": step, "tol": 1e-4}
        self.count = solve(A, Y, **options).n_iter
        if library == "ot_numba":
            self.run = lambda: solve(A, Y, **options)
        else:
            self.run = lambda: plain_iterations(A, Y, reg, step, self.count, method == "fista", 10)
            self.run()

    def track_seconds(self, library: str, method: str, shape: tuple[int, int], signals_: int, dtype: str) -> float:
        return timing.typical(lambda: timing.seconds(self.run), 5) / self.count

    track_seconds.unit = "seconds"


class Layers:
    """Seconds for 15 layers of unfolded ISTA from 0, against plain NumPy."""

    params = (["ot_numba", "NumPy"], [(40, 60), (256, 1024), (1024, 4096)], [1, 64], ["float64", "float32"])
    param_names = ("library", "shape", "signals", "dtype")
    count = 15

    def setup(self, library: str, shape: tuple[int, int], signals_: int, dtype: str) -> None:
        import ot_numba

        ot_numba.set_num_threads(1)
        A, Y, reg, step = signals(*shape, signals_, dtype)
        if library == "ot_numba":
            steps = np.full(self.count, step)
            self.run = lambda: ot_numba.unfolded_forward(A, Y, steps, reg=reg)
        else:
            self.run = lambda: plain_iterations(A, Y, reg, step, self.count, False, 0)
        self.run()

    def track_seconds(self, library: str, shape: tuple[int, int], signals_: int, dtype: str) -> float:
        return timing.typical(lambda: timing.seconds(self.run), 25)

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
