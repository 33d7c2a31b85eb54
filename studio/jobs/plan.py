"""A batch's plan, ``batch.json`` in its home: all that it is to make, so that what was never begun survives the store."""

import json
from dataclasses import dataclass
from pathlib import Path

from studio.checkpoints import write_atomically
from studio.codec import decode, encode
from studio.jobs.job import Item
from studio.request import Request

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What was submitted as one batch."""

    batch: str
    """Its name."""
    template: Request
    """What the items share."""
    items: tuple[Item, ...]
    """Prompt, seed and folder's name of each."""
    limit: int = 3
    """Failures after which a job stays failed."""
    timeout: float | None = None
    """Seconds that an attempt may take."""


def plan_file(home: Path) -> Path:
    """Where the plan of a home is."""
    return home / "batch.json"


def write_plan(home: Path, plan: Plan) -> None:
    """Write a plan, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    items = [{"prompt": item.prompt, "seed": item.seed, "name": item.name} for item in plan.items]
    content = {"format": _FORMAT, "batch": plan.batch, "template": encode(plan.template)}
    content |= {"limit": plan.limit, "timeout": plan.timeout, "items": items}
    write_atomically(plan_file(home), json.dumps(content).encode())


def read_plan(home: Path) -> Plan | None:
    """The plan of a home; None if there is none.

    Raises:
        ValueError: it cannot be read; in words.
    """
    path = plan_file(home)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as problem:
        raise ValueError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise ValueError(f"{path} is no plan of a batch that this version of the studio can read.")
    return decode(Plan, content, str(path))
