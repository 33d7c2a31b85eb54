"""``studio batch --dry-run``: what would be made, and how long it may take. Nothing is written."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from studio.batch.agreement import Agreement, agree, settings_in_words
from studio.batch.engines import devices_of
from studio.batch.options import Batch
from studio.batch.planning import Draft, content_key
from studio.batch.settling import counted_items, jobs_by_name, planned
from studio.batch.showing import in_hours, say
from studio.cli import OK
from studio.estimate import Estimate, estimate
from studio.jobs.database import NAME
from studio.jobs.job import Item
from studio.jobs.plan import Plan
from studio.jobs.store import Store
from studio.jobs.terminal import printable

_ENDS = 5
"""Rows of the table from the beginning, and from the end."""


def rehearse(drawn: Draft, options: Batch, home: Path, name: str) -> int:
    """Print the plan; returns the exit status.

    Raises:
        UsageError, RunError: what would also forbid the batch itself.
    """
    agreed = agree(drawn, name, options.attempts, options.timeout, home, planned(home))
    states = _states(agreed, home)
    todo = [item.name for item in agreed.plan.items if item.name in agreed.current and states[item.name] != "done"]
    workers = len(devices_of(options.device, options.workers)) if options.engine == "local" else options.workers or 1
    seconds, basis = _seconds(agreed.plan, set(todo), home)
    if options.json:
        counts = {"items": len(agreed.current), "to_make": len(todo), "duplicates": drawn.duplicates}
        rows = [{"prompt": i.prompt, "seed": i.seed, "folder": i.name, "state": states[i.name]} for i in _now(agreed)]
        say({**counts, "seconds": round(seconds / workers), "warnings": list(drawn.warnings), "plan": rows})
        return OK
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    console.print(_table(agreed, states))
    for line in _words(agreed, drawn, states, home):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if todo:
        side = f", {workers} side by side" if workers > 1 else ""
        pace = f"About {in_hours(seconds / workers)} for the {len(todo):,} to make{side}; {basis}."
        console.print(pace, markup=False, highlight=False, soft_wrap=True)
    return OK


def _now(agreed: Agreement) -> list[Item]:
    return [item for item in agreed.plan.items if item.name in agreed.current]


def _states(agreed: Agreement, home: Path) -> dict[str, str]:
    """Of each item, by name, the state of its job; "new" without one."""
    there = jobs_by_name(Store(home).jobs(batch=agreed.plan.batch)) if (home / NAME).is_file() else {}
    names = [item.name for item in agreed.plan.items]
    return {name: there[name].state if name in there else "new" for name in names}


def _seconds(plan: Plan, todo: set[str], home: Path) -> tuple[float, str]:
    """Seconds of one worker for all that is to be made, and what that rests on."""
    seconds, known = 0.0, dict[str, Estimate]()
    for request, items in plan.groups():
        count = sum(item.name in todo for item in items)
        if count:
            alike = replace(request, negative="", prompt=items[0].prompt)
            key = content_key(replace(alike, prompt=""))
            known[key] = known[key] if key in known else estimate(alike, home)
            seconds += count * known[key].seconds
    return seconds, "; ".join(dict.fromkeys(one.basis for one in known.values()))


def _table(agreed: Agreement, states: dict[str, str]) -> Table:
    from rich import box

    items, settings = _now(agreed), settings_in_words(agreed.plan)
    table = Table("", "prompt", "seed", "folder", "state", "settings", box=box.SIMPLE_HEAD)
    table.columns[0].justify = table.columns[2].justify = "right"
    cut = len(items) > 2 * _ENDS + 1
    for i, item in enumerate(items):
        if not cut or i < _ENDS or i >= len(items) - _ENDS:
            words = (printable(item.prompt), str(item.seed), item.name, states[item.name], settings.get(item.name, ""))
            table.add_row(str(i + 1), *map(Text, words))
        elif i == _ENDS:
            table.add_row("…", Text(f"{len(items) - 2 * _ENDS:,} more", "dim"))
    if not settings:
        table.columns.pop()
    return table


def _words(agreed: Agreement, drawn: Draft, states: dict[str, str], home: Path) -> Iterator[str]:
    counts = Counter(states[item.name] for item in _now(agreed))
    known = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    yield f"{counted_items(len(agreed.current))} in {home}: {known}."
    if drawn.duplicates:
        yield f"{drawn.duplicates:,} said twice (the same prompt, seed and settings) are made once."
    if agreed.dropped:
        yield f"{len(agreed.dropped):,} of an earlier start are no longer in the file."
    yield from (f"Note: {text}" for text in drawn.warnings)
