"""Supervised against unsupervised training of unfolded ISTA and IHT.

The comparison of Nagahisa, Hayakawa and Iiguni (arXiv 2509.01331): step sizes of T layers of ISTA, or of iterative hard
thresholding, are trained either on the error to the true signals (supervised) or on the objective itself
(unsupervised). The sizes are our own choice, 40 measurements of 60 unknowns of which a tenth is not 0, and so are all
numbers. Prints each claim of the paper's abstract with the numbers behind it, and draws the error and the objective
against the layers, and the step sizes.

    python examples/unfolded_recovery.py
"""

import argparse
import time
from pathlib import Path

import numpy as np

import ot_numba

M, N = 40, 60
PRESENT = 0.1  # part of the entries of a signal that are not 0
NOISE = 0.1
REG = {"ISTA": 0.1, "IHT": 0.05}
PROX = {"ISTA": "soft", "IHT": "hard"}
LIMIT = 3000  # iterations that count as the limit
LOSSES = {"supervised": "mse", "unsupervised": "objective"}


def main() -> None:
    """Parse the options, train, print the tables and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("unfolded_output"), help="folder for the plot")
    parser.add_argument("--layers", type=int, default=15, help="number of layers (default: 15)")
    parser.add_argument("--noise", type=float, default=0.3, help="noise of the mismatched test (default: 0.3)")
    options = parser.parse_args()

    rng = np.random.default_rng(1)
    A = rng.normal(size=(M, N)) / np.sqrt(M)
    Y, X = draw(A, np.random.default_rng(99), 1000)
    other = draw(A, np.random.default_rng(98), 1000, options.noise)

    curves, steps, mismatch = {}, {}, {}
    print(f"{'method':20s} {'MSE':>8s} {'objective':>10s}   after {options.layers} layers")
    for method in ("ISTA", "IHT"):
        for name, path in paths(A, Y, method, options.layers).items():
            curves[name] = np.array([scores(A, Y, X, x, method) for x in path])
            show(name, curves[name])
        for kind, loss in LOSSES.items():
            start = time.perf_counter()
            model = ot_numba.UnfoldedRecovery.fit(
                A,
                lambda rng, size: draw(A, rng, size),
                reg=REG[method],
                n_layers=options.layers,
                prox=PROX[method],
                loss=loss,
                rng=0,
            )
            seconds, name = time.perf_counter() - start, f"{kind} {method}"
            curves[name] = np.array([scores(A, Y, X, x, method) for x in model.trajectory(Y)])
            steps[name] = model.steps
            mismatch[name] = scores(A, *other, model.apply(other[0]), method)
            show(name, curves[name], f"   trained in {seconds:.1f} s")
    print()
    for claim, holds, numbers in claims(curves, mismatch, options.noise):
        print(f"{'yes' if holds else 'NO':4s} {claim}\n     {numbers}")
    draw_plots(curves, steps, A, options.output)


def draw(A: np.ndarray, rng: np.random.Generator, size: int, noise: float = NOISE) -> tuple[np.ndarray, np.ndarray]:
    """Measurements of random signals, and the signals."""
    x = rng.normal(size=(N, size)) * (rng.random((N, size)) < PRESENT)
    return A @ x + noise * rng.normal(size=(M, size)), x


def paths(A: np.ndarray, Y: np.ndarray, method: str, layers: int) -> dict[str, list[np.ndarray]]:
    """Iterates of the untrained methods, and their limit."""
    plain = {"n_layers": layers, "reg": REG[method], "prox": PROX[method]}
    found = {method: list(ot_numba.unfolded_trajectory(A, Y, 1 / np.linalg.norm(A, 2) ** 2, **plain))}
    options = {"reg": REG[method], "tol": 0, "on_fail": "ignore"}
    if method == "ISTA":
        path = []
        options |= {"max_iter": layers, "check_every": 1, "restart": False}
        ot_numba.fista(A, Y, callback=lambda state: path.append(state.x.copy()), **options)
        found["FISTA"] = path
        found["ISTA, limit"] = [ot_numba.fista(A, Y, reg=REG[method], tol=1e-9).x]
    else:
        found["IHT, limit"] = [ot_numba.iht(A, Y, max_iter=LIMIT, check_every=LIMIT, **options).x]
    return found


def scores(A: np.ndarray, Y: np.ndarray, X: np.ndarray, x: np.ndarray, method: str) -> tuple[float, float]:
    """Mean squared error of an entry, and mean objective of a signal."""
    penalty = np.abs(x) if method == "ISTA" else x != 0
    return ((x - X) ** 2).mean(), 0.5 * ((Y - A @ x) ** 2).sum(0).mean() + REG[method] * penalty.sum(0).mean()


def show(name: str, curve: np.ndarray, note: str = "") -> None:
    """Print a row of the table."""
    print(f"{name:20s} {curve[-1, 0]:8.5f} {curve[-1, 1]:10.4f}{note}", flush=True)


def claims(curves: dict[str, np.ndarray], mismatch: dict[str, tuple[float, float]], noise: float):
    """What the abstract says, whether it holds here, and the numbers."""
    mse, objective = ({name: curve[-1, i] for name, curve in curves.items()} for i in (0, 1))
    supervised, unsupervised = (f"{kind} ISTA" for kind in LOSSES)
    yield (
        "supervised ISTA has a lower MSE than ISTA and than unsupervised ISTA",
        mse[supervised] < min(mse["ISTA, limit"], mse[unsupervised]),
        f"MSE {mse[supervised]:.5f} against {mse['ISTA, limit']:.5f} and {mse[unsupervised]:.5f}",
    )
    excess = {name: objective[name] / objective["ISTA, limit"] - 1 for name in (supervised, unsupervised, "ISTA")}
    yield (
        "supervised ISTA does not reach the minimum of the objective",
        excess[supervised] > 10 * excess[unsupervised] > 0,
        f"{excess[supervised]:.2%} above it, unsupervised ISTA {excess[unsupervised]:.2%}",
    )
    layers = len(curves["ISTA"]) - 1
    yield (
        "unsupervised ISTA reaches nearly the solution of ISTA, in fewer iterations",
        excess[unsupervised] < 0.01 < excess["ISTA"],
        f"objective {excess[unsupervised]:.2%} above it after {layers} layers, plain ISTA {excess['ISTA']:.1%}",
    )
    trained = [f"{kind} IHT" for kind in LOSSES]
    yield (
        "both trained IHTs end in better local minima than plain IHT",
        all(mse[name] < 0.7 * mse["IHT, limit"] and objective[name] < objective["IHT, limit"] for name in trained),
        "MSE {:.5f} and {:.5f} against {:.5f}, objective {:.4f} and {:.4f} against {:.4f}".format(
            *(score[name] for score in (mse, objective) for name in (*trained, "IHT, limit"))
        ),
    )
    yield (
        "both trained IHTs perform alike under the conditions of the training",
        max(mse[n] for n in trained) < 1.5 * min(mse[n] for n in trained),
        f"MSE {mse[trained[0]]:.5f} and {mse[trained[1]]:.5f}",
    )
    (first, first_objective), (second, second_objective) = (mismatch[name] for name in trained)
    yield (
        f"under mismatch (noise {noise:g} for {NOISE:g}) unsupervised IHT generalises better than supervised IHT",
        second_objective < first_objective,
        f"objective {second_objective:.3f} against {first_objective:.3f}, but MSE {second:.4f} against {first:.4f}",
    )


def draw_plots(curves: dict[str, np.ndarray], steps: dict[str, np.ndarray], A: np.ndarray, folder: Path) -> None:
    """Plot error, excess of the objective and step sizes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    for row, method in zip(axes, ("ISTA", "IHT"), strict=True):
        for name, curve in curves.items():
            if not name.replace(", limit", "").endswith(method):
                continue
            for axis, values in zip(row, curve.T, strict=False):
                if len(values) == 1:
                    axis.axhline(values[0], color="black", linestyle="--", label=name)
                else:
                    axis.semilogy(values, label=name)
        row[0].set(xlabel="layer", ylabel="MSE", ylim=(3e-3, 0.3), title=f"{method}, error")
        row[1].set(xlabel="layer", ylabel="objective", ylim=(0.4, 3), title=f"{method}, objective")
        row[0].legend(fontsize="small")
        for name, values in steps.items():
            if name.endswith(method):
                row[2].semilogy(np.arange(1, len(values) + 1), values, "o-", label=name)
        row[2].axhline(2 / np.linalg.norm(A, 2) ** 2, color="black", linestyle="--", label="2 / ||A||^2")
        row[2].set(xlabel="layer", ylabel="step size", title=f"{method}, step sizes")
        row[2].legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "unfolded.png", dpi=120)
    plt.close(figure)
    print(f"\nPlot: {folder / 'unfolded.png'}")


if __name__ == "__main__":
    main()
