import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example as its command would; returns what it printed, and the folder it wrote to."""
    pytest.importorskip("matplotlib")

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, "--output", str(tmp_path / "new" / "folder"), *options])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out, tmp_path / "new" / "folder"

    return run


def test_color_transfer(run):
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("sklearn")
    out, folder = run("color_transfer", "--n-colors", "100")
    assert out.count("(converged)") == 2
    assert {path.name for path in folder.iterdir()} == {
        "strict.png",
        "unbalanced.png",
        "pictures.png",
        "palettes.png",
    }
    with image_module.open(folder / "strict.png") as image:
        assert image.size == (640, 427)
    # its own answer as the next source
    out, _ = run("color_transfer", "--source", str(folder / "unbalanced.png"), "--n-colors", "20", "--reg", "0.02")
    assert re.search(r"reg +0\.02\n", out)


def test_gaussians_closed_form(run):
    out, folder = run("gaussians_closed_form")
    assert (folder / "gaussians.png").stat().st_size > 10_000
    for value in ("2.9048158642", "0.6121783399", "0.3841424661", "3.2956105782", "2.4066554611"):
        assert len(re.findall(re.escape(value), out)) >= 2, f"exact and computed should both be {value}"


def test_divergence_gradient_flow(run):
    out, folder = run("divergence_gradient_flow", "--particles", "150", "--steps", "12", "--text", "A")
    assert (folder / "flow.png").stat().st_size > 10_000
    values = [float(value) for value in re.findall(r"^ +\d+ +(\d+\.\d+) +\d+$", out, flags=re.MULTILINE)]
    assert len(values) >= 4
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01 * values[0]


def test_sns_paper_table(run):
    pytest.importorskip("sklearn")
    out, folder = run("sns_paper_table", "--most", "2000")
    assert (folder / "convergence.png").stat().st_size > 10_000
    rows = re.findall(r"^(.{20}) (.{26}) +(\d+) .* (\S+) +(\S+)$", out, flags=re.MULTILINE)
    assert len(rows) == 9
    found = {(name.strip(), method.strip()): (int(n_iter), float(error)) for name, method, n_iter, error, _ in rows}
    assert found["random assignment", "Sinkhorn-Newton-Sparse"][0] <= 35
    for name in ("random assignment", "digits, squared L2", "digits, L1"):
        n_iter, error = found[name, "path (auto)"]
        assert error <= 1e-12
        assert n_iter < 100
        if "L1" not in name:
            assert found[name, "Sinkhorn-Newton-Sparse"][1] <= 1e-12


def test_tv_denoising_bilevel(run):
    pytest.importorskip("sklearn")
    out, folder = run("tv_denoising_bilevel")
    assert (folder / "denoised.png").stat().st_size > 10_000
    learned = [float(value) for value in re.findall(r"e-0\d .* (\d+\.\d+) dB", out)]
    assert len(learned) == 3
    assert max(learned) - min(learned) < 0.05
    noisy, denoised = (float(value) for value in re.findall(r"PSNR (\S+) dB, denoised (\S+) dB", out)[0])
    assert denoised > noisy + 9


def test_foe_denoising(run):
    pytest.importorskip("sklearn")
    out, folder = run("foe_denoising")
    assert {path.name for path in folder.iterdir()} == {"denoised.png", "filters.png"}
    inside, outside = ([float(row[i]) for row in re.findall(r" (\d+\.\d+) dB +(\d+\.\d+) dB", out)] for i in (0, 1))
    assert inside[2] > inside[1] + 0.1 > inside[0] + 3
    assert outside[2] > outside[1] + 0.1 > outside[0] + 3
