"""``studio export``: what a finished run made, again, as another kind of file or of another size."""

import dataclasses
import json
import shutil
import sys
import typing
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from representations.scene import Scene
from studio.arguments import MaybeNumber, MaybePath
from studio.checkpoints import write_atomically
from studio.cli import BAD_USAGE, FAILED, OK
from studio.codec import encode, nearest
from studio.edit import Source, finished, own_source
from studio.events import Working
from studio.export.asset import Kept
from studio.export.formats import CLOUDS, ENDINGS, Format, encoded
from studio.folder import RunError, plain, slug
from studio.request import Edit, export_problems
from studio.verbs import complain, in_words


@dataclass(frozen=True)
class Export:
    """Write what a finished run made as another kind of file, or with other numbers of faces and texels.

    It is made anew from the run's last checkpoint; the run's own files stay as they are.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the finished run."""
    format: str = "glb"
    """glb; obj: OBJ, material and PNG in a ZIP; stl: the bare surface; ply: a colour for each vertex; splat-ply, splat:
    the gaussians themselves."""
    faces: MaybeNumber = None
    """Most triangles, about; the run's own number without it."""
    texture: MaybeNumber = None
    """Texels a side of the texture; the run's without it."""
    grid: MaybeNumber = None
    """Cells a side of the grid that the surface is extracted from; the run's without it."""
    particle: int = 0
    """Which of several particles, from 0."""
    out: MaybePath = None
    """File to write; one in RUN/exports without it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    json: bool = False
    """Print what happens as JSON, one object a line."""


def export(arguments: list[str]) -> int:
    """``studio export``."""
    o = tyro.cli(Export, args=arguments, prog="studio export")
    try:
        format = _known(o.format)
        phases = export_run(o.run, format, o.faces, o.texture, o.grid, o.out, o.device, o.particle)
        path = _shown(phases, o.json)
    except RunError as problem:
        return complain(str(problem), BAD_USAGE)
    except ValueError as problem:  # nothing solid, or damaged
        return complain(str(problem), FAILED)
    except OSError as problem:
        return complain(in_words(problem), FAILED)
    size = path.stat().st_size
    done = {"event": "Exported", "path": str(path), "report": {"format": format, "bytes": size}}
    sys.stdout.write(f"{json.dumps(done) if o.json else path}\n")
    return OK


def export_run(
    run: Path,
    format: Format,
    faces: int | None = None,
    texture: int | None = None,
    grid: int | None = None,
    out: Path | None = None,
    device: str = "auto",
    particle: int = 0,
) -> Generator[str, None, Path]:
    """Write what a finished run made as a file; yields the name of each phase as it begins, and returns the file.

    The representation of the run's newest checkpoint is exported anew. Only a GLB of the run's own size is copied, as
    it is there already.

    Args:
        run: its folder.
        format: see ``studio.export.formats``.
        faces, texture, grid: as in ``studio.request.Export``; the run's own without them.
        out: a file, replaced whole or not at all, or a folder that is there; ``run``/exports without it.
        device: auto, cpu, cuda, ...
        particle: which of several.

    Raises:
        RunError: the run is not finished, or what is asked for is refused; in words.
        EmptySceneError: nothing solid at this size; the message has the numbers.
        OSError: the file cannot be written.
    """
    yield "read"
    source = finished(run)
    numbers = {"faces": faces, "texture": texture, "grid": grid}
    size = dataclasses.replace(source.request.export, **{k: v for k, v in numbers.items() if v is not None})
    if problems := export_problems(size):
        raise RunError("\n".join(f"{problem}." for problem in problems))
    path = _place(run, format, particle, out)
    made = run / "result.glb" if particle == 0 else run / "particles" / str(particle) / "result.glb"
    if format == "glb" and size == source.request.export and made.is_file():
        return _copied(made, path)
    scene = _scene(source, particle, device)
    _refuse_mismatch(scene, format)
    kept = _kept(run, source.request.task, particle, device)
    settings = encode(dataclasses.replace(source.request, export=size))
    content = yield from encoded(
        scene,
        format,
        settings,
        slug(_name(run, particle)),
        faces=size.faces,
        texture=size.texture,
        grid=size.grid,
        smoothing=size.smoothing,
        kept=kept,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def _known(format: str) -> Format:
    for known in typing.get_args(Format):
        if format.lower() == known:
            return known
    raise RunError(f"No format {format!r}; {nearest(format, typing.get_args(Format))}")


def _name(run: Path, particle: int) -> str:
    return run.resolve().name + (f"-particle-{particle}" if particle else "")


def _place(run: Path, format: Format, particle: int, out: Path | None) -> Path:
    """Where the file goes.

    Raises:
        RunError: it would have the ending of another format.
    """
    ending = ENDINGS[format]
    if out is None or out.is_dir():
        return (out or run / "exports") / f"{_name(run, particle)}{ending}"
    suffix = f".{ending.rpartition('.')[2]}"
    if out.suffix.lower() != suffix:
        why = "OBJ, material and picture come together in a ZIP" if format == "obj" else f"this is {format}"
        raise RunError(f"{out} must end in {suffix}: {why}.")
    return out


def _copied(made: Path, path: Path) -> Path:
    if made.resolve() != path.resolve():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        shutil.copyfile(made, temporary)
        temporary.replace(path)
    return path


def _scene(source: Source, particle: int, device: str) -> Scene:
    from studio.run import choose_device

    representation = source.representation(choose_device(device))
    if not 0 <= particle < representation.variants:
        last = representation.variants - 1
        have = f"particles 0 to {last}" if last else "one object, particle 0"
        raise RunError(f"There is no particle {particle}: the run made {have}.")
    return representation.scene(variant=particle).detach()


def _kept(run: Path, task: Edit | None, particle: int, device: str) -> Kept | None:
    """What an edit inside a box began with."""
    from studio.run import choose_device

    if task is None or task.region is None:
        return None
    return Kept(_scene(own_source(run, task, choose_device(device)), particle, device), task.region)


def _refuse_mismatch(scene: Scene, format: Format) -> None:
    from representations.splat_scene import SplatScene

    if format in CLOUDS and not isinstance(scene, SplatScene):
        others = ", ".join(f for f in ENDINGS if f not in CLOUDS)
        raise RunError(f"{format} holds gaussians, and this run made a field without any; choose from {others}.")


def _shown(phases: Generator[str, None, Path], as_json: bool) -> Path:
    """The file at the end of the phases, each said as it begins."""
    while True:
        try:
            phase = next(phases)
        except StopIteration as end:
            return end.value
        line = json.dumps(plain(Working(f"export: {phase}"))) if as_json else f"{phase} ..."
        (sys.stdout if as_json else sys.stderr).write(line + "\n")
        (sys.stdout if as_json else sys.stderr).flush()
