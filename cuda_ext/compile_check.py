"""``python -m cuda_ext.compile_check``: every CUDA kernel, compiled for every architecture, without a GPU.

Fails where a kernel does not compile, spills registers to memory, keeps a stack, or needs more registers than the
ceiling written beside it in the source (``// registers: 64``, one line above the kernel), and where compiling all that
one GPU needs takes longer than a cold start may.
"""

import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cuda_ext import cuda_gaussians, cuda_hashgrid
from cuda_ext.cuda import ARCHITECTURES, CudaError, Program, compile_program, nvrtc_version

PROGRAMS: tuple[Program, ...] = (*cuda_gaussians.PROGRAMS, *cuda_hashgrid.PROGRAMS)
"""All that is ever compiled for a GPU."""
COLD_START = 15.0
"""Seconds that compiling everything for one architecture may take."""

_KERNEL = re.compile(r'extern "C" __global__ void(?: __launch_bounds__\([^)]*\))?\s+(\w+)\s*\(')
_CEILING = re.compile(r"// registers: (\d+)\n" + _KERNEL.pattern)
_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel for one architecture."""

    program: Program
    architecture: int
    kernel: str
    registers: int
    memory: int
    """Bytes of stack and spills."""
    ceiling: int

    @property
    def problem(self) -> str | None:
        """What is wrong with it, if anything."""
        where = f"{self.program}, {self.kernel}, sm_{self.architecture}"
        if self.memory:
            return f"{where}: {self.memory} bytes of stack and spills"
        if self.registers > self.ceiling:
            return f"{where}: {self.registers} registers, {self.ceiling} allowed"
        return None


def ceilings(source: str) -> dict[str, int]:
    """Most registers that each kernel of a source may use.

    Raises:
        ValueError: a kernel has no ceiling.
    """
    found = {name: int(registers) for registers, name in _CEILING.findall(source)}
    if missing := set(_KERNEL.findall(source)) - found.keys():
        raise ValueError(f"no `// registers: N` above {', '.join(sorted(missing))}")
    return found


def parse_log(log: str, program: Program, architecture: int, allowed: dict[str, int]) -> list[Usage]:
    """Usage of every kernel in the log of ``ptxas -v``.

    Raises:
        ValueError: the log does not speak of exactly the kernels in ``allowed``.
    """
    found = {name: tuple(map(int, numbers)) for name, *numbers in _USAGE.findall(log)}
    if found.keys() != allowed.keys():
        raise ValueError(f"{program}: ptxas reports {sorted(found)}, the source has {sorted(allowed)}")
    return [
        Usage(program, architecture, name, registers, stack + stores + loads, allowed[name])
        for name, (stack, stores, loads, registers) in found.items()
    ]


def check(programs: Sequence[Program], architecture: int) -> list[Usage]:
    """Compile programs for an architecture.

    Raises:
        CudaError: one does not compile, or there is no NVRTC.
    """
    usages = []
    for program in programs:
        _, log = compile_program(program, f"sm_{architecture}", verbose=True)
        usages += parse_log(log, program, architecture, ceilings(program.path.read_text()))
    return usages


def table(usages: Iterable[Usage]) -> str:
    """Registers per kernel and architecture, with the ceiling."""
    rows: dict[tuple[str, str, int], dict[int, str]] = {}
    for usage in usages:
        row = rows.setdefault((str(usage.program), usage.kernel, usage.ceiling), {})
        row[usage.architecture] = f"{usage.registers}{'!' if usage.problem else ''}"
    head = f"{'program':24}{'kernel':28}{'ceiling':>8}" + "".join(f"{f'sm_{a}':>8}" for a in ARCHITECTURES)
    lines = [
        f"{program:24}{kernel:28}{ceiling:8}" + "".join(f"{row.get(a, '-'):>8}" for a in ARCHITECTURES)
        for (program, kernel, ceiling), row in rows.items()
    ]
    return "\n".join([head, *lines])


def main() -> int:
    """Check everything and print it; 1 if anything is wrong."""
    usages: list[Usage] = []
    slowest = 0.0
    try:
        for architecture in ARCHITECTURES:
            start = time.perf_counter()
            usages += check(PROGRAMS, architecture)
            slowest = max(slowest, time.perf_counter() - start)
    except (CudaError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201 -- the command's output
        return 1
    problems = [usage.problem for usage in usages if usage.problem]
    if slowest > COLD_START:
        problems.append(f"all programs for one architecture took {slowest:.1f} s to compile, {COLD_START:g} s allowed")
    version = ".".join(map(str, nvrtc_version()))
    print(table(usages))  # noqa: T201
    print(f"NVRTC {version}: {len(usages)} kernels compiled, at most {slowest:.1f} s an architecture")  # noqa: T201
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
