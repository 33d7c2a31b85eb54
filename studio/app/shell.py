"""The shell commands that do what the page does."""

import functools
import shlex
from pathlib import Path

from studio.app.advanced import as_arguments
from studio.options import Generate, build_request
from studio.paths import BUNDLED_PRIOR
from studio.recipes import RECIPES
from studio.request import Request


@functools.lru_cache(maxsize=256)
def generate_command(request: Request) -> str:
    """The shortest ``studio generate`` that makes this request; a comment where no recipe comes near.

    It always parses back to the very request.
    """
    found = [words for recipe in RECIPES for words in _by_recipe(request, recipe)]
    if not found:
        return "# no recipe has stages like these; the run's request.json has the settings"
    return shlex.join(["studio", "generate", *min(found, key=len)])


def edit_command(run: Path, request: Request, box: tuple[float, ...] | None = None) -> str:
    """``studio edit`` of a run, with the options that its panel has."""
    assert request.task is not None
    words = ["studio", "edit", str(run), *_text(request.prompt)]
    words += ["--method", type(request.stages[0].guidance).__name__, "--steps", str(request.steps)]
    words += ["--negative", request.negative] if request.negative else []
    words += ["--keep", *request.task.keep] if request.task.keep else []
    words += ["--box", *(f"{value:g}" for value in box)] if box is not None else []
    return shlex.join(words)


def export_command(run: Path, kind: str, faces: int | None, texture: int | None) -> str:
    """``studio export`` of a run."""
    words = ["studio", "export", str(run), "--format", kind]
    words += ["--faces", str(faces)] if faces else []
    words += ["--texture", str(texture)] if texture else []
    return shlex.join(words)


def _by_recipe(request: Request, recipe: str) -> list[list[str]]:
    """Arguments after ``studio generate`` that begin at a recipe, with and without another method."""
    prior = None if request.prior == BUNDLED_PRIOR else request.prior
    method = type(request.stages[-1].guidance).__name__
    found = []
    for chosen in (None, method):
        try:
            base = build_request(Generate(request.prompt, recipe=recipe, method=chosen, prior=prior), [])
            changes = as_arguments(base, request)
        except ValueError:
            continue
        words = [*_text(request.prompt), "--recipe", recipe]
        words += ["--prior", prior] if prior else []
        words += ["--method", chosen] if chosen else []
        found.append(words + changes)
    return found


def _text(prompt: str) -> list[str]:
    """A prompt as an argument: one that looks like a flag has to come last, behind ``--``; none that we make does."""
    return [prompt if not prompt.startswith("-") else f" {prompt}"]
