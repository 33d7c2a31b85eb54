"""A batch's plan, ``batch.json`` in its home: all that it is to make, so that what never began outlives the store."""

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
    others: tuple[Request, ...] = ()
    """What items with settings of their own have instead of the template."""
    of: tuple[int, ...] = ()
    """Of each item, 0 for the template, n for the n-th of the others; nothing at all: all have the template."""

    def groups(self) -> list[tuple[Request, list[Item]]]:
        """The items in their order, for each request that some of them have."""
        kinds = self.of or (0,) * len(self.items)
        groups: dict[int, list[Item]] = {}
        for item, kind in zip(self.items, kinds, strict=True):
            groups.setdefault(kind, []).append(item)
        return [((self.template, *self.others)[kind], items) for kind, items in sorted(groups.items())]


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
    content |= {"others": [encode(request) for request in plan.others], "of": list(plan.of)}
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
    plan: Plan = decode(Plan, content, str(path))
    if plan.of and (len(plan.of) != len(plan.items) or not all(0 <= n <= len(plan.others) for n in plan.of)):
        raise ValueError(f"{path} does not say of every item which settings it has.")
    return plan
