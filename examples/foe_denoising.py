"""Learn the filters of a field of experts from pairs of clean and noisy pictures, starting from cosines.

Filters, weights and smoothings (one of each for every expert) are learned by `maid` from patches of a photograph with
added noise; a second photograph shows what they are worth elsewhere, next to the cosines that they started from:

    python examples/foe_denoising.py
    python examples/foe_denoising.py --filters 12 --size 5 --budget 20000 --output pictures
"""

import argparse
import time
from pathlib import Path

import numpy as np

from ot_numba.bilevel import denoise_foe, foe_denoising, maid


def main() -> None:
    """Parse the options, learn, denoise, write the pictures and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation of the noise, of 1 for white")
    parser.add_argument("--filters", type=int, default=8, help="number of filters")
    parser.add_argument("--size", type=int, default=3, help="side of the filters")
    parser.add_argument("--patches", type=int, default=4, help="number of patches to learn from")
    parser.add_argument("--budget", type=int, default=8000, help="gradients of the lower level")
    parser.add_argument("--output", type=Path, default=Path("foe_denoising_output"), help="folder for the pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(0)
    clean = patches(grey("china.jpg"), options.patches, 48, rng)
    noisy = clean + options.noise * rng.normal(size=clean.shape)
    problem = foe_denoising(noisy, clean, n_filters=options.filters, size=options.size, batch=True)
    first = problem.pack(problem.cosine_filters(), weight=0.02, smoothing=0.03)
    print(f"{len(clean)} patches of 48 x 48 pixels, {problem.size} parameters")
    start = time.perf_counter()
    # bounds that hold everywhere are too loose to certify the direction of each step; that f falls is certain anyway
    result = maid(
        problem, first, accuracy=0.1, max_gradients=options.budget, check_descent=False, on_fail="ignore"
    )
    print(f"{result.n_iter} steps in {time.perf_counter() - start:.2f} s")

    clean_photo = grey("flower.jpg")
    noisy_photo = clean_photo + options.noise * rng.normal(size=clean_photo.shape)
    print(f"{'':10} {'patches':>9} {'another photograph':>19}")
    print(f"{'noisy':10} {psnr(noisy, clean):6.2f} dB {psnr(noisy_photo, clean_photo):16.2f} dB")
    for name, theta in (("cosines", first), ("learned", result.theta)):
        filters, weight, smoothing = problem.read(theta)
        inside = problem.lower_solve(theta, None, 1e-3)[0]
        outside = denoise_foe(noisy_photo, filters, weight=weight, smoothing=smoothing)
        print(f"{name:10} {psnr(inside, clean):6.2f} dB {psnr(outside.x, clean_photo):16.2f} dB")
    draw(options.output / "denoised.png", clean_photo, noisy_photo, outside.x)
    sets = {"cosines": problem.read(first), "learned": problem.read(result.theta)}
    draw_filters(options.output / "filters.png", sets)
    print(f"pictures in {options.output}: denoised.png, filters.png")


def grey(sample: str) -> np.ndarray:
    """Grey values in [0, 1] of a photograph that comes with scikit-learn, at half its size."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image(sample).mean(axis=2) / 255
    height, width = (n // 2 for n in image.shape)
    return image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))


def patches(image: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Squares from random places."""
    rows, columns = (rng.integers(n - size + 1, size=count) for n in image.shape)
    return np.stack([image[i : i + size, j : j + size] for i, j in zip(rows, columns, strict=True)])


def psnr(x: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1."""
    return -10 * np.log10(np.mean((x - clean) ** 2))


def draw(path: Path, clean: np.ndarray, noisy: np.ndarray, denoised: np.ndarray) -> None:
    """Write the three pictures side by side."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for ax, image, name in zip(axes, (clean, noisy, denoised), ("clean", "noisy", "denoised"), strict=True):
        title = name if image is clean else f"{name}, {psnr(image, clean):.2f} dB"
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_filters(path: Path, sets: dict) -> None:
    """Write the filters, scaled by their weights."""
    plt = pyplot()
    count = len(sets["learned"].filters)
    figure, axes = plt.subplots(len(sets), count, figsize=(1.5 * count, 3.6), layout="constrained", squeeze=False)
    for row, (name, experts) in zip(axes, sets.items(), strict=True):
        scaled = experts.filters * experts.weights[:, None, None]
        limit = abs(scaled).max()
        for k, (ax, image) in enumerate(zip(row, scaled, strict=True)):
            ax.imshow(image, cmap="RdBu", vmin=-limit, vmax=limit)
            ax.set_title(f"{name} {k + 1}", fontsize=8)
            ax.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def pyplot():
    """Matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()
