"""The Export tab: the shown result as a file of another format or size."""

import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.app.service import Run, Service
from studio.app.shelf import Shelf
from studio.app.shell import export_command
from studio.app.viewing import entry
from studio.app.widgets import PRIVATE, QUIET, command, html
from studio.export.command import export_run
from studio.export.validate import validate_glb

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

    load: Callable[[str], Any]
    """Draws the tab for a run."""
    outputs: list[Any]
    """Of ``load``."""


def build_exporting(service: Service, shelf: Shelf) -> Exporting:
    """Draw the tab."""
    about = html(f'<p class="dk-quiet">{_NOT_YET}</p>', "dk-about", js="")
    kind = gr.Dropdown(FORMATS, value="glb", label="Format")
    with gr.Row():
        faces = gr.Dropdown(_FACES, value=0, label="Faces, about", allow_custom_value=True, min_width=110)
        texture = gr.Dropdown(_SIZES, value=0, label="Texture", min_width=110)
    button = gr.Button("Export", variant="primary", elem_id="dk-export", interactive=False)
    status = html("", "dk-status", js="")
    file = gr.File(label="Ready", interactive=False, visible=False, elem_id="dk-exported")
    shell = html("", "dk-shell-box", js="dreamkiln.copying(element);")
    ref = gr.Textbox("", visible=False)

    def load(shown: str) -> tuple[Any, ...]:
        run = _done(service, shown)
        words = f"Exports <b>{escape(entry(service, run)[1])}</b>." if run else _NOT_YET
        quiet = f'<p class="dk-quiet">{words}</p>'
        return (
            shown,
            quiet,
            gr.Button(interactive=run is not None),
            gr.File(visible=False),
            "",
            said(shown, "glb", None, 0),
        )

    def said(shown: str, *chosen: Any) -> str:
        run = _done(service, shown)
        return command(export_command(run.folder, *_options(*chosen))) if run else ""

    def export(shown: str, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        run = _done(service, shown)
        if run is None:
            raise gr.Error(_NOT_YET, title="", print_exception=False)
        yield gr.Button(interactive=False), _doing("beginning"), gr.File(visible=False)
        work = _Work(export_run(run.folder, *_options(*chosen), out=Path(tempfile.mkdtemp(dir=shelf.folder))))
        try:
            for phase in work:
                yield gr.skip(), _doing(phase), gr.skip()
        except (OSError, ValueError, RuntimeError) as problem:
            words = f'<p class="dk-note dk-bad">{escape(str(problem))}</p>'
            yield gr.Button(interactive=True), words, gr.File(visible=False)
            return
        words = f'<p class="dk-quiet">{escape(_checked(work.out, str(chosen[0])))}</p>'
        yield gr.Button(interactive=True), words, gr.File(str(work.out), visible=True)

    chosen = [ref, kind, faces, texture]
    gr.on([kind.change, faces.change, texture.change], said, chosen, shell, trigger_mode="always_last", **QUIET)
    button.click(export, chosen, [button, status, file], concurrency_limit=1, **PRIVATE)
    return Exporting(load, [ref, about, button, file, status, shell])


class _Work:
    """The phases of an export, and its file once they are through."""

    def __init__(self, phases: Generator[str, None, Path]):
        self._phases = phases
        self.out = Path()

    def __iter__(self) -> Generator[str, None, None]:
        self.out = yield from self._phases


def _options(kind: str, faces: Any, texture: int | None) -> tuple[Any, int | None, int | None]:
    """As ``export_run`` takes them: None is the run's own. What was typed into the list of faces comes as text."""
    faces = str(faces or "").replace(",", "").strip()
    if faces and not faces.isdecimal():
        raise ValueError(f"Faces must be a whole number, not {faces!r}.")
    sized = kind in ("glb", "obj")
    meshed = kind != "splat-ply"
    return kind, int(faces) if faces and meshed else None, int(texture) if texture and sized else None


def _done(service: Service, ref: str) -> Run | None:
    run = service.find(ref or "")
    return run if run is not None and run.state == "done" else None


def _doing(phase: str) -> str:
    return f'<p class="dk-quiet dk-pulse">{escape(phase.capitalize())}</p>'


def _checked(path: Path, kind: str) -> str:
    """What was found when the file was looked at again."""
    size = path.stat().st_size
    words = [path.name, f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"]
    found = validate_glb(path) if kind == "glb" else None
    if found is not None:
        bad = found["errors"] + found["warnings"]
        words.append(f"the validator has {bad} objections" if bad else "valid glTF")
    return ", ".join(words) + "."
