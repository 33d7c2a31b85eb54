"""What edits start from: a draft of the prompt, distilled once and kept."""

import hashlib
import json
from collections.abc import Generator
from pathlib import Path

import torch

from studio.codec import encode
from studio.edit import finished
from studio.evaluate.contenders import draft
from studio.events import Checkpointed, Stepped
from studio.folder import RunError, read_request, slug
from studio.request import Request
from studio.run import resume_run, run_request


def make_source(prompt: str, seed: int, folder: Path, device: torch.device) -> Generator[tuple[int, int], None, Path]:
    """The draft of a prompt as the folder of a finished run, without an asset; made now if it is not there.

    Yields steps done and steps in all; returns the folder, whose name holds a digest of the request.

    Raises:
        RunError: the run failed.
        OSError: the folder cannot be written.
    """
    request = draft(prompt, seed)
    home = _home(request, folder / "sources")
    if _is_finished(home):
        return home
    begun = (home / "request.json").is_file()
    events = resume_run(home, str(device)) if begun else run_request(request, home, str(device))
    for event in events:
        if isinstance(event, Stepped):
            yield event.done, event.total
        elif isinstance(event, Checkpointed) and event.step == request.steps:
            break
    events.close()
    return home


def _home(request: Request, folder: Path) -> Path:
    """The folder of a request's run; one that is there counts though its request was written before a knob came."""
    name = f"{slug(request.prompt)}-seed{request.seed}"
    for home in sorted(folder.glob(f"{name}-*")):
        try:
            if read_request(home) == request:
                return home
        except RunError:
            continue
    return folder / f"{name}-{hashlib.sha256(json.dumps(encode(request)).encode()).hexdigest()[:8]}"


def _is_finished(run: Path) -> bool:
    try:
        finished(run)
    except RunError:
        return False
    return True
