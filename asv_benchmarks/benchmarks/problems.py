"""Seeded transport problems, and the residual by which every library is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

CHUNK = 1 << 20  #: entries of a tile


@dataclass(frozen=True)
class Problem:
    """Weights, a regularisation, and points (squared Euclidean cost) or a cost matrix."""

    a: np.ndarray
    b: np.ndarray
    reg: float
    x: np.ndarray | None = None
    y: np.ndarray | None = None
    matrix: np.ndarray | None = None

    @cached_property
    def C(self) -> np.ndarray:  # noqa: N802
        """The cost matrix."""
        return squared_distances(self.x, self.y) if self.matrix is None else self.matrix

    def astype(self, dtype: str) -> Problem:
        """The same problem in another precision."""
        names = ("a", "b", "x", "y", "matrix")
        arrays = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(self, **{name: array.astype(dtype) for name, array in arrays.items()})


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """All squared Euclidean distances."""
    C = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return np.maximum(C, 0, out=C)


def residual(problem: Problem, answer: np.ndarray | tuple[np.ndarray, np.ndarray]) -> float:
    """L1 error of both marginals in float64: of a plan, or of f, g with ``P = exp((f + g - C) / reg)``."""
    a, b = problem.a.astype(float), problem.b.astype(float)
    columns, error = np.zeros_like(b), 0.0
    step = max(1, CHUNK // len(b))
    for lo in range(0, len(a), step):
        rows = slice(lo, lo + step)
        if isinstance(answer, tuple):
            f, g = (np.asarray(v, float) for v in answer)
            P = np.exp((f[rows, None] + g - problem.C[rows]) / problem.reg)
        else:
            P = np.asarray(answer[rows], float)
        error += float(np.abs(P.sum(1) - a[rows]).sum())
        columns += P.sum(0)
    return (error + float(np.abs(columns - b).sum())) / float(a.sum())


def clouds(n: int, d: int = 2, share: float = 0.05, seed: int = 1) -> Problem:
    """Two Gaussian mixtures, three and four components, uniform weights; `share` of the median cost as reg."""
    rng = np.random.default_rng([seed, n, d])
    x, y = (_mixture(rng, n, d, components) for components in (3, 4))
    return _from_points(x, y, np.full(n, 1 / n), np.full(n, 1 / n), share)


def squares(n: int, d: int = 2, share: float = 0.05, seed: int = 1) -> Problem:
    """Points uniform in the unit cube with unequal weights."""
    rng = np.random.default_rng([seed, n, d])
    x, y = rng.random((n, d)), rng.random((n, d))
    a, b = (w / w.sum() for w in rng.uniform(0.2, 1.8, (2, n)))
    return _from_points(x, y, a, b, share)


def colours(n: int, share: float = 0.05, seed: int = 1) -> Problem:
    """Colours of pixels drawn from two photographs (needs scikit-learn and pillow)."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng([seed, n])
    pixels = (image.reshape(-1, 3) / 255 for image in load_sample_images().images)
    x, y = (p[rng.choice(len(p), n, replace=False)] for p in pixels)
    return _from_points(x, y, np.full(n, 1 / n), np.full(n, 1 / n), share)


def regot_family(name: str, n: int, reg: float, seed: int = 1) -> Problem:
    """Cost matrices of the kind regot is tested on, largest entry 1.

    ``"uniform"``: independent uniform costs. ``"points"``: overlapping squares, Dirichlet weights. ``"line"``: an
    exponential against a mixture of two normals on a grid of the line. ``"images"``: two smooth images on a square
    grid, L1 distance.
    """
    rng = np.random.default_rng([seed, n])
    if name == "uniform":
        a = b = np.full(n, 1 / n)
        C = rng.random((n, n))
    elif name == "points":
        a, b = rng.dirichlet(np.full(n, 2.0), 2)
        C = squared_distances(rng.random((n, 2)), 0.3 + 0.7 * rng.random((n, 2)))
    elif name == "line":
        t = np.linspace(0, 5, n)
        a = np.exp(-t)
        b = 0.2 * _normal(t, 1, 0.2) + 0.8 * _normal(t, 3, 0.5) + 1e-12
        C = (t[:, None] - t) ** 2
    elif name == "images":
        side = math.isqrt(n)
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * 2), axis=-1).reshape(-1, 2)
        a, b = _image(rng, grid), _image(rng, grid)
        C = sum(np.abs(axis[:, None] - axis) for axis in grid.T)
    else:
        raise ValueError(f"no family {name!r}")
    return Problem(a / a.sum(), b / b.sum(), reg, matrix=C / C.max())


def _mixture(rng: np.random.Generator, n: int, d: int, components: int) -> np.ndarray:
    """Draw points around normal centres, each component with a spread of its own."""
    centres = rng.normal(scale=1.5 / math.sqrt(d), size=(components, d))
    spreads = rng.uniform(0.3, 1.0, components)
    labels = rng.integers(components, size=n)
    return centres[labels] + spreads[labels, None] * rng.normal(size=(n, d))


def _from_points(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, share: float) -> Problem:
    """Take reg from the median cost of at most 1000 points a side, which are drawn independently."""
    return Problem(a, b, share * float(np.median(squared_distances(x[:1000], y[:1000]))), x, y)


def _normal(t: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    return np.exp(-(((t - mean) / deviation) ** 2) / 2) / deviation


def _image(rng: np.random.Generator, grid: np.ndarray) -> np.ndarray:
    """Three spots on a faint background."""
    spots = [
        np.exp(-((grid - rng.random(2)) ** 2).sum(1) / (2 * rng.uniform(0.05, 0.2) ** 2)) for _ in range(3)
    ]
    image = sum(spots)
    return 0.99 * image / image.sum() + 0.01 / len(grid)
