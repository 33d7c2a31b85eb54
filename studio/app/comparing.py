"""The Compare tab: two finished results side by side."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from studio.app.service import Run, Service
from studio.app.shelf import Shelf
from studio.app.showing import model, picture
from studio.app.viewing import MESH, SHEET, TURNTABLE, entry, view_file
from studio.app.widgets import PRIVATE, follow, html
from studio.app.words import result_words

_MOST = 200
_VIEWS = [("Mesh", MESH), ("Turntable", TURNTABLE), ("Contact sheet", SHEET)]
_AGAIN = "setInterval(() => {{ if (dreamkiln.stuck('#dk-model-{}')) trigger('input', {{}}); }}, 500);"


@dataclass(frozen=True)
class Comparing:
    """The parts that the page wires."""

    service: Service
    picks: list[Any]
    """The two pickers."""

    def choices(self) -> list[tuple[str, str]]:
        """Finished runs to choose from: what is shown, and what it stands for."""
        runs = [entry(self.service, run) for run in self.service.finished(limit=_MOST)]
        return [(f"{prompt} · seed {seed} · {run.folder.name}", run.ref) for run, prompt, seed in runs]

    def load(self) -> list[Any]:
        """Updates that fill the pickers."""
        choices = self.choices()
        return [gr.Dropdown(choices=choices) for _ in self.picks]

    def picked(self, ref: str, first: str | None, second: str | None) -> dict[Any, Any]:
        """Updates that put a run beside the one that was picked before it."""
        choices = self.choices()
        pair = (ref, second) if not first or first == ref else (first, ref)
        return {
            pick: gr.Dropdown(choices=choices, value=one or None) for pick, one in zip(self.picks, pair, strict=True)
        }


def build_comparing(service: Service, shelf: Shelf) -> Comparing:
    """Draw the tab."""
    view = gr.Radio(_VIEWS, value=TURNTABLE, show_label=False, container=False, elem_id="dk-compare-view")
    picks, sides, wanted = [], [], []
    with gr.Row(elem_id="dk-compare"):
        for letter in "AB":
            with gr.Column(min_width=300):
                picks.append(gr.Dropdown([], label=letter, allow_custom_value=True, filterable=True))
                pictures = picture(f"Result {letter}")
                meshes = model(f"dk-model-{letter}", 380)
                sides.append((pictures, meshes, html("", "dk-facts", js=_AGAIN.format(letter))))
                wanted.append(gr.JSON([None, TURNTABLE], visible=False))

    def show(pair: list[Any]) -> tuple[Any, Any, str]:
        ref, view = pair
        run = service.find(ref or "")
        if run is None:
            return gr.Image(None, visible=view != MESH), gr.Model3D(None, visible=view == MESH), ""
        path = view_file(shelf, run, service.asked(run)[0], view)
        mesh = view == MESH
        image = gr.Image(None if mesh else path, visible=not mesh)
        return image, gr.Model3D(path if mesh else None, visible=mesh), _facts(service, run)

    # Each side answers to what it is to show alone; see ``page``: no event has two answers that wait.
    asked = [view, *picks]
    follow([piece.change for piece in asked], _pairs, asked, wanted)
    queued: dict[str, Any] = {"concurrency_limit": 8, **PRIVATE}
    for pair, side in zip(wanted, sides, strict=True):
        pair.change(show, pair, list(side), **queued)
        side[2].input(lambda: None, None, side[1], **PRIVATE).then(show, pair, list(side), **queued)

    return Comparing(service, picks)


def _pairs(view: str, *refs: str | None) -> list[list[str | None]]:
    """What each side is to show: a run, and the view of it."""
    return [[ref, view] for ref in refs]


def _facts(service: Service, run: Run) -> str:
    prompt, seed = service.asked(run)
    words = " · ".join([f"seed {seed}", *result_words(run.report)])
    return f"<b>{escape(prompt)}</b><p>{escape(words)}</p>"
