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


def test_sparse_color_transfer(run):
    pytest.importorskip("PIL.Image")
    pytest.importorskip("sklearn")
    out, folder = run("sparse_color_transfer", "--n-colors", "64")
    assert (folder / "sparse_color_transfer.png").stat().st_size > 100_000
    rows = re.findall(r"^ +(\d+|all)  (\w+) +([\d.]+) +(\d+) +([\d.]+) +(\S+)", out, flags=re.MULTILINE)
    assert len(rows) == 9
    for k, kind, _, most, cost, error in rows:
        if kind == "relaxed" or k == "all":
            assert float(error) < 1e-11
            assert 1 <= float(cost) < 1.05
        else:
            assert int(most) <= int(k)


def test_expert_routing(run):
    out, folder = run("expert_routing")
    assert (folder / "routing.png").stat().st_size > 10_000
    coverage = re.findall(r"^\S.{25}  +([\d.]+) +[\d.]+  \d+ to \d+$", out, flags=re.MULTILINE)
    assert coverage[:5] == ["0.695", "0.770", "0.781", "0.930", "0.977"]
    assert float(coverage[5]) >= 0.99
    assert coverage[8:] == ["1.000"] * 4


def test_sparsity_tradeoff(run):
    out, folder = run("sparsity_tradeoff", "--points", "32")
    assert (folder / "tradeoff.png").stat().st_size > 10_000
    rows = [line.split() for line in out.splitlines() if line.startswith("k=")]
    assert all(float(row[6]) <= 1e-6 for row in rows)
    assert all(float(row[9]) >= float(row[8]) - 1e-6 for row in rows)


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
    assert inside[2] > inside[1] + 0.15 > inside[0] + 3
    assert outside[2] > outside[1] + 0.2 > outside[0] + 3


def test_logistic_hyperparameters(run):
    pytest.importorskip("sklearn")
    out, folder = run("logistic_hyperparameters", "--train", "100", "--steps", "10")
    assert (folder / "ridges.png").stat().st_size > 10_000
    common = [tuple(map(float, row)) for row in re.findall(r"common ridge e\^\S+ +(\S+) +(\S+)", out)]
    assert len(common) == 5
    loss, accuracy = (float(value) for value in re.findall(r"640 ridges by maid +(\S+) +(\S+)", out)[0])
    assert loss < 0.6 * min(row[0] for row in common)
    assert accuracy > max(row[1] for row in common) + 0.005


def test_bilevel_robustness(run):
    out, folder = run("bilevel_robustness", "--gradients", "6000")
    assert (folder / "robustness.png").stat().st_size > 10_000
    rows = re.findall(r"^(\w+ \S+) +(\S+) +(\S+) +(\d+) +(\S+) +(\S+) +(\S+) +(\S+) +\S+$", out, flags=re.MULTILINE)
    found = {row[0]: [float(value) if value != "-" else None for value in row[1:]] for row in rows}
    assert len(found) == 9
    best = float(re.findall(r"smallest loss of all (\S+)", out)[0])
    for accuracy in ("0.1", "0.001", "1e-05"):
        loss, _, _, _, rise, _, reached = found[f"maid {accuracy}"]
        assert rise == 0
        assert loss < 1.01 * best
        # schedules are faster at first
        assert reached > 5 * found["hoag geometric"][6]
    assert found["fixed 0.1"][2] == 0
    assert found["fixed 0.1"][1] == pytest.approx(21.3, abs=0.2)
    assert found["fixed 0.001"][0] > 1.05 * best
    assert found["hoag geometric"][0] > 5 * best  # and leave the minimum


def test_newton_approximate_hessian(run):
    pytest.importorskip("sklearn")
    out, folder = run("newton_approximate_hessian")
    assert (folder / "newton.png").stat().st_size > 10_000
    gaps = {}
    for line in out.splitlines():
        if ", smallest value" in line:
            name = line.split(", smallest")[0]
        elif "; at " in line:
            method, rest = line.split(" gap ")
            gaps[name, method.strip()] = {int(k): float(gap) for k, gap in re.findall(r"(\d+) (\S+e[-+]\d+)", rest)}
    assert len(gaps) == 5 * 6 + 2
    assert gaps["fourth power", "fisher"][20] == pytest.approx(3.0e-11, rel=0.05)
    assert gaps["fourth power", "exact"][20] == pytest.approx(3.6e-4, rel=0.05)
    assert gaps["Chebyshev", "gauss-newton"][20] == pytest.approx(6e-9, rel=0.05)
    assert gaps["Chebyshev", "exact"][20] == pytest.approx(4e-8, rel=0.05)
    assert gaps["Rosenbrock", "gauss-newton"][50] < gaps["Rosenbrock", "exact"][50] < gaps["Rosenbrock", "gradient"][50]
    assert gaps["digits, odd or even", "fisher"][50] > 1e4 * gaps["digits, odd or even", "exact"][50]
