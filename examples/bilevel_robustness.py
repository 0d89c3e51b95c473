"""Adaptive accuracies of a bilevel search against fixed ones and schedules.

Learns weight and smoothing of total-variation denoising of a phantom, from several first accuracies of the lower level.
With fixed accuracies the search stops early or wastes gradients, and schedules are faster at first but may leave the
minimum again (as the geometric one does for this noise); `maid` ends at the same loss from each, and only ever falls:

    python examples/bilevel_robustness.py
    python examples/bilevel_robustness.py --gradients 50000
"""

import argparse
from pathlib import Path

import numpy as np

import ot_numba


def main() -> None:
    """Parse the options, run all methods, print the table and draw the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradients", type=int, default=20_000, help="budget of gradients (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of the noise (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("robustness_output"), help="folder for the picture")
    options = parser.parse_args()

    clean = np.full((32, 32), 0.2)
    clean[4:16, 4:20], clean[18:28, 8:26], clean[8:24, 22:28] = 0.8, 0.55, 1.0
    noisy = clean + 0.1 * np.random.default_rng(options.seed).standard_normal(clean.shape)
    problem = ot_numba.bilevel.tv_denoising(noisy, clean)
    theta, init = np.array([-5.0, -5.0]), np.zeros_like(clean)
    shared = {"init": init, "max_gradients": options.gradients, "max_iter": 10**6, "on_fail": "ignore"}

    runs = {}
    for accuracy in (1e-1, 1e-3, 1e-5):
        for fixed in (False, True):
            name = f"{'fixed' if fixed else 'maid'} {accuracy:g}"
            runs[name] = ot_numba.maid(problem, theta, accuracy=accuracy, fixed_accuracy=fixed, **shared)
    for schedule in ("geometric", "quadratic", "cubic"):
        runs[f"hoag {schedule}"] = ot_numba.hoag(problem, theta, schedule=schedule, **shared)
    best = min(h.value for result in runs.values() for h in result.history)
    print(f"smallest loss of all {best:.4f}")
    print(f"{'':65}gradients to 1.1, 1.01, 1.003 times it")
    print("method                 loss    PSNR  steps  last accuracy    largest rise")
    for name, result in runs.items():
        psnr = -10 * np.log10(np.mean((result.x - clean) ** 2))
        values = [h.value for h in result.history]
        rise = max(v - min(values[: i + 1]) for i, v in enumerate(values))
        reached = (
            next((str(h.n_gradients) for h in result.history if h.value <= share * best), "-")
            for share in (1.1, 1.01, 1.003)
        )
        numbers = f"{result.value:9.4f} {psnr:7.2f} {result.n_iter:6d} {result.accuracy:14.1e} {rise:15.4f}"
        print(f"{name:17} {numbers}  {' '.join(f'{count:>8}' for count in reached)}")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "robustness.png"
    draw(path, runs)
    print(f"picture in {path}")


def draw(path: Path, runs: dict[str, ot_numba.BilevelResult]) -> None:
    """Write the loss and the accuracy by gradients."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, result in runs.items():
        style = {"maid": "-", "fixed": ":", "hoag": "--"}[name.split()[0]]
        count = [h.n_gradients for h in result.history]
        axes[0].plot(count, [h.value for h in result.history], style, label=name)
        axes[1].plot(count, [h.accuracy for h in result.history], style, label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="lower gradients", ylabel="loss")
    axes[1].set(xscale="log", yscale="log", xlabel="lower gradients", ylabel="bound of the lower-level error")
    axes[0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
