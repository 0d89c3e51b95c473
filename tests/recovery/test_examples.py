import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
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


def test_unfolded_recovery(run):
    out, folder = run("unfolded_recovery")
    assert (folder / "unfolded.png").stat().st_size > 10_000
    assert len(re.findall(r"^yes  ", out, flags=re.MULTILINE)) >= 5  # the last claim, on mismatch, is a weak one
    rows = re.findall(r"^([\w ,]+?) +(\d\.\d+) +(\d\.\d+)", out, flags=re.MULTILINE)
    found = {name: (float(mse), float(objective)) for name, mse, objective in rows}
    expected = {
        "ISTA": (0.02223, 0.6380),
        "FISTA": (0.00946, 0.5761),
        "ISTA, limit": (0.00592, 0.5677),
        "IHT": (0.02206, 0.6703),
        "IHT, limit": (0.01553, 0.5742),
    }
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, abs=2e-4)
    for name, (mse, objective) in {
        "supervised ISTA": (0.00511, 0.5800),
        "unsupervised ISTA": (0.00639, 0.5682),
        "supervised IHT": (0.00646, 0.4406),
        "unsupervised IHT": (0.00760, 0.4526),
    }.items():
        assert found[name][0] == pytest.approx(mse, rel=0.05)
        assert found[name][1] == pytest.approx(objective, rel=0.01)


def test_compressed_sensing_digits(run):
    pytest.importorskip("sklearn")
    out, folder = run("compressed_sensing_digits")
    assert (folder / "digits.png").stat().st_size > 10_000
    rows = re.findall(r"^(.{28}) +(\d+\.\d) dB +\S+ +(\d\.\d+)", out, flags=re.MULTILINE)
    psnr = {name.strip(): float(value) for name, value, _ in rows}
    objective = {name.strip(): float(value) for name, _, value in rows}
    assert psnr["LASSO"] > psnr["least norm"] + 3
    assert psnr["unfolded ISTA, 20 layers"] > psnr["ISTA, 20 iterations"] + 3
    assert objective["LASSO"] < objective["unfolded ISTA, 20 layers"] < objective["ISTA, 20 iterations"]
