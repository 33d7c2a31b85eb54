"""DeepFloyd IF, its first stage: a U-Net on pixels, told prompts that T5 has read, which also learnt a variance."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.priors.network import Asked


@dataclass(frozen=True)
class DeepFloyd:
    """A U-Net of diffusers whose answer is noise and, in as many channels more, a variance; that is left out."""

    model: Any
    takes: frozenset[str] = frozenset()

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The predicted noise."""
        answer = model(
            asked.z.contiguous(memory_format=torch.channels_last),
            asked.time,
            asked.tokens,
            class_labels=asked.with_camera(None),
        ).sample
        return answer[:, : asked.z.shape[1]]
