"""Give one photograph the colours of another.

Makes three pictures from two: the source recoloured by strict transport, where every colour of the target
keeps its share of the pixels; the source recoloured by unbalanced transport, which lets the shares change
and so keeps regions of one colour together; and the palettes, with where the colours went. Without
arguments it takes the two photographs that come with scikit-learn:

    python examples/color_transfer.py
    python examples/color_transfer.py --source me.jpg --target painting.png --output pictures
"""

import argparse
import time
from pathlib import Path

import numpy as np

from ot_numba import color_transfer


def main() -> None:
    """Parse the options, recolour, write the pictures and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="image to recolour (default: scikit-learn's china.jpg)")
    parser.add_argument("--target", type=Path, help="image with the colours (default: scikit-learn's flower.jpg)")
    parser.add_argument("--output", type=Path, default=Path("color_transfer_output"), help="folder for the pictures")
    parser.add_argument("--reg", type=float, help="regularisation strength (default: chosen from the colours)")
    parser.add_argument("--n-colors", type=int, default=1024, help="largest number of colours in a palette")
    parser.add_argument("--unbalanced", type=float, default=0.3, help="penalty of the second picture's marginals")
    options = parser.parse_args()

    source = read(options.source, "china.jpg")
    target = read(options.target, "flower.jpg")
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"source {source.shape[1]} x {source.shape[0]} pixels, target {target.shape[1]} x {target.shape[0]}")

    color_transfer(source[::16, ::16], target[::16, ::16])  # compiles what is not in the cache yet
    pictures = {"source": source, "target": target}
    results = {}
    for name, unbalanced in (("strict", None), ("unbalanced", options.unbalanced)):
        start = time.perf_counter()
        result = color_transfer(source, target, reg=options.reg, n_colors=options.n_colors, unbalanced=unbalanced)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        result.transform(source)  # the second half of the work, once more, to see what it costs
        mapping = time.perf_counter() - start
        report(name, result, target, seconds, mapping)
        pictures[name], results[name] = result.image, result

    for name in ("strict", "unbalanced"):
        write(options.output / f"{name}.png", pictures[name])
    draw_pictures(options.output / "pictures.png", pictures)
    draw_palettes(options.output / "palettes.png", results)
    print(f"pictures in {options.output}: " + ", ".join(sorted(path.name for path in options.output.glob("*.png"))))


def read(path: Path | None, sample: str) -> np.ndarray:
    """Read an image as an array of uint8 RGB, by default one that comes with scikit-learn."""
    from PIL import Image

    if path is None:
        from importlib.resources import files

        resource = files("sklearn.datasets.images") / sample
        with resource.open("rb") as file:
            return np.asarray(Image.open(file).convert("RGB"))
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write(path: Path, image: np.ndarray) -> None:
    """Write an image."""
    from PIL import Image

    Image.fromarray(image).save(path)


def report(name: str, result, target: np.ndarray, seconds: float, mapping: float) -> None:
    """Print what the solver reached, and how near the colours came to the target's."""
    transport = result.transport
    mean, cov = moments(result.image)
    target_mean, target_cov = moments(target)
    print(f"\n{name} transport")
    print(f"  palettes           {len(result.source_palette)} and {len(result.target_palette)} colours")
    print(f"  reg                {transport.reg:.3g}")
    print(f"  iterations         {transport.n_iter} ({transport.status})")
    print(f"  marginal error     {transport.marginal_error:.1e}")
    print(f"  linear cost <C,P>  {transport.linear_cost:.6f}")
    print(f"  mean colour        {np.abs(mean - target_mean).max():.1f} of 255 grey levels off the target's")
    off = np.linalg.norm(cov - target_cov) / np.linalg.norm(target_cov)
    print(f"  covariance         {off:.1%} off the target's")
    print(f"  time               {seconds:.2f} s in all, of which {mapping:.2f} s to map the pixels")


def moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the colours."""
    colors = image.reshape(-1, image.shape[2]).astype(float)
    return colors.mean(axis=0), np.cov(colors.T)


def draw_pictures(path: Path, pictures: dict[str, np.ndarray]) -> None:
    """Write all pictures side by side."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.4), layout="constrained")
    for ax, (name, image) in zip(axes.flat, pictures.items(), strict=True):
        ax.imshow(image)
        ax.set_title(name if name in ("source", "target") else f"source, {name} transport")
        ax.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_palettes(path: Path, results: dict) -> None:
    """Write the palettes as discs of red against blue, and where each source colour goes."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.4), layout="constrained", sharex=True, sharey=True)
    strict, loose = results["strict"], results["unbalanced"]
    panels = [
        ("source palette", strict.source_palette, strict.source_weights, strict.source_palette),
        ("target palette", strict.target_palette, strict.target_weights, strict.target_palette),
    ]
    for name, result in (("strict", strict), ("unbalanced", loose)):
        mapped = result.transport.project().clip(0, 1)
        panels.append((f"source mapped, {name}", mapped, result.source_weights, mapped))
    for ax, (title, places, weights, colors) in zip(axes, panels, strict=True):
        ax.scatter(places[:, 0], places[:, 2], s=20_000 * weights, c=colors, linewidths=0)
        ax.set(
            title=title,
            xlabel="red",
            xlim=(-0.05, 1.05),
            ylim=(-0.05, 1.05),
            aspect="equal",
            facecolor="0.85",
        )
    axes[0].set_ylabel("blue")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def pyplot():
    """Import matplotlib to draw into files: no window, no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()
