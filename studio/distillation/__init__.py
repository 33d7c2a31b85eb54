"""Guidance distillation: ``studio distill-guidance``."""
