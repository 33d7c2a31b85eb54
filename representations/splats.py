"""A cloud of 3D gaussians (Kerbl et al., arXiv 2308.04079) as a representation: fast to render, free to move.

Unlike a grid, the cloud puts its parameters where the object is. It starts as a faint ball, and density control
(``densify``) drops what became invisible and grows where the pictures pull. Renders go through
``cuda_ext.ops.rasterize_gaussians``, which also says, out of its backward pass, how strongly each projected centre is
pulled.
"""

import math
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from representations.densify import Densify, children, to_grow, worth_keeping
from representations.scene import ParamGroup, RenderOutput, Representation, Scene
from representations.splat_sampling import Wanted, sampled
from representations.splat_scene import SH_ZERO, SplatScene
from representations.surgery import rearrange, replace


@dataclass(frozen=True)
class Splats:
    """Knobs of a cloud of gaussians."""

    count: int = 3000
    """Gaussians to begin with."""
    most: int = 4000
    """Gaussians at most."""
    sh_degree: int = 0
    """Degree of the spherical harmonics that make colour depend on the direction of view: 0 (it does not) to 3."""
    bound: float = 1.0
    """Half the side of the cube that holds the object, in world units."""
    initial_radius: float = 0.5
    """Radius of the faint ball that optimisation starts from, as a share of ``bound``."""
    initial_opacity: float = 0.05
    """Opacity of each gaussian of that ball."""
    smallest: float = 0.01
    """Shortest semi-axis, as a share of ``bound``."""
    largest: float = 0.12
    """Longest semi-axis, as a share of ``bound``."""
    position_rate: float = 0.01
    """Learning rate of centres at the start of a run, in shares of ``bound``; a tenth of it at the end."""
    size_rate: float = 0.03
    """Learning rate of the logarithms of semi-axes; a tenth of it at the end."""
    rotation_rate: float = 0.03
    """Learning rate of quaternions; a tenth of it at the end."""
    opacity_rate: float = 0.2
    """Learning rate of opacities before the sigmoid; a tenth of it at the end."""
    colour_rate: float = 0.05
    """Learning rate of spherical harmonics; a tenth of it at the end."""
    densify: Densify = field(default=Densify())
    """Density control."""

    def build(self, rng: torch.Generator, device: torch.device) -> "SplatCloud":
        """A faint ball of grey gaussians.

        Raises:
            ValueError: the knobs do not fit together.
        """
        self._refuse_nonsense()
        return SplatCloud(self, self._ball(rng), _seed(rng)).to(device)

    def start_from(self, scene: Scene, rng: torch.Generator, device: torch.device) -> "SplatCloud":
        """A cloud that begins as ``scene``: another cloud, a textured mesh or a field.

        Raises:
            TypeError: the scene is of another kind.
            ValueError: the knobs do not fit together, or there is nothing in the scene.
        """
        self._refuse_nonsense()
        sizes = (self.smallest * self.bound, self.largest * self.bound)
        wanted = Wanted(self.count, self.most, self.harmonics, sizes)
        return SplatCloud(self, sampled(scene, wanted, rng), _seed(rng)).to(device)

    @property
    def harmonics(self) -> int:
        """Coefficients of a colour channel."""
        return (self.sh_degree + 1) ** 2

    def _refuse_nonsense(self) -> None:
        checks = {
            f"count must be 1 or more and at most `most`, got {self.count} and {self.most}": 1
            <= self.count
            <= self.most,
            f"sh_degree must be 0 to 3, got {self.sh_degree}": 0 <= self.sh_degree <= 3,
            f"initial_opacity must lie between 0 and 1, got {self.initial_opacity}": 0 < self.initial_opacity < 1,
            f"smallest must be above 0 and below largest, got {self.smallest} and {self.largest}": (
                0 < self.smallest < self.largest
            ),
        }
        for problem, holds in checks.items():
            if not holds:
                raise ValueError(problem)

    def _ball(self, rng: torch.Generator) -> dict[str, Tensor]:
        n, radius = self.count, self.initial_radius * self.bound
        direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=rng), dim=1)
        # Two thirds of the edge of the volume that each has to itself, jittered so that no two axes are equal: a round
        # gaussian's rotation has no gradient.
        spacing = radius * (4 / 3 * math.pi / n) ** (1 / 3)
        size = math.log(2 / 3 * spacing) + 0.1 * torch.randn(n, 3, generator=rng)
        colour = torch.zeros(n, self.harmonics, 3)
        colour[:, 0] = 0.1 * torch.randn(n, 3, generator=rng)
        return {
            "means": direction * radius * torch.rand(n, 1, generator=rng) ** (1 / 3),
            "log_scales": size,
            "quaternions": torch.randn(n, 4, generator=rng),
            "logit_opacities": torch.full((n,), self.initial_opacity).logit(),
            "sh": colour,
        }


@final
class SplatCloud(Representation):
    """The trainable cloud; the number of its rows changes as it is optimised."""

    means: nn.Parameter
    log_scales: nn.Parameter
    quaternions: nn.Parameter
    logit_opacities: nn.Parameter
    sh: nn.Parameter
    pull: Tensor
    seen: Tensor

    def __init__(self, knobs: Splats, rows: dict[str, Tensor], seed: int):
        super().__init__()
        self.knobs, self.seed = knobs, seed
        for name, value in rows.items():
            setattr(self, name, nn.Parameter(value.float()))
        self.register_buffer("pull", torch.zeros(len(rows["means"])))
        self.register_buffer("seen", torch.zeros(len(rows["means"])))

    def __len__(self) -> int:
        return len(self.pull)

    @property
    def rows(self) -> dict[str, nn.Parameter]:
        """The parameters, all with one row a gaussian."""
        return dict(self.named_parameters())

    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> SplatScene:
        """See ``Representation.scene``."""
        probe = torch.zeros_like(self.pull, requires_grad=True)
        return SplatScene(**self.rows, bound=self.knobs.bound, probe=probe)

    def groups(self) -> list[ParamGroup]:
        """See ``Representation.groups``."""
        k = self.knobs
        rates = {
            "means": k.position_rate * k.bound,
            "log_scales": k.size_rate,
            "quaternions": k.rotation_rate,
            "logit_opacities": k.opacity_rate,
            "sh": k.colour_rate,
        }
        return [
            ParamGroup(name, [parameter], lambda p, rate=rates[name]: rate * 0.1**p)
            for name, parameter in self.rows.items()
        ]

    @torch.no_grad()
    def restructure(self, step: int, out: RenderOutput, optimiser: torch.optim.Optimizer) -> None:
        """Keep the gaussians within their limits, take statistics, and every now and then prune and grow.

        Where a learning rate is 0 something is to stay as it is, so no gaussian comes or goes.
        """
        self._stay_within_limits()
        self._note(out)
        round_ = self.knobs.densify.round(step + 1)
        if round_ is not None and all(group["lr"] for group in optimiser.param_groups):
            self._densify(step, optimiser)
            if self.knobs.densify.reset_every and round_ % self.knobs.densify.reset_every == 0:
                self._reset_opacity(optimiser)

    def get_extra_state(self) -> Tensor:
        """The seed of density control's throws, so that a resumed run throws as the first would have."""
        return torch.tensor(self.seed)

    def set_extra_state(self, state: Tensor) -> None:
        """See ``get_extra_state``."""
        self.seed = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any) -> None:
        """Take on the number of rows that the state has before its values are copied."""
        count = len(state_dict.get(f"{prefix}pull", self.pull))
        if count != len(self):
            for parameter in self.parameters():
                replace(parameter, parameter.detach().new_zeros(count, *parameter.shape[1:]))
            self._forget(count)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def _stay_within_limits(self) -> None:
        k = self.knobs
        self.log_scales.clamp_(math.log(k.smallest * k.bound), math.log(k.largest * k.bound))
        self.sh[:, 0].clamp_(-0.5 / SH_ZERO, 0.5 / SH_ZERO)

    def _note(self, out: RenderOutput) -> None:
        gradient = out.aux["probe"].grad
        if gradient is not None:
            self.pull += gradient.nan_to_num(0.0, 0.0, 0.0)
            self.seen += (out.aux["radius"] > 0).sum(0)

    def _densify(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        k, rng = self.knobs, torch.Generator().manual_seed(self.seed + step)
        keep = worth_keeping(self.means, self.log_scales, self.logit_opacities, k.densify, k.bound)
        grown = to_grow(self.pull / self.seen.clamp_min(1), keep, k.densify, k.most)
        keep[grown] = False
        parents = {name: parameter.detach()[grown] for name, parameter in self.rows.items()}
        rearrange(self.rows, optimiser, keep.nonzero()[:, 0], children(parents, k.densify, k.bound, rng))
        self._forget(len(self.means))

    def _reset_opacity(self, optimiser: torch.optim.Optimizer) -> None:
        """Nothing stays opaque by itself: what is needed comes back, fog does not."""
        self.logit_opacities.clamp_(max=math.log(self.knobs.densify.reset_to / (1 - self.knobs.densify.reset_to)))
        for moment in optimiser.state.get(self.logit_opacities, {}).values():
            if isinstance(moment, Tensor) and moment.shape == self.logit_opacities.shape:
                moment.zero_()

    def _forget(self, count: int) -> None:
        self.pull, self.seen = self.pull.new_zeros(count), self.seen.new_zeros(count)


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(1 << 60, (), generator=rng))
