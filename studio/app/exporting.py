"""The Export tab: the shown result as a file of another format or size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from studio.app.exported import exported, options
from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.app.shell import export_command
from studio.app.widgets import PRIVATE, bad, command, follow, html, quiet

FORMATS = [
    ("GLB, textured, for everything", "glb"),
    ("OBJ with its material, zipped", "obj"),
    ("STL, for printing", "stl"),
    ("PLY, a mesh with colours", "ply"),
    ("PLY of gaussians", "splat-ply"),
]
_SIZES = [("as made", 0), *((f"{n} px", n) for n in (256, 512, 1024, 2048, 4096))]
_FACES = [("as made", 0), *((f"{n:,}", n) for n in (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000))]
_NOT_YET = "Show a finished result; it can be exported here as often as you like, in any format and size."


@dataclass(frozen=True)
class Exporting:
    """The parts that the page wires."""

    load: Callable[[str], dict[Any, Any]]
    """Updates that draw the tab for a run."""
    outputs: list[Any]
    """Of ``load``."""


def build_exporting(service: Service, shelf: Shelf) -> Exporting:
    """Draw the tab."""
    ref = gr.Textbox("", visible=False)
    about = html(quiet(_NOT_YET), "dk-about", js="")
    kind = gr.Dropdown(FORMATS, value="glb", label="Format")
    with gr.Row():
        faces = gr.Dropdown(_FACES, value=0, label="Faces, about", allow_custom_value=True, min_width=110)
        texture = gr.Dropdown(_SIZES, value=0, label="Texture", min_width=110)
    button = gr.Button("Export", variant="primary", elem_id="dk-export", interactive=False)
    status = html("", "dk-status", js="")
    file = gr.File(label="Ready", interactive=False, visible=False, elem_id="dk-exported")
    shell = html("", "dk-shell-box", js="dreamkiln.copying(element);")

    def load(shown: str) -> dict[Any, Any]:
        run = service.done(shown)
        words = f"Exports <b>{escape(service.asked(run)[0])}</b>." if run else _NOT_YET
        start, nothing = gr.Button(interactive=run is not None), gr.File(visible=False)
        return {ref: shown, about: quiet(words), button: start, file: nothing, status: ""}

    def said(shown: str, kind: Any, faces: Any, texture: int | None) -> str:
        run = service.done(shown)
        try:
            return command(export_command(run.folder, *options(kind, faces, texture))) if run else ""
        except ValueError as problem:
            return bad(str(problem))

    def export(shown: str, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        run = service.done(shown)
        if run is None:
            raise gr.Error(_NOT_YET, title="", print_exception=False)
        for now in exported(run.folder, shelf, *chosen):
            words = quiet(escape(now.words), busy=not now.over) if now.path or not now.over else bad(now.words)
            file = gr.File(None if now.path is None else str(now.path), visible=now.path is not None)
            yield gr.Button(interactive=now.over), words, file

    chosen = [ref, kind, faces, texture]
    follow([field.change for field in chosen], said, chosen, [shell])
    button.click(export, chosen, [button, status, file], concurrency_limit=1, **PRIVATE)
    return Exporting(load, [ref, about, button, file, status])
