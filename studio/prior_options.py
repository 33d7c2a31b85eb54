"""What a request says of its prior besides its name: files on top of it, a picture that prompts, and the machine."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guidance.critic import Criticised
from guidance.one_pass import one_pass_notes
from guidance.prior_folder import Hints, MissingPriorError, read_hints
from guidance.priors.extensions import Extensions, parse_lora, refuse_extension
from guidance.priors.loading import pipeline_of
from guidance.priors.resources import Resources
from guidance.priors.single_file import require_configuration
from guidance.priors.weights import IP_ADAPTER
from studio.paths import MissingAsset, UnknownPrior, resolve_prior
from studio.second_prior import views_as_one

ONE_PASS = "one_pass.safetensors"
"""In a prior's folder: its own file of one-pass guidance."""


@dataclass(frozen=True)
class PriorOptions:
    """How the prior is loaded."""

    lora: tuple[str, ...] = ()
    """LoRA files on top of it, each FILE or FILE:WEIGHT, as safetensors."""
    textual_inversion: tuple[str, ...] = ()
    """Files with new words for prompts, as safetensors."""
    image: str = ""
    """Picture that prompts, for an IP-Adapter or a novel-view prior; its object in front of a plain background."""
    resolution: int | None = None
    """Pixels a side that renders are brought to for the prior; none: what it was trained with. Fewer need less memory
    and time."""
    resources: Resources = field(default=Resources())
    """Memory and speed."""
    one_pass: str = ""
    """File of `studio distill-guidance` that lets the prior answer with the prompt and without it in one pass, nearly
    twice as fast and a little less exactly; own: the one in the prior's folder."""

    @property
    def extensions(self) -> Extensions:
        """The files on top.

        Raises:
            ValueError: a weight that is no number.
        """
        return Extensions(tuple(parse_lora(text) for text in self.lora), tuple(map(Path, self.textual_inversion)))

    def one_pass_file(self, prior: Path) -> Path | None:
        """The file of one-pass guidance for the prior in a folder, if there is to be one."""
        if not self.one_pass:
            return None
        home = prior.with_suffix("") if prior.is_file() else prior
        return home / ONE_PASS if self.one_pass == "own" else Path(self.one_pass)


def offers_one_pass(prior: str) -> bool:
    """Whether the prior of a name or path has a file of one-pass guidance of its own."""
    try:
        file = PriorOptions(one_pass="own").one_pass_file(resolve_prior(prior))
    except (UnknownPrior, MissingAsset):
        return False
    return file is not None and file.is_file()


def option_problems(options: PriorOptions, prior: Path) -> list[str]:
    """What is wrong with the options for a prior, in words; nothing heavy is loaded."""
    wrong = []
    if prior.is_file():
        try:
            require_configuration(prior, prior.with_suffix(""))
        except MissingPriorError as problem:
            return [str(problem)]
    if options.resolution is not None and options.resolution < 1:
        wrong.append(f"prior_options.resolution must be 1 or more pixels, not {options.resolution}.")
    try:
        extensions = options.extensions
        for file in (*(file for file, _ in extensions.loras), *extensions.inversions):
            refuse_extension(file)
    except ValueError as problem:
        wrong.append(f"{problem}.")
    if (file := options.one_pass_file(prior)) is not None:
        try:
            one_pass_notes(file)
        except ValueError as problem:
            wrong.append(f"{problem}.")
    return wrong + _picture_problems(options.image, prior if prior.is_dir() else prior.with_suffix(""))


def _picture_problems(image: str, folder: Path) -> list[str]:
    """What is wrong with a picture that prompts, or with having none; its pixels are not read."""
    from PIL import Image, UnidentifiedImageError

    try:
        by_picture = pipeline_of(folder) == ""
    except MissingPriorError:  # said where the prior is looked for
        return []
    if not image:
        return ["This prior is told by a picture, not by words; name one with --image FILE."] if by_picture else []
    if not Path(image).is_file():
        return [f"There is no picture {image}."]
    if not by_picture and not (folder / IP_ADAPTER).is_file():
        return [
            f"This prior is told by words, not by a picture: leave --image out, or put {IP_ADAPTER} and its "
            f"image_encoder/ into {folder}."
        ]
    try:
        Image.open(image).close()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as problem:
        return [f"{image} cannot be read as a picture: {problem}."]
    return []


def resource_problems(stages: tuple[Any, ...], options: PriorOptions) -> list[str]:
    """What is wrong with how the prior is to use the machine, for the methods of stages."""
    learns = [type(stage.guidance).__name__ for stage in stages if isinstance(stage.guidance, Criticised)]
    if options.resources.offload == "layers" and learns:
        return [f"{learns[0]} learns a critic, which needs the network in memory: offload text at most, not layers."]
    return []


def view_problems(stages: tuple[Any, ...], prior: Path) -> list[str]:
    """What is wrong with the views of stages for a prior that sees several as one."""
    wrong, hints = [], read_hints(prior)
    for i, stage in enumerate(stages):
        if (group := views_as_one(stage, hints)) == 1:
            continue
        if stage.cameras.views % group:
            wrong.append(
                f"stages.{i}.cameras.views must be {group}, {2 * group}, ... for this prior, which sees {group} views "
                f"as one, not {stage.cameras.views}."
            )
        if not (stage.guidance.controls.group or stage.guidance.controls.shared_t):
            wrong.append(f"stages.{i}.guidance.controls.group must be True for a prior that sees {group} views as one.")
    return wrong


def for_views_of(stages: tuple[Any, ...], hints: Hints) -> tuple[Any, ...]:
    """The stages with whole groups of views that share a timestep, for a prior that sees several views as one."""
    return tuple(_grouped(stage, views_as_one(stage, hints)) for stage in stages)


def _grouped(stage: Any, group: int) -> Any:
    if group == 1:
        return stage
    controls = dataclasses.replace(stage.guidance.controls, group=True)
    cameras = dataclasses.replace(stage.cameras, views=-(-stage.cameras.views // group) * group)
    return dataclasses.replace(stage, cameras=cameras, guidance=dataclasses.replace(stage.guidance, controls=controls))


def read_picture(path: Path) -> Any:
    """A picture as a tensor [1, 3, h, w] in [0, 1]; what is transparent in it becomes white.

    Raises:
        ValueError: it is no picture that can be read.
    """
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            opened.thumbnail((2048, 2048))
            layered = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as problem:
        raise ValueError(f"{path} cannot be read as a picture: {problem}") from problem
    white = Image.new("RGBA", layered.size, "white")
    flat = Image.alpha_composite(white, layered).convert("RGB")
    return torch.from_numpy(np.asarray(flat).copy()).permute(2, 0, 1)[None].float() / 255
