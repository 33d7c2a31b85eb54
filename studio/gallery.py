"""``make gallery``: the fixed list of prompts, each distilled by one recipe, on one sheet read back from its GLB.

Runs that are there already are not made again, and one that was cut short goes on, so the sheet can be made in pieces.
"""

import sys
from pathlib import Path

import torch

from representations.cameras import Cameras, orbit
from representations.scene import Scene
from studio.checkpoints import write_atomically
from studio.console import show
from studio.export.asset import ELEVATION
from studio.export.glb import load_glb
from studio.export.pictures import Row, contact_sheet
from studio.folder import slug
from studio.paths import assets_folder
from studio.recipes import RECIPES
from studio.run import resume_run, run_request

_AZIMUTHS = (0, 45, 90, 180, 270)
_CELL = 112


def main(arguments: list[str]) -> None:
    """``python -m studio.gallery [RECIPE [FOLDER]]``: make what is missing, then the sheet ``FOLDER/objects.png``."""
    recipe = arguments[0] if arguments else "draft"
    folder = Path(arguments[1]) if len(arguments) > 1 else Path("runs/gallery") / recipe
    prompts = (assets_folder() / "prompts" / "ten.txt").read_text(encoding="utf-8").splitlines()
    for prompt in prompts:
        make(recipe, prompt, folder / slug(prompt))
    rows = [Row(prompt, views(load_glb(folder / slug(prompt) / "result.glb"))) for prompt in prompts]
    write_atomically(folder / "objects.png", contact_sheet(f"studio generate, recipe {recipe}", rows, _CELL))


def make(recipe: str, prompt: str, run: Path) -> None:
    """Make or finish one run; a finished one is left alone."""
    if (run / "report.json").is_file():
        return
    begun = (run / "request.json").is_file()
    show(resume_run(run) if begun else run_request(RECIPES[recipe](prompt), run))


@torch.no_grad()
def views(scene: Scene) -> torch.Tensor:
    """Pictures [n, 3, h, w] of a scene over white."""
    cameras: Cameras = orbit(_AZIMUTHS, (ELEVATION,) * len(_AZIMUTHS), 2 * _CELL, 2.6, 40.0)
    return scene.render(cameras, torch.ones(len(cameras), 3)).rgb.clamp(0, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
