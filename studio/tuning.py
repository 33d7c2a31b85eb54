"""Knobs of each method that suit the bundled prior: a small one of pixels, which is told the camera.

The papers' knobs are made for Stable Diffusion: a weight of 100 saturates colours in pixels, and a pixel prior's
estimates must stay in [-1, 1]. Three things are the same for all methods here. Timesteps descend, so that what the
thing is gets decided before what it looks like. Guidance weight falls from 7.5 to 2, which gives true colours at the
end. And differences of noise are weighted by s / a, which makes them differences of clean pictures: that is the size
for which the regularisers of the recipes are set, under which a method with smaller gradients loses thin parts.
"""

import dataclasses
from typing import Any

from guidance import ASD, BSD, CDS, CSD, DDS, DSD, FVSD, ISM, JSD, NFSD, PDS, SDI, SDS, SJC, UCM, VSD
from guidance.controls import Controls
from guidance.critic import Learning
from guidance.methods import AnyGuidance
from guidance.schedules import Schedule
from representations.kinds import AnyRepresentation
from representations.particles import Particles
from representations.splats import Splats
from studio.cameras import Orbit
from studio.paths import BUNDLED_PRIOR, MissingAsset, UnknownPrior, bundled_prior, resolve_prior
from studio.request import Regularizers

_BOUNDED = Controls(final_scale=2.0, rescale=0.5, clamp=1.0)
_LOW, _HIGH = Schedule(0.5, 0.05, until=0.9), Schedule(0.98, 0.5, until=0.9)
_COMMON: dict[str, Any] = {"controls": _BOUNDED, "t_min": _LOW, "t_max": _HIGH}
_CLEAN: dict[str, Any] = {**_COMMON, "weighting": "snr_sqrt"}
# A critic that learns for hundreds of steps, not for tens of thousands, has to learn faster: a tenth of this leaves its
# loss three to six times as high.
_CRITIC: dict[str, Any] = {**_CLEAN, "critic": Learning(rate=1e-3)}

PIXEL_ORBIT = Orbit(elevation=(-15.0, 60.0))
"""Within the -20 to 75 degrees that the bundled prior was trained with: all its figures are of these cameras."""
PIXEL_SDS = SDS(7.5, form="clean", controls=_BOUNDED, t_min=_LOW, t_max=_HIGH)
LATENT_SDS = SDS(50.0, form="clean", controls=Controls(rescale=0.5), t_min=_LOW, t_max=_HIGH)
"""The same for latents, with MVDream's guidance weight; it has not been run at full size."""

_SUITED: tuple[AnyGuidance, ...] = (
    PIXEL_SDS,
    SJC(7.5, **_COMMON),
    VSD(7.5, **_CRITIC),
    # With the published r of .1 nothing pulls fog and needles out of the background: the reference, so little later,
    # shows them too. At 1 the pull is half of what SDS has.
    ASD(7.5, shift=1.0, **_CLEAN),
    CDS(7.5, goal=Schedule(0.8, 0.1), weighting="uniform", controls=_BOUNDED),
    ISM(7.5, base="null", t_max=_HIGH, controls=dataclasses.replace(_BOUNDED, shared_t=True)),
    # No guidance weight of its own: the factor stands in for it.
    CSD(Schedule(0.0), weighting="snr_sqrt", t_min=_LOW, t_max=_HIGH, controls=Controls(loss_weight=5.0)),
    NFSD(7.5, **_CLEAN),
    SDI(7.5, controls=_BOUNDED),
    # Turns in proportion to runs of hundreds of steps, not of tens of thousands.
    BSD(7.5, cycle=100, tuning_steps=20, refresh=5, **_CRITIC),
    DSD(7.5, **_CRITIC),
    JSD(7.5, **_CLEAN),
    FVSD(7.5, **_CRITIC),
    UCM(7.5, plain_until=0.36, controls=_BOUNDED),
    DDS(7.5, weighting="snr_sqrt", controls=Controls(clamp=1.0)),
    # Under the published pair the identity term is as strong as the change at low t, and a colour rests half way.
    PDS(7.5, identity=0.1, change=1.0, controls=Controls(clamp=1.0)),
)


def suited(method: type, prior: str = BUNDLED_PRIOR) -> AnyGuidance:
    """``method`` with the knobs that suit a prior: those above for the bundled one, its papers' for any other.

    Args:
        method: a member of ``AnyGuidance``.
        prior: name or folder of the prior, as a request has it.
    """
    known = {type(knobs): knobs for knobs in _SUITED} if is_bundled(prior) else {}
    return known.get(method) or method()


def is_bundled(prior: str) -> bool:
    """Whether this name or folder is that of the bundled prior; not, if there is none of that name."""
    try:
        return resolve_prior(prior) == bundled_prior()
    except (UnknownPrior, MissingAsset):  # whoever checks the request says so
        return False


def wishes(representation: AnyRepresentation) -> Regularizers:
    """The regularisers that suit a representation.

    A heavy opacity penalty at first keeps the ball that a cloud begins as translucent, so that it can be carved.
    """
    if isinstance(representation, Particles):
        return wishes(representation.kind)
    if isinstance(representation, Splats):
        return Regularizers(opacity=Schedule(1000.0, 100.0, until=0.4), binary=Schedule(0.0, 1000.0))
    return Regularizers()
