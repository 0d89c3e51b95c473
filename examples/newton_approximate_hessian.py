"""Newton's method with exact and with cheap Hessians, against its rivals.

Five functions: the fourth power of the norm of linear residuals, where the rank-one Fisher term does better than the
exact Hessian at the cost of a gradient; a log-sum-exp with weighted Gauss-Newton; Rosenbrock's function; a chain of
Chebyshev polynomials, whose Gauss-Newton matrix does better than the exact Hessian; and logistic regression of
handwritten digits, odd or even, where the Fisher matrix does not pay. `regularized_newton` with each Hessian, then the
super-universal and the cubic Newton method and two gradient methods:

    python examples/newton_approximate_hessian.py
    python examples/newton_approximate_hessian.py --iterations 100 --gradients 1000
"""

import argparse
from pathlib import Path

import numpy as np

from ot_numba.optimize import (
    LogisticLoss,
    LogSumExp,
    PowerNorm,
    cubic_newton,
    fast_gradient,
    gradient_descent,
    regularized_newton,
    super_newton,
)


def main() -> None:
    """Parse the options, run all methods, print the table and draw the gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60, help="iterations of Newton's methods (default: 60)")
    parser.add_argument("--gradients", type=int, default=100, help="iterations of gradient methods (default: 100)")
    parser.add_argument("--output", type=Path, default=Path("newton_output"), help="folder for the picture")
    options = parser.parse_args()

    curves = {}
    for name, (f, approximations, x0, metric, best) in problems().items():
        shared = {"metric": metric, "tol": 1e-14, "on_fail": "ignore"}
        second = shared | {"max_iter": options.iterations}
        found = {
            kind: regularized_newton(f.value, f.grad, lambda x, f=f, kind=kind: f.hess(x, kind), x0, **second)
            for kind in approximations
        }
        found["super-universal"] = super_newton(f.value, f.grad, f.hess, x0, **second)
        found["cubic"] = cubic_newton(f.value, f.grad, f.hess, x0, **second)
        first = shared | {"max_iter": options.gradients}
        found["gradient"] = gradient_descent(f.value, f.grad, x0, **first)
        found["fast gradient"] = fast_gradient(f.value, f.grad, x0, **first)
        if metric is not None:
            found["gradient, plain"] = gradient_descent(f.value, f.grad, x0, **first | {"metric": None})
        if best is None:
            best = min(result.value for result in found.values())
        print(f"{name}, smallest value {best:.6g}")
        for kind, result in found.items():
            gaps = [h.value - best for h in result.history]
            shown = "  ".join(f"{k} {gaps[k]:.1e}" for k in (5, 10, 20, 50, 100, 1000) if k < len(gaps))
            print(f"  {kind:16} gap {gaps[-1]:9.1e} after {result.n_iter:4d} iterations; at {shown}")
        curves[name] = {kind: [h.value - best for h in result.history] for kind, result in found.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "newton.png"
    draw(path, curves)
    print(f"picture in {path}")


def problems() -> dict:
    """Functions, their Hessians, starts, metrics, and smallest values where they are known."""
    from sklearn.datasets import load_digits

    rng = np.random.RandomState(3124)
    A, b = rng.uniform(-1, 1, (100, 200)), rng.uniform(-1, 1, 100)
    quartic = PowerNorm(lambda x: A @ x - b, lambda x: A, p=4)

    rng = np.random.RandomState(3124)
    L, c = rng.uniform(-1, 1, (200, 200)).T, rng.uniform(-1, 1, 200)
    weights = np.exp(-c)
    L = L - weights @ L / weights.sum()  # so that the minimum is at 0
    lse = LogSumExp(L, c, smoothing=1.0)

    rosenbrock = PowerNorm(
        lambda x: np.array([1 - x[0], 10 * (x[1] - x[0] ** 2)]),
        lambda x: np.array([[-1.0, 0.0], [-20 * x[0], 10.0]]),
        p=2,
        curvature=lambda x, u: np.diag([-20 * u[1], 0.0]),
    )
    digits, labels = load_digits(return_X_y=True)
    logistic = LogisticLoss(digits / 16, np.where(labels % 2, 1, -1))
    both = ("exact", "gauss-newton")
    return {
        "fourth power": (quartic, ("exact", "fisher"), np.ones(200), A.T @ A + 1e-8 * np.eye(200), 0.0),
        "log-sum-exp": (lse, both, np.ones(200), L.T @ L + 1e-10 * np.eye(200), lse.value(np.zeros(200))),
        "Rosenbrock": (rosenbrock, both, np.array([-2.0, 2.0]), None, 0.0),
        "Chebyshev": (chebyshev(60), both, np.random.RandomState(3124).rand(60), None, 0.0),
        "digits, odd or even": (logistic, ("exact", "fisher"), np.zeros(64), None, None),
    }


def chebyshev(n: int) -> PowerNorm:
    """Fourth power of residuals that each tie an entry to a polynomial of the one before."""
    i = np.arange(1, n)

    def jacobian(x: np.ndarray) -> np.ndarray:
        J = np.eye(n)
        J[0, 0], J[i, i - 1] = -0.5, -4 * x[:-1]
        return J

    return PowerNorm(
        lambda x: np.r_[(1 - x[0]) / 2, x[1:] - 2 * x[:-1] ** 2 + 1],
        jacobian,
        p=4,
        curvature=lambda x, u: np.diag(np.r_[-4 * u[1:], 0.0]),
    )


def draw(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """Write the gaps by iterations."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 4), layout="constrained")
    for ax, (name, found) in zip(axes, curves.items(), strict=True):
        for kind, gaps in found.items():
            ax.semilogy(np.maximum(gaps, 1e-30), label=kind)
        ax.set(title=name, xlabel="iterations", ylabel="gap")
        ax.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
