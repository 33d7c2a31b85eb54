"""Runs the CUDA kernels on the CPU: their text compiled by g++ behind ``emulator.h``, launched like on a GPU.

An ``Emulator`` is a ``cuda_ext.cuda.Launcher``: the host code of the kernels runs unchanged with tensors on the CPU.
"""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from cuda_ext import native
from cuda_ext.cuda import Argument, Program, Shape

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
_TRAPS = "alignment,shift-exponent,integer-divide-by-zero,signed-integer-overflow,float-cast-overflow,bounds,null"


needs_compiler = pytest.mark.skipif(
    COMPILER is None and not native.required(), reason="the emulator of the CUDA kernels needs g++ or clang++"
)


class EmulatorError(RuntimeError):
    """A kernel did what a GPU forbids or leaves undefined."""


@dataclass(frozen=True)
class Emulator:
    """Launches kernels on the CPU.

    ``backward`` runs the threads of a block in the opposite order: a kernel without races does the same in both.
    ``architecture`` is what ``__CUDA_ARCH__`` says, in hundreds: 900 for sm_90.
    """

    backward: bool = False
    architecture: int = 900

    def __call__(self, program: Program, kernel: str, grid: Shape, block: Shape, *arguments: Argument) -> None:
        """See ``cuda_ext.cuda.Launcher``."""
        library = _build(program, self.architecture)
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        assert all(t.is_contiguous() and t.device.type == "cpu" for t in tensors), "a pointer to a strided tensor"
        guarded = {t.untyped_storage().data_ptr(): _Guarded(library, t) for t in tensors if t.numel()}
        values = [_value(argument, guarded) for argument in arguments]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.addressof(v) for v in values])
        run = getattr(library, f"emulate_{kernel}")
        run.restype = ctypes.c_char_p
        problem = run(len(values), pointers, *grid, *block, self.backward)
        for copy in guarded.values():
            copy.take_back()
        if problem:
            raise EmulatorError(f"{program}, {kernel}: {problem.decode()}")


class _Guarded:
    """A copy of a tensor's memory that ends where a forbidden page begins."""

    def __init__(self, library: ctypes.CDLL, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.library, self.bytes, self.origin = library, storage.nbytes(), storage.data_ptr()
        library.emulator_guarded.restype = ctypes.c_void_p
        self.address = library.emulator_guarded(ctypes.c_size_t(self.bytes))
        ctypes.memmove(self.address, self.origin, self.bytes)

    def take_back(self) -> None:
        ctypes.memmove(self.origin, self.address, self.bytes)
        self.library.emulator_release(ctypes.c_void_p(self.address), ctypes.c_size_t(self.bytes))


def _value(argument: Argument, guarded: dict[int, _Guarded]) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int32:
    if isinstance(argument, Tensor):
        copy = guarded.get(argument.untyped_storage().data_ptr())
        return ctypes.c_void_p(copy.address + argument.data_ptr() - copy.origin if copy and argument.numel() else None)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(None) if argument is None else ctypes.c_int32(argument)


def kernels(source: str) -> list[str]:
    """Names of the kernels in a source text."""
    return re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(', source)


@functools.cache
def _build(program: Program, architecture: int) -> ctypes.CDLL:
    """Compile a program's text as C++, with an entry for each kernel."""
    assert COMPILER, "the emulator needs g++ or clang++"
    headers = program.path.parent.parent / "include"
    text = "\n".join(
        [
            '#include "emulator.h"',
            f'#include "{program.path}"',
            "using namespace dreamkiln;",
            'extern "C" void* emulator_guarded(size_t bytes) { return emulator::guarded(bytes); }',
            'extern "C" void emulator_release(void* memory, size_t bytes) { emulator::release(memory, bytes); }',
            *(f"EMULATE({name})" for name in kernels(program.path.read_text())),
        ]
    )
    folder = Path(tempfile.mkdtemp(prefix="dreamkiln-emulator-"))
    (folder / "program.cpp").write_text(text)
    macros = [f"-D{key}={value}" for key, value in program.macros]
    arch = [f"-D__CUDA_ARCH__={architecture}", "-D__CUDACC__", "-D__CUDACC_RTC__"]
    command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Werror"]
    command += ["-Wno-unknown-pragmas", f"-fsanitize={_TRAPS}", "-fsanitize-undefined-trap-on-error"]
    command += ["-I", str(HERE), "-I", str(headers), *macros, *arch, "program.cpp", "-o", "program.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise EmulatorError(f"g++ could not compile {program}:\n{done.stderr}")
    library = ctypes.CDLL(str(folder / "program.so"))
    shutil.rmtree(folder)
    return library
