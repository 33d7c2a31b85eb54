"""Recipes: functions from a prompt to a request. What is listed in ``RECIPES`` is what command line and app offer.

Guidance is the reconstruction form of SDS (MVDream, arXiv 2308.16512) with one prior step a view. Timesteps descend
over the run, from deciding what the thing is to deciding what it looks like; the opacity penalty of DreamFusion fades
out meanwhile.
"""

from collections.abc import Callable

from guidance.controls import Controls
from guidance.schedules import Schedule
from guidance.sds import SDS
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.particles import Particles
from representations.splats import Splats
from studio.cameras import Orbit
from studio.request import Export, Regularizers, Request, Stage
from studio.tuning import PIXEL_SDS


def wishes(representation: AnyRepresentation) -> Regularizers:
    """The regularisers that suit a representation.

    A heavy opacity penalty at first keeps the ball that a cloud begins as translucent, so that it can be carved.
    """
    if isinstance(representation, Particles):
        return wishes(representation.kind)
    if isinstance(representation, Splats):
        return Regularizers(opacity=Schedule(1000.0, 100.0, until=0.4), binary=Schedule(0.0, 1000.0))
    return Regularizers()


def draft(prompt: str) -> Request:
    """A minute on a laptop: a cloud of gaussians, a mesh of 12,000 faces, a 1024-texel texture."""
    return Request(prompt, stages=(Stage(Splats(), PIXEL_SDS, steps=900, regularizers=wishes(Splats())),))


def standard(prompt: str) -> Request:
    """A field of 96 cells seen at 96 pixels, 1000 steps; a finer mesh and texture than draft."""
    field = HashField(levels=(12, 24, 48, 96))
    return Request(
        prompt,
        stages=(Stage(field, PIXEL_SDS, steps=1000, cameras=Orbit(size=96)),),
        export=Export(faces=25_000, texture=2048, grid=128),
    )


def fine(prompt: str) -> Request:
    """Patience for detail: a coarse stage, then a field of 128 cells that begins where it ended."""
    coarse = Stage(HashField(), PIXEL_SDS, steps=800)
    refined = SDS(
        scale=2.5,
        form="clean",
        t_min=Schedule(0.2, 0.02),
        t_max=Schedule(0.6, 0.25),
        controls=Controls(rescale=0.5, clamp=1.0),
    )
    detail = Stage(HashField(levels=(16, 32, 64, 128)), refined, steps=800, cameras=Orbit(size=128))
    return Request(prompt, stages=(coarse, detail), export=Export(faces=50_000, texture=2048, grid=192))


RECIPES: dict[str, Callable[[str], Request]] = {recipe.__name__: recipe for recipe in (draft, standard, fine)}
