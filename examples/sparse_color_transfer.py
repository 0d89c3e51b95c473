"""Give one photograph the colours of another through a transport plan with k entries per colour.

Both photographs are reduced to a palette; every colour of the target's may receive from at most k colours of the
source's. Prints, for each k, how sparse the plan is, what it costs beside the linear program, and by how much it misses
the weights of the source: strictly, and relaxed so that it misses none. Writes the recoloured photographs:

    python examples/sparse_color_transfer.py
    python examples/sparse_color_transfer.py --n-colors 128 --output pictures
"""

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.optimize
import scipy.sparse

from ot_numba import PointCloud, quadratic_ot, sparsity_constrained_ot


def main() -> None:
    """Parse the options, solve for several k, print the table and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sparse_color_transfer_output"), help="folder for pictures")
    parser.add_argument("--n-colors", type=int, default=256, help="colours in a palette")
    parser.add_argument("--reg", type=float, default=1.0, help="regularisation strength")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    source, target = photograph("china.jpg"), photograph("flower.jpg")
    x, a, labels = palette(source, options.n_colors)
    y, b, _ = palette(target, options.n_colors)
    cost = PointCloud(x, y)
    sparsity_constrained_ot(cost, a, b, k=1, relax=1.0, max_iter=1, on_fail="ignore")  # compiles what is not cached yet
    lp = linear_program(cost.to_dense(), a, b)
    print(f"{len(x)} and {len(y)} colours, squared distances in [0, 1]^3, reg = {options.reg:g}")
    print(f"linear program <C,P> = {lp:.6f}\n")
    print("   k  plan      entries  most  <C,P>/LP  |P1-a|^2  dual value    s")

    pictures = {"source": source, "target": target}
    for k in (1, 2, 4, 8, None):
        for relax in (0.0, 0.1) if k else (0.0,):
            start = time.perf_counter()
            if k:
                result = sparsity_constrained_ot(
                    cost, a, b, k=k, reg=options.reg, relax=relax, on_fail="ignore"
                )
            else:
                result = quadratic_ot(cost, a, b, reg=options.reg)
            seconds = time.perf_counter() - start
            P = result.sparse_plan()
            squared = float(((P.sum(axis=1) - a) ** 2).sum())
            print(
                f"{k or 'all':>4}  {'relaxed' if relax else 'strict':<8} {P.nnz / (len(x) * len(y)):8.5f} "
                f"{np.diff(P.tocsc().indptr).max():5d}  {result.linear_cost / lp:8.4f}  {squared:8.1e}  "
                f"{result.dual_value:10.6f}  {seconds:5.2f}"
            )
            if relax or k is None:
                name = f"at most {k} per column, relaxed" if k else "quadratic transport"
                pictures[name] = result.project(y)[labels].reshape(source.shape).clip(0, 1)
    draw(options.output / "sparse_color_transfer.png", pictures)
    print(f"\npicture in {options.output}: sparse_color_transfer.png")


def photograph(name: str) -> np.ndarray:
    """Read a photograph that comes with scikit-learn, RGB in [0, 1], half its size."""
    from importlib.resources import files

    from PIL import Image

    with (files("sklearn.datasets.images") / name).open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"), float)[::2, ::2] / 255


def palette(image: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return colours of an image by k-means, their shares of its pixels, and the colour of each pixel."""
    from sklearn.cluster import KMeans

    pixels = image.reshape(-1, 3)
    sample = np.random.default_rng(0).choice(len(pixels), min(len(pixels), 40 * size), replace=False)
    means = KMeans(size, n_init=1, max_iter=20, random_state=0).fit(pixels[sample])
    labels = means.predict(pixels)
    used, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return means.cluster_centers_[used].clip(0, 1), counts / counts.sum(), labels


def linear_program(C: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the optimal value of unregularised transport."""
    n, m = C.shape
    rows = scipy.sparse.kron(scipy.sparse.eye_array(n), np.ones((1, m)))
    columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye_array(m))
    equalities = scipy.sparse.vstack([rows, columns]).tocsr()
    return scipy.optimize.linprog(C.ravel(), A_eq=equalities, b_eq=np.concatenate([a, b]), method="highs").fun


def draw(path: Path, pictures: dict[str, np.ndarray]) -> None:
    """Write all pictures side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(13, 9.5), layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, image) in zip(axes.flat, pictures.items(), strict=False):
        ax.imshow(image)
        ax.set_title(name)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
