"""Checkpoints that survive a crash: a folder of safetensors and a JSON side-car, made whole or not at all.

The folder is written under a temporary name, every file is flushed to the disk, and only then is it renamed. The
side-car holds the tree of plain values, with placeholders where tensors stand, and the digest of the tensor file, so
damage is noticed before a single value is used. Nothing here can execute code from a file.
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_TENSOR, _INT_KEYS = "tensor:", "int keys"
_STEP_DIGITS = 7


class CorruptCheckpoint(ValueError):
    """A checkpoint folder whose content is not what was written."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, oldest first, in ``folder``; the newest ``keep`` stay."""

    folder: Path
    keep: int = 2

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` (a tree of dicts, lists, numbers, strings and tensors) as the checkpoint of ``step``.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        target = self.folder / f"{step:0{_STEP_DIGITS}d}"
        write_state(target, {"step": step, **state})
        for old in self.all()[: -self.keep]:
            discard(old)
        for left in self.folder.glob(".*.part"):  # by a process that was killed at it
            shutil.rmtree(left, ignore_errors=True)
        return target

    def all(self) -> list[Path]:
        """Folders of finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def newest(self, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, list[str]]:
        """The newest state that reads back whole (None if there is none) and what was wrong with newer ones."""
        problems: list[str] = []
        for path in reversed(self.all()):
            try:
                return read_state(path, device), problems
            except CorruptCheckpoint as problem:
                problems.append(str(problem))
        return None, problems


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state tree as ``folder`` in one atomic step, replacing what was there."""
    tensors: dict[str, Tensor] = {}
    tree = _fold(state, "", tensors)
    payload = save(tensors)
    sidecar = {"format": 1, "sha256": hashlib.sha256(payload).hexdigest(), "state": tree}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_flushed(temporary / "tensors.safetensors", payload)
        _write_flushed(temporary / "state.json", json.dumps(sidecar, allow_nan=True).encode())
        if folder.exists():
            discard(folder)
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush_folder(folder.parent)


def discard(folder: Path) -> None:
    """Delete a checkpoint; one that is killed on the way leaves none that looks whole."""
    going = folder.with_name(f".{folder.name}.{os.getpid()}.gone.part")
    with contextlib.suppress(OSError):
        folder.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def read_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state tree back.

    Raises:
        CorruptCheckpoint: a file is missing, cut short or altered.
    """
    try:
        sidecar = json.loads((folder / "state.json").read_text())
        payload = (folder / "tensors.safetensors").read_bytes()
        if hashlib.sha256(payload).hexdigest() != sidecar["sha256"]:
            raise CorruptCheckpoint(f"{folder}: the tensors do not match their recorded digest")
        tensors = {name: value.to(device) for name, value in load(payload).items()}
        return _unfold(sidecar["state"], tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        if isinstance(problem, CorruptCheckpoint):
            raise
        raise CorruptCheckpoint(f"{folder}: {type(problem).__name__}: {problem}") from problem


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write_flushed(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    # Renames are durable only once the folder itself is flushed; not every platform can open a folder.
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fold(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # two places can spell alike: "a.b", and "b" within "a"
            name += "'"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return f"{_TENSOR}{name}"
    if isinstance(value, dict):
        folded = {str(k): _fold(v, f"{path}.{k}" if path else str(k), tensors) for k, v in value.items()}
        return {_INT_KEYS: folded} if value and all(isinstance(k, int) for k in value) else folded
    if isinstance(value, list | tuple):
        return [_fold(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, str) and value.startswith(_TENSOR):
        raise ValueError(f"{path}: a string may not begin with {_TENSOR!r}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _unfold(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, str) and tree.startswith(_TENSOR):
        return tensors[tree.removeprefix(_TENSOR)]
    if isinstance(tree, dict):
        if set(tree) == {_INT_KEYS}:
            return {int(k): _unfold(v, tensors) for k, v in tree[_INT_KEYS].items()}
        return {k: _unfold(v, tensors) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_unfold(v, tensors) for v in tree]
    return tree
