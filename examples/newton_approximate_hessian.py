"""Newton's method with exact and with cheap Hessians, against gradient descent.

Three functions: the fourth power of the norm of linear residuals, where the rank-one Fisher term does better than the
exact Hessian at the cost of a gradient; a log-sum-exp with weighted Gauss-Newton; and logistic regression of
handwritten digits, odd or even, where the Fisher matrix does not pay:

    python examples/newton_approximate_hessian.py
"""

import argparse
from pathlib import Path

import numpy as np

from ot_numba.optimize import LogisticLoss, LogSumExp, PowerNorm, gradient_descent, regularized_newton


def main() -> None:
    """Parse the options, run all methods, print the table and draw the gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=25, help="iterations of each method (default: 25)")
    parser.add_argument("--output", type=Path, default=Path("newton_output"), help="folder for the picture")
    options = parser.parse_args()

    curves = {}
    for name, (f, approximations, x0, metric) in problems().items():
        shared = {"metric": metric, "max_iter": options.iterations, "tol": 1e-8}
        found = {
            kind: regularized_newton(
                f.value, f.grad, lambda x, f=f, kind=kind: f.hess(x, kind), x0, on_fail="ignore", **shared
            )
            for kind in approximations
        }
        found["gradient"] = gradient_descent(f.value, f.grad, x0, **shared)
        best = min(result.value for result in found.values())
        print(f"{name}, smallest value {best:.6g}")
        for kind, result in found.items():
            print(f"  {kind:14} gap {result.value - best:9.2e} after {result.n_iter} iterations")
        curves[name] = {kind: [h.value - best for h in result.history] for kind, result in found.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "newton.png"
    draw(path, curves)
    print(f"picture in {path}")


def problems() -> dict:
    """Functions, their Hessians, starts and metrics."""
    from sklearn.datasets import load_digits

    rng = np.random.RandomState(3124)
    A, b = rng.uniform(-1, 1, (100, 200)), rng.uniform(-1, 1, 100)
    quartic = PowerNorm(lambda x: A @ x - b, lambda x: A, p=4)
    L = rng.uniform(-1, 1, (200, 200))
    L = L - np.mean(L, axis=0)  # so that the minimum is at 0
    digits, labels = load_digits(return_X_y=True)
    logistic = LogisticLoss(digits / 16, np.where(labels % 2, 1, -1))
    return {
        "fourth power": (quartic, ("exact", "fisher"), np.ones(200), A.T @ A + 1e-8 * np.eye(200)),
        "log-sum-exp": (
            LogSumExp(L, np.zeros(200), smoothing=1.0), ("exact", "gauss-newton"), np.ones(200),
            L.T @ L + 1e-8 * np.eye(200),
        ),
        "digits, odd or even": (logistic, ("exact", "fisher"), np.zeros(64), None),
    }  # fmt: skip


def draw(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """Write the gaps by iterations."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(13, 4), layout="constrained")
    for ax, (name, found) in zip(axes, curves.items(), strict=True):
        for kind, gaps in found.items():
            ax.semilogy(np.maximum(gaps, 1e-16), label=kind)
        ax.set(title=name, xlabel="iterations", ylabel="gap")
        ax.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
