"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): several answers of the prior in one forward pass.

One convention everywhere, the one of diffusers: ``eps_cfg = eps_u + S (eps_c - eps_u)``.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from guidance.contract import Condition, Draw, OnePassPrior, Prior
from guidance.controls import Controls
from guidance.noising import add_noise

Branch = Literal["text", "plain", "null", "negative", "source"]


@dataclass(frozen=True)
class Ask:
    """A question to the prior: the noise in ``noisy`` at timesteps ``t``, told what ``branch`` says."""

    noisy: Float[Tensor, "b c i j"]
    t: Int[Tensor, " b"]
    branch: Branch = "text"


def predict(prior: Prior, condition: Condition, *asks: Ask, repel: float = 1.0) -> tuple[Tensor, ...]:
    """Predicted noise [b, c, i, j] for each question, in the order asked, from one batched forward pass.

    The null branch leaves the camera out (a pose of zeros), unless the condition keeps it, and any picture prompt, and
    so does the negative branch where its prompt is the null prompt; every branch keeps what else ``condition.extra``
    holds, such as the background. Where the condition repels directions of view, every answer to ``text`` that has one
    to ``null`` of the same latents beside it is Perp-Neg's (arXiv 2304.04968), and stands in for ``eps_c`` in all
    formulas: ``eps_u + d + sum_i w_i perp(d_i, d)``, with ``d = eps_c - eps_u``.

    Args:
        prior: the prior.
        condition: what it is told.
        asks: the questions.
        repel: factor of Perp-Neg's weights.
    """
    pairs = [] if condition.repelled is None else _pairs(asks, "text")
    count = 0 if condition.repelled is None else condition.repelled.shape[1]
    further = [(asks[text], i) for text, _ in pairs for i in range(count)]
    texts = [_text(condition, ask.branch) for ask in asks]
    texts += [] if condition.repelled is None else [condition.repelled[:, i] for _, i in further]
    answers = _answers(prior, condition, [*asks, *(ask for ask, _ in further)], texts)
    found = list(answers[: len(asks)])
    for place, (text, null) in enumerate(pairs):
        assert condition.repelled_weight is not None
        away = answers[len(asks) + place * count :][:count]
        found[text] = _repelled(answers[text], answers[null], away, repel * condition.repelled_weight)
    return tuple(found)


def _answers(prior: Prior, condition: Condition, asks: list[Ask], texts: list[Tensor]) -> tuple[Tensor, ...]:
    """An answer to each question, told the text in its place.

    A prior that answers with the prompt and without it in one pass is not asked without it a second time.
    """
    at_once = "both" in prior.takes and condition.empty_null
    beside = {null: told for told, null in reversed(_pairs(tuple(asks)))} if at_once else {}
    places = [i for i in range(len(asks)) if i not in beside]
    every = [asks[i] for i in places]
    question = {
        "noisy": torch.cat([ask.noisy for ask in every]),
        "t": torch.cat([ask.t for ask in every]),
        "text": torch.cat([texts[i] for i in places]),
        "pose": None if condition.pose is None else torch.cat([_pose(condition, ask.branch) for ask in every]),
        "extra": {n: torch.cat([_extra(condition, n, ask.branch) for ask in every]) for n in condition.extra},
    }
    told, null = (
        cast(OnePassPrior, prior).predict_both(**question) if beside else (prior.predict_noise(**question), None)
    )
    found = dict(zip(places, told.chunk(len(every)), strict=True))
    if null is not None:
        nulls = null.chunk(len(every))
        found |= {place: nulls[places.index(partner)] for place, partner in beside.items()}
    return tuple(found[i] for i in range(len(asks)))


def predict_branches(
    prior: Prior,
    noisy: Float[Tensor, "b c i j"],
    t: Int[Tensor, " b"],
    condition: Condition,
    branches: tuple[Branch, ...] = ("text", "null"),
    repel: float = 1.0,
) -> tuple[Float[Tensor, "b c i j"], ...]:
    """``predict`` for several branches at the same latents."""
    return predict(prior, condition, *(Ask(noisy, t, branch) for branch in branches), repel=repel)


def _text(condition: Condition, branch: Branch) -> Tensor:
    text = {
        "text": condition.text,
        "plain": condition.text if condition.plain is None else condition.plain,
        "null": condition.null,
        "negative": condition.negative,
        "source": condition.source,
    }[branch]
    if text is None:
        raise ValueError(f"the condition has no {branch} prompt")
    return text


def _pose(condition: Condition, branch: Branch) -> Tensor:
    assert condition.pose is not None
    return condition.pose if condition.pose_in_null else condition.pose * _prompted(condition, branch)[:, None, None]


def _extra(condition: Condition, name: str, branch: Branch) -> Tensor:
    value = condition.extra[name]
    told = _prompted(condition, branch).view(-1, *[1] * (value.dim() - 1))
    return value * told if name.startswith("image") else value


def _prompted(condition: Condition, branch: Branch) -> Bool[Tensor, " b"]:
    """Which samples a branch prompts at all: the null branch none, the negative one those whose words say something.

    For a prior that reads no words every negative prompt is empty, and one that was told the picture and the camera
    would answer as the prompt does.
    """
    if branch == "null":
        return torch.zeros(len(condition.text), dtype=torch.bool, device=condition.text.device)
    if branch == "negative":
        return (condition.negative != condition.null).flatten(1).any(1)
    return torch.ones(len(condition.text), dtype=torch.bool, device=condition.text.device)


def _pairs(asks: tuple[Ask, ...], *branches: Branch) -> list[tuple[int, int]]:
    """Places of each question to ``branches`` (any but null), and of that to ``null`` about the same latents."""
    return [
        (i, j)
        for i, ask in enumerate(asks)
        if (ask.branch in branches if branches else ask.branch != "null")
        for j, other in enumerate(asks)
        if other.branch == "null" and other.noisy is ask.noisy and other.t is ask.t
    ]


# Perp-Neg -------------------------------------------------------------------------------------------------------------


def _repelled(text: Tensor, null: Tensor, away: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    towards = text - null
    pull = towards
    for answer, w in zip(away, weights.unbind(1), strict=True):
        pull = pull + w.to(towards)[:, None, None, None] * _perpendicular(answer - null, towards)
    return null + pull


def _perpendicular(d: Float[Tensor, "b c i j"], p: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
    """The part of ``d`` at right angles to ``p``, sample by sample."""
    along = (d * p).sum((1, 2, 3), keepdim=True) / (p * p).sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    return d - along * p


# Combination ----------------------------------------------------------------------------------------------------------


def combine(
    conditional: Float[Tensor, "b c i j"], null: Float[Tensor, "b c i j"], scale: float | Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c i j"]:
    """``eps_u + S (eps_c - eps_u)``."""
    return null + scale * (conditional - null)


def guided(
    prior: Prior,
    noisy: Float[Tensor, "b c i j"],
    t: Int[Tensor, " b"],
    condition: Condition,
    scale: float | Float[Tensor, "b 1 1 1"],
    controls: Controls = Controls(),  # noqa: B008 -- frozen
    repel: float = 1.0,
) -> Float[Tensor, "b c i j"]:
    """``eps_cfg`` of the prompt against the null prompt, bounded as ``controls`` say."""
    conditional, null = predict_branches(prior, noisy, t, condition, repel=repel)
    return controls.bounded(prior, noisy, t, combine(conditional, null, scale), conditional)


def guided_edit(
    prior: Prior,
    latents: Float[Tensor, "b c i j"],
    condition: Condition,
    draw: Draw,
    scale: Float[Tensor, "b 1 1 1"],
    controls: Controls,
) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
    """(z_t, ``eps_cfg`` of an edited picture, ``eps_cfg`` of its source under the source's prompt), same t and n."""
    assert condition.source_latents is not None, "an edit has the latents of its source"
    t = draw.timesteps
    noisy, source = (add_noise(prior, clean, draw.noise, t) for clean in (latents, condition.source_latents))
    text, null, text_source, null_source = predict(
        prior,
        condition,
        Ask(noisy, t, "text"),
        Ask(noisy, t, "null"),
        Ask(source, t, "source"),
        Ask(source, t, "null"),
    )
    eps = controls.bounded(prior, noisy, t, combine(text, null, scale), text)
    reference = controls.bounded(prior, source, t, combine(text_source, null_source, scale), text_source)
    return noisy, eps, reference
