"""The text side: prompts to the one tensor [n, t, d] that conditions, methods and controls pass around.

Some networks also want one vector for the whole prompt (SDXL, SD 3, FLUX). It travels as one more row below the
tokens, zeros to its right, and is taken off again just before the network is asked: whatever is done to embeddings on
the way, such as passing from one direction of view to the next, is done to both.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Words(Protocol):
    """Prompts to embeddings."""

    @property
    def pooled(self) -> int:
        """Numbers of the last row that are one vector for the whole prompt; 0: every row is a token."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that the network attends to, those that fill a prompt up among them."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a token; 0: there are no words."""
        ...

    @property
    def most_tokens(self) -> int:
        """Tokens of a prompt that are read, without the marks at its ends."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, without the marks at its ends."""
        ...

    def encode(self, prompts: list[str]) -> Float[Tensor, "n t d"]:
        """Embeddings in float32; what exceeds the length is cut off."""
        ...


def joined(tokens: Float[Tensor, "n t d"], pooled: Float[Tensor, "n p"]) -> Float[Tensor, "n u d"]:
    """Tokens with the pooled vector as one more row; d must be p or more."""
    row = torch.nn.functional.pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1]))
    return torch.cat([tokens, row[:, None].to(tokens)], 1)


def parted(text: Float[Tensor, "n u d"], pooled: int) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n p"] | None]:
    """What ``joined`` joined; ``pooled`` is the vector's length, 0 if there is none."""
    return (text[:, :-1], text[:, -1, :pooled]) if pooled else (text, None)


@dataclass(frozen=True)
class ClipWords:
    """CLIP's last hidden states, for folders that name no pipeline: as Stable Diffusion reads prompts."""

    text_encoder: Any
    tokenizer: Any
    pooled: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the network attends to, those that fill a prompt up among them."""
        return self.text_encoder.config.max_position_embeddings

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.text_encoder.config.hidden_size

    @property
    def most_tokens(self) -> int:
        """Tokens of a prompt that are read, without the marks at its ends."""
        return self.tokens - 2

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, without the marks at its ends."""
        return len(self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, prompts: list[str]) -> Float[Tensor, "n t d"]:
        """Embeddings in float32; what exceeds the length is cut off."""
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state.float()


Reading = Literal["clip", "clip_pooled", "t5", "clips_and_t5", "t5_and_clip"]


@dataclass(frozen=True)
class PipelineWords:
    """Whatever a pipeline of diffusers makes of prompts, through its own ``encode_prompt``, one prompt at a time."""

    pipeline: Any
    reading: Reading
    pooled: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the network attends to, those that fill a prompt up among them."""
        return self._t5_tokens + (
            0 if self.reading in ("t5", "t5_and_clip") else self.pipeline.tokenizer.model_max_length
        )

    @property
    def _t5_tokens(self) -> int:
        """Tokens that T5 reads a prompt as, or that stand for them where there is no T5."""
        if self.reading == "t5_and_clip":  # FLUX.1 schnell, which is told no guidance weight, learnt from 256 at most
            return 512 if self.pipeline.transformer.config.guidance_embeds else 256
        return {"t5": 77, "clips_and_t5": 256}.get(self.reading, 0)

    @property
    def width(self) -> int:
        """Numbers of a token."""
        pipe, name = self.pipeline, {"t5": "text_encoder", "t5_and_clip": "text_encoder_2"}.get(self.reading)
        if self.reading == "clips_and_t5":
            t5 = pipe.text_encoder_3
            return pipe.transformer.config.joint_attention_dim if t5 is None else t5.config.d_model
        if name is not None:
            return getattr(pipe, name).config.d_model
        two = self.reading == "clip_pooled"
        return pipe.text_encoder.config.hidden_size + (pipe.text_encoder_2.config.hidden_size if two else 0)

    @property
    def most_tokens(self) -> int:
        """Tokens that the longest-reading text encoder reads, without the marks at a prompt's ends."""
        if self._t5_tokens and self._t5 is not None:
            return self._t5_tokens - 1
        return self.pipeline.tokenizer.model_max_length - 2

    @property
    def _t5(self) -> Any:
        return {"t5": self.pipeline.tokenizer, "clips_and_t5": getattr(self.pipeline, "tokenizer_3", None)}.get(
            self.reading, getattr(self.pipeline, "tokenizer_2", None)
        )

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt for the text encoder that reads most, without the marks at its ends."""
        reader = self._t5 if self.reading in ("t5", "clips_and_t5", "t5_and_clip") else None
        tokenizer = self.pipeline.tokenizer if reader is None else reader
        # A word of textual inversion may be several tokens; only then, since this warns of prompts that are too long.
        several = any(word.endswith("_1") for word in tokenizer.get_added_vocab())
        if several and hasattr(self.pipeline, "maybe_convert_prompt"):
            prompt = self.pipeline.maybe_convert_prompt(prompt, tokenizer)
        return len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, prompts: list[str]) -> Float[Tensor, "n t d"]:
        """Embeddings in float32; what exceeds the length is cut off."""
        return torch.cat([self._encoded(prompt).float() for prompt in prompts])

    def _encoded(self, prompt: str) -> Float[Tensor, "1 t d"]:
        pipeline, device = self.pipeline, _device(self.pipeline)
        if self.reading == "clip":
            return pipeline.encode_prompt(prompt, device, 1, False)[0]
        if self.reading == "t5":
            return pipeline.encode_prompt(prompt, False, device=device)[0]
        if self.reading == "clip_pooled":
            return self._encoded_xl(prompt, device)
        if self.reading == "clips_and_t5":
            found = pipeline.encode_prompt(prompt, None, None, device=device, do_classifier_free_guidance=False)
            return joined(found[0], found[2])
        tokens, pooled, _ = pipeline.encode_prompt(prompt, None, device=device, max_sequence_length=self._t5_tokens)
        return joined(tokens, pooled)

    def _encoded_xl(self, prompt: str, device: torch.device) -> Tensor:
        """SDXL: the empty prompt may stand for zeros, which the pipeline gives for a negative prompt that is None."""
        tokens, null, pooled, null_pooled = self.pipeline.encode_prompt(prompt, None, device, 1, not prompt)
        return joined(tokens, pooled) if prompt else joined(null, null_pooled)


@dataclass(frozen=True)
class NoWords:
    """For priors that are told by pictures alone: every prompt is one token of zero."""

    device: torch.device
    pooled: int = 0
    tokens: int = 1
    width: int = 0
    most_tokens: int = 1_000_000

    def count_tokens(self, prompt: str) -> int:
        """None is read."""
        return 0

    def encode(self, prompts: list[str]) -> Float[Tensor, "n 1 1"]:
        """Zeros."""
        return torch.zeros(len(prompts), 1, 1, device=self.device)


def _device(pipeline: Any) -> torch.device:
    return next(pipeline.text_encoder.parameters()).device
