"""The Edit tab: the shown result, changed by another prompt, as a whole or inside a box."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from guidance.methods import AnyGuidance
from guidance.prior_folder import read_hints
from studio.app.change import Box, Change, edit_request, groups_of
from studio.app.pictures import boxed_views
from studio.app.service import Run, Service
from studio.app.shell import edit_command
from studio.app.widgets import QUIET, bad, command, follow, html, quiet
from studio.codec import members
from studio.edit import STEPS
from studio.folder import RunError
from studio.paths import MissingAsset, UnknownPrior, resolve_prior
from studio.request import LONGEST_PROMPT

_NOT_YET = "Show a finished result; then say here what it is to become."
_COMPARE = ("DDS", "PDS")
_WHOLE = (-0.5, 0.5)


@dataclass(frozen=True)
class Editing:
    """The parts that the page wires."""

    service: Service
    load: Callable[[str], dict[Any, Any]]
    """Updates that draw the tab for a run."""
    outputs: list[Any]
    """Of ``load``."""
    fields: list[Any]
    """The run that the tab is of, and all that a person can fill in."""
    button: gr.Button

    def submitted(self, showing: Any) -> None:
        """Let the button put the edit into the queue, and the page show it."""

        def start(seen: dict[str, Any], *values: Any) -> dict[Any, Any]:
            run, change = _read(self.service, *values)
            if run is None:
                raise gr.Error(_NOT_YET, title="", print_exception=False)
            try:
                ref = self.service.submit_checked(edit_request(run.folder, change))
            except (RunError, ValueError) as problem:
                raise gr.Error(str(problem), title="", print_exception=False) from problem
            return showing.attach(ref, "", seen)

        self.button.click(start, [showing.seen, *self.fields], [showing.ref, *showing.outputs], **QUIET)


def build_editing(service: Service) -> Editing:
    """Draw the tab."""
    ref = gr.Textbox("", visible=False)
    about = html(quiet(_NOT_YET), "dk-about", js="")
    prompt = gr.Textbox(label="What it is to be", lines=2, max_length=LONGEST_PROMPT, elem_id="dk-edit-prompt")
    with gr.Row():
        method = gr.Dropdown(_methods(), value="DDS", label="Method", min_width=150)
        steps = gr.Number(STEPS, label="Steps", precision=0, minimum=1, min_width=90)
    keep = gr.CheckboxGroup([], label="Keep as it is", visible=False)
    inside = gr.Checkbox(False, label="Change only what lies inside a box", elem_id="dk-inside")
    with gr.Column(visible=False, elem_id="dk-box") as region:
        views = gr.Image(
            interactive=False,
            type="pil",
            show_label=False,
            buttons=[],
            elem_id="dk-box-views",
            alt_text="The box on four views",
        )
        sides = []
        for axis in "xyz":
            with gr.Row():
                sides += [_slider(axis, end) for end in ("from", "to")]
    button = gr.Button("Edit", variant="primary", elem_id="dk-edit", interactive=False)
    shell = html("", "dk-shell-box", js="dreamkiln.copying(element);")
    fields = [ref, prompt, method, steps, keep, inside, *sides]
    boxed = gr.Textbox("", visible=False)

    def load(shown: str) -> dict[Any, Any]:
        run = service.done(shown)
        try:
            groups = [] if run is None else groups_of(service.request(run))
        except RunError as problem:
            closed = {keep: gr.CheckboxGroup(visible=False), button: gr.Button(interactive=False)}
            return {ref: shown, about: bad(str(problem)), prompt: "", **closed}
        words = "" if run is None else service.asked(run)[0]
        said = f"Changes <b>{escape(words)}</b>; the result is a run of its own." if run else _NOT_YET
        kept = gr.CheckboxGroup(groups, value=[], visible=len(groups) > 1)
        start = gr.Button(interactive=run is not None)
        return {ref: shown, about: quiet(said), prompt: words, keep: kept, button: start}

    def drawn(*values: Any) -> tuple[str, Any, Any, str]:
        *filled, before = values
        run, change = _read(service, *filled)
        box = change.box
        now = "" if run is None or box is None else f"{run.ref} {box}"
        picture = gr.skip() if run is None or box is None or now == before else _overlay(service, run, box)
        return _command(run, change), gr.Column(visible=box is not None), picture, now

    follow([field.change for field in fields], drawn, [*fields, boxed], [shell, region, views, boxed])
    return Editing(service, load, [ref, about, prompt, keep, button], fields, button)


def _command(run: Run | None, change: Change) -> str:
    """The same edit in a shell, or why it cannot be."""
    if run is None or not change.prompt.strip():
        return ""
    try:
        return command(edit_command(run.folder, edit_request(run.folder, change), change.box))
    except (RunError, ValueError) as problem:
        return bad(str(problem))


def _overlay(service: Service, run: Run, box: Box) -> Any:
    """A box on four views of a run."""
    try:
        hints = read_hints(resolve_prior(service.request(run).prior))
    except (RunError, UnknownPrior, MissingAsset, ValueError):  # said below the button
        return gr.skip()
    return boxed_views(run.folder, box[:3], box[3:], hints["distance"], hints["field_of_view"])


def _methods() -> list[tuple[str, str]]:
    """Those that compare with the object as it was come first."""
    rest = [name for name in members(AnyGuidance) if name not in _COMPARE]
    return [
        *((f"{name}, changes little else", name) for name in _COMPARE),
        *((f"{name}, distils anew", name) for name in rest),
    ]


def _slider(axis: str, end: str) -> gr.Slider:
    value = _WHOLE[end == "to"]
    return gr.Slider(-1, 1, value=value, step=0.02, label=f"{axis} {end}", min_width=120)


def _read(service: Service, *values: Any) -> tuple[Run | None, Change]:
    """The run and what is to change, out of the tab's components."""
    ref, prompt, method, steps, keep, inside, *sides = values
    x0, x1, y0, y1, z0, z1 = (float(side or 0.0) for side in sides)
    box: Box | None = (min(x0, x1), min(y0, y1), min(z0, z1), max(x0, x1), max(y0, y1), max(z0, z1)) if inside else None
    return service.done(ref), Change(prompt or "", method or "DDS", int(steps or STEPS), tuple(keep or ()), box)
