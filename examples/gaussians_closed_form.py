"""Compare entropic transport between Gaussians with its closed form.

Between N(m1, s1^2) and N(m2, s2^2) on the line, with the cost (x - y)^2, the value of

    min  <C, P> + reg KL(P | a b')    over plans P with marginals a and b

is known exactly (Janati, Muzellec, Peyré, Cuturi, NeurIPS 2020). The Gaussians are put on regular grids
over +-9 standard deviations and solved by `ot_numba.sinkhorn`. Prints how far the computed value is from
the exact one for pairs of Gaussians, over a range of reg, and over the number of grid points; and does
the same for the Sinkhorn divergence. With `--array cupy` all of it runs on a GPU.

    python examples/gaussians_closed_form.py
"""

import argparse
import importlib
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import ot_numba

PAIRS = [(0, 1, 1.5, 0.6, 0.5), (0, 1, 0, 1, 0.5), (0, 0.6, 0, 0.6, 0.5), (0, 1, 1.5, 0.6, 2)]
PAIR = (0, 1, 1.5, 0.6)  # m1, s1, m2, s2 of all tables but the first
REGS = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01]
SIZES = [19, 25, 37, 51, 75, 101, 201]
TOL = 1e-12


def main() -> None:
    """Parse the options, print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gaussians_output"), help="folder for the plot")
    parser.add_argument("--points", type=int, default=401, help="number of points of the grids (default: 401)")
    parser.add_argument("--array", choices=["numpy", "cupy"], default="numpy", help="library of the arrays")
    options = parser.parse_args()
    xp = importlib.import_module(options.array)

    print(f"Grids of {options.points} points")
    print("  m1   s1   m2   s2  reg         exact      computed      error  iterations")
    for *pair, reg in PAIRS:
        exact, result = exact_value(*pair, reg), solve(*pair, reg, options.points, xp)
        print(" ".join(f"{number:4g}" for number in (*pair, reg)), end=" ")
        print(f"{exact:13.10f} {result.value:13.10f} {result.value - exact:10.1e} {result.n_iter:11d}")

    m1, s1, m2, s2 = PAIR
    print(f"\nN({m1}, {s1}^2) and N({m2}, {s2}^2) against reg")
    print("    reg         exact      computed      error  marginal error  iterations  seconds")
    values = []
    for reg in REGS:
        start = time.perf_counter()
        result = solve(*PAIR, reg, options.points, xp)
        seconds = time.perf_counter() - start
        exact = exact_value(*PAIR, reg)
        values.append(result.value)
        print(f"{reg:7g} {exact:13.10f} {result.value:13.10f} {result.value - exact:10.1e}", end=" ")
        print(f"{result.marginal_error:15.1e} {result.n_iter:11d} {seconds:8.2f}")
    print(f"      0 {(m1 - m2) ** 2 + (s1 - s2) ** 2:13.10f}  (the squared Wasserstein distance)")

    print("\nThe same against the number of grid points: error of the value")
    regs = (2.0, 0.5, 0.1)
    print("points" + "".join(f"{f'reg {reg:g}':>11}" for reg in regs))
    errors = [[solve(*PAIR, reg, n, xp).value - exact_value(*PAIR, reg) for reg in regs] for n in SIZES]
    for n, row in zip(SIZES, errors, strict=True):
        print(f"{n:6d}" + "".join(f"{error:11.1e}" for error in row))

    print("\nThe Sinkhorn divergence of the same, which has little of the bias")
    print("    reg         exact      computed      error")
    (x, a), (y, b) = grid(m1, s1, options.points, xp), grid(m2, s2, options.points, xp)
    for reg in regs:
        exact = exact_divergence(*PAIR, reg)
        value = ot_numba.sinkhorn_divergence(x, y, a, b, reg=reg, tol=TOL).value
        print(f"{reg:7g} {exact:13.10f} {value:13.10f} {value - exact:10.1e}")

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "gaussians.png"
    draw(path, values, regs, np.abs(errors))
    print(f"\nplot in {path}")


def grid(mean: float, sd: float, points: int, xp: ModuleType) -> tuple[Any, Any]:
    """Regular grid over +-9 standard deviations, with the weights of the Gaussian, as arrays of a library."""
    x = np.linspace(mean - 9 * sd, mean + 9 * sd, points)
    density = np.exp(-0.5 * ((x - mean) / sd) ** 2)
    return xp.asarray(x), xp.asarray(density / density.sum())


def solve(
    m1: float, s1: float, m2: float, s2: float, reg: float, points: int, xp: ModuleType
) -> ot_numba.TransportResult:
    """Entropic transport between the two Gaussians on grids."""
    (x, a), (y, b) = grid(m1, s1, points, xp), grid(m2, s2, points, xp)
    return ot_numba.sinkhorn(ot_numba.PointCloud(x, y), a, b, reg=reg, tol=TOL)


def exact_value(m1: float, s1: float, m2: float, s2: float, reg: float) -> float:
    """Value of entropic transport between N(m1, s1^2) and N(m2, s2^2)."""
    d = math.sqrt(4 * s1**2 * s2**2 + reg**2 / 4)
    smooth = (m1 - m2) ** 2 + s1**2 + s2**2 - d
    return smooth + reg / 2 * (1 - math.log(reg)) + reg / 2 * math.log(d + reg / 2)


def exact_divergence(m1: float, s1: float, m2: float, s2: float, reg: float) -> float:
    """Value of the Sinkhorn divergence between them."""
    own = exact_value(m1, s1, m1, s1, reg) + exact_value(m2, s2, m2, s2, reg)
    return exact_value(m1, s1, m2, s2, reg) - own / 2


def draw(path: Path, values: list[float], regs: tuple[float, ...], errors: np.ndarray) -> None:
    """Write a plot of the values against reg, and of the errors against the number of grid points."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no display
    import matplotlib.pyplot as plt

    m1, s1, m2, s2 = PAIR
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    fine = np.geomspace(3e-3, 30, 200)
    left.semilogx(fine, [exact_value(*PAIR, reg) for reg in fine], label="entropic transport, exact")
    left.semilogx(REGS, values, "ko", label="entropic transport, computed")
    left.semilogx(fine, [exact_divergence(*PAIR, reg) for reg in fine], label="Sinkhorn divergence, exact")
    left.axhline((m1 - m2) ** 2 + (s1 - s2) ** 2, color="0.6", ls="--", label="squared Wasserstein distance")
    left.set(xlabel="reg", ylabel="value", title=f"N({m1}, {s1}²) and N({m2}, {s2}²)")
    left.legend()
    for reg, column in zip(regs, errors.T, strict=True):
        right.semilogy(SIZES, np.maximum(column, 1e-16), "o-", label=f"reg {reg:g}")
    right.set(xlabel="grid points over ±9 standard deviations", title="Error of the value, as computed")
    right.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
