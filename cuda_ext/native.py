"""Finds and loads the compiled CPU kernels, and says in words what it found.

The library (``libdreamkiln_native``) holds the kernels once per instruction set; the fastest that the processor knows
is taken. Environment:

- ``DREAMKILN_ISA``: ``scalar``, ``avx2``, ``avx512`` or ``neon`` instead of the fastest;
- ``DREAMKILN_LIBRARY``: a library elsewhere, for those who build their own;
- ``DREAMKILN_REQUIRE_NATIVE=1``: operations fail, instead of falling back to plain torch, where there is no library.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # before the library, so that both share one OpenMP runtime

import cuda_ext

ABI = 3
"""What ``dreamkiln_abi()`` of csrc/cpu/dispatch.cpp must answer."""
_CURE = "Install a C++17 compiler (gcc or clang) and run `pip install` again"


class NoLibrary(Exception):
    """Why there are no compiled kernels, and what helps."""


@dataclass(frozen=True)
class Library:
    """The compiled kernels."""

    path: Path
    isa: str
    """Instruction set of the kernels in use."""
    handle: ctypes.CDLL

    def function(self, name: str, returns: type | None, *arguments: type) -> Callable:
        """The C function ``dreamkiln_<name>_<isa>``; types are ctypes'."""
        found = getattr(self.handle, f"dreamkiln_{name}_{self.isa}")
        found.restype, found.argtypes = returns, arguments
        return found


@cache
def library() -> Library:
    """The compiled kernels, loaded once.

    Raises:
        NoLibrary: there is none, it does not load, or it lacks the instruction set that was asked for.
    """
    path = _find()
    try:
        handle = ctypes.CDLL(str(path))
        handle.dreamkiln_instruction_sets.restype = ctypes.c_char_p
        abi, sets = handle.dreamkiln_abi(), handle.dreamkiln_instruction_sets().decode().split()
    except (OSError, AttributeError) as problem:
        raise NoLibrary(f"{path} does not load: {problem}. {_CURE}") from problem
    if abi != ABI:
        raise NoLibrary(f"{path} is of another version (its interface is {abi}, not {ABI}). {_CURE}")
    isa = os.environ.get("DREAMKILN_ISA") or sets[0]
    if isa not in sets:
        raise NoLibrary(f"DREAMKILN_ISA asks for {isa!r}; {path} has {', '.join(sets)} for this processor")
    return Library(path, isa, handle)


def available() -> bool:
    """Whether there are compiled kernels."""
    return _reason() is None


def status() -> str:
    """One line for people: which library runs with which instructions, or why there is none and what helps."""
    return _reason() or f"compiled CPU kernels, {library().isa} instructions, {library().path}"


def required() -> bool:
    """Whether doing without compiled kernels is an error."""
    return os.environ.get("DREAMKILN_REQUIRE_NATIVE", "").lower() in ("1", "true", "yes", "on")


def threads(work: float) -> int:
    """How many threads an operation of about ``work`` microseconds on one thread is worth."""
    return torch.get_num_threads() if work >= 300 else 1


@cache
def _reason() -> str | None:
    try:
        library()
    except NoLibrary as problem:
        return str(problem)
    return None


def _find() -> Path:
    if chosen := os.environ.get("DREAMKILN_LIBRARY"):
        return Path(chosen)
    name = {"win32": "dreamkiln_native.dll", "darwin": "libdreamkiln_native.dylib"}.get(
        sys.platform, "libdreamkiln_native.so"
    )
    # An editable installation has two folders: the checkout, and the one that the build was installed to. The package's
    # path has both, but not where another importer than the installation's own found the checkout.
    folders = [*map(Path, cuda_ext.__path__), *(Path(place) / "cuda_ext" for place in sys.path)]
    for folder in folders:
        if (path := folder / "lib" / name).is_file():
            return path
    looked = ", ".join(cuda_ext.__path__)
    raise NoLibrary(f"no compiled CPU kernels in {looked}: they were not built when this was installed. {_CURE}")
