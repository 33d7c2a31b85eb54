"""Memory of runs counted beside the page, in a process of its own: once for all that it depends on, and in its time.

Counting puts the prior's networks together without weights (``prior_check``). That takes seconds and Python's own lock,
which a page has no use for: it shows a guess, and asks again until it is known better. The process is begun with the
first question, works with little urgency, and ends some time after the last one, or with the page's.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import TextIOBase

import torch

from studio.cameras import Orbit
from studio.codec import decode, encode
from studio.jobs.supervisor import import_path
from studio.paths import resolve_prior
from studio.prior_check import UNCOUNTED, configuration_of, peak_of
from studio.request import Regularizers, Request
from studio.second_prior import second_prior_of

_IDLE = 60.0
"""Seconds without a question after which the process ends."""
_PATIENCE = 300.0
"""Seconds that a count may take."""
_MOST_WAITING, _MOST_KNOWN = 8, 256
"""Questions that wait, and answers that are kept; the oldest are forgotten, and asked again where they are missed."""


@dataclass(frozen=True)
class Count:
    """What is known of a run's memory."""

    known: bool
    """Whether there is nothing to wait for."""
    size: int | None = None
    """Bytes that the prior takes at its worst moment; None if that is not known, or cannot be counted."""


class Counter:
    """Answers that are known, questions that wait, and the process that goes through them while there are any."""

    def __init__(self, begin: Callable[[], "subprocess.Popen[str]"] | None = None) -> None:
        """Ask nothing yet; ``begin`` starts a process that answers each line with one."""
        self._begin = begin or _begin
        self._known: dict[str, int | None] = {}
        self._waiting: dict[str, str] = {}
        self._more = threading.Condition()
        self._worker: threading.Thread | None = None

    def ask(self, request: Request) -> Count:
        """What is known of the memory of ``request``, at once; what is not will be counted.

        Raises:
            UnknownPrior, MissingAsset: there is no such prior.
        """
        line = question(request)
        key = line + _stamp(request)
        with self._more:
            if key in self._known:
                return Count(True, self._known[key])
            self._waiting.setdefault(key, line)
            while len(self._waiting) > _MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            self._more.notify()
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="counting memory", daemon=True)
                self._worker.start()
        return Count(False)

    def _work(self) -> None:
        """Go through what waits, until nothing has for some time."""
        process = None
        try:
            process = self._begin()
            while (wanted := self._next()) is not None:
                key, line = wanted
                answer = _answer(process, line)
                self._learn(key, json.loads(answer) if answer else None)
                if not answer:
                    return
        except OSError:  # no room for a process
            self._learn(next(iter(self._waiting), ""), None)
        finally:
            with self._more:
                if self._worker is threading.current_thread():
                    self._worker = None
            if process is not None:
                _end(process)

    def _next(self) -> tuple[str, str] | None:
        with self._more:
            if self._more.wait_for(lambda: bool(self._waiting), _IDLE):
                return next(iter(self._waiting.items()))
            self._worker = None  # whoever asks from now on begins another
            return None

    def _learn(self, key: str, size: int | None) -> None:
        with self._more:
            self._waiting.pop(key, None)
            self._known[key] = size
            while len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]


def question(request: Request) -> str:
    """A line that says all of a request that its prior's memory depends on, but for the prior's own files."""
    stages = tuple(
        replace(stage, representation=None, steps=1, cameras=Orbit(stage.cameras.views), regularizers=Regularizers())
        for stage in request.stages
    )
    plain = Request("", stages, prior=request.prior, prior_options=request.prior_options)
    plain = replace(plain, view_prompts=request.view_prompts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return json.dumps({"device": device, "request": encode(plain)}, sort_keys=True)


def counted(line: str) -> int | None:
    """The answer to a question."""
    asked = json.loads(line)
    try:
        return peak_of(decode(Request, asked["request"]), torch.device(asked["device"]))
    except UNCOUNTED:
        return None


def _stamp(request: Request) -> str:
    """Changes with the settings of the priors: what is counted is put together from these."""
    seconds = [second for stage in request.stages if (second := second_prior_of(stage))]
    folders = [configuration_of(place) for place in (resolve_prior(request.prior), *seconds)]
    files = [file for folder in folders for pattern in ("*.json", "*/*.json") for file in sorted(folder.glob(pattern))]
    return "".join(f" {file} {(s := file.stat()).st_size} {s.st_mtime_ns}" for file in files if file.is_file())


# The process ----------------------------------------------------------------------------------------------------------


def _begin() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "studio.app.counting"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,  # Ctrl-C on a terminal is for the page, with whose end its input ends
    )


def _answer(process: "subprocess.Popen[str]", line: str) -> str:
    """The process's answer; "" if it died over it."""
    assert process.stdin is not None and process.stdout is not None
    limit = threading.Timer(_PATIENCE, process.kill)
    limit.start()
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""
    finally:
        limit.cancel()


def _end(process: "subprocess.Popen[str]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.kill()
    process.wait()


def main(lines: Iterable[str], out: TextIOBase) -> None:
    """Answer each line with one, until there are no more."""
    for line in lines:
        out.write(f"{json.dumps(counted(line))}\n")
        out.flush()


if __name__ == "__main__":
    os.nice(10)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    main(sys.stdin, answers)
