"""Images of digits from fewer measurements than pixels.

Every image of scikit-learn's digits (8 x 8 pixels) is measured by random inner products with its pixels, fewer than
there are, with a little noise. It is then found again as a sparse combination of cosines: by the LASSO, by hard
thresholding that keeps k of them, and by layers of unfolded ISTA trained on the measurements of other digits, which see
no true image. Least squares of least norm stand for what no sparsity gives.

    python examples/compressed_sensing_digits.py
    python examples/compressed_sensing_digits.py --measurements 32 --reg 0.02
"""

import argparse
import time
from pathlib import Path

import numpy as np

import ot_numba

SIDE = 8
PIXELS = SIDE**2


def main() -> None:
    """Parse the options, measure, recover, print the errors and draw the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("digits_output"), help="folder for the pictures")
    parser.add_argument("--measurements", type=int, default=48, help="measurements of an image (default: 48)")
    parser.add_argument("--noise", type=float, default=0.01, help="noise, as a part of a measurement (default: 0.01)")
    parser.add_argument("--reg", type=float, default=0.005, help="reg, as a part of the largest useful one (0.005)")
    parser.add_argument("--layers", type=int, default=20, help="layers of unfolded ISTA (default: 20)")
    options = parser.parse_args()

    from scipy.fft import idctn
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    images = rng.permutation(load_digits().data / 16)
    cosines = np.stack([idctn(unit.reshape(SIDE, SIDE), norm="ortho").ravel() for unit in np.eye(PIXELS)])
    measure = rng.normal(size=(options.measurements, PIXELS)) / np.sqrt(options.measurements)
    Y = measure @ images.T
    Y += options.noise * np.abs(Y).mean() * rng.normal(size=Y.shape)
    A = measure @ cosines.T  # a row of cosines is the image of one coefficient
    images, Y, train = images[:300], Y[:, :300], Y[:, 300:]

    reg = options.reg * float(np.median(np.abs(A.T @ train).max(axis=0)))
    k = options.measurements // 3
    model = ot_numba.UnfoldedRecovery.fit(A, train, reg=reg, n_layers=options.layers, rng=0)
    methods = {
        "least norm": lambda: np.linalg.pinv(A) @ Y,
        "LASSO": lambda: ot_numba.lasso(A, Y, reg=reg).x,
        f"IHT, k = {k}": lambda: ot_numba.iht(A, Y, k=k, tol=1e-4, max_iter=20_000, init=np.linalg.pinv(A) @ Y).x,
        f"unfolded ISTA, {options.layers} layers": lambda: model.apply(Y),
        f"ISTA, {options.layers} iterations": lambda: ot_numba.ista(
            A, Y, reg=reg, max_iter=options.layers, on_fail="ignore"
        ).x,
    }
    print(f"{options.measurements} measurements of {PIXELS} pixels, {len(images)} digits, reg = {reg:.3g}")
    print(f"{'method':28s} {'PSNR':>8s} {'nonzeros':>9s} {'objective':>10s} {'ms per image':>13s}")
    pictures = {"original": images}
    for name, recover in methods.items():
        recover()  # compiles what is not in the cache yet
        start = time.perf_counter()
        x = recover()
        seconds = time.perf_counter() - start
        pictures[name] = x.T @ cosines
        psnr = -10 * np.log10(((pictures[name] - images) ** 2).mean())
        objective = (0.5 * ((Y - A @ x) ** 2).sum(0) + reg * np.abs(x).sum(0)).mean()
        nonzeros = (np.abs(x) > 1e-9).sum(0).mean()
        print(f"{name:28s} {psnr:5.1f} dB {nonzeros:9.1f} {objective:10.4f} {1e3 * seconds / len(images):13.3f}")
    draw(pictures, options.output)


def draw(pictures: dict[str, np.ndarray], folder: Path) -> None:
    """Write the first images as they were, and as they were found."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(pictures), 10, figsize=(11, 1.2 * len(pictures)), layout="constrained")
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "digits.png", dpi=100)
    plt.close(figure)
    print(f"\nPicture: {folder / 'digits.png'}")


if __name__ == "__main__":
    main()
