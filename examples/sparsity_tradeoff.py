"""What a limit k on the entries of a column costs: evaluations, transport cost, and marginals that are missed.

For k from 1 to all, between two clouds of points: the strict model, whose dual has kinks at small k; the relaxed one,
whose plan has both marginals; and strict bounds from a weak relaxation. Prints the table and writes a plot:

    python examples/sparsity_tradeoff.py
    python examples/sparsity_tradeoff.py --points 128 --reg 0.5 --output pictures
"""

import argparse
from pathlib import Path

import numpy as np

from ot_numba import sparsity_constrained_ot

LIMITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def main() -> None:
    """Parse the options, solve for every k, print the table and plot it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sparsity_tradeoff_output"), help="folder for the plot")
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--reg", type=float, default=1.0, help="regularisation strength")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(options.seed)
    x, y = rng.random((options.points, 2)), rng.random((options.points, 2))
    C = ((x[:, None] - y) ** 2).sum(axis=-1)
    a, b = rng.dirichlet(np.full(options.points, 2.0), 2)
    print("        strict                         relaxed                              strict dual value")
    print("        evals    <C,P>     error       evals    <C,P>     error  entries    from 0   from relax=1e-3")
    rows = []
    for k in [k for k in LIMITS if k < options.points] + [options.points]:
        solve = {"k": k, "reg": options.reg, "on_fail": "ignore", "max_iter": 3000}
        strict = sparsity_constrained_ot(C, a, b, **solve)
        relaxed = sparsity_constrained_ot(C, a, b, relax=0.1, **solve)
        weakly = sparsity_constrained_ot(C, a, b, relax=1e-3, **solve)
        better = sparsity_constrained_ot(C, a, b, init=weakly, **{**solve, "max_iter": 100})
        print(
            f"k={k:<4d} {strict.n_evaluations:6d} {strict.linear_cost:8.5f}  {strict.marginal_error:8.1e}      "
            f"{relaxed.n_evaluations:6d} {relaxed.linear_cost:8.5f}  {relaxed.marginal_error:8.1e}  "
            f"{relaxed.largest_count:7d}  {strict.dual_value:8.6f}  {better.dual_value:8.6f}"
        )
        rows.append((k, strict, relaxed))
    draw(options.output / "tradeoff.png", rows)
    print(f"plot in {options.output}: tradeoff.png")


def draw(path: Path, rows: list) -> None:
    """Write evaluations, cost and error against k."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    limits = [k for k, *_ in rows]
    for index, name in ((1, "strict"), (2, "relaxed")):
        results = [row[index] for row in rows]
        axes[0].loglog(limits, [r.n_evaluations for r in results], "o-", label=name)
        axes[1].semilogx(limits, [r.linear_cost for r in results], "o-", label=name)
        axes[2].loglog(limits, [max(r.marginal_error, 1e-17) for r in results], "o-", label=name)
    for ax, title in zip(axes, ("evaluations", "transport cost <C,P>", "marginal error"), strict=True):
        ax.set(title=title, xlabel="k, most entries in a column")
        ax.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
