"""``python -m tests.security.site HOME small|studio``: a server until its input ends; says where it is, as JSON.

Gradio leaves event loops open, which the tests would take for our own carelessness: it has a process to itself.
"""

import json
import sys
from pathlib import Path
from typing import Any

from studio.app.server import serving


def small(home: Path, served: Path) -> Any:
    """A page of a few components whose functions write down what they are called with."""
    import gradio as gr

    def note(value: Any) -> str:
        with (home.parent / "called.jsonl").open("a") as file:
            file.write(json.dumps(str(value)) + "\n")
        return str(value)

    with gr.Blocks() as page:
        text, file, picture, shown = gr.Textbox(), gr.File(), gr.Image(type="filepath"), gr.Textbox()
        gr.Model3D()
        gr.Button().click(note, text, shown, api_name="say")
        gr.Button().click(note, file, shown, api_name="take")
        gr.Button().click(note, picture, shown, api_name="look")
    return page


def studio(home: Path, served: Path) -> Any:
    """The app's own page, without workers."""
    from studio.app.page import build_page
    from studio.app.service import Service
    from studio.app.shelf import Shelf

    return build_page(Service(home, {"toybox-64": "toybox-64"}), Shelf(served))


def looks() -> dict[str, Any]:
    """Of the app's own page."""
    from studio.app.looks import launch_options

    return launch_options()


def main(home: Path, kind: str) -> None:
    """Serve until the input ends."""
    told: dict[str, str] = {}

    def build(served: Path) -> Any:
        told["served"] = str(served)
        return {"small": small, "studio": studio}[kind](home, served)

    with serving(build, home, port=0, looks=looks if kind == "studio" else dict) as url:
        sys.stdout.write(json.dumps({"url": url, **told}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
