"""The right side of the page: the run that is shown, in several views, and the list of jobs."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.app.viewing import FILES, LIVE, MAPS, MESH, REPORT, SHEET, SPLATS, TURNTABLE, files, frame
from studio.app.widgets import CLICKS, PRIVATE, QUIET, html

CAMERA = (55, 70, None)
"""Degrees around and from above, and the viewer's own distance."""
_STRIP_JS = f"""{CLICKS}
watch('value', () => dreamkiln.shown(element));
setInterval(() => {{ if (dreamkiln.stuck('#dk-stage')) trigger('input', {{}}); }}, 500);
"""
_LIST_JS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (!button) return;
  if (button.dataset.act === 'show') dreamkiln.reveal();
  trigger('click', {...button.dataset});
});
"""


@dataclass(frozen=True)
class Showing:
    """The parts that the page wires."""

    service: Service
    shelf: Shelf
    ref: gr.Textbox
    """The run that is shown: see ``Run.ref``. None until the page has said which: an answer to what it asks before that
    would undo the one that shows the run."""
    view: gr.Textbox
    seen: gr.JSON
    """What the page has of the rest."""
    wanted: gr.Textbox
    """The file that the view is of."""
    result: gr.Textbox
    """The run that is shown if it is finished, else nothing."""
    have: gr.JSON
    """Files that viewers show."""
    strip: gr.HTML
    queue: gr.HTML
    welcome: gr.HTML
    stage: gr.Column
    tabs: gr.Tabs
    splats: gr.Tab
    results: list[gr.Tab]
    """Tabs that only a finished run has."""
    pieces: dict[str, Any]
    """Components by the names that ``frame`` uses."""

    @property
    def asked(self) -> list[Any]:
        """Inputs of ``tick``."""
        return [self.ref, self.view, self.seen]

    @property
    def outputs(self) -> list[Any]:
        """Outputs of ``tick``."""
        markup = [piece for name, piece in self.pieces.items() if name not in FILES]
        values = [self.view, self.seen, self.wanted, self.result]
        return [*values, self.stage, self.tabs, self.splats, *self.results, *markup]

    def tick(self, ref: str | None, view: str | None, seen: dict[str, Any] | None) -> dict[Any, Any]:
        """What is new for a page."""
        self.shelf.sweep()
        new = None if ref is None else frame(self.service, ref, view or "", seen or {})
        if new is None:
            return {self.view: gr.skip()}
        updates: dict[Any, Any] = {self.pieces[name]: piece for name, piece in new.pieces.items()}
        if new.flags:
            updates[self.stage] = gr.Column(visible=new.flags["any"] or "hidden")
            shown = not new.flags["any"]
            words = new.pieces.get("welcome")
            updates[self.welcome] = gr.HTML(visible=shown) if words is None else gr.HTML(words, visible=shown)
            updates |= {tab: gr.Tab(visible=new.flags["done"]) for tab in self.results}
            updates[self.splats] = gr.Tab(visible=new.flags["splats"] and new.flags["done"])
        if new.turned:
            updates[self.tabs] = gr.Tabs(selected=new.view or LIVE)
        updates[self.result] = ref if new.seen["flags"]["done"] else ""
        # A view that a person chose meanwhile is not overwritten by the one that was asked for.
        view_now = new.view if new.turned else gr.skip()
        return {**updates, self.view: view_now, self.seen: new.seen, self.wanted: new.wanted}

    def attach(self, ref: str, view: str | None, seen: dict[str, Any] | None) -> dict[Any, Any]:
        """Show another run."""
        return {**self.tick(ref, view, seen), self.ref: ref}

    def again(self, have: dict[str, str] | None) -> dict[Any, Any]:
        """Take a file out of a viewer that is stuck, so that it can be sent once more."""
        keep = {name: state for name, state in (have or {}).items() if name not in (MESH, SPLATS)}
        return {self.pieces[MESH]: None, self.pieces[SPLATS]: None, self.have: keep}

    def files(self, wanted: str | None, have: dict[str, str] | None) -> dict[Any, Any]:
        """The files that viewers do not show yet."""
        changes, now = files(self.service, self.shelf, wanted or "", have or {})
        return {**{self.pieces[view]: path for view, path in changes.items()}, self.have: now}


def build_showing(service: Service, shelf: Shelf) -> Showing:
    """Draw the right side."""
    ref, view = gr.Textbox(None, visible=False), gr.Textbox("", visible=False)
    seen, have = gr.JSON({}, visible=False), gr.JSON({}, visible=False)
    wanted, result = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
    strip = html("", "dk-strip-box", js=_STRIP_JS)
    welcome = html("", "dk-welcome-box", js=_LIST_JS)
    tabs: dict[str, gr.Tab] = {}
    pieces: dict[str, Any] = {"strip": strip, "welcome": welcome}
    with gr.Column(visible="hidden", elem_id="dk-stage") as stage, gr.Tabs(elem_id="dk-views") as holder:
        with gr.Tab("Making", id=LIVE) as tabs[LIVE]:
            pieces[LIVE] = html("", "dk-live-box", js="")
        with gr.Tab("Mesh", id=MESH, visible=False) as tabs[MESH]:
            pieces[MESH] = model("dk-mesh")
        with gr.Tab("Splats", id=SPLATS, visible=False) as tabs[SPLATS]:
            pieces[SPLATS] = model("dk-splats")
        with gr.Tab("Turntable", id=TURNTABLE, visible=False) as tabs[TURNTABLE]:
            pieces[TURNTABLE] = picture("The object, turning")
        with gr.Tab("Maps", id=MAPS, visible=False) as tabs[MAPS]:
            pieces[MAPS] = picture("The textures of the surface")
        with gr.Tab("Contact sheet", id=SHEET, visible=False) as tabs[SHEET]:
            pieces[SHEET] = picture("The object beside what the prior draws", wide=True)
        with gr.Tab("Report", id=REPORT, visible=False) as tabs[REPORT]:
            pieces[REPORT] = html("", "dk-report-box", js="")
    pieces["queue"] = queue = html("", "dk-queue-box", js=_LIST_JS)
    results = [tabs[name] for name in (MESH, TURNTABLE, MAPS, SHEET, REPORT)]
    showing = Showing(
        service=service,
        shelf=shelf,
        ref=ref,
        view=view,
        seen=seen,
        wanted=wanted,
        result=result,
        have=have,
        strip=strip,
        queue=queue,
        welcome=welcome,
        stage=stage,
        tabs=holder,
        splats=tabs[SPLATS],
        results=results,
        pieces=pieces,
    )
    # Viewers are outputs of this event alone, and it passes through Gradio's queue: 6.31 sets values of an event that
    # does not, or of one that says nothing of them, once more, which cancels what a viewer has begun to load.
    sent = [have, *(pieces[name] for name in FILES)]
    queued: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": 8, **PRIVATE}
    wanted.change(showing.files, [wanted, have], sent, **queued)
    strip.input(showing.again, have, sent, **queued).then(showing.files, [wanted, have], sent, **queued)
    for name, tab in tabs.items():
        chosen = tab.select(None, None, view, js=f"() => '{name}'", **PRIVATE)  # at once: the page knows it by itself
        chosen.then(showing.tick, showing.asked, showing.outputs, **QUIET)
    return showing


def model(name: str, height: int = 440) -> gr.Model3D:
    """A viewer of a mesh or a cloud; it keeps its camera as long as it is sent nothing."""
    return gr.Model3D(
        interactive=False,
        show_label=False,
        height=height,
        camera_position=CAMERA,
        elem_id=name,
        elem_classes=["dk-model"],
    )


def picture(words: str, wide: bool = False) -> gr.Image:
    """A picture as large as its place allows."""
    return gr.Image(
        interactive=False,
        type="filepath",
        show_label=False,
        alt_text=words,
        height=None if wide else 440,
        buttons=["download", "fullscreen"],
        elem_classes=["dk-picture"],
    )
