"""Which weights a run was made with: their sizes and SHA-256, and the revision where the folder says it.

A run that is gone on with after a file has changed says so, and its record keeps both.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from guidance.priors.loading import listed, pipeline_of
from guidance.priors.weights import IP_ADAPTER, weight_files
from studio.checkpoints import write_atomically
from studio.prior_options import PriorOptions

RECORD = "prior.json"
"""In a run's folder: its prior."""
CACHE = ".dreamkiln-hashes.json"
"""Beside large weights: their hashes, by size and time of change, so that they are read once."""
_LARGE = 256 * 2**20


def stamp(name: str, prior: Path, options: PriorOptions) -> dict[str, Any]:
    """What is recorded in a run of the files that its prior was made of; others in its folder are left out.

    Args:
        name: as the request has it.
        prior: the folder or file that the name stands for.
        options: further files of the request.
    """
    home = prior if prior.is_dir() else prior.parent
    return {
        "prior": name,
        "place": str(prior),
        "revision": revision(prior),
        "weights": _hashes(weights_of(prior), home),
        "further": {str(file): _hashed(file) for file in _further(prior, options)},
    }


def weights_of(prior: Path) -> list[Path]:
    """The files that a prior's weights are read from, wherever links in its folder lead."""
    folder = prior if prior.is_dir() else prior.with_suffix("")
    parts = listed(folder, pipeline_of(folder)) if folder.is_dir() else {}
    files = [] if prior.is_dir() else [prior]
    files += [folder / IP_ADAPTER] if (folder / IP_ADAPTER).is_file() else []
    return sorted([*files, *(file for part in parts for file in weight_files(folder / part))])


def _further(prior: Path, options: PriorOptions) -> list[Path]:
    """Files on top of a prior."""
    files = [file for file, _ in options.extensions.loras] + list(options.extensions.inversions)
    files += [Path(options.image)] if options.image else []
    return files + ([file] if (file := options.one_pass_file(prior)) else [])


def as_on_disk(prior: Path, options: PriorOptions) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of all files that a prior may be made of: other ones, another prior."""
    home = prior if prior.is_dir() else prior.with_suffix("")
    own = [file for pattern in ("*", "*/*") for file in home.glob(pattern) if not file.name.startswith(".")]
    files = [file for file in (prior, *own, *_further(prior, options)) if file.is_file()]
    return tuple(sorted((str(file), (seen := file.stat()).st_size, seen.st_mtime_ns) for file in files))


def record(run: Path, found: dict[str, Any]) -> list[str]:
    """Write what ``stamp`` found into a run's folder.

    Args:
        run: the folder.
        found: of the prior as it is now.

    Returns:
        What to say if the run began with other files than these; the record keeps what was found before, too.

    Raises:
        OSError: it cannot be written.
    """
    before = _read(run / RECORD)
    earlier, changed = before.pop("earlier", []), _changed(before, found)
    earlier = [*earlier, before] if changed else earlier
    write_atomically(
        run / RECORD, (json.dumps(found | ({"earlier": earlier} if earlier else {}), indent=2) + "\n").encode()
    )
    if not changed:
        return []
    return [
        f"The prior is not the one that this run began with: {', '.join(changed)} changed on the disk since. What was "
        f"made so far is of the old one; {RECORD} has the hashes of both."
    ]


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of files that are others than before, if there was a before; it may list more than are read now."""
    names = []
    for kind in ("weights", "further"):
        old, new = before.get(kind, {}), now[kind]
        names += [name for name in new if before and old.get(name) != new[name]]
    seconds = [[second["weights"] for second in found.get("second", [])] for found in (before, now)]
    return names + (["weights of the second prior"] if before and seconds[0] != seconds[1] else [])


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
