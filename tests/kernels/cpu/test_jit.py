"""The decorators of compiled code, and the cache between processes."""

import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ot_numba.kernels.cpu import jit
from ot_numba.kernels.cpu.jit import cache_folder, helper, kernel

# A package of its own, with the real jit.py: tests change its sources. `run` prints results and cache hits.
PACKAGE = {
    "__init__.py": "",
    "kernels/__init__.py": "",
    "kernels/constants.py": "OFFSET = 1000.0\n",
    "kernels/cpu/__init__.py": "",
    "kernels/cpu/parts.py": """
        from .jit import helper

        @helper
        def shift(x):
            return x + 1.0

        @helper
        def halve(x):
            return x / 2.0
        """,
    "kernels/cpu/loops.py": """
        import sys
        import numpy as np
        from ..constants import OFFSET
        from .jit import cache_folder, kernel
        from .parts import halve, shift

        @kernel
        def total(x):
            s = 0.0
            for i in range(x.shape[0]):
                s += shift(x[i])
            return s

        @kernel
        def offset(x, factor=2.0):
            return OFFSET + factor * x

        def mapped(function, power):
            @kernel
            def loop(x):
                s = 0.0
                for i in range(x.shape[0]):
                    s += function(x[i]) ** power
                return s
            return loop

        @kernel
        def applied(function, x):
            return function(x[0])

        @kernel
        def double(x):
            return 2 * x

        def run(*calls):
            for call in calls:
                function, *arguments = call
                print(function(*arguments), sum(function.stats.cache_hits.values()))

        x = np.arange(4.0)
        """,
}


@pytest.fixture
def package(tmp_path):
    for name, code in PACKAGE.items():
        path = tmp_path / "site" / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
    shutil.copy(jit.__file__, path.parent)
    return tmp_path / "site" / "package"


def _environment(package, **variables):
    names = ("OT_NUMBA_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment["PYTHONPATH"] = str(package.parent)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # two edits within a second leave a stale .pyc
    return environment | {name: str(value) for name, value in variables.items()}


def _start(package, code, **variables):
    code = "from package.kernels.cpu.loops import *\n" + textwrap.dedent(code)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.Popen(command, cwd=package.parent, env=_environment(package, **variables), **pipes)


def _finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return out.split()


def _run(package, code, **variables):
    return _finish(_start(package, code, **variables))


def _replace(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_second_process_loads_what_the_first_compiled(package, tmp_path):
    code = """
        run((total, x), (total, x.astype("f4")), (offset, 3.0), (offset, 3.0, 5.0), (offset, np.float32(3)))
        run((mapped(shift, 2), x), (mapped(shift, 3), x), (mapped(halve, 2), x), (applied, double, x))
    """
    results = ["10.0", "10.0", "1006.0", "1015.0", "1006.0", "30.0", "100.0", "3.5", "0.0"]
    first = _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path / "cache")
    assert first[::2] == results
    assert set(first[1::2]) == {"0"}
    files = set((tmp_path / "cache").rglob("*.bin"))
    second = _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path / "cache")
    assert second[::2] == results
    assert second[1::2] == ["1", "2", "1", "2", "3", "1", "1", "1", "1"]
    assert set((tmp_path / "cache").rglob("*")) == files | {next(iter(files)).parent}  # and left nothing else


def test_no_stale_code_after_a_change(package, tmp_path):
    code = "run((total, x), (offset, 3.0))"
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["10.0", "0", "1006.0", "0"]
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["10.0", "1", "1006.0", "1"]
    changes = [
        ("kernels/cpu/parts.py", "x + 1.0", "x + 2.0", ["14.0", "1006.0"]),  # a helper in another file
        ("kernels/constants.py", "1000.0", "2000.0", ["10.0", "2006.0"]),  # a constant in the folder above
        ("kernels/cpu/loops.py", "shift(x[i])", "halve(x[i])", ["3.0", "1006.0"]),
    ]
    for name, old, new, results in changes:
        _replace(package / name, old, new)
        assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path)[::2] == results
        _replace(package / name, new, old)
    # The first state's files are still there.
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["10.0", "1", "1006.0", "1"]


def test_settings_of_numba_are_part_of_the_key(package, tmp_path):
    code = "run((total, x))"
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["10.0", "0"]
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path, NUMBA_BOUNDSCHECK="1") == ["10.0", "0"]
    assert _run(
        package, code, OT_NUMBA_CACHE_DIR=tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES=""
    ) == ["10.0", "0"]
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["10.0", "1"]


def test_damaged_files(package, tmp_path):
    code = "run(*[(mapped(shift, power), x) for power in (1, 2, 3, 4, 5)])"
    cache = tmp_path / "cache"
    sound = _run(package, code, OT_NUMBA_CACHE_DIR=cache)
    files = sorted(cache.rglob("*.bin"))
    empty, cut, zeroed, overwritten, folder = files
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-1])
    zeroed.write_bytes(b"\x00" * zeroed.stat().st_size)
    content = overwritten.read_bytes()
    overwritten.write_bytes(content[:5000] + b"\xff" * 200 + content[5200:])  # in the machine code
    folder.unlink()
    folder.mkdir()
    again = _run(package, code, OT_NUMBA_CACHE_DIR=cache)
    assert again[::2] == sound[::2]
    assert set(again[1::2]) == {"0"}
    mended = _run(package, code, OT_NUMBA_CACHE_DIR=cache)
    assert mended[::2] == sound[::2]
    assert sorted(mended[1::2]) == ["0", "1", "1", "1", "1"]  # what stands where a file should, stays
    assert sorted(cache.rglob("*.*")) == files


def test_processes_at_once_with_an_empty_cache(package, tmp_path):
    cache = tmp_path / "cache"
    calls = ["(total, x)", "(total, x.astype('f4'))"]
    codes = [f"run({', '.join(order)})" for order in (calls, calls[::-1], calls)]
    for process in [_start(package, code, OT_NUMBA_CACHE_DIR=cache) for code in codes]:
        assert _finish(process)[::2] == ["10.0", "10.0"]
    assert len(list(cache.rglob("*.bin"))) == 2
    assert not list(cache.rglob("*.part"))
    assert _run(package, codes[0], OT_NUMBA_CACHE_DIR=cache) == ["10.0", "1", "10.0", "2"]


def test_cache_that_cannot_be_written(package, tmp_path):
    file = tmp_path / "file"
    file.touch()
    code = """
        import logging
        logging.basicConfig(stream=sys.stdout, format="LOG %(message)s")
        logging.getLogger("package").setLevel(logging.DEBUG)
        print(cache_folder())
        run((total, x), (total, x.astype("f4")))
    """
    out = " ".join(_run(package, code, OT_NUMBA_CACHE_DIR=file / "x"))
    assert out.startswith("LOG compiled kernels are not kept: ")
    assert out.endswith(" None 10.0 0 10.0 0")
    assert out.count("LOG") == 1  # not once for each kernel


def test_cache_that_can_only_be_read(package, tmp_path):
    _run(package, "run((total, x))", OT_NUMBA_CACHE_DIR=tmp_path)
    code = """
        import tempfile
        def refuse(**_):
            raise OSError(30, "Read-only file system")
        tempfile.TemporaryFile = tempfile.mkstemp = refuse
        run((total, x), (double, 4))
        print(cache_folder())
    """
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["10.0", "1", "8", "0", "None"]


def test_no_sources_no_cache(package, tmp_path):
    code = """
        import package.kernels.cpu.jit as jit
        jit._SOURCES = jit._SOURCES / "missing" / "too"
        print(cache_folder())
        run((total, x))
    """
    assert _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path) == ["None", "10.0", "0"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the rules of XDG")
def test_folder(package, tmp_path):
    code = "print(cache_folder())"
    a, b, c, home = (tmp_path / name for name in ("a", "b", "c", "home"))
    assert _run(package, code, OT_NUMBA_CACHE_DIR=a, NUMBA_CACHE_DIR=b, XDG_CACHE_HOME=c) == [str(a)]
    assert _run(package, code, NUMBA_CACHE_DIR=b, XDG_CACHE_HOME=c) == [str(b / "ot_numba")]
    assert _run(package, code, XDG_CACHE_HOME=c, HOME=home) == [str(c / "ot_numba")]
    assert _run(package, code, XDG_CACHE_HOME="relative", HOME=home) == [str(home / ".cache" / "ot_numba")]
    assert _run(package, code, HOME=home) == [str(home / ".cache" / "ot_numba")]
    assert _run(package, code, HOME="/dev/null") == ["None"]
    relative = _run(package, code, OT_NUMBA_CACHE_DIR="here")
    assert relative == [str(package.parent / "here")]


def test_folder_on_other_systems(monkeypatch):
    for name in ("OT_NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jit.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert jit._root() == Path("/home/somebody/Library/Caches/ot_numba")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert jit._root() == Path("/local/ot_numba")
    monkeypatch.delenv("LOCALAPPDATA")
    assert jit._root() is None


def test_old_versions_are_dropped_but_nothing_else(tmp_path):
    others = [tmp_path / "mine", tmp_path / "kernels-mine", tmp_path / "kernels-0123456789abcdeX"]
    versions = [tmp_path / f"kernels-{i:016x}" for i in range(12)]
    for age, folder in enumerate([*others, *versions]):
        folder.mkdir()
        (folder / "file").touch()
        os.utime(folder, (1e9 + age, 1e9 + age))
    new = tmp_path / "kernels-ffffffffffffffff"
    assert jit._writable(new)
    assert set(tmp_path.iterdir()) == {*others, *versions[-7:], new}


def test_functions_from_elsewhere_are_not_kept(package, tmp_path):
    code = """
        from numba import njit
        outside = kernel(lambda x: x + 1.0)
        user = njit(lambda x: x + 1.0)
        run((outside, 1.0), (mapped(user, 2), x), (applied, user, x))
    """
    for _ in range(2):
        results = _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path / "cache")
        assert results == ["2.0", "0", "30.0", "0", "1.0", "0"]
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_cache_false(package, tmp_path):
    _replace(package / "kernels/cpu/loops.py", "@kernel\ndef total", "@kernel(cache=False)\ndef total")
    for _ in range(2):
        assert _run(package, "run((total, x))", OT_NUMBA_CACHE_DIR=tmp_path / "cache") == ["10.0", "0"]
    assert not (tmp_path / "cache").exists()


def test_without_compiler(package, tmp_path):
    code = "print(total(x), applied(double, x), mapped(halve, 2)(x), type(total).__name__)"
    results = _run(package, code, OT_NUMBA_CACHE_DIR=tmp_path, NUMBA_DISABLE_JIT="1")
    assert results == ["10.0", "0.0", "3.5", "function"]


@kernel(cache=False)
def _divide(x, y):
    return x / y


@kernel(cache=False)
def _sum(x):
    s = 0.0
    for i in range(x.shape[0]):
        s += x[i]
    return s


@kernel(cache=False, fastmath={"contract"})
def _compensated_sum(x):
    s = c = 0.0
    for i in range(x.shape[0]):
        y = x[i] - c
        t = s + y
        c = (t - s) - y
        s = t
    return s


@helper
def _helped_sum(x):
    s = 0.0
    for i in range(x.shape[0]):
        s += x[i]
    return s


@kernel(cache=False)
def _calls_helper(x):
    return _helped_sum(x)


def test_arithmetic():
    assert _divide(1.0, 0.0) == np.inf  # no ZeroDivisionError
    assert np.isnan(_divide(0.0, 0.0))
    for special in (np.inf, np.nan):
        assert np.array_equal(_sum(np.array([1.0, special, 2.0])), special, equal_nan=True)
    x = np.array([1e16, 1.0, 1.0, -1e16])
    assert _compensated_sum(x) == 2.0


def test_helper_follows_the_rules_of_kernel_and_stays_a_function():
    x = np.arange(1000.0)
    assert _calls_helper(x) == _sum(x) == _helped_sum(x) == 499_500.0
    assert type(_helped_sum) is type(lambda: 0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86 instructions")
def test_sum_in_a_helper_is_vectorised():
    _calls_helper(np.ones(10))
    assert re.search(r"\bv?addpd\b", next(iter(_calls_helper.inspect_asm().values())))


def test_kernel_releases_the_gil():
    assert _sum.targetoptions["nogil"]


def test_cache_folder_of_this_process():
    folder = cache_folder()
    assert folder is None or folder.is_dir()
