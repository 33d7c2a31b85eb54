"""Which form of an operation runs: compiled kernels, plain torch, or another package's."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from cuda_ext import cuda, native

Backend = Literal["auto", "native", "reference", "gsplat", "tinycudann"]
"""``auto``: compiled kernels where there are any for the device, plain torch (slow) where there are none; ``native``
and ``reference`` insist on one of them; ``gsplat`` and ``tinycudann`` are other people's packages, where installed."""

PEERS: dict[str, tuple[Backend, ...]] = {"rasterize_gaussians": ("gsplat",), "hash_encode": ("tinycudann",)}
"""Other packages that have an operation."""
_auto: ContextVar[str] = ContextVar("what auto stands for", default="auto")


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Let ``auto`` mean this backend inside the block, for the operations that have it; for comparisons."""
    token = _auto.set(backend)
    try:
        yield
    finally:
        _auto.reset(token)


def available(operation: str, device: torch.device) -> list[Backend]:
    """Backends that can run an operation on a device here, ours first."""
    ours: list[Backend] = ["native", "reference"] if lack(device.type) is None else ["reference"]
    peers: list[Backend] = [p for p in PEERS.get(operation, ()) if device.type == "cuda" and find_spec(p) is not None]
    return ours + peers


def choose(operation: str, backend: str, device: torch.device) -> str:
    """The backend to use: ``native``, ``reference`` or one of the operation's ``PEERS``.

    Args:
        operation: name, for messages.
        backend: what was asked for, a ``Backend``.
        device: where the inputs are.

    Raises:
        ValueError: there is no such backend, not for this operation, or not on this machine; says what helps.
    """
    peers = PEERS.get(operation, ())
    known = ("auto", "native", "reference", *peers)
    if backend == "auto" and _auto.get() in known:
        backend = _auto.get()
    if backend not in known:
        other = " for this operation" if backend in get_args(Backend) else ""
        raise ValueError(f"{operation} has no backend {backend!r}{other}: choose one of {', '.join(known)}")
    if backend in peers:
        return _peer(operation, backend, device)
    if backend == "reference":
        return backend
    missing = lack(device.type)
    if missing is None:
        return "native"
    if backend == "native" or native.required():
        raise ValueError(f"{operation} cannot run native on {device.type}: {missing}")
    _warn_once(device.type, missing)
    return "reference"


@cache
def lack(device: str) -> str | None:
    """In words, what the compiled kernels lack on a kind of device; None if they can run."""
    if device == "cpu":
        return None if native.available() else native.status()
    if device == "cuda":
        return cuda.problem()
    return f"there are kernels for cpu and cuda devices, not for {device}"


def _peer(operation: str, package: str, device: torch.device) -> str:
    if find_spec(package) is None:
        raise ValueError(f"backend {package!r} of {operation} needs that package, which is not installed here")
    if device.type != "cuda":
        raise ValueError(f"backend {package!r} of {operation} runs on cuda devices alone, the inputs are on {device}")
    return package


@cache
def _warn_once(device: str, missing: str) -> None:
    warnings.warn(
        f"the plain-torch kernels run, which are many times slower on {device}: {missing}", RuntimeWarning, stacklevel=4
    )
