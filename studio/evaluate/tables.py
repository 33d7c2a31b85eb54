"""The summary: one row a contender, averaged over its runs, as JSON and as a table in words."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.checkpoints import write_atomically
from studio.evaluate.protocol import EDIT_SHARE, EMPTY, Record

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


def edit_rows(records: Sequence[Record]) -> list[Row]:
    """Rows of the edits, beside one of what they began with, measured against what it was to become."""
    known = {(record["source"], record["seed"]): record for record in records if "before" in record}
    nothing = {**dict.fromkeys(_COST, 0), "curve": [], "error": None, "label": "source, unchanged", "method": None}
    return rows([*records, *({**record, **nothing, **record["before"]} for record in known.values())])


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
            for mark in range(len(ended[0]["curve"]) if ended else 0)
        ],
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return round(statistics.stdev(values), 4) if len(values) > 1 else None


# Files ----------------------------------------------------------------------------------------------------------------


def write_summary(folder: Path, about: dict[str, Any], found: Sequence[Row], edits: Sequence[Row]) -> None:
    """Write ``summary.json`` and ``summary.md``.

    Args:
        folder: where to.
        about: the protocol, the machine and the versions.
        found: from ``rows``.
        edits: from ``edit_rows``.
    """
    every = {**about, "rows": list(found), "edits": list(edits)}
    write_atomically(folder / "summary.json", json.dumps(every, indent=1).encode())
    write_atomically(folder / "summary.md", markdown(about, found, edits).encode())


_COLUMNS = {
    "recipe": "recipe",
    "label": "method",
    "quality": "quality",
    "iou": "silhouette IoU",
    "colour_error": "colour error",
    "evaluations": "evaluations",
    "images": "images",
    "steps": "steps",
    "seconds": "seconds",
    "runs": "runs",
}


def markdown(about: dict[str, Any], found: Sequence[Row], edits: Sequence[Row] = ()) -> str:
    """The tables, what they average over, and what went wrong."""
    parts = [_explained(about)]
    if found:
        parts.append(_table(found))
    if edits:
        pairs = "; ".join(f"{before} -> {after}" for before, after in about["protocol"]["edits"].items())
        parts += [
            f"Edits of a draft, with {EDIT_SHARE:g} of the evaluations, against the object of the new prompt: {pairs}.",
            _table(edits),
        ]
    wrong = [f"- {row['label']}: {error}" for row in (*found, *edits) for error in row["errors"]]
    if wrong:
        parts += ["What went wrong:", "\n".join(wrong)]
    return "\n\n".join(parts) + "\n"


def _table(found: Sequence[Row]) -> str:
    head = f"| {' | '.join(_COLUMNS.values())} |\n|---|---|{'---:|' * (len(_COLUMNS) - 2)}"
    return "\n".join([head, *(f"| {' | '.join(_cell(row, name) for name in _COLUMNS)} |" for row in found)])


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
    threads = machine["threads"]
    counted = " or ".join(map(str, threads)) if isinstance(threads, list) else threads
    return (
        f"Means ± standard deviation over runs: prompts {prompts}; seeds {seeds}. "
        f"Methods had {protocol['evaluations']:,} evaluations of the prior each: one is a forward pass of a step's "
        "views with all its branches, and those of inversion and of critics count. Quality is IoU x (1 - colour "
        "error), against the true object, best over turns about the vertical. Seconds are the clock's. "
        f"{machine['device']}, {counted} threads, torch {machine['torch']}, {machine['date']}."
    )
