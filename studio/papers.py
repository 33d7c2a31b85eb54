"""Recipes named after the papers they follow; each reads like its method section.

Every recipe has two readings. ``pixels=False`` is the paper's, for Stable Diffusion: its guidance weight, thousands of
steps. ``pixels=True`` is the same method for the bundled prior: the paper's representation, timesteps and stages, with
the guidance weight and the bounds that ``tuning`` found to suit a small prior of pixels, and a minute's steps.
Stages that need meshes (texture refinement of ProlificDreamer and Consistent3D) are not part of them.
"""

import dataclasses
from typing import Any

from guidance import ASD, CDS, CSD, FVSD, ISM, NFSD, SDI, SDS, SJC, VSD
from guidance.controls import Controls
from guidance.methods import AnyGuidance
from guidance.nfsd import NEGATIVE
from guidance.schedules import Schedule
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.splats import Splats
from studio.cameras import Orbit
from studio.request import Request, Stage
from studio.tuning import PIXEL_ORBIT, suited, wishes

_WHOLE: dict[str, Any] = {"t_min": Schedule(0.02), "t_max": Schedule(0.98)}


def dreamfusion(prompt: str, pixels: bool = True) -> Request:
    """DreamFusion (arXiv 2209.14988): a field under SDS, w(t) = 1 - abar, any timestep from .02 to .98."""
    bounds = Controls(clamp=1.0) if pixels else Controls()
    guidance = SDS(21.0 if pixels else 101.0, weighting="sds", controls=bounds, **_WHOLE)
    return _one_stage(prompt, HashField(), guidance, pixels)


def sjc(prompt: str, pixels: bool = True) -> Request:
    """Score Jacobian Chaining (arXiv 2212.00774): a field under the variance-reduced score, uniform weights."""
    return _one_stage(prompt, HashField(), _with(SJC, pixels, **_WHOLE), pixels)


def prolificdreamer(prompt: str, pixels: bool = True) -> Request:
    """ProlificDreamer (arXiv 2305.16213), its first stage: a field under VSD, t_max .98, then .5 after a fifth."""
    anneal = Schedule(points=((0.0, 0.98), (0.2, 0.98), (0.2, 0.5)), shape="piecewise")
    return _one_stage(prompt, HashField(), _with(VSD, pixels, t_min=Schedule(0.02), t_max=anneal), pixels)


def mvdream(prompt: str, pixels: bool = True) -> Request:
    """MVDream (arXiv 2308.16512): four views share a timestep; SDS as reconstruction, rescaled by half; bounds fall
    to (.02, .5) over 80 % of the run. Wants a prior that is told the camera."""
    falling: dict[str, Any] = {"t_min": Schedule(0.98, 0.02, until=0.8), "t_max": Schedule(0.98, 0.5, until=0.8)}
    bounds = Controls(rescale=0.5, group=True, clamp=1.0 if pixels else None, final_scale=2.0 if pixels else None)
    guidance = SDS(7.5 if pixels else 50.0, form="clean", controls=bounds, **falling)
    return _one_stage(prompt, HashField(), guidance, pixels)


def gaussiandreamer(prompt: str, pixels: bool = True) -> Request:
    """GaussianDreamer (arXiv 2310.08529): gaussians under SDS. The paper begins with a cloud from a 3D prior; here it
    is a faint ball."""
    bounds = Controls(clamp=1.0, final_scale=2.0) if pixels else Controls()
    guidance = SDS(7.5 if pixels else 101.0, weighting="sds", controls=bounds, **_WHOLE)
    return _one_stage(prompt, Splats(), guidance, pixels)


def luciddreamer(prompt: str, pixels: bool = True) -> Request:
    """LucidDreamer (arXiv 2311.11284): gaussians under interval score matching, t_max .98 to .5 over 30 %."""
    guidance = _with(ISM, pixels, t_min=Schedule(0.02), t_max=Schedule(0.98, 0.5, until=0.3))
    return _one_stage(prompt, Splats(), guidance, pixels)


def consistent3d(prompt: str, pixels: bool = True) -> Request:
    """Consistent3D (arXiv 2401.09050): a field under consistency, t' from .7 to .1 at uniform weights, then refined
    with t' from .3 to .02 at weights 1 - abar and a gap of .1."""
    coarse = _with(CDS, pixels, goal=Schedule(0.7, 0.1, shape="square_root"))
    goal = Schedule(0.3, 0.02, shape="square_root")
    fine = dataclasses.replace(coarse, goal=goal, gap_spread=0.1, weighting="snr_sqrt" if pixels else "sds")
    return _two_stages(prompt, coarse, fine, pixels)


def scaledreamer(prompt: str, pixels: bool = True) -> Request:
    """ScaleDreamer (arXiv 2407.02040) for a single prompt: a field under ASD, bounds (.5, .98) falling to (.02, .5);
    Perp-Neg where the prior is not told the camera."""
    guidance = _with(ASD, pixels, t_min=Schedule(0.5, 0.02), t_max=Schedule(0.98, 0.5))
    request = _one_stage(prompt, HashField(), guidance, pixels)
    return request if pixels else dataclasses.replace(request, view_prompts="perp_neg")


def stabledreamer(prompt: str, pixels: bool = True) -> Request:
    """StableDreamer (arXiv 2312.02189): gaussians under SDS whose noise falls over the run; ``--debug-pictures``
    shows its view of SDS as a distance between the render and its denoised picture."""
    bounds = Controls(clamp=1.0, final_scale=2.0) if pixels else Controls()
    falling: dict[str, Any] = {"t_min": Schedule(0.5, 0.02), "t_max": Schedule(0.98, 0.5)}
    guidance = SDS(7.5 if pixels else 101.0, form="clean", controls=bounds, **falling)
    return _one_stage(prompt, Splats(), guidance, pixels)


def classifier_score(prompt: str, pixels: bool = True) -> Request:
    """Classifier Score Distillation (arXiv 2310.19415): a field, first with the negative prompt coming in under
    uniform weights, then with it going out under 1 - abar."""
    if pixels:  # the bundled prior knows no bad pictures: its negative prompt is the null prompt with a camera
        return _one_stage(prompt, HashField(), suited(CSD), pixels)
    coarse = CSD(Schedule(0.0, 1.0, until=0.5))
    request = _two_stages(prompt, coarse, CSD(Schedule(1.0, 0.5), weighting="sds"), pixels)
    return dataclasses.replace(request, negative=NEGATIVE)


def noise_free(prompt: str, pixels: bool = True) -> Request:
    """Noise-Free Score Distillation (arXiv 2310.17590): a field; what the null and a negative prompt share is left
    out."""
    request = _one_stage(prompt, HashField(), suited(NFSD) if pixels else NFSD(), pixels)
    return request if pixels else dataclasses.replace(request, negative=NEGATIVE)


def sdi(prompt: str, pixels: bool = True) -> Request:
    """Score Distillation via Inversion (arXiv 2405.15891): a field; one timestep falling from .98 to .25."""
    return _one_stage(prompt, HashField(), _with(SDI, pixels), pixels)


def fvsd(prompt: str, pixels: bool = True) -> Request:
    """VSD under the Jensen-Shannon divergence (f-distill, arXiv 2502.15681; in 3D ours): a field."""
    return _one_stage(prompt, HashField(), _with(FVSD, pixels), pixels)


def _with(method: type, pixels: bool, **changes: Any) -> AnyGuidance:
    """A method as it suits the prior, with what the paper asks for."""
    knobs: Any = suited(method) if pixels else method()
    return dataclasses.replace(knobs, **changes)


def _one_stage(prompt: str, representation: AnyRepresentation, guidance: AnyGuidance, pixels: bool) -> Request:
    steps = (900 if isinstance(representation, Splats) else 500) if pixels else 10_000
    return Request(prompt, (_stage(representation, guidance, steps, pixels),))


def _two_stages(prompt: str, coarse: AnyGuidance, fine: AnyGuidance, pixels: bool) -> Request:
    first = _stage(HashField(), coarse, 250 if pixels else 5_000, pixels)
    return Request(prompt, (first, dataclasses.replace(first, representation=None, guidance=fine)))


def _stage(representation: AnyRepresentation, guidance: AnyGuidance, steps: int, pixels: bool) -> Stage:
    cameras = PIXEL_ORBIT if pixels else Orbit(size=256)
    return Stage(representation, guidance, steps, cameras, wishes(representation))


PAPERS = (
    dreamfusion,
    sjc,
    prolificdreamer,
    mvdream,
    gaussiandreamer,
    luciddreamer,
    consistent3d,
    scaledreamer,
    stabledreamer,
    classifier_score,
    noise_free,
    sdi,
    fvsd,
)
