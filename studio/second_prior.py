"""The second prior that a method may name, JSD's multi-view one: what a request has to say of it."""

import math
from pathlib import Path
from typing import Any

from guidance.jsd import JSD
from guidance.prior_folder import Hints, read_hints
from guidance.priors.loading import listed, pipeline_of
from guidance.priors.weights import refuse_incomplete


def second_prior_of(stage: Any) -> Path | None:
    """The folder, or one file, of a stage's second prior, if it has one."""
    method = stage.guidance
    return Path(method.multi_view) if isinstance(method, JSD) and method.multi_view else None


def views_as_one(stage: Any, hints: Hints) -> int:
    """Views of a stage that belong together: those that its prior sees as one, or its second prior does.

    Args:
        stage: of a request.
        hints: of the run's own prior.
    """
    second = second_prior_of(stage)
    return hints["views"] if second is None else math.lcm(hints["views"], read_hints(second)["views"])


def second_prior_problems(stages: tuple[Any, ...]) -> list[str]:
    """What is wrong with the second priors of stages, in words; nothing heavy is loaded."""
    wrong = []
    for i, stage in enumerate(stages):
        if (second := second_prior_of(stage)) is not None:
            try:
                folder = second.with_suffix("") if second.is_file() else second
                parts = listed(folder, pipeline_of(folder))
                refuse_incomplete(folder, {} if second.is_file() else parts)
            except (ValueError, OSError) as problem:
                wrong.append(f"stages.{i}.guidance.multi_view: {problem}")
    return wrong
