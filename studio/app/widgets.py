"""Small things that all parts of the page are made of."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""An event that is no part of the HTTP API."""
QUIET: dict[str, Any] = {**PRIVATE, "queue": False}
"""The same, answered at once: nothing quick waits behind what takes its time."""
TELLING: dict[str, Any] = {**PRIVATE, "concurrency_limit": 16, "trigger_mode": "multiple"}
"""An event that may have to tell something: Gradio passes warnings on through its queue alone. None is lost: left to
itself, Gradio drops a click while the one before it is being answered."""

CLICKS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {...button.dataset});
});
"""


def html(value: str, name: str, js: str = CLICKS) -> gr.HTML:
    """A piece of HTML; a click on anything in it with ``data-act`` arrives as an event with the data of that."""
    return gr.HTML(value, elem_classes=[name], js_on_load=js or None, apply_default_css=False)


def follow(changes: list[Any], answer: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Answer when one of several things has changed, and they rest: the last answer is then to how they are at last.

    Gradio 6.31 asks for each thing that changes, before the others of the same answer are set, and takes what comes
    back in any order. Here all of them make one new question, which waits for the one before it.
    """
    question = gr.Number(0, visible=False)
    asking = f"() => dreamkiln.rest({question._id})"
    gr.on(changes, None, None, question, js=asking, trigger_mode="multiple", **PRIVATE)
    question.change(answer, inputs, outputs, trigger_mode="always_last", **QUIET)


def command(text: str) -> str:
    """A shell command to read and copy; "" for none."""
    if not text:
        return ""
    return (
        '<details class="dk-shell"><summary>The same in a shell</summary><div><pre>'
        f'{escape(text)}</pre><button type="button" class="dk-text" data-copy>Copy</button></div></details>'
    )


def quiet(markup: str, busy: bool = False) -> str:
    """A sentence that explains; what comes from elsewhere was escaped before."""
    return f'<p class="dk-quiet{" dk-pulse" * busy}">{markup}</p>'


def bad(text: str) -> str:
    """A sentence on what is wrong."""
    return f'<p class="dk-note dk-bad">{escape(text)}</p>'
