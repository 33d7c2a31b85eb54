"""From loaded components to a prior's parts: diffusers' own pipeline around them, and the family's way to call it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidance.prior_folder import Hints, about_pickles, in_short, refuse, unreadable
from guidance.priors.controlnet import Controlled
from guidance.priors.deepfloyd import DeepFloyd
from guidance.priors.extensions import Extensions, extend
from guidance.priors.fitting import refuse_misfits, refuse_other_controlnet
from guidance.priors.flux import Flux
from guidance.priors.inpainting import Inpainting
from guidance.priors.latents import Autoencoder, Latents, Pixels
from guidance.priors.multiview import join_views
from guidance.priors.network import Network, size_of
from guidance.priors.parts import Parts
from guidance.priors.picture_prompt import PicturePrompt
from guidance.priors.process import alphas_cumprod, is_flow
from guidance.priors.resources import Resources, settle
from guidance.priors.sd3 import SD3
from guidance.priors.unet import UNet
from guidance.priors.unet_xl import UNetXL
from guidance.priors.weights import IP_ADAPTER, weight_files
from guidance.priors.words import ClipWords, NoWords, PipelineWords, Reading, Words
from guidance.priors.zero123 import NovelView

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PROJECTIONS = ("cc_projection", "clip_camera_projection")
"""What folders of novel-view priors call the layer that joins the picture and the cameras."""


@dataclass(frozen=True)
class Plan:
    """What is to become of components."""

    device: torch.device
    resources: Resources
    hints: Hints
    resolution: int | None = None
    """Pixels a side; None: as the network was trained."""
    extensions: Extensions = Extensions()  # noqa: RUF009 -- frozen


def bare(components: dict[str, Any], plan: Plan) -> Parts:
    """Parts of a U-Net without a pipeline: the bundled prior, and folders that name none.

    Raises:
        ValueError: the components do not fit together.
    """
    unet, vae = components["unet"], components.get("vae")
    words: Words = ClipWords(components["text_encoder"], components["tokenizer"])
    if plan.extensions:
        pipe = _pipeline("StableDiffusionPipeline", components, {})
        extend(pipe, plan.extensions)
        words = PipelineWords(pipe, "clip") if plan.extensions.inversions else words  # of several tokens a word
    if vae is None:
        _place(components, plan)
        return _parts(_unet(unet, plan, None), words, Pixels(plan.hints["pixel_shuffle"]), components, plan)
    latents = _autoencoder(vae, plan)
    _place(components, plan)
    return _parts(_unet(unet, plan, None), words, latents, components, plan)


def assemble(pipeline: str, components: dict[str, Any], settings: dict[str, Any], plan: Plan, folder: Path) -> Parts:
    """Parts of a folder that is for one of diffusers' pipelines, or of Zero123's ("").

    Raises:
        MissingPriorError: a component is missing.
        ValueError: the components do not fit together.
    """
    if pipeline == "":
        return _novel_view(components, plan, folder)
    family = _FAMILIES[pipeline]
    for name in family.needs:
        if components.get(name) is None:
            refuse(folder, f"its {name}/ is missing")
    pipe = _pipeline(pipeline, components, settings)
    picture = _picture_prompt(pipe, components, folder) if (folder / IP_ADAPTER).is_file() else None
    if plan.extensions:
        extend(pipe, plan.extensions)
    pixels = components.get("vae") is None
    latents = Pixels(plan.hints["pixel_shuffle"]) if pixels else _autoencoder(components["vae"], plan, "XL" in pipeline)
    _place(components, plan)
    network = family.network(pipe, plan, latents, picture)
    words = PipelineWords(pipe, family.reading, family.pooled(pipe))
    return _parts(network, words, latents, components, plan, picture)


def _pipeline(name: str, components: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The pipeline around its components; what it wants and a prior does without is None."""
    import diffusers

    kind = getattr(diffusers, name)
    wanted = inspect.signature(kind.__init__).parameters
    given = {k: v for k, v in {**settings, **components}.items() if k in wanted}
    given |= {"requires_safety_checker": False} if "requires_safety_checker" in wanted else {}
    given |= {"add_watermarker": False} if "add_watermarker" in wanted else {}
    lacking = {k: None for k, p in wanted.items() if p.default is inspect.Parameter.empty and k != "self"}
    return kind(**{**lacking, **given})


def _parts(
    network: Network, words: Words, latents: Latents, components: dict[str, Any], plan: Plan, eye: Any = None
) -> Parts:
    model, scheduler = network.model, components["scheduler"]
    resolution = _resolution(model, latents, plan)
    prediction = "flow" if is_flow(scheduler) else scheduler.config.prediction_type
    refuse_misfits(network, words, latents, prediction, plan.hints)
    modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    for module in modules.values():
        module.eval().requires_grad_(False)
    abar = alphas_cumprod(scheduler, (resolution // latents.factor // 2) ** 2)
    return Parts(
        network=network,
        words=words,
        latents=latents,
        alphas_cumprod=abar.to(plan.device),
        prediction=prediction,
        hints=plan.hints,
        resolution=resolution,
        modules=modules,
        device=plan.device,
        eye=eye,
        dtype=next(p.dtype for p in model.parameters() if p.is_floating_point()),
        resources=plan.resources,
        idle=_idle(plan, modules),
    )


def _place(components: dict[str, Any], plan: Plan) -> None:
    """Freeze modules and bring them to the device, but for what is to wait in main memory."""
    network = components.get("unet", components.get("transformer"))
    modules = {name: part for name, part in components.items() if isinstance(part, nn.Module) and part is not network}
    for name, module in modules.items():
        if name not in _idle(plan, modules):
            module.to(plan.device)
    assert network is not None
    network.eval().requires_grad_(False)
    settle(network, components.get("vae"), plan.resources, plan.device)


def _idle(plan: Plan, modules: dict[str, Any]) -> tuple[str, ...]:
    return tuple(n for n in TEXT_ENCODERS if n in modules) if plan.resources.offload != "none" else ()


def _autoencoder(vae: Any, plan: Plan, wide: bool = False) -> Autoencoder:
    """``wide``: of Stable Diffusion XL, whose activations leave float16's range, unless its settings deny that."""
    if wide and vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.float()
    return Autoencoder(vae, plan.resources.vae_slicing)


def _resolution(model: Any, latents: Latents, plan: Plan) -> int:
    native = plan.hints["resolution"] or size_of(model.config) * latents.factor
    wanted = native if plan.resolution is None else plan.resolution
    least = latents.factor * 2 ** max(0, len(model.config.get("block_out_channels", ((), ()))) - 1)
    if wanted < least or wanted % least:
        raise ValueError(f"this prior takes pictures of {least}, {2 * least}, ... pixels a side, not {wanted}")
    return wanted


# Families -------------------------------------------------------------------------------------------------------------


def _unet(unet: Any, plan: Plan, picture: PicturePrompt | None) -> UNet:
    views = plan.hints["views"]
    if views > 1:
        join_views(unet, views)
    return UNet(unet, plan.hints["camera"], views, plan.hints["distilled_guidance"] or 8.0, picture)


def _stable_diffusion(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> Network:
    return _unet(pipe.unet, plan, picture)


def _xl(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> UNetXL:
    return UNetXL(pipe.unet, _resolution(pipe.unet, latents, plan), picture)


def _controlled(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> Network:
    xl, hints = "XL" in type(pipe).__name__, plan.hints
    inner = _xl(pipe, plan, latents, picture) if xl else _unet(pipe.unet, plan, picture)
    refuse_other_controlnet(pipe.controlnet.config, pipe.unet.config)
    return Controlled(
        inner, pipe.controlnet, hints["control"], _resolution(pipe.unet, latents, plan), hints["field_of_view"]
    )


def _inpainting(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> Network:
    return Inpainting(pipe.unet, latents, _resolution(pipe.unet, latents, plan))


def _deepfloyd(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> Network:
    return DeepFloyd(pipe.unet)


def _sd3(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> Network:
    return SD3(pipe.transformer, pipe.scheduler.config.num_train_timesteps)


def _flux(pipe: Any, plan: Plan, latents: Latents, picture: PicturePrompt | None) -> Network:
    return Flux(pipe.transformer, plan.hints["distilled_guidance"] or 3.5)


def _novel_view(components: dict[str, Any], plan: Plan, folder: Path) -> Parts:
    for name in ("unet", "vae", "image_encoder", "scheduler"):
        if components.get(name) is None:
            refuse(folder, f"its {name}/ is missing")
    projection = next((components[name] for name in PROJECTIONS if name in components), None)
    if projection is None:
        refuse(folder, f"its {' or '.join(f'{name}/' for name in PROJECTIONS)} is missing")
    if plan.extensions:
        raise ValueError("a novel-view prior takes neither LoRA nor textual inversion")
    latents = _autoencoder(components["vae"], plan)
    _place(components, plan)
    unet, resolution = components["unet"], _resolution(components["unet"], latents, plan)
    network = NovelView(
        unet,
        components["image_encoder"],
        projection,
        latents,
        resolution,
        plan.hints["picture_elevation"],
        plan.hints["picture_camera"],
    )
    return _parts(network, NoWords(plan.device), latents, components, plan, network)


def read_projection(folder: Path, dtype: torch.dtype) -> nn.Linear:
    """Zero123's projection: the one linear layer in a folder's safetensors.

    Raises:
        MissingPriorError: there is none.
    """
    from safetensors.torch import load_file

    found = weight_files(folder)
    try:
        state = load_file(found[0]) if found else {}
    except unreadable() as error:
        refuse(folder.parent, f"its {folder.name}/ cannot be read ({in_short(error)})", error)
    weight = next((value for name, value in state.items() if name.endswith("weight") and value.ndim == 2), None)
    bias = next((value for name, value in state.items() if name.endswith("bias")), None)
    if weight is None:
        refuse(folder.parent, f"its {folder.name}/ holds no linear layer as *.safetensors{about_pickles(folder)}")
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    return layer.to(dtype)  # pyright: ignore[reportReturnType]


def _picture_prompt(pipe: Any, components: dict[str, Any], folder: Path) -> PicturePrompt:
    """An IP-Adapter that lies beside the other components, put into the U-Net.

    Raises:
        MissingPriorError: it cannot be read.
        ValueError: it is of another prior than this.
    """
    from diffusers.models.embeddings import ImageProjection

    if type(pipe).__name__ not in _PICTURED:
        raise ValueError(f"{folder} has {IP_ADAPTER}, for which {type(pipe).__name__} has no use; move it elsewhere")
    if "image_encoder" not in components:
        refuse(folder, f"its image_encoder/ is missing, through which {IP_ADAPTER} sees pictures")
    file: dict[str, Any] = {"subfolder": "", "weight_name": IP_ADAPTER}
    try:
        pipe.load_ip_adapter(str(folder), **file, image_encoder_folder=None, local_files_only=True)
    except unreadable() as error:
        raise ValueError(f"{folder / IP_ADAPTER} is no IP-Adapter of this prior: {in_short(error)}") from error
    (projection,) = pipe.unet.encoder_hid_proj.image_projection_layers
    return PicturePrompt(components["image_encoder"], not isinstance(projection, ImageProjection))


_PICTURED = (
    "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline",
)
"""Pipelines whose networks are shown an IP-Adapter's picture."""


@dataclass(frozen=True)
class _Family:
    network: Callable[[Any, Plan, Latents, PicturePrompt | None], Network]
    reading: Reading
    needs: tuple[str, ...]
    pooled: Callable[[Any], int] = lambda pipe: 0


_UNET = ("unet", "text_encoder", "tokenizer", "scheduler", "vae")
_UNET_XL = (*_UNET, "text_encoder_2", "tokenizer_2")


def _pooled_xl(pipe: Any) -> int:
    return pipe.text_encoder_2.config.projection_dim


_FAMILIES = {
    "StableDiffusionPipeline": _Family(_stable_diffusion, "clip", _UNET),
    "StableDiffusionInpaintPipeline": _Family(_inpainting, "clip", _UNET),
    "StableDiffusionControlNetPipeline": _Family(_controlled, "clip", (*_UNET, "controlnet")),
    "StableDiffusionXLPipeline": _Family(_xl, "clip_pooled", _UNET_XL, _pooled_xl),
    "StableDiffusionXLControlNetPipeline": _Family(_controlled, "clip_pooled", (*_UNET_XL, "controlnet"), _pooled_xl),
    "IFPipeline": _Family(_deepfloyd, "t5", ("unet", "text_encoder", "tokenizer", "scheduler")),
    "StableDiffusion3Pipeline": _Family(
        _sd3,
        "clips_and_t5",
        ("transformer", "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        lambda pipe: pipe.text_encoder.config.projection_dim + pipe.text_encoder_2.config.projection_dim,
    ),
    "FluxPipeline": _Family(
        _flux,
        "t5_and_clip",
        ("transformer", "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        lambda pipe: pipe.text_encoder.config.hidden_size,
    ),
}
