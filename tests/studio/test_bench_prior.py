"""``studio bench --prior``: published models at their true size without memory, and small ones through the command."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.resources import Resources
from studio import bench_prior
from studio.bench_networks import PUBLISHED, VAE_PARAMETERS, Published, on_meta, random_parts
from studio.bench_options import PriorTiming
from studio.cli import BAD_USAGE, FAILED, OK, run

CPU = torch.device("cpu")
_TWO: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
_CROSSED: dict[str, Any] = {
    **_TWO,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
_FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (4, 6, 6),
}
SMALL: dict[str, dict[str, Any]] = {
    "sd15": _CROSSED,
    "sd21": {**_CROSSED, "use_linear_projection": True},
    "sdxl": {
        **_CROSSED,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 10 + 6 * 4,
    },
    "if-xl": {
        **_TWO,
        "in_channels": 3,
        "out_channels": 6,
        "sample_size": 32,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "encoder_hid_dim": 12,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "resnet_time_scale_shift": "scale_shift",
    },
    "sd35-medium": {
        "sample_size": 8,
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 12,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "flux-schnell": _FLUX,
    "flux-dev": {**_FLUX, "guidance_embeds": True},
}
_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def small(name: str) -> Published:
    """The same pipeline, words and schedule around a network of a few weights."""
    whole = PUBLISHED[name]
    pooled = 10 if whole.words[2] else 0
    vae = None if whole.vae is None else _VAE
    return dataclasses.replace(whole, settings=SMALL[name], words=(5, 12, pooled), pixels=32, vae=vae)


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every model in turn, made small."""
    monkeypatch.setitem(PUBLISHED, request.param, small(request.param))
    return request.param


# At true size, on the meta device -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", PUBLISHED)
def test_networks_have_as_many_parameters_as_the_published_ones(model: str):
    network, vae = on_meta(PUBLISHED[model], torch.bfloat16)
    assert sum(w.numel() for w in network.parameters()) == PUBLISHED[model].parameters
    assert next(network.parameters()).is_meta and next(network.parameters()).dtype == torch.bfloat16
    if vae is not None:
        assert sum(w.numel() for w in vae.parameters()) == VAE_PARAMETERS[vae.config.latent_channels]


def test_published_numbers():
    """Of model cards and papers; the last as its card rounds it, 4.3 billion."""
    known = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684, "sd35-medium": 2_243_171_520}
    known |= {"flux-dev": 11_901_408_320, "flux-schnell": 11_891_178_560}
    assert {name: PUBLISHED[name].parameters for name in known} == known
    assert round(PUBLISHED["if-xl"].parameters, -8) == 4_300_000_000
    assert VAE_PARAMETERS == {4: 83_653_863, 16: 83_819_683}


def test_the_memory_that_is_asked_for_holds_the_weights_and_a_step():
    timing = PriorTiming(pixels=256, methods=("SDS",), resources=Resources("bfloat16"))
    weights = 2 * (PUBLISHED["sd15"].parameters + VAE_PARAMETERS[4])
    assert weights < bench_prior.needed("sd15", CPU, timing) < 1.5 * weights


def test_the_memory_that_is_asked_for_grows_with_what_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PUBLISHED, "sd15", small("sd15"))

    def needed(**given: Any) -> int:
        return bench_prior.needed("sd15", CPU, PriorTiming(**{"methods": ("SDS",), **given}))

    assert needed() < needed(views=4) < needed(views=4, pixels=64)
    assert needed(views=4, at_once=1) < needed(views=4)
    assert needed() < needed(methods=("SDS", "VSD")) < needed(methods=("SDS", "VSD"), views=4)
    assert needed(resources=Resources("bfloat16")) < needed()


# Random weights -------------------------------------------------------------------------------------------------------


def test_random_weights_keep_numbers_at_a_size(name: str):
    for dtype in (torch.float32, torch.bfloat16):
        kind: Any = str(dtype).removeprefix("torch.")
        prior = DiffusersPrior(random_parts(PUBLISHED[name], CPU, Resources(kind), dtype, 32))
        assert prior.dtype == dtype and prior.resolution == 32
        embedded = prior.embed(["a mug", "a cup", "a mug"])
        assert torch.equal(embedded[0], embedded[2]) and not torch.equal(embedded[0], embedded[1])
        latents = prior.encode(torch.rand(2, 3, 32, 32))
        answer = prior.predict_noise(latents, torch.tensor([20, 900]), embedded[:2])
        assert answer.shape == latents.shape and answer.isfinite().all()
        assert 1e-3 < answer.std() < 1e3


def test_every_weight_is_filled(name: str):
    parts = random_parts(PUBLISHED[name], CPU, Resources("float32"), torch.float32, 32)
    for module in parts.modules.values():
        for key, weight in module.state_dict().items():
            assert weight.isfinite().all() and (weight.any() or key.endswith("bias")), key


# The command ----------------------------------------------------------------------------------------------------------


def test_an_iteration_and_where_it_goes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "speed.json"
    assert run(["bench", "--device", "cpu", "--prior", name, "--steps", "2", "--views", "2", "--json", str(file)]) == OK
    found = json.loads(file.read_text())
    assert {"date", "device", "torch", "diffusers"} <= found["machine"].keys() and not found["left_out"]
    assert [(row["prior"], row["method"], row["weights"]) for row in found["rows"]] == [
        (name, "SDS", "random"),
        (name, "VSD", "random"),
    ]
    sds, vsd = found["rows"]
    for row in (sds, vsd):
        assert len(row["every"]) == 2 and 0 < row["prior_share"] < 1 and row["processor_seconds"] > 0
        assert row["parts"]["network"] > 0 and row["parts"]["encoder"] > 0 and row["parts"]["scene"] > 0
        assert row["peak_mb"]["host"] > 100 and row["views"] == 2 and row["pixels"] == 32
        # Medians of parts need not add up to the median of the whole, but nearly do.
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"], rel=0.5)
    assert vsd["parts"]["critic"] > 10 * sds["parts"]["critic"]
    assert f"{name} (random weights, float32), VSD, 2 views of 32 px" in capsys.readouterr().out


def test_a_folder_is_timed_with_its_own_weights(tiny_prior: Path, tmp_path: Path):
    file = tmp_path / "speed.json"
    words = ["--methods", "SDS", "--steps", "0", "--at-once", "1", "--views", "2", "--json", str(file)]
    assert run(["bench", "--device", "cpu", "--prior", str(tiny_prior), *words]) == OK
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["weights"], row["at_once"], row["parts"]["critic"] < row["parts"]["network"]) == ("loaded", 1, True)
    assert row["every"] == [row["first"]] == [row["seconds"]]


def test_what_does_not_fit_is_said_and_the_others_go_on(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setitem(PUBLISHED, "sd21", small("sd21"))
    monkeypatch.setattr(bench_prior, "free_memory", lambda: 2**30)
    monkeypatch.setattr(
        bench_prior, "random_parts", lambda published, place, *rest: _no_weights(published, place, *rest)
    )
    file = tmp_path / "speed.json"
    words = ["--methods", "SDS", "--steps", "1", "--json", str(file)]
    assert run(["bench", "--device", "cpu", "--prior", "flux-dev", "nothing", "sd21", *words]) == FAILED
    found = json.loads(file.read_text())
    assert [row["prior"] for row in found["rows"]] == ["sd21"]
    assert "1.0 GB are free" in found["left_out"]["flux-dev"] and "--at-once 1" in found["left_out"]["flux-dev"]
    assert "no prior 'nothing'" in found["left_out"]["nothing"]
    assert "flux-dev: it needs about" in capsys.readouterr().out


def _no_weights(published: Published, place: torch.device, *rest: Any) -> Any:
    """As always, but for a large model that would get weights."""
    assert place.type == "meta" or published.pixels == 32
    return random_parts(published, place, *rest)


_ROW = bench_prior.PriorRow(
    "sd15", "random", "SDS", 32, 1, None, "float32", "off", 9, 2.0, 3.0, (2.0,), 4.0, {"network": 2.0}, 1.0, {"host": 5}
)


def test_memory_that_ends_is_said_and_nothing_else_is_hidden(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setitem(PUBLISHED, "sd15", small("sd15"))

    def ends(*_: Any) -> Any:
        yield _ROW
        raise RuntimeError(words)

    monkeypatch.setattr(bench_prior, "time_prior", ends)
    file = tmp_path / "speed.json"
    asked = ["bench", "--device", "cpu", "--prior", "sd15", "--json", str(file)]
    words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nand more of it"
    assert run(asked) == FAILED
    assert (
        "sd15: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\n" in capsys.readouterr().out
    )
    found = json.loads(file.read_text())
    assert found["left_out"] == {"sd15": words.splitlines()[0]} and found["rows"][0]["seconds"] == 2.0
    file.unlink()
    words = "a fault of the program"
    with pytest.raises(RuntimeError, match=words):
        run(asked)
    assert len(json.loads(file.read_text())["rows"]) == 1  # what was known by then


@pytest.mark.parametrize("option", ["--views 0", "--steps -1", "--pixels 0", "--at-once 0"])
def test_nonsense_is_refused(option: str, capsys: pytest.CaptureFixture[str]):
    name, value = option.split()
    assert run(["bench", "--prior", "sd15", f"{name}={value}"]) == BAD_USAGE
    shown = capsys.readouterr()
    assert f"{name} must be {int(value) + 1} or more, not {value}" in shown.err + shown.out
