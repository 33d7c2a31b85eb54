"""The rung of the prior: it trades time for memory in the midst of a run, which goes on as it was."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import SDS, VSD
from guidance.critic import Critic
from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.resources import Resources
from representations.field import RadianceField
from representations.hash_field import FieldGrid
from studio.cameras import Orbit
from studio.events import Finished, Stepped, Warned
from studio.memory import Down, add_down, downs_of, step_down, thrifty, with_rung
from studio.request import Export, Request, Stage
from studio.run import run_request
from tests.priors.tiny import FAMILIES
from tests.studio.test_memory import FIELD, FULL, close, end, fail_once, go, same

METHODS = {"SDS": SDS(scale=2.0), "VSD": VSD()}


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Stable Diffusion, of few random weights."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("priors") / "latent"
    FAMILIES["stable_diffusion"](folder)
    return folder


@pytest.fixture(scope="module")
def prior(latent: Path) -> DiffusersPrior:
    return DiffusersPrior.load(latent, "cpu")


def request_of(prior: Path, method: str = "SDS", **more: Any) -> Request:
    """Six steps, one picture at a time already, so that the prior's is the next rung."""
    stage = Stage(FIELD, METHODS[method], steps=6, cameras=Orbit(views=2, size=32), at_once=1)
    return Request("a fox", (stage,), prior=str(prior), checkpoint_every=2, preview_every=0, **more)


PLACES: dict[str, tuple[Any, str, int]] = {"SDS": (FieldGrid, "restructure", 3), "VSD": (Critic, "train_step", 3)}


@pytest.mark.parametrize("method", METHODS)
def test_the_prior_is_made_thriftier_and_nothing_else_changes(
    method: str, latent: Path, prior, tmp_path: Path, monkeypatch
):
    request = request_of(latent, method)
    go(request, tmp_path / "whole", prior)
    adapters = []
    made = DiffusersPrior.adapter
    monkeypatch.setattr(DiffusersPrior, "adapter", lambda *a: adapters.append(made(*a)) or adapters[-1])
    fail_once(monkeypatch, *PLACES[method], torch.OutOfMemoryError(FULL))
    events = go(request, tmp_path / "short", prior)
    (said,) = [e.text for e in events if isinstance(e, Warned)]
    assert said.startswith("Out of memory at step 3: from here on text encoders wait in main memory, and what the way")
    assert [(down.step, down.rung) for down in downs_of(tmp_path / "short")] == [(2, "offload")]
    assert [e.done for e in events if isinstance(e, Stepped)] == [1, 2, 3, 4, 5, 6]
    assert close(end(tmp_path / "whole"), end(tmp_path / "short"))
    vae = prior.parts.modules["vae"]
    assert vae.use_slicing and vae.is_gradient_checkpointing and prior.parts.idle == ("text_encoder",)
    if adapters:
        assert [a.network.is_gradient_checkpointing for a in adapters] == [False, True]
    go(request, tmp_path / "next", prior)  # the same prior, in a run that has met no end of memory
    assert not vae.use_slicing and not vae.is_gradient_checkpointing and prior.parts.idle == ()
    assert same(end(tmp_path / "whole"), end(tmp_path / "next"))


@pytest.mark.parametrize("at", [3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_with_the_thrifty_prior(
    method: str, at: int, latent: Path, prior, tmp_path: Path, monkeypatch
):
    request = request_of(latent, method)
    for name in ("whole", "killed"):
        with monkeypatch.context() as patch:
            fail_once(patch, *PLACES[method], torch.OutOfMemoryError(FULL))
            go(request, tmp_path / name, prior, until=10**6 if name == "whole" else at)
    again = go(request, tmp_path / "killed", prior)
    assert not [e for e in again if isinstance(e, Warned)]
    assert next(e.done for e in again if isinstance(e, Stepped)) == at // 2 * 2 + 1
    assert same(end(tmp_path / "whole"), end(tmp_path / "killed"))


def test_a_resumed_run_becomes_thrifty_where_the_first_did(latent: Path, prior, tmp_path: Path):
    """In the midst of steps, without a failure: the critic goes on with what it has learnt."""
    request = request_of(latent, "VSD")
    go(request, tmp_path / "whole", prior, until=3)
    for name in ("whole", "again"):
        (tmp_path / name).mkdir(exist_ok=True)
        add_down(tmp_path / name, Down(0, 3, "offload", "thriftier"))
    go(request, tmp_path / "whole", prior)
    go(request, tmp_path / "again", prior)
    assert same(end(tmp_path / "whole"), end(tmp_path / "again"))
    assert prior.parts.idle


def test_layers_may_wait_too(latent: Path, prior, tmp_path: Path):
    request = request_of(latent)
    go(request, tmp_path / "whole", prior)
    (tmp_path / "short").mkdir()
    for step in (2, 4):
        add_down(tmp_path / "short", Down(0, step, "offload", "thriftier"))
    go(request, tmp_path / "short", prior)
    assert any(weight.is_meta for weight in prior.network.parameters())
    assert close(end(tmp_path / "whole"), end(tmp_path / "short"))
    go(request, tmp_path / "next", prior)
    assert not any(weight.is_meta for weight in prior.network.parameters())
    assert same(end(tmp_path / "whole"), end(tmp_path / "next"))


def test_a_whole_run_takes_the_rung_and_says_so(latent: Path, tmp_path: Path, monkeypatch):
    stage = dataclasses.replace(request_of(latent).stages[0], steps=2)
    export = Export(faces=100, texture=64, grid=24, picture=32)
    request = dataclasses.replace(request_of(latent), stages=(stage,), export=export)
    fail_once(monkeypatch, RadianceField, "render", 1, torch.OutOfMemoryError(FULL))
    assert isinstance(list(run_request(request, tmp_path / "run", "cpu"))[-1], Finished)
    (down,) = json.loads((tmp_path / "run" / "memory.json").read_text())
    assert down["rung"] == "offload"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["stepped_down"] == [down["text"]]


# Which rungs help -----------------------------------------------------------------------------------------------------


def rungs(request: Request, device: str) -> list[str]:
    """All rungs from the first to the last."""
    found = []
    while (down := step_down(request, 0, 0, device)) is not None:
        found.append(down.rung)
        lower = with_rung(request, 0, down.rung)
        assert lower is not None
        request = lower
    return found


LAST = ["ray samples", "ray samples", "resolution"]


@pytest.mark.parametrize(
    ("family", "method", "device", "count"),
    [
        ("latent", "SDS", "cpu", 1),  # slicing and checkpointing alone help there
        ("latent", "SDS", "cuda", 2),
        ("latent", "VSD", "cuda", 1),  # a critic needs the network in memory
        ("bare", "SDS", "cpu", 0),
        ("bare", "SDS", "cuda", 0),  # a small prior without an autoencoder
        ("bare", "VSD", "cpu", 1),
    ],
)
def test_rungs_that_do_not_help_are_left_out(
    family: str, method: str, device: str, count: int, latent: Path, tiny_prior: Path
):
    request = request_of(latent if family == "latent" else tiny_prior, method)
    small = dataclasses.replace(request.stages[0], cameras=Orbit(views=2, size=40))
    request = dataclasses.replace(request, stages=(small,))
    assert rungs(request, device) == ["offload"] * count + LAST


def test_layers_stay_for_a_critic_that_comes_later(latent: Path):
    first, later = request_of(latent).stages[0], request_of(latent, "VSD").stages[0]
    request = dataclasses.replace(request_of(latent), stages=(first, dataclasses.replace(later, representation=None)))
    assert rungs(request, "cuda").count("offload") == 1
    alone = dataclasses.replace(request, stages=(dataclasses.replace(later), first))
    lowered = thrifty(alone, (Down(1, 0, "offload", ""), Down(1, 1, "offload", "")), 1, 1)
    assert lowered.prior_options.resources == Resources(
        offload="layers", vae_slicing=True, vae_checkpointing=True, network_checkpointing=True
    )


def test_a_compiled_network_is_not_taken_apart(latent: Path):
    options = dataclasses.replace(request_of(latent).prior_options, resources=Resources(compile="default"))
    assert rungs(request_of(latent, prior_options=options), "cuda").count("offload") == 1
