"""Processes that share every step: two of them make what one makes, whatever the method and the representation."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import BSD, FVSD, SDS, UCM, VSD
from guidance.controls import Controls
from guidance.sharing import WHOLE
from representations.hash_field import HashField
from representations.splats import Densify, Splats
from studio.cameras import Orbit
from studio.checkpoints import Checkpoints, read_state
from studio.codec import encode
from studio.events import Checkpointed, Event, Finished, StageStarted, Started, Stepped, Stopped, Warned
from studio.folder import RunError, plain
from studio.memory import downs_of
from studio.parallel import event_of, refuse_unshared
from studio.request import Request, Stage
from studio.run import resume_run, run_request
from studio.team import ALONE, Part

_DENSIFY = Densify(begin=2, every=2, until=4, growth=0.2, faint=0.02)
FIELD = HashField(levels=(4, 8), occupancy_cells=4, occupancy_every=2, rate=1e-3)
CLOUD = Splats(count=60, most=80, initial_opacity=0.3, opacity_rate=0.02, position_rate=1e-3, densify=_DENSIFY)
CASES: dict[str, tuple[Any, Any]] = {
    "field, SDS": (FIELD, SDS(scale=2.0)),
    "cloud, SDS": (CLOUD, SDS(scale=2.0)),
    "field, VSD": (FIELD, VSD(scale=2.0)),
    "cloud, VSD, one timestep": (CLOUD, VSD(scale=2.0, controls=Controls(shared_t=True))),
    "field, FVSD": (FIELD, FVSD(scale=2.0)),
    # Plain noise in the first two steps, the render's own in the third.
    "field, UCM": (FIELD, UCM(scale=2.0, steps=2, plain_until=0.5)),
    "cloud, UCM, one timestep": (CLOUD, UCM(scale=2.0, steps=1, plain_until=0.0, controls=Controls(shared_t=True))),
    "field, BSD": (FIELD, BSD(scale=2.0, cycle=2, tuning_steps=1, refresh=1, album=4)),
}
pytestmark = pytest.mark.timeout(400)
VIEWS = 3
"""Of which one process has one and the other two."""
STEPS = 3


def wanted(prior: Path, kind: Any, method: Any, steps: int = STEPS) -> Request:
    stage = Stage(kind, method, steps, Orbit(views=VIEWS, size=16))
    return Request("a red cube", (stage,), prior=str(prior), checkpoint_every=1, preview_every=0)


def until_the_last_checkpoint(events: Any, steps: int) -> list[Event]:
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, Checkpointed) and event.step == steps:
            events.close()
    return seen


def end(folder: Path) -> dict[str, Any]:
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])


# A step of two processes is the step of one ---------------------------------------------------------------------------

_BOTH = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from studio.checkpoints import Checkpoints
from studio.codec import decode
from studio.folder import RunFolder
from studio.request import Request
from studio.run import carry_out
from studio.team import Team

torch.set_num_threads(1)
rank, meeting, home = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
for line in Path(sys.argv[4]).read_text().splitlines():
    case = json.loads(line)
    request, folder = decode(Request, case["request"]), home / case["name"]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for event in carry_out(request, RunFolder(folder), torch.device("cpu"), lambda: False, Team(rank, 2)):
        if type(event).__name__ == "Checkpointed" and event.step == request.steps:
            break
"""


@pytest.fixture(scope="module")
def both(tiny_prior: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder below which every case was run by two processes, whose own ends are kept."""
    home = tmp_path_factory.mktemp("both")
    cases = home / "cases"
    lines = [{"name": name, "request": encode(wanted(tiny_prior, *case))} for name, case in CASES.items()]
    cases.write_text("\n".join(map(json.dumps, lines)))
    team = [
        subprocess.Popen([sys.executable, "-c", _BOTH, str(rank), str(home / "meeting"), str(home), str(cases)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in team] == [0, 0]
    return home


def apart(a: Any, b: Any) -> float:
    """How far two trees of tensors are apart, as a share of how large the tensors are; plain values must be equal."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        size = a.double().norm()
        return float((a.double() - b.double()).norm() / size) if size > 0 else float(b.double().norm())
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max([apart(a[key], b[key]) for key in a], default=0.0)
    if isinstance(a, list):
        assert len(a) == len(b)
        return max(map(apart, a, b), default=0.0)
    assert a == b
    return 0.0


def moments(state: dict[str, Any]) -> list[torch.Tensor]:
    return [moment["exp_avg"] for moment in state["optimiser"]["state"].values()]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case: str, both: Path, tiny_prior: Path, tmp_path: Path):
    request = wanted(tiny_prior, *CASES[case])
    until_the_last_checkpoint(run_request(request, tmp_path / "one", "cpu"), STEPS)
    before, after = (
        [read_state(folder / "checkpoints" / f"{step:07d}") for folder in (tmp_path / "one", both / case)]
        for step in (STEPS - 1, STEPS)
    )
    # Moments are sums of gradients. Those of a critic that knows nothing yet are hardly more than rounding.
    assert apart(*(state["representation"] for state in before)) < 1e-5
    assert apart(*(moments(state) for state in before)) < 1e-4
    assert apart(*(state["guidance"] for state in before)) < 2e-3
    # Adam makes full steps of the smallest gradients, so rounding grows with every step; structure stays the same.
    assert apart(*(state["representation"] for state in after)) < 5e-3


# Through the front door -----------------------------------------------------------------------------------------------


def test_a_run_on_two_devices_ends_with_an_asset(tiny: Request, tmp_path: Path):
    folder, asked = tmp_path / "run", []
    request = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], steps=40), tiny.stages[1]))
    events = []
    for event in run_request(request, folder, "cpu", lambda: bool(asked), devices=("cpu", "cpu")):
        events.append(event)
        if isinstance(event, Checkpointed):
            asked.append(True)
    assert isinstance(events[-1], Stopped) and 2 <= events[-1].step < 40
    again = list(resume_run(folder, "cpu", devices=("cpu", "cpu")))
    assert isinstance(again[-1], Finished) and (folder / "result.glb").stat().st_size > 0
    (started,) = [e for e in again if isinstance(e, Started)]
    assert started.step == events[-1].step
    names = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert names.count("Stopped") == names.count("Finished") == 1


def test_memory_that_ends_on_one_device_takes_all_down(tiny: Request, tmp_path: Path, monkeypatch):
    sitecustomize = tmp_path / "code" / "sitecustomize.py"
    sitecustomize.parent.mkdir()
    sitecustomize.write_text(
        "import sys\n"
        "if sys.argv[-3:-2] == ['1'] or '1' in sys.orig_argv[-3:-2]:\n"
        "    import torch\n"
        "    from guidance.diffusers_prior import DiffusersPrior\n"
        "    honest = DiffusersPrior.predict_noise\n"
        "    def predict(self, noisy, *rest, **named):\n"
        "        if len(noisy) > 1:\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "        return honest(self, noisy, *rest, **named)\n"
        "    DiffusersPrior.predict_noise = predict\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{sitecustomize.parent}:{Path(__file__).parents[2]}")
    request = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], steps=3, at_once=2),))
    events = until_the_last_checkpoint(run_request(request, tmp_path / "run", "cpu", devices=("cpu", "cpu")), 3)
    assert [down.rung for down in downs_of(tmp_path / "run")] == ["guidance batch"]
    assert sum(isinstance(e, Warned) and "Out of memory" in e.text for e in events) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cameras": Orbit(views=2)}, "3 devices cannot share the 2 views of a step"),
        ({"guidance": SDS(controls=Controls(group=True)), "cameras": Orbit(views=4)}, "joins all views"),
    ],
)
def test_what_cannot_be_shared_is_refused(change: dict[str, Any], words: str, tiny: Request):
    request = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], **change),))
    with pytest.raises(RunError, match=words):
        refuse_unshared(request, 3)


def test_a_device_is_named_once(tiny: Request, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("studio.run.choose_device", torch.device)
    with pytest.raises(RunError, match="once only"):
        next(run_request(tiny, tmp_path / "run", devices=("cuda:0", "cuda:0")))


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "views"), [(2, 4), (2, 3), (3, 8), (4, 4)])
def test_every_view_falls_to_one_process(world: int, views: int):
    parts = [Part(rank, world, views) for rank in range(world)]
    drawn = torch.arange(views)
    assert torch.equal(torch.cat([part.own(drawn) for part in parts]), drawn)
    assert [int(part.own(drawn)[0]) for part in parts] == [part.first for part in parts]
    assert all(part.total(len(part.own(drawn))) == views for part in parts)


def test_alone_is_the_whole():
    assert ALONE.share(4) is WHOLE and ALONE.leads and ALONE.agreed(lambda: True)()


@pytest.mark.parametrize(
    "event",
    [
        Started("a mug", Path("runs/a-mug"), "cpu", 3, 9),
        StageStarted(0, 2, "HashField", "SDS", 9),
        Stepped(0, 1, 1, 9, torch.tensor(0.5), {"opacity": torch.tensor(0.25)}),
        Checkpointed(3, Path("runs/a-mug/checkpoints/0000003")),
    ],
)
def test_events_travel_as_lines(event: Event):
    assert plain(event_of(json.loads(json.dumps(plain(event))))) == plain(event)
