"""How the page looks: its theme, and the CSS, JavaScript and header that lie beside this file."""

import json
from pathlib import Path
from typing import Any

_ASSETS = "templates/frontend/assets"
_HERE = Path(__file__).resolve().parent


def launch_options() -> dict[str, Any]:
    """Looks of the page, for ``studio.app.server``. Every font is the machine's own: nothing comes from elsewhere."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
        radius_size=gr.themes.sizes.radius_lg,
    )
    viewers = sorted(path.name for path in (Path(gr.__file__).parent / _ASSETS).glob("Canvas3D*.js"))
    script = f"{_text('page.js')}\ndreamkiln.early({json.dumps(viewers)});"
    return {"theme": theme, "css": _text("page.css"), "head": f"<script>{script}</script>"}


def header() -> str:
    """The line on top."""
    return _text("header.html")


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
