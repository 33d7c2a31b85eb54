"""A prior of the right shapes without weights: on the meta device, for counting what the real one will need.

It is put together by the same code as the real one, from the same settings, so that every family is counted as it is.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidance.prior_folder import read_hints, refuse, require
from guidance.priors.assembly import Plan, assemble, bare
from guidance.priors.ldm_names import MULTIVIEW_UNET, unet_settings
from guidance.priors.loading import listed, pipeline_of, quiet, read_parts, settings
from guidance.priors.parts import Parts
from guidance.priors.resources import Resources

META = torch.device("meta")


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
        entries = {name: entry for name, entry in listed(folder, pipeline).items() if (folder / name).is_dir()}
        components = read_parts(folder, entries, dtype, _settings_alone)
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


def _settings_alone(kind: Any, folder: Path, component: str, dtype: torch.dtype) -> Any:
    """A part that has weights, without them."""
    import diffusers

    own = diffusers.UNet2DConditionModel if kind == MULTIVIEW_UNET else kind
    try:
        return on_meta(own, require(folder, component), dtype)
    except (OSError, ValueError) as error:
        refuse(folder, f"the settings in its {component}/ cannot be read ({error})", error)


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
