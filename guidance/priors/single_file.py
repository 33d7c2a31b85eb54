"""A prior from one safetensors file, as checkpoints are passed around: weights without their configuration.

What a network is made of is not in such a file, so a folder of its name lies beside it: ``model.safetensors`` and
``model/``, in diffusers' layout, with settings and tokenizers and no weights (but for what the file lacks, such as T5).
Any folder of the same kind of model will do, for instance Stable Diffusion 1.5's for everything made from it.
"""

from pathlib import Path
from typing import Any, NoReturn

import torch

from guidance.prior_folder import MissingPriorError


def require_configuration(file: Path, config: Path) -> None:
    """Refuse a file that has no configuration beside it: diffusers would ask the hub for one.

    Raises:
        MissingPriorError: with what to put where.
    """
    if not file.is_file():
        _refuse(file, "there is no such file")
    if not (config / "model_index.json").is_file():
        _refuse(
            file,
            f"it holds weights alone, and its configuration is looked for in {config}/. Put there, of a folder of the "
            "same kind of model, all that is no weights: model_index.json, and config.json, scheduler_config.json and "
            "the tokenizers' files in the folders of their components",
        )


def read_single_file(file: Path, config: Path, pipeline: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a pipeline from one file; nothing is fetched.

    Raises:
        MissingPriorError: the file cannot be read as that pipeline's.
    """
    import diffusers
    from safetensors import SafetensorError

    if not pipeline:
        _refuse(file, f"{config} names no pipeline that single files are made for")
    kind = getattr(diffusers, pipeline)
    leave_out = {
        name: None for name in ("safety_checker", "feature_extractor") if name in kind.__init__.__annotations__
    }
    try:
        loaded = kind.from_single_file(
            str(file), config=str(config), local_files_only=True, torch_dtype=dtype, **leave_out
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError, SafetensorError) as error:
        _refuse(file, f"it cannot be read as {pipeline} ({error})", error)
    components = {name: part for name, part in loaded.components.items() if part is not None}
    flow = "FlowMatch" in type(loaded.scheduler).__name__
    if not flow:
        components["scheduler"] = diffusers.DDPMScheduler.from_config(loaded.scheduler.config)
    return components


def _refuse(file: Path, problem: str, cause: Exception | None = None) -> NoReturn:
    raise MissingPriorError(f"no prior can be loaded from {file}: {problem}.") from cause
