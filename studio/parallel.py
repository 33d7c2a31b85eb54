"""One run on several devices: a process for each, which share the views of every step (``studio.team``).

The process that holds the run's folder starts the others, listens to the first of them, and carries its events on. The
request is in the folder; what passes between the processes besides gradients are lines: events out, ``stop`` in, and
the end of the input when their parent is gone, at which they end too.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from guidance.prior_folder import read_hints
from studio.edit import own_source
from studio.events import Event, Stepped, Warned
from studio.folder import RunError, RunFolder, plain, read_request
from studio.memory import OutOfMemory, add_down, downs_of, step_down, thrifty
from studio.paths import resolve_prior
from studio.request import Request
from studio.team import Team

_SAY_EVERY = 0.25
"""Seconds between steps that are told: each makes the process wait for its device."""
_PATIENCE = 2.0
"""Seconds that the others have to say why one of them died."""
_TAIL = 2000
"""Characters of a process's last words that are kept."""


def together(home: RunFolder, request: Request, devices: Sequence[str], stop: Callable[[], bool]) -> Iterator[Event]:
    """Do, or go on with, the run in a folder that the caller holds, on several devices at once.

    Where memory does not suffice on one of them, all go down the ladder (``studio.memory``) and on from the newest
    checkpoint.

    Raises:
        RunError: the request cannot be shared among so many, or the run failed.
        OSError: a file could not be written.
    """
    refuse_unshared(request, len(devices))
    if request.task is not None:
        own_source(home.path, request.task, torch.device("cpu"))  # now, for the processes only read it
    while True:
        short = yield from _once(home, devices, stop)
        if short is None:
            return
        yield Warned(_go_down(home.path, request, *short, torch.device(devices[0]).type))


def refuse_unshared(request: Request, count: int) -> None:
    """Refuse a request whose steps ``count`` processes cannot share.

    Raises:
        RunError: in words.
    """
    for i, stage in enumerate(request.stages):
        if stage.cameras.views < count:
            raise RunError(
                f"{count} devices cannot share the {stage.cameras.views} views of a step; name fewer devices, or raise "
                f"--stages.{i}.cameras.views."
            )
        if stage.guidance.controls.group:
            raise RunError(f"stages.{i}.guidance.controls.group joins all views of a step, so one device has them all.")
    views = read_hints(resolve_prior(request.prior))["views"]
    if views > 1:
        raise RunError(f"This prior sees {views} views as one, so one device has them all.")


def _go_down(folder: Path, request: Request, stage: int, step: int, device: str) -> str:
    down = step_down(thrifty(request, downs_of(folder), stage, step), stage, step, device)
    if down is None:
        raise RunError(
            f"Out of memory in step {step + 1} of stage {stage + 1}, and there is nothing left to save on. Name more "
            f"devices, or ones with more memory. Go on with: studio resume {folder}"
        )
    add_down(folder, down)
    return f"Out of memory in step {step + 1} of stage {stage + 1}: from here on {down.text}."


# The processes, from outside ------------------------------------------------------------------------------------------


def _once(
    home: RunFolder, devices: Sequence[str], stop: Callable[[], bool]
) -> Generator[Event, None, tuple[int, int] | None]:
    """Run the processes to their end; returns stage and step if memory did not suffice on one of them."""
    lines: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
    with tempfile.TemporaryDirectory() as meeting:
        team = [_start(home, device, rank, len(devices), Path(meeting)) for rank, device in enumerate(devices)]
        try:
            for rank, process in enumerate(team):
                threading.Thread(target=_listen, args=(rank, process, lines), daemon=True).start()
            return (yield from _heard(team, lines, Path(meeting), stop))
        finally:
            for process in team:
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()


def _start(home: RunFolder, device: str, rank: int, world: int, meeting: Path) -> "subprocess.Popen[bytes]":
    threads = str(max(1, (os.cpu_count() or 1) // world))
    environment = {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    with (meeting / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "studio.parallel", str(home.path), device, str(rank), str(world), str(meeting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment | dict(os.environ),
            pass_fds=home.handles if rank == 0 else (),  # whoever writes holds the folder, even without its parent
        )


def _listen(rank: int, process: "subprocess.Popen[bytes]", lines: "queue.Queue[Any]") -> None:
    assert process.stdout is not None
    with process.stdout as told:
        for line in told:
            lines.put((rank, json.loads(line)))
    lines.put((rank, None))


def _heard(
    team: "list[subprocess.Popen[bytes]]",
    lines: "queue.Queue[tuple[int, dict[str, Any] | None]]",
    meeting: Path,
    stop: Callable[[], bool],
) -> Generator[Event, None, tuple[int, int] | None]:
    silent, told, dead = 0, False, None
    while silent < len(team):
        if not told and stop():
            told = True
            _tell(team[0].stdin, b"stop\n")
        try:
            rank, line = lines.get(timeout=0.05)
        except queue.Empty:
            if dead is not None and time.monotonic() - dead[1] > _PATIENCE:
                break
            continue
        if line is None:
            silent += 1
            if team[rank].wait() != 0 and dead is None:
                dead = rank, time.monotonic()  # maybe because of another, which says why
        elif "short" in line:
            stage, step = line["short"]
            return int(stage), int(step)
        elif "broke" in line:
            raise OSError(line["errno"], line["broke"]) if line["errno"] else RunError(line["broke"])
        else:
            yield event_of(line)
    if dead is not None:
        last = (meeting / f"{dead[0]}.log").read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()
        raise RunError(f"Process {dead[0]} of {len(team)} died with status {team[dead[0]].returncode}. {last}")
    return None


def _tell(stdin: "IO[bytes] | None", line: bytes) -> None:
    assert stdin is not None
    try:
        stdin.write(line)
        stdin.flush()
    except BrokenPipeError:
        pass  # it has ended; its last line says how


def event_of(line: dict[str, Any]) -> Event:
    """The event that ``studio.folder.plain`` made ``line`` of."""
    kinds = {kind.__name__: kind for kind in typing.get_args(Event)}
    kind = kinds[line["event"]]
    return kind(**{name: _value(hint, line[name]) for name, hint in typing.get_type_hints(kind).items()})


def _value(hint: Any, value: Any) -> Any:
    if hint is Path:
        return Path(value)
    if hint is Tensor:
        return torch.tensor(float(value))
    return {k: torch.tensor(float(v)) for k, v in value.items()} if hint == dict[str, Tensor] else value


# A process, from inside -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> NoReturn:
    """A process of a team; says what happens in lines on its standard output, and nothing else there."""
    folder, device, rank, world, meeting = arguments
    team, asked = Team(int(rank), int(world)), threading.Event()
    threading.Thread(target=_obey, args=(asked,), daemon=True).start()
    try:
        _work(Path(folder), torch.device(device), team, Path(meeting), asked.is_set)
    except OutOfMemory as short:
        _say({"short": [short.stage, short.step]})
    except (RunError, OSError, ValueError, FloatingPointError) as problem:
        number = problem.errno if isinstance(problem, OSError) else None
        if team.leads or number:
            _say({"broke": str(problem), "errno": number})
    os._exit(0)  # not by way of destructors that wait for the others


def _work(folder: Path, device: torch.device, team: Team, meeting: Path, stop: Callable[[], bool]) -> None:
    import torch.distributed as dist

    from studio.run import carry_out

    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}/rendezvous", rank=team.rank, world_size=team.world)
    said = 0.0
    for event in carry_out(read_request(folder), RunFolder(folder), device, stop, team):
        step = isinstance(event, Stepped) and event.done < event.total
        if team.leads and not (step and time.monotonic() - said < _SAY_EVERY):
            said = time.monotonic() if step else said
            _say(plain(event))


def _obey(asked: threading.Event) -> None:
    for line in sys.stdin:
        if line == "stop\n":
            asked.set()
    os._exit(1)  # nobody listens any more


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
