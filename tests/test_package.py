"""The package as a whole: its public names, what importing it loads, and how long that takes."""

import ast
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

import ot_numba

HEAVY = ("numba", "llvmlite", "scipy", "cupy", "matplotlib", "sklearn", "tqdm")


def run_python(code):
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["", ".arrays", ".bilevel", ".costs", ".recovery", ".transport"])
def test_import_loads_nothing_heavy(name):
    loaded = run_python(f"import ot_numba{name}, sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "[]"


def test_import_time():
    code = "import time; t = time.process_time(); import ot_numba; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(5)) <= 0.25


def test_import_time_with_the_solvers():
    code = "import time; t = time.process_time(); from ot_numba import solve; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(5)) <= 0.25


@pytest.mark.parametrize("name", ot_numba.__all__)
def test_public_name(name):
    value = getattr(ot_numba, name)
    assert value is getattr(ot_numba, name)
    assert value.__module__.startswith("ot_numba.")
    assert value.__doc__


def test_type_checkers_see_the_public_names():
    tree = ast.parse(Path(ot_numba.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"ot_numba.{home}" for name, home in ot_numba._HOME_OF.items()}


def test_dir_lists_public_names_and_subpackages():
    listed = dir(ot_numba)
    assert {*ot_numba.__all__, "arrays", "costs", "transport", "__version__"} <= set(listed)


def test_subpackages_load_on_first_use():
    assert run_python("import ot_numba; print(ot_numba.arrays.__name__)") == "ot_numba.arrays"


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'sinkhron'"):
        _ = ot_numba.sinkhron
    with pytest.raises(ImportError, match="sinkhron"):
        exec("from ot_numba import sinkhron")


def test_typed_marker_is_shipped():
    assert importlib.resources.files("ot_numba").joinpath("py.typed").is_file()
