"""Memory told beforehand against memory measured: of parts of a step, and of whole steps of methods."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import SDS, VSD
from guidance.contract import Prior, Stateless
from guidance.diffusers_prior import DiffusersPrior
from guidance.piecewise import Piecewise
from guidance.priors.counting import peak_of, way_back
from guidance.priors.memory import Need, encoding, native_pixels, need_of, predicting
from guidance.priors.resources import Resources
from guidance.priors.weightless import bytes_of, weightless
from studio import prior_check
from studio.cli import run
from studio.options import Generate, build_request
from studio.prior_options import PriorOptions
from studio.request import Request
from tests.priors import tiny
from tests.priors.conftest import prompts_of, some_views
from tests.priors.tiny import FAMILIES, PIXELS

SD = "stable_diffusion"


def measured(step: Any) -> int:
    """Most bytes that torch's own allocator has out at once."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    now = peak = 0
    for event in found.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, now)
    return peak


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion of middle size: what is kept outweighs what libraries take for themselves."""
    folder = tmp_path_factory.mktemp("wide") / "prior"
    parts: dict[str, Any] = {"block_out_channels": (64, 64), "norm_num_groups": 32, "attention_head_dim": 4}
    network = tiny.unet(**parts)
    tiny.FAMILIES[SD](folder)
    network.save_pretrained(folder / "unet")
    tiny.vae(block_out_channels=(32, 64, 64), norm_num_groups=32).save_pretrained(folder / "vae")
    return folder


def test_an_evaluation_takes_what_was_told(wide: Path):
    prior = DiffusersPrior.load(wide, "cpu", resolution=128)
    text, t = torch.randn(2, 16, 32), torch.ones(2, dtype=torch.long)

    def step() -> None:
        prior.predict_noise(torch.randn(2, 4, 32, 32), t, text)

    told = predicting(weightless(wide, torch.float32, Resources(), 128), 2)
    assert told == pytest.approx(measured(step), rel=0.02)


def test_an_encoding_takes_what_was_told(folder_of: Callable[[str], Path]):
    real = DiffusersPrior.load(folder_of(SD), "cpu", resolution=64)

    def step() -> None:
        images = torch.rand(2, 3, 64, 64, requires_grad=True)
        real.parts.latents.encode(images * 2 - 1).sum().backward()

    kept, most = encoding(weightless(folder_of(SD), torch.float32, Resources(), 64), 2)
    assert most == pytest.approx(measured(step), rel=0.05) and 0.5 * most < kept < most


@pytest.mark.parametrize(
    ("resources", "at_once"),
    [
        (Resources(vae_slicing=True), None),
        (Resources(), 1),
        (Resources(vae_slicing=True, vae_checkpointing=True, network_checkpointing=True), None),
    ],
)
def test_whole_steps_take_what_was_told(resources: Resources, at_once: int | None, wide: Path):
    """Of a method, and of its critic, through the classes that a run goes through."""
    loaded = DiffusersPrior.load(wide, "cpu", resources=resources, resolution=64)
    prior: Prior = loaded if at_once is None else Piecewise(loaded, at_once)
    views, method, rng = some_views(2, 64), VSD(), torch.Generator().manual_seed(0)
    condition, state = prompts_of(loaded).condition(views), method.init(prior, 3)
    need = need_of(wide, 2, 2, 64, torch.float32, (method.critic.rank,), at_once, resources)

    def distil() -> None:
        fresh = dataclasses.replace(views, images=views.images.detach().clone().requires_grad_())
        SDS().loss(Stateless(), prior, fresh, condition, 0.25, rng).value.backward()

    told = max(need.predicting + need.kept, need.encoding)
    assert told == pytest.approx(measured(distil), rel=0.1)
    learnt = measured(lambda: method.train_critic(state, prior, views, condition, rng))
    assert need.learning == pytest.approx(learnt, rel=0.1)
    moments = [m for s in state.learner.optimiser.state.values() for m in s.values() if m.dim()]
    assert need.critic == sum(w.nbytes for w in (*state.adapter.parameters(), *moments))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_folder_tells_what_it_needs(family: str, folder_of, prior_of):
    folder, prior = folder_of(family), prior_of(family)
    need, group = need_of(folder, 4, 2, PIXELS, torch.float32, (4,)), prior.hints["views"]
    texts = [module for name, module in prior.parts.modules.items() if name.startswith("text_encoder")]
    others = [module for name, module in prior.parts.modules.items() if not name.startswith("text_encoder")]
    assert need.texts == sum(map(bytes_of, texts)) and need.weights == sum(map(bytes_of, others))
    assert need.predicting > 0 and need.learning > need.predicting / 2 and native_pixels(folder) == PIXELS
    assert predicting(weightless(folder, torch.float32, Resources(), 2 * PIXELS), 8) > need.predicting
    single = need_of(folder, 4, 2, PIXELS, torch.float32, (4,), 1)
    assert (single.predicting < need.predicting) and (single.learning < need.learning) == (group == 1)


def test_options_need_what_they_promise(wide: Path):
    def need(at_once: int | None = None, **options: Any) -> Need:
        return need_of(wide, 2, 2, 64, torch.float32, (4,), at_once, Resources(**options))

    plain = need()
    assert need(vae_checkpointing=True).kept < 0.3 * plain.kept
    assert need(vae_checkpointing=True).encoding < 0.8 * plain.encoding
    assert need(network_checkpointing=True).learning < 0.8 * plain.learning
    assert need(at_once=1).encoding < 0.6 * plain.encoding
    layers = need(offload="layers")
    assert layers.weights < 0.7 * plain.weights and layers.texts == plain.texts
    assert dataclasses.replace(layers, weights=plain.weights) == plain
    assert need_of(wide, 2, 2, 64, torch.float32, (4, 4)).critic == 2 * plain.critic


def test_a_large_network_is_counted_with_its_conditions(folder_of: Callable[[str], Path]):
    """A ControlNet's activations; what surrounds the part to be filled, which is encoded for each answer."""
    alone = need_of(folder_of(SD), 2, 2, PIXELS, torch.float32)
    controlled = need_of(folder_of("controlnet_depth"), 2, 2, PIXELS, torch.float32)
    assert controlled.weights > alone.weights and controlled.predicting > alone.predicting
    assert need_of(folder_of("inpainting"), 2, 2, PIXELS, torch.float32).predicting > 2 * alone.predicting


def test_tiles_make_decoding_thrifty_and_gradients_not(folder_of: Callable[[str], Path]):
    plain, tiled = (
        need_of(folder_of(SD), 1, 2, 128, torch.float32, (), None, Resources(vae_tiling=t)) for t in (False, True)
    )
    assert tiled.decoding < 0.5 * plain.decoding and tiled.encoding > plain.encoding


def test_a_single_file_is_counted_by_its_configuration(folder_of, tmp_path: Path):
    (tmp_path / "one.safetensors").touch()
    for file in folder_of(SD).rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            place = tmp_path / "one" / file.relative_to(folder_of(SD))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    folder = prior_check.configuration_of(tmp_path / "one.safetensors")
    assert need_of(folder, 1, 2, PIXELS, torch.float32) == need_of(folder_of(SD), 1, 2, PIXELS, torch.float32)


def test_what_is_computed_again_is_counted_with_fused_attention():
    """Checkpointing refuses what comes out another way the second time."""
    from torch.utils.checkpoint import checkpoint

    def step() -> None:
        q, k, v = (torch.empty(1, 1, 4096, 8, device="meta", requires_grad=True) for _ in range(3))
        attend = torch.nn.functional.scaled_dot_product_attention
        way_back(torch.as_tensor(checkpoint(attend, q, k, v, use_reentrant=False)).sum())

    assert peak_of(step) < 4096 * 4096 * 4 / 4


def test_the_peak_is_the_worst_moment():
    need = Need(weights=100, texts=50, predicting=10, kept=5, encoding=30)
    assert need.peak() == 180 and need.peak(text_waits=True) == 130
    learnt = dataclasses.replace(need, critic=7, learning=40)
    assert learnt.peak() == 197 and learnt.peak(text_waits=True) == 147
    assert dataclasses.replace(need, texts=500).peak(text_waits=True) == 500  # they visit alone
    assert dataclasses.replace(need, decoding=60).peak() == 210


def test_the_autoencoder_of_xl_stays_in_32_bits(folder_of):
    sixteen = Resources("float16")
    for family, dtype in (("stable_diffusion_xl", torch.float32), (SD, torch.float16)):
        prior = DiffusersPrior.load(folder_of(family), "cpu", resources=sixteen)
        assert prior.parts.modules["vae"].dtype == dtype and prior.network.dtype == torch.float16
        need = need_of(folder_of(family), 1, 2, PIXELS, torch.float16)
        plain = weightless(folder_of(SD), dtype, Resources(), PIXELS)
        assert need.kept == pytest.approx(encoding(plain, 1)[0], rel=1e-3)
        assert need.weights == bytes_of(prior.network) + bytes_of(prior.parts.modules["vae"])


# Said before a run ----------------------------------------------------------------------------------------------------


def test_doctor_tells_of_a_prior(folder_of, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["doctor", "--prior", str(folder_of("multiview"))]) in (0, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "StableDiffusionPipeline, 4 views as one" in shown and "memory at 32 px" in shown
    assert "at the thriftiest" in shown and "with a critic (VSD)" in shown and "--stages.0.at-once 1" in shown
    assert run(["doctor", "--prior", "sdlx"]) == 2
    assert "did you mean 'sdxl'" in capsys.readouterr().err


def request_for(folder: Path, method: Any = SDS()) -> Request:  # noqa: B008 -- frozen
    request = build_request(Generate("a fox", prior=str(folder)), [])
    stage = dataclasses.replace(request.stages[0], guidance=method)
    return dataclasses.replace(request, stages=(stage,))


def test_a_run_is_told_before_that_its_prior_will_not_fit(folder_of, monkeypatch: pytest.MonkeyPatch):
    cpu, request = torch.device("cpu"), request_for(folder_of("stable_diffusion_3"))
    assert prior_check.memory_warnings(request, cpu) == []
    monkeypatch.setattr(prior_check, "available", lambda device: 1000)
    (words,) = prior_check.memory_warnings(request, cpu)
    assert f"views of {PIXELS} px" in words and "--prior-options.resolution 16; even then" in words
    assert "network-checkpointing" not in words and "offload" not in words
    assert prior_check.memory_warnings(build_request(Generate("a red mug"), []), cpu) == []


def test_the_advice_stops_where_it_suffices(folder_of, monkeypatch: pytest.MonkeyPatch):
    request = request_for(folder_of(SD))
    stages = (dataclasses.replace(request.stages[0], at_once=1),)
    enough = prior_check.peak_of(dataclasses.replace(request, stages=stages), torch.device("cpu"))
    monkeypatch.setattr(prior_check, "available", lambda device: enough)
    (words,) = prior_check.memory_warnings(request, torch.device("cpu"))
    assert "What helps: --stages.0.at-once 1; with all of it" in words


def test_a_method_is_counted_by_what_it_asks_and_learns(folder_of):
    cpu = torch.device("cpu")
    plain, critic = (prior_check.need_of_stage(request_for(folder_of(SD), m), 0, cpu) for m in (SDS(), VSD()))
    assert plain.critic == plain.learning == 0 < critic.critic < critic.learning
    assert dataclasses.replace(critic, critic=0, learning=0) == plain
    once = dataclasses.replace(request_for(folder_of(SD)), prior_options=PriorOptions(one_pass="own"))
    told = prior_check.need_of_stage(once, 0, cpu)
    assert told == dataclasses.replace(plain, predicting=told.predicting)  # of half as many samples
    assert told.predicting == need_of(folder_of(SD), 4, 1, PIXELS, torch.float32).predicting < plain.predicting
    away = dataclasses.replace(request_for(folder_of(SD)), view_prompts="perp_neg")
    assert prior_check.need_of_stage(away, 0, cpu).predicting > 1.5 * plain.predicting
