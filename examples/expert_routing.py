"""Route tokens to the experts of a mixture: how many tokens find one, by method.

Every expert takes the same number of tokens. A router that lets experts take their favourites leaves tokens without an
expert, since favourites are shared; transport with a limit on the entries of each column balances both sides. Prints
the share of tokens that at least one expert takes, and the gate mass they are taken with:

    python examples/expert_routing.py
    python examples/expert_routing.py --tokens 512 --experts 32 --output pictures
"""

import argparse
import math
from pathlib import Path

import numpy as np

from ot_numba import route_tokens, sinkhorn


def main() -> None:
    """Parse the options, route by every method, print the table and plot it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("expert_routing_output"), help="folder for the picture")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--experts", type=int, default=16)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    logits = router(options.tokens, options.experts)
    gates = np.exp(logits)
    gates /= gates.sum(axis=1, keepdims=True)
    table = {}
    for factor in (1.0, 2.0):
        capacity = 4 * math.ceil(math.ceil(options.tokens * factor / options.experts) / 4)
        dispatches = {
            "token choice, top 1": token_choice(gates, capacity, round(factor)),
            "expert choice, top C": expert_choice(gates, capacity),
            "entropic transport, top C": expert_choice(entropic_plan(logits), capacity),
            "k-sparse, Adam 20": route_tokens(gates, capacity).dispatch,
            "k-sparse, Adam 100": route_tokens(gates, capacity, max_iter=100).dispatch,
            "k-sparse, L-BFGS": route_tokens(gates, capacity, solver="lbfgs", max_iter=500).dispatch,
        }
        print(f"\n{options.tokens} tokens, {options.experts} experts, capacity factor {factor:g}: C = {capacity}")
        print("method                      coverage  gate mass  tokens per expert")
        for name, dispatch in dispatches.items():
            load, mass = dispatch.sum(axis=0), (gates * dispatch).sum(axis=1).mean()
            coverage = dispatch.any(axis=1).mean()
            print(f"{name:<26}  {coverage:8.3f}  {mass:9.3f}  {load.min()} to {load.max()}")
            table.setdefault(name, []).append(coverage)
    draw(options.output / "routing.png", table)
    print(f"\npicture in {options.output}: routing.png")


def router(tokens: int, experts: int, features: int = 32) -> np.ndarray:
    """Logits of a random linear router, for tokens that have something in common."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(tokens, features)) + 0.5 * rng.normal(size=(1, features))
    return X @ (rng.normal(size=(features, experts)) / np.sqrt(features))


def token_choice(gates: np.ndarray, capacity: int, choices: int) -> np.ndarray:
    """Every token goes to its best experts, first come, first served."""
    dispatch = np.zeros(gates.shape, bool)
    order = np.argsort(-gates, axis=1, kind="stable")
    for rank in range(choices):
        for token in range(len(gates)):
            expert = order[token, rank]
            dispatch[token, expert] = dispatch[:, expert].sum() < capacity
    return dispatch


def expert_choice(scores: np.ndarray, capacity: int) -> np.ndarray:
    """Every expert takes its best tokens."""
    dispatch = np.zeros(scores.shape, bool)
    np.put_along_axis(dispatch, np.argsort(-scores, axis=0, kind="stable")[:capacity], True, axis=0)
    return dispatch


def entropic_plan(logits: np.ndarray) -> np.ndarray:
    """Plan of twenty Sinkhorn iterations at strength 1."""
    tokens, experts = logits.shape
    a, b = np.ones(tokens), np.full(experts, tokens / experts)
    return sinkhorn(
        -logits, a, b, reg=1.0, method="log", reg_schedule=None, relaxation=1.0, max_iter=20, tol=0, on_fail="ignore"
    ).plan


def draw(path: Path, table: dict[str, list[float]]) -> None:
    """Write the coverages as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    places = np.arange(len(table))
    for offset, (factor, column) in enumerate(zip((1, 2), zip(*table.values(), strict=True), strict=True)):
        ax.barh(places + 0.4 * offset, column, height=0.38, label=f"capacity factor {factor}")
    ax.set(yticks=places + 0.2, yticklabels=list(table), xlim=(0.6, 1.0), xlabel="share of tokens with an expert")
    ax.invert_yaxis()
    ax.legend(loc="lower left")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
