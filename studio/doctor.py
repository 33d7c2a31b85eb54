"""``studio doctor``: does this machine have what a run needs, and if not, what helps?

Each check is a function that returns what it found; none loads a model, and of the heavy packages only torch is
imported.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.export.validate import VARIABLE as VALIDATOR_VARIABLE
from studio.paths import BUNDLED_PRIOR, MissingAsset, bundled_prior

Verdict = Literal["ok", "warning", "failure"]

PACKAGES = ("studio", "representations", "guidance", "cuda_ext")
OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 6)
LEAST_MEMORY, COMFORTABLE_MEMORY = 1 * 1024**3, 3 * 1024**3
"""Bytes: below the first nothing can run, below the second only the bundled prior."""
LEAST_DISK, COMFORTABLE_DISK = 256 * 1024**2, 2 * 1024**3
"""Bytes: room for one run with its checkpoints, and for a few."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    finding: str
    advice: str = ""
    """What to do about it; empty if all is well."""


def examine(runs: Path = Path("runs")) -> list[Check]:
    """Look at the machine and the installation; ``runs`` is where runs would be written. Never raises."""
    return [
        _python(),
        *_torch(),
        *_packages(),
        _prior(),
        _memory(),
        *_disk(runs),
        _validator(),
        *_kernels(),
    ]


def report(checks: list[Check]) -> int:
    """Print the checks as a table; returns the exit status, 1 if one of them is a failure."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "warning": "yellow", "failure": "bold red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "verdict", "finding"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        finding = Text(check.finding)
        if check.advice:
            finding.append(f"\n{check.advice}", style="italic")
        table.add_row(check.name, Text(check.verdict, style=style[check.verdict]), finding)
    Console().print(table)
    return int(any(check.verdict == "failure" for check in checks))


# What runs it -------------------------------------------------------------------------------------------------------


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "failure", version, "Python 3.11 or newer is needed.")
    return Check("python", "ok", f"{version}, {sys.executable}")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as problem:  # OSError: a shared library that does not load
        yield Check("torch", "failure", str(problem), "Install PyTorch: https://pytorch.org/get-started/locally")
        return
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        yield Check("torch", "failure", torch.__version__, "PyTorch 2.6 or newer is needed.")
    else:
        yield Check("torch", "ok", torch.__version__)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Check("device", "ok", f"cuda: {names}")
    elif torch.backends.mps.is_available():
        yield Check("device", "ok", "mps")
    elif shutil.which("nvidia-smi"):
        advice = "There is an NVIDIA driver, but torch cannot use it: install a CUDA build of PyTorch that fits it."
        yield Check("device", "warning", f"cpu, {torch.get_num_threads()} threads", advice)
    else:
        yield Check("device", "ok", f"cpu, {torch.get_num_threads()} threads")


def _kernels() -> Iterator[Check]:
    """Compiled kernels for the CPU, and for the GPU where there is one."""
    try:
        import torch

        from cuda_ext import backends, native
    except (ImportError, OSError):
        return  # without torch there is nothing to say; its own check has said so
    advice = "" if native.available() else "Runs work, many times slower, on plain torch."
    yield Check("CPU kernels", "ok" if native.available() else "warning", native.status(), advice)
    if torch.cuda.is_available():
        lack = backends.lack("cuda")
        finding = lack or "compiled by NVRTC for the GPU at hand at first use"
        advice = "Runs work, many times slower, on plain torch." if lack else ""
        yield Check("CUDA kernels", "warning" if lack else "ok", finding, advice)


def _packages() -> Iterator[Check]:
    """Other distributions use some of our package names; theirs must not be the ones that get imported."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if origin is None:
            yield Check(name, "failure", "not found", "Install dreamkiln again.")
        elif origin.parent != home:
            yield Check(name, "failure", f"{origin}, not beside studio in {home}", _SEPARATE)
        elif (stranger := _distribution(name)) is not None:
            yield Check(name, "failure", f"the distribution {stranger} writes into the same folder {origin}", _SEPARATE)
        else:
            yield Check(name, "ok", str(origin))


_SEPARATE = "Another distribution uses this package name: give dreamkiln an environment of its own."


def _distribution(name: str) -> str | None:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return f"{name} {found.version}"


# What a run needs -----------------------------------------------------------------------------------------------------


def _prior() -> Check:
    try:
        folder = bundled_prior()
    except MissingAsset as problem:
        return Check("prior", "failure", str(problem), "Or pass --prior FOLDER to every run.")
    problems = _prior_problems(folder)
    if problems:
        return Check("prior", "failure", f"{folder}: {'; '.join(problems)}", "Install dreamkiln again.")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Check("prior", "ok", f"{BUNDLED_PRIOR}, {_readable(size)}, {folder}")


def _prior_problems(folder: Path) -> list[str]:
    """What a prior's folder lacks: files, or weights that are not whole."""
    problems = [f"{name} is missing" for name in _FILES if not (folder / name).is_file()]
    for part in _LEARNT:
        if not any((folder / part).glob("*.safetensors")):
            problems.append(f"{part} has no weights")
    try:
        from guidance.priors.weights import damage
    except (ImportError, OSError):
        return problems  # without torch there is nothing more to say; its own check has said so
    damaged = [weights for weights in sorted(folder.rglob("*.safetensors")) if damage(weights)]
    return [*problems, *(f"{weights.relative_to(folder)} is damaged" for weights in damaged)]


_FILES = (
    "dreamkiln.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
)
_LEARNT = ("unet", "text_encoder")


def _memory() -> Check:
    free = free_memory()
    if free is None:
        return Check("memory", "ok", "could not be measured here")
    finding = f"{_readable(free)} free"
    if free < LEAST_MEMORY:
        return Check("memory", "failure", finding, f"A run needs {_readable(LEAST_MEMORY)}: close other programs.")
    if free < COMFORTABLE_MEMORY:
        return Check("memory", "warning", finding, "Enough for the bundled prior, not for a large one.")
    return Check("memory", "ok", finding)


def free_memory() -> int | None:
    """Bytes that a new process can use, container limits included; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no such limit, or it reads "max"
        return free


def _disk(runs: Path) -> Iterator[Check]:
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    finding = f"{_readable(free)} free for {runs}"
    if free < LEAST_DISK:
        yield Check("disk", "failure", finding, "Not enough for a run: free some space, or pass --out FOLDER.")
    elif free < COMFORTABLE_DISK:
        yield Check("disk", "warning", finding, "Enough for a run or two.")
    else:
        yield Check("disk", "ok", finding)
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Check("runs folder", "ok", f"{runs.absolute()} can be written")
    except OSError as problem:
        yield Check("runs folder", "failure", f"{folder}: {problem.strerror}", "Pass --out FOLDER, one of your own.")


def _validator() -> Check:
    node, modules = shutil.which("node"), Path(os.environ.get(VALIDATOR_VARIABLE) or "node_modules").resolve()
    if node and (modules / "gltf-validator").is_dir():
        return Check("gltf-validator", "ok", str(modules))
    missing = f"none in {modules}" if node else "node is not installed"
    advice = f"Optional: checks each GLB. npm install gltf-validator, then set {VALIDATOR_VARIABLE} to node_modules."
    return Check("gltf-validator", "warning", missing, advice)


def _readable(size: int) -> str:
    """Bytes in words: ``1.5 GB``."""
    return f"{size / 1024**3:.1f} GB" if size >= 1024**3 else f"{size / 1024**2:.1f} MB"
