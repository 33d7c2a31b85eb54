"""A batch on the machines of a Ray cluster: an actor for each device, in the same folders, which all machines must see.

Only this process opens the store, since neither its log nor file locks can be relied on across machines. It holds a
run's folder for as long as an actor works in it: the claim is the actor's lease. When an actor dies, the folder is let
go of, as that of any worker that was killed, and whoever comes next resumes from its checkpoint.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from studio.batch.engines import unfinished
from studio.batch.ray_actor import Actor, Where
from studio.folder import RunError
from studio.jobs.claims import Claim
from studio.jobs.job import WorkerInfo
from studio.jobs.quota import Quota
from studio.jobs.store import Store
from studio.optimize import Stop

_EVERY = 0.2
"""Seconds between looks at the actors."""
_BEAT = 2.0
"""Seconds between signs of life that are passed on to the store."""
_GRACE = 30.0
"""Seconds beyond a job's timeout, or after it was cancelled or all were asked to stop, until its actor is killed."""
_LONGEST_WAIT = 60.0
"""Seconds until an actor that keeps dying is begun anew, at most; at first it is one, then twice as many each time."""
_MOST_DEATHS = 6
"""Actors of a seat that may die in a row without finishing anything."""


def refuse_without_ray() -> None:
    """Refuse to begin where Ray is not installed.

    Raises:
        RunError: with the command that installs it.
    """
    try:
        import ray  # noqa: F401
    except ImportError as problem:
        raise RunError("--engine ray needs Ray: pip install 'dreamkiln[ray]'") from problem


def across(home: Path, devices: Sequence[str], workers: int | None, stop: Stop, quota: int | None) -> Iterator[None]:
    """Work on a cluster: the one that ``RAY_ADDRESS`` names, or one of this machine alone.

    Args:
        home: the batch's folder.
        devices: ``auto``: the GPUs of the cluster, or, if it has none, its CPU cores; ``cpu`` or ``cuda``.
        workers: actors; one for each device without it.
        stop: whether to end.
        quota: bytes that ``home`` may take.

    Raises:
        RunError: there is no such device in the cluster; actors keep dying.
    """
    import ray
    from ray.exceptions import RayError

    _join(workers)
    try:
        kind, count = _share(ray.cluster_resources(), devices, workers)
        store = Store(home)
        room = None if quota is None else Quota(home, quota)
        seats = [_Seat(store, f"ray-{i + 1}", kind) for i in range(count)]
        try:
            while not stop() and unfinished(store):
                for seat in seats:
                    seat.tend()
                if room is not None:
                    room.keep(store)
                time.sleep(_EVERY)
                yield
            yield from _wind_down(seats)
        finally:
            for seat in seats:
                seat.leave()
    except RayError as problem:
        raise RunError(f"The Ray cluster is lost: {problem}") from problem
    finally:
        ray.shutdown()


def _join(workers: int | None) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names (auto: what ``ray start`` began here), or begin one here.

    Raises:
        RunError: it cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, **quiet)
        else:  # on this machine, and for nobody else
            ray.init(address="local", num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise RunError(f"No Ray cluster at {address or 'this machine'}: {problem}") from problem


def _share(there: Mapping[str, float], devices: Sequence[str], workers: int | None) -> tuple[str, int]:
    """The kind of device, ``GPU`` or ``CPU``, and how many actors."""
    kinds = {"cpu": "CPU", "cuda": "GPU", "auto": "GPU" if there.get("GPU", 0) >= 1 else "CPU"}
    names = set(devices)
    if len(names) != 1 or not names <= kinds.keys():
        raise RunError("With --engine ray, --device is auto, cpu or cuda; --workers says how many actors there are.")
    kind = kinds[names.pop()]
    count = int(there.get(kind, 0))
    if count < 1:
        raise RunError(f"The Ray cluster has no {kind}.")
    return kind, min(workers or count, count)


def _wind_down(seats: list["_Seat"]) -> Iterator[None]:
    """Wait until every actor has reached a checkpoint, after asking them all to stop."""
    for seat in seats:
        seat.ask_to_stop()
    until = time.monotonic() + _GRACE
    while any(seat.busy for seat in seats) and time.monotonic() < until:
        for seat in seats:
            seat.tend(fresh=False)
        time.sleep(_EVERY)
        yield


@dataclass
class _Seat:
    """A place for an actor: the one that sits there now, what it works on, and when to put another one there."""

    store: Store
    name: str
    kind: str
    actor: Any = None
    where: Where | None = None
    """Of the actor, once it lives."""
    pending: Any = None
    """What the actor was asked for: where it is, at first; then to do a job."""
    claim: Claim | None = None
    deaths: int = 0
    due: float = 0.0
    """When to put an actor there, if there is none."""
    late: float = float("inf")
    """When the actor is taken to hang."""
    cancelled: float | None = None
    """When the actor's job was first seen to be cancelled."""
    beaten: float = 0.0
    asked: bool = False
    """Whether the actor was asked to stop."""

    @property
    def busy(self) -> bool:
        """Whether an actor works on a job."""
        return self.claim is not None

    def tend(self, fresh: bool = True) -> None:
        """Look after the actor: take what it has done, and give it the next job, if there are to be ``fresh`` ones.

        Raises:
            RunError: actors keep dying here.
        """
        import ray
        from ray.exceptions import RayActorError

        if self.actor is None:
            if fresh and time.monotonic() >= self.due:
                self._seat()
            return
        try:
            if self.pending is not None:
                if not ray.wait([self.pending], timeout=0)[0]:
                    return self._while_it_works()
                answer, self.pending = self.pending, None
                self._take(answer)
            if self.claim is None and self.where is not None and fresh:
                self._give()
        except RayActorError as problem:
            self._bury(problem)
        self._beat()

    def _seat(self) -> None:
        import ray

        resources = {"num_gpus": 1} if self.kind == "GPU" else {"num_cpus": 1}
        remote = ray.remote(Actor).options(max_concurrency=2, max_restarts=0, **resources)
        self.actor = remote.remote(self.kind == "GPU")
        self.pending = self.actor.where.remote()

    def _give(self) -> None:
        """The next job, if there is one."""
        self.claim = self.store.claim(self.name)
        if self.claim is not None:
            job = self.claim.job
            self.late = time.monotonic() + (job.timeout or float("inf")) + _GRACE
            self.asked = False
            self.pending = self.actor.work.remote(job.id, str(job.folder.absolute()), job.timeout)
            self.beaten = 0.0

    def _take(self, answer: Any) -> None:
        """What the actor answers: where it is, or how the job ended."""
        import ray
        from ray.exceptions import RayTaskError

        if self.claim is None:
            self.where = cast(Where, ray.get(answer))
            return
        claim = self.claim
        try:
            ended: Any = ray.get(answer)
            if ended.kind == "done":
                claim.done()
            elif ended.kind == "stopped":
                claim.stopped()
            elif ended.kind == "full":
                self.store.hold_queue(ended.words)
                claim.paused(ended.words)
            else:
                claim.failed(ended.words)
        except RayTaskError as problem:
            claim.failed(str(problem.cause), problem)
        self.deaths = 0
        self._let_go()

    def _while_it_works(self) -> None:
        """Pass on wishes, and end what hangs."""
        import ray

        if self.claim is None:
            return
        wish = self.store.job(self.claim.job.id).wish
        if wish and not self.asked:
            self.ask_to_stop()
        if wish != "cancel":
            self.cancelled = None
        elif self.cancelled is None:
            self.cancelled = time.monotonic()
        if time.monotonic() > self.late:
            self.claim.failed(
                f"It took longer than the {self.claim.job.timeout:g} s that an attempt may take, and hung."
            )
        elif self.cancelled is not None and time.monotonic() > self.cancelled + _GRACE:
            self.claim.stopped()
        else:
            return self._beat()
        ray.kill(self.actor)
        self._let_go()
        self._vacate()

    def ask_to_stop(self) -> None:
        """Let the actor stop at the next step."""
        if self.claim is not None and self.actor is not None:
            self.asked = True
            self.actor.stop.remote(self.claim.job.id)

    def _bury(self, problem: Exception) -> None:
        """The actor has died. Its job stays marked as running, in a folder that nobody holds: who is next takes it."""
        import ray

        self.deaths += 1
        with contextlib.suppress(Exception):
            ray.kill(self.actor)  # if it is only out of reach, it must not come back
        self._let_go()
        self._vacate()
        if self.deaths >= _MOST_DEATHS:
            raise RunError(f"{_MOST_DEATHS} actors in a row died in {self.name} of the Ray cluster: {problem}")

    def _let_go(self) -> None:
        if self.claim is not None:
            self.claim.__exit__(None, None, None)
        self.claim, self.cancelled, self.late, self.beaten = None, None, float("inf"), 0.0

    def _vacate(self) -> None:
        self.store.dismiss(self.name)
        self.actor, self.where, self.pending = None, None, None
        self.due = time.monotonic() + min(_LONGEST_WAIT, 2.0 ** (max(self.deaths, 1) - 1))

    def _beat(self) -> None:
        """Say in the store, in the actor's name, that it lives and what it works on."""
        now = time.monotonic()
        if self.where is not None and now - self.beaten >= _BEAT:
            self.beaten = now
            job = self.claim.job.id if self.claim is not None else ""
            device = f"{self.where.device} on {self.where.machine}"
            self.store.beat(WorkerInfo(self.name, self.where.pid, device, time.time(), job))

    def leave(self) -> None:
        """Let everything go; a job that is not at its end is taken up by whoever comes next."""
        self._let_go()
        self.store.dismiss(self.name)
