"""Learn one ridge for each weight of a logistic regression of handwritten digits.

The lower level fits the weights to training digits, the upper level is the loss of validation digits. Compares one
common ridge, chosen from a grid, with 640 ridges found by `maid`, on test digits:

    python examples/logistic_hyperparameters.py
    python examples/logistic_hyperparameters.py --train 300 --steps 60
"""

import argparse
from pathlib import Path

import numpy as np

import ot_numba


def main() -> None:
    """Parse the options, learn, print the table and draw the ridges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=200, help="training digits (default: 200)")
    parser.add_argument("--steps", type=int, default=40, help="steps of the search (default: 40)")
    parser.add_argument("--output", type=Path, default=Path("logistic_output"), help="folder for the picture")
    options = parser.parse_args()

    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = X[order] / 16, y[order]
    n = options.train
    train, valid, test = slice(0, n), slice(n, n + 400), slice(n + 400, None)

    def accuracy(W: np.ndarray) -> float:
        return float(np.mean(np.argmax(X[test] @ W, axis=1) == y[test]))

    common = ot_numba.logistic_ridge(X[train], y[train], X[valid], y[valid], n_classes=10, per_weight=False)
    print("                        validation loss   test accuracy")
    best = None
    for log_ridge in (-6.0, -5.0, -4.0, -3.0, -2.0):
        found = ot_numba.hypergradient(common, log_ridge, tol=1e-2, init=None if best is None else best[1].x)
        print(f"common ridge e^{log_ridge:+.0f} {found.value:18.4f} {accuracy(found.x):15.4f}")
        if best is None or found.value < best[1].value:
            best = log_ridge, found
    problem = ot_numba.logistic_ridge(X[train], y[train], X[valid], y[valid], n_classes=10)
    result = ot_numba.maid(
        problem, np.full(problem.size, best[0]), init=best[1].x, step=100.0, max_iter=options.steps,
        max_gradients=20_000, check_descent=False, on_fail="ignore",
    )  # fmt: skip
    print(f"{problem.size} ridges by maid {result.value:16.4f} {accuracy(result.x):15.4f}")
    print(f"{result.n_iter} steps, each certain to lower the loss; {result.n_gradients} gradients")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "ridges.png"
    draw(path, result)
    print(f"picture in {path}")


def draw(path: Path, result: ot_numba.BilevelResult) -> None:
    """Write the loss on the way, and the ridges of three digits."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    axes[0].plot([h.n_gradients for h in result.history], [h.value for h in result.history])
    axes[0].set(xlabel="lower gradients", ylabel="validation loss")
    ridges = result.theta.reshape(8, 8, 10)
    for ax, digit in zip(axes[1:], (0, 3, 7), strict=True):
        image = ax.imshow(ridges[:, :, digit], vmin=ridges.min(), vmax=ridges.max())
        ax.set(title=f"log ridge, digit {digit}", xticks=[], yticks=[])
    figure.colorbar(image, ax=axes[1:])
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
