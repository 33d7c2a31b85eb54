"""Guidance: how should these renders change? Priors, conditions and score-distillation methods."""

from guidance.methods import AnyGuidance
from guidance.sds import SDS

__all__ = ["SDS", "AnyGuidance"]
