"""A prior's parts from a folder in diffusers' layout.

``model_index.json`` says which of diffusers' pipelines a folder is for. Only those listed here are taken, and only
classes of diffusers and transformers by name: no code in a folder ever runs, no pickle is opened, nothing is fetched.
A folder that names no pipeline is read as a bare text-conditioned U-Net, as the bundled prior is.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from guidance.prior_folder import (
    PICKLES,
    in_short,
    pipeline_named,
    read_hints,
    read_index,
    refuse,
    require,
    unreadable,
)
from guidance.priors.assembly import PROJECTIONS, Plan, assemble, bare, read_projection
from guidance.priors.extensions import Extensions
from guidance.priors.ldm_names import MULTIVIEW_UNET, load_multiview_unet
from guidance.priors.parts import Parts
from guidance.priors.process import process_like
from guidance.priors.resources import Resources
from guidance.priors.single_file import read_single_file, require_configuration
from guidance.priors.weights import IP_ADAPTER, refuse_incomplete, variant_of

PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "LatentConsistencyModelPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLControlNetPipeline",
    "StableDiffusion3Pipeline": "StableDiffusion3Pipeline",
    "FluxPipeline": "FluxPipeline",
    "IFPipeline": "IFPipeline",
    "MVDreamPipeline": "StableDiffusionPipeline",
    "Zero1to3StableDiffusionPipeline": "",
    "Zero123Pipeline": "",
}
"""What a folder may say it is for, and the pipeline that is built; "": diffusers has none, the parts are enough."""
WIDE = ("StableDiffusion3Pipeline", "FluxPipeline", "IFPipeline")
"""Those whose numbers leave float16's range."""

_BARE = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""Parts of a folder that names no pipeline."""
_UNUSED = ("safety_checker", "feature_extractor", "watermarker", "image_processor")
_NETWORKS = ("unet", "transformer", "controlnet")
_CONTROLLED = {
    "StableDiffusionPipeline": "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLControlNetPipeline",
}


ReadModel = Callable[[Any, Path, str, torch.dtype], Any]


def pipeline_of(folder: Path) -> str | None:
    """The pipeline of diffusers that a folder is for; None for a bare U-Net, "" for parts without a pipeline.

    Raises:
        MissingPriorError: there is no such folder.
        ValueError: it is for a pipeline that is not supported, or its index cannot be read.
    """
    if not folder.is_dir():
        refuse(folder, "there is no such folder")
    named, controlled = pipeline_named(folder), (folder / "controlnet").is_dir()
    if named != "DiffusionPipeline" and named not in PIPELINES:
        raise ValueError(f"{folder} is for {named}, which is not supported; supported are {', '.join(PIPELINES)}")
    pipeline = PIPELINES.get(named)
    if not controlled:
        return pipeline
    # A ControlNet that lies beside the other parts is used, whatever the index says.
    if pipeline not in (*_CONTROLLED, *_CONTROLLED.values()):
        kind = "a folder without model_index.json" if pipeline is None else named
        raise ValueError(f"{folder} has a controlnet/, which {kind} has no use for; move it elsewhere")
    return _CONTROLLED.get(pipeline, pipeline)


def load_parts(
    folder: Path,
    device: torch.device,
    resources: Resources,
    resolution: int | None = None,
    extensions: Extensions = Extensions(),  # noqa: B008 -- frozen
) -> Parts:
    """Load a folder from the disk.

    Args:
        folder: in the layout of diffusers, or one safetensors file with such a folder of its name beside it.
        device: where the prior is to live.
        resources: how it is to use the machine.
        resolution: pixels a side to distil at; None: those that the prior was trained with.
        extensions: LoRA and textual inversions to put on top.

    Raises:
        MissingPriorError: the folder or a component is not there or cannot be read.
        ValueError: it is a kind of prior that is not supported.
    """
    alone = folder.suffix in (".safetensors", *PICKLES) and not folder.is_dir()
    config = folder.with_suffix("") if alone else folder
    if alone:
        require_configuration(folder, config)
    pipeline, plan = pipeline_of(config), Plan(device, resources, read_hints(config), resolution, extensions)
    dtype = resources.type_for(device, pipeline in WIDE, small=pipeline is None)
    if alone:
        components = read_single_file(folder, config, pipeline, dtype)
        return assemble(pipeline or "", components, settings(config), plan, config)
    entries = listed(folder, pipeline)
    refuse_incomplete(folder, entries)
    components = read_parts(folder, entries, dtype, load_model)
    return (
        bare(components, plan) if pipeline is None else assemble(pipeline, components, settings(folder), plan, folder)
    )


def settings(folder: Path) -> dict[str, Any]:
    """Plain settings in a folder's index, such as ``force_zeros_for_empty_prompt``."""
    return {k: v for k, v in read_index(folder).items() if not k.startswith("_") and not isinstance(v, list)}


def listed(folder: Path, pipeline: str | None) -> dict[str, Any]:
    """Library and class of every part that a folder's prior uses; of those beside them that extend it, too."""
    if pipeline is None:
        if any((folder / name).is_dir() for name in ("transformer", "text_encoder_2")):
            refuse(folder, "its model_index.json is missing, which says what its parts are")
        return {name: entry for name, entry in _BARE.items() if name != "vae" or (folder / name).is_dir()}
    found = {name: entry for name, entry in read_index(folder).items() if name not in _UNUSED and _names_class(entry)}
    if (folder / "controlnet").is_dir():
        found["controlnet"] = ["diffusers", "ControlNetModel"]
    if (folder / IP_ADAPTER).is_file():
        found["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    return found


def _names_class(entry: Any) -> bool:
    """Whether an entry of an index names a library and a class, as parts do that are there."""
    return isinstance(entry, list) and len(entry) > 1 and isinstance(entry[-1], str)


def read_parts(folder: Path, entries: dict[str, Any], dtype: torch.dtype, read_model: ReadModel) -> dict[str, Any]:
    """Every listed part; ``read_model`` reads those that have weights, by class, folder, name and type.

    Raises:
        MissingPriorError: a part is not there or cannot be read.
        ValueError: a part is of a class that is not read.
    """
    return {name: _part(folder, name, entry, dtype, read_model) for name, entry in entries.items()}


def _part(folder: Path, name: str, entry: list[Any], dtype: torch.dtype, read_model: ReadModel) -> Any:
    import diffusers
    import transformers

    if name in PROJECTIONS:  # a class of Zero123's own pipeline: one linear layer
        return read_projection(require(folder, name), dtype)
    if entry[-1] == MULTIVIEW_UNET:  # a class of MVDream's own code: a U-Net under other names
        return read_model(MULTIVIEW_UNET, folder, name, dtype)
    library = {"diffusers": diffusers, "transformers": transformers}.get(str(entry[0]))
    kind = getattr(library, str(entry[-1]), None)
    if not isinstance(kind, type) or ".models.auto." in kind.__module__:  # those look for code
        raise ValueError(f"{folder}: {name} is a {entry[-1]} of {entry[0]}; only diffusers' and transformers' are read")
    require(folder, name)
    if issubclass(kind, diffusers.SchedulerMixin):
        return load(process_like(kind), folder, name)
    if issubclass(kind, torch.nn.Module):
        return read_model(kind, folder, name, dtype)
    return load(kind, folder, name)


def load(kind: Any, folder: Path, component: str, **options: Any) -> Any:
    """A component by ``from_pretrained``, from the disk alone.

    Raises:
        MissingPriorError: it cannot be read.
    """
    try:
        return kind.from_pretrained(folder / component, local_files_only=True, **options)
    except unreadable() as error:
        refuse(folder, f"its {component}/ cannot be read ({in_short(error)})", error)


def load_model(kind: Any, folder: Path, component: str, dtype: torch.dtype) -> Any:
    """A component with weights, of safetensors alone: none of them missing, and none that it has no place for.

    Raises:
        MissingPriorError: it cannot be read, or only as a pickle.
    """
    if kind == MULTIVIEW_UNET:
        return load_multiview_unet(require(folder, component), dtype)
    if not (folder / component / "config.json").exists():  # transformers would make one up
        refuse(folder, f"its {component}/ has no config.json")
    variant = variant_of(folder / component)
    model, report = load(
        kind, folder, component, use_safetensors=True, dtype=dtype, variant=variant, output_loading_info=True
    )
    if report["missing_keys"]:
        refuse(folder, f"its {component}/ lacks weights, {min(report['missing_keys'])} among them")
    # Text encoders are often cut out of larger models, and what is left over of those is nobody's; networks are not.
    if report["unexpected_keys"] and component in _NETWORKS:
        refuse(
            folder,
            f"its {component}/ has weights that no {kind.__name__} of its config.json has, "
            f"{min(report['unexpected_keys'])} among them: it is of another kind, or of a newer diffusers",
        )
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and remarks off the terminal; what is wrong still raises, and is said once."""
    import diffusers
    import transformers

    logs = [diffusers.utils.logging, transformers.utils.logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity(logging.CRITICAL)
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
