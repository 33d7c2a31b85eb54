"""A prior of the right shapes without weights: on the meta device, for counting what the real one will need.

It is put together by the same code as the real one, from the same settings, so that every family is counted as it is.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidance.prior_folder import read_hints, read_index, refuse, require
from guidance.priors.assembly import PROJECTIONS, Plan, assemble, bare, read_projection
from guidance.priors.ldm_names import MULTIVIEW_UNET, unet_settings
from guidance.priors.loading import load, pipeline_of, quiet, settings
from guidance.priors.parts import Parts
from guidance.priors.resources import Resources

META = torch.device("meta")
_BARE = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_UNUSED = ("safety_checker", "feature_extractor", "watermarker", "image_processor")


@functools.lru_cache(maxsize=2)
def weightless(folder: Path, dtype: torch.dtype, resources: Resources, resolution: int | None = None) -> Parts:
    """Parts of a folder's prior on the meta device.

    Args:
        folder: in diffusers' layout, or the configuration beside a single file; weights need not be there.
        dtype: what its networks compute in.
        resources: how it is to use the machine; what is for speed alone is left out.
        resolution: pixels a side; None: those it was trained with.

    Raises:
        MissingPriorError: the folder or a component is not there, or its settings cannot be read.
        ValueError: it is a kind of prior that is not supported.
    """
    pipeline = pipeline_of(folder)
    plain = dataclasses.replace(resources, offload="none", compile="off")
    plan = Plan(META, plain, read_hints(folder), resolution)
    with quiet():
        components = {name: _component(folder, name, entry, dtype) for name, entry in _listed(folder, pipeline).items()}
        if pipeline is None:
            return bare(components, plan)
        return assemble(pipeline, components, settings(folder), plan, folder)


def on_meta(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of diffusers or transformers from the settings in a folder, without memory."""
    with META:
        if hasattr(kind, "from_config"):
            model = kind.from_config(unet_settings(folder))
        else:
            model = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        return model.to(dtype).eval()


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _listed(folder: Path, pipeline: str | None) -> dict[str, Any]:
    """Library and class of every part that there is."""
    if pipeline is None:
        return {name: entry for name, entry in _BARE.items() if (folder / name).is_dir()}
    found = {
        name: entry for name, entry in read_index(folder).items() if isinstance(entry, list) and entry[-1] is not None
    }
    found["controlnet"] = ["diffusers", "ControlNetModel"]
    if (folder / "ip_adapter.safetensors").is_file():
        found["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    return {name: entry for name, entry in found.items() if (folder / name).is_dir() and name not in _UNUSED}


def _component(folder: Path, name: str, entry: list[Any], dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    if name in PROJECTIONS:
        return read_projection(folder / name, dtype)
    own = entry[-1] == MULTIVIEW_UNET
    library = diffusers if own else {"diffusers": diffusers, "transformers": transformers}.get(entry[0])
    kind = getattr(library, "UNet2DConditionModel" if own else str(entry[-1]), None)
    if not isinstance(kind, type):
        raise ValueError(f"{folder}: {name} is a {entry[-1]} of {entry[0]}; only diffusers' and transformers' are read")
    if issubclass(kind, diffusers.SchedulerMixin):
        flow = "FlowMatch" in kind.__name__
        return load(diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDPMScheduler, folder, name)
    if not issubclass(kind, nn.Module):
        return load(kind, folder, name)
    try:
        return on_meta(kind, require(folder, name), dtype)
    except (OSError, ValueError) as error:
        refuse(folder, f"the settings in its {name}/ cannot be read ({error})", error)
