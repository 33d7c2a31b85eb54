"""Kernels: typed differentiable operations, each with a plain-torch reference that specifies it."""
