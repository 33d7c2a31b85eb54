"""The HTTP API: ``submit``, ``status``, ``result``, ``cancel``, by Gradio's protocol; nothing else is public.

With Gradio's Python client::

    import time

    from gradio_client import Client

    studio = Client("http://127.0.0.1:7860")
    (job,) = studio.predict("a red mushroom", seed=3, api_name="/submit")
    while (now := studio.predict(job, api_name="/status"))["state"] in ("queued", "running"):
        print(now["words"])
        time.sleep(1)
    path = studio.predict(job, api_name="/result")

With curl, in two steps, since answers are streamed; values are those of ``submit`` in order, none left out::

    event=$(curl -s 127.0.0.1:7860/gradio_api/call/submit -H 'Content-Type: application/json' \\
        -d '{"data": ["a red mushroom", "draft", "", "toybox-64", "", 0, 0, 1]}' | cut -d'"' -f4)
    curl -sN "127.0.0.1:7860/gradio_api/call/submit/$event"
"""

from typing import Any

import gradio as gr

from studio.app.form import Form
from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.app.viewing import MESH, view_file
from studio.app.words import state_line
from studio.paths import BUNDLED_PRIOR


def build_api(service: Service, shelf: Shelf) -> None:
    """Add the endpoints to the page that is being built."""

    def submit(
        prompt: str,
        recipe: str = "draft",
        method: str = "",
        prior: str = BUNDLED_PRIOR,
        negative: str = "",
        seed: int = 0,
        steps: int = 0,
        variations: int = 1,
    ) -> list[str]:
        """Queue what a prompt (a template: {a|b} is a choice) asks for; returns the jobs' ids. Steps 0: as usual."""
        try:
            return service.submit(Form(prompt, recipe, method, prior, negative, seed, str(steps or ""), variations))
        except ValueError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem

    def status(job: str) -> dict[str, Any]:
        """How a job is: state, words, step, steps, loss, warnings, error; and the report once it is done."""
        return status_of(service, job)

    def cancel(job: str) -> dict[str, Any]:
        """End a job, within a step if it runs; returns its status."""
        try:
            service.act("cancel", job)
        except ValueError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        return status_of(service, job)

    def result(job: str) -> str:
        """The textured GLB of a job that is done."""
        run = service.done(job)
        path = None if run is None else view_file(shelf, run, service.asked(run)[0], MESH)
        if path is None:
            raise gr.Error(f"The job {job!r} has no result.", print_exception=False)
        return path

    for function in (submit, status, cancel):
        gr.api(function, api_name=function.__name__, queue=False)
    job, file = gr.Textbox(label="job", visible=False), gr.File(label="GLB", visible=False)
    gr.Button(visible=False).click(result, job, file, api_name="result", queue=False)


def status_of(service: Service, ref: str) -> dict[str, Any]:
    """The status of a job as plain values.

    Raises:
        gr.Error: there is no such job.
    """
    run = service.find(ref)
    if run is None:
        raise gr.Error(f"There is no job {ref!r}.", print_exception=False)
    progress = service.progress(run)
    position = service.position(run)
    error = progress.error or (run.job.error if run.job else "")
    return {
        "job": ref,
        "state": run.state,
        "words": state_line(run, progress, position),
        "prompt": service.asked(run)[0],
        "position": position,
        "step": progress.step,
        "steps": progress.steps,
        "loss": progress.losses[-1][1] if progress.losses else None,
        "seconds_left": progress.left,
        "warnings": progress.warnings,
        "error": error if run.state == "failed" else "",
        "report": run.report,
    }
