"""Learn how much total variation to use, and how smooth, from pairs of clean and noisy pictures.

From patches of a photograph with added noise, `maid` learns the weight and the smoothing of total-variation denoising
that bring the denoised patches closest to the clean ones; a second photograph shows what they are worth elsewhere.
Three runs start from accuracies of the inner solutions that differ 10 000 times, and should end at the same place:

    python examples/tv_denoising_bilevel.py
    python examples/tv_denoising_bilevel.py --noise 0.2 --output pictures
"""

import argparse
import time
from pathlib import Path

import numpy as np

from ot_numba.bilevel import denoise_tv, maid, tv_denoising


def main() -> None:
    """Parse the options, learn, denoise, write the picture and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation of the noise, of 1 for white")
    parser.add_argument("--patches", type=int, default=6, help="number of patches to learn from")
    parser.add_argument("--budget", type=int, default=4000, help="gradients of the lower level for each run")
    parser.add_argument("--output", type=Path, default=Path("tv_denoising_output"), help="folder for the picture")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(0)
    clean = patches(grey("china.jpg"), options.patches, 64, rng)
    noisy = clean + options.noise * rng.normal(size=clean.shape)
    problem = tv_denoising(noisy, clean, batch=True)
    print(f"{len(clean)} patches of 64 x 64 pixels, PSNR {psnr(noisy, clean):.2f} dB")
    print(f"{'first accuracy':>14} {'weight':>9} {'smoothing':>9} {'PSNR':>8} {'steps':>6} {'time':>8}")
    for accuracy in (1e-1, 1e-3, 1e-5):
        start = time.perf_counter()
        result = maid(
            problem, [-5.0, -5.0], accuracy=accuracy, max_gradients=options.budget, on_fail="ignore"
        )
        seconds = time.perf_counter() - start
        weight, smoothing = problem.read(result.theta)
        denoised = denoise_tv(noisy, weight=weight, smoothing=smoothing, isotropic=False, batch=True).x
        numbers = f"{weight:9.4f} {smoothing:9.4f} {psnr(denoised, clean):5.2f} dB {result.n_iter:6d} {seconds:6.2f} s"
        print(f"{accuracy:14.0e} {numbers}")

    clean = grey("flower.jpg")
    noisy = clean + options.noise * rng.normal(size=clean.shape)
    start = time.perf_counter()
    result = denoise_tv(noisy, weight=weight, smoothing=smoothing, isotropic=False)
    seconds = time.perf_counter() - start
    print(f"another photograph: PSNR {psnr(noisy, clean):.2f} dB, denoised {psnr(result.x, clean):.2f} dB")
    print(f"{noisy.shape[1]} x {noisy.shape[0]} pixels, {seconds:.3f} s; {result.message}")
    draw(options.output / "denoised.png", clean, noisy, result.x)
    print(f"picture in {options.output}: denoised.png")


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for ax, image, name in zip(axes, (clean, noisy, denoised), ("clean", "noisy", "denoised"), strict=True):
        title = name if image is clean else f"{name}, {psnr(image, clean):.2f} dB"
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
