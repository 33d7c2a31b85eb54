"""Which weights a run was made with: their sizes and SHA-256, and the revision where the folder says it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from studio.prior_options import PriorOptions

CACHE = ".dreamkiln-hashes.json"
"""Beside large weights: their hashes, by size and time of change, so that they are read once."""
_LARGE = 256 * 2**20


def stamp(name: str, prior: Path, options: PriorOptions) -> dict[str, Any]:
    """What is recorded in a run as ``prior.json``.

    Args:
        name: as the request has it.
        prior: the folder or file that the name stands for.
        options: further files of the request.
    """
    weights = sorted(prior.rglob("*.safetensors")) if prior.is_dir() else [prior]
    home = prior if prior.is_dir() else prior.parent
    further = [file for file, _ in options.extensions.loras] + list(options.extensions.inversions)
    further += [Path(options.image)] if options.image else []
    further += [file] if (file := options.one_pass_file(prior)) else []
    return {
        "prior": name,
        "place": str(prior),
        "revision": revision(prior),
        "weights": _hashes(weights, home),
        "further": {str(file): _hashed(file) for file in further},
    }


def revision(prior: Path) -> str | None:
    """The commit that a folder was downloaded from: of a hub snapshot, or of a download into a folder of its own."""
    if prior.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", prior.name):
        return prior.name
    for note in sorted((prior / ".cache" / "huggingface" / "download").rglob("*.metadata")):
        first = note.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
        if first and re.fullmatch("[0-9a-f]{40}", first[0].strip()):
            return first[0].strip()
    return None


def _hashes(files: list[Path], home: Path) -> dict[str, dict[str, Any]]:
    known = _read(home / CACHE)
    found = {}
    for file in files:
        status, name = file.stat(), str(file.relative_to(home))
        entry = known.get(name)
        fresh = isinstance(entry, dict) and (entry.get("size"), entry.get("time")) == (
            status.st_size,
            status.st_mtime_ns,
        )
        found[name] = entry if fresh else {**_hashed(file), "time": status.st_mtime_ns}
    if found != known and sum(entry["size"] for entry in found.values()) >= _LARGE:
        try:
            (home / CACHE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError:
            pass  # a folder that we may only read: the hashes are made again next time
    return {name: {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in found.items()}


def _hashed(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _read(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
