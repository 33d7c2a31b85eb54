"""CUDA kernels without a toolkit: compiled from text by NVRTC for the GPU at hand, cached on disk, launched by torch.

``csrc/cuda`` holds the kernels, which include the same maths headers as the CPU library. A *program* is one of those
files with its macros; it is compiled on first use in a process, in a second or so, and read from the user's cache ever
after. The key of the cache is a hash of every source and header, the architecture, the options and the version of
NVRTC, so nothing has to be cleared by hand.

Launches go to torch's current stream with pointers taken from tensors; nothing here waits for the GPU, and a sequence
of launches can be captured in a CUDA graph once each program has been used (loading code is not capturable).

How far this was tried: the kernels were compiled for every architecture below and their text, with the host code around
it, was run by an emulator on a CPU (``tests/cuda_ext/emulator``). The machine they were written on has no GPU. The
tests in ``tests/cuda_ext/test_cuda_device.py`` run where there is one.
"""

import functools
import hashlib
import importlib
import io
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten, that every kernel is compiled for by ``python -m cuda_ext.compile_check``."""

_SOURCES = Path(__file__).parent / "csrc"
_INCLUDES = (_SOURCES / "include", _SOURCES / "rtc_shim")
_OPTIONS = {"std": "c++17", "device_as_default_execution_space": True}  # the latter for generic lambdas
_INSTALL = "install the extra that matches torch's CUDA: `pip install 'dreamkiln[cuda13]'` or `'dreamkiln[cuda12]'`"

Argument = Tensor | int | float | None
"""What a kernel takes: a tensor's address, a 32-bit integer, a 32-bit float, a null pointer."""
Shape = tuple[int, int, int]


class CudaError(RuntimeError):
    """The CUDA kernels cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Program:
    """A file of ``csrc/cuda`` and the macros it is compiled with: they make variants, such as a number of features."""

    name: str
    macros: tuple[tuple[str, int], ...] = ()

    @property
    def path(self) -> Path:
        """The source file."""
        return _SOURCES / "cuda" / f"{self.name}.cu"

    def __str__(self) -> str:
        return self.name + "".join(f" {key}={value}" for key, value in self.macros)


@runtime_checkable
class Launcher(Protocol):
    """Runs a kernel: on a GPU here, on the CPU in the emulator of the tests."""

    def __call__(self, program: Program, kernel: str, grid: Shape, block: Shape, *arguments: Argument) -> None:
        """Queue one launch; ``arguments`` in the order of the kernel's parameters."""
        ...


def launch(program: Program, kernel: str, grid: Shape, block: Shape, *arguments: Argument) -> None:
    """Queue a kernel on torch's current stream of the device that the first tensor argument lies on.

    Raises:
        CudaError: the program cannot be compiled or loaded.
    """
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    core = _core()
    with torch.cuda.device(device):
        loaded = _load(program, device.index)
        _bind(device.index)
        config = core.LaunchConfig(grid=grid, block=block)
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
        core.launch(stream, config, loaded(kernel), *map(_plain, arguments))


@dataclass(frozen=True)
class _Stream:
    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _plain(argument: Argument) -> Any:
    """As cuda.core wants it: Python integers are addresses, NumPy's scalars have a width."""
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return np.float32(argument) if isinstance(argument, float) else np.int32(argument)


# --- what there is --------------------------------------------------------------------------------------------------


def problem() -> str | None:
    """Why the CUDA kernels cannot be compiled here, with what to do, or ``None``: cuda.core and NVRTC are there."""
    try:
        nvrtc_version()
    except CudaError as error:
        return str(error)
    return None


def _core() -> Any:
    try:
        return importlib.import_module("cuda.core")
    except ImportError as error:
        raise CudaError(f"the CUDA kernels need cuda.core, which does not load ({error}); {_INSTALL}") from error


@functools.cache
def _nvrtc() -> tuple[tuple[int, int], tuple[int, ...]]:
    """Version of NVRTC and the architectures it knows."""
    _core()
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _, major, minor = nvrtc.nvrtcVersion()
        _, architectures = nvrtc.nvrtcGetSupportedArchs()
    except Exception as error:  # whatever a missing or broken shared library raises
        raise CudaError(f"the CUDA kernels need NVRTC, which does not load ({error}); {_INSTALL}") from error
    return (int(major), int(minor)), tuple(sorted(int(a) for a in architectures))


def nvrtc_version() -> tuple[int, int]:
    """Major and minor version of the NVRTC that compiles the kernels.

    Raises:
        CudaError: cuda.core or NVRTC is missing.
    """
    return _nvrtc()[0]


def target(capability: tuple[int, int]) -> str:
    """What to compile for a GPU: ``sm_90`` if NVRTC knows it, else PTX (``compute_90``) that its driver finishes.

    Raises:
        CudaError: cuda.core or NVRTC is missing, or the GPU is older than all that NVRTC knows.
    """
    version, known = _nvrtc()
    wanted = capability[0] * 10 + capability[1]
    best = max((a for a in known if a <= wanted), default=0)
    if not best:
        major, minor = capability
        raise CudaError(
            f"this GPU has compute capability {major}.{minor}; CUDA {version[0]}.{version[1]} compiles for "
            f"{known[0] / 10} and newer: use an older CUDA (`pip install 'dreamkiln[cuda12]'`) or backend='reference'"
        )
    return f"sm_{best}" if best == wanted else f"compute_{best}"


# --- compiling ------------------------------------------------------------------------------------------------------


def compile_program(program: Program, architecture: str, verbose: bool = False) -> tuple[bytes, str]:
    """Compile with NVRTC; needs no GPU and no driver for an ``sm_`` architecture.

    Args:
        program: what to compile.
        architecture: ``sm_90`` gives a cubin, ``compute_90`` gives PTX.
        verbose: ask ptxas for registers and spills.

    Returns:
        The code and the compiler's log.

    Raises:
        CudaError: cuda.core or NVRTC is missing, or the source does not compile; the message has NVRTC's log.
    """
    core, log = _core(), io.StringIO()
    nvrtc_version()
    options = core.ProgramOptions(
        name=str(program.path),
        arch=architecture,
        include_path=[str(folder) for folder in _INCLUDES],
        define_macro=[(key, str(value)) for key, value in program.macros] or None,
        ptxas_options="-v" if verbose else None,
        **_OPTIONS,
    )
    kind = "cubin" if architecture.startswith("sm_") else "ptx"
    try:
        compiled = core.Program(program.path.read_text(), "c++", options).compile(kind, logs=log)
    except Exception as error:  # NVRTCError is private to cuda.core; its text holds the compiler's log
        raise CudaError(f"NVRTC could not compile {program} for {architecture}: {error}".replace("\0", "")) from error
    return bytes(compiled.code), log.getvalue().replace("\0", "")


def cached_program(program: Program, architecture: str) -> bytes:
    """The compiled program, from the user's cache where it lies there, else compiled and kept.

    Raises:
        CudaError: as ``compile_program``.
    """
    folder = cache_folder()
    file = folder and folder / f"{program.name}-{architecture}-{_fingerprint(program, architecture)}.bin"
    code = file and _read(file)
    if code:
        return code
    code, _ = compile_program(program, architecture)
    if file:
        _write(file, code)
    return code


def _fingerprint(program: Program, architecture: str) -> str:
    digest = hashlib.sha256(repr((program.macros, architecture, _OPTIONS, nvrtc_version())).encode())
    folders = (*_INCLUDES, program.path.parent)
    headers = sorted(file for folder in folders for file in folder.iterdir() if file.is_file() and file.suffix != ".cu")
    for file in (program.path, *headers):
        text = file.read_bytes()
        digest.update(f"{file.relative_to(_SOURCES)} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:32]


def cache_folder() -> Path | None:
    """The user's own folder for compiled kernels, made on demand; ``None``, with a warning, where there can be none.

    ``DREAMKILN_CACHE`` names it; else it is ``dreamkiln`` under ``XDG_CACHE_HOME`` or ``~/.cache``. Its code is run, so
    nobody else may be able to write there: mode 0700, and a folder of another owner is not used.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("DREAMKILN_CACHE") or Path(home) / "dreamkiln").expanduser() / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to another user")
            folder.chmod(0o700)
    except OSError as error:
        warnings.warn(f"compiled CUDA kernels are not kept: {error}; set DREAMKILN_CACHE", stacklevel=2)
        return None
    return folder


def _read(file: Path) -> bytes | None:
    """What ``_write`` wrote, or ``None`` where it is missing or damaged."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    code = stored[32:]
    return code if code and hashlib.sha256(code).digest() == stored[:32] else None


def _write(file: Path, code: bytes) -> None:
    """Whole or not at all, beside other processes that write the same; a full disk only costs the cache."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, delete=False) as part:
            part.write(hashlib.sha256(code).digest() + code)
        os.replace(part.name, file)
    except OSError as error:
        warnings.warn(f"a compiled CUDA kernel could not be kept: {error}", stacklevel=2)


# --- loading --------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_loaded: dict[tuple[Program, int], Callable[[str], Any]] = {}
_bound = threading.local()


def _load(program: Program, index: int) -> Callable[[str], Any]:
    """Kernels of a program by name, loaded once per process and device."""
    with _lock:
        if (program, index) not in _loaded:
            _loaded[program, index] = _open(program, index)
        return _loaded[program, index]


def _open(program: Program, index: int) -> Callable[[str], Any]:
    architecture = target(torch.cuda.get_device_capability(index))
    code = cached_program(program, architecture)
    _bind(index)
    try:
        make = _core().ObjectCode.from_cubin if architecture.startswith("sm_") else _core().ObjectCode.from_ptx
        return functools.cache(make(code, name=str(program)).get_kernel)
    except Exception as error:  # a driver that is missing or older than NVRTC; cuda.core has no public type for it
        version = ".".join(map(str, nvrtc_version()))
        raise CudaError(f"the driver could not load {program} ({architecture}, CUDA {version}): {error}") from error


def _bind(index: int) -> None:
    """Tell cuda.core, once per thread and device, that torch's context is the one to use."""
    devices = _bound.__dict__.setdefault("devices", set())
    if index not in devices:
        _core().Device(index).set_current()
        devices.add(index)
