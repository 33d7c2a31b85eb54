"""Whether a prior's components fit together: told by their settings, before anything is asked of them."""

from typing import Any

from guidance.prior_folder import Hints
from guidance.priors.deepfloyd import DeepFloyd
from guidance.priors.flux import Flux
from guidance.priors.latents import Latents
from guidance.priors.network import width_of
from guidance.priors.sd3 import SD3
from guidance.priors.unet import UNet
from guidance.priors.words import Words


def refuse_misfits(network: Any, words: Words, latents: Latents, prediction: str, hints: Hints) -> None:
    """Refuse components that would make no sense together, or do what is not supported.

    Raises:
        ValueError: in words.
    """
    config, flows = network.model.config, isinstance(network, SD3 | Flux)
    expected = latents.channels + {"Inpainting": 5, "NovelView": 4}.get(type(network).__name__, 0)
    expected *= 4 if isinstance(network, Flux) else 1
    embedding = config.get("class_embed_type")
    added = config.get("addition_embed_type")
    problems = {
        f"a prior that predicts {prediction!r} (epsilon, v_prediction, sample and flow are)": (
            prediction in ("epsilon", "v_prediction", "sample", "flow")
        ),
        f"a network of {config.in_channels} input channels where its latents have {expected}": (
            config.in_channels == expected
        ),
        f"a {'flow' if flows else 'network of timesteps'} with a scheduler of the other kind": (
            flows == (prediction == "flow")
        ),
        f"text encoders of {words.width} numbers a token with a network that reads {width_of(config)}": (
            words.width in (0, width_of(config))
        ),
        f"a network conditioned on {added!r} in this kind of folder": (
            added in ((None, "text") if isinstance(network, UNet | DeepFloyd) else (None, "text", "text_time"))
        ),
        f'class embedding {embedding!r} with camera "{hints["camera"]}"': (
            embedding == (None if hints["camera"] == "none" else "projection")
        ),
    }
    for problem, fine in problems.items():
        if not fine:
            raise ValueError(f"not supported: {problem}")


def refuse_other_controlnet(control: Any, unet: Any) -> None:
    """Refuse a ControlNet that corrects another U-Net than this, by the settings of both.

    Raises:
        ValueError: in words.
    """
    for name in ("cross_attention_dim", "addition_embed_type", "in_channels", "block_out_channels"):
        one, other = (list(v) if isinstance(v := config[name], tuple) else v for config in (control, unet))
        if one != other:
            raise ValueError(
                f"its controlnet/ is of another base than its unet/: {name} is {one!r} there and {other!r} here"
            )
