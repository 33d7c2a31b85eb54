"""Joint score distillation: an energy that a multi-view prior defines holds the views together."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from guidance.classifier_free import combine, predict_branches
from guidance.contract import Condition, Draw, Prior
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt
from guidance.noising import Weighting, add_noise, clean_estimate, weight, weighted
from guidance.piecewise import Piecewise
from guidance.schedules import Schedule

if TYPE_CHECKING:
    from guidance.diffusers_prior import DiffusersPrior


class MultiView(nn.Module):
    """The prior that knows views, where it is another than the run's own; nothing to checkpoint."""

    def __init__(self, prior: "DiffusersPrior | None") -> None:
        super().__init__()
        self.prior = prior

    def asked(self, own: Prior) -> Prior:
        """The prior that knows views, asked as few samples at a time as the run's own."""
        if self.prior is None:
            return own
        return own.beside(self.prior, self.prior.hints["views"]) if isinstance(own, Piecewise) else self.prior


@dataclass(frozen=True)
class JSD:
    """Joint score distillation (JointDreamer, arXiv 2407.12291): an energy that only a multi-view prior can judge.

    ``w [eps_cfg - n + lambda (s / a) (z0_hat_u - z0_hat_mv)]``: ``z0_hat_u`` is the null prompt's clean estimate,
    ``z0_hat_mv`` that of a multi-view prior, which is told the cameras. Without a folder for one, a prior that takes
    cameras plays both parts: for the first it is asked without the camera. A prior that takes none has no opinion on
    how views belong together, so name a folder then.
    """

    scale: float = 31.0
    """Classifier-free guidance weight."""
    energy: Schedule = field(default=Schedule(points=((0.0, 0.0), (0.12, 0.0), (0.12, 5.0)), shape="piecewise"))
    """lambda."""
    multi_view: str | None = None
    """Folder of the multi-view prior, which must share the prior's latents and its text encoder, and uses the machine
    as that does; none: the prior itself."""
    weighting: Weighting = "sds"
    """w(t)."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls())
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset()

    loss = distil
    train_critic = nothing_learnt

    def init(self, prior: Prior, seed: int = 0) -> MultiView:
        """Load the multi-view prior.

        Raises:
            MissingPriorError: there is none in that folder.
            ValueError: its latents or its text encoder are not the prior's.
        """
        if self.multi_view is None:
            return MultiView(None)
        from guidance.second_prior import second_prior

        return MultiView(second_prior(Path(self.multi_view), prior))

    def gradient(
        self,
        state: MultiView,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The update direction for ``latents``."""
        t, scale = draw.timesteps, self.controls.scale(self.scale, progress, draw)
        noisy, strength = add_noise(prior, latents, draw.noise, t), self.energy(progress)
        single = dataclasses.replace(condition, pose=None) if state.prior is None else condition
        conditional, null = predict_branches(prior, noisy, t, single)
        eps = self.controls.bounded(prior, noisy, t, combine(conditional, null, scale), conditional)
        if strength:
            apart = clean_estimate(prior, noisy, null, t) - self._together(state.asked(prior), noisy, t, condition)
            eps = eps + strength * weight(prior, t, "snr_sqrt", latents) * apart
        gradient = weighted(prior, latents, noisy, t, eps, draw.noise, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)

    @staticmethod
    def _together(prior: Prior, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        pose = condition.camera if "pose" in prior.takes else None
        told = dataclasses.replace(condition, pose=pose, repelled=None, repelled_weight=None)
        (eps,) = predict_branches(prior, noisy, t, told, ("plain",))
        return clean_estimate(prior, noisy, eps, t)
