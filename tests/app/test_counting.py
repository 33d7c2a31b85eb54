"""Memory counted beside the page: what is asked, that nobody waits for it, and what the page then shows."""

import dataclasses
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from guidance.priors.resources import Resources
from guidance.vsd import VSD
from studio.app import counting
from studio.app.counting import Count, Counter, counted, question
from studio.app.form import Form
from studio.app.panels import planned
from studio.app.service import Service
from studio.cameras import Orbit
from studio.estimate import estimate
from studio.prior_check import peak_of
from studio.prior_options import PriorOptions
from studio.recipes import RECIPES
from studio.request import Request
from tests.priors.tiny import FAMILIES

_TELLING = "import sys; [print(7 * line.count('SDS'), flush=True) for line in sys.stdin]"
_DYING = "import sys; sys.stdin.readline()"


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion, of few random weights."""
    folder = tmp_path_factory.mktemp("priors") / "latent"
    FAMILIES["stable_diffusion"](folder)
    return folder


@pytest.fixture
def request_(latent: Path) -> Request:
    return dataclasses.replace(RECIPES["draft"]("a fox", False), prior=str(latent))


@pytest.fixture
def begun() -> list["subprocess.Popen[str]"]:
    """Processes that were begun."""
    return []


@pytest.fixture
def beginning(begun: list["subprocess.Popen[str]"]) -> Callable[[str], Callable[[], "subprocess.Popen[str]"]]:
    """From a script that stands in for counting to a function that begins it."""

    def of(script: str) -> Callable[[], "subprocess.Popen[str]"]:
        def begin() -> "subprocess.Popen[str]":
            command = [sys.executable, "-S", "-E", "-c", script]
            begun.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            return begun[-1]

        return begin

    return of


def told(counter: Counter, request: Request, seconds: float = 20) -> Count:
    """What a counter says in the end; it is asked as a page asks."""
    until = time.monotonic() + seconds
    while not (count := counter.ask(request)).known and time.monotonic() < until:
        time.sleep(0.01)
    return count


def ended(processes: list["subprocess.Popen[str]"], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.01)
    return all(process.poll() is not None for process in processes)


def with_stage(request: Request, **changes: object) -> Request:
    stages = tuple(dataclasses.replace(stage, **changes) for stage in request.stages)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(request, stages=stages)


def test_a_question_is_answered_once_and_nobody_waits(request_: Request, begun, beginning, monkeypatch) -> None:
    monkeypatch.setattr(counting, "_IDLE", 0.2)
    counter = Counter(beginning(_TELLING))
    assert counter.ask(request_) == Count(False)
    assert told(counter, request_) == Count(True, 7)
    assert counter.ask(dataclasses.replace(request_, prompt="a wolf", seed=9)) == Count(True, 7)
    assert told(counter, with_stage(request_, guidance=VSD())) == Count(True, 0)
    assert ended(begun) and len(begun) == 1  # one process for both, which has gone since nobody asks
    assert told(counter, with_stage(request_, at_once=1)) == Count(True, 7) and len(begun) == 2
    assert ended(begun)


def test_one_that_dies_over_a_question_leaves_it_open(request_: Request, begun, beginning) -> None:
    counter = Counter(beginning(_DYING))
    assert told(counter, request_) == Count(True, None) and counter.ask(request_) == Count(True, None)
    assert told(counter, with_stage(request_, at_once=1)) == Count(True, None) and len(begun) == 2
    assert ended(begun)


def test_without_room_for_a_process_it_stays_open(request_: Request) -> None:
    def begin() -> "subprocess.Popen[str]":
        raise OSError("no more processes")

    assert told(Counter(begin), request_) == Count(True, None)


def test_old_questions_give_way(request_: Request, beginning, monkeypatch) -> None:
    monkeypatch.setattr(counting, "_MOST_WAITING", 2)
    counter = Counter(beginning("import time; time.sleep(60)"))
    for views in range(1, 9):
        counter.ask(with_stage(request_, cameras=Orbit(views)))
    assert len(counter._waiting) == 2


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda r: dataclasses.replace(r, prompt="a wolf", negative="x", seed=3, preview_every=7), True),
        (lambda r: with_stage(r, steps=3, cameras=Orbit(4, 512)), True),
        (lambda r: with_stage(r, cameras=Orbit(2)), False),
        (lambda r: with_stage(r, at_once=1), False),
        (lambda r: dataclasses.replace(r, view_prompts="perp_neg"), False),
        (lambda r: with_stage(r, guidance=VSD()), False),
        (lambda r: dataclasses.replace(r, prior_options=PriorOptions(resolution=64)), False),
        (lambda r: dataclasses.replace(r, prior_options=PriorOptions(one_pass="own")), False),
        (lambda r: dataclasses.replace(r, prior_options=PriorOptions(resources=Resources(offload="text"))), False),
    ],
)
def test_a_question_says_what_memory_depends_on(change: Callable[[Request], Request], same: bool, request_) -> None:
    assert (question(change(request_)) == question(request_)) == same


def test_other_settings_of_the_prior_are_another_question(request_: Request, beginning, begun) -> None:
    counter, config = Counter(beginning(_TELLING)), Path(request_.prior) / "unet" / "config.json"
    assert told(counter, request_).known
    config.write_text(config.read_text() + " ")
    assert not counter.ask(request_).known and told(counter, request_).known
    begun[0].kill()


def test_the_answer_is_what_the_check_before_a_run_counts(request_: Request) -> None:
    out = io.StringIO()
    nothing = dataclasses.replace(request_, prior="/no/such/prior")
    counting.main(io.StringIO("".join(f"{question(one)}\n" for one in (request_, nothing))), out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [peak_of(request_, device), None]
    assert counted(question(with_stage(request_, at_once=1))) < peak_of(request_, device)  # pyright: ignore[reportOptionalOperand]


def test_a_page_shows_a_guess_and_then_what_was_counted(runs: Path, latent: Path, request_: Request) -> None:
    service, form, asked = Service(runs, {"toybox-64": "toybox-64", "latent": str(latent)}), Form("a fox"), []
    answers = iter([Count(False), Count(True, 5 * 2**30), Count(True, None)])
    service.counter.ask = lambda request: asked.append(request) or next(answers)
    waiting, known, open_ = (service.plan(dataclasses.replace(form, prior="latent")) for _ in range(3))
    guess = estimate(request_, runs)
    assert guess.guessed and waiting.estimate == open_.estimate == guess and asked == [request_] * 3
    assert waiting.counting and "its memory is being counted" in planned(waiting)
    own = 0 if torch.cuda.is_available() else 860
    assert known.estimate is not None and known.estimate.memory_mb == 5 * 1024 + own
    assert known.estimate.seconds == guess.seconds and not known.counting and not open_.counting
    assert "its memory is counted" in planned(known) and "counted" not in planned(open_)
    for plain in (form, Form("", prior="latent"), Form("a fox", prior="latent", knobs={"checkpoint_every": 0})):
        assert not service.plan(plain).counting  # the bundled prior's is measured; what is refused needs none
    assert len(asked) == 3


def test_small_priors_are_not_counted(service: Service) -> None:
    plan = service.plan(Form("a mug", prior="tiny"))
    assert plan.estimate is not None and not plan.estimate.guessed and not plan.counting
