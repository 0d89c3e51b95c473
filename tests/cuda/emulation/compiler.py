"""Compiles CUDA C++ with g++ into a library for the emulated device; it needs nothing but g++."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
HEADER, RUNTIME = FOLDER / "device.hpp", FOLDER / "runtime.cpp"
COMPILER = "g++"

# Compute capability 7.0 is the least that the package supports: what it lacks does not compile.
DEFINES = ("-D__CUDA_ARCH__=700", "-D__CUDACC__", "-D__CUDACC_RTC__")
FLAGS = ("-g1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-attributes", "-Wno-unknown-pragmas")
CHECKED = (
    "-O1",
    "-fsanitize=thread",  # a callback for each load and store
    "-fsanitize=bounds,alignment,null,shift,integer-divide-by-zero,signed-integer-overflow"
    ",float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-tree-loop-distribute-patterns",  # no memset or memcpy in place of a loop, which would be unseen
)
UNCHECKED = ("-O2",)


class KernelError(RuntimeError):
    """A kernel or a launch did something that a GPU would not survive, or not reliably."""


class CompileError(KernelError):
    """The source is no valid CUDA C++, as far as g++ can tell."""


def missing() -> str:
    """Return why nothing can be compiled; empty where it can."""
    return "" if shutil.which(COMPILER) else f"{COMPILER} is not installed, which compiles kernels for the emulation"


def cache_folder() -> Path:
    """Folder of compiled kernels, which are found there by their content: deleting it is always safe."""
    root = os.environ.get("OT_NUMBA_CACHE_DIR")
    folder = Path(root) if root else Path(tempfile.gettempdir()) / f"ot_numba-{os.environ.get('USER', 'tests')}"
    return folder / "cuda_emulation"


def _run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        raise CompileError(done.stderr[-4000:])
    return done.stdout


def built(content: list[str], suffix: str, make) -> Path:
    """Return the file of that content from the cache, or let `make(folder, path)` write it."""
    digest = hashlib.sha256("\0".join(content).encode()).hexdigest()[:24]
    out = cache_folder() / (digest + suffix)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            make(Path(folder), Path(folder) / out.name)
            os.replace(Path(folder) / out.name, out)  # at once, for tests that run side by side
    return out


# ---------------------------------------------------------------- CUDA C++ to C++

_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?([\w:<>,\s]+?)\s*(\w+)\s*\[\s*\]\s*;"
)
_STATIC = re.compile(r"__shared__\s+(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?([^;{}]+);")
_DECLARATOR = re.compile(r"\s*(.*?)\s*(\w+)\s*((?:\[.*?\]\s*)*)$", re.DOTALL)
_KERNEL = re.compile(
    r"__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\((?P<bounds>(?:[^()]|\([^()]*\))*)\)\s*)?(?:void\s+)?"
    r"(?P<name>\w+)\s*\("
)


def _split(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[<(") - (letter in "]>)")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _rewrite_shared(source: str) -> str:
    """Replace declarations of shared memory, which C++ has no word for, in preprocessed text; lines stay."""
    source = _DYNAMIC.sub(lambda found: f"{found[1]}* {found[2]} = ({found[1]}*)emu_dynamic_shared();", source)
    number = 0

    def declare(found: re.Match) -> str:
        nonlocal number
        kind, out = "", []
        for text in _split(found[1]):
            prefix, name, extents = _DECLARATOR.match(text).groups()
            kind, number = prefix or kind, number + 1
            type_ = f"emu_type<{kind}{extents.strip()}>"
            out.append(f'{type_}& {name} = emu_static_shared<{type_}>({number}, "{name}");')
        return " ".join(out) + "\n" * found[0].count("\n")

    return _STATIC.sub(declare, source)


def _with_table(source: str) -> str:
    """Append the table of kernels that the launcher reads."""
    found = {match["name"]: match["bounds"] or "0" for match in _KERNEL.finditer(source)}
    rows = "".join(
        f'{{"{name}", [](void** a) EMU_UNSEEN {{ emu_enter(&{name}, a); }}, '
        f"[](emu_parameter* out, int size) {{ return emu_signature(&{name}, out, size); }}, emu_first({bounds})}},\n"
        for name, bounds in found.items()
    )
    table = f"extern const emu_entry emu_table[] = {{\n{rows}{{}}}};\nextern const int emu_count = {len(found)};"
    return f'{source}\n#line 1 "table"\nextern "C" {{\n{table}\n}}\n'


def compile_runtime() -> Path:
    """Compile the emulated device."""
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared"]
    return built(
        [RUNTIME.read_text(encoding="utf-8"), *flags],
        ".device.so",
        lambda folder, out: _run(COMPILER, *flags, "-o", out, RUNTIME, "-ldl", folder=folder),
    )


def compile_source(source: str, options: tuple[str, ...], checked: bool) -> Path:
    """Compile a module; every load and store of its kernels is seen if `checked`."""
    runtime = compile_runtime()
    known = [option for option in options if option.startswith(("-D", "-std="))]
    flags = [*known, *FLAGS, *(CHECKED if checked else UNCHECKED)]

    def make(folder: Path, out: Path) -> None:
        text, obj = folder / "kernel.cu", folder / "kernel.o"
        text.write_text(source, encoding="utf-8")
        # like NVRTC, it finds no header
        plain = _run(COMPILER, "-E", "-nostdinc", *known, *DEFINES, "-x", "c++", text.name, folder=folder)
        text.write_text(_with_table(_rewrite_shared(plain)), encoding="utf-8")
        command = (COMPILER, *flags, *DEFINES, "-include", HEADER, "-c", "-x", "c++", text.name, "-o", obj)
        _run(*command, folder=folder)
        # linked to the callbacks of the runtime, not to those of the sanitizers
        _run(COMPILER, "-shared", "-o", out, obj, runtime, f"-Wl,-rpath,{runtime.parent}", folder=folder)

    content = [source, *flags, *DEFINES, HEADER.read_text(encoding="utf-8"), runtime.name]
    return built([*content, Path(__file__).read_text(encoding="utf-8")], ".so", make)


# ---------------------------------------------------------------- what the libraries take and return


class Parameter(ctypes.Structure):
    """Parameter of a kernel: a pointer or not, "f", "i", "u", "b" or "s" (a struct), and the size of what it holds."""

    _fields_ = (
        ("pointer", ctypes.c_char), ("kind", ctypes.c_char), ("const", ctypes.c_char), ("size", ctypes.c_uint)
    )


class Range(ctypes.Structure):
    """Memory that an argument gives access to, and the bytes of it that all threads together read and wrote."""

    _fields_ = (
        ("low", ctypes.c_size_t), ("high", ctypes.c_size_t), ("writable", ctypes.c_int), ("index", ctypes.c_int),
        ("bytes_read", ctypes.c_uint64), ("bytes_written", ctypes.c_uint64),
    )


class Settings(ctypes.Structure):
    """How a kernel is to be run."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("dynamic_shared", ctypes.c_uint64),
        ("max_shared", ctypes.c_uint64), ("seed", ctypes.c_uint64), ("max_accesses", ctypes.c_uint64),
        ("order", ctypes.c_int), ("preempt", ctypes.c_int), ("checked", ctypes.c_int), ("races", ctypes.c_int),
    )


class _Entry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("run", ctypes.c_void_p),
        ("signature", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Parameter), ctypes.c_int)),
        ("max_threads", ctypes.c_int),
    )


@functools.cache
def _device() -> ctypes.CDLL:
    return ctypes.PyDLL(str(compile_runtime()))  # one launch at a time: it keeps the interpreter locked


class Library:
    """A compiled module."""

    def __init__(self, source: str, options: tuple[str, ...], checked: bool) -> None:
        self.path = compile_source(source, options, checked)
        loaded = ctypes.CDLL(str(self.path))
        count = ctypes.c_int.in_dll(loaded, "emu_count").value
        self.kernels: dict[str, tuple[int, list[Parameter], int]] = {}
        for row in (_Entry * count).in_dll(loaded, "emu_table"):
            name, parameters = row.name.decode(), (Parameter * 64)()
            if not hasattr(loaded, name):
                raise KernelError(f'kernel {name} has no plain name: it must be extern "C"')
            self.kernels[name] = row.run, list(parameters[: row.signature(parameters, 64)]), row.max_threads

    def launch(self, run: int, settings: Settings, pointers: list[int], ranges: list[Range]) -> list[Range]:
        """Run a kernel to its end; return the ranges with what was read and written, which is seen only if checked."""
        arguments = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        memory, message = (Range * max(1, len(ranges)))(*ranges), ctypes.create_string_buffer(4096)
        if _device().emu_launch(
            ctypes.byref(settings), ctypes.c_void_p(run), arguments, memory, len(ranges), message, len(message)
        ):
            raise KernelError(self._with_lines(message.value.decode(errors="replace")))
        return list(memory[: len(ranges)])

    def _with_lines(self, message: str) -> str:
        """Replace places in the machine code by lines of the source, innermost first."""

        def place(found: re.Match) -> str:
            address = hex(int(found[2], 16) - 1)
            lines = _run("addr2line", "-i", "-e", self.path, address, folder=FOLDER).split("\n")
            here = [re.sub(r".*/|\s\(.*", "", line) for line in lines if line and HEADER.name not in line]
            return f"[{'earlier' if found[1] else 'at'} {' < '.join(here) or 'an unknown line'}]"

        return re.sub(r"@@(before)?=([0-9a-f]+)", place, message)
