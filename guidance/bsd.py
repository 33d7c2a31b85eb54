"""Bootstrapped score distillation: scene and prior take turns, and the prior learns the scene as it could look."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Loss, Prior, Views
from guidance.controls import Controls
from guidance.critic import Adapted, Critic, Learning
from guidance.drawing import make_draw, timestep_bounds
from guidance.losses import distil, distillation_loss
from guidance.noising import Weighting, add_noise, clean_estimate, weighted
from guidance.schedules import Schedule
from guidance.sharing import Share


@dataclass(frozen=True)
class BSD:
    """Bootstrapped score distillation (DreamCraft3D, arXiv 2310.16818): ``w(t) (eps_cfg - eps_phi)`` as in VSD, where
    the prior behind ``eps_cfg`` is fine-tuned on the scene itself.

    In the first ``tuning_steps`` of every ``cycle`` only the prior learns, by denoising pictures that it made of the
    renders (SDEdit, arXiv 2108.01073): sharper than these, and consistent with the scene. Scene and critic rest
    meanwhile. The paper tunes the whole network at a rate of 1e-5; here it is a second low-rank adapter, so that the
    prior stays one, shared and unchanged, and neither memory nor checkpoints hold a network more.

    It is meant to refine: begin with another method's scene, and count the resting steps when choosing how many.
    """

    scale: float = 2.0
    """Classifier-free guidance weight of the prior's side."""
    weighting: Weighting = "sds"
    """w(t)."""
    cycle: int = 1000
    """Steps from one turn of the prior to the next. A run shorter than this has one turn, at its beginning; a run no
    longer than ``tuning_steps`` never moves the scene."""
    tuning_steps: int = 200
    """Steps at the beginning of a cycle in which the prior learns and the scene rests."""
    refresh: int = 25
    """Steps between pictures that are made for the prior to learn from."""
    album: int = 10
    """Pictures kept; the oldest make room."""
    strength: float = 0.5
    """Timestep to which renders are noised to make pictures of them, as a fraction of the schedule."""
    edit_steps: int = 4
    """Evaluations of the prior that a picture takes."""
    edit_scale: float = 7.5
    """Classifier-free guidance weight of the pictures."""
    critic: Learning = field(default=Learning())
    """How the critic learns."""
    tuning: Learning = field(default=Learning())
    """How the prior learns: slowly. At a rate of 1e-3 the bundled one takes the first, poor pictures for its world."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(points=((0.0, 0.98), (0.2, 0.98), (0.2, 0.5)), shape="piecewise"))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls())
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not (0 <= self.tuning_steps <= self.cycle and min(self.cycle, self.refresh, self.album) > 0):
            raise ValueError("BSD takes cycle, refresh and album of 1 or more, and tuning_steps from 0 to cycle")
        if not (0 < self.strength < 1 and self.edit_steps > 0):
            raise ValueError("BSD takes a strength between 0 and 1, and edit_steps of 1 or more")

    def init(self, prior: Prior, seed: int = 0) -> "Bootstrap":
        """Two adapters that have learnt nothing, and no pictures."""
        return Bootstrap(Critic(prior, self.critic, seed), Critic(prior, self.tuning, seed + 1))

    def gradient(
        self,
        state: "Bootstrap",
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The update direction for ``latents``, whoever's turn it is."""
        t, scale = draw.timesteps, self.controls.scale(self.scale, progress, draw)
        noisy = add_noise(prior, latents, draw.noise, t)
        target = guided(state.tuned(prior), noisy, t, _told(condition), scale, self.controls)
        reference = state.critic.predict(prior, noisy, t, condition)
        gradient = weighted(prior, latents, noisy, t, target, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)

    def loss(
        self,
        state: "Bootstrap",
        prior: Prior,
        views: Views,
        condition: Condition,
        progress: float,
        rng: torch.Generator,
    ) -> Loss:
        """A loss on the rendered pictures; a resting one without gradient while it is the prior's turn."""
        if not self._prior_turn(state):
            return distil(self, state, prior, views, condition, progress, rng)
        latents = prior.encode(views.images)
        draw = make_draw(latents, timestep_bounds(prior, self.t_min, self.t_max, progress), rng, share=views.share)
        return dataclasses.replace(distillation_loss(latents, torch.zeros_like(latents), draw), resting=True)

    def train_critic(
        self, state: "Bootstrap", prior: Prior, views: Views, condition: Condition, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """One step of whose turn it is: ``critic_loss`` and ``critic_skipped``, or ``prior_loss`` and
        ``prior_skipped``."""
        prior_turn, step = self._prior_turn(state), state.steps % self.cycle
        state.steps += 1
        with torch.no_grad():
            latents = prior.encode(views.images)
        shared, share = self.controls.shared_t or self.controls.group, views.share
        if not prior_turn:
            return state.critic.train_step(prior, latents, condition, rng, shared, share)
        if step % self.refresh == 0 or not state.pictures:
            made = self._edited(state, prior, latents, condition, rng, share)
            state.pictures = [*state.pictures, *_taken_apart(made, condition, share)][-self.album :]
        count = share.total(len(latents))
        picked = share.own(torch.randint(len(state.pictures), (count,), generator=rng)).tolist()
        examples, about = _put_together([state.pictures[i] for i in picked])
        learnt = state.tuning.train_step(prior, examples, about, rng, shared, share)
        return {name.replace("critic", "prior"): value for name, value in learnt.items()}

    def _prior_turn(self, state: "Bootstrap") -> bool:
        return state.steps % self.cycle < self.tuning_steps

    @torch.no_grad()
    def _edited(
        self,
        state: "Bootstrap",
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        rng: torch.Generator,
        share: Share,
    ) -> Float[Tensor, "b c i j"]:
        """Renders, noised and denoised again by the tuned prior in a few deterministic steps."""
        tuned, start = state.tuned(prior), round(self.strength * (len(prior.alphas_cumprod) - 1))
        drawn = torch.randn((share.total(len(latents)), *latents.shape[1:]), generator=rng)
        clean, eps = latents, share.own(drawn).to(latents)
        for i in range(self.edit_steps):
            t = torch.full((len(latents),), start * (self.edit_steps - i) // self.edit_steps, device=latents.device)
            noisy = add_noise(prior, clean, eps, t)
            eps = guided(tuned, noisy, t, _told(condition), self.edit_scale, self.controls)
            clean = clean_estimate(prior, noisy, eps, t)
        return clean


class Bootstrap(nn.Module):
    """Memory of BSD: the critic, what the prior has learnt and from which pictures, and whose turn it is."""

    def __init__(self, critic: Critic, tuning: Critic) -> None:
        super().__init__()
        self.critic, self.tuning = critic, tuning
        self.steps = 0
        self.pictures: list[dict[str, Any]] = []

    def tuned(self, prior: Prior) -> Adapted:
        """The prior as it is now."""
        return Adapted(prior, self.tuning.adapter)

    def get_extra_state(self) -> dict[str, Any]:
        """Steps so far and pictures."""
        return {"steps": self.steps, "pictures": self.pictures}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over steps and pictures."""
        self.steps, self.pictures = state["steps"], list(state["pictures"])


def _told(condition: Condition) -> Condition:
    """The tuned prior takes the camera, whether the prior does or not."""
    return dataclasses.replace(condition, pose=condition.camera)


def _taken_apart(latents: Float[Tensor, "b c i j"], condition: Condition, share: Share) -> list[dict[str, Any]]:
    """Each picture of the step with what the prior is to be told about it, as plain values that a checkpoint holds."""
    named = {"latents": latents, "text": condition.text, "camera": condition.camera}
    parts = {name: share.gather(value) for name, value in named.items() if value is not None}
    extra = {name: share.gather(value) for name, value in condition.extra.items()}
    return [
        {name: value[i].clone() for name, value in parts.items()}
        | {"extra": {name: value[i].clone() for name, value in extra.items()}}
        for i in range(share.total(len(latents)))
    ]


def _put_together(pictures: list[dict[str, Any]]) -> tuple[Float[Tensor, "b c i j"], Condition]:
    """A batch of pictures and what to tell about them."""
    latents, text = (torch.stack([picture[name] for picture in pictures]) for name in ("latents", "text"))
    camera = torch.stack([p["camera"] for p in pictures]) if "camera" in pictures[0] else None
    extra = {name: torch.stack([p["extra"][name] for p in pictures]) for name in pictures[0]["extra"]}
    return latents, Condition(text=text, negative=text, null=text, camera=camera, extra=extra)
