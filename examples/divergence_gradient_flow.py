"""Let a cloud of particles flow onto a shape, down the gradient of a Sinkhorn divergence.

The particles x minimise S(x), the Sinkhorn divergence between them and points y inside the letters of a
text, by gradient descent

    x_i <- x_i - step n/2 dS/dx_i

With weights 1/n and the squared distance, step 1 would send every particle to the mean of its targets at
once, the bias of that mean removed. The gradient is analytic, and each solve starts from the potentials
of the one before. Prints the divergence on the way and writes a strip of snapshots:

    python examples/divergence_gradient_flow.py
    python examples/divergence_gradient_flow.py --text Hello --particles 3000 --reg 0.001
"""

import argparse
import time
from pathlib import Path

import numpy as np

import ot_numba


def main() -> None:
    """Parse the options, let the particles flow, print the numbers and draw the snapshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="OT", help="the shape to flow onto (default: OT)")
    parser.add_argument("--particles", type=int, default=1000, help="number of particles (default: 1000)")
    parser.add_argument("--reg", type=float, default=2e-3, help="regularisation strength (default: 0.002)")
    parser.add_argument("--step", type=float, default=0.3, help="step size (default: 0.3)")
    parser.add_argument("--steps", type=int, default=25, help="number of steps (default: 25)")
    parser.add_argument("--output", type=Path, default=Path("flow_output"), help="folder for the picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random points (default: 0)")
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    shape = points_in_text(options.text, options.particles, rng)
    start = shape.mean(axis=0) + 0.12 * rng.normal(size=(options.particles, 2))
    print(f"{options.particles} particles onto {options.text!r}, reg {options.reg:g}, step {options.step:g}")

    began = time.perf_counter()
    snapshots, final = flow(start, shape, options.reg, options.step, options.steps)
    seconds = time.perf_counter() - began

    distance = np.sqrt(((final[:, None] - shape) ** 2).sum(axis=2).min(axis=1))
    print(f"{options.steps} steps in {seconds:.1f} s")
    print(f"particles are {distance.mean():.4f} from the nearest point of the shape, on average")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "flow.png"
    draw(path, snapshots, shape)
    print(f"picture in {path}")


def flow(x: np.ndarray, shape: np.ndarray, reg: float, step: float, steps: int) -> tuple[dict, np.ndarray]:
    """Gradient descent on the divergence; snapshots by step, and the particles at the end."""
    shown = sorted({round(steps * share) for share in (0, 0.08, 0.16, 0.28, 0.48, 1)})
    print("  step    divergence  iterations")
    snapshots, divergence = {}, None
    for k in range(steps + 1):
        divergence = ot_numba.sinkhorn_divergence(x, shape, reg=reg, tol=1e-3, init=divergence)
        if k in shown:
            snapshots[k] = x
            print(f"{k:6d} {divergence.value:13.6f} {divergence.n_iter:11d}")
        if k < steps:
            x = x - step * len(x) / 2 * divergence.gradients("x")["x"]
    return snapshots, x


def points_in_text(text: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random points inside the letters of a text that is 1 high."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    letters = TextPath((0, 0), text, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    polygons = [Outline(polygon) for polygon in letters.to_polygons()]
    low, high = letters.vertices.min(axis=0), letters.vertices.max(axis=0)
    found = np.empty((0, 2))
    while len(found) < count:
        points = rng.uniform(low, high, size=(4 * count, 2))
        # inside an odd number of outlines: an O is a disc with a disc taken out
        inside = sum(polygon.contains_points(points).astype(int) for polygon in polygons) % 2 == 1
        found = np.concatenate([found, points[inside]])
    return (found[:count] - low) / (high - low)[1]


def draw(path: Path, snapshots: dict[int, np.ndarray], shape: np.ndarray) -> None:
    """Write the snapshots side by side, the shape behind them."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 5), layout="constrained")
    everything = np.concatenate([shape, *snapshots.values()])
    low, high = everything.min(axis=0) - 0.05, everything.max(axis=0) + 0.05
    colors = np.linspace(0, 1, len(shape))[np.argsort(np.argsort(snapshots[0][:, 0]))]  # by where they start
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (step, x) in zip(axes.flat, snapshots.items(), strict=False):  # fewer where there are few steps
        ax.scatter(*shape.T, s=8, c="0.85", linewidths=0)
        ax.scatter(*x.T, s=8, c=colors, cmap="viridis", linewidths=0)
        ax.set(title=f"step {step}", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
