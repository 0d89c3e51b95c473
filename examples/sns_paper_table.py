"""Three experiments of the paper on Sinkhorn-Newton-Sparse, by Sinkhorn's algorithm, by it, and by the path of `auto`.

Tang et al., "Accelerating Sinkhorn algorithm with sparse Newton iterations", ICLR 2024: a random assignment problem
with 500 points a side, and two images of digits under the squared Euclidean and the L1 distance between pixels, at reg
= 1 / 1200 of the largest cost. The digits are scikit-learn's, enlarged to 16 x 16 pixels, in place of MNIST. Each
method runs until the marginals are right to 1e-12, but Sinkhorn's algorithm for at most `--most` iterations, and Newton
steps with a sparse Hessian, which need not converge on these digits under the L1 distance, at most 40. Prints the
paper's table and draws how the errors shrink.

    python examples/sns_paper_table.py
"""

import argparse
import time
from pathlib import Path

import numpy as np

import ot_numba

REG = 1 / 1200
TOL = 1e-12
SIDE = 16  # pixels of an image
PAPER = {  # iterations of Sinkhorn and of Sinkhorn-Newton-Sparse
    "random assignment": (56_199, 29),
    "digits, squared L2": (2_041, 53),
    "digits, L1": (5_748, 777),
}


def main() -> None:
    """Parse the options, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sns_output"), help="folder for the plot")
    parser.add_argument("--most", type=int, default=50_000, help="Sinkhorn iterations (default: 50000)")
    options = parser.parse_args()

    print(f"{'problem':20s} {'method':26s} iterations (paper)  seconds    error       value")
    curves = {}
    for name, (C, a, b) in experiments().items():
        for method, result, seconds in runs(C, a, b, options.most, 700 if "L1" in name else 20):
            paper = PAPER[name][method != "Sinkhorn"] if method != "path (auto)" else ""
            print(f"{name:20s} {method:26s} {result.n_iter:10d} {paper!s:>7s} {seconds:8.2f}", end=" ")
            print(f"{result.marginal_error:8.1e} {result.value:11.8f}", flush=True)
            curves.setdefault(name, {})[method] = [(p.n_iter, p.marginal_error) for p in result.history]
    draw(curves, options.output)


def experiments() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Costs with the largest entry 1, and weights."""
    n = 500
    uniform = np.full(n, 1 / n)
    one, other = digits()
    pixels = np.stack(np.meshgrid(*[np.arange(SIDE, dtype=float)] * 2), axis=-1).reshape(-1, 2)
    offsets = pixels[:, None] - pixels
    squared, city = (offsets**2).sum(-1), np.abs(offsets).sum(-1)
    return {
        "random assignment": (np.random.default_rng(0).random((n, n)), uniform, uniform),
        "digits, squared L2": (squared / squared.max(), one, other),
        "digits, L1": (city / city.max(), one, other),
    }


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Two digits as weights of the pixels, on a faint background so that none is 0."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    weights = []
    for image in images[[3, 8]]:
        enlarged = np.kron(image, np.ones((SIDE // 8, SIDE // 8))).ravel()
        weights.append(0.99 * enlarged / enlarged.sum() + 0.01 / enlarged.size)
    return weights[0], weights[1]


def runs(C, a, b, most, n_sinkhorn):
    """Methods, their results and seconds; each once before, on a part of the problem, so that nothing compiles."""
    plain = {"reg_schedule": None, "relaxation": 1.0, "method": "kernel", "max_iter": most, "check_every": 10}
    sns = {"method": "sns", "n_sinkhorn": n_sinkhorn, "max_iter": n_sinkhorn + 40}  # so many as in the paper
    methods = {
        "Sinkhorn": (ot_numba.sinkhorn, plain),
        "Sinkhorn-Newton-Sparse": (ot_numba.sinkhorn_newton, sns),
        "path (auto)": (ot_numba.sinkhorn_newton, {}),
    }
    for name, (solver, options) in methods.items():
        solver(C[:50, :50], reg=REG, **{**options, "max_iter": 30}, on_fail="ignore")
        start = time.perf_counter()
        result = solver(C, a, b, reg=REG, tol=TOL, on_fail="ignore", **options)
        yield name, result, time.perf_counter() - start


def draw(curves: dict[str, dict[str, list[tuple[int, float]]]], folder: Path) -> None:
    """Plot the errors of all methods against the iterations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.5), sharey=True, layout="constrained")
    for axis, (name, methods) in zip(axes, curves.items(), strict=True):
        for method, points in methods.items():
            axis.loglog(*zip(*points, strict=True), label=method)
        axis.set(title=name, xlabel="iterations", ylim=(1e-16, 3))
    axes[0].set_ylabel("marginal error")
    axes[0].legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "convergence.png", dpi=120)
    print(f"\nPlot: {folder / 'convergence.png'}")


if __name__ == "__main__":
    main()
