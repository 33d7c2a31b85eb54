"""The summary: one row a contender, averaged over its runs, as JSON and as a table in words."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.checkpoints import write_atomically
from studio.evaluate.protocol import EMPTY, Record
from studio.evaluate.trial import MARKS

MEASURED = ("quality", "iou", "colour_error")
_COST = ("seconds", "evaluations", "images", "steps")
_UNMEASURED = ("r_precision", "r_precision_kind", "r_precision_colour", "multi_face_rate", "render_to_asset_psnr")
"""Columns of the summary that nothing measures yet."""

Row = dict[str, Any]


def rows(records: Sequence[Record]) -> list[Row]:
    """A row for each contender, the best first and those that always failed last.

    Figures are means over the runs that came to an end; ``spread`` has their standard deviations, none for one run. A
    run that ended with an empty scene counts with what it scored.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"], []).append(record)
    found = [_row(group) for group in groups.values()]
    return sorted(found, key=lambda row: -1.0 if row["quality"] is None else row["quality"], reverse=True)


def _row(group: Sequence[Record]) -> Row:
    ended = [record for record in group if record["error"] in (None, EMPTY)]
    return {
        **{name: group[0][name] for name in ("label", "recipe", "method")},
        **{name: _mean([record[name] for record in ended]) for name in (*MEASURED, *_COST)},
        **dict.fromkeys(_UNMEASURED),
        "spread": {name: _spread([record[name] for record in ended]) for name in MEASURED},
        "runs": len(ended),
        "failed": len(group) - len(ended),
        "errors": list(dict.fromkeys(record["error"] for record in group if record["error"] is not None)),
        "curve": [
            {name: _mean([record["curve"][mark][name] for record in ended]) for name in ("evaluations", *MEASURED)}
            for mark in range(len(MARKS))
        ]
        if ended
        else [],
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return round(statistics.stdev(values), 4) if len(values) > 1 else None


# Files ----------------------------------------------------------------------------------------------------------------


def write_summary(folder: Path, about: dict[str, Any], found: Sequence[Row]) -> None:
    """Write ``summary.json`` and ``summary.md``.

    Args:
        folder: where to.
        about: the protocol, the machine and the versions.
        found: from ``rows``.
    """
    write_atomically(folder / "summary.json", json.dumps({**about, "rows": list(found)}, indent=1).encode())
    write_atomically(folder / "summary.md", markdown(about, found).encode())


_COLUMNS = {
    "recipe": "recipe",
    "method": "method",
    "quality": "quality",
    "iou": "silhouette IoU",
    "colour_error": "colour error",
    "evaluations": "evaluations",
    "images": "images",
    "steps": "steps",
    "seconds": "seconds",
    "runs": "runs",
}


def markdown(about: dict[str, Any], found: Sequence[Row]) -> str:
    """The table, what it averages over, and what went wrong."""
    lines = [
        f"| {' | '.join(_COLUMNS.values())} |",
        f"|---|---|{'---:|' * (len(_COLUMNS) - 2)}",
        *(f"| {' | '.join(_cell(row, name) for name in _COLUMNS)} |" for row in found),
    ]
    wrong = [f"- {row['label']}: {error}" for row in found for error in row["errors"]]
    parts = [_explained(about), "\n".join(lines), *(["What went wrong:\n\n" + "\n".join(wrong)] if wrong else [])]
    return "\n\n".join(parts) + "\n"


def _cell(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if name in MEASURED:
        spread = row["spread"][name]
        return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"
    if name == "runs":
        return f"{value} of {value + row['failed']}" if row["failed"] else str(value)
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def _explained(about: dict[str, Any]) -> str:
    protocol, machine = about["protocol"], about["machine"]
    prompts = ", ".join(f'"{prompt}"' for prompt in protocol["prompts"])
    seeds = ", ".join(map(str, protocol["seeds"]))
    return (
        f"Means over {len(protocol['prompts'])} prompts ({prompts}) and seeds {seeds}, ± standard deviation over runs. "
        f"Methods had {protocol['evaluations']:,} evaluations of the prior each: one is a forward pass of a step's "
        "views with all its branches, and those of inversion and of critics count. Quality is IoU x (1 - colour "
        "error), against the true object, best over turns about the vertical. "
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}."
    )
