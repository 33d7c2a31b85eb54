"""``make gallery``: the fixed list of prompts, each distilled, on one sheet of pictures read back from the GLBs.

Several recipes stand side by side. Runs that are there already are not made again, and one that was cut short goes on,
so the sheet can be made in pieces.
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
from studio.options import Generate, build_request
from studio.paths import assets_folder
from studio.request import Request
from studio.run import resume_run, run_request

_AZIMUTHS = (0, 45, 90, 180, 270)
_CELL = 112
_FOLDER = Path("runs/gallery")


def main(arguments: list[str]) -> None:
    """``python -m studio.gallery [RECIPE[:REPRESENTATION] ...]``: make what is missing, then ``objects.png``."""
    columns = arguments or ["draft"]
    prompts = (assets_folder() / "prompts" / "ten.txt").read_text(encoding="utf-8").splitlines()
    rows = []
    for prompt in prompts:
        folders = [_FOLDER / column.replace(":", "-") / slug(prompt) for column in columns]
        for column, folder in zip(columns, folders, strict=True):
            make(request(column, prompt), folder)
        rows.append(Row(prompt, torch.cat([views(load_glb(folder / "result.glb")) for folder in folders])))
        write_atomically(_FOLDER / "objects.png", contact_sheet(f"studio generate: {', '.join(columns)}", rows, _CELL))


def request(column: str, prompt: str) -> Request:
    """What ``RECIPE[:REPRESENTATION]`` makes of a prompt.

    Raises:
        UsageError: no such recipe or representation.
    """
    recipe, _, representation = column.partition(":")
    return build_request(Generate(prompt, recipe=recipe, representation=representation or None), [])


def make(wanted: Request, run: Path) -> None:
    """Make or finish one run; a finished one is left alone."""
    if (run / "report.json").is_file():
        return
    begun = (run / "request.json").is_file()
    show(resume_run(run) if begun else run_request(wanted, run))


@torch.no_grad()
def views(scene: Scene) -> torch.Tensor:
    """Pictures [n, 3, h, w] of a scene over white."""
    cameras: Cameras = orbit(_AZIMUTHS, (ELEVATION,) * len(_AZIMUTHS), 2 * _CELL, 2.6, 40.0)
    return scene.render(cameras, torch.ones(len(cameras), 3)).rgb.clamp(0, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
