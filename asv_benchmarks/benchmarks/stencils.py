"""Lower levels of image denoising, one evaluation or a whole solution, one thread, against NumPy, SciPy, scikit-image.

The NumPy code writes into arrays that are allocated once: else half of its time goes to the system, for new pages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import timing

WEIGHT, SMOOTHING = 0.1, 0.01


class NumpyTV:
    """Smoothed total variation of one image in NumPy."""

    def __init__(self, y: np.ndarray, isotropic: bool) -> None:
        self.y, self.isotropic = y, isotropic
        self.dx, self.ax = np.empty((2, len(y), len(y) - 1), y.dtype)
        self.dy, self.ay = np.empty((2, len(y) - 1, len(y)), y.dtype)
        self.s, self.t, self.g, self.new = np.empty((4, *y.shape), y.dtype)

    def differences(self, x: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> None:
        np.subtract(x[:, 1:], x[:, :-1], out=dx)
        np.subtract(x[1:], x[:-1], out=dy)

    def add_adjoint(self, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        g = self.g
        g[:, :-1] -= dx
        g[:, 1:] += dx
        g[:-1] -= dy
        g[1:] += dy
        return g

    def inverse_root(self, d: np.ndarray | None) -> np.ndarray:
        """1 / s of one direction, or of both."""
        if d is None:
            s = self.s
            s[:] = SMOOTHING**2
            t = np.multiply(self.dx, self.dx, out=self.t[:, :-1])
            s[:, :-1] += t
            t = np.multiply(self.dy, self.dy, out=self.t[:-1])
            s[:-1] += t
        else:
            s = np.multiply(d, d, out=self.s[: d.shape[0], : d.shape[1]])
            s += SMOOTHING**2
        np.sqrt(s, out=s)
        return np.divide(1, s, out=s)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        dx, dy = self.dx, self.dy
        self.differences(x, dx, dy)
        np.subtract(x, self.y, out=self.g)
        if self.isotropic:
            r = self.inverse_root(None)
            r *= WEIGHT
            dx *= r[:, :-1]
            dy *= r[:-1]
        else:
            for d in (dx, dy):
                d *= self.inverse_root(d)
                d *= WEIGHT
        return self.add_adjoint(dx, dy)

    def hvp(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        dx, dy, ax, ay = self.dx, self.dy, self.ax, self.ay
        self.differences(x, dx, dy)
        self.differences(v, ax, ay)
        self.g[:] = v
        if self.isotropic:
            r = self.inverse_root(None)
            dx *= r[:, :-1]
            dy *= r[:-1]
            t = self.t
            np.multiply(dx, ax, out=t[:, :-1])
            t[:, -1] = 0
            t[:-1] += np.multiply(dy, ay, out=self.new[:-1])
            dx *= t[:, :-1]
            dy *= t[:-1]
            ax -= dx
            ay -= dy
            r *= WEIGHT
            ax *= r[:, :-1]
            ay *= r[:-1]
        else:
            for d, a in ((dx, ax), (dy, ay)):
                r = self.inverse_root(d)
                a *= r
                r *= r
                a *= r
                a *= WEIGHT * SMOOTHING**2
        return self.add_adjoint(ax, ay)

    def step(self, x: np.ndarray, z: np.ndarray, step: float, momentum: float) -> float:
        """An accelerated step, x and z in place."""
        g = self.gradient(z)
        norm = np.vdot(g, g)
        g *= step
        z -= g
        np.subtract(z, x, out=g)
        g *= momentum
        x[:] = z
        z += g
        return norm


def images(n: int, dtype: str) -> list[np.ndarray]:
    """A noisy image of rectangles, and a vector."""
    rng = np.random.default_rng(n)
    clean = np.kron(rng.random((8, 8)), np.ones((n // 8, n // 8)))
    return [(clean + 0.1 * rng.normal(size=(n, n))).astype(dtype), rng.normal(size=(n, n)).astype(dtype)]


def prepare_tv(library: str, function: str, isotropic: bool, dtype: str, n: int) -> Callable[[], object]:
    """One evaluation as a function without arguments."""
    import ot_numba
    from ot_numba.kernels.cpu import stencils

    ot_numba.set_num_threads(1)
    y, v = images(n, dtype)
    if library == "NumPy":
        numpy = NumpyTV(y, isotropic)
        x, z = y.copy(), y.copy()
        return {
            "gradient": lambda: numpy.gradient(y),
            "hvp": lambda: numpy.hvp(y, v),
            "steps": lambda: [numpy.step(x, z, 0.01, 0.8) for _ in range(10)],
        }[function]
    batch, vector, out = y[None], v[None], np.empty((1, n, n), dtype)
    x, z, scratch = batch.copy(), batch.copy(), np.empty((2, 1, n, n), dtype)
    form = (WEIGHT, SMOOTHING, isotropic)
    return {
        "gradient": lambda: stencils.tv_gradient(batch, batch, *form, out),
        "hvp": lambda: stencils.tv_hvp(batch, vector, *form, out),
        "steps": lambda: stencils.tv_steps(x, z, batch, *form, 0.01, 0.8, 0.0, 10, scratch),
    }[function]


class TotalVariation:
    """Gradient and product with the Hessian; ten accelerated steps."""

    params = (["ot_numba", "NumPy"], ["gradient", "hvp", "steps"], [True, False], ["float64", "float32"], [512, 1024])
    param_names = ("library", "function", "isotropic", "dtype", "n")

    def setup(self, *params: str | bool | int) -> None:
        self.run = prepare_tv(*params)

    def track_seconds(self, *params: str | bool | int) -> float:
        self.run()
        return timing.typical(lambda: timing.seconds(self.run), 15)

    track_seconds.unit = "seconds"


class Threads:
    """Ten accelerated steps, time on the wall."""

    params = ([1, 2], ["float64", "float32"], [512, 1024, 2048])
    param_names = ("threads", "dtype", "n")

    def setup(self, threads: int, dtype: str, n: int) -> None:
        import ot_numba

        self.run = prepare_tv("ot_numba", "steps", True, dtype, n)
        ot_numba.set_num_threads(threads)

    def time_steps(self, threads: int, dtype: str, n: int) -> None:
        self.run()


def prepare_foe(library: str, function: str, count: int, size: int, n: int) -> Callable[[], object]:
    """Gradient, or product with the Hessian, of a field of experts."""
    from scipy.ndimage import convolve, correlate

    import ot_numba
    from ot_numba.kernels.cpu import stencils

    ot_numba.set_num_threads(1)
    y, v = images(n, "float64")
    filters = np.random.default_rng(0).normal(size=(count, size, size))
    weights, nus = np.full(count, WEIGHT), np.full(count, SMOOTHING)
    if library == "ot_numba":
        out = np.empty((1, n, n))
        call, other = (stencils.foe_hvp, v) if function == "hvp" else (stencils.foe_gradient, y)
        return lambda: call(y[None], other[None], filters, weights, nus, out)
    taps = [(i, j) for i in range(size) for j in range(size)]
    inner = n - size + 1

    def numpy_correlate(x: np.ndarray, c: np.ndarray) -> np.ndarray:
        u = np.zeros((inner, inner))
        for i, j in taps:
            u += c[i, j] * x[i : i + inner, j : j + inner]
        return u

    def numpy_adjoint(p: np.ndarray, c: np.ndarray, out: np.ndarray) -> None:
        for i, j in taps:
            out[i : i + inner, j : j + inner] += c[i, j] * p

    low = size // 2
    inside = slice(low, low + inner)
    padded = np.zeros((n, n))

    def scipy_correlate(x: np.ndarray, c: np.ndarray) -> np.ndarray:
        return correlate(x, c, mode="constant")[inside, inside]

    def scipy_adjoint(p: np.ndarray, c: np.ndarray, out: np.ndarray) -> None:
        padded[inside, inside] = p
        out += convolve(padded, c, mode="constant")

    forward, adjoint = {
        "NumPy": (numpy_correlate, numpy_adjoint),
        "SciPy": (scipy_correlate, scipy_adjoint),
    }[library]

    def run() -> np.ndarray:
        out = v.copy() if function == "hvp" else y - y
        for c, weight, nu in zip(filters, weights, nus, strict=True):
            u = forward(y, c)
            s = np.sqrt(u * u + nu * nu)
            p = forward(v, c) * (weight * nu * nu) / s**3 if function == "hvp" else weight * u / s
            adjoint(p, c, out)
        return out

    return run


class FieldsOfExperts:
    params = (["ot_numba", "NumPy", "SciPy"], ["gradient", "hvp"], [8, 48], [3, 7], [256])
    param_names = ("library", "function", "filters", "size", "n")
    timeout = 300

    def setup(self, *params: str | int) -> None:
        self.run = prepare_foe(*params)

    def track_seconds(self, *params: str | int) -> float:
        self.run()
        return timing.typical(lambda: timing.seconds(self.run), 3)

    track_seconds.unit = "seconds"


#: Iterations that a rival is given until its objective is within 1e-5 of the least, relative to that of the data.
LIBRARIES = ("ot_numba", "scikit-image")


def total_variation(x: np.ndarray) -> float:
    """Isotropic, without smoothing."""
    dx, dy = (np.zeros_like(x) for _ in range(2))
    dx[:, :-1], dy[:-1] = np.diff(x, axis=1), np.diff(x, axis=0)
    return float(np.sqrt(dx * dx + dy * dy).sum())


def objective(x: np.ndarray, y: np.ndarray) -> float:
    """What both libraries minimise, without smoothing."""
    return 0.5 * float(((x - y) ** 2).sum()) + WEIGHT * total_variation(x)


def solve_tv(library: str, y: np.ndarray, effort: int) -> np.ndarray:
    """Denoised image; more effort is closer to the minimum of `objective`."""
    import ot_numba
    from ot_numba.bilevel import denoise_tv

    ot_numba.set_num_threads(1)
    if library == "ot_numba":
        return denoise_tv(y, weight=WEIGHT, smoothing=0.02 / 2**effort, tol=0.02 / 2**effort).x
    try:
        from skimage.restoration import denoise_tv_chambolle
    except ImportError as error:
        raise NotImplementedError(f"{library} is left out: {error}") from error
    return denoise_tv_chambolle(y, weight=WEIGHT, eps=0, max_num_iter=10 * 2**effort)


class Denoisers:
    """Time to an objective within `excess` of the least, relative to it."""

    params = (list(LIBRARIES), [1e-2, 1e-3, 1e-4], [256, 512])
    param_names = ("library", "excess", "n")
    timeout = 600

    def setup(self, library: str, excess: float, n: int) -> None:
        from ot_numba.bilevel import denoise_tv

        self.y = images(n, "float64")[0]
        best = denoise_tv(self.y, weight=WEIGHT, smoothing=1e-5, tol=1e-5, max_iter=20_000, on_fail="ignore").x
        least = objective(best, self.y)
        for self.effort in range(12):
            if objective(solve_tv(library, self.y, self.effort), self.y) <= (1 + excess) * least:
                return
        raise NotImplementedError(f"{library} does not reach an excess of {excess}")

    def track_seconds(self, library: str, excess: float, n: int) -> float:
        return timing.typical(lambda: timing.seconds(lambda: solve_tv(library, self.y, self.effort)), 5)

    track_seconds.unit = "seconds"
