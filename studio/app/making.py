"""The Make tab: the form of a new object, what it comes to before the start, and settings out of an earlier result."""

import dataclasses
import hashlib
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from guidance.methods import AnyGuidance
from studio.app.advanced import knobs as all_knobs
from studio.app.advanced import with_knobs
from studio.app.form import MOST_JOBS, RESTORED, Form, base_request, form_of, request_of, wanted
from studio.app.panels import planned
from studio.app.service import Plan, Service
from studio.app.settings_panel import settings_panel
from studio.app.shell import generate_command
from studio.app.widgets import PRIVATE, QUIET, TELLING, command, follow, html
from studio.codec import members
from studio.folder import RunError
from studio.paths import BUNDLED_PRIOR, assets_folder
from studio.recipes import RECIPES
from studio.request import LONGEST_PROMPT
from studio.restore import restore

_CHOICES = ("{red|blue|green}", "{mug|table|chair}", "{a|two}")
_EXAMPLES = 6
_RECOUNT = 2.0
"""Seconds between looks whether a prior's memory is counted by now."""
_KNOBS_JS = """
const send = event => {
  const field = event.target.closest('[data-knob]');
  if (!field) return;
  dreamkiln.change(field);
  trigger('input', {});
};
element.addEventListener('change', send);
element.addEventListener('click', event => { if (event.target.closest('[data-act=reset]')) trigger('click', {}); });
element.addEventListener('input', event => { if (event.target.matches('.dk-find')) dreamkiln.find(element); });
watch('value', () => { dreamkiln.sync(element); dreamkiln.find(element); });
"""


@dataclass(frozen=True)
class Making:
    """The parts of the form that the page wires."""

    service: Service
    fields: list[Any]
    """In the order of ``form``."""
    button: gr.Button
    told: gr.HTML
    """Words about settings that were restored."""

    @staticmethod
    def form(*values: Any) -> Form:
        """What is filled in; components give None for what is empty."""
        prompt, recipe, method, prior, negative, seed, steps, copies, knobs, settings = values
        return Form(
            prompt or "",
            recipe or "",
            method or "",
            prior or "",
            negative or "",
            int(seed or 0),
            (steps or "").strip(),
            int(copies or 1),
            dict(knobs or {}),
            settings or "",
        )

    def restored(self, form: Form, words: str) -> dict[Any, Any]:
        """Updates that put a form's values into the page."""
        values = [
            *(form.prompt, form.recipe, form.method, form.prior, form.negative, form.seed),
            *(form.steps, form.copies, dict(form.knobs), form.settings),
        ]
        return {**dict(zip(self.fields, values, strict=True)), self.told: f'<p class="dk-note">{escape(words)}</p>'}

    def restored_from(self, ref: str) -> dict[Any, Any]:
        """Updates that fill the form with the settings of a run."""
        run = self.service.find(ref)
        try:
            if run is None:
                raise RunError(f"There is no run {ref!r} any more.")
            request = self.service.request(run)
            prompt, seed = self.service.asked(run)
            request = dataclasses.replace(request, prompt=prompt, seed=seed)
            return self.restored(form_of(request, self.service.priors), f"Settings of “{prompt}”.")
        except (RunError, ValueError) as problem:
            gr.Warning(str(problem), title="")
            return {self.told: gr.skip()}


def build_making(service: Service, page: gr.Blocks) -> Making:
    """Draw the tab of a page."""
    prompt = gr.Textbox(
        label="Prompt",
        placeholder="a red mushroom",
        lines=2,
        max_lines=6,
        max_length=4 * LONGEST_PROMPT,
        elem_id="dk-prompt",
        autofocus=True,
    )
    html(_chips(), "dk-chips", js="")
    with gr.Row():
        recipe = gr.Dropdown([*RECIPES, ("restored", RESTORED)], value="draft", label="Recipe", min_width=120)
        methods = [("recipe's own", ""), *((name, name) for name in members(AnyGuidance))]
        method = gr.Dropdown(methods, value="", label="Method", min_width=120)
        prior = gr.Dropdown(list(service.priors), value=BUNDLED_PRIOR, label="Prior", min_width=120)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=90)
        steps = gr.Textbox("", label="Steps", placeholder="the recipe's", max_lines=1, max_length=9, min_width=90)
        copies = gr.Number(1, label="Variations", precision=0, minimum=1, maximum=MOST_JOBS, min_width=90)
    negative = gr.Textbox(
        label="Negative prompt", placeholder="what it should not look like", max_length=LONGEST_PROMPT
    )
    plan = html("", "dk-plan-box", js="")
    button = gr.Button("Generate", variant="primary", size="lg", elem_id="dk-generate")
    told = html("", "dk-told", js="")
    with gr.Accordion("Advanced", open=False):
        panel = html("", "dk-advanced", js=_KNOBS_JS)
    shell = html("", "dk-shell-box", js="dreamkiln.copying(element);")
    upload = gr.File(
        label="Drop a GLB made here to restore its settings",
        file_types=[".glb", ".json"],
        height=96,
        elem_id="dk-drop",
    )
    knobs, settings = gr.JSON({}, visible=False), gr.Textbox("", visible=False)
    refused, shown = gr.Number(0, visible=False), gr.Textbox("", visible=False)
    again = gr.Timer(_RECOUNT, active=False)
    fields = [prompt, recipe, method, prior, negative, seed, steps, copies, knobs, settings]
    making = Making(service, fields, button, told)
    changes = [page.load, *(field.change for field in (*fields, refused)), again.tick]
    asked, drawn = [*fields, refused, shown], [plan, shell, panel, shown, again]
    follow(changes, lambda *values: _drawn(service, *values), asked, drawn)
    _wire_form(making, panel, upload, refused)
    return making


def _wire_form(making: Making, panel: gr.HTML, upload: gr.File, refused: gr.Number) -> None:
    service, fields = making.service, making.fields
    knobs = fields[8]
    # Another recipe or method has other knobs: what was set for the last one would no longer be understood.
    gr.on([fields[1].input, fields[2].input], lambda: {}, None, knobs, **QUIET)
    panel.click(lambda: {}, None, knobs, **QUIET)

    def set_knobs(changed: list[list[Any]], count: float, *values: Any) -> tuple[dict[str, Any], float]:
        form = Making.form(*values)
        for path, value in changed:
            try:
                form = dataclasses.replace(form, knobs=_with_knob(service, form, str(path), value))
            except ValueError as problem:
                gr.Warning(str(problem), title="")
                count += 1
        return dict(form.knobs), count

    # One after the other: each adds to what the one before it left.
    one_by_one = {**TELLING, "trigger_mode": "always_last"}
    taken = "(_, ...rest) => [dreamkiln.taken(), ...rest]"
    panel.input(set_knobs, [gr.JSON([], visible=False), refused, *fields], [knobs, refused], js=taken, **one_by_one)

    def dropped(path: str | None) -> dict[Any, Any]:
        if path is None:
            return {making.told: ""}
        try:
            found = restore(Path(path), service.priors.values())
        except ValueError as problem:
            raise gr.Error(str(problem), title="", print_exception=False) from problem
        words = " ".join((f"Prompt and settings of {Path(path).name}.", *found.remarks))
        return making.restored(form_of(found.request, service.priors), words)

    upload.upload(dropped, upload, [*fields, making.told], **PRIVATE)


def _with_knob(service: Service, form: Form, path: str, value: Any) -> dict[str, Any]:
    """The knobs that are set by hand, with one more, or one less if that is what the recipe says anyway.

    Raises:
        ValueError: there is no such knob, or the value does not fit; in words.
    """
    base = base_request(form, service.priors)
    others = {name: v for name, v in form.knobs.items() if name != path}
    wished = {**others, path: value}
    before, now = (
        {knob.path: knob.value for knob in all_knobs(with_knobs(base, values))} for values in (others, wished)
    )
    if now.get(path) == before.get(path):
        wished.pop(path)
    return {name: v for name, v in wished.items() if name in now}


def _drawn(service: Service, *values: Any) -> tuple[str, str, Any, str, gr.Timer]:
    """The estimate with objections, the shell command, the Advanced panel if it is another, what it is of, and whether
    to ask again, since the estimate will be better soon."""
    *fields, refused, shown = values
    form = Making.form(*fields)
    empty = not form.prompt.strip()
    asked = dataclasses.replace(form, prompt="an object") if empty else form
    plan = service.plan(asked)
    if empty:  # nothing was typed yet, which is no mistake
        plan = dataclasses.replace(plan, problems=tuple(p for p in plan.problems if p.severity == "error"))
    of = repr((form.recipe, form.method, form.prior, form.steps, sorted(form.knobs.items()), form.settings, refused))
    now = hashlib.sha256(of.encode()).hexdigest()[:16]
    panel = gr.skip() if now == shown else _panel(service, asked)
    said = _recipe_words(form) + planned(plan)
    shell = command("" if empty else _commands(service, form, plan))
    return said, shell, panel, now, gr.Timer(active=plan.counting)


def _commands(service: Service, form: Form, plan: Plan) -> str:
    if plan.request is None:
        return ""
    jobs = wanted(form)
    lines = [generate_command(dataclasses.replace(plan.request, prompt=j.prompt, seed=j.seed)) for j in jobs[:4]]
    return "\n".join([*lines, *([f"# and {len(jobs) - 4} more like these"] if len(jobs) > 4 else [])])


def _panel(service: Service, form: Form) -> str:
    try:
        request = request_of(form, service.priors)
    except ValueError:
        return '<p class="dk-quiet">The settings appear once recipe, method and prior fit together.</p>'
    return settings_panel(request, form.knobs, time.time_ns())


def _recipe_words(form: Form) -> str:
    recipe = RECIPES.get(form.recipe)
    words = " ".join((recipe.__doc__ or "").split("\n\n")[0].split()) if recipe else ""
    return f'<p class="dk-quiet">{escape(words)}</p>' if words else ""


def _chips() -> str:
    lines = (assets_folder() / "prompts" / "ten.txt").read_text(encoding="utf-8").splitlines()
    examples = "".join(
        f'<button type="button" data-prompt="{escape(x)}">{escape(x)}</button>' for x in lines[:_EXAMPLES]
    )
    choices = "".join(f'<button type="button" data-insert="{escape(x)}">{escape(x)}</button>' for x in _CHOICES)
    return (
        f"<div><span>Examples</span>{examples}</div>"
        f'<div title="Each choice becomes a job of its own"><span>Choices</span>{choices}</div>'
    )
