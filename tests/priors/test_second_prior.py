"""JSD's multi-view prior: counted, asked and put away like the run's own; said, recorded and refused in words."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import JSD
from guidance.contract import Draw
from guidance.controls import Controls
from guidance.diffusers_prior import DiffusersPrior
from guidance.drawing import make_draw
from guidance.piecewise import Piecewise
from guidance.priors.resources import Resources
from guidance.schedules import Schedule
from representations.hash_field import HashField
from studio import prior_check, run
from studio.anchoring import anchored
from studio.cameras import Orbit
from studio.evaluate.cost import work_of
from studio.memory import Down
from studio.request import Request, Stage, check
from studio.restore import without_paths
from studio.stages import Stages
from tests.priors.conftest import prompts_of, some_views

CPU = torch.device("cpu")
FIELD = HashField(levels=(4, 8), occupancy_cells=8)


@pytest.fixture(scope="session")
def second(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-view prior of the text encoder of Stable Diffusion, as MVDream is."""
    folder = tmp_path_factory.mktemp("second") / "multiview"
    shutil.copytree(folder_of("multiview"), folder)
    shutil.copytree(folder_of("stable_diffusion"), folder, dirs_exist_ok=True, ignore=lambda *_: ["unet", "vae"])
    shutil.copyfile(folder_of("multiview") / "dreamkiln.json", folder / "dreamkiln.json")
    return folder


@pytest.fixture
def first(folder_of: Callable[[str], Path]) -> DiffusersPrior:
    return DiffusersPrior.load(folder_of("stable_diffusion"), "cpu", resources=Resources())


def method(second: Path | None) -> JSD:
    """Whose energy is there from the first step on."""
    where = None if second is None else str(second)
    return JSD(energy=Schedule(5.0), multi_view=where, controls=Controls(group=True))


def request_of(first: Path, second: Path | None, **more: Any) -> Request:
    stage = Stage(FIELD, method(second), 4, Orbit(views=4, size=32))
    return dataclasses.replace(Request("a fox", (stage,), prior=str(first)), **more)


def question(first: DiffusersPrior) -> tuple[torch.Tensor, Draw]:
    latents = first.encode(some_views(8).images).detach()
    return latents, make_draw(latents, (400, 600), torch.Generator().manual_seed(0), shared=True)


def kept(state: Any) -> DiffusersPrior:
    """The second prior that a method's memory holds."""
    return state.prior


def test_only_its_network_is_kept(first: DiffusersPrior, second: Path):
    ((name, network),) = kept(method(second).init(first)).parts.modules.items()
    assert name == "unet" and not any(weight.is_meta for weight in network.parameters())


def test_it_is_counted(folder_of: Callable[[str], Path], first: DiffusersPrior, second: Path):
    alone, both = (
        prior_check.need_of_stage(request_of(folder_of("stable_diffusion"), s), 0, CPU) for s in (None, second)
    )
    network = kept(method(second).init(first)).network
    assert both.weights - alone.weights == sum(w.nbytes for w in (*network.parameters(), *network.buffers()))
    assert dataclasses.replace(both, weights=alone.weights, predicting=alone.predicting) == alone
    larger = request_of(folder_of("stable_diffusion"), folder_of("stable_diffusion_xl"))
    assert prior_check.need_of_stage(larger, 0, CPU).weights > both.weights


def test_what_is_asked_is_counted_without_loading_it(second: Path):
    """Two answers for each view by the first prior, one by the second."""
    for folder in (second, Path("/no/such/folder")):
        assert work_of(Stage(None, method(folder), 2, Orbit(views=4))).pictures == 2 * 4 * 3


def test_few_are_asked_about_at_once_and_groups_stay_together(first: DiffusersPrior, second: Path):
    knobs, (latents, draw) = method(second), question(first)
    condition, state = prompts_of(first).condition(some_views(8)), knobs.init(first)
    assert state.prior is not None
    with torch.no_grad():
        whole = knobs.gradient(state, first, latents, condition, draw, 0.5)
        assert (state.prior.evaluations, state.prior.images) == (1, 8)
        pieces = knobs.gradient(state, Piecewise(first, 1), latents, condition, draw, 0.5)
    assert (state.prior.evaluations, state.prior.images) == (3, 16)
    torch.testing.assert_close(pieces, whole, atol=1e-4 * float(whole.abs().max()), rtol=1e-4)
    with torch.no_grad():
        without = dataclasses.replace(knobs, energy=Schedule(0.0)).gradient(state, first, latents, condition, draw, 0.5)
    assert not torch.allclose(without, whole)


def test_it_waits_in_main_memory_as_the_first_does(folder_of: Callable[[str], Path], first, second: Path):
    """From one stage's state to the next, and back; it is loaded once."""
    whole = Stages.of(request_of(folder_of("stable_diffusion"), second), first, None)
    begun = whole.begin(0, None)
    other = kept(begun.guidance_state)
    assert not any(weight.is_meta for weight in other.network.parameters())
    lower = whole.thrifty((Down(0, 0, "offload", ""), Down(0, 0, "offload", "")), 0, 0)
    thrifty = lower.retold(begun)
    state: Any = thrifty.guidance_state
    assert kept(thrifty.guidance_state) is other
    assert any(weight.is_meta for weight in other.network.parameters())
    latents, draw = question(first)
    with torch.no_grad():
        method(second).gradient(state, first, latents, prompts_of(first).condition(some_views(8)), draw, 0.5)
    whole.thrifty((), 0, 0).retold(thrifty)
    assert not any(weight.is_meta for weight in other.network.parameters())


def test_it_is_gone_with_the_run(first: DiffusersPrior, second: Path):
    import gc
    import weakref

    state = method(second).init(first)
    assert method(second).init(first).prior is state.prior is not None
    there = weakref.ref(state.prior)
    del state
    gc.collect()
    assert there() is None


def test_its_views_come_in_groups(folder_of: Callable[[str], Path], first: DiffusersPrior, second: Path):
    request = request_of(folder_of("stable_diffusion"), second)
    assert check(request) == []
    cameras, _ = (
        Stages.of(request, first, None)
        .setting(0)
        .stage.cameras.draw(Stages.of(request, first, None).setting(0).hints, torch.Generator().manual_seed(0))
    )
    assert cameras.pose[:, 1, 3].std() < 1e-5  # at one height
    few = dataclasses.replace(request.stages[0], guidance=JSD(multi_view=str(second)), cameras=Orbit(views=2))
    words = " ".join(problem.text for problem in check(dataclasses.replace(request, stages=(few,))))
    assert "stages.0.cameras.views must be 4, 8" in words and "stages.0.guidance.controls.group must be True" in words


def test_what_is_not_there_or_another_is_refused(folder_of: Callable[[str], Path], first, tmp_path: Path):
    (problem,) = check(request_of(folder_of("stable_diffusion"), tmp_path / "nowhere"))
    assert problem.severity == "error" and problem.text.startswith("stages.0.guidance.multi_view: no prior can be")
    shutil.copytree(folder_of("multiview"), tmp_path / "part", ignore=shutil.ignore_patterns("*.safetensors"))
    (problem,) = check(request_of(folder_of("stable_diffusion"), tmp_path / "part"))
    assert "holds no *.safetensors" in problem.text
    with pytest.raises(ValueError, match="must have the latents and the text encoder"):
        method(folder_of("multiview")).init(first)


def test_its_path_is_made_whole_recorded_and_no_strangers(folder_of: Callable[[str], Path], second: Path, monkeypatch):
    monkeypatch.chdir(second.parent)
    request = anchored(request_of(folder_of("stable_diffusion"), Path(second.name)))
    assert request == request_of(folder_of("stable_diffusion"), second)
    (noted,) = run._stamp(request)["second"]
    assert noted["place"] == str(second) and "unet/diffusion_pytorch_model.safetensors" in noted["weights"]
    found = without_paths(request, [request.prior])
    assert found.request == request_of(folder_of("stable_diffusion"), None)
    assert found.remarks == ("The second prior of its method is left out; its own plays both parts.",)
