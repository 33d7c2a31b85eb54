"""Pictures of what a method asks for: right for SDS on paper, made for every method, and without influence."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import SDS
from guidance.contract import Condition, Draw, Trace, Views
from guidance.controls import Controls
from guidance.losses import distillation_loss
from guidance.methods import AnyGuidance
from guidance.noising import PlainWeighting, add_noise
from guidance.testing import GaussianPrior, embedding
from studio.checkpoints import Checkpoints, read_state
from studio.codec import members
from studio.debug_pictures import debug_picture, estimates, where_it_leads
from studio.events import Checkpointed, DebugPictured, Stepped
from studio.optimize import Step
from studio.request import Request
from studio.run import run_request

PRIOR = GaussianPrior(channels=3, resolution=8)


def condition(latents: torch.Tensor) -> Condition:
    """The prompt's Gaussian and the null prompt's, which is that of an edit's source too."""
    text, null = (embedding(gaussian).expand(len(latents), 1, 2) for gaussian in ((0.6, 0.1), (0, 1)))
    return Condition(text=text, null=null, negative=null, source=null, source_latents=latents / 2)


def traced(method: Any, views: int = 2) -> tuple[Trace, Condition]:
    """What a method's loss leaves about pictures of noise."""
    rng = torch.Generator().manual_seed(3)
    latents, noise = (torch.rand(views, 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    one = torch.ones(views, dtype=torch.float64)
    draw = Draw(torch.tensor([150, 700])[:views], noise, one, 0 * one, one / 2, seed=0)
    told = condition(latents)
    gradient = method.gradient(method.init(PRIOR), PRIOR, latents, told, draw, 0.3)
    trace = distillation_loss(latents, gradient, draw).trace
    assert trace is not None
    return trace, told


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d", "snr_sqrt", "dmd"])
@pytest.mark.parametrize("form", ["noise", "clean"])
def test_sds_asks_for_its_clean_estimate_whatever_its_weight(form: Any, weighting: PlainWeighting):
    controls = Controls(clamp=1.0, final_scale=3.0, loss_weight=0.1)
    method = SDS(7.5, form, weighting, controls=controls)
    trace, told = traced(method)
    noisy = add_noise(PRIOR, trace.latents, trace.draw.noise, trace.draw.timesteps)
    plain, guided = estimates(method, PRIOR, trace, told, noisy, 0.3)
    assert guided is not None and (plain - guided).abs().max() > 0.1
    torch.testing.assert_close(where_it_leads(trace, guided), guided)


def test_nothing_asked_for_is_the_render_itself():
    trace, _ = traced(SDS())
    still = dataclasses.replace(trace, gradient=torch.zeros_like(trace.gradient))
    assert torch.equal(where_it_leads(still, torch.ones_like(trace.latents)), trace.latents)


@pytest.mark.parametrize("name", members(AnyGuidance))
def test_every_method_can_be_looked_at(name: str):
    from PIL import Image

    method = members(AnyGuidance)[name]()
    trace, told = traced(method)
    event = Stepped(0, 5, 5, 9, torch.zeros(()))
    views = Views(torch.rand(2, 3, 20, 20), torch.eye(4).expand(2, 4, 4), torch.ones(2, 3))
    loss = distillation_loss(trace.latents, trace.gradient, trace.draw)
    png = debug_picture(method, PRIOR, "a mug", Step(event, views, told, loss, 0.3))
    assert png is not None
    picture = Image.open(io.BytesIO(png))
    rows = 5 if hasattr(method, "scale") else 4
    assert picture.size == (8 + 2 * 136, 38 + rows * 154)
    untraced = Step(event, views, told, dataclasses.replace(loss, trace=None), 0.3)
    assert debug_picture(method, PRIOR, "a mug", untraced) is None


def ended(request: Request, folder: Path) -> tuple[dict[str, torch.Tensor], list[DebugPictured]]:
    """Final parameters and pictures of a run, without its export."""
    pictures, events = [], run_request(request, folder, "cpu")
    for event in events:
        if isinstance(event, DebugPictured):
            pictures.append(event)
        if isinstance(event, Checkpointed) and event.step == request.steps:
            events.close()
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])["representation"], pictures


def test_looking_changes_nothing(tiny: Request, tmp_path: Path):
    unseen, none = ended(tiny, tmp_path / "unseen")
    looked_at, pictures = ended(dataclasses.replace(tiny, debug_every=2), tmp_path / "seen")
    assert not none and not (tmp_path / "unseen" / "debug").exists()
    assert [p.step for p in pictures] == [2, 4, 7, 9]  # every second step of each stage
    assert [p.path.name for p in pictures] == ["000002.png", "000004.png", "000007.png", "000009.png"]
    assert all(p.path.parent == tmp_path / "seen" / "debug" and p.path.stat().st_size > 500 for p in pictures)
    assert all(torch.equal(unseen[name], looked_at[name]) for name in unseen)
    recorded = [json.loads(line)["event"] for line in (tmp_path / "seen" / "events.jsonl").read_text().splitlines()]
    assert recorded.count("DebugPictured") == 4


def test_it_is_an_option_of_generate(tiny: Request):
    from studio.options import Generate, build_request

    assert build_request(Generate("a mug"), []).debug_every == 0
    assert build_request(Generate("a mug", debug_pictures=50), []).debug_every == 50
