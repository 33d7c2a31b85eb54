"""From a method's gradient to the loss that the run differentiates: the same reduction for every method."""

from jaxtyping import Float
from torch import Tensor

from guidance.contract import Draw, Loss, surrogate


def distillation_loss(latents: Float[Tensor, "b c i j"], gradient: Float[Tensor, "b c i j"], draw: Draw) -> Loss:
    """Surrogate whose gradient for ``latents`` is ``gradient / b``.

    Diagnostics: ``value``, 0.5 ||g||^2 / b, which is what to plot, as the surrogate itself means nothing;
    ``gradient_norm``, the mean norm of a sample's gradient; ``timestep``, the mean timestep.
    """
    norms = gradient.detach().flatten(1).norm(dim=1)
    return Loss(
        surrogate(latents, gradient),
        {
            "value": 0.5 * norms.square().mean(),
            "gradient_norm": norms.mean(),
            "timestep": draw.timesteps.float().mean(),
        },
    )
