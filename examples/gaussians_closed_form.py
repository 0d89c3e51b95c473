"""Compare entropic transport between Gaussians with its closed form.

Between N(m1, s1^2) and N(m2, s2^2) on the line, with the cost (x - y)^2, the value of

    min  <C, P> + reg KL(P | a b')    over plans P with marginals a and b

is known exactly (Janati, Muzellec, Peyré, Cuturi, NeurIPS 2020). The Gaussians are put on regular grids over +-9
standard deviations and solved by `ot_numba.sinkhorn`. Prints how far the computed value is from the exact one for pairs
of Gaussians, over a range of reg, and over the number of grid points; and does the same for the Sinkhorn divergence.

    python examples/gaussians_closed_form.py
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np

import ot_numba

PAIRS = [(0, 1, 1.5, 0.6, 0.5), (0, 1, 0, 1, 0.5), (0, 0.6, 0, 0.6, 0.5), (0, 1, 1.5, 0.6, 2)]
TOL = 1e-12


def main() -> None:
    """Parse the options, print the tables and draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gaussians_output"), help="folder for the plot (default: %(default)s)"
    )
    parser.add_argument("--points", type=int, default=401, help="points of a grid (default: %(default)s)")
    options = parser.parse_args()

    print(f"Grids of {options.points} points")
    print("  m1   s1   m2   s2  reg        exact     computed      error  iterations")
    for m1, s1, m2, s2, reg in PAIRS:
        exact = exact_value(m1, s1, m2, s2, reg)
        result = solve(m1, s1, m2, s2, reg, options.points)
        print(
            f"{m1:4g} {s1:4g} {m2:4g} {s2:4g} {reg:4g} {exact:12.10f} {result.value:12.10f} "
            f"{result.value - exact:10.1e} {result.n_iter:11d}"
        )

    m1, s1, m2, s2, _ = PAIRS[0]
    print(f"\nN({m1}, {s1}^2) and N({m2}, {s2}^2): value against reg; the squared Wasserstein distance is the limit")
    print("    reg        exact      error  marginal error  iterations  seconds")
    regs = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01]
    errors = {}
    for reg in regs:
        start = time.perf_counter()
        result = solve(m1, s1, m2, s2, reg, options.points)
        seconds = time.perf_counter() - start
        exact = exact_value(m1, s1, m2, s2, reg)
        errors[reg] = abs(result.value - exact)
        print(
            f"{reg:7g} {exact:12.8f} {result.value - exact:10.1e} {result.marginal_error:15.1e} "
            f"{result.n_iter:11d} {seconds:8.2f}"
        )
    print(f"  limit {(m1 - m2) ** 2 + (s1 - s2) ** 2:12.8f}")

    print("\nThe same pair at three reg: error against the number of grid points")
    sizes = [13, 19, 25, 37, 51, 75, 101, 201, 401]
    by_size = {
        reg: [abs(solve(m1, s1, m2, s2, reg, n).value - exact_value(m1, s1, m2, s2, reg)) for n in sizes]
        for reg in (1.0, 0.1, 0.01)
    }
    print(" points " + "".join(f"{f'reg {reg:g}':>11}" for reg in by_size))
    for k, n in enumerate(sizes):
        print(f"{n:7d} " + "".join(f"{by_size[reg][k]:11.1e}" for reg in by_size))

    print("\nSinkhorn divergence of the same pair: the entropic bias is gone")
    print("    reg        exact     computed      error")
    (x, a), (y, b) = grid(m1, s1, options.points), grid(m2, s2, options.points)
    for reg in (2.0, 0.5, 0.1):
        exact = exact_divergence(m1, s1, m2, s2, reg)
        value = ot_numba.sinkhorn_divergence(x, y, a, b, reg=reg, tol=TOL).value
        print(f"{reg:7g} {exact:12.10f} {value:12.10f} {value - exact:10.1e}")

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "gaussians.png"
    draw(path, m1, s1, m2, s2, errors, sizes, by_size)
    print(f"\nplot in {path}")


def grid(mean: float, sd: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Regular grid over +-9 standard deviations, with the weights of the Gaussian."""
    x = np.linspace(mean - 9 * sd, mean + 9 * sd, points)
    density = np.exp(-0.5 * ((x - mean) / sd) ** 2)
    return x, density / density.sum()


def solve(m1: float, s1: float, m2: float, s2: float, reg: float, points: int) -> "ot_numba.TransportResult":
    """Entropic transport between the two Gaussians on grids."""
    (x, a), (y, b) = grid(m1, s1, points), grid(m2, s2, points)
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


def draw(path: Path, m1: float, s1: float, m2: float, s2: float, errors: dict, sizes: list, by_size: dict) -> None:
    """Write a plot of the value against reg, and of the errors."""
    import matplotlib

    matplotlib.use("Agg")  # draw into a file: no window, no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    regs = np.geomspace(1e-3, 30, 200)
    axes[0].semilogx(regs, [exact_value(m1, s1, m2, s2, reg) for reg in regs], label="entropic transport, exact")
    axes[0].semilogx(regs, [exact_divergence(m1, s1, m2, s2, reg) for reg in regs], label="Sinkhorn divergence, exact")
    values = [solve(m1, s1, m2, s2, reg, max(sizes)).value for reg in errors]
    axes[0].semilogx(list(errors), values, "ko", label="computed")
    axes[0].axhline((m1 - m2) ** 2 + (s1 - s2) ** 2, color="0.6", label="squared Wasserstein distance")
    axes[0].set(xlabel="reg", ylabel="value", title="Bias of the regularisation")
    axes[0].legend()
    axes[1].loglog(list(errors), np.maximum(list(errors.values()), 1e-17), "ko-")
    axes[1].set(xlabel="reg", ylabel="absolute error of the value", title="Error against the closed form")
    for reg, found in by_size.items():
        axes[2].loglog(sizes, np.maximum(found, 1e-17), "o-", label=f"reg {reg:g}")
    axes[2].set(xlabel="grid points", title="Error against the grid")
    axes[2].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
