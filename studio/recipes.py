"""Recipes: functions from a prompt to a request. What is listed in ``RECIPES`` is what command line and app offer.

Those here are named after what they make, those of ``papers`` after what they follow. Guidance here is the
reconstruction form of SDS (MVDream, arXiv 2308.16512) with one prior step a view: it comes first in the comparison of
methods. Timesteps descend over the run, from deciding what the thing is to deciding what it looks like; the opacity
penalty of DreamFusion fades out meanwhile. The bundled prior sees 64 pixels a side; larger ones are shown more.
"""

import dataclasses
from collections.abc import Callable

from guidance.schedules import Schedule
from representations.hash_field import HashField
from representations.splats import Splats
from studio.cameras import Orbit
from studio.papers import PAPERS
from studio.request import Export, Request, Stage
from studio.tuning import LATENT_SDS, PIXEL_ORBIT, PIXEL_SDS, wishes


def draft(prompt: str, pixels: bool = True) -> Request:
    """A minute on a laptop: a cloud of gaussians, a mesh of 12,000 faces, a 1024-texel texture."""
    guidance, cameras = (PIXEL_SDS, PIXEL_ORBIT) if pixels else (LATENT_SDS, Orbit(size=256))
    stage = Stage(Splats(), guidance, steps=900, cameras=cameras, regularizers=wishes(Splats()))
    return Request(prompt, stages=(stage,))


def standard(prompt: str, pixels: bool = True) -> Request:
    """A field of 96 cells seen at 96 pixels, 1000 steps; a finer mesh and texture than draft."""
    guidance, cameras = (PIXEL_SDS, PIXEL_ORBIT) if pixels else (LATENT_SDS, Orbit())
    cameras = dataclasses.replace(cameras, size=96 if pixels else 128)
    return Request(
        prompt,
        stages=(Stage(HashField(levels=(12, 24, 48, 96)), guidance, steps=1000, cameras=cameras),),
        export=Export(faces=25_000, texture=2048, grid=128),
    )


def fine(prompt: str, pixels: bool = True) -> Request:
    """Patience for detail: a coarse stage, then a field of 128 cells that begins where it ended."""
    guidance, cameras = (PIXEL_SDS, PIXEL_ORBIT) if pixels else (LATENT_SDS, Orbit())
    refined = dataclasses.replace(
        guidance,
        scale=2.5 if pixels else guidance.scale,
        t_min=Schedule(0.2, 0.02),
        t_max=Schedule(0.6, 0.25),
        controls=dataclasses.replace(guidance.controls, final_scale=None),
    )
    coarse = Stage(HashField(), guidance, steps=800, cameras=cameras)
    closer = dataclasses.replace(cameras, size=128)
    detail = Stage(HashField(levels=(16, 32, 64, 128)), refined, steps=800, cameras=closer)
    return Request(prompt, stages=(coarse, detail), export=Export(faces=50_000, texture=2048, grid=192))


Recipe = Callable[[str, bool], Request]
"""From a prompt, and whether the prior is the bundled one, which works on pixels."""

RECIPES: dict[str, Recipe] = {recipe.__name__.replace("_", "-"): recipe for recipe in (draft, standard, fine, *PAPERS)}
